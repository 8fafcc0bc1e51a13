//! Releases: what an app runs, immutable and numbered without gaps.

use crate::http_policy::Places;
use crate::{AppId, BuildId, ProcessType, ReleaseId, SlugId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Content-addressed: what an engine runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// What the engine runs: an image id `sha256:…`, or `name@sha256:…`.
    pub reference: String,
    /// Digest of the OCI manifest in blob storage, when the image was made here: what other hosts pull.
    pub manifest: Option<String>,
}

/// How a process type starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The Procfile line's right side; none: the image's own command.
    pub command: Option<String>,
    pub check: HealthCheck,
}

/// What proves that an instance works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// It has run without a break for this many milliseconds (process types without a port).
    Running { millis: u64 },
    /// Something accepts connections on `PORT`.
    Tcp,
    /// `GET path` on `PORT` answers 200 to 399.
    Http { path: String },
    /// A command in the container exits 0.
    Command { argv: Vec<String> },
}

/// A probe and its patience.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub probe: HealthProbe,
    /// How long an instance may take to become healthy the first time; then it is stopped (R10).
    pub start_seconds: u32,
    /// Pause between probes once it is healthy.
    pub interval_seconds: u32,
    /// Time limit of one probe.
    pub timeout_seconds: u32,
    /// Successes in a row that make it healthy.
    pub successes: u32,
    /// Failures in a row that make it unhealthy again.
    pub failures: u32,
}

impl HealthCheck {
    /// What applies where nobody set anything: `PORT` bound within 60 s for web, running for 2 s for the rest.
    pub fn default_for(process: &ProcessType) -> Self {
        let probe = if process.is_web() { HealthProbe::Tcp } else { HealthProbe::Running { millis: 2000 } };
        Self { probe, start_seconds: 60, interval_seconds: 5, timeout_seconds: 5, successes: 1, failures: 3 }
    }
}

/// Whether a release made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// Being rolled out (or in its release phase).
    Pending,
    /// Was seen serving, or had nothing to serve.
    Succeeded,
    /// Its release phase failed, or it never became healthy.
    Failed,
}

/// One version of an app: image × config × process types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub id: ReleaseId,
    pub app: AppId,
    /// From 1, without gaps.
    pub version: u64,
    pub status: ReleaseStatus,
    /// `Deploy abc1234`, `Set A, B config vars`, `Rollback to v3`.
    pub description: String,
    pub build: Option<BuildId>,
    pub slug: Option<SlugId>,
    /// None: no code yet (config set before the first push).
    pub image: Option<ImageRef>,
    /// Whether commands go through the stack's launcher.
    pub has_launcher: bool,
    /// Where `web` listens, if the image says it.
    #[serde(default)]
    pub port: Option<u16>,
    pub commit: Option<String>,
    pub config_rev: u64,
    pub processes: BTreeMap<ProcessType, ProcessSpec>,
    /// How HTTP requests are treated, by `app.json`; what was set by hand lies over it.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub routes: Places,
    /// Whether `app.json` wants the image's file system read-only; the app's own setting wants it besides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root: bool,
    /// The Procfile's `release:` command, if it has one; runs before anything is placed.
    pub release_command: Option<String>,
    /// Config set without a restart: instances of releases from this number on count as this one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_from: Option<u64>,
    /// The release phase is over (or there is none): instances may be placed.
    pub released: bool,
    pub user: UserId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Why it failed: for people, with the last lines where there are any.
    pub failure: Option<String>,
    /// It failed for no fault of its own: the release of this number took its place before it was up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<u64>,
}

impl Release {
    /// Whether an instance of that release may stay where this release is wanted.
    pub fn covers(&self, version: u64) -> bool {
        version == self.version || self.keeps_from.is_some_and(|from| (from..self.version).contains(&version))
    }
}
