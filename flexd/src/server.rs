//! Every role on this machine: the rooms put together, started in the order in which they need one another, stopped in the
//! reverse. Stopping leaves the apps running.

use crate::control;
use crate::front::{self, Feeds, Front};
use crate::installation::Installation;
use crate::ports::{BuilderPort, GatePort, MachinePort};
use crate::runs::RunPort;
use crate::settings::Settings;
use flex_agent::{Agent, AgentKey, AgentSettings, ControlLink};
use flex_builder::{BuildSettings, Builder, KeptImages};
use flex_controller::ports::{Clock, SystemClock};
use flex_controller::{Controller, Deps};
use flex_gitreceive::{GitServer, GitSettings};
use flex_logs::LogStore;
use flex_logs::drain::Drains;
use flex_model::host::HostState;
use flex_model::{Host, LogLine, LogSource, Memory};
use flex_router::{AccessLines, Handover, RouterSettings};
use flex_runtime::{DockerRuntime, DockerSettings, GuardSettings, Runtime, Target, targets_in};
use flex_store::EmbeddedStore;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How soon containers of an earlier life are looked for again while the engine does not answer.
const REAP_AGAIN: Duration = Duration::from_secs(2);
/// How often the state is written to a snapshot, if it changed.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(300);
/// When the first one is written: soon, since a process that was killed wrote none at its end.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(15);
/// What an engine that does not answer yet is taken to have.
const UNKNOWN_MEMORY: Memory = Memory::from_mib(1024);
/// So long may what is left of the work take to let go of the store.
const LETTING_GO: Duration = Duration::from_secs(5);
/// CPU may be promised several times over: most instances wait most of the time.
const CPU_OVERCOMMIT: u64 = 4;
/// A release that is not up by then is overtaken by the next push of its branch. Most are up in a second or two.
const OVERTAKE_AFTER: Duration = Duration::from_secs(10);

/// The build settings of an installation.
pub fn build_settings(settings: &Settings, cluster: &str) -> BuildSettings {
    let mut build = BuildSettings::new(&settings.data_dir, &settings.buildpacks);
    build.image_namespace = format!("flex-{cluster}");
    build.env.extend(settings.build.env.clone());
    build.timeout = settings.build.timeout;
    build.memory = settings.build.memory;
    build.disk_bytes = settings.build.disk.bytes();
    build.slug_bytes = settings.build.slug_limit.bytes();
    build.compression = settings.build.compression;
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    build.ca_bundle = crate::settings::ca_bundle(settings.build.ca_bundle.as_deref(), named, build.ca_bundle);
    build
}

/// The engine of an installation.
///
/// # Errors
/// A sentence for the operator.
pub fn runtime(settings: &Settings, cluster: &str) -> Result<Arc<dyn Runtime>, String> {
    connect(settings, cluster, None)
}

fn connect(settings: &Settings, cluster: &str, guard: Option<GuardSettings>) -> Result<Arc<dyn Runtime>, String> {
    let mut docker = DockerSettings::local(cluster);
    docker.socket.clone_from(&settings.docker);
    docker.guard = guard;
    docker.images = Some(Arc::new(KeptImages::new(build_settings(settings, cluster))));
    DockerRuntime::connect(docker).map(|r| Arc::new(r) as Arc<dyn Runtime>).map_err(|e| e.to_string())
}

/// What apps and builds may reach; none: no rules are kept.
fn guard(settings: &Settings, http_port: u16) -> Option<GuardSettings> {
    let network = &settings.network;
    if !network.rules {
        return None;
    }
    let proxy = |name: &str| name.to_ascii_lowercase().ends_with("proxy") && !name.eq_ignore_ascii_case("no_proxy");
    let mut used: Vec<Target> = settings.build.env.iter().flat_map(|(name, value)| targets_in(value, proxy(name))).collect();
    // Builds that install packages use the machine's own sources, which every stack carries.
    for file in package_sources() {
        used.extend(std::fs::read_to_string(file).map(|text| targets_in(&text, false)).unwrap_or_default());
    }
    used.sort();
    used.dedup();
    let host_ports = network.host_ports.iter().copied().chain([http_port]).chain(settings.https.map(|a| a.port())).collect();
    Some(GuardSettings { deny: network.deny.clone(), allow: network.allow.clone(), used, host_ports, ..GuardSettings::default() })
}

