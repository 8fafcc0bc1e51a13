//! The disk format of sled 0.34, with the thing that it lacks: a sync that survives a power cut.
//!
//! sled's `flush` writes with `sync_file_range`, which syncs neither the file's size nor the disk's cache; after it, this
//! module syncs the log file itself. sled puts a page above 128 KiB in a file of its own that it never syncs, and a page
//! holds up to 17 items: so values are cut into chunks of at most [`CHUNK`] bytes. `watch_prefix` is not used: a slow subscriber blocks the writer.

use crate::backend::{Backend, Batch, Loaded, decode, encode};
use crate::digest::Head;
use crate::{Entry, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sorts before every key, since keys hold no NUL.
const HEAD_KEY: &[u8] = b"\0head";

/// 16 MiB: the mirror in memory answers reads, so sled's cache serves only its own merges.
const CACHE_BYTES: u64 = 16 << 20;

/// 17 of them, with their keys, stay below 128 KiB.
const CHUNK: usize = 4 << 10;

/// sled's own threads may hold the file for a moment after the last handle is gone.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

pub(crate) struct SledBackend {
    dir: PathBuf,
    open: Option<Open>,
    /// How many chunks a key has, where it has more than one.
    chunks: HashMap<String, usize>,
}

struct Open {
    db: sled::Db,
    /// The log's file: a sync acts on the inode, whoever wrote to it.
    log: File,
}

impl SledBackend {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self { dir: dir.to_owned(), open: Some(open(dir)?), chunks: HashMap::new() })
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

/// The key of a chunk: the first lies under the entry's own key, the others right behind it (no entry's key holds a NUL).
fn chunk_key(key: &str, index: usize) -> Vec<u8> {
    let mut out = key.as_bytes().to_vec();
    if index > 0 {
        out.push(0);
        out.extend_from_slice(&u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes());
    }
    out
}

impl SledBackend {
    fn put(&mut self, out: &mut sled::Batch, entry: &Entry) {
        let stored = encode(entry);
        let count = stored.chunks(CHUNK).count();
        for (i, chunk) in stored.chunks(CHUNK).enumerate() {
            out.insert(chunk_key(&entry.key, i), chunk);
        }
        let before = if count > 1 { self.chunks.insert(entry.key.to_string(), count) } else { self.chunks.remove(&*entry.key) };
        for i in count..before.unwrap_or(1) {
            out.remove(chunk_key(&entry.key, i));
        }
    }

    fn delete(&mut self, out: &mut sled::Batch, key: &str) {
        for i in 0..self.chunks.remove(key).unwrap_or(1) {
            out.remove(chunk_key(key, i));
        }
    }

    /// Everything on disk, chunks put together again.
    fn read(&mut self) -> Result<Loaded, StoreError> {
        let db = self.opened()?.db.clone();
        let (mut head, mut stored) = (None, Vec::<(Vec<u8>, Vec<u8>, usize)>::new());
        for item in db.iter() {
            let (key, value) = item.map_err(|e| from_sled(&e))?;
            if key == HEAD_KEY {
                head =
                    Some(Head::from_bytes(&value).ok_or_else(|| StoreError::Damaged("its head record cannot be read".into()))?);
                continue;
            }
            match key.iter().position(|b| *b == 0) {
                None => stored.push((key.to_vec(), value.to_vec(), 1)),
                Some(end) => match stored.last_mut() {
                    Some((k, v, n)) if *k == key[..end] => {
                        v.extend_from_slice(&value);
                        *n += 1;
                    }
                    _ => return Err(StoreError::Damaged("a part of an entry has no beginning".into())),
                },
            }
        }
        if head.is_none() && !stored.is_empty() {
            return Err(StoreError::Damaged("its head record is missing".into()));
        }
        self.chunks.clear();
        let mut loaded = Loaded { head: head.unwrap_or_default(), entries: Vec::with_capacity(stored.len()) };
        for (key, value, count) in stored {
            let entry = decode(&key, &value)?;
            if count > 1 {
                self.chunks.insert(entry.key.to_string(), count);
            }
            loaded.entries.push(entry);
        }
        Ok(loaded)
    }
}

impl Backend for SledBackend {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.read()
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let mut out = sled::Batch::default();
        for entry in &batch.puts {
            self.put(&mut out, entry);
        }
        for key in &batch.deletes {
            self.delete(&mut out, key);
        }
        out.insert(HEAD_KEY, batch.head.to_bytes().as_slice());
        self.opened()?.apply(out)
    }

    fn reset(&mut self, entries: &BTreeMap<Arc<str>, Entry>, head: Head) -> Result<(), StoreError> {
        // sled refuses everything after a failed write until it is opened again.
        self.open = None;
        let on_disk = self.read()?;
        let mut out = sled::Batch::default();
        for old in &on_disk.entries {
            if !entries.contains_key(&old.key) {
                self.delete(&mut out, &old.key);
            }
        }
        let on_disk: HashMap<&str, &Entry> = on_disk.entries.iter().map(|e| (&*e.key, e)).collect();
        for (key, entry) in entries {
            if on_disk.get(&**key) != Some(&entry) {
                self.put(&mut out, entry);
            }
        }
        out.insert(HEAD_KEY, head.to_bytes().as_slice());
        self.opened()?.apply(out)
    }
}
