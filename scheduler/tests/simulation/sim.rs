//! One run: a controller around the planner, and the questions that are asked after each of its steps.

use crate::fleet::{Agent, Kind, Order, Rng, Router, seconds};
use flex_model::{
    App, AppId, Canary, Host, HostId, HostState, ImageRef, InstanceId, InstanceState, Memory, Placement, PlacementPhase,
    ProcessScale, ProcessSpec, ProcessType, Release, ReleaseId, ReleaseStatus, RouteTable, Timestamp, UserId, Uuid,
};
use flex_scheduler::{AppView, ChangeKind, IdSource, Plan, ReportView, World, check, plan, routes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Seconds of trouble, and of quiet after it. Quiet outlasts a roll-out's deadline (180 s) and a drain (30 s), twice.
const TROUBLE: i64 = 120;
const QUIET: i64 = 420;
const MAX_WEB: u64 = 4;

#[derive(Clone)]
struct Ids(u128);

impl IdSource for Ids {
    fn instance(&mut self) -> InstanceId {
        self.0 += 1;
        // Scattered, so that the order of ids is not the order of making.
        InstanceId(Uuid::from_u128(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
    }
}

pub struct Sim {
    rng: Rng,
    ids: Ids,
    now: i64,
    noisy: bool,
    /// So little memory that not everything finds a place.
    tight: bool,
    world: World,
    kinds: BTreeMap<(AppId, u64), Kind>,
    agents: BTreeMap<HostId, Agent>,
    routers: Vec<Router>,
    /// Reports on their way.
    reports: Vec<(i64, flex_model::Report)>,
    table: RouteTable,
    epoch: u64,
    revision: u64,
}

type Outcome = Result<(), String>;

fn ensure(good: bool, text: impl FnOnce() -> String) -> Outcome {
    if good { Ok(()) } else { Err(text()) }
}

fn id(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n))
}

impl Sim {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let tight = rng.percent(25);
        let mut world = World::default();
        for n in 0..2 + rng.below(3) {
            let host = Host {
                id: HostId(id(n + 1)),
                name: format!("h{n}"),
                state: HostState::Ready,
                memory: Memory::from_mib(if tight { 2560 } else { 24 << 10 }),
                cpu_millis: 2000,
                labels: BTreeMap::new(),
                created_at: Timestamp::default(),
            };
            world.hosts.insert(host.id, host);
        }
        for n in 0..1 + rng.below(3) {
            let app = new_app(n);
            world.apps.insert(
                app.id,
                AppView {
                    app: Arc::new(app),
                    releases: BTreeMap::new(),
                    domains: Vec::new(),
                    routes: Vec::new(),
                    routing: Arc::default(),
                },
            );
        }
        let agents = world.hosts.keys().map(|h| (*h, Agent::default())).collect();
        let routers = (0..1 + rng.below(2)).map(|n| Router { name: format!("r{n}"), ..Router::default() }).collect();
        let (kinds, reports) = (BTreeMap::new(), Vec::new());
        let (noisy, table) = (true, RouteTable::default());
        Self { rng, ids: Ids(0), now: 1000, noisy, tight, world, kinds, agents, routers, reports, table, epoch: 1, revision: 1 }
    }

    pub fn run(mut self) -> Outcome {
        for _ in 0..TROUBLE {
            if self.rng.percent(25) {
                self.trouble()?;
            }
            self.second()?;
        }
        self.calm();
        let calm = self.now;
        let mut outcome = Ok(());
        while self.now < calm + QUIET {
            self.second()?;
            outcome = if self.tight { Ok(()) } else { self.converged() };
            // Longer than the quiet that the slowest of hosts, reports and routers need to undo it.
            if outcome.is_ok() && self.now > calm + 60 {
                break;
            }
        }
        outcome
    }

    fn second(&mut self) -> Outcome {
        self.now += 1;
        self.world.now = seconds(self.now);
        for (host, agent) in &mut self.agents {
            agent.tick(self.now, &self.kinds, &mut self.rng, self.noisy);
            if !agent.off && agent.silent_until <= self.now {
                let delay = if self.noisy { i64::try_from(self.rng.below(4)).unwrap_or(0) } else { 0 };
                self.reports.extend(agent.report(*host, self.now).map(|r| (self.now + delay, r)));
            }
        }
        self.deliver_reports();
        for router in &mut self.routers {
            router.tick(self.now, &mut self.rng);
        }
        let now = self.now;
        self.controller().map_err(|problem| format!("second {now}: {problem}"))
    }

    fn deliver_reports(&mut self) {
        let (arrived, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.reports).into_iter().partition(|(at, _)| *at <= self.now);
        self.reports = rest;
        for (_, report) in arrived {
            let counts = report.epoch == self.epoch;
            let known = self.world.reports.get(&report.host);
            if known.is_none_or(|k| k.report.at < report.at && (counts || !k.counts)) {
                self.world.reports.insert(report.host, ReportView { report: Arc::new(report), counts });
            }
        }
    }

    fn controller(&mut self) -> Outcome {
        // Releases leave their release phase after a while.
        for view in self.world.apps.values_mut() {
            let done = |r: &Release| !r.released && r.created_at.plus(std::time::Duration::from_secs(3)) <= self.world.now;
            for release in view.releases.values_mut().filter(|r| done(r)) {
                let now = self.world.now;
                *release = Arc::new(Release { released: true, updated_at: now, ..(**release).clone() });
            }
        }
        let mut rounds = 0;
        loop {
            self.refresh();
            let next = plan(&self.world, &mut self.ids.clone());
            ensure(next == plan(&self.world, &mut self.ids.clone()), || "two answers to one question".into())?;
            if next.changes.is_empty() {
                self.judge_surge()?;
                break;
            }
            // A commit that lost against another: nothing of it may have happened.
            if self.noisy && self.rng.percent(15) {
                break;
            }
            rounds += 1;
            ensure(rounds < 12, || format!("the plan does not come to rest: {:?}", reasons(&next)))?;
            self.judge(&next)?;
            let before = routes(&self.world);
            self.apply(&next);
            self.refresh();
            self.judge_routes(&before, &next)?;
            let broken = check(&self.world);
            ensure(broken.is_empty(), || format!("{broken:?} after {:?}", reasons(&next)))?;
        }
        self.publish();
        Ok(())
    }

    fn refresh(&mut self) {
        self.world.routers = self.routers.iter().map(Router::status).collect();
        let routed: BTreeSet<InstanceId> = self.table.apps.iter().flat_map(|a| a.instances().map(|b| b.instance)).collect();
        let draining = self.world.placements.values().filter(|p| p.phase != PlacementPhase::Active).map(|p| p.instance);
        self.world.table_without = draining.filter(|i| !routed.contains(i)).map(|i| (i, self.table.revision)).collect();
    }

    fn known(&self, p: &Placement) -> Option<InstanceState> {
        let view = self.world.reports.get(&p.host).filter(|v| v.counts)?;
        view.report.instances.iter().find(|i| i.instance == p.instance).map(|i| i.state)
    }

    fn judge(&self, next: &Plan) -> Outcome {
        for change in &next.changes {
            match &change.kind {
                ChangeKind::Place(p) => {
                    let ready = self.world.hosts.get(&p.host).is_some_and(|h| h.state == HostState::Ready);
                    ensure(ready, || format!("{} was placed on a host that takes nothing", p.name()))?;
                    ensure(!self.world.placements.contains_key(&p.instance), || "an id was used twice".into())?;
                }
                ChangeKind::Remove { instance } => self.judge_remove(&self.world.placements[instance], &change.reason)?,
                ChangeKind::Drain { instance, .. } => {
                    let p = &self.world.placements[instance];
                    ensure(p.phase == PlacementPhase::Active, || format!("{} was drained twice", p.name()))?;
                }
                ChangeKind::ReleaseFailed { app, version, .. } | ChangeKind::ReleaseSucceeded { app, version } => {
                    let release = &self.world.apps[app].releases[version];
                    ensure(release.status == ReleaseStatus::Pending, || format!("v{version} was judged twice"))?;
                    let failed = matches!(change.kind, ChangeKind::ReleaseFailed { .. });
                    let works = self.kinds[&(*app, *version)].works();
                    let canary = self.world.apps[app].canary().is_some_and(|(r, _)| r.version == *version);
                    ensure(!failed || canary || self.world.apps[app].app.target == Some(*version), || {
                        format!("v{version} is judged, and is neither the target nor a canary")
                    })?;
                    ensure(failed || works || self.runs_nothing(*app, release), || {
                        format!("v{version} cannot run and counts as a success")
                    })?;
                }
            }
        }
        Ok(())
    }

    fn runs_nothing(&self, app: AppId, release: &Release) -> bool {
        let view = &self.world.apps[&app];
        let canary = view.canary().is_some_and(|(r, _)| r.version == release.version);
        let formation = &view.app.formation;
        release.processes.keys().filter(|p| p.is_web() || !canary).all(|p| formation.get(p).is_none_or(|s| s.quantity == 0))
    }

    fn judge_remove(&self, p: &Placement, reason: &str) -> Outcome {
        let host_dead = self.world.hosts.get(&p.host).is_none_or(|h| h.state == HostState::Dead);
        if !p.process.is_web() || host_dead || !self.world.apps.contains_key(&p.app) {
            return Ok(());
        }
        // Silence lets nothing go, and what is known to serve is drained first.
        let serves = matches!(self.known(p), Some(InstanceState::Up));
        match p.phase {
            PlacementPhase::Active => ensure(!serves, || format!("{} serves and was removed undrained: {reason}", p.name())),
            PlacementPhase::Draining { deadline } => {
                let used = self.routers.iter().any(|r| r.sends_to(p.instance));
                ensure(!used || !serves || deadline <= self.world.now, || {
                    format!("{} was removed before its deadline while a router used it: {reason}", p.name())
                })
            }
        }
    }

    fn judge_routes(&self, before: &[flex_model::AppRoute], next: &Plan) -> Outcome {
        let after: BTreeMap<AppId, usize> = routes(&self.world).into_iter().map(|r| (r.app, r.instances().count())).collect();
        let dead: BTreeSet<InstanceId> = next
            .changes
            .iter()
            .filter(|c| c.reason.contains("host is gone"))
            .filter_map(|c| match c.kind {
                ChangeKind::Remove { instance } => Some(instance),
                _ => None,
            })
            .collect();
        for route in before {
            let view = &self.world.apps[&route.app];
            let wants = view.app.formation.get(&ProcessType::web()).is_some_and(|s| s.quantity > 0)
                && (view.app.target.is_some() || view.app.good.is_some());
            let alive = route.instances().filter(|b| !dead.contains(&b.instance)).count();
            // A host that has not spoken to this controller may be serving or not: only what is known counts.
            let sure = route
                .instances()
                .any(|b| self.world.placements.get(&b.instance).is_some_and(|p| self.known(p) == Some(InstanceState::Up)));
            ensure(!wants || alive == 0 || !sure || after.get(&route.app).is_some_and(|n| *n > 0), || {
                format!("{} lost its last route: {:?}", route.name, reasons(next))
            })?;
        }
        Ok(())
    }

    /// Asked when the plan is at rest.
    fn judge_surge(&self) -> Outcome {
        let mut count: BTreeMap<(AppId, &ProcessType, bool), u64> = BTreeMap::new();
        // Those of silent hosts do not count: nothing may be let go of on silence, so they add up.
        let active = |p: &&Placement| p.phase == PlacementPhase::Active && self.known(p).is_some();
        for p in self.world.placements.values().filter(active) {
            // A canary's are replaced beside the others.
            let is_canary = self.world.apps.get(&p.app).and_then(|v| v.app.canary?.version) == Some(p.version);
            *count.entry((p.app, &p.process, is_canary)).or_default() += 1;
        }
        // At most the wanted ones of now, those of before, and one that is spared.
        let most = count.values().max().copied().unwrap_or(0);
        ensure(most <= 3 * MAX_WEB, || format!("{most} instances of one process type at rest"))
    }

    fn apply(&mut self, next: &Plan) {
        self.revision += 1;
        for change in &next.changes {
            match change.kind.clone() {
                ChangeKind::Place(p) => {
                    self.ids.instance();
                    self.world.placements.insert(p.instance, p);
                }
                ChangeKind::Drain { instance, deadline } => {
                    if let Some(p) = self.world.placements.get_mut(&instance) {
                        p.phase = PlacementPhase::Draining { deadline };
                    }
                }
                ChangeKind::Remove { instance } => {
                    self.world.placements.remove(&instance);
                }
                ChangeKind::ReleaseSucceeded { app, version } => {
                    self.end_release(app, version, ReleaseStatus::Succeeded);
                    self.change_app(app, |a| {
                        if a.target == Some(version) {
                            a.good = Some(version);
                        }
                    });
                }
                ChangeKind::ReleaseFailed { app, version, .. } => {
                    self.end_release(app, version, ReleaseStatus::Failed);
                    self.change_app(app, |a| {
                        a.canary = a.canary.filter(|c| c.version != Some(version));
                        if a.target == Some(version) {
                            a.target = a.good;
                        }
                    });
                }
            }
        }
    }

    fn end_release(&mut self, app: AppId, version: u64, status: ReleaseStatus) {
        if let Some(r) = self.world.apps.get_mut(&app).and_then(|v| v.releases.get_mut(&version)) {
            *r = Arc::new(Release { status, ..(**r).clone() });
        }
    }

    fn change_app(&mut self, app: AppId, change: impl FnOnce(&mut App)) {
        if let Some(view) = self.world.apps.get_mut(&app) {
            change(Arc::make_mut(&mut view.app));
        }
    }

    fn publish(&mut self) {
        for (host, agent) in &mut self.agents {
            let order = Order::of((self.revision, self.epoch), &self.world.placements, *host);
            let delay = if self.noisy { i64::try_from(self.rng.below(4)).unwrap_or(0) } else { 0 };
            if !agent.off {
                agent.inbox.push((self.now + delay, order));
            }
        }
        let apps = routes(&self.world);
        let table = RouteTable::new(self.table.revision + 1, apps);
        if table.apps != self.table.apps {
            self.table = table;
            for router in &mut self.routers {
                let delay = i64::try_from(self.rng.below(6)).unwrap_or(0);
                router.inbox.push((self.now + delay, self.table.clone()));
            }
        }
    }

    fn trouble(&mut self) -> Outcome {
        let apps: Vec<AppId> = self.world.apps.keys().copied().collect();
        let hosts: Vec<HostId> = self.world.hosts.keys().copied().collect();
        let app = apps[usize::try_from(self.rng.below(apps.len() as u64)).unwrap_or(0)];
        let host = hosts[usize::try_from(self.rng.below(hosts.len() as u64)).unwrap_or(0)];
        match self.rng.below(23) {
            0..=5 => self.deploy(app, false),
            20 => self.deploy(app, true),
            21 => self.change_app(app, |a| a.canary = None),
            22 => self.promote(app),
            6..=8 => {
                let process = if self.rng.percent(70) { ProcessType::web() } else { worker() };
                let scale = ProcessScale::default_for(u32::try_from(self.rng.below(MAX_WEB + 1)).unwrap_or(1));
                self.change_app(app, |a| {
                    a.formation.insert(process, scale);
                });
            }
            9 | 10 => {
                let key = ["", "web", "web.1"][usize::try_from(self.rng.below(3)).unwrap_or(0)];
                let now = self.world.now;
                self.change_app(app, |a| {
                    a.restarts.insert(key.to_owned(), now);
                });
            }
            11 => {
                let memory = Memory::from_mib(256 << self.rng.below(2));
                self.change_app(app, |a| a.formation.values_mut().for_each(|s| s.memory = memory));
            }
            12 => self.set_host(host, |h| h.state = if h.state == HostState::Ready { HostState::Cordoned } else { h.state }),
            13 => self.lose(host),
            14 | 15 => self.give_back(host),
            16 | 17 => {
                let pause = 1 + i64::try_from(self.rng.below(40)).unwrap_or(0);
                self.agents.entry(host).or_default().silent_until = self.now + pause;
            }
            _ => return self.restart_controller(),
        }
        Ok(())
    }

    fn set_host(&mut self, host: HostId, change: impl FnOnce(&mut Host)) {
        if let Some(h) = self.world.hosts.get_mut(&host) {
            change(h);
        }
    }

    /// The machine goes off; sometimes someone declares it dead, unless it is the last that takes anything.
    fn lose(&mut self, host: HostId) {
        let agent = self.agents.entry(host).or_default();
        agent.off = true;
        agent.reboot();
        let others = self.world.hosts.values().filter(|h| h.id != host && h.state == HostState::Ready).count();
        if others > 0 && self.rng.percent(60) {
            self.set_host(host, |h| h.state = HostState::Dead);
        }
    }

    fn give_back(&mut self, host: HostId) {
        self.agents.entry(host).or_default().off = false;
        self.set_host(host, |h| h.state = HostState::Ready);
    }

    /// A controller that has just started sees old reports only: it must let go of nothing that it would have kept.
    fn restart_controller(&mut self) -> Outcome {
        for _ in 0..12 {
            self.refresh();
            let next = plan(&self.world, &mut self.ids.clone());
            self.apply(&next);
        }
        self.epoch += 1;
        for view in self.world.reports.values_mut() {
            view.counts = false;
        }
        self.refresh();
        let next = plan(&self.world, &mut self.ids.clone());
        let rash = next.changes.iter().find(|c| match c.kind {
            ChangeKind::Remove { instance } | ChangeKind::Drain { instance, .. } => {
                self.world.placements[&instance].phase == PlacementPhase::Active
            }
            ChangeKind::ReleaseFailed { .. } | ChangeKind::ReleaseSucceeded { .. } => true,
            ChangeKind::Place(_) => false,
        });
        ensure(rash.is_none(), || format!("second {}: acts on silence: {:?}", self.now, rash.map(|c| &c.reason)))
    }

    /// What the controller does: the canary becomes what should run, and has to prove itself at full size.
    fn promote(&mut self, app: AppId) {
        let now = self.world.now;
        let Some(view) = self.world.apps.get_mut(&app) else { return };
        let rolling = view.app.target.is_some_and(|t| view.releases[&t].status == ReleaseStatus::Pending);
        let Some(version) = view.canary().map(|(r, _)| r.version).filter(|_| !rolling) else { return };
        if let Some(r) = view.releases.get_mut(&version) {
            *r = Arc::new(Release { status: ReleaseStatus::Pending, updated_at: now, ..(**r).clone() });
        }
        self.change_app(app, |a| (a.target, a.canary) = (Some(version), None));
    }

    fn deploy(&mut self, app: AppId, as_canary: bool) {
        let kind = match self.rng.below(10) {
            0..=4 => Kind::Good,
            5 | 6 => Kind::Slow(5 + i64::try_from(self.rng.below(20)).unwrap_or(0)),
            7 | 8 => Kind::Crashes,
            _ => Kind::Impossible,
        };
        let (released, now) = (self.rng.percent(70), self.world.now);
        let with_worker = self.rng.percent(70);
        let Some(view) = self.world.apps.get_mut(&app) else { return };
        let version = view.app.last_version + 1;
        self.kinds.insert((app, version), kind);
        let release = new_release(app, version, released, with_worker, now);
        view.releases.insert(version, Arc::new(release));
        let weight = 1 + u32::try_from(self.rng.below(99)).unwrap_or(0);
        self.change_app(app, |a| {
            a.last_version = version;
            if as_canary && a.good.is_some() {
                a.canary = Some(Canary { version: Some(version), weight, built: true });
            } else {
                a.target = Some(version);
            }
        });
    }

    fn calm(&mut self) {
        self.noisy = false;
        let hosts: Vec<HostId> = self.world.hosts.keys().copied().collect();
        for host in hosts {
            self.give_back(host);
        }
        for agent in self.agents.values_mut() {
            agent.silent_until = 0;
        }
    }

    fn converged(&self) -> Outcome {
        for (id, view) in &self.world.apps {
            let pending = view.app.target.filter(|v| view.releases[v].status == ReleaseStatus::Pending);
            ensure(pending.is_none(), || format!("{} never made up its mind about v{pending:?}", view.app.name))?;
            let Some(target) = view.app.target.and_then(|v| view.releases.get(&v)) else { continue };
            // A release that had nothing to run counts as good; scaled up, it may not work, and what serves besides it stays.
            if !self.kinds[&(*id, target.version)].works() {
                continue;
            }
            let mut wanted = BTreeSet::new();
            for (process, scale) in view.app.formation.iter().filter(|(p, _)| target.processes.contains_key(*p)) {
                wanted.extend((1..=scale.quantity).map(|i| format!("{process}.{i} v{}", target.version)));
            }
            if let Some((canary, weight)) = view.canary() {
                // One that proved itself has its part beside the others, however long it lasts; one that cannot is given up.
                let nothing = view.app.formation.get(&ProcessType::web()).is_none_or(|s| s.quantity == 0);
                ensure(nothing || self.kinds[&(*id, canary.version)].works() || canary.status != ReleaseStatus::Pending, || {
                    format!("{} keeps a canary that cannot run", view.app.name)
                })?;
                let web = view.app.formation.get(&ProcessType::web()).map_or(0, |s| s.quantity);
                let part = if web == 0 { 0 } else { (web * weight).div_ceil(100).max(1) };
                wanted.extend((1..=part).map(|i| format!("web.{i} v{}", canary.version)));
            }
            let mine = || self.world.placements.values().filter(|p| p.app == *id);
            let placed: Vec<String> = mine().map(|p| format!("{} v{}", p.name(), p.version)).collect();
            let set: BTreeSet<String> = placed.iter().cloned().collect();
            ensure(set == wanted && placed.len() == wanted.len(), || {
                format!("{}: wanted {wanted:?}, placed {placed:?}", view.app.name)
            })?;
            let up =
                |p: &&Placement| self.agents[&p.host].containers.get(&p.instance).is_some_and(|c| c.state == InstanceState::Up);
            // A canary counts as up, too, when it had nothing to run.
            let can_be = |p: &&Placement| self.kinds[&(*id, p.version)].works();
            let down: Vec<String> = mine().filter(can_be).filter(|p| !up(p)).map(Placement::name).collect();
            ensure(down.is_empty(), || format!("{}: not up in the end: {down:?}", view.app.name))?;
            let web = mine().filter(can_be).filter(|p| p.process.is_web()).count();
            for router in &self.routers {
                let routed = router.table.apps.iter().find(|r| r.app == *id).map_or(0, |r| r.instances().count());
                ensure(routed == web, || format!("{}: {} routes to {routed} of {web}", view.app.name, router.name))?;
            }
        }
        let running: usize = self.agents.values().map(|a| a.containers.len()).sum();
        ensure(running == self.world.placements.len(), || format!("{running} run, {} are placed", self.world.placements.len()))
    }
}

