//! Releases and config vars.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown, Text};
use super::list::{Key, Range};
use crate::core::{Controller, not_found};
use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use flex_api::{ConfigChanges, ConfigVars, Release, Rollback};
use flex_model::{App, AppId};
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

pub async fn config(State(c): State<Controller>, Extension(app): TheApp) -> Answer<Shown<ConfigVars>> {
    Ok(Shown(ConfigVars((*c.vars(app.id, app.config_rev).await?).clone())))
}

fn yes() -> bool {
    true
}

#[derive(serde::Deserialize)]
pub struct Restart {
    /// False: what runs keeps the config that it has until it is restarted.
    #[serde(default = "yes")]
    restart: bool,
}

pub async fn set_config(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Query(how): Query<Restart>,
    Body(changes): Body<ConfigChanges>,
) -> Answer<Shown<ConfigVars>> {
    let vars = c.set_config(&caller.actor(), app.id, &changes.0, how.restart).await?;
    Ok(Shown(ConfigVars((*vars).clone())))
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Release>> {
    let releases = c.releases_of(app.id).await?;
    let targets = c.rollback_targets(app.id).await?;
    let page = range.page(
        releases,
        |r| r.id.to_string(),
        &[("version", |r| Key::Number(r.version)), ("created_at", |r| Key::Time(r.created_at))],
    )?;
    let mut items = Vec::with_capacity(page.items.len());
    for item in page.items {
        items.push(c.render_release(&app, &item, &targets).await);
    }
    Ok(Listed { items, head: page.head })
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, release)): Path<(String, String)>,
) -> Answer<Shown<Release>> {
    let release = c.find_release(app.id, &release).await?;
    Ok(Shown(c.render_release(&app, &release, &c.rollback_targets(app.id).await?).await))
}

pub async fn config_of(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, release)): Path<(String, String)>,
) -> Answer<Shown<ConfigVars>> {
    let release = c.find_release(app.id, &release).await?;
    Ok(Shown(ConfigVars((*c.vars(app.id, release.config_rev).await?).clone())))
}

pub async fn rollback(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<Rollback>,
) -> Answer<Made<Release>> {
    let to = c.find_release(app.id, &body.release).await?;
    let made = c.rollback(&caller.actor(), app.id, &to).await?;
    let app = c.find_app(&app.id.to_string()).await?;
    Ok(Made(c.render_release(&app, &made, &c.rollback_targets(app.id).await?).await))
}

/// The output of a release's phase: what it printed, and how it ended.
pub async fn output(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, release)): Path<(String, String)>,
) -> Answer<Text> {
    let release = c.find_release(app.id, &release).await?;
    Ok(Text(c.release_output(&release).await?.into_response()))
}

pub async fn open_output(
    State(c): State<Controller>,
    Path((app, release, secret)): Path<(String, String, String)>,
) -> Answer<Text> {
    let gone = || not_found("There is no such output (any more).");
    let app: AppId = app.parse().map_err(|_| gone())?;
    let release = c.find_release(app, &release).await.map_err(|_| gone())?;
    if c.release_secret(&release) != secret {
        return Err(gone().into());
    }
    Ok(Text(c.release_output(&release).await?.into_response()))
}

pub async fn retry(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, release)): Path<(String, String)>,
) -> Answer<Made<Release>> {
    let of = c.find_release(app.id, &release).await?;
    let made = c.retry_release(&caller.actor(), app.id, &of).await?;
    let app = c.find_app(&app.id.to_string()).await?;
    Ok(Made(c.render_release(&app, &made, &c.rollback_targets(app.id).await?).await))
}
