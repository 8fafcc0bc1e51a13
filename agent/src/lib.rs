//! One per host: makes the engine match the host's assignment, judges health, restarts what crashes, reports.
//!
//! Works without the control plane: the last assignment is on disk, and a lower revision than one seen is refused.
//!
//! Must not: choose what runs here, know the store or the API's handlers, or stop an instance because nobody answers.

use flex_model::{Assignment, Report};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The agent's line to the control plane: in one process a pair of channels, between hosts a stream.
pub struct ControlLink {
    /// The newest assignment; none until the control plane has spoken.
    pub assignment: watch::Receiver<Option<Arc<Assignment>>>,
    /// Reports, whole each time.
    pub reports: mpsc::Sender<Report>,
}
