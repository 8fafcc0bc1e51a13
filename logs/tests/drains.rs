//! Drains against what receives them: rsyslog as Debian has it, and a receiver over HTTPS.
//!
//! Needs the packages rsyslog and rsyslog-gnutls, which scripts/test installs.

use flex_logs::drain::{DrainSpec, DrainStatus, DrainUrl, Drains, Guard};
use flex_logs::{LogSettings, LogStore};
use flex_model::{AppId, DrainId, LogLine, LogSource, Secret, Timestamp, ids::Uuid};
use flex_tests::Port;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(60);

fn app(n: u128) -> AppId {
    AppId(Uuid::from_u128(n))
}

fn line(n: u64) -> LogLine {
    let at = Timestamp::from_micros(1_700_000_000_000_000 + n as i64 * 1000);
    LogLine { at, source: LogSource::App, process: "web.1".into(), text: format!("counter {n}").into() }
}

fn settings() -> LogSettings {
    LogSettings { burst_lines: 1 << 40, ..LogSettings::default() }
}

fn drains(logs: &Arc<LogStore>, dir: &Path, ca: Option<&Path>) -> Drains {
    let guard: Guard = Arc::new(|_| true);
    Drains::new(logs.clone(), dir.join("drains"), guard, ca).unwrap()
}

fn spec(app: AppId, url: &str) -> DrainSpec {
    let url = DrainUrl::parse(&Secret::new(url)).unwrap();
    DrainSpec { id: DrainId(Uuid::from_u128(9)), app, token: "d.test".into(), url }
}

