//! TCP and UDP routes: ports that open and close as the table says, with no restart. A port that cannot be opened is told
//! in the router's status and tried again; the others are not held up by it.
//!
//! Runs on the caller's runtime, not on the workers: connections are long, and a busy one must not hold up requests.

pub(crate) mod hello;
mod relay;
mod tcp;
mod tls;
mod udp;

pub(crate) use relay::keep_alive;

use crate::{
    Code,
    handover::{self, Predecessor},
    metrics::Counters,
    shared::{Place, Shared},
    table::{App, L4, Route},
    upstream::{NoUpstream, Reached, reach},
};
use flex_model::{RouteId, RouteProblem};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
    task::AbortHandle,
};

/// How often a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a draining router looks whether its last connection has ended.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// So long may connections take to end that are cut off: they have a line to write, and nothing to wait for.
const CUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Tcp(u16),
    Udp(u16),
}

impl Port {
    /// What its socket is for, and where it is.
    fn name(self, ground: &Ground) -> (&'static str, SocketAddr) {
        let (kind, port) = match self {
            Self::Tcp(port) => (handover::TCP, port),
            Self::Udp(port) => (handover::UDP, port),
        };
        (kind, SocketAddr::new(ground.shared.settings.l4_address, port))
    }
}

/// What connections of all ports share.
struct Ground {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    open: AtomicUsize,
    by_route: ByRoute,
    /// True once connections that are still open are cut off.
    cut: watch::Sender<bool>,
    /// Numbers connections, for their names.
    serial: AtomicU64,
    stop: watch::Receiver<bool>,
}

/// How many connections of a route are open. A route without any is forgotten, so that there are never many more than routes
/// with connections.
#[derive(Default)]
struct ByRoute(Mutex<BTreeMap<RouteId, Arc<AtomicUsize>>>);

/// Fewer than this are not looked through.
const FEW_ROUTES: usize = 32;

impl ByRoute {
    /// Kept for as long as somebody has it.
    fn count(&self, route: RouteId) -> Arc<AtomicUsize> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // At each doubling, so that a connection costs the same however many routes there are.
        if counts.len() >= FEW_ROUTES && counts.len().is_power_of_two() && !counts.contains_key(&route) {
            counts.retain(|_, count| Arc::strong_count(count) > 1);
        }
        counts.entry(route).or_default().clone()
    }
}

impl Ground {
    fn route_count(&self, route: &Route) -> Arc<AtomicUsize> {
        route.id().map_or_else(Arc::default, |id| self.by_route.count(id))
    }
}

/// A connection to an HTTPS listener whose name is passed through: how it came, and who asked for what.
pub(crate) struct Passed {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) origin: crate::proxy_protocol::Origin,
    pub(crate) port: u16,
    pub(crate) name: String,
    /// What was read of it.
    pub(crate) ahead: Vec<u8>,
}

