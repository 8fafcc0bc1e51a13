//! A hundred thousand host names: what they cost a request, the memory and the start, and how soon a change of one is live.

use crate::{
    cases::{median, short},
    flex, load,
    rig::{Owned, Rig, Side, runtime},
};
use flex_model::{AppId, AppState, RouteTable, Uuid};
use flex_router::{AccessQueue, Router, RouterSettings};
use serde_json::json;
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

const HOSTS: u128 = 100_000;
/// The app whose route changes, and one that must not notice.
const CHANGED: u128 = HOSTS / 2;
const QUIET: u128 = 7;

pub fn measure(rig: &Rig, rounds: u64, length: Duration) {
    let many = rig.dir.join("many");
    std::fs::create_dir_all(&many).expect("a directory");
    keep(&many, rig.backend, HOSTS);
    let few = rig.dir.join("few");
    std::fs::create_dir_all(&few).expect("a directory");
    keep(&few, rig.backend, 1);
    let started = Instant::now();
    let (large, at) = Owned::start(Side::Proxy, &["kept", &many.to_string_lossy()]);
    let last = Arc::new(vec![flex::host(HOSTS)]);
    runtime().block_on(load::hosts(at[0], last, Duration::from_millis(1)));
    let start = started.elapsed();
    let memory = large.memory() / 1024.0;
    let (small, one_at) = Owned::start(Side::Proxy, &["kept", &few.to_string_lossy()]);
    let all: Arc<Vec<String>> = Arc::new((1..=HOSTS).map(flex::host).collect());
    let one = Arc::new(vec![flex::host(1)]);
    let (mut rates, mut cpus, mut each) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let run = |process: &Owned, address, hosts: &Arc<Vec<String>>| {
            let before = process.cpu();
            let seen = runtime().block_on(load::hosts(address, hosts.clone(), length));
            (seen.count / seen.seconds, (process.cpu() - before) * 1e6 / seen.count)
        };
        let (few, many) = (run(&small, one_at[0], &one), run(&large, at[0], &all));
        if round > 0 {
            rates.push(many.0 / few.0);
            cpus.push(many.1 / few.1);
            each.push(many.1);
        }
    }
    let asked = large.memory() / 1024.0;
    println!(
        "{}",
        json!({
            "case": "hosts", "hosts": u64::try_from(HOSTS).unwrap_or(0), "rate_to_one_host": short(median(&rates)),
            "cpu_to_one_host": short(median(&cpus)), "us_per_request": short(median(&each)), "memory_mib": short(memory),
            "memory_all_asked_mib": short(asked),
            "cold_start_ms": short(start.as_secs_f64() * 1000.0), "goal": "rate >= 0.95 x, <= 64 MiB, <= 1000 ms"
        })
    );
    drop((large, small));
    let seconds = length.as_secs().max(1).to_string();
    let child = crate::rig::on(Side::Proxy, &["changes", &rig.backend.to_string(), &seconds])
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = Owned(child.expect("this program again"));
    let mut said = String::new();
    BufReader::new(child.0.stdout.take().expect("its output")).read_line(&mut said).expect("its figures");
    print!("{said}");
}

/// Writes the table as a router keeps it, by letting one do so.
fn keep(dir: &Path, backend: SocketAddr, hosts: u128) {
    runtime().block_on(async {
        let apps = (1..=hosts).map(|n| flex::app(n, &flex::host(n), backend));
        let (_tables, table) = watch::channel(Arc::new(RouteTable::new(1, apps)));
        let (queue, _lines) = AccessQueue::new(10);
        let settings = RouterSettings { state_dir: Some(dir.to_owned()), ..flex::settings() };
        let router = Router::bind(settings, table, Arc::new(queue)).await.expect("a router");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(router.serve(async {
            let _ = stopped.await;
        }));
        while std::fs::read_dir(dir).map_or(0, Iterator::count) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = stop.send(());
        served.await.expect("a router").expect("its end");
    });
}

