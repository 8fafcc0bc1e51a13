//! A data directory and what makes it an installation: its ids, its lock, and the key that says that it was set up once.

use flex_model::{HostId, Uuid};
use flex_store::Engine;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// An installation that this process owns while the value lives.
#[derive(Debug)]
pub struct Installation {
    /// Short id: names and labels in the engine carry it, so that installations on one machine never meet.
    pub cluster: String,
    pub host: HostId,
    _lock: Flock<File>,
}

/// Makes the data directory if need be, readable by its owner alone.
pub fn make_data_dir(dir: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))
}

/// The installation's short id, made at the first call.
pub fn cluster_id(dir: &Path) -> Result<String, String> {
    id_file(&dir.join("cluster"), || hex::encode(rand::random::<[u8; 4]>()))
}

fn id_file(path: &Path, make: impl FnOnce() -> String) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("cannot read {}: {e}", path.display())),
        _ => {
            let id = make();
            let part = path.with_extension("part");
            let write = || {
                let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&part)?;
                std::io::Write::write_all(&mut file, format!("{id}\n").as_bytes())?;
                file.sync_all()?;
                std::fs::rename(&part, path)
            };
            write().map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            Ok(id)
        }
    }
}

/// Whether there is an installation with all that it needs. Makes nothing.
///
/// # Errors
/// What is missing, and what to do.
pub fn is_whole(dir: &Path, engine: Engine) -> Result<(), String> {
    let (key, state) = (dir.join("master.key"), dir.join("state"));
    match (key.exists(), state.exists()) {
        (true, true) => Ok(()),
        (true, false) => Err(lost(dir, engine)),
        (false, true) => Err(format!("{} is missing, without which nothing in {} can be read", key.display(), state.display())),
        (false, false) => Err(format!(
            "{} is no installation: it has no master.key and no state. Name the data directory with --data-dir or FLEXD_DATA_DIR",
            dir.display()
        )),
    }
}

fn lost(dir: &Path, engine: Engine) -> String {
    let remedy = flex_store::remedy(dir, engine);
    format!("{} was set up before, but its state is gone. Running apps are not touched; {remedy}", dir.display())
}

/// Keeps every other flexd away from a data directory while the value lives. Finishes a restore that was interrupted there.
///
/// # Errors
/// One runs, the file cannot be made, or the restore cannot be finished.
pub fn lock(dir: &Path) -> Result<Flock<File>, String> {
    let path = dir.join("lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let dir = dir.display();
        format!(
            "another flexd is running on {dir}; take over from it with --take-over, stop it, or give this one its own --data-dir"
        )
    })?;
    crate::restore::finish_interrupted(dir)?;
    Ok(lock)
}

impl Installation {
    /// Takes the data directory for this process.
    ///
    /// # Errors
    /// Another flexd has it, it cannot be written, or its state, which `engine` would keep, is gone although it was set up before.
    pub fn open(dir: &Path, engine: Engine) -> Result<Self, String> {
        make_data_dir(dir)?;
        let lock = lock(dir)?;
        let cluster = cluster_id(dir)?;
        let host = id_file(&dir.join("host"), || Uuid::from_bytes(rand::random()).to_string())?;
        let host = host.parse().map_err(|_| format!("{} does not hold an id", dir.join("host").display()))?;
        // A master key without a store is an installation that lost its memory, not a new one.
        if dir.join("master.key").exists() && !dir.join("state").exists() {
            return Err(lost(dir, engine));
        }
        Ok(Self { cluster, host, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_and_the_same_ids() {
        let dir = tempfile::tempdir().unwrap();
        let first = Installation::open(dir.path(), Engine::Sled).unwrap();
        assert!(Installation::open(dir.path(), Engine::Sled).unwrap_err().contains("another flexd"));
        let (cluster, host) = (first.cluster.clone(), first.host);
        drop(first);
        let again = Installation::open(dir.path(), Engine::Sled).unwrap();
        assert_eq!((again.cluster.clone(), again.host), (cluster, host));
    }

    #[test]
    fn a_lost_state_is_no_new_installation() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("master.key"), "x").unwrap();
        for said in [Installation::open(dir.path(), Engine::Redb).unwrap_err(), is_whole(dir.path(), Engine::Redb).unwrap_err()] {
            assert!(said.contains("flexd restore") && said.contains("--store redb"), "{said}");
        }
    }

    #[test]
    fn what_is_no_installation_is_told_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let said = is_whole(&dir.path().join("none"), Engine::Sled).unwrap_err();
        assert!(said.contains("none is no installation") && said.contains("--data-dir"), "{said}");
        assert!(is_whole(dir.path(), Engine::Sled).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::create_dir(dir.path().join("state")).unwrap();
        assert!(is_whole(dir.path(), Engine::Sled).unwrap_err().contains("master.key is missing"));
    }
}
