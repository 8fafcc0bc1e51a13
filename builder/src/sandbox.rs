//! One build container from first to last: what is put into it, the driver that runs in it, and the limits that end it.
//!
//! Invariants: the driver's text is constant and users' text reaches it as arguments or files; the container is destroyed
//! however a build ends; nothing of the platform's own secrets or sockets is in it.

use crate::{APP_GID, APP_UID, BuildError, BuildSettings, Limit, buildpack::Pack, settings::CA_BUNDLE_INSIDE};
use base64::Engine as _;
use bytes::Bytes;
use flex_model::{BuildPhase, ConfigKey, PhaseTime, ProcessType, Secret};
use flex_runtime::{ExecSpec, Input, Output, RuntimeError, Sandbox, SandboxSpec, Session};
use futures_util::{StreamExt, stream, stream::BoxStream};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{io::ReaderStream, sync::CancellationToken};

/// Where the source is in the container.
pub(crate) const BUILD_DIR: &str = "/tmp/build";
const BUILTIN_DIR: &str = "/opt/flex/buildpacks";
const DRIVER: &str = include_str!("driver.sh");

/// What the driver found out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Phase and its milliseconds.
    pub(crate) phases: Vec<(String, u64)>,
    /// Index of the buildpack in the list given, and the name it printed.
    pub(crate) detected: Vec<(usize, String)>,
    pub(crate) release: Option<String>,
    /// Bytes in the cache afterwards, if they were quickly counted.
    pub(crate) cache: Option<u64>,
    failed: Option<(String, i64, usize)>,
    finished: bool,
}

impl Facts {
    fn line(&mut self, line: &str) {
        let mut words = line.split(' ');
        let text = |word: Option<&str>| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(word.unwrap_or("")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        match words.next() {
            Some("phase") => {
                let name = words.next().unwrap_or("").to_owned();
                self.phases.push((name, words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0) / 1000));
            }
            Some("detected") => {
                let name = text(words.next());
                self.detected.push((words.next().and_then(|w| w.parse().ok()).unwrap_or(0), name));
            }
            Some("release") => self.release = Some(text(words.next())),
            Some("cache") => self.cache = words.next().and_then(|w| w.parse().ok()),
            Some("failed") => {
                let step = words.next().unwrap_or("").to_owned();
                let status = words.next().and_then(|w| w.parse().ok()).unwrap_or(1);
                self.failed = Some((step, status, words.next().and_then(|w| w.parse().ok()).unwrap_or(0)));
            }
            Some("done") => self.finished = true,
            _ => {}
        }
    }
}

/// A command's end, deadline and log: what every step in a container is subject to.
pub(crate) struct Watch<'a> {
    pub(crate) settings: &'a BuildSettings,
    pub(crate) log: &'a mpsc::Sender<String>,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) deadline: Instant,
    /// What the phases took of a build that failed.
    pub(crate) spent: &'a Mutex<Vec<PhaseTime>>,
}

