//! What is stored of certificates that are made automatically.

use crate::crypt::Sealed;
use flex_model::{AppId, CertificateId, DomainName, Timestamp, Uuid};
use serde::{Deserialize, Serialize};

/// How a name is proven to a certificate authority (RFC 8555 section 8, RFC 8737).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChallengeKind {
    #[serde(rename = "http-01")]
    Http01,
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    #[serde(rename = "dns-01")]
    Dns01,
}

impl std::str::FromStr for ChallengeKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "http-01" => Ok(Self::Http01),
            "tls-alpn-01" => Ok(Self::TlsAlpn01),
            "dns-01" => Ok(Self::Dns01),
            _ => Err(format!("{s:?} is no way to prove a name: use http-01, tls-alpn-01 or dns-01")),
        }
    }
}

/// Why a name has no (new) certificate, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable; has a page in docs/errors.
    pub code: String,
    /// One sentence: what was being done, and why it failed.
    pub message: String,
    /// One sentence: what to do.
    pub remedy: String,
}

impl Problem {
    pub fn new(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), remedy: remedy.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} [{}]", self.message, self.remedy, self.code)
    }
}

/// One name for which a certificate is made and kept fresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoCertificate {
    pub name: DomainName,
    /// None: the platform's own, for the apps' domain.
    pub app: Option<AppId>,
    /// The newest that was issued.
    #[serde(default)]
    pub issued: Option<Issued>,
    /// Under way, so that a restart goes on with it.
    #[serde(default)]
    pub order: Option<OrderRecord>,
    /// In a row.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Nothing is tried before.
    pub try_at: Timestamp,
    pub updated_at: Timestamp,
}

impl AutoCertificate {
    pub fn new(name: DomainName, app: Option<AppId>, now: Timestamp) -> Self {
        Self { name, app, issued: None, order: None, failures: 0, problem: None, try_at: now, updated_at: now }
    }
}

/// What was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub certificate: CertificateId,
    pub expires_at: Timestamp,
    pub renew_at: Timestamp,
}

/// An order at the certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRecord {
    pub url: String,
    pub challenges: Vec<ChallengeRecord>,
    /// The certificate's key (`key`) and those of the certificates for TLS-ALPN-01 (`alpn:NAME`).
    pub keys: Sealed,
}

/// What is to be shown for one name of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeRecord {
    pub name: DomainName,
    pub kind: ChallengeKind,
    pub token: String,
    /// The key authorization. For DNS-01 the record's value.
    pub proof: String,
    /// PEM, for TLS-ALPN-01.
    #[serde(default)]
    pub alpn_chain: Option<String>,
}

/// The account at a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    pub directory: String,
    pub credentials: Sealed,
    pub created_at: Timestamp,
}

/// Who makes certificates. The row changes only when another takes over, so whoever commits on the condition that it did
/// not change is still the one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRecord {
    pub holder: Uuid,
}

/// Until when the issuer counts as alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerAlive {
    pub until: Timestamp,
}

/// Keys of session tickets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketRecord {
    /// By period.
    pub keys: Sealed,
}
