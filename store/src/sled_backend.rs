//! The disk format of sled 0.34, with the thing that it lacks: a sync that survives a power cut.
//!
//! sled's `flush` writes with `sync_file_range`, which syncs neither the file's size nor the disk's cache; after it, this
//! module syncs the log file itself. Values stay far below 128 KiB, above which sled would put them in files of their own
//! that it never syncs. `watch_prefix` is not used: a slow subscriber blocks the writer.

use crate::backend::{Backend, Batch, Loaded, decode, encode};
use crate::digest::Head;
use crate::{Entry, StoreError};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sorts before every key, since keys hold no NUL.
const HEAD_KEY: &[u8] = b"\0head";

/// 16 MiB: the mirror in memory answers reads, so sled's cache serves only its own merges.
const CACHE_BYTES: u64 = 16 << 20;

/// sled's own threads may hold the file for a moment after the last handle is gone.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

pub(crate) struct SledBackend {
    dir: PathBuf,
    open: Option<Open>,
}

struct Open {
    db: sled::Db,
    /// The log's file: a sync acts on the inode, whoever wrote to it.
    log: File,
}

impl SledBackend {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self { dir: dir.to_owned(), open: Some(open(dir)?) })
    }

    fn opened(&mut self) -> Result<&Open, StoreError> {
        if self.open.is_none() {
            self.open = Some(open(&self.dir)?);
        }
        self.open.as_ref().ok_or_else(|| StoreError::Unavailable("the store is closed".into()))
    }
}

fn open(dir: &Path) -> Result<Open, StoreError> {
    set_half_made_snapshots_aside(dir)?;
    let started = std::time::Instant::now();
    loop {
        match open_once(dir) {
            Err(StoreError::Unavailable(e)) if e.contains("could not acquire lock") && started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn open_once(dir: &Path) -> Result<Open, StoreError> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None).mode(sled::Mode::LowSpace);
    let db = config.open().map_err(|e| from_sled(&e))?;
    let log = File::open(dir.join("db")).map_err(|e| StoreError::Unavailable(format!("{}: {e}", dir.join("db").display())))?;
    Ok(Open { db, log })
}

/// A crash while sled wrote a snapshot leaves a file that its next start trips over (spacejam/sled#1527).
fn set_half_made_snapshots_aside(dir: &Path) -> Result<(), StoreError> {
    let Ok(files) = std::fs::read_dir(dir) else { return Ok(()) };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            let aside = dir.join(format!("aside.{name}"));
            std::fs::rename(file.path(), &aside)
                .map_err(|e| StoreError::Unavailable(format!("cannot set {} aside: {e}", file.path().display())))?;
        }
    }
    Ok(())
}

fn from_sled(e: &sled::Error) -> StoreError {
    match e {
        sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) => StoreError::Damaged(e.to_string()),
        _ => StoreError::Unavailable(e.to_string()),
    }
}

impl Open {
    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.db.apply_batch(batch).map_err(|e| from_sled(&e))?;
        self.db.flush().map_err(|e| from_sled(&e))?;
        self.log.sync_data().map_err(|e| StoreError::Unavailable(format!("cannot sync the store's log: {e}")))
    }
}

impl Backend for SledBackend {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let db = &self.opened()?.db;
        let mut loaded = Loaded::default();
        let mut head = None;
        for item in db.iter() {
            let (key, value) = item.map_err(|e| from_sled(&e))?;
            if key == HEAD_KEY {
                head =
                    Some(Head::from_bytes(&value).ok_or_else(|| StoreError::Damaged("its head record cannot be read".into()))?);
            } else {
                loaded.entries.push(decode(&key, &value)?);
            }
        }
        if head.is_none() && !loaded.entries.is_empty() {
            return Err(StoreError::Damaged("its head record is missing".into()));
        }
        loaded.head = head.unwrap_or_default();
        Ok(loaded)
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let mut out = sled::Batch::default();
        for entry in &batch.puts {
            out.insert(entry.key.as_bytes(), encode(entry));
        }
        for key in &batch.deletes {
            out.remove(key.as_bytes());
        }
        out.insert(HEAD_KEY, batch.head.to_bytes().as_slice());
        self.opened()?.apply(out)
    }

    fn reset(&mut self, entries: &BTreeMap<Arc<str>, Entry>, head: Head) -> Result<(), StoreError> {
        // sled refuses everything after a failed write until it is opened again.
        self.open = None;
        let open = self.opened()?;
        let mut out = sled::Batch::default();
        for item in open.db.iter().keys() {
            let key = item.map_err(|e| from_sled(&e))?;
            if key != HEAD_KEY && std::str::from_utf8(&key).is_ok_and(|k| !entries.contains_key(k)) {
                out.remove(key);
            }
        }
        for (key, entry) in entries {
            let wanted = encode(entry);
            if open.db.get(key.as_bytes()).map_err(|e| from_sled(&e))?.is_none_or(|have| have != wanted) {
                out.insert(key.as_bytes(), wanted);
            }
        }
        out.insert(HEAD_KEY, head.to_bytes().as_slice());
        open.apply(out)
    }
}
