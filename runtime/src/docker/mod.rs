//! Docker, through its socket. API 1.41 (Docker 20.10) and later.
//!
//! Invariants: everything made here is named `flex-CLUSTER-…` and carries `flex.cluster=CLUSTER`, and nothing else is
//! ever touched; labels are the only memory, so a new process finds what an earlier one started; every call has a time
//! limit; an engine that goes away and comes back needs no help.
//!
//! Must not: hold anything open that would block a container when this process is stuck (no log attach), or set an OOM
//! score below the engine's own.

mod bring;
mod converge;
mod dockerfile;
mod engine;
mod events;
mod exec;
mod guard;
mod hijack;
mod images;
mod import;
mod jobs;
mod labels;
mod left;
mod observe;
mod sandbox;
mod session;
mod spec;

use crate::{
    Attached, Desired, DockerfileSpec, EngineFacts, ExecSpec, GuardSettings, ImageFacts, ImageFiles, ImageSource, Isolation,
    JobSpec, Observed, Runtime, RuntimeError, Sandbox, SandboxSpec, Session,
};
use async_trait::async_trait;
use bollard::models::{NetworkCreateRequest, SystemInfoCgroupVersionEnum};
use bytes::Bytes;
use engine::{Engine, QUICK};
use flex_model::{ImageRef, InstanceId, Memory};
use futures_util::stream::BoxStream;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whether what goes from one port of a bridge to another passes the packet filter: where not, nothing keeps two containers
/// of one network apart.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// How to use an engine.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// The engine's socket.
    pub socket: PathBuf,
    /// Short id of the installation (letters, digits, `-`, `_`, `.`): several share one engine by it.
    pub cluster: String,
    /// Name of the instances' network; none: `flex-CLUSTER`.
    pub network: Option<String>,
    /// Containers made and started at the same time. Two to a core: more only makes each of them slower.
    pub parallel_starts: usize,
    /// What containers may reach, kept by rules of the packet filter; none: no rules are touched.
    pub guard: Option<GuardSettings>,
    /// Who has the images that the engine lacks; none: it must have them all.
    pub images: Option<Arc<dyn ImageSource>>,
}

impl DockerSettings {
    /// The local engine with the defaults, for one installation.
    pub fn local(cluster: impl Into<String>) -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            cluster: cluster.into(),
            network: None,
            parallel_starts: 4,
            guard: None,
            images: None,
        }
    }
}

/// The Docker engine as a [`Runtime`].
pub struct DockerRuntime {
    inner: Arc<Inner>,
    /// Ends the event watcher and the work under way with the runtime; containers stay as they are.
    _end: DropGuard,
}

pub(crate) struct Inner {
    engine: Engine,
    names: spec::Names,
    settings: DockerSettings,
    starts: Semaphore,
    changes: watch::Sender<u64>,
    state: Mutex<State>,
    /// Networks known to exist; the lock is held while one is made.
    networks: tokio::sync::Mutex<HashSet<String>>,
    /// Held while an image that the engine lost is brought back.
    bringing: tokio::sync::Mutex<()>,
    guard: tokio::sync::Mutex<guard::Guard>,
    /// Dockerfile builds under way.
    building: std::sync::atomic::AtomicUsize,
    /// The rules may be gone: look now.
    guard_wake: tokio::sync::Notify,
    end: CancellationToken,
}

#[derive(Default)]
struct State {
    /// Until the first converge nothing is known, and nothing is done.
    desired: Option<HashMap<InstanceId, Arc<Desired>>>,
    /// Instances with a task at work; one each.
    busy: HashSet<InstanceId>,
    /// Containers that were sent SIGTERM.
    stopping: HashSet<String>,
    /// What could not be made: attempt and reason.
    failed: HashMap<InstanceId, (u32, String)>,
    /// What inspection told, by container id.
    details: HashMap<String, observe::Detail>,
    /// Jobs and sandboxes that somebody in this process has, by the id to reap by.
    live: HashSet<String>,
    /// Containers that could not be removed when they were to be: the engine was away.
    not_removed: HashSet<String>,
    /// Layer chains known to be in the engine.
    chains: HashSet<String>,
    isolation: Isolation,
}

impl DockerRuntime {
    /// Prepares to use an engine; it need not run yet. Must be called within a tokio runtime.
    pub fn connect(settings: DockerSettings) -> Result<Self, RuntimeError> {
        labels::name_part("the installation's id", &settings.cluster)?;
        let cluster = settings.cluster.clone();
        let network = settings.network.clone().unwrap_or_else(|| format!("flex-{cluster}"));
        labels::name_part("the network's name", &network)?;
        let build_network = format!("{network}-build");
        let end = CancellationToken::new();
        let inner = Arc::new(Inner {
            engine: Engine::new(settings.socket.clone()),
            names: spec::Names { cluster, network, build_network },
            starts: Semaphore::new(settings.parallel_starts.max(1)),
            settings,
            changes: watch::channel(0).0,
            state: Mutex::new(State::default()),
            networks: tokio::sync::Mutex::new(HashSet::new()),
            building: std::sync::atomic::AtomicUsize::new(0),
            bringing: tokio::sync::Mutex::default(),
            guard: tokio::sync::Mutex::default(),
            guard_wake: tokio::sync::Notify::new(),
            end: end.clone(),
        });
        inner.spawn(events::watch(inner.clone()));
        if inner.settings.guard.is_some() {
            inner.state().isolation = Isolation::Starting;
            inner.spawn(guard::watch(inner.clone()));
        }
        Ok(Self { inner, _end: end.drop_guard() })
    }

