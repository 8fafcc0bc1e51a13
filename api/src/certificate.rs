//! Certificates of an app: Heroku's SNI endpoints.

use crate::schema::{Id, SecretText, Time};
use crate::{AppRef, NameRef};
use flex_model::{CertificateId, DomainName, Secret};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A certificate of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SniEndpoint {
    #[schema(value_type = Id)]
    pub id: CertificateId,
    pub name: String,
    pub app: AppRef,
    /// PEM, the app's own certificate first.
    pub certificate_chain: String,
    /// Hosts that it is shown for.
    #[schema(value_type = Vec<String>)]
    pub domains: Vec<DomainName>,
    pub ssl_cert: SslCert,
    pub cname: Option<String>,
    pub created_at: Time,
    pub updated_at: Time,
}

/// What is in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SslCert {
    #[schema(value_type = Vec<String>)]
    pub cert_domains: Vec<DomainName>,
    pub subject: String,
    pub issuer: String,
    pub starts_at: Time,
    pub expires_at: Time,
    #[serde(rename = "self_signed?")]
    pub self_signed: bool,
    /// Whether another than itself signed it.
    #[serde(rename = "ca_signed?")]
    pub ca_signed: bool,
    /// Whether it is made and renewed automatically.
    pub acm: bool,
}

/// A certificate to add, or to put in another's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PutSniEndpoint {
    /// PEM, the app's own certificate first, then its issuers.
    pub certificate_chain: String,
    /// PEM, not encrypted. It is never sent back.
    #[schema(value_type = SecretText)]
    pub private_key: Secret,
}

impl SniEndpoint {
    /// Its name with its id.
    pub fn reference(&self) -> NameRef {
        NameRef { id: self.id.to_string(), name: self.name.clone() }
    }
}
