//! What an operator may set, with the defaults and their reasons. Parsed and checked by the caller; plain values here.

use flex_model::{CertificateTable, Cidr};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Everything that a router is told at its start. What changes later comes with the routing table.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// Names this router among several, in [`flex_model::RouterStatus`].
    pub name: String,
    /// Plain HTTP listeners. Port 0 takes a free port.
    pub listen: Vec<SocketAddr>,
    /// Worker threads; 0 means one for each processor.
    pub workers: usize,
    /// Where the last routing table is kept. Without it a restarted router knows nothing until it is told.
    pub state_dir: Option<PathBuf>,
    /// Peers whose `X-Forwarded-*` and `X-Request-ID` are believed. Nobody by default.
    pub trusted_proxies: Vec<Cidr>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// Where TCP and UDP routes listen, each on its own port.
    pub l4_address: IpAddr,
    /// Load balancers in front of the plain HTTP listeners: their connections begin with a PROXY header, and who else
    /// connects is refused. Nobody: no header is expected, and none is believed.
    pub proxy_protocol_http: Vec<Cidr>,
    /// The same for the ports of TCP routes.
    pub proxy_protocol_tcp: Vec<Cidr>,
    pub tls: TlsSettings,
    /// A process that follows may take over this one's sockets, at a door in `state_dir`.
    pub hand_over: bool,
    /// How access lines are written, where an app says nothing else.
    pub lines: flex_model::LineForm,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            name: "router".into(),
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8080))],
            workers: 0,
            state_dir: None,
            trusted_proxies: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            l4_address: IpAddr::from([0, 0, 0, 0]),
            proxy_protocol_http: Vec::new(),
            proxy_protocol_tcp: Vec::new(),
            tls: TlsSettings::default(),
            hand_over: false,
            lines: flex_model::LineForm::default(),
        }
    }
}

/// TLS of clients.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// HTTPS listeners. Port 0 takes a free port. None: no HTTPS.
    pub listen: Vec<SocketAddr>,
    /// The certificates, as they change. Without it only what is kept on disk is known.
    pub certificates: Option<watch::Receiver<Arc<CertificateTable>>>,
    /// The oldest version that is spoken.
    pub min: MinTls,
    /// Serves HTTP/3 too, on the UDP ports of the same numbers. Not together with a PROXY header, which QUIC has no place for.
    pub http3: bool,
    /// Where clients are told to find it, should that be another port than the first HTTPS listener's.
    pub http3_port: Option<u16>,
}

/// The oldest version of TLS that is spoken. Older ones than 1.2 are never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MinTls {
    #[default]
    Tls12,
    Tls13,
}

impl FromStr for MinTls {
    type Err = flex_model::Invalid;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(flex_model::Invalid::new("TLS version", s, "use 1.2 or 1.3")),
        }
    }
}

/// How long each thing may take. Kept to about a quarter of a second, except those about connecting.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// From a connection to an HTTPS listener to the end of the TLS handshake.
    pub handshake: Duration,
    /// From a request's first byte to the end of its head (slow-header attacks end here).
    pub head: Duration,
    /// An idle connection between two requests.
    pub keep_alive: Duration,
    /// From the end of the request to the first byte of the answer: H12. Heroku: 30 s.
    pub first_byte: Duration,
    /// No byte either way once an answer or an upload runs, and on upgraded connections: H15 or H28. Heroku: 55 s.
    pub idle: Duration,
    /// A connection attempt to an instance when there is another instance to try.
    pub slow_connect: Duration,
    /// A connection attempt when there is nothing else to try: H19. Heroku: 5 s.
    pub connect: Duration,
    /// How long a request waits for an app that is starting: H20.
    pub hold: Duration,
    /// How long a connection to an instance is kept for the next request.
    pub upstream_idle: Duration,
    /// How long running requests may take to end when the router stops.
    pub drain: Duration,
    /// No byte either way on a TCP route's connection. Databases keep theirs for long.
    pub tcp_idle: Duration,
    /// No datagram either way in a UDP session.
    pub udp_idle: Duration,
    /// How long an instance gets no requests after a failed connect; doubles with each failure in a row, up to a minute.
    pub eject: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            handshake: s(10),
            head: s(10),
            keep_alive: s(60),
            first_byte: s(30),
            idle: s(55),
            slow_connect: Duration::from_millis(250),
            connect: s(5),
            hold: s(30),
            upstream_idle: s(90),
            drain: s(30),
            tcp_idle: s(3600),
            udp_idle: s(60),
            eject: s(1),
        }
    }
}

