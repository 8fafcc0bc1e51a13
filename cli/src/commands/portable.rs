//! An app's settings as one document, and an app from such a document: export, import, clone.
//!
//! Code, domains, drains and people are no part of it: code is in git, a domain can be of one app only, a drain's URL is a
//! secret that the server keeps, and who works on an app is its owner's decision.

use super::portable_ways::{self, Original, Ways};
use crate::context::{Context, typed};
use crate::error::{CliError, Result, while_doing};
use crate::output::{self, Progress};
use flex_api::{
    App, BuildpackInstallation, CheckSource, ConfigChanges, ConfigVars, CreateApp, Formation, LogRetention, Nothing,
    ProcessCheck, SetBuildpack, SetBuildpacks, SetCheck, SetLogRetention, UpdateApp, UpdateFormations,
};
use flex_model::{AppName, BuildpackRef, DomainName, ProcessType, Secret};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Of the document; one that is newer is refused, an older one is read: what it does not say is not set.
const FORMAT: u32 = 2;

/// What of a document is read first.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// An app's settings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    name: AppName,
    /// None: as the server and app.json say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stack: Option<String>,
    #[serde(default)]
    buildpacks: Vec<BuildpackRef>,
    deploy_branches: Vec<String>,
    stop_grace_seconds: u32,
    #[serde(default)]
    read_only_root: bool,
    /// None: left out.
    config: Option<BTreeMap<String, Secret>>,
    #[serde(default)]
    checks: BTreeMap<ProcessType, SetCheck>,
    /// `web=2:512M`, as for `flex ps:scale`.
    #[serde(default)]
    formation: Vec<String>,
    /// What is not ordinary of their share of the processors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    cpu: BTreeMap<ProcessType, Cpu>,
    /// Routing: what holds for all routes, pages, routes.
    #[serde(default, skip_serializing_if = "Ways::is_empty")]
    ways: Ways,
    /// Where it is not the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_retention: Option<SetLogRetention>,
    /// `text` or `json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access_lines: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access_lines_per_mille: Option<u16>,
    /// Certificates are made for its domains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    acm: bool,
}

/// A process type's share of the processors.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cpu {
    shares: u32,
    /// Hard limit in thousandths of a core.
    millis: Option<u32>,
}

impl Cpu {
    const ORDINARY: u32 = 1024;

    fn of(f: &Formation) -> Option<(ProcessType, Self)> {
        let ordinary = f.cpu_shares == Self::ORDINARY && f.cpu_millis.is_none();
        (!ordinary).then(|| (f.kind.clone(), Self { shares: f.cpu_shares, millis: f.cpu_millis }))
    }
}

async fn read(cx: &Context, config: bool) -> Result<Document> {
    let app: App = cx.client.get(&cx.path("")?).await?;
    let buildpacks: Vec<BuildpackInstallation> = cx.client.list(&cx.path("/buildpack-installations")?).await?;
    let formation: Vec<Formation> = cx.client.list(&cx.path("/formation")?).await?;
    let checks: Vec<ProcessCheck> = cx.client.list(&cx.path("/checks")?).await?;
    let kept: LogRetention = cx.client.get(&cx.path("/log-retention")?).await?;
    let log_retention = SetLogRetention {
        max_bytes: Some(kept.max_bytes).filter(|n| *n != kept.default_max_bytes),
        max_age_seconds: Some(kept.max_age_seconds).filter(|n| *n != kept.default_max_age_seconds),
    };
    let ways = portable_ways::read(cx, &portable_ways::own_host(&app)?).await?;
    let config = match config {
        true => Some(cx.client.get::<ConfigVars>(&cx.path("/config-vars")?).await?.0),
        false => None,
    };
    let reference = |b: BuildpackInstallation| b.buildpack.url.parse().map_err(|e| CliError::failed(format!("{e}")));
    let set = |c: ProcessCheck| {
        let check = SetCheck {
            kind: Some(c.kind),
            path: c.path,
            command: c.command,
            millis: c.millis,
            start_seconds: Some(c.start_seconds),
            interval_seconds: Some(c.interval_seconds),
            timeout_seconds: Some(c.timeout_seconds),
            successes: Some(c.successes),
            failures: Some(c.failures),
        };
        (c.process, check)
    };
    Ok(Document {
        format: FORMAT,
        name: app.name,
        stack: app.stack_by_hand.then_some(app.build_stack.name),
        buildpacks: buildpacks.into_iter().map(reference).collect::<Result<_>>()?,
        deploy_branches: app.deploy_branches,
        stop_grace_seconds: app.stop_grace_seconds,
        read_only_root: app.read_only_root,
        config,
        checks: checks.into_iter().filter(|c| c.source == CheckSource::Set).map(set).collect(),
        cpu: formation.iter().filter_map(Cpu::of).collect(),
        formation: formation.iter().map(|f| format!("{}={}:{}", f.kind, f.quantity, f.size)).collect(),
        ways,
        log_retention: Some(log_retention).filter(|r| *r != SetLogRetention::default()),
        access_lines: app.access_lines_json.map(|json| if json { "json" } else { "text" }.to_owned()),
        access_lines_per_mille: app.access_lines_per_mille,
        acm: app.acm,
    })
}

pub async fn export(cx: &Context, file: &Path, no_config: bool) -> Result<()> {
    let document = read(cx, !no_config).await?;
    if file == Path::new("-") {
        return output::json(&document);
    }
    let text = serde_json::to_string_pretty(&document).map_err(while_doing("write JSON"))?;
    let mut options = std::fs::OpenOptions::new();
    // It holds config vars.
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let failed = || while_doing(format!("write {}", file.display()));
    options.open(file).and_then(|mut f| writeln!(f, "{text}")).map_err(failed())?;
    let holds = if no_config { "Without config vars." } else { "It holds the config vars: keep it safe." };
    output::say(format!("Wrote {}. {holds}", file.display()));
    Ok(())
}

