//! Where desired and observed state lives: one watchable, transactional key space, and blob storage beside it.
//!
//! Contract of every [`StateStore`] (one test suite, [`contract`], holds all of them to it):
//! reads are linearizable; a commit is all or nothing, and durable when it returns; revisions strictly grow; a watcher
//! may be woken once for several changes but is never left asleep over one. Keys are `/`-separated text, values are
//! bytes under [`MAX_VALUE`], a commit has at most [`MAX_OPS`] operations, so that etcd can hold all of it.
//!
//! Must not: know what the values mean, or hold logs, metrics, slugs or repositories (those are blobs or files).

mod backend;
pub mod contract;
mod digest;
mod embedded;
pub mod export;
mod open;
mod redb_backend;
mod sled_backend;
mod snapshots;

pub use embedded::EmbeddedStore;
pub use open::{Engine, memory, open, remedy};
pub use snapshots::{snapshot_now, snapshots};

use async_trait::async_trait;
use std::sync::Arc;

/// A text cut short for an error message.
fn cut(s: &str) -> String {
    s.chars().take(80).collect()
}

/// Largest value, in bytes (sled's own blobs above 128 KiB are never synced; etcd refuses 1.5 MiB).
pub const MAX_VALUE: usize = 100 << 10;
/// Most preconditions plus writes of one commit (etcd refuses more than 128).
pub const MAX_OPS: usize = 100;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 512;

/// A revision of the whole store: 0 is the empty store, every commit adds at least one.
pub type Revision = u64;

/// A stored value and the revision of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Arc<[u8]>,
    pub revision: Revision,
}

/// What must hold for a commit to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent(String),
    /// The key was last written by the commit of this revision.
    At(String, Revision),
    /// The key exists, whatever its revision.
    Present(String),
}

/// One change of a commit. A key may occur once in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(String, Vec<u8>),
    Delete(String),
}

/// Why a store call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition did not hold: read again and decide again.
    #[error("another change came first: {key} is not as expected")]
    Conflict { key: String },
    /// The commit breaks a limit of the contract: retrying is no use.
    #[error("the commit was refused: {0}")]
    Invalid(String),
    /// The disk is full or the device fails; nothing was changed. Retry after making room.
    #[error("cannot write the state store: {0}")]
    Unavailable(String),
    /// What is on disk is damaged. Never answered by starting empty.
    #[error("the state store is damaged: {0}")]
    Damaged(String),
}

/// The watchable key space.
#[async_trait]
pub trait StateStore: Send + Sync + 'static {
    /// One key.
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError>;
    /// All keys that start with `prefix`, in key order, at one revision.
    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError>;
    /// All or nothing; durable when it returns.
    async fn commit(&self, preconditions: Vec<Precondition>, writes: Vec<Write>) -> Result<Revision, StoreError>;
    /// Wakes when a key under `prefix` has changed after `from` (at once, if it already has). Coalesces, never lies.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;
}

/// A watch on a prefix.
#[derive(Debug)]
pub struct Watch {
    /// Yields the newest revision that touched the prefix.
    pub changes: tokio::sync::watch::Receiver<Revision>,
}
