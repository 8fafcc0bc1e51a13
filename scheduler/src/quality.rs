//! How good the planner's placements are, beside the best that there are.

use crate::bench::{app, commit, host};
use crate::view::{Moment, Settings};
use crate::{ChangeKind, Cluster, IdSource};
use flex_model::{AppId, HostId, HostState, InstanceId, Memory, Uuid};
use std::collections::BTreeMap;

/// Sums over small cases that are drawn by number, the same each time.
pub(crate) struct Small {
    pub cases: usize,
    /// Memory of what the planner placed, beside that of the most that can be placed.
    pub placed_percent: f64,
    /// Pairs of instances of one app on one host, in the cases where the planner places as much as can be placed, and the
    /// fewest with which as much can be placed.
    pub shared: usize,
    pub fewest_shared: usize,
}

struct Ids(u128);

impl IdSource for Ids {
    fn instance(&mut self) -> InstanceId {
        self.0 += 1;
        InstanceId(Uuid::from_u128(self.0))
    }
}

/// Numbers that look drawn.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// Memory of hosts, and of each app how many instances of which memory, in MiB.
struct Case {
    hosts: Vec<u64>,
    apps: Vec<(u32, u64)>,
}

fn case(draw: &mut Draw) -> Case {
    let hosts = (0..2 + draw.below(3)).map(|_| 1024 * (1 + draw.below(4))).collect();
    let apps = (0..1 + draw.below(3)).map(|_| (1 + draw.below(3) as u32, 256 * (1 + draw.below(5)))).collect();
    Case { hosts, apps }
}

/// What the planner makes of it: memory placed, and pairs that share a host.
fn planned(case: &Case, pack: bool) -> (u64, usize, usize) {
    let mut cluster = Cluster::new(Settings { pack, ..Settings::default() });
    for (n, mib) in case.hosts.iter().enumerate() {
        cluster.set_host(&host(HostId(Uuid::from_u128(n as u128 + 1)), HostState::Ready, *mib));
    }
    for (n, (count, mib)) in case.apps.iter().enumerate() {
        cluster.set_app(app(n as u128, *count, Memory::from_mib(*mib)));
    }
    let plan = cluster.plan(&Moment::default(), &mut Ids(0));
    let mut together: BTreeMap<(AppId, HostId), usize> = BTreeMap::new();
    let mut placed = 0;
    for change in &plan.changes {
        if let ChangeKind::Place(p) = &change.kind {
            placed += p.memory.mib();
            *together.entry((p.app, p.host)).or_default() += 1;
        }
    }
    commit(&mut cluster, plan);
    (placed, together.values().map(|n| n * (n - 1) / 2).sum(), cluster.hosts_in_use().count())
}

/// The best of all the ways: the most memory, then the fewest pairs.
struct Search<'a> {
    instances: &'a [(usize, u64)],
    on: Vec<Vec<usize>>,
    free: Vec<u64>,
    best: (u64, usize),
}

impl Search<'_> {
    fn go(&mut self, at: usize, placed: u64, pairs: usize) {
        let Some(&(app, mib)) = self.instances.get(at) else {
            if placed > self.best.0 || (placed == self.best.0 && pairs < self.best.1) {
                self.best = (placed, pairs);
            }
            return;
        };
        let left: u64 = self.instances[at..].iter().map(|(_, mib)| mib).sum();
        if placed + left < self.best.0 || (placed + left == self.best.0 && pairs >= self.best.1) {
            return;
        }
        for host in 0..self.free.len() {
            if self.free[host] >= mib {
                let beside = self.on[host].iter().filter(|a| **a == app).count();
                self.free[host] -= mib;
                self.on[host].push(app);
                self.go(at + 1, placed + mib, pairs + beside);
                self.on[host].pop();
                self.free[host] += mib;
            }
        }
        self.go(at + 1, placed, pairs);
    }
}

/// Two to four hosts, one to nine instances.
pub(crate) fn against_brute_force(cases: usize) -> Small {
    let mut draw = Draw(1);
    let (mut placed, mut most) = (0, 0);
    let mut sum = Small { cases, placed_percent: 0.0, shared: 0, fewest_shared: 0 };
    for _ in 0..cases {
        let case = case(&mut draw);
        let instances: Vec<(usize, u64)> =
            case.apps.iter().enumerate().flat_map(|(app, (count, mib))| (0..*count).map(move |_| (app, *mib))).collect();
        let on = vec![Vec::new(); case.hosts.len()];
        let mut search = Search { instances: &instances, on, free: case.hosts.clone(), best: (0, usize::MAX) };
        search.go(0, 0, 0);
        let (mine, shared, _) = planned(&case, false);
        placed += mine;
        most += search.best.0;
        if mine == search.best.0 {
            sum.shared += shared;
            sum.fewest_shared += search.best.1;
        }
    }
    sum.placed_percent = placed as f64 * 100.0 / most.max(1) as f64;
    sum
}

/// Hosts in use when packing, beside as many as the memory alone would fill.
pub(crate) fn against_volume() -> f64 {
    const HOST_MIB: u64 = 16 << 10;
    let mut draw = Draw(7);
    let apps: Vec<(u32, u64)> = (0..600).map(|_| (1 + draw.below(12) as u32, 256 * (1 + draw.below(8)))).collect();
    let volume: u64 = apps.iter().map(|(count, mib)| u64::from(*count) * mib).sum();
    let bound = volume.div_ceil(HOST_MIB);
    let case = Case { hosts: vec![HOST_MIB; bound as usize * 3], apps };
    let (placed, _, used) = planned(&case, true);
    assert_eq!(placed, volume, "three times the room is enough");
    used as f64 / bound as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within what is wanted of it: 2 % of the best in small cases, 10 % over the volume when packing.
    #[test]
    fn placements_are_nearly_the_best() {
        let small = against_brute_force(60);
        assert!(small.placed_percent >= 98.0, "{} % of the most", small.placed_percent);
        assert!(small.shared >= small.fewest_shared);
        let ratio = against_volume();
        assert!((1.0..=1.1).contains(&ratio), "{ratio}");
    }
}
