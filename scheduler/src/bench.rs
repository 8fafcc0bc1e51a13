//! Measures the planner on clusters that it makes up; the example `scale` prints the figures.
//!
//! What is timed is what the planner does of a change: being told it, and deciding. Exact scoring, one thread, every host
//! reporting every instance, except while a cluster is filled, when nothing runs yet. Being told what was committed is timed
//! where that is the work (a dead host, a fill), since only then the next decision can come.
//!
//! Must not: read a clock or the process's memory by itself; both are arguments.

use crate::view::{AppView, Moment, ReportView, Settings};
use crate::{ChangeKind, Cluster, IdSource, Plan, quality};
use flex_model::{
    App, AppId, HealthCheck, Host, HostId, HostState, ImageRef, InstanceId, InstanceReport, InstanceState, Memory, ProcessScale,
    ProcessSpec, ProcessType, Release, ReleaseId, ReleaseStatus, Report, Timestamp, UserId, Uuid,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Instances of each app.
const PER_APP: u32 = 50;
/// Single additions that are timed.
const SINGLE: usize = 1000;

/// How large the clusters are.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub hosts: u32,
    /// Placed to measure the rate.
    pub instances: u32,
    /// Placed to measure the time and the memory, and what the rest happens in.
    pub many: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { hosts: 10_000, instances: 100_000, many: 1_000_000 }
    }
}

/// What was measured: numbers by name, with the goals among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub values: Vec<(&'static str, f64)>,
    /// Whether each of its goals was met; none: it has no goal.
    pub met: Option<bool>,
}

/// What a measurement needs of the process that it runs in.
pub struct Meters<'a> {
    /// Grows with time.
    pub clock: &'a dyn Fn() -> Duration,
    /// Bytes of memory in use.
    pub memory: &'a dyn Fn() -> u64,
    /// Takes each figure as soon as it is known.
    pub tell: &'a mut dyn FnMut(Figure),
}

struct Ids(u128);