/// How much of each thing there may be. Together they bound the router's memory.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A request's or answer's head in bytes, first line and all. 64 KiB lets the large cookies of real apps pass.
    pub head_bytes: usize,
    /// Header fields of one message, at most 256.
    pub headers: usize,
    /// Client connections over all workers. One more is answered 503 and closed.
    pub connections: usize,
    /// Of those, connections of one client address (of IPv6, one /64); trusted proxies have as many as they like. Half of all
    /// by default, so that no address takes every connection from the others, and whole companies behind one fit in.
    pub connections_per_client: usize,
    /// Requests of one app under way at one time, over all workers: what an app that hangs can take from the others. One more
    /// gets H22.
    pub requests_per_app: usize,
    /// Requests held at one time, over all apps, for apps that are starting. One more gets H11.
    pub held: usize,
    /// Of those, requests of one app.
    pub held_per_app: usize,
    /// Instances that one request is tried with, each once, while connections to them fail.
    pub connect_tries: usize,
    /// Idle connections kept per instance and worker.
    pub idle_per_instance: usize,
    /// Requests of one app that wait for a place on an instance, where its route limits places and not the queue.
    pub queue_per_app: usize,
    /// Answers that are compressed at one time, about a MiB of memory each. One more goes out as it is.
    pub compressed_answers: usize,
    /// Sessions of one UDP port, where its route says nothing else. Each is a socket.
    pub udp_sessions: usize,
    /// QUIC handshakes under way with clients whose address is not proven. One more has to prove it first.
    pub quic_unproven: usize,
    /// Bytes a second that a client must send of a request's content, on the whole, where the route says nothing else; 0: as
    /// slowly as it likes, since streams both ways are silent for long.
    pub min_body_rate: u32,
    /// Requests of one HTTP/2 connection under way. Browsers use about a hundred.
    pub http2_streams: u32,
    /// Content in bytes that one request over HTTP/2 may send ahead of its instance.
    pub http2_stream_window: u32,
    /// The same for all requests of a connection: this is what a client can make us keep.
    pub http2_connection_window: u32,
    /// Requests that the client of one HTTP/2 or HTTP/3 connection may give up at once, each of which may have cost an instance
    /// one (CVE-2023-44487); a quarter of that again each second.
    pub http2_resets: u32,
    /// SETTINGS, PING, PRIORITY, unknown frames and empty DATA that a client may send at once; a tenth of that again each second.
    pub http2_control_frames: u32,
    /// WINDOW_UPDATE frames that a client may send at once, and each second. It may send two for each frame that it gets.
    pub http2_window_updates: u32,
    /// Process types of apps whose metrics are told apart; the others are counted together. Bounds what a scrape costs.
    pub metrics_apps: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            headers: 128,
            connections: 20_000,
            connections_per_client: 10_000,
            requests_per_app: 10_000,
            held: 2_000,
            held_per_app: 500,
            connect_tries: 8,
            idle_per_instance: 128,
            queue_per_app: 500,
            compressed_answers: 256,
            udp_sessions: 4096,
            quic_unproven: 128,
            min_body_rate: 0,
            http2_streams: 128,
            http2_stream_window: 64 << 10,
            http2_connection_window: 512 << 10,
            http2_resets: 200,
            http2_control_frames: 500,
            http2_window_updates: 20_000,
            metrics_apps: 2_000,
        }
    }
}
