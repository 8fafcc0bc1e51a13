//! The controller: what it holds, and the small helpers that every operation uses.

use crate::crypt::{Crypt, Vars, random};
use crate::db::{Db, Tx, keys};
use crate::ports::{Builders, Clock, Machine, Runs};
use flex_api::{ApiError, ErrorId};
use flex_logs::LogStore;
use flex_model::{
    App, AppId, AppName, Assignment, BuildId, Certificate, CertificateTable, DomainName, Email, Event, EventId, Host, HostId,
    InstanceId, LogLine, LogSource, LogText, NamedSize, Outcome, Report, RouteTable, RouterStatus, StackName, Timestamp, UserId,
    Uuid,
};
use flex_scheduler::{Pending, ReportView};
use flex_store::StateStore;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What the server tells the controller about itself.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Apps are `NAME.DOMAIN`.
    pub domain: DomainName,
    /// Port of the HTTP router, for URLs.
    pub http_port: u16,
    /// Where git pushes go: host and port, and the server's public key line.
    pub ssh_host: String,
    pub ssh_port: u16,
    pub ssh_host_key: String,
    /// Base URL of this API, without a slash at the end.
    pub api_url: String,
    /// Stack of new apps.
    pub stack: StackName,
    /// What routers show for names without a certificate.
    pub fallback_certificate: Option<Arc<Certificate>>,
    /// How certificates are made automatically; none: they are not.
    pub acme: Option<crate::acme::AcmeSettings>,
    /// Version of the server.
    pub version: String,
    /// Ports that apps may have for TCP and UDP routes.
    pub route_ports: std::ops::RangeInclusive<u16>,
    /// The most that an app may keep of its log.
    pub max_log_retention: flex_logs::Retention,
    /// Sizes that have a name, in lower case.
    pub sizes: BTreeMap<String, NamedSize>,
    pub runs: RunLimits,
    /// How long a push waits for one of the same branch before it that is released and not up.
    pub overtake_after: std::time::Duration,
}

/// Limits of one-off commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLimits {
    /// One that takes longer is stopped.
    pub max_life: std::time::Duration,
    /// Of one app, at a time.
    pub per_app: usize,
    /// A release phase that takes longer fails its release.
    pub release_phase: std::time::Duration,
}

impl Default for RunLimits {
    fn default() -> Self {
        let hours = |n: u64| std::time::Duration::from_secs(n * 3600);
        Self { max_life: hours(24), per_app: 50, release_phase: hours(1) }
    }
}

/// What the executable hands in.
pub struct Deps {
    pub store: Arc<dyn StateStore>,
    pub data_dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub builders: Arc<dyn Builders>,
    pub runs: Arc<dyn Runs>,
    pub machine: Arc<dyn Machine>,
    pub logs: Arc<LogStore>,
    pub drains: Arc<flex_logs::drain::Drains>,
    pub settings: Settings,
}

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub user: Option<UserId>,
    /// E-mail, or `flex`.
    pub name: String,
    /// From where: an address, or `ssh`. None: from the server itself.
    pub from: Option<String>,
}

impl Actor {
    /// The platform itself.
    pub fn platform() -> Self {
        Self { user: None, name: "flex".into(), from: None }
    }
    pub fn user(id: UserId, email: &Email) -> Self {
        Self { user: Some(id), name: email.to_string(), from: None }
    }
    /// The same, who came from there.
    #[must_use]
    pub fn at(self, from: Option<String>) -> Self {
        Self { from, ..self }
    }
    /// Whose name a build or a release carries.
    pub fn id(&self) -> UserId {
        self.user.unwrap_or(UserId(Uuid::nil()))
    }
}

