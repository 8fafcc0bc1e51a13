//! The loop around the decisions: brings events in, carries actions out, sends reports.

use crate::{
    Agent, AgentError, ControlLink,
    core::{Action, Core, Event, Memory, Now},
    engine::{Engine, Wanted},
    ledger::{Ledger, LedgerError},
    ports, probe,
    tail::Tailer,
};
use flex_logs::{Clock, LogStore};
use flex_model::{Assignment, InstanceReport, LogLine, LogSource};
use flex_runtime::Runtime;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Changes that come close together go out in one report.
const COALESCE: Duration = Duration::from_millis(10);
/// A report goes out at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pause before the next try to keep an assignment on disk.
const KEEP_RETRY: Duration = Duration::from_secs(1);
/// Pause before the next try when the control plane does not take reports fast enough.
const REPORT_RETRY: Duration = Duration::from_millis(50);

pub async fn run(agent: Agent, shutdown: CancellationToken) -> Result<(), AgentError> {
    let Agent { settings, runtime, link, logs, clock } = agent;
    let (dir, host, key) = (settings.state_dir.clone(), settings.host, settings.key.clone());
    let (ledger, memory) = blocking(move || {
        let ledger = Ledger::open(&dir, host, key)?;
        let memory = ledger.memory()?;
        Ok((ledger, memory))
    })
    .await?;
    let tailer = Tailer::start(&settings.state_dir, logs.clone()).map_err(AgentError::Tail)?;
    let known = ledger.current().cloned();
    let ledger = Arc::new(Mutex::new(ledger));
    let (events, inbox) = mpsc::channel(64);
    let (wanted, engine_wants) = watch::channel(Wanted::None);
    let (memory_out, memory_in) = watch::channel(memory.clone());
    let engine = Engine { runtime: runtime.clone(), tailer, wanted: engine_wants, events: events.clone() };
    let engine = AbortOnDropHandle::new(tokio::spawn(engine.run(shutdown.clone())));
    let keeper = AbortOnDropHandle::new(tokio::spawn(keep_memory(ledger.clone(), memory_in)));
    let state = Loop {
        core: Core::new(memory),
        runtime,
        logs,
        clock,
        ledger,
        started: Instant::now(),
        events,
        wanted,
        memory: memory_out,
        reported: Vec::new(),
        report_at: None,
        probes: JoinSet::new(),
    };
    let result = state.run(known, link, inbox, &shutdown).await;
    // Both end now, after they have put down what the next run should know.
    let _ = tokio::join!(keeper, engine);
    result
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// Writes what should be remembered whenever it changed; a slow disk gets the newest only.
async fn keep_memory(ledger: Arc<Mutex<Ledger>>, mut memory: watch::Receiver<Memory>) {
    while memory.changed().await.is_ok() {
        let (ledger, memory) = (ledger.clone(), memory.borrow_and_update().clone());
        let kept = blocking(move || ledger.lock().unwrap_or_else(PoisonError::into_inner).remember(&memory)).await;
        if let Err(e) = kept {
            tracing::error!(error = %e, "the next start will not know of this host's crashes");
        }
    }
}

struct Loop {
    core: Core,
    runtime: Arc<dyn Runtime>,
    logs: Arc<LogStore>,
    clock: Clock,
    ledger: Arc<Mutex<Ledger>>,
    started: Instant,
    events: mpsc::Sender<Event>,
    wanted: watch::Sender<Wanted>,
    memory: watch::Sender<Memory>,
    /// What the last report said.
    reported: Vec<InstanceReport>,
    /// When the next report is due; none before there is something to report.
    report_at: Option<Instant>,
    probes: JoinSet<()>,
}

impl Loop {
    async fn run(
        mut self,
        known: Option<Arc<Assignment>>,
        mut link: ControlLink,
        mut inbox: mpsc::Receiver<Event>,
        shutdown: &CancellationToken,
    ) -> Result<(), AgentError> {
        if let Some(assignment) = known {
            tracing::info!(revision = assignment.revision, instances = assignment.items.len(), "took the assignment on disk");
            self.step(Event::Assigned(assignment));
        }
        let mut control_lives = true;
        // Could not be kept, and is to be tried again then.
        let mut untaken: Option<(Arc<Assignment>, Instant)> = None;
        // What was sent before this started counts too.
        link.assignment.mark_changed();
        loop {
            let due = self.core.next_due().map(|mono| self.started + mono);
            let wake = due.into_iter().chain(self.report_at).min();
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = link.assignment.changed(), if control_lives => {
                    let offered = link.assignment.borrow_and_update().clone();
                    control_lives = changed.is_ok();
                    if let Some(offered) = offered {
                        untaken = self.take(offered).await;
                    }
                }
                () = sleep_until(untaken.as_ref().map(|u| u.1)) => {
                    if let Some((offered, _)) = untaken.take() {
                        untaken = self.take(offered).await;
                    }
                }
                Some(event) = inbox.recv() => self.step(event),
                () = sleep_until(wake) => self.step(Event::Tick),
                Some(_) = self.probes.join_next() => {}
            }
            self.send_report(&link);
        }
        Ok(())
    }

    /// An assignment is on disk before anything is done about it: a host that restarts must not fall back behind it.
    /// Gives it back, with the time to try again, if it could not be kept.
    async fn take(&mut self, offered: Arc<Assignment>) -> Option<(Arc<Assignment>, Instant)> {
        let (ledger, assignment) = (self.ledger.clone(), offered.clone());
        let taken = blocking(move || ledger.lock().unwrap_or_else(PoisonError::into_inner).offer(&assignment)).await;
        match taken {
            Ok(Some(assignment)) => self.step(Event::Assigned(assignment)),
            Ok(None) => {}
            Err(e) => {
                tracing::error!(error = %e, "an assignment is not applied yet, because it cannot be kept");
                return Some((offered, Instant::now() + KEEP_RETRY));
            }
        }
        None
    }

    fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), wall: (self.clock)() }
    }

    fn step(&mut self, event: Event) {
        let assigned = matches!(event, Event::Assigned(_));
        let now = self.now();
        for action in self.core.step(event, now, random_unit()) {
            self.act(action, now);
        }
        if let Some(list) = self.core.desired() {
            self.wanted.send_if_modified(|wanted| {
                let differs = wanted.as_deref() != Some(&list);
                if differs {
                    *wanted = Some(Arc::new(list));
                }
                differs
            });
        }
        let memory = self.core.memory();
        self.memory.send_if_modified(|known| {
            let differs = *known != memory;
            if differs {
                *known = memory;
            }
            differs
        });
        if let Some(instances) = self.core.instances() {
            let soon = Instant::now() + COALESCE;
            if assigned || instances != self.reported || self.report_at.is_none() {
                self.report_at = Some(self.report_at.map_or(soon, |at| at.min(soon)));
            }
        }
    }

    fn act(&mut self, action: Action, now: Now) {
        match action {
            Action::Log { app, process, text } => {
                self.logs.append(app, LogLine { at: now.wall, source: LogSource::Flex, process, text: text.into() });
            }
            Action::Probe { instance, attempt, check, address, proxy_protocol } => {
                let (runtime, events) = (self.runtime.clone(), self.events.clone());
                self.probes.spawn(async move {
                    let result = probe::send(runtime, instance, &check, address, proxy_protocol).await;
                    let _ = events.send(Event::Probed { instance, attempt, result }).await;
                });
            }
            // Kept by the core, and told in reports.
            Action::Ended(_) => {}
            Action::FindListeners { instance, attempt, pid } => {
                let events = self.events.clone();
                self.probes.spawn(async move {
                    let sockets = match pid {
                        Some(pid) => tokio::task::spawn_blocking(move || ports::listeners(pid)).await.ok().and_then(Result::ok),
                        None => None,
                    };
                    // Without an answer the core says what it knows.
                    if let Some(sockets) = sockets {
                        let _ = events.send(Event::Listens { instance, attempt, sockets }).await;
                    }
                });
            }
        }
    }

    /// Sends the report if it is due. Never waits: the next one says it all again.
    fn send_report(&mut self, link: &ControlLink) {
        let now = Instant::now();
        if self.report_at.is_none_or(|at| now < at) {
            return;
        }
        let Some(report) = self.core.report(self.now()) else {
            self.report_at = None;
            return;
        };
        let instances = report.instances.clone();
        self.report_at = Some(match link.reports.try_send(report) {
            Ok(()) => {
                self.reported = instances;
                now + HEARTBEAT
            }
            Err(mpsc::error::TrySendError::Full(_)) => now + REPORT_RETRY,
            // Nobody listens; the instances run on.
            Err(mpsc::error::TrySendError::Closed(_)) => now + HEARTBEAT,
        });
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// In 0..1; spreads retries, so it need not be a good number.
fn random_unit() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