/// Where apt's sources and proxies are set.
fn package_sources() -> Vec<PathBuf> {
    let in_dir = |dir: &str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect::<Vec<_>>()
    };
    let mut files = [in_dir("/etc/apt/sources.list.d"), in_dir("/etc/apt/apt.conf.d")].concat();
    files.extend(["/etc/apt/sources.list", "/etc/apt/apt.conf"].map(PathBuf::from));
    files
}

/// What this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    All,
    /// No router: `flexd router` runs beside it, or elsewhere.
    ServerAlone,
}

/// Serves until SIGTERM or SIGINT, or until another process takes over.
///
/// # Errors
/// A sentence for the operator: why it could not start, or had to stop.
pub async fn serve(settings: Settings, roles: Roles, take_over: bool) -> Result<(), String> {
    let stop = CancellationToken::new();
    let (mut front, listeners) = match take_over {
        true => Front::take_over(&settings, roles, &stop).await?,
        false => <_>::default(),
    };
    let installation = Installation::open(&settings.data_dir, settings.store)?;
    let store = open_store(&settings).await?;
    if roles == Roles::All && front.is_none() {
        are_unused(&settings)?;
    }
    let http = front.as_ref().map_or_else(|| probe_port(settings.http), |f| Ok(f.http))?;
    let runtime = connect(&settings, &installation.cluster, guard(&settings, http.port()))?;
    let (logs, drains) = open_logs(&settings)?;

    let gate = Arc::new(LateGate::default());
    let git = GitSettings { listener: listeners.ssh.map(Arc::new), ..git_settings(&settings)? };
    let git = GitServer::bind(git, gate.clone()).await.map_err(|e| chain(&e))?;
    let ssh = git.local_addr().map_err(|e| e.to_string())?;

    let api = listener(settings.api, listeners.api)
        .await
        .map_err(|e| format!("cannot listen for the API on {}: {e}. Set another address with --api", settings.api))?;
    let api_addr = api.local_addr().map_err(|e| e.to_string())?;

    let builder = Builder::new(build_settings(&settings, &installation.cluster), runtime.clone());
    let controller = Controller::open(Deps {
        store: store.clone(),
        data_dir: settings.data_dir.clone(),
        clock: Arc::new(SystemClock),
        builders: Arc::new(BuilderPort::new(builder.clone())),
        runs: Arc::new(RunPort(runtime.clone())),
        machine: Arc::new(MachinePort { runtime: runtime.clone(), data_dir: settings.data_dir.clone() }),
        logs: logs.clone(),
        drains,
        settings: controller_settings(&settings, http.port(), ssh.port(), git.host_key_openssh(), api_addr)?,
    })
    .await?;
    gate.open(GatePort { controller: controller.clone(), data_dir: settings.data_dir.clone() });
    controller.register_host(this_host(&installation, &*runtime).await).await.map_err(|e| e.to_string())?;
    reap_for_sure(&runtime).await;
    tokio::task::spawn_blocking(move || {
        if let Err(e) = builder.sweep() {
            tracing::warn!(error = %e, "temporary files of earlier builds could not be removed");
        }
    });

    let mut tasks = JoinSet::new();
    controller.expose_too(Arc::new(crate::metrics::process));
    if let Some(address) = settings.metrics {
        let (listener, told) = (crate::metrics::listen(address, None).await?, controller.clone());
        tracing::info!(address = %address, "metrics are told without a token");
        let source: crate::metrics::Source = Arc::new(move || {
            let told = told.clone();
            Box::pin(async move { told.expose().await })
        });
        spawn(&mut tasks, "metrics", crate::metrics::serve(listener, source, stop.clone()));
    }
    if roles == Roles::All && front.is_none() {
        front = Some(Front::start(&settings, http, Feeds::of(&controller), None, &stop).await?);
    }
    let https = front.as_ref().map_or_else(|| "off".to_owned(), |f| f.https.clone());
    let handover = front.as_ref().map(|f| f.handover.clone());
    front::hand_on_both(handover.as_ref(), (api_addr, &api), (ssh, git.listener()))?;
    let router = front.map(|f| f.connect(&mut tasks, &controller, &logs, &stop));
    let agent = Agent::new(
        AgentSettings {
            host: installation.host,
            state_dir: settings.data_dir.join("agent"),
            key: AgentKey(controller.crypt.key_for("agent")),
        },
        runtime.clone(),
        ControlLink { assignment: controller.assignment(installation.host), reports: controller.reports() },
        logs.clone(),
        Arc::new(|| SystemClock.now()),
    );

    let token = || stop.clone();
    let (for_agent, for_git, for_loops, loops) = (token(), token(), token(), controller.clone());
    spawn(&mut tasks, "agent", async move { agent.run(for_agent).await.map_err(|e| chain(&e)) });
    spawn(&mut tasks, "git", async move {
        git.serve(for_git).await;
        Ok(())
    });
    spawn(&mut tasks, "loops", async move {
        loops.run_loops(for_loops).await;
        Ok(())
    });
    spawn(&mut tasks, "api", serve_api(api, controller.clone(), token()));
    spawn(&mut tasks, "control", control::serve(control::open(&settings.data_dir)?, controller.clone(), store.clone(), token()));
    spawn(&mut tasks, "snapshots", snapshots(store.clone(), settings.data_dir.clone(), token()));
    tracing::info!(api = %api_addr, http = %http, https, ssh = %ssh, data = %settings.data_dir.display(), "flexd serves");
    println!(
        "flexd {} serves: API {api_addr}, HTTP {http}, HTTPS {https}, git over SSH {ssh}, data {}",
        env!("CARGO_PKG_VERSION"),
        settings.data_dir.display()
    );
    tokio::spawn(crate::upgrade::on_signal());
    let result = wait(&mut tasks, handover).await;
    stop.cancel();
    drop((controller, gate));
    end(tasks, &settings, (store, logs, installation), router).await;
    result
}

