//! The seams between rooms: what the controller asks for, answered by builder, engine and machine; what the git receiver
//! asks for, answered by the controller. Only names and shapes change here; nothing is decided.

use async_trait::async_trait;
use flex_builder::{BuildError, BuildInput, Builder, Prepared};
use flex_controller::ports::{BuildFailure, BuildJob, BuildProduct, Builders, Machine, Source};
use flex_controller::{Controller, DeployEvent, GitCaller, GitPush, GitUpdate};
use flex_gitreceive::{Access, Caller, Gate, Push, PushEvent, Refusal};
use flex_model::{AppId, AppName, BuildId, StackName};
use flex_runtime::Runtime;
use futures_util::FutureExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Below this much room nothing is received or built: a push and its build write more, and what is left keeps the state
/// and the logs going while somebody makes room.
const NO_ROOM: u64 = 32 << 20;

/// Why nothing more may be written, if so.
fn no_room(data_dir: &Path) -> Option<String> {
    // A file system that cannot be asked says so when it is written to.
    let fs = nix::sys::statvfs::statvfs(data_dir).ok()?;
    let free = fs.blocks_available() * fs.fragment_size();
    (free < NO_ROOM).then(|| format!("the server's disk is full ({} MiB left)", free >> 20))
}

/// A build's failure with its stable name, which the first line ends with: there are lists and logs that show no more.
fn coded(message: &str, code: &str) -> String {
    match message.split_once('\n') {
        Some((first, rest)) => format!("{first} [{code}]\n{rest}"),
        None => format!("{message} [{code}]"),
    }
}

/// The builder, and the build containers that are made ahead for pushes still on their way.
pub struct BuilderPort {
    builder: Builder,
    ahead: Arc<Ahead>,
}

type Making = tokio::task::JoinHandle<Option<Prepared>>;

#[derive(Default)]
struct Ahead {
    /// Each under its number, which its [`Held`] knows.
    made: Mutex<HashMap<AppId, BTreeMap<u64, Making>>>,
    numbers: AtomicU64,
}

/// Gives a container up that no build has taken.
struct Held {
    ahead: Arc<Ahead>,
    app: AppId,
    number: u64,
}

impl Ahead {
    fn put(self: &Arc<Self>, app: AppId, making: Making) -> Held {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(app).or_default().insert(number, making);
        Held { ahead: self.clone(), app, number }
    }

    /// One of the app's, or this one.
    fn take(&self, app: AppId, number: Option<u64>) -> Option<Making> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = made.get_mut(&app)?;
        let making = match number {
            Some(number) => mine.remove(&number),
            None => mine.pop_first().map(|(_, making)| making),
        };
        if mine.is_empty() {
            made.remove(&app);
        }
        making
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The container goes with the task's result, now or when it is made.
        drop(self.ahead.take(self.app, Some(self.number)));
    }
}

impl BuilderPort {
    pub fn new(builder: Builder) -> Self {
        Self { builder, ahead: Arc::default() }
    }
}

#[async_trait]
impl Builders for BuilderPort {
    fn stacks(&self) -> Vec<StackName> {
        self.builder.stacks()
    }

    fn prepare(&self, app: AppId, stack: StackName) -> Box<dyn Send> {
        let builder = self.builder.clone();
        let making = tokio::spawn(async move {
            let id = BuildId(flex_model::Uuid::from_u128(rand::random()));
            // The build itself will make one, or say why it cannot.
            let log = |e: BuildError| tracing::debug!(%app, error = %e, "no build container was made ahead");
            builder.prepare(id, app, &stack).await.map_err(log).ok()
        });
        Box::new(self.ahead.put(app, making))
    }

