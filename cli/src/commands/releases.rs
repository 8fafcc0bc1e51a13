//! Releases and the way back.

use crate::args::{Releases, Wait};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Colour, Progress, paint};
use flex_api::{ConfigVars, Nothing, Release, ReleaseStatus, Rollback};
use flex_model::Secret;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub async fn run(cx: &Context, verb: Option<Releases>, num: usize) -> Result<()> {
    match verb {
        None => list(cx, num).await,
        Some(Releases::Info { of }) => info(cx, of.as_deref()).await,
        Some(Releases::Diff { from, to, show_values }) => diff(cx, &from, to.as_deref(), show_values).await,
        Some(Releases::Output { of }) => phase_output(cx, of.as_deref()).await,
        Some(Releases::Retry { of, wait }) => retry(cx, of.as_deref(), wait).await,
    }
}

async fn newest(cx: &Context, num: usize) -> Result<Value> {
    cx.client.get_newest(&cx.path("/releases")?, "version", num.clamp(1, 1000)).await
}

async fn list(cx: &Context, num: usize) -> Result<()> {
    let Some(releases) = cx.show_or::<Vec<Release>>(newest(cx, num).await?)? else { return Ok(()) };
    let app = cx.app()?;
    let Some(current) = releases.iter().find(|r| r.current).or(releases.first()) else {
        output::say(format!("{app} has no releases. Make one: git push flex main"));
        return Ok(());
    };
    output::heading(&format!("{app} Releases - Current: v{}", current.version));
    let now = jiff::Timestamp::now();
    let row = |r: &Release| {
        let status = match (r.status, r.superseded_by) {
            (ReleaseStatus::Failed, Some(by)) => format!(" (overtaken by v{by})"),
            (ReleaseStatus::Failed, None) => " (failed)".to_owned(),
            (ReleaseStatus::Pending, _) => " (rolling out)".to_owned(),
            (ReleaseStatus::Succeeded, _) => String::new(),
        };
        vec![
            format!("v{}", r.version),
            format!("{}{status}", r.description),
            r.user.email.clone(),
            output::moment(r.created_at, now),
        ]
    };
    output::set_in(&["v", "description", "user", "created_at"], &releases.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

/// `v3` or `3`.
fn version(text: &str) -> Result<u64> {
    let n = text.strip_prefix('v').unwrap_or(text).parse();
    n.map_err(|_| CliError::usage(format!("{text} is no release.")).hint("Example: v3; see: flex releases"))
}

async fn info(cx: &Context, wanted: Option<&str>) -> Result<()> {
    let release: Value = match wanted {
        Some(v) => cx.client.get(&cx.path(&format!("/releases/{}", version(v)?))?).await?,
        None => newest(cx, 1).await?.get(0).cloned().ok_or_else(|| CliError::failed("There are no releases."))?,
    };
    let Some(r) = cx.show_or::<Release>(release)? else { return Ok(()) };
    output::heading(&format!("Release v{}", r.version));
    let rows = [
        ("By", r.user.email),
        ("Change", r.description),
        (
            "Status",
            r.superseded_by.map_or_else(|| r.status.name().to_owned(), |by| format!("overtaken by v{by} before it was up")),
        ),
        ("Commit", r.commit.unwrap_or_default()),
        ("When", output::moment(r.created_at, jiff::Timestamp::now())),
        ("Failure", r.failure.filter(|_| r.superseded_by.is_none()).unwrap_or_default()),
        ("Release phase", r.release_command.unwrap_or_default()),
    ];
    let processes: Vec<_> = r.processes.into_iter().map(|(k, c)| (k, c.unwrap_or_else(|| "(image)".into()))).collect();
    for (label, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        output::line(format!("{:<14} {value}", format!("{label}:")));
    }
    for (kind, command) in processes {
        output::line(format!("{:<14} {command}", format!("{kind}:")));
    }
    Ok(())
}

pub async fn rollback(cx: &Context, wanted: Option<&str>, wait: Wait) -> Result<()> {
    let releases: Vec<Release> = typed(newest(cx, 1000).await?)?;
    let target = match wanted {
        Some(v) => {
            let v = version(v)?;
            releases.iter().find(|r| r.version == v).ok_or_else(|| CliError::usage(format!("There is no release v{v}.")))?
        }
        None => {
            let current = releases.iter().find(|r| r.current).map_or(u64::MAX, |r| r.version);
            releases
                .iter()
                .find(|r| r.version < current && r.eligible_for_rollback)
                .ok_or_else(|| CliError::failed("There is no earlier release to go back to."))?
        }
    };
    let progress = Progress::start(format!("Rolling back {} to v{}", cx.app()?, target.version));
    let made: Value = cx.client.post(&cx.path("/releases")?, &Rollback { release: target.id.to_string() }).await?;
    let version = typed::<Release>(made.clone())?.version;
    progress.done_with(&format!("v{version}"));
    output::warn("Rollback affects code and config vars; it doesn't add or remove addons.");
    if let Some(current) = releases.iter().find(|r| r.current) {
        output::warn(format!("To undo, run: flex rollback v{}", current.version));
    }
    super::wait::settled(cx, wait, Some(version)).await?;
    cx.show_or::<Release>(made).map(drop)
}

/// A release by number, or the one that should run.
async fn one(cx: &Context, wanted: Option<&str>) -> Result<Release> {
    match wanted {
        Some(v) => cx.client.get(&cx.path(&format!("/releases/{}", version(v)?))?).await,
        None => {
            let all: Vec<Release> = typed(newest(cx, 1000).await?)?;
            let none = || CliError::failed("There are no releases yet. Make one: git push flex main");
            all.into_iter().find(|r| r.current).ok_or_else(none)
        }
    }
}

async fn diff(cx: &Context, from: &str, to: Option<&str>, show_values: bool) -> Result<()> {
    let (a, b) = (one(cx, Some(from)).await?, one(cx, to).await?);
    let config = async |r: &Release| -> Result<ConfigVars> {
        cx.client.get(&cx.path(&format!("/releases/{}/config-vars", r.version))?).await
    };
    let (before, after) = (config(&a).await?.0, config(&b).await?.0);
    let masked = |v: &Secret| if show_values { v.expose().to_owned() } else { "********".to_owned() };
    let mut changes = Vec::<(String, Option<String>, Option<String>)>::new();
    let code = |r: &Release| r.commit.clone().or(r.slug.as_ref().map(|s| s.id.to_string()));
    if (&a.slug, &a.commit) != (&b.slug, &b.commit) {
        changes.push(("code".into(), code(&a), code(&b)));
    }
    let kinds: BTreeSet<&String> = a.processes.keys().chain(b.processes.keys()).collect();
    for kind in kinds {
        let command = |r: &Release| r.processes.get(kind).map(|c| c.clone().unwrap_or_else(|| "(image)".into()));
        if command(&a) != command(&b) {
            changes.push((format!("process {kind}"), command(&a), command(&b)));
        }
    }
    if a.release_command != b.release_command {
        changes.push(("release phase".into(), a.release_command.clone(), b.release_command.clone()));
    }
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys.into_iter().filter(|k| before.get(*k) != after.get(*k)) {
        changes.push((format!("config {key}"), before.get(key).map(masked), after.get(key).map(masked)));
    }
    if cx.common.json {
        let all: Vec<_> = changes.iter().map(|(what, from, to)| json!({ "what": what, "from": from, "to": to })).collect();
        return output::json(&json!({ "from": a.version, "to": b.version, "changes": all }));
    }
    output::heading(&format!("v{} -> v{}", a.version, b.version));
    if changes.is_empty() {
        output::say("They are the same in code, process types and config vars.");
    }
    for (what, from, to) in changes {
        for (sign, colour, value) in [("-", Colour::Red, from), ("+", Colour::Green, to)] {
            if let Some(value) = value {
                output::line(paint(&format!("{sign} {what}: {value}"), colour));
            }
        }
    }
    Ok(())
}

async fn phase_output(cx: &Context, wanted: Option<&str>) -> Result<()> {
    let release = one(cx, wanted).await?;
    let path = cx.path(&format!("/releases/{}/output", release.version))?;
    cx.client
        .lines(&path, "text/plain", |line| {
            output::line(line);
            Ok(true)
        })
        .await
}

async fn retry(cx: &Context, wanted: Option<&str>, wait: Wait) -> Result<()> {
    let version = match wanted {
        Some(v) => version(v)?,
        None => {
            let all: Vec<Release> = typed(newest(cx, 1).await?)?;
            let newest =
                all.first().ok_or_else(|| CliError::failed("There are no releases yet. Make one: git push flex main"))?;
            newest.version
        }
    };
    let progress = Progress::start(format!("Retrying v{version} on {}", cx.app()?));
    let made: Value = cx.client.post(&cx.path(&format!("/releases/{version}/actions/retry"))?, &Nothing {}).await?;
    let version = typed::<Release>(made.clone())?.version;
    progress.done_with(&format!("v{version}"));
    super::wait::settled(cx, wait, Some(version)).await?;
    cx.show_or::<Release>(made).map(drop)
}
