//! Measures the planner: `cargo run --release -p flex-scheduler --example scale [HOSTS] [INSTANCES] [MANY]` (10,000 hosts,
//! 100,000 and 1,000,000 instances if not given).
//!
//! Prints a line of JSON for each of: filling an empty cluster (S1), adding one instance to it (S3), replacing all of one
//! host and of a hundred that died (S4), and filling an empty cluster with many instances, with the memory that this takes
//! (S2). Exact scoring, one thread; the time to build the world and to commit the plan is not counted.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; what it measures does not")]

use flex_model::{
    App, AppId, HealthCheck, Host, HostId, HostState, ImageRef, InstanceId, Memory, ProcessScale, ProcessSpec, ProcessType,
    Release, ReleaseId, ReleaseStatus, Timestamp, UserId, Uuid,
};
use flex_scheduler::{AppView, ChangeKind, IdSource, Plan, World, plan};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Instances of each app.
const PER_APP: u32 = 50;
/// Single additions that are timed.
const SINGLE: u32 = 100;

struct Ids(u128);

impl IdSource for Ids {
    fn instance(&mut self) -> InstanceId {
        self.0 += 1;
        InstanceId(Uuid::from_u128(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)))
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>().expect("a number"));
    let hosts = args.next().unwrap_or(10_000);
    let instances = args.next().unwrap_or(100_000);
    let large = args.next().unwrap_or(1_000_000);
    let mut ids = Ids(0);
    let mut world = world(hosts, instances / PER_APP);
    let before = resident_mib();
    let (took, placed) = timed(&mut world, &mut ids);
    say("S1 fill", &json!({"hosts": hosts, "placed": placed, "decisions_per_s": rate(placed, took), "goal_per_s": 100_000}));

    let first = *world.apps.keys().next().expect("an app");
    let mut times: Vec<f64> = (1..=SINGLE)
        .map(|n| {
            rescale(&mut world, first, PER_APP + n);
            millis(timed(&mut world, &mut ids).0)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1];
    // A plan is over every app, so this is the time of a whole pass in which one instance is missing.
    say("S3 one more", &json!({"n": times.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "goal_p99_ms": 1}));

    for (what, count, goal) in [("S4 one dead host", 1, 50), ("S4 100 dead hosts", 100, 1000)] {
        kill(&mut world, count);
        let (took, placed) = timed(&mut world, &mut ids);
        say(what, &json!({"replaced": placed, "ms": millis(took), "goal_ms": goal}));
    }
    drop(world);

    let mut world = self::world(hosts, large / PER_APP);
    for host in world.hosts.values_mut() {
        // Room for all of it.
        host.memory = Memory::from_mib(1 << 20);
    }
    let (took, placed) = timed(&mut world, &mut ids);
    let grown = resident_mib().saturating_sub(before);
    say(
        "S2 many",
        &json!({"hosts": hosts, "placed": placed, "seconds": millis(took) / 1000.0, "goal_s": 10, "memory_mib": grown, "goal_mib": 300}),
    );
}

/// A figure, by its name among the goals.
fn say(figure: &str, values: &serde_json::Value) {
    let mut line = serde_json::Map::from_iter([("figure".to_owned(), figure.into())]);
    line.extend(values.as_object().cloned().unwrap_or_default());
    println!("{}", serde_json::Value::Object(line));
}

fn rate(count: usize, took: Duration) -> f64 {
    (count as f64 / took.as_secs_f64()).round()
}

/// To a hundredth.
fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Memory of this process, in MiB; 0 where the kernel does not tell.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Plans, and commits what was planned; the time is that of planning.
fn timed(world: &mut World, ids: &mut Ids) -> (Duration, usize) {
    let start = Instant::now();
    let next = plan(world, ids);
    let took = start.elapsed();
    (took, apply(world, next))
}

fn apply(world: &mut World, next: Plan) -> usize {
    let mut placed = 0;
    for change in next.changes {
        match change.kind {
            ChangeKind::Place(p) => {
                placed += 1;
                world.placements.insert(p.instance, p);
            }
            ChangeKind::Remove { instance } => {
                world.placements.remove(&instance);
            }
            _ => {}
        }
    }
    placed
}

fn rescale(world: &mut World, app: AppId, quantity: u32) {
    if let Some(view) = world.apps.get_mut(&app) {
        let scale = ProcessScale { quantity, ..view.app.formation[&ProcessType::web()] };
        Arc::make_mut(&mut view.app).formation.insert(ProcessType::web(), scale);
    }
}

fn kill(world: &mut World, count: usize) {
    for host in world.hosts.values_mut().filter(|h| h.state == HostState::Ready).take(count) {
        host.state = HostState::Dead;
    }
}

fn world(hosts: u32, apps: u32) -> World {
    let mut world = World::default();
    for n in 0..u128::from(hosts) {
        let host = Host {
            id: HostId(Uuid::from_u128(n + 1)),
            name: format!("h{n}"),
            state: HostState::Ready,
            memory: Memory::from_mib(64 << 10),
            cpu_millis: 64_000,
            labels: BTreeMap::new(),
            created_at: Timestamp::default(),
        };
        world.hosts.insert(host.id, host);
    }
    for n in 0..u128::from(apps) {
        let id = AppId(Uuid::from_u128((1 << 64) + n));
        let release = Arc::new(release(id));
        world.apps.insert(
            id,
            AppView {
                app: Arc::new(app(id, n)),
                releases: BTreeMap::from([(1, release)]),
                domains: Vec::new(),
                routes: Vec::new(),
                routing: Arc::default(),
            },
        );
    }
    world
}

fn app(id: AppId, n: u128) -> App {
    let scale = ProcessScale { quantity: PER_APP, memory: Memory::from_mib(256), cpu_shares: 1024, cpu_millis: None };
    App {
        id,
        name: format!("app-{n}").parse().expect("an app name"),
        owner: UserId(Uuid::nil()),
        stack: "flex-13".parse().expect("a stack"),
        stack_by_hand: false,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        maintenance: false,
        formation: BTreeMap::from([(ProcessType::web(), scale)]),
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
    }
}

fn release(app: AppId) -> Release {
    let web = ProcessType::web();
    let spec = ProcessSpec { command: None, check: HealthCheck::default_for(&web) };
    Release {
        id: ReleaseId(Uuid::nil()),
        app,
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
    }
}
