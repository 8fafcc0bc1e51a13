//! Certificates that owners add: checked before they are kept, encrypted at rest, and handed to the routers, each for those
//! domains of its own app that it covers and for no others.
//!
//! Must not: show a certificate for another app's domain, whatever names are in it; return a private key to anyone.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::Vars;
use crate::db::{CertificateRecord, Tx, keys};
use flex_api::ApiError;
use flex_model::{App, AppId, Certificate, CertificateTable, DomainName, Secret, Timestamp, Uuid};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::sync::Arc;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// The largest chain or key accepted, in bytes of PEM: a record must stay small.
const MAX_PEM: usize = 32 << 10;
/// The longest chain.
const MAX_CHAIN: usize = 8;
/// The name under which the key is sealed.
const KEY: &str = "key";

/// What is read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Of the subject's alternative names; those that are no host names are left out.
    pub names: Vec<DomainName>,
    pub subject: String,
    pub issuer: String,
    pub starts_at: Timestamp,
    pub expires_at: Timestamp,
    pub self_signed: bool,
}

/// Whether `pattern` (exact, or a wildcard of one label as TLS has it) is for `name`.
pub fn covers(pattern: &DomainName, name: &DomainName) -> bool {
    let (pattern, name) = (pattern.as_str(), name.as_str());
    pattern == name
        || pattern
            .strip_prefix("*.")
            .is_some_and(|suffix| name.split_once('.').is_some_and(|(label, rest)| rest == suffix && label != "*"))
}

/// Checks a chain with its key at the time `now`.
///
/// # Errors
/// One sentence: what is wrong, and what to do.
pub fn check(chain: &str, key: &Secret, now: Timestamp) -> Result<Facts, String> {
    if chain.len() > MAX_PEM || key.expose().len() > MAX_PEM {
        return Err(format!("The certificate chain and the key may have {} KiB each.", MAX_PEM >> 10));
    }
    let ders: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let ders =
        ders.map_err(|e| format!("The certificate is not in PEM form ({e}). It begins with -----BEGIN CERTIFICATE-----."))?;
    if ders.is_empty() {
        return Err("There is no certificate in the file. It begins with -----BEGIN CERTIFICATE-----.".into());
    }
    if ders.len() > MAX_CHAIN {
        return Err(format!("The chain has {} certificates; {MAX_CHAIN} are the most.", ders.len()));
    }
    let parsed: Result<Vec<_>, _> = ders.iter().map(|d| X509Certificate::from_der(d).map(|(_, c)| c)).collect();
    let parsed = parsed.map_err(|e| format!("A certificate of the chain cannot be read: {e}."))?;
    let facts = facts(&parsed[0])?;
    let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|_| {
        "The key is not an unencrypted private key in PEM form. Decrypt it first: openssl pkey -in KEY -out PLAIN".to_owned()
    })?;
    let key = any_supported_type(&key).map_err(|_| {
        "The key is of no supported kind: use RSA (2048 bits or more), ECDSA P-256 or P-384, or Ed25519.".to_owned()
    })?;
    let both = CertifiedKey::new(ders.clone(), key);
    if both.keys_match().is_err() {
        return Err("The key does not belong to the certificate: give the key that the certificate was requested with.".into());
    }
    for (n, pair) in parsed.windows(2).enumerate() {
        let [cert, issuer] = pair else { continue };
        if cert.issuer() != issuer.subject() || cert.verify_signature(Some(issuer.public_key())).is_err() {
            return Err(format!(
                "The chain is out of order or incomplete: certificate {} ({}) was not issued by certificate {} ({}). Put your own first, then each issuer in turn.",
                n + 1,
                cert.subject(),
                n + 2,
                issuer.subject()
            ));
        }
    }
    for (n, cert) in parsed.iter().enumerate() {
        let (from, to) = (seconds(cert.validity().not_before.timestamp()), seconds(cert.validity().not_after.timestamp()));
        if now >= to {
            return Err(format!("Certificate {} of the chain ({}) expired at {to}.", n + 1, cert.subject()));
        }
        if now < from {
            return Err(format!("Certificate {} of the chain ({}) is not valid before {from}.", n + 1, cert.subject()));
        }
    }
    if facts.names.is_empty() {
        return Err("The certificate names no host (subjectAltName): browsers take it for none.".into());
    }
    Ok(facts)
}

fn seconds(unix: i64) -> Timestamp {
    Timestamp::from_micros(unix.saturating_mul(1_000_000))
}

/// Reads the first certificate of a chain that was checked when it was added.
pub fn read(chain: &str) -> Option<Facts> {
    let der = CertificateDer::from_pem_slice(chain.as_bytes()).ok()?;
    let (_, cert) = X509Certificate::from_der(&der).ok()?;
    facts(&cert).ok()
}

fn facts(cert: &X509Certificate<'_>) -> Result<Facts, String> {
    let alternative = cert.subject_alternative_name().map_err(|e| format!("The certificate's names cannot be read: {e}."))?;
    let names = alternative.iter().flat_map(|a| &a.value.general_names);
    let names = names.filter_map(|n| match n {
        GeneralName::DNSName(name) => name.parse().ok(),
        _ => None,
    });
    Ok(Facts {
        names: names.collect(),
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        starts_at: seconds(cert.validity().not_before.timestamp()),
        expires_at: seconds(cert.validity().not_after.timestamp()),
        self_signed: cert.subject() == cert.issuer(),
    })
}

impl Controller {
    pub async fn certificates_of(&self, app: AppId) -> Result<Vec<Arc<CertificateRecord>>, ApiError> {
        let all = self.db.list::<CertificateRecord>(&keys::certificates(app)).await?;
        Ok(all.into_iter().map(|s| s.value).collect())
    }

