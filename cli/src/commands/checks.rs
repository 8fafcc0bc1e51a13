//! Health checks of process types.

use super::wait;
use crate::args::{Checks, SetCheck};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{CheckKind, CheckSource, ProcessCheck};
use flex_model::ProcessType;
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Checks>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Checks::Set(args)) => set(cx, args).await,
        Some(Checks::Unset { process }) => {
            let process = kind(&process)?;
            let progress = Progress::start(format!("Removing the health check of {process}"));
            cx.client.delete(&cx.path(&format!("/checks/{process}"))?).await?;
            progress.done();
            Ok(())
        }
    }
}

fn kind(text: &str) -> Result<ProcessType> {
    text.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))
}

/// What it asks, in words.
fn probe(c: &ProcessCheck) -> String {
    match c.kind {
        CheckKind::Http => format!("GET {}", c.path.as_deref().unwrap_or("/")),
        CheckKind::Tcp => "port bound".to_owned(),
        CheckKind::Command => c.command.clone().unwrap_or_default().join(" "),
        CheckKind::Running => format!("running for {} ms", c.millis.unwrap_or_default()),
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(checks) = cx.fetch_list::<Vec<ProcessCheck>>(&cx.path("/checks")?).await? else { return Ok(()) };
    if checks.is_empty() {
        output::say(format!("{} has no process types yet. Deploy it first: git push flex main", cx.app()?));
        return Ok(());
    }
    let row = |c: &ProcessCheck| {
        let from = match c.source {
            CheckSource::Set => "set",
            CheckSource::AppJson => "app.json",
            CheckSource::Default => "default",
        };
        let seconds = |n: u32| format!("{n}s");
        vec![
            c.process.to_string(),
            probe(c),
            seconds(c.start_seconds),
            seconds(c.interval_seconds),
            seconds(c.timeout_seconds),
            c.failures.to_string(),
            from.to_owned(),
        ]
    };
    let rows: Vec<_> = checks.iter().map(row).collect();
    output::table(&["process", "check", "grace", "interval", "timeout", "failures", "from"], &rows);
    Ok(())
}

async fn set(cx: &Context, args: SetCheck) -> Result<()> {
    let process = kind(&args.process)?;
    let kind = if args.tcp { Some(CheckKind::Tcp) } else { args.running.map(|_| CheckKind::Running) };
    let body = flex_api::SetCheck {
        kind,
        path: args.http,
        command: (!args.command.is_empty()).then_some(args.command),
        millis: args.running,
        start_seconds: args.grace,
        interval_seconds: args.interval,
        timeout_seconds: args.timeout,
        successes: args.successes,
        failures: args.failures,
    };
    body.check(&process).map_err(|e| CliError::usage(e.to_string()))?;
    let progress = Progress::start(format!("Setting the health check of {process}"));
    let now: Value = cx.client.put(&cx.path(&format!("/checks/{process}"))?, &body).await?;
    progress.done_with(&probe(&typed::<ProcessCheck>(now.clone())?));
    let release = super::config::newest_version(cx).await?;
    wait::settled(cx, args.wait, Some(release)).await?;
    if cx.common.json { output::json(&now) } else { Ok(()) }
}
