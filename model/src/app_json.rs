//! `app.json`, as far as Flex acts on it. Comments (`//`, `/* */`) and trailing commas are tolerated, because people
//! write them; a value of the wrong type is an error that names the field.

use crate::http_policy::{HttpPolicy, Places};
use crate::{BuildpackRef, ConfigKey, HealthCheck, HealthProbe, Memory, ProcessType};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The file's size limit: beyond it, it is not a manifest.
pub const MAX_BYTES: usize = 256 << 10;

/// Why the file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("app.json: {0}")]
pub struct AppJsonError(pub String);

/// Where a config var of app.json gets its first value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// A fixed default.
    Value(String),
    /// `"generator": "secret"`: 64 random hex digits, made at the first deploy.
    Generated,
    /// No default; the app does not start without it.
    Required,
    /// No default; may stay unset.
    Optional,
}

/// What Flex uses of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppJson {
    pub name: Option<String>,
    pub buildpacks: Vec<BuildpackRef>,
    pub env: BTreeMap<ConfigKey, EnvValue>,
    /// Quantity and size at the first deploy.
    pub formation: BTreeMap<ProcessType, (u32, Option<Memory>)>,
    pub checks: BTreeMap<ProcessType, HealthCheck>,
    pub postdeploy: Option<String>,
    /// What to build on, where nobody chose it for the app.
    pub stack: Option<String>,
    /// Rather no build than one with another version of a language than the app asks for.
    pub strict_versions: bool,
    /// How HTTP requests are treated, by host and path.
    pub routes: Places,
    /// `"flex": {"read_only_root": true}`: instances run with the image's file system read-only.
    pub read_only_root: bool,
}

#[derive(Deserialize)]
struct Raw {
    name: Option<String>,
    #[serde(default)]
    buildpacks: Vec<RawBuildpack>,
    #[serde(default)]
    env: BTreeMap<String, RawEnv>,
    #[serde(default)]
    formation: BTreeMap<String, RawFormation>,
    #[serde(default)]
    healthchecks: BTreeMap<String, Vec<RawCheck>>,
    #[serde(default)]
    scripts: BTreeMap<String, RawScript>,
    stack: Option<String>,
    #[serde(default)]
    strict_versions: bool,
    #[serde(default)]
    routes: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
    flex: Option<serde_json::Value>,
}

