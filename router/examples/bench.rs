//! Compares the router with haproxy and nginx (those that are installed) in one run: the same instance, the same client,
//! one processor's worth of proxy, access lines on for all, rounds interleaved. The verdict is processor time per request
//! of the proxy alone, read from `/proc`; requests a second depend on what else the machine does.
//!
//! `cargo run --release -p flex-router --example bench [ROUNDS [SECONDS]]`

use flex_model::{AppId, AppRoute, AppState, Backend, InstanceId, RouteTable, Uuid};
use flex_router::{AccessQueue, Router, RouterSettings};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const CONNECTIONS: usize = 64;
const ROUTES: u128 = 10_000;
const REQUEST: &[u8] = b"GET /hello?x=1 HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
/// `USER_HZ` of every Linux that matters: what `/proc/PID/stat` counts in.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["instance"] => runtime(1).block_on(instance()),
        ["router", backend, log] => runtime(1).block_on(router(backend.parse().expect("an address"), Path::new(log))),
        _ => {
            let number = |n: usize, or: u64| args.get(n).map_or(or, |a| a.parse().expect("a number"));
            compare(number(0, 5), Duration::from_secs(number(1, 3)));
        }
    }
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}

/// Answers 1 KiB to whatever ends in an empty line.
async fn instance() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let answer: Arc<[u8]> =
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n".as_slice(), &[b'x'; 1024]]
            .concat()
            .into();
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let (mut buf, mut have) = (vec![0; 8192], 0);
            stream.set_nodelay(true)?;
            loop {
                match stream.read(&mut buf[have..]).await? {
                    0 => return Ok::<(), std::io::Error>(()),
                    n => have += n,
                }
                if buf[..have].ends_with(b"\r\n\r\n") {
                    have = 0;
                    stream.write_all(&answer).await?;
                }
            }
        });
    }
}

async fn router(backend: SocketAddr, log: &Path) {
    let app = |n: u128, name: String, domain: String| {
        let backends = vec![Backend { instance: InstanceId(Uuid::from_u128(n)), name: "web.1".into(), address: backend }];
        let (name, domains) = (name.parse().expect("a name"), vec![domain.parse().expect("a domain")]);
        AppRoute::new(AppId(Uuid::from_u128(n)), name, domains, AppState::Serving, backends)
    };
    let mut apps: Vec<AppRoute> = (1..ROUTES).map(|n| app(n, format!("app{n}"), format!("app{n}.test"))).collect();
    apps.push(app(ROUTES, "app".into(), "app.test".into()));
    let (_tables, table) = tokio::sync::watch::channel(Arc::new(RouteTable::new(1, apps)));
    let (queue, mut lines) = AccessQueue::new(100_000);
    let settings = RouterSettings { listen: vec![([127, 0, 0, 1], 0).into()], workers: 1, ..RouterSettings::default() };
    let router = Router::bind(settings, table, Arc::new(queue)).await.expect("a router");
    println!("{}", router.local_addr());
    let mut log = std::io::BufWriter::with_capacity(64 << 10, std::fs::File::create(log).expect("a log"));
    tokio::spawn(async move {
        loop {
            for (_, line) in lines.batch().await {
                writeln!(log, "{line}").expect("room for the log");
            }
        }
    });
    router.serve(std::future::pending()).await.expect("serving");
}

