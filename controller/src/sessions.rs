//! What runs beside the formation: records of one-off commands from their start to their end, commands inside running
//! instances, and clients that look on.
//!
//! Invariants: a one-off command is recorded before it is started, and its end once; whatever becomes of this process, the
//! next one finds the detached ones again and says of the others that they are lost.
//! Must not: know how bytes get to a client.

use crate::core::{Actor, Controller, invalid, lock, not_found};
use crate::db::{RunRecord, Tx, keys};
use crate::ports::{AttachedRun, ExecJob, JobEnd, RunFault, RunSession};
use crate::runs::{Started, unavailable};
use flex_api::{ApiError, ErrorId};
use flex_model::{App, AppId, Command, ConfigKey, InstanceId, InstanceState, LogSource, Memory, Placement, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a session waits for its client.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);
/// Pause between looks at detached runs, and at what they left.
const LOOK: Duration = Duration::from_millis(300);
const LOOK_FOR_REMAINS: Duration = Duration::from_secs(10);
/// What has ended stays for so long, for its last output to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A container that is to be made is there by now, or will never be.
const STARTED: Duration = Duration::from_secs(120);
/// Runs of one app that are remembered.
const KEPT_RUNS: usize = 200;
/// A port that is reached again and again is told of so often.
const PORT_TOLD: Duration = Duration::from_secs(3600);
/// Lines of earlier output that somebody who attaches is shown, unless they say otherwise, and at most.
const REPLAY: (u32, u32) = (100, 1000);

/// A session that waits for its client to attach.
pub struct Waiting {
    pub session: RunSession,
    pub app: AppId,
    pub name: String,
    /// Whether it ends with its client.
    pub is_run: bool,
}

/// A command to run inside an instance.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// As typed; empty (and no `argv`): a shell.
    pub command: String,
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub tty: bool,
}

/// A running instance or one-off command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub instance: InstanceId,
    pub name: String,
    pub version: u64,
}

/// Columns and rows, from what clients send as `COLUMNS` and `LINES`.
pub fn terminal(env: &BTreeMap<String, String>) -> (u16, u16) {
    let number = |k: &str| env.get(k).and_then(|v| v.parse().ok()).filter(|n| *n > 0);
    (number("COLUMNS").unwrap_or(80), number("LINES").unwrap_or(24))
}

/// How a one-off command ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub status: i64,
    /// Its memory limit was hit.
    pub oom: bool,
}

/// The beginning of what the log says of a process that had too little memory.
pub(crate) fn out_of_memory(limit: Option<Memory>) -> String {
    let limit = limit.map(|m| format!(" of {m}")).unwrap_or_default();
    format!("Error R15 (Memory quota vastly exceeded): the process was killed at its memory limit{limit}")
}

impl From<RunFault> for ApiError {
    fn from(fault: RunFault) -> Self {
        match fault {
            RunFault::NotFound(why) => ApiError::new(ErrorId::NotFound, why),
            RunFault::Refused(why) => ApiError::new(ErrorId::InvalidParams, why),
            RunFault::Unavailable(why) => unavailable(why),
        }
    }
}

impl Controller {
    /// A name that no running one-off command of the app has.
    pub(crate) fn run_name(&self, app: AppId) -> String {
        let taken: BTreeSet<String> = self.runs_of(app).iter().map(|r| r.name.clone()).collect();
        loop {
            let [a, b] = crate::crypt::random::<2>();
            let name = format!("run.{}", 1000 + (u32::from(a) * 256 + u32::from(b)) % 9000);
            if !taken.contains(&name) {
                return name;
            }
        }
    }

    /// The app's one-off commands that run now.
    pub fn runs_of(&self, app: AppId) -> Vec<Arc<RunRecord>> {
        lock(&self.open_runs).values().filter(|r| r.app == app).cloned().collect()
    }

    /// One of them, by name or id.
    pub fn open_run_named(&self, app: AppId, name: &str) -> Option<Arc<RunRecord>> {
        self.runs_of(app).into_iter().find(|r| r.name == name || r.id.to_string() == name)
    }

