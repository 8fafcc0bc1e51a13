//! Encryption of what the agent keeps on disk with config vars in it: XChaCha20-Poly1305, under a key that the agent is given.
//!
//! The file's name is authenticated with it, so that one file does not open as another. Must not: log what it handles.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use std::fmt;
use std::io;

const NONCE: usize = 24;

/// What the agent's files are encrypted with.
#[derive(Clone)]
pub struct AgentKey(pub [u8; 32]);

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl AgentKey {
    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(Key::from_slice(&self.0))
    }

    /// A fresh nonce, and the text encrypted with it.
    pub(crate) fn seal(&self, name: &str, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![0; NONCE];
        getrandom::fill(&mut out).map_err(io::Error::other)?;
        let payload = Payload { msg: plain, aad: name.as_bytes() };
        let sealed = self.cipher().encrypt(XNonce::from_slice(&out), payload);
        out.extend(sealed.map_err(|_| io::Error::other("it cannot be encrypted"))?);
        Ok(out)
    }

    /// None: it was not sealed under this name with this key, or is damaged.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_at_checked(NONCE)?;
        self.cipher().decrypt(XNonce::from_slice(nonce), Payload { msg: text, aad: name.as_bytes() }).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_under_its_name_with_its_key_alone() {
        let key = AgentKey([7; 32]);
        let sealed = key.seal("a", b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_ne!(key.seal("a", b"hunter2").unwrap(), sealed, "each has a nonce of its own");
        assert_eq!(key.open("a", &sealed).as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(key.open("b", &sealed), None);
        assert_eq!(AgentKey([8; 32]).open("a", &sealed), None);
        assert_eq!(key.open("a", &sealed[..sealed.len() - 1]), None);
        assert_eq!(key.open("a", b"short"), None);
        assert_eq!(format!("{key:?}"), "[secret]");
    }
}