pub struct Inner {
    pub db: Db,
    pub crypt: Crypt,
    pub deps: Deps,
    /// Differs from run to run: reports to an earlier run do not count.
    pub epoch: u64,
    pub wake: Notify,
    pub reports: Mutex<BTreeMap<HostId, ReportView>>,
    pub routers: Mutex<BTreeMap<String, (RouterStatus, std::time::Instant)>>,
    /// Routers elsewhere that listen to the table now, with how many connections.
    pub connected: Mutex<BTreeMap<String, u32>>,
    /// The last tables, oldest first, so that a router that comes back is sent only what changed.
    pub tables: Mutex<std::collections::VecDeque<Arc<RouteTable>>>,
    pub table: watch::Sender<Arc<RouteTable>>,
    pub certificates: watch::Sender<Arc<CertificateTable>>,
    pub assignments: Mutex<HashMap<HostId, watch::Sender<Option<Arc<Assignment>>>>>,
    pub pending: Mutex<Vec<Pending>>,
    /// Raised after each pass of the plan loop, for whoever waits for a release.
    pub passes: watch::Sender<u64>,
    pub build_locks: Mutex<HashMap<AppId, Arc<tokio::sync::Mutex<()>>>>,
    pub running_builds: Mutex<HashMap<BuildId, CancellationToken>>,
    /// Pushes under way.
    pub places: Mutex<crate::pushes::Places>,
    /// Release phases that run, with what stops them.
    pub phases_running: Mutex<HashMap<(AppId, u64), CancellationToken>>,
    pub drain_turn: tokio::sync::Mutex<()>,
    pub attach: Mutex<HashMap<String, crate::sessions::Waiting>>,
    /// Ports of instances that a user has reached lately, and since when.
    pub ports_reached: Mutex<HashMap<(UserId, InstanceId, u16), Timestamp>>,
    /// One-off commands that run.
    pub open_runs: Mutex<BTreeMap<InstanceId, Arc<crate::db::RunRecord>>>,
    pub log_sessions: Mutex<HashMap<String, crate::http::logs::LogSession>>,
    pub vars: Mutex<HashMap<(AppId, u64), Arc<Vars>>>,
    /// What the plan loop read last.
    pub desired: Mutex<Option<Arc<crate::loops::plan::Desired>>>,
    /// Wrong passwords by e-mail, and since when.
    pub sign_ins: Mutex<HashMap<String, (u32, std::time::Instant)>>,
    /// How many requests each user may still make.
    pub calls: Mutex<HashMap<UserId, crate::http::limit::Bucket>>,
    /// Why instances were let go of lately, for the history of what ended.
    pub let_go: Mutex<crate::history::LetGo>,
    /// Turns at hashing passwords.
    pub hashing: tokio::sync::Semaphore,
    pub started: std::time::Instant,
    /// What routers told lately.
    pub signals: Mutex<crate::signals::SignalBook>,
    /// Other parts' metrics.
    pub exposed: Mutex<Vec<crate::http::Exposes>>,
    /// Passes of the plan loop, those that failed, and microseconds in all of them.
    pub pass_counts: (AtomicU64, AtomicU64, AtomicU64),
    pub acme: crate::acme::Acme,
}

/// Longer than the longest drain.
const ROUTER_SILENCE: std::time::Duration = std::time::Duration::from_secs(60);

pub(crate) fn is_here(connected: &BTreeMap<String, u32>, router: &str) -> bool {
    router == flex_model::route::LOCAL_ROUTER || connected.contains_key(router)
}

/// The control plane. Cheap to clone.
#[derive(Clone)]
pub struct Controller(pub Arc<Inner>);

impl std::ops::Deref for Controller {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A lock that another thread's panic does not poison for ever: what is behind it is whole after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    /// Opens it on a store; nothing runs before [`Controller::run_loops`].
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn open(deps: Deps) -> Result<Self, String> {
        let crypt = open_crypt(&deps).await?;
        let builds = deps.data_dir.join("builds");
        std::fs::create_dir_all(&builds).map_err(|e| format!("cannot make {}: {e}", builds.display()))?;
        let controller = Self(Arc::new(Inner {
            db: Db::new(deps.store.clone()),
            crypt,
            epoch: u64::try_from(deps.clock.now().micros()).unwrap_or(0),
            deps,
            wake: Notify::new(),
            reports: Mutex::default(),
            routers: Mutex::default(),
            connected: Mutex::default(),
            tables: Mutex::default(),
            table: watch::channel(Arc::new(RouteTable::default())).0,
            certificates: watch::channel(Arc::default()).0,
            assignments: Mutex::default(),
            pending: Mutex::default(),
            passes: watch::channel(0).0,
            build_locks: Mutex::default(),
            running_builds: Mutex::default(),
            places: Mutex::default(),
            phases_running: Mutex::default(),
            attach: Mutex::default(),
            drain_turn: tokio::sync::Mutex::default(),
            ports_reached: Mutex::default(),
            open_runs: Mutex::default(),
            log_sessions: Mutex::default(),
            vars: Mutex::default(),
            desired: Mutex::default(),
            sign_ins: Mutex::default(),
            calls: Mutex::default(),
            let_go: Mutex::default(),
            hashing: tokio::sync::Semaphore::new(2),
            started: std::time::Instant::now(),
            signals: Mutex::default(),
            exposed: Mutex::default(),
            pass_counts: Default::default(),
            acme: crate::acme::Acme::default(),
        }));
        // Before anything that is too old is looked for.
        controller.apply_log_retentions().await.map_err(|e| e.to_string())?;
        controller.apply_drains().await.map_err(|e| e.to_string())?;
        controller.interrupt_old_builds().await.map_err(|e| e.to_string())?;
        controller.adopt_runs().await.map_err(|e| e.to_string())?;
        Ok(controller)
    }

