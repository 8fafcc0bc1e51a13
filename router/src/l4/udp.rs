//! One UDP port: each client address has a session with one instance, until nothing has moved for a while. An instance
//! that leaves or refuses loses its sessions; the client's next datagram begins another.

use super::{Ended, Ground};
use crate::{
    Code,
    balance::{self, Choice},
    metrics::{Counters, Limit},
    stats::Counted,
    table::{App, Lease, Route},
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;

/// So long do answers still go out by a port whose datagrams another process takes now.
pub(super) const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// The largest datagram there is.
const DATAGRAM: usize = 65_535;

struct Session {
    socket: UdpSocket,
    lease: Lease,
    app: Arc<App>,
    id: String,
    client: SocketAddr,
    begun: Instant,
    from_client: AtomicU64,
    to_client: AtomicU64,
    /// Datagrams either way: how the watch sees that something moved.
    count: AtomicU64,
}

type Sessions = Arc<Mutex<HashMap<SocketAddr, Arc<Session>>>>;

pub(super) async fn listen(ground: Arc<Ground>, socket: Arc<UdpSocket>, port: u16) {
    let sessions: Sessions = Arc::default();
    let (mut stop, mut buf) = (ground.stop.clone(), vec![0; DATAGRAM]);
    // Sessions end with their port.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buf) => received,
            Some(_) = tasks.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        // An error is about an earlier datagram of ours.
        let Ok((n, client)) = received else { continue };
        let known = sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&client).cloned();
        let session = match known.filter(|s| !s.lease.backend.is_retired()) {
            Some(session) => session,
            None => match begin(&ground, &sessions, client, port).await {
                Some(session) => {
                    tasks.spawn(answers(ground.clone(), socket.clone(), sessions.clone(), session.clone(), port));
                    session
                }
                None => continue,
            },
        };
        // What does not fit now is lost, as datagrams are.
        if session.socket.try_send(&buf[..n]).is_ok() {
            session.from_client.fetch_add(n as u64, Relaxed);
            session.count.fetch_add(1, Relaxed);
        }
    }
    if ground.shared.handed_over.load(SeqCst) {
        let _ = tokio::time::timeout(LAST_ANSWERS, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

/// A port that several routers on one machine may have: the kernel keeps each client's datagrams with one of them.
pub(super) fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Datagram, flags, None)?;
    socket::setsockopt(&fd, sockopt::ReusePort, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

async fn begin(ground: &Ground, sessions: &Sessions, client: SocketAddr, port: u16) -> Option<Arc<Session>> {
    let route: Arc<Route> = ground.shared.routes.l4.load().udp.get(&port).cloned()?;
    let app = route.choose(rand::random())?.clone();
    let most = app.policy.max_connections.map_or(ground.shared.settings.limits.udp_sessions, |n| n as usize);
    if sessions.lock().unwrap_or_else(PoisonError::into_inner).len() >= most {
        Counters::add(&ground.counters.connections_refused, 1);
        ground.counters.hit(Limit::UdpSessions, ());
        return None;
    }
    let backend = match balance::choose(&app, None, &[], ground.shared.clock.now_ms(), &mut rand::rng()) {
        Choice::One(backend) => backend.clone(),
        Choice::Full | Choice::None => return None,
    };
    let lease = Lease::take(&app, &backend, &ground.shared.dirty).ok()?;
    let any: IpAddr = if backend.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(backend.address).await.ok()?;
    // It always is; but until the runtime has seen that, nothing would be sent, and the first datagram be lost.
    socket.writable().await.ok()?;
    Counters::add(&ground.counters.connections, 1);
    let session = Arc::new(Session {
        socket,
        lease,
        app,
        id: format!("{:016x}", ground.serial.fetch_add(1, Relaxed)),
        client,
        begun: Instant::now(),
        from_client: AtomicU64::new(0),
        to_client: AtomicU64::new(0),
        count: AtomicU64::new(0),
    });
    sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(client, session.clone());
    Some(session)
}

/// Brings an instance's datagrams back until the session ends, and tells of it.
async fn answers(ground: Arc<Ground>, to: Arc<UdpSocket>, sessions: Sessions, session: Arc<Session>, port: u16) {
    let idle =
        session.app.policy.idle_seconds.map_or(ground.shared.settings.timeouts.udp_idle, |s| Duration::from_secs(s.into()));
    let mut counted = Counted::begin(&session.app, &ground.shared.stats, &ground.counters);
    let mut buf = vec![0; DATAGRAM];
    let mut seen = session.count.load(Relaxed);
    let code = loop {
        match tokio::time::timeout(idle, session.socket.recv(&mut buf)).await {
            Ok(Ok(n)) => {
                session.to_client.fetch_add(n as u64, Relaxed);
                session.count.fetch_add(1, Relaxed);
                let _ = to.try_send_to(&buf[..n], session.client);
            }
            // Nobody listens there (ICMP): the instance is out for a while, as for a refused connection.
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                if session.lease.backend.failed(ground.shared.clock.now_ms(), ground.shared.settings.timeouts.eject) {
                    Counters::add(&ground.counters.ejections, 1);
                }
                break Some(Code::BackendConnectionRefused);
            }
            Ok(Err(_)) => break Some(Code::PlatformError),
            Err(_) => {
                let now = session.count.load(Relaxed);
                if now == seen {
                    break None;
                }
                seen = now;
            }
        }
        if session.lease.backend.is_retired() && !is_current(&sessions, &session) {
            break None;
        }
    };
    {
        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&session.client).is_some_and(|s| Arc::ptr_eq(s, &session)) {
            sessions.remove(&session.client);
        }
    }
    let bytes = (session.from_client.load(Relaxed), session.to_client.load(Relaxed));
    Counters::add(&ground.counters.connections_ended, 1);
    Counters::add(&ground.counters.bytes_in, bytes.0);
    Counters::add(&ground.counters.bytes_out, bytes.1);
    counted.received(bytes.0);
    counted.end(0, code, Some(session.begun.elapsed()), bytes.1);
    let line = Ended {
        protocol: "udp",
        port,
        name: None,
        id: &session.id,
        client: session.client,
        dyno: &session.lease.backend.name,
        connect: None,
        service: Some(session.begun.elapsed()),
        code,
        bytes,
    };
    ground.shared.tell(session.app.id, session.app.lines, code.is_some(), || line.line());
}

fn is_current(sessions: &Sessions, session: &Arc<Session>) -> bool {
    let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.get(&session.client).is_some_and(|s| Arc::ptr_eq(s, session))
}
