//! Which host takes an instance: filter, then score; one heap per app decision, so that n placements cost
//! O(hosts + n log hosts) and still take the best host each time.

use crate::plan::{ChangeKind, Plan};
use crate::view::World;
use flex_model::{AppId, Host, HostId, HostState, InstanceId, Memory};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Memory promised on each host, kept up to date while a plan grows.
pub(crate) struct Room<'a> {
    hosts: &'a BTreeMap<HostId, Host>,
    used: BTreeMap<HostId, u64>,
    /// Instances of an app on a host.
    neighbours: BTreeMap<(AppId, HostId), u64>,
    pack: bool,
}

/// Lower is better: neighbours of the same app first, then the share of memory in use (turned round for packing), then
/// the id, so that the answer does not depend on the order of hosts.
type Score = (u64, u64, HostId);

impl<'a> Room<'a> {
    pub(crate) fn of(world: &'a World, plan: &Plan) -> Self {
        let removed: BTreeSet<InstanceId> = plan
            .changes
            .iter()
            .filter_map(|c| match c.kind {
                ChangeKind::Remove { instance } => Some(instance),
                _ => None,
            })
            .collect();
        let mut room =
            Self { hosts: &world.hosts, used: BTreeMap::new(), neighbours: BTreeMap::new(), pack: world.settings.pack };
        // What is being removed still has its memory until its host says that it is gone.
        for p in world.placements.values() {
            *room.used.entry(p.host).or_default() += p.memory.bytes();
            if !removed.contains(&p.instance) {
                *room.neighbours.entry((p.app, p.host)).or_default() += 1;
            }
        }
        room
    }

    fn score(&self, app: AppId, host: &Host) -> Score {
        let used = self.used.get(&host.id).copied().unwrap_or(0);
        // In ten-thousandths, so that whole numbers compare alike everywhere.
        let share = u64::try_from(u128::from(used) * 10_000 / u128::from(host.memory.bytes().max(1))).unwrap_or(u64::MAX);
        let load = if self.pack { 10_000u64.saturating_sub(share) } else { share };
        (self.neighbours.get(&(app, host.id)).copied().unwrap_or(0), load, host.id)
    }

    /// Chooses hosts for `count` instances of an app; fewer when room runs out, with the reason for the rest.
    pub(crate) fn choose(&mut self, app: AppId, memory: Memory, count: usize) -> (Vec<HostId>, Option<String>) {
        let (mut cordoned, mut full) = (0usize, 0usize);
        let mut heap = BinaryHeap::new();
        for host in self.hosts.values() {
            if host.state != HostState::Ready {
                cordoned += usize::from(host.state == HostState::Cordoned);
            } else if self.fits(host, memory) {
                heap.push(Reverse(self.score(app, host)));
            } else {
                full += 1;
            }
        }
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count
            && let Some(Reverse((_, _, id))) = heap.pop()
        {
            let host = &self.hosts[&id];
            *self.used.entry(id).or_default() += memory.bytes();
            *self.neighbours.entry((app, id)).or_default() += 1;
            chosen.push(id);
            if self.fits(host, memory) { heap.push(Reverse(self.score(app, host))) } else { full += 1 }
        }
        let why = (chosen.len() < count).then(|| {
            let group = |n: usize, text: &str| (n > 0).then(|| format!("{n} host{}: {text}", if n == 1 { "" } else { "s" }));
            let groups: Vec<String> =
                [group(full, &format!("not enough memory for {memory}")), group(cordoned, "takes nothing new")]
                    .into_iter()
                    .flatten()
                    .collect();
            if groups.is_empty() { "there is no host".to_owned() } else { groups.join("; ") }
        });
        (chosen, why)
    }

    fn fits(&self, host: &Host, memory: Memory) -> bool {
        self.used.get(&host.id).copied().unwrap_or(0) + memory.bytes() <= host.memory.bytes()
    }
}
