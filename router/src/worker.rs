//! One worker: a thread with its own event loop, listeners, pools and buffers. It shares the routes and a few counters
//! with the other workers, and nothing else.

use crate::{
    clients::ClientPlace,
    conn,
    h3::{self, endpoint::Arrived},
    io::Guard,
    metrics::{Counters, Limit},
    shared::{Place, Shared},
    upstream::Pool,
};
use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::LocalSet,
};

/// How often idle connections to instances are looked at.
const POOL_SWEEP: Duration = Duration::from_secs(1);

/// How long a draining worker leaves idle connections open: a request that comes meanwhile is answered with
/// `Connection: close`, where closing at once would have met it on its way.
const IDLE_PATIENCE: Duration = Duration::from_secs(2);

/// How long what sends QUIC's packets goes on after the last connection: long enough to say that it is closed.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// How often a draining worker looks whether its last connection has ended.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: RefCell<Pool>,
    pub(crate) links: crate::h2::links::Links,
    guards: RefCell<Guards>,
    /// No new requests on open connections.
    pub(crate) draining: Cell<bool>,
    /// Who may do the costly part of a TLS handshake now.
    pub(crate) handshakes: Semaphore,
}

/// The guards of all open connections, by slot.
#[derive(Default)]
struct Guards {
    slots: Vec<Option<Rc<Guard>>>,
    free: Vec<usize>,
}

/// A connection's place among the guards.
pub(crate) struct Watched<'a> {
    worker: &'a Worker,
    slot: usize,
    pub(crate) guard: Rc<Guard>,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let mut guards = self.worker.guards.borrow_mut();
        guards.slots[self.slot] = None;
        guards.free.push(self.slot);
    }
}

impl Worker {
    pub(crate) fn now_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    pub(crate) fn watch(&self) -> Watched<'_> {
        let guard = Guard::new(self.shared.clock);
        let mut guards = self.guards.borrow_mut();
        let slot = guards.free.pop().unwrap_or(guards.slots.len());
        if slot == guards.slots.len() {
            guards.slots.push(None);
        }
        guards.slots[slot] = Some(guard.clone());
        Watched { worker: self, slot, guard }
    }

    fn open(&self) -> usize {
        let guards = self.guards.borrow();
        guards.slots.len() - guards.free.len()
    }

    /// `close_idle`: connections between two requests are closed.
    fn sweep(&self, close_idle: bool) {
        let (now, stop) = (self.now_ms(), close_idle);
        for guard in self.guards.borrow().slots.iter().flatten() {
            guard.sweep(now, stop);
        }
    }
}

/// A connection as the kernel gives it.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// A connection that is counted as open, until it is dropped.
pub(crate) struct Admitted<'a> {
    counters: &'a Counters,
    _place: Place<'a>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        Counters::add(&self.counters.connections_ended, 1);
    }
}

impl Worker {
    /// Counts a connection. `None`: there is no room for it, which is counted too.
    pub(crate) fn admit(&self) -> Option<Admitted<'_>> {
        Counters::add(&self.counters.connections, 1);
        match Place::take(&self.shared.connections, self.shared.settings.limits.connections) {
            Some(place) => Some(Admitted { counters: &self.counters, _place: place }),
            None => {
                Counters::add(&self.counters.connections_ended, 1);
                self.refused(Limit::Connections);
                None
            }
        }
    }

    /// Counts a connection that is refused for a limit.
    pub(crate) fn refused(&self, limit: Limit) {
        Counters::add(&self.counters.connections_refused, 1);
        self.counters.hit(limit, ());
    }

    /// Counts a TLS handshake that came to nothing.
    pub(crate) fn handshake_failed(&self, guard: &Guard) {
        Counters::add(&self.counters.tls_failed, 1);
        if guard.is_expired() {
            self.counters.hit(Limit::HandshakeTime, ());
        }
    }

    /// A place among the connections of a client's address. `None`: it has its most, which is counted.
    pub(crate) fn client(&self, address: std::net::IpAddr) -> Option<Option<ClientPlace<'_>>> {
        let place = self.shared.client(address);
        if place.is_none() {
            self.refused(Limit::ConnectionsPerClient);
        }
        place
    }
}

/// One worker's listening sockets.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) plain: Vec<StdListener>,
    pub(crate) tls: Vec<StdListener>,
    /// Connections of HTTP/3 that are this worker's.
    pub(crate) quic: Option<mpsc::UnboundedReceiver<Arrived>>,
}

