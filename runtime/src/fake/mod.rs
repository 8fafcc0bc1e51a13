//! A strict engine in memory, for the tests of those who use a [`Runtime`].
//!
//! Stricter than Docker: it panics where its user breaks the contract (the same instance twice in one list, a spec that
//! changes within an attempt, data to a session without stdin), so that such a bug is found without an engine. Time is
//! tokio's, so that tests can pause it. What containers do is said by their command lines (see [`process`]) and by the
//! test itself, through the functions of [`FakeRuntime`].

mod process;
mod sandbox;
#[cfg(test)]
mod tests;

use crate::{
    Desired, DockerfileSpec, EngineFacts, ExecSpec, ImageFacts, ImageFiles, JobSpec, LogFile, LogForm, Observed, ObservedPhase,
    Output, Runtime, RuntimeError, Sandbox, SandboxSpec, Session,
};
use async_trait::async_trait;
use bytes::Bytes;
use flex_model::{Command, ExitInfo, ImageRef, InstanceId, Memory, Timestamp};
use futures_util::{StreamExt, stream::BoxStream};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// 2026-01-01 in UTC; the fake's clock begins here and runs with tokio's.
const EPOCH_MICROS: i64 = 1_767_225_600_000_000;

/// The fake as a process has it. [`FakeRuntime::restarted`] gives the next process's.
pub struct FakeRuntime {
    engine: Arc<Engine>,
    /// Which process it belongs to; older ones are over.
    run: u64,
}

struct Engine {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    began: tokio::time::Instant,
}

#[derive(Default)]
struct State {
    run: u64,
    down: bool,
    start_delay: Duration,
    log_dir: Option<PathBuf>,
    images: BTreeSet<String>,
    /// What [`Runtime::pull`] can find.
    registry: BTreeSet<String>,
    desired: Option<HashMap<InstanceId, Desired>>,
    containers: HashMap<InstanceId, Container>,
    /// Instances whose making is refused, with the reason.
    refused: HashMap<InstanceId, String>,
    sandboxes: BTreeMap<String, Held>,
    jobs: BTreeMap<String, u64>,
    volumes: BTreeSet<String>,
    next_pid: u32,
    starts: HashMap<InstanceId, u32>,
}

struct Held {
    run: u64,
    files: BTreeMap<String, Bytes>,
}

struct Container {
    wanted: Desired,
    phase: ObservedPhase,
    ip: Option<IpAddr>,
    pid: Option<u32>,
    started_at: Option<Timestamp>,
    log_file: Option<LogFile>,
    signal: Option<mpsc::Sender<i32>>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty engine. Must be called within a tokio runtime.
    pub fn new() -> Self {
        let state = State { start_delay: Duration::from_millis(20), next_pid: 1000, ..State::default() };
        let engine = Engine { state: Mutex::new(state), changes: watch::channel(0).0, began: tokio::time::Instant::now() };
        Self { engine: Arc::new(engine), run: 0 }
    }

    /// The engine as the next process finds it: everything runs on, nothing is wanted until it is told.
    #[must_use]
    pub fn restarted(&self) -> Self {
        let mut state = self.engine.state();
        state.run += 1;
        state.desired = None;
        Self { engine: self.engine.clone(), run: state.run }
    }

    /// Lets the engine have an image.
    pub fn add_image(&self, reference: &str) -> ImageRef {
        self.engine.state().images.insert(reference.to_owned());
        ImageRef { reference: reference.to_owned(), manifest: None }
    }

    /// Lets [`Runtime::pull`] find an image.
    pub fn add_to_registry(&self, reference: &str) {
        self.engine.state().registry.insert(reference.to_owned());
    }

    /// Makes every call fail, or work again; containers run on.
    pub fn set_down(&self, down: bool) {
        self.engine.state().down = down;
        self.engine.wake();
    }

    /// How long a container takes from wish to running; 20 ms at first.
    pub fn set_start_delay(&self, delay: Duration) {
        self.engine.state().start_delay = delay;
    }

    /// Where containers write their output, in Docker's `json-file` form; nowhere at first.
    pub fn set_log_dir(&self, dir: PathBuf) {
        self.engine.state().log_dir = Some(dir);
    }

    /// Makes the engine refuse to make an instance, or make it again.
    pub fn refuse(&self, instance: InstanceId, why: Option<&str>) {
        let mut state = self.engine.state();
        match why {
            Some(why) => drop(state.refused.insert(instance, why.to_owned())),
            None => drop(state.refused.remove(&instance)),
        }
    }

    /// Ends a running instance as if by itself.
    pub fn crash(&self, instance: InstanceId, status: i64, oom: bool) {
        self.engine.ended(instance, None, status, oom);
    }

