//! What the embedded store asks of a disk format. Everything else (limits, conflicts, revisions, watches) is above it.

use crate::digest::Head;
use crate::{Entry, Revision, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One durable step.
pub(crate) struct Batch<'a> {
    pub puts: Vec<&'a Entry>,
    pub deletes: Vec<&'a str>,
    pub head: Head,
}

/// Everything that was on disk.
#[derive(Default)]
pub(crate) struct Loaded {
    pub entries: Vec<Entry>,
    pub head: Head,
}

/// A disk format. Used from one thread.
pub(crate) trait Backend: Send {
    /// Reads everything, once, before the first write.
    fn load(&mut self) -> Result<Loaded, StoreError>;
    /// Writes all of the batch or nothing, and has it on the device when it returns. After an error nobody knows which:
    /// the next call is [`Backend::reset`].
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), StoreError>;
    /// Makes the disk hold exactly these entries again, opening it anew where needed.
    fn reset(&mut self, entries: &BTreeMap<Arc<str>, Entry>, head: Head) -> Result<(), StoreError>;
}

/// No disk at all: for tests and for throw-away servers.
pub(crate) struct NoDisk;

impl Backend for NoDisk {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(Loaded::default())
    }
    fn write(&mut self, _: &Batch<'_>) -> Result<(), StoreError> {
        Ok(())
    }
    fn reset(&mut self, _: &BTreeMap<Arc<str>, Entry>, _: Head) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A value as the formats store it: the revision first, 8 bytes big-endian.
pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + entry.value.len());
    out.extend_from_slice(&entry.revision.to_be_bytes());
    out.extend_from_slice(&entry.value);
    out
}

/// The reverse of [`encode`].
pub(crate) fn decode(key: &[u8], stored: &[u8]) -> Result<Entry, StoreError> {
    let damaged = || StoreError::Damaged(format!("the entry {:?} cannot be read", String::from_utf8_lossy(key)));
    let key = std::str::from_utf8(key).map_err(|_| damaged())?;
    let (revision, value) = stored.split_first_chunk::<8>().ok_or_else(damaged)?;
    Ok(Entry { key: key.into(), value: value.into(), revision: Revision::from_be_bytes(*revision) })
}
