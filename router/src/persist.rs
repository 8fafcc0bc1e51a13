//! The last routing table on disk, so that a router that starts alone serves what it served before.
//!
//! Invariants: the file is always a whole table: it is written beside, synced, and renamed. It says which form it has;
//! one of a newer form is refused, because what this program does not know of it may be what protects an app. Only its
//! owner can read it: it holds the key of the cookies. The certificates with their keys lie beside it, on the same terms.

use flex_model::{CertificateTable, RouteTable, TABLE_FORMAT};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
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

#[derive(Serialize)]
struct KeptCertificates<'a> {
    format: u32,
    #[serde(flatten)]
    table: &'a CertificateTable,
}

/// The newest form of the certificates' file that this program reads and writes.
const CERTIFICATES_FORMAT: u32 = 1;

/// What is read before the rest is.
#[derive(Deserialize)]
struct Form {
    /// The first form did not say.
    #[serde(default)]
    format: u32,
}

/// What is in a file of a form up to `newest`.
fn read<T: DeserializeOwned>(bytes: &[u8], newest: u32) -> Result<T, io::Error> {
    let form: Form = serde_json::from_slice(bytes)?;
    if form.format > newest {
        let text = format!("it is of form {}, this flexd reads up to {newest}: run the newer one", form.format);
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(serde_json::from_slice(bytes)?)
}

fn read_file<T: DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, PersistError> {
    let failed = |doing, source| PersistError { doing, path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => read(&bytes, newest).map(Some).map_err(|e| failed("understand", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", e)),
    }
}

/// The table of last time; `None` when there is none. A damaged file is an error: the caller decides to go on without.
pub(crate) fn load(dir: &Path) -> Result<Option<RouteTable>, PersistError> {
    read_file(&path(dir), TABLE_FORMAT)
}

/// Puts `table` in place of the one before, durably.
pub(crate) fn save(dir: &Path, table: &RouteTable) -> Result<(), PersistError> {
    write(dir, &path(dir), &Kept { format: TABLE_FORMAT, table })
}

/// The certificates of last time, if there are any.
pub(crate) fn load_certificates(dir: &Path) -> Result<Option<CertificateTable>, PersistError> {
    read_file(&dir.join("certificates.json"), CERTIFICATES_FORMAT)
}

/// Puts the certificates in place of those before, durably. Challenges are left out: they are over in minutes.
pub(crate) fn save_certificates(dir: &Path, table: &CertificateTable) -> Result<(), PersistError> {
    let table = &CertificateTable { challenges: Vec::new(), ..table.clone() };
    write(dir, &dir.join("certificates.json"), &KeptCertificates { format: CERTIFICATES_FORMAT, table })
}

fn write(dir: &Path, path: &Path, what: &impl Serialize) -> Result<(), PersistError> {
    let failed = |doing| {
        let path = path.to_owned();
        move |source| PersistError { doing, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    // A router that takes over from one that still drains writes beside it.
    let beside = path.with_extension(format!("json.{}", std::process::id()));
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let file = options.open(&beside).map_err(failed("write"))?;
    // Piece by piece: as one text, a large table would take as much memory again.
    let mut out = io::BufWriter::with_capacity(64 << 10, file);
    let written = serde_json::to_writer(&mut out, what).map_err(io::Error::from).and_then(|()| out.flush());
    written.and_then(|()| out.get_ref().sync_all()).map_err(failed("write"))?;
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

    #[test]
    fn certificates_say_which_form_they_have_and_those_of_old_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_certificates(dir.path()).unwrap(), None);
        let table = CertificateTable { revision: 7, ..CertificateTable::default() };
        save_certificates(dir.path(), &table).unwrap();
        assert_eq!(load_certificates(dir.path()).unwrap(), Some(table.clone()));
        let file = dir.path().join("certificates.json");
        assert!(fs::read_to_string(&file).unwrap().contains(r#""format":1"#));
        // As flexd wrote it before there were forms.
        fs::write(&file, r#"{"revision":7,"certificates":[]}"#).unwrap();
        assert_eq!(load_certificates(dir.path()).unwrap(), Some(table));
        fs::write(&file, r#"{"format":2,"revision":7,"certificates":[]}"#).unwrap();
        let newer = load_certificates(dir.path()).unwrap_err();
        assert!(std::error::Error::source(&newer).unwrap().to_string().contains("form 2"), "{newer:?}");
    }
}