/// Follows the table until `stop` turns true, then lets connections end for at most the time to drain. `before` gives what
/// sockets it has for the ports of the first table, and goes to `opened` when these are open.
pub(crate) async fn run(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    mut passed: tokio::sync::mpsc::UnboundedReceiver<Passed>,
    before: Option<Predecessor>,
    opened: oneshot::Sender<Option<Predecessor>>,
    mut stop: watch::Receiver<bool>,
) {
    let ground = Arc::new(Ground {
        shared,
        counters,
        open: AtomicUsize::new(0),
        by_route: ByRoute::default(),
        cut: watch::Sender::new(false),
        serial: AtomicU64::new(u64::from(rand::random::<u32>()) << 32),
        stop: stop.clone(),
    });
    let mut listening: BTreeMap<Port, AbortHandle> = BTreeMap::new();
    let mut changes = ground.shared.changes.subscribe();
    changes.borrow_and_update();
    let mut complete = follow(&ground, &mut listening, before.as_ref());
    let _ = opened.send(before);
    loop {
        let again = tokio::time::Instant::now() + AGAIN;
        let stopped = loop {
            tokio::select! {
                _ = changes.changed() => break false,
                _ = stop.wait_for(|stop| *stop) => break true,
                Some(passed) = passed.recv() => tcp::pass(&ground, passed),
                () = tokio::time::sleep_until(again), if !complete => break false,
            }
        };
        if stopped {
            break;
        }
        changes.borrow_and_update();
        complete = follow(&ground, &mut listening, None);
    }
    while let Ok(passed) = passed.try_recv() {
        tcp::pass(&ground, passed);
    }
    // Listeners notice `stop` themselves, and take who had connected already.
    let drained = async |within| {
        let none = async {
            while ground.open.load(SeqCst) > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        tokio::time::timeout(within, none).await.is_ok()
    };
    if !drained(ground.shared.settings.timeouts.drain).await {
        tracing::warn!(connections = ground.open.load(SeqCst), "the router stops while TCP connections are still open");
        ground.cut.send_replace(true);
        drained(CUT).await;
    }
    // Listeners end by themselves, those of UDP when the last answers have had their time.
    let _ = tokio::time::timeout(udp::LAST_ANSWERS, async {
        while listening.values().any(|task| !task.is_finished()) {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    })
    .await;
    for task in listening.into_values() {
        task.abort();
    }
}

/// Opens and closes ports as the table says. False if one could not be opened.
fn follow(ground: &Arc<Ground>, listening: &mut BTreeMap<Port, AbortHandle>, before: Option<&Predecessor>) -> bool {
    let l4 = ground.shared.routes.l4.load_full();
    let wanted = wanted(&l4);
    listening.retain(|port, task| {
        let stays = wanted.contains_key(port) && !task.is_finished();
        if !stays {
            task.abort();
            let (kind, address) = port.name(ground);
            ground.shared.book.remove(kind, address);
        }
        stays
    });
    let mut problems = Vec::new();
    for (port, route) in wanted {
        if listening.contains_key(&port) {
            continue;
        }
        match open(ground, port, before) {
            Ok(task) => {
                listening.insert(port, task);
            }
            Err(e) => {
                let (kind, number) = match port {
                    Port::Tcp(n) => ("TCP", n),
                    Port::Udp(n) => ("UDP", n),
                };
                let message = format!("{kind} port {number} cannot be opened: {e}");
                problems.push(RouteProblem { app: route.app(), route: route.id(), message });
            }
        }
    }
    let complete = problems.is_empty();
    ground.shared.set_port_problems(problems);
    complete
}

fn wanted(l4: &L4) -> BTreeMap<Port, Arc<Route>> {
    let tcp = l4.ports.iter().filter_map(|(port, on)| {
        let first = on.plain.as_ref().or_else(|| on.names.any())?;
        Some((Port::Tcp(*port), first.clone()))
    });
    tcp.chain(l4.udp.iter().map(|(port, route)| (Port::Udp(*port), route.clone()))).collect()
}

fn open(ground: &Arc<Ground>, port: Port, before: Option<&Predecessor>) -> io::Result<AbortHandle> {
    let (kind, address) = port.name(ground);
    let mut taken = before.map(|b| b.take(kind, address)).unwrap_or_default();
    match port {
        Port::Tcp(port) => {
            // The kernel would let us share it with ourselves, and split the connections between the two.
            if ground.shared.own_ports.contains(&port) {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "the router itself listens there"));
            }
            let listener = taken.pop().map_or_else(|| crate::router::bind_one(address), |fd| Ok(fd.into()))?;
            ground.shared.book.add(kind, address, &listener)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok(tokio::spawn(tcp::listen(ground.clone(), listener, port)).abort_handle())
        }
        Port::Udp(port) => {
            let socket = taken.pop().map_or_else(|| udp::bind(address), |fd| Ok(fd.into()))?;
            ground.shared.book.add(kind, address, &socket)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            Ok(tokio::spawn(udp::listen(ground.clone(), Arc::new(socket), port)).abort_handle())
        }
    }
}

