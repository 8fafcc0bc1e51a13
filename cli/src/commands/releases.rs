//! Releases and the way back.

use crate::args::Releases;
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{Release, ReleaseStatus, Rollback};
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Releases>, num: usize) -> Result<()> {
    match verb {
        None => list(cx, num).await,
        Some(Releases::Info { of }) => info(cx, of.as_deref()).await,
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
        let status = match r.status {
            ReleaseStatus::Failed => " (failed)",
            ReleaseStatus::Pending => " (rolling out)",
            ReleaseStatus::Succeeded => "",
        };
        vec![
            format!("v{}", r.version),
            format!("{}{status}", r.description),
            r.user.email.clone(),
            output::moment(r.created_at, now),
        ]
    };
    output::table(&["v", "description", "user", "created_at"], &releases.iter().map(row).collect::<Vec<_>>());
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
        ("Status", r.status.name().to_owned()),
        ("Commit", r.commit.unwrap_or_default()),
        ("When", output::moment(r.created_at, jiff::Timestamp::now())),
        ("Failure", r.failure.unwrap_or_default()),
    ];
    for (label, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        output::line(format!("{:<8} {value}", format!("{label}:")));
    }
    Ok(())
}

pub async fn rollback(cx: &Context, wanted: Option<&str>) -> Result<()> {
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
    progress.done_with(&format!("v{}", typed::<Release>(made.clone())?.version));
    output::warn("Rollback affects code and config vars; it doesn't add or remove addons.");
    if let Some(current) = releases.iter().find(|r| r.current) {
        output::warn(format!("To undo, run: flex rollback v{}", current.version));
    }
    cx.show_or::<Release>(made).map(drop)
}