    /// How often an instance was started.
    pub fn starts(&self, instance: InstanceId) -> u32 {
        self.engine.state().starts.get(&instance).copied().unwrap_or(0)
    }

    fn check(&self) -> Result<(), RuntimeError> {
        assert_eq!(self.engine.state().run, self.run, "contract: the runtime of an earlier process is used");
        self.engine.up()
    }
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    fn up(&self) -> Result<(), RuntimeError> {
        if self.state().down { Err(RuntimeError::Unavailable("the fake engine is down".into())) } else { Ok(()) }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(EPOCH_MICROS).plus(self.began.elapsed())
    }

    /// Takes the next step for an instance, if there is one. Called whenever something about it has changed.
    fn settle(self: &Arc<Self>, instance: InstanceId) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(desired) = &state.desired else { return };
        let want = desired.get(&instance);
        if let Some(have) = state.containers.get_mut(&instance) {
            let superseded = want.is_none_or(|w| w.attempt > have.wanted.attempt);
            match have.phase {
                ObservedPhase::Running if superseded => {
                    have.phase = ObservedPhase::Stopping;
                    let (signal, grace) = (have.signal.clone(), have.wanted.spec.stop_grace_seconds);
                    tokio::spawn(async move {
                        if let Some(signal) = signal {
                            let _ = signal.send(15).await;
                            tokio::time::sleep(Duration::from_secs(u64::from(grace))).await;
                            let _ = signal.send(9).await;
                        }
                    });
                    return;
                }
                ObservedPhase::Exited(_) | ObservedPhase::Failed(_) if superseded => {
                    state.containers.remove(&instance);
                }
                _ => return,
            }
        }
        if let Some(want) = want {
            let container = Container {
                wanted: want.clone(),
                phase: ObservedPhase::Creating,
                ip: None,
                pid: None,
                started_at: None,
                log_file: None,
                signal: None,
            };
            state.containers.insert(instance, container);
            let (engine, delay) = (self.clone(), state.start_delay);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                engine.start(instance);
                engine.wake();
                engine.settle(instance);
            });
        }
    }

    fn start(self: &Arc<Self>, instance: InstanceId) {
        let now = self.now();
        let mut state = self.state();
        let state = &mut *state;
        let Some(container) = state.containers.get_mut(&instance) else { return };
        let image = &container.wanted.spec.image.reference;
        if let Some(why) = state.refused.get(&instance) {
            container.phase = ObservedPhase::Failed(why.clone());
            return;
        }
        if !state.images.contains(image) {
            container.phase = ObservedPhase::Failed(format!("No such image: {image}"));
            return;
        }
        state.next_pid += 1;
        *state.starts.entry(instance).or_default() += 1;
        let (signal, signals) = mpsc::channel(8);
        let (output, mut written) = mpsc::channel(32);
        container.phase = ObservedPhase::Running;
        container.started_at = Some(now);
        container.pid = Some(state.next_pid);
        container.ip = Some(IpAddr::V4(Ipv4Addr::new(127, 9, (state.next_pid >> 8) as u8, state.next_pid as u8)));
        container.signal = Some(signal);
        let attempt = container.wanted.attempt;
        let path = state.log_dir.as_ref().map(|d| d.join(format!("{instance}-{attempt}.log")));
        container.log_file = path.map(|path| LogFile { path, form: LogForm::JsonFile });
        let line = command_line(&container.wanted.spec.command);
        let (log_file, engine) = (container.log_file.clone(), self.clone());
        tokio::spawn(async move {
            let pipes = process::Pipes { stdin: None, output, signals, files: BTreeMap::new() };
            let log = async {
                while let Some(piece) = written.recv().await {
                    if let Some(LogFile { path, .. }) = &log_file {
                        write_log(path, &piece, engine.now());
                    }
                }
            };
            let (status, ()) = tokio::join!(process::run(&line, pipes), log);
            engine.ended(instance, Some(attempt), status, false);
        });
    }

    /// A process is over: by itself (then its attempt is given), or by the test's wish.
    fn ended(self: &Arc<Self>, instance: InstanceId, attempt: Option<u32>, status: i64, oom: bool) {
        let at = self.now();
        if let Some(c) = self.state().containers.get_mut(&instance)
            && attempt.is_none_or(|a| a == c.wanted.attempt)
            && matches!(c.phase, ObservedPhase::Running | ObservedPhase::Stopping)
        {
            c.phase = ObservedPhase::Exited(ExitInfo { status, oom, at });
            (c.ip, c.pid, c.signal) = (None, None, None);
        }
        self.wake();
        self.settle(instance);
        self.wake();
    }
}

