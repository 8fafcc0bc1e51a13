//! Log lines on disk and live: append, read back, follow.
//!
//! One directory per app. [`LogStore::append`] puts a line into the app's ring in memory and returns; one writer thread
//! carries lines from the rings to disk, so the ring is queue, tail cache and live feed at once:
//!
//! - a line leaves the ring only after it was written, so ring plus disk is always the whole log, without gap or overlap;
//! - every line has a sequence number within its app, which is how readers put the two together;
//! - lines reach the write-ahead file within milliseconds (kill -9 loses at most those) and are synced every second;
//!   full write-ahead files become zstd blocks in append-only segment files; a torn end is found by checksum and cut;
//! - each block has an index beside it, so that a search leaves most blocks packed.
//!
//! Must not: know where lines come from, or block a writer because a reader is slow.

mod block;
mod disk;
pub mod drain;
mod follow;
mod index;
mod limit;
mod literals;
mod query;
mod read;
mod ring;
mod store;
mod text;
mod wal;
mod writer;

pub use follow::{Tail, overflow_line};
pub use query::{DEFAULT_LINES, LogQuery, MAX_PATTERN, TextFilter};
pub use read::{Place, Stretch};
pub use store::{Clock, LogError, LogSettings, LogStore, Numbered, Retention};
pub use text::{CONTINUED, MAX_LINE_BYTES, is_one_line, open_character, split_lines};
