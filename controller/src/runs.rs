//! One-off containers: `flex run` and the release phase.

use crate::core::{Actor, Controller, invalid, lock};
use crate::db::keys;
use crate::deploy::phase_name;
use crate::ports::{RunJob, RunOutput, RunSession};
use crate::sessions::Waiting;
use bytes::Bytes;
use flex_api::{ApiError, ErrorId};
use flex_model::{
    App, AppId, Command, HealthCheck, InstanceId, InstanceSpec, LogSource, Memory, ProcessScale, ProcessType, Release,
    ReleaseStatus, Secret,
};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where `web` is told to listen, in its own network namespace, if its image does not say where it does.
pub const PORT: u16 = 5000;
/// Processes and threads of an instance: far beyond an ordinary app, far below what harms a host.
const PIDS: u32 = 1024;
/// What a user asks for.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// As typed; empty: that of the process type.
    pub command: String,
    pub env: BTreeMap<String, String>,
    /// A size's name, or an amount of memory.
    pub size: Option<String>,
    /// Whose size it has, and whose command if there is none.
    pub process: Option<ProcessType>,
    pub tty: bool,
    /// When it is to be stopped, if not at the server's own limit.
    pub life: Option<Duration>,
}

/// A run that was started.
#[derive(Debug, Clone)]
pub struct Started {
    pub instance: InstanceId,
    /// `run.4711`.
    pub name: String,
    pub command: String,
    pub memory: Memory,
    /// A size's name, or its memory.
    pub size: String,
    pub stop_grace_seconds: u32,
    pub release: Arc<Release>,
}

impl Controller {
    fn started(&self, job: &RunJob, release: &Arc<Release>, request: &RunRequest) -> Started {
        let command = match &job.spec.command {
            Command::Launch(line) | Command::Shell(line) => line.clone(),
            Command::Image | Command::Exec(_) => request.command.clone(),
        };
        let spec = &job.spec;
        Started {
            instance: job.instance,
            name: job.name.clone(),
            command,
            memory: spec.memory,
            size: self.size_name(spec.memory, spec.cpu_shares, spec.cpu_millis),
            stop_grace_seconds: job.spec.stop_grace_seconds,
            release: release.clone(),
        }
    }
}

/// What the routes that lead to a process type ask of its instances.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routed {
    /// They must listen for connections on `PORT`.
    pub connections: bool,
    /// They are sent datagrams there.
    pub datagrams: bool,
    /// Connections begin with this header, those of health checks too.
    pub proxy_protocol: Option<flex_model::ProxyVersion>,
}

impl Routed {
    pub fn by<'a>(routes: impl Iterator<Item = &'a Arc<flex_model::Route>>) -> Self {
        routes.fold(Self::default(), |sum, r| {
            let udp = matches!(r.matches, flex_model::Match::Udp { .. });
            Self {
                connections: sum.connections || !udp,
                datagrams: sum.datagrams || udp,
                proxy_protocol: sum.proxy_protocol.or(r.policy.as_ref().and_then(|p| p.proxy_protocol)),
            }
        })
    }
}

impl Controller {
    /// What an instance of a process runs.
    pub async fn instance_spec(
        &self,
        app: &App,
        release: &Release,
        process: &ProcessType,
        name: &str,
        routed: Routed,
    ) -> Result<InstanceSpec, ApiError> {
        let process_spec = release.processes.get(process);
        let command = match process_spec.and_then(|p| p.command.clone()) {
            None => Command::Image,
            Some(line) => command(release, line),
        };
        let scale = app.formation.get(process).copied().unwrap_or(ProcessScale::default_for(1));
        let mut check = process_spec.map_or_else(|| HealthCheck::default_for(process), |p| p.check.clone());
        if routed.connections && check == HealthCheck::default_for(process) && !process.is_web() {
            check = HealthCheck::default_for(&ProcessType::web());
        }
        let port = (process.is_web() || routed.connections || routed.datagrams).then_some(release.port.unwrap_or(PORT));
        let mut spec = self.spec(app, release, command, scale, name, check, port).await?;
        spec.proxy_protocol = routed.proxy_protocol;
        Ok(spec)
    }

    #[allow(clippy::too_many_arguments, reason = "each is one field of the result")]
    async fn spec(
        &self,
        app: &App,
        release: &Release,
        command: Command,
        scale: ProcessScale,
        name: &str,
        check: HealthCheck,
        port: Option<u16>,
    ) -> Result<InstanceSpec, ApiError> {
        let image =
            release.image.clone().ok_or_else(|| invalid("There is no code to run yet. Deploy first: git push flex main"))?;
        let vars = self.vars(app.id, release.config_rev).await?;
        let mut env: BTreeMap<String, Secret> = (*vars).clone();
        let mut set = |k: &str, v: String| env.insert(k.to_owned(), Secret::new(v));
        set("DYNO", name.to_owned());
        set("FLEX_APP", app.name.to_string());
        set("FLEX_RELEASE", format!("v{}", release.version));
        if let Some(commit) = &release.commit {
            set("SOURCE_VERSION", commit.clone());
        }
        if let Some(port) = port {
            set("PORT", port.to_string());
        }
        Ok(InstanceSpec {
            image,
            command,
            env,
            port,
            memory: scale.memory,
            cpu_shares: scale.cpu_shares,
            cpu_millis: scale.cpu_millis,
            pids: PIDS,
            stop_grace_seconds: app.stop_grace_seconds,
            read_only_root: app.read_only_root || release.read_only_root,
            check,
            proxy_protocol: None,
        })
    }

