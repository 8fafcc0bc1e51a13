//! What holds for all HTTP routes of an app, and its own error pages.

use super::access::Caller;
use super::answer::{Answer, Body, Shown};
use super::render::app_ref;
use crate::core::Controller;
use axum::Extension;
use axum::extract::State;
use flex_api::{ApiError, ErrorPage, Routing, UpdateRouting};
use flex_model::{App, AppRouting};
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

async fn render(c: &Controller, app: &App, routing: &AppRouting) -> Result<Routing, ApiError> {
    let page = |(name, text): (&flex_model::http_policy::PageKind, &Arc<str>)| ErrorPage {
        name: name.clone(),
        bytes: text.len() as u64,
        text: text.to_string(),
    };
    Ok(Routing {
        app: app_ref(app),
        http: routing.http.hidden(),
        app_json: c.places_of(app).await?,
        pages: routing.pages.iter().map(page).collect(),
    })
}

pub async fn info(State(c): State<Controller>, Extension(app): TheApp) -> Answer<Shown<Routing>> {
    Ok(Shown(render(&c, &app, &*c.routing_of(app.id).await?).await?))
}

pub async fn set(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<UpdateRouting>,
) -> Answer<Shown<Routing>> {
    let pages = body.pages.unwrap_or_default();
    let mut http = body.http;
    if let (Some(of), Some(http)) = (&body.passwords_of, &mut http) {
        c.carry_passwords(&caller.user, of, http).await?;
    }
    let changed = c.set_routing(&caller.actor(), &app, http, &pages).await?;
    Ok(Shown(render(&c, &app, &changed).await?))
}
