//! Releases and config vars.

use super::access::Caller;
use super::{Answer, Body, Range, listed, ok, parse, with};
use crate::core::Controller;
use crate::crypt::Vars;
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use flex_api::ApiError;
use flex_model::{App, ConfigKey, Secret};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

fn render_vars(vars: &Vars) -> Value {
    vars.iter().map(|(k, v)| (k.clone(), Value::String(v.expose().to_owned()))).collect()
}

pub async fn config(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    ok(&render_vars(&*c.vars(app.id, app.config_rev).await?))
}

pub async fn set_config(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<BTreeMap<String, Option<Secret>>>,
) -> Answer {
    let changes =
        body.into_iter().map(|(k, v)| Ok((parse::<ConfigKey>(&k)?, v))).collect::<Result<BTreeMap<_, _>, ApiError>>()?;
    ok(&render_vars(&*c.set_config(&caller.actor(), app.id, &changes).await?))
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, headers: HeaderMap) -> Answer {
    let (part, more) = Range::of(&headers).apply(c.releases_of(app.id).await?);
    let targets = c.rollback_targets(app.id).await?;
    let mut out = Vec::with_capacity(part.len());
    for r in part {
        out.push(c.render_release(&app, &r, &targets).await);
    }
    listed(out, more)
}

pub async fn info(State(c): State<Controller>, Extension(app): TheApp, Path((_, release)): Path<(String, String)>) -> Answer {
    let release = c.find_release(app.id, &release).await?;
    ok(&c.render_release(&app, &release, &c.rollback_targets(app.id).await?).await)
}

pub async fn config_of(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, release)): Path<(String, String)>,
) -> Answer {
    let release = c.find_release(app.id, &release).await?;
    ok(&render_vars(&*c.vars(app.id, release.config_rev).await?))
}

#[derive(Deserialize)]
pub struct Rollback {
    release: String,
}

pub async fn rollback(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<Rollback>,
) -> Answer {
    let to = c.find_release(app.id, &body.release).await?;
    let made = c.rollback(&caller.actor(), app.id, &to).await?;
    let app = c.find_app(&app.id.to_string()).await?;
    with(StatusCode::CREATED, &c.render_release(&app, &made, &c.rollback_targets(app.id).await?).await)
}
