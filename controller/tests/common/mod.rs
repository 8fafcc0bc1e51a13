//! A controller on a real socket, with a host, a router and a builder that are simulated strictly: each of them panics
//! when it is told something that it may not be told.
#![allow(dead_code, reason = "each test uses its own part")]

pub mod parts;
pub mod schema;

use flex_controller::ports::{Clock, SystemClock};
use flex_controller::{Controller, DeployEvent, Deps, GitPush, GitUpdate, Settings};
use flex_logs::{LogSettings, LogStore};
use flex_model::{AppId, Host, HostId, HostState, Memory, Timestamp, Uuid};
use flex_store::StateStore;
use parts::{Builders, Checks, Heads, Pushed, Runs};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What every wait in a test is limited by.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

pub struct World {
    pub dir: Arc<TempDir>,
    pub store: Arc<dyn StateStore>,
    pub logs: Arc<LogStore>,
    pub builders: Arc<Builders>,
    pub runs: Arc<Runs>,
    /// Where branches are.
    pub heads: Heads,
    pub controller: Controller,
    pub url: String,
    /// Of `admin@example.com`.
    pub admin: String,
    client: reqwest::Client,
    document: Value,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    pub async fn new() -> Self {
        Self::on(Arc::new(flex_store::memory().unwrap())).await
    }

    pub async fn on(store: Arc<dyn StateStore>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let logs = Arc::new(LogStore::open(dir.path().join("logs"), LogSettings::default()).unwrap());
        Self::start(dir, store, logs, Arc::default(), Arc::default(), |_| {}).await
    }

