//! An app and what its owner wants of it. Everything here is desired state; what really runs is in reports.

use crate::{AppId, AppName, BuildpackRef, HealthCheck, Memory, ProcessType, StackName, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many instances of a process type, and how large each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessScale {
    pub quantity: u32,
    /// Hard limit; the engine kills what exceeds it.
    pub memory: Memory,
    /// Relative CPU weight, 1024 being an ordinary instance's.
    pub cpu_shares: u32,
}

impl ProcessScale {
    /// What a process type gets before anyone asks for something else.
    pub const fn default_for(quantity: u32) -> Self {
        Self { quantity, memory: Memory::from_mib(512), cpu_shares: 1024 }
    }
}

/// The most instances that one process type may be scaled to.
pub const MAX_QUANTITY: u32 = 10_000;

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub id: AppId,
    pub name: AppName,
    pub owner: UserId,
    pub stack: StackName,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub maintenance: bool,
    pub formation: BTreeMap<ProcessType, ProcessScale>,
    /// Branches whose push deploys.
    pub deploy_branches: Vec<String>,
    /// In the order they run; empty: detect.
    pub buildpacks: Vec<BuildpackRef>,
    /// Health checks set by the owner; they win over those of the release.
    pub checks: BTreeMap<ProcessType, HealthCheck>,
    /// The newest revision of the config vars; starts at 0 with no vars.
    pub config_rev: u64,
    /// The highest release number handed out; 0 before the first release. Numbers leave no gaps.
    pub last_version: u64,
    /// The release that should be running; none before the first.
    pub target: Option<u64>,
    /// The newest release that was seen serving: where a failed roll-out returns to.
    pub good: Option<u64>,
    /// Instances older than the moment are to be replaced. Keys: `""` (all), `web` (a type), `web.1` (one).
    #[serde(default)]
    pub restarts: BTreeMap<String, Timestamp>,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace_seconds: u32,
    /// Run with the image's file system read-only (`/tmp` stays writable).
    #[serde(default)]
    pub read_only_root: bool,
}

impl App {
    /// The moment before which an instance of this process and index counts as told to restart, if any.
    pub fn restart_before(&self, process: &ProcessType, index: u32) -> Option<Timestamp> {
        let one = format!("{process}.{index}");
        ["", process.as_str(), &one].into_iter().filter_map(|k| self.restarts.get(k)).max().copied()
    }
}