    /// Removes everything of this installation from the engine: containers, networks and volumes, and its rules. Images
    /// stay: they may be another's too.
    pub async fn purge(&self) -> Result<(), RuntimeError> {
        self.inner.purge().await?;
        self.inner.unguard().await;
        Ok(())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot leave a map half changed in a way that matters: the loops look again.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Runs until done or until the runtime is dropped.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Takes an id to reap by, so that the reaper leaves it alone. None: somebody has it.
    fn claim(self: &Arc<Self>, id: &str) -> Option<Claim> {
        let new = self.state().live.insert(id.to_owned());
        new.then(|| Claim { inner: self.clone(), id: id.to_owned() })
    }

    /// Makes a bridge on which containers do not reach one another, unless it is there.
    async fn ensure_network(&self, name: &str) -> Result<(), RuntimeError> {
        let mut known = self.networks.lock().await;
        if known.contains(name) {
            return Ok(());
        }
        let doing = format!("looking for network {name}");
        match self.engine.call(&doing, QUICK, async |d| d.inspect_network(name, None).await).await {
            Ok(network) => {
                if network.labels.unwrap_or_default().get(labels::CLUSTER) != Some(&self.names.cluster) {
                    return Err(RuntimeError::Refused(format!(
                        "network {name} exists and does not belong to this installation; remove it or set another name"
                    )));
                }
            }
            Err(RuntimeError::NotFound(_)) => {
                let request = NetworkCreateRequest {
                    name: name.to_owned(),
                    driver: Some("bridge".into()),
                    options: Some(HashMap::from([("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned())])),
                    labels: Some(labels::owned(&self.names.cluster)),
                    ..NetworkCreateRequest::default()
                };
                self.engine
                    .call(&format!("making network {name}"), engine::SLOW, async |d| d.create_network(request).await)
                    .await?;
            }
            Err(e) => return Err(e),
        }
        // Before anything runs in it.
        self.guard_now().await;
        known.insert(name.to_owned());
        Ok(())
    }

    /// Called when the engine said that a network is missing: somebody removed it.
    async fn forget_network(&self, name: &str) {
        self.networks.lock().await.remove(name);
    }
}

/// That a job or sandbox has someone who looks after it. Without, the reaper takes it.
struct Claim {
    inner: Arc<Inner>,
    id: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.state().live.remove(&self.id);
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let info = self.inner.engine.call("asking for its facts", QUICK, async |d| d.info().await).await?;
        Ok(EngineFacts {
            engine: "docker".into(),
            version: info.server_version.unwrap_or_default(),
            memory: bytes_of_memory(info.mem_total.unwrap_or(0)),
            cpus: u32::try_from(info.ncpu.unwrap_or(0)).unwrap_or(0),
            cgroup_version: if info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2) { 2 } else { 1 },
            live_restore: info.live_restore_enabled.unwrap_or(false),
            storage_driver: info.driver.unwrap_or_default(),
            kernel: info.kernel_version.unwrap_or_default(),
            isolation: self.inner.state().isolation.clone(),
            bridge_filter: std::fs::read_to_string(BRIDGE_FILTER).is_ok_and(|v| v.trim() == "1"),
        })
    }

    async fn converge(&self, desired: Vec<Desired>) -> Result<(), RuntimeError> {
        self.inner.converge(desired).await
    }

    async fn observe(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.inner.observe().await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    async fn exec(&self, instance: InstanceId, exec: ExecSpec) -> Result<Session, RuntimeError> {
        let container = self.inner.container_of(instance).await?;
        self.inner.clone().exec(&container, exec, true).await
    }

    async fn start_job(&self, job: JobSpec) -> Result<(), RuntimeError> {
        self.inner.start_job(job).await
    }

    async fn jobs(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.inner.jobs().await
    }

    async fn remove_job(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        self.inner.remove_job(instance).await
    }

    async fn attach(&self, instance: InstanceId, replay: u32) -> Result<Attached, RuntimeError> {
        self.inner.clone().attach(instance, replay).await
    }

    async fn stop(&self, instance: InstanceId, grace: u32) -> Result<(), RuntimeError> {
        self.inner.stop_job(instance, grace).await
    }

    async fn address(&self, instance: InstanceId) -> Result<std::net::IpAddr, RuntimeError> {
        self.inner.address(instance).await
    }

    async fn run_once(&self, job: JobSpec) -> Result<Session, RuntimeError> {
        self.inner.clone().run_once(job).await
    }

    async fn sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, RuntimeError> {
        self.inner.clone().sandbox(spec).await
    }

    async fn reap(&self, keep: &[String]) -> Result<Vec<String>, RuntimeError> {
        self.inner.reap(keep).await
    }

    async fn has_image(&self, reference: &str) -> Result<bool, RuntimeError> {
        self.inner.has_image(reference).await
    }

    async fn import(&self, image: ImageFiles) -> Result<ImageRef, RuntimeError> {
        self.inner.import(image).await
    }

    async fn pull(&self, reference: &str) -> Result<ImageRef, RuntimeError> {
        self.inner.pull(reference).await
    }

    async fn image_facts(&self, reference: &str) -> Result<ImageFacts, RuntimeError> {
        self.inner.image_facts(reference).await
    }

    async fn build_dockerfile(
        &self,
        spec: DockerfileSpec,
        context: BoxStream<'static, std::io::Result<Bytes>>,
        log: mpsc::Sender<String>,
    ) -> Result<ImageRef, RuntimeError> {
        self.inner.build_dockerfile(spec, context, log).await
    }

    async fn export(&self, reference: &str) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        self.inner.export(reference)
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.inner.remove_image(reference).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.inner.remove_volume(name).await
    }
}

fn bytes_of_memory(bytes: i64) -> Memory {
    Memory::from_mib(u64::try_from(bytes).unwrap_or(0) >> 20)
}