/// Ends the roles, closes what they kept, and then waits for the router: its requests may take long to end, and a process that
/// takes over waits for the data directory.
async fn end(
    mut tasks: JoinSet<Task>,
    settings: &Settings,
    (store, logs, installation): (Arc<EmbeddedStore>, Arc<LogStore>, Installation),
    router: Option<tokio::task::JoinHandle<Result<(), String>>>,
) {
    while tasks.join_next().await.is_some() {}
    logs.flush().await;
    if let Err(e) = flex_store::snapshot_now(&store, &settings.data_dir) {
        tracing::warn!(error = %e, "the last snapshot could not be written");
    }
    drop(logs);
    let kept = let_go(store, installation).await;
    if let Some(router) = router {
        let _ = router.await;
    }
    drop(kept);
}

/// Closes the store and gives the data directory free. What somebody still uses stays until the process ends.
async fn let_go(store: Arc<EmbeddedStore>, installation: Installation) -> Option<(Arc<EmbeddedStore>, Installation)> {
    let until = tokio::time::Instant::now() + LETTING_GO;
    while Arc::strong_count(&store) > 1 {
        if tokio::time::Instant::now() > until {
            tracing::warn!("something still uses the state: the data directory is free when this process has ended");
            return Some((store, installation));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(store);
    drop(installation);
    None
}

/// The apps' logs, and what sends them on.
fn open_logs(settings: &Settings) -> Result<(Arc<LogStore>, Arc<Drains>), String> {
    let logs = LogStore::open(settings.data_dir.join("logs"), settings.logs.store.clone()).map_err(|e| e.to_string())?;
    let logs = Arc::new(logs);
    let places = settings.data_dir.join("log-drains");
    let drains = Drains::new(logs.clone(), places, settings.logs.guard(), settings.logs.drain_ca.as_deref())?;
    Ok((logs, Arc::new(drains)))
}

/// Ends with SIGTERM or SIGINT.
pub async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn git_settings(settings: &Settings) -> Result<GitSettings, String> {
    let dir = &settings.data_dir;
    let mut git = GitSettings::new(settings.ssh, dir.join("ssh_host_ed25519_key"), own_path()?, dir.join("git/hook.sock"));
    git.repositories = Some(dir.join("repositories"));
    Ok(git)
}

pub fn router_settings(settings: &Settings, http: std::net::SocketAddr) -> Result<RouterSettings, String> {
    let trusted = settings.trusted_proxies.iter().map(|c| c.parse()).collect::<Result<_, _>>();
    Ok(RouterSettings {
        listen: vec![http],
        workers: settings.router_workers.unwrap_or(0),
        state_dir: Some(settings.data_dir.join("router")),
        trusted_proxies: trusted.map_err(|e| format!("router.trusted_proxies: {e}"))?,
        tls: flex_router::TlsSettings {
            listen: settings.https.into_iter().collect(),
            certificates: None,
            min: settings.tls_min,
            http3: settings.http3,
            http3_port: settings.http3_port,
        },
        l4_address: http.ip(),
        hand_over: true,
        lines: settings.access_lines,
        limits: settings.router_limits.clone(),
        timeouts: settings.router_timeouts.clone(),
        proxy_protocol_http: ranges("router.proxy_protocol.http", &settings.proxy_protocol_http)?,
        proxy_protocol_tcp: ranges("router.proxy_protocol.tcp", &settings.proxy_protocol_tcp)?,
        ..RouterSettings::default()
    })
}

fn ranges(name: &str, texts: &[String]) -> Result<Vec<flex_router::Cidr>, String> {
    texts.iter().map(|c| c.parse().map_err(|e| format!("{name}: {e}"))).collect()
}

/// Tells the controller what the router says.
pub async fn relay_status(
    mut status: tokio::sync::watch::Receiver<flex_model::RouterStatus>,
    to: tokio::sync::mpsc::Sender<flex_model::RouterStatus>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        let now = status.borrow_and_update().clone();
        let _ = to.send(now).await;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = status.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

pub type Task = (&'static str, Result<(), String>);

pub fn spawn(tasks: &mut JoinSet<Task>, name: &'static str, work: impl Future<Output = Result<(), String>> + Send + 'static) {
    tasks.spawn(async move { (name, work.await) });
}

/// Until a signal, until another process takes over, or until a part ends that must not.
async fn wait(tasks: &mut JoinSet<Task>, handover: Option<Handover>) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let taken_over = async {
        match handover {
            Some(mut handover) => handover.done().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // A router that has been taken over from ends, which is no fault then.
        biased;
        () = taken_over => Ok(()),
        _ = terminate.recv() => { tracing::info!("stopping; the apps keep running"); Ok(()) }
        _ = interrupt.recv() => { tracing::info!("stopping; the apps keep running"); Ok(()) }
        ended = tasks.join_next() => Err(match ended {
            Some(Ok((name, Err(e)))) => format!("the {name} part stopped: {e}"),
            Some(Ok((name, Ok(())))) => format!("the {name} part ended unexpectedly"),
            Some(Err(e)) => format!("a part stopped by a fault in the program: {e}"),
            None => "nothing runs".into(),
        }),
    }
}

async fn open_store(settings: &Settings) -> Result<Arc<EmbeddedStore>, String> {
    let (dir, engine) = (settings.data_dir.clone(), settings.store);
    let store = tokio::task::spawn_blocking(move || flex_store::open(&dir, engine)).await.map_err(|e| e.to_string())?;
    store.map(Arc::new).map_err(|e| e.to_string())
}

/// The path of this executable, also after it was replaced by an upgrade.
pub fn own_path() -> Result<PathBuf, String> {
    let path = std::env::current_exe().map_err(|e| format!("cannot tell where this executable is: {e}"))?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

/// Takes an address, or a socket that listens there already.
pub async fn listener(
    address: std::net::SocketAddr,
    taken: Option<std::net::TcpListener>,
) -> std::io::Result<tokio::net::TcpListener> {
    match taken {
        Some(listener) => tokio::net::TcpListener::from_std(listener),
        None => tokio::net::TcpListener::bind(address).await,
    }
}

/// Whether nobody has the router's ports. Its listeners share them between its threads, and so with whoever else does the same:
/// two installations on one port would each get half of the requests, and nobody would be told.
fn are_unused(settings: &Settings) -> Result<(), String> {
    unused(settings.http, "HTTP", "--http")?;
    settings.https.map_or(Ok(()), |https| unused(https, "HTTPS", "--https"))
}

/// Whether nobody listens there.
fn unused(addr: std::net::SocketAddr, what: &str, flag: &str) -> Result<(), String> {
    let listening = std::net::TcpListener::bind(addr);
    listening.map(drop).map_err(|e| format!("cannot listen for {what} on {addr}: {e}. Set another address with {flag}"))
}

/// Port 0 takes a free port: which one has to be known before URLs are made.
pub fn probe_port(addr: std::net::SocketAddr) -> Result<std::net::SocketAddr, String> {
    if addr.port() != 0 {
        return Ok(addr);
    }
    std::net::TcpListener::bind(addr).and_then(|l| l.local_addr()).map_err(|e| format!("cannot find a free port for HTTP: {e}"))
}

fn controller_settings(
    settings: &Settings,
    http_port: u16,
    ssh_port: u16,
    host_key: &str,
    api: std::net::SocketAddr,
) -> Result<flex_controller::Settings, String> {
    let api_url = if settings.api.port() == 0 { format!("http://{api}") } else { settings.api_url.clone() };
    Ok(flex_controller::Settings {
        domain: settings.domain.clone(),
        http_port,
        ssh_host: settings.domain.to_string(),
        ssh_port,
        ssh_host_key: host_key.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
        api_url: api_url.trim_end_matches('/').to_owned(),
        stack: settings.stack.parse().map_err(|e| format!("stack: {e}"))?,
        fallback_certificate: Some(Arc::new(crate::tls::self_signed(&settings.data_dir, &settings.domain)?)),
        acme: settings.acme.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        route_ports: settings.route_ports.clone(),
        max_log_retention: settings.logs.limit,
        runs: settings.runs,
        overtake_after: OVERTAKE_AFTER,
        sizes: settings.sizes.clone(),
    })
}

async fn this_host(installation: &Installation, runtime: &dyn Runtime) -> Host {
    let facts = runtime.facts().await;
    if let Err(e) = &facts {
        tracing::warn!(error = %e, "the container engine does not answer yet; flexd goes on and waits for it");
    }
    let (memory, cpus) = facts.map_or((UNKNOWN_MEMORY, 1), |f| (f.memory, f.cpus));
    let name = nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |n| n.to_string_lossy().into_owned());
    Host {
        id: installation.host,
        name,
        state: HostState::Ready,
        // A twentieth stays for the system.
        memory: Memory::from_mib(memory.mib() / 20 * 19),
        cpu_millis: u64::from(cpus) * 1000 * CPU_OVERCOMMIT,
        labels: std::collections::BTreeMap::new(),
        created_at: SystemClock.now(),
    }
}

/// [`reap`], and again in the background for as long as the engine does not answer.
async fn reap_for_sure(runtime: &Arc<dyn Runtime>) {
    if !reap(&**runtime).await {
        let runtime = runtime.clone();
        tokio::spawn(async move {
            while !reap(&*runtime).await {
                tokio::time::sleep(REAP_AGAIN).await;
            }
        });
    }
}

/// Removes containers of builds and runs that an earlier process left behind; those of this one are known and stay. Says
/// whether the engine answered.
async fn reap(runtime: &dyn Runtime) -> bool {
    match runtime.reap(&[]).await {
        Ok(gone) if !gone.is_empty() => tracing::info!(count = gone.len(), "removed containers of interrupted builds and runs"),
        Ok(_) => {}
        Err(e) => {
            tracing::warn!(error = %e, "containers of interrupted builds could not be looked for");
            return false;
        }
    }
    true
}

async fn serve_api(listener: tokio::net::TcpListener, controller: Controller, stop: CancellationToken) -> Result<(), String> {
    let ended = stop.clone();
    let serve = axum::serve(listener, controller.api().into_make_service_with_connect_info::<std::net::SocketAddr>())
        .with_graceful_shutdown(async move { ended.cancelled().await });
    // Tails of logs go on for ever: they get a moment, not a veto.
    tokio::select! {
        result = serve => result.map_err(|e| e.to_string()),
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(2)).await } => Ok(()),
    }
}

async fn snapshots(store: Arc<EmbeddedStore>, data_dir: PathBuf, stop: CancellationToken) -> Result<(), String> {
    let mut pause = FIRST_SNAPSHOT;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = SNAPSHOT_EVERY;
        let (store, dir) = (store.clone(), data_dir.clone());
        let written = tokio::task::spawn_blocking(move || flex_store::snapshot_now(&store, &dir)).await;
        if let Ok(Err(e)) = written {
            tracing::warn!(error = %e, "the state's snapshot could not be written");
        }
    }
}

pub async fn access_lines(mut lines: AccessLines, logs: Arc<LogStore>, stop: CancellationToken) -> Result<(), String> {
    loop {
        let batch = tokio::select! {
            batch = lines.batch() => batch,
            () = stop.cancelled() => return Ok(()),
        };
        let at = SystemClock.now();
        for (app, text) in batch {
            logs.append(app, LogLine { at, source: LogSource::Flex, process: "router".into(), text: text.into() });
        }
    }
}

/// An error with its causes, each once.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = c.source();
    }
    text
}

