//! The router as its owner sees it: bound, served, drained; and the two tasks that connect it to the control plane, the
//! table coming in and the status going out.

use crate::{
    AccessSink, Metrics, RouterSettings,
    clients::Clients,
    h3::endpoint::{self as quic, Http3},
    handover::{self, Book, Handover, Predecessor, Rest},
    io::Clock,
    l4,
    metrics::Counters,
    persist,
    registry::Registry,
    shared::{Dirty, Shared},
    stats::{Of, StatsBook},
    table::Routes,
    tls::{self, Tls},
    worker::{self, Listeners},
};
use flex_model::{AppRoute, CertificateTable, RouteTable, RouterStatus};
use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, sync::watch};

/// A status follows a change within this time (and the time to compute it); what changes meanwhile goes with it.
const STATUS_DELAY: Duration = Duration::from_millis(10);
/// How soon a status is made again while an instance is out.
const STATUS_AGAIN: Duration = Duration::from_millis(500);
/// Writing the table to disk is followed by a pause this many times as long.
const WRITE_SHARE: u32 = 10;
/// As large as kernels commonly allow: a burst of connections must not be lost while a worker is busy.
const BACKLOG: u32 = 4096;
/// Free ports that are tried where any will do.
const FREE_PORT_TRIES: u32 = 8;

/// QUIC's own time for silence ends after that of requests and of connections without any.
const QUIC_GRACE: Duration = Duration::from_secs(15);
/// Where the kernel is asked for a port: so often for one that is free for TCP and UDP both.
const FREE_PORTS: usize = 16;

/// Why a router could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("cannot listen on {address}: is another program using it, or may this user not?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the router has no address to listen on: set at least one")]
    NoListener,
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot set up QUIC: the cipher that its first packets need is not there")]
    Quic,
    #[error(
        "HTTP/3 cannot be served behind load balancers that send a PROXY header, which QUIC has no place for: \
         turn off either http3 or proxy_protocol.http"
    )]
    QuicBehindProxy,
    #[error("HTTP/3 needs an HTTPS listener: set one, or turn http3 off")]
    QuicAlone,
    #[error("cannot start a router worker")]
    Worker(#[source] io::Error),
    #[error("a router worker stopped by a fault in the program")]
    Panicked,
}

/// An HTTP router that holds its listening sockets.
pub struct Router {
    shared: Arc<Shared>,
    counters: Vec<Arc<Counters>>,
    /// One set for each worker.
    listeners: Vec<Listeners>,
    local: Vec<SocketAddr>,
    local_tls: Vec<SocketAddr>,
    quic: Vec<quic::Port>,
    registry: Arc<Mutex<Registry>>,
    table: watch::Receiver<Arc<RouteTable>>,
    passed: tokio::sync::mpsc::UnboundedReceiver<l4::Passed>,
    status: watch::Sender<RouterStatus>,
    predecessor: Option<Predecessor>,
    handed: watch::Sender<bool>,
    rest: tokio::sync::mpsc::UnboundedReceiver<(flex_model::AppId, String)>,
}

impl Router {
    /// Takes the listening sockets and the first table: what `table` holds, or the one on disk if that is newer. Requests
    /// are answered once [`Router::serve`] runs. Call it inside a tokio runtime.
    ///
    /// A table of revision 0 means that nobody has made one yet. Later tables are taken as they come.
    pub async fn bind(
        settings: RouterSettings,
        table: watch::Receiver<Arc<RouteTable>>,
        access: Arc<dyn AccessSink>,
    ) -> Result<Self, RouterError> {
        Self::bind_after(None, settings, table, access).await
    }

