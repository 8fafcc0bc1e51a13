//! The history of changes: every change of desired state is one event with its actor.

use crate::{AppId, EventId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

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
    /// Dotted and stable, e.g. `app.create`, `release.failed`, `config.update`.
    pub kind: String,
    /// One sentence for people.
    pub message: String,
}