/// What only Flex has a word for. A field that is misspelled would leave an app less hardened than it says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFlex {
    #[serde(default)]
    read_only_root: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawBuildpack {
    Object { url: String },
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawEnv {
    Text(String),
    Object { value: Option<serde_json::Value>, generator: Option<String>, required: Option<bool> },
}

#[derive(Deserialize)]
struct RawFormation {
    quantity: Option<u32>,
    size: Option<String>,
    memory: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawScript {
    Text(String),
    Object { command: String },
}

#[derive(Deserialize)]
struct RawCheck {
    #[serde(rename = "type")]
    kind: Option<String>,
    path: Option<String>,
    command: Option<Vec<String>>,
    timeout: Option<u32>,
    attempts: Option<u32>,
    wait: Option<u32>,
    #[serde(rename = "initialDelay")]
    initial_delay: Option<u32>,
}

/// Reads an app.json.
///
/// # Errors
/// Not JSON (with line and column), a field of the wrong type, or a value that breaks its noun's grammar.
pub fn parse(text: &str) -> Result<AppJson, AppJsonError> {
    if text.len() > MAX_BYTES {
        return Err(AppJsonError(format!("larger than {} KiB", MAX_BYTES >> 10)));
    }
    let raw: Raw = serde_json::from_str(&without_comments(text)).map_err(|e| AppJsonError(e.to_string()))?;
    let invalid = |field: &str, e: &dyn std::fmt::Display| AppJsonError(format!("{field}: {e}"));
    let mut out = AppJson { name: raw.name, stack: raw.stack, strict_versions: raw.strict_versions, ..AppJson::default() };
    for b in raw.buildpacks {
        let (RawBuildpack::Object { url } | RawBuildpack::Text(url)) = b;
        out.buildpacks.push(url.parse().map_err(|e| invalid("buildpacks", &e))?);
    }
    for (key, value) in raw.env {
        let key: ConfigKey = key.parse().map_err(|e| invalid("env", &e))?;
        out.env.insert(key, env_value(value));
    }
    for (kind, f) in raw.formation {
        let field = format!("formation.{kind}");
        let kind: ProcessType = kind.parse().map_err(|e| invalid(&field, &e))?;
        // A `size` may be one of Heroku's dyno names, which mean nothing here; a size that reads as memory counts.
        let memory = match (f.memory, f.size) {
            (Some(m), _) => Some(m.parse().map_err(|e| invalid(&field, &e))?),
            (None, size) => size.and_then(|s| s.parse().ok()),
        };
        out.formation.insert(kind, (f.quantity.unwrap_or(1).min(crate::app::MAX_QUANTITY), memory));
    }
    for (kind, checks) in raw.healthchecks {
        let field = format!("healthchecks.{kind}");
        let kind: ProcessType = kind.parse().map_err(|e| invalid(&field, &e))?;
        // Dokku's format allows several; the start-up one (or the first) decides.
        if let Some(c) = checks.iter().find(|c| c.kind.as_deref() == Some("startup")).or(checks.first()) {
            out.checks.insert(kind.clone(), check(c, &kind).map_err(|e| AppJsonError(format!("{field}: {e}")))?);
        }
    }
    out.postdeploy = raw.scripts.into_iter().find(|(k, _)| k == "postdeploy").map(|(_, s)| match s {
        RawScript::Text(c) | RawScript::Object { command: c } => c,
    });
    if let Some(flex) = raw.flex {
        let flex: RawFlex = serde_json::from_value(flex).map_err(|e| invalid("flex", &e))?;
        out.read_only_root = flex.read_only_root;
    }
    if raw.routes.len() > MAX_ROUTES {
        return Err(AppJsonError(format!("routes: more than {MAX_ROUTES} of them")));
    }
    for (place, fields) in raw.routes {
        let field = format!("routes[{place:?}]");
        out.routes.insert(place.parse().map_err(|e| invalid(&field, &e))?, policy(fields).map_err(|e| invalid(&field, &e))?);
    }
    Ok(out)
}

/// The most places that `routes` may name.
const MAX_ROUTES: usize = 50;

fn policy(fields: serde_json::Map<String, serde_json::Value>) -> Result<HttpPolicy, String> {
    let policy = HttpPolicy::read(fields)?;
    if policy.basic_auth.on().is_some() {
        return Err("basic_auth: passwords do not belong into a repository; set them with flex routes:set --basic-auth".into());
    }
    Ok(policy)
}

fn env_value(raw: RawEnv) -> EnvValue {
    match raw {
        RawEnv::Text(v) => EnvValue::Value(v),
        RawEnv::Object { generator: Some(g), .. } if g == "secret" => EnvValue::Generated,
        RawEnv::Object { value: Some(serde_json::Value::String(v)), .. } => EnvValue::Value(v),
        RawEnv::Object { value: Some(v), .. } if !v.is_null() => EnvValue::Value(v.to_string()),
        RawEnv::Object { required: Some(false), .. } => EnvValue::Optional,
        RawEnv::Object { .. } => EnvValue::Required,
    }
}

fn check(c: &RawCheck, kind: &ProcessType) -> Result<HealthCheck, String> {
    let mut out = HealthCheck::default_for(kind);
    if let Some(path) = &c.path {
        if !path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("path must start with / and hold no spaces".into());
        }
        out.probe = HealthProbe::Http { path: path.clone() };
    } else if let Some(argv) = &c.command {
        if argv.is_empty() {
            return Err("command must not be empty".into());
        }
        out.probe = HealthProbe::Command { argv: argv.clone() };
    }
    out.timeout_seconds = c.timeout.unwrap_or(out.timeout_seconds).clamp(1, 60);
    let attempts = c.attempts.unwrap_or(12).clamp(1, 1000);
    let wait = c.wait.unwrap_or(out.interval_seconds).clamp(1, 300);
    if c.attempts.is_some() || c.wait.is_some() || c.initial_delay.is_some() {
        out.start_seconds = (attempts * wait + c.initial_delay.unwrap_or(0)).clamp(5, 3600);
    }
    Ok(out)
}

/// Blanks out comments and commas before a closing bracket, keeping every byte's line and column.
fn without_comments(text: &str) -> String {
    let mut out: Vec<u8> = text.trim_start_matches('\u{feff}').bytes().collect();
    let (mut i, mut in_string, mut comma) = (0, false, None::<usize>);
    while i < out.len() {
        match out[i] {
            b'\\' if in_string => i += 1,
            b'"' => {
                in_string = !in_string;
                comma = None;
            }
            _ if in_string => {}
            b'/' if out.get(i + 1) == Some(&b'/') => {
                while i < out.len() && out[i] != b'\n' {
                    out[i] = b' ';
                    i += 1;
                }
                continue;
            }
            b'/' if out.get(i + 1) == Some(&b'*') => {
                while i < out.len() && !(out[i] == b'*' && out.get(i + 1) == Some(&b'/')) {
                    if out[i] != b'\n' {
                        out[i] = b' ';
                    }
                    i += 1;
                }
                for b in out.iter_mut().skip(i).take(2) {
                    *b = b' ';
                }
                continue;
            }
            b',' => comma = Some(i),
            b'}' | b']' => {
                if let Some(at) = comma.take() {
                    out[at] = b' ';
                }
            }
            b if !b.is_ascii_whitespace() => comma = None,
            _ => {}
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_commented_file() {
        let text = r#"{
          // what it is
          "name": "x // not a comment", /* and
          more */
          "buildpacks": [{"url": "heroku/python"}, "https://h/x.git",],
          "env": {"A": "1", "S": {"generator": "secret"}, "R": {"description": "d"}, "O": {"required": false}, "N": {"value": 3}},
          "formation": {"web": {"quantity": 2, "size": "256M"}, "worker": {"size": "Standard-1X"}},
          "healthchecks": {"web": [{"type": "startup", "path": "/up", "attempts": 3, "wait": 2}]},
          "scripts": {"postdeploy": "rake seed",},
          "strict_versions": true,
        }"#;
        let a = parse(text).unwrap();
        assert_eq!(a.name.as_deref(), Some("x // not a comment"));
        assert_eq!(a.buildpacks.len(), 2);
        let env: Vec<_> = a.env.values().cloned().collect();
        assert_eq!(
            env,
            [
                EnvValue::Value("1".into()),
                EnvValue::Value("3".into()),
                EnvValue::Optional,
                EnvValue::Required,
                EnvValue::Generated
            ]
        );
        assert_eq!(a.formation[&ProcessType::web()], (2, Some(Memory::from_mib(256))));
        assert_eq!(a.checks[&ProcessType::web()].probe, HealthProbe::Http { path: "/up".into() });
        assert_eq!(a.checks[&ProcessType::web()].start_seconds, 6);
        assert_eq!(a.postdeploy.as_deref(), Some("rake seed"));
        assert!(a.strict_versions && !parse("{}").unwrap().strict_versions);
    }

    #[test]
    fn routes_are_policies_by_place() {
        let a = parse(r#"{"routes": {"*": {"https_redirect": true}, "/api": {"timeout_seconds": 5}}}"#).unwrap();
        let places: Vec<String> = a.routes.keys().map(ToString::to_string).collect();
        assert_eq!(places, ["*", "/api"]);
        for (text, why) in [
            (r#"{"routes": {"/a b": {}}}"#, "routes[\"/a b\"]: path"),
            (r#"{"routes": {"*": {"timeout_seconds": 0}}}"#, "routes[\"*\"]: timeout_seconds"),
            (r#"{"routes": {"*": {"timeout": 1}}}"#, "unknown field `timeout`"),
            (r#"{"routes": {"*": {"basic_auth": {"users": {"a": "b"}}}}}"#, "repository"),
            (r#"{"routes": {"*": 1}}"#, "line 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_flex_alone_knows_is_read_strictly() {
        assert!(parse(r#"{"flex": {"read_only_root": true}}"#).unwrap().read_only_root);
        assert!(!parse(r#"{"flex": {"read_only_root": false}}"#).unwrap().read_only_root);
        assert!(!parse(r#"{"flex": {}}"#).unwrap().read_only_root);
        for (text, why) in [
            (r#"{"flex": {"readonly_root": true}}"#, "flex: unknown field `readonly_root`"),
            (r#"{"flex": {"read_only_root": "yes"}}"#, "flex: invalid type"),
            (r#"{"flex": true}"#, "flex: invalid type"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn refuses_with_the_place() {
        assert!(parse("{\n\"name\": 3}").unwrap_err().to_string().contains("line 2"));
        assert!(parse("{\n\"strict_versions\": \"yes\"}").unwrap_err().to_string().contains("line 2"));
        assert!(parse(r#"{"env":{"A B":"1"}}"#).unwrap_err().to_string().contains("env"));
        assert!(parse("[]").is_err());
        assert!(parse("").is_err());
        assert!(parse("{\"a\": \"\\\"").is_err());
    }
}
