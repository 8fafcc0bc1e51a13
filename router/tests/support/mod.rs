//! A world for one test: a router on a free port of loopback, instances that are plain sockets, and a client that is one
//! too, so that every byte on the wire is the test's own choice.
#![allow(dead_code, clippy::missing_panics_doc)]

use flex_model::{
    AppId, AppRoute, AppState, Backend, Certificate, CertificateTable, InstanceId, Match, Policy, Route, RouteId, RouteTable,
    RouterStatus, Secret, Target, Uuid,
};
use flex_router::{AccessQueue, Limits, Metrics, MinTls, Router, RouterSettings, Timeouts, TlsSettings};
use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
};

/// No test waits longer than this for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline of the test")
}

pub fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub fn backend(n: u128, address: SocketAddr) -> Backend {
    Backend { instance: InstanceId(uuid(n)), name: format!("web.{n}"), address }
}

/// An app whose domain is `name.test`.
pub fn app(name: &str, state: AppState, backends: Vec<Backend>) -> AppRoute {
    let id = name.bytes().fold(0_u128, |n, b| n << 8 | u128::from(b));
    AppRoute::new(AppId(uuid(id)), name.parse().unwrap(), vec![format!("{name}.test").parse().unwrap()], state, backends)
}

/// A route of an app to its `web`.
pub fn route(n: u128, matches: Match, policy: Policy) -> Route {
    let targets = vec![Target::to(flex_model::ProcessType::web())];
    Route { id: RouteId(uuid(n)), matches, targets, policy: Some(Arc::new(policy)) }
}

pub fn table(revision: u64, apps: Vec<AppRoute>) -> Arc<RouteTable> {
    Arc::new(RouteTable::new(revision, apps))
}

pub struct World {
    pub address: SocketAddr,
    pub https: Option<SocketAddr>,
    pub certificates: watch::Sender<Arc<CertificateTable>>,
    pub tables: watch::Sender<Arc<RouteTable>>,
    pub status: watch::Receiver<RouterStatus>,
    pub metrics: Metrics,
    pub lines: mpsc::UnboundedReceiver<(AppId, String)>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

pub struct Setup {
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub state_dir: Option<PathBuf>,
    pub trusted: Vec<&'static str>,
    pub workers: usize,
    /// Whatever else is to be set.
    pub tune: fn(&mut RouterSettings),
    /// Some: listens for HTTPS too.
    pub certificates: Option<CertificateTable>,
    pub min_tls: MinTls,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            state_dir: None,
            trusted: vec![],
            workers: 2,
            tune: |_| (),
            certificates: None,
            min_tls: MinTls::default(),
        }
    }
}

impl Setup {
    pub async fn start(self, first: Arc<RouteTable>) -> World {
        let (tables, table) = watch::channel(first);
        let (queue, mut written) = AccessQueue::new(100_000);
        let (forward, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                for line in written.batch().await {
                    if forward.send(line).is_err() {
                        return;
                    }
                }
            }
        });
        let https = self.certificates.is_some();
        let (certificates, certificates_in) = watch::channel(Arc::new(self.certificates.unwrap_or_default()));
        let mut settings = RouterSettings {
            tls: TlsSettings {
                listen: https.then_some(([127, 0, 0, 1], 0).into()).into_iter().collect(),
                certificates: Some(certificates_in),
                min: self.min_tls,
                ..TlsSettings::default()
            },
            name: "test".into(),
            listen: vec![([127, 0, 0, 1], 0).into()],
            workers: self.workers,
            state_dir: self.state_dir,
            trusted_proxies: self.trusted.iter().map(|t| t.parse().unwrap()).collect(),
            timeouts: self.timeouts,
            limits: self.limits,
            l4_address: [127, 0, 0, 1].into(),
            ..RouterSettings::default()
        };
        (self.tune)(&mut settings);
        let router = Router::bind(settings, table, Arc::new(queue)).await.unwrap();
        let https = router.local_tls_addrs().first().copied();
        let (address, status, metrics) = (router.local_addr(), router.status(), router.metrics());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            router
                .serve(async {
                    let _ = stopped.await;
                })
                .await
                .unwrap();
        });
        World { address, https, certificates, tables, status, metrics, lines, stop: Some(stop), served }
    }
}

impl World {
    pub async fn new(apps: Vec<AppRoute>) -> Self {
        Setup::default().start(table(1, apps)).await
    }

    pub async fn client(&self) -> Client {
        Client::new(self.address).await
    }

    /// One request on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        let mut client = self.client().await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        client.answer().await
    }

    /// Puts a table in place and waits until the router says that it routes by it.
    pub async fn set(&mut self, revision: u64, apps: Vec<AppRoute>) {
        let mut next = RouteTable::new(revision, apps);
        next.cookie_key = Some(flex_model::Secret::new("key"));
        self.tables.send_replace(Arc::new(next));
        within(self.status.wait_for(|s| s.revision == revision)).await.unwrap();
    }

    pub async fn line(&mut self) -> String {
        within(self.lines.recv()).await.unwrap().1
    }

    pub fn begin_stop(&mut self) {
        let _ = self.stop.take().map(|s| s.send(()));
    }

    /// Without waiting for what still runs.
    pub async fn stop_now(mut self) {
        self.begin_stop();
        self.served.abort();
        let _ = self.served.await;
    }

    pub async fn stop(mut self) {
        self.begin_stop();
        within(&mut self.served).await.unwrap();
    }
}

