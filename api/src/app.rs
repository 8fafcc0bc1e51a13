//! Apps, who else may work on them, their buildpacks and their domains.

use crate::schema::{AppNameText, BuildpackText, EmailText, HostNameText, Id, Time};
use crate::{AppRef, NameRef, UserRef};
use flex_model::{AppId, AppName, BuildpackRef, DomainId, DomainName, Email, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    #[schema(value_type = Id)]
    pub id: AppId,
    #[schema(value_type = AppNameText)]
    pub name: AppName,
    pub owner: UserRef,
    /// Whether certificates are made automatically.
    pub acm: bool,
    pub archived_at: Option<Time>,
    /// What the next push is built on.
    pub build_stack: NameRef,
    pub buildpack_provided_description: Option<String>,
    pub created_at: Time,
    pub generation: NameRef,
    /// Where git pushes to.
    pub git_url: String,
    pub internal_routing: bool,
    /// Every request is answered with a maintenance page.
    pub maintenance: bool,
    /// Flex: nothing can be deployed.
    pub locked: bool,
    /// Flex: whose lock it is.
    pub locked_by: Option<String>,
    pub lock_reason: Option<String>,
    pub organization: Option<NameRef>,
    pub process_tier: String,
    pub region: NameRef,
    /// When its newest good release was made.
    pub released_at: Option<Time>,
    pub repo_size: Option<u64>,
    /// Bytes.
    pub slug_size: Option<u64>,
    pub space: Option<NameRef>,
    /// What it runs on.
    pub stack: NameRef,
    /// Flex: someone chose the stack, so app.json's has no say.
    #[serde(default)]
    pub stack_by_hand: bool,
    pub team: Option<NameRef>,
    pub updated_at: Time,
    pub web_url: String,
    /// Flex: branches whose push deploys.
    pub deploy_branches: Vec<String>,
    /// Flex: instances run with a read-only file system (`/tmp` stays writable), also where the release's app.json does not
    /// say so.
    pub read_only_root: bool,
    /// Flex: seconds between SIGTERM and SIGKILL.
    pub stop_grace_seconds: u32,
    /// Flex: access lines as JSON objects; none: as the server is set.
    pub access_lines_json: Option<bool>,
    /// Flex: how many of a thousand requests without an error leave an access line; none: as the server is set.
    pub access_lines_per_mille: Option<u16>,
}

/// What a new app is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateApp {
    /// Made up if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AppNameText>)]
    pub name: Option<AppName>,
    /// Heroku's stacks mean this server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
}

/// What of an app is to change; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateApp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AppNameText>)]
    pub name: Option<AppName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<bool>,
    /// What the next push is built on; `default`: what the server and app.json say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_stack: Option<String>,
    /// Flex: 1 to 20 branches whose push deploys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_branches: Option<Vec<String>>,
    /// Flex: run with a read-only file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only_root: Option<bool>,
    /// Flex: 1 to 3600 seconds between SIGTERM and SIGKILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_seconds: Option<u32>,
    /// Flex: `text`, `json`, or `default`: as the server is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_lines: Option<String>,
    /// Flex: how many of a thousand requests without an error leave an access line; more than 1000: as the server is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_lines_per_mille: Option<u16>,
}

/// What someone is to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CollaboratorRole {
    Owner,
    Collaborator,
}

/// Someone who may work on an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collaborator {
    /// The user's.
    #[schema(value_type = Id)]
    pub id: UserId,
    pub app: AppRef,
    pub user: UserRef,
    pub role: CollaboratorRole,
    /// Always empty: a collaborator may do all that the owner may, except to destroy the app and to choose collaborators.
    pub permissions: Vec<NameRef>,
    pub created_at: Time,
    pub updated_at: Time,
}

/// Whom to let work on an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddCollaborator {
    #[schema(value_type = EmailText)]
    pub user: Email,
}

/// A buildpack by name and URL; where only one of them is known both are that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Buildpack {
    pub name: String,
    pub url: String,
}

impl Buildpack {
    /// What has one text for both.
    pub fn of(text: impl Into<String>) -> Self {
        let name = text.into();
        Self { url: name.clone(), name }
    }
}

/// A buildpack's place in an app's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildpackInstallation {
    /// From 0, in the order in which they run.
    pub ordinal: u32,
    pub buildpack: Buildpack,
}

/// The whole list of buildpacks; an empty one means detection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetBuildpacks {
    pub updates: Vec<SetBuildpack>,
}

/// One of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetBuildpack {
    #[schema(value_type = BuildpackText)]
    pub buildpack: BuildpackRef,
}

/// Whose a domain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DomainKind {
    /// The app's own under the platform's domain.
    Heroku,
    Custom,
}

/// A domain of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    #[schema(value_type = Id)]
    pub id: DomainId,
    pub app: AppRef,
    #[schema(value_type = HostNameText)]
    pub hostname: DomainName,
    pub kind: DomainKind,
    /// Where its DNS record is to point.
    #[schema(value_type = Option<HostNameText>)]
    pub cname: Option<DomainName>,
    pub status: String,
    pub sni_endpoint: Option<NameRef>,
    pub acm_status: Option<String>,
    pub acm_status_reason: Option<String>,
    pub created_at: Time,
    pub updated_at: Time,
}

/// A domain to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddDomain {
    #[schema(value_type = HostNameText)]
    pub hostname: DomainName,
}
