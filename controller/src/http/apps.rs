//! Apps and what belongs to them.

use super::access::Caller;
use super::{Answer, Body, Range, listed, ok, parse, render, with};
use crate::apps::{Quantity, ScaleChange};
use crate::core::{Controller, invalid};
use crate::db::keys;
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use flex_api::ApiError;
use flex_model::{App, BuildpackRef, Event, ProcessType};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

pub async fn list(State(c): State<Controller>, Extension(caller): Extension<Caller>) -> Answer {
    let mut mine = Vec::new();
    for app in c.db.list::<App>(keys::APPS).await? {
        if c.role_in(&caller.user, &app.value).await?.is_some() {
            mine.push(app.value);
        }
    }
    mine.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = Vec::with_capacity(mine.len());
    for app in mine {
        out.push(c.render_app(&app).await?);
    }
    listed(out, false)
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Create {
    name: Option<String>,
    stack: Option<String>,
}

pub async fn create(State(c): State<Controller>, Extension(caller): Extension<Caller>, Body(body): Body<Create>) -> Answer {
    let name = body.name.as_deref().map(parse).transpose()?;
    // Heroku's client asks for its own stacks; they mean this server's.
    let stack = body.stack.as_deref().filter(|s| !s.starts_with("heroku")).map(parse).transpose()?;
    let app = c.create_app(&caller.actor(), name, stack).await?;
    with(StatusCode::CREATED, &c.render_app(&app).await?)
}

pub async fn info(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    ok(&c.render_app(&app).await?)
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Update {
    name: Option<String>,
    maintenance: Option<bool>,
    deploy_branches: Option<Vec<String>>,
    read_only_root: Option<bool>,
    stop_grace_seconds: Option<u32>,
}

pub async fn update(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<Update>,
) -> Answer {
    let actor = caller.actor();
    let name = body.name.as_deref().map(parse).transpose()?;
    for branch in body.deploy_branches.iter().flatten() {
        flex_model::names::check_branch(branch).map_err(invalid)?;
    }
    if body.deploy_branches.as_ref().is_some_and(|b| b.is_empty() || b.len() > 20) {
        return Err(invalid("Give 1 to 20 branches that deploy.").into());
    }
    if body.stop_grace_seconds.is_some_and(|s| !(1..=3600).contains(&s)) {
        return Err(invalid("stop_grace_seconds must be between 1 and 3600.").into());
    }
    let mut now = c
        .update_app(&actor, app.id, "app.update", |a| {
            let before = a.clone();
            a.maintenance = body.maintenance.unwrap_or(a.maintenance);
            a.read_only_root = body.read_only_root.unwrap_or(a.read_only_root);
            a.stop_grace_seconds = body.stop_grace_seconds.unwrap_or(a.stop_grace_seconds);
            if let Some(b) = &body.deploy_branches {
                a.deploy_branches.clone_from(b);
            }
            Ok((*a != before).then(|| match body.maintenance {
                Some(true) => "Turned maintenance mode on".to_owned(),
                Some(false) => "Turned maintenance mode off".to_owned(),
                None => "Changed settings".to_owned(),
            }))
        })
        .await?;
    if let Some(name) = name {
        now = c.rename_app(&actor, app.id, &name).await?;
    }
    ok(&c.render_app(&now).await?)
}

pub async fn destroy(State(c): State<Controller>, Extension(app): TheApp, Extension(caller): Extension<Caller>) -> Answer {
    let rendered = c.render_app(&app).await?;
    c.destroy_app(&caller.actor(), app.id).await?;
    ok(&rendered)
}

async fn render_formation(c: &Controller, app: &App) -> Result<Vec<Value>, ApiError> {
    let release = match app.target.or(app.good) {
        Some(v) => c.find_release(app.id, &v.to_string()).await.ok(),
        None => None,
    };
    let command = |p: &ProcessType| release.as_ref().and_then(|r| r.processes.get(p)).and_then(|s| s.command.clone());
    let known = |p: &ProcessType| release.as_ref().is_none_or(|r| r.processes.contains_key(p));
    Ok(app
        .formation
        .iter()
        .filter(|(p, _)| known(p))
        .map(|(p, s)| render::formation(app, p, *s, command(p).as_deref()))
        .collect())
}

pub async fn formation(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    ok(&Value::Array(render_formation(&c, &app).await?))
}

#[derive(Deserialize)]
pub struct Scale {
    updates: Vec<ScaleUpdate>,
}

#[derive(Deserialize)]
pub struct ScaleUpdate {
    #[serde(rename = "type")]
    process: String,
    quantity: Option<Value>,
    size: Option<String>,
}

impl ScaleUpdate {
    fn parse(&self) -> Result<ScaleChange, ApiError> {
        let bad = |q: &dyn std::fmt::Display| invalid(format!("quantity {q} is not valid: use a number, +1 or -1."));
        let quantity = match &self.quantity {
            None | Some(Value::Null) => None,
            Some(Value::Number(n)) => Some(Quantity::To(n.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(n))?)),
            Some(Value::String(s)) if s.starts_with(['+', '-']) => Some(Quantity::By(s.parse().map_err(|_| bad(s))?)),
            Some(Value::String(s)) => Some(Quantity::To(s.parse().map_err(|_| bad(s))?)),
            Some(other) => return Err(bad(other)),
        };
        // Heroku's names of sizes (Basic, Standard-1X) mean nothing here and change nothing.
        let is_named = self.size.as_deref().is_some_and(|s| s.starts_with(|c: char| c.is_alphabetic()));
        let memory = self.size.as_deref().filter(|_| !is_named).map(parse).transpose()?;
        Ok(ScaleChange { process: parse(&self.process)?, quantity, memory })
    }
}

pub async fn scale(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<Scale>,
) -> Answer {
    let changes = body.updates.iter().map(ScaleUpdate::parse).collect::<Result<Vec<_>, _>>()?;
    let app = c.scale(&caller.actor(), app.id, &changes).await?;
    ok(&Value::Array(render_formation(&c, &app).await?))
}

#[derive(Deserialize)]
pub struct ScaleOne {
    quantity: Option<Value>,
    size: Option<String>,
}

pub async fn scale_one(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, process)): Path<(String, String)>,
    Body(body): Body<ScaleOne>,
) -> Answer {
    let change = ScaleUpdate { process: process.clone(), quantity: body.quantity, size: body.size }.parse()?;
    let app = c.scale(&caller.actor(), app.id, &[change]).await?;
    let all = render_formation(&c, &app).await?;
    ok(&all.into_iter().find(|f| f["type"] == process.as_str()).unwrap_or(Value::Null))
}