    /// Records a one-off command that is about to start.
    pub(crate) async fn begin_run(
        &self,
        actor: &Actor,
        app: &App,
        run: &Started,
        attached: bool,
        life: Option<Duration>,
    ) -> Result<Arc<RunRecord>, ApiError> {
        let limits = self.deps.settings.runs;
        let now = self.now();
        let record = Arc::new(RunRecord {
            id: run.instance,
            app: app.id,
            name: run.name.clone(),
            command: run.command.clone(),
            user: actor.name.clone(),
            release: run.release.id,
            version: run.release.version,
            memory: run.memory,
            attached,
            epoch: self.epoch,
            stop_grace_seconds: run.stop_grace_seconds,
            started_at: now,
            deadline: now.plus(life.unwrap_or(limits.max_life).min(limits.max_life)),
            ended_at: None,
            status: None,
            error: None,
            oom: false,
            size: Some(run.size.clone()).filter(|s| *s != run.memory.to_string()),
        });
        {
            let mut open = lock(&self.open_runs);
            if open.values().filter(|r| r.app == app.id).count() >= limits.per_app {
                let most = limits.per_app;
                return Err(invalid(format!(
                    "{most} one-off commands of {} run already, which is the limit. See: flex ps",
                    app.name
                )));
            }
            open.insert(record.id, record.clone());
        }
        let what = if attached { "" } else { ", detached" };
        let event = self.event(actor, Some(app.id), "run.start", format!("{} started{what}: `{}`", record.name, record.command));
        let tx = Tx::new().present(&keys::app(app.id)).put(keys::run(app.id, record.id), &*record);
        if let Err(e) = self.db.commit(tx.put(keys::event(&event), &event)).await {
            lock(&self.open_runs).remove(&record.id);
            return Err(crate::core_error(e));
        }
        self.log_api(app.id, format!("Starting process with command `{}` by user {}", record.command, actor.name));
        self.log(app.id, LogSource::Flex, &record.name, format!("Starting process with command `{}`", record.command));
        self.log(app.id, LogSource::Flex, &record.name, "State changed from starting to up");
        Ok(record)
    }

    /// Sees to it that the end is recorded, whoever waits for it.
    pub(crate) fn supervise(&self, record: Arc<RunRecord>, session: RunSession) -> RunSession {
        let RunSession { input, output, exit, oom } = session;
        let (tell, told) = tokio::sync::oneshot::channel();
        let (this, hit) = (self.clone(), oom.clone());
        tokio::spawn(async move {
            let status = exit.await.unwrap_or_else(|_| Err("the container was lost".into()));
            let _ = tell.send(status.clone());
            let oom = hit.load(Ordering::Relaxed);
            this.finish_run(&record, status.map(|status| Exit { status, oom })).await;
        });
        RunSession { input, output, exit: told, oom }
    }

    /// Records an end, once.
    pub(crate) async fn finish_run(&self, record: &RunRecord, outcome: Result<Exit, String>) {
        let (status, oom, error) = match outcome {
            Ok(exit) => (Some(exit.status), exit.oom, None),
            Err(e) => (None, false, Some(e)),
        };
        let ended = RunRecord { ended_at: Some(self.now()), status, oom, error, ..record.clone() };
        let took = self.now().since(record.started_at);
        let (line, told) = match (&ended.status, &ended.error) {
            (Some(status), _) => {
                let limit = if oom { format!(" at its memory limit of {}", record.memory) } else { String::new() };
                (format!("Process exited with status {status}"), format!("exited with status {status}{limit}"))
            }
            (None, error) => {
                let why = error.as_deref().unwrap_or("nobody knows how it ended");
                (format!("Error R99 (Platform error) -> {why}"), format!("was lost: {why}"))
            }
        };
        let message = format!("{} {told} after {}: `{}`", record.name, duration(took), record.command);
        let event = self.event_ended(&Actor::platform(), Some(record.app), "run.end", message, status == Some(0));
        let tx = Tx::new().present(&keys::app(record.app)).put(keys::run(record.app, record.id), &ended);
        let committed = self.db.commit(tx.put(keys::event(&event), &event)).await;
        if lock(&self.open_runs).remove(&record.id).is_none() {
            return;
        }
        if let Err(e) = committed {
            // Of an app that is gone there is nothing to remember.
            tracing::debug!(run = %record.name, error = ?e, "a run's end was not recorded");
            return;
        }
        if ended.oom {
            let more = Memory::from_mib((record.memory.mib() * 2).max(64));
            let text = format!("{}. More: flex run --size {more}", out_of_memory(Some(record.memory)));
            self.log(record.app, LogSource::Flex, &record.name, text);
        }
        self.log(record.app, LogSource::Flex, &record.name, line);
        let state = if ended.status == Some(0) { "complete" } else { "crashed" };
        self.log(record.app, LogSource::Flex, &record.name, format!("State changed from up to {state}"));
    }

