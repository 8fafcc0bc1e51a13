//! The server itself, users, keys and tokens.

use super::access::{Caller, basic};
use super::{Answer, Body, Range, listed, ok, parse, render, with};
use crate::core::{Actor, Controller, lock};
use crate::db::keys;
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use flex_api::{ApiError, ErrorId};
use flex_model::{Event, Host, Secret, TokenId, User};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

pub async fn nothing_here() -> Answer {
    Err(ApiError::new(ErrorId::NotFound, "The requested API endpoint was not found.").into())
}

pub async fn health(State(c): State<Controller>) -> Answer {
    // Answers only when the store does.
    c.find_app("00000000-0000-0000-0000-000000000000").await.map_or_else(
        |e| if e.id == ErrorId::NotFound { ok(&json!({ "status": "ok" })) } else { Err(e.into()) },
        |_| ok(&json!({ "status": "ok" })),
    )
}

pub async fn server(State(c): State<Controller>) -> Answer {
    let s = &c.deps.settings;
    let checks: Vec<Value> = c
        .deps
        .machine
        .checks()
        .await
        .into_iter()
        .map(|(what, problem)| match problem {
            None => json!({ "what": what, "ok": true }),
            Some((problem, remedy)) => json!({ "what": what, "ok": false, "problem": problem, "remedy": remedy }),
        })
        .collect();
    ok(
        &json!({ "version": s.version, "domain": s.domain, "ssh": { "host": s.ssh_host, "port": s.ssh_port, "host_key": s.ssh_host_key }, "checks": checks }),
    )
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Authorize {
    description: Option<String>,
}

pub async fn authorize(State(c): State<Controller>, headers: HeaderMap, Body(body): Body<Authorize>) -> Answer {
    let refused = || ApiError::new(ErrorId::Unauthorized, "Invalid credentials provided.");
    let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(refused)?;
    let user = match basic(value) {
        Some((email, password)) => match c.user_by_token(&password).await? {
            Some((user, _)) => Some(user),
            None => c.user_by_password(&email, &password).await?,
        },
        None => match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                c.user_by_token(token.trim()).await?.map(|(u, _)| u)
            }
            _ => None,
        },
    };
    let user = user.ok_or_else(refused)?;
    let (token, secret) = c.create_token(&user, body.description.as_deref().unwrap_or("API token")).await?;
    with(StatusCode::CREATED, &render::token(&token, &user, Some(secret.expose())))
}

pub async fn authorizations(State(c): State<Controller>, Extension(caller): Extension<Caller>) -> Answer {
    let tokens = c.tokens_of(caller.user.id).await?;
    ok(&tokens.iter().map(|t| render::token(t, &caller.user, None)).collect())
}

pub async fn revoke(State(c): State<Controller>, Extension(caller): Extension<Caller>, Path(id): Path<TokenId>) -> Answer {
    let token = c.delete_token(&caller.user, id).await?;
    ok(&render::token(&token, &caller.user, None))
}

pub async fn account(Extension(caller): Extension<Caller>) -> Answer {
    ok(&render::user(&caller.user))
}

pub async fn keys(State(c): State<Controller>, Extension(caller): Extension<Caller>) -> Answer {
    let keys = c.keys_of(caller.user.id).await?;
    ok(&keys.iter().map(|k| render::key(k, &caller.user)).collect())
}

#[derive(Deserialize)]
pub struct AddKey {
    public_key: String,
}

pub async fn add_key(State(c): State<Controller>, Extension(caller): Extension<Caller>, Body(body): Body<AddKey>) -> Answer {
    let key = c.add_key(&caller.user, &body.public_key).await?;
    with(StatusCode::CREATED, &render::key(&key, &caller.user))
}

pub async fn key(State(c): State<Controller>, Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Answer {
    let found = c.find_key(caller.user.id, &id).await?;
    ok(&render::key(&found.value, &caller.user))
}

pub async fn remove_key(State(c): State<Controller>, Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Answer {
    let gone = c.remove_key(&caller.user, &id).await?;
    ok(&render::key(&gone, &caller.user))
}

pub async fn users(State(c): State<Controller>) -> Answer {
    let users = c.db.list::<User>(keys::USERS).await?;
    ok(&users.iter().map(|u| render::user(&u.value)).collect())
}

#[derive(Deserialize)]
pub struct AddUser {
    email: String,
    password: Option<Secret>,
    #[serde(default)]
    admin: bool,
}

pub async fn add_user(State(c): State<Controller>, Extension(caller): Extension<Caller>, Body(body): Body<AddUser>) -> Answer {
    let user = c.create_user(&caller.actor(), &parse(&body.email)?, body.password, body.admin).await?;
    with(StatusCode::CREATED, &render::user(&user))
}

pub async fn events(State(c): State<Controller>, headers: HeaderMap) -> Answer {
    let all = c.db.list::<Event>(keys::EVENTS).await?;
    let (part, more) = Range::of(&headers).apply(all);
    listed(part.iter().map(|e| render::event(&e.value)).collect(), more)
}

pub async fn hosts(State(c): State<Controller>) -> Answer {
    let hosts = c.db.list::<Host>(keys::HOSTS).await?;
    let reports = lock(&c.reports).clone();
    let render = |h: &Arc<Host>| {
        let report = reports.get(&h.id);
        json!({
            "id": h.id, "name": h.name, "state": h.state, "memory": h.memory.bytes(), "cpu_millis": h.cpu_millis, "labels": h.labels,
            "instances": report.map_or(0, |r| r.report.instances.len()), "reported_at": report.map(|r| r.report.at.rfc3339_seconds())
        })
    };
    ok(&hosts.iter().map(|h| render(&h.value)).collect())
}

pub async fn stacks(State(c): State<Controller>) -> Answer {
    let name = &c.deps.settings.stack;
    ok(&json!([{ "id": name, "name": name, "state": "public", "default": true }]))
}

pub async fn regions() -> Answer {
    ok(
        &json!([{ "id": "local", "name": "local", "description": "This installation", "country": "", "locale": "", "private_capable": false, "provider": { "name": "flex", "region": "local" } }]),
    )
}

impl Controller {
    /// A token for a user, who is made first if need be: how the first administrator comes in, on the server itself.
    ///
    /// # Errors
    /// The store's.
    pub async fn bootstrap(&self, email: &flex_model::Email, admin: bool) -> Result<Secret, ApiError> {
        let user = self.ensure_user(&Actor::platform(), email, admin).await?;
        if admin && !user.admin {
            return Err(ApiError::new(ErrorId::InvalidParams, format!("{email} exists and is no administrator.")));
        }
        self.create_token(&user, "made on the server").await.map(|(_, secret)| secret)
    }
}
