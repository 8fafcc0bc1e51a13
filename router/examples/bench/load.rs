//! The clients. Each gives what it saw; what it cost the proxy is read elsewhere.

use crate::rig::HOST;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{
    io::{Error, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a client saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Requests, handshakes or GiB.
    pub count: f64,
    pub seconds: f64,
    /// Milliseconds; 0 where the client does not say.
    pub p50: f64,
    pub p99: f64,
    /// Of resumed handshakes, 0 to 1.
    pub resumed: f64,
}

/// One request over a connection of its own.
pub fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    exchange(&mut stream, &request(HOST), &mut vec![0; 8192])
}

fn request(host: &str) -> Vec<u8> {
    format!("GET /hello?x=1 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n").into_bytes()
}

/// Sends, and reads the whole answer of 1 KiB.
fn exchange(stream: &mut TcpStream, request: &[u8], buf: &mut [u8]) -> std::io::Result<()> {
    stream.write_all(request)?;
    let mut have = 0;
    loop {
        match stream.read(&mut buf[have..])? {
            0 => return Err(Error::other("closed before its answer")),
            n => have += n,
        }
        if is_whole(&buf[..have])? {
            return Ok(());
        }
    }
}

/// Whether these bytes are a head and 1 KiB; anything but a 200 is an error.
fn is_whole(bytes: &[u8]) -> std::io::Result<bool> {
    let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(false) };
    if !bytes.starts_with(b"HTTP/1.1 200") {
        return Err(Error::other(String::from_utf8_lossy(&bytes[..at]).into_owned()));
    }
    Ok(bytes.len() >= at + 4 + 1024)
}

/// `wrk`: as fast as it can, over kept connections unless a header says otherwise.
pub fn wrk(address: SocketAddr, connections: usize, length: Duration, path: &str, header: Option<&str>) -> Seen {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{}s", length.as_secs().max(1))]);
    command.args(["-H", &format!("Host: {HOST}")]);
    command.args(header.into_iter().flat_map(|h| ["-H", h]));
    let said = output(command.arg(format!("http://{address}{path}")));
    let is_bad = |l: &&str| l.contains("Non-2xx") || l.contains("Socket errors");
    // A connection that is closed after its answer counts as an error of reading.
    if let Some(bad) = said.lines().find(is_bad).filter(|_| header.is_none()) {
        panic!("wrk at {address}{path}: {bad}");
    }
    let line = |start: &str| said.lines().map(str::trim).find_map(|l| l.strip_prefix(start).map(str::trim));
    let total = said.lines().map(str::trim).find(|l| l.contains(" requests in ")).expect("wrk's total");
    let (count, rest) = total.split_once(" requests in ").expect("wrk's total");
    let seconds = span(rest.split(',').next().unwrap_or("")) / 1000.0;
    let at = |share: &str| line(share).map_or(0.0, span);
    Seen { count: count.parse().expect("a number"), seconds, p50: at("50%"), p99: at("99%"), resumed: 0.0 }
}

/// Milliseconds of `1.20ms`, `350.00us` or `3.00s`.
fn span(text: &str) -> f64 {
    let text = text.trim();
    let (number, scale) = match text {
        t if t.ends_with("us") => (&t[..t.len() - 2], 0.001),
        t if t.ends_with("ms") => (&t[..t.len() - 2], 1.0),
        t => (t.trim_end_matches('s'), 1000.0),
    };
    number.parse::<f64>().unwrap_or_else(|_| panic!("a time, not {text:?}")) * scale
}

/// `h2load` over TLS: `streams` on each of `connections`; HTTP/1.1 where `streams` is none.
pub fn h2load(address: SocketAddr, connections: usize, streams: Option<usize>, length: Duration) -> Seen {
    let mut command = Command::new("h2load");
    command.args(["-t1", &format!("-c{connections}"), &format!("-D{}", length.as_secs().max(1))]);
    match streams {
        Some(n) => command.arg(format!("-m{n}")),
        None => command.arg("--h1"),
    };
    command.arg(format!("--connect-to={address}")).arg(format!("https://{HOST}:{}/hello?x=1", address.port()));
    let said = output(&mut command);
    // requests: 123 total, 123 started, 123 done, 123 succeeded, 0 failed, 0 errored, 0 timeout
    let line = said.lines().find_map(|l| l.strip_prefix("requests: ")).unwrap_or_else(|| panic!("h2load said: {said}"));
    let of = |what: &str| -> f64 {
        let part = line.split(", ").find_map(|p| p.strip_suffix(what)).unwrap_or("0");
        part.trim().parse().unwrap_or_else(|_| panic!("h2load said: {line}"))
    };
    assert!(of(" failed") == 0.0 && of(" succeeded") > 0.0, "h2load at {address}: {line}");
    Seen { count: of(" succeeded"), seconds: length.as_secs_f64().max(1.0), ..Seen::default() }
}

fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