    pub(crate) async fn job(
        &self,
        app: &App,
        release: &Release,
        line: String,
        name: &str,
        scale: ProcessScale,
    ) -> Result<RunJob, ApiError> {
        let check = HealthCheck::default_for(&"run".parse::<ProcessType>().map_err(invalid)?);
        let spec = self.spec(app, release, command(release, line), scale, name, check, None).await?;
        Ok(RunJob {
            instance: self.id(),
            app: app.id,
            app_name: app.name.to_string(),
            name: name.to_owned(),
            version: release.version,
            spec,
            tty: None,
            stdin: false,
        })
    }

    /// The release that one-off commands run in.
    async fn running_release(&self, app: &App) -> Result<Arc<Release>, ApiError> {
        let nothing = || invalid("There is no code to run yet. Deploy first: git push flex main");
        let version = app.good.or(app.target).ok_or_else(nothing)?;
        let mut release = self.find_release(app.id, &version.to_string()).await?;
        // Config that was set since counts as well, as soon as it is there.
        if let Some(target) = app.target
            && let Ok(newer) = self.find_release(app.id, &target.to_string()).await
            && newer.image == release.image
        {
            release = newer;
        }
        if release.image.is_none() { Err(nothing()) } else { Ok(release) }
    }

    /// Starts a run for a client that is there: it ends when the session is dropped.
    pub async fn open_run(&self, actor: &Actor, app: &App, request: RunRequest) -> Result<(Started, RunSession), ApiError> {
        let (mut job, release) = self.run_job(app, &request).await?;
        job.stdin = true;
        let started = self.started(&job, &release, &request);
        let record = self.begin_run(actor, app, &started, true, request.life).await?;
        match self.deps.runs.run(job).await {
            Ok(session) => Ok((started, self.supervise(record, session))),
            Err(e) => {
                self.finish_run(&record, Err(e.clone())).await;
                Err(unavailable(e))
            }
        }
    }

    /// Starts a run that its client attaches to by the secret that comes back with its name.
    pub async fn run_attached(&self, actor: &Actor, app: &App, request: RunRequest) -> Result<(Started, String), ApiError> {
        let (started, session) = self.open_run(actor, app, request).await?;
        let secret = self.await_client(Waiting { session, app: app.id, name: started.name.clone(), is_run: true });
        Ok((started, secret))
    }

    /// Starts a run that nobody need look at: its output goes to the log.
    pub async fn run_detached(&self, actor: &Actor, app: &App, request: RunRequest) -> Result<Started, ApiError> {
        let (job, release) = self.run_job(app, &request).await?;
        let started = self.started(&job, &release, &request);
        let record = self.begin_run(actor, app, &started, false, request.life).await?;
        if let Err(fault) = self.deps.runs.start(job).await {
            let e = ApiError::from(fault);
            self.finish_run(&record, Err(e.message.clone())).await;
            return Err(e);
        }
        Ok(started)
    }

    async fn run_job(&self, app: &App, request: &RunRequest) -> Result<(RunJob, Arc<Release>), ApiError> {
        let release = self.running_release(app).await?;
        let mut line = request.command.clone();
        if let Some(process) = &request.process {
            let known = release.processes.get(process);
            let known = known.ok_or_else(|| {
                let all: Vec<_> = release.processes.keys().map(ToString::to_string).collect();
                invalid(format!("There is no process type {process}. There are: {}.", all.join(", ")))
            })?;
            if line.trim().is_empty() {
                let none = || invalid(format!("Process type {process} runs what its image says. Give a command."));
                line = known.command.clone().ok_or_else(none)?;
            }
        }
        if line.trim().is_empty() || line.contains('\0') || line.len() > 32 << 10 {
            return Err(invalid("Give a command to run, of at most 32 KiB."));
        }
        let name = self.run_name(app.id);
        let of_process = request.process.as_ref().and_then(|p| app.formation.get(p)).copied();
        let mut scale = of_process.unwrap_or(ProcessScale::default_for(1));
        if let Some(size) = &request.size {
            scale = self.resized(scale, size)?;
        }
        let mut job = self.job(app, &release, line, &name, scale).await?;
        for (k, v) in &request.env {
            let key: flex_model::ConfigKey = k.parse().map_err(invalid)?;
            job.spec.env.insert(key.to_string(), Secret::new(v));
        }
        job.tty = request.tty.then(|| crate::sessions::terminal(&request.env));
        Ok((job, release))
    }