/// One line of Docker's `json-file` form.
fn write_log(path: &std::path::Path, piece: &Output, at: Timestamp) {
    let (stream, bytes) = match piece {
        Output::Stdout(b) => ("stdout", b),
        Output::Stderr(b) => ("stderr", b),
    };
    let line = serde_json::json!({ "log": String::from_utf8_lossy(bytes), "stream": stream, "time": at.to_string() });
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the fake's log file");
    writeln!(file, "{line}").expect("the fake's log file");
}

fn command_line(command: &Command) -> String {
    match command {
        Command::Image => "sleep 1000000".into(),
        Command::Launch(line) | Command::Shell(line) => line.clone(),
        Command::Exec(argv) => argv.join(" "),
    }
}

/// What an exec runs: `/bin/sh -c LINE`, or words.
fn shell_line(exec: &ExecSpec) -> Result<String, RuntimeError> {
    match exec.argv.as_slice() {
        [] => Err(RuntimeError::Refused("running a command: it has no words".into())),
        [shell, flag, line] if shell.ends_with("sh") && flag.ends_with('c') => Ok(line.clone()),
        words => Ok(words.join(" ")),
    }
}

fn check_env<'a>(names: impl Iterator<Item = &'a String>) {
    for name in names {
        assert!(!name.is_empty() && !name.contains(['=', '\0']), "contract: {name:?} is no name of a variable");
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        self.check()?;
        Ok(EngineFacts {
            engine: "fake".into(),
            version: "1".into(),
            memory: Memory::from_mib(4096),
            cpus: 2,
            cgroup_version: 2,
            live_restore: true,
            storage_driver: "memory".into(),
            kernel: "none".into(),
            isolation: crate::Isolation::Off,
            bridge_filter: true,
        })
    }

    async fn converge(&self, desired: Vec<Desired>) -> Result<(), RuntimeError> {
        self.check()?;
        let mut wanted = HashMap::with_capacity(desired.len());
        let mut touched: HashSet<InstanceId>;
        {
            let mut state = self.engine.state();
            for d in desired {
                check_env(d.spec.env.keys());
                process::check(&command_line(&d.spec.command));
                assert!(!d.spec.image.reference.is_empty(), "contract: {} has no image", d.name);
                let before = state.desired.as_ref().and_then(|w| w.get(&d.instance));
                if let Some(before) = before.filter(|b| b.attempt == d.attempt) {
                    assert!(before.spec == d.spec, "contract: {}'s spec changed within attempt {}", d.name, d.attempt);
                }
                let twice = wanted.insert(d.instance, d);
                assert!(twice.is_none(), "contract: an instance is in the list twice: {twice:?}");
            }
            touched = state.containers.keys().copied().collect();
            touched.extend(wanted.keys());
            state.desired = Some(wanted);
        }
        for instance in touched {
            self.engine.settle(instance);
        }
        self.engine.wake();
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.check()?;
        let state = self.engine.state();
        let mut all: Vec<_> = state
            .containers
            .values()
            .map(|c| Observed {
                instance: c.wanted.instance,
                app: c.wanted.app,
                app_name: c.wanted.app_name.clone(),
                name: c.wanted.name.clone(),
                version: c.wanted.version,
                attempt: c.wanted.attempt,
                phase: c.phase.clone(),
                ip: c.ip,
                pid: c.pid,
                started_at: c.started_at,
                log_file: c.log_file.clone(),
            })
            .collect();
        all.sort_by_key(|o| o.instance);
        Ok(all)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.engine.changes.subscribe()
    }

    async fn exec(&self, instance: InstanceId, exec: ExecSpec) -> Result<Session, RuntimeError> {
        self.check()?;
        check_env(exec.env.keys());
        let running = self.engine.state().containers.get(&instance).is_some_and(|c| c.phase == ObservedPhase::Running);
        if !running {
            return Err(RuntimeError::NotFound(format!("instance {instance} is not running on this host")));
        }
        let allowed = process::Allowed { stdin: exec.stdin, tty: exec.tty.is_some(), needs_client: false };
        Ok(process::session(shell_line(&exec)?, BTreeMap::new(), allowed, || {}))
    }

    async fn run_once(&self, job: JobSpec) -> Result<Session, RuntimeError> {
        self.check()?;
        check_env(job.spec.env.keys());
        let id = job.instance.to_string();
        {
            let mut state = self.engine.state();
            if !state.images.contains(&job.spec.image.reference) {
                return Err(RuntimeError::NotFound(format!("No such image: {}", job.spec.image.reference)));
            }
            let twice = state.jobs.insert(id.clone(), self.run);
            assert!(twice.is_none(), "contract: job {id} was started twice");
        }
        let engine = self.engine.clone();
        let ended = move || {
            engine.state().jobs.remove(&id);
        };
        let allowed = process::Allowed { stdin: job.stdin, tty: job.tty.is_some(), needs_client: true };
        Ok(process::session(command_line(&job.spec.command), BTreeMap::new(), allowed, ended))
    }

    async fn sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, RuntimeError> {
        self.check()?;
        check_env(spec.env.keys());
        let mut state = self.engine.state();
        if !state.images.contains(&spec.image) {
            return Err(RuntimeError::NotFound(format!("No such image: {}", spec.image)));
        }
        if state.sandboxes.contains_key(&spec.id) {
            return Err(RuntimeError::Refused(format!("build container {} exists already", spec.id)));
        }
        state.volumes.extend(spec.cache.map(|c| c.0));
        state.sandboxes.insert(spec.id.clone(), Held { run: self.run, files: BTreeMap::new() });
        Ok(Box::new(sandbox::FakeSandbox { engine: self.engine.clone(), id: spec.id }))
    }

    async fn reap(&self, keep: &[String]) -> Result<Vec<String>, RuntimeError> {
        self.check()?;
        let mut state = self.engine.state();
        let old = |id: &String, run: u64| run != self.run && !keep.contains(id);
        let mut reaped: Vec<String> = state.jobs.iter().filter(|(id, run)| old(id, **run)).map(|(id, _)| id.clone()).collect();
        reaped.extend(state.sandboxes.iter().filter(|(id, s)| old(id, s.run)).map(|(id, _)| id.clone()));
        state.jobs.retain(|id, _| !reaped.contains(id));
        state.sandboxes.retain(|id, _| !reaped.contains(id));
        Ok(reaped)
    }

    async fn has_image(&self, reference: &str) -> Result<bool, RuntimeError> {
        self.check()?;
        Ok(self.engine.state().images.contains(reference))
    }

    async fn import(&self, image: ImageFiles) -> Result<ImageRef, RuntimeError> {
        self.check()?;
        for (diff, path) in &image.layers {
            assert!(diff.starts_with("sha256:") && path.exists(), "contract: layer {diff} at {}", path.display());
        }
        let id = format!("sha256:{}", hex::encode(Sha256::digest(&image.config)));
        let mut state = self.engine.state();
        state.images.insert(image.tag);
        state.images.insert(id.clone());
        Ok(ImageRef { reference: id, manifest: None })
    }

    async fn pull(&self, reference: &str) -> Result<ImageRef, RuntimeError> {
        self.check()?;
        let mut state = self.engine.state();
        if !state.images.contains(reference) && !state.registry.contains(reference) {
            return Err(RuntimeError::NotFound(format!("pulling {reference}: manifest unknown")));
        }
        state.images.insert(reference.to_owned());
        Ok(ImageRef { reference: reference.to_owned(), manifest: None })
    }

    async fn image_facts(&self, reference: &str) -> Result<ImageFacts, RuntimeError> {
        if self.has_image(reference).await? {
            Ok(ImageFacts { command: vec!["/bin/sh".into()], ..ImageFacts::default() })
        } else {
            Err(RuntimeError::NotFound(format!("looking at image {reference}: no such image")))
        }
    }

    async fn build_dockerfile(
        &self,
        spec: DockerfileSpec,
        mut context: BoxStream<'static, std::io::Result<Bytes>>,
        log: mpsc::Sender<String>,
    ) -> Result<ImageRef, RuntimeError> {
        self.check()?;
        let mut bytes = Vec::new();
        while let Some(piece) = context.next().await {
            bytes.extend(piece.map_err(|e| RuntimeError::Refused(format!("reading the context: {e}")))?);
        }
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().into_iter().flatten().flatten();
        let names: Vec<_> = entries.filter_map(|e| Some(e.path().ok()?.display().to_string())).collect();
        if !names.iter().any(|n| n.trim_start_matches("./") == spec.dockerfile) {
            return Err(RuntimeError::Refused(format!("building the Dockerfile: the context has no {}", spec.dockerfile)));
        }
        let _ = log.send(format!("built {}", spec.tag)).await;
        let id = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        let mut state = self.engine.state();
        state.images.extend([spec.tag, id.clone()]);
        Ok(ImageRef { reference: id, manifest: None })
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.check()?;
        let mut state = self.engine.state();
        if state.containers.values().any(|c| c.wanted.spec.image.reference == reference) {
            return Err(RuntimeError::Refused(format!("removing image {reference}: a container uses it")));
        }
        state.images.remove(reference);
        Ok(())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.check()?;
        self.engine.state().volumes.remove(name);
        Ok(())
    }
}
