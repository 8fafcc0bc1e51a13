//! The certificate that the router shows where nobody gave one for the name: self-signed for the apps' domain, made once
//! and kept, so that a visitor who accepted it is not asked again. An operator may put one of their own in its place.
//!
//! Must not: make a new key while the one on disk can be read, or ever write over a certificate or key that it did not make.

use flex_model::{Certificate, DomainName, Secret};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The subject of what is made here.
const OURS: &str = "CN=rcgen self signed cert";

/// Reads the certificate from `DIR/tls`, or makes it. One that was made here for another domain is made anew.
///
/// # Errors
/// A sentence for the operator: which file cannot be read or written, or that somebody else's certificate is there and does
/// not fit the domain.
pub fn self_signed(data_dir: &Path, domain: &DomainName) -> Result<Certificate, String> {
    let dir = data_dir.join("tls");
    let (chain, key, of) = (dir.join("self-signed.crt"), dir.join("self-signed.key"), dir.join("self-signed.domain"));
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    };
    let there = (read(&chain)?, read(&key)?);
    // The domain is written last, so that its file vouches for the two others.
    if let (Some(chain), Some(key)) = &there
        && read(&of)?.is_some_and(|d| d.trim() == domain.as_str())
    {
        return Ok(certificate(domain, chain.clone(), Secret::new(key.as_str())));
    }
    let remedy = format!(
        "Put a certificate for {domain} and its key there as {} and {}, or move both away: then flexd makes one",
        chain.display(),
        key.display()
    );
    match there {
        (None, None) => {}
        (None, Some(_)) => return Err(format!("{} is there, and the certificate for it is not. {remedy}", key.display())),
        (Some(text), key) => match (flex_controller::read_certificate(&text), key) {
            (Some(facts), _) if facts.subject == OURS => {}
            (Some(facts), Some(key)) if facts.names.iter().any(|n| flex_controller::covers(n, &any_of(domain))) => {
                return Ok(certificate(domain, text, Secret::new(key)));
            }
            (Some(_), None) => return Err(format!("{} is there, and the key for it is not. {remedy}", chain.display())),
            (Some(facts), _) => {
                let names = facts.names.iter().map(DomainName::as_str).collect::<Vec<_>>().join(", ");
                return Err(format!("{} is for {names}, and not for *.{domain}. {remedy}", chain.display()));
            }
            (None, _) => return Err(format!("{} holds no certificate in PEM form. {remedy}", chain.display())),
        },
    }
    make(domain, &dir)
}

/// A name of some app.
fn any_of(domain: &DomainName) -> DomainName {
    format!("app.{domain}").parse().unwrap_or_else(|_| domain.clone())
}

fn make(domain: &DomainName, dir: &Path) -> Result<Certificate, String> {
    let names = vec![domain.to_string(), format!("*.{domain}")];
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| format!("cannot make a certificate for {domain}: {e}"))?;
    let (chain_pem, key_pem) = (made.cert.pem(), Secret::new(made.signing_key.serialize_pem()));
    std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let write = |name: &str, mode: u32, text: &str| {
        let path = dir.join(name);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let written = options.open(&path).and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()));
        written.map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    // In this order one that was interrupted is known as made here, and made again.
    write("self-signed.domain", 0o644, "")?;
    write("self-signed.crt", 0o644, &chain_pem)?;
    write("self-signed.key", 0o600, key_pem.expose())?;
    write("self-signed.domain", 0o644, domain.as_str())?;
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

    /// A certificate of an operator's own, in the place of what was made for `apps.test`.
    fn operators(names: &[&str]) -> (tempfile::TempDir, String, String) {
        let dir = tempfile::tempdir().unwrap();
        self_signed(dir.path(), &"apps.test".parse().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted = rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        wanted.distinguished_name.push(rcgen::DnType::CommonName, "an operator");
        let (chain, key) = (wanted.self_signed(&key).unwrap().pem(), key.serialize_pem());
        std::fs::write(dir.path().join("tls/self-signed.crt"), &chain).unwrap();
        std::fs::write(dir.path().join("tls/self-signed.key"), &key).unwrap();
        (dir, chain, key)
    }

    #[test]
    fn an_operators_own_is_never_written_over() {
        let (dir, chain, key) = operators(&["*.apps.test", "*.new.test"]);
        let of = |domain: &str| self_signed(dir.path(), &domain.parse().unwrap());
        assert_eq!(of("apps.test").unwrap().chain, chain);
        assert_eq!(of("new.test").unwrap().chain, chain);
        let said = of("third.test").unwrap_err();
        assert!(said.contains("is for *.apps.test, *.new.test") && said.contains("*.third.test"), "{said}");
        let file = |name: &str| std::fs::read_to_string(dir.path().join("tls").join(name));
        assert_eq!((file("self-signed.crt").unwrap(), file("self-signed.key").unwrap()), (chain, key.clone()));

        std::fs::write(dir.path().join("tls/self-signed.crt"), "mine").unwrap();
        assert!(of("third.test").unwrap_err().contains("PEM"));
        std::fs::remove_file(dir.path().join("tls/self-signed.crt")).unwrap();
        assert!(of("third.test").unwrap_err().contains("is not"));
        assert_eq!(file("self-signed.key").unwrap(), key);
        // Moved away, it is made again.
        std::fs::remove_file(dir.path().join("tls/self-signed.key")).unwrap();
        of("third.test").unwrap();
    }
}
