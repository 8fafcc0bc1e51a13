//! Opening the store of a data directory, and the guard against opening the wrong thing: an empty, truncated or replaced
//! store is never mistaken for a new installation.
//!
//! Beside the store lies `state.head`, the last acknowledged head. It is written after each commit and never synced: a
//! power cut may leave it older than the store, which proves nothing, but never newer, which proves a loss.

use crate::backend::{Backend, Batch, Loaded, NoDisk};
use crate::digest::{HEAD_BYTES, Head};
use crate::export;
use crate::redb_backend::RedbBackend;
use crate::sled_backend::SledBackend;
use crate::snapshots::snapshots;
use crate::{EmbeddedStore, Entry, StoreError};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Which disk format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sled,
    Redb,
}

impl Engine {
    /// All of them, the default first.
    pub const ALL: [Self; 2] = [Self::Sled, Self::Redb];

    /// As settings name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Redb => "redb",
        }
    }

    /// Where its files are below a data directory.
    pub fn dir(self, data_dir: &Path) -> PathBuf {
        data_dir.join("state").join(self.name())
    }

    fn backend(self, data_dir: &Path) -> Result<Box<dyn Backend>, StoreError> {
        let dir = self.dir(data_dir);
        std::fs::create_dir_all(&dir).map_err(|e| StoreError::Unavailable(format!("cannot make {}: {e}", dir.display())))?;
        let open = || -> Result<Box<dyn Backend>, StoreError> {
            Ok(match self {
                Self::Sled => Box::new(SledBackend::open(&dir)?),
                Self::Redb => Box::new(RedbBackend::open(&dir)?),
            })
        };
        contained(open, StoreError::Damaged)
    }
}

impl FromStr for Engine {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|e| e.name() == s).ok_or_else(|| format!("unknown store engine {s:?}: use sled or redb"))
    }
}

/// A store without a disk.
///
/// # Errors
/// Only when the operating system refuses a thread.
pub fn memory() -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::start(Box::new(NoDisk))
}

/// Opens (or makes) the store of a data directory.
///
/// # Errors
/// [`StoreError::Damaged`] with what to do, when the store is not what was last acknowledged here: truncated, altered,
/// deleted, or kept in another engine's format. [`StoreError::Unavailable`] when another process has it open.
pub fn open(data_dir: &Path, engine: Engine) -> Result<EmbeddedStore, StoreError> {
    let head_file = HeadFile::open(data_dir)?;
    let other = Engine::ALL.into_iter().find(|e| *e != engine && e.dir(data_dir).exists());
    if let Some(other) = other
        && !engine.dir(data_dir).exists()
    {
        return Err(StoreError::Damaged(format!(
            "it is kept by {} here, not by {}. Start flexd with --store {}, or convert it with: flexd store convert --data-dir {} --to {}",
            other.name(),
            engine.name(),
            other.name(),
            quoted(data_dir),
            engine.name()
        )));
    }
    let backend = Guarded { inner: engine.backend(data_dir).map_err(|e| with_remedy(e, data_dir, engine))?, head_file };
    let store = EmbeddedStore::start(Box::new(backend)).map_err(|e| with_remedy(e, data_dir, engine))?;
    if store.is_new() && !snapshots(data_dir).is_empty() {
        return Err(with_remedy(
            StoreError::Damaged("it is empty, but there are snapshots of what it held".into()),
            data_dir,
            engine,
        ));
    }
    Ok(store)
}

/// Fills an empty data directory with entries at a revision above all that was ever acknowledged there.
pub(crate) fn fill(data_dir: &Path, engine: Engine, entries: Vec<Entry>, revision: u64) -> Result<(), StoreError> {
    let entries: BTreeMap<Arc<str>, Entry> = entries.into_iter().map(|e| (e.key.clone(), e)).collect();
    let head = Head { revision, digest: export::digest_of(entries.values()) };
    let mut backend = Guarded { inner: engine.backend(data_dir)?, head_file: HeadFile::open(data_dir)? };
    backend.reset(&entries, head)
}

/// The last revision that was acknowledged in a data directory, as far as `state.head` knows.
pub(crate) fn last_acknowledged(data_dir: &Path) -> u64 {
    std::fs::read(data_dir.join("state.head")).ok().and_then(|b| Head::from_bytes(&b)).map_or(0, |h| h.revision)
}

fn with_remedy(e: StoreError, data_dir: &Path, engine: Engine) -> StoreError {
    let StoreError::Damaged(what) = e else { return e };
    let (state, remedy) = (data_dir.join("state"), remedy(data_dir, engine));
    StoreError::Damaged(format!("{what}. Running apps are not touched. Keep a copy of {}, then {remedy}", state.display()))
}

/// How to get the state of a data directory back: words that end with the very command, which needs no setting beside it.
pub fn remedy(data_dir: &Path, engine: Engine) -> String {
    let command = format!("flexd restore --data-dir {} --store {}", quoted(data_dir), engine.name());
    match snapshots(data_dir).pop() {
        Some(file) => format!("restore the newest snapshot with: {command} {}", quoted(&file)),
        None => {
            format!("there is no snapshot in {}; restore a backup with: {command} FILE", data_dir.join("snapshots").display())
        }
    }
}

/// A path as a word of a shell's command line.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// `state.head`.
struct HeadFile {
    file: File,
}

impl HeadFile {
    fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join("state.head");
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map(|file| Self { file })
            .map_err(|e| StoreError::Unavailable(format!("cannot open {}: {e}", path.display())))
    }

    fn read(&self) -> Option<Head> {
        let mut bytes = [0; HEAD_BYTES];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        Head::from_bytes(&bytes)
    }

    fn write(&self, head: Head) {
        if let Err(error) = self.file.write_all_at(&head.to_bytes(), 0) {
            tracing::warn!(%error, "state.head could not be written; a later loss of the store's end would go unnoticed");
        }
    }
}

/// Calls into an engine. Both engines panic on some damaged files and after some failed writes; here that is an error.
fn contained<T>(work: impl FnOnce() -> Result<T, StoreError>, what: fn(String) -> StoreError) -> Result<T, StoreError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(what(format!("the engine gave up ({})", text.unwrap_or("no reason given"))))
    })
}

/// A backend with the guard around it.
struct Guarded {
    inner: Box<dyn Backend>,
    head_file: HeadFile,
}

impl Backend for Guarded {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let loaded = contained(|| self.inner.load(), StoreError::Damaged)?;
        if let Some(acknowledged) = self.head_file.read()
            && (loaded.head.revision < acknowledged.revision
                || (loaded.head.revision == acknowledged.revision && loaded.head.digest != acknowledged.digest))
        {
            return Err(StoreError::Damaged(format!(
                "it ends at revision {} with {}, but revision {} with {} was acknowledged",
                loaded.head.revision, loaded.head.digest, acknowledged.revision, acknowledged.digest
            )));
        }
        self.head_file.write(loaded.head);
        Ok(loaded)
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        contained(|| self.inner.write(batch), StoreError::Unavailable)?;
        self.head_file.write(batch.head);
        Ok(())
    }

    fn reset(&mut self, entries: &BTreeMap<Arc<str>, Entry>, head: Head) -> Result<(), StoreError> {
        contained(|| self.inner.reset(entries, head), StoreError::Unavailable)?;
        self.head_file.write(head);
        Ok(())
    }
}
