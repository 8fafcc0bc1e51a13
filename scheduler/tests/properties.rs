//! What holds of one plan over any cluster, however it came to be: sizes, states, releases, reports and drains are drawn
//! at random, not reached step by step as in the simulator.

mod changes;

use flex_model::{
    App, AppId, Host, HostId, HostState, ImageRef, InstanceId, InstanceReport, InstanceState, Memory, Placement, PlacementPhase,
    ProcessScale, ProcessSpec, ProcessType, Release, ReleaseId, ReleaseStatus, Report, Timestamp, UserId, Uuid,
};
use flex_model::{AppRoute, HealthCheck};
use flex_scheduler::{AppView, Change, ChangeKind, IdSource, Plan, ReportView, World, plan, routes};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NOW: i64 = 1_000_000;

#[derive(Clone)]
struct Ids(u128);

impl IdSource for Ids {
    fn instance(&mut self) -> InstanceId {
        self.0 += 1;
        InstanceId(Uuid::from_u128(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
    }
}

fn seconds(s: i64) -> Timestamp {
    Timestamp::from_micros(s * 1_000_000)
}

/// A placement as drawn: what of the cluster it is in, and what its host says of it.
#[derive(Debug, Clone)]
struct Drawn {
    app: usize,
    worker: bool,
    index: u32,
    version: u64,
    host: usize,
    state: Option<InstanceState>,
    was_up: bool,
    restarts: u32,
    /// Seconds until the end of its drain; active if none.
    drain: Option<i64>,
}

#[derive(Debug, Clone)]
struct DrawnApp {
    web: u32,
    worker: u32,
    mib: u64,
    target: u64,
    good: Option<u64>,
    target_is: ReleaseStatus,
    released: bool,
    /// Seconds since the target was made.
    age: i64,
}

#[derive(Debug, Clone)]
struct DrawnHost {
    mib: u64,
    state: HostState,
    /// Whether it spoke, and if so whether to this controller.
    counts: Option<bool>,
}

fn hosts() -> impl Strategy<Value = Vec<DrawnHost>> {
    let state = prop_oneof![6 => Just(HostState::Ready), 1 => Just(HostState::Cordoned), 1 => Just(HostState::Dead)];
    let counts = prop_oneof![6 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)];
    let host = (512u64..4096, state, counts).prop_map(|(mib, state, counts)| DrawnHost { mib, state, counts });
    prop::collection::vec(host, 0..5)
}

fn apps() -> impl Strategy<Value = Vec<DrawnApp>> {
    let status =
        prop_oneof![3 => Just(ReleaseStatus::Pending), 3 => Just(ReleaseStatus::Succeeded), 1 => Just(ReleaseStatus::Failed)];
    let app = (0u32..5, 0u32..3, 64u64..900, 1u64..4, prop::option::of(1u64..4), status, any::<bool>(), 0i64..400);
    let app = app.prop_map(|(web, worker, mib, target, good, target_is, released, age)| DrawnApp {
        web,
        worker,
        mib,
        target,
        good: good.map(|g| g.min(target)),
        target_is,
        // Only what waits for its release phase is not released.
        released: released || target_is != ReleaseStatus::Pending,
        age,
    });
    prop::collection::vec(app, 1..4)
}

fn placements() -> impl Strategy<Value = Vec<Drawn>> {
    let state = prop::option::of(prop_oneof![
        6 => Just(InstanceState::Up),
        2 => Just(InstanceState::Starting),
        1 => Just(InstanceState::Unhealthy),
        1 => Just(InstanceState::Crashed),
        1 => Just(InstanceState::Down),
    ]);
    let drain = prop_oneof![5 => Just(None), 1 => (-10i64..30).prop_map(Some)];
    let one = (0usize..8, prop::bool::weighted(0.2), 1u32..6, 1u64..4, 0usize..8, state, any::<bool>(), 0u32..3, drain);
    let one = one.prop_map(|(app, worker, index, version, host, state, was_up, restarts, drain)| Drawn {
        app,
        worker,
        index,
        version,
        host,
        state,
        was_up: was_up || state == Some(InstanceState::Up),
        restarts,
        drain,
    });
    prop::collection::vec(one, 0..14)
}

prop_compose! {
    fn worlds()(hosts in hosts(), apps in apps(), placements in placements()) -> World {
        let mut world = World { now: seconds(NOW), ..World::default() };
        for (n, drawn) in hosts.iter().enumerate() {
            let host = host(n, drawn);
            world.hosts.insert(host.id, host);
        }
        for (n, drawn) in apps.iter().enumerate() {
            let view = app_view(n, drawn);
            world.apps.insert(view.app.id, view);
        }
        add_placements(&mut world, &hosts, &apps, placements);
        world
    }
}

fn host(n: usize, drawn: &DrawnHost) -> Host {
    Host {
        id: HostId(Uuid::from_u128(n as u128 + 1)),
        name: format!("h{n}"),
        state: drawn.state,
        memory: Memory::from_mib(drawn.mib),
        cpu_millis: 2000,
        labels: BTreeMap::new(),
        created_at: Timestamp::default(),
    }
}

fn app_view(n: usize, drawn: &DrawnApp) -> AppView {
    let id = AppId(Uuid::from_u128((1 << 64) + n as u128));
    let scale = |quantity| ProcessScale { quantity, memory: Memory::from_mib(drawn.mib), cpu_shares: 1024, cpu_millis: None };
    let formation = BTreeMap::from([(ProcessType::web(), scale(drawn.web)), (worker(), scale(drawn.worker))]);
    let release = |version| {
        let is_target = version == drawn.target;
        // A good one was good.
        let status = if Some(version) == drawn.good || !is_target { ReleaseStatus::Succeeded } else { drawn.target_is };
        let (released, age) = if is_target { (drawn.released, drawn.age) } else { (true, 10_000) };
        (version, Arc::new(new_release(id, version, status, released || Some(version) == drawn.good, NOW - age)))
    };
    let app = App {
        id,
        name: format!("app-{n}").parse().unwrap(),
        owner: UserId(Uuid::nil()),
        stack: "flex-13".parse().unwrap(),
        stack_by_hand: false,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        maintenance: false,
        formation,
        deploy_branches: Vec::new(),
        buildpacks: Vec::new(),
        checks: BTreeMap::new(),
        config_rev: 0,
        last_version: 3,
        target: Some(drawn.target),
        good: drawn.good,
        restarts: BTreeMap::new(),
        stopped: BTreeSet::new(),
        locked: None,
        stop_grace_seconds: 30,
        read_only_root: false,
        acm: false,
        canary: None,
        access_lines: None,
    };
    AppView {
        app: Arc::new(app),
        releases: (1..=3).map(release).collect(),
        domains: Vec::new(),
        routes: Vec::new(),
        routing: Arc::default(),
    }
}

fn worker() -> ProcessType {
    "worker".parse().unwrap()
}

fn new_release(app: AppId, version: u64, status: ReleaseStatus, released: bool, at: i64) -> Release {
    let spec = |p: ProcessType| {
        let check = HealthCheck::default_for(&p);
        (p, ProcessSpec { command: None, check })
    };
    Release {
        id: ReleaseId(Uuid::from_u128(u128::from(version))),
        app,
        version,
        status,
        description: String::new(),
        build: None,
        slug: None,
        image: Some(ImageRef { reference: format!("sha256:{version}"), manifest: None }),
        has_launcher: false,
        port: None,
        commit: None,
        config_rev: 0,
        processes: BTreeMap::from([spec(ProcessType::web()), spec(worker())]),
        routes: BTreeMap::new(),
        release_command: None,
        read_only_root: false,
        keeps_from: None,
        released,
        user: UserId(Uuid::nil()),
        created_at: seconds(at),
        updated_at: seconds(at),
        failure: None,
        superseded_by: None,
    }
}

/// Placements as a planner could have left them: never beyond a host's memory, an index once per process and release.
fn add_placements(world: &mut World, hosts: &[DrawnHost], apps: &[DrawnApp], drawn: Vec<Drawn>) {
    let host_ids: Vec<HostId> = world.hosts.keys().copied().collect();
    let app_ids: Vec<AppId> = world.apps.keys().copied().collect();
    let mut reports: BTreeMap<HostId, Vec<InstanceReport>> = BTreeMap::new();
    let (mut used, mut taken) = (BTreeMap::<HostId, u64>::new(), BTreeSet::new());
    for (n, d) in drawn.into_iter().enumerate() {
        if host_ids.is_empty() {
            return;
        }
        let (app, host) = (d.app % app_ids.len(), d.host % host_ids.len());
        let (memory, host_id) = (Memory::from_mib(apps[app].mib), host_ids[host]);
        let process = if d.worker { worker() } else { ProcessType::web() };
        let full = used.get(&host_id).copied().unwrap_or(0) + memory.bytes() > world.hosts[&host_id].memory.bytes();
        if full || !taken.insert((app, d.worker, d.index, d.version)) || !world.apps[&app_ids[app]].releases[&d.version].released
        {
            continue;
        }
        *used.entry(host_id).or_default() += memory.bytes();
        let instance = InstanceId(Uuid::from_u128((1 << 80) + n as u128));
        let phase = d.drain.map_or(PlacementPhase::Active, |s| PlacementPhase::Draining { deadline: seconds(NOW + s) });
        let placement = Placement {
            instance,
            app: app_ids[app],
            process,
            index: d.index,
            release: ReleaseId(Uuid::from_u128(u128::from(d.version))),
            version: d.version,
            host: host_id,
            memory,
            cpu_shares: 1024,
            cpu_millis: None,
            phase,
            created_at: seconds(NOW - 500),
            reason: String::new(),
        };
        world.placements.insert(instance, placement);
        if let Some(state) = d.state {
            let address = (state != InstanceState::Down).then(|| ([10, 0, 0, 1], 5000).into());
            let (since, restarts, was_up) = (seconds(NOW - 100), d.restarts, d.was_up);
            reports.entry(host_id).or_default().push(InstanceReport {
                instance,
                state,
                since,
                address,
                restarts,
                was_up,
                exit: None,
                message: None,
            });
        }
    }
    for (id, drawn) in host_ids.iter().zip(hosts) {
        if let Some(counts) = drawn.counts {
            let instances = reports.remove(id).unwrap_or_default();
            let report = Report { host: *id, epoch: 1, revision: 1, at: seconds(NOW), instances, ended: Vec::new() };
            world.reports.insert(*id, ReportView { report: Arc::new(report), counts });
        }
    }
}

fn apply(world: &mut World, next: &Plan) {
    for change in &next.changes {
        match change.kind.clone() {
            ChangeKind::Place(p) => {
                world.placements.insert(p.instance, p);
            }
            ChangeKind::Drain { instance, deadline } => {
                world.placements.get_mut(&instance).unwrap().phase = PlacementPhase::Draining { deadline };
            }
            ChangeKind::Remove { instance } => {
                world.placements.remove(&instance);
            }
            ChangeKind::ReleaseSucceeded { app, version } => end_release(world, app, version, ReleaseStatus::Succeeded),
            ChangeKind::ReleaseFailed { app, version, .. } => end_release(world, app, version, ReleaseStatus::Failed),
        }
    }
}

fn end_release(world: &mut World, app: AppId, version: u64, status: ReleaseStatus) {
    let view = world.apps.get_mut(&app).unwrap();
    let release = view.releases.get_mut(&version).unwrap();
    *release = Arc::new(Release { status, ..(**release).clone() });
    let app = Arc::make_mut(&mut view.app);
    if status == ReleaseStatus::Succeeded { app.good = Some(version) } else { app.target = app.good }
}

fn known(world: &World, p: &Placement) -> Option<InstanceState> {
    let view = world.reports.get(&p.host).filter(|v| v.counts)?;
    view.report.instances.iter().find(|r| r.instance == p.instance).map(|r| r.state)
}

/// Web instances of an app that are known to serve and get requests.
fn serving(world: &World, app: AppId) -> usize {
    let active = |p: &&Placement| p.app == app && p.process.is_web() && p.phase == PlacementPhase::Active;
    let on_a_host = |p: &&Placement| world.hosts.get(&p.host).is_some_and(|h| h.state != HostState::Dead);
    world.placements.values().filter(active).filter(on_a_host).filter(|p| known(world, p) == Some(InstanceState::Up)).count()
}

/// What the formation asks of web, where anything should run at all.
fn wanted_web(world: &World, app: AppId) -> usize {
    world.apps[&app].app.formation.get(&ProcessType::web()).map_or(0, |s| s.quantity as usize)
}

fn promised(world: &World) -> BTreeMap<HostId, u64> {
    let mut used = BTreeMap::new();
    for p in world.placements.values() {
        *used.entry(p.host).or_default() += p.memory.bytes();
    }
    used
}

/// The release that should run: the target, or the last good one while the target may not run or has failed.
fn wanted_version(view: &AppView) -> Option<u64> {
    let release = |v: Option<u64>| v.and_then(|v| view.releases.get(&v)).filter(|r| r.status != ReleaseStatus::Failed);
    let target = release(view.app.target).filter(|t| t.released);
    target.or_else(|| release(view.app.good)).map(|r| r.version)
}

/// Instances that should run, do not, and are not placed: each must be among the pending ones.
fn missing(world: &World) -> BTreeSet<(AppId, String)> {
    let mut missing = BTreeSet::new();
    for view in world.apps.values() {
        let Some(wanted) = wanted_version(view) else { continue };
        for (process, scale) in &view.app.formation {
            for index in 1..=scale.quantity {
                let is_it = |p: &Placement| {
                    (p.app, &p.process, p.index, p.version) == (view.app.id, process, index, wanted)
                        && p.phase == PlacementPhase::Active
                };
                if !world.placements.values().any(is_it) {
                    missing.insert((view.app.id, format!("{process}.{index}")));
                }
            }
        }
    }
    missing
}

/// Plans and commits until nothing changes, asking after each step what must hold.
fn settle(world: &mut World) -> Result<Plan, TestCaseError> {
    let mut ids = Ids(0);
    for _ in 0..12 {
        let next = plan(world, &mut ids.clone());
        prop_assert_eq!(&next, &plan(&world.clone(), &mut ids.clone()), "two answers to one question");
        if next.changes.is_empty() {
            return Ok(next);
        }
        prop_assert!(next.changes.iter().all(|c| !c.reason.is_empty()), "a change without a reason");
        let before: BTreeMap<AppId, usize> = world.apps.keys().map(|a| (*a, serving(world, *a))).collect();
        apply(world, &next);
        for _ in &next.changes {
            ids.instance();
        }
        for (app, before) in before {
            // In a replacement nothing that serves may go before another serves for it; scaling down keeps one at least.
            let is_scaled = |c: &Change| matches!(&c.kind, ChangeKind::Drain { .. }) && c.reason.contains("is scaled to");
            let least = if next.changes.iter().any(is_scaled) { 1 } else { wanted_web(world, app) };
            let allowed = before.min(least).min(wanted_web(world, app));
            let now = serving(world, app);
            prop_assert!(
                wanted_version(&world.apps[&app]).is_none() || now >= allowed,
                "{now} serve, {allowed} must: {:?}",
                next.changes
            );
        }
        for (host, bytes) in promised(world) {
            prop_assert!(bytes <= world.hosts[&host].memory.bytes(), "host {host} is promised more than it has");
        }
    }
    Err(TestCaseError::fail("the plan does not come to rest"))
}

fn backends(route: &AppRoute) -> BTreeSet<InstanceId> {
    route.backends.iter().map(|b| b.instance).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_comes_to_rest_within_memory_and_without_loss(mut world in worlds()) {
        let last = settle(&mut world)?;
        let pending: BTreeSet<(AppId, String)> =
            last.pending.iter().map(|p| (p.app, format!("{}.{}", p.process, p.index))).collect();
        prop_assert!(last.pending.iter().all(|p| !p.why.is_empty()));
        prop_assert_eq!(pending, missing(&world), "what is wanted runs or says why it does not");
    }

    /// Asked again on what it made, at any later moment without news, it places nothing more.
    #[test]
    fn time_alone_places_nothing(mut world in worlds(), later in 0i64..3) {
        let last = settle(&mut world)?;
        if last.wake_at.is_none_or(|at| at > seconds(NOW + later)) {
            world.now = seconds(NOW + later);
            let next = plan(&world, &mut Ids(1 << 40));
            prop_assert!(next.changes.is_empty(), "{:?}", next.changes);
        }
    }

    #[test]
    fn the_more_room_the_fewer_are_pending(mut world in worlds()) {
        let mut roomier = world.clone();
        for host in roomier.hosts.values_mut() {
            host.memory = Memory::from_mib(host.memory.mib() + (64 << 10));
        }
        settle(&mut world)?;
        let last = settle(&mut roomier)?;
        let takes = roomier.hosts.values().any(|h| h.state == HostState::Ready);
        prop_assert!(!takes || last.pending.is_empty(), "{:?}", last.pending);
        prop_assert!(takes || last.pending.iter().all(|p| p.why == "there is no host" || p.why.contains("takes nothing new")));
    }

    #[test]
    fn routes_are_what_is_placed_and_healthy(world in worlds()) {
        let heard = |p: &Placement| {
            let report = &world.reports.get(&p.host)?.report;
            report.instances.iter().find(|r| r.instance == p.instance).map(|r| r.state)
        };
        for route in routes(&world) {
            let healthy: BTreeSet<InstanceId> = world
                .placements
                .values()
                .filter(|p| p.app == route.app && p.process.is_web() && p.phase == PlacementPhase::Active)
                .filter(|p| heard(p) == Some(InstanceState::Up))
                .map(|p| p.instance)
                .collect();
            prop_assert_eq!(backends(&route), healthy);
        }
    }
}

/// One host that holds `mib`, one app that wants `web` instances of 512 MiB and has just released v1.
fn small(mib: u64, web: u32, age: i64) -> World {
    let drawn = DrawnHost { mib, state: HostState::Ready, counts: Some(true) };
    let host = host(0, &drawn);
    let app =
        DrawnApp { web, worker: 0, mib: 512, target: 1, good: None, target_is: ReleaseStatus::Pending, released: true, age };
    let view = app_view(0, &app);
    let mut world = World { now: seconds(NOW), ..World::default() };
    let report = Report { host: host.id, epoch: 1, revision: 1, at: seconds(NOW), instances: Vec::new(), ended: Vec::new() };
    world.reports.insert(host.id, ReportView { report: Arc::new(report), counts: true });
    world.hosts.insert(host.id, host);
    world.apps.insert(view.app.id, view);
    world
}

#[test]
fn what_finds_no_room_is_pending_and_then_fails_with_that_reason() {
    let mut world = small(1024, 3, 10);
    let next = plan(&world, &mut Ids(0));
    assert_eq!(next.pending.len(), 1, "{next:?}");
    assert_eq!((next.pending[0].index, next.pending[0].why.as_str()), (3, "1 host: not enough memory for 512M"));
    apply(&mut world, &next);
    world.now = seconds(NOW + 3600);
    let failed = plan(&world, &mut Ids(9)).changes.into_iter().find(|c| matches!(c.kind, ChangeKind::ReleaseFailed { .. }));
    assert_eq!(failed.unwrap().reason, "web.3 could not be placed: 1 host: not enough memory for 512M");
}

#[test]
fn without_a_host_the_reason_says_so() {
    let mut world = small(1024, 1, 10);
    world.hosts.clear();
    assert_eq!(plan(&world, &mut Ids(0)).pending[0].why, "there is no host");
}
