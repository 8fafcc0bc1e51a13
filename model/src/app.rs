//! An app and what its owner wants of it. Everything here is desired state; what really runs is in reports.

use crate::{AppId, AppName, BuildpackRef, HealthCheck, Memory, ProcessType, StackName, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many instances of a process type, and how large each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessScale {
    pub quantity: u32,
    /// Hard limit; the engine kills what exceeds it.
    pub memory: Memory,
    /// Relative CPU weight, 1024 being an ordinary instance's.
    pub cpu_shares: u32,
    /// Hard limit in thousandths of a core; none: whatever is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
}

impl ProcessScale {
    /// What a process type gets before anyone asks for something else.
    pub const fn default_for(quantity: u32) -> Self {
        Self { quantity, memory: Memory::from_mib(512), cpu_shares: ORDINARY_SHARES, cpu_millis: None }
    }
}

/// The CPU weight that instances have before anyone asks for another.
pub const ORDINARY_SHARES: u32 = 1024;

/// The weights that the kernel knows.
pub const SHARES: std::ops::RangeInclusive<u32> = 2..=262_144;

/// Cores, such as 0.5, in thousandths.
///
/// # Errors
/// Less than a hundredth (engines refuse it) or more than any machine has.
pub fn cpu_millis(cores: f64) -> Result<u32, String> {
    if (0.01..=1024.0).contains(&cores) {
        // In range, so neither loss nor sign.
        Ok((cores * 1000.0).round() as u32)
    } else {
        Err(format!("{cores} cores: use 0.01 to 1024"))
    }
}

/// A size that a server gives a name to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSize {
    pub memory: Memory,
    pub cpu_shares: u32,
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
}

/// Who keeps an app from being deployed, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLock {
    /// E-mail.
    pub by: String,
    pub at: Timestamp,
    /// In their own words; may be empty.
    pub reason: String,
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
    /// Someone chose the stack: app.json's has no say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stack_by_hand: bool,
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
    /// What is not to run although the formation wants it, until it is started again. Keys as in `restarts`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub stopped: BTreeSet<String>,
    /// No new code may be deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<AppLock>,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace_seconds: u32,
    /// Run with the image's file system read-only (`/tmp` stays writable), whatever the release's app.json says.
    #[serde(default)]
    pub read_only_root: bool,
    /// Whether certificates for its domains are made automatically.
    #[serde(default)]
    pub acm: bool,
    /// A release that gets a share of the requests beside the one that should run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// How routers write the app's access lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_lines: Option<crate::LineForm>,
}

/// A share of an app's requests for another release than the one that should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// None: the next one that a build makes.
    pub version: Option<u64>,
    /// In percent, 1 to 99.
    pub weight: u32,
    /// It came to be as a canary: no other requests than its share were ever sent to it, and given up it is no release to
    /// go back to.
    #[serde(default)]
    pub built: bool,
}

impl App {
    /// Which instances of a process type are to run, by number: what the formation says, without those that were stopped.
    pub fn wanted(&self, process: &ProcessType) -> BTreeSet<u32> {
        let quantity = self.formation.get(process).map_or(0, |s| s.quantity);
        if self.stopped.contains("") || self.stopped.contains(process.as_str()) {
            return BTreeSet::new();
        }
        (1..=quantity).filter(|i| self.stopped.is_empty() || !self.stopped.contains(&format!("{process}.{i}"))).collect()
    }

    /// The moment before which an instance of this process and index counts as told to restart, if any.
    pub fn restart_before(&self, process: &ProcessType, index: u32) -> Option<Timestamp> {
        let one = format!("{process}.{index}");
        ["", process.as_str(), &one].into_iter().filter_map(|k| self.restarts.get(k)).max().copied()
    }
}
