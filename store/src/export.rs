//! Backups, snapshots, and the way from one engine to another: the whole store as zstd-compressed lines of JSON.
//!
//! The first line names the format and the revision, then one line an entry in key order, then one with the count and the
//! SHA-256 of every line before it. A file without its last line is refused, so half a backup never becomes a store.

use crate::digest::Digest;
use crate::open::{Engine, fill, last_acknowledged, open};
use crate::{EmbeddedStore, Entry, Revision, StoreError};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How the files' names end.
pub const EXTENSION: &str = ".ndjson.zst";
/// The version of the format; a reader refuses a newer one.
const FORMAT: u32 = 1;
/// Hosts refuse assignments below the highest revision that they have seen, and a restored store has forgotten how high
/// that was when `state.head` is gone as well: far more than any installation commits between two snapshots.
const REVISION_GAP: Revision = 1_000_000;

#[derive(Serialize, Deserialize)]
struct Header {
    flex_state: u32,
    revision: Revision,
}

#[derive(Serialize, Deserialize)]
struct Line {
    k: String,
    r: Revision,
    /// Text as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<String>,
    /// Anything else, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    entries: usize,
    sha256: String,
}

pub(crate) fn digest_of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Digest {
    Digest::of(entries.into_iter().map(|e| (&*e.key, e.revision, &*e.value)))
}

fn io(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let text = format!("cannot {doing} {}", path.display());
    move |e| StoreError::Unavailable(format!("{text}: {e}"))
}

/// Writes the whole store to a file (0600: it holds what the store holds), synced, and renamed into place at the end.
///
/// # Errors
/// [`StoreError::Unavailable`] when the file cannot be written.
pub fn export(store: &EmbeddedStore, file: &Path) -> Result<Revision, StoreError> {
    let (entries, revision) = store.dump();
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(io("make", dir))?;
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let out = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(io("write", &part))?;
    write(out, &entries, revision).map_err(io("write", &part))?;
    std::fs::rename(&part, file).map_err(io("rename to", file))?;
    if let Some(dir) = file.parent() {
        File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))?;
    }
    Ok(revision)
}

fn write(out: File, entries: &[Entry], revision: Revision) -> std::io::Result<()> {
    let mut zip = zstd::Encoder::new(out, 3)?;
    let mut hash = Sha256::new();
    let mut line = |zip: &mut zstd::Encoder<'_, File>, mut text: Vec<u8>| {
        text.push(b'\n');
        hash.update(&text);
        zip.write_all(&text)
    };
    line(&mut zip, serde_json::to_vec(&Header { flex_state: FORMAT, revision })?)?;
    for e in entries {
        let (v, b) = match std::str::from_utf8(&e.value) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(BASE64.encode(&e.value))),
        };
        line(&mut zip, serde_json::to_vec(&Line { k: e.key.to_string(), r: e.revision, v, b })?)?;
    }
    let trailer = Trailer { entries: entries.len(), sha256: hex::encode(hash.finalize()) };
    zip.write_all(&serde_json::to_vec(&trailer)?)?;
    zip.finish()?.sync_all()
}

