//! Stopping and starting, health checks, sizes, how far a roll-out is, and what became of instances.

use super::access::Caller;
use super::answer::{Answer, Begun, Body, Listed, Shown};
use super::list::{Key, Range};
use super::parse;
use crate::core::{Controller, invalid, not_found};
use axum::Extension;
use axum::extract::{Path, Query, State};
use flex_api::{DynoSize, Nothing, PastInstance, ProcessCheck, Rollout, SetCheck};
use flex_model::{App, ProcessType};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

type TheApp = Extension<Arc<App>>;

/// The longest that an answer about a roll-out is held back.
const LONGEST_WAIT: u64 = 30;
/// Looked at again after this long even if nothing was told: routers' answers come without a pass of the plan loop.
const LOOK: Duration = Duration::from_millis(100);

async fn running(c: Controller, app: &App, caller: &Caller, which: &str, run: bool) -> Answer<Begun<Nothing>> {
    c.set_running(&caller.actor(), app.id, which, run).await?;
    Ok(Begun(Nothing {}))
}

pub async fn stop(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno)): Path<(String, String)>,
) -> Answer<Begun<Nothing>> {
    if let Some(run) = c.open_run_named(app.id, &dyno) {
        c.stop_run(&caller.actor(), &run).await?;
        return Ok(Begun(Nothing {}));
    }
    running(c, &app, &caller, &dyno, false).await
}

pub async fn start(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno)): Path<(String, String)>,
) -> Answer<Begun<Nothing>> {
    running(c, &app, &caller, &dyno, true).await
}

pub async fn stop_all(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Begun<Nothing>> {
    running(c, &app, &caller, "", false).await
}

pub async fn start_all(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Begun<Nothing>> {
    running(c, &app, &caller, "", true).await
}

pub async fn checks(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<ProcessCheck>> {
    range
        .page(c.checks_of(&app).await?, |k| k.process.to_string(), &[("type", |k| Key::Text(k.process.to_string()))])?
        .show(|k| k)
}

async fn check_of(c: &Controller, app: &App, process: &ProcessType) -> Answer<Shown<ProcessCheck>> {
    let app = c.find_app(&app.id.to_string()).await?;
    let found = c.checks_of(&app).await?.into_iter().find(|k| k.process == *process);
    let default = || ProcessCheck::of(process, &flex_model::HealthCheck::default_for(process), flex_api::CheckSource::Default);
    Ok(Shown(found.unwrap_or_else(default)))
}

pub async fn set_check(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, process)): Path<(String, String)>,
    Body(body): Body<SetCheck>,
) -> Answer<Shown<ProcessCheck>> {
    let process: ProcessType = parse(&process)?;
    let check = body.check(&process).map_err(invalid)?;
    c.set_check(&caller.actor(), app.id, &process, Some(check)).await?;
    check_of(&c, &app, &process).await
}

pub async fn unset_check(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, process)): Path<(String, String)>,
) -> Answer<Shown<ProcessCheck>> {
    let process: ProcessType = parse(&process)?;
    if !app.checks.contains_key(&process) {
        return Err(not_found(format!("No health check of {process} was set. See: flex checks")).into());
    }
    c.set_check(&caller.actor(), app.id, &process, None).await?;
    check_of(&c, &app, &process).await
}

pub async fn history(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<PastInstance>> {
    let all = c.history_of(app.id).await?;
    let by = [("ended_at", (|e| Key::Time(e.ended_at.0)) as fn(&PastInstance) -> Key)];
    range.page(all, |e| format!("{}-{:?}", e.id, e.ended_at), &by)?.show(|e| e)
}

pub async fn sizes(State(c): State<Controller>, range: Range) -> Answer<Listed<DynoSize>> {
    let all = c.deps.settings.sizes.iter().map(|(name, s)| DynoSize {
        name: name.clone(),
        memory: s.memory.to_string(),
        cpu_shares: s.cpu_shares,
        cpu_millis: s.cpu_millis,
    });
    range.page(all.collect(), |s| s.name.clone(), &[("name", |s| Key::Text(s.name.clone()))])?.show(|s| s)
}

#[derive(Deserialize)]
pub struct Patience {
    /// Seconds to wait for the end of the roll-out, or for a change.
    #[serde(default)]
    wait: u64,
    /// How many were ready when it was asked last.
    ready: Option<usize>,
}

pub async fn rollout(State(c): State<Controller>, Extension(app): TheApp, Query(how): Query<Patience>) -> Answer<Shown<Rollout>> {
    let deadline = Instant::now() + Duration::from_secs(how.wait.min(LONGEST_WAIT));
    let mut passes = c.passes.subscribe();
    loop {
        passes.borrow_and_update();
        let app = c.find_app(&app.id.to_string()).await?;
        let now = c.rollout(&app).await?;
        let is_news = how.ready.is_none_or(|n| n != now.ready);
        if now.settled || is_news || Instant::now() >= deadline {
            return Ok(Shown(now));
        }
        tokio::select! {
            _ = passes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
