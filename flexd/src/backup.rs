//! Backup and restore of an installation: one zstd-compressed tar of what cannot be made again.
//!
//! Left out: caches, logs, stack images, the engine's containers, and the store's own files (the state goes in as an
//! export, which is consistent while flexd runs).

use crate::control::{Order, ask};
use crate::settings::Settings;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The state's name in the archive; last in it, so that an archive that was cut off has none and is refused.
const STATE: &str = "state.ndjson.zst";
/// Files and folders of the data directory that go in, where they exist.
const PARTS: &[&str] = &["master.key", "ssh_host_ed25519_key", "cluster", "host", "flexd.toml", "repositories", "images"];

fn doing(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> String {
    let text = format!("cannot {what} {}", path.display());
    move |e| format!("{text}: {e}")
}

/// Writes a backup.
///
/// # Errors
/// A sentence for the operator.
pub async fn write(settings: &Settings, file: &Path) -> Result<(), String> {
    let file = std::path::absolute(file).map_err(doing("find", file))?;
    let state = settings.data_dir.join(format!("backup-{}", std::process::id())).with_extension("ndjson.zst");
    let exported = match ask(&settings.data_dir, &Order::Export { file: state.clone() }).await? {
        Some(revision) => revision,
        None => {
            let (dir, engine, to) = (settings.data_dir.clone(), settings.store, state.clone());
            let export = move || flex_store::open(&dir, engine).and_then(|s| flex_store::export::export(&s, &to));
            tokio::task::spawn_blocking(export).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.to_string()
        }
    };
    let (dir, to, from) = (settings.data_dir.clone(), file.clone(), state.clone());
    let result = tokio::task::spawn_blocking(move || pack(&dir, &from, &to)).await.map_err(|e| e.to_string());
    let _ = std::fs::remove_file(&state);
    let bytes = result??;
    println!(
        "Wrote {} ({} MiB, state at revision {exported}). It holds keys: keep it as safe as the server.",
        file.display(),
        bytes >> 20
    );
    Ok(())
}

fn pack(data_dir: &Path, state: &Path, file: &Path) -> Result<u64, String> {
    let part = PathBuf::from(format!("{}.part", file.display()));
    let out = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(doing("write", &part))?;
    let zip = zstd::Encoder::new(out, 3).map_err(doing("write", &part))?;
    let mut tar = tar::Builder::new(zip);
    tar.follow_symlinks(false);
    for name in PARTS {
        let path = data_dir.join(name);
        if path.is_dir() {
            tar.append_dir_all(name, &path).map_err(doing("pack", &path))?;
        } else if path.exists() {
            tar.append_path_with_name(&path, name).map_err(doing("pack", &path))?;
        }
    }
    tar.append_path_with_name(state, STATE).map_err(doing("pack", state))?;
    let zip = tar.into_inner().map_err(doing("write", &part))?;
    let out = zip.finish().map_err(doing("write", &part))?;
    out.sync_all().map_err(doing("sync", &part))?;
    let bytes = out.metadata().map_err(doing("read", &part))?.len();
    std::fs::rename(&part, file).map_err(doing("rename to", file))?;
    Ok(bytes)
}

/// Brings a backup back, or a snapshot of the state alone. What is there is set aside.
///
/// # Errors
/// A sentence for the operator; nothing was changed when the file is not whole.
pub fn restore(settings: &Settings, file: &Path) -> Result<String, String> {
    let dir = &settings.data_dir;
    if file.to_string_lossy().ends_with(flex_store::export::EXTENSION) {
        let revision = flex_store::export::restore(file, dir, settings.store).map_err(|e| e.to_string())?;
        return Ok(format!("The state is back, at revision {revision}. Start flexd."));
    }
    let unpacked = dir.join(format!("restore-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&unpacked);
    let result = unpack(settings, file, &unpacked);
    let _ = std::fs::remove_dir_all(&unpacked);
    result
}

fn unpack(settings: &Settings, file: &Path, to: &Path) -> Result<String, String> {
    std::fs::create_dir_all(to).map_err(doing("make", to))?;
    let zip = File::open(file).and_then(zstd::Decoder::new).map_err(doing("read", file))?;
    tar::Archive::new(zip).unpack(to).map_err(doing("unpack", file))?;
    let state = to.join(STATE);
    if !state.exists() {
        return Err(format!("{} is no complete backup: the state is missing from its end", file.display()));
    }
    // The state first: it refuses a running server and a damaged export before anything is moved.
    let revision = flex_store::export::restore(&state, &settings.data_dir, settings.store).map_err(|e| e.to_string())?;
    let mut aside = 0;
    for name in PARTS {
        let (from, at) = (to.join(name), settings.data_dir.join(name));
        if !from.exists() {
            continue;
        }
        if at.exists() {
            let free = (1..).map(|n| settings.data_dir.join(format!("{name}.aside-{n}"))).find(|p| !p.exists());
            std::fs::rename(&at, free.unwrap_or_else(|| at.with_extension("aside"))).map_err(doing("set aside", &at))?;
            aside += 1;
        }
        std::fs::rename(&from, &at).map_err(doing("bring back", &at))?;
    }
    let more = if aside > 0 {
        format!(" {aside} files and folders that were there are set aside, named *.aside-1.")
    } else {
        String::new()
    };
    Ok(format!(
        "The installation is back, its state at revision {revision}.{more} Start flexd; apps are started from their images."
    ))
}
