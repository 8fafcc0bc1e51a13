//! The parts of the API's answers that the CLI shows. A field that a server leaves out must not break a client: what is
//! not essential is optional.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct Who {
    #[serde(default)]
    pub email: String,
}

#[derive(Debug, Deserialize)]
pub struct App {
    pub name: String,
    pub web_url: Option<String>,
    pub git_url: Option<String>,
    pub owner: Option<Who>,
    pub stack: Option<Named>,
    #[serde(default)]
    pub maintenance: bool,
    pub slug_size: Option<u64>,
    pub created_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Version {
    pub version: u64,
}

#[derive(Debug, Deserialize)]
pub struct Dyno {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: Option<String>,
    pub command: Option<String>,
    pub state: String,
    pub updated_at: String,
    pub release: Option<Version>,
    pub attach_url: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Formation {
    #[serde(rename = "type")]
    pub kind: String,
    pub quantity: u64,
    pub size: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Release {
    pub id: String,
    pub version: u64,
    pub description: Option<String>,
    pub status: Option<String>,
    pub user: Option<Who>,
    pub created_at: String,
    #[serde(default)]
    pub current: bool,
    #[serde(default)]
    pub eligible_for_rollback: bool,
    pub commit: Option<String>,
    pub failure: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Phase {
    pub phase: String,
    pub millis: u64,
}

#[derive(Debug, Deserialize)]
pub struct SourceBlob {
    pub version: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct BuildPack {
    pub name: Option<String>,
    pub url: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Build {
    pub id: String,
    pub status: String,
    pub user: Option<Who>,
    pub created_at: String,
    pub output_stream_url: Option<String>,
    pub source_blob: Option<SourceBlob>,
    pub error: Option<String>,
    #[serde(default)]
    pub phases: Vec<Phase>,
    #[serde(default)]
    pub buildpacks: Option<Vec<BuildPack>>,
}

#[derive(Debug, Deserialize)]
pub struct Domain {
    pub hostname: String,
    pub kind: Option<String>,
    pub cname: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Key {
    pub id: String,
    pub fingerprint: String,
    pub comment: Option<String>,
    pub public_key: String,
}

#[derive(Debug, Deserialize)]
pub struct Buildpack {
    pub buildpack: BuildPack,
}

#[derive(Debug, Deserialize)]
pub struct Collaborator {
    pub user: Who,
    pub role: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Event {
    pub at: String,
    pub actor_name: String,
    pub kind: String,
    pub message: String,
}

#[derive(Debug, Deserialize)]
pub struct Account {
    pub email: String,
    #[serde(default)]
    pub admin: bool,
    pub created_at: Option<String>,
}
