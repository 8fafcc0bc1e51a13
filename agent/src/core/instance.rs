//! One instance's life on this host.

use super::{
    Action, Now, Remembered,
    backoff::{FORGIVEN_AFTER, delay},
    health::{Health, Verdict},
    words,
};
use flex_model::{AppId, Ended, ExitInfo, InstanceId, InstanceReport, InstanceSpec, InstanceState, Timestamp, WorkItem};
use flex_runtime::{Observed, ObservedPhase};
use std::{net::SocketAddr, time::Duration};

/// How long the answer to [`Action::FindListeners`] is waited for.
const LISTENERS_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Tracked {
    id: InstanceId,
    app: AppId,
    name: String,
    /// What the attempt runs: it never changes within one. None: no assignment known to this process wanted it.
    spec: Option<InstanceSpec>,
    /// What the next attempt runs.
    next_spec: Option<InstanceSpec>,
    attempt: u32,
    crashes: u32,
    was_up: bool,
    state: InstanceState,
    since: Timestamp,
    /// When this attempt began.
    began: Timestamp,
    exit: Option<ExitInfo>,
    message: Option<String>,
    address: Option<SocketAddr>,
    pid: Option<u32>,
    /// The log says that this attempt starts.
    announced: bool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Asked of the engine; `seen`: the engine has it.
    Making {
        seen: bool,
    },
    Running(Running),
    /// Ended; what is left of it stays until the next attempt.
    Waiting {
        retry_at: Duration,
    },
    /// Taken out of the desired list for not starting in time; `gone`: nothing of it is left.
    Halting {
        retry_at: Duration,
        gone: bool,
    },
    /// No assignment wants it.
    Leaving(Leaving),
    Gone,
}

#[derive(Debug)]
struct Running {
    health: Health,
    up_since: Option<Duration>,
    /// When it was asked what it listens on.
    asked: Option<Duration>,
}

#[derive(Debug, Default)]
struct Leaving {
    /// When the engine was first seen stopping it.
    stopping_since: Option<Duration>,
    said_timeout: bool,
    said_exit: bool,
}

impl Tracked {
    /// A new line of the assignment, or one that an earlier run of this process knew.
    pub fn placed(item: &WorkItem, remembered: Option<Remembered>, now: Now) -> Self {
        let first = Remembered {
            attempt: 0,
            crashes: 0,
            was_up: false,
            state: InstanceState::Starting,
            since: now.wall,
            exit: None,
            message: None,
        };
        let announced = remembered.is_some();
        let r = remembered.unwrap_or(first);
        let phase = match r.state {
            // Its end was seen and counted already.
            InstanceState::Crashed | InstanceState::Down => Phase::Waiting { retry_at: now.mono + delay(r.crashes, 0.5) },
            _ => Phase::Making { seen: false },
        };
        Self {
            id: item.instance,
            app: item.app,
            name: item.name.clone(),
            spec: Some(item.spec.clone()),
            next_spec: None,
            attempt: r.attempt,
            crashes: r.crashes,
            was_up: r.was_up,
            state: r.state,
            since: r.since,
            began: r.since,
            exit: r.exit,
            message: r.message,
            address: None,
            pid: None,
            announced,
            phase,
        }
    }

    /// Something that the engine has and no assignment wants.
    pub fn stray(o: &Observed, now: Now) -> Self {
        Self {
            id: o.instance,
            app: o.app,
            name: o.name.clone(),
            spec: None,
            next_spec: None,
            attempt: o.attempt,
            crashes: 0,
            was_up: false,
            state: InstanceState::Stopping,
            since: now.wall,
            began: now.wall,
            exit: None,
            message: None,
            address: None,
            pid: None,
            announced: true,
            phase: Phase::Leaving(Leaving::default()),
        }
    }

    /// An assignment wants it (still, or again).
    pub fn want(&mut self, item: &WorkItem, now: Now) {
        self.next_spec = Some(item.spec.clone());
        if matches!(self.phase, Phase::Leaving(_) | Phase::Gone) {
            self.restart(now, &mut Vec::new());
        }
    }

