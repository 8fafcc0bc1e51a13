//! Log sessions: a URL with a secret, from which the log is read as server-sent events or as plain lines.

use super::answer::{Answer, Body, LogLines, Made};
use super::server::unavailable;
use crate::core::{Controller, invalid, lock, not_found};
use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use flex_api::CreateLogSession;
use flex_logs::LogQuery;
use flex_model::{App, AppId, LogLine, LogSource};
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a session's URL may be opened for.
const SESSION_LIFE: Duration = Duration::from_secs(300);
/// Keeps proxies from closing a quiet tail.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a URL stands for.
pub struct LogSession {
    app: AppId,
    query: LogQuery,
    tail: bool,
    made: Instant,
}

pub async fn create(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Body(body): Body<CreateLogSession>,
) -> Answer<Made<flex_api::LogSession>> {
    let source = match body.source.as_deref() {
        None | Some("") => None,
        Some("app") => Some(LogSource::App),
        Some("flex" | "heroku") => Some(LogSource::Flex),
        Some(other) => return Err(invalid(format!("source {other} is not known: use app or flex.")).into()),
    };
    let query = LogQuery {
        source,
        process: body.dyno.filter(|d| !d.is_empty()),
        ..LogQuery::newest(body.lines.unwrap_or(100).min(10_000))
    };
    let secret = hex::encode(crate::crypt::random::<32>());
    let mut sessions = lock(&c.log_sessions);
    sessions.retain(|_, s| s.made.elapsed() < SESSION_LIFE);
    sessions.insert(secret.clone(), LogSession { app: app.id, query, tail: body.tail.unwrap_or(false), made: Instant::now() });
    drop(sessions);
    let (now, logplex_url) = (c.now().into(), format!("{}/logs/{secret}", c.deps.settings.api_url));
    Ok(Made(flex_api::LogSession { id: c.id(), logplex_url, created_at: now, updated_at: now }))
}

type Lines = Pin<Box<dyn Stream<Item = LogLine> + Send>>;

pub async fn read(State(c): State<Controller>, Path(secret): Path<String>, headers: HeaderMap) -> Answer<LogLines> {
    let session = {
        let sessions = lock(&c.log_sessions);
        let found = sessions.get(&secret).filter(|s| s.made.elapsed() < SESSION_LIFE);
        found.map(|s| (s.app, s.query.clone(), s.tail))
    };
    let (app, query, tail) = session.ok_or_else(|| not_found("That log session is over. Ask for a new one."))?;
    let lines: Lines = if tail {
        Box::pin(c.deps.logs.follow(app, query))
    } else {
        let found = c.deps.logs.query(app, query).await.map_err(unavailable)?;
        Box::pin(futures_util::stream::iter(found))
    };
    let events = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|a| a.contains("text/event-stream"));
    Ok(LogLines(respond(lines, events)))
}

fn respond(lines: Lines, events: bool) -> Response {
    let stream = futures_util::stream::unfold((lines, 0u64), move |(mut lines, n)| async move {
        match tokio::time::timeout(KEEP_ALIVE, lines.next()).await {
            Ok(None) => None,
            Ok(Some(line)) if events => Some((format!("id: {}\ndata: {line}\n\n", n + 1), (lines, n + 1))),
            Ok(Some(line)) => Some((format!("{line}\n"), (lines, n + 1))),
            // A comment, which readers of events pass over; nothing at all for plain readers.
            Err(_) => Some((if events { ":\n\n".to_owned() } else { String::new() }, (lines, n))),
        }
    });
    let body = HttpBody::from_stream(stream.map(Ok::<_, std::convert::Infallible>));
    let mut response = body.into_response();
    let kind = if events { "text/event-stream" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