/// A fixed rate: each request has its time, and its latency counts from there, whether or not the one before was late.
pub fn paced(address: SocketAddr, rate: u32, length: Duration) -> Seen {
    const CLIENTS: u32 = 16;
    let gap = Duration::from_secs(1) * CLIENTS / rate;
    let begun = Instant::now() + Duration::from_millis(50);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            std::thread::spawn(move || {
                let (request, mut buf) = (request(HOST), vec![0; 8192]);
                let mut stream = TcpStream::connect(address).expect("a connection");
                stream.set_nodelay(true).expect("an option");
                let (mut due, mut took) = (begun + gap * n / CLIENTS, Vec::new());
                while due < begun + length {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    exchange(&mut stream, &request, &mut buf).unwrap_or_else(|e| panic!("{address}: {e}"));
                    took.push(due.elapsed().as_secs_f64() * 1000.0);
                    due += gap;
                }
                took
            })
        })
        .collect();
    let mut took: Vec<f64> = clients.into_iter().flat_map(|c| c.join().expect("a client")).collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    Seen { count: took.len() as f64, seconds: length.as_secs_f64(), p50: at(0.5), p99: at(0.99), resumed: 0.0 }
}

/// A client that trusts the certificate of the rig, with or without a memory of sessions.
fn tls(dir: &Path, resumes: bool) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("chain.pem")).expect("a certificate")).expect("a root");
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumes {
        config.resumption = rustls::client::Resumption::disabled();
    }
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from(HOST).expect("a name")
}

/// Handshakes, each followed by one request (which is when a client has its tickets), one connection after another.
pub async fn handshakes(address: SocketAddr, dir: &Path, resumes: bool, length: Duration) -> Seen {
    let connector = tls(dir, resumes);
    let (begun, mut count, mut resumed) = (Instant::now(), 0.0, 0.0);
    while begun.elapsed() < length {
        let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let mut stream = connector.connect(server_name(), stream).await.expect("a handshake");
        one(&mut stream).await.unwrap_or_else(|e| panic!("{address}: {e}"));
        count += 1.0;
        if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            resumed += 1.0;
        }
    }
    Seen { count, seconds: begun.elapsed().as_secs_f64(), resumed: resumed / count, ..Seen::default() }
}

async fn one<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    stream.write_all(&request(HOST)).await?;
    stream.flush().await?;
    let (mut buf, mut have) = (vec![0; 4096], 0);
    while !is_whole(&buf[..have])? {
        match stream.read(&mut buf[have..]).await? {
            0 => return Err(Error::other("closed before its answer")),
            n => have += n,
        }
    }
    Ok(())
}

/// Connections that made one request each and are kept.
pub async fn idle(address: SocketAddr, secure: Option<&Path>, count: usize) -> Vec<Box<dyn std::any::Any>> {
    let connector = secure.map(|dir| tls(dir, false));
    let mut kept: Vec<Box<dyn std::any::Any>> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        match &connector {
            Some(connector) => {
                let mut stream = connector.connect(server_name(), stream).await.expect("a handshake");
                one(&mut stream).await.expect("an answer");
                kept.push(Box::new(stream));
            }
            None => {
                one(&mut stream).await.expect("an answer");
                kept.push(Box::new(stream));
            }
        }
    }
    kept
}

/// GiB read from a relay over so many streams.
pub fn bulk(address: SocketAddr, streams: usize, length: Duration) -> Seen {
    let begun = Instant::now();
    let readers: Vec<_> = (0..streams)
        .map(|_| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).expect("a connection");
                let (mut buf, mut bytes) = (vec![0; 256 << 10], 0_u64);
                while begun.elapsed() < length {
                    let n = stream.read(&mut buf).expect("bytes");
                    assert!(n > 0, "{address} ended a stream");
                    bytes += n as u64;
                }
                bytes
            })
        })
        .collect();
    let bytes: u64 = readers.into_iter().map(|r| r.join().expect("a reader")).sum();
    let seconds = begun.elapsed().as_secs_f64();
    Seen { count: bytes as f64 / f64::from(1 << 30), seconds, ..Seen::default() }
}

/// Requests over 64 kept connections, each for the next of these hosts.
pub async fn hosts(address: SocketAddr, hosts: Arc<Vec<String>>, length: Duration) -> Seen {
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..64 {
        let hosts = hosts.clone();
        clients.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("an option");
            let (mut buf, mut count) = (vec![0; 8192], 0_usize);
            while begun.elapsed() < length {
                // Far from the host before, so that no cache of the processor helps.
                let host = &hosts[(n * 7919 + count * 104_729) % hosts.len()];
                stream.write_all(&request(host)).await.expect("a listener");
                let mut have = 0;
                while !is_whole(&buf[..have]).unwrap_or_else(|e| panic!("{host}: {e}")) {
                    have += stream.read(&mut buf[have..]).await.expect("an answer");
                }
                count += 1;
            }
            count
        });
    }
    let mut count = 0;
    while let Some(done) = clients.join_next().await {
        count += done.expect("a client");
    }
    Seen { count: count as f64, seconds: begun.elapsed().as_secs_f64(), ..Seen::default() }
}