    async fn build(
        &self,
        job: BuildJob,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildProduct, BuildFailure> {
        let failed = |message: String| BuildFailure { message, phases: Vec::new() };
        if let Some(what) = no_room(&self.builder.settings().data_dir) {
            return Err(failed(coded(&format!("{what}: make room on the server, then push again"), "disk_full")));
        }
        let source = match job.source {
            Source::Git { repository, quarantine, commit } => flex_builder::Source::Commit {
                repository,
                quarantine,
                commit: commit.parse().map_err(|e: flex_model::Invalid| failed(e.to_string()))?,
            },
            Source::Tar(path) => flex_builder::Source::Archive(path),
            Source::Image(reference) => flex_builder::Source::Image(reference),
        };
        let input = BuildInput {
            build: job.build,
            app: job.app,
            app_name: job.app_name.parse().map_err(|e: flex_model::Invalid| failed(e.to_string()))?,
            stack: job.stack,
            stack_by_hand: job.stack_by_hand,
            source,
            source_version: job.source_version,
            buildpacks: job.buildpacks,
            config: job.config.into_iter().filter_map(|(k, v)| Some((k.parse().ok()?, v))).collect(),
        };
        let ahead = self.ahead.take(job.app, None).map(|making| async { making.await.ok().flatten() }.boxed());
        let (result, phases) = self.builder.build_timed(ahead, input, log, cancel).await;
        let out = result.map_err(|e| {
            if let BuildError::Platform(_) = &e {
                tracing::error!(build = %job.build, error = %e, "a build failed for a reason of the platform's");
            }
            let message = match e.code() {
                "disk_full" => format!("the server's disk is full: make room on the server, then push again\n({e})"),
                _ => e.to_string(),
            };
            BuildFailure { message: coded(&message, e.code()), phases }
        })?;
        Ok(BuildProduct {
            stack: out.stack,
            image: out.image,
            size_bytes: out.size_bytes,
            process_types: out.process_types,
            config_vars: out.config_vars,
            addons: out.addons,
            app_json: out.app_json,
            buildpacks: out.buildpacks,
            has_launcher: out.has_launcher,
            port: out.port,
            phases: out.phases,
        })
    }

    async fn purge_cache(&self, app: AppId) -> Result<(), String> {
        self.builder.purge_cache(app).await.map_err(|e| e.to_string())
    }

    async fn keep_images(&self, app: AppId, wanted: BTreeSet<String>) -> Result<usize, String> {
        self.builder.keep_images(app, &wanted).await.map_err(|e| e.to_string())
    }

    async fn collect_garbage(&self, app: AppId, keep: BTreeSet<String>) -> Result<usize, String> {
        self.builder.collect_garbage(app, &keep).await.map_err(|e| e.to_string())
    }

    async fn remove_app(&self, app: AppId) -> Result<(), String> {
        self.builder.remove_app(app).await.map_err(|e| e.to_string())
    }
}

/// Checks of this machine, for `flex doctor`.
pub struct MachinePort {
    pub runtime: Arc<dyn Runtime>,
    pub data_dir: PathBuf,
}

/// Below this much room pushes begin to fail.
const LOW_DISK: u64 = 2 << 30;

#[async_trait]
impl Machine for MachinePort {
    fn no_room(&self) -> Option<String> {
        no_room(&self.data_dir)
    }

    async fn checks(&self) -> Vec<(String, Option<(String, String)>)> {
        let mut found = Vec::new();
        match self.runtime.facts().await {
            Err(e) => found.push((
                "container engine".into(),
                Some((e.to_string(), "start Docker: systemctl start docker, or scripts/up".into())),
            )),
            Ok(facts) => {
                found.push((
                    format!("{} {}, cgroup v{}, {}", facts.engine, facts.version, facts.cgroup_version, facts.storage_driver),
                    None,
                ));
                let problem = (!facts.live_restore).then(|| {
                    (
                        "it is off: restarting Docker would stop every app".to_owned(),
                        "set \"live-restore\": true in /etc/docker/daemon.json and reload Docker; scripts/up does".to_owned(),
                    )
                });
                found.push(("live-restore".into(), problem));
                found.push(isolation(&facts));
            }
        }
        found.push(match nix::sys::statvfs::statvfs(&self.data_dir) {
            Err(e) => ("disk".into(), Some((e.to_string(), format!("look at {}", self.data_dir.display())))),
            Ok(fs) => {
                let free = fs.blocks_available() * fs.fragment_size();
                let what = format!("{:.1} GiB free for {}", free as f64 / f64::from(1 << 30), self.data_dir.display());
                (
                    what,
                    (free < LOW_DISK).then(|| {
                        ("less than 2 GiB is left".to_owned(), "make room, or give flexd a larger --data-dir".to_owned())
                    }),
                )
            }
        });
        found
    }
}

/// Whether containers are kept off the machine, its network and one another.
fn isolation(facts: &flex_runtime::EngineFacts) -> (String, Option<(String, String)>) {
    use flex_runtime::Isolation;
    let problem = |what: String, remedy: &str| Some((what, remedy.to_owned()));
    let (what, found) = match &facts.isolation {
        Isolation::Off => ("packet filter rules (switched off in flexd.toml)".into(), None),
        Isolation::Starting => ("packet filter rules (being set)".into(), None),
        Isolation::Kept(tool) => (format!("packet filter rules, by {tool}"), None),
        Isolation::Missing(why) => (
            "packet filter rules".into(),
            problem(
                format!("apps and builds can reach this machine's services and its network: {why}"),
                "install iptables and run flexd as root; or set rules = false in [network] of flexd.toml, if that is meant",
            ),
        ),
    };
    let apart = || {
        let remedy = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1, and set both to be done at boot";
        problem("containers can reach one another: what crosses a bridge does not pass the packet filter".into(), remedy)
    };
    (what, found.or_else(|| if facts.bridge_filter { None } else { apart() }))
}

/// What the git receiver asks.
pub struct GatePort {
    pub controller: Controller,
    pub data_dir: PathBuf,
}

#[async_trait]
impl Gate for GatePort {
    async fn authenticate(&self, openssh: &str) -> Option<Caller> {
        let caller = self.controller.caller_by_key(openssh).await?;
        Some(Caller { user: caller.user, email: caller.email })
    }

