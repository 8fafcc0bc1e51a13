//! The simulated outside: agents that apply fenced assignments, containers that start, crash and hang, and routers that
//! take up tables late. Nothing here decides; it only does what hosts and routers do.

use flex_model::{
    AppId, HostId, InstanceId, InstanceReport, InstanceState, Placement, Report, RouteTable, RouterStatus, Timestamp,
};
use std::collections::BTreeMap;

/// The one source of chance: splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
    pub fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What the code of a release does when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// Needs this many seconds to become healthy.
    Slow(i64),
    /// Ends by itself at each start.
    Crashes,
    /// Cannot be made at all.
    Impossible,
}

impl Kind {
    pub fn works(self) -> bool {
        matches!(self, Self::Good | Self::Slow(_))
    }
}

#[derive(Debug, Clone)]
pub struct Container {
    pub state: InstanceState,
    pub since: i64,
    restarts: u32,
    was_up: bool,
    kind: Kind,
}

/// A simulated order: the fence and what to run.
#[derive(Debug, Clone)]
pub struct Order {
    pub revision: u64,
    pub epoch: u64,
    pub items: BTreeMap<InstanceId, (AppId, u64)>,
}

impl Order {
    pub fn of(assignment: (u64, u64), placements: &BTreeMap<InstanceId, Placement>, host: HostId) -> Self {
        let mine = placements.values().filter(|p| p.host == host);
        Self { revision: assignment.0, epoch: assignment.1, items: mine.map(|p| (p.instance, (p.app, p.version))).collect() }
    }
}

#[derive(Debug, Default)]
pub struct Agent {
    /// On their way, with the second of their arrival; may overtake one another.
    pub inbox: Vec<(i64, Order)>,
    pub order: Option<Order>,
    pub containers: BTreeMap<InstanceId, Container>,
    /// Says nothing before that second.
    pub silent_until: i64,
    /// The machine is off.
    pub off: bool,
}

impl Agent {
    /// One second of an agent's life.
    pub fn tick(&mut self, now: i64, kinds: &BTreeMap<(AppId, u64), Kind>, rng: &mut Rng, noisy: bool, unfenced: bool) {
        if self.off {
            return;
        }
        let (arrived, rest) = std::mem::take(&mut self.inbox).into_iter().partition(|(at, _)| *at <= now);
        self.inbox = rest;
        let arrived: Vec<(i64, Order)> = arrived;
        for (_, order) in arrived {
            // The fence: an older order than one that was seen is refused.
            if unfenced || self.order.as_ref().is_none_or(|o| o.revision < order.revision || o.epoch < order.epoch) {
                self.order = Some(order);
            }
        }
        let Some(order) = &self.order else { return };
        self.containers.retain(|id, _| order.items.contains_key(id));
        for (id, key) in &order.items {
            let kind = kinds.get(key).copied().unwrap_or(Kind::Good);
            let new = Container { state: InstanceState::Starting, since: now, restarts: 0, was_up: false, kind };
            self.containers.entry(*id).or_insert(new).tick(now, rng, noisy);
        }
    }

    /// Power lost and found: containers are gone, the last order is on disk.
    pub fn reboot(&mut self) {
        self.containers.clear();
        self.inbox.clear();
    }

    pub fn report(&self, host: HostId, now: i64) -> Option<Report> {
        let order = self.order.as_ref()?;
        let one = |(id, c): (&InstanceId, &Container)| InstanceReport {
            instance: *id,
            state: c.state,
            since: seconds(c.since),
            address: (c.state != InstanceState::Down).then(|| ([127, 0, 0, 1], 5000).into()),
            restarts: c.restarts,
            was_up: c.was_up,
            exit: None,
            message: (!c.kind.works()).then(|| "boom".to_owned()),
        };
        let instances = self.containers.iter().map(one).collect();
        Some(Report { host, epoch: order.epoch, revision: order.revision, at: seconds(now), instances, ended: Vec::new() })
    }
}

impl Container {
    fn tick(&mut self, now: i64, rng: &mut Rng, noisy: bool) {
        let age = now - self.since;
        let next = match (self.state, self.kind) {
            (InstanceState::Starting, Kind::Impossible) => Some(InstanceState::Down),
            (InstanceState::Starting, Kind::Crashes) if age >= 1 => Some(InstanceState::Crashed),
            (InstanceState::Starting, Kind::Good) if age >= 2 => Some(InstanceState::Up),
            (InstanceState::Starting, Kind::Slow(s)) if age >= s => Some(InstanceState::Up),
            (InstanceState::Up, _) if noisy && rng.percent(1) => Some(InstanceState::Crashed),
            (InstanceState::Up, _) if noisy && rng.percent(1) => Some(InstanceState::Unhealthy),
            (InstanceState::Unhealthy, _) if age >= 4 => Some(InstanceState::Up),
            (InstanceState::Crashed, _) if age >= 3 => Some(InstanceState::Starting),
            _ => None,
        };
        if let Some(next) = next {
            self.restarts += u32::from(self.state == InstanceState::Crashed);
            self.was_up |= next == InstanceState::Up;
            (self.state, self.since) = (next, now);
        }
    }
}

/// A router that takes up tables late, and whose requests last.
#[derive(Debug, Default)]
pub struct Router {
    pub name: String,
    pub inbox: Vec<(i64, RouteTable)>,
    pub table: RouteTable,
    pub in_flight: BTreeMap<InstanceId, u32>,
}

impl Router {
    pub fn tick(&mut self, now: i64, rng: &mut Rng) {
        let (arrived, rest) = std::mem::take(&mut self.inbox).into_iter().partition(|(at, _)| *at <= now);
        self.inbox = rest;
        let arrived: Vec<(i64, RouteTable)> = arrived;
        for (_, table) in arrived {
            if table.revision > self.table.revision {
                self.table = table;
            }
        }
        self.in_flight.retain(|_, _| rng.percent(70));
        for backend in self.table.apps.iter().flat_map(|a| a.instances()) {
            if rng.percent(50) {
                self.in_flight.insert(backend.instance, 1);
            }
        }
    }

    pub fn sends_to(&self, instance: InstanceId) -> bool {
        self.in_flight.contains_key(&instance)
            || self.table.apps.iter().flat_map(|a| a.instances()).any(|b| b.instance == instance)
    }

    pub fn status(&self) -> RouterStatus {
        RouterStatus {
            router: self.name.clone(),
            revision: self.table.revision,
            in_flight: self.in_flight.clone(),
            ..RouterStatus::default()
        }
    }
}

pub fn seconds(s: i64) -> Timestamp {
    Timestamp::from_micros(s * 1_000_000)
}
