//! Routes of an app, and what the routers say of them.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::render::app_ref;
use crate::core::{Controller, invalid, lock};
use crate::db::RouteRecord;
use crate::routes::Wanted;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::route::{AddRoute, Route, RouteKind, UpdateRoute};
use flex_api::{ApiError, Time};
use flex_model::{App, DomainName, Match, Policy, ProcessType, RouteId, Target};
use std::num::NonZeroU16;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

fn render(c: &Controller, app: &App, r: &RouteRecord) -> Route {
    let matches = &r.route.matches;
    let (kind, host, path, port) = match matches {
        Match::Http { host, path } => (RouteKind::Http, Some(host), Some(path), None),
        Match::Tcp { port, .. } => (RouteKind::Tcp, None, None, Some(*port)),
        Match::Udp { port } => (RouteKind::Udp, None, None, Some(*port)),
        Match::Sni { host, port } => (RouteKind::Sni, Some(host), None, *port),
    };
    Route {
        id: Some(r.route.id),
        app: app_ref(app),
        name: matches.to_string(),
        kind,
        host: host.cloned(),
        path: path.cloned(),
        port: port.map(NonZeroU16::get),
        tls: matches!(matches, Match::Tcp { tls: true, .. }),
        targets: r.route.targets.clone(),
        policy: r.route.policy.as_deref().cloned().unwrap_or_default(),
        problems: problems(c, r.route.id),
        created_at: r.created_at.into(),
        updated_at: r.updated_at.into(),
    }
}

/// What a domain does by itself.
fn own(app: &App, host: &DomainName) -> Route {
    Route {
        id: None,
        app: app_ref(app),
        name: format!("{host}/"),
        kind: RouteKind::Http,
        host: Some(host.clone()),
        path: Some(flex_model::PathPrefix::default()),
        port: None,
        tls: false,
        targets: vec![Target::to(ProcessType::web())],
        policy: Policy::default(),
        problems: Vec::new(),
        created_at: Time(app.created_at),
        updated_at: Time(app.updated_at),
    }
}

fn problems(c: &Controller, route: RouteId) -> Vec<String> {
    let routers = lock(&c.routers);
    let told =
        routers.values().flat_map(|(r, _)| r.problems.iter().filter(|p| p.route == Some(route)).map(|p| (&r.router, &p.message)));
    told.map(|(router, message)| format!("{router}: {message}")).collect()
}

/// Those that somebody made, and those that domains have by themselves.
pub async fn list(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<Route>> {
    let made = c.routes_of(app.id).await?;
    let mut hosts = vec![c.default_domain(&app.name)];
    hosts.extend(c.domains_of(app.id).await?.iter().map(|d| d.hostname.clone()));
    let has_own = |host: &DomainName| {
        made.iter().any(|r| matches!(&r.value.route.matches, Match::Http { host: h, path } if h == host && path.is_root()))
    };
    let mut out: Vec<Route> = hosts.iter().filter(|h| !has_own(h)).map(|host| own(&app, host)).collect();
    out.extend(made.iter().map(|r| render(&c, &app, &r.value)));
    let by = [("name", (|r: &Route| Key::Text(r.name.clone())) as fn(&Route) -> Key)];
    range.page(out, |r| r.name.clone(), &by)?.show(|r| r)
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, route)): Path<(String, String)>,
) -> Answer<Shown<Route>> {
    let found = c.find_route(&app, &route).await?;
    Ok(Shown(render(&c, &app, &found.value)))
}

fn wanted(body: &AddRoute) -> Result<Wanted, ApiError> {
    let host = || body.host.clone().ok_or_else(|| invalid("A route by host or by SNI needs a host."));
    let port = match body.port {
        None => None,
        Some(n) => Some(NonZeroU16::new(n).ok_or_else(|| invalid("Port 0 is no port. Leave it out to have one allotted."))?),
    };
    match body.kind {
        kind if body.tls && kind != RouteKind::Tcp => Err(invalid("tls is for TCP routes.")),
        RouteKind::Http if port.is_some() => Err(invalid("A route by host has no port: it is for the routers' HTTP listeners.")),
        RouteKind::Http => Ok(Wanted::Http { host: host()?, path: body.path.clone().unwrap_or_default() }),
        RouteKind::Sni if body.path.is_some() => Err(invalid("A route by SNI has no path: the router does not look into TLS.")),
        RouteKind::Sni => Ok(Wanted::Sni { host: host()?, port }),
        _ if body.host.is_some() || body.path.is_some() => Err(invalid("A route by port has neither host nor path.")),
        RouteKind::Tcp => Ok(Wanted::Tcp { port, tls: body.tls }),
        RouteKind::Udp => Ok(Wanted::Udp(port)),
    }
}

pub async fn add(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<AddRoute>,
) -> Answer<Made<Route>> {
    let wanted = wanted(&body)?;
    let made = c.add_route(&caller.actor(), Some(&caller.user), &app, wanted, body.targets, body.policy).await?;
    Ok(Made(render(&c, &app, &made)))
}

pub async fn set(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, route)): Path<(String, String)>,
    Body(body): Body<UpdateRoute>,
) -> Answer<Shown<Route>> {
    let policy = match body.policy {
        None => None,
        Some(changes) => {
            let found = c.find_route(&app, &route).await?;
            Some(merged(found.value.route.policy.as_deref(), changes)?)
        }
    };
    let changed = c.set_route(&caller.actor(), &app, &route, body.targets, policy).await?;
    Ok(Shown(render(&c, &app, &changed)))
}

fn merged(before: Option<&Policy>, changes: serde_json::Map<String, serde_json::Value>) -> Result<Policy, ApiError> {
    let whole = serde_json::to_value(before.cloned().unwrap_or_default()).map_err(invalid)?;
    let mut whole = whole.as_object().cloned().unwrap_or_default();
    for (name, value) in changes {
        if value.is_null() {
            whole.remove(&name);
        } else {
            whole.insert(name, value);
        }
    }
    serde_json::from_value(whole.into()).map_err(|e| invalid(format!("policy: {e}")))
}

pub async fn remove(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, route)): Path<(String, String)>,
) -> Answer<Shown<Route>> {
    let gone = c.remove_route(&caller.actor(), &app, &route).await?;
    Ok(Shown(render(&c, &app, &gone)))
}
