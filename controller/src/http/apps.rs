//! Apps and what belongs to them.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::{parse, render, server};
use crate::core::{Controller, invalid, not_found};
use crate::db::keys;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::{
    AddCollaborator, AddDomain, ApiError, BuildpackInstallation, Collaborator, CollaboratorRole, CreateApp, Domain, DomainKind,
    Formation, Scale, SetBuildpacks, UpdateApp, UpdateFormation, UpdateFormations,
};
use flex_model::{App, Event, ProcessType, StackName, Timestamp, UserId};
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

pub async fn list(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    range: Range,
) -> Answer<Listed<flex_api::App>> {
    let mut mine = Vec::new();
    for app in c.db.list::<App>(keys::APPS).await? {
        if c.role_in(&caller.user, &app.value).await?.is_some() {
            mine.push(app.value);
        }
    }
    let page = range.page(
        mine,
        |a| a.id.to_string(),
        &[
            ("name", |a| Key::Text(a.name.to_string())),
            ("created_at", |a| Key::Time(a.created_at)),
            ("updated_at", |a| Key::Time(a.updated_at)),
        ],
    )?;
    let mut items = Vec::with_capacity(page.items.len());
    for item in page.items {
        items.push(c.render_app(&item).await?);
    }
    Ok(Listed { items, head: page.head })
}

pub async fn create(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateApp>,
) -> Answer<Made<flex_api::App>> {
    // Heroku's client asks for its own stacks; they mean this server's.
    let stack = body.stack.as_deref().filter(|s| !s.starts_with("heroku")).map(parse).transpose()?;
    let app = c.create_app(&caller.actor(), body.name, stack).await?;
    Ok(Made(c.render_app(&app).await?))
}

/// A stack, and whether that is a choice. Heroku's own, and `default`, leave it to the server and to app.json.
fn stack_of(c: &Controller, name: &str) -> Answer<(StackName, bool)> {
    if name == "default" || name.starts_with("heroku") {
        return Ok((c.deps.settings.stack.clone(), false));
    }
    let stack = parse(name)?;
    c.refuse_unknown_stack(&stack)?;
    Ok((stack, true))
}

pub async fn info(State(c): State<Controller>, Extension(app): TheApp) -> Answer<Shown<flex_api::App>> {
    Ok(Shown(c.render_app(&app).await?))
}

