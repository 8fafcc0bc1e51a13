//! Instances, and one-off runs with a way to attach.

use super::access::Caller;
use super::answer::{Answer, Begun, Body, Listed, Made, Shown, Upgraded};
use super::list::{Key, Range};
use super::{parse, render};
use crate::core::{Controller, lock, not_found};
use crate::db::keys;
use crate::ports::{RunInput, RunOutput};
use crate::runs::{RunRequest, Waiting};
use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use bytes::{BufMut, BytesMut};
use flex_api::run::{RunControl, RunEnd, STDERR, STDOUT};
use flex_api::{ApiError, CreateDyno, Dyno, DynoState, ErrorId, Nothing, ReleaseRef, Why};
use flex_model::{App, InstanceReport, LogSource, Placement, ProcessType};
use futures_util::StreamExt;
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
        out.push(render::dyno(app, &p, report.as_ref(), command));
    }
    let pending = c.pending_of(app.id);
    if let Some(version) = app.target.or(app.good).filter(|_| !pending.is_empty()) {
        let release = c.find_release(app.id, &version.to_string()).await?;
        out.extend(pending.iter().map(|p| render::pending_dyno(app, p, &release, c.now())));
    }
    Ok(out)
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
    let memory = body.size.as_deref().filter(|s| s.starts_with(|c: char| c.is_ascii_digit())).map(parse).transpose()?;
    let request =
        RunRequest { command: body.command.clone(), env: body.env, memory, tty: body.attach && body.force_no_tty != Some(true) };
    let actor = caller.actor();
    let (run, attach_url) = if body.attach {
        let (run, secret) = c.run_attached(&actor, &app, request).await?;
        let base = c.deps.settings.api_url.replacen("http", "ws", 1);
        (run, Some(format!("{base}/runs/{secret}")))
    } else {
        (c.run_detached(&actor, &app, request).await?, None)
    };
    let now = c.now().into();
    Ok(Made(Dyno {
        id: run.instance,
        name: run.name,
        kind: parse("run")?,
        app: render::app_ref(&app),
        command: body.command,
        size: run.memory.to_string(),
        state: DynoState::Starting,
        release: ReleaseRef { id: run.release.id, version: run.release.version },
        attach_url,
        created_at: now,
        updated_at: now,
        restarts: 0,
        message: None,
    }))
}

pub async fn attach(
    State(c): State<Controller>,
    Path(secret): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Upgraded> {
    let upgrade = upgrade.map_err(|e| ApiError::new(ErrorId::BadRequest, format!("Open this as a WebSocket: {e}")))?;
    let waiting = lock(&c.attach).remove(&secret).ok_or_else(|| not_found("There is no run to attach to (any more)."))?;
    Ok(Upgraded(upgrade.on_upgrade(move |socket| carry(c, socket, waiting))))
}

/// Carries bytes both ways until the run ends or its client is gone; a run without a client is stopped by dropping it.
async fn carry(c: Controller, mut socket: WebSocket, waiting: Waiting) {
    let Waiting { session, app, name } = waiting;
    let (input, mut output, exit) = (session.input, session.output, session.exit);
    loop {
        tokio::select! {
            piece = output.next() => {
                let message = match piece {
                    Some(Ok(RunOutput::Stdout(data))) => framed(STDOUT, &data),
                    Some(Ok(RunOutput::Stderr(data))) => framed(STDERR, &data),
                    Some(Err(_)) | None => break,
                };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => {
                let order = match message {
                    Some(Ok(Message::Binary(data))) => RunInput::Data(data),
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(RunControl::Eof(_)) => RunInput::Eof,
                        Ok(RunControl::Resize(cols, rows)) => RunInput::Resize(cols, rows),
                        Ok(RunControl::Signal(n)) => RunInput::Signal(n),
                        Err(_) => continue,
                    },
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        // As when a terminal is closed.
                        let _ = input.send(RunInput::Signal(1)).await;
                        c.log(app, LogSource::Flex, &name, "Client connection closed. Sending SIGHUP to the process");
                        return;
                    }
                };
                // A command that no longer reads must not keep its output from being carried.
                if input.send(order).await.is_err() {
                    continue;
                }
            }
        }
    }
    let end = match exit.await {
        Ok(Ok(status)) => {
            c.log(app, LogSource::Flex, &name, format!("Process exited with status {status}"));
            RunEnd::Exit(status)
        }
        Ok(Err(e)) => RunEnd::Error(e),
        Err(_) => RunEnd::Error("the container was lost".into()),
    };
    if let Ok(text) = serde_json::to_string(&end) {
        let _ = socket.send(Message::Text(text.into())).await;
    }
    let _ = socket.send(Message::Close(None)).await;
}

fn framed(stream: u8, data: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.put_u8(stream);
    out.put_slice(data);
    Message::Binary(out.freeze())
}
