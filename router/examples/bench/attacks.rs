//! What a neighbour notices while somebody attacks: its p99 at a fixed rate, against what it is in the same round with nobody
//! else there, and the router's memory before and meanwhile. The attackers are a process of their own with the lowest
//! priority, so that they take the router's time and not the neighbour's client's.

use crate::{
    cases::{median, short},
    flex, load,
    rig::{self, HOST, Owned, Rig, Side},
};
use serde_json::json;
use std::{
    future::Future,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    pin::Pin,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

/// Requests of the neighbour a second.
const RATE: u32 = 500;
/// An attacker that was thrown out comes again after this: there are only so many ports.
const AGAIN: Duration = Duration::from_millis(25);

/// One connection, to its end.
type Connection = Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

struct Attack {
    name: &'static str,
    /// Attackers, each with a connection at a time.
    count: usize,
    run: fn(SocketAddr) -> Connection,
}

macro_rules! attack {
    ($name:literal, $count:literal, $run:path) => {
        Attack { name: $name, count: $count, run: |to| Box::pin($run(to)) }
    };
}

const ATTACKS: &[Attack] = &[
    attack!("slow heads", 2000, slow_head),
    attack!("slow readers", 500, slow_read),
    attack!("slow bodies", 1000, slow_body),
    attack!("head flood", 32, head_flood),
    attack!("body flood", 16, body_flood),
    attack!("rapid reset", 16, rapid_reset),
    attack!("CONTINUATION flood", 16, continuations),
    attack!("SETTINGS flood", 16, settings),
    attack!("idle connections", 9500, idle),
    attack!("one app takes all", 5000, hang),
];

pub fn measure(rounds: u64, length: Duration) {
    let rig = Rig::start();
    let sink = Owned::start(Side::Client, &["sink"]);
    for attack in ATTACKS {
        let (router, at) = Owned::start(Side::Proxy, &["attacked", &rig.backend.to_string(), &sink.1[0].to_string()]);
        load::ask(at[0]).expect("an answer");
        let (mut ratios, mut quiets, mut loud, mut grown) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
        // The first round warms up.
        load::paced(at[0], RATE, Duration::from_secs(1));
        let before = router.memory();
        for _ in 0..rounds {
            let quiet = load::paced(at[0], RATE, length).p99;
            let attackers = begin(attack, at[0]);
            let meanwhile = load::paced(at[0], RATE, length).p99;
            grown = grown.max(router.memory() - before);
            drop(attackers);
            std::thread::sleep(Duration::from_millis(500));
            ratios.push(meanwhile / quiet);
            quiets.push(quiet);
            loud.push(meanwhile);
        }
        println!(
            "{}",
            json!({
                "case": format!("attack: {}", attack.name), "attackers": attack.count, "quiet_p99_ms": short(median(&quiets)),
                "p99_ms": short(median(&loud)), "p99_to_quiet": short(median(&ratios)), "memory_mib": short(before / 1024.0),
                "grown_mib": short(grown / 1024.0), "grown_after_mib": short((router.memory() - before) / 1024.0),
                "goal": "p99 < 2 x quiet, memory bounded"
            })
        );
    }
}

/// The attackers, all connected once.
fn begin(attack: &Attack, to: SocketAddr) -> Owned {
    let this = rig::on(Side::Client, &["attack", attack.name, &to.to_string()]);
    // Lowest priority: it is the router that is measured.
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(this.get_program()).args(this.get_args()).env("FLEX_BENCH_PINNED", "yes");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("this program again");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("that it has begun");
    Owned(child)
}

/// Attacks until it is ended; says when all have begun.
pub async fn attack(name: &str, to: SocketAddr) {
    let attack = ATTACKS.iter().find(|a| a.name == name).expect("an attack of that name");
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            for n in 0..attack.count {
                tokio::task::spawn_local(async move {
                    loop {
                        let _ = (attack.run)(to).await;
                        sleep(AGAIN).await;
                    }
                });
                if n % 50 == 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            sleep(Duration::from_millis(500)).await;
            println!("begun");
            std::future::pending::<()>().await;
        })
        .await;
}

/// The router, with the neighbour's app and one whose instance reads all and answers nothing.
pub async fn serve(backend: SocketAddr, sink: SocketAddr) {
    let apps = vec![flex::app(1, HOST, backend), flex::app(2, "sink.test", sink)];
    flex::serve_table(flex_model::RouteTable::new(1, apps), flex::settings()).await;
}

/// An instance that reads all that comes.
pub async fn sink() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut buf = vec![0; 64 << 10];
            while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {}
        });
    }
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    // No state is left behind in the kernel by who comes again and again.
    stream.set_zero_linger()?;
    Ok(stream)
}

async fn dribble(mut stream: TcpStream, begin: String) -> std::io::Result<()> {
    stream.write_all(begin.as_bytes()).await?;
    loop {
        sleep(Duration::from_millis(500)).await;
        stream.write_all(b"x").await?;
    }
}

async fn slow_head(to: SocketAddr) -> std::io::Result<()> {
    dribble(connect(to).await?, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: ")).await
}

async fn slow_body(to: SocketAddr) -> std::io::Result<()> {
    dribble(connect(to).await?, "POST / HTTP/1.1\r\nHost: sink.test\r\nContent-Length: 1000000\r\n\r\n".into()).await
}

async fn slow_read(to: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(to).await?;
    stream.set_zero_linger()?;
    stream.write_all(format!("GET /big HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await?;
    sleep(Duration::from_secs(3600)).await;
    drop(stream);
    Ok(())
}

/// Writes one part again and again, until it is thrown out. What is said to it is not read.
async fn pour(to: SocketAddr, begin: &[u8], part: &[u8]) -> std::io::Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(begin).await?;
    loop {
        stream.write_all(part).await?;
        // Others have their turn.
        tokio::task::yield_now().await;
    }
}

async fn head_flood(to: SocketAddr) -> std::io::Result<()> {
    let field = format!("X-Field: {}\r\n", "y".repeat(1000));
    pour(to, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n").as_bytes(), field.repeat(16).as_bytes()).await
}

async fn body_flood(to: SocketAddr) -> std::io::Result<()> {
    let head = "POST / HTTP/1.1\r\nHost: sink.test\r\nContent-Length: 1000000000000\r\n\r\n";
    pour(to, head.as_bytes(), &[b'x'; 64 << 10]).await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n = payload.len().to_be_bytes();
    [&n[5..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat()
}

/// GET of the neighbour's app.
fn head() -> Vec<u8> {
    [&[0x82, 0x86, 0x84, 0x41, u8::try_from(HOST.len()).unwrap_or(0)], HOST.as_bytes()].concat()
}

async fn rapid_reset(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(&preface()).await?;
    let mut n = 1;
    loop {
        let some: Vec<u8> =
            (0..50).flat_map(|i| [frame(1, 5, n + 2 * i, &head()), frame(3, 0, n + 2 * i, &[0, 0, 0, 8])].concat()).collect();
        n += 100;
        stream.write_all(&some).await?;
        tokio::task::yield_now().await;
    }
}

async fn continuations(to: SocketAddr) -> std::io::Result<()> {
    let begin = [preface(), frame(1, 1, 1, &head())].concat();
    pour(to, &begin, &frame(9, 0, 1, &[0; 64]).repeat(64)).await
}

async fn settings(to: SocketAddr) -> std::io::Result<()> {
    pour(to, &preface(), &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(64)).await
}

async fn idle(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(to).await?;
    stream.read_u8().await.map(|_| ())
}

async fn hang(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: sink.test\r\n\r\n").await?;
    stream.read_u8().await.map(|_| ())
}