/// Reads an exported file whole.
fn read(file: &Path) -> Result<(Vec<Entry>, Revision), StoreError> {
    let damaged = |what: &str| StoreError::Damaged(format!("{} is no complete backup: {what}", file.display()));
    let zip =
        zstd::Decoder::new(File::open(file).map_err(io("read", file))?).map_err(|_| damaged("it is not zstd-compressed"))?;
    let mut lines = BufReader::new(zip).split(b'\n').peekable();
    let mut hash = Sha256::new();
    let (mut header, mut entries) = (None::<Header>, Vec::new());
    while let Some(line) = lines.next() {
        let line = line.map_err(|e| damaged(&e.to_string()))?;
        if lines.peek().is_none() {
            let trailer: Trailer = serde_json::from_slice(&line).map_err(|_| damaged("its end is missing"))?;
            if trailer.entries != entries.len() || trailer.sha256 != hex::encode(hash.finalize()) {
                return Err(damaged("its checksum does not match"));
            }
            let header = header.ok_or_else(|| damaged("its first line is missing"))?;
            return Ok((entries, header.revision));
        }
        hash.update(&line);
        hash.update(b"\n");
        if header.is_none() {
            let h: Header = serde_json::from_slice(&line).map_err(|_| damaged("its first line is not a header"))?;
            if h.flex_state > FORMAT {
                return Err(damaged("it was written by a newer version of flexd: update first"));
            }
            header = Some(h);
            continue;
        }
        let l: Line = serde_json::from_slice(&line).map_err(|e| damaged(&e.to_string()))?;
        let value = match (l.v, l.b) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(b)) => BASE64.decode(b).map_err(|e| damaged(&e.to_string()))?,
            _ => return Err(damaged("an entry has no value")),
        };
        entries.push(Entry { key: l.k.into(), value: value.into(), revision: l.r });
    }
    Err(damaged("it is empty"))
}

/// Makes the store of a data directory be what a backup says. What was there is set aside, never deleted.
///
/// The new store's revision is above every one that was acknowledged before, so that hosts believe its assignments.
///
/// # Errors
/// [`StoreError::Damaged`] when the backup is not whole (nothing was changed then); [`StoreError::Unavailable`] when files
/// cannot be written or moved, or another process has the store open.
pub fn restore(file: &Path, data_dir: &Path, engine: Engine) -> Result<Revision, StoreError> {
    let (entries, revision) = read_for(file, data_dir)?;
    let state = data_dir.join("state");
    if state.exists() {
        refuse_if_open(data_dir)?;
        let aside = unused_name(data_dir);
        std::fs::rename(&state, &aside).map_err(io("set aside", &state))?;
    }
    fill(data_dir, engine, entries, revision)?;
    Ok(revision)
}

/// As [`restore`], but makes the new store (`state` and `state.head`) in the empty directory `staging`, for the caller to move to
/// `data_dir`, where nothing changes.
///
/// # Errors
/// As [`restore`].
pub fn restore_beside(file: &Path, data_dir: &Path, staging: &Path, engine: Engine) -> Result<Revision, StoreError> {
    let (entries, revision) = read_for(file, data_dir)?;
    fill(staging, engine, entries, revision)?;
    Ok(revision)
}

/// A backup's entries, and the revision that they get in a data directory.
fn read_for(file: &Path, data_dir: &Path) -> Result<(Vec<Entry>, Revision), StoreError> {
    let (entries, backed_up) = read(file)?;
    Ok((entries, backed_up.max(last_acknowledged(data_dir)) + REVISION_GAP))
}

/// Moves a data directory's store into another engine's format, with the same revisions. What was there is set aside.
///
/// # Errors
/// As [`restore`]; also when the store is damaged, which a conversion would hide.
pub fn convert(data_dir: &Path, from: Engine, to: Engine) -> Result<Revision, StoreError> {
    let store = open(data_dir, from)?;
    let (entries, revision) = store.dump();
    drop(store);
    fill(data_dir, to, entries, revision)?;
    let old = from.dir(data_dir);
    std::fs::rename(&old, unused_name(data_dir)).map_err(io("set aside", &old))?;
    Ok(revision)
}

fn unused_name(data_dir: &Path) -> PathBuf {
    (1..).map(|n| data_dir.join(format!("state.aside-{n}"))).find(|p| !p.exists()).unwrap_or_else(|| data_dir.join("state.aside"))
}

/// Both engines lock their file while a process has it open; a store that opens, or is damaged, is in nobody's use.
fn refuse_if_open(data_dir: &Path) -> Result<(), StoreError> {
    for engine in Engine::ALL.into_iter().filter(|e| e.dir(data_dir).exists()) {
        if let Err(StoreError::Unavailable(e)) = open(data_dir, engine) {
            return Err(StoreError::Unavailable(format!("{e}; stop flexd first")));
        }
    }
    Ok(())
}
