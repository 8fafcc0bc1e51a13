//! Sources, builds and slugs.

use crate::schema::{Id, ProcessTypeText, Time};
use crate::{AppRef, Buildpack, NameRef, ReleaseRef, SlugRef, UserRef};
use flex_model::{BuildId, ProcessType, SlugId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A place to upload a source archive to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Source {
    pub source_blob: SourceUrls,
}

/// Both hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceUrls {
    /// For `POST /apps/{app}/builds`.
    pub get_url: String,
    /// Where to `PUT` the archive.
    pub put_url: String,
}

/// How a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    Pending,
    Succeeded,
    Failed,
}

impl BuildStatus {
    /// As it is sent.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildSource {
    /// Flex: the kind of source: `push`, `archive` or `image`.
    pub url: String,
    /// A commit, or what the user called it.
    pub version: Option<String>,
    pub version_description: Option<String>,
    pub checksum: Option<String>,
}

/// How long a phase of a build took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PhaseTime {
    /// One of `receive`, `fetch_cache`, `detect`, `compile`, `pack`, `release`, `start`, `healthy`, `routed`.
    pub phase: String,
    pub millis: u64,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Build {
    #[schema(value_type = Id)]
    pub id: BuildId,
    pub app: AppRef,
    pub status: BuildStatus,
    pub stack: String,
    pub user: UserRef,
    pub source_blob: BuildSource,
    pub slug: Option<SlugRef>,
    pub release: Option<ReleaseRef>,
    pub buildpacks: Vec<Buildpack>,
    /// Plain text, live while it runs. Holds a secret.
    pub output_stream_url: String,
    pub created_at: Time,
    pub updated_at: Time,
    /// Flex.
    pub phases: Vec<PhaseTime>,
    /// Flex: why it failed.
    pub error: Option<String>,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateBuild {
    pub source_blob: NewSource,
}

/// A source, or an image in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewSource {
    /// A `get_url` that `POST /sources` gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Flex: an image that the engine has or can pull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What to call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Where a slug can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlugBlob {
    pub method: String,
    /// Flex: the manifest of the image, by the OCI distribution protocol.
    pub url: String,
}

/// The product of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slug {
    #[schema(value_type = Id)]
    pub id: SlugId,
    /// None where the image was not made here.
    pub blob: Option<SlugBlob>,
    pub buildpack_provided_description: Option<String>,
    pub checksum: Option<String>,
    pub commit: Option<String>,
    pub commit_description: Option<String>,
    #[schema(value_type = BTreeMap<ProcessTypeText, String>)]
    pub process_types: BTreeMap<ProcessType, String>,
    /// Bytes.
    pub size: u64,
    pub stack: NameRef,
    pub created_at: Time,
    pub updated_at: Time,
    /// Flex: what the engine runs.
    pub image: String,
    /// Flex: the add-on lines of `bin/release`.
    pub addons: Vec<String>,
}
