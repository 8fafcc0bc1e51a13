//! The routing table in the form that requests read: hash look-ups by host, and counters that outlive a table.
//!
//! Invariant: an instance that a published status shows with no request in flight, and that is not in the table of that
//! revision, gets no request any more. A request first counts itself and then checks that the instance was not retired;
//! a new table first retires and then reads the counters; both in one total order (`SeqCst`), so one of them sees the other.

use crate::shared::Dirty;
use flex_model::{AppId, AppRoute, AppState, InstanceId, RouteTable};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

/// An instance as all workers share it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) instance: InstanceId,
    pub(crate) address: SocketAddr,
    /// `web.1`.
    pub(crate) name: String,
    /// Never used twice, so that pools cannot mistake one for another.
    pub(crate) serial: u64,
    in_flight: AtomicU32,
    retired: AtomicBool,
    failures: AtomicU32,
    /// In milliseconds of the shared clock; no requests before it.
    out_until: AtomicU64,
}

impl Backend {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }
    pub(crate) fn is_out(&self, now_ms: u64) -> bool {
        self.out_until.load(SeqCst) > now_ms
    }
    /// A connection was made: forget the failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(SeqCst) != 0 {
            self.failures.store(0, SeqCst);
            self.out_until.store(0, SeqCst);
        }
    }
    /// A connection could not be made (or too slowly): out for `base`, doubled for each failure in a row, at most a minute.
    /// False if it was out already.
    pub(crate) fn failed(&self, now_ms: u64, base: Duration) -> bool {
        // Failures of requests that began before it was taken out are the same failure.
        if self.is_out(now_ms) {
            return false;
        }
        let before = self.failures.fetch_add(1, SeqCst).min(16);
        let base = u64::try_from(base.as_millis()).unwrap_or(u64::MAX);
        let out = base.saturating_mul(1 << before).min(60_000.max(base));
        self.out_until.store(now_ms.saturating_add(out), SeqCst);
        true
    }
}

/// One request under way on an instance; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) backend: Arc<Backend>,
    dirty: Arc<Dirty>,
}

impl Lease {
    /// Counts a request in. `None` when the instance was retired meanwhile: choose again.
    pub(crate) fn take(backend: &Arc<Backend>, dirty: &Arc<Dirty>) -> Option<Self> {
        backend.in_flight.fetch_add(1, SeqCst);
        let lease = Self { backend: backend.clone(), dirty: dirty.clone() };
        dirty.mark();
        (!backend.is_retired()).then_some(lease)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.in_flight.fetch_sub(1, SeqCst);
        self.dirty.mark();
    }
}

/// One app's routes, compiled.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) id: AppId,
    pub(crate) state: AppState,
    pub(crate) backends: Vec<Arc<Backend>>,
    /// Requests held for it; shared by all tables that it is in.
    pub(crate) held: Arc<AtomicUsize>,
}

/// A compiled table.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) revision: u64,
    exact: HashMap<Box<str>, Arc<App>>,
    /// Without the `*.`.
    wildcard: HashMap<Box<str>, Arc<App>>,
}

impl Routes {
    /// The app at a host name (lower case, no port): the exact name, else the wildcard with the longest suffix.
    pub(crate) fn find(&self, host: &str) -> Option<&Arc<App>> {
        if let Some(app) = self.exact.get(host) {
            return Some(app);
        }
        if self.wildcard.is_empty() {
            return None;
        }
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(app) = self.wildcard.get(suffix) {
                return Some(app);
            }
            rest = suffix;
        }
        None
    }
}

/// What lives longer than a table: instances with their counters, and apps' counts of held requests.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    backends: HashMap<(InstanceId, SocketAddr), Arc<Backend>>,
    held: HashMap<AppId, Arc<AtomicUsize>>,
    next_serial: u64,
}

impl Registry {
    /// Compiles a table, keeping the counters of instances that stay. Instances that are not in it are retired only by
    /// [`Registry::retire_absent`], once the new table is the one that requests read.
    pub(crate) fn compile(&mut self, table: &RouteTable) -> Routes {
        let mut routes = Routes { revision: table.revision, ..Routes::default() };
        routes.exact.reserve(table.apps.len());
        for route in &table.apps {
            let app = Arc::new(self.app(route));
            for domain in &route.domains {
                let name = domain.as_str();
                let (map, key) =
                    name.strip_prefix("*.").map_or((&mut routes.exact, name), |suffix| (&mut routes.wildcard, suffix));
                if let Some(other) = map.get(key) {
                    tracing::warn!(domain = name, app = %route.app, other = %other.id, "two apps claim one domain; the first keeps it");
                } else {
                    map.insert(key.into(), app.clone());
                }
            }
        }
        routes
    }

