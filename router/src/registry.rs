//! Turns a routing table into what requests read, doing only what changed since the table before: with 100,000 apps a
//! change of one costs a look at each pointer and a copy of one small map.
//!
//! Invariants: a host that several apps claim goes to the one with the lowest id, path by path, whatever the order in
//! which they came; an instance is retired only after no route leads to it any more.

use crate::policy::Gate;
use crate::table::{App, Backend, Changes, Entry, Host, L4, PortRoutes, Route, Routes};
use crate::waiting::Waiting;
use flex_model::{AppId, AppRoute, AppState, InstanceId, Match, Policy, RouteId, RouteProblem, RouteTable, Target, policy};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::AtomicUsize, atomic::Ordering::SeqCst},
};

/// What lives longer than a table: instances with their counters, apps' waiting requests, and the table before.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    backends: HashMap<(InstanceId, SocketAddr), Arc<Backend>>,
    waiting: HashMap<AppId, Arc<Waiting>>,
    next_serial: u64,
    /// As it was applied last.
    table: Arc<RouteTable>,
    /// Hosts that more than one app claims, with all who do.
    contested: HashMap<Arc<str>, BTreeSet<AppId>>,
    problems: BTreeMap<Arc<str>, Vec<RouteProblem>>,
    defaults: Arc<policy::Policy>,
}

/// One app, compiled as far as a change needs it.
struct Compiled {
    app: AppId,
    /// By host as the table writes it (`*.` first for wildcards) and path (empty for `/`).
    http: Vec<(Arc<str>, Box<str>, Arc<Route>)>,
}

impl Registry {
    /// Makes `table` the one that requests read, then retires who is not in it any more. Gives the apps that changed, as they
    /// are now.
    pub(crate) fn apply(&mut self, routes: &Routes, table: &Arc<RouteTable>) -> Vec<(AppId, Option<Arc<AppRoute>>)> {
        let before = std::mem::replace(&mut self.table, table.clone());
        let changed = before.differences(table);
        let mut hosts: BTreeMap<Arc<str>, BTreeSet<AppId>> = BTreeMap::new();
        let mut compiled = HashMap::new();
        let mut l4 = false;
        for (old, new) in &changed {
            for app in [old, new].into_iter().flatten() {
                l4 |= app.routes.iter().any(|r| !matches!(r.matches, Match::Http { .. }));
                for host in hosts_of(app) {
                    hosts.entry(host.into()).or_default().insert(app.app);
                }
            }
            if let Some(app) = new {
                compiled.insert(app.app, self.compile(app));
            }
        }
        let changes = hosts.into_iter().map(|(host, apps)| {
            let entry = self.host(routes, &host, apps, &mut compiled);
            (host, entry)
        });
        let changes: Changes = changes.collect();
        routes.update(changes);
        if l4 {
            let (ports, problems) = self.compile_l4();
            self.note("".into(), problems);
            routes.l4.store(Arc::new(ports));
        }
        routes.set_cookie_key(table.cookie_key.as_ref());
        routes.revision.store(table.revision, SeqCst);
        for (old, new) in &changed {
            let Some(old) = old else { continue };
            let stays: BTreeSet<_> = new.iter().flat_map(|a| a.instances()).map(|b| (b.instance, b.address)).collect();
            for gone in old.instances().map(|b| (b.instance, b.address)).filter(|key| !stays.contains(key)) {
                if let Some(backend) = self.backends.get(&gone) {
                    backend.retire();
                }
            }
            if new.is_none() {
                self.waiting.remove(&old.app);
            }
        }
        let now = changed.into_iter().filter_map(|(old, new)| Some((new.as_ref().or(old.as_ref())?.app, new)));
        now.collect()
    }

    /// What of the table could not be done as it says.
    pub(crate) fn problems(&self) -> Vec<RouteProblem> {
        self.problems.values().flatten().cloned().collect()
    }

