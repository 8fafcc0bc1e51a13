//! The routing table: placed ∩ reported healthy, and why an app has nothing to route to.

use crate::view::{AppView, World};
use flex_model::{AppId, AppRoute, AppState, Backend, InstanceState, Placement, PlacementPhase, ProcessType};
use std::collections::BTreeMap;

/// Every app's routes, in the order of apps.
pub fn routes(world: &World) -> Vec<AppRoute> {
    let mut web: BTreeMap<AppId, Vec<&Placement>> = BTreeMap::new();
    for p in world.placements.values().filter(|p| p.process.is_web() && p.phase == PlacementPhase::Active) {
        web.entry(p.app).or_default().push(p);
    }
    world.apps.iter().map(|(id, view)| route(world, view, &web.remove(id).unwrap_or_default())).collect()
}

fn route(world: &World, view: &AppView, web: &[&Placement]) -> AppRoute {
    // A report to an earlier controller is no reason to stop anything, and none to stop routing either: what served a
    // moment ago is the best guess until its host speaks again.
    let backend = |p: &&Placement| {
        let r = world.last_heard(p).filter(|r| r.state == InstanceState::Up)?;
        Some(Backend { instance: p.instance, name: p.name(), address: r.address? })
    };
    let mut backends: Vec<Backend> = web.iter().filter_map(backend).collect();
    backends.sort_by(|a, b| (&a.name, a.instance).cmp(&(&b.name, b.instance)));
    let state = if view.app.maintenance {
        AppState::Maintenance
    } else if !backends.is_empty() {
        AppState::Serving
    } else {
        without_backends(world, view, web)
    };
    AppRoute { app: view.app.id, name: view.app.name.clone(), domains: view.domains.clone(), state, backends }
}

fn without_backends(world: &World, view: &AppView, web: &[&Placement]) -> AppState {
    let deployed = view.releases.values().any(|r| r.image.is_some());
    if !deployed {
        return AppState::Blank;
    }
    let wanted = view.wanted_release().is_some_and(|r| view.wanted(r).iter().any(|(p, _)| *p == ProcessType::web()));
    let rolling_out = view.app.target.and_then(|t| view.releases.get(&t)).is_some_and(|r| !r.released);
    if !wanted && web.is_empty() {
        return if rolling_out { AppState::Starting } else { AppState::NoWeb };
    }
    let crashed =
        |p: &&Placement| world.last_heard(p).is_some_and(|r| matches!(r.state, InstanceState::Crashed | InstanceState::Down));
    if !web.is_empty() && web.iter().all(crashed) { AppState::Crashed } else { AppState::Starting }
}
