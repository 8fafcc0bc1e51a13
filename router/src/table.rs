//! The routing table in the form that requests read: hash look-ups by host and path, and counters that outlive a table.
//!
//! Invariant: an instance that a published status shows with no request in flight, and that is not in the table of that
//! revision, gets no request any more. A request first counts itself and then checks that the instance was not retired;
//! a new table first retires and then reads the counters; both in one total order (`SeqCst`), so one of them sees the other.
//!
//! Hosts lie in shards, each a map behind one atomic pointer: a look-up ([`crate::find`]) takes no lock, and a change copies
//! one shard.

use crate::{instances::Instances, policy::Gate, shared::Dirty, stats::AppStats, waiting::Waiting};
use arc_swap::ArcSwap;
use flex_model::{AppId, AppName, AppRoute, AppState, InstanceId, LineForm, Policy, ProcessType, RouteId, Secret};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

/// So many new connections in a row without a byte of an answer, and an instance is out.
const SILENT: u32 = 3;

/// An instance as all workers share it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) instance: InstanceId,
    pub(crate) address: SocketAddr,
    /// `web.1`.
    pub(crate) name: String,
    /// Never used twice, so that pools cannot mistake one for another.
    pub(crate) serial: u64,
    /// Who may wait for a place on it.
    pub(crate) waiting: Arc<Waiting>,
    in_flight: AtomicU32,
    retired: AtomicBool,
    /// Connections that could not be made, in a row.
    failures: AtomicU32,
    /// New connections that ended without a byte of an answer, in a row.
    silent: AtomicU32,
    /// In milliseconds of the shared clock; no requests before it.
    out_until: AtomicU64,
    /// Who tells the status knows that there is something to tell of it.
    listed: AtomicBool,
}

impl Backend {
    pub(crate) fn new(backend: &flex_model::Backend, serial: u64, waiting: Arc<Waiting>) -> Self {
        Self {
            instance: backend.instance,
            address: backend.address,
            name: backend.name.clone(),
            serial,
            waiting,
            in_flight: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            silent: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            listed: AtomicBool::new(false),
        }
    }
    /// True: it was not listed, and who asks has to do it.
    pub(crate) fn list(&self) -> bool {
        !self.listed.load(SeqCst) && !self.listed.swap(true, SeqCst)
    }
    pub(crate) fn unlist(&self) {
        self.listed.store(false, SeqCst);
    }
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }
    pub(crate) fn retire(&self) {
        self.retired.store(true, SeqCst);
    }
    /// It is in the table again.
    pub(crate) fn revive(&self) {
        self.retired.store(false, SeqCst);
    }
    pub(crate) fn is_out(&self, now_ms: u64) -> bool {
        self.out_until.load(SeqCst) > now_ms
    }
    /// A connection was made: forget the failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(SeqCst) != 0 {
            self.failures.store(0, SeqCst);
            if self.silent.load(SeqCst) < SILENT {
                self.out_until.store(0, SeqCst);
            }
        }
    }
    /// It answers.
    pub(crate) fn answered(&self) {
        if self.silent.load(SeqCst) != 0 {
            self.silent.store(0, SeqCst);
            if self.failures.load(SeqCst) == 0 {
                self.out_until.store(0, SeqCst);
            }
        }
    }
    /// A connection could not be made (or too slowly): out for `base`, doubled for each failure in a row, at most a minute.
    /// False if it was out already.
    pub(crate) fn failed(&self, now_ms: u64, base: Duration) -> bool {
        // Failures of requests that began before it was taken out are the same failure.
        if self.is_out(now_ms) {
            return false;
        }
        self.eject(self.failures.fetch_add(1, SeqCst), now_ms, base);
        true
    }
    /// A new connection was accepted and ended without a word. One request may have been the reason for that; several in a row,
    /// with no answer between them, are taken as failures to connect. False if it stays in, or was out already.
    pub(crate) fn was_silent(&self, now_ms: u64, base: Duration) -> bool {
        if self.is_out(now_ms) {
            return false;
        }
        let before = self.silent.fetch_add(1, SeqCst);
        let Some(times) = (before + 1).checked_sub(SILENT) else { return false };
        self.eject(times, now_ms, base);
        true
    }
    fn eject(&self, times: u32, now_ms: u64, base: Duration) {
        let base = u64::try_from(base.as_millis()).unwrap_or(u64::MAX);
        let out = base.saturating_mul(1 << times.min(16)).min(60_000.max(base));
        self.out_until.store(now_ms.saturating_add(out), SeqCst);
    }
}

