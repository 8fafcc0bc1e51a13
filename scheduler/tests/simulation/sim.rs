//! One run: a controller around the planner, and the questions that are asked after each of its steps.

mod trouble;

use crate::Fault;
use crate::feed::feed;
use crate::fleet::{Agent, Kind, Order, Rng, Router, seconds};
use crate::records::{id, new_app};
use flex_model::{
    App, AppId, AppRoute, Host, HostId, HostState, InstanceId, InstanceState, Memory, Placement, PlacementPhase, ProcessType,
    Release, ReleaseStatus, RouteTable, Timestamp, Uuid,
};
use flex_scheduler::{AppView, ChangeKind, Cluster, IdSource, Plan, ReportView, RouteChanges, World, check, plan, routes};
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
    /// What the controller keeps, and what it was told.
    cluster: Cluster,
    told: World,
    routes: BTreeMap<AppId, AppRoute>,
    /// Everything that was ever committed.
    committed: BTreeSet<InstanceId>,
    fault: Option<Fault>,
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
        let (cluster, told, routes) = (Cluster::default(), World::default(), BTreeMap::new());
        Self {
            rng,
            ids: Ids(0),
            now: 1000,
            noisy,
            tight,
            world,
            cluster,
            told,
            routes,
            committed: BTreeSet::new(),
            fault: None,
            kinds,
            agents,
            routers,
            reports,
            table,
            epoch: 1,
            revision: 1,
        }
    }

    /// The same, with a planted fault.
    pub fn with(seed: u64, fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::new(seed) }
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
            let before: Vec<InstanceId> = agent.containers.keys().copied().collect();
            agent.tick(self.now, &self.kinds, &mut self.rng, self.noisy, self.fault == Some(Fault::NoFence));
            let stopped = before.iter().find(|i| !agent.containers.contains_key(*i) && self.world.placements.contains_key(*i));
            ensure(stopped.is_none(), || format!("second {}: {host} stopped what is placed there", self.now))?;
            let unknown = agent.containers.keys().find(|i| !self.committed.contains(*i));
            ensure(unknown.is_none(), || format!("second {}: {host} runs what was never committed", self.now))?;
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
            let next = self.next_plan()?;
            if next.changes.is_empty() {
                self.judge_surge()?;
                break;
            }
            // A commit that lost against another: nothing of it may have happened.
            if self.noisy && self.rng.percent(15) {
                if self.fault == Some(Fault::ActsFirst) {
                    self.act_on(&next);
                }
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
        self.publish()
    }

    /// What the planner that keeps its state answers, which must be what one answers that is told everything now.
    fn next_plan(&mut self) -> Result<Plan, String> {
        let seen = self.seen();
        feed(&mut self.cluster, &self.told, &seen, self.fault.and_then(Fault::deaf));
        let next = self.cluster.plan(&seen.moment(), &mut self.ids.clone());
        let whole = plan(&seen, &mut self.ids.clone());
        self.told = seen;
        ensure(next == whole, || format!("two answers: {:?}, and from everything {:?}", reasons(&next), reasons(&whole)))?;
        Ok(next)
    }

    /// The world as the planner sees it.
    fn seen(&self) -> World {
        let mut seen = self.world.clone();
        if self.fault == Some(Fault::SilenceIsDeath) {
            let silent = |id: &HostId| {
                let at = self.world.reports.get(id).map(|v| v.report.at);
                at.is_some_and(|at| seconds(self.now).since(at) > std::time::Duration::from_secs(5))
            };
            seen.hosts.values_mut().filter(|h| silent(&h.id)).for_each(|h| h.state = HostState::Dead);
        }
        seen
    }

    /// Sends out what a plan says before it is committed.
    fn act_on(&mut self, next: &Plan) {
        let mut placements = self.world.placements.clone();
        for change in &next.changes {
            if let ChangeKind::Place(p) = &change.kind {
                placements.insert(p.instance, p.clone());
            }
        }
        for (host, agent) in self.agents.iter_mut().filter(|(_, a)| !a.off) {
            agent.inbox.push((self.now, Order::of((self.revision + 1, self.epoch), &placements, *host)));
        }
    }

    /// The routes, of which only those are made anew that changed.
    fn next_routes(&mut self) -> Result<Vec<AppRoute>, String> {
        let seen = self.seen();
        feed(&mut self.cluster, &self.told, &seen, self.fault.and_then(Fault::deaf));
        self.told = seen;
        match self.cluster.take_routes() {
            RouteChanges::All(all) => self.routes = all.into_iter().map(|r| (r.app, r)).collect(),
            RouteChanges::Some { changed, gone } => {
                self.routes.extend(changed.into_iter().map(|r| (r.app, r)));
                self.routes.retain(|app, _| !gone.contains(app));
            }
        }
        let (kept, whole) = (self.routes.values().cloned().collect(), routes(&self.world));
        ensure(kept == whole, || format!("kept routes differ: {kept:?}, and from everything {whole:?}"))?;
        Ok(kept)
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
                    self.committed.insert(p.instance);
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

    fn publish(&mut self) -> Outcome {
        for (host, agent) in &mut self.agents {
            let order = Order::of((self.revision, self.epoch), &self.world.placements, *host);
            let delay = if self.noisy { i64::try_from(self.rng.below(4)).unwrap_or(0) } else { 0 };
            if !agent.off {
                agent.inbox.push((self.now + delay, order));
            }
        }
        let apps = self.next_routes()?;
        let table = RouteTable::new(self.table.revision + 1, apps);
        if table.apps != self.table.apps {
            self.table = table;
            for router in &mut self.routers {
                let delay = i64::try_from(self.rng.below(6)).unwrap_or(0);
                router.inbox.push((self.now + delay, self.table.clone()));
            }
        }
        Ok(())
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

fn reasons(next: &Plan) -> Vec<&str> {
    next.changes.iter().map(|c| c.reason.as_str()).collect()
}
