//! Tells a cluster what differs between two worlds, as a controller tells it what it reads of changes.

use flex_model::HostId;
use flex_scheduler::{Cluster, World};

/// A kind of change that is not told: what a fault in a change feed would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test is deaf")]
pub enum Deaf {
    Apps,
    Hosts,
    Placements,
    Reports,
}

pub fn feed(cluster: &mut Cluster, before: &World, after: &World, deaf: Option<Deaf>) {
    let hears = |kind| deaf != Some(kind);
    if hears(Deaf::Apps) {
        for (id, view) in after.apps.iter().filter(|(id, view)| before.apps.get(*id) != Some(*view)) {
            assert_eq!(*id, view.app.id);
            cluster.set_app(view.clone());
        }
        before.apps.keys().filter(|id| !after.apps.contains_key(*id)).for_each(|id| cluster.remove_app(*id));
    }
    // Hosts after placements and before them: the order must not matter.
    let placements_first = after.now.micros() % 2_000_000 == 0;
    if !placements_first && hears(Deaf::Hosts) {
        hosts(cluster, before, after);
    }
    if hears(Deaf::Placements) {
        let changed = after.placements.iter().filter(|(id, p)| before.placements.get(*id) != Some(*p));
        changed.for_each(|(_, p)| cluster.set_placement(p));
        let gone = before.placements.values().filter(|p| !after.placements.contains_key(&p.instance));
        gone.for_each(|p| cluster.remove_placement(p.app, p.instance));
    }
    if placements_first && hears(Deaf::Hosts) {
        hosts(cluster, before, after);
    }
    if hears(Deaf::Reports) {
        let changed = after.reports.iter().filter(|(id, view)| before.reports.get(*id) != Some(*view));
        changed.for_each(|(id, view)| cluster.set_report(*id, view.clone()));
        before.reports.keys().filter(|id| !after.reports.contains_key(*id)).for_each(|id| cluster.remove_report(*id));
    }
}

fn hosts(cluster: &mut Cluster, before: &World, after: &World) {
    after.hosts.iter().filter(|(id, host)| before.hosts.get(*id) != Some(*host)).for_each(|(_, host)| cluster.set_host(host));
    let gone: Vec<HostId> = before.hosts.keys().copied().filter(|id| !after.hosts.contains_key(id)).collect();
    gone.into_iter().for_each(|id| cluster.remove_host(id));
}
