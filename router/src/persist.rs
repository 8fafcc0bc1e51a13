//! The last routing table on disk, so that a router that starts alone serves what it served before.
//!
//! Invariants: the file is always a whole table: it is written beside, synced, and renamed. It says which form it has;
//! one of a newer form is refused, because what this program does not know of it may be what protects an app. Only its
//! owner can read it: it holds the key of the cookies. The certificates with their keys lie beside it, on the same terms.

use flex_model::{CertificateTable, RouteTable, TABLE_FORMAT};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// What went wrong with the file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the router's {}", path.display())]
pub struct PersistError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("routes.json")
}

#[derive(Serialize)]
struct Kept<'a> {
    format: u32,
    #[serde(flatten)]
    table: &'a RouteTable,
}

/// What is read before the rest is.
#[derive(Deserialize)]
struct Form {
    /// The first form did not say.
    #[serde(default)]
    format: u32,
}

fn read(bytes: &[u8]) -> Result<RouteTable, io::Error> {
    let form: Form = serde_json::from_slice(bytes)?;
    if form.format > TABLE_FORMAT {
        let text = format!("it is of form {}, this flexd reads up to {TABLE_FORMAT}: run the newer one", form.format);
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// The table of last time; `None` when there is none. A damaged file is an error: the caller decides to go on without.
pub(crate) fn load(dir: &Path) -> Result<Option<RouteTable>, PersistError> {
    let path = path(dir);
    let failed = |doing, source| PersistError { doing, path: path.clone(), source };
    match fs::read(&path) {
        Ok(bytes) => read(&bytes).map(Some).map_err(|e| failed("understand", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", e)),
    }
}

/// Puts `table` in place of the one before, durably.
pub(crate) fn save(dir: &Path, table: &RouteTable) -> Result<(), PersistError> {
    write(dir, &path(dir), &Kept { format: TABLE_FORMAT, table })
}

/// The certificates of last time, if there are any.
pub(crate) fn load_certificates(dir: &Path) -> Result<Option<CertificateTable>, PersistError> {
    let path = dir.join("certificates.json");
    let failed = |doing, source| PersistError { doing, path: path.clone(), source };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed("understand", e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", e)),
    }
}

/// Puts the certificates in place of those before, durably. Challenges are left out: they are over in minutes.
pub(crate) fn save_certificates(dir: &Path, table: &CertificateTable) -> Result<(), PersistError> {
    write(dir, &dir.join("certificates.json"), &CertificateTable { challenges: Vec::new(), ..table.clone() })
}

fn write(dir: &Path, path: &Path, what: &impl Serialize) -> Result<(), PersistError> {
    let failed = |doing| {
        let path = path.to_owned();
        move |source| PersistError { doing, path, source }
    };
    let bytes = serde_json::to_vec(what).map_err(|e| failed("encode")(e.into()))?;
    fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    // A router that takes over from one that still drains writes beside it.
    let beside = path.with_extension(format!("json.{}", std::process::id()));
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let mut file = options.open(&beside).map_err(failed("write"))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&beside, path).map_err(failed("replace"))?;
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
        let table = RouteTable::new(7, []);
        save(&state, &table).unwrap();
        save(&state, &table).unwrap();
        assert_eq!(load(&state).unwrap(), Some(table));
        fs::write(path(&state), r#"{"revision":3,"apps":[]}"#).unwrap();
        assert_eq!(load(&state).unwrap(), Some(RouteTable::new(3, [])));
        fs::write(path(&state), r#"{"format":99,"revision":3,"apps":[{"new":1}]}"#).unwrap();
        let newer = load(&state).unwrap_err();
        assert!(std::error::Error::source(&newer).unwrap().to_string().contains("form 99"), "{newer:?}");
        fs::write(path(&state), "{").unwrap();
        assert!(load(&state).unwrap_err().to_string().contains("understand"));
    }
}
