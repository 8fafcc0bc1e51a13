//! Which host takes an instance: filter, then score. What is free on each host is kept between plans, in columns, so that one
//! decision reads a few numbers of each host; n placements of an app cost O(hosts + n log n) and still take the best host
//! each time.
//!
//! Invariants: what a plan promises is taken back at its end (it counts from when it is committed); the answer does not
//! depend on the order in which hosts or placements were told.

use crate::view::Placed;
use flex_model::{Host, HostId, HostState, Memory};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hosts, numbered in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Room {
    ids: Vec<HostId>,
    states: Vec<HostState>,
    /// In bytes, as are all of these.
    memory: Vec<u64>,
    /// Promised to what is placed.
    used: Vec<u64>,
    /// The same with what the plan under way adds.
    planned: Vec<u64>,
    /// For one more instance; 0 where a host takes nothing new.
    free: Vec<u64>,
    /// Of the memory how much is promised, in ten-thousandths: whole numbers compare alike everywhere.
    share: Vec<u32>,
    /// Instances of the app under decision, and on which hosts there are any.
    near: Vec<u32>,
    met: Option<Vec<usize>>,
    /// The plan under way has added something.
    promised: bool,
    /// No host has more free than this.
    free_at_most: u64,
    ready: usize,
    cordoned: usize,
    /// Fill hosts up one after another.
    pub(crate) pack: bool,
}

/// Lower is better: neighbours of the same app first, then the share of memory in use (turned round for packing), then
/// the host's number.
type Score = (u32, u32, usize);

impl Room {
    pub(crate) fn state(&self, host: HostId) -> Option<HostState> {
        self.number(host).map(|n| self.states[n])
    }

    fn number(&self, host: HostId) -> Option<usize> {
        self.ids.binary_search(&host).ok()
    }

    /// Adds a host on which so many bytes are promised, or changes it.
    pub(crate) fn set(&mut self, host: &Host, used: u64) {
        let n = match self.ids.binary_search(&host.id) {
            Ok(n) => {
                self.count(self.states[n], -1);
                n
            }
            Err(n) => {
                self.ids.insert(n, host.id);
                self.states.insert(n, host.state);
                for column in [&mut self.memory, &mut self.used, &mut self.planned, &mut self.free] {
                    column.insert(n, 0);
                }
                self.share.insert(n, 0);
                self.near.insert(n, 0);
                n
            }
        };
        self.count(host.state, 1);
        (self.states[n], self.memory[n]) = (host.state, host.memory.bytes());
        (self.used[n], self.planned[n]) = (used, used);
        self.refresh(n);
    }

    pub(crate) fn remove(&mut self, host: HostId) {
        let Some(n) = self.number(host) else { return };
        self.count(self.states[n], -1);
        self.ids.remove(n);
        self.states.remove(n);
        for column in [&mut self.memory, &mut self.used, &mut self.planned, &mut self.free] {
            column.remove(n);
        }
        self.share.remove(n);
        self.near.remove(n);
    }

    fn count(&mut self, state: HostState, by: isize) {
        match state {
            HostState::Ready => self.ready = self.ready.saturating_add_signed(by),
            HostState::Cordoned => self.cordoned = self.cordoned.saturating_add_signed(by),
            HostState::Dead => {}
        }
    }

    /// A placement came to a host.
    pub(crate) fn take(&mut self, host: HostId, memory: Memory) {
        if let Some(n) = self.number(host) {
            self.used[n] += memory.bytes();
            self.planned[n] = self.used[n];
            self.refresh(n);
        }
    }

    /// A placement went.
    pub(crate) fn give(&mut self, host: HostId, memory: Memory) {
        if let Some(n) = self.number(host) {
            self.used[n] = self.used[n].saturating_sub(memory.bytes());
            self.planned[n] = self.used[n];
            self.refresh(n);
        }
    }

    fn refresh(&mut self, n: usize) {
        let (memory, planned) = (self.memory[n], self.planned[n]);
        self.free[n] = if self.states[n] == HostState::Ready { memory.saturating_sub(planned) } else { 0 };
        self.share[n] = u32::try_from(planned.saturating_mul(10_000) / memory.max(1)).unwrap_or(u32::MAX);
        self.free_at_most = self.free_at_most.max(self.free[n]);
    }

