//! A canary: a release that gets a share of an app's requests beside the one that runs.

use crate::AppRef;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An app's canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Canary {
    pub app: AppRef,
    /// None: the next release that a build makes.
    pub version: Option<u64>,
    /// The release that gets the other requests.
    pub stable: Option<u64>,
    /// Share of the requests, in percent.
    pub weight: u32,
    /// `waiting` (for the next build), `starting`, `serving` or `failed`.
    pub state: String,
    /// Instances of it that requests are sent to.
    pub instances: u64,
}

/// A canary to begin, or another share for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetCanary {
    /// `v12`; `next` or left out: the next release that a build makes.
    #[serde(default)]
    pub release: Option<String>,
    /// 1 to 99.
    pub weight: u32,
}
