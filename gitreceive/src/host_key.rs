//! The server's ed25519 host key: made once, kept for ever, because every user's `known_hosts` remembers it.
//!
//! Invariants: the file is complete or absent (written beside and linked into place), mode 0600, OpenSSH PEM. A file that
//! cannot be read stops the start; it is never replaced.

use russh::keys::ssh_key::{LineEnding, private::Ed25519Keypair};
use russh::keys::{Algorithm, PrivateKey};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot {doing} the SSH host key {path}")]
    Io { doing: &'static str, path: String, source: io::Error },
    #[error(
        "the SSH host key {path} is not an unencrypted ed25519 key in OpenSSH format: restore it from a backup, or move it away \
         to have a new one made (users then have to accept the new key)"
    )]
    Damaged { path: String, source: Option<russh::keys::ssh_key::Error> },
}

/// Reads the key at `path`, or makes it from `seed` when there is none.
pub fn load_or_make(path: &Path, seed: &[u8; 32]) -> Result<PrivateKey, HostKeyError> {
    let fail = |doing| move |source| HostKeyError::Io { doing, path: path.display().to_string(), source };
    match fs::read_to_string(path) {
        Ok(pem) => {
            let damaged = |source| HostKeyError::Damaged { path: path.display().to_string(), source };
            let key = PrivateKey::from_openssh(&pem).map_err(|e| damaged(Some(e)))?;
            if key.is_encrypted() || key.algorithm() != Algorithm::Ed25519 {
                return Err(damaged(None));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail("protect"))?;
            Ok(key)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = PrivateKey::from(Ed25519Keypair::from_seed(seed));
            write_new(path, &key).map_err(fail("write"))?;
            // Another process may have been first: the one in the file is the one that counts.
            load_or_make(path, seed)
        }
        Err(e) => Err(fail("read")(e)),
    }
}

fn write_new(path: &Path, key: &PrivateKey) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let pem = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let draft = directory.join(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }?;
        fs::File::open(directory)?.sync_all()
    })();
    let _ = fs::remove_file(&draft);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ssh/host_ed25519");
        let first = load_or_make(&path, &[1; 32]).unwrap();
        let again = load_or_make(&path, &[2; 32]).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no drafts stay");
        assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    }

    #[test]
    fn a_damaged_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "").unwrap();
        let error = load_or_make(&path, &[1; 32]).unwrap_err();
        assert!(matches!(error, HostKeyError::Damaged { .. }) && error.to_string().contains("backup"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