    /// The plan is over: what it promised is so only once it is committed.
    pub(crate) fn end_plan(&mut self) {
        if !std::mem::take(&mut self.promised) {
            return;
        }
        for n in 0..self.ids.len() {
            if self.planned[n] != self.used[n] {
                self.planned[n] = self.used[n];
                self.refresh(n);
            }
        }
    }

    /// The decision about an app is over.
    pub(crate) fn end_app(&mut self) {
        for n in self.met.take().unwrap_or_default() {
            self.near[n] = 0;
        }
    }

    fn meet(&mut self, neighbours: &[&Placed]) {
        if self.met.is_some() {
            return;
        }
        let numbers: Vec<usize> = neighbours.iter().filter_map(|p| self.number(p.host)).collect();
        for n in &numbers {
            self.near[*n] += 1;
        }
        self.met = Some(numbers);
    }

    fn score(&self, n: usize) -> Score {
        (self.near[n], if self.pack { 10_000u32.saturating_sub(self.share[n]) } else { self.share[n] }, n)
    }

    /// Chooses hosts for `count` instances of an app; fewer when room runs out, with the reason for the rest. `neighbours`
    /// are the app's instances as they are before the plan; what is chosen for it afterwards is remembered.
    pub(crate) fn choose(&mut self, neighbours: &[&Placed], memory: Memory, count: usize) -> (Vec<HostId>, Option<String>) {
        if count == 0 {
            return (Vec::new(), None);
        }
        self.meet(neighbours);
        let need = need(memory);
        let mut heap = BinaryHeap::from_iter(self.best(need, count).into_iter().map(Reverse));
        let mut chosen = Vec::with_capacity(count.min(1 << 16));
        while chosen.len() < count
            && let Some(Reverse((.., n))) = heap.pop()
        {
            self.planned[n] += memory.bytes();
            self.promised = true;
            self.near[n] += 1;
            self.met.get_or_insert_default().push(n);
            self.refresh(n);
            chosen.push(self.ids[n]);
            if self.free[n] >= need {
                heap.push(Reverse(self.score(n)));
            }
        }
        let why = (chosen.len() < count).then(|| self.refusal(memory));
        (chosen, why)
    }

    /// The `count` best of the hosts that take an instance of this size. No other can be chosen before all of these were: a
    /// host that was chosen has one neighbour more, and is worse than before.
    fn best(&mut self, need: u64, count: usize) -> BinaryHeap<Score> {
        let mut best: BinaryHeap<Score> = BinaryHeap::with_capacity(count.min(self.ids.len()));
        if need > self.free_at_most {
            return best;
        }
        let (mut most, mut worst) = (0, None);
        for n in 0..self.ids.len() {
            let free = self.free[n];
            most = most.max(free);
            if free < need {
                continue;
            }
            let score = self.score(n);
            if best.len() < count {
                best.push(score);
            } else if worst.is_none_or(|w| score < w) {
                best.pop();
                best.push(score);
            } else {
                continue;
            }
            worst = if best.len() < count { None } else { best.peek().copied() };
        }
        self.free_at_most = most;
        best
    }

    /// Why none of the hosts takes one more instance of this size; `None` when one does.
    pub(crate) fn why_not(&self, memory: Memory) -> Option<String> {
        let need = need(memory);
        let fits = need <= self.free_at_most && self.free.iter().any(|free| *free >= need);
        (!fits).then(|| self.refusal(memory))
    }

    /// What stands against one more instance, by groups of hosts.
    fn refusal(&self, memory: Memory) -> String {
        let group = |n: usize, text: &str| (n > 0).then(|| format!("{n} host{}: {text}", if n == 1 { "" } else { "s" }));
        let full = group(self.ready, &format!("not enough memory for {memory}"));
        let groups: Vec<String> = [full, group(self.cordoned, "takes nothing new")].into_iter().flatten().collect();
        if groups.is_empty() { "there is no host".to_owned() } else { groups.join("; ") }
    }
}

/// What must be free: at least something, so that 0 means that a host takes nothing.
fn need(memory: Memory) -> u64 {
    memory.bytes().max(1)
}