/// Runs a worker on this thread until `stop` turns true and its connections have ended or the time to drain is over.
pub(crate) fn run(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    listeners: Listeners,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let worker = Rc::new(Worker {
        shared,
        counters,
        pool: RefCell::default(),
        links: crate::h2::links::Links::default(),
        guards: RefCell::default(),
        draining: Cell::new(false),
        handshakes: Semaphore::new(1),
    });
    let (local, quic) = (LocalSet::new(), listeners.quic.is_some());
    let ended = local.block_on(&runtime, async {
        let mut accepting = Vec::new();
        let plain = listeners.plain.into_iter().map(|l| (l, false));
        for (listener, tls) in plain.chain(listeners.tls.into_iter().map(|l| (l, true))) {
            let listener = TcpListener::from_std(listener)?;
            accepting.push(tokio::task::spawn_local(accept(worker.clone(), listener, tls, stop.clone())));
        }
        if let Some(quic) = listeners.quic {
            accepting.push(tokio::task::spawn_local(accept_quic(worker.clone(), quic, stop.clone())));
        }
        housekeep(&worker, stop, accepting).await;
        Ok(())
    });
    // With it goes what was cut off.
    drop(local);
    if quic {
        runtime.block_on(async { tokio::time::sleep(LAST_WORDS).await });
    }
    ended
}

async fn housekeep(worker: &Rc<Worker>, mut stop: watch::Receiver<bool>, accepting: Vec<tokio::task::JoinHandle<()>>) {
    let timeouts = &worker.shared.settings.timeouts;
    let shortest = [timeouts.head, timeouts.keep_alive, timeouts.first_byte, timeouts.idle, timeouts.hold, timeouts.drain];
    let tick = shortest.into_iter().min().unwrap_or_default() / 4;
    let mut tick = tokio::time::interval(tick.clamp(Duration::from_millis(5), Duration::from_millis(250)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pool_swept = worker.now_ms();
    while !*stop.borrow() {
        tokio::select! {
            _ = tick.tick() => {}
            changed = stop.changed() => if changed.is_err() { break },
        }
        worker.sweep(false);
        if worker.now_ms().saturating_sub(pool_swept) >= POOL_SWEEP.as_millis() as u64 {
            pool_swept = worker.now_ms();
            worker.pool.borrow_mut().sweep(pool_swept, timeouts.upstream_idle);
            worker.links.sweep(pool_swept, timeouts.upstream_idle);
        }
    }
    for task in accepting {
        let _ = task.await;
    }
    worker.draining.set(true);
    let begun = worker.now_ms();
    let patience = u64::try_from(IDLE_PATIENCE.min(timeouts.drain / 4).as_millis()).unwrap_or(0);
    let drained = async {
        while worker.open() > 0 {
            worker.sweep(worker.now_ms() - begun >= patience);
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(timeouts.drain, drained).await.is_err() {
        tracing::warn!(connections = worker.open(), "the router stops while connections are still open");
    }
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, tls: bool, mut stop: watch::Receiver<bool>) {
    let Ok(local) = listener.local_addr() else { return };
    while !*stop.borrow() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = stop.changed() => match changed { Ok(()) => continue, Err(_) => break },
        };
        admit(&worker, accepted, local, tls).await;
    }
    // Who connected before the listener closes must not be lost with its queue, unless another process has that.
    while !worker.shared.handed_over.load(SeqCst)
        && let Ok(accepted) = tokio::time::timeout(Duration::ZERO, listener.accept()).await
    {
        admit(&worker, accepted, local, tls).await;
    }
}

/// Takes the connections that the UDP port's thread gives to this worker.
async fn accept_quic(worker: Rc<Worker>, mut from: mpsc::UnboundedReceiver<Arrived>, mut stop: watch::Receiver<bool>) {
    loop {
        let arrived = tokio::select! {
            arrived = from.recv() => arrived,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        // Those that wait are refused by being dropped, which tells their clients to try again elsewhere.
        let Some(arrived) = arrived else { return };
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            if let Some(_admitted) = worker.admit() {
                h3::serve(&worker, arrived).await;
            }
        });
        // Each begins with a signature: everything else has its turn before the next.
        tokio::task::yield_now().await;
    }
}

async fn admit(worker: &Rc<Worker>, accepted: io::Result<(TcpStream, SocketAddr)>, local: SocketAddr, tls: bool) {
    match accepted {
        Ok((stream, peer)) => {
            let accepted = Box::new(Accepted { stream, peer, local });
            // Two tasks: one that could do both would be as large as the larger for all.
            if tls {
                tokio::task::spawn_local(conn::secure(worker.clone(), accepted));
            } else {
                tokio::task::spawn_local(conn::plain(worker.clone(), accepted));
            }
        }
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
            ) => {}
        Err(e) => {
            // Out of descriptors or memory: waiting is all that helps, spinning would make it worse.
            tracing::error!(error = %e, listener = %local, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