impl IdSource for Ids {
    fn instance(&mut self) -> InstanceId {
        self.0 += 1;
        InstanceId(Uuid::from_u128(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
    }
}

/// Measures everything.
pub fn run(sizes: Sizes, meters: &mut Meters<'_>) {
    let Sizes { hosts, instances, many: most } = sizes;
    let sizes = Sizes { hosts: hosts.max(1), instances: instances.max(PER_APP), many: most.max(PER_APP) };
    // First of all: memory that an earlier one gave back would not be seen to be used.
    many(sizes, meters);
    for hosts in [sizes.hosts / 10, sizes.hosts, sizes.hosts.saturating_mul(5)] {
        fill(hosts.max(1), sizes, meters);
    }
    quality(meters);
}

fn fill(hosts: u32, sizes: Sizes, meters: &mut Meters<'_>) {
    let mut cluster = cluster(hosts, sizes.instances / PER_APP, u64::from(sizes.instances / hosts).max(1) * 1024);
    let (took, placed) = timed(meters.clock, || placements(&cluster.plan(&Moment::default(), &mut Ids(0))));
    let rate = placed as f64 / took.as_secs_f64().max(1e-9);
    let values = vec![
        ("hosts", f64::from(hosts)),
        ("placed", placed as f64),
        ("placements_per_s", rate.round()),
        ("goal_per_s", 100_000.0),
    ];
    tell(meters, "fill", values, Some(rate >= 100_000.0));
}

/// One large cluster: filled, then changed in the ways that happen.
fn many(sizes: Sizes, meters: &mut Meters<'_>) {
    let before = (meters.memory)();
    let mib = |meters: &Meters<'_>| ((meters.memory)().saturating_sub(before) as f64 / f64::from(1 << 20)).round();
    let mut ids = Ids(0);
    let each = u64::from(sizes.many / sizes.hosts).max(1) * 512;
    let mut cluster = cluster(sizes.hosts, sizes.many / PER_APP, each);
    let (planning, plan) = timed(meters.clock, || cluster.plan(&Moment::default(), &mut ids));
    let placed = placements(&plan);
    let (telling, ()) = timed(meters.clock, || commit(&mut cluster, plan));
    let (seconds, state) = ((planning + telling).as_secs_f64(), mib(meters));
    let values = vec![
        ("hosts", f64::from(sizes.hosts)),
        ("placed", placed as f64),
        ("planning_s", rounded(planning.as_secs_f64())),
        ("seconds", rounded(seconds)),
        ("goal_s", 10.0),
        ("state_mib", state),
        ("goal_mib", 300.0),
    ];
    tell(meters, "from empty", values, Some(seconds <= 10.0 && state <= 300.0));

    report_all(&mut cluster);
    let with_reports = mib(meters);
    let (all, rest) = timed(meters.clock, || cluster.plan(&Moment::default(), &mut ids));
    debug_assert!(rest.changes.is_empty());
    let values = vec![("state_mib", with_reports), ("every_app_ms", millis(all))];
    tell(meters, "with reports", values, None);

    let apps: Vec<AppId> = cluster.apps.keys().copied().collect();
    let mut times: Vec<f64> = (0..SINGLE.min(apps.len())).map(|n| one_more(&mut cluster, apps[n], &mut ids, meters)).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1];
    let values = vec![("n", times.len() as f64), ("p50_ms", at(0.5)), ("p99_ms", at(0.99)), ("goal_p99_ms", 1.0)];
    tell(meters, "one more", values, Some(at(0.99) <= 1.0));

    let mut alive: Vec<HostId> = cluster.on_host.keys().copied().collect();
    for (name, count, goal) in [("one dead host", 1, 50.0), ("100 dead hosts", 100, 1000.0)] {
        let dead = alive.split_off(alive.len().saturating_sub(count));
        let (took, replaced) = timed(meters.clock, || {
            dead.iter().for_each(|id| cluster.set_host(&host(*id, HostState::Dead, each)));
            let plan = cluster.plan(&Moment::default(), &mut ids);
            let placed = placements(&plan);
            commit(&mut cluster, plan);
            placed
        });
        let values = vec![("replaced", replaced as f64), ("ms", millis(took)), ("goal_ms", goal)];
        tell(meters, name, values, Some(millis(took) <= goal));
    }
}

/// An app gets one more instance; the time until it has a place.
fn one_more(cluster: &mut Cluster, app: AppId, ids: &mut Ids, meters: &Meters<'_>) -> f64 {
    let Some(mut view) = cluster.view(app).cloned() else { return 0.0 };
    let web = ProcessType::web();
    let scale = view.app.formation[&web];
    let more = ProcessScale { quantity: scale.quantity + 1, ..scale };
    Arc::make_mut(&mut view.app).formation.insert(web, more);
    let (took, plan) = timed(meters.clock, || {
        cluster.set_app(view);
        cluster.plan(&Moment::default(), ids)
    });
    debug_assert_eq!(placements(&plan), 1);
    commit(cluster, plan);
    millis(took)
}

/// How good placements are: against every way there is in small clusters, and against the volume in a larger one.
fn quality(meters: &mut Meters<'_>) {
    let small = quality::against_brute_force(300);
    let values = vec![
        ("cases", small.cases as f64),
        ("placed_percent_of_best", rounded(small.placed_percent)),
        ("goal_percent", 98.0),
        ("shared_pairs", small.shared as f64),
        ("fewest_shared_pairs", small.fewest_shared as f64),
    ];
    tell(meters, "quality, brute force", values, Some(small.placed_percent >= 98.0));
    let ratio = quality::against_volume();
    let values = vec![("hosts_used_over_volume_bound", rounded(ratio)), ("goal", 1.1)];
    tell(meters, "quality, packing", values, Some(ratio <= 1.1));
}

fn tell(meters: &mut Meters<'_>, name: &'static str, values: Vec<(&'static str, f64)>, met: Option<bool>) {
    (meters.tell)(Figure { name, values, met });
}

fn timed<T>(clock: &dyn Fn() -> Duration, work: impl FnOnce() -> T) -> (Duration, T) {
    let start = clock();
    let out = work();
    (clock().saturating_sub(start), out)
}

/// To a thousandth.
fn millis(took: Duration) -> f64 {
    rounded(took.as_secs_f64() * 1000.0)
}

fn rounded(n: f64) -> f64 {
    (n * 1000.0).round() / 1000.0
}

fn placements(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| matches!(c.kind, ChangeKind::Place(_))).count()
}

/// Tells what the plan did, as if it were committed.
pub(crate) fn commit(cluster: &mut Cluster, plan: Plan) {
    let gone: BTreeMap<InstanceId, AppId> = cluster.lost.iter().flat_map(|host| &cluster.on_host[host]).copied().collect();
    for change in plan.changes {
        match change.kind {
            ChangeKind::Place(p) => cluster.set_placement(&p),
            ChangeKind::Remove { instance } => {
                if let Some(app) = gone.get(&instance) {
                    cluster.remove_placement(*app, instance);
                }
            }
            _ => {}
        }
    }
}

fn report_all(cluster: &mut Cluster) {
    let up = |instance: InstanceId| InstanceReport {
        instance,
        state: InstanceState::Up,
        since: Timestamp::default(),
        address: Some(([10, 0, 0, 1], 5000).into()),
        restarts: 0,
        was_up: true,
        exit: None,
        message: None,
    };
    for host in cluster.hosts_in_use().collect::<Vec<_>>() {
        let instances = cluster.instances_on(host).map(up).collect();
        let report = Report { host, epoch: 1, revision: 1, at: Timestamp::default(), instances, ended: Vec::new() };
        cluster.set_report(host, ReportView { report: Arc::new(report), counts: true });
    }
}

fn cluster(hosts: u32, apps: u32, mib: u64) -> Cluster {
    let mut cluster = Cluster::new(Settings::default());
    for n in 0..hosts {
        cluster.set_host(&host(HostId(Uuid::from_u128(u128::from(n) + 1)), HostState::Ready, mib));
    }
    for n in 0..apps {
        cluster.set_app(app(u128::from(n), PER_APP, Memory::from_mib(256)));
    }
    cluster
}

pub(crate) fn host(id: HostId, state: HostState, mib: u64) -> Host {
    Host {
        id,
        name: format!("h{}", id.0.as_u128()),
        state,
        memory: Memory::from_mib(mib),
        cpu_millis: 64_000,
        labels: BTreeMap::new(),
        created_at: Timestamp::default(),
    }
}

/// An app with one release, which is good, and so many instances.
pub(crate) fn app(n: u128, quantity: u32, memory: Memory) -> AppView {
    let id = AppId(Uuid::from_u128((1 << 64) + n));
    let web = ProcessType::web();
    let scale = ProcessScale { quantity, memory, cpu_shares: 1024, cpu_millis: None };
    let app = App {
        id,
        name: format!("app-{n}").parse().expect("an app name"),
        owner: UserId(Uuid::nil()),
        stack: "flex-13".parse().expect("a stack"),
        stack_by_hand: false,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        maintenance: false,
        formation: BTreeMap::from([(web.clone(), scale)]),
        deploy_branches: Vec::new(),
        buildpacks: Vec::new(),
        checks: BTreeMap::new(),
        config_rev: 0,
        last_version: 1,
        target: Some(1),
        good: Some(1),
        restarts: BTreeMap::new(),
        stopped: std::collections::BTreeSet::new(),
        locked: None,
        stop_grace_seconds: 30,
        read_only_root: false,
        acm: false,
        canary: None,
        access_lines: None,
    };
    let spec = ProcessSpec { command: None, check: HealthCheck::default_for(&web) };
    let release = Release {
        id: ReleaseId(Uuid::nil()),
        app: id,
        version: 1,
        status: ReleaseStatus::Succeeded,
        description: String::new(),
        build: None,
        slug: None,
        image: Some(ImageRef { reference: "sha256:0".into(), manifest: None }),
        has_launcher: false,
        port: None,
        commit: None,
        config_rev: 0,
        processes: BTreeMap::from([(web, spec)]),
        routes: BTreeMap::new(),
        release_command: None,
        read_only_root: false,
        keeps_from: None,
        released: true,
        user: UserId(Uuid::nil()),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        failure: None,
        superseded_by: None,
    };
    AppView {
        app: Arc::new(app),
        releases: BTreeMap::from([(1, Arc::new(release))]),
        domains: Vec::new(),
        routes: Vec::new(),
        routing: Arc::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured() {
        let (mut figures, ticks) = (Vec::new(), std::cell::Cell::new(0u64));
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_micros(ticks.get())
        };
        let mut meters = Meters { clock: &clock, memory: &|| 0, tell: &mut |f| figures.push(f) };
        run(Sizes { hosts: 120, instances: 500, many: 2000 }, &mut meters);
        let names: Vec<&str> = figures.iter().map(|f| f.name).collect();
        let expected = [
            "from empty",
            "with reports",
            "one more",
            "one dead host",
            "100 dead hosts",
            "fill",
            "fill",
            "fill",
            "quality, brute force",
            "quality, packing",
        ];
        assert_eq!(names, expected);
        let value = |name: &str, of: &str| {
            let figure = figures.iter().find(|f| f.name == name).unwrap();
            figure.values.iter().find(|(n, _)| *n == of).unwrap().1
        };
        assert_eq!((value("from empty", "placed"), value("one more", "n")), (2000.0, 40.0));
        assert!(value("one dead host", "replaced") > 0.0);
    }
}
