//! Instances, and the start of one-off runs.

use super::access::Caller;
use super::answer::{Answer, Begun, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::{parse, render};
use crate::core::{Controller, lock, not_found};
use crate::db::keys;
use crate::runs::RunRequest;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::{ApiError, CreateDyno, Dyno, DynoState, Nothing, ReleaseRef, Why};
use flex_model::{App, InstanceReport, Placement, ProcessType};
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

async fn render_dynos(c: &Controller, app: &App) -> Result<Vec<Dyno>, ApiError> {
    let placements = c.db.list::<Placement>(keys::PLACEMENTS).await?;
    let mut mine: Vec<Arc<Placement>> = placements.into_iter().map(|p| p.value).filter(|p| p.app == app.id).collect();
    mine.sort_by(|a, b| (&a.process, a.index, a.version).cmp(&(&b.process, b.index, b.version)));
    let mut out = Vec::with_capacity(mine.len());
    for p in mine {
        let release = c.find_release(app.id, &p.version.to_string()).await.ok();
        let command = release.and_then(|r| r.processes.get(&p.process).and_then(|s| s.command.clone()));
        let report = report_of(c, &p);
        let size = c.size_name(p.memory, p.cpu_shares, p.cpu_millis);
        out.push(render::dyno(app, &p, report.as_ref(), size, command));
    }
    let pending = c.pending_of(app.id);
    if let Some(version) = app.target.or(app.good).filter(|_| !pending.is_empty()) {
        let release = c.find_release(app.id, &version.to_string()).await?;
        out.extend(pending.iter().map(|p| render::pending_dyno(app, p, &release, c.now())));
    }
    let kind: ProcessType = parse("run")?;
    out.extend(c.runs_of(app.id).iter().map(|r| super::sessions::dyno(app, r, kind.clone())));
    Ok(out)
}

impl Controller {
    /// What runs of an app, a line each.
    ///
    /// # Errors
    /// The store's.
    pub async fn ps_lines(&self, app: &App) -> Result<Vec<String>, ApiError> {
        let dynos = render_dynos(self, app).await?;
        let line = |d: &Dyno| format!("{}: {} {} {}", d.name, d.state.name(), d.updated_at, d.command);
        Ok(dynos.iter().map(line).collect())
    }
}

fn report_of(c: &Controller, p: &Placement) -> Option<InstanceReport> {
    lock(&c.reports).get(&p.host)?.report.instances.iter().find(|i| i.instance == p.instance).cloned()
}

pub async fn dynos(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Dyno>> {
    // By number: web.2 before web.10.
    let name = |d: &Dyno| {
        let (kind, index) = d.name.rsplit_once('.').unwrap_or((&d.name, ""));
        Key::Text(format!("{kind}.{index:0>10}"))
    };
    let by = [("name", name as fn(&Dyno) -> Key), ("created_at", |d| Key::Time(d.created_at.0))];
    range.page(render_dynos(&c, &app).await?, |d| d.id.to_string(), &by)?.show(|d| d)
}

pub async fn dyno(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, dyno)): Path<(String, String)>,
) -> Answer<Shown<Dyno>> {
    let found = render_dynos(&c, &app).await?.into_iter().find(|d| d.name == dyno || d.id.to_string() == dyno);
    Ok(Shown(found.ok_or_else(|| not_found("Couldn't find that dyno."))?))
}

pub async fn restart_all(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Begun<Nothing>> {
    c.restart(&caller.actor(), app.id, "").await?;
    Ok(Begun(Nothing {}))
}

pub async fn restart(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno)): Path<(String, String)>,
) -> Answer<Begun<Nothing>> {
    if let Some(run) = c.open_run_named(app.id, &dyno) {
        c.stop_run(&caller.actor(), &run).await?;
        return Ok(Begun(Nothing {}));
    }
    let (kind, index) = dyno.split_once('.').map_or((dyno.as_str(), None), |(k, i)| (k, Some(i)));
    let kind: ProcessType = parse(kind)?;
    let wanted = app.formation.get(&kind).map_or(0, |s| s.quantity);
    let index = index.map(str::parse::<u32>).transpose().map_err(|_| not_found("Couldn't find that dyno."))?;
    if index.is_some_and(|i| i == 0 || i > wanted) || !app.formation.contains_key(&kind) {
        return Err(not_found(format!("Couldn't find that dyno ({dyno}). See: flex ps")).into());
    }
    c.restart(&caller.actor(), app.id, &dyno).await?;
    Ok(Begun(Nothing {}))
}

pub async fn why(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, dyno)): Path<(String, String)>,
) -> Answer<Shown<Why>> {
    let lines = c.why(&app, &dyno).await?;
    Ok(Shown(Why { name: dyno, lines }))
}

pub async fn start(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateDyno>,
) -> Answer<Made<Dyno>> {
    // Heroku's clients send the type that a run is of.
    let process = body.kind.as_deref().filter(|k| !k.is_empty() && *k != "run").map(parse).transpose()?;
    let tty = if body.attach { body.force_no_tty != Some(true) } else { body.tty == Some(true) };
    let life = body.time_to_live.map(std::time::Duration::from_secs);
    let request =
        RunRequest { command: body.command, env: body.env, size: body.size.filter(|s| !s.is_empty()), process, tty, life };
    let actor = caller.actor();
    let (run, attach_url) = if body.attach {
        let (run, secret) = c.run_attached(&actor, &app, request).await?;
        (run, Some(c.attach_url(&secret)))
    } else {
        (c.run_detached(&actor, &app, request).await?, None)
    };
    let now = c.now().into();
    Ok(Made(Dyno {
        id: run.instance,
        name: run.name,
        kind: parse("run")?,
        app: render::app_ref(&app),
        command: run.command,
        size: run.size,
        state: DynoState::Starting,
        release: ReleaseRef { id: run.release.id, version: run.release.version },
        attach_url,
        created_at: now,
        updated_at: now,
        restarts: 0,
        message: None,
    }))
}
