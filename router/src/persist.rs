//! The last routing table on disk, so that a router that starts alone serves what it served before.
//!
//! Invariant: the file is always a whole table: it is written beside, synced, and renamed.

use flex_model::RouteTable;
use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

/// What went wrong with the file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the routing table {}", path.display())]
pub struct PersistError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("routes.json")
}

/// The table of last time; `None` when there is none. A damaged file is an error: the caller decides to go on without.
pub(crate) fn load(dir: &Path) -> Result<Option<RouteTable>, PersistError> {
    let path = path(dir);
    let failed = |doing, source| PersistError { doing, path: path.clone(), source };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed("understand", e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", e)),
    }
}

/// Puts `table` in place of the one before, durably.
pub(crate) fn save(dir: &Path, table: &RouteTable) -> Result<(), PersistError> {
    let path = path(dir);
    let failed = |doing| {
        let path = path.clone();
        move |source| PersistError { doing, path, source }
    };
    let bytes = serde_json::to_vec(table).map_err(|e| failed("encode")(e.into()))?;
    fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    let beside = path.with_extension("json.new");
    let mut file = fs::File::create(&beside).map_err(failed("write"))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&beside, &path).map_err(failed("replace"))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync the directory of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("router");
        assert_eq!(load(&state).unwrap(), None);
        let table = RouteTable { revision: 7, apps: vec![] };
        save(&state, &table).unwrap();
        save(&state, &table).unwrap();
        assert_eq!(load(&state).unwrap(), Some(table));
        fs::write(path(&state), "{").unwrap();
        assert!(load(&state).unwrap_err().to_string().contains("understand"));
    }
}
