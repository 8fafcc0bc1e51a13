//! The UDP port of HTTP/3: one socket and one thread, which takes packets to the connections that they are for, by their ids and not by
//! addresses, so that a client may move. New connections go to the workers in turn; what they cost is the workers'.
//!
//! A source address proves nothing until the client has answered to it. Up to a limit such clients are trusted at once; beyond it
//! they are sent a Retry, which keeps nothing and is smaller than what it answers, so this port is of no use to flood others.
//!
//! The port is not shared with another process, as TCP's are: packets of one's connections would reach the other. A router that
//! starts while another still has the port serves without HTTP/3 until that one has ended.

use crate::{
    RouterError,
    metrics::{Counters, Limit},
    shared::Shared,
};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::QuicServerConfig,
};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Requests of one connection under way, and content that they may send ahead of their instances: as over HTTP/2.
const STREAMS: u32 = 128;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Content of answers that the client has not confirmed yet, all requests of a connection together.
const SEND_WINDOW: u64 = 1 << 20;
/// Streams of a client's own: three that mean something, and some that do not.
const SIDE_STREAMS: u32 = 8;
/// Connections that wait for a worker, with what has come of them.
const WAITING: usize = 1024;
const WAITING_BYTES: u64 = 64 << 10;
/// What comes in a burst while the thread is busy. The kernel gives what it may.
const SOCKET_BUFFER: usize = 2 << 20;
/// How often a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// So long may the last words of connections take that have ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long clients remember that there is HTTP/3.
const REMEMBERED: u32 = 86_400;

/// What the workers and the thread share of HTTP/3.
#[derive(Debug)]
pub(crate) struct Http3 {
    /// The port is open.
    open: AtomicBool,
    /// The line that tells clients of it.
    alt_svc: Box<[u8]>,
    /// Handshakes under way with clients whose address is not proven.
    unproven: Arc<AtomicUsize>,
    config: ServerConfig,
}

impl Http3 {
    /// `port`: where clients reach it.
    pub(crate) fn new(tls: &rustls::ServerConfig, idle: Duration, port: u16) -> Result<Self, RouterError> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        // No 0-RTT.
        tls.max_early_data_size = 0;
        let crypto = QuicServerConfig::try_from(tls).map_err(|_| RouterError::Quic)?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(STREAMS.into())
            .max_concurrent_uni_streams(SIDE_STREAMS.into())
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(CONNECTION_WINDOW.into())
            .send_window(SEND_WINDOW)
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(IdleTimeout::try_from(idle).ok());
        config.transport_config(Arc::new(transport)).max_incoming(WAITING).incoming_buffer_size(WAITING_BYTES);
        config.incoming_buffer_size_total(WAITING as u64 * WAITING_BYTES / 4);
        let alt_svc = format!("Alt-Svc: h3=\":{port}\"; ma={REMEMBERED}\r\n").into_bytes().into();
        Ok(Self { open: AtomicBool::new(false), alt_svc, unproven: Arc::default(), config })
    }

    /// The line that tells clients of it, while it is so.
    pub(crate) fn alt_svc(&self) -> Option<&[u8]> {
        self.open.load(Relaxed).then_some(&*self.alt_svc)
    }
}

/// One more handshake whose client has not proven its address.
#[derive(Debug)]
pub(crate) struct Unproven(Arc<AtomicUsize>);

impl Unproven {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count.clone())
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A client that wants a connection.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) incoming: Incoming,
    pub(crate) local: SocketAddr,
    pub(crate) unproven: Option<Unproven>,
}

/// A port, open or not yet.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    pub(crate) socket: Option<UdpSocket>,
}

pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Less is what there is where the system gives no more.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Runs on a thread of its own. `stop`: no new connections. `end`: the workers have ended.
pub(crate) fn run(
    shared: &Arc<Shared>,
    counters: &Arc<Counters>,
    ports: Vec<Port>,
    workers: Vec<mpsc::UnboundedSender<Arrived>>,
    stop: &watch::Receiver<bool>,
    end: &watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let mut serving = tokio::task::JoinSet::new();
        let workers: Arc<[_]> = workers.into();
        for port in ports {
            serving.spawn(serve(shared.clone(), counters.clone(), port, workers.clone(), stop.clone(), end.clone()));
        }
        while serving.join_next().await.is_some() {}
    });
    Ok(())
}

async fn serve(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    port: Port,
    workers: Arc<[mpsc::UnboundedSender<Arrived>]>,
    mut stop: watch::Receiver<bool>,
    mut end: watch::Receiver<bool>,
) {
    let Some(http3) = &shared.http3 else { return };
    let address = port.address;
    let endpoint = tokio::select! {
        endpoint = open(http3, port) => endpoint,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    http3.open.store(true, Relaxed);
    let mut turn = 0;
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some(incoming) = incoming else { break };
        let proven = incoming.remote_address_validated();
        if !proven && http3.unproven.load(SeqCst) >= shared.settings.limits.quic_unproven {
            counters.hit(Limit::QuicUnproven, ());
            // It cannot fail for one that is not proven.
            let _ = incoming.retry();
            continue;
        }
        let unproven = (!proven).then(|| Unproven::new(&http3.unproven));
        turn = (turn + 1) % workers.len();
        // A worker that has ended refuses it by dropping it.
        let _ = workers[turn].send(Arrived { incoming, local: address, unproven });
    }
    http3.open.store(false, Relaxed);
    // Connections go on while the workers drain; new ones are told at once to go elsewhere.
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming.refuse(),
                None => break,
            },
            _ = end.wait_for(|end| *end) => break,
        }
    }
    endpoint.close(VarInt::from_u32(0x100), b"");
    let _ = tokio::time::timeout(LAST_WORDS, endpoint.wait_idle()).await;
}

/// Opens the port, however long that takes.
async fn open(http3: &Http3, port: Port) -> Endpoint {
    let Port { address, mut socket } = port;
    let mut told = false;
    loop {
        let opened = socket.take().map_or_else(|| bind(address), Ok).and_then(|socket| {
            Endpoint::new(EndpointConfig::default(), Some(http3.config.clone()), socket, Arc::new(TokioRuntime))
        });
        match opened {
            Ok(endpoint) => {
                tracing::info!(%address, "HTTP/3 is served");
                return endpoint;
            }
            Err(e) if !told => {
                told = true;
                tracing::warn!(
                    %address, error = &e as &dyn std::error::Error,
                    "HTTP/3 is not served: its UDP port cannot be opened (a router that is being replaced keeps it to its end). It is tried again every second"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}
