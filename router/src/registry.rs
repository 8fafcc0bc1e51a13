//! Turns a routing table into what requests read, doing only what changed since the table before: with 100,000 apps a
//! change of one costs a look at some hundred pieces of the table and a copy of one small map.
//!
//! Invariants: a host that several apps claim goes to the one with the lowest id, path by path, whatever the order in
//! which they came; an instance is retired only after no route leads to it any more.

use crate::instances::Instances;
use crate::shared::Dirty;
use crate::table::{Backend, Changes, Entry, Host, L4, PortRoutes, Route, Routes};
use flex_model::{AppId, AppRoute, DomainName, InstanceId, Match, RouteProblem, RouteTable};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering::SeqCst},
};

/// What lives longer than a table: instances with their counters, apps' waiting requests, and the table before.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    instances: Arc<Instances>,
    /// As it was applied last.
    table: Arc<RouteTable>,
    /// Apps with routes below HTTP: few.
    below_http: BTreeSet<AppId>,
    /// Hosts that more than one app claims, with all who do.
    contested: HashMap<Arc<str>, BTreeSet<AppId>>,
    problems: BTreeMap<Arc<str>, Vec<RouteProblem>>,
    /// Instances that there is something to tell of.
    busy: Vec<Arc<Backend>>,
}

/// Something that an app wants of a host. None: it wanted something before.
type Claim = (Arc<str>, AppId, Option<Arc<Route>>);

impl Registry {
    /// Makes `table` the one that requests read, then retires who is not in it any more. Gives the apps that changed, as they
    /// are now.
    pub(crate) fn apply(&mut self, routes: &Routes, table: &Arc<RouteTable>) -> Vec<(AppId, Option<Arc<AppRoute>>)> {
        let before = std::mem::replace(&mut self.table, table.clone());
        // Also what only lies elsewhere, or else both tables would stay in memory.
        let changed = before.apps.replaced(&table.apps);
        let mut claims: Vec<Claim> = Vec::with_capacity(changed.len());
        let mut l4 = false;
        for (old, new) in &changed {
            for app in [old, new].into_iter().flatten() {
                l4 |= app.routes.iter().any(is_below_http);
            }
            if let Some(old) = old {
                self.below_http.remove(&old.app);
                claims.extend(hosts_of(old).map(|host| (host.shared(), old.app, None)));
            }
            if let Some(new) = new {
                if new.routes.iter().any(is_below_http) {
                    self.below_http.insert(new.app);
                }
                claims.extend(self.claims(new).map(|(host, route)| (host.shared(), new.app, Some(route))));
            }
        }
        self.instances.begin(table);
        // In a stable order: of an app's claims on one host, the first wins.
        claims.sort_by(|a, b| a.0.cmp(&b.0));
        let changes: Changes = claims.chunk_by(|a, b| a.0 == b.0).map(|of| (of[0].0.clone(), self.host(routes, of))).collect();
        drop(claims);
        routes.update(changes);
        if l4 {
            let (ports, problems) = self.compile_l4();
            self.note("".into(), problems);
            routes.l4.store(Arc::new(ports));
        }
        routes.set_cookie_key(table.cookie_key.as_ref());
        routes.revision.store(table.revision, SeqCst);
        self.instances.settle(&changed);
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

    /// What an app wants of hosts, its own routes first: they win over what its domains do without one.
    fn claims<'a>(&'a self, app: &'a Arc<AppRoute>) -> impl Iterator<Item = (&'a DomainName, Arc<Route>)> {
        let made = app.routes.iter().enumerate().filter_map(move |(at, r)| match &r.matches {
            Match::Http { host, .. } => Some((host, Route::new(app, &self.instances, Some(at)))),
            _ => None,
        });
        let own = (!app.domains.is_empty()).then(|| Route::new(app, &self.instances, None));
        made.chain(own.into_iter().flat_map(move |own| app.domains.iter().map(move |d| (d, own.clone()))))
    }