    /// No assignment wants it any more.
    pub fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Leaving(_) | Phase::Gone => return,
            // If the engine was about to make it, it will be met as a stray.
            Phase::Making { seen: false } | Phase::Halting { gone: true, .. } => {
                self.phase = Phase::Gone;
                return;
            }
            Phase::Making { seen: true } | Phase::Running(_) => self.log(words::STOPPING.into(), out),
            Phase::Waiting { .. } | Phase::Halting { .. } => {}
        }
        self.state = InstanceState::Stopping;
        self.since = now.wall;
        self.address = None;
        self.phase = Phase::Leaving(Leaving::default());
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// What the engine should run, and its attempt; none: nothing.
    pub fn wanted(&self) -> Option<(u32, &InstanceSpec)> {
        self.wanted_attempt().zip(self.spec.as_ref())
    }

    fn wanted_attempt(&self) -> Option<u32> {
        match self.phase {
            Phase::Making { .. } | Phase::Running(_) | Phase::Waiting { .. } => Some(self.attempt),
            Phase::Halting { .. } | Phase::Leaving(_) | Phase::Gone => None,
        }
    }

    /// Takes in what the engine has of it.
    pub fn seen(&mut self, observed: Option<&Observed>, now: Now, jitter: f64, out: &mut Vec<Action>) {
        if let Phase::Leaving(_) = self.phase {
            return self.seen_leaving(observed, now, out);
        }
        let Some(o) = observed else {
            match &mut self.phase {
                Phase::Making { seen: true } | Phase::Running(_) => {
                    self.message = Some("its container vanished".into());
                    self.crashed(None, now, jitter, out);
                }
                Phase::Halting { gone, .. } => *gone = true,
                _ => {}
            }
            return;
        };
        if o.attempt > self.attempt {
            self.attempt = o.attempt;
            self.phase = Phase::Making { seen: true };
        }
        if o.attempt < self.attempt {
            return;
        }
        match (&mut self.phase, &o.phase) {
            (Phase::Halting { gone, .. }, ObservedPhase::Exited(_) | ObservedPhase::Failed(_)) => *gone = true,
            (Phase::Halting { .. }, _) => {}
            (Phase::Making { seen }, ObservedPhase::Creating | ObservedPhase::Stopping) => *seen = true,
            (Phase::Making { .. } | Phase::Waiting { .. }, ObservedPhase::Running) => self.runs(o, now, out),
            (Phase::Running(_), ObservedPhase::Running) => self.place(o),
            (Phase::Making { .. } | Phase::Running(_), ObservedPhase::Exited(exit)) => {
                self.message = Some(match (exit.oom, &self.spec) {
                    (true, Some(spec)) => format!("killed at its memory limit of {}", spec.memory),
                    (true, None) => "killed at its memory limit".into(),
                    (false, _) => format!("exited with status {}", exit.status),
                });
                self.crashed(Some(exit.clone()), now, jitter, out);
            }
            (Phase::Making { .. } | Phase::Running(_), ObservedPhase::Failed(why)) => {
                let why = why.clone();
                self.cannot_be_made(why, now, jitter, out);
            }
            _ => {}
        }
    }

    fn seen_leaving(&mut self, observed: Option<&Observed>, now: Now, out: &mut Vec<Action>) {
        let Phase::Leaving(leaving) = &mut self.phase else { return };
        match observed.map(|o| &o.phase) {
            None => {
                // Its container went before it was seen to have exited.
                if leaving.stopping_since.is_some() && !leaving.said_exit {
                    self.ended(None, true, now, out);
                }
                self.phase = Phase::Gone;
            }
            Some(ObservedPhase::Stopping) => {
                leaving.stopping_since.get_or_insert(now.mono);
            }
            Some(ObservedPhase::Exited(exit)) => {
                let said = std::mem::replace(&mut leaving.said_exit, true);
                // A crash before it was let go was told then.
                if !said && self.exit.as_ref() != Some(exit) {
                    self.log(words::exited(exit), out);
                    self.ended(Some(exit), true, now, out);
                    self.exit = Some(exit.clone());
                }
            }
            Some(_) => {}
        }
    }

    fn place(&mut self, o: &Observed) {
        self.pid = o.pid;
        let port = self.spec.as_ref().and_then(|s| s.port);
        self.address = o.ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port));
    }

    fn runs(&mut self, o: &Observed, now: Now, out: &mut Vec<Action>) {
        self.place(o);
        let verdict = match self.state {
            InstanceState::Up => Verdict::Healthy,
            InstanceState::Unhealthy => Verdict::Failing,
            _ => Verdict::Unproven,
        };
        if verdict == Verdict::Unproven {
            self.enter(InstanceState::Starting, now, out);
        }
        let up_since = (verdict == Verdict::Healthy).then_some(now.mono);
        // Adopted or made: the log needs no line about a start that is over.
        self.announced = true;
        self.phase = Phase::Running(Running { health: Health::new(now.mono, verdict), up_since, asked: None });
    }

    fn forgive(&mut self, now: Now) {
        if let Phase::Running(Running { up_since: Some(up), .. }) = &self.phase
            && now.mono.saturating_sub(*up) >= FORGIVEN_AFTER
        {
            self.crashes = 0;
        }
    }

    fn crashed(&mut self, exit: Option<ExitInfo>, now: Now, jitter: f64, out: &mut Vec<Action>) {
        self.forgive(now);
        self.crashes = self.crashes.saturating_add(1);
        self.address = None;
        self.pid = None;
        if let Some(exit) = &exit {
            if exit.oom {
                self.log(words::out_of_memory(&self.name, self.spec.as_ref()), out);
            }
            self.log(words::exited(exit), out);
        }
        if self.crashes > 1 {
            self.log(words::backing_off(self.crashes, delay(self.crashes, jitter)), out);
        }
        self.ended(exit.as_ref(), false, now, out);
        self.exit = exit;
        self.enter(InstanceState::Crashed, now, out);
        self.phase = Phase::Waiting { retry_at: now.mono + delay(self.crashes, jitter) };
    }

    fn cannot_be_made(&mut self, why: String, now: Now, jitter: f64, out: &mut Vec<Action>) {
        // At once is too soon: nothing about the host has changed yet.
        self.crashes = self.crashes.saturating_add(1).max(2);
        self.address = None;
        self.exit = None;
        self.log(format!("Cannot start: {why}"), out);
        self.message = Some(why);
        self.enter(InstanceState::Down, now, out);
        self.phase = Phase::Waiting { retry_at: now.mono + delay(self.crashes, jitter) };
    }

    /// Takes a probe's answer, if it is about what runs now.
    pub fn probed(&mut self, attempt: u32, now: Now, result: Result<(), String>) {
        if let (Phase::Running(running), Some(spec)) = (&mut self.phase, &self.spec)
            && attempt == self.attempt
        {
            running.health.record(&spec.check, now.mono, result);
        }
    }

    /// It did not become healthy in time; `sockets` is what it listens on.
    pub fn boot_timed_out(&mut self, attempt: u32, sockets: &[SocketAddr], now: Now, jitter: f64, out: &mut Vec<Action>) {
        let (Phase::Running(running), Some(spec)) = (&self.phase, &self.spec) else { return };
        if attempt != self.attempt || running.asked.is_none() || running.health.verdict != Verdict::Unproven {
            return;
        }
        let listens = spec.port.and_then(|port| words::listeners(sockets, port));
        let text = words::boot_timeout(&self.name, spec, listens.or_else(|| running.health.last_failure.clone()).as_deref());
        self.stop_for(text, now, jitter, out);
    }

    fn stop_for(&mut self, text: String, now: Now, jitter: f64, out: &mut Vec<Action>) {
        self.crashes = self.crashes.saturating_add(1);
        self.address = None;
        self.exit = None;
        self.log(text.clone(), out);
        self.log(words::STOPPING.into(), out);
        self.message = Some(text);
        self.ended(None, false, now, out);
        self.enter(InstanceState::Crashed, now, out);
        self.phase = Phase::Halting { retry_at: now.mono + delay(self.crashes, jitter), gone: false };
    }

    /// Does what the time asks for.
    pub fn advance(&mut self, now: Now, jitter: f64, out: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Making { .. } => self.announce(out),
            Phase::Running(_) => self.advance_running(now, jitter, out),
            Phase::Waiting { retry_at } | Phase::Halting { retry_at, gone: true } if now.mono >= *retry_at => {
                self.restart(now, out);
                self.announce(out);
            }
            Phase::Leaving(leaving) => {
                let Some(spec) = &self.spec else { return };
                let over = leaving.kill_due(spec).is_some_and(|due| now.mono >= due);
                if over && !leaving.said_timeout {
                    leaving.said_timeout = true;
                    let text = words::exit_timeout(spec.stop_grace_seconds);
                    self.log(text, out);
                }
            }
            Phase::Waiting { .. } | Phase::Halting { .. } | Phase::Gone => {}
        }
    }

    fn restart(&mut self, now: Now, out: &mut Vec<Action>) {
        self.attempt = self.attempt.saturating_add(1);
        self.spec = self.next_spec.take().or(self.spec.take());
        self.announced = false;
        self.began = now.wall;
        self.phase = Phase::Making { seen: false };
        self.enter(InstanceState::Starting, now, out);
    }

    fn announce(&mut self, out: &mut Vec<Action>) {
        if let Some(spec) = self.spec.as_ref().filter(|_| !self.announced) {
            let text = words::starting(&spec.command);
            self.announced = true;
            self.log(text, out);
        }
    }

    fn advance_running(&mut self, now: Now, jitter: f64, out: &mut Vec<Action>) {
        let (Phase::Running(running), Some(spec)) = (&mut self.phase, &self.spec) else { return };
        if running.health.start_probe(&spec.check, now.mono) {
            let (instance, attempt, address) = (self.id, self.attempt, self.address);
            out.push(Action::Probe {
                instance,
                attempt,
                check: spec.check.clone(),
                address,
                proxy_protocol: spec.proxy_protocol,
            });
        }
        if let Some(deadline) = running.health.boot_deadline(&spec.check)
            && now.mono >= deadline
        {
            match running.asked {
                None => {
                    running.asked = Some(now.mono);
                    out.push(Action::FindListeners { instance: self.id, attempt: self.attempt, pid: self.pid });
                }
                Some(asked) if now.mono >= asked + LISTENERS_PATIENCE => {
                    let text = words::boot_timeout(&self.name, spec, running.health.last_failure.as_deref());
                    self.stop_for(text, now, jitter, out);
                }
                Some(_) => {}
            }
            return;
        }
        let (verdict, failure) = (running.health.verdict, running.health.last_failure.clone());
        match verdict {
            Verdict::Unproven => {}
            Verdict::Healthy => {
                running.up_since.get_or_insert(now.mono);
                self.was_up = true;
                self.message = None;
                self.exit = None;
                self.enter(InstanceState::Up, now, out);
            }
            Verdict::Failing => {
                running.up_since = None;
                self.message = Some(format!("fails its health check: {}", failure.as_deref().unwrap_or("unknown")));
                self.enter(InstanceState::Unhealthy, now, out);
            }
        }
    }

    fn enter(&mut self, state: InstanceState, now: Now, out: &mut Vec<Action>) {
        if self.state != state {
            self.log(words::changed(self.state, state), out);
            self.state = state;
            self.since = now.wall;
        }
    }

    /// When [`Tracked::advance`] has something to do next.
    pub fn next_due(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Running(running) => {
                let check = &self.spec.as_ref()?.check;
                let boot = match running.asked {
                    None => running.health.boot_deadline(check),
                    Some(asked) => running.health.boot_deadline(check).map(|_| asked + LISTENERS_PATIENCE),
                };
                running.health.next_due(check).into_iter().chain(boot).min()
            }
            Phase::Waiting { retry_at } | Phase::Halting { retry_at, gone: true } => Some(*retry_at),
            Phase::Leaving(leaving) if !leaving.said_timeout => leaving.kill_due(self.spec.as_ref()?),
            _ => None,
        }
    }

    pub fn report(&self) -> InstanceReport {
        InstanceReport {
            instance: self.id,
            state: self.state,
            since: self.since,
            address: self.address,
            restarts: self.attempt,
            was_up: self.was_up,
            exit: self.exit.clone(),
            message: self.message.clone(),
        }
    }

    /// What the next run of this process should know.
    pub fn remember(&self) -> Option<Remembered> {
        self.wanted_attempt().or(matches!(self.phase, Phase::Halting { .. }).then_some(self.attempt)).map(|attempt| Remembered {
            attempt,
            crashes: self.crashes,
            was_up: self.was_up,
            state: self.state,
            since: self.since,
            exit: self.exit.clone(),
            message: self.message.clone(),
        })
    }

    /// Tells an end. One that is told to stop has no message of its own.
    fn ended(&self, exit: Option<&ExitInfo>, stopped: bool, now: Now, out: &mut Vec<Action>) {
        out.push(Action::Ended(Ended {
            instance: self.id,
            app: self.app,
            name: self.name.clone(),
            attempt: self.attempt,
            started_at: self.began,
            at: exit.map_or(now.wall, |e| e.at),
            exit: exit.cloned(),
            stopped,
            message: self.message.clone().filter(|_| !stopped),
        }));
    }

    fn log(&self, text: String, out: &mut Vec<Action>) {
        out.push(Action::Log { app: self.app, process: self.name.clone(), text });
    }
}

impl Leaving {
    /// When the engine loses its patience with it.
    fn kill_due(&self, spec: &InstanceSpec) -> Option<Duration> {
        Some(self.stopping_since? + Duration::from_secs(u64::from(spec.stop_grace_seconds)))
    }
}
