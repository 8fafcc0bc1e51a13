//! One TCP port: accepts, finds the route (by the name that a TLS client asks for, where names are routed), reaches an
//! instance, and relays.

use super::{
    Ended, Ground, Passed, connect, hello,
    relay::{self, End, Moved},
    tls,
};
use crate::{
    Code,
    metrics::{Counters, Limit},
    proxy_protocol::{self, Origin},
    shared::Place,
    stats::Counted,
    table::Route,
};
use flex_model::ProxyVersion;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpStream};

/// A TLS client must say what it wants within this time.
const HELLO: Duration = Duration::from_secs(10);
/// TLS alert `unrecognized_name` (RFC 8446 section 6.2), so that a client says what was wrong.
const NO_SUCH_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

pub(super) async fn listen(ground: Arc<Ground>, listener: TcpListener, port: u16) {
    let mut stop = ground.stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => admit(&ground, stream, peer, port),
            Err(e) => {
                // Out of descriptors or memory: waiting is all that helps, spinning would make it worse.
                tracing::error!(error = %e, port, "cannot accept a TCP connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Who connected before the listener closes must not be lost with its queue, unless another process has that.
    while !ground.shared.handed_over.load(SeqCst)
        && let Ok(Ok((stream, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await
    {
        admit(&ground, stream, peer, port);
    }
}

/// Counts a connection in, and out again when dropped.
///
/// What a worker counted already is not counted again.
struct Open(Arc<Ground>, bool);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
        if self.1 {
            Counters::add(&self.0.counters.connections_ended, 1);
        }
    }
}

fn admit(ground: &Arc<Ground>, stream: TcpStream, peer: SocketAddr, port: u16) {
    ground.open.fetch_add(1, SeqCst);
    Counters::add(&ground.counters.connections, 1);
    let open = Open(ground.clone(), true);
    tokio::spawn(async move {
        let ground = &open.0;
        let limit = ground.shared.settings.limits.connections;
        match Place::take(&ground.shared.connections, limit) {
            Some(_place) => serve(ground, stream, peer, port).await,
            None => {
                Counters::add(&ground.counters.connections_refused, 1);
                ground.counters.hit(Limit::Connections, ());
            }
        }
    });
}

/// Takes over a connection to an HTTPS listener, of which only the hello was read.
pub(super) fn pass(ground: &Arc<Ground>, passed: Passed) {
    ground.open.fetch_add(1, SeqCst);
    let open = Open(ground.clone(), false);
    tokio::spawn(async move {
        let ground = &open.0;
        let Passed { stream, origin, port, name, ahead } = passed;
        let refused = |limit| {
            Counters::add(&ground.counters.connections_refused, 1);
            ground.counters.hit(limit, ());
        };
        let Some(_place) = Place::take(&ground.shared.connections, ground.shared.settings.limits.connections) else {
            return refused(Limit::Connections);
        };
        let Some(_client) = ground.shared.client(origin.source.ip()) else { return refused(Limit::ConnectionsPerClient) };
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        let _ = stream.set_nodelay(true);
        let wanted = name.clone();
        let find = || ground.shared.routes.l4.load().names.find(&wanted).cloned();
        let Some(route) = find() else { return };
        let client = Client::Plain(stream);
        Connection { ground, client, origin, port, name: Some(name), ahead }.run(&route, find).await;
    });
}

async fn serve(ground: &Ground, mut stream: TcpStream, peer: SocketAddr, port: u16) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let balancers = &ground.shared.settings.proxy_protocol_tcp;
    let origin = if balancers.is_empty() {
        Origin::direct(peer, local)
    } else if balancers.iter().any(|range| range.contains(peer.ip())) {
        match proxy_protocol::accept(&mut stream, peer, local).await {
            Ok(origin) => origin,
            Err(e) => {
                Counters::add(&ground.counters.proxy_refused, 1);
                return tracing::info!(peer = %peer, port, error = %e, "a connection was refused");
            }
        }
    } else {
        Counters::add(&ground.counters.proxy_refused, 1);
        return tracing::info!(peer = %peer, port, "a connection that does not come through a load balancer was refused");
    };
    let Some(_client) = ground.shared.client(origin.source.ip()) else {
        Counters::add(&ground.counters.connections_refused, 1);
        return ground.counters.hit(Limit::ConnectionsPerClient, ());
    };
    let by_name = ground.shared.routes.l4.load().ports.get(&port).is_some_and(|on| !on.names.is_empty());
    let mut ahead = Vec::new();
    let name = if by_name {
        match tokio::time::timeout(HELLO, hello::read(&stream, &mut ahead)).await {
            Ok(Some(name)) => name,
            Ok(None) | Err(_) => return,
        }
    } else {
        None
    };
    let find = || {
        let l4 = ground.shared.routes.l4.load();
        let on = l4.ports.get(&port)?;
        name.as_deref().and_then(|n| on.names.find(n)).or(on.plain.as_ref()).cloned()
    };
    let Some(route) = find() else {
        if by_name {
            let _ = stream.try_write(&NO_SUCH_NAME);
        }
        return;
    };
    relay::keep_alive(&stream);
    let (mut origin, mut name_told) = (origin, name.clone());
    let client = if ends_here(ground, port, name.as_deref()) {
        let Some(client) = tls::accept(&ground.shared, &ground.counters, stream, std::mem::take(&mut ahead)).await else {
            return;
        };
        let session = client.get_ref().1;
        let newest = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        name_told = session.server_name().map(str::to_owned);
        if origin.tlv(proxy_protocol::SSL).is_none() {
            origin.tlvs.push(proxy_protocol::Tlv::ssl(if newest { "TLSv1.3" } else { "TLSv1.2" }));
        }
        Client::Tls(client)
    } else {
        Client::Plain(stream)
    };
    Connection { ground, client, origin, port, name: name_told, ahead }.run(&route, find).await;
}

/// Whether TLS ends here, for a connection to this port that asked for this name.
fn ends_here(ground: &Ground, port: u16, name: Option<&str>) -> bool {
    let l4 = ground.shared.routes.l4.load();
    l4.ports.get(&port).is_some_and(|on| on.tls && name.and_then(|n| on.names.find(n)).is_none())
}

/// The client's side of a connection.
enum Client {
    Plain(TcpStream),
    Tls(Box<tls::Client>),
}

struct Connection<'a> {
    ground: &'a Ground,
    client: Client,
    origin: Origin,
    port: u16,
    name: Option<String>,
    ahead: Vec<u8>,
}

impl Connection<'_> {
    async fn run(mut self, route: &Route, find: impl Fn() -> Option<Arc<Route>>) {
        let begun = Instant::now();
        let lines = route.targets().next().map(|app| app.lines).unwrap_or_default();
        let id = format!("{:016x}", self.ground.serial.fetch_add(1, Relaxed));
        let count = self.ground.route_count(route);
        let most = route.policy().max_connections.map_or(usize::MAX, |n| n as usize);
        let Some(_place) = Place::take(&count, most) else {
            Counters::add(&self.ground.counters.connections_refused, 1);
            self.ground.counters.hit(Limit::MaxConnections, ());
            let line = self.ended(&id).with(Code::TooManyConnections);
            return self.ground.shared.tell(route.app(), lines, true, || line);
        };
        let (app, lease, mut instance) = match connect(self.ground, find).await {
            Ok(connected) => connected,
            Err((app, code)) => {
                if let Some(app) = app {
                    Counted::begin(&app, &self.ground.shared.stats, &self.ground.counters).end(0, Some(code), None, 0);
                }
                let mut line = self.ended(&id);
                line.connect = Some(begun.elapsed());
                return self.ground.shared.tell(route.app(), lines, true, || line.with(code));
            }
        };
        let connected = Instant::now();
        let mut counted = Counted::begin(&app, &self.ground.shared.stats, &self.ground.counters);
        relay::keep_alive(&instance);
        let (moved, mut code) = (Moved::default(), None);
        match self.greet(app.policy.proxy_protocol, &id, &instance).await {
            Ok(()) => {
                let idle = app
                    .policy
                    .idle_seconds
                    .map_or(self.ground.shared.settings.timeouts.tcp_idle, |s| Duration::from_secs(s.into()));
                let ahead = std::mem::take(&mut self.ahead);
                let mut cut = self.ground.cut.subscribe();
                let relayed = async {
                    match &mut self.client {
                        Client::Plain(stream) => relay::relay(stream, &instance, &ahead, idle, &moved).await,
                        Client::Tls(stream) => tls::relay(stream, &mut instance, idle, &moved).await,
                    }
                };
                let end = tokio::select! {
                    end = relayed => end,
                    _ = cut.wait_for(|cut| *cut) => End::Cut,
                };
                match end {
                    End::Whole | End::Client => {}
                    End::Instance => code = Some(Code::ServerRequestInterrupted),
                    End::Idle => code = Some(Code::IdleConnection),
                    End::Cut => code = Some(Code::ForcedClose),
                }
            }
            Err(_) => code = Some(Code::ClosedWithoutResponse),
        }
        let bytes = (moved.from_client.load(Relaxed), moved.to_client.load(Relaxed));
        Counters::add(&self.ground.counters.bytes_in, bytes.0);
        Counters::add(&self.ground.counters.bytes_out, bytes.1);
        counted.received(bytes.0);
        counted.end(0, code, Some(connected.elapsed()), bytes.1);
        let mut line = self.ended(&id);
        (line.dyno, line.bytes, line.code) = (&lease.backend.name, bytes, code);
        (line.connect, line.service) = (Some(connected - begun), Some(connected.elapsed()));
        self.ground.shared.tell(route.app(), lines, code.is_some(), || line.line());
    }

    /// Tells the instance who is coming, if its route says so.
    async fn greet(&mut self, version: Option<ProxyVersion>, id: &str, instance: &TcpStream) -> std::io::Result<()> {
        let Some(version) = version else { return Ok(()) };
        if let Some(name) = &self.name {
            self.origin.add(proxy_protocol::AUTHORITY, name.as_bytes());
        }
        self.origin.add(proxy_protocol::UNIQUE_ID, id.as_bytes());
        relay::write_all(instance, &self.origin.header(version)).await
    }

    fn ended<'a>(&'a self, id: &'a str) -> Ended<'a> {
        let (name, client) = (self.name.as_deref(), self.origin.source);
        Ended {
            protocol: if matches!(self.client, Client::Tls(_)) { "tls" } else { "tcp" },
            port: self.port,
            name,
            id,
            client,
            dyno: "",
            connect: None,
            service: None,
            code: None,
            bytes: (0, 0),
        }
    }
}

impl Ended<'_> {
    fn with(mut self, code: Code) -> String {
        self.code = Some(code);
        self.line()
    }
}
