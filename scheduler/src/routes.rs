//! The routing table: placed ∩ reported healthy, and why an app has nothing to route to.

use crate::view::{AppView, World};
use flex_model::{
    AppId, AppRoute, AppState, Backend, CanaryShare, InstanceState, Placement, PlacementPhase, Pool, ProcessType, Release,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Every app's routes, in the order of apps.
pub fn routes(world: &World) -> Vec<AppRoute> {
    let mut placed: BTreeMap<AppId, Vec<&Placement>> = BTreeMap::new();
    for p in world.placements.values().filter(|p| p.phase == PlacementPhase::Active && is_routed(world, p)) {
        placed.entry(p.app).or_default().push(p);
    }
    world.apps.iter().map(|(id, view)| route(world, view, &placed.remove(id).unwrap_or_default())).collect()
}

/// Most placements of most apps are of no interest here.
fn is_routed(world: &World, p: &Placement) -> bool {
    p.process.is_web() || world.apps.get(&p.app).is_some_and(|v| !v.routes.is_empty())
}

fn route(world: &World, view: &AppView, placed: &[&Placement]) -> AppRoute {
    let web = ProcessType::web();
    let canary = view.canary().map(|(release, weight)| CanaryShare { version: release.version, weight });
    let not = canary.map(|c| c.version);
    let (state, backends) = pool(world, view, placed, &web, None, not);
    let targets: BTreeSet<(&ProcessType, Option<u64>)> = view
        .routes
        .iter()
        .flat_map(|r| &r.targets)
        .map(|t| (&t.process, t.version))
        .chain(not.map(|v| (&web, Some(v))))
        .collect();
    let special = targets.into_iter().filter(|(process, version)| **process != web || version.is_some());
    let pools = special.map(|(process, version)| {
        let (state, backends) = pool(world, view, placed, process, version, None);
        Pool { process: process.clone(), version, state, backends }
    });
    let pools = pools.collect();
    let routes = view.routes.iter().map(|r| (**r).clone()).collect();
    let mut out = AppRoute {
        pools,
        routes,
        canary,
        lines: view.app.access_lines,
        ..AppRoute::new(view.app.id, view.app.name.clone(), view.domains.clone(), state, backends)
    };
    crate::policies::apply(view, &mut out);
    out
}

fn pool(
    world: &World,
    view: &AppView,
    placed: &[&Placement],
    process: &ProcessType,
    version: Option<u64>,
    not: Option<u64>,
) -> (AppState, Vec<Backend>) {
    let fits = |p: &&Placement| p.process == *process && version.is_none_or(|v| p.version == v) && not != Some(p.version);
    let mine: Vec<&Placement> = placed.iter().copied().filter(fits).collect();
    // A report to an earlier controller is no reason to stop anything, and none to stop routing either: what served a
    // moment ago is the best guess until its host speaks again.
    let backend = |p: &&Placement| {
        let r = world.last_heard(p).filter(|r| r.state == InstanceState::Up)?;
        Some(Backend { instance: p.instance, name: p.name(), address: r.address? })
    };
    let mut backends: Vec<Backend> = mine.iter().filter_map(backend).collect();
    backends.sort_by(|a, b| (&a.name, a.instance).cmp(&(&b.name, b.instance)));
    let state = if view.app.maintenance {
        AppState::Maintenance
    } else if !backends.is_empty() {
        AppState::Serving
    } else {
        without_backends(world, view, &mine, process, version)
    };
    (state, backends)
}

fn without_backends(world: &World, view: &AppView, mine: &[&Placement], process: &ProcessType, version: Option<u64>) -> AppState {
    let deployed = view.releases.values().any(|r| r.image.is_some());
    if !deployed {
        return AppState::Blank;
    }
    let wanted = view
        .wanted_release()
        .is_some_and(|r| version.is_none_or(|v| r.version == v) && view.wanted(r).iter().any(|(p, _)| p == process));
    let of_canary =
        |(r, _): (&Arc<Release>, u32)| process.is_web() && version == Some(r.version) && !view.indexes(r, process).is_empty();
    let wanted = wanted || view.canary().is_some_and(of_canary);
    let target = view.app.target.and_then(|t| view.releases.get(&t));
    let rolling_out = target.is_some_and(|r| !r.released && version.is_none_or(|v| r.version == v));
    if !wanted && mine.is_empty() {
        return if rolling_out { AppState::Starting } else { AppState::NoWeb };
    }
    let crashed =
        |p: &&Placement| world.last_heard(p).is_some_and(|r| matches!(r.state, InstanceState::Crashed | InstanceState::Down));
    if !mine.is_empty() && mine.iter().all(crashed) { AppState::Crashed } else { AppState::Starting }
}
