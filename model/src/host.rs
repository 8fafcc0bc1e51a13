//! Machines that run instances.

use crate::{HostId, Memory, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the scheduler may do with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Takes new instances.
    Ready,
    /// Keeps what it has, takes nothing new.
    Cordoned,
    /// Gone for good as far as anyone can prove: its instances are replaced.
    Dead,
}

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    pub name: String,
    pub state: HostState,
    /// Memory that instances may be promised in all.
    pub memory: Memory,
    /// Millicores that instances may be promised in all, over-commit included.
    pub cpu_millis: u64,
    pub labels: BTreeMap<String, String>,
    pub created_at: Timestamp,
}