pub async fn import(cx: &Context, file: &Path, name: Option<&str>) -> Result<()> {
    let failed = || while_doing(format!("read {}", file.display()));
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map_err(failed())?
    } else {
        std::fs::read_to_string(file).map_err(failed())?
    };
    // What serde says may quote a value, and values may be secrets: only the place is said.
    let unknown = |e: serde_json::Error| {
        let (line, column) = (e.line(), e.column());
        CliError::usage(format!("{} is not what apps:export writes (line {line}, column {column}).", file.display()))
    };
    if serde_json::from_str::<Head>(&text).map_err(unknown)?.format > FORMAT {
        return Err(CliError::usage(format!("{} was written by a newer flex. Update this one.", file.display())));
    }
    let document: Document = serde_json::from_str(&text).map_err(unknown)?;
    make(cx, document, name, None).await
}

pub async fn clone(cx: &Context, name: &str, no_config: bool) -> Result<()> {
    let app: App = cx.client.get(&cx.path("")?).await?;
    let original = Original { own: portable_ways::own_host(&app)?, app: app.name };
    let document = read(cx, !no_config).await?;
    make(cx, document, Some(name), Some(&original)).await
}

async fn make(cx: &Context, document: Document, name: Option<&str>, original: Option<&Original>) -> Result<()> {
    let name: AppName = match name {
        Some(n) => n.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?,
        None => document.name.clone(),
    };
    let progress = Progress::start(format!("Creating {name}"));
    let created: Value = cx.client.post("/apps", &CreateApp { name: Some(name.clone()), stack: document.stack.clone() }).await?;
    progress.done();
    let own = portable_ways::own_host(&typed(created.clone())?)?;
    if let Err(e) = fill(cx, (&name, &own), &document, original).await {
        // Half an app would have to be found and removed by hand.
        let undone = cx.client.delete(&format!("/apps/{name}")).await;
        let left = if undone.is_ok() { "It was removed again." } else { "Remove it: flex apps:destroy" };
        return Err(e.hint(format!("{name} could not be made whole. {left}")));
    }
    let Some(app) = cx.show_or::<App>(created)? else { return Ok(()) };
    output::line(format!("{} | {}", app.web_url, app.git_url));
    output::say(format!("Its code comes with a push: git push {} main", app.git_url));
    if !document.formation.is_empty() {
        output::say(format!("It will run {} then.", document.formation.join(" ")));
    }
    Ok(())
}

async fn fill(
    cx: &Context,
    (name, own): (&AppName, &DomainName),
    document: &Document,
    original: Option<&Original>,
) -> Result<()> {
    let path = |rest: &str| format!("/apps/{name}{rest}");
    let progress = Progress::start("Copying its settings");
    let settings = UpdateApp {
        deploy_branches: Some(document.deploy_branches.clone()),
        stop_grace_seconds: Some(document.stop_grace_seconds),
        read_only_root: Some(document.read_only_root),
        access_lines: document.access_lines.clone(),
        access_lines_per_mille: document.access_lines_per_mille,
        ..UpdateApp::default()
    };
    cx.client.patch::<App>(&path(""), &settings).await?;
    if !document.buildpacks.is_empty() {
        let updates = document.buildpacks.iter().map(|b| SetBuildpack { buildpack: b.clone() }).collect();
        cx.client.put::<Vec<BuildpackInstallation>>(&path("/buildpack-installations"), &SetBuildpacks { updates }).await?;
    }
    for (process, check) in &document.checks {
        cx.client.put::<ProcessCheck>(&path(&format!("/checks/{process}")), check).await?;
    }
    if let Some(config) = document.config.as_ref().filter(|c| !c.is_empty()) {
        let mut changes = ConfigChanges::default();
        for (key, value) in config {
            let key = key.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
            changes.0.insert(key, Some(value.clone()));
        }
        cx.client.patch::<ConfigVars>(&path("/config-vars"), &changes).await?;
    }
    if !document.formation.is_empty() {
        let updates = document.formation.iter().map(|text| {
            let mut update = super::ps::change(text)?;
            if let Some(cpu) = document.cpu.get(&update.kind) {
                update.cpu_shares = Some(cpu.shares);
                update.cpu_millis = cpu.millis;
            }
            Ok(update)
        });
        let updates = UpdateFormations { updates: updates.collect::<Result<_>>()?, ahead: true };
        cx.client.patch::<Vec<Formation>>(&path("/formation"), &updates).await?;
    }
    if let Some(kept) = &document.log_retention {
        cx.client.patch::<LogRetention>(&path("/log-retention"), kept).await?;
    }
    // After the formation, which says what routes may lead to.
    portable_ways::write(cx, name, own, &document.ways, original).await?;
    if document.acm
        && let Err(e) = cx.client.post::<App>(&path("/acm"), &Nothing {}).await
    {
        output::warn(format!("Certificates are not made for {name}: {e}"));
    }
    progress.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_documents_are_read() {
        let old = r#"{"format":1,"name":"shop","stack":"flex-13","buildpacks":[],"deploy_branches":["main"],
            "stop_grace_seconds":30,"read_only_root":false,"config":{"A":"1"},"checks":{},"formation":["web=2:512M"]}"#;
        let read: Document = serde_json::from_str(old).unwrap();
        assert!(read.ways.is_empty() && read.log_retention.is_none() && !read.acm);
        // And what is at its default is not written.
        let text = serde_json::to_string(&read).unwrap();
        assert!(!text.contains("ways") && !text.contains("acm") && !text.contains("access"), "{text}");
    }
}