    /// Takes over what an earlier run of the server started.
    pub(crate) async fn adopt_runs(&self) -> Result<(), ApiError> {
        for run in self.db.list::<RunRecord>(keys::RUNS).await? {
            let record = run.value;
            if record.ended_at.is_some() || record.epoch == self.epoch {
                continue;
            }
            lock(&self.open_runs).insert(record.id, record.clone());
            if record.attached {
                self.finish_run(&record, Err("the server was restarted while it ran".into())).await;
            }
        }
        Ok(())
    }

    /// Ends one-off commands at their limits, notices the ends of those that nobody waits for, and removes what they left.
    pub(crate) async fn runs_loop(self, stop: CancellationToken) {
        let mut stopping = BTreeSet::new();
        let mut looked = None::<Instant>;
        loop {
            let open: Vec<Arc<RunRecord>> = lock(&self.open_runs).values().cloned().collect();
            stopping.retain(|id| open.iter().any(|r| r.id == *id));
            for record in &open {
                let gone = matches!(self.find_app(&record.app.to_string()).await, Err(e) if e.id == ErrorId::NotFound);
                if (gone || self.now() > record.deadline) && stopping.insert(record.id) {
                    if !gone {
                        let life = duration(record.deadline.since(record.started_at));
                        let line = format!("Stopping the process: it has run for {life}, the longest that it may");
                        self.log(record.app, LogSource::Flex, &record.name, line);
                    }
                    self.stop_in_background(record);
                }
            }
            let detached = open.iter().any(|r| !r.attached);
            if detached || looked.is_none_or(|at| at.elapsed() >= LOOK_FOR_REMAINS) {
                looked = Some(Instant::now());
                if let Err(fault) = self.look_at_jobs().await {
                    tracing::debug!(?fault, "detached runs could not be looked at");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn look_at_jobs(&self) -> Result<(), RunFault> {
        let jobs = self.deps.runs.jobs().await?;
        let open: BTreeMap<InstanceId, Arc<RunRecord>> = lock(&self.open_runs).clone();
        let now = self.now();
        for record in open.values().filter(|r| !r.attached) {
            match jobs.iter().find(|j| j.instance == record.id) {
                Some(job) => {
                    if let Some(JobEnd { status, oom, .. }) = job.ended {
                        self.finish_run(record, Ok(Exit { status, oom })).await;
                    }
                }
                None if now.since(record.started_at) > STARTED => {
                    self.finish_run(record, Err("its container is gone".into())).await;
                }
                None => {}
            }
        }
        for job in jobs.iter().filter(|j| !open.contains_key(&j.instance)) {
            if job.ended.is_none_or(|end| now.since(end.at) > LAST_WORDS) {
                self.deps.runs.remove(job.instance).await?;
            }
        }
        Ok(())
    }

    fn stop_in_background(&self, record: &RunRecord) {
        let (this, id, grace) = (self.clone(), record.id, record.stop_grace_seconds);
        tokio::spawn(async move {
            if let Err(fault) = this.deps.runs.stop(id, grace).await {
                tracing::debug!(instance = %id, ?fault, "a run could not be stopped");
            }
        });
    }

    /// SIGTERM, and SIGKILL after the app's grace. Returns at once.
    pub async fn stop_run(&self, actor: &Actor, record: &RunRecord) -> Result<(), ApiError> {
        let event = self.event(actor, Some(record.app), "run.stop", format!("{} stopped: `{}`", record.name, record.command));
        self.db.commit(Tx::new().put(keys::event(&event), &event)).await.map_err(crate::core_error)?;
        self.log(record.app, LogSource::Flex, &record.name, "Stopping all processes with SIGTERM");
        self.stop_in_background(record);
        Ok(())
    }

    /// A running instance (`web.1`, or its id) or one-off command (`run.4711`).
    pub async fn find_instance(&self, app: &App, name: &str) -> Result<Found, ApiError> {
        if let Some(run) = self.open_run_named(app.id, name) {
            return Ok(Found { instance: run.id, name: run.name.clone(), version: run.version });
        }
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await?;
        let named = |p: &Placement| p.app == app.id && (p.name() == name || p.instance.to_string() == name);
        let reports = lock(&self.reports);
        let runs = |p: &Placement| {
            let host = reports.get(&p.host);
            let found = host.and_then(|h| h.report.instances.iter().find(|i| i.instance == p.instance));
            found.map(|i| i.state)
        };
        let mut found: Vec<_> = placements.iter().map(|p| &p.value).filter(|p| named(p)).collect();
        // During a deploy there are two: the one that serves, and of those the newer.
        found.sort_by_key(|p| (runs(p) == Some(InstanceState::Up), p.version));
        let Some(p) = found.last() else {
            return Err(not_found(format!("There is no {name}. See what runs: flex ps")));
        };
        Ok(Found { instance: p.instance, name: p.name(), version: p.version })
    }

    /// Starts a command inside an instance; it ends when the session is dropped.
    pub async fn open_exec(
        &self,
        actor: &Actor,
        app: &App,
        name: &str,
        request: ExecRequest,
    ) -> Result<(Found, RunSession), ApiError> {
        let size: usize = request.argv.iter().map(String::len).sum::<usize>() + request.command.len();
        if size > 32 << 10 || request.command.contains('\0') || request.argv.iter().any(|w| w.contains('\0')) {
            return Err(invalid("Give a command of at most 32 KiB, without NUL bytes."));
        }
        let found = self.find_instance(app, name).await?;
        let release = self.find_release(app.id, &found.version.to_string()).await?;
        let shown = if request.argv.is_empty() { request.command.clone() } else { request.argv.join(" ") };
        let argv = if !request.argv.is_empty() {
            request.argv
        } else {
            let line = if request.command.trim().is_empty() { SHELL.to_owned() } else { request.command };
            match crate::runs::command(&release, line) {
                Command::Launch(line) => vec![LAUNCHER.into(), line],
                Command::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line],
                Command::Exec(argv) => argv,
                Command::Image => Vec::new(),
            }
        };
        let mut env = BTreeMap::new();
        for (k, v) in &request.env {
            let key: ConfigKey = k.parse().map_err(invalid)?;
            env.insert(key.to_string(), Secret::new(v));
        }
        let job = ExecJob { argv, env, tty: request.tty.then(|| terminal(&request.env)) };
        let what = if shown.trim().is_empty() { "a shell".to_owned() } else { format!("`{shown}`") };
        let session = self.deps.runs.exec(found.instance, job).await;
        let (done, good) = match &session {
            Ok(_) => (format!("Ran {what} in {}", found.name), true),
            Err(fault) => (format!("Could not run {what} in {}: {}", found.name, fault.why()), false),
        };
        // After it, so that the outcome is known. Where this fails, dropping the session ends the command.
        let event = self.event_ended(actor, Some(app.id), "instance.exec", done, good);
        self.db.commit(Tx::new().put(keys::event(&event), &event)).await.map_err(crate::core_error)?;
        Ok((found, session?))
    }

    /// Looks on at an instance.
    pub async fn open_attach(
        &self,
        actor: &Actor,
        app: &App,
        name: &str,
        lines: Option<u32>,
    ) -> Result<(Found, AttachedRun), ApiError> {
        let found = self.find_instance(app, name).await?;
        let attached = self.deps.runs.attach(found.instance, lines.unwrap_or(REPLAY.0).min(REPLAY.1)).await?;
        if attached.stdin {
            let event = self.event(actor, Some(app.id), "instance.attach", format!("Attached to {}", found.name));
            self.db.commit(Tx::new().put(keys::event(&event), &event)).await.map_err(crate::core_error)?;
        }
        Ok((found, attached))
    }

    /// Tells that a user reaches a port of an instance: a program that is forwarded may connect many times, which is one
    /// event an hour.
    pub(crate) async fn tell_of_port(&self, actor: &Actor, app: AppId, found: &Found, port: u16) -> Result<(), ApiError> {
        let (now, key) = (self.now(), (actor.id(), found.instance, port));
        {
            let mut reached = lock(&self.ports_reached);
            reached.retain(|_, at| now.since(*at) < PORT_TOLD);
            if reached.contains_key(&key) {
                return Ok(());
            }
        }
        let event = self.event(actor, Some(app), "instance.port", format!("Reached port {port} of {}", found.name));
        self.db.commit(Tx::new().put(keys::event(&event), &event)).await.map_err(crate::core_error)?;
        // Two at once may both tell; none goes untold.
        lock(&self.ports_reached).insert(key, now);
        Ok(())
    }

    /// Keeps a session for its client; the secret that it shows.
    pub(crate) fn await_client(&self, waiting: Waiting) -> String {
        let secret = hex::encode(crate::crypt::random::<32>());
        lock(&self.attach).insert(secret.clone(), waiting);
        let (this, key) = (self.clone(), secret.clone());
        tokio::spawn(async move {
            tokio::time::sleep(ATTACH_PATIENCE).await;
            // Dropping the session of a client that never came ends what it was for.
            lock(&this.attach).remove(&key);
        });
        secret
    }

    /// Where a client attaches.
    pub(crate) fn attach_url(&self, secret: &str) -> String {
        format!("{}/runs/{secret}", self.deps.settings.api_url.replacen("http", "ws", 1))
    }

    /// Forgets all but an app's newest runs.
    pub(crate) async fn tidy_runs(&self, app: AppId) -> Result<(), ApiError> {
        let mut runs = self.db.list::<RunRecord>(&keys::runs(app)).await?;
        runs.sort_by_key(|r| std::cmp::Reverse(r.value.started_at));
        for old in runs.iter().skip(KEPT_RUNS).filter(|r| r.value.ended_at.is_some()) {
            self.db.commit(Tx::new().unchanged(old).delete(old.key.clone())).await.map_err(crate::core_error)?;
        }
        Ok(())
    }
}

/// The launcher of the stack images, which gives a command the app's environment.
const LAUNCHER: &str = "/opt/flex/launch";
/// The better shell of those that there are. Constant: nothing of a user's is in it.
const SHELL: &str = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi";

/// `12s`, `3m 5s`, `2h 0m`.
fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{:.1}s", d.as_secs_f64()),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        _ => format!("{}h {}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        let text = |ms| duration(Duration::from_millis(ms));
        assert_eq!((text(250), text(12_300), text(185_000)), ("0.2s".into(), "12s".into(), "3m 5s".into()));
        assert_eq!(text(24 * 3_600_000), "24h 0m");
    }

    #[test]
    fn a_terminal_has_a_size_whatever_is_sent() {
        let env = |cols: &str| BTreeMap::from([("COLUMNS".to_owned(), cols.to_owned()), ("LINES".to_owned(), "33".to_owned())]);
        assert_eq!((terminal(&env("120")), terminal(&env("0")), terminal(&env("x"))), ((120, 33), (80, 33), (80, 33)));
    }
}