pub async fn buildpacks(Extension(app): TheApp) -> Answer {
    ok(&app.buildpacks.iter().enumerate().map(|(i, b)| render::buildpack(i, b)).collect())
}

#[derive(Deserialize)]
pub struct SetBuildpacks {
    updates: Vec<SetBuildpack>,
}

#[derive(Deserialize)]
pub struct SetBuildpack {
    buildpack: String,
}

pub async fn set_buildpacks(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<SetBuildpacks>,
) -> Answer {
    if body.updates.len() > 20 {
        return Err(invalid("At most 20 buildpacks can be set.").into());
    }
    let list = body.updates.iter().map(|u| parse::<BuildpackRef>(&u.buildpack)).collect::<Result<Vec<_>, _>>()?;
    let app = c.set_buildpacks(&caller.actor(), app.id, list).await?;
    ok(&app.buildpacks.iter().enumerate().map(|(i, b)| render::buildpack(i, b)).collect())
}

async fn render_collaborator(c: &Controller, app: &App, user: flex_model::UserId, role: &str) -> Value {
    let email = c.email_of(user).await;
    json!({ "id": user, "app": { "id": app.id, "name": app.name }, "user": { "id": user, "email": email }, "role": role, "permissions": [] })
}

pub async fn collaborators(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    let mut out = vec![render_collaborator(&c, &app, app.owner, "owner").await];
    for other in c.collaborators_of(app.id).await? {
        out.push(render_collaborator(&c, &app, other.user, "collaborator").await);
    }
    ok(&Value::Array(out))
}

#[derive(Deserialize)]
pub struct AddCollaborator {
    user: String,
}

pub async fn add_collaborator(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddCollaborator>,
) -> Answer {
    let who = c.user_by_email(&parse(&body.user)?).await?;
    let who =
        who.ok_or_else(|| invalid(format!("There is no user {}. An administrator adds users: flex users:add", body.user)))?;
    let added = c.add_collaborator(&caller.actor(), &app, &who).await?;
    with(StatusCode::CREATED, &render_collaborator(&c, &app, added.user, "collaborator").await)
}

pub async fn remove_collaborator(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, who)): Path<(String, String)>,
) -> Answer {
    let gone = c.remove_collaborator(&caller.actor(), &app, &parse(&who)?).await?;
    ok(&render_collaborator(&c, &app, gone.user, "collaborator").await)
}

pub async fn domains(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    let own = c.default_domain(&app.name);
    let mut out = vec![json!({
        "id": app.id, "app": { "id": app.id, "name": app.name }, "hostname": own, "kind": "heroku", "cname": null, "status": "none", "sni_endpoint": null,
        "created_at": app.created_at.rfc3339_seconds(), "updated_at": app.created_at.rfc3339_seconds()
    })];
    out.extend(c.domains_of(app.id).await?.iter().map(|d| render::domain(d, &app, own.as_str())));
    ok(&Value::Array(out))
}

#[derive(Deserialize)]
pub struct AddDomain {
    hostname: String,
}

pub async fn add_domain(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddDomain>,
) -> Answer {
    let domain = c.add_domain(&caller.actor(), &app, parse(&body.hostname)?).await?;
    with(StatusCode::CREATED, &render::domain(&domain, &app, c.default_domain(&app.name).as_str()))
}

pub async fn remove_domain(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, domain)): Path<(String, String)>,
) -> Answer {
    let gone = c.remove_domain(&caller.actor(), &app, &domain).await?;
    ok(&render::domain(&gone, &app, c.default_domain(&app.name).as_str()))
}

pub async fn events(State(c): State<Controller>, Extension(app): TheApp, headers: HeaderMap) -> Answer {
    let all = c.db.list::<Event>(keys::EVENTS).await?;
    let mine: Vec<_> = all.into_iter().map(|e| e.value).filter(|e| e.app == Some(app.id)).collect();
    let (part, more) = Range::of(&headers).apply(mine);
    listed(part.iter().map(|e| render::event(e)).collect(), more)
}