    /// Puts one host together from all apps that claim it. `fresh`: what is claimed anew, and by whom it was.
    fn host(&mut self, routes: &Routes, fresh: &[Claim]) -> Option<Host> {
        let host = &fresh[0].0;
        let mut apps: BTreeSet<AppId> = fresh.iter().map(|(_, app, _)| *app).collect();
        let changed = apps.clone();
        apps.extend(routes.host(host).iter().flat_map(|h| h.entries().map(|(_, r)| r.app()).collect::<Vec<_>>()));
        apps.extend(self.contested.get(host).into_iter().flatten());
        let mut entries: Vec<Entry> = Vec::new();
        let (mut claimants, mut problems) = (BTreeSet::new(), Vec::new());
        for id in apps {
            let mine: Vec<Arc<Route>> = if changed.contains(&id) {
                fresh.iter().filter(|(_, app, _)| *app == id).filter_map(|(.., route)| route.clone()).collect()
            } else if let Some(app) = self.table.app(id) {
                self.claims(app).filter(|(h, _)| h.as_str() == &**host).map(|(_, route)| route).collect()
            } else {
                continue;
            };
            for route in mine {
                claimants.insert(id);
                let path = path_of(&route);
                match entries.iter().find(|e| *e.path == *path) {
                    None => entries.push(Entry { path: path.into(), route }),
                    Some(first) if first.route.app() != id => problems.push(RouteProblem {
                        app: id,
                        route: route.id(),
                        message: format!(
                            "{host}{} belongs to another app ({}) too; requests go there",
                            if path.is_empty() { "/" } else { path },
                            first.route.app()
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
        if let [only] = &*entries
            && only.path.is_empty()
        {
            return Some(Host::One(only.route.clone()));
        }
        entries.sort_by(|a, b| b.path.len().cmp(&a.path.len()).then_with(|| a.path.cmp(&b.path)));
        (!entries.is_empty()).then(|| Host::Many(entries.into()))
    }

    /// Ports and names below HTTP. There are few, so all of them are made anew when one changes.
    fn compile_l4(&self) -> (L4, Vec<RouteProblem>) {
        let (mut l4, mut problems) = (L4::default(), Vec::new());
        for app in self.below_http.iter().filter_map(|id| self.table.app(*id)) {
            for (at, route) in app.routes.iter().enumerate() {
                if !is_below_http(route) {
                    continue;
                }
                let compiled = Route::new(app, &self.instances, Some(at));
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
                        std::collections::btree_map::Entry::Occupied(first) => Some(first.get().app()),
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

    /// Requests under way by instance, without zeros, and the instances that are out; forgets retired instances that have no
    /// request left. Costs what is busy, however many there are.
    pub(crate) fn busy(&mut self, dirty: &Dirty, now_ms: u64) -> (BTreeMap<InstanceId, u32>, BTreeSet<InstanceId>) {
        let (mut counts, mut outs) = (BTreeMap::new(), BTreeSet::new());
        self.busy.append(&mut dirty.noted());
        self.busy.retain(|backend| {
            // In this order: who counts itself in after the look at the count lists it again.
            backend.unlist();
            let retired = backend.is_retired();
            let n = backend.in_flight();
            if n > 0 {
                *counts.entry(backend.instance).or_insert(0) += n;
            }
            let out = !retired && backend.is_out(now_ms);
            if out {
                outs.insert(backend.instance);
            }
            (n > 0 || out) && backend.list()
        });
        self.instances.forget();
        (counts, outs)
    }
}

fn is_below_http(route: &flex_model::Route) -> bool {
    !matches!(route.matches, Match::Http { .. })
}

/// Empty for `/`.
fn path_of(route: &Route) -> &str {
    match route.made().map(|r| &r.matches) {
        Some(Match::Http { path, .. }) if !path.is_root() => path.as_str(),
        _ => "",
    }
}

/// Every host that an app claims, wildcards with their `*.`.
fn hosts_of(app: &AppRoute) -> impl Iterator<Item = &DomainName> {
    let routes = app.routes.iter().filter_map(|r| match &r.matches {
        Match::Http { host, .. } => Some(host),
        _ => None,
    });
    app.domains.iter().chain(routes)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
