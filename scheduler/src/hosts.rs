//! Which host takes an instance: filter, then score; one heap per app decision, so that n placements cost
//! O(hosts + n log hosts) and still take the best host each time.

use crate::plan::{ChangeKind, Plan};
use crate::view::World;
use flex_model::{AppId, Host, HostId, HostState, InstanceId, Memory};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Memory promised on each host, kept up to date while a plan grows. Hosts are numbered in the order of their ids.
pub(crate) struct Room<'a> {
    hosts: Vec<&'a Host>,
    used: Vec<u64>,
    /// Instances of an app on a host, by the host's number.
    neighbours: BTreeMap<AppId, BTreeMap<usize, u64>>,
    pack: bool,
}

/// Lower is better: neighbours of the same app first, then the share of memory in use (turned round for packing), then
/// the host's number, so that the answer does not depend on the order in which hosts were added.
type Score = (u64, u64, usize);

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
        let numbers: BTreeMap<HostId, usize> = world.hosts.keys().enumerate().map(|(i, h)| (*h, i)).collect();
        let hosts: Vec<&Host> = world.hosts.values().collect();
        let mut used = vec![0; hosts.len()];
        let mut neighbours: BTreeMap<AppId, BTreeMap<usize, u64>> = BTreeMap::new();
        // What is being removed still has its memory until that is committed.
        for p in world.placements.values() {
            let Some(&host) = numbers.get(&p.host) else { continue };
            used[host] += p.memory.bytes();
            if !removed.contains(&p.instance) {
                *neighbours.entry(p.app).or_default().entry(host).or_default() += 1;
            }
        }
        Self { hosts, used, neighbours, pack: world.settings.pack }
    }

    fn score(&self, neighbours: u64, host: usize) -> Score {
        // In ten-thousandths, so that whole numbers compare alike everywhere.
        let share = u128::from(self.used[host]) * 10_000 / u128::from(self.hosts[host].memory.bytes().max(1));
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        (neighbours, if self.pack { 10_000u64.saturating_sub(share) } else { share }, host)
    }

    /// Chooses hosts for `count` instances of an app; fewer when room runs out, with the reason for the rest.
    pub(crate) fn choose(&mut self, app: AppId, memory: Memory, count: usize) -> (Vec<HostId>, Option<String>) {
        if count == 0 {
            return (Vec::new(), None);
        }
        let (mut cordoned, mut full) = (0usize, 0usize);
        let mut near = self.neighbours.remove(&app).unwrap_or_default();
        let mut scores = Vec::with_capacity(self.hosts.len());
        for (number, host) in self.hosts.iter().enumerate() {
            if host.state != HostState::Ready {
                cordoned += usize::from(host.state == HostState::Cordoned);
            } else if self.fits(number, memory) {
                scores.push(Reverse(self.score(near.get(&number).copied().unwrap_or(0), number)));
            } else {
                full += 1;
            }
        }
        let mut heap = BinaryHeap::from(scores);
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count
            && let Some(Reverse((neighbours, _, number))) = heap.pop()
        {
            self.used[number] += memory.bytes();
            near.insert(number, neighbours + 1);
            chosen.push(self.hosts[number].id);
            if self.fits(number, memory) { heap.push(Reverse(self.score(neighbours + 1, number))) } else { full += 1 }
        }
        self.neighbours.insert(app, near);
        let why = (chosen.len() < count).then(|| refusal(full, cordoned, memory));
        (chosen, why)
    }

    /// Why none of the hosts takes one more instance of this size; `None` when one does.
    pub(crate) fn why_not(&self, memory: Memory) -> Option<String> {
        let ready = |n: usize| self.hosts[n].state == HostState::Ready;
        if (0..self.hosts.len()).any(|n| ready(n) && self.fits(n, memory)) {
            return None;
        }
        let full = (0..self.hosts.len()).filter(|n| ready(*n)).count();
        let cordoned = self.hosts.iter().filter(|h| h.state == HostState::Cordoned).count();
        Some(refusal(full, cordoned, memory))
    }

    fn fits(&self, host: usize, memory: Memory) -> bool {
        self.used[host] + memory.bytes() <= self.hosts[host].memory.bytes()
    }
}

/// What stands against one more instance, by groups of hosts.
fn refusal(full: usize, cordoned: usize, memory: Memory) -> String {
    let group = |n: usize, text: &str| (n > 0).then(|| format!("{n} host{}: {text}", if n == 1 { "" } else { "s" }));
    let groups: Vec<String> = [group(full, &format!("not enough memory for {memory}")), group(cordoned, "takes nothing new")]
        .into_iter()
        .flatten()
        .collect();
    if groups.is_empty() { "there is no host".to_owned() } else { groups.join("; ") }
}