pub async fn update(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<UpdateApp>,
) -> Answer<Shown<flex_api::App>> {
    let actor = caller.actor();
    for branch in body.deploy_branches.iter().flatten() {
        flex_model::names::check_branch(branch).map_err(invalid)?;
    }
    if body.deploy_branches.as_ref().is_some_and(|b| b.is_empty() || b.len() > 20) {
        return Err(invalid("Give 1 to 20 branches that deploy.").into());
    }
    if body.stop_grace_seconds.is_some_and(|s| !(1..=3600).contains(&s)) {
        return Err(invalid("stop_grace_seconds must be between 1 and 3600.").into());
    }
    let json = match body.access_lines.as_deref() {
        None => None,
        Some("default") => Some(None),
        Some(form @ ("text" | "json")) => Some(Some(form == "json")),
        Some(other) => return Err(invalid(format!("access_lines {other}: use text, json or default.")).into()),
    };
    let stack = body.build_stack.as_deref().map(|s| stack_of(&c, s)).transpose()?;
    let mut now = c
        .update_app(&actor, app.id, "app.update", |a| {
            let before = a.clone();
            a.maintenance = body.maintenance.unwrap_or(a.maintenance);
            a.read_only_root = body.read_only_root.unwrap_or(a.read_only_root);
            a.stop_grace_seconds = body.stop_grace_seconds.unwrap_or(a.stop_grace_seconds);
            let mut lines = a.access_lines.unwrap_or_default();
            lines.json = json.unwrap_or(lines.json);
            lines.per_mille = body.access_lines_per_mille.map_or(lines.per_mille, |n| (n <= 1000).then_some(n));
            if let Some((stack, by_hand)) = &stack {
                (a.stack, a.stack_by_hand) = (stack.clone(), *by_hand);
            }
            a.access_lines = (lines != flex_model::LineForm::default()).then_some(lines);
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
    if let Some(name) = body.name {
        now = c.rename_app(&actor, app.id, &name).await?;
    }
    Ok(Shown(c.render_app(&now).await?))
}

pub async fn destroy(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<flex_api::App>> {
    let rendered = c.render_app(&app).await?;
    c.destroy_app(&caller.actor(), app.id).await?;
    Ok(Shown(rendered))
}

async fn render_formation(c: &Controller, app: &App) -> Vec<Formation> {
    let release = match app.target.or(app.good) {
        Some(v) => c.find_release(app.id, &v.to_string()).await.ok(),
        None => None,
    };
    let command = |p: &ProcessType| release.as_ref().and_then(|r| r.processes.get(p)).and_then(|s| s.command.clone());
    let known = |p: &ProcessType| release.as_ref().is_none_or(|r| r.image.is_none() || r.processes.contains_key(p));
    app.formation
        .iter()
        .filter(|(p, _)| known(p))
        .map(|(p, s)| render::formation(app, p, *s, c.size_name(s.memory, s.cpu_shares, s.cpu_millis), command(p)))
        .collect()
}

async fn list_formation(c: &Controller, app: &App, range: &Range) -> Answer<Listed<Formation>> {
    let all = render_formation(c, app).await;
    range.page(all, |f| f.id.to_string(), &[("type", |f| Key::Text(f.kind.to_string()))])?.show(|f| f)
}

pub async fn formation(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Formation>> {
    list_formation(&c, &app, &range).await
}

pub async fn scale(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<UpdateFormations>,
) -> Answer<Listed<Formation>> {
    let changes = body.updates.iter().map(|u| c.scale_change(u));
    let changes = changes.collect::<Result<Vec<_>, _>>()?;
    let app = c.scale(&caller.actor(), app.id, &changes, body.ahead).await?;
    list_formation(&c, &app, &Range::default()).await
}

pub async fn formation_of(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, process)): Path<(String, String)>,
) -> Answer<Shown<Formation>> {
    let found = render_formation(&c, &app).await.into_iter().find(|f| f.kind.as_str() == process || f.id.to_string() == process);
    Ok(Shown(found.ok_or_else(|| not_found("Couldn't find that process type."))?))
}

pub async fn scale_one(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, process)): Path<(String, String)>,
    Body(body): Body<Scale>,
) -> Answer<Shown<Formation>> {
    let change = c.scale_change(&UpdateFormation {
        kind: parse(&process)?,
        quantity: body.quantity,
        size: body.size,
        cpu_shares: None,
        cpu_millis: None,
    })?;
    let app = c.scale(&caller.actor(), app.id, &[change], false).await?;
    let found = render_formation(&c, &app).await.into_iter().find(|f| f.kind.as_str() == process);
    Ok(Shown(found.ok_or_else(|| not_found("Couldn't find that process type."))?))
}

fn list_buildpacks(app: &App, range: &Range) -> Answer<Listed<BuildpackInstallation>> {
    let all = render::buildpacks(&app.buildpacks);
    range.page(all, |b| b.ordinal.to_string(), &[("ordinal", |b| Key::Number(b.ordinal.into()))])?.show(|b| b)
}

pub async fn buildpacks(Extension(app): TheApp, range: Range) -> Answer<Listed<BuildpackInstallation>> {
    list_buildpacks(&app, &range)
}

pub async fn set_buildpacks(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<SetBuildpacks>,
) -> Answer<Listed<BuildpackInstallation>> {
    if body.updates.len() > 20 {
        return Err(invalid("At most 20 buildpacks can be set.").into());
    }
    let list = body.updates.into_iter().map(|u| u.buildpack).collect();
    let app = c.set_buildpacks(&caller.actor(), app.id, list).await?;
    list_buildpacks(&app, &Range::default())
}

async fn render_collaborator(c: &Controller, app: &App, user: UserId, role: CollaboratorRole, since: Timestamp) -> Collaborator {
    Collaborator {
        id: user,
        app: render::app_ref(app),
        user: c.user_ref(user).await,
        role,
        permissions: Vec::new(),
        created_at: since.into(),
        updated_at: since.into(),
    }
}

