//! Certificates as routers get them: chain, key, the names they are for; and the answers to challenges of certificate
//! authorities, so that any router can give them.

use crate::{DomainName, Secret};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Tells it from others in messages; its endpoint's name.
    pub id: String,
    /// Names it is shown for: exact, or `*.` wildcards (one label, as TLS has it).
    pub names: Vec<DomainName>,
    /// PEM, the certificate itself first.
    pub chain: String,
    /// PEM.
    pub key: Secret,
}

/// Proof to a certificate authority that a name is ours (RFC 8555 section 8.3, RFC 8737).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub name: DomainName,
    /// The last part of `/.well-known/acme-challenge/TOKEN`.
    pub token: String,
    /// What is answered there.
    pub proof: String,
    /// Shown to who asks for `name` over `acme-tls/1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Certificate>,
}

/// The key of one period's session tickets. Routers that have the same keys resume each other's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    /// Periods of [`TICKET_PERIOD`] since 1970: tickets are made with it from then on, until the next one's time comes.
    pub period: u64,
    /// 64 hexadecimal digits.
    pub key: Secret,
}

/// How long tickets are made with one key. What was made with the one before is taken for as long again.
pub const TICKET_PERIOD: std::time::Duration = std::time::Duration::from_secs(12 * 3600);

/// All certificates at one revision, replaced as a whole. Revision 0: nobody has made one yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateTable {
    pub revision: u64,
    /// Where two are for one name, the first is shown.
    pub certificates: Vec<Arc<Certificate>>,
    /// Shown for every other name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Arc<Certificate>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
    /// Of the period before, this one and the next, as far as there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ticket_keys: Vec<TicketKey>,
}

/// One line to a router elsewhere, on the stream of certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CertificateUpdate {
    Whole {
        table: Arc<CertificateTable>,
    },
    /// Nothing changed for a while: the connection stands.
    Alive,
}