    /// As [`Router::bind`], with the sockets of the process before this one where there are some of the same addresses. That
    /// process accepts no more once [`Router::serve`] has begun here.
    pub async fn bind_after(
        predecessor: Option<Predecessor>,
        settings: RouterSettings,
        mut table: watch::Receiver<Arc<RouteTable>>,
        access: Arc<dyn AccessSink>,
    ) -> Result<Self, RouterError> {
        if settings.listen.is_empty() && settings.tls.listen.is_empty() {
            return Err(RouterError::NoListener);
        }
        let workers = match settings.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let book = Book::new(settings.hand_over && settings.state_dir.is_some());
        let opening = Opening { workers, book: &book, before: predecessor.as_ref() };
        let (plain, local) = opening.listen(handover::HTTP, &settings.listen)?;
        let ((secure, local_tls), quic) = listen_tls(&settings, &opening)?;
        let listeners = plain.into_iter().zip(secure).map(|(plain, tls)| Listeners { plain, tls, quic: None }).collect();
        let tls = Tls::new(settings.tls.min)?;
        let http3 = match local_tls.first() {
            Some(first) if settings.tls.http3 => {
                let idle = settings.timeouts.keep_alive.max(settings.timeouts.idle) + QUIC_GRACE;
                Some(Http3::new(tls.config(), idle, settings.tls.http3_port.unwrap_or(first.port()))?)
            }
            _ => None,
        };
        let first = first_certificates(&settings).await;
        tls.replace(&first);
        let certificates = AtomicU64::new(first.revision);
        let mut first = table.borrow_and_update().clone();
        if let Some(dir) = settings.state_dir.clone() {
            match tokio::task::spawn_blocking(move || persist::load(&dir)).await {
                Ok(Ok(Some(kept))) if kept.revision > first.revision => {
                    tracing::info!(revision = kept.revision, apps = kept.apps.len(), "routing by the table kept on disk");
                    first = Arc::new(kept);
                }
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(e)) => tracing::warn!(error = &e as &dyn std::error::Error, "going on without the table kept on disk"),
            }
        }
        // One more for what is not HTTP.
        let counters: Vec<_> = (0..=workers).map(|worker| Arc::new(Counters { worker, ..Counters::default() })).collect();
        let stats = StatsBook::new(counters.len(), settings.limits.metrics_apps);
        let (pass, passed) = tokio::sync::mpsc::unbounded_channel();
        let (tell, rest) = tokio::sync::mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            pass,
            settings,
            routes: Routes::default(),
            changes: watch::Sender::new(0),
            access,
            dirty: Arc::new(Dirty::default()),
            stats,
            held: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            clients: Clients::default(),
            compressing: AtomicUsize::new(0),
            clock: Clock::start(),
            buckets: crate::policy::Buckets::default(),
            https_port: local_tls.first().map(SocketAddr::port),
            own_ports: local.iter().chain(&local_tls).map(SocketAddr::port).collect(),
            port_problems: Mutex::default(),
            keeping: Mutex::default(),
            book: Arc::new(book),
            inherited: Mutex::default(),
            rest: tell,
            handed_over: AtomicBool::new(false),
            tls,
            http3,
            certificates,
        });
        let registry = Arc::new(Mutex::new(Registry::default()));
        apply(&shared, &registry, &first);
        let status = watch::Sender::new(RouterStatus {
            router: shared.settings.name.clone(),
            revision: first.revision,
            ..RouterStatus::default()
        });
        let handed = watch::Sender::new(false);
        Ok(Self {
            shared,
            counters,
            listeners,
            local,
            local_tls,
            quic,
            registry,
            table,
            status,
            passed,
            predecessor,
            handed,
            rest,
        })
    }

    /// The first address that it listens on, with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.local[0]
    }

    /// The addresses of its HTTPS listeners, in the order of the settings.
    pub fn local_tls_addrs(&self) -> &[SocketAddr] {
        &self.local_tls
    }

    /// All addresses that it listens on, in the order of the settings.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }

    /// The revision it routes by and the requests under way, published within about 20 ms of a change.
    pub fn status(&self) -> watch::Receiver<RouterStatus> {
        self.status.subscribe()
    }

    /// How the process that follows gets more than the router's sockets, and word of it.
    pub fn handover(&self) -> Handover {
        Handover::new(self.shared.book.clone(), self.handed.subscribe())
    }

    /// The counters.
    pub fn metrics(&self) -> Metrics {
        Metrics { counters: self.counters.clone(), shared: self.shared.clone() }
    }

    /// Serves until `shutdown` ends; then accepts no more, closes idle connections, lets running requests end (for at
    /// most the `drain` time), and returns. So it does when another process has taken over.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), RouterError> {
        let Self {
            shared, mut counters, mut listeners, quic, registry, table, status, passed, predecessor, handed, rest, ..
        } = self;
        let (stop, ended_all) = (watch::Sender::new(false), watch::Sender::new(false));
        let mut threads = Vec::new();
        let (ended, mut end) = tokio::sync::mpsc::channel::<()>(1);
        let apart = counters.pop().unwrap_or_default();
        let quic = serve_quic(&shared, &apart, quic, &mut listeners, &stop, &ended_all)?;
        let (opened, open) = tokio::sync::oneshot::channel();
        let l4 = l4::run(shared.clone(), apart, passed, predecessor, opened, stop.subscribe());
        let l4 = tokio::spawn(l4);
        for (n, (listeners, counters)) in listeners.into_iter().zip(counters).enumerate() {
            let (shared, stop, ended) = (shared.clone(), stop.subscribe(), ended.clone());
            let body = move || {
                let _ended = ended;
                worker::run(shared, counters, listeners, stop)
            };
            threads.push(std::thread::Builder::new().name(format!("router-{n}")).spawn(body).map_err(RouterError::Worker)?);
        }
        drop(ended);
        let keeper = shared.settings.state_dir.clone().map(|dir| {
            let mut tables = table.clone();
            // The first table is to be kept too.
            tables.mark_changed();
            tokio::spawn(keep_tables(shared.clone(), dir, tables, stop.subscribe()))
        });
        let kept = table.clone();
        let tables = tokio::spawn(follow_tables(shared.clone(), registry.clone(), table));
        let certificates = shared.settings.tls.certificates.clone().map(|c| tokio::spawn(tls::follow(shared.clone(), c)));
        let shown = status.subscribe();
        let statuses = tokio::spawn(publish_status(shared.clone(), registry, status));
        let (given, mut taken, over) = (handed.clone(), handed.subscribe(), watch::Sender::new(false));
        let rest = Rest { status: shown, lines: rest, over: over.subscribe() };
        let door = tokio::spawn(take_turns(shared.clone(), kept, open, given, rest, stop.subscribe()));
        tokio::select! {
            () = shutdown => {}
            // Workers end by themselves only by a fault.
            _ = end.recv() => {}
            _ = taken.wait_for(|taken| *taken) => {}
        }
        shared.handed_over.store(*handed.borrow(), SeqCst);
        stop.send_replace(true);
        shared.book.close();
        let joined = tokio::task::spawn_blocking(move || {
            let results: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
            results.into_iter().try_for_each(|r| r.map_err(|_| RouterError::Panicked)?.map_err(RouterError::Worker))
        });
        let result = joined.await.map_err(|_| RouterError::Panicked);
        ended_all.send_replace(true);
        if let Some(quic) = quic {
            let _ = tokio::task::spawn_blocking(move || quic.join()).await;
        }
        let _ = l4.await;
        over.send_replace(true);
        let _ = door.await;
        tables.abort();
        statuses.abort();
        if let Some(certificates) = certificates {
            certificates.abort();
        }
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
        result?
    }
}

