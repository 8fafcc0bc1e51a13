//! The router as a process of its own, with many apps of which one is asked for.

use crate::rig::HOST;
use flex_model::{
    AppId, AppRoute, AppState, Backend, Certificate, CertificateTable, InstanceId, Match, Policy, Route, RouteId, RouteTable,
    Secret, Target, Uuid,
};
use flex_router::{AccessLines, AccessQueue, Router, RouterSettings, TlsSettings};
use std::{io::Write as _, net::SocketAddr, path::Path, sync::Arc};
use tokio::sync::watch;

/// Apps in the table of the comparisons.
const APPS: u128 = 10_000;

/// An app with one instance.
pub fn app(n: u128, host: &str, backend: SocketAddr) -> AppRoute {
    let backends = vec![Backend { instance: InstanceId(Uuid::from_u128(n)), name: "web.1".into(), address: backend }];
    let name = format!("app{n}").parse().expect("a name");
    AppRoute::new(AppId(Uuid::from_u128(n)), name, vec![host.parse().expect("a domain")], AppState::Serving, backends)
}

/// `app1.test` and so on.
pub fn host(n: u128) -> String {
    format!("app{n}.test")
}

/// Prints its three addresses (HTTP, HTTPS, TCP), then serves until it is ended.
pub async fn serve(dir: &Path, backend: SocketAddr, source: SocketAddr) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let mut apps: Vec<AppRoute> = (1..APPS).map(|n| app(n, &host(n), backend)).collect();
    apps.push(app(APPS, HOST, backend));
    let mut relay = app(APPS + 1, "relay.test", source);
    let matches = Match::Tcp { port: free.port().try_into().expect("a port"), tls: false };
    let targets = vec![Target::to(flex_model::ProcessType::web())];
    relay.routes.push(Route { id: RouteId(Uuid::from_u128(1)), matches, targets, policy: Some(Arc::new(Policy::default())) });
    apps.push(relay);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a certificate");
    let names = vec![HOST.parse().expect("a name")];
    let certificate = Certificate { id: "bench".into(), names, chain: read("chain.pem"), key: Secret::new(read("key.pem")) };
    let certificates = CertificateTable { revision: 1, certificates: vec![Arc::new(certificate)], ..CertificateTable::default() };
    let (_certificates, certificates) = watch::channel(Arc::new(certificates));
    let tls = TlsSettings { listen: vec![loopback()], certificates: Some(certificates), ..TlsSettings::default() };
    let settings = RouterSettings { tls, l4_address: loopback().ip(), ..settings() };
    let (_tables, table) = watch::channel(Arc::new(RouteTable::new(1, apps)));
    let (queue, lines) = AccessQueue::new(100_000);
    let router = Router::bind(settings, table, Arc::new(queue)).await.expect("a router");
    let https = router.local_tls_addrs()[0];
    println!("{} {https} {free}", router.local_addr());
    tokio::spawn(write_lines(lines, dir.join("flex.log")));
    router.serve(std::future::pending()).await.expect("serving");
}

/// One with this table. Prints its address.
pub async fn serve_table(table: RouteTable, settings: RouterSettings) {
    let (_tables, table) = watch::channel(Arc::new(table));
    let (queue, mut lines) = AccessQueue::new(100_000);
    let router = Router::bind(settings, table, Arc::new(queue)).await.expect("a router");
    println!("{}", router.local_addr());
    tokio::spawn(async move { while !lines.batch().await.is_empty() {} });
    router.serve(std::future::pending()).await.expect("serving");
}

/// One that knows only what lies in `dir`. Prints its address.
pub async fn serve_kept(dir: &Path) {
    let (_tables, table) = watch::channel(Arc::new(RouteTable::default()));
    let (queue, lines) = AccessQueue::new(100_000);
    let settings = RouterSettings { state_dir: Some(dir.to_owned()), ..settings() };
    let router = Router::bind(settings, table, Arc::new(queue)).await.expect("a router");
    println!("{}", router.local_addr());
    tokio::spawn(write_lines(lines, dir.join("flex.log")));
    router.serve(std::future::pending()).await.expect("serving");
}

pub fn settings() -> RouterSettings {
    RouterSettings { listen: vec![loopback()], workers: 1, ..RouterSettings::default() }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn write_lines(mut lines: AccessLines, file: std::path::PathBuf) {
    let mut log = std::io::BufWriter::with_capacity(64 << 10, std::fs::File::create(file).expect("a log"));
    loop {
        for (_, line) in lines.batch().await {
            writeln!(log, "{line}").expect("room for the log");
        }
    }
}
