//! The two traits: an engine, and a container to build in.

use crate::{
    Attached, Desired, DockerfileSpec, EngineFacts, ExecSpec, ImageFacts, ImageFiles, JobSpec, Observed, RuntimeError,
    SandboxSpec, Session,
};
use async_trait::async_trait;
use bytes::Bytes;
use flex_model::{AppId, ImageRef, InstanceId};
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

/// Where the apps' images are kept outside the engine. An engine that lacks one gets it from there.
#[async_trait]
pub trait ImageSource: Send + Sync + std::fmt::Debug {
    /// An app's image as files; none: it is not kept here. `app_name` goes into the name that people see in the engine.
    ///
    /// # Errors
    /// What is kept cannot be read: asking again may help.
    async fn files(&self, app: AppId, app_name: &str, image: &ImageRef) -> Result<Option<ImageFiles>, RuntimeError>;
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
    /// Runs a command in a running instance or one-off container. It ends with its client (`input` and `output` dropped):
    /// SIGHUP, SIGTERM and SIGKILL, a few seconds apart.
    async fn exec(&self, instance: InstanceId, exec: ExecSpec) -> Result<Session, RuntimeError>;
    /// Runs a one-off container to its end; it is removed afterwards. It is stopped when it loses its client
    /// (`input` dropped and `output` dropped).
    async fn run_once(&self, job: JobSpec) -> Result<Session, RuntimeError>;
    /// Starts a one-off container that needs no client: its output goes to files of the engine's, it outlives this process,
    /// and it stays after its end until [`Runtime::remove_job`].
    async fn start_job(&self, job: JobSpec) -> Result<(), RuntimeError> {
        Err(RuntimeError::Refused(format!("starting {}: this engine runs nothing without a client", job.name)))
    }
    /// What [`Runtime::start_job`] started and nobody removed yet.
    async fn jobs(&self) -> Result<Vec<Observed>, RuntimeError> {
        Ok(Vec::new())
    }
    /// Kills and removes such a container; absent is fine.
    async fn remove_job(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        let _ = instance;
        Ok(())
    }
    /// Looks on at a running instance or one-off container: its last lines (at most `replay`), then its output as it comes,
    /// and its input where it has a terminal. Whoever looks on slows nothing and ends nothing.
    async fn attach(&self, instance: InstanceId, replay: u32) -> Result<Attached, RuntimeError> {
        let _ = replay;
        Err(RuntimeError::NotFound(format!("instance {instance} is not running on this host")))
    }
    /// SIGTERM, the grace in seconds, SIGKILL: for one-off containers, whose ends stay as they are.
    async fn stop(&self, instance: InstanceId, grace: u32) -> Result<(), RuntimeError> {
        let _ = grace;
        Err(RuntimeError::NotFound(format!("instance {instance} is not running on this host")))
    }
    /// Where a running instance or one-off container can be reached from this host.
    async fn address(&self, instance: InstanceId) -> Result<std::net::IpAddr, RuntimeError> {
        Err(RuntimeError::NotFound(format!("instance {instance} is not running on this host")))
    }
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
    /// An image as the archive that `docker save` writes. What has gone wrong by then ends the stream.
    async fn export(&self, reference: &str) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        Err(RuntimeError::Refused(format!("exporting {reference}: this engine gives no images away")))
    }
    /// Removes an image if nothing uses it; absent is fine.
    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError>;
    /// Removes a cache volume; absent is fine.
    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError>;
}
