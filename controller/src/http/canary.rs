//! The canary of an app: one at most.

use super::access::Caller;
use super::answer::{Answer, Body, Shown};
use super::render::app_ref;
use crate::core::{Controller, not_found};
use axum::Extension;
use axum::extract::State;
use flex_api::canary::{Canary, SetCanary};
use flex_model::{App, ProcessType, ReleaseStatus};
use std::sync::Arc;

async fn render(c: &Controller, app: &App) -> Result<Canary, flex_api::ApiError> {
    let canary = app.canary.ok_or_else(|| not_found("There is no canary. Begin one: flex canary:start --weight 10"))?;
    let table = c.routes().borrow().clone();
    let pools = table.app(app.id).map(|a| a.pools.clone()).unwrap_or_default();
    let instances = pools.iter().find(|p| p.process == ProcessType::web() && p.version == canary.version && p.version.is_some());
    let instances = instances.map_or(0, |p| p.backends.len() as u64);
    let state = match canary.version {
        None => "waiting",
        Some(version) => match c.find_release(app.id, &version.to_string()).await?.status {
            ReleaseStatus::Failed => "failed",
            _ if instances > 0 => "serving",
            _ => "starting",
        },
    };
    let stable = app.target.or(app.good);
    Ok(Canary { app: app_ref(app), version: canary.version, stable, weight: canary.weight, state: state.into(), instances })
}

pub async fn info(State(c): State<Controller>, Extension(app): Extension<Arc<App>>) -> Answer<Shown<Canary>> {
    Ok(Shown(render(&c, &app).await?))
}

pub async fn set(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<SetCanary>,
) -> Answer<Shown<Canary>> {
    let release = match body.release.as_deref() {
        None | Some("next") => None,
        Some(which) => Some(c.find_release(app.id, which).await?),
    };
    let changed = c.set_canary(&caller.actor(), app.id, release.as_deref(), body.weight).await?;
    Ok(Shown(render(&c, &changed).await?))
}

pub async fn abort(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::Nothing>> {
    c.abort_canary(&caller.actor(), app.id).await?;
    Ok(Shown(flex_api::Nothing {}))
}

pub async fn promote(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::Release>> {
    let release = c.promote_canary(&caller.actor(), app.id).await?;
    let now = c.find_app(&app.id.to_string()).await?;
    Ok(Shown(c.render_release(&now, &release, &c.rollback_targets(now.id).await?).await))
}
