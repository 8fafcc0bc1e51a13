//! What every engine test needs: a runtime of its own, a data directory of its own, and the small stack, made once for
//! all tests of this machine (by the hash of its recipe, below the target directory).

use flex_builder::{BuildError, BuildInput, BuildOutput, BuildSettings, Builder, Prepared, Source, StackBuilder};
use flex_model::{AppId, BuildId, Command, CommitId, HealthCheck, ImageRef, InstanceId, InstanceSpec, Memory, ProcessType, Uuid};
use flex_runtime::{DockerRuntime, DockerSettings, JobSpec, Output, Runtime};
use futures_util::StreamExt;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One test's world.
pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: Arc<DockerRuntime>,
    pub builder: Builder,
    pub app: AppId,
    cluster: String,
}

/// What a build said and came to.
pub struct Ran {
    pub result: Result<BuildOutput, BuildError>,
    pub log: Vec<String>,
}

impl Ran {
    pub fn ok(self) -> BuildOutput {
        match self.result {
            Ok(out) => out,
            Err(e) => panic!("{e}\n{}", self.log.join("\n")),
        }
    }
    pub fn err(&self) -> &BuildError {
        match &self.result {
            Err(e) => e,
            Ok(_) => panic!("built although it must not:\n{}", self.log.join("\n")),
        }
    }
    pub fn says(&self, text: &str) -> bool {
        self.log.iter().any(|l| l.contains(text))
    }
}

fn unique() -> u128 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    now ^ (u128::from(std::process::id()) << 64)
}

/// A world whose settings `adjust` changed.
pub async fn world(adjust: impl FnOnce(&mut BuildSettings)) -> World {
    let cluster = format!("bt{:x}", unique() & 0xffff_ffff_ffff);
    let runtime = Arc::new(DockerRuntime::connect(DockerSettings::local(cluster.clone())).unwrap());
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&cache).unwrap();
    let dir = tempfile::tempdir_in(&cache).unwrap();
    let buildpacks = dir.path().join("buildpacks");
    fs::create_dir_all(buildpacks.join("builtin")).unwrap();
    fs::write(buildpacks.join("builtin/order"), "never\n").unwrap();
    script(&buildpacks.join("builtin/never/bin/detect"), "exit 1");
    let mut settings = BuildSettings::new(dir.path().join("data"), buildpacks);
    adjust(&mut settings);
    stack(&cache, &settings, runtime.clone()).await;
    let builder = Builder::new(settings, runtime.clone());
    World { dir, runtime, builder, app: AppId(Uuid::from_u128(unique())), cluster }
}

/// Makes the small stack if nobody has, and shows it to the test's data directory.
async fn stack(cache: &Path, settings: &BuildSettings, runtime: Arc<DockerRuntime>) {
    let shared = cache.join("flex-builder-stacks");
    fs::create_dir_all(shared.join("stacks")).unwrap();
    let lock = fs::File::create(shared.join("lock")).unwrap();
    // Blocking is fine: the other holder is another test process that makes the stack.
    lock.lock().unwrap();
    let settings_of_stack = BuildSettings { data_dir: shared.clone(), ..settings.clone() };
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mini");
    let (log, mut lines) = mpsc::channel(64);
    tokio::spawn(async move { while lines.recv().await.is_some() {} });
    StackBuilder::new(settings_of_stack, runtime).build(&recipe, false, log).await.unwrap();
    fs::create_dir_all(&settings.data_dir).unwrap();
    std::os::unix::fs::symlink(shared.join("stacks"), settings.data_dir.join("stacks")).unwrap();
}

impl World {
    /// Builds a source without config vars.
    pub async fn build(&self, source: Source) -> Ran {
        self.build_with(source, &[], CancellationToken::new()).await
    }

    pub async fn build_with(&self, source: Source, config: &[(&str, &str)], cancel: CancellationToken) -> Ran {
        self.start(None, source, config, cancel, None).await
    }

    /// Builds, and cancels as soon as a line of the log has this text.
    pub async fn build_until(&self, text: &'static str, source: Source, cancel: CancellationToken) -> Ran {
        self.start(None, source, &[], cancel, Some(text)).await
    }

    /// Builds in a container that was prepared.
    pub async fn build_in(&self, ready: Prepared, source: Source) -> Ran {
        self.start(Some(ready), source, &[], CancellationToken::new(), None).await
    }

    pub fn next_build(&self) -> BuildId {
        BuildId(Uuid::from_u128(unique()))
    }

