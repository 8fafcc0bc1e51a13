//! The two traits: an engine, and a container to build in.

use crate::{
    Desired, DockerfileSpec, EngineFacts, ExecSpec, ImageFacts, ImageFiles, JobSpec, Observed, RuntimeError, SandboxSpec, Session,
};
use async_trait::async_trait;
use bytes::Bytes;
use flex_model::{ImageRef, InstanceId};
use futures_util::stream::BoxStream;

/// A container to build in. Dropping it does not remove it: call [`Sandbox::destroy`], or let the reaper.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Unpacks a tar stream at `path`.
    async fn put(&self, path: &str, tar: BoxStream<'static, std::io::Result<Bytes>>) -> Result<(), RuntimeError>;
    /// Runs a command in it.
    async fn exec(&self, exec: ExecSpec) -> Result<Session, RuntimeError>;
    /// Reads `path` (a file or a directory) as a tar stream.
    async fn get(&self, path: &str) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError>;
    /// Bytes written to its own layer so far (the cache volume not counted).
    async fn disk_used(&self) -> Result<u64, RuntimeError>;
    /// Kills and removes it. Idempotent.
    async fn destroy(&self) -> Result<(), RuntimeError>;
}

/// A container engine.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What is known of engine and machine.
    async fn facts(&self) -> Result<EngineFacts, RuntimeError>;
    /// Makes the engine's instances be exactly these: starts the missing, stops (SIGTERM, grace, SIGKILL) and removes the
    /// others, replaces an incarnation older than the wanted attempt. Returns when the work is under way, not when it is
    /// done; an instance's own failure shows in [`Runtime::observe`].
    async fn converge(&self, desired: Vec<Desired>) -> Result<(), RuntimeError>;
    /// All instances of this installation, jobs and sandboxes left out.
    async fn observe(&self) -> Result<Vec<Observed>, RuntimeError>;
    /// Wakes when [`Runtime::observe`] may answer something new.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
    /// Runs a command in a running instance.
    async fn exec(&self, instance: InstanceId, exec: ExecSpec) -> Result<Session, RuntimeError>;
    /// Runs a one-off container to its end; it is removed afterwards. It is stopped when it loses its client
    /// (`input` dropped and `output` dropped).
    async fn run_once(&self, job: JobSpec) -> Result<Session, RuntimeError>;
    /// Makes a container to build in.
    async fn sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, RuntimeError>;
    /// Removes sandboxes and jobs that an earlier run of this process left behind. Returns their ids.
    async fn reap(&self, keep: &[String]) -> Result<Vec<String>, RuntimeError>;
    /// Whether the engine has this image (an id, `name:tag`, or `name@digest`).
    async fn has_image(&self, reference: &str) -> Result<bool, RuntimeError>;
    /// Brings an image in by the shortest way; layers that the engine has are not sent again.
    async fn import(&self, image: ImageFiles) -> Result<ImageRef, RuntimeError>;
    /// Asks the engine to pull from a registry, unless it has the image; the answer is content-addressed.
    async fn pull(&self, reference: &str) -> Result<ImageRef, RuntimeError>;
    /// What an image says of itself.
    async fn image_facts(&self, reference: &str) -> Result<ImageFacts, RuntimeError>;
    /// Builds a Dockerfile from a tar of its context; output lines go to `log`. Ends when dropped, or when nobody reads
    /// `log` any more.
    async fn build_dockerfile(
        &self,
        spec: DockerfileSpec,
        context: BoxStream<'static, std::io::Result<Bytes>>,
        log: tokio::sync::mpsc::Sender<String>,
    ) -> Result<ImageRef, RuntimeError>;
    /// Removes an image if nothing uses it; absent is fine.
    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError>;
    /// Removes a cache volume; absent is fine.
    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError>;
}