struct Peer {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    /// Requests a second and microseconds of processor time per request, by round.
    rounds: Vec<(f64, f64)>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that prints its address first.
fn own(name: &'static str, args: &[&str]) -> Peer {
    let me = std::env::current_exe().expect("this program");
    let mut child = Command::new(me).args(args).stdout(Stdio::piped()).spawn().expect("this program again");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("its address");
    Peer { name, address: line.trim().parse().expect("an address"), child, rounds: Vec::new() }
}

fn other(name: &'static str, dir: &Path, config: impl Fn(u16) -> String, args: &[&str]) -> Option<Peer> {
    let address = StdListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let file = dir.join(format!("{name}.conf"));
    std::fs::write(&file, config(address.port())).expect("a configuration");
    let log = std::fs::File::create(dir.join(format!("{name}.out"))).expect("a log");
    let child = Command::new(name).args(args).arg(&file).stdout(log).stderr(Stdio::null()).spawn().ok()?;
    let peer = Peer { name, address, child, rounds: Vec::new() };
    let begun = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{name} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(peer)
}

fn compare(rounds: u64, length: Duration) {
    let dir = std::env::temp_dir().join(format!("flex-router-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let instance = own("instance", &["instance"]);
    let to = instance.address;
    let log = |name: &str| -> PathBuf { dir.join(name) };
    let mut peers = vec![own("flex-router", &["router", &to.to_string(), &log("flex.log").to_string_lossy()])];
    peers.extend(other("haproxy", &dir, |port| haproxy(port, to), &["-db", "-f"]));
    peers.extend(other("nginx", &dir, |port| nginx(port, to, &dir), &["-c"]));
    let client = runtime(1);
    for round in 0..=rounds {
        for peer in &mut peers {
            let before = cpu(peer.child.id());
            let begun = Instant::now();
            let requests = client.block_on(load(peer.address, length));
            let (wall, used) = (begun.elapsed().as_secs_f64(), cpu(peer.child.id()) - before);
            // The first round warms up.
            if round > 0 {
                peer.rounds.push((requests as f64 / wall, used * 1e6 / requests as f64));
            }
        }
    }
    println!(
        "{CONNECTIONS} kept connections, 1 KiB answers, access lines on, {rounds} rounds of {} s, medians",
        length.as_secs()
    );
    println!("{:<12} {:>10} {:>14} {:>20}", "proxy", "requests/s", "us cpu/request", "(lowest - highest)");
    for peer in &mut peers {
        let rate = median(peer.rounds.iter().map(|r| r.0));
        let mut each: Vec<f64> = peer.rounds.iter().map(|r| r.1).collect();
        each.sort_by(f64::total_cmp);
        let (low, high) = (each.first().copied().unwrap_or(0.0), each.last().copied().unwrap_or(0.0));
        println!("{:<12} {rate:>10.0} {:>14.1} {:>20}", peer.name, median(each.into_iter()), format!("({low:.1} - {high:.1})"));
    }
    drop(peers);
    let _ = std::fs::remove_dir_all(&dir);
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Seconds of processor time of a process, user and system, all its threads.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running peer");
    let after = stat.rsplit(") ").next().unwrap_or("");
    let fields: Vec<f64> = after.split(' ').skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    fields.iter().sum::<f64>() / TICKS_PER_SECOND
}

async fn load(address: SocketAddr, length: Duration) -> u64 {
    let (count, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (count, done) = (count.clone(), done.clone());
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("an option");
            let mut buf = vec![0; 8192];
            while !done.load(Relaxed) {
                stream.write_all(REQUEST).await.expect("a listener");
                let mut have = 0;
                let need = loop {
                    have += stream.read(&mut buf[have..]).await.expect("an answer");
                    if let Some(at) = buf[..have].windows(4).position(|w| w == b"\r\n\r\n") {
                        break at + 4 + 1024;
                    }
                };
                assert!(buf.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buf[..have]));
                while have < need {
                    have += stream.read(&mut buf[have..]).await.expect("an answer");
                }
                count.fetch_add(1, Relaxed);
            }
        });
    }
    tokio::time::sleep(length).await;
    done.store(true, Relaxed);
    while clients.join_next().await.is_some() {}
    count.load(Relaxed)
}

fn haproxy(port: u16, to: SocketAddr) -> String {
    format!(
        "global\n nbthread 1\n maxconn 4000\n log stdout format raw local0\n\
         defaults\n mode http\n log global\n option httplog\n option forwardfor\n timeout client 60s\n timeout server 30s\n timeout connect 5s\n\
         frontend f\n bind 127.0.0.1:{port}\n unique-id-format %[uuid()]\n unique-id-header X-Request-ID\n\
         http-request set-header X-Forwarded-Proto http\n acl known hdr(host) -i app.test\n use_backend b if known\n\
         backend b\n http-reuse always\n server s {to}\n"
    )
}

fn nginx(port: u16, to: SocketAddr, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.err; events {{ worker_connections 4000; }}\n\
         http {{ access_log {dir}/nginx.log combined buffer=64k flush=1s; keepalive_requests 100000000;\n\
         upstream u {{ server {to}; keepalive 256; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port}; server_name app.test; location / {{ proxy_pass http://u; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Request-ID $request_id;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}\n"
    )
}