/// In a process of its own: a table of all hosts, changed while it is asked. Prints one line.
pub fn changes(backend: SocketAddr, seconds: u64) {
    let apps: Vec<_> = (1..=HOSTS).map(|n| flex::app(n, &flex::host(n), backend)).collect();
    let first = RouteTable::new(1, apps);
    let (tables, table) = watch::channel(Arc::new(first));
    let (address, given) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let (queue, mut lines) = AccessQueue::new(100_000);
            tokio::spawn(async move { while !lines.batch().await.is_empty() {} });
            let router = Router::bind(flex::settings(), table, Arc::new(queue)).await.expect("a router");
            let _ = address.send(router.local_addr());
            router.serve(std::future::pending()).await.expect("serving");
        });
    });
    let address = given.recv().expect("an address");
    let mut live = live_after(&tables, address);
    live.sort_by(f64::total_cmp);
    let at = |share: f64| live[((live.len() as f64 * share) as usize).min(live.len() - 1)];
    let (made, asked, failed) = under_changes(&tables, address, Duration::from_secs(seconds));
    println!(
        "{}",
        json!({
            "case": "changes", "hosts": u64::try_from(HOSTS).unwrap_or(0), "live_p50_ms": short(at(0.5)), "live_p99_ms": short(at(0.99)),
            "changes_per_s": short(made as f64 / seconds as f64), "requests_meanwhile": asked, "failed": failed,
            "goal": "live <= 1 ms, 0 failed at 1000 changes a second"
        })
    );
}

/// The table after the next change of the one app: in maintenance, or serving again.
fn changed(before: &RouteTable) -> RouteTable {
    let mut app = flex_model::AppRoute::clone(before.app(id()).expect("the app"));
    app.state = if app.state == AppState::Serving { AppState::Maintenance } else { AppState::Serving };
    before.with(before.revision + 1, vec![Arc::new(app)], &BTreeSet::new())
}

fn id() -> AppId {
    AppId(Uuid::from_u128(CHANGED))
}

/// Milliseconds from a table's arrival to the first answer by it.
fn live_after(tables: &watch::Sender<Arc<RouteTable>>, address: SocketAddr) -> Vec<f64> {
    let mut client = Client::to(address);
    (0..200)
        .map(|_| {
            let next = Arc::new(changed(&tables.borrow()));
            let serving = next.app(id()).expect("the app").state == AppState::Serving;
            let begun = Instant::now();
            tables.send_replace(next);
            while (client.status(CHANGED) == 200) != serving {}
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect()
}

/// Changes made, requests for another app meanwhile, and how many of those did not get their answer.
fn under_changes(tables: &watch::Sender<Arc<RouteTable>>, address: SocketAddr, length: Duration) -> (u64, u64, u64) {
    let done = Arc::new(AtomicBool::new(false));
    let asking = std::thread::spawn({
        let done = done.clone();
        move || {
            let (mut client, mut asked, mut failed) = (Client::to(address), 0, 0);
            while !done.load(SeqCst) {
                asked += 1;
                failed += u64::from(client.status(QUIET) != 200);
            }
            (asked, failed)
        }
    });
    let (begun, mut made) = (Instant::now(), 0_u32);
    while begun.elapsed() < length {
        std::thread::sleep((begun + Duration::from_millis(1) * made).saturating_duration_since(Instant::now()));
        let next = Arc::new(changed(&tables.borrow()));
        tables.send_replace(next);
        made += 1;
    }
    done.store(true, SeqCst);
    let (asked, failed) = asking.join().expect("a client");
    (made.into(), asked, failed)
}

struct Client(TcpStream, Vec<u8>);

impl Client {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        Self(stream, vec![0; 64 << 10])
    }

    /// Asks the app of that number for a page and reads the whole answer.
    fn status(&mut self, app: u128) -> u16 {
        let Self(stream, buf) = self;
        write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\n\r\n", flex::host(app)).expect("a listener");
        let mut have = 0;
        loop {
            let n = stream.read(&mut buf[have..]).expect("an answer");
            assert!(n > 0, "closed before its answer");
            have += n;
            let text = String::from_utf8_lossy(&buf[..have]);
            let Some((head, content)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            if length.is_none_or(|l: usize| content.len() >= l) {
                return head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
            }
        }
    }
}
