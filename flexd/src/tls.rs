//! The certificate that the router shows where nobody gave one for the name: self-signed for the apps' domain, made once
//! and kept, so that a visitor who accepted it is not asked again.
//!
//! Must not: make a new key while the one on disk can be read.

use flex_model::{Certificate, DomainName, Secret};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Reads the certificate from `DIR/tls`, or makes it. One that was made for another domain is made anew.
///
/// # Errors
/// A sentence for the operator: which file cannot be read or written.
pub fn self_signed(data_dir: &Path, domain: &DomainName) -> Result<Certificate, String> {
    let dir = data_dir.join("tls");
    let (chain, key, of) = (dir.join("self-signed.crt"), dir.join("self-signed.key"), dir.join("self-signed.domain"));
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    };
    // The domain is written last, so that its file vouches for the two others.
    if read(&of)?.is_some_and(|d| d.trim() == domain.as_str())
        && let (Some(chain), Some(key)) = (read(&chain)?, read(&key)?)
    {
        return Ok(certificate(domain, chain, Secret::new(key)));
    }
    let names = vec![domain.to_string(), format!("*.{domain}")];
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| format!("cannot make a certificate for {domain}: {e}"))?;
    let (chain_pem, key_pem) = (made.cert.pem(), Secret::new(made.signing_key.serialize_pem()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let write = |path: &Path, mode: u32, text: &str| {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let written = options.open(path).and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()));
        written.map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    write(&key, 0o600, key_pem.expose())?;
    write(&chain, 0o644, &chain_pem)?;
    write(&of, 0o644, domain.as_str())?;
    Ok(certificate(domain, chain_pem, key_pem))
}

fn certificate(domain: &DomainName, chain: String, key: Secret) -> Certificate {
    Certificate { id: "self-signed".into(), names: vec![domain.clone()], chain, key }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_for_a_domain() {
        let dir = tempfile::tempdir().unwrap();
        let domain: DomainName = "apps.test".parse().unwrap();
        let first = self_signed(dir.path(), &domain).unwrap();
        assert_eq!(self_signed(dir.path(), &domain).unwrap(), first);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&dir.path().join("tls/self-signed.key").metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(self_signed(dir.path(), &"other.test".parse().unwrap()).unwrap().chain, first.chain);
    }
}