    /// A server with other settings.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let logs = Arc::new(LogStore::open(dir.path().join("logs"), LogSettings::default()).unwrap());
        Self::start(dir, Arc::new(flex_store::memory().unwrap()), logs, Arc::default(), Arc::default(), change).await
    }

    /// One whose certificates come from elsewhere.
    pub async fn with_acme(acme: flex_controller::AcmeSettings) -> Self {
        Self::with(|s| s.acme = Some(acme)).await
    }

    /// Another control plane on the same store, which runs until the token is cancelled.
    pub async fn beside(&self, acme: flex_controller::AcmeSettings, clock: Arc<dyn Clock>) -> CancellationToken {
        let change = |s: &mut Settings| s.acme = Some(acme);
        let mut deps = deps(&self.dir, &self.store, &self.logs, &self.builders, &self.runs, self.url.clone(), change);
        deps.clock = clock;
        let (other, stop) = (Controller::open(deps).await.unwrap(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move { other.run_loops(stopped).await });
        stop
    }

    /// The same store and directory under a new controller; `store` in place of the old one's, which may have been cut.
    pub async fn again(mut self, store: Arc<dyn StateStore>) -> Self {
        self.end().await;
        let builders = Arc::new(Builders::default());
        Self::start(self.dir.clone(), store, self.logs.clone(), builders, Arc::default(), |_| {}).await
    }

    pub async fn end(&mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Ends all that writes by itself. The API goes on answering: what changes from here on, a request has changed.
    pub async fn quiet(&mut self) {
        self.stop.cancel();
        // The loops come to their end with what they have begun.
        let loops = self.tasks.remove(1);
        tokio::time::timeout(PATIENCE, loops).await.expect("the loops to end").unwrap();
        for task in self.tasks.drain(1..) {
            task.abort();
            let _ = task.await;
        }
    }

    async fn start(
        dir: Arc<TempDir>,
        store: Arc<dyn StateStore>,
        logs: Arc<LogStore>,
        builders: Arc<Builders>,
        runs: Arc<Runs>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let deps = deps(&dir, &store, &logs, &builders, &runs, url.clone(), change);
        let controller = Controller::open(deps).await.unwrap();
        let admin = controller.bootstrap(&"admin@example.com".parse().unwrap(), true).await.unwrap();
        let host = host();
        controller.register_host(host.clone()).await.unwrap();
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        let api = controller.api();
        tasks.push(tokio::spawn(async move {
            axum::serve(listener, api.into_make_service_with_connect_info::<std::net::SocketAddr>()).await.unwrap();
        }));
        let (c, s) = (controller.clone(), stop.clone());
        tasks.push(tokio::spawn(async move { c.run_loops(s).await }));
        tasks.push(tokio::spawn(parts::simulate_host(controller.clone(), host.id)));
        tasks.push(tokio::spawn(parts::simulate_router(controller.clone())));
        let client = reqwest::Client::new();
        let text = client.get(format!("{url}/openapi.json")).send().await.unwrap().text().await.unwrap();
        let document = serde_json::from_str(&text).unwrap();
        let admin = admin.expose().to_owned();
        let heads = Heads::default();
        Self { dir, store, logs, builders, runs, heads, controller, url, admin, client, document, stop, tasks }
    }

    /// A user with a token.
    pub async fn user(&self, email: &str) -> String {
        self.controller.bootstrap(&email.parse().unwrap(), false).await.unwrap().expose().to_owned()
    }

    /// Asks, and holds the answer against the OpenAPI document.
    pub async fn send(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url) };
        let path = url.strip_prefix(&self.url).unwrap_or_else(|| panic!("{url} is elsewhere"));
        let mut request = self.client.request(method.clone(), &url);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("request-id"), "{path} has no Request-Id");
        let status = response.status();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let text = response.text().await.unwrap();
        let answer = serde_json::from_str(&text).unwrap_or(Value::String(text));
        schema::check(&self.document, &method, path, status.as_u16(), &kind, &answer);
        (status, answer)
    }

    /// As the administrator, and it must succeed.
    pub async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.send(method.clone(), path, &self.admin, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }
    pub async fn get(&self, path: &str) -> Value {
        self.ok(Method::GET, path, None).await
    }
    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ok(Method::POST, path, Some(body)).await
    }
    pub async fn patch(&self, path: &str, body: Value) -> Value {
        self.ok(Method::PATCH, path, Some(body)).await
    }

    pub async fn create(&self, name: &str) -> AppId {
        self.post("/apps", json!({ "name": name })).await["id"].as_str().unwrap().parse().unwrap()
    }

    /// Pushes as the administrator; the events come as they happen.
    pub async fn start_push(&self, app: AppId, updates: Vec<GitUpdate>) -> mpsc::Receiver<DeployEvent> {
        self.start_push_with(updates, Pushed::new(self.heads.clone(), app)).await
    }

    /// As [`World::start_push`], with this repository and pusher.
    pub async fn start_push_with(&self, updates: Vec<GitUpdate>, refs: Pushed) -> mpsc::Receiver<DeployEvent> {
        let user = self.controller.user_by_email(&"admin@example.com".parse().unwrap()).await.unwrap().unwrap();
        let caller = flex_controller::GitCaller { user: user.id, email: user.email.clone() };
        let repository = self.dir.path().join("repository");
        let updates: Vec<GitUpdate> = updates.into_iter().map(|u| GitUpdate { old: refs.at(&u.name), ..u }).collect();
        let (app, refs) = (refs.app, Arc::new(refs));
        let push = GitPush { app, repository, quarantine: None, updates: updates.clone(), receive_millis: 7, refs: refs.clone() };
        let mut events = self.controller.push(caller, push).await;
        let (out, relayed) = mpsc::channel(64);
        tokio::spawn(async move {
            let _over = refs.over.clone().drop_guard();
            while let Some(event) = events.recv().await {
                let event = match event {
                    DeployEvent::Verdict(true) => DeployEvent::Verdict(refs.move_to(&updates).await),
                    other => other,
                };
                let _ = out.send(event).await;
            }
        });
        relayed
    }

    pub async fn push(&self, app: AppId) -> (bool, String) {
        finish(self.start_push(app, vec![update("refs/heads/main", COMMIT)]).await).await
    }

    /// The names and versions of what routers send requests to.
    pub fn routed(&self, app: AppId) -> Vec<String> {
        let table = self.controller.routes().borrow().clone();
        let of = table.apps.iter().find(|a| a.app == app);
        of.map(|a| a.backends.iter().map(|b| b.name.clone()).collect()).unwrap_or_default()
    }

    /// Which releases the app's running web instances are of.
    pub async fn versions_up(&self, app: &str) -> Vec<u64> {
        let dynos = self.get(&format!("/apps/{app}/dynos")).await;
        let up = dynos.as_array().unwrap().iter().filter(|d| d["state"] == "up");
        up.map(|d| d["release"]["version"].as_u64().unwrap()).collect()
    }

    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut is_so: impl FnMut() -> F) {
        let start = Instant::now();
        while !is_so().await {
            assert!(start.elapsed() < PATIENCE, "waited too long for: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub fn update(name: &str, new: &str) -> GitUpdate {
    GitUpdate { name: name.into(), old: String::new(), new: new.into() }
}

/// The verdict of a push, and all its lines.
pub async fn finish(mut events: mpsc::Receiver<DeployEvent>) -> (bool, String) {
    let mut text = String::new();
    let all = async {
        while let Some(event) = events.recv().await {
            match event {
                DeployEvent::Line(line) => text.push_str(&(line + "\n")),
                DeployEvent::Verdict(good) => return good,
            }
        }
        panic!("a push ended without a verdict")
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(good) => (good, text),
        Err(_) => panic!("a push did not end:\n{text}"),
    }
}

/// What a controller of a test works with.
fn deps(
    dir: &TempDir,
    store: &Arc<dyn StateStore>,
    logs: &Arc<LogStore>,
    builders: &Arc<Builders>,
    runs: &Arc<Runs>,
    url: String,
    change: impl FnOnce(&mut Settings),
) -> Deps {
    let mut settings = Settings {
        domain: "localhost".parse().unwrap(),
        http_port: 8080,
        ssh_host: "localhost".into(),
        ssh_port: 2222,
        ssh_host_key: "ssh-ed25519 AAAA".into(),
        api_url: url,
        stack: "flex-1".parse().unwrap(),
        fallback_certificate: None,
        acme: Some(acme()),
        version: "0".into(),
        route_ports: 20_000..=20_009,
        max_log_retention: flex_logs::Retention { max_bytes: 4 << 30, max_age: std::time::Duration::from_secs(365 * 86_400) },
        runs: flex_controller::RunLimits::default(),
        // Longer than any test: none that does not ask for it is overtaken.
        overtake_after: 3 * PATIENCE,
        sizes: [(
            "small".to_owned(),
            flex_model::NamedSize { memory: Memory::from_mib(128), cpu_shares: 256, cpu_millis: Some(500) },
        )]
        .into(),
    };
    change(&mut settings);
    Deps {
        store: store.clone(),
        data_dir: dir.path().to_owned(),
        clock: Arc::new(SystemClock),
        builders: builders.clone(),
        runs: runs.clone(),
        machine: Arc::new(Checks),
        logs: logs.clone(),
        drains: Arc::new(
            flex_logs::drain::Drains::new(
                logs.clone(),
                dir.path().join("drains"),
                Arc::new(|a| a == std::net::Ipv4Addr::LOCALHOST),
                None,
            )
            .unwrap(),
        ),
        settings,
    }
}

/// An authority that is away, and a name server that is, too.
pub fn acme() -> flex_controller::AcmeSettings {
    flex_controller::AcmeSettings {
        directory: "https://127.0.0.1:1/directory".into(),
        email: None,
        ca_file: None,
        challenge: flex_controller::ChallengeKind::Http01,
        dns_hook: Vec::new(),
        dns_wait: Duration::from_secs(1),
        resolver: Some(([127, 0, 0, 1], 1).into()),
        self_check: true,
        http_port: 1,
        tls_port: 1,
        wildcard: false,
        retry: Duration::from_secs(600),
        external_account: None,
    }
}

fn host() -> Host {
    Host {
        id: HostId(Uuid::from_u128(1)),
        name: "one".into(),
        state: HostState::Ready,
        memory: Memory::from_mib(1 << 20),
        cpu_millis: 16_000,
        labels: std::collections::BTreeMap::new(),
        created_at: Timestamp::default(),
    }
}

/// A store whose commits fail for ever after some have succeeded: as far as the store can tell, the server died then.
pub struct Cut {
    pub inner: Arc<dyn StateStore>,
    pub left: AtomicU64,
}

#[async_trait::async_trait]
impl StateStore for Cut {
    async fn get(&self, key: &str) -> Result<(Option<flex_store::Entry>, u64), flex_store::StoreError> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<(Vec<flex_store::Entry>, u64), flex_store::StoreError> {
        self.inner.list(prefix).await
    }
    async fn commit(
        &self,
        preconditions: Vec<flex_store::Precondition>,
        writes: Vec<flex_store::Write>,
    ) -> Result<u64, flex_store::StoreError> {
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if taken.is_err() {
            return Err(flex_store::StoreError::Unavailable("the server died".into()));
        }
        self.inner.commit(preconditions, writes).await
    }
    async fn watch(&self, prefix: &str, from: u64) -> Result<flex_store::Watch, flex_store::StoreError> {
        self.inner.watch(prefix, from).await
    }
}
