//! One pass: read the world, plan, commit, publish.

use crate::core::{Actor, Controller, lock};
use crate::db::{CommitError, DomainRecord, RouteRecord, Stored, Tx, keys};
use flex_api::{ApiError, ErrorId};
use flex_model::{
    App, AppId, AppRouting, Host, HostId, InstanceId, Match, Placement, PlacementPhase, Release, ReleaseStatus, Timestamp,
};
use flex_scheduler::{AppView, Change, ChangeKind, IdSource, Pending, Settings, World};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Rounds of planning in one pass before others get their turn.
const MAX_ROUNDS: usize = 20;
/// Reads that a commit may spoil, one after another.
const MAX_READS: usize = 100;
/// No key has this name: only the revision is of interest.
const REVISION: &str = "-";
/// Operations of one commit; the store refuses 100.
const MAX_OPS: usize = 80;

/// What is desired, as it was read at one revision, and what it was read from: to fence commits by.
pub struct Desired {
    revision: u64,
    views: BTreeMap<AppId, AppView>,
    hosts: BTreeMap<HostId, Host>,
    apps: BTreeMap<AppId, Stored<Arc<App>>>,
    placements: BTreeMap<InstanceId, Stored<Arc<Placement>>>,
}

impl Desired {
    /// How many apps and placements there are.
    pub fn sizes(&self) -> (usize, usize) {
        (self.apps.len(), self.placements.len())
    }
}

/// What a pass decides from.
pub(crate) struct Read {
    pub world: World,
    pub desired: Arc<Desired>,
}

impl Read {
    pub fn revision(&self) -> u64 {
        self.desired.revision
    }
}

struct Ids<'a>(&'a Controller);

impl IdSource for Ids<'_> {
    fn instance(&mut self) -> InstanceId {
        self.0.id()
    }
}

impl Controller {
    /// Plans until nothing is left to change, then publishes. Returns when to look again.
    pub(super) async fn pass(&self) -> Result<Duration, ApiError> {
        let mut read = self.read_world().await?;
        let mut wake_at: Option<Timestamp> = None;
        for _ in 0..MAX_ROUNDS {
            let plan = flex_scheduler::plan(&read.world, &mut Ids(self));
            wake_at = plan.wake_at;
            lock(&self.pending).clone_from(&plan.pending);
            if plan.changes.is_empty() {
                break;
            }
            self.commit_plan(&read, plan.changes).await?;
            read = self.read_world().await?;
        }
        for view in read.world.apps.values() {
            let canary = view.app.canary.and_then(|c| c.version);
            for release in [view.app.target, canary].into_iter().flatten().filter_map(|v| view.releases.get(&v)) {
                if !release.released && release.status == ReleaseStatus::Pending {
                    self.start_release_phase(view.app.clone(), release.clone());
                }
            }
        }
        self.publish(&read).await;
        Ok(wake_at.map_or(Duration::MAX, |at| at.since(self.now())))
    }

    /// Everything at one revision: what is desired from the store (kept until it changes), the rest as it was last told.
    pub(crate) async fn read_world(&self) -> Result<Read, ApiError> {
        let desired = self.read_desired().await?;
        let table = self.table.borrow().clone();
        let draining = desired.placements.values().filter(|p| p.value.phase != PlacementPhase::Active).map(|p| p.value.instance);
        let routed: BTreeSet<InstanceId> = table.apps.iter().flat_map(|a| a.instances().map(|b| b.instance)).collect();
        let world = World {
            now: self.now(),
            apps: desired.views.clone(),
            hosts: desired.hosts.clone(),
            // Any table that lacks it will do: routers acknowledge the newest one that they have.
            table_without: draining.filter(|i| !routed.contains(i)).map(|i| (i, table.revision)).collect(),
            placements: desired.placements.iter().map(|(id, p)| (*id, (*p.value).clone())).collect(),
            reports: lock(&self.reports).clone(),
            routers: self.router_statuses(),
            settings: Settings::default(),
        };
        Ok(Read { world, desired })
    }

    /// Reads again when a commit came in between: a host refuses two different assignments under one number.
    async fn read_desired(&self) -> Result<Arc<Desired>, ApiError> {
        for _ in 0..MAX_READS {
            let before = self.deps.store.get(REVISION).await.map_or(0, |(_, r)| r);
            if let Some(kept) = lock(&self.desired).as_ref().filter(|d| d.revision == before && before > 0) {
                return Ok(kept.clone());
            }
            let read = Arc::new(self.read_once(before).await?);
            if self.deps.store.get(REVISION).await.is_ok_and(|(_, r)| r == before) {
                *lock(&self.desired) = Some(read.clone());
                return Ok(read);
            }
        }
        Err(ApiError::new(ErrorId::Conflict, "changes come faster than they can be read"))
    }

