//! The plan: a list of changes with their reasons. Planning again on what the plan makes gives nothing.

use crate::IdSource;
use crate::cluster::{Cluster, Entry};
use crate::rollout::AppPlan;
use crate::view::{Known, Moment, Placed, World};
use flex_model::{AppId, InstanceId, Memory, Placement, PlacementPhase, ProcessType, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// One change, with the sentence that explains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub kind: ChangeKind,
    pub reason: String,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    Place(Placement),
    /// No new requests; until the deadline at the latest.
    Drain {
        instance: InstanceId,
        deadline: Timestamp,
    },
    /// Its placement is over: its host stops it.
    Remove {
        instance: InstanceId,
    },
    /// Every instance that the formation wants of it is up.
    ReleaseSucceeded {
        app: AppId,
        version: u64,
    },
    /// It never became healthy; what was good before stays.
    ReleaseFailed {
        app: AppId,
        version: u64,
        instance: Option<InstanceId>,
    },
}

/// What should run and cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub app: AppId,
    pub process: ProcessType,
    pub index: u32,
    /// Per group of hosts: "3 hosts: not enough memory".
    pub why: String,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub pending: Vec<Pending>,
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    pub(crate) fn push(&mut self, kind: ChangeKind, reason: impl Into<String>) {
        self.changes.push(Change { kind, reason: reason.into() });
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// Decides what to change, from everything at once: what [`Cluster::plan`] decides that was told the same.
pub fn plan(world: &World, ids: &mut dyn IdSource) -> Plan {
    Cluster::of(world).plan(&world.moment(), ids)
}

impl Cluster {
    /// Decides what to change. Nothing of it counts as done before it is told.
    pub fn plan(&mut self, at: &Moment, ids: &mut dyn IdSource) -> Plan {
        let mut plan = Plan::default();
        self.wake_up(at.now);
        self.remove_lost(&mut plan);
        self.end_drains(at, &mut plan);
        let over: BTreeSet<InstanceId> = plan
            .changes
            .iter()
            .filter_map(|c| match c.kind {
                ChangeKind::Remove { instance } => Some(instance),
                _ => None,
            })
            .collect();
        // What is large has the first choice: what is small finds room beside it, but not the other way round.
        let largest = |app: &AppId| self.view(*app).and_then(|v| v.app.formation.values().map(|s| s.memory).max());
        let mut again: Vec<(Reverse<Option<Memory>>, AppId)> =
            self.dirty.union(&self.short).map(|app| (Reverse(largest(app)), *app)).collect();
        again.sort_unstable();
        for (_, app) in again {
            self.decide(app, at.now, &over, ids, &mut plan);
        }
        if let Some((first, _)) = self.due.first() {
            plan.wake(*first);
        }
        self.room.end_plan();
        plan
    }

    /// Apps whose time has come are looked at again.
    fn wake_up(&mut self, now: Timestamp) {
        if now < self.planned_at {
            // The clock was set back: what was over may be to come.
            self.dirty.extend(self.apps.keys());
        }
        self.planned_at = now;
        while let Some((wake, app)) = self.due.first().copied()
            && wake <= now
        {
            self.due.remove(&(wake, app));
            self.dirty.insert(app);
            if let Some(entry) = self.apps.get_mut(&app) {
                entry.wake = None;
            }
        }
    }

    /// What nobody wants or nobody can run.
    fn remove_lost(&self, plan: &mut Plan) {
        let mut lost: BTreeMap<InstanceId, String> = BTreeMap::new();
        for host in &self.lost {
            for (instance, app) in self.on_host.get(host).into_iter().flatten() {
                if let Some(p) = self.apps.get(app).and_then(|e| e.placed(*instance)) {
                    lost.insert(*instance, format!("{}: its host is gone", p.name()));
                }
            }
        }
        for entry in self.orphaned.iter().filter_map(|app| self.apps.get(app)) {
            lost.extend(entry.placements.iter().map(|p| (p.instance, format!("{}: its app is gone", p.name()))));
        }
        for (instance, why) in lost {
            plan.push(ChangeKind::Remove { instance }, why);
        }
    }

    /// A drained instance goes when every router has forgotten it and answers nothing through it any more, or at its
    /// deadline.
    fn end_drains(&self, at: &Moment, plan: &mut Plan) {
        let known = self.known(at.now);
        for (app, instance) in &self.draining {
            let Some(entry) = self.apps.get(app).filter(|e| e.view.is_some()) else { continue };
            let Some(p) = entry.placed(*instance).filter(|p| !self.lost.contains(&p.host)) else { continue };
            let PlacementPhase::Draining { deadline } = p.phase else { continue };
            let forgotten = at.table_without.get(instance).copied();
            let idle = forgotten.is_some_and(|revision| {
                !at.routers.is_empty() && at.routers.iter().all(|r| r.revision >= revision && !r.in_flight.contains_key(instance))
            });
            // What is known not to serve has nothing to finish.
            if idle || !p.process.is_web() || known.is_known_bad(p) {
                plan.push(ChangeKind::Remove { instance: *instance }, format!("{}: drained", p.name()));
            } else if deadline <= at.now {
                plan.push(ChangeKind::Remove { instance: *instance }, format!("{}: its time to drain is over", p.name()));
            } else {
                plan.wake(deadline);
            }
        }
    }

    /// One app's part. It is looked at again until there is nothing to change for it.
    fn decide(&mut self, app: AppId, now: Timestamp, over: &BTreeSet<InstanceId>, ids: &mut dyn IdSource, plan: &mut Plan) {
        let Self { apps, room, reports, lost, settings, due, dirty, short, .. } = self;
        let known = Known { now, settings: *settings, reports };
        let Some(Entry { view: Some(view), placements, wake: own }) = apps.get_mut(&app) else {
            dirty.remove(&app);
            short.remove(&app);
            return;
        };
        let here: Vec<&Placed> = placements.iter().filter(|p| !lost.contains(&p.host)).collect();
        let neighbours: Vec<&Placed> = here.iter().copied().filter(|p| !over.contains(&p.instance)).collect();
        let (changes, pending, before) = (plan.changes.len(), plan.pending.len(), plan.wake_at.take());
        AppPlan { known, view, placements: here, neighbours: &neighbours }.decide(room, ids, plan);
        room.end_app();
        if let Some(at) = std::mem::replace(own, plan.wake_at) {
            due.remove(&(at, app));
        }
        due.extend(plan.wake_at.map(|at| (at, app)));
        before.into_iter().for_each(|at| plan.wake(at));
        let keep = |set: &mut BTreeSet<AppId>, keep: bool| if keep { set.insert(app) } else { set.remove(&app) };
        keep(dirty, plan.changes.len() > changes);
        keep(short, plan.pending.len() > pending);
    }
}
