//! The disk format of redb: one file, copy-on-write pages with checksums, one `fdatasync` a batch.

use crate::backend::{Backend, Batch, Loaded, decode, encode};
use crate::digest::Head;
use crate::{Entry, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const HEAD: TableDefinition<'_, (), &[u8]> = TableDefinition::new("head");

/// 16 MiB: the mirror in memory answers reads.
const CACHE_BYTES: usize = 16 << 20;

pub(crate) struct RedbBackend {
    file: PathBuf,
    db: Option<Database>,
}

fn unavailable(e: impl Into<redb::Error>) -> StoreError {
    match e.into() {
        e @ (redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_)) => StoreError::Damaged(e.to_string()),
        e => StoreError::Unavailable(e.to_string()),
    }
}

impl RedbBackend {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| StoreError::Unavailable(format!("{}: {e}", dir.display())))?;
        let mut backend = Self { file: dir.join("state.redb"), db: None };
        backend.db()?;
        Ok(backend)
    }

    fn db(&mut self) -> Result<&Database, StoreError> {
        if self.db.is_none() {
            // A file that is not a database at all comes back as an I/O error of the kind "invalid data".
            let db = redb::Builder::new().set_cache_size(CACHE_BYTES).create(&self.file).map_err(|e| match e {
                redb::DatabaseError::Storage(redb::StorageError::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
                    StoreError::Damaged(format!("{}: {io}", self.file.display()))
                }
                e => unavailable(e),
            })?;
            self.db = Some(db);
        }
        self.db.as_ref().ok_or_else(|| StoreError::Unavailable("the store is closed".into()))
    }
}

impl Backend for RedbBackend {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let txn = self.db()?.begin_read().map_err(unavailable)?;
        let entries = match txn.open_table(ENTRIES) {
            Ok(t) => t,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Loaded::default()),
            Err(e) => return Err(unavailable(e)),
        };
        let mut loaded = Loaded::default();
        for item in entries.iter().map_err(unavailable)? {
            let (key, value) = item.map_err(unavailable)?;
            loaded.entries.push(decode(key.value().as_bytes(), value.value())?);
        }
        let head = txn.open_table(HEAD).map_err(unavailable)?;
        let head = head.get(()).map_err(unavailable)?;
        loaded.head = head
            .and_then(|h| Head::from_bytes(h.value()))
            .ok_or_else(|| StoreError::Damaged("its head record is missing or cannot be read".into()))?;
        Ok(loaded)
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let txn = self.db()?.begin_write().map_err(unavailable)?;
        {
            let mut entries = txn.open_table(ENTRIES).map_err(unavailable)?;
            for entry in &batch.puts {
                entries.insert(&*entry.key, encode(entry).as_slice()).map_err(unavailable)?;
            }
            for key in &batch.deletes {
                entries.remove(key).map_err(unavailable)?;
            }
            let mut head = txn.open_table(HEAD).map_err(unavailable)?;
            head.insert((), batch.head.to_bytes().as_slice()).map_err(unavailable)?;
        }
        txn.commit().map_err(unavailable)
    }

    fn reset(&mut self, entries: &BTreeMap<Arc<str>, Entry>, head: Head) -> Result<(), StoreError> {
        self.db = None;
        let txn = self.db()?.begin_write().map_err(unavailable)?;
        {
            let mut table = txn.open_table(ENTRIES).map_err(unavailable)?;
            table.retain(|key, _| entries.contains_key(key)).map_err(unavailable)?;
            for (key, entry) in entries {
                table.insert(&**key, encode(entry).as_slice()).map_err(unavailable)?;
            }
            let mut heads = txn.open_table(HEAD).map_err(unavailable)?;
            heads.insert((), head.to_bytes().as_slice()).map_err(unavailable)?;
        }
        txn.commit().map_err(unavailable)
    }
}
