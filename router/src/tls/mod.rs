//! TLS of clients: one rustls configuration for all workers, certificates by name, tickets whose keys all routers share, and handshakes that leave the worker's other connections their turn.
//!
//! Must not: ask anyone for a certificate during a handshake, or hold memory for names that nobody registered.

mod store;
mod tickets;

pub(crate) use store::{ACME_PROTOCOL, CertStore};

use crate::{
    RouterError,
    io::{Ahead, Guard},
    l4::hello,
    metrics::Counters,
    settings::MinTls,
    shared::Shared,
    worker::Worker,
};
use flex_model::CertificateTable;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{Acceptor, ServerSessionMemoryCache},
    version::{TLS12, TLS13},
};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};
use tickets::Tickets;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

/// Sessions remembered for clients without tickets; a quarter of a KiB each.
const SESSIONS: usize = 10_000;

/// What the workers share of TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) store: Arc<CertStore>,
    tickets: Arc<Tickets>,
    config: Arc<ServerConfig>,
    /// For TCP routes: which protocol is inside is not ours to choose.
    pub(crate) for_tcp: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(min: MinTls) -> Result<Self, RouterError> {
        let versions: &[&rustls::SupportedProtocolVersion] = match min {
            MinTls::Tls12 => &[&TLS13, &TLS12],
            MinTls::Tls13 => &[&TLS13],
        };
        let store = Arc::new(CertStore::default());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(RouterError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(store.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_PROTOCOL.to_vec()];
        let tickets = Arc::new(Tickets::new());
        config.ticketer = tickets.clone();
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        // The default of two costs a system call's worth of encryption for a ticket that hardly anybody uses.
        config.send_tls13_tickets = 1;
        let mut for_tcp = config.clone();
        for_tcp.alpn_protocols = Vec::new();
        Ok(Self { store, tickets, config: Arc::new(config), for_tcp: Arc::new(for_tcp) })
    }

    /// What the HTTPS listeners use.
    pub(crate) fn config(&self) -> &ServerConfig {
        &self.config
    }

    pub(crate) fn replace(&self, table: &CertificateTable) {
        for problem in self.store.replace(table) {
            tracing::error!(revision = table.revision, "{problem}");
        }
        self.tickets.replace(&table.ticket_keys);
    }
}

/// Follows the certificates as they come.
pub(crate) async fn follow(shared: Arc<Shared>, mut tables: watch::Receiver<Arc<CertificateTable>>) {
    tables.mark_changed();
    while tables.changed().await.is_ok() {
        let table = tables.borrow_and_update().clone();
        if table.revision == 0 {
            continue;
        }
        let shared = shared.clone();
        // Keys are parsed and compared with their certificates: not on an event loop.
        let _ = tokio::task::spawn_blocking(move || {
            shared.tls.replace(&table);
            shared.certificates.store(table.revision, Ordering::SeqCst);
            shared.dirty.mark();
            shared.keep_certificates(&table);
        })
        .await;
    }
}

/// Begins TLS with a client, within the guard's time. `None`: it did not come to pass.
pub(crate) async fn accept(worker: &Worker, guard: &Guard, stream: Ahead) -> Option<TlsStream<Ahead>> {
    let started = within(guard, LazyConfigAcceptor::new(Acceptor::default(), stream)).await?.ok()?;
    // Signing takes from a fifth of a millisecond to several. One handshake at a time gets there, and everything else on
    // this worker has a turn before the next: a thousand clients at once delay requests by one signature, not a thousand.
    let turn = within(guard, worker.handshakes.acquire()).await?.ok()?;
    let mut accepting = pin!(started.into_stream(worker.shared.tls.config.clone()));
    let first = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
    tokio::task::yield_now().await;
    drop(turn);
    let stream = match first {
        Poll::Ready(done) => done.ok()?,
        Poll::Pending => within(guard, accepting).await?.ok()?,
    };
    Counters::add(&worker.counters.tls_handshakes, 1);
    if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        Counters::add(&worker.counters.tls_resumed, 1);
    }
    Some(stream)
}

/// Reads into `ahead` until it is known which name a client asks for; inner `None`: none, or it is no TLS. Outer `None`: it
/// went away, or did not say it in time.
pub(crate) async fn asked_for(guard: &Guard, stream: &TcpStream, ahead: &mut Vec<u8>) -> Option<Option<String>> {
    within(guard, hello::read(stream, ahead)).await?
}

/// Waits for `what`, or `None` when the guard's time is over.
pub(crate) async fn within<F: Future>(guard: &Guard, what: F) -> Option<F::Output> {
    let mut what = pin!(what);
    poll_fn(|cx| {
        if guard.poll_expired(cx) {
            return Poll::Ready(None);
        }
        what.as_mut().poll(cx).map(Some)
    })
    .await
}