fn status(drains: &Drains) -> DrainStatus {
    drains.status(DrainId(Uuid::from_u128(9))).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Certificates {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

fn certificates(dir: &Path) -> Certificates {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let cert = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    Certificates {
        ca: write("ca.pem", ca.pem()),
        cert: write("cert.pem", cert.pem()),
        key: write("key.pem", key.serialize_pem()),
    }
}

/// rsyslog, as Debian's package has it, with a configuration of its own.
struct Rsyslog {
    child: Child,
    config: PathBuf,
    dir: PathBuf,
}

impl Rsyslog {
    fn start(dir: &Path, port: u16, tls: Option<&Certificates>) -> Self {
        let dir = dir.join("rsyslog");
        fs::create_dir_all(&dir).unwrap();
        let d = dir.display();
        let (global, mode) = tls.map_or((String::new(), String::new()), |c| {
            let (ca, cert, key) = (c.ca.display(), c.cert.display(), c.key.display());
            let global = format!(
                "defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{ca}\" \
                 defaultNetstreamDriverCertFile=\"{cert}\" defaultNetstreamDriverKeyFile=\"{key}\""
            );
            (global, "streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"anon\"".into())
        });
        let text = format!(
            "global(workDirectory=\"{d}\" maxMessageSize=\"64k\" {global})\n\
             module(load=\"imtcp\" {mode})\n\
             template(name=\"out\" type=\"string\" string=\"%hostname%|%app-name%|%procid%|%syslogpriority-text%|%timereported:::date-rfc3339%|%msg%\\n\")\n\
             input(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")\n\
             *.* action(type=\"omfile\" file=\"{d}/out\" template=\"out\")\n"
        );
        let config = dir.join("rsyslog.conf");
        fs::write(&config, text).unwrap();
        let child = Self::spawn(&config, &dir);
        Self { child, config, dir }
    }

    fn spawn(config: &Path, dir: &Path) -> Child {
        Command::new("/usr/sbin/rsyslogd")
            .args(["-n", "-f"])
            .arg(config)
            .arg("-i")
            .arg(dir.join("pid"))
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(dir.join("stderr")).unwrap())
            .spawn()
            .expect("rsyslogd does not start: install rsyslog and rsyslog-gnutls, as scripts/test does")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        self.kill();
        let _ = fs::remove_file(self.dir.join("pid"));
        self.child = Self::spawn(&self.config, &self.dir);
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.dir.join("out")).unwrap_or_default()
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.bytes()).lines().map(str::to_owned).collect()
    }

    /// The counters that arrived, each once, and how many came a second time.
    fn counters(&self) -> (BTreeSet<u64>, usize) {
        let lines = self.lines();
        let numbers: Vec<u64> = lines.iter().filter_map(|l| l.split_once("counter ")?.1.trim().parse().ok()).collect();
        let once: BTreeSet<u64> = numbers.iter().copied().collect();
        let twice = numbers.len() - once.len();
        (once, twice)
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn through_rsyslog(tls: bool) {
    let dir = TempDir::new().unwrap();
    let certs = certificates(dir.path());
    let reserved = Port::reserve();
    let port = reserved.number();
    let mut receiver = Rsyslog::start(dir.path(), port, tls.then_some(&certs));
    let logs = Arc::new(LogStore::open(dir.path().join("logs"), settings()).unwrap());
    logs.append(app(1), LogLine { text: "from before".into(), ..line(0) });
    assert!(logs.flush().await);
    let drains = drains(&logs, dir.path(), Some(&certs.ca));
    let scheme = if tls { "syslog+tls" } else { "syslog" };
    drains.set(vec![spec(app(1), &format!("{scheme}://localhost:{port}"))]).unwrap();
    (0..2_000).for_each(|n| logs.append(app(1), line(n)));
    until("the first lines arrive", || receiver.counters().0.len() == 2_000).await;
    let first = &receiver.lines()[0];
    assert!(first.starts_with("d.test|app|web.1|info|2023-11-14T22:13:20"), "{first}");
    assert!(first.ends_with("counter 0"), "{first}");
    // The receiver dies in the middle, and misses a while.
    for n in 2_000..6_000 {
        logs.append(app(1), line(n));
        if n == 4_000 {
            assert!(logs.flush().await);
            receiver.kill();
        }
    }
    until("the drain sees it", || status(&drains).error.is_some()).await;
    receiver.again();
    until("what was missed arrives", || receiver.counters().0.len() == 6_000).await;
    let (_, twice) = receiver.counters();
    assert!(twice <= 6_000, "{twice}");
    let long = format!("start {} end", "x".repeat(9_000));
    logs.append(app(1), LogLine { text: long.as_str().into(), ..line(0) });
    logs.append(app(1), LogLine { source: LogSource::Flex, process: "router".into(), text: "at=info \u{fc}".into(), ..line(0) });
    // It writes control characters in a way of its own.
    let bytes: Vec<u8> = (b' '..=255).filter(|b| *b != 0x7f).collect();
    logs.append(app(1), LogLine { text: bytes.clone().into(), ..line(0) });
    until("odd lines arrive", || {
        if !receiver.bytes().windows(bytes.len()).any(|w| w == bytes) {
            return false;
        }
        let lines = receiver.lines();
        lines.iter().any(|l| l.contains(&long)) && lines.iter().any(|l| l.contains("|flex|router|info|") && l.contains("at=info"))
    })
    .await;
    assert!(!receiver.lines().iter().any(|l| l.contains("from before")));
    // A new process goes on where the last one was.
    drop(drains);
    (6_000..7_000).for_each(|n| logs.append(app(1), line(n)));
    assert!(logs.flush().await);
    let drains = self::drains(&logs, dir.path(), Some(&certs.ca));
    drains.set(vec![spec(app(1), &format!("{scheme}://localhost:{port}"))]).unwrap();
    until("lines from between arrive", || receiver.counters().0.len() == 7_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsyslog_gets_every_line_over_tcp() {
    through_rsyslog(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsyslog_gets_every_line_over_tls() {
    through_rsyslog(true).await;
}

/// A receiver over HTTPS that can be made to refuse or to hang.
#[derive(Default)]
struct Receiver {
    heads: Mutex<Vec<String>>,
    messages: Mutex<Vec<String>>,
    refuse: AtomicBool,
    hang: AtomicBool,
    connections: AtomicUsize,
}

impl Receiver {
    async fn start(certs: &Certificates) -> (Arc<Self>, u16) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Self::serve(certs, listener), port)
    }

    fn serve(certs: &Certificates, listener: tokio::net::TcpListener) -> Arc<Self> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![CertificateDer::from_pem_file(&certs.cert).unwrap()];
        let config =
            config.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_file(&certs.key).unwrap()).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let receiver = Arc::new(Self::default());
        let this = receiver.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                this.connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, this) = (acceptor.clone(), this.clone());
                tokio::spawn(async move {
                    if let Ok(mut tls) = acceptor.accept(tcp).await {
                        while this.request(&mut tls).await.is_some() {}
                    }
                });
            }
        });
        receiver
    }

    async fn request(&self, stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> Option<()> {
        let mut bytes = Vec::new();
        let end = loop {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned())).unwrap();
        let length: usize = header("Content-Length:").parse().unwrap();
        while bytes.len() < end + length {
            stream.read_buf(&mut bytes).await.ok()?;
        }
        while self.hang.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let status = if self.refuse.load(Ordering::SeqCst) { "503 Busy" } else { "204 No Content" };
        if status.starts_with('2') {
            let messages = unframe(&bytes[end..]);
            assert_eq!(messages.len().to_string(), header("Logplex-Msg-Count:"));
            self.messages.lock().unwrap().extend(messages);
        }
        self.heads.lock().unwrap().push(head);
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.ok()
    }

    fn counters(&self) -> Vec<u64> {
        let messages = self.messages.lock().unwrap();
        messages.iter().filter_map(|m| m.split_once("counter ")?.1.trim().split(' ').next()?.parse().ok()).collect()
    }
}