/// Tells the process before that this one accepts, once that is so, and then waits for the one after.
async fn take_turns(
    shared: Arc<Shared>,
    table: watch::Receiver<Arc<RouteTable>>,
    open: tokio::sync::oneshot::Receiver<Option<Predecessor>>,
    handed: watch::Sender<bool>,
    rest: Rest,
    stop: watch::Receiver<bool>,
) {
    if let Ok(Some(predecessor)) = open.await
        && let Some(stream) = predecessor.ready().await
    {
        tokio::spawn(handover::listen(shared.clone(), stream));
    }
    let Some(dir) = shared.settings.state_dir.clone().filter(|_| shared.settings.hand_over) else { return };
    let state_dir = dir.clone();
    let (book, shared) = (shared.book.clone(), shared.clone());
    let keep = move || {
        if let Err(e) = keep_newest(&shared, &dir, &table) {
            tracing::error!(error = &e as &dyn std::error::Error, "the process that follows may route by an older table");
        }
    };
    handover::serve(book, state_dir, keep, handed, rest, stop).await;
}

/// What the control plane says, or what it said last.
async fn first_certificates(settings: &RouterSettings) -> Arc<CertificateTable> {
    if let Some(certificates) = &settings.tls.certificates {
        let now = certificates.borrow().clone();
        if now.revision > 0 {
            return now;
        }
    }
    let Some(dir) = settings.state_dir.clone() else { return Arc::default() };
    match tokio::task::spawn_blocking(move || persist::load_certificates(&dir)).await {
        Ok(Ok(kept)) => Arc::new(kept.unwrap_or_default()),
        Ok(Err(e)) => {
            tracing::warn!(error = &e as &dyn std::error::Error, "going on without the certificates kept on disk");
            Arc::default()
        }
        Err(_) => Arc::default(),
    }
}

type Sets = (Vec<Vec<StdListener>>, Vec<SocketAddr>);