impl Watch<'_> {
    /// Runs `work` unless the build is cancelled or its time is over first.
    pub(crate) async fn bound<T>(&self, work: impl Future<Output = Result<T, BuildError>>) -> Result<T, BuildError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(BuildError::Cancelled),
            () = tokio::time::sleep_until(self.deadline) => Err(self.too_late()),
            done = work => done,
        }
    }

    fn too_late(&self) -> BuildError {
        let minutes = self.settings.timeout.as_secs_f64() / 60.0;
        let message = format!("the build took longer than {minutes:.1} minutes and was stopped: cache or shorten what it does");
        BuildError::limit(Limit::Time, message)
    }

    /// Notes what phases of a build that failed took.
    pub(crate) fn spend(&self, phases: impl IntoIterator<Item = PhaseTime>) {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).extend(phases);
    }

    /// Sends a line to the log. A reader that has gone away stops nothing.
    pub(crate) async fn say(&self, line: impl Into<String>) {
        let _ = self.log.send(line.into()).await;
    }

    /// Tells which process types there are, in Heroku's words.
    pub(crate) async fn say_process_types(
        &self,
        declared: &BTreeMap<ProcessType, String>,
        defaults: &BTreeMap<ProcessType, String>,
        has_procfile: bool,
    ) {
        let names = |types: Vec<&str>| if types.is_empty() { "(none)".to_owned() } else { types.join(", ") };
        if has_procfile || defaults.is_empty() {
            let declared = names(declared.keys().map(ProcessType::as_str).collect());
            self.say(format!("       Procfile declares types -> {declared}")).await;
        }
        let rest: Vec<&str> = defaults.keys().filter(|k| !declared.contains_key(*k)).map(ProcessType::as_str).collect();
        if !rest.is_empty() {
            self.say(format!("       Default types for buildpack -> {}", names(rest))).await;
        }
    }

    /// Runs the buildpacks.
    pub(crate) async fn drive(
        &self,
        sandbox: &dyn Sandbox,
        listed: bool,
        packs: &[Pack],
        env: BTreeMap<String, Secret>,
        files: Files,
    ) -> Result<Facts, BuildError> {
        let mode = if listed { "listed" } else { "detect" };
        let mut argv: Vec<String> = ["/bin/bash", "-c", DRIVER, "driver", mode].map(str::to_owned).into();
        argv.extend(packs.iter().flat_map(Pack::arguments));
        let exec = ExecSpec { argv, env, workdir: Some("/".into()), user: Some(user()), stdin: true, ..ExecSpec::default() };
        let began = Instant::now();
        let done = tokio::select! {
            done = self.bound(self.follow(sandbox, exec, files)) => done,
            e = self.watch_disk(sandbox) => Err(e),
        };
        let facts = match done {
            Ok(facts) => facts,
            Err(e) => {
                // The driver was ended before it could say how far it was; compiling is what takes long.
                self.spend([crate::build::phase(BuildPhase::Compile, began)]);
                return Err(e);
            }
        };
        if facts.failed.is_some() || !facts.finished {
            self.spend(facts.phases.iter().filter_map(|(name, ms)| driver_phase(name, *ms)));
        }
        match &facts.failed {
            None if facts.finished => Ok(facts),
            None => Err(self.killed()),
            Some((step, status, index)) => Err(self.failure(step, *status, packs.get(*index))),
        }
    }

    /// Feeds the driver its files while it is listened to: it may end before it has read them all.
    async fn follow(&self, sandbox: &dyn Sandbox, exec: ExecSpec, mut files: Files) -> Result<Facts, BuildError> {
        let Session { input, output, exit, .. } = sandbox.exec(exec).await?;
        let feed = async move {
            while let Some(piece) = files.next().await {
                let piece = piece.map_err(|e| BuildError::platform("reading the spooled source", e))?;
                if input.send(Input::Data(piece)).await.is_err() {
                    break;
                }
            }
            // Dropping the input is the end of file.
            Ok::<(), BuildError>(())
        };
        let listen = self.listen(output);
        tokio::pin!(listen);
        let facts = tokio::select! {
            biased;
            facts = &mut listen => facts,
            fed = feed => { fed?; listen.await }
        }?;
        // Waits for the end itself: an exec that was killed leaves no facts, and that is told from the facts.
        let _ = exit.await;
        Ok(facts)
    }

    async fn listen(&self, mut output: BoxStream<'static, Result<Output, RuntimeError>>) -> Result<Facts, BuildError> {
        let mut facts = Facts::default();
        let mut log = Lines::new(self.settings.line_bytes);
        let mut private = Lines::new(256 << 10);
        let mut total = 0u64;
        while let Some(piece) = output.next().await {
            match piece? {
                Output::Stdout(bytes) => {
                    total += bytes.len() as u64;
                    for line in log.push(&bytes) {
                        self.say(line).await;
                    }
                    if total > self.settings.output_bytes {
                        let mib = self.settings.output_bytes as f64 / f64::from(1 << 20);
                        let message = format!("the build printed more than {mib:.0} MiB and was stopped: make it less talkative");
                        return Err(BuildError::limit(Limit::Output, message));
                    }
                }
                // Bounded too: a build could find the descriptor and flood it.
                Output::Stderr(bytes) => {
                    total += bytes.len() as u64 / 8;
                    private.push(&bytes).iter().for_each(|line| facts.line(line));
                }
            }
        }
        if let Some(rest) = log.rest() {
            self.say(rest).await;
        }
        private.rest().iter().for_each(|line| facts.line(line));
        Ok(facts)
    }

    /// Ends when the build has written more than it may.
    async fn watch_disk(&self, sandbox: &dyn Sandbox) -> BuildError {
        for round in 1u64.. {
            tokio::time::sleep(DISK_POLL).await;
            // Walking a large cache is not free, so it is done less often, and only what no honest build reaches ends one.
            if round % 8 == 0
                && let Some(used) = cache_bytes(sandbox).await
                && used > self.settings.cache_bytes.saturating_add(self.settings.disk_bytes)
            {
                empty_cache(sandbox).await;
                let message = format!("the build wrote {} MiB to its cache and was stopped", used >> 20);
                return BuildError::limit(Limit::Disk, message);
            }
            // An engine that cannot answer now is asked again; the deadline bounds it all.
            if let Ok(used) = sandbox.disk_used().await
                && used > self.settings.disk_bytes
            {
                let mib = self.settings.disk_bytes >> 20;
                let message = format!("the build wrote more than {mib} MiB to disk and was stopped");
                return BuildError::limit(Limit::Disk, message);
            }
        }
        self.too_late()
    }

    fn killed(&self) -> BuildError {
        BuildError::limit(
            Limit::Memory,
            format!("the build was killed: it probably used more than its {} of memory", self.settings.memory),
        )
    }

    fn failure(&self, step: &str, status: i64, pack: Option<&Pack>) -> BuildError {
        let name = pack.map_or("buildpack", |p| p.shown.as_str());
        match step {
            "compile" if status == 137 => self.killed(),
            "compile" => {
                BuildError::user("compile_failed", format!("{name}: bin/compile failed with status {status}: see the log above"))
            }
            "detect" if status == 126 => {
                BuildError::user("bad_buildpack", format!("{name} has no executable bin/detect: it is not a buildpack"))
            }
            "detect" => BuildError::user("not_compatible", format!("the app is not compatible with the buildpack {name}")),
            "no_compile" => BuildError::user("bad_buildpack", format!("{name} has no executable bin/compile")),
            "fetch" => {
                BuildError::user("buildpack_fetch", format!("the buildpack {name} could not be fetched: see the log above"))
            }
            "missing" => BuildError::user("bad_buildpack", format!("the buildpack {name} is not there: no such directory")),
            "release" => BuildError::user("release_failed", format!("{name}: bin/release failed with status {status}")),
            "unpack" => BuildError::user("broken_source", "the source could not be unpacked: see the log above"),
            "nothing" => BuildError::user("no_buildpack", ""),
            other => BuildError::Platform(format!("the build driver failed at {other} with status {status}")),
        }
    }
}

