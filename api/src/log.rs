//! Logs: sessions to read them, how much is kept, and drains.

use crate::NameRef;
use crate::schema::{Id, SecretText, Time};
use flex_model::{DrainId, EventId, Secret};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which part of an app's log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateLogSession {
    /// 100 if left out, at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Go on until the reader leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<bool>,
    /// `web` or `web.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dyno: Option<String>,
    /// `app`, `flex` (or `heroku`) or `router`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Not older than this: `2h`, `1d12h`, or a moment as `2026-11-21T13:00:00Z` or `2026-11-21`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Not newer than this, in the same forms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Only lines with these characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// Only lines that match this regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Of a tail: only lines after the one of this number (the `id` of an event), all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// A way to an app's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogSession {
    #[schema(value_type = Id)]
    pub id: EventId,
    /// Holds a secret, and can be opened for five minutes.
    pub logplex_url: String,
    pub created_at: Time,
    pub updated_at: Time,
}

/// How much of an app's log is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRetention {
    /// Bytes on disk, compressed.
    pub max_bytes: u64,
    /// Older lines go.
    pub max_age_seconds: u64,
    /// What the server has for apps that set nothing.
    pub default_max_bytes: u64,
    pub default_max_age_seconds: u64,
    /// Bytes on disk now.
    pub used_bytes: u64,
}

/// Sets how much is kept; what is left out stays as it is, 0 goes back to the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetLogRetention {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
}

/// A place that an app's log is sent to as it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogDrain {
    #[schema(value_type = Id)]
    pub id: DrainId,
    /// Names the drain in what is sent.
    pub token: String,
    /// With what may be a credential hidden.
    pub url: String,
    pub addon: Option<NameRef>,
    pub status: LogDrainStatus,
    pub created_at: Time,
    pub updated_at: Time,
}

/// How a drain does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogDrainStatus {
    /// Lines sent since the server started.
    pub sent: u64,
    /// Lines that wait.
    pub waiting: u64,
    /// Lines that fell out of the retention before they could be sent, since the server started.
    pub dropped: u64,
    /// Why it does not get on, if it does not.
    pub error: Option<String>,
}

/// A drain to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddLogDrain {
    /// `syslog+tls://HOST:PORT`, `syslog://HOST:PORT` or `https://HOST/PATH`.
    #[schema(value_type = SecretText)]
    pub url: Secret,
}
