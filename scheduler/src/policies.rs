//! How HTTP requests of an app are treated: what was set for a route lies over what was set for the app, and that over what
//! the `app.json` of its release says, the more special place over the more general one. What somebody set by hand always
//! wins over a file.

use crate::view::AppView;
use flex_model::http_policy::{Place, Places};
use flex_model::{AppId, AppRoute, DomainName, HttpPolicy, Match, PathPrefix, Policy, ProcessType, Route, RouteId, Target, Uuid};
use std::sync::Arc;

/// What is in force at a host and path. `set` is the route's own, `app` what was set for all routes.
pub fn effective(set: &HttpPolicy, app: &HttpPolicy, places: &Places, host: &DomainName, path: &PathPrefix) -> HttpPolicy {
    let fits = |p: &&Place| p.host.as_ref().is_none_or(|h| h == host) && p.path.covers(path.as_str());
    let mut fitting: Vec<&Place> = places.keys().filter(fits).collect();
    // A longer path is more special than a name: `/api` means the API at each host.
    fitting.sort_by_key(|p| (p.path.as_str().len(), p.host.is_some()));
    let said = fitting.iter().fold(HttpPolicy::default(), |below, p| places[*p].clone().over(below));
    set.clone().over(app.clone()).over(said)
}

/// Host and path of each place that needs a route, though nobody made one.
pub fn places_of<'a>(
    places: &'a Places,
    domains: &'a [DomainName],
    made: &'a [Arc<Route>],
) -> impl Iterator<Item = (&'a DomainName, &'a PathPrefix)> {
    let spots = places.keys().flat_map(move |place| {
        let here = domains.iter().filter(move |d| place.host.as_ref().is_none_or(|h| h == *d));
        here.map(move |d| (d, &place.path))
    });
    let mut seen = std::collections::BTreeSet::new();
    spots.filter(move |(host, path)| {
        let is_made = made.iter().any(|r| matches!(&r.matches, Match::Http { host: h, path: p } if h == *host && p == *path));
        // What holds at a whole domain needs no route where it is said of every domain.
        !is_made && seen.insert((*host, *path))
    })
}

/// The route that somebody made which requests of that place take, if there is one.
pub fn covering<'a>(made: &'a [Arc<Route>], host: &DomainName, path: &PathPrefix) -> Option<&'a Arc<Route>> {
    let around = made.iter().filter_map(|r| match &r.matches {
        Match::Http { host: h, path: p } if h == host && p.covers(path.as_str()) => Some((p.as_str().len(), r)),
        _ => None,
    });
    around.max_by_key(|(len, _)| *len).map(|(_, r)| r)
}

/// Puts into an app's routes what is in force, and adds the routes that `app.json` asks for.
pub(crate) fn apply(view: &AppView, out: &mut AppRoute) {
    out.pages = view.routing.pages.clone();
    let none = Places::new();
    let places = view.wanted_release().map_or(&none, |r| &r.routes);
    let app = &view.routing.http;
    if places.is_empty() && *app == HttpPolicy::default() {
        return;
    }
    for route in &mut out.routes {
        if let Match::Http { host, path } = &route.matches {
            let before = route.policy.as_deref().cloned().unwrap_or_default();
            route.policy = shared(Policy { http: effective(&before.http, app, places, host, path), ..before });
        }
    }
    let root = PathPrefix::default();
    let everywhere =
        Places::from_iter(places.get_key_value(&Place { host: None, path: root.clone() }).map(|(p, h)| (p.clone(), h.clone())));
    if let Some(first) = view.domains.first() {
        let http = effective(&HttpPolicy::default(), app, &everywhere, first, &root);
        out.policy = shared(Policy { http, ..Policy::default() });
    }
    for (host, path) in places_of(places, &view.domains, &view.routes) {
        if path.is_root() && !places.contains_key(&Place { host: Some(host.clone()), path: root.clone() }) {
            continue;
        }
        out.routes.push(made(view.app.id, &view.routes, app, places, host, path));
    }
}

/// A route that leads where requests of that place go without it.
fn made(id: AppId, made: &[Arc<Route>], app: &HttpPolicy, places: &Places, host: &DomainName, path: &PathPrefix) -> Route {
    let matches = Match::Http { host: host.clone(), path: path.clone() };
    let around = covering(made, host, path);
    let before = around.and_then(|r| r.policy.as_deref()).cloned().unwrap_or_default();
    let policy = shared(Policy { http: effective(&before.http, app, places, host, path), ..before });
    // The same in every pass, so that nothing changes where nothing did.
    let id = RouteId(Uuid::new_v5(&id.0, matches.to_string().as_bytes()));
    Route { id, matches, targets: around.map_or_else(|| vec![Target::to(ProcessType::web())], |r| r.targets.clone()), policy }
}

fn shared(policy: Policy) -> Option<Arc<Policy>> {
    (policy != Policy::default()).then(|| Arc::new(policy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(value: &Value) -> HttpPolicy {
        HttpPolicy::read(value.as_object().unwrap().clone()).unwrap()
    }

    fn places(value: &Value) -> Places {
        value.as_object().unwrap().iter().map(|(place, p)| (place.parse().unwrap(), policy(p))).collect()
    }

    #[test]
    fn the_special_wins_over_the_general_and_a_hand_over_a_file() {
        let file = places(&json!({
            "*": { "timeout_seconds": 1, "idle_seconds": 1, "queue_seconds": 1, "max_body_bytes": 1, "https_redirect": true },
            "/api": { "timeout_seconds": 2, "idle_seconds": 2, "queue_seconds": 2 },
            "a.test/api": { "timeout_seconds": 3, "idle_seconds": 3 },
            "b.test": { "timeout_seconds": 9 }
        }));
        let (app, route) =
            (policy(&json!({ "timeout_seconds": 4, "https_redirect": false })), policy(&json!({ "timeout_seconds": 5 })));
        let at = |host: &str, path: &str| {
            let found = effective(&route, &app, &file, &host.parse().unwrap(), &path.parse().unwrap());
            serde_json::to_value(found).unwrap()
        };
        assert_eq!(
            at("a.test", "/api/v2"),
            json!({ "timeout_seconds": 5, "idle_seconds": 3, "queue_seconds": 2, "max_body_bytes": 1, "https_redirect": false })
        );
        assert_eq!(
            at("b.test", "/apis"),
            json!({ "timeout_seconds": 5, "idle_seconds": 1, "queue_seconds": 1, "max_body_bytes": 1, "https_redirect": false })
        );
    }

    #[test]
    fn a_place_becomes_a_route_where_nobody_made_one() {
        let file = places(&json!({ "*": {}, "/api": {}, "a.test": {}, "else.test/x": {} }));
        let domains: Vec<DomainName> = ["a.test", "b.test"].iter().map(|d| d.parse().unwrap()).collect();
        let matches = Match::Http { host: "b.test".parse().unwrap(), path: "/api".parse().unwrap() };
        let by_hand = Route { id: RouteId(Uuid::from_u128(1)), matches, targets: vec![], policy: None };
        let found: Vec<String> = places_of(&file, &domains, &[Arc::new(by_hand)]).map(|(h, p)| format!("{h}{p}")).collect();
        assert_eq!(found, ["a.test/", "b.test/", "a.test/api"]);
    }
}
