//! One per host: makes the engine match the host's assignment, judges health, restarts what crashes, reports.
//!
//! Works without the control plane: the last assignment is on disk, and a lower revision than one seen is refused.
//! Decisions are made by the pure [`core`]; around it are one task that talks to the engine, one thread that reads log files,
//! and a task for each probe under way.
//!
//! Must not: choose what runs here, know the store or the API's handlers, or stop an instance because nobody answers.

mod core;
mod engine;
mod ledger;
mod ports;
mod probe;
mod run;
mod seal;
mod tail;

pub use ledger::LedgerError;
pub use seal::AgentKey;
// For the benchmark.
#[doc(hidden)]
pub use tail::{Source, Tailer};

use flex_logs::{Clock, LogStore};
use flex_model::{Assignment, HostId, Report};
use flex_runtime::Runtime;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The agent's line to the control plane: in one process a pair of channels, between hosts a stream.
pub struct ControlLink {
    /// The newest assignment; none until the control plane has spoken.
    pub assignment: watch::Receiver<Option<Arc<Assignment>>>,
    /// Reports, whole each time.
    pub reports: mpsc::Sender<Report>,
}

/// What an agent is told at its start.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Assignments of other hosts are refused.
    pub host: HostId,
    /// A directory of the agent's own: the last assignment (encrypted: config vars are in it), and what it remembers of
    /// instances.
    pub state_dir: PathBuf,
    /// What the assignment on disk is encrypted with.
    pub key: AgentKey,
}

/// Why an agent could not start, or had to give up.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot start reading the instances' logs: {0}")]
    Tail(#[source] std::io::Error),
}

/// The agent of a host.
pub struct Agent {
    settings: AgentSettings,
    runtime: Arc<dyn Runtime>,
    link: ControlLink,
    logs: Arc<LogStore>,
    clock: Clock,
}

impl Agent {
    /// Puts the parts together; nothing happens before [`Agent::run`].
    pub fn new(settings: AgentSettings, runtime: Arc<dyn Runtime>, link: ControlLink, logs: Arc<LogStore>, clock: Clock) -> Self {
        Self { settings, runtime, link, logs, clock }
    }

    /// Works until shut down. Shutting down, and being killed, leave the instances running; the next run finds them again.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        run::run(self, shutdown).await
    }
}