    pub fn now(&self) -> Timestamp {
        self.deps.clock.now()
    }

    /// A new id of any kind.
    pub fn id<T: From<Uuid>>(&self) -> T {
        Uuid::from_bytes(random::<16>()).into()
    }

    /// The routing table as it is published.
    pub fn routes(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.table.subscribe()
    }

    /// The certificates as they are published.
    pub fn certificate_table(&self) -> watch::Receiver<Arc<CertificateTable>> {
        self.certificates.subscribe()
    }

    /// The assignments of a host.
    pub fn assignment(&self, host: HostId) -> watch::Receiver<Option<Arc<Assignment>>> {
        lock(&self.assignments).entry(host).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Where hosts' reports go.
    pub fn reports(&self) -> mpsc::Sender<Report> {
        let (sender, mut inbox) = mpsc::channel::<Report>(64);
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(report) = inbox.recv().await {
                this.take_report(report);
            }
        });
        sender
    }

    /// Keeps a host's newest report.
    pub fn take_report(&self, report: Report) {
        self.note_ends(&report);
        let counts = report.epoch == self.epoch;
        let mut reports = lock(&self.reports);
        // A report to an earlier controller is a guess that a newer one must not be overwritten by.
        if !counts && reports.get(&report.host).is_some_and(|r| r.counts) {
            return;
        }
        let news = reports.get(&report.host).is_none_or(|r| r.counts != counts || r.report.instances != report.instances);
        reports.insert(report.host, ReportView { report: Arc::new(report), counts });
        drop(reports);
        if news {
            self.wake.notify_one();
        }
    }

    /// Where routers' statuses go.
    pub fn router_status(&self) -> mpsc::Sender<RouterStatus> {
        let (sender, mut inbox) = mpsc::channel::<RouterStatus>(64);
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(status) = inbox.recv().await {
                this.take_status(status);
            }
        });
        sender
    }

    /// Keeps what a router says.
    pub fn take_status(&self, status: RouterStatus) {
        let now = std::time::Instant::now();
        let before = lock(&self.routers).get(&status.router).map(|(s, _)| s.revision);
        lock(&self.signals).acknowledged(&status, before, now);
        lock(&self.routers).insert(status.router.clone(), (status, now));
        self.wake.notify_one();
    }

    /// Keeps what a router counted in its last second.
    pub fn take_signals(&self, signals: flex_model::signals::RouterSignals) {
        lock(&self.signals).take(signals, std::time::Instant::now());
    }

    /// What routers say. One that is not connected any more may still be serving by an older table, so its word counts
    /// for as long as draining may take; then it is forgotten.
    pub fn router_statuses(&self) -> Vec<RouterStatus> {
        let connected = lock(&self.connected).clone();
        let mut routers = lock(&self.routers);
        routers.retain(|name, (_, at)| is_here(&connected, name) || at.elapsed() < ROUTER_SILENCE);
        routers.values().map(|(status, _)| status.clone()).collect()
    }

    /// Whether every router that can be reached routes by this revision.
    pub fn routers_have(&self, revision: u64) -> bool {
        let connected = lock(&self.connected).clone();
        lock(&self.routers).iter().filter(|(name, _)| is_here(&connected, name)).all(|(_, (s, _))| s.revision >= revision)
    }

    /// Makes a host known, or brings what is known of it up to date.
    ///
    /// # Errors
    /// The store's.
    pub async fn register_host(&self, host: Host) -> Result<(), ApiError> {
        self.db
            .retry(|| async {
                let key = keys::host(host.id);
                let tx = match self.db.get::<Host>(&key).await? {
                    Some(old) => {
                        let merged = Host {
                            state: old.value.state,
                            created_at: old.value.created_at,
                            labels: old.value.labels.clone(),
                            ..host.clone()
                        };
                        if *old.value == merged { Tx::new() } else { Tx::new().unchanged(&old).put(key, &merged) }
                    }
                    None => Tx::new().absent(&key).put(key.clone(), &host),
                };
                Ok((tx, ()))
            })
            .await
    }

    /// An event of a change, to be committed with it: it is done when it is there to be read.
    pub fn event(&self, actor: &Actor, app: Option<AppId>, kind: &str, message: impl Into<String>) -> Event {
        Event {
            id: self.id::<EventId>(),
            at: self.now(),
            actor: actor.user,
            actor_name: actor.name.clone(),
            app,
            from: actor.from.clone(),
            outcome: Outcome::Done,
            kind: kind.into(),
            message: message.into(),
        }
    }

    /// An event of how something ended.
    pub fn event_ended(&self, actor: &Actor, app: Option<AppId>, kind: &str, message: impl Into<String>, good: bool) -> Event {
        let outcome = if good { Outcome::Done } else { Outcome::Failed };
        Event { outcome, ..self.event(actor, app, kind, message) }
    }

    /// Commits an event of what changed nothing else in the store.
    pub async fn note(&self, actor: &Actor, app: AppId, kind: &str, message: String) -> Result<(), ApiError> {
        let event = self.event(actor, Some(app), kind, message);
        self.db.commit(Tx::new().put(keys::event(&event), &event)).await.map(drop).map_err(crate::core_error)
    }

    /// A line in an app's log stream.
    pub fn log(&self, app: AppId, source: LogSource, process: &str, text: impl Into<LogText>) {
        self.deps.logs.append(app, LogLine { at: self.now(), source, process: process.into(), text: text.into() });
    }

    /// `app[api]: …`, as Heroku tells what users did.
    pub fn log_api(&self, app: AppId, text: impl Into<LogText>) {
        self.log(app, LogSource::App, "api", text);
    }

    /// The app of that name or id.
    pub async fn find_app(&self, name_or_id: &str) -> Result<Arc<App>, ApiError> {
        self.read_app(name_or_id).await.map(|a| a.value)
    }

    pub async fn read_app(&self, name_or_id: &str) -> Result<crate::db::Stored<Arc<App>>, ApiError> {
        let id = match name_or_id.parse::<AppId>() {
            Ok(id) => Some(id),
            Err(_) => match name_or_id.parse::<AppName>() {
                Ok(name) => self.db.get::<AppId>(&keys::app_name(&name)).await?.map(|s| *s.value),
                Err(_) => None,
            },
        };
        match id {
            Some(id) => self.db.get::<App>(&keys::app(id)).await?.ok_or_else(app_not_found),
            None => Err(app_not_found()),
        }
    }

    /// Tells the plan loop that something changed.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }
}

