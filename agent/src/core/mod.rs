//! The agent's decisions: what the engine should be told, what is healthy, what the report says. Pure: events and the time
//! come in, actions go out; it can be run again with the same event and does nothing more.
//!
//! Invariants:
//! - nothing is asked of the engine before an assignment is known and the engine was looked at once;
//! - an instance is out of the desired list only when no assignment wants it, or while it is stopped for not starting in time;
//! - attempts of an instance only grow.

mod backoff;
mod health;
mod instance;
mod words;

use flex_model::{
    AppId, Assignment, Ended, ExitInfo, HealthCheck, InstanceId, InstanceReport, InstanceState, Report, Timestamp, WorkItem,
};
use flex_runtime::{Desired, Observed};
use instance::Tracked;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

/// The time: on a clock that never jumps, for decisions, and the wall's, for people.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub mono: Duration,
    pub wall: Timestamp,
}

/// Ends that each report tells again: more than end between two reports, even where a host is emptied.
const TOLD_ENDS: usize = 256;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The fence let this assignment in.
    Assigned(Arc<Assignment>),
    /// All that the engine has.
    Observed(Vec<Observed>),
    /// A probe's answer.
    Probed { instance: InstanceId, attempt: u32, result: Result<(), String> },
    /// The sockets that an instance listens on.
    Listens { instance: InstanceId, attempt: u32, sockets: Vec<SocketAddr> },
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a probe; its answer is [`Event::Probed`].
    Probe {
        instance: InstanceId,
        attempt: u32,
        check: HealthCheck,
        address: Option<SocketAddr>,
        proxy_protocol: Option<flex_model::ProxyVersion>,
    },
    /// Look what it listens on; the answer is [`Event::Listens`].
    FindListeners { instance: InstanceId, attempt: u32, pid: Option<u32> },
    /// A start of an instance ended: to be told in reports.
    Ended(Ended),
    /// A line of the platform in the app's log.
    Log { app: AppId, process: String, text: String },
}

/// What outlives the agent of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    attempt: u32,
    crashes: u32,
    was_up: bool,
    state: InstanceState,
    since: Timestamp,
    exit: Option<ExitInfo>,
    message: Option<String>,
}

/// What outlives the agent of all instances.
pub type Memory = BTreeMap<InstanceId, Remembered>;

/// The decisions' state.
#[derive(Debug, Default)]
pub struct Core {
    assignment: Option<Arc<Assignment>>,
    /// What the engine had when it was looked at last; none: not yet since this process started.
    observed: Option<BTreeMap<InstanceId, Observed>>,
    instances: BTreeMap<InstanceId, Tracked>,
    /// The newest ends.
    ended: VecDeque<Ended>,
    /// From before this process started, until the instance is met.
    memory: Memory,
}

impl Core {
    /// Starts with what an earlier run remembered.
    pub fn new(memory: Memory) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Takes an event in and says what to do. `jitter` in 0..1 spreads the retries of crashed instances.
    pub fn step(&mut self, event: Event, now: Now, jitter: f64) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Assigned(assignment) => {
                self.assign(&assignment, now, &mut out);
            }
            Event::Observed(observed) => self.observed = Some(newest_of_each(observed)),
            Event::Probed { instance, attempt, result } => {
                if let Some(t) = self.instances.get_mut(&instance) {
                    t.probed(attempt, now, result);
                }
            }
            Event::Listens { instance, attempt, sockets } => {
                if let Some(t) = self.instances.get_mut(&instance) {
                    t.boot_timed_out(attempt, &sockets, now, jitter, &mut out);
                }
            }
            Event::Tick => {}
        }
        self.look(now, jitter, &mut out);
        let (ends, out): (Vec<Action>, Vec<Action>) = out.into_iter().partition(|a| matches!(a, Action::Ended(_)));
        self.ended.extend(ends.into_iter().filter_map(|a| match a {
            Action::Ended(e) => Some(e),
            _ => None,
        }));
        let surplus = self.ended.len().saturating_sub(TOLD_ENDS);
        self.ended.drain(..surplus);
        out
    }

    fn assign(&mut self, assignment: &Arc<Assignment>, now: Now, out: &mut Vec<Action>) {
        let wanted: BTreeSet<InstanceId> = assignment.items.iter().map(|i| i.instance).collect();
        for (id, t) in &mut self.instances {
            if !wanted.contains(id) {
                t.leave(now, out);
            }
        }
        self.instances.retain(|_, t| !t.is_gone());
        for item in &assignment.items {
            match self.instances.get_mut(&item.instance) {
                Some(t) => t.want(item, now),
                None => {
                    let remembered = self.memory.remove(&item.instance);
                    self.instances.insert(item.instance, Tracked::placed(item, remembered, now));
                }
            }
        }
        self.assignment = Some(assignment.clone());
    }

    /// Holds what the engine has against what is wanted.
    fn look(&mut self, now: Now, jitter: f64, out: &mut Vec<Action>) {
        let (Some(observed), Some(_)) = (&self.observed, &self.assignment) else { return };
        for o in observed.values() {
            self.instances.entry(o.instance).or_insert_with(|| Tracked::stray(o, now));
        }
        for (id, t) in &mut self.instances {
            t.seen(observed.get(id), now, jitter, out);
            t.advance(now, jitter, out);
        }
        self.instances.retain(|_, t| !t.is_gone());
    }

    /// What the engine should run; none while nothing may be asked of it.
    pub fn desired(&self) -> Option<Vec<Desired>> {
        let assignment = self.assignment.as_ref().filter(|_| self.observed.is_some())?;
        let want = |item: &WorkItem| {
            let (attempt, spec) = self.instances.get(&item.instance)?.wanted()?;
            Some(Desired {
                instance: item.instance,
                app: item.app,
                app_name: item.app_name.to_string(),
                name: item.name.clone(),
                version: item.version,
                attempt,
                spec: spec.clone(),
            })
        };
        Some(assignment.items.iter().filter_map(want).collect())
    }

    /// The instances' part of the report; none before the engine was looked at.
    pub fn instances(&self) -> Option<Vec<InstanceReport>> {
        self.observed.as_ref().map(|_| self.instances.values().map(Tracked::report).collect())
    }

    /// All that the host says; none while it would not be the whole truth.
    pub fn report(&self, now: Now) -> Option<Report> {
        let assignment = self.assignment.as_ref()?;
        let instances = self.instances()?;
        let (epoch, revision) = (assignment.epoch, assignment.revision);
        Some(Report {
            host: assignment.host,
            epoch,
            revision,
            at: now.wall,
            instances,
            ended: self.ended.iter().cloned().collect(),
        })
    }

    /// What the next run should remember.
    pub fn memory(&self) -> Memory {
        let mut memory: Memory = self.instances.iter().filter_map(|(id, t)| Some((*id, t.remember()?))).collect();
        if self.observed.is_none() {
            memory.extend(self.memory.clone());
        }
        memory
    }

    /// When [`Event::Tick`] has something to do next.
    pub fn next_due(&self) -> Option<Duration> {
        self.instances.values().filter_map(Tracked::next_due).min()
    }
}

/// An old incarnation may still stop beside the new one: the new one counts.
fn newest_of_each(observed: Vec<Observed>) -> BTreeMap<InstanceId, Observed> {
    let mut newest: BTreeMap<InstanceId, Observed> = BTreeMap::new();
    for o in observed {
        if newest.get(&o.instance).is_none_or(|known| known.attempt < o.attempt) {
            newest.insert(o.instance, o);
        }
    }
    newest
}

#[cfg(test)]
mod chance;
#[cfg(test)]
pub mod tests;
