//! Records that only the control plane knows.

use crate::crypt::Sealed;
use flex_model::{
    AppId, CertificateId, DomainId, DomainName, DrainId, InstanceId, Memory, ReleaseId, Route, SourceId, Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A custom domain of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    pub id: DomainId,
    pub app: AppId,
    pub hostname: DomainName,
    pub created_at: Timestamp,
}

/// A certificate of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    pub id: CertificateId,
    pub app: AppId,
    /// As people call it.
    pub name: String,
    /// PEM.
    pub chain: String,
    /// The private key, encrypted.
    pub key: Sealed,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Made automatically, for this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<DomainName>,
    /// That it expires soon was told.
    #[serde(default)]
    pub warned: bool,
}

/// How much of an app's log is kept, where it is not the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRetentionRecord {
    pub app: AppId,
    pub max_bytes: Option<u64>,
    pub max_age_seconds: Option<u64>,
}

/// A place that an app's log is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    pub id: DrainId,
    pub app: AppId,
    /// Names the drain in what is sent.
    pub token: String,
    /// The URL, encrypted: it may hold credentials.
    pub url: Sealed,
    pub created_at: Timestamp,
}

/// A route that somebody made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRecord {
    pub app: AppId,
    pub route: Arc<Route>,
    /// Whose the host was when the route was made; it is in force only while that is so. None: it names no app's host.
    pub host_owner: Option<AppId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a router elsewhere shows; found by the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterToken {
    /// The router's name.
    pub name: String,
    pub created_at: Timestamp,
}

/// A source archive that was promised a place, and may have been uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    pub id: SourceId,
    pub user: UserId,
    /// SHA-256 of the secret in its URLs.
    pub secret_sha256: String,
    pub created_at: Timestamp,
}

/// A `postdeploy` script that is owed to an app, from the commit that made its first release the serving one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostdeployRecord {
    pub app: AppId,
    /// The release that it runs in.
    pub version: u64,
    pub line: String,
    /// It was started: whether it ended is known only to the run of the server that started it.
    pub started: bool,
    /// How often the engine could not start it.
    pub failures: u32,
}

/// A one-off command: kept after its end, as history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub id: InstanceId,
    pub app: AppId,
    /// `run.4711`.
    pub name: String,
    pub command: String,
    /// Who started it, by e-mail.
    pub user: String,
    pub release: ReleaseId,
    pub version: u64,
    pub memory: Memory,
    /// It ends with its client; without, it outlives the server's process.
    pub attached: bool,
    /// Which run of the server started it.
    pub epoch: u64,
    pub stop_grace_seconds: u32,
    pub started_at: Timestamp,
    /// When it is stopped.
    pub deadline: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// Exit status, 128+n for a signal.
    pub status: Option<i64>,
    /// Why there is none.
    pub error: Option<String>,
    /// Its memory limit was hit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// What its size is called, where that says more than `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}

impl RunRecord {
    /// What it has, in a word: a size's name, or its memory.
    pub fn size_shown(&self) -> String {
        self.size.clone().unwrap_or_else(|| self.memory.to_string())
    }
}