fn worker() -> ProcessType {
    "worker".parse().expect("a process type")
}

fn reasons(next: &Plan) -> Vec<&str> {
    next.changes.iter().map(|c| c.reason.as_str()).collect()
}

fn new_app(n: u64) -> App {
    App {
        id: AppId(id(100 + n)),
        name: format!("app-{n}").parse().expect("an app name"),
        owner: UserId(id(1)),
        stack: "flex-13".parse().expect("a stack"),
        stack_by_hand: false,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        maintenance: false,
        formation: BTreeMap::from([(ProcessType::web(), ProcessScale::default_for(1))]),
        deploy_branches: Vec::new(),
        buildpacks: Vec::new(),
        checks: BTreeMap::new(),
        config_rev: 0,
        last_version: 0,
        target: None,
        good: None,
        restarts: BTreeMap::new(),
        stopped: BTreeSet::new(),
        locked: None,
        stop_grace_seconds: 30,
        read_only_root: false,
        acm: false,
        canary: None,
        access_lines: None,
    }
}

fn new_release(app: AppId, version: u64, released: bool, with_worker: bool, now: Timestamp) -> Release {
    let spec = |p: ProcessType| {
        let check = flex_model::HealthCheck::default_for(&p);
        (p, ProcessSpec { command: None, check })
    };
    Release {
        id: ReleaseId(id(1000 * version)),
        app,
        version,
        status: ReleaseStatus::Pending,
        description: String::new(),
        build: None,
        slug: None,
        image: Some(ImageRef { reference: "sha256:0".into(), manifest: None }),
        has_launcher: false,
        port: None,
        commit: None,
        config_rev: 0,
        processes: [ProcessType::web()].into_iter().chain(with_worker.then(worker)).map(spec).collect(),
        routes: BTreeMap::new(),
        release_command: None,
        read_only_root: false,
        keeps_from: None,
        released,
        user: UserId(id(1)),
        created_at: now,
        updated_at: now,
        failure: None,
        superseded_by: None,
    }
}