    /// Routes that are in force: those whose host still belongs to whom it belonged to.
    async fn read_routes(&self, views: &mut BTreeMap<AppId, AppView>) -> Result<(), ApiError> {
        for r in self.db.list::<RouteRecord>(keys::ROUTES).await? {
            let record = &r.value;
            let (Match::Http { host, .. } | Match::Sni { host, .. }) = &record.route.matches else {
                if let Some(view) = views.get_mut(&record.app) {
                    view.routes.push(record.route.clone());
                }
                continue;
            };
            let holds = record.host_owner.is_none_or(|o| views.get(&o).is_some_and(|v| v.domains.contains(host)));
            if holds && let Some(view) = views.get_mut(&record.app) {
                view.routes.push(record.route.clone());
            }
        }
        Ok(())
    }

    async fn read_once(&self, revision: u64) -> Result<Desired, ApiError> {
        let apps = self.db.list::<App>(keys::APPS).await?;
        let domains = self.db.list::<DomainRecord>(keys::DOMAINS).await?;
        let hosts = self.db.list::<Host>(keys::HOSTS).await?;
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await?;
        let mut views = BTreeMap::new();
        // Of all the releases only those that run, or should.
        let mut versions: BTreeSet<(AppId, u64)> = placements.iter().map(|p| (p.value.app, p.value.version)).collect();
        for stored in &apps {
            let app = &stored.value;
            let canary = app.canary.and_then(|c| c.version);
            versions.extend([app.target, app.good, canary].into_iter().flatten().map(|v| (app.id, v)));
            let view = AppView {
                app: app.clone(),
                releases: BTreeMap::new(),
                domains: vec![self.default_domain(&app.name)],
                routes: Vec::new(),
                routing: Arc::default(),
            };
            views.insert(app.id, view);
        }
        for (app, version) in versions {
            if let Some(view) = views.get_mut(&app)
                && let Some(release) = self.db.get::<Release>(&keys::release(app, version)).await?
            {
                view.releases.insert(version, release.value);
            }
        }
        for d in domains {
            if let Some(view) = views.get_mut(&d.value.app) {
                view.domains.push(d.value.hostname.clone());
            }
        }
        self.read_routes(&mut views).await?;
        for r in self.db.list::<AppRouting>(keys::ROUTING).await? {
            let app = r.key.strip_prefix(keys::ROUTING).and_then(|id| id.parse().ok());
            if let Some(view) = app.and_then(|id: AppId| views.get_mut(&id)) {
                view.routing = r.value;
            }
        }
        Ok(Desired {
            revision,
            views,
            hosts: hosts.into_iter().map(|h| (h.value.id, (*h.value).clone())).collect(),
            apps: apps.into_iter().map(|a| (a.value.id, a)).collect(),
            placements: placements.into_iter().map(|p| (p.value.instance, p)).collect(),
        })
    }

    /// Commits app by app. A commit that lost against another change is dropped: the next round plans anew.
    async fn commit_plan(&self, read: &Read, changes: Vec<Change>) -> Result<(), ApiError> {
        let mut by_app: BTreeMap<Option<AppId>, Vec<Change>> = BTreeMap::new();
        for change in changes {
            let app = match &change.kind {
                ChangeKind::Place(p) => Some(p.app),
                ChangeKind::Drain { instance, .. } | ChangeKind::Remove { instance } => {
                    read.desired.placements.get(instance).map(|p| p.value.app)
                }
                ChangeKind::ReleaseSucceeded { app, .. } | ChangeKind::ReleaseFailed { app, .. } => Some(*app),
            };
            by_app.entry(app).or_default().push(change);
        }
        for (app, changes) in by_app {
            let mut tx = self.fence(read, app);
            for change in changes {
                tracing::info!(reason = change.reason, "plan");
                if let ChangeKind::Drain { instance, .. } | ChangeKind::Remove { instance } = &change.kind
                    && let Some(p) = read.desired.placements.get(instance)
                {
                    self.note_let_go(&p.value, &change.reason);
                }
                match change.kind {
                    ChangeKind::ReleaseSucceeded { app, version } => {
                        self.succeed_release(app, version).await?;
                        // The app's record changed under the fence of what else was planned for it.
                        tx = Tx::new();
                        break;
                    }
                    ChangeKind::ReleaseFailed { app, version, instance } => {
                        let name = instance.and_then(|i| read.desired.placements.get(&i)).map(|p| p.value.name());
                        let lines = match name {
                            Some(name) => self.last_lines(app, &name).await,
                            None => Vec::new(),
                        };
                        self.fail_release(app, version, &change.reason, &lines).await?;
                        tx = Tx::new();
                        break;
                    }
                    kind => tx = self.add(tx, read, kind),
                }
                if tx.len() >= MAX_OPS {
                    self.commit_part(tx).await?;
                    tx = self.fence(read, app);
                }
            }
            self.commit_part(tx).await?;
        }
        Ok(())
    }

