//! Instances with their counters, and the requests that wait for them: what lives longer than a table. Puts together what a
//! route leads to, when it is first asked for.
//!
//! Invariants: an instance is retired only after no route leads to it any more. A route of a table that is not in force any
//! more may be asked for late; what it leads to then is what is known, and what is not known is born retired, so that nobody
//! who tells of the requests under way misses one.

use crate::{
    policy::Gate,
    table::{App, Backend, Route, Targets},
    waiting::Waiting,
};
use flex_model::{AppId, AppRoute, AppState, InstanceId, Policy, RouteId, RouteTable, Target, app_list::Difference};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicUsize},
};

#[derive(Default)]
pub(crate) struct Instances(Mutex<Known>);

impl std::fmt::Debug for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Instances")
    }
}

#[derive(Default)]
struct Known {
    backends: HashMap<(InstanceId, SocketAddr), Arc<Backend>>,
    waiting: HashMap<AppId, Arc<Waiting>>,
    /// Retired, and perhaps not without requests yet.
    leaving: Vec<Arc<Backend>>,
    next_serial: u64,
    /// In force.
    table: Arc<RouteTable>,
    /// Being put in force.
    next: Option<Arc<RouteTable>>,
}

impl Instances {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there are routes of that table.
    pub(crate) fn begin(&self, table: &Arc<RouteTable>) {
        self.lock().next = Some(table.clone());
    }

    /// From now on there are routes of that table only: retires who is not in it any more.
    pub(crate) fn settle(&self, changed: &[Difference]) {
        let mut known = self.lock();
        if let Some(next) = known.next.take() {
            known.table = next;
        }
        for (old, new) in changed {
            let Some(old) = old else { continue };
            let stays: BTreeSet<_> = new.iter().flat_map(|a| a.instances()).map(|b| (b.instance, b.address)).collect();
            for gone in old.instances().map(|b| (b.instance, b.address)).filter(|key| !stays.contains(key)) {
                if let Some(backend) = known.backends.get(&gone).cloned() {
                    backend.retire();
                    known.leaving.push(backend);
                }
            }
            if new.is_none() {
                known.waiting.remove(&old.app);
            }
        }
    }

    /// Forgets retired instances that have no request left.
    pub(crate) fn forget(&self) {
        let mut known = self.lock();
        let Known { backends, leaving, .. } = &mut *known;
        leaving.retain(|backend| {
            // In this order: a retired instance gains no request, so a zero read after it is final.
            if !backend.is_retired() {
                return false;
            }
            let stays = backend.in_flight() > 0;
            if !stays {
                backends.remove(&(backend.instance, backend.address));
            }
            stays
        });
    }

    /// What a route leads to.
    pub(crate) fn targets(&self, source: &Arc<AppRoute>, route: &Route) -> Targets {
        let policy = route.policy();
        let gate = gate(source, route.id(), policy);
        let mut known = self.lock();
        let targets = source.targets_of(route.made());
        if let [only] = &*targets {
            return Targets::One(known.pool(source, only, policy, gate.as_ref()));
        }
        Targets::Many(targets.iter().map(|t| (t.weight, known.pool(source, t, policy, gate.as_ref()))).collect())
    }

    #[cfg(test)]
    pub(crate) fn backends(&self) -> Vec<Arc<Backend>> {
        self.lock().backends.values().cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let known = self.lock();
        known.backends.is_empty() && known.waiting.is_empty() && known.leaving.is_empty()
    }
}

impl Known {
    fn pool(&mut self, app: &Arc<AppRoute>, target: &Target, policy: &Arc<Policy>, gate: Option<&Arc<Gate>>) -> Arc<App> {
        let tables = [Some(&self.table), self.next.as_ref()].into_iter().flatten();
        let current = tables.filter_map(|t| t.app(app.app)).any(|known| Arc::ptr_eq(known, app));
        let special = app.pools.iter().find(|p| p.process == target.process && p.version == target.version);
        let (state, backends) = match special {
            Some(pool) => (pool.state, pool.backends.as_slice()),
            None if target.process.is_web() && target.version.is_none() => (app.state, app.backends.as_slice()),
            None => (AppState::NoWeb, [].as_slice()),
        };
        // Maintenance is of the whole app.
        let state = if app.state == AppState::Maintenance { app.state } else { state };
        // Of an app that was gone and is back, requests may be under way still.
        let of_others = || backends.iter().find_map(|b| self.backends.get(&(b.instance, b.address))).map(|b| b.waiting.clone());
        let waiting = match self.waiting.get(&app.app) {
            Some(known) => known.clone(),
            None => of_others().unwrap_or_default(),
        };
        if current {
            self.waiting.entry(app.app).or_insert_with(|| waiting.clone());
        }
        let backends = backends.iter().map(|b| self.backend(b, &waiting, current)).collect();
        let freed = waiting.queue(&target.process, target.version, policy.max_per_instance);
        Arc::new(App {
            id: app.app,
            name: app.name.clone(),
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

    fn backend(&mut self, backend: &flex_model::Backend, waiting: &Arc<Waiting>, current: bool) -> Arc<Backend> {
        let place = (backend.instance, backend.address);
        if let Some(known) = self.backends.get(&place) {
            if current {
                known.revive();
            }
            return known.clone();
        }
        self.next_serial += 1;
        let new = Arc::new(Backend::new(backend, self.next_serial, waiting.clone()));
        if current {
            self.backends.insert(place, new.clone());
        } else {
            new.retire();
        }
        new
    }
}

/// What a route does with requests. A domain's own counts its clients by the app.
fn gate(app: &AppRoute, route: Option<RouteId>, policy: &Policy) -> Option<Arc<Gate>> {
    let scope = route.map_or(app.app.0, |r| r.0).as_u128();
    Gate::new(scope, &policy.http, policy.idle_seconds, &app.pages).map(Arc::new)
}
