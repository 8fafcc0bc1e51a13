//! The certificates in force: by exact name, then by wildcard, then the fallback. Replaced as a whole behind one pointer,
//! so that a handshake sees one state or the other.

use arc_swap::ArcSwap;
use flex_model::{Certificate, CertificateTable};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{collections::HashMap, sync::Arc};

/// RFC 8737: the protocol in which a certificate authority asks for its proof.
pub(crate) const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

/// Shared by all workers and their TLS settings.
#[derive(Debug, Default)]
pub(crate) struct CertStore(ArcSwap<Certs>);

#[derive(Debug, Default)]
struct Certs {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// Without the `*.`.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    fallback: Option<Arc<CertifiedKey>>,
    challenges: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// Answers to HTTP-01 challenges by token.
    proofs: HashMap<Box<str>, (Box<str>, Box<str>)>,
}

impl CertStore {
    /// Puts `table` in force. What cannot be used is left out and told; the others work.
    pub(crate) fn replace(&self, table: &CertificateTable) -> Vec<String> {
        let (certs, problems) = Certs::compile(table);
        self.0.store(Arc::new(certs));
        problems
    }

    /// The answer to an HTTP-01 challenge for this host (lower case, no port).
    pub(crate) fn proof(&self, host: &str, token: &str) -> Option<Box<str>> {
        let certs = self.0.load();
        certs.proofs.get(token).filter(|(name, _)| **name == *host).map(|(_, proof)| proof.clone())
    }

    /// Whether one and the same certificate is shown for both names: a client that came for the one may then ask for the
    /// other on its connection (RFC 9110 section 7.4).
    pub(crate) fn same_certificate(&self, one: &str, other: &str) -> bool {
        let certs = self.0.load();
        match (certs.find(one), certs.find(other)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Certs {
    fn compile(table: &CertificateTable) -> (Self, Vec<String>) {
        let (mut certs, mut problems) = (Self::default(), Vec::new());
        let mut usable = |cert: &Certificate, made: fn(&Certificate) -> Result<CertifiedKey, String>| match made(cert) {
            Ok(key) => Some(Arc::new(key)),
            Err(why) => {
                problems.push(format!("certificate {} cannot be used: {why}", cert.id));
                None
            }
        };
        for cert in &table.certificates {
            let Some(key) = usable(cert, certified) else { continue };
            for name in &cert.names {
                let name = name.as_str();
                let (map, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut certs.wildcard, suffix),
                    None => (&mut certs.exact, name),
                };
                map.entry(name.into()).or_insert_with(|| key.clone());
            }
        }
        certs.fallback = table.fallback.as_deref().and_then(|f| usable(f, certified));
        for challenge in &table.challenges {
            let name = challenge.name.as_str();
            certs.proofs.insert(challenge.token.as_str().into(), (name.into(), challenge.proof.as_str().into()));
            if let Some(key) = challenge.alpn.as_ref().and_then(|a| usable(a, parsed)) {
                certs.challenges.insert(name.into(), key);
            }
        }
        (certs, problems)
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let wildcard = || name.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        self.exact.get(name).or_else(wildcard).or(self.fallback.as_ref())
    }
}

impl ResolvesServerCert for CertStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certs = self.0.load();
        // rustls has made it lower case and knows it to be a DNS name.
        let name = hello.server_name().unwrap_or("");
        if hello.alpn().is_some_and(|mut all| all.any(|p| p == ACME_PROTOCOL)) {
            return certs.challenges.get(name).cloned();
        }
        certs.find(name).cloned()
    }
}

/// Parses chain and key, and makes sure that they belong together.
fn certified(cert: &Certificate) -> Result<CertifiedKey, String> {
    let both = parsed(cert)?;
    both.keys_match().map_err(|e| format!("key and certificate do not belong together: {e}"))?;
    Ok(both)
}

/// Parses chain and key. Whether they belong together cannot be asked of the certificate of a challenge: its extension is
/// critical (RFC 8737 section 3), and the library refuses to look at what it does not know.
fn parsed(cert: &Certificate) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert.chain.as_bytes()).collect();
    let chain = chain.map_err(|e| format!("its chain is not PEM: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(cert.key.expose().as_bytes()).map_err(|e| format!("its key is not PEM: {e}"))?;
    let key = any_supported_type(&key).map_err(|e| format!("its key is of no supported kind: {e}"))?;
    if chain.is_empty() {
        return Err("its chain is empty".into());
    }
    Ok(CertifiedKey::new(chain, key))
}
