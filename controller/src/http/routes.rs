//! Routes of an app, and what the routers say of them.

use super::access::Caller;
use super::answer::{Answer, Body, Listed, Made, Shown};
use super::list::{Key, Range};
use super::render::app_ref;
use crate::core::{Controller, invalid, lock};
use crate::db::RouteRecord;
use crate::routes::Wanted;
use crate::routing::merged_policy;
use axum::Extension;
use axum::extract::{Path, State};
use flex_api::route::{AddRoute, Route, RouteKind, UpdateRoute};
use flex_api::{ApiError, Time};
use flex_model::http_policy::{Place, Places};
use flex_model::{App, AppRouting, DomainName, HttpPolicy, Match, PathPrefix, Policy, ProcessType, RouteId, Target};
use flex_scheduler::{covering, effective, places_of};
use std::num::NonZeroU16;
use std::sync::Arc;

type TheApp = Extension<Arc<App>>;

/// What routes are shown with.
struct View<'a> {
    c: &'a Controller,
    app: &'a App,
    routing: Arc<AppRouting>,
    places: Places,
}

impl<'a> View<'a> {
    async fn of(c: &'a Controller, app: &'a App) -> Result<Self, ApiError> {
        Ok(Self { c, app, routing: c.routing_of(app.id).await?, places: c.places_of(app).await? })
    }

    fn http(&self, set: &HttpPolicy, host: Option<&DomainName>, path: Option<&PathPrefix>) -> HttpPolicy {
        match (host, path) {
            (Some(host), Some(path)) => effective(set, &self.routing.http, &self.places, host, path).hidden(),
            _ => HttpPolicy::default(),
        }
    }

    fn render(&self, r: &RouteRecord) -> Route {
        let matches = &r.route.matches;
        let (kind, host, path, port) = match matches {
            Match::Http { host, path } => (RouteKind::Http, Some(host), Some(path), None),
            Match::Tcp { port, .. } => (RouteKind::Tcp, None, None, Some(*port)),
            Match::Udp { port } => (RouteKind::Udp, None, None, Some(*port)),
            Match::Sni { host, port } => (RouteKind::Sni, Some(host), None, *port),
        };
        let policy = r.route.policy.as_deref().cloned().unwrap_or_default();
        Route {
            id: Some(r.route.id),
            app: app_ref(self.app),
            name: matches.to_string(),
            kind,
            host: host.cloned(),
            path: path.cloned(),
            port: port.map(NonZeroU16::get),
            tls: matches!(matches, Match::Tcp { tls: true, .. }),
            targets: r.route.targets.clone(),
            http: self.http(&policy.http, host, path),
            policy: Policy { http: policy.http.hidden(), ..policy },
            problems: problems(self.c, r.route.id),
            created_at: r.created_at.into(),
            updated_at: r.updated_at.into(),
        }
    }

    /// What a domain does by itself, or by `app.json`.
    fn own(&self, host: &DomainName, path: &PathPrefix, made: &[Arc<flex_model::Route>]) -> Route {
        let around = covering(made, host, path);
        let set = around.and_then(|r| r.policy.as_ref()).map(|p| p.http.clone()).unwrap_or_default();
        Route {
            id: None,
            app: app_ref(self.app),
            name: format!("{host}{path}"),
            kind: RouteKind::Http,
            host: Some(host.clone()),
            path: Some(path.clone()),
            port: None,
            tls: false,
            targets: around.map_or_else(|| vec![Target::to(ProcessType::web())], |r| r.targets.clone()),
            http: self.http(&set, Some(host), Some(path)),
            policy: Policy::default(),
            problems: Vec::new(),
            created_at: Time(self.app.created_at),
            updated_at: Time(self.app.updated_at),
        }
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
    let routes: Vec<Arc<flex_model::Route>> = made.iter().map(|r| r.value.route.clone()).collect();
    let view = View::of(&c, &app).await?;
    // A domain does something by itself, whether a file says how or not.
    let mut places = view.places.clone();
    places.entry(Place { host: None, path: PathPrefix::default() }).or_default();
    let mut out: Vec<Route> = places_of(&places, &hosts, &routes).map(|(host, path)| view.own(host, path, &routes)).collect();
    out.extend(made.iter().map(|r| view.render(&r.value)));
    let by = [("name", (|r: &Route| Key::Text(r.name.clone())) as fn(&Route) -> Key)];
    range.page(out, |r| r.name.clone(), &by)?.show(|r| r)
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, route)): Path<(String, String)>,
) -> Answer<Shown<Route>> {
    let found = c.find_route(&app, &route).await?;
    Ok(Shown(View::of(&c, &app).await?.render(&found.value)))
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
    let mut policy = body.policy;
    if let (Some(of), Some(serde_json::Value::Object(http))) = (&body.passwords_of, policy.get_mut("http")) {
        c.carry_passwords(&caller.user, of, http).await?;
    }
    let policy = merged_policy(None, policy)?;
    let made = c.add_route(&caller.actor(), Some(&caller.user), &app, wanted, body.targets, policy).await?;
    Ok(Made(View::of(&c, &app).await?.render(&made)))
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
            Some(merged_policy(found.value.route.policy.as_deref(), changes)?)
        }
    };
    let changed = c.set_route(&caller.actor(), &app, &route, body.targets, policy).await?;
    Ok(Shown(View::of(&c, &app).await?.render(&changed)))
}

pub async fn remove(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, route)): Path<(String, String)>,
) -> Answer<Shown<Route>> {
    let gone = c.remove_route(&caller.actor(), &app, &route).await?;
    Ok(Shown(View::of(&c, &app).await?.render(&gone)))
}
