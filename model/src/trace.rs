//! Which route of a table a request takes, by the rules that routers follow, for people who ask why. Routers have a form of
//! the table that is made for speed; a test of theirs holds it against this one.

use crate::{AppId, AppRoute, DomainName, HttpPolicy, Match, PathPrefix, Route, RouteTable, path};
use std::sync::Arc;

/// What a table has for a host and a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    pub app: &'a Arc<AppRoute>,
    /// None: what the app's domain does by itself.
    pub route: Option<&'a Route>,
    /// The name that matched: the host itself, or a wildcard.
    pub host: DomainName,
    pub path: PathPrefix,
    /// Apps that claim the same host and path, and do not get it.
    pub others: Vec<AppId>,
}

impl Found<'_> {
    fn guards_as_much_as(&self, other: &Self) -> bool {
        let none = HttpPolicy::default();
        let http = |f: &Self| {
            let policy = f.route.map_or(&f.app.policy, |r| &r.policy);
            policy.as_ref().map_or_else(|| none.clone(), |p| p.http.clone())
        };
        http(self).guards_as_much_as(&http(other))
    }
}

impl RouteTable {
    /// The route of a request by host (lower case, no port) and path (without what follows `?`): at the exact name, else at
    /// the wildcard with the longest suffix; there the longest path, and of several apps that claim it the lowest id. A path
    /// that programs read in different ways takes the route of the normal reading, unless another one's asks more of a client;
    /// none where each asks something else.
    pub fn find(&self, host: &str, path: &str) -> Option<Found<'_>> {
        let readings = path::readings(path);
        let found = |in_any_case| readings.iter().filter_map(move |path| self.nearest(host, path, in_any_case));
        let mut candidates: Vec<Found<'_>> = found(false).collect();
        if let Some(longest) = candidates.iter().map(|f| f.path.as_str().len()).max() {
            candidates.extend(found(true).filter(|f| f.path.as_str().len() > longest));
        }
        let strictest = candidates.iter().position(|a| candidates.iter().all(|b| a.guards_as_much_as(b)))?;
        Some(candidates.swap_remove(strictest))
    }

    fn nearest(&self, host: &str, path: &str, in_any_case: bool) -> Option<Found<'_>> {
        let mut rest = host;
        let wildcards = std::iter::from_fn(|| {
            let (_, suffix) = rest.split_once('.')?;
            rest = suffix;
            Some(format!("*.{suffix}"))
        });
        std::iter::once(host.to_owned()).chain(wildcards).find_map(|name| self.at(&name, path, in_any_case))
    }

    fn at(&self, name: &str, path: &str, in_any_case: bool) -> Option<Found<'_>> {
        let mut claims: Vec<(&Arc<AppRoute>, Option<&Route>, PathPrefix)> = Vec::new();
        for app in &self.apps {
            for route in &app.routes {
                if let Match::Http { host, path: prefix } = &route.matches
                    && host.as_str() == name
                    && if in_any_case { prefix.covers_in_any_case(path) } else { prefix.covers(path) }
                {
                    claims.push((app, Some(route), prefix.clone()));
                }
            }
            if app.domains.iter().any(|d| d.as_str() == name) {
                claims.push((app, None, PathPrefix::default()));
            }
        }
        let longest = claims.iter().map(|(.., p)| p.as_str().len()).max()?;
        claims.retain(|(.., p)| p.as_str().len() == longest);
        // The order of the table is the order of ids, and within an app its own routes come before what domains do.
        let (app, route, prefix) = claims.first()?.clone();
        let others = claims.iter().map(|(a, ..)| a.app).filter(|a| *a != app.app).collect();
        Some(Found { app, route, host: name.parse().ok()?, path: prefix, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppState, ProcessType, RouteId, Target, Uuid};

    #[test]
    fn the_longest_path_of_the_nearest_name_wins() {
        let app = |n: u128, domains: &[&str], routes: &[(&str, &str)]| {
            let domains = domains.iter().map(|d| d.parse().unwrap()).collect();
            let route = |(at, (host, path)): (usize, &(&str, &str))| Route {
                id: RouteId(Uuid::from_u128(n * 100 + at as u128)),
                matches: Match::Http { host: host.parse().unwrap(), path: path.parse().unwrap() },
                targets: vec![Target::to(ProcessType::web())],
                policy: None,
            };
            let routes = routes.iter().enumerate().map(route).collect();
            let name = format!("app-{n}").parse().unwrap();
            AppRoute { routes, ..AppRoute::new(AppId(Uuid::from_u128(n)), name, domains, AppState::Blank, vec![]) }
        };
        let table = RouteTable::new(
            1,
            [
                app(1, &["a.test", "*.wild.test"], &[("a.test", "/api"), ("a.test", "/")]),
                app(2, &["a.test"], &[("a.test", "/api/v2"), ("*.b.wild.test", "/only")]),
            ],
        );
        let find = |host: &str, path: &str| {
            let found = table.find(host, path)?;
            Some((found.app.app.0.as_u128(), found.route.is_some(), format!("{}{}", found.host, found.path), found.others.len()))
        };
        assert_eq!(find("a.test", "/"), Some((1, true, "a.test/".into(), 1)));
        assert_eq!(find("a.test", "/api/x"), Some((1, true, "a.test/api".into(), 0)));
        assert_eq!(find("a.test", "/api/v2/x"), Some((2, true, "a.test/api/v2".into(), 0)));
        assert_eq!(find("x.wild.test", "/"), Some((1, false, "*.wild.test/".into(), 0)));
        assert_eq!(find("x.b.wild.test", "/only"), Some((2, true, "*.b.wild.test/only".into(), 0)));
        assert_eq!(find("x.b.wild.test", "/"), Some((1, false, "*.wild.test/".into(), 0)));
        assert_eq!(find("wild.test", "/"), None);
        assert_eq!(find("a.test", "//x/../%61pi/y"), Some((1, true, "a.test/api".into(), 0)));
    }
}