/// The driver's name of a phase.
pub(crate) fn driver_phase(name: &str, millis: u64) -> Option<PhaseTime> {
    let phase = match name {
        "fetch_cache" => BuildPhase::FetchCache,
        "detect" => BuildPhase::Detect,
        "compile" => BuildPhase::Compile,
        _ => return None,
    };
    Some(PhaseTime { phase, millis })
}

/// How often a build's disk use is looked at: a fast disk takes 1 GiB in that time.
const DISK_POLL: Duration = Duration::from_secs(2);

/// `uid:gid` of builds and apps.
pub(crate) fn user() -> String {
    format!("{APP_UID}:{APP_GID}")
}

/// Bytes in the cache; none when they cannot be measured now.
pub(crate) async fn cache_bytes(sandbox: &dyn Sandbox) -> Option<u64> {
    let text = quietly(sandbox, &["/usr/bin/du", "-s", "-B1", "/tmp/cache"]).await?;
    text.split_whitespace().next()?.parse().ok()
}

/// Removes everything in the cache.
pub(crate) async fn empty_cache(sandbox: &dyn Sandbox) {
    quietly(sandbox, &["/usr/bin/find", "/tmp/cache", "-mindepth", "1", "-delete"]).await;
}

/// The first 4 KiB of what a command prints, within a minute.
async fn quietly(sandbox: &dyn Sandbox, argv: &[&str]) -> Option<String> {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    let run = async {
        let mut session = sandbox.exec(ExecSpec { argv, user: Some(user()), ..ExecSpec::default() }).await.ok()?;
        let mut text = Vec::new();
        while let Some(Ok(piece)) = session.output.next().await {
            if let Output::Stdout(bytes) = piece
                && text.len() < 4096
            {
                text.extend_from_slice(&bytes);
            }
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    tokio::time::timeout(Duration::from_secs(60), run).await.ok()?
}

/// A tar on its way into the container.
pub(crate) type Files = BoxStream<'static, std::io::Result<Bytes>>;

/// The container for builds of an app on a stack. What differs from build to build comes with the command.
pub(crate) fn spec(settings: &BuildSettings, id: String, image: String, cache: String) -> SandboxSpec {
    let mut mounts = vec![(settings.builtin_dir(), BUILTIN_DIR.to_owned())];
    if let Some(bundle) = &settings.ca_bundle {
        mounts.push((bundle.clone(), CA_BUNDLE_INSIDE.to_owned()));
    }
    SandboxSpec {
        id,
        image,
        env: BTreeMap::new(),
        cache: Some((cache, "/tmp/cache".into())),
        read_only_mounts: mounts,
        memory: settings.memory,
        pids: settings.pids,
        cpu_millis: settings.cpu_millis,
        user: Some(user()),
    }
}

/// The environment of buildpacks. `build` is what they see as `REQUEST_ID`.
pub(crate) fn environment(
    settings: &BuildSettings,
    stack: &str,
    source_version: &str,
    build: &str,
    epoch: u64,
) -> BTreeMap<String, Secret> {
    let mut vars: BTreeMap<String, String> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/app"),
        ("LANG", "C.UTF-8"),
        ("STACK", stack),
        ("SOURCE_VERSION", source_version),
        ("REQUEST_ID", build),
        ("BUILD_DIR", BUILD_DIR),
        ("CACHE_DIR", "/tmp/cache"),
        ("ENV_DIR", "/tmp/env"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    vars.insert("SOURCE_DATE_EPOCH".into(), epoch.to_string());
    if settings.ca_bundle.is_some() {
        vars.extend(CA_VARIABLES.map(|name| (name.to_owned(), CA_BUNDLE_INSIDE.to_owned())));
    }
    vars.extend(settings.env.clone());
    vars.into_iter().map(|(k, v)| (k, Secret::new(v))).collect()
}

/// The names by which OpenSSL, curl, Python, Node, git, cargo, npm, Ruby, Composer and Nix know a CA bundle.
const CA_VARIABLES: [&str; 11] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "NPM_CONFIG_CAFILE",
    "BUNDLE_SSL_CA_CERT",
    "COMPOSER_CAFILE",
    "NIX_SSL_CERT_FILE",
];

/// Everything that the driver unpacks: directories, config vars, and the source (a tar of `build/…`).
pub(crate) async fn files(source: &Path, config: &BTreeMap<ConfigKey, Secret>, now: u64) -> Result<Files, BuildError> {
    let frame = frame(config, now).map_err(|e| BuildError::platform("preparing the build container's files", e))?;
    let source = file_stream(source).await?;
    Ok(stream::once(async move { Ok(Bytes::from(frame)) }).chain(source).boxed())
}

/// A file as the stream that containers take.
pub(crate) async fn file_stream(path: &Path) -> Result<BoxStream<'static, std::io::Result<Bytes>>, BuildError> {
    let file = tokio::fs::File::open(path).await.map_err(|e| BuildError::platform("opening the spooled source", e))?;
    Ok(ReaderStream::with_capacity(file, 256 << 10).boxed())
}

/// Everything under `/tmp` but the source, as the beginning of a tar.
fn frame(config: &BTreeMap<ConfigKey, Secret>, now: u64) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, mode, size: usize| {
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(mode);
        h.set_size(size as u64);
        h.set_uid(APP_UID);
        h.set_gid(APP_GID);
        h.set_mtime(now);
        h
    };
    for dir in ["build/", "cache/", "env/", "flex/"] {
        tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), dir, std::io::empty())?;
    }
    for (key, value) in config {
        let value = value.expose().as_bytes();
        tar.append_data(&mut header(tar::EntryType::Regular, 0o600, value.len()), format!("env/{key}"), value)?;
    }
    // Without the mark of the end: the source follows in the same stream.
    Ok(std::mem::take(tar.get_mut()))
}

