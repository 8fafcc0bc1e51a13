//! Bringing a backup back. All of it is unpacked and checked beside what is there; then a mark is set, and what is there is
//! moved aside and what was unpacked moved in. Whoever takes the data directory next finishes what a mark says was begun, so
//! that nothing ever serves with half of a backup.
//!
//! Invariants: without the mark nothing has been changed; with it the moves that are left follow from what is on the disk.
//!
//! Must not: delete anything that was there; leave containers behind that nobody would look after.

use crate::backup::{PARTS, STATE, doing};
use crate::settings::Settings;
use flex_store::Engine;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Where a backup is unpacked, below the data directory.
const STAGING: &str = "restore";
/// The mark: what is in the staging folder is whole, and is being moved in.
const MARK: &str = "restore.begun";
/// The store's own files, which are made from the export.
const STORE: &[&str] = &["state", "state.head"];

/// Brings a backup back, or a snapshot of the state alone. What is there is set aside. The caller has the data directory for
/// itself.
///
/// # Errors
/// A sentence for the operator; nothing was changed when the file is not whole.
pub async fn restore(settings: &Settings, file: &Path) -> Result<String, String> {
    let (own, from) = (settings.clone(), file.to_owned());
    if file.to_string_lossy().ends_with(flex_store::export::EXTENSION) {
        let back = move || flex_store::export::restore(&from, &own.data_dir, own.store).map_err(|e| e.to_string());
        let revision = blocking(back).await?;
        return Ok(format!("The state is back, at revision {revision}. Start flexd."));
    }
    let staging = settings.data_dir.join(STAGING);
    let ready = match blocking(move || stage(&own, &from)).await {
        Ok(revision) => refuse_if_left_behind(settings, &staging).await.map(|()| revision),
        Err(e) => Err(e),
    };
    let (dir, from) = (settings.data_dir.clone(), file.to_owned());
    blocking(move || match ready {
        Ok(revision) => {
            begin(&dir, &from)?;
            Ok((revision, finish(&dir)?))
        }
        Err(e) => {
            let _ = fs::remove_dir_all(dir.join(STAGING));
            Err(e)
        }
    })
    .await
    .map(|(revision, aside)| {
        let more = match aside {
            0 => String::new(),
            n => format!(" {n} files and folders that were there are set aside, named *.aside-1."),
        };
        format!(
            "The installation is back, its state at revision {revision}.{more} Start flexd; apps are started from their images."
        )
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// Unpacks a backup and makes its store. Gives the state's revision.
fn stage(settings: &Settings, file: &Path) -> Result<u64, String> {
    let staging = settings.data_dir.join(STAGING);
    remove(&staging)?;
    fs::DirBuilder::new().mode(0o700).create(&staging).map_err(doing("make", &staging))?;
    let zip = File::open(file).and_then(zstd::Decoder::new).map_err(doing("read", file))?;
    tar::Archive::new(zip).unpack(&staging).map_err(doing("unpack", file))?;
    let state = staging.join(STATE);
    if !state.exists() {
        return Err(format!("{} is no complete backup: the state is missing from its end", file.display()));
    }
    if !staging.join("master.key").exists() {
        return Err(format!("{} is no backup of an installation: it holds no master.key", file.display()));
    }
    let engine = engine_for(settings, &staging)?;
    let made = flex_store::export::restore_beside(&state, &settings.data_dir, &staging, engine);
    let revision = made.map_err(|e| e.to_string())?;
    fs::remove_file(&state).map_err(doing("remove", &state))?;
    Ok(revision)
}

/// The store's engine that flexd will look for: what the command or the environment says, else what the settings that come
/// with the backup say.
fn engine_for(settings: &Settings, staging: &Path) -> Result<Engine, String> {
    let file = staging.join("flexd.toml");
    if settings.store_given || !file.exists() {
        return Ok(settings.store);
    }
    let text = fs::read_to_string(&file).map_err(doing("read", &file))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| format!("flexd.toml of the backup: {e}"))?;
    match table.get("store").and_then(|name| name.as_str()) {
        Some(name) => name.parse().map_err(|e| format!("store, in flexd.toml of the backup: {e}")),
        None => Ok(Engine::ALL[0]),
    }
}

/// An installation's containers carry its id, and a backup brings its own: those of another that was here would run on
/// for ever.
async fn refuse_if_left_behind(settings: &Settings, staging: &Path) -> Result<(), String> {
    let id = |dir: &Path| fs::read_to_string(dir.join("cluster")).unwrap_or_default().trim().to_owned();
    let (here, coming) = (id(&settings.data_dir), id(staging));
    if here.is_empty() || here == coming {
        return Ok(());
    }
    let what = format!("{} holds another installation than the backup, with the id {here}", settings.data_dir.display());
    let unknown = |e: &dyn std::fmt::Display| {
        format!(
            "{what}, and whether it has containers cannot be told: {e}. Start the container engine, then restore again. Nothing was changed"
        )
    };
    let engine = crate::server::runtime(settings, &here).map_err(|e| unknown(&e))?;
    let instances = engine.observe().await.map_err(|e| unknown(&e))?.len();
    let containers = instances + engine.jobs().await.map_err(|e| unknown(&e))?.len();
    match containers {
        0 => Ok(()),
        n => Err(format!(
            "{what} and {n} containers, which nobody would look after any more. Remove them with scripts/down, or with \
             docker ps -aq --filter label=flex.cluster={here} | xargs docker rm -f; then restore again. Nothing was changed"
        )),
    }
}

/// Sets the mark, when all that was unpacked is on the disk.
fn begin(dir: &Path, file: &Path) -> Result<(), String> {
    let folder = File::open(dir).map_err(doing("open", dir))?;
    nix::unistd::syncfs(&folder).map_err(|e| doing("sync", dir)(e.into()))?;
    let (mark, part) = (dir.join(MARK), dir.join("restore.part"));
    let text = format!("{}\n", file.display());
    let write = || {
        let mut out = File::create(&part)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&part, &mark)?;
        folder.sync_all()
    };
    write().map_err(doing("write", &mark))
}

/// Moves in what a mark says was begun. Gives how many things were set aside.
fn finish(dir: &Path) -> Result<usize, String> {
    let mut aside = 0;
    while let Some((from, to)) = next_move(dir) {
        fs::rename(&from, &to).map_err(|e| {
            format!(
                "a restore of {} has begun and cannot be finished: cannot move {} to {}: {e}. Mend that, then start flexd or restore \
                 again: it goes on from there",
                dir.display(),
                from.display(),
                to.display()
            )
        })?;
        aside += usize::from(!from.starts_with(dir.join(STAGING)));
    }
    let sync = || File::open(dir).and_then(|d| d.sync_all()).map_err(doing("sync", dir));
    sync()?;
    remove(&dir.join(STAGING))?;
    let mark = dir.join(MARK);
    fs::remove_file(&mark).map_err(doing("remove", &mark))?;
    sync()?;
    Ok(aside)
}

/// The next thing to be renamed, and to what.
fn next_move(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let name = PARTS.iter().chain(STORE).find(|name| is_there(&dir.join(STAGING).join(name)))?;
    let (from, at) = (dir.join(STAGING).join(name), dir.join(name));
    // A note, not data: the new one takes its place.
    if !is_there(&at) || *name == "state.head" {
        return Some((from, at));
    }
    let free = (1u32..).map(|n| dir.join(format!("{name}.aside-{n}"))).find(|p| !is_there(p))?;
    Some((at, free))
}

/// Finishes a restore that was interrupted. The caller has the data directory for itself.
///
/// # Errors
/// What cannot be moved, and that the restore is not finished.
pub fn finish_interrupted(dir: &Path) -> Result<(), String> {
    let mark = dir.join(MARK);
    let backup = match fs::read_to_string(&mark) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(doing("read", &mark))?,
    };
    finish(dir)?;
    tracing::warn!(backup = backup.trim(), "a restore had been interrupted; it is finished now");
    Ok(())
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(doing("remove", folder)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::installation;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        }
    }

    fn text(path: impl AsRef<Path>) -> String {
        let path = path.as_ref();
        fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A data directory in which a restore has begun and nothing has been moved.
    fn begun() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let old = ["master.key", "cluster", "host", "state/sled/db", "state.head", "images/a/index.json", "logs/x"];
        write(dir.path(), &old.map(|name| (name, "old")));
        let new = ["master.key", "cluster", "state/sled/db", "state.head", "images/b/index.json", "tls/self-signed.crt"];
        write(&dir.path().join(STAGING), &new.map(|name| (name, "new")));
        begin(dir.path(), Path::new("b.tar.zst")).unwrap();
        dir
    }

    #[test]
    fn however_far_it_came_the_next_to_take_the_directory_finishes_it() {
        let mut steps = 0;
        loop {
            let dir = begun();
            let root = dir.path();
            let mut left = false;
            for _ in 0..steps {
                let Some((from, to)) = next_move(root) else { break };
                fs::rename(from, to).unwrap();
                left = next_move(root).is_some();
            }
            let _alone = installation::lock(root).unwrap();
            assert!(!root.join(MARK).exists() && !root.join(STAGING).exists());
            for name in ["master.key", "cluster", "state/sled/db", "state.head", "images/b/index.json", "tls/self-signed.crt"] {
                assert_eq!(text(root.join(name)), "new", "{name} after {steps} moves");
            }
            for name in ["host", "logs/x", "master.key.aside-1", "cluster.aside-1", "state.aside-1/sled/db"] {
                assert_eq!(text(root.join(name)), "old", "{name} after {steps} moves");
            }
            assert_eq!(text(root.join("images.aside-1/a/index.json")), "old");
            assert!(!root.join("images/a").exists());
            if steps > 0 && !left {
                break;
            }
            steps += 1;
        }
        assert!(steps >= 10, "only {steps} moves");
    }

    #[test]
    fn without_the_mark_nothing_is_moved() {
        let dir = begun();
        fs::remove_file(dir.path().join(MARK)).unwrap();
        let _alone = installation::lock(dir.path()).unwrap();
        assert_eq!(text(dir.path().join("master.key")), "old");
    }
}
