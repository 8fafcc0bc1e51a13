//! Engines that run containers, behind one trait: Docker today, Swarm and Kubernetes later ("a cluster is one big host").
//!
//! Contract of every [`Runtime`] (one test suite, [`contract`], holds the real one and the fake to it):
//! [`Runtime::converge`] takes the whole list and may be called again at any time; what it started it finds again by
//! labels after a restart of this process; it touches nothing that does not carry its own installation's label; no call
//! hangs for ever.
//!
//! Must not: decide what should run, when a crashed instance is tried again, or whether one is healthy (the agent does).

pub mod contract;
mod docker;
mod fake;
mod guard;
mod seam;
mod types;

pub use docker::{DockerRuntime, DockerSettings};
pub use fake::FakeRuntime;
pub use guard::{GuardSettings, Isolation, Net, Target, targets_in};
pub use seam::{ImageSource, Runtime, Sandbox};
pub use types::{
    Attached, Desired, DockerfileSpec, EngineFacts, ExecSpec, ImageFacts, ImageFiles, Input, JobSpec, LogFile, LogForm, Observed,
    ObservedPhase, Output, RuntimeError, SandboxSpec, Session, TtySize,
};
