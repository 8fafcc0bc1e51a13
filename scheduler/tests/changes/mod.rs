//! A cluster that is fed with changes plans and routes, after each of them, what one does that is built anew.

pub mod feed;

use super::{Ids, NOW, apply, host, seconds, worlds};
use feed::feed;
use flex_model::{
    AppId, AppRoute, HostId, HostState, InstanceId, InstanceState, Memory, PlacementPhase, ProcessType, Release, ReleaseStatus,
    RouterStatus, Uuid,
};
use flex_scheduler::{Cluster, Plan, RouteChanges, World, plan, routes};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something happens; what, and to whom, by numbers that are taken modulo what there is.
type Happening = (u8, usize, u64);

fn pick<K: Copy, V>(map: &BTreeMap<K, V>, at: usize) -> Option<K> {
    map.keys().copied().nth(at % map.len().max(1))
}

fn happen(world: &mut World, (what, at, n): Happening) {
    let (app, host_id) = (pick(&world.apps, at), pick(&world.hosts, at));
    let (instance, reporter) = (pick(&world.placements, at), pick(&world.reports, at));
    match what {
        0 => change_host(world, host_id, |h| {
            h.state = [HostState::Ready, HostState::Cordoned, HostState::Dead][(n % 3) as usize];
        }),
        1 => change_host(world, host_id, |h| h.memory = Memory::from_mib(256 + n * 16)),
        2 => drop(host_id.and_then(|id| world.hosts.remove(&id))),
        3 => {
            let drawn = super::DrawnHost { mib: 512 + n * 16, state: HostState::Ready, counts: None };
            let new = host(at % 9, &drawn);
            world.hosts.insert(new.id, new);
        }
        4 => change_app(world, app, |a| {
            let process = if n % 4 == 0 { super::worker() } else { ProcessType::web() };
            if let Some(scale) = a.formation.get_mut(&process) {
                (scale.quantity, scale.memory) = ((n % 6) as u32, Memory::from_mib(64 + (n % 5) * 200));
            }
        }),
        5 => change_app(world, app, |a| a.target = Some(1 + n % 3)),
        6 => change_app(world, app, |a| a.good = Some(1 + n % 3)),
        7 => {
            if let Some(release) = app.and_then(|id| world.apps.get_mut(&id)?.releases.get_mut(&(1 + n % 3))) {
                let status = [ReleaseStatus::Pending, ReleaseStatus::Succeeded, ReleaseStatus::Failed][(n / 3 % 3) as usize];
                *release = Arc::new(Release { status, updated_at: world.now, ..(**release).clone() });
            }
        }
        8 if n % 4 == 0 => drop(app.and_then(|id| world.apps.remove(&id))),
        9 => drop(instance.and_then(|id| world.placements.remove(&id))),
        10 => {
            if let Some(p) = instance.and_then(|id| world.placements.get_mut(&id)) {
                p.phase = PlacementPhase::Draining { deadline: seconds(NOW + i64::try_from(n).unwrap()) };
            }
        }
        11 => change_report(world, reporter, n),
        12 => {
            if let Some(view) = reporter.and_then(|id| world.reports.get_mut(&id)) {
                view.counts = !view.counts;
            }
        }
        13 => drop(reporter.and_then(|id| world.reports.remove(&id))),
        14 => report_all(world),
        15 => {
            world.routers = vec![RouterStatus { router: "r".into(), revision: n, ..RouterStatus::default() }];
            world.table_without = instance.map(|id| (id, 60)).into_iter().collect();
        }
        16 => world.now = seconds(NOW + i64::try_from(n * 4).unwrap()),
        17 => {
            let process = [String::new(), "web".into(), "web.1".into()][(n % 3) as usize].clone();
            let now = world.now;
            change_app(world, app, |a| a.restarts.extend([(process, now)]));
        }
        _ => {}
    }
}

fn change_host(world: &mut World, host: Option<HostId>, change: impl FnOnce(&mut flex_model::Host)) {
    if let Some(host) = host.and_then(|id| world.hosts.get_mut(&id)) {
        change(host);
    }
}

fn change_app(world: &mut World, app: Option<AppId>, change: impl FnOnce(&mut flex_model::App)) {
    if let Some(view) = app.and_then(|id| world.apps.get_mut(&id)) {
        change(Arc::make_mut(&mut view.app));
    }
}

