//! The words that go over the seam between an engine and its users.

use bytes::Bytes;
use flex_model::{AppId, ExitInfo, InstanceId, InstanceSpec, Memory, Secret, Timestamp};
use futures_util::stream::BoxStream;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Why an engine call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The engine cannot be reached or does not answer in time: retry later.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    /// The thing named does not exist (image, instance).
    #[error("{0}")]
    NotFound(String),
    /// The engine refused the request; the same request will be refused again.
    #[error("the container engine refused: {0}")]
    Refused(String),
    /// It was ended because it reached a limit.
    #[error("{0}")]
    Exceeded(String),
}

/// What is known of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    pub engine: String,
    pub version: String,
    pub memory: Memory,
    pub cpus: u32,
    pub cgroup_version: u32,
    pub live_restore: bool,
    pub storage_driver: String,
    pub kernel: String,
    /// Whether rules keep containers off the machine.
    pub isolation: crate::Isolation,
    /// Whether containers of one network can be kept apart.
    pub bridge_filter: bool,
}

/// One instance to run, in its n-th incarnation: the agent raises `attempt` to have a crashed one made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub instance: InstanceId,
    pub app: AppId,
    pub app_name: String,
    /// `web.1`.
    pub name: String,
    pub version: u64,
    pub attempt: u32,
    pub spec: InstanceSpec,
}

/// What the engine knows of a container of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    pub instance: InstanceId,
    pub app: AppId,
    pub app_name: String,
    pub name: String,
    pub version: u64,
    pub attempt: u32,
    pub phase: ObservedPhase,
    /// Reachable from this host while it runs.
    pub ip: Option<IpAddr>,
    /// Its first process, in this host's numbering, while it runs.
    pub pid: Option<u32>,
    pub started_at: Option<Timestamp>,
    /// Where the engine writes its output; tail it, never attach.
    pub log_file: Option<LogFile>,
}

/// A file of a container's output, rotated as `x`, `x.1`, `x.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    pub form: LogForm,
}

/// How output lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogForm {
    /// Docker's `json-file`: a JSON object a line. Bytes that are not UTF-8 are lost before they get there.
    JsonFile,
    /// Docker's `local`, not compressed: binary records that hold the bytes as they were printed.
    Local,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedPhase {
    /// Being made or started.
    Creating,
    Running,
    /// Was sent SIGTERM; will be killed at the end of its grace period, then removed.
    Stopping,
    Exited(ExitInfo),
    /// Could not be made; the text says why. Tried again at the next higher attempt.
    Failed(String),
}

/// How to run a command beside or in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSpec {
    /// An argument vector; no shell is added.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, Secret>,
    pub tty: Option<TtySize>,
    pub workdir: Option<String>,
    /// `uid:gid` inside the container; none: the container's own.
    pub user: Option<String>,
    /// Whether stdin is wanted.
    pub stdin: bool,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TtySize {
    pub rows: u16,
    pub cols: u16,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or both streams of a TTY.
    Stdout(Bytes),
    Stderr(Bytes),
}

/// What can be sent to a running session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Data(Bytes),
    /// End of standard input.
    Eof,
    Resize(TtySize),
    /// A signal's number, to the session's first process.
    Signal(i32),
}

/// A running command with its streams. Dropping `input` is an end of file; dropping `output` does not end the command.
pub struct Session {
    pub input: tokio::sync::mpsc::Sender<Input>,
    pub output: BoxStream<'static, Result<Output, RuntimeError>>,
    /// Resolves with the exit status (128+n for a signal) after the last output was yielded, or `output` was dropped: read
    /// the output to its end first.
    pub exit: tokio::sync::oneshot::Receiver<Result<i64, RuntimeError>>,
    /// Whether a job's memory limit was hit, as far as the engine tells; said by the time that `exit` resolves.
    pub oom: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

/// A look at what runs anyway.
pub struct Attached {
    pub session: Session,
    /// Whether it has a terminal, which those who look on share.
    pub tty: bool,
    /// Whether what is sent reaches it.
    pub stdin: bool,
}

/// A one-off container: `flex run`, the release phase, `postdeploy`.
#[derive(Debug, Clone)]
pub struct JobSpec {
    pub instance: InstanceId,
    pub app: AppId,
    pub app_name: String,
    /// `run.4711`, `release.1`.
    pub name: String,
    pub version: u64,
    pub spec: InstanceSpec,
    pub tty: Option<TtySize>,
    pub stdin: bool,
}

/// A container to build in: kept alive while commands are run in it one after another, then destroyed.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Unique; the container is found by it again and reaped after a crash.
    pub id: String,
    pub image: String,
    pub env: BTreeMap<String, Secret>,
    /// Name of a persistent volume and where it is mounted (the app's cache).
    pub cache: Option<(String, String)>,
    /// Read-only host files or directories: (host path, path inside). The machine's CA bundle, the built-in buildpacks.
    pub read_only_mounts: Vec<(PathBuf, String)>,
    pub memory: Memory,
    pub pids: u32,
    /// Hard limit in thousandths of a core; none: no limit.
    pub cpu_millis: Option<u32>,
    pub user: Option<String>,
}

/// An image as files: what [`Runtime::import`] needs to bring it into the engine.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// `name:tag` to give it in the engine, so that people can tell images apart.
    pub tag: String,
    /// The OCI image configuration, exact bytes; its SHA-256 is the image's id.
    pub config: Bytes,
    /// From the bottom up: diff id `sha256:…` of each layer, and the file with its (maybe compressed) tar.
    pub layers: Vec<(String, PathBuf)>,
}

/// A Dockerfile to build.
#[derive(Debug, Clone)]
pub struct DockerfileSpec {
    /// `name:tag` of the image.
    pub tag: String,
    /// Path of the Dockerfile in the context.
    pub dockerfile: String,
    /// Build arguments; none of them is a secret, since images show them.
    pub args: BTreeMap<String, String>,
    /// Hard limit of each step. The engine's interface ends just below 2 GiB.
    pub memory: Memory,
    /// Most processes and threads of a step.
    pub pids: u32,
    /// Hard limit in thousandths of a core; none: no limit.
    pub cpu_millis: Option<u32>,
    /// Most bytes that all steps together may write.
    pub disk_bytes: u64,
    /// The last layer that was made: what the engine keeps of a build that fails, to begin with the next time.
    pub left: Arc<Mutex<Option<String>>>,
}

/// What an image says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Entry point and arguments.
    pub command: Vec<String>,
    /// TCP ports that it says it listens on.
    pub ports: Vec<u16>,
    /// Instructions for Dockerfiles that begin with it.
    pub on_build: Vec<String>,
}
