//! What the controller asks of the rest of the server. The executable supplies it; the controller knows no builder, no
//! engine and no router.

use async_trait::async_trait;
use bytes::Bytes;
use flex_model::app_json::AppJson;
use flex_model::{
    AppId, BuildId, BuildpackRef, ImageRef, InstanceId, InstanceSpec, PhaseTime, ProcessType, Secret, StackName, Timestamp,
};
use futures_util::stream::BoxStream;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Where a build's source is.
#[derive(Debug, Clone)]
pub enum Source {
    /// A commit of a bare repository; `quarantine` holds objects that are not accepted yet.
    Git { repository: PathBuf, quarantine: Option<PathBuf>, commit: String },
    /// A tar archive, maybe compressed.
    Tar(PathBuf),
    /// No build: an image.
    Image(String),
}

/// One build to do.
#[derive(Debug, Clone)]
pub struct BuildJob {
    pub build: BuildId,
    pub app: AppId,
    pub app_name: String,
    pub stack: StackName,
    /// Someone chose that stack: app.json's has no say.
    pub stack_by_hand: bool,
    pub source: Source,
    pub buildpacks: Vec<BuildpackRef>,
    pub config: BTreeMap<String, Secret>,
    pub source_version: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct BuildProduct {
    /// The stack, where app.json chose another than the one of the job.
    pub stack: Option<StackName>,
    pub image: ImageRef,
    pub size_bytes: u64,
    pub process_types: BTreeMap<ProcessType, String>,
    pub config_vars: BTreeMap<String, String>,
    pub addons: Vec<String>,
    pub app_json: AppJson,
    pub buildpacks: Vec<String>,
    pub has_launcher: bool,
    /// The port that the image says it listens on.
    pub port: Option<u16>,
    pub phases: Vec<PhaseTime>,
}

/// Why there is no product: said to the pusher as it stands.
#[derive(Debug, Clone)]
pub struct BuildFailure {
    /// One line, e.g. `failed to compile Python app`.
    pub message: String,
    pub phases: Vec<PhaseTime>,
}

/// Builds.
#[async_trait]
pub trait Builders: Send + Sync + 'static {
    /// The stacks that there are to build on.
    fn stacks(&self) -> Vec<StackName> {
        Vec::new()
    }
    /// A build of this app is about to come: makes ready for it, meanwhile. Dropping what comes back gives up what no build
    /// has taken.
    fn prepare(&self, app: AppId, stack: StackName) -> Box<dyn Send> {
        let _ = (app, stack);
        Box::new(())
    }
    /// Builds, sending each line of output as it comes.
    async fn build(
        &self,
        job: BuildJob,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildProduct, BuildFailure>;
    /// Forgets an app's build cache.
    async fn purge_cache(&self, app: AppId) -> Result<(), String>;
    /// Keeps copies of those of an app's images that nothing but the engine has: `wanted` as for `collect_garbage`. Says how many
    /// came to it.
    async fn keep_images(&self, app: AppId, wanted: BTreeSet<String>) -> Result<usize, String>;
    /// Drops an app's images except those in `keep`: manifests, and references of images that have none. Says how many went.
    async fn collect_garbage(&self, app: AppId, keep: BTreeSet<String>) -> Result<usize, String>;
    /// Forgets all that builds of an app left.
    async fn remove_app(&self, app: AppId) -> Result<(), String>;
}

/// A one-off container.
#[derive(Debug, Clone)]
pub struct RunJob {
    pub instance: InstanceId,
    pub app: AppId,
    pub app_name: String,
    /// `run.4711`.
    pub name: String,
    pub version: u64,
    pub spec: InstanceSpec,
    /// Columns and rows of a terminal, if there is to be one.
    pub tty: Option<(u16, u16)>,
    pub stdin: bool,
}

/// To a run.
#[derive(Debug, Clone)]
pub enum RunInput {
    Data(Bytes),
    Eof,
    /// Columns, rows.
    Resize(u16, u16),
    Signal(i32),
}

/// From a run.
#[derive(Debug, Clone)]
pub enum RunOutput {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A run under way.
pub struct RunSession {
    pub input: mpsc::Sender<RunInput>,
    pub output: BoxStream<'static, Result<RunOutput, String>>,
    /// Exit status, after the last output.
    pub exit: oneshot::Receiver<Result<i64, String>>,
    /// Whether its memory limit was hit; said by the time that `exit` resolves.
    pub oom: Arc<AtomicBool>,
}

/// A command to run in an instance.
#[derive(Debug, Clone)]
pub struct ExecJob {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, Secret>,
    /// Columns and rows of a terminal, if there is to be one.
    pub tty: Option<(u16, u16)>,
}

/// A look at what runs anyway.
pub struct AttachedRun {
    pub session: RunSession,
    pub tty: bool,
    /// Whether what is sent reaches it.
    pub stdin: bool,
}

/// How a one-off container that needs no client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    pub instance: InstanceId,
    /// None: it runs.
    pub ended: Option<JobEnd>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobEnd {
    /// Exit status, 128+n for a signal.
    pub status: i64,
    /// Its memory limit was hit.
    pub oom: bool,
    pub at: Timestamp,
}

/// Why an engine did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunFault {
    /// It does not run (any more).
    NotFound(String),
    Refused(String),
    /// Not now.
    Unavailable(String),
}

impl RunFault {
    /// Why, whichever it is.
    pub fn why(&self) -> &str {
        match self {
            Self::NotFound(why) | Self::Refused(why) | Self::Unavailable(why) => why,
        }
    }
}

/// Runs one-off containers.
#[async_trait]
pub trait Runs: Send + Sync + 'static {
    /// With a client: it ends when the session is dropped.
    async fn run(&self, job: RunJob) -> Result<RunSession, String>;
    /// Without one: it goes on whatever becomes of this process, and stays until [`Runs::remove`].
    async fn start(&self, job: RunJob) -> Result<(), RunFault> {
        Err(RunFault::Refused(format!("{} cannot be run here without a client", job.name)))
    }
    /// What [`Runs::start`] started and nobody removed.
    async fn jobs(&self) -> Result<Vec<JobState>, RunFault> {
        Ok(Vec::new())
    }
    async fn remove(&self, instance: InstanceId) -> Result<(), RunFault> {
        let _ = instance;
        Ok(())
    }
    /// SIGTERM, the grace in seconds, SIGKILL.
    async fn stop(&self, instance: InstanceId, grace: u32) -> Result<(), RunFault> {
        let _ = grace;
        Err(RunFault::NotFound(format!("{instance} does not run here")))
    }
    /// Runs a command in an instance; it ends when the session is dropped.
    async fn exec(&self, instance: InstanceId, job: ExecJob) -> Result<RunSession, RunFault> {
        let _ = job;
        Err(RunFault::NotFound(format!("{instance} does not run here")))
    }
    /// Looks on, beginning with the last lines.
    async fn attach(&self, instance: InstanceId, lines: u32) -> Result<AttachedRun, RunFault> {
        let _ = lines;
        Err(RunFault::NotFound(format!("{instance} does not run here")))
    }
    /// Where this machine reaches it.
    async fn address(&self, instance: InstanceId) -> Result<std::net::IpAddr, RunFault> {
        Err(RunFault::NotFound(format!("{instance} does not run here")))
    }
}

/// What else the controller needs to know of the machine it is on.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Checks for `flex doctor`: what, and the problem with its remedy where there is one.
    async fn checks(&self) -> Vec<(String, Option<(String, String)>)>;
    /// Why nothing large may be received now: the disk has too little room.
    fn no_room(&self) -> Option<String> {
        None
    }
}

/// Time and ids, so that tests can choose them.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
