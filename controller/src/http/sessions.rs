//! Commands inside instances, looking on, connections to their ports, and the history of one-off commands.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Upgraded};
use super::carry;
use super::list::{Key, Range};
use super::render::app_ref;
use crate::core::{Controller, lock, not_found};
use crate::db::{RunRecord, keys};
use crate::sessions::{ExecRequest, Waiting};
use axum::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use flex_api::{ApiError, CreateAttach, CreateExec, Dyno, DynoState, ErrorId, ReleaseRef, RunInfo, SessionCreated};
use flex_model::{App, LogSource, ProcessType};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

type TheApp = Extension<Arc<App>>;
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// A program that listens accepts at once; nobody else is in between.
const CONNECT: Duration = Duration::from_secs(5);

/// A one-off command in the list of instances.
pub fn dyno(app: &App, r: &RunRecord, kind: ProcessType) -> Dyno {
    Dyno {
        id: r.id,
        name: r.name.clone(),
        kind,
        app: app_ref(app),
        command: r.command.clone(),
        size: r.size_shown(),
        state: DynoState::Up,
        release: ReleaseRef { id: r.release, version: r.version },
        attach_url: None,
        created_at: r.started_at.into(),
        updated_at: r.started_at.into(),
        restarts: 0,
        message: None,
    }
}

pub async fn exec(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno)): Path<(String, String)>,
    Body(body): Body<CreateExec>,
) -> Answer<Made<SessionCreated>> {
    let request = ExecRequest { command: body.command, argv: body.argv, env: body.env, tty: body.tty };
    let (found, session) = c.open_exec(&caller.actor(), &app, &dyno, request).await?;
    let secret = c.await_client(Waiting { session, app: app.id, name: found.name.clone(), is_run: false });
    Ok(Made(SessionCreated { attach_url: c.attach_url(&secret), name: found.name, tty: body.tty, stdin: true }))
}

pub async fn look_on(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno)): Path<(String, String)>,
    Body(body): Body<CreateAttach>,
) -> Answer<Made<SessionCreated>> {
    let (found, attached) = c.open_attach(&caller.actor(), &app, &dyno, body.lines).await?;
    let (tty, stdin) = (attached.tty, attached.stdin);
    let secret = c.await_client(Waiting { session: attached.session, app: app.id, name: found.name.clone(), is_run: false });
    Ok(Made(SessionCreated { attach_url: c.attach_url(&secret), name: found.name, tty, stdin }))
}

pub async fn attach(State(c): State<Controller>, Path(secret): Path<String>, upgrade: Upgrade) -> Answer<Upgraded> {
    let upgrade = upgrade.map_err(|e| no_websocket(&e))?;
    let waiting = lock(&c.attach).remove(&secret).ok_or_else(|| not_found("There is no run to attach to (any more)."))?;
    Ok(Upgraded(upgrade.on_upgrade(move |socket| async move {
        let Waiting { session, app, name, is_run } = waiting;
        if !carry::session(socket, session, carry::PING).await && is_run {
            c.log(app, LogSource::Flex, &name, "Client connection closed. Sending SIGHUP to all processes");
        }
    })))
}

fn no_websocket(e: &WebSocketUpgradeRejection) -> ApiError {
    ApiError::new(ErrorId::BadRequest, format!("Open this as a WebSocket: {e}"))
}

pub async fn port(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, dyno, port)): Path<(String, String, String)>,
    upgrade: Upgrade,
) -> Answer<Upgraded> {
    let upgrade = upgrade.map_err(|e| no_websocket(&e))?;
    let port: u16 = port.parse().map_err(|_| not_found(format!("{port} is no port.")))?;
    let found = c.find_instance(&app, &dyno).await?;
    let ip = c.deps.runs.address(found.instance).await.map_err(ApiError::from)?;
    let refused = |why: String| {
        let name = &found.name;
        ApiError::new(
            ErrorId::NotFound,
            format!(
                "Nothing in {name} answers on port {port} ({why}). A program that listens on 127.0.0.1 cannot be reached: let it listen on 0.0.0.0."
            ),
        )
    };
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect((ip, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(refused(e.to_string()).into()),
        Err(_) => return Err(refused(format!("no answer within {} s", CONNECT.as_secs())).into()),
    };
    tracing::debug!(app = %app.name, instance = %found.name, port, user = %caller.user.email, "a port is reached");
    c.tell_of_port(&caller.actor(), app.id, &found, port).await?;
    let _ = stream.set_nodelay(true);
    Ok(Upgraded(upgrade.on_upgrade(move |socket| carry::connection(socket, stream, carry::PING))))
}

pub async fn runs(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<RunInfo>> {
    let all = c.db.list::<RunRecord>(&keys::runs(app.id)).await?;
    let shown = |r: &RunRecord| RunInfo {
        id: r.id,
        name: r.name.clone(),
        app: app_ref(&app),
        command: r.command.clone(),
        size: r.size_shown(),
        user: r.user.clone(),
        release: ReleaseRef { id: r.release, version: r.version },
        attached: r.attached,
        started_at: r.started_at.into(),
        ended_at: r.ended_at.map(Into::into),
        status: r.status,
        error: r.error.clone(),
        oom: r.oom,
    };
    let all: Vec<RunInfo> = all.iter().map(|r| shown(&r.value)).collect();
    let by = [("started_at", (|r: &RunInfo| Key::Time(r.started_at.0)) as fn(&RunInfo) -> Key)];
    range.page(all, |r| r.id.to_string(), &by)?.show(|r| r)
}
