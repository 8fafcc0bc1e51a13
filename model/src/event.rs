//! The history of changes: every change of desired state is one event with its actor.

use crate::{AppId, EventId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// How a change ended. What was refused changed nothing, and is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    #[default]
    Done,
    Failed,
}

/// One change. Never holds a secret: config changes name keys, not values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub at: Timestamp,
    /// Who; none: the platform itself.
    pub actor: Option<UserId>,
    /// The actor's e-mail at that time, or `flex`.
    pub actor_name: String,
    pub app: Option<AppId>,
    /// From where they came: an address, or `ssh`. None: from the server itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default)]
    pub outcome: Outcome,
    /// Dotted and stable, e.g. `app.create`, `release.failed`, `config.update`.
    pub kind: String,
    /// One sentence for people.
    pub message: String,
}