/// One of the instances that a host told of does something else now, or is gone.
fn change_report(world: &mut World, host: Option<HostId>, n: u64) {
    let Some(view) = host.and_then(|id| world.reports.get_mut(&id)) else { return };
    let instances = &mut Arc::make_mut(&mut view.report).instances;
    let states = [InstanceState::Up, InstanceState::Crashed, InstanceState::Down, InstanceState::Starting];
    match instances.len() {
        0 => {}
        some if n.is_multiple_of(9) => drop(instances.remove(n as usize % some)),
        some => {
            let one = &mut instances[n as usize % some];
            one.state = states[(n / 7 % 4) as usize];
            one.was_up |= one.state == InstanceState::Up;
        }
    }
}

/// Every host tells that what is placed on it is up.
fn report_all(world: &mut World) {
    for host in world.hosts.keys() {
        let mine = world.placements.values().filter(|p| p.host == *host);
        let up = |instance: InstanceId| flex_model::InstanceReport {
            instance,
            state: InstanceState::Up,
            since: seconds(NOW),
            address: Some(([10, 0, 0, 1], 5000).into()),
            restarts: 0,
            was_up: true,
            exit: None,
            message: None,
        };
        let instances = mine.map(|p| up(p.instance)).collect();
        let report = flex_model::Report { host: *host, epoch: 1, revision: 1, at: world.now, instances, ended: Vec::new() };
        world.reports.insert(*host, flex_scheduler::ReportView { report: Arc::new(report), counts: true });
    }
}

/// Commits all of a plan, its first half, or nothing: a commit may lose against another.
fn commit(world: &mut World, mut next: Plan, n: u64) {
    // What ends a release changes the app under what else was planned.
    next.changes.truncate(match n % 4 {
        0 => 0,
        1 => next.changes.len() / 2,
        _ => next.changes.len(),
    });
    apply(world, &next);
}

fn patch(all: &mut BTreeMap<AppId, AppRoute>, changes: RouteChanges) {
    match changes {
        RouteChanges::All(routes) => *all = routes.into_iter().map(|r| (r.app, r)).collect(),
        RouteChanges::Some { changed, gone } => {
            all.extend(changed.into_iter().map(|r| (r.app, r)));
            all.retain(|id, _| !gone.contains(id));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_fed_with_changes_plans_as_what_is_built_anew(
        mut world in worlds(),
        happenings in prop::collection::vec((0u8..22, 0usize..64, 0u64..128), 1..40),
    ) {
        let mut ids = Ids(0);
        let (mut cluster, mut told) = (Cluster::new(world.settings), World::default());
        let mut routed = BTreeMap::new();
        for one in happenings {
            happen(&mut world, one);
            feed(&mut cluster, &told, &world, None);
            told = world.clone();
            let next = cluster.plan(&world.moment(), &mut ids.clone());
            prop_assert_eq!(&next, &plan(&world, &mut ids.clone()), "after {:?}", one);
            prop_assert_eq!(&next, &cluster.plan(&world.moment(), &mut ids.clone()), "asked twice after {:?}", one);
            patch(&mut routed, cluster.take_routes());
            prop_assert_eq!(routed.values().cloned().collect::<Vec<_>>(), routes(&world), "after {:?}", one);
            if one.0 > 12 {
                ids.0 += next.changes.len() as u128;
                commit(&mut world, next, one.2);
            }
        }
    }
}

/// What is told twice is told once, and what was never told is gone without a trace.
#[test]
fn telling_again_changes_nothing() {
    let mut world = super::small(4096, 2, 10);
    let next = plan(&world, &mut Ids(0));
    apply(&mut world, &next);
    let mut cluster = Cluster::of(&world);
    let first = cluster.plan(&world.moment(), &mut Ids(9));
    assert!(first.changes.is_empty() && !cluster.take_hosts().is_empty());
    assert!(matches!(cluster.take_routes(), RouteChanges::All(routes) if routes.len() == 1));
    world.placements.values().for_each(|p| cluster.set_placement(p));
    world.reports.iter().for_each(|(host, view)| cluster.set_report(*host, view.clone()));
    let nobody = AppId(Uuid::from_u128(77));
    cluster.remove_app(nobody);
    cluster.remove_placement(nobody, InstanceId(Uuid::from_u128(78)));
    cluster.remove_report(HostId(Uuid::from_u128(79)));
    assert!(cluster.take_hosts().is_empty());
    assert_eq!(cluster.take_routes(), RouteChanges::Some { changed: Vec::new(), gone: Default::default() });
    assert_eq!(cluster.plan(&world.moment(), &mut Ids(9)), first);
}