    async fn authorize(&self, caller: &Caller, app: &str, access: Access) -> Result<(AppId, AppName), Refusal> {
        let found = self.controller.authorize_git(caller.user, app).await.map_err(|lines| Refusal { lines })?;
        match no_room(&self.data_dir) {
            Some(what) if access == Access::Push => Err(Refusal {
                lines: vec![
                    format!("Push rejected, {what}, and nothing was changed. [disk_full]"),
                    "Its operator has to make room; then push again.".into(),
                ],
            }),
            _ => Ok(found),
        }
    }

    async fn repository(&self, app: AppId) -> Result<PathBuf, Refusal> {
        let path = self.controller.repository_path(app);
        let made = path.clone();
        let result = tokio::task::spawn_blocking(move || flex_gitreceive::init_repository(&made)).await;
        match result {
            Ok(Ok(())) => Ok(path),
            Ok(Err(e)) => Err(Refusal { lines: vec![format!("The app's repository cannot be used: {e}")] }),
            Err(e) => Err(Refusal { lines: vec![format!("The app's repository cannot be used: {e}")] }),
        }
    }

    async fn branches(&self, app: AppId) -> Vec<String> {
        self.controller.find_app(&app.to_string()).await.map(|a| a.deploy_branches.clone()).unwrap_or_default()
    }

    async fn receiving(&self, app: AppId, reference: &str) -> Option<Box<dyn Send>> {
        self.controller.receiving(app, reference).await
    }

    async fn session(
        &self,
        caller: &Caller,
        app: &str,
        wanted: flex_gitreceive::Wanted,
        terminal: Option<flex_gitreceive::Terminal>,
    ) -> Result<flex_gitreceive::Live, Refusal> {
        crate::ssh_sessions::begin(&self.controller, caller, app, wanted, terminal).await
    }

    async fn push(&self, push: Push) -> mpsc::Receiver<PushEvent> {
        let Push { caller, app, repository, quarantine, updates, receive_millis, left, over, .. } = push;
        let updates = updates.into_iter().map(|u| GitUpdate { name: u.name, old: u.old, new: u.new }).collect();
        let caller = GitCaller { user: caller.user, email: caller.email };
        let refs = Arc::new(PushedRefs { repository: repository.clone(), left, over });
        let push = GitPush { app, repository, quarantine, updates, receive_millis, refs };
        let mut events = self.controller.push(caller, push).await;
        let (out, relayed) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let event = match event {
                    DeployEvent::Line(text) => PushEvent::Line(text),
                    DeployEvent::Verdict(good) => PushEvent::Verdict(good),
                };
                // A pusher that has gone away changes nothing: the events are read to their end.
                let _ = out.send(event).await;
            }
        });
        relayed
    }
}

/// The refs of the repository that a push is received into.
struct PushedRefs {
    repository: PathBuf,
    left: CancellationToken,
    over: CancellationToken,
}

#[async_trait]
impl flex_controller::Refs for PushedRefs {
    async fn current(&self, name: &str) -> Result<Option<String>, String> {
        let (path, name) = (self.repository.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || flex_gitreceive::ref_at(&path, &name)).await;
        let unreadable = |e: String| format!("the app's repository cannot be read: {e}");
        read.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))
    }

    async fn left(&self) {
        self.left.cancelled().await;
    }

    async fn over(&self) {
        self.over.cancelled().await;
    }
}