    fn note(&mut self, key: Arc<str>, problems: Vec<RouteProblem>) {
        for p in &problems {
            if !self.problems.get(&key).is_some_and(|known| known.contains(p)) {
                tracing::warn!(app = %p.app, "{}", p.message);
            }
        }
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, problems);
        }
    }

    fn find_app(&self, id: AppId) -> Option<Arc<AppRoute>> {
        self.table.app(id).cloned()
    }

    /// Puts one host together from all apps that claim it.
    fn host(
        &mut self,
        routes: &Routes,
        host: &Arc<str>,
        mut apps: BTreeSet<AppId>,
        compiled: &mut HashMap<AppId, Compiled>,
    ) -> Option<Host> {
        let live = routes.host(host);
        apps.extend(live.iter().flat_map(|h| h.iter().map(|e| e.route.app)));
        apps.extend(self.contested.get(host).into_iter().flatten());
        let mut entries: Vec<Entry> = Vec::new();
        let (mut claimants, mut problems) = (BTreeSet::new(), Vec::new());
        for id in apps {
            let mine = match compiled.entry(id) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => match self.find_app(id) {
                    Some(app) => free.insert(self.compile(&app)),
                    None => continue,
                },
            };
            for (_, path, route) in mine.http.iter().filter(|(h, _, _)| h == host) {
                claimants.insert(mine.app);
                match entries.iter().find(|e| e.path == *path) {
                    None => entries.push(Entry { path: path.clone(), route: route.clone() }),
                    Some(first) if first.route.app != id => problems.push(RouteProblem {
                        app: id,
                        route: route.id,
                        message: format!(
                            "{host}{} belongs to another app ({}) too; requests go there",
                            if path.is_empty() { "/" } else { path },
                            first.route.app
                        ),
                    }),
                    // An app's own route wins over what its domain would do without one.
                    Some(_) => {}
                }
            }
        }
        if claimants.len() > 1 {
            self.contested.insert(host.clone(), claimants);
        } else {
            self.contested.remove(host);
        }
        self.note(host.clone(), problems);
        entries.sort_by(|a, b| b.path.len().cmp(&a.path.len()).then_with(|| a.path.cmp(&b.path)));
        (!entries.is_empty()).then(|| entries.into())
    }

    fn compile(&mut self, app: &AppRoute) -> Compiled {
        let mut http = Vec::with_capacity(app.domains.len() + app.routes.len());
        for route in &app.routes {
            if let Match::Http { host, path } = &route.matches {
                let path = if path.is_root() { Box::default() } else { Box::from(path.as_str()) };
                let compiled = self.route(app, route);
                http.push((Arc::from(host.as_str()), path, compiled));
            }
        }
        if !app.domains.is_empty() {
            let policy = app.policy.clone().unwrap_or_else(|| self.defaults.clone());
            let gate = gate(app, None, &policy);
            let targets = app.targets_of(None);
            let targets = targets.iter().map(|t| (t.weight, self.pool(app, t, &policy, gate.as_ref()))).collect();
            let route = Arc::new(Route::new(app.app, None, policy, targets));
            http.extend(app.domains.iter().map(|d| (Arc::from(d.as_str()), Box::default(), route.clone())));
        }
        Compiled { app: app.app, http }
    }

    fn route(&mut self, app: &AppRoute, route: &flex_model::Route) -> Arc<Route> {
        let policy: Arc<Policy> = route.policy.clone().unwrap_or_else(|| self.defaults.clone());
        let gate = gate(app, Some(route.id), &policy);
        let targets = app.targets_of(Some(route));
        let targets = targets.iter().map(|t| (t.weight, self.pool(app, t, &policy, gate.as_ref()))).collect();
        Arc::new(Route::new(app.app, Some(route.id), policy, targets))
    }

    fn pool(&mut self, app: &AppRoute, target: &Target, policy: &Arc<Policy>, gate: Option<&Arc<Gate>>) -> Arc<App> {
        let special = app.pools.iter().find(|p| p.process == target.process && p.version == target.version);
        let (state, backends) = match special {
            Some(pool) => (pool.state, pool.backends.as_slice()),
            None if target.process.is_web() && target.version.is_none() => (app.state, app.backends.as_slice()),
            None => (AppState::NoWeb, [].as_slice()),
        };
        // Maintenance is of the whole app.
        let state = if app.state == AppState::Maintenance { app.state } else { state };
        // Of an app that was gone and is back, requests may be under way still.
        let known = || backends.iter().find_map(|b| self.backends.get(&(b.instance, b.address))).map(|b| b.waiting.clone());
        let waiting = self.waiting.entry(app.app).or_insert_with(|| known().unwrap_or_default()).clone();
        let backends = backends.iter().map(|b| {
            let backend = self.backends.entry((b.instance, b.address)).or_insert_with(|| {
                self.next_serial += 1;
                Arc::new(Backend::new(b, self.next_serial, waiting.clone()))
            });
            backend.revive();
            backend.clone()
        });
        let backends = backends.collect();
        let freed = waiting.queue((target.process.clone(), target.version, policy.max_per_instance));
        Arc::new(App {
            id: app.app,
            name: app.name.as_str().into(),
            process: target.process.clone(),
            version: target.version,
            state,
            backends,
            waiting,
            freed,
            policy: policy.clone(),
            gate: gate.cloned(),
            turn: AtomicUsize::new(0),
            lines: app.lines.unwrap_or_default(),
            stats: OnceLock::new(),
        })
    }

    /// Ports and names below HTTP. There are few, so all of them are made anew when one changes.
    fn compile_l4(&mut self) -> (L4, Vec<RouteProblem>) {
        let (mut l4, mut problems) = (L4::default(), Vec::new());
        let apps: Vec<Arc<AppRoute>> = self.table.apps.iter().filter(|a| !a.routes.is_empty()).cloned().collect();
        for app in apps {
            for route in &app.routes {
                let compiled = match &route.matches {
                    Match::Http { .. } => continue,
                    _ => self.route(&app, route),
                };
                let taken = match &route.matches {
                    Match::Http { .. } => None,
                    Match::Tcp { port, tls } => {
                        let port = l4.ports.entry(port.get()).or_default();
                        port.claim(compiled, *tls)
                    }
                    Match::Sni { host, port } => {
                        let names = match port {
                            Some(port) => &mut l4.ports.entry(port.get()).or_insert_with(PortRoutes::default).names,
                            None => &mut l4.names,
                        };
                        names.claim(host.as_str(), compiled)
                    }
                    Match::Udp { port } => match l4.udp.entry(port.get()) {
                        std::collections::btree_map::Entry::Vacant(free) => {
                            free.insert(compiled);
                            None
                        }
                        std::collections::btree_map::Entry::Occupied(first) => Some(first.get().app),
                    },
                };
                if let Some(first) = taken {
                    let message = format!("{} belongs to another route (of app {first}) already", route.matches);
                    problems.push(RouteProblem { app: app.app, route: Some(route.id), message });
                }
            }
        }
        (l4, problems)
    }

    /// Instances that are out at the moment.
    pub(crate) fn out(&self, now_ms: u64) -> BTreeSet<InstanceId> {
        let out = self.backends.values().filter(|b| !b.is_retired() && b.is_out(now_ms));
        out.map(|b| b.instance).collect()
    }

    /// Requests under way by instance, without zeros; forgets retired instances that have none left.
    pub(crate) fn in_flight(&mut self) -> BTreeMap<InstanceId, u32> {
        let mut counts = BTreeMap::new();
        self.backends.retain(|_, backend| {
            // In this order: a retired instance gains no request, so a zero read after it is final.
            let retired = backend.is_retired();
            let n = backend.in_flight();
            if n > 0 {
                *counts.entry(backend.instance).or_insert(0) += n;
            }
            n > 0 || !retired
        });
        counts
    }
}

/// What a route does with requests. A domain's own counts its clients by the app.
fn gate(app: &AppRoute, route: Option<RouteId>, policy: &Policy) -> Option<Arc<Gate>> {
    let scope = route.map_or(app.app.0, |r| r.0).as_u128();
    Gate::new(scope, &policy.http, policy.idle_seconds, &app.pages).map(Arc::new)
}

/// Every host that an app claims, wildcards with their `*.`.
fn hosts_of(app: &AppRoute) -> impl Iterator<Item = &str> {
    let routes = app.routes.iter().filter_map(|r| match &r.matches {
        Match::Http { host, .. } => Some(host.as_str()),
        _ => None,
    });
    app.domains.iter().map(flex_model::DomainName::as_str).chain(routes)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