    fn app(&mut self, route: &AppRoute) -> App {
        let backends = route.backends.iter().map(|b| {
            let backend = self.backends.entry((b.instance, b.address)).or_insert_with(|| {
                self.next_serial += 1;
                Arc::new(Backend {
                    instance: b.instance,
                    address: b.address,
                    name: b.name.clone(),
                    serial: self.next_serial,
                    in_flight: AtomicU32::new(0),
                    retired: AtomicBool::new(false),
                    failures: AtomicU32::new(0),
                    out_until: AtomicU64::new(0),
                })
            });
            backend.retired.store(false, SeqCst);
            backend.clone()
        });
        let backends = backends.collect();
        App { id: route.app, state: route.state, backends, held: self.held.entry(route.app).or_default().clone() }
    }

    /// Marks every instance that `table` does not name; call it once requests read `table`'s routes.
    pub(crate) fn retire_absent(&mut self, table: &RouteTable) {
        let named: std::collections::HashSet<(InstanceId, SocketAddr)> =
            table.apps.iter().flat_map(|a| &a.backends).map(|b| (b.instance, b.address)).collect();
        for (key, backend) in &self.backends {
            if !named.contains(key) {
                backend.retired.store(true, SeqCst);
            }
        }
        let apps: std::collections::HashSet<AppId> = table.apps.iter().map(|a| a.app).collect();
        self.held.retain(|app, held| apps.contains(app) || held.load(SeqCst) > 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(domains: &[(&str, u128)]) -> RouteTable {
        let apps = domains.iter().map(|(domain, id)| AppRoute {
            app: AppId(flex_model::Uuid::from_u128(*id)),
            name: "app".parse().unwrap(),
            domains: vec![domain.parse().unwrap()],
            state: AppState::Serving,
            backends: vec![flex_model::Backend {
                instance: InstanceId(flex_model::Uuid::from_u128(*id)),
                name: "web.1".into(),
                address: ([127, 0, 0, 1], 80).into(),
            }],
        });
        RouteTable { revision: 1, apps: apps.collect() }
    }

    #[test]
    fn exact_before_the_longest_wildcard() {
        let routes = Registry::default().compile(&table(&[("*.b.c", 1), ("a.b.c", 2), ("*.x.b.c", 3), ("*.c", 4), ("a.b.c", 5)]));
        let find = |host: &str| routes.find(host).map(|app| app.id.0.as_u128());
        assert_eq!(find("a.b.c"), Some(2));
        assert_eq!(find("z.b.c"), Some(1));
        assert_eq!(find("y.z.b.c"), Some(1));
        assert_eq!(find("y.x.b.c"), Some(3));
        assert_eq!(find("b.c"), Some(4));
        assert_eq!(find("c"), None);
        assert_eq!(find(""), None);
        assert_eq!(find("b.d"), None);
    }

    #[test]
    fn an_absent_instance_takes_no_request_and_is_counted_until_its_last() {
        let dirty = Arc::new(Dirty::default());
        let mut registry = Registry::default();
        let routes = registry.compile(&table(&[("a.b", 7)]));
        let backend = routes.find("a.b").unwrap().backends[0].clone();
        let running = Lease::take(&backend, &dirty).unwrap();
        registry.compile(&table(&[]));
        registry.retire_absent(&table(&[]));
        assert!(Lease::take(&backend, &dirty).is_none());
        assert_eq!(registry.in_flight(), BTreeMap::from([(backend.instance, 1)]));
        drop(running);
        assert!(registry.in_flight().is_empty());
        assert!(registry.backends.is_empty());
    }

    #[test]
    fn failures_back_off_and_a_success_forgives() {
        let mut registry = Registry::default();
        let backend = registry.compile(&table(&[("a.b", 7)])).find("a.b").unwrap().backends[0].clone();
        let second = Duration::from_secs(1);
        backend.failed(0, second);
        backend.failed(10, second);
        assert!(backend.is_out(999) && !backend.is_out(1000));
        backend.failed(1000, second);
        assert!(backend.is_out(2999) && !backend.is_out(3000));
        backend.succeeded();
        assert!(!backend.is_out(1500));
        backend.failed(4000, second);
        assert!(!backend.is_out(5000));
    }
}