/// Cuts a byte stream into lines of a limited length.
struct Lines {
    buffer: Vec<u8>,
    longest: usize,
    /// The current line was cut: its rest is dropped.
    cut: bool,
}

impl Lines {
    fn new(longest: usize) -> Self {
        Self { buffer: Vec::new(), longest, cut: false }
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (body, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |b| (b, true));
            let room = self.longest.saturating_sub(self.buffer.len());
            self.cut |= body.len() > room;
            self.buffer.extend_from_slice(&body[..body.len().min(room)]);
            if ended {
                out.push(self.take());
            }
        }
        out
    }

    fn rest(&mut self) -> Option<String> {
        (!self.buffer.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let mut line = String::from_utf8_lossy(self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer)).replace('\0', "");
        if std::mem::take(&mut self.cut) {
            line.push_str(" [line cut]");
        }
        self.buffer.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_never_break_on_bad_text() {
        let mut l = Lines::new(5);
        assert_eq!(l.push(b"ab"), Vec::<String>::new());
        assert_eq!(l.push(b"c\r\nx\xff\n\n0123456"), ["abc", "x\u{fffd}", ""]);
        assert_eq!(l.push(b"789\nend"), ["01234 [line cut]"]);
        assert_eq!(l.rest().as_deref(), Some("end"));
        assert_eq!(l.rest(), None);
    }

    #[test]
    fn facts_of_a_run() {
        let mut f = Facts::default();
        for line in [
            "phase detect 41999",
            "detected UHl0aG9u 1",
            "release LS0tCg==",
            "cache 4096",
            "failed compile 2 1",
            "gibberish",
            "done",
        ] {
            f.line(line);
        }
        assert_eq!(f.phases, [("detect".into(), 41)]);
        assert_eq!(f.detected, [(1, "Python".into())]);
        assert_eq!(f.release.as_deref(), Some("---\n"));
        assert_eq!(f.failed, Some(("compile".into(), 2, 1)));
        assert_eq!(f.cache, Some(4096));
    }

    #[test]
    fn config_vars_become_files_of_the_build_user() {
        let config = [("A".parse().unwrap(), Secret::new("x\ny"))].into();
        let frame = frame(&config, 7).unwrap();
        let mut archive = tar::Archive::new(frame.as_slice());
        let found = archive.entries().unwrap().map(Result::unwrap).find(|e| e.path_bytes() == b"env/A".as_slice()).unwrap();
        assert_eq!((found.header().uid().unwrap(), found.header().mode().unwrap(), found.size()), (APP_UID, 0o600, 3));
    }
}