    pub async fn certificate(&self, app: AppId, name_or_id: &str) -> Result<Arc<CertificateRecord>, ApiError> {
        let all = self.certificates_of(app).await?;
        let found = all.into_iter().find(|c| c.name == name_or_id || c.id.to_string() == name_or_id);
        found.ok_or_else(|| not_found("Couldn't find that certificate."))
    }

    /// Adds a certificate, or puts it in the place of `before`.
    pub async fn put_certificate(
        &self,
        actor: &Actor,
        app: &App,
        before: Option<&CertificateRecord>,
        chain: String,
        key: Secret,
    ) -> Result<Arc<CertificateRecord>, ApiError> {
        let facts = check(&chain, &key, self.now()).map_err(invalid)?;
        let domains = self.hosts_of(app).await?;
        if !domains.iter().any(|d| facts.names.iter().any(|n| covers(n, d))) {
            let list = |names: &[DomainName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(invalid(format!(
                "The certificate is for {}; this app's domains are {}. Add the domain first: flex domains:add NAME",
                list(&facts.names),
                list(&domains)
            )));
        }
        if let Some(auto) = before.filter(|b| b.auto.is_some()) {
            return Err(invalid(format!(
                "{} is made automatically. Add yours beside it, and it is shown instead: flex certs:add CERTIFICATE KEY",
                auto.name
            )));
        }
        let id = before.map_or_else(|| self.id(), |b| b.id);
        let record_key = keys::certificate(app.id, id);
        let sealed = self.crypt.seal(&record_key, &Vars::from([(KEY.to_owned(), key)]))?;
        let now = self.now();
        let record = CertificateRecord {
            id,
            app: app.id,
            name: before.map_or_else(|| format!("{}-{}", app.name, &id.to_string()[..5]), |b| b.name.clone()),
            chain,
            key: sealed,
            created_at: before.map_or(now, |b| b.created_at),
            updated_at: now,
            auto: None,
            warned: false,
        };
        let what = if before.is_some() { "Replaced" } else { "Added" };
        let event = self.event(actor, Some(app.id), "sni-endpoint.update", format!("{what} certificate {}", record.name));
        let tx = Tx::new().present(&keys::app(app.id)).put(record_key, &record).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        self.nudge();
        Ok(Arc::new(record))
    }

    pub async fn remove_certificate(&self, actor: &Actor, app: &App, record: &CertificateRecord) -> Result<(), ApiError> {
        if record.auto.is_some() {
            return Err(invalid(format!("{} is made automatically. Turn that off: flex certs:auto:disable", record.name)));
        }
        let event = self.event(actor, Some(app.id), "sni-endpoint.delete", format!("Removed certificate {}", record.name));
        let tx = Tx::new().delete(keys::certificate(app.id, record.id)).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        self.nudge();
        Ok(())
    }

    /// The names that an app serves at: its own, then those added.
    pub async fn hosts_of(&self, app: &App) -> Result<Vec<DomainName>, ApiError> {
        let mut names = vec![self.default_domain(&app.name)];
        names.extend(self.domains_of(app.id).await?.iter().map(|d| d.hostname.clone()));
        Ok(names)
    }

    /// Tells the routers, if something changed. `hosts`: the names that each app serves at.
    pub async fn publish_certificates(&self, hosts: &BTreeMap<AppId, &[DomainName]>) -> Result<(), ApiError> {
        let records = self.db.list::<CertificateRecord>(keys::CERTIFICATES).await?;
        let mut wanted: Vec<(&Arc<CertificateRecord>, Vec<DomainName>)> = Vec::new();
        for record in records.iter().map(|r| &r.value) {
            if record.app == AppId(Uuid::nil()) {
                // The platform's own is for whatever is under the apps' domain.
                wanted.extend(read(&record.chain).map(|facts| (record, facts.names)));
                continue;
            }
            let (Some(all), Some(facts)) = (hosts.get(&record.app), read(&record.chain)) else { continue };
            let shown = all.iter().filter(|d| facts.names.iter().any(|n| covers(n, d)));
            let shown: Vec<DomainName> = shown.cloned().collect();
            if !shown.is_empty() {
                wanted.push((record, shown));
            }
        }
        // What somebody added comes before what was made by itself, then the newest: of two for one name, the first is shown.
        wanted.sort_by_key(|(r, _)| (r.auto.is_some(), std::cmp::Reverse((r.updated_at, r.id))));
        let before = self.certificates.borrow().clone();
        let mut certificates = Vec::with_capacity(wanted.len());
        for (record, names) in wanted {
            let id = record.name.clone();
            let same = before.certificates.iter().find(|c| c.id == id && c.chain == record.chain && c.names == names);
            if let Some(same) = same {
                certificates.push(same.clone());
                continue;
            }
            let mut vars = self.crypt.unseal(&keys::certificate(record.app, record.id), &record.key)?;
            let Some(key) = vars.remove(KEY) else { continue };
            certificates.push(Arc::new(Certificate { id, names, chain: record.chain.clone(), key }));
        }
        let challenges = self.challenges().await?;
        let ticket_keys = crate::core::lock(&self.acme.tickets).clone();
        let same = before.challenges == challenges && before.ticket_keys == ticket_keys;
        if before.revision > 0 && before.certificates == certificates && same {
            return Ok(());
        }
        let now = u64::try_from(self.now().micros()).unwrap_or(0);
        let fallback = self.deps.settings.fallback_certificate.clone();
        let revision = now.max(before.revision + 1);
        let table = CertificateTable { revision, certificates, fallback, challenges, ticket_keys };
        self.certificates.send_replace(Arc::new(table));
        Ok(())
    }
}