/// The HTTPS listeners, and beside each the UDP port of the same number where HTTP/3 is on.
fn listen_tls(settings: &RouterSettings, opening: &Opening) -> Result<(Sets, Vec<quic::Port>), RouterError> {
    let tls = &settings.tls;
    if !tls.http3 {
        return Ok((opening.listen(handover::HTTPS, &tls.listen)?, Vec::new()));
    }
    if tls.listen.is_empty() {
        return Err(RouterError::QuicAlone);
    }
    if !settings.proxy_protocol_http.is_empty() {
        return Err(RouterError::QuicBehindProxy);
    }
    let mut tries = 1;
    loop {
        let secure = opening.listen(handover::HTTPS, &tls.listen)?;
        let open = |address: &SocketAddr| quic::Port { address: *address, socket: quic::bind(*address).ok() };
        let ports: Vec<_> = secure.1.iter().map(open).collect();
        // A port that the kernel chose for TCP may be somebody else's for UDP; one that was asked for may come free later.
        let unlucky = ports.iter().zip(&tls.listen).any(|(port, asked)| port.socket.is_none() && asked.port() == 0);
        if !unlucky || tries == FREE_PORTS {
            return Ok((secure, ports));
        }
        for port in &ports {
            opening.book.remove(handover::HTTPS, port.address);
        }
        tries += 1;
    }
}

/// Begins the thread of the UDP ports, and gives each worker its end of it.
fn serve_quic(
    shared: &Arc<Shared>,
    counters: &Arc<Counters>,
    ports: Vec<quic::Port>,
    listeners: &mut [Listeners],
    stop: &watch::Sender<bool>,
    end: &watch::Sender<bool>,
) -> Result<Option<std::thread::JoinHandle<io::Result<()>>>, RouterError> {
    if ports.is_empty() {
        return Ok(None);
    }
    let mut workers = Vec::new();
    for listeners in listeners {
        let (to, from) = tokio::sync::mpsc::unbounded_channel();
        listeners.quic = Some(from);
        workers.push(to);
    }
    let (shared, counters, stop, end) = (shared.clone(), counters.clone(), stop.subscribe(), end.subscribe());
    let body = move || quic::run(&shared, &counters, ports, workers, &stop, &end);
    let thread = std::thread::Builder::new().name("router-quic".into()).spawn(body).map_err(RouterError::Worker)?;
    Ok(Some(thread))
}

/// How listening sockets are had.
struct Opening<'a> {
    workers: usize,
    book: &'a Book,
    before: Option<&'a Predecessor>,
}

impl Opening<'_> {
    /// One set of listening sockets for each worker, all on the same addresses: the kernel spreads connections over them.
    fn listen(&self, kind: &str, addresses: &[SocketAddr]) -> Result<Sets, RouterError> {
        let mut sets: Vec<Vec<StdListener>> = (0..self.workers).map(|_| Vec::new()).collect();
        let mut local = Vec::new();
        for &asked in addresses {
            let mut tries = FREE_PORT_TRIES;
            let (listeners, address) = loop {
                match self.listen_on(kind, asked) {
                    // Somebody else was given the same free port at the same moment, and was faster to listen.
                    Err((_, e)) if asked.port() == 0 && e.kind() == io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
                    Err((address, source)) => return Err(RouterError::Listen { address, source }),
                    Ok(found) => break found,
                }
            };
            for (n, listener) in listeners.into_iter().enumerate() {
                self.book.add(kind, address, &listener).map_err(|source| RouterError::Listen { address, source })?;
                sets[n % self.workers].push(listener);
            }
            local.push(address);
        }
        Ok((sets, local))
    }

    /// A socket for each worker on one address. Port 0: the first finds a free one, the others join it. Those of the process
    /// before are taken all, be they more than workers: who waits in their queues is to be served.
    fn listen_on(&self, kind: &str, asked: SocketAddr) -> Result<(Vec<StdListener>, SocketAddr), (SocketAddr, io::Error)> {
        let mut address = asked;
        let taken = self.before.map(|b| b.take(kind, asked)).unwrap_or_default();
        let mut listeners: Vec<StdListener> = taken.into_iter().map(StdListener::from).collect();
        while listeners.len() < self.workers {
            let listener = bind_one(address).map_err(|e| (address, e))?;
            address = listener.local_addr().map_err(|e| (address, e))?;
            listeners.push(listener);
        }
        Ok((listeners, address))
    }
}