/// One request under way on an instance; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) backend: Arc<Backend>,
    dirty: Arc<Dirty>,
}

/// Why a place on an instance could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The instance was retired meanwhile: choose again by the newest table.
    Retired,
    /// Others were faster, and it has its most.
    Full,
}

impl Lease {
    /// Counts a request in.
    pub(crate) fn take(app: &App, backend: &Arc<Backend>, dirty: &Arc<Dirty>) -> Result<Self, NoPlace> {
        let before = backend.in_flight.fetch_add(1, SeqCst);
        let limit = app.policy.max_per_instance;
        let lease = Self { backend: backend.clone(), dirty: dirty.clone() };
        dirty.note(backend);
        if backend.is_retired() {
            return Err(NoPlace::Retired);
        }
        if limit.is_some_and(|most| before >= most) { Err(NoPlace::Full) } else { Ok(lease) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.in_flight.fetch_sub(1, SeqCst);
        self.dirty.mark();
        self.backend.waiting.freed();
    }
}

/// What one target of a route leads to: an app's instances of one process type, and how they are to be treated.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) id: AppId,
    pub(crate) name: AppName,
    pub(crate) process: ProcessType,
    /// Of only this release.
    pub(crate) version: Option<u64>,
    pub(crate) state: AppState,
    pub(crate) backends: Box<[Arc<Backend>]>,
    pub(crate) waiting: Arc<Waiting>,
    /// Tells who waits for a place.
    pub(crate) freed: Arc<tokio::sync::Notify>,
    pub(crate) policy: Arc<Policy>,
    /// None: the policy says nothing about HTTP.
    pub(crate) gate: Option<Arc<Gate>>,
    /// Whose turn it is, where instances take turns.
    pub(crate) turn: AtomicUsize,
    pub(crate) lines: LineForm,
    /// Where its requests are counted; found with the first one.
    pub(crate) stats: OnceLock<Arc<AppStats>>,
}

impl App {
    /// Whether an instance has a place for a request more.
    pub(crate) fn has_room(&self) -> bool {
        self.policy.max_per_instance.is_none_or(|most| self.backends.iter().any(|b| b.in_flight() < most))
    }
}

/// What a route leads to.
#[derive(Debug)]
pub(crate) enum Targets {
    One(Arc<App>),
    /// By weight.
    Many(Box<[(u32, Arc<App>)]>),
}

/// A way into an app. What it leads to is put together when it is first asked for: of 100,000 apps, most are not asked for
/// today, and each of those costs this and its name.
#[derive(Debug)]
pub(crate) struct Route {
    source: Arc<AppRoute>,
    instances: Arc<Instances>,
    /// Which one of the app's routes; beyond the last: what its domains do without one.
    index: u32,
    targets: OnceLock<Box<Targets>>,
}

/// What holds where nothing is set.
static DEFAULTS: LazyLock<Arc<Policy>> = LazyLock::new(Arc::default);