    /// Writes a run's output to the log; returns its exit status.
    pub(crate) async fn log_session(&self, app: AppId, process: &str, session: RunSession) -> Result<i64, String> {
        let RunSession { input, mut output, exit, oom } = session;
        let mut rest = Vec::<u8>::new();
        let mut failed = None;
        while let Some(piece) = output.next().await {
            let bytes: Bytes = match piece {
                Ok(RunOutput::Stdout(b) | RunOutput::Stderr(b)) => b,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.log(app, LogSource::App, process, line);
            }
        }
        if !rest.is_empty() {
            self.log(app, LogSource::App, process, rest);
        }
        let status = exit.await.unwrap_or_else(|_| Err(failed.unwrap_or_else(|| "the container was lost".into())));
        drop(input);
        if oom.load(std::sync::atomic::Ordering::Relaxed) {
            self.log(app, LogSource::Flex, process, crate::sessions::out_of_memory(None));
        }
        match &status {
            Ok(n) => self.log(app, LogSource::Flex, process, format!("Process exited with status {n}")),
            Err(e) => self.log(app, LogSource::Flex, process, format!("Error R99 (Platform error) -> {e}")),
        }
        status
    }

    /// Runs a release phase once at a time; called again and again by the plan loop until the release is over it. That is at
    /// least once: what a server that ended was running is reaped, and run anew by the next one.
    pub fn start_release_phase(&self, app: Arc<App>, release: Arc<Release>) {
        let key = (app.id, release.version);
        let stop = CancellationToken::new();
        match lock(&self.phases_running).entry(key) {
            Entry::Occupied(_) => return,
            Entry::Vacant(free) => {
                free.insert(stop.clone());
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(e) = this.release_phase(&app, &release, &stop).await {
                tracing::warn!(app = %app.name, version = release.version, error = %e, "a release phase could not be run");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            lock(&this.phases_running).remove(&key);
            this.nudge();
        });
    }

    async fn release_phase(&self, app: &App, release: &Release, stop: &CancellationToken) -> Result<(), ApiError> {
        let Some(command) = release.release_command.clone() else { return Ok(()) };
        // Whoever asked may have read the release before it ended.
        let now = self.find_release(app.id, &release.version.to_string()).await?;
        if now.released || now.status != ReleaseStatus::Pending {
            return Ok(());
        }
        let name = phase_name(release.version);
        let job = self.job(app, release, command.clone(), &name, ProcessScale::default_for(1)).await?;
        self.log(app.id, LogSource::Flex, &name, format!("Starting process with command `{command}`"));
        let limit = self.deps.settings.runs.release_phase;
        let status = match self.deps.runs.run(job).await {
            // What is dropped with its session ends.
            Ok(session) => tokio::select! {
                biased;
                status = self.log_session(app.id, &name, session) => status,
                () = stop.cancelled() => {
                    self.log(app.id, LogSource::Flex, &name, "Stopping process: its release was cancelled");
                    return Ok(());
                }
                () = tokio::time::sleep(limit) => {
                    let why = format!("its release phase took longer than {} and was stopped", said(limit));
                    self.log(app.id, LogSource::Flex, &name, format!("Stopping process: {why}"));
                    let lines = self.last_lines(app.id, &name).await;
                    return self.fail_release(app.id, release.version, &why, &lines).await;
                }
            },
            Err(e) => Err(e),
        };
        match status {
            Ok(0) => {
                self.db
                    .retry(|| async {
                        let key = keys::release(app.id, release.version);
                        let Some(stored) = self.db.get::<Release>(&key).await? else { return Ok((crate::db::Tx::new(), ())) };
                        let now = Release { released: true, updated_at: self.now(), ..(*stored.value).clone() };
                        Ok((crate::db::Tx::new().unchanged(&stored).put(key, &now), ()))
                    })
                    .await
            }
            Ok(n) => {
                let lines = self.last_lines(app.id, &name).await;
                self.fail_release(app.id, release.version, &format!("its release phase exited with status {n}"), &lines).await
            }
            Err(e) => self.fail_release(app.id, release.version, &format!("its release phase could not be run: {e}"), &[]).await,
        }
    }
}

/// How a Procfile line runs in a release's image.
pub(crate) fn command(release: &Release, line: String) -> Command {
    if release.has_launcher { Command::Launch(line) } else { Command::Shell(line) }
}

/// `1 hour`, `90 seconds`.
fn said(limit: Duration) -> String {
    let (n, unit) = match limit.as_secs() {
        s if s >= 3600 && s.is_multiple_of(3600) => (s / 3600, "hour"),
        s if s >= 60 && s.is_multiple_of(60) => (s / 60, "minute"),
        s => (s, "second"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

pub(crate) fn unavailable(e: String) -> ApiError {
    ApiError::new(ErrorId::Unavailable, e)
}
