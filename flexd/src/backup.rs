//! Backup of an installation: one zstd-compressed tar of what cannot be made again.
//!
//! Left out: caches, logs, stack images, the engine's containers, and the store's own files (the state goes in as an
//! export, which is consistent while flexd runs).
//!
//! Must not: leave a file under the backup's name that was not read back whole; make anything in a data directory that is
//! no installation.

use crate::control::{Order, ask};
use crate::installation;
use crate::pack::{Packed, Packer, read_back};
use crate::settings::Settings;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The state's name in the archive; last in it, so that an archive that was cut off has none and is refused.
pub const STATE: &str = "state.ndjson.zst";
/// Files and folders of the data directory that go in, where they exist.
pub const PARTS: &[&str] =
    &["master.key", "ssh_host_ed25519_key", "cluster", "host", "flexd.toml", "tls", "repositories", "images"];

pub fn doing(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> String {
    let text = format!("cannot {what} {}", path.display());
    move |e| format!("{text}: {e}")
}

/// A file that goes with the value.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a backup.
///
/// # Errors
/// A sentence for the operator.
pub async fn write(settings: &Settings, file: &Path) -> Result<(), String> {
    let file = std::path::absolute(file).map_err(doing("find", file))?;
    let dir = &settings.data_dir;
    installation::is_whole(dir, settings.store)?;
    let state = Temporary(dir.join(format!("backup-{}.ndjson.zst", std::process::id())));
    // While one is running, its own files are in nobody else's way.
    let mut alone = None;
    let exported = match ask(dir, &Order::Export { file: state.0.clone() }).await? {
        Some(revision) => revision,
        None => {
            let busy = |e| format!("flexd does not answer, although it or another command works on {}: {e}", dir.display());
            alone = Some(installation::lock(dir).map_err(busy)?);
            let (dir, engine, to) = (dir.clone(), settings.store, state.0.clone());
            let export = move || flex_store::open(&dir, engine).and_then(|s| flex_store::export::export(&s, &to));
            tokio::task::spawn_blocking(export).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.to_string()
        }
    };
    let (dir, to) = (dir.clone(), file.clone());
    let packed = tokio::task::spawn_blocking(move || pack(&dir, &state.0, &to)).await.map_err(|e| e.to_string());
    drop(alone);
    println!(
        "Wrote {} ({} MiB, state at revision {exported}), and read it back. It holds keys: keep it as safe as the server.",
        file.display(),
        packed?? >> 20
    );
    Ok(())
}

/// Gives the bytes of the file.
fn pack(data_dir: &Path, state: &Path, file: &Path) -> Result<u64, String> {
    let part = Temporary(PathBuf::from(format!("{}.part", file.display())));
    let packed = write_archive(data_dir, state, &part.0)?;
    let zip = File::open(&part.0).and_then(zstd::Decoder::new).map_err(doing("read", &part.0))?;
    read_back(zip, packed).map_err(|e| format!("{e}. {} was not written", file.display()))?;
    let bytes = fs::metadata(&part.0).map_err(doing("read", &part.0))?.len();
    fs::rename(&part.0, file).map_err(doing("rename to", file))?;
    if let Some(folder) = file.parent() {
        File::open(folder).and_then(|f| f.sync_all()).map_err(doing("sync", folder))?;
    }
    Ok(bytes)
}

fn write_archive(data_dir: &Path, state: &Path, to: &Path) -> Result<Packed, String> {
    let mut options = fs::OpenOptions::new();
    let out = options.write(true).create(true).truncate(true).mode(0o600).open(to).map_err(doing("write", to))?;
    let mut zip = zstd::Encoder::new(out, 3).map_err(doing("write", to))?;
    // So that a file that changes on a shelf is noticed by whoever restores it.
    zip.include_checksum(true).map_err(doing("write", to))?;
    let mut archive = Packer::new(zip);
    for name in PARTS {
        archive.add(&data_dir.join(name), Path::new(name))?;
    }
    if !archive.add(state, Path::new(STATE))? {
        return Err(format!("{} has vanished: run the backup again", state.display()));
    }
    let (zip, packed) = archive.finish().map_err(doing("write", to))?;
    let out = zip.finish().map_err(doing("write", to))?;
    out.sync_all().map_err(doing("sync", to))?;
    Ok(packed)
}
