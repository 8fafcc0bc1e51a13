//! What must never be, whatever happened before. The simulator asks after each step; a server may ask at any time.

use crate::view::World;
use flex_model::{HostId, Placement, PlacementPhase};
use std::collections::{BTreeMap, BTreeSet};

/// The broken invariants, a sentence each; empty when all is well.
pub fn check(world: &World) -> Vec<String> {
    let mut broken = Vec::new();
    let mut used: BTreeMap<HostId, u64> = BTreeMap::new();
    let mut indexes = BTreeSet::new();
    for p in world.placements.values() {
        *used.entry(p.host).or_default() += p.memory.bytes();
        // Two of one release share an index only while one is restarted or resized: one of them is older then.
        if p.phase == PlacementPhase::Active && !indexes.insert((p.app, &p.process, p.index, p.version, p.created_at, p.memory)) {
            broken.push(format!("{} of {} is placed twice", p.name(), p.app));
        }
        if let Some(view) = world.apps.get(&p.app) {
            broken.extend(release_problem(view, p));
        }
    }
    for (host, bytes) in used {
        if world.hosts.get(&host).is_some_and(|h| bytes > h.memory.bytes()) {
            broken.push(format!("host {host} is promised {bytes} bytes, more than it has"));
        }
    }
    broken
}

fn release_problem(view: &crate::AppView, p: &Placement) -> Option<String> {
    let release = view.releases.get(&p.version);
    match release {
        None => Some(format!("{} runs v{}, which is not known", p.name(), p.version)),
        Some(r) if !r.released => Some(format!("{} runs v{} before its release phase ended", p.name(), p.version)),
        Some(r) if r.image.is_none() => Some(format!("{} runs v{}, which has no image", p.name(), p.version)),
        _ => None,
    }
}
