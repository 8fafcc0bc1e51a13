//! The routing table: placed ∩ reported healthy, and why an app has nothing to route to.

use crate::cluster::Cluster;
use crate::view::{AppView, Known, Placed, World};
use flex_model::{AppId, AppRoute, AppState, Backend, CanaryShare, InstanceState, PlacementPhase, Pool, ProcessType, Release};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Every app's routes, in the order of apps.
pub fn routes(world: &World) -> Vec<AppRoute> {
    match Cluster::of(world).take_routes() {
        RouteChanges::All(routes) => routes,
        RouteChanges::Some { changed, .. } => changed,
    }
}

/// What routes became since they were last taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteChanges {
    /// Those of every app, in the order of apps; what else there was is gone.
    All(Vec<AppRoute>),
    /// Those that may differ, in the order of apps, and apps that are gone.
    Some { changed: Vec<AppRoute>, gone: BTreeSet<AppId> },
}

/// One app's routes.
pub(crate) fn of_app(known: Known<'_>, view: &AppView, placements: &[Placed]) -> AppRoute {
    // Most placements of most apps are of no interest here.
    let is_routed = |p: &&Placed| p.phase == PlacementPhase::Active && (p.process.is_web() || !view.routes.is_empty());
    route(known, view, &placements.iter().filter(is_routed).collect::<Vec<_>>())
}

fn route(known: Known<'_>, view: &AppView, placed: &[&Placed]) -> AppRoute {
    let web = ProcessType::web();
    let canary = view.canary().map(|(release, weight)| CanaryShare { version: release.version, weight });
    let not = canary.map(|c| c.version);
    let (state, backends) = pool(known, view, placed, &web, None, not);
    let targets: BTreeSet<(&ProcessType, Option<u64>)> = view
        .routes
        .iter()
        .flat_map(|r| &r.targets)
        .map(|t| (&t.process, t.version))
        .chain(not.map(|v| (&web, Some(v))))
        .collect();
    let special = targets.into_iter().filter(|(process, version)| **process != web || version.is_some());
    let pools = special.map(|(process, version)| {
        let (state, backends) = pool(known, view, placed, process, version, None);
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
    known: Known<'_>,
    view: &AppView,
    placed: &[&Placed],
    process: &ProcessType,
    version: Option<u64>,
    not: Option<u64>,
) -> (AppState, Vec<Backend>) {
    let fits = |p: &&Placed| *p.process == *process && version.is_none_or(|v| p.version == v) && not != Some(p.version);
    let mine: Vec<&Placed> = placed.iter().copied().filter(fits).collect();
    // A report to an earlier controller is no reason to stop anything, and none to stop routing either: what served a
    // moment ago is the best guess until its host speaks again.
    let backend = |p: &&Placed| {
        let r = known.last_heard(p).filter(|r| r.state == InstanceState::Up)?;
        Some(Backend { instance: p.instance, name: p.name(), address: r.address? })
    };
    let mut backends: Vec<Backend> = mine.iter().filter_map(backend).collect();
    backends.sort_by(|a, b| (&a.name, a.instance).cmp(&(&b.name, b.instance)));
    let state = if view.app.maintenance {
        AppState::Maintenance
    } else if !backends.is_empty() {
        AppState::Serving
    } else {
        without_backends(known, view, &mine, process, version)
    };
    (state, backends)
}

fn without_backends(known: Known<'_>, view: &AppView, mine: &[&Placed], process: &ProcessType, version: Option<u64>) -> AppState {
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
        |p: &&Placed| known.last_heard(p).is_some_and(|r| matches!(r.state, InstanceState::Crashed | InstanceState::Down));
    if !mine.is_empty() && mine.iter().all(crashed) { AppState::Crashed } else { AppState::Starting }
}
