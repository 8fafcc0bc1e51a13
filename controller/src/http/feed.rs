//! What routers elsewhere are told and say: the routing table and the certificates as they change, their status, and their
//! access lines.
//!
//! They show a token of their own kind, which opens nothing else; it is asked for where every other permission is.

use super::access::RouterName;
use super::answer::{Answer, LogLines, Shown};
use crate::core::{Controller, lock};
use crate::db::{RouterToken, Tx, keys};
use crate::users::token_hash;
use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, ErrorId, Nothing};
use flex_model::signals::RouterSignals;
use flex_model::table_update::TableUpdate;
use flex_model::{AppId, CertificateUpdate, LogLine, LogSource, RouteTable, RouterStatus, Secret};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// A router that hears nothing for three of these takes the connection for dead.
const ALIVE: Duration = Duration::from_secs(2);
/// The largest status or batch of lines.
const MAX_BODY: usize = 4 << 20;
/// Tables that a router that comes back may have; older ones are sent whole.
const KEPT_TABLES: usize = 16;

impl Controller {
    /// A token for a router, which is named by it. An earlier one of that name goes on to work until it is removed.
    ///
    /// # Errors
    /// A name that is none, or the store's.
    pub async fn router_token(&self, name: &str) -> Result<Secret, ApiError> {
        let fit = (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        if !fit || name == flex_model::route::LOCAL_ROUTER {
            return Err(crate::core::invalid(format!("{name:?} is no name for a router: use letters, digits, dashes and dots.")));
        }
        let secret = format!("flexr_{}", hex::encode(crate::crypt::random::<32>()));
        let record = RouterToken { name: name.to_owned(), created_at: self.now() };
        let event =
            self.event(&crate::core::Actor::platform(), None, "router.token", format!("Made a token for the router {name}"));
        let tx = Tx::new().put(keys::router_token(&token_hash(&secret)), &record).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        Ok(Secret::new(secret))
    }

    /// The router whose token this header carries.
    pub(super) async fn router_of(&self, authorization: Option<&str>) -> Result<String, ApiError> {
        let token = authorization.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
        let found = self.db.get::<RouterToken>(&keys::router_token(&token_hash(token.trim()))).await?;
        let found = found.ok_or_else(|| {
            ApiError::new(ErrorId::Unauthorized, "That is no router's token. Make one: flexd router:token NAME")
        })?;
        Ok(found.value.name.clone())
    }

    /// Keeps a table for routers that come back soon.
    pub(crate) fn keep_table(&self, table: &Arc<RouteTable>) {
        let mut kept = lock(&self.tables);
        kept.push_back(table.clone());
        while kept.len() > KEPT_TABLES {
            kept.pop_front();
        }
    }
}

#[derive(Deserialize)]
pub struct From {
    /// The revision that the router has.
    #[serde(default)]
    from: u64,
}

/// Marks a router as connected, until it is dropped.
struct Connected(Controller, String);

impl Connected {
    fn new(c: &Controller, name: &str) -> Self {
        *lock(&c.connected).entry(name.to_owned()).or_default() += 1;
        Self(c.clone(), name.to_owned())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut connected = lock(&self.0.connected);
        if let Some(n) = connected.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                connected.remove(&self.1);
            }
        }
        drop(connected);
        self.0.nudge();
    }
}

/// The table as lines of JSON, for as long as the router listens.
pub async fn table(
    State(c): State<Controller>,
    Extension(RouterName(name)): Extension<RouterName>,
    Query(query): Query<From>,
) -> Answer<LogLines> {
    tracing::info!(router = %name, from = query.from, "a router is connected");
    let known = lock(&c.tables).iter().find(|t| t.revision == query.from).cloned();
    let state = (c.routes(), known, Connected::new(&c, &name), true);
    let stream = futures_util::stream::unfold(state, |(mut tables, mut had, connected, mut first)| async move {
        if !first && tokio::time::timeout(ALIVE, tables.changed()).await.is_ok_and(|r| r.is_err()) {
            return None;
        }
        let now = tables.borrow_and_update().clone();
        let is_news = now.revision > 0 && had.as_ref().is_none_or(|t| t.revision != now.revision);
        // Serializing a large table takes long: not on an event loop.
        let update = match (&had, is_news) {
            (_, false) => TableUpdate::Alive,
            (None, true) => TableUpdate::whole(now.clone()),
            (Some(before), true) => TableUpdate::between(before, &now),
        };
        first = false;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = serde_json::to_vec(&update).unwrap_or_default();
            line.push(b'\n');
            line
        });
        let Ok(line) = line.await else { return None };
        if is_news {
            had = Some(now);
        }
        Some((Ok::<_, std::io::Error>(line), (tables, had, connected, first)))
    });
    let mut response: Response = HttpBody::from_stream(stream).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-ndjson"));
    Ok(LogLines(response))
}

/// The certificates with their keys as lines of JSON, for as long as the router listens.
pub async fn certificates(
    State(c): State<Controller>,
    Extension(RouterName(name)): Extension<RouterName>,
    Query(query): Query<From>,
) -> Answer<LogLines> {
    tracing::info!(router = %name, from = query.from, "a router takes certificates");
    let state = (c.certificate_table(), query.from, true);
    let stream = futures_util::stream::unfold(state, |(mut tables, mut had, first)| async move {
        if !first && tokio::time::timeout(ALIVE, tables.changed()).await.is_ok_and(|r| r.is_err()) {
            return None;
        }
        let now = tables.borrow_and_update().clone();
        let update = if now.revision == 0 || now.revision == had {
            CertificateUpdate::Alive
        } else {
            had = now.revision;
            CertificateUpdate::Whole { table: now }
        };
        let line = tokio::task::spawn_blocking(move || {
            let mut line = serde_json::to_vec(&update).unwrap_or_default();
            line.push(b'\n');
            line
        });
        Some((Ok::<_, std::io::Error>(line.await.ok()?), (tables, had, false)))
    });
    let mut response: Response = HttpBody::from_stream(stream).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-ndjson"));
    Ok(LogLines(response))
}

async fn body<T: DeserializeOwned>(body: HttpBody) -> Result<T, ApiError> {
    let bad = |e: &dyn std::fmt::Display| ApiError::new(ErrorId::BadRequest, format!("The request's body cannot be read: {e}"));
    let bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|e| bad(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(&e))
}

pub async fn status(
    State(c): State<Controller>,
    Extension(RouterName(name)): Extension<RouterName>,
    sent: HttpBody,
) -> Answer<Shown<Nothing>> {
    let status: RouterStatus = body(sent).await?;
    c.take_status(RouterStatus { router: name, ..status });
    Ok(Shown(Nothing {}))
}

pub async fn signals(
    State(c): State<Controller>,
    Extension(RouterName(name)): Extension<RouterName>,
    sent: HttpBody,
) -> Answer<Shown<Nothing>> {
    let signals: RouterSignals = body(sent).await?;
    c.take_signals(RouterSignals { router: name, ..signals });
    Ok(Shown(Nothing {}))
}

#[derive(Deserialize)]
struct Lines {
    lines: Vec<(AppId, String)>,
}

pub async fn lines(State(c): State<Controller>, sent: HttpBody) -> Answer<Shown<Nothing>> {
    let sent: Lines = body(sent).await?;
    for (app, text) in sent.lines {
        let text: String = text.chars().filter(|ch| !ch.is_control()).collect();
        c.deps.logs.append(app, LogLine { at: c.now(), source: LogSource::Flex, process: "router".into(), text: text.into() });
    }
    Ok(Shown(Nothing {}))
}
