//! The installation itself, its history, and log sessions.

use crate::schema::{AppNameText, Id, Time};
use flex_model::{AppId, AppName, EventId, HostId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Whether the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: String,
}

/// An answer that has nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nothing {}

/// The server: who it is, how it is, and how to reach git.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Server {
    pub version: String,
    /// Domain of the apps.
    pub domain: String,
    pub ssh: SshServer,
    pub checks: Vec<Check>,
}

/// Git over SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshServer {
    pub host: String,
    pub port: u16,
    /// `ssh-ed25519 AAAA…`
    pub host_key: String,
}

/// One thing that has to be right on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub what: String,
    pub ok: bool,
    pub problem: Option<String>,
    pub remedy: Option<String>,
}

/// One change, with who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    #[schema(value_type = Id)]
    pub id: EventId,
    pub at: Time,
    /// None: the platform itself.
    #[schema(value_type = Option<Id>)]
    pub actor: Option<UserId>,
    /// The actor's e-mail at that time, or `flex`.
    pub actor_name: String,
    #[schema(value_type = Option<Id>)]
    pub app: Option<AppId>,
    /// From where: an address, or `ssh`. None: from the server itself.
    pub from: Option<String>,
    /// `done` or `failed`.
    pub outcome: String,
    /// Such as `app.create`.
    pub kind: String,
    pub message: String,
}

/// A machine that runs instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    #[schema(value_type = Id)]
    pub id: HostId,
    pub name: String,
    /// `ready`, `cordoned` or `dead`.
    pub state: String,
    /// Bytes that instances may be promised in all.
    pub memory: u64,
    /// Millicores that instances may be promised in all.
    pub cpu_millis: u64,
    pub labels: BTreeMap<String, String>,
    pub instances: u64,
    pub reported_at: Option<Time>,
    pub created_at: Time,
}

/// What apps are built and run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stack {
    pub id: String,
    pub name: String,
    pub state: String,
    pub default: bool,
}

/// Where apps can be: here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Region {
    pub id: String,
    pub name: String,
    pub description: String,
    pub country: String,
    pub locale: String,
    pub private_capable: bool,
    pub provider: Provider,
}

/// Who runs a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    pub name: String,
    pub region: String,
}

/// The tags of an app's images, as the OCI distribution protocol lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageTags {
    #[schema(value_type = AppNameText)]
    pub name: AppName,
    pub tags: Vec<String>,
}
