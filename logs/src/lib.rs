//! Log lines on disk and live: append, read back, follow.
//!
//! Must not: know where lines come from, or block a writer because a reader is slow.