/// Opens the master key, and holds it against what the store was written with: a key that was lost or exchanged is told
/// at the start, not by each app that no longer gets its config.
async fn open_crypt(deps: &Deps) -> Result<Crypt, String> {
    let file = deps.data_dir.join("master.key");
    let known = deps.store.get(keys::MASTER_KEY).await.map_err(|e| e.to_string())?.0;
    if known.is_some() && !file.exists() {
        return Err(format!(
            "{} is missing, and the config vars of the apps are encrypted with it: put it back from a backup",
            file.display()
        ));
    }
    let crypt = Crypt::open(&file)?;
    let print = crypt.fingerprint();
    match known {
        Some(entry) if *entry.value == *print.as_bytes() => Ok(crypt),
        Some(_) => Err(format!(
            "{} is not the key that the config vars of the apps are encrypted with: put the right one back from a backup",
            file.display()
        )),
        None => {
            let write = flex_store::Write::Put(keys::MASTER_KEY.into(), print.into_bytes());
            deps.store.commit(Vec::new(), vec![write]).await.map_err(|e| e.to_string())?;
            Ok(crypt)
        }
    }
}

pub fn app_not_found() -> ApiError {
    not_found("Couldn't find that app.")
}

pub fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorId::NotFound, message)
}

pub fn invalid(message: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorId::InvalidParams, message.to_string())
}