    /// What is planned for an app holds only while the app is what the plan saw.
    fn fence(&self, read: &Read, app: Option<AppId>) -> Tx {
        match app.and_then(|a| read.desired.apps.get(&a)) {
            Some(stored) => Tx::new().unchanged(stored),
            None => Tx::new(),
        }
    }

    fn add(&self, tx: Tx, read: &Read, kind: ChangeKind) -> Tx {
        match kind {
            ChangeKind::Place(p) => {
                let key = keys::placement(p.instance);
                tx.absent(&key).put(key, &p)
            }
            ChangeKind::Drain { instance, deadline } => match read.desired.placements.get(&instance) {
                Some(stored) => {
                    let draining = Placement { phase: PlacementPhase::Draining { deadline }, ..(*stored.value).clone() };
                    tx.unchanged(stored).put(stored.key.clone(), &draining)
                }
                None => tx,
            },
            ChangeKind::Remove { instance } => match read.desired.placements.get(&instance) {
                Some(stored) => tx.unchanged(stored).delete(stored.key.clone()),
                None => tx,
            },
            ChangeKind::ReleaseSucceeded { .. } | ChangeKind::ReleaseFailed { .. } => tx,
        }
    }

    async fn commit_part(&self, tx: Tx) -> Result<(), ApiError> {
        if tx.is_empty() {
            return Ok(());
        }
        match self.db.commit(tx).await {
            Ok(_) | Err(CommitError::Conflict(_)) => Ok(()),
            Err(CommitError::Api(e)) => Err(e),
        }
    }

    /// Whether requests are expected to reach a release: it has a web process that the formation wants.
    pub async fn expects_routes(&self, release: &Release) -> bool {
        let Ok(app) = self.find_app(&release.app.to_string()).await else { return false };
        !app.maintenance && release.image.is_some() && release.processes.keys().any(|p| p.is_web() && !app.wanted(p).is_empty())
    }

    /// Whether an instance of the release was seen running, and whether every router sends requests to one.
    pub async fn progress_of(&self, release: &Release) -> (bool, bool) {
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await.unwrap_or_default();
        let mine: Vec<InstanceId> = placements
            .iter()
            .filter(|p| p.value.app == release.app && p.value.version == release.version)
            .map(|p| p.value.instance)
            .collect();
        let exists = {
            let reports = lock(&self.reports);
            reports.values().any(|v| v.report.instances.iter().any(|i| mine.contains(&i.instance) && i.address.is_some()))
        };
        let table = self.table.borrow().clone();
        let in_table = table.app(release.app).is_some_and(|a| a.instances().any(|b| mine.contains(&b.instance)));
        (exists, in_table && self.routers_have(table.revision))
    }

    /// The app's instances that are wanted and have no place.
    pub fn pending_of(&self, app: AppId) -> Vec<Pending> {
        lock(&self.pending).iter().filter(|p| p.app == app).cloned().collect()
    }

    /// Why an instance is where it is, or why it is not running.
    pub async fn why(&self, app: &App, name: &str) -> Result<Vec<String>, ApiError> {
        let mut lines = Vec::new();
        let placements = self.db.list::<Placement>(keys::PLACEMENTS).await?;
        for p in placements.iter().map(|p| &p.value).filter(|p| p.app == app.id && p.name() == name) {
            let host =
                self.db.get::<Host>(&keys::host(p.host)).await?.map_or_else(|| p.host.to_string(), |h| h.value.name.clone());
            lines.push(format!("{name} (v{}) was placed on {host}: {}", p.version, p.reason));
            let reports = lock(&self.reports);
            let report = reports.get(&p.host).and_then(|v| v.report.instances.iter().find(|i| i.instance == p.instance));
            lines.push(match report {
                Some(r) => {
                    let state = format!("{:?}", r.state).to_lowercase();
                    let more = r.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
                    format!("It is {state} since {}, restarted {} times{more}", r.since.rfc3339_seconds(), r.restarts)
                }
                None => "Its host has not reported it yet".to_owned(),
            });
            if let PlacementPhase::Draining { deadline } = p.phase {
                lines.push(format!("It drains until {} at the latest", deadline.rfc3339_seconds()));
            }
        }
        for p in self.pending_of(app.id).iter().filter(|p| format!("{}.{}", p.process, p.index) == name) {
            lines.push(format!("{name} is wanted but cannot be placed: {}", p.why));
        }
        if lines.is_empty() {
            lines = self.why_not(app, name).await?;
        }
        if lines.is_empty() {
            return Err(crate::core::not_found(format!("There is no {name}. See: flex ps")));
        }
        Ok(lines)
    }

    /// The platform's own actor, for what loops do.
    pub fn platform(&self) -> Actor {
        Actor::platform()
    }
}
