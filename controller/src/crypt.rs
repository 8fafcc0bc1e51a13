//! Secrets at rest: config vars, encrypted with XChaCha20-Poly1305 under a master key that lies in a file beside the store.
//!
//! The record's key is authenticated with it, so that a value copied to another app's record does not decrypt. Must not:
//! log or print what it handles.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use flex_api::{ApiError, ErrorId};
use flex_model::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Config vars by name.
pub type Vars = BTreeMap<String, Secret>;

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Hex.
    nonce: String,
    /// Hex.
    text: String,
}

/// The master key.
pub struct Crypt {
    cipher: XChaCha20Poly1305,
    key: Secret,
}

impl Crypt {
    /// Reads the key file, or makes it.
    ///
    /// # Errors
    /// A sentence for the operator: the file cannot be read or made, or is not a key.
    pub fn open(file: &Path) -> Result<Self, String> {
        let fail = |what: &str, e: &dyn std::fmt::Display| format!("cannot {what} the master key {}: {e}", file.display());
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = hex::encode(random::<32>());
                let part = file.with_extension("part");
                let mut out = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&part)
                    .map_err(|e| fail("make", &e))?;
                writeln!(out, "{text}").and_then(|()| out.sync_all()).map_err(|e| fail("write", &e))?;
                std::fs::rename(&part, file).map_err(|e| fail("write", &e))?;
                text
            }
            Err(e) => return Err(fail("read", &e)),
        };
        let mode = std::fs::metadata(file).map_err(|e| fail("read", &e))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(fail("use", &format!("others may read it; run: chmod 600 {}", file.display())));
        }
        let bytes = hex::decode(text.trim()).map_err(|e| fail("read", &e))?;
        let cipher = XChaCha20Poly1305::new_from_slice(&bytes).map_err(|e| fail("use", &e))?;
        Ok(Self { cipher, key: Secret::new(text.trim()) })
    }

    /// What may be stored to know the key by.
    pub fn fingerprint(&self) -> String {
        self.sign("fingerprint")
    }

    /// A text that only the holder of the key can make for `what`: secrets in URLs that need no record of their own.
    pub fn sign(&self, what: &str) -> String {
        // Hashed twice with the key, as HMAC does: what was signed cannot be extended.
        let keyed = |part: &[u8]| Sha256::new().chain_update(self.key.expose()).chain_update(part).finalize();
        hex::encode(keyed(&keyed(what.as_bytes())))
    }

    /// A key for one more use, which tells nothing of the master key and is no signature.
    pub fn key_for(&self, what: &str) -> [u8; 32] {
        let keyed = |part: &[u8]| Sha256::new().chain_update(self.key.expose()).chain_update(part).finalize();
        keyed(&keyed(format!("key\0{what}").as_bytes())).into()
    }

    /// Encrypts for one record.
    pub fn seal(&self, record: &str, vars: &Vars) -> Result<Sealed, ApiError> {
        let failed = |_| ApiError::new(ErrorId::Internal, "Config vars cannot be encrypted.");
        let nonce = random::<24>();
        let text = serde_json::to_vec(vars).map_err(|_| ApiError::new(ErrorId::Internal, "Config vars cannot be written."))?;
        let payload = Payload { msg: &text, aad: record.as_bytes() };
        let text = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(failed)?;
        Ok(Sealed { nonce: hex::encode(nonce), text: hex::encode(text) })
    }

    /// Decrypts a record.
    pub fn unseal(&self, record: &str, sealed: &Sealed) -> Result<Vars, ApiError> {
        let failed = || {
            ApiError::new(
                ErrorId::Internal,
                format!("The config vars in {record} do not decrypt: is master.key the one they were stored with?"),
            )
        };
        let nonce = hex::decode(&sealed.nonce).map_err(|_| failed())?;
        let text = hex::decode(&sealed.text).map_err(|_| failed())?;
        if nonce.len() != 24 {
            return Err(failed());
        }
        let payload = Payload { msg: &text, aad: record.as_bytes() };
        let text = self.cipher.decrypt(XNonce::from_slice(&nonce), payload).map_err(|_| failed())?;
        serde_json::from_slice(&text).map_err(|_| failed())
    }
}

/// Bytes that nobody can guess.
///
/// # Panics
/// When the operating system has no randomness to give: nothing secret can be made then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let signed = Crypt::open(&file).unwrap().sign("x");
        let crypt = Crypt::open(&file).unwrap();
        assert_eq!(crypt.sign("x"), signed);
        assert_eq!(crypt.key_for("x"), crypt.key_for("x"));
        assert!(crypt.key_for("x") != crypt.key_for("y") && hex::encode(crypt.key_for("x")) != signed);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Crypt::open(&file).err().unwrap().contains("chmod 600"));
    }

    #[test]
    fn a_value_opens_only_in_its_own_record_and_with_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        let crypt = Crypt::open(&dir.path().join("a")).unwrap();
        let vars = Vars::from([("A".to_owned(), Secret::new("hunter2"))]);
        let sealed = crypt.seal("config/1", &vars).unwrap();
        assert!(!serde_json::to_string(&sealed).unwrap().contains("hunter2"));
        assert_eq!(crypt.unseal("config/1", &sealed).unwrap(), vars);
        assert!(crypt.unseal("config/2", &sealed).is_err());
        assert_eq!(Crypt::open(&dir.path().join("a")).unwrap().unseal("config/1", &sealed).unwrap(), vars);
        assert!(Crypt::open(&dir.path().join("b")).unwrap().unseal("config/1", &sealed).is_err());
    }
}