impl Route {
    /// `at`: which one of the app's routes; none: what its domains do.
    pub(crate) fn new(source: &Arc<AppRoute>, instances: &Arc<Instances>, at: Option<usize>) -> Arc<Self> {
        let index = at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX);
        Arc::new(Self { source: source.clone(), instances: instances.clone(), index, targets: OnceLock::new() })
    }

    pub(crate) fn app(&self) -> AppId {
        self.source.app
    }

    /// As somebody made it; none: it is a domain's own.
    pub(crate) fn made(&self) -> Option<&flex_model::Route> {
        self.source.routes.get(self.index as usize)
    }

    pub(crate) fn id(&self) -> Option<RouteId> {
        self.made().map(|r| r.id)
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        let own = self.made().map_or(&self.source.policy, |r| &r.policy);
        own.as_ref().unwrap_or(&DEFAULTS)
    }

    fn all(&self) -> &Targets {
        self.targets.get_or_init(|| Box::new(self.instances.targets(&self.source, self)))
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &Arc<App>> {
        let (one, many) = match self.all() {
            Targets::One(app) => (Some(app), [].as_slice()),
            Targets::Many(all) => (None, &**all),
        };
        one.into_iter().chain(many.iter().map(|(_, app)| app))
    }

    /// The target that a request goes to: the one that has the instance its cookie names, else one by weight.
    pub(crate) fn choose_for(&self, wanted: Option<InstanceId>, random: u64) -> Option<&Arc<App>> {
        let has = |app: &&Arc<App>| app.backends.iter().any(|b| Some(b.instance) == wanted);
        wanted.and_then(|_| self.targets().find(has)).or_else(|| self.choose(random))
    }

    /// One of the targets, by weight; of those that have no instance only when none has one. `random` decides.
    pub(crate) fn choose(&self, random: u64) -> Option<&Arc<App>> {
        let all = match self.all() {
            Targets::One(only) => return Some(only),
            Targets::Many(all) => all,
        };
        let by_weight = |fit: &dyn Fn(&App) -> bool| {
            let sum: u64 = all.iter().filter(|(_, a)| fit(a)).map(|(w, _)| u64::from(*w)).sum();
            let mut at = random.checked_rem(sum)?;
            all.iter().filter(|(_, a)| fit(a)).find_map(|(w, app)| match at.checked_sub(u64::from(*w)) {
                Some(left) => {
                    at = left;
                    None
                }
                None => Some(app),
            })
        };
        by_weight(&|app| !app.backends.is_empty()).or_else(|| by_weight(&|_| true)).or_else(|| self.targets().next())
    }
}

/// What a host does at one path and below it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Empty for `/`.
    pub(crate) path: Box<str>,
    pub(crate) route: Arc<Route>,
}

/// What a host does.
#[derive(Debug, Clone)]
pub(crate) enum Host {
    /// The same at every path.
    One(Arc<Route>),
    /// By path, the longest first.
    Many(Arc<[Entry]>),
}

impl Host {
    /// Paths and what is there, the longest path first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Arc<Route>)> {
        let (one, many) = match self {
            Self::One(route) => (Some(("", route)), [].as_slice()),
            Self::Many(all) => (None, &**all),
        };
        one.into_iter().chain(many.iter().map(|e| (&*e.path, &e.route)))
    }
}

/// Enough that a shard of 100,000 hosts is copied in microseconds, few enough that empty ones cost nothing to speak of.
const SHARDS: usize = 256;

type Shard = HashMap<Arc<str>, Host>;

/// Names with what they lead to now; nothing: no longer anywhere.
pub(crate) type Changes = Vec<(Arc<str>, Option<Host>)>;

/// Names with what they lead to, readable without a lock.
#[derive(Debug)]
pub(crate) struct Names {
    shards: Box<[ArcSwap<Shard>]>,
    pub(crate) count: AtomicUsize,
}

impl Default for Names {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: (0..SHARDS).map(|_| ArcSwap::new(empty.clone())).collect(), count: AtomicUsize::new(0) }
    }
}

/// FNV-1a: only spreads names over shards; within one, the map's own hash defends itself against chosen names.
fn shard_of(name: &str) -> usize {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    usize::try_from((hash >> 32) % SHARDS as u64).unwrap_or(0)
}

impl Names {
    pub(crate) fn with<R>(&self, name: &str, f: impl FnOnce(&Host) -> R) -> Option<R> {
        self.shards[shard_of(name)].load().get(name).map(f)
    }

