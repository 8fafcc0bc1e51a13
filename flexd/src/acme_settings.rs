//! The settings `[acme]`: how certificates are made automatically. Read once, checked, handed to the controller.

use flex_controller::{AcmeSettings, ChallengeKind};
use flex_model::Secret;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    terms_agreed: Option<bool>,
    directory: Option<String>,
    email: Option<String>,
    ca_file: Option<PathBuf>,
    challenge: Option<String>,
    #[serde(default)]
    dns_hook: Vec<String>,
    dns_wait_seconds: Option<u64>,
    resolver: Option<String>,
    self_check: Option<bool>,
    http_port: Option<u16>,
    tls_port: Option<u16>,
    wildcard: Option<bool>,
    retry_seconds: Option<u64>,
    eab_key_id: Option<String>,
    eab_key_file: Option<PathBuf>,
}

/// None: turned off.
pub fn read(file: File) -> Result<Option<AcmeSettings>, String> {
    match file.terms_agreed {
        Some(true) => {}
        Some(false) => return Ok(None),
        None => {
            return Err(
                "acme.terms_agreed: say true if you agree to the certificate authority's terms of service, or false".into()
            );
        }
    }
    let directory = file.directory.unwrap_or_else(|| LETS_ENCRYPT.into());
    if !directory.starts_with("https://") {
        return Err(format!("acme.directory: {directory} is no URL that begins with https://"));
    }
    let challenge = file.challenge.as_deref().unwrap_or("http-01").parse().map_err(|e| format!("acme.challenge: {e}"))?;
    let wildcard = file.wildcard.unwrap_or(false);
    if file.dns_hook.is_empty() && (wildcard || challenge == ChallengeKind::Dns01) {
        return Err("acme.dns_hook: wildcards and dns-01 need a program that makes DNS records: [\"/path/to/program\"]".into());
    }
    if let Some(ca) = &file.ca_file {
        std::fs::File::open(ca).map_err(|e| format!("acme.ca_file: cannot read {}: {e}", ca.display()))?;
    }
    let resolver = match file.resolver {
        None => None,
        Some(text) => {
            let at = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
            Some(at.map_err(|_| format!("acme.resolver: {text} is no address such as 192.0.2.53 or 127.0.0.1:53"))?)
        }
    };
    Ok(Some(AcmeSettings {
        directory,
        email: file.email.map(|e| e.parse().map_err(|e| format!("acme.email: {e}"))).transpose()?,
        ca_file: file.ca_file,
        challenge,
        dns_hook: file.dns_hook,
        dns_wait: Duration::from_secs(file.dns_wait_seconds.unwrap_or(120)),
        resolver,
        self_check: file.self_check.unwrap_or(true),
        http_port: file.http_port.unwrap_or(80),
        tls_port: file.tls_port.unwrap_or(443),
        wildcard,
        retry: Duration::from_secs(file.retry_seconds.unwrap_or(300).max(1)),
        external_account: external_account(file.eab_key_id, file.eab_key_file)?,
    }))
}

fn external_account(id: Option<String>, file: Option<PathBuf>) -> Result<Option<(String, Secret)>, String> {
    let (id, file) = match (id, file) {
        (None, None) => return Ok(None),
        (Some(id), Some(file)) => (id, file),
        _ => return Err("acme.eab_key_id and acme.eab_key_file go together: set both or none".into()),
    };
    let text = std::fs::read_to_string(&file).map_err(|e| format!("acme.eab_key_file: cannot read {}: {e}", file.display()))?;
    let key = Secret::new(text.trim());
    flex_controller::base64url(key.expose()).ok_or("acme.eab_key_file: it does not hold a key in base64url form")?;
    Ok(Some((id, key)))
}
