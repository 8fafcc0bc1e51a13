//! Measures decisions per second: `cargo run --release -p flex-scheduler --example scale [HOSTS] [INSTANCES]`.
//!
//! Prints, each on a line of its own: filling an empty cluster, adding one instance to it, and replacing all of one host
//! and of a hundred that died. Exact scoring, one thread; the time to build the world is not counted.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; what it measures does not")]

use flex_model::{
    App, AppId, HealthCheck, Host, HostId, HostState, ImageRef, InstanceId, Memory, ProcessScale, ProcessSpec, ProcessType,
    Release, ReleaseId, ReleaseStatus, Timestamp, UserId, Uuid,
};
use flex_scheduler::{AppView, ChangeKind, IdSource, Plan, World, plan};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Instances of each app.
const PER_APP: u32 = 50;

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
    let mut world = world(hosts, instances / PER_APP);
    let mut ids = Ids(0);

    let took = measure("fill", &mut world, &mut ids);
    let rate = world.placements.len() as f64 / took.as_secs_f64();
    println!("fill: {rate:.0} decisions/s ({hosts} hosts)");

    let first = *world.apps.keys().next().expect("an app");
    let mut times: Vec<Duration> = (1..=50u32)
        .map(|n| {
            rescale(&mut world, first, PER_APP + n);
            timed(&mut world, &mut ids).0
        })
        .collect();
    times.sort();
    println!("one more: p50 {:?}, worst of 50 {:?} (a whole plan over every app)", times[25], times[49]);

    kill(&mut world, 1);
    measure("one dead host", &mut world, &mut ids);
    kill(&mut world, 100);
    measure("100 dead hosts", &mut world, &mut ids);
}

fn measure(what: &str, world: &mut World, ids: &mut Ids) -> Duration {
    let (took, placed) = timed(world, ids);
    println!("{what}: {placed} placed in {took:?}");
    took
}

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
            },
        );
    }
    world
}

fn app(id: AppId, n: u128) -> App {
    let scale = ProcessScale { quantity: PER_APP, memory: Memory::from_mib(256), cpu_shares: 1024 };
    App {
        id,
        name: format!("app-{n}").parse().expect("an app name"),
        owner: UserId(Uuid::nil()),
        stack: "flex-13".parse().expect("a stack"),
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
        stop_grace_seconds: 30,
        read_only_root: false,
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
        commit: None,
        config_rev: 0,
        processes: BTreeMap::from([(web, spec)]),
        release_command: None,
        released: true,
        user: UserId(Uuid::nil()),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        failure: None,
    }
}
