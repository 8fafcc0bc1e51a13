//! Requests of an app that wait, and how they hear that they need not any more.
//!
//! Invariant: whoever waits for a place on an instance is told of each place that becomes free, or somebody is who waits for
//! the same: pools that share instances, and limits that differ, have queues of their own, and each of them is told.

use flex_model::ProcessType;
use std::sync::{
    Arc, LazyLock, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::sync::Notify;

/// Whose places are waited for: instances of a process type, perhaps of one release, with so many requests each at most.
pub(crate) type Queue = (ProcessType, Option<u64>, Option<u32>);

/// Requests of one app that wait; shared by all tables that it is in.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// For an instance to come.
    pub(crate) held: AtomicUsize,
    /// For a place on an instance.
    pub(crate) queued: AtomicUsize,
    /// Under way, whatever they do.
    pub(crate) open: AtomicUsize,
    queues: Mutex<Vec<(Queue, Arc<Notify>)>>,
}

impl Waiting {
    /// Who waits in that queue hears by it, from whatever table it is. Queues that no table has are forgotten. Where there is
    /// no limit nobody waits, so that most apps have none.
    pub(crate) fn queue(&self, process: &ProcessType, version: Option<u64>, limit: Option<u32>) -> Arc<Notify> {
        static NOBODYS: LazyLock<Arc<Notify>> = LazyLock::new(Arc::default);
        if limit.is_none() {
            return NOBODYS.clone();
        }
        let queue: Queue = (process.clone(), version, limit);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|(_, notify)| Arc::strong_count(notify) > 1);
        if let Some((_, notify)) = queues.iter().find(|(known, _)| *known == queue) {
            return notify.clone();
        }
        let notify = Arc::new(Notify::new());
        queues.push((queue, notify.clone()));
        notify
    }

    /// A request has ended, and its place is free. Costs one load while nobody waits.
    pub(crate) fn freed(&self) {
        // Who waits counts itself first and looks for a place second; so does the other side, in one total order.
        if self.queued.load(SeqCst) > 0 {
            for (_, notify) in self.queues.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                notify.notify_one();
            }
        }
    }
}