pub(crate) fn bind_one(address: SocketAddr) -> io::Result<StdListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    // Accepted sockets inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Makes `table` the one that requests read, and tells who waits for a change.
fn apply(shared: &Shared, registry: &Mutex<Registry>, table: &Arc<RouteTable>) {
    let changed = registry.lock().unwrap_or_else(PoisonError::into_inner).apply(&shared.routes, table);
    for (id, app) in changed {
        shared.stats.retain(id, |of| app.as_ref().is_some_and(|a| leads_to(a, of)));
    }
    shared.changes.send_modify(|n| *n = n.wrapping_add(1));
    shared.dirty.mark();
}

/// Whether something of the app still leads to what is counted.
fn leads_to(app: &AppRoute, of: &Of) -> bool {
    of.process.is_web() && of.version.is_none()
        || app.canary.is_some_and(|c| of.process.is_web() && of.version == Some(c.version))
        || app.routes.iter().flat_map(|r| &r.targets).any(|t| t.process == of.process && t.version == of.version)
}

async fn follow_tables(shared: Arc<Shared>, registry: Arc<Mutex<Registry>>, mut tables: watch::Receiver<Arc<RouteTable>>) {
    while tables.changed().await.is_ok() {
        let table = tables.borrow_and_update().clone();
        if table.revision == 0 {
            continue;
        }
        let before = shared.routes.revision.load(SeqCst);
        if table.revision < before {
            tracing::warn!(before, now = table.revision, "the routing table's revision went back: was the store restored?");
        }
        let (shared, registry) = (shared.clone(), registry.clone());
        // A table in which much changed takes milliseconds to compile: not on an event loop.
        if tokio::task::spawn_blocking(move || apply(&shared, &registry, &table)).await.is_err() {
            tracing::error!("applying a routing table failed by a fault in the program; the one before stays");
        }
    }
}

/// Keeps the newest table on disk. A large one takes long to write, so writing never holds up the table that requests
/// read, and takes at most a small share of the time.
async fn keep_tables(
    shared: Arc<Shared>,
    dir: PathBuf,
    mut tables: watch::Receiver<Arc<RouteTable>>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => if !tables.has_changed().unwrap_or(false) { return },
        }
        // What is on disk is the next process's now.
        if shared.handed_over.load(SeqCst) {
            return;
        }
        if tables.borrow_and_update().revision == 0 {
            continue;
        }
        let (shared, dir, newest, begun) = (shared.clone(), dir.clone(), tables.clone(), Instant::now());
        match tokio::task::spawn_blocking(move || keep_newest(&shared, &dir, &newest)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = &e as &dyn std::error::Error, "a restart would route by an older table"),
            Err(_) => tracing::error!("writing the routing table failed by a fault in the program"),
        }
        let _ = tokio::time::timeout(begun.elapsed() * WRITE_SHARE, stop.wait_for(|stop| *stop)).await;
    }
}

/// Writes what is the newest table by then, one writer at a time: an older one never replaces a newer one.
fn keep_newest(
    shared: &Shared,
    dir: &std::path::Path,
    tables: &watch::Receiver<Arc<RouteTable>>,
) -> Result<(), persist::PersistError> {
    let _turn = shared.keeping.lock().unwrap_or_else(PoisonError::into_inner);
    let table = tables.borrow().clone();
    if table.revision == 0 { Ok(()) } else { persist::save(dir, &table) }
}

async fn publish_status(shared: Arc<Shared>, registry: Arc<Mutex<Registry>>, status: watch::Sender<RouterStatus>) {
    let mut some_out = false;
    loop {
        // Nobody marks that an instance is no longer out.
        let again = if some_out { STATUS_AGAIN } else { Duration::MAX };
        let _ = tokio::time::timeout(again, shared.dirty.marked()).await;
        tokio::time::sleep(STATUS_DELAY).await;
        shared.dirty.clear();
        let now = {
            let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the registry's lock: a table that is being applied shows up wholly or not at all.
            let revision = shared.routes.revision.load(SeqCst);
            let (mut in_flight, out) = registry.busy(&shared.dirty, shared.clock.now_ms());
            for (instance, n) in shared.inherited.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                *in_flight.entry(*instance).or_insert(0) += n;
            }
            let mut problems = registry.problems();
            problems.extend(shared.port_problems.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
            let certificates = shared.certificates.load(SeqCst);
            RouterStatus { router: shared.settings.name.clone(), revision, in_flight, certificates, problems, out }
        };
        some_out = !now.out.is_empty();
        status.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }
}