    /// Puts names in place, and takes away those that lead to nothing. One copy for each shard that changes.
    fn update(&self, changes: Changes) {
        let mut by_shard: BTreeMap<usize, Changes> = BTreeMap::new();
        for (name, host) in changes {
            by_shard.entry(shard_of(&name)).or_default().push((name, host));
        }
        for (at, changes) in by_shard {
            let mut shard = Shard::clone(&self.shards[at].load());
            let before = shard.len();
            if before == 0 {
                shard.reserve(changes.len());
            }
            for (name, host) in changes {
                match host {
                    Some(host) => shard.insert(name, host),
                    None => shard.remove(&name),
                };
            }
            self.count.fetch_add(shard.len(), SeqCst);
            self.count.fetch_sub(before, SeqCst);
            self.shards[at].store(Arc::new(shard));
        }
    }
}

/// Exact names and wildcards that share one space, such as those of a port.
#[derive(Debug, Default)]
pub(crate) struct SniNames(pub(crate) HashMap<Box<str>, Arc<Route>>);

impl SniNames {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn any(&self) -> Option<&Arc<Route>> {
        self.0.values().next()
    }

    /// Who has it already, if somebody does.
    pub(crate) fn claim(&mut self, name: &str, route: Arc<Route>) -> Option<AppId> {
        match self.0.entry(name.into()) {
            std::collections::hash_map::Entry::Occupied(first) => Some(first.get().app()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(route);
                None
            }
        }
    }
}

/// What a TCP port does.
#[derive(Debug, Default)]
pub(crate) struct PortRoutes {
    /// By the name that a TLS client asks for.
    pub(crate) names: SniNames,
    /// Everything else.
    pub(crate) plain: Option<Arc<Route>>,
    /// TLS ends here before `plain` is served.
    pub(crate) tls: bool,
}

impl PortRoutes {
    pub(crate) fn claim(&mut self, route: Arc<Route>, tls: bool) -> Option<AppId> {
        if let Some(first) = &self.plain {
            return Some(first.app());
        }
        (self.plain, self.tls) = (Some(route), tls);
        None
    }
}

/// Routes below HTTP.
#[derive(Debug, Default)]
pub(crate) struct L4 {
    pub(crate) ports: BTreeMap<u16, PortRoutes>,
    /// Names passed through on the HTTPS listeners.
    pub(crate) names: SniNames,
    pub(crate) udp: BTreeMap<u16, Arc<Route>>,
}

/// The table that requests read.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// The newest revision that is wholly in force.
    pub(crate) revision: AtomicU64,
    pub(crate) exact: Names,
    /// Without the `*.`.
    pub(crate) wildcard: Names,
    pub(crate) l4: ArcSwap<L4>,
    cookie_key: ArcSwap<Option<Secret>>,
}

impl Routes {
    /// What is in force for a host as the table writes it.
    pub(crate) fn host(&self, host: &str) -> Option<Host> {
        match host.strip_prefix("*.") {
            Some(suffix) => self.wildcard.with(suffix, Host::clone),
            None => self.exact.with(host, Host::clone),
        }
    }

    /// How many host names there are, wildcards included.
    pub(crate) fn hosts(&self) -> usize {
        self.exact.count.load(SeqCst) + self.wildcard.count.load(SeqCst)
    }

    pub(crate) fn update(&self, changes: Changes) {
        let (wild, exact): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(host, _)| host.starts_with("*."));
        let wild = wild.into_iter().map(|(host, entry)| (Arc::from(&host[2..]), entry));
        self.wildcard.update(wild.collect());
        self.exact.update(exact);
    }

    pub(crate) fn set_cookie_key(&self, key: Option<&Secret>) {
        if self.cookie_key.load().as_ref().as_ref() != key {
            self.cookie_key.store(Arc::new(key.cloned()));
        }
    }

    /// What cookies are signed with; none: no cookie can be believed or given out.
    pub(crate) fn cookie_key(&self) -> Arc<Option<Secret>> {
        self.cookie_key.load_full()
    }
}
