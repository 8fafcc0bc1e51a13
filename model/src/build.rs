//! Builds and their product, the slug.

use crate::http_policy::Places;
use crate::{
    AppId, BuildId, CommitId, HealthCheck, ImageRef, Invalid, Memory, ProcessType, SlugId, SourceId, StackName, Timestamp, UserId,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Forward-only: `queued → running → succeeded | failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// Waits for another build of the same app, or for a free builder.
    Queued,
    Running,
    Succeeded,
    Failed,
}

impl BuildStatus {
    /// Whether it can still change.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The steps between a push and the first answered request, in order. Each step's duration is kept with the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildPhase {
    Receive,
    FetchCache,
    Detect,
    Compile,
    Pack,
    Release,
    Start,
    Healthy,
    Routed,
}

impl fmt::Display for BuildPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Receive => "receive",
            Self::FetchCache => "fetch cache",
            Self::Detect => "detect",
            Self::Compile => "compile",
            Self::Pack => "pack",
            Self::Release => "release",
            Self::Start => "start",
            Self::Healthy => "healthy",
            Self::Routed => "routed",
        })
    }
}

/// How long a phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub phase: BuildPhase,
    pub millis: u64,
}

/// Where the source of a build came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildSource {
    /// A git push of this commit.
    Push(CommitId),
    /// A tar archive handed in over the API.
    Archive(SourceId),
    /// No build at all: an image that the engine has or can pull.
    Image(String),
}

/// One attempt to turn a source into a slug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub id: BuildId,
    pub app: AppId,
    pub status: BuildStatus,
    pub source: BuildSource,
    /// What the user calls the source: a commit or `--version` text.
    pub source_version: Option<String>,
    pub stack: StackName,
    pub user: UserId,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub phases: Vec<PhaseTime>,
    /// Buildpacks that ran, as shown to users.
    pub buildpacks: Vec<String>,
    pub slug: Option<SlugId>,
    /// The release that it became.
    pub release: Option<u64>,
    /// Why it failed: one sentence for people.
    pub error: Option<String>,
    /// Someone asked for it to stop.
    #[serde(default)]
    pub cancel: bool,
}

/// What a build leaves behind: an image and what is known about it. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    pub id: SlugId,
    pub app: AppId,
    pub image: ImageRef,
    /// Compressed size of the app's own layer.
    pub size_bytes: u64,
    pub stack: StackName,
    pub commit: Option<String>,
    /// The Procfile's entries over the defaults of `bin/release`; `release` among them if given.
    pub process_types: BTreeMap<ProcessType, String>,
    /// Default config vars of `bin/release`: set only where the app has none.
    pub config_vars: BTreeMap<String, String>,
    /// Add-on lines of `bin/release`.
    pub addons: Vec<String>,
    /// Health checks of app.json.
    pub checks: BTreeMap<ProcessType, HealthCheck>,
    /// What app.json's `formation` asks for at the first deploy: quantity and memory.
    pub formation: BTreeMap<ProcessType, (u32, Option<Memory>)>,
    /// app.json's `scripts.postdeploy`, run once after the first release.
    pub postdeploy: Option<String>,
    /// app.json's `routes`.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub routes: Places,
    /// app.json's `flex.read_only_root`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root: bool,
    pub buildpack_description: Option<String>,
    /// Whether the image has the stack's launcher (`/opt/flex/launch`), which sources `.profile.d`.
    pub has_launcher: bool,
    /// The port that the image says it listens on, where it says one.
    #[serde(default)]
    pub port: Option<u16>,
    pub created_at: Timestamp,
}

/// Which buildpack: a built-in by name, a git or archive URL (`#ref` allowed), or a path inside the repository.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct BuildpackRef(String);

/// What kind of place a [`BuildpackRef`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildpackKind<'a> {
    /// `python` or `heroku/python`: the name without the prefix.
    BuiltIn(&'a str),
    /// `https://…/x.tgz`, `.tar.gz`, `.zip` is not offered.
    Archive(&'a str),
    /// A git URL and an optional ref after `#`.
    Git(&'a str, Option<&'a str>),
    /// `./path`, inside the repository.
    Path(&'a str),
}

impl BuildpackRef {
    /// As given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Which kind it is.
    pub fn kind(&self) -> BuildpackKind<'_> {
        let s = self.0.as_str();
        if s.starts_with("./") {
            return BuildpackKind::Path(s);
        }
        if s.contains("://") {
            let (url, fragment) = s.split_once('#').map_or((s, None), |(u, f)| (u, Some(f)));
            let path = url.split('?').next().unwrap_or(url);
            if path.ends_with(".tgz") || path.ends_with(".tar.gz") || path.ends_with(".tar") {
                return BuildpackKind::Archive(url);
            }
            return BuildpackKind::Git(url, fragment);
        }
        BuildpackKind::BuiltIn(s.rsplit('/').next().unwrap_or(s))
    }
}

impl fmt::Debug for BuildpackRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for BuildpackRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for BuildpackRef {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |rule: &str| Err(Invalid::new("buildpack", s, rule));
        let s = s.trim();
        if s.is_empty() || s.len() > 500 || s.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return bad("use a built-in's name, a URL or ./path, without spaces");
        }
        if let Some(path) = s.strip_prefix("./") {
            if path.split('/').any(|p| p.is_empty() || p == "..") {
                return bad("a path must stay inside the repository");
            }
        } else if let Some((scheme, rest)) = s.split_once("://") {
            if !matches!(scheme, "https" | "http" | "git" | "file") || rest.is_empty() || rest.starts_with('-') {
                return bad("use an https, http, git or file URL");
            }
            if s.split_once('#').is_some_and(|(_, f)| crate::names::check_branch(f).is_err()) {
                return bad("what follows # must be a branch, tag or commit");
            }
        } else {
            let name = s.rsplit('/').next().unwrap_or(s);
            let ok = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !name.starts_with('-')
                && !name.is_empty();
            if !ok || s.matches('/').count() > 1 {
                return bad("use a built-in's name such as python, a URL, or ./path");
            }
        }
        Ok(Self(s.to_owned()))
    }
}

impl<'de> Deserialize<'de> for BuildpackRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildpack_refs() {
        let p = |s: &str| s.parse::<BuildpackRef>().unwrap();
        assert_eq!(p("heroku/python").kind(), BuildpackKind::BuiltIn("python"));
        assert_eq!(p("https://h/x.git#v1").kind(), BuildpackKind::Git("https://h/x.git", Some("v1")));
        assert_eq!(p("https://h/x.tgz").kind(), BuildpackKind::Archive("https://h/x.tgz"));
        assert_eq!(p("./bp/one").kind(), BuildpackKind::Path("./bp/one"));
        for bad in ["", "--upload-pack=x", "ssh://h/x", "./../x", "https://h/x#--foo", "a b", "x/y/z", "ext::sh -c id"] {
            assert!(bad.parse::<BuildpackRef>().is_err(), "{bad}");
        }
    }
}