pub async fn collaborators(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Collaborator>> {
    let mut out = vec![render_collaborator(&c, &app, app.owner, CollaboratorRole::Owner, app.created_at).await];
    for other in c.collaborators_of(app.id).await? {
        out.push(render_collaborator(&c, &app, other.user, CollaboratorRole::Collaborator, other.created_at).await);
    }
    let by = [
        ("created_at", (|c| Key::Time(c.created_at.0)) as fn(&Collaborator) -> Key),
        ("email", |c| Key::Text(c.user.email.clone())),
    ];
    range.page(out, |c| c.id.to_string(), &by)?.show(|c| c)
}

pub async fn add_collaborator(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddCollaborator>,
) -> Answer<Made<Collaborator>> {
    let who = c.user_by_email(&body.user).await?;
    let who =
        who.ok_or_else(|| invalid(format!("There is no user {}. An administrator adds users: flex users:add", body.user)))?;
    let added = c.add_collaborator(&caller.actor(), &app, &who).await?;
    Ok(Made(render_collaborator(&c, &app, added.user, CollaboratorRole::Collaborator, added.created_at).await))
}

pub async fn remove_collaborator(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, who)): Path<(String, String)>,
) -> Answer<Shown<Collaborator>> {
    let gone = c.remove_collaborator(&caller.actor(), &app, &parse(&who)?).await?;
    Ok(Shown(render_collaborator(&c, &app, gone.user, CollaboratorRole::Collaborator, gone.created_at).await))
}

/// How it stands with the certificates that are made for the app's domains.
async fn with_acm(c: &Controller, app: &App, mut domains: Vec<Domain>) -> Result<Vec<Domain>, ApiError> {
    let mut statuses = c.acm_statuses(app).await?;
    for domain in &mut domains {
        if let Some((status, reason)) = statuses.remove(&domain.hostname) {
            (domain.acm_status, domain.acm_status_reason) = (Some(status.into()), reason);
        }
    }
    Ok(domains)
}

async fn render_domains(c: &Controller, app: &App) -> Result<Vec<Domain>, ApiError> {
    let own = c.default_domain(&app.name);
    let mut out = vec![render::own_domain(app, own.clone())];
    out.extend(c.domains_of(app.id).await?.iter().map(|d| render::domain(d, app, own.clone())));
    with_acm(c, app, out).await
}

pub async fn domains(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Domain>> {
    let out = render_domains(&c, &app).await?;
    let by = [
        ("created_at", (|d| Key::Time(d.created_at.0)) as fn(&Domain) -> Key),
        ("hostname", |d| Key::Text(d.hostname.to_string())),
    ];
    range.page(out, |d| d.id.to_string(), &by)?.show(|d| d)
}

pub async fn add_domain(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddDomain>,
) -> Answer<Made<Domain>> {
    let domain = c.add_domain(&caller.actor(), Some(&caller.user), &app, body.hostname).await?;
    let mut one = with_acm(&c, &app, vec![render::domain(&domain, &app, c.default_domain(&app.name))]).await?;
    Ok(Made(one.remove(0)))
}

pub async fn domain(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, domain)): Path<(String, String)>,
) -> Answer<Shown<Domain>> {
    let mut all = render_domains(&c, &app).await?;
    let found =
        all.iter().position(|d| d.hostname.as_str() == domain || d.kind == DomainKind::Custom && d.id.to_string() == domain);
    Ok(Shown(all.swap_remove(found.ok_or_else(|| not_found("Couldn't find that domain."))?)))
}

pub async fn remove_domain(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, domain)): Path<(String, String)>,
) -> Answer<Shown<Domain>> {
    let gone = c.remove_domain(&caller.actor(), &app, &domain).await?;
    Ok(Shown(render::domain(&gone, &app, c.default_domain(&app.name))))
}

pub async fn events(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<flex_api::Event>> {
    let all = c.db.list::<Event>(keys::EVENTS).await?;
    let mine = all.into_iter().map(|e| e.value).filter(|e| e.app == Some(app.id));
    server::history(&range, mine.map(|e| (*e).clone()).collect())
}
