//! Whose an app is, and whether it may be deployed.

use super::access::Caller;
use super::answer::{Answer, Body, Shown};
use crate::core::{Controller, invalid};
use axum::Extension;
use axum::extract::State;
use flex_api::{LockApp, TransferApp};
use flex_model::App;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

pub async fn lock(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<LockApp>,
) -> Answer<Shown<flex_api::App>> {
    let app = c.lock_app(&caller.actor(), app.id, body.reason.as_deref().unwrap_or_default()).await?;
    Ok(Shown(c.render_app(&app).await?))
}

pub async fn unlock(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::App>> {
    let app = c.unlock_app(&caller.actor(), app.id).await?;
    Ok(Shown(c.render_app(&app).await?))
}

pub async fn transfer(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<TransferApp>,
) -> Answer<Shown<flex_api::App>> {
    let to = c.user_by_email(&body.recipient).await?;
    let nobody = || invalid(format!("There is no user {}. An administrator adds users: flex users:add", body.recipient));
    let to = to.ok_or_else(nobody)?;
    let app = c.transfer_app(&caller.actor(), app.id, &to).await?;
    Ok(Shown(c.render_app(&app).await?))
}