/// The receiver needs a gate before the controller is there, and the controller needs the receiver's key. Nobody connects
/// before serving begins; a gate that is not open yet refuses.
#[derive(Default)]
struct LateGate(std::sync::OnceLock<GatePort>);

impl LateGate {
    fn open(&self, gate: GatePort) {
        let _ = self.0.set(gate);
    }
}

#[async_trait::async_trait]
impl flex_gitreceive::Gate for LateGate {
    async fn authenticate(&self, openssh: &str) -> Option<flex_gitreceive::Caller> {
        self.0.get()?.authenticate(openssh).await
    }
    async fn authorize(
        &self,
        caller: &flex_gitreceive::Caller,
        app: &str,
        access: flex_gitreceive::Access,
    ) -> Result<(flex_model::AppId, flex_model::AppName), flex_gitreceive::Refusal> {
        match self.0.get() {
            Some(gate) => gate.authorize(caller, app, access).await,
            None => Err(starting()),
        }
    }
    async fn repository(&self, app: flex_model::AppId) -> Result<PathBuf, flex_gitreceive::Refusal> {
        match self.0.get() {
            Some(gate) => gate.repository(app).await,
            None => Err(starting()),
        }
    }
    async fn branches(&self, app: flex_model::AppId) -> Vec<String> {
        match self.0.get() {
            Some(gate) => gate.branches(app).await,
            None => Vec::new(),
        }
    }
    async fn receiving(&self, app: flex_model::AppId, reference: &str) -> Option<Box<dyn Send>> {
        self.0.get()?.receiving(app, reference).await
    }
    async fn session(
        &self,
        caller: &flex_gitreceive::Caller,
        app: &str,
        wanted: flex_gitreceive::Wanted,
        terminal: Option<flex_gitreceive::Terminal>,
    ) -> Result<flex_gitreceive::Live, flex_gitreceive::Refusal> {
        match self.0.get() {
            Some(gate) => gate.session(caller, app, wanted, terminal).await,
            None => Err(starting()),
        }
    }
    async fn push(&self, push: flex_gitreceive::Push) -> tokio::sync::mpsc::Receiver<flex_gitreceive::PushEvent> {
        match self.0.get() {
            Some(gate) => gate.push(push).await,
            // A channel closed without a verdict is a refusal.
            None => tokio::sync::mpsc::channel(1).1,
        }
    }
}

fn starting() -> flex_gitreceive::Refusal {
    flex_gitreceive::Refusal { lines: vec!["The server is starting. Try again in a moment.".into()] }
}
