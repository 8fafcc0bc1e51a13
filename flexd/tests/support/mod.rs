//! A control plane as far as a router sees it, routers as processes, and a client that counts what failed. The server speaks
//! what the real one does, with the same types; that the real one does is tested with the controller.
#![allow(dead_code, reason = "each test uses what it needs")]

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flex_model::table_update::TableUpdate;
use flex_model::{AppId, AppRoute, AppState, Backend, InstanceId, RouteTable, RouterStatus, Uuid};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Server {
    pub tables: watch::Receiver<Arc<RouteTable>>,
    pub statuses: Arc<Mutex<BTreeMap<String, RouterStatus>>>,
    pub lines: Arc<Mutex<Vec<String>>>,
    /// How often the whole table was sent, and how often a change.
    pub sent: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Server {
    pub fn of(tables: watch::Receiver<Arc<RouteTable>>) -> Self {
        Self { tables, statuses: Arc::default(), lines: Arc::default(), sent: Arc::default() }
    }
}

fn router_of(headers: &HeaderMap) -> Option<String> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer token-of-").map(str::to_owned)
}

async fn table(State(s): State<Server>, headers: HeaderMap, Query(query): Query<HashMap<String, u64>>) -> Response {
    if router_of(&headers).is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let first = s.tables.borrow().clone();
    let had = (query["from"] == first.revision).then_some(first);
    let stream = futures_util::stream::unfold((s.tables.clone(), had, true), move |(mut tables, had, first)| {
        let sent = s.sent.clone();
        async move {
            if !first {
                let _ = tokio::time::timeout(Duration::from_secs(1), tables.changed()).await;
            }
            let now = tables.borrow_and_update().clone();
            let update = match &had {
                None => {
                    sent.0.fetch_add(1, SeqCst);
                    TableUpdate::whole(now.clone())
                }
                Some(before) if before.revision == now.revision => TableUpdate::Alive,
                Some(before) => {
                    sent.1.fetch_add(1, SeqCst);
                    TableUpdate::between(before, &now)
                }
            };
            let line = format!("{}\n", serde_json::to_string(&update).unwrap());
            Some((Ok::<_, std::io::Error>(line), (tables, Some(now), false)))
        }
    });
    axum::body::Body::from_stream(stream).into_response()
}

async fn status(State(s): State<Server>, headers: HeaderMap, axum::Json(status): axum::Json<RouterStatus>) -> StatusCode {
    let Some(name) = router_of(&headers) else { return StatusCode::UNAUTHORIZED };
    s.statuses.lock().unwrap().insert(name, status);
    StatusCode::OK
}

async fn lines(State(s): State<Server>, body: axum::Json<serde_json::Value>) -> StatusCode {
    let texts = body["lines"].as_array().unwrap().iter().map(|l| l[1].as_str().unwrap().to_owned());
    s.lines.lock().unwrap().extend(texts);
    StatusCode::OK
}

pub struct Serving {
    pub address: SocketAddr,
    pub task: tokio::task::JoinHandle<()>,
}

pub async fn serve(server: &Server, at: &str) -> Serving {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/router/table", get(table)).route("/router/status", post(status));
    let app = app.route("/router/lines", post(lines)).with_state(server.clone());
    Serving { address, task: tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }) }
}

pub struct Process(pub Child);

impl Process {
    pub fn start(server: SocketAddr, name: &str, data: &Path, http: SocketAddr) -> Self {
        Self::start_with(server, name, data, http, &[], Path::new(""))
    }

    pub fn start_with(server: SocketAddr, name: &str, data: &Path, http: SocketAddr, more: &[&str], notify: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_flexd"))
            .args(["router", "--server", &format!("http://{server}"), "--http", &http.to_string(), "--https", "off"])
            .arg("--data-dir")
            .arg(data)
            .args(more)
            .env("FLEXD_ROUTER_TOKEN", format!("token-of-{name}"))
            .envs((!notify.as_os_str().is_empty()).then_some(("NOTIFY_SOCKET", notify)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    pub async fn ended(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Answers every request with its text.
pub async fn instance(text: &'static str) -> SocketAddr {
    instance_at("127.0.0.1:0", text).await
}

pub async fn instance_at(at: &str, text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = Vec::new();
                while stream.read_buf(&mut buf).await.is_ok_and(|n| n > 0) {
                    while let Some(at) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
                        buf.drain(..at + 4);
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

pub fn app(n: u128, address: SocketAddr) -> AppRoute {
    let backend = Backend { instance: InstanceId(Uuid::from_u128(n)), name: "web.1".into(), address };
    let domains = vec![format!("a{n}.test").parse().unwrap()];
    AppRoute::new(AppId(Uuid::from_u128(n)), format!("app{n}").parse().unwrap(), domains, AppState::Serving, vec![backend])
}

/// One answer on a connection that is kept where the router keeps it. None: the connection failed.
pub async fn ask(connection: &mut Option<TcpStream>, at: SocketAddr, host: &str) -> Option<String> {
    if connection.is_none() {
        *connection = Some(TcpStream::connect(at).await.ok()?);
    }
    let stream = connection.as_mut()?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.ok()?;
    let mut buf = Vec::new();
    loop {
        if stream.read_buf(&mut buf).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&buf).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "))?.parse().ok()?;
        if body.len() >= length {
            if head.contains("Connection: close") {
                *connection = None;
            }
            return Some(format!("{} {body}", head.split(' ').nth(1)?));
        }
    }
}

pub async fn says(at: SocketAddr, host: &str, answer: &str) -> bool {
    ask(&mut None, at, host).await.is_some_and(|a| a == answer)
}