    async fn start(
        &self,
        ready: Option<Prepared>,
        source: Source,
        config: &[(&str, &str)],
        cancel: CancellationToken,
        until: Option<&'static str>,
    ) -> Ran {
        let input = BuildInput {
            build: self.next_build(),
            app: self.app,
            app_name: "shop".parse().unwrap(),
            stack: "flex-mini".parse().unwrap(),
            stack_by_hand: false,
            source,
            source_version: Some("v-1".into()),
            buildpacks: Vec::new(),
            config: config.iter().map(|(k, v)| (k.parse().unwrap(), flex_model::Secret::new(*v))).collect(),
        };
        let (send, mut lines) = mpsc::channel::<String>(64);
        let stop = cancel.clone();
        let log = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(line) = lines.recv().await {
                if until.is_some_and(|text| line.contains(text)) {
                    stop.cancel();
                }
                all.push(line);
            }
            all
        });
        let result = self.builder.build_in(ready.map(|r| Box::pin(async { Some(r) }) as _), input, send, cancel).await;
        Ran { result, log: log.await.unwrap() }
    }

    /// Runs a command line in an image as an instance would be, and returns its output and exit status.
    pub async fn run(&self, image: &ImageRef, command: Command) -> (String, i64) {
        let spec = InstanceSpec {
            proxy_protocol: None,
            image: image.clone(),
            command,
            env: BTreeMap::new(),
            port: None,
            memory: Memory::from_mib(256),
            cpu_shares: 1024,
            cpu_millis: None,
            pids: 100,
            stop_grace_seconds: 1,
            read_only_root: false,
            check: HealthCheck::default_for(&ProcessType::web()),
        };
        let job = JobSpec {
            // Names hold an id's first digits.
            instance: InstanceId(Uuid::from_u128(unique() << 64)),
            app: self.app,
            app_name: "shop".into(),
            name: "run.1".into(),
            version: 1,
            spec,
            tty: None,
            stdin: false,
        };
        let session = self.runtime.run_once(job).await.unwrap();
        let mut text = Vec::new();
        let mut output = session.output;
        while let Some(piece) = output.next().await {
            let (Output::Stdout(bytes) | Output::Stderr(bytes)) = piece.unwrap();
            text.extend_from_slice(&bytes);
        }
        drop(session.input);
        (String::from_utf8_lossy(&text).into_owned(), session.exit.await.unwrap().unwrap())
    }

    /// The ids of this world's containers, whether they run or not.
    pub fn containers(&self) -> Vec<String> {
        docker(&["ps", "-aq", "--no-trunc", "--filter", &self.filter()])
    }

    /// No build container of this world is left, soon.
    pub async fn no_sandbox_left(&self) {
        self.soon("no build container is left", async || self.containers().is_empty()).await;
    }

    pub async fn soon(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !is_so().await {
            assert!(tokio::time::Instant::now() < deadline, "waited too long for: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn filter(&self) -> String {
        format!("label=flex.cluster={}", self.cluster)
    }

    /// A directory with these files, as a commit of a new bare repository. `x` before a path: executable.
    pub fn commit(&self, files: &[(&str, &str)]) -> Source {
        let path = self.dir.path().join(format!("repo{:x}.git", unique()));
        let (repository, commit) = repository(&path, files);
        Source::Commit { repository, quarantine: None, commit }
    }
}

/// Makes a bare repository with one commit on `main`.
pub fn repository(path: &Path, files: &[(&str, &str)]) -> (PathBuf, CommitId) {
    let repo = git2::Repository::init_bare(path).unwrap();
    let mut index = repo.index().unwrap();
    for (name, text) in files {
        let (name, mode) = name.strip_prefix("x ").map_or((*name, 0o100_644), |n| (n, 0o100_755));
        let time = git2::IndexTime::new(0, 0);
        let id = repo.blob(text.as_bytes()).unwrap();
        let (dev, ino, uid, gid, file_size, flags, flags_extended) = (0, 0, 0, 0, 0, 0, 0);
        let path = name.as_bytes().to_vec();
        let entry =
            git2::IndexEntry { ctime: time, mtime: time, dev, ino, mode, uid, gid, file_size, id, flags, flags_extended, path };
        index.add(&entry).unwrap();
    }
    let tree = repo.find_tree(index.write_tree().unwrap()).unwrap();
    let who = git2::Signature::new("t", "t@example.com", &git2::Time::new(1_750_000_000, 0)).unwrap();
    let id = repo.commit(Some("refs/heads/main"), &who, &who, "x", &tree, &[]).unwrap();
    (path.to_owned(), id.to_string().parse().unwrap())
}

/// Writes an executable bash script.
pub fn script(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/bash\n{body}\n")).unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// The words that a docker command prints.
pub fn docker(args: &[&str]) -> Vec<String> {
    let out = std::process::Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().map(str::to_owned).collect()
}

impl Drop for World {
    /// Also when a test fails, nothing of it stays in the engine.
    fn drop(&mut self) {
        for (list, remove) in [
            (&["ps", "-aq"][..], &["rm", "-f"][..]),
            (&["volume", "ls", "-q"], &["volume", "rm", "-f"]),
            (&["network", "ls", "-q"], &["network", "rm"]),
        ] {
            let filter = self.filter();
            let found = docker(&[list, &["--filter", &filter]].concat());
            if !found.is_empty() {
                docker(&[remove, &found.iter().map(String::as_str).collect::<Vec<_>>()].concat());
            }
        }
        let images = self.builder.layout(self.app).and_then(|l| l.image_ids()).unwrap_or_default();
        images.iter().for_each(|id| drop(docker(&["rmi", "-f", id])));
    }
}