/// A certificate that trusts itself, with its key.
pub struct Pair {
    pub certificate: Certificate,
    pub der: rustls::pki_types::CertificateDer<'static>,
}

impl Pair {
    pub fn new(id: &str, names: &[&str]) -> Self {
        let made = rcgen::generate_simple_self_signed(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
        let certificate = Certificate {
            id: id.into(),
            names: names.iter().map(|n| n.parse().unwrap()).collect(),
            chain: made.cert.pem(),
            key: Secret::new(made.signing_key.serialize_pem()),
        };
        Self { certificate, der: made.cert.der().clone() }
    }
}

pub fn certificates(revision: u64, pairs: &[&Pair]) -> CertificateTable {
    let certificates = pairs.iter().map(|p| Arc::new(p.certificate.clone())).collect();
    CertificateTable { revision, certificates, ..CertificateTable::default() }
}

/// A client that trusts these and nothing else.
pub fn client_config(
    trusted: &[&Pair],
    alpn: &[&[u8]],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for pair in trusted {
        roots.add(pair.der.clone()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// Waits until `what` holds.
pub async fn eventually(what: impl AsyncFn() -> bool) {
    within(async {
        while !what().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub struct Client {
    pub stream: TcpStream,
    pub buf: Vec<u8>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub async fn new(address: SocketAddr) -> Self {
        Self { stream: within(TcpStream::connect(address)).await.unwrap(), buf: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.unwrap();
    }

    pub async fn fill(&mut self) -> usize {
        within(self.stream.read_buf(&mut self.buf)).await.unwrap_or(0)
    }

    /// A head, without looking for a body. None at the end of the stream.
    pub async fn head(&mut self) -> Option<Answer> {
        loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(self.buf.drain(..at + 4).take(at + 2).collect()).unwrap();
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Some(Answer { status, head, body: vec![] });
            }
            if self.fill().await == 0 {
                return None;
            }
        }
    }

    pub async fn exact(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            assert!(self.fill().await > 0, "the stream ended early: {} of {n}", self.buf.len());
        }
        self.buf.drain(..n).collect()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8(self.buf.drain(..at + 2).take(at).collect()).unwrap();
                return line;
            }
            assert!(self.fill().await > 0, "the stream ended in a line");
        }
    }

    /// A request's head, as the instance sees it; its content stays unread.
    pub async fn head_of_request(&mut self) -> String {
        loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                return String::from_utf8_lossy(&self.buf.drain(..at + 4).collect::<Vec<u8>>()).into_owned();
            }
            if self.fill().await == 0 {
                return String::new();
            }
        }
    }

    /// One chunk's content; empty for the last.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        if size == 0 {
            while !self.line().await.is_empty() {}
            return vec![];
        }
        let data = self.exact(size).await;
        assert_eq!(self.exact(2).await, b"\r\n");
        data
    }

    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await > 0 {}
        std::mem::take(&mut self.buf)
    }

    pub async fn body(&mut self, head: &Answer) -> Vec<u8> {
        if let Some(n) = head.field("content-length") {
            self.exact(n.parse().unwrap()).await
        } else if head.field("transfer-encoding").is_some() {
            let mut body = vec![];
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    return body;
                }
                body.extend(chunk);
            }
        } else {
            self.rest().await
        }
    }

    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await.expect("an answer");
        if !matches!(answer.status, 204 | 304) {
            answer.body = self.body(&answer).await;
        }
        answer
    }
}

/// An instance: each connection is given to `handle`.
pub struct Instance {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn instance<F, Fut>(handle: F) -> Instance
where
    F: Fn(Client, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handle = Arc::new(handle);
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        let mut n = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let handle = handle.clone();
            connections.spawn(async move { handle(Client { stream, buf: vec![] }, n).await });
            n += 1;
        }
    });
    Instance { address, task }
}

/// A request as an instance got it.
#[derive(Debug, Clone)]
pub struct Got {
    pub head: String,
    pub body: Vec<u8>,
}

/// Reads one request as a backend that believes in RFC 9112. None at the end of the stream.
pub async fn request(conn: &mut Client) -> Option<Got> {
    let head = loop {
        if let Some(at) = conn.buf.windows(4).position(|w| w == b"\r\n\r\n") {
            break String::from_utf8_lossy(&conn.buf.drain(..at + 4).collect::<Vec<u8>>()).into_owned();
        }
        if conn.fill().await == 0 {
            return None;
        }
    };
    let answer = Answer { status: 0, head: head.clone(), body: vec![] };
    let body = if answer.field("content-length").is_some() || answer.field("transfer-encoding").is_some() {
        conn.body(&answer).await
    } else {
        vec![]
    };
    Some(Got { head, body })
}

/// An instance that answers each request with what it got: the head, then the body.
pub async fn echo() -> Instance {
    instance(|mut conn, _| async move {
        while let Some(got) = request(&mut conn).await {
            let body = [got.head.as_bytes(), &got.body].concat();
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            conn.send_bytes(&body).await;
        }
    })
    .await
}

/// An instance that answers each request with a fixed text.
pub async fn fixed(text: &'static str) -> Instance {
    instance(move |mut conn, _| async move {
        while request(&mut conn).await.is_some() {
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
        }
    })
    .await
}

/// A port of loopback that was free a moment ago.
pub async fn free_port() -> u16 {
    refused().await.port()
}

/// An instance that sends back what it gets, and ends when the client does.
pub async fn mirror() -> Instance {
    instance(|mut conn, _| async move {
        let (mut read, mut write) = conn.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// An address where nothing listens.
pub async fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
