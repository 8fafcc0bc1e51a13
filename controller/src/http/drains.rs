//! Drains over the API: Heroku's log drains, with how each does.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use crate::core::Controller;
use crate::db::DrainRecord;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::{AddLogDrain, ApiError, LogDrain, LogDrainStatus};
use flex_model::App;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

fn render(c: &Controller, record: &DrainRecord) -> Result<LogDrain, ApiError> {
    let status = c.deps.drains.status(record.id).unwrap_or_default();
    let written = c.deps.logs.written(record.app).unwrap_or(0);
    Ok(LogDrain {
        id: record.id,
        token: record.token.clone(),
        url: c.drain_url(record)?.masked().to_owned(),
        addon: None,
        status: LogDrainStatus {
            sent: status.sent,
            waiting: written.saturating_sub(status.next),
            dropped: status.dropped,
            error: status.error,
        },
        created_at: record.created_at.into(),
        updated_at: record.created_at.into(),
    })
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<LogDrain>> {
    let all: Result<Vec<_>, _> = c.drains_of(app.id).await?.iter().map(|r| render(&c, r)).collect();
    let by = [("created_at", (|d| Key::Time(d.created_at.0)) as fn(&LogDrain) -> Key)];
    range.page(all?, |d| d.id.to_string(), &by)?.show(|d| d)
}

pub async fn add(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddLogDrain>,
) -> Answer<Made<LogDrain>> {
    let record = c.add_drain(&caller.actor(), &app, &body.url).await?;
    Ok(Made(render(&c, &record)?))
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, drain)): Path<(String, String)>,
) -> Answer<Shown<LogDrain>> {
    let record = c.drain(app.id, &drain).await?;
    Ok(Shown(render(&c, &record)?))
}

pub async fn remove(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, drain)): Path<(String, String)>,
) -> Answer<Shown<LogDrain>> {
    let record = c.drain(app.id, &drain).await?;
    let shown = render(&c, &record)?;
    c.remove_drain(&caller.actor(), &record).await?;
    Ok(Shown(shown))
}
