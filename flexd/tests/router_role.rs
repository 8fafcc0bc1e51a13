//! `flexd router` as a process: fed by a server, alone with its disk, replaced under load. The server here speaks what the
//! real one does, with the same types; that the real one does is tested with the controller.

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flex_model::table_update::TableUpdate;
use flex_model::{AppId, AppRoute, AppState, Backend, InstanceId, RouteTable, RouterStatus, Uuid};
use flex_tests::Port;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Server {
    tables: watch::Receiver<Arc<RouteTable>>,
    statuses: Arc<Mutex<BTreeMap<String, RouterStatus>>>,
    lines: Arc<Mutex<Vec<String>>>,
    /// How often the whole table was sent, and how often a change.
    sent: Arc<(AtomicUsize, AtomicUsize)>,
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

struct Serving {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(server: &Server, at: &str) -> Serving {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/router/table", get(table)).route("/router/status", post(status));
    let app = app.route("/router/lines", post(lines)).with_state(server.clone());
    Serving { address, task: tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }) }
}

struct Process(Child);

impl Process {
    fn start(server: SocketAddr, name: &str, data: &Path, http: SocketAddr) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_flexd"))
            .args(["router", "--server", &format!("http://{server}"), "--http", &http.to_string(), "--https", "off"])
            .arg("--data-dir")
            .arg(data)
            .env("FLEXD_ROUTER_TOKEN", format!("token-of-{name}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    async fn ended(&mut self) -> bool {
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

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Answers every request with its text.
async fn instance(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

fn app(n: u128, address: SocketAddr) -> AppRoute {
    let backend = Backend { instance: InstanceId(Uuid::from_u128(n)), name: "web.1".into(), address };
    let domains = vec![format!("a{n}.test").parse().unwrap()];
    AppRoute::new(AppId(Uuid::from_u128(n)), format!("app{n}").parse().unwrap(), domains, AppState::Serving, vec![backend])
}

/// One answer on a connection that is kept where the router keeps it. None: the connection failed.
async fn ask(connection: &mut Option<TcpStream>, at: SocketAddr, host: &str) -> Option<String> {
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

async fn says(at: SocketAddr, host: &str, answer: &str) -> bool {
    ask(&mut None, at, host).await.is_some_and(|a| a == answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_follow_the_server_and_do_without_it() {
    let (old, new) = (instance("old").await, instance("new").await);
    let (tables, watched) = watch::channel(Arc::new(RouteTable::new(5, [app(1, old), app(2, old)])));
    let server = Server { tables: watched, statuses: Arc::default(), lines: Arc::default(), sent: Arc::default() };
    // It goes and comes back on its port.
    let port = Port::reserve();
    let serving = serve(&server, &port.local().to_string()).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ports = [Port::reserve(), Port::reserve()];
    let at = ports.each_ref().map(Port::local);
    let mut routers: Vec<Process> = ["one", "two"]
        .iter()
        .zip(&dirs)
        .zip(at)
        .map(|((name, dir), at)| Process::start(serving.address, name, dir.path(), at))
        .collect();
    for at in at {
        until("the first table is routed", async || says(at, "a1.test", "200 old").await).await;
    }
    let told = |revision: u64| {
        let statuses = server.statuses.clone();
        move || statuses.lock().unwrap().values().filter(|s| s.revision == revision).count() == 2
    };
    until("both say so", async || told(5)()).await;
    // A change is live in both within a moment.
    let changed = Instant::now();
    tables.send_replace(Arc::new(RouteTable::new(6, [app(1, new), app(2, old)])));
    for at in at {
        until("the change is routed", async || says(at, "a1.test", "200 new").await).await;
    }
    assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
    assert_eq!((server.sent.0.load(SeqCst), server.sent.1.load(SeqCst)), (2, 2));
    until("both say that", async || told(6)()).await;
    until("access lines arrive", async || server.lines.lock().unwrap().iter().any(|l| l.contains("host=a1.test"))).await;
    // Without the server they serve, and one that is started now serves by its disk.
    let address = serving.address;
    serving.task.abort();
    let _ = serving.task.await;
    until("it is on disk", async || {
        std::fs::read_to_string(dirs[0].path().join("router/routes.json")).is_ok_and(|t| t.contains("\"revision\":6"))
    })
    .await;
    assert!(says(at[1], "a1.test", "200 new").await);
    routers[0].terminate();
    assert!(routers[0].ended().await);
    routers[0] = Process::start(address, "one", dirs[0].path(), at[0]);
    until("it serves alone", async || says(at[0], "a1.test", "200 new").await).await;
    // The server comes back with a newer table. The second router is sent what changed since it left, if that is known.
    tables.send_replace(Arc::new(RouteTable::new(7, [app(1, old)])));
    let again = serve(&server, &address.to_string()).await;
    for at in at {
        until("the newest table is routed", async || says(at, "a1.test", "200 old").await).await;
        assert!(says(at, "a2.test", "404 ").await || ask(&mut None, at, "a2.test").await.unwrap().starts_with("404"));
    }
    again.task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_restart_is_not_noticed() {
    let instance = instance("ok").await;
    let (_tables, watched) = watch::channel(Arc::new(RouteTable::new(5, [app(1, instance)])));
    let server = Server { tables: watched, statuses: Arc::default(), lines: Arc::default(), sent: Arc::default() };
    let serving = serve(&server, "127.0.0.1:0").await;
    let dir = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let at = port.local();
    let mut router = Process::start(serving.address, "one", dir.path(), at);
    until("it serves", async || says(at, "a1.test", "200 ok").await).await;
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (done, asked) = (done.clone(), asked.clone());
        clients.spawn(async move {
            let (mut connection, mut failed) = (None, Vec::new());
            while !done.load(SeqCst) {
                match ask(&mut connection, at, "a1.test").await {
                    Some(answer) if answer == "200 ok" => {}
                    other => {
                        failed.push(format!("{other:?}"));
                        connection = None;
                    }
                }
                asked.fetch_add(1, SeqCst);
            }
            failed
        });
    }
    for n in 0..3 {
        let before = asked.load(SeqCst);
        until("requests go on", async || asked.load(SeqCst) > before + 50).await;
        let next = Process::start(serving.address, &format!("next-{n}"), dir.path(), at);
        until("the next one has the table", async || {
            server.statuses.lock().unwrap().get(&format!("next-{n}")).is_some_and(|s| s.revision == 5)
        })
        .await;
        router.terminate();
        assert!(router.ended().await);
        router = next;
    }
    done.store(true, SeqCst);
    let failed = clients.join_all().await.concat();
    // Without this setting the kernel resets who connects in the moment between a socket's last accept and its closing.
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|t| t.trim() == "1");
    let most = if migrates { 0 } else { 3 };
    assert!(failed.len() <= most, "{} of {}: {:?}", failed.len(), asked.load(SeqCst), failed.first());
    serving.task.abort();
}
