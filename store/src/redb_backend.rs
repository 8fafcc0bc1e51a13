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
        if !backend.file.exists() {
            backend.make()?;
        }
        backend.db()?;
        Ok(backend)
    }

    /// Makes the file, whole before it has its name: one that a kill left half written would count as damaged.
    fn make(&self) -> Result<(), StoreError> {
        let part = self.file.with_extension("new");
        let failed = |e: std::io::Error| StoreError::Unavailable(format!("{}: {e}", part.display()));
        match std::fs::remove_file(&part) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        drop(redb::Builder::new().create(&part).map_err(unavailable)?);
        std::fs::File::open(&part).and_then(|f| f.sync_all()).map_err(failed)?;
        std::fs::rename(&part, &self.file).map_err(failed)?;
        let dir = self.file.parent().unwrap_or(Path::new("."));
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_left_of_the_first_start_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.new"), "half a").unwrap();
        drop(RedbBackend::open(dir.path()).unwrap());
        assert!(RedbBackend::open(dir.path()).unwrap().load().unwrap().entries.is_empty());
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["state.redb"]);
        // A file that has its name was whole once.
        std::fs::write(dir.path().join("state.redb"), "half a").unwrap();
        assert!(matches!(RedbBackend::open(dir.path()), Err(StoreError::Damaged(_))));
    }
}