/// Chooses a target and reaches one of its instances; waits while the app starts, or for a place, as requests do.
async fn connect(
    ground: &Ground,
    route: impl Fn() -> Option<Arc<Route>>,
) -> Result<(Arc<App>, crate::table::Lease, TcpStream), (Option<Arc<App>>, Code)> {
    let (shared, limits) = (&ground.shared, &ground.shared.settings.limits);
    let until = Instant::now() + shared.settings.timeouts.hold;
    let mut changes = shared.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let chosen = route().and_then(|r| r.choose(rand::random()).cloned());
        let Some(app) = chosen else { return Err((None, Code::NoWebProcesses)) };
        let refuse = |code: Code| Err((Some(app.clone()), code));
        if let Some(code) = crate::exchange::unavailable(&app) {
            return refuse(code);
        }
        let wait = if app.backends.is_empty() {
            let (Some(_all), Some(_mine)) =
                (Place::take(&shared.held, limits.held), Place::take(&app.waiting.held, limits.held_per_app))
            else {
                return refuse(Code::BacklogTooDeep);
            };
            let changed = tokio::time::timeout_at(until.into(), changes.changed()).await;
            (changed.is_ok(), Code::AppBootTimeout)
        } else {
            match reach(shared, &ground.counters, &app, None, |_| None::<()>).await {
                Ok((lease, Reached::New(stream))) => return Ok((app, lease, stream)),
                Ok((_, Reached::Kept(()))) | Err(NoUpstream::Stale) => continue,
                Err(NoUpstream::Failed(code)) => return refuse(code),
                Err(NoUpstream::Full) => {
                    let most = app.policy.queue.map_or(limits.queue_per_app, |n| n as usize);
                    let Some(_place) = Place::take(&app.waiting.queued, most) else { return refuse(Code::BacklogTooDeep) };
                    let freed = async {
                        let mut freed = std::pin::pin!(app.freed.notified());
                        // Listening first, looking second: a place that became free in between is seen.
                        freed.as_mut().enable();
                        if app.has_room() {
                            return;
                        }
                        tokio::select! {
                            () = freed => {}
                            _ = changes.changed() => {}
                        }
                    };
                    (tokio::time::timeout_at(until.into(), freed).await.is_ok(), Code::RequestTimeout)
                }
            }
        };
        if !wait.0 {
            return refuse(wait.1);
        }
    }
}

/// The end of a connection or session, as its access line tells it.
struct Ended<'a> {
    protocol: &'static str,
    port: u16,
    name: Option<&'a str>,
    id: &'a str,
    client: SocketAddr,
    dyno: &'a str,
    connect: Option<Duration>,
    service: Option<Duration>,
    code: Option<Code>,
    /// From the client, and to it.
    bytes: (u64, u64),
}

impl Ended<'_> {
    fn line(&self) -> String {
        use std::fmt::Write as _;
        let mut out = match self.code {
            None => "at=info".to_owned(),
            Some(code) => format!("at={} code={} desc=\"{}\"", code.level(), code.code(), code.desc()),
        };
        let _ = write!(out, " port={}", self.port);
        if let Some(name) = self.name {
            let _ = write!(out, " sni={name}");
        }
        let _ = write!(out, " connection_id={} fwd=\"{}\" dyno={} connect=", self.id, self.client.ip(), self.dyno);
        for (value, next) in [(self.connect, " service="), (self.service, " bytes_in=")] {
            if let Some(d) = value {
                let _ = write!(out, "{}ms", d.as_millis());
            }
            out.push_str(next);
        }
        let _ = write!(out, "{} bytes={} protocol={}", self.bytes.0, self.bytes.1, self.protocol);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::Uuid;

    #[test]
    fn routes_without_connections_are_forgotten_and_others_are_not() {
        let counts = ByRoute::default();
        let id = |n| RouteId(Uuid::from_u128(n));
        let kept = counts.count(id(0));
        for n in 1..100_000 {
            counts.count(id(n));
        }
        assert!(counts.0.lock().unwrap().len() <= FEW_ROUTES);
        assert!(Arc::ptr_eq(&kept, &counts.count(id(0))));
    }
}