/// How many lines the message says are missing.
fn overflow(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("Error L10 (output buffer overflow): ")?;
    rest.split_once(" messages dropped since ")?.0.parse().ok()
}

fn unframe(mut body: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while !body.is_empty() {
        let space = body.iter().position(|b| *b == b' ').unwrap();
        let length: usize = std::str::from_utf8(&body[..space]).unwrap().parse().unwrap();
        out.push(String::from_utf8(body[space + 1..=space + length].to_vec()).unwrap());
        body = &body[space + 1 + length..];
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_https_receiver_gets_frames_as_heroku_sends_them() {
    let dir = TempDir::new().unwrap();
    let certs = certificates(dir.path());
    let (receiver, port) = Receiver::start(&certs).await;
    let logs = Arc::new(LogStore::open(dir.path().join("logs"), settings()).unwrap());
    let drains = drains(&logs, dir.path(), Some(&certs.ca));
    drains.set(vec![spec(app(1), &format!("https://me:s3cret@localhost:{port}/in?key=1"))]).unwrap();
    (0..5_000).for_each(|n| logs.append(app(1), line(n)));
    until("lines arrive", || receiver.counters().len() >= 5_000).await;
    assert_eq!(receiver.counters(), (0..5_000).collect::<Vec<_>>(), "in order, each once");
    let head = receiver.heads.lock().unwrap()[0].clone();
    for wanted in [
        "POST /in?key=1 HTTP/1.1\r\n",
        "Content-Type: application/logplex-1\r\n",
        "Logplex-Drain-Token: d.test\r\n",
        "Logplex-Frame-Id: ",
        "Authorization: Basic bWU6czNjcmV0\r\n",
    ] {
        assert!(head.contains(wanted), "{head}");
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 1, "one connection serves for all");
    // A receiver that refuses for a while loses nothing.
    receiver.refuse.store(true, Ordering::SeqCst);
    (5_000..9_000).for_each(|n| logs.append(app(1), line(n)));
    until("the refusal is told", || status(&drains).error.is_some_and(|e| e.contains("503"))).await;
    receiver.refuse.store(false, Ordering::SeqCst);
    until("the rest arrives", || receiver.counters().len() >= 9_000).await;
    assert_eq!(receiver.counters(), (0..9_000).collect::<Vec<_>>());
    until("all is well", || status(&drains).error.is_none() && status(&drains).sent == 9_000).await;
    // A drain that is taken away stays away, and forgets its place.
    drains.set(Vec::new()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("drains")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_hangs_slows_nobody_and_is_told_what_it_missed() {
    let dir = TempDir::new().unwrap();
    let certs = certificates(dir.path());
    let (receiver, port) = Receiver::start(&certs).await;
    receiver.hang.store(true, Ordering::SeqCst);
    let settings = LogSettings { max_bytes_per_app: 256 << 10, ..settings() };
    let logs = Arc::new(LogStore::open(dir.path().join("logs"), settings).unwrap());
    let drains = drains(&logs, dir.path(), Some(&certs.ca));
    drains.set(vec![spec(app(1), &format!("https://localhost:{port}/"))]).unwrap();
    logs.append(app(1), line(0));
    let mut slowest = Duration::ZERO;
    let total = 80_000u64;
    for n in 1..total {
        let text = format!("counter {n} {:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let began = Instant::now();
        logs.append(app(1), LogLine { text: text.into(), ..line(n) });
        slowest = slowest.max(began.elapsed());
        if n % 5_000 == 0 {
            assert!(logs.flush().await);
        }
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    receiver.hang.store(false, Ordering::SeqCst);
    let arrived = || {
        let messages = receiver.messages.lock().unwrap();
        let dropped: u64 = messages.iter().filter_map(|m| overflow(m)).sum();
        let counters: BTreeSet<&str> =
            messages.iter().filter_map(|m| m.split_once("counter ")?.1.trim().split(' ').next()).collect();
        (dropped, counters.len() as u64)
    };
    until("every line arrived or was told of", || arrived().0 + arrived().1 == total).await;
    assert!(arrived().0 > 0, "retention took nothing: the test shows nothing");
    assert_eq!(receiver.messages.lock().unwrap().iter().filter_map(|m| overflow(m)).count(), 1);
}

#[tokio::test]
async fn a_refused_address_is_not_connected_to_whatever_its_name() {
    let dir = TempDir::new().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let logs = Arc::new(LogStore::open(dir.path().join("logs"), settings()).unwrap());
    let guard: Guard = Arc::new(|a| !flex_logs::drain::is_risky(a));
    let drains = Drains::new(logs.clone(), dir.path().join("drains"), guard, None).unwrap();
    let spec = spec(app(1), &format!("syslog://localhost:{port}"));
    let e = drains.check(&spec.url).await.unwrap_err();
    assert!(e.contains("drain_allow"), "{e}");
    drains.set(vec![spec]).unwrap();
    until("it is refused", || status(&drains).error.is_some_and(|e| e.contains("may not reach"))).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
}

/// While nothing listens, the gap grows and is read again with each try: it is counted once, when it was told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_receiver_missed_is_counted_when_it_is_told() {
    let dir = TempDir::new().unwrap();
    let certs = certificates(dir.path());
    // Taken and not listening: who connects is refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let settings = LogSettings { max_bytes_per_app: 256 << 10, ..settings() };
    let logs = Arc::new(LogStore::open(dir.path().join("logs"), settings).unwrap());
    let drains = drains(&logs, dir.path(), Some(&certs.ca));
    drains.set(vec![spec(app(1), &format!("https://localhost:{port}/"))]).unwrap();
    let total = 40_000u64;
    for n in 0..total {
        let text = format!("counter {n} {:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        logs.append(app(1), LogLine { text: text.into(), ..line(n) });
        if n % 5_000 == 0 {
            assert!(logs.flush().await);
        }
    }
    let since = Instant::now();
    until("it is refused again and again", || {
        let status = status(&drains);
        assert_eq!((status.dropped, status.sent), (0, 0), "{status:?}");
        since.elapsed() > Duration::from_secs(4) && status.error.is_some()
    })
    .await;
    let receiver = Receiver::serve(&certs, socket.listen(16).unwrap());
    until("it got on", || status(&drains).sent > 0 && receiver.counters().contains(&(total - 1))).await;
    let messages = receiver.messages.lock().unwrap().clone();
    let told: Vec<u64> = messages.iter().filter_map(|m| overflow(m)).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    until("it is counted", || status(&drains).dropped == told[0]).await;
    assert_eq!(told[0] + receiver.counters().len() as u64, total);
}
