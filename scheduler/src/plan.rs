//! The plan: a list of changes with their reasons. Planning again on what the plan makes gives nothing.

use crate::rollout::AppPlan;
use crate::view::World;
use crate::{IdSource, hosts::Room};
use flex_model::{AppId, HostState, InstanceId, Placement, PlacementPhase, ProcessType, Timestamp};
use std::collections::BTreeMap;

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

/// Decides what to change.
pub fn plan(world: &World, ids: &mut dyn IdSource) -> Plan {
    let mut plan = Plan::default();
    let mut by_app: BTreeMap<AppId, Vec<&Placement>> = BTreeMap::new();
    for p in world.placements.values() {
        let host_is_gone = world.hosts.get(&p.host).is_none_or(|h| h.state == HostState::Dead);
        if !world.apps.contains_key(&p.app) {
            plan.push(ChangeKind::Remove { instance: p.instance }, format!("{}: its app is gone", p.name()));
        } else if host_is_gone {
            plan.push(ChangeKind::Remove { instance: p.instance }, format!("{}: its host is gone", p.name()));
        } else {
            by_app.entry(p.app).or_default().push(p);
        }
    }
    end_drains(world, &by_app, &mut plan);
    let mut room = Room::of(world, &plan);
    for (id, view) in &world.apps {
        let placements = by_app.remove(id).unwrap_or_default();
        AppPlan { world, view, placements }.decide(&mut room, ids, &mut plan);
    }
    plan
}

/// A drained instance goes when every router has forgotten it and answers nothing through it any more, or at its deadline.
fn end_drains(world: &World, by_app: &BTreeMap<AppId, Vec<&Placement>>, plan: &mut Plan) {
    for p in by_app.values().flatten() {
        let PlacementPhase::Draining { deadline } = p.phase else { continue };
        let forgotten = world.table_without.get(&p.instance).copied();
        let idle = forgotten.is_some_and(|revision| {
            !world.routers.is_empty()
                && world.routers.iter().all(|r| r.revision >= revision && !r.in_flight.contains_key(&p.instance))
        });
        // What is known not to serve has nothing to finish.
        if idle || !p.process.is_web() || world.is_known_bad(p) {
            plan.push(ChangeKind::Remove { instance: p.instance }, format!("{}: drained", p.name()));
        } else if deadline <= world.now {
            plan.push(ChangeKind::Remove { instance: p.instance }, format!("{}: its time to drain is over", p.name()));
        } else {
            plan.wake(deadline);
        }
    }
}
