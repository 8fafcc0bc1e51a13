//! The ways into an app in a document of its settings: what holds for all its routes, its own pages, and the routes that
//! somebody made for its own name or for ports.
//!
//! Passwords are shown to nobody: a document has [`HIDDEN`] for each. A clone has those of its first app; an app from a file
//! asks for ones that nobody knows, until they are set. Left out, and said so: routes of other names, which are of one app
//! only.

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;
use flex_api::{AddRoute, PasswordsOf, Route, RouteKind, Routing, UpdateRouting};
use flex_model::http_policy::{HIDDEN, PageKind};
use flex_model::{AppName, DomainName, PathPrefix, Target, Uuid};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// As they are written down.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ways {
    /// What holds for all HTTP routes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    http: Map<String, Value>,
    /// HTML by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pages: BTreeMap<PageKind, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Way>,
    /// The route that the passwords of all routes are of, where they are of one that is left out.
    #[serde(skip)]
    passwords_of: Option<String>,
}

/// A route. Its host, where it has one, is the app's own name.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Way {
    kind: RouteKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathPrefix>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tls: bool,
    targets: Vec<Target>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    policy: Map<String, Value>,
}

impl Way {
    /// Of a route by host and path.
    fn name(&self, own: &DomainName) -> String {
        format!("{own}{}", self.path.clone().unwrap_or_default())
    }
}

impl Ways {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The app's own name.
pub fn own_host(app: &flex_api::App) -> Result<DomainName> {
    let host = app.web_url.split("//").nth(1).and_then(|rest| rest.split([':', '/']).next()).unwrap_or_default();
    host.parse().map_err(|e| CliError::failed(format!("The server's name for {} cannot be read: {e}", app.name)))
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    serde_json::to_value(value).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default()
}

/// The passwords that settings of HTTP ask for and do not tell, by their users.
fn hidden(http: &mut Map<String, Value>) -> impl Iterator<Item = (&String, &mut Value)> {
    let users = http.get_mut("basic_auth").and_then(|a| a.get_mut("users")).and_then(Value::as_object_mut);
    users.into_iter().flatten().filter(|(_, password)| password.as_str() == Some(HIDDEN))
}

/// Takes out the name that requests are sent to: it would lead away from the new app.
fn without_host(http: &mut Map<String, Value>) {
    if let Some(Value::String(host)) = http.get("canonical_host") {
        output::warn(format!("The canonical host {host} is left out: a domain is of one app only."));
        http.remove("canonical_host");
    }
}

/// Where there is no app to take passwords from: puts ones there that nobody knows, and says how to set others.
fn shut(http: &mut Map<String, Value>, route: &str, app: &AppName) {
    for (user, password) in hidden(http) {
        let unknown = [Uuid::new_v4(), Uuid::new_v4()].map(|id| id.simple().to_string()).concat();
        *password = unknown.into();
        output::warn(format!("The password of {user} is not in the file: nobody gets in until one is set."));
        output::warn(format!("Set it: flex routes:set {route} --basic-auth {user} -a {app}"));
    }
}

/// The app that a copy is made of.
pub struct Original {
    pub app: AppName,
    pub own: DomainName,
}

impl Original {
    /// Where it has the passwords of one of its routes; none: of all.
    fn passwords(&self, route: Option<String>) -> PasswordsOf {
        PasswordsOf { app: self.app.to_string(), route }
    }
}

pub async fn read(cx: &Context, own: &DomainName) -> Result<Ways> {
    let all: Routing = cx.client.get(&cx.path("/routing")?).await?;
    let mut http = object(&all.http);
    without_host(&mut http);
    let pages = all.pages.into_iter().map(|p| (p.name, p.text)).collect();
    let made: Vec<Route> = cx.client.list(&cx.path("/routes")?).await?;
    let (mut routes, mut passwords_of) = (Vec::new(), None);
    for r in made.into_iter().filter(|r| r.id.is_some()) {
        let mut policy = object(&r.policy);
        if r.host.as_ref().is_some_and(|h| h != own) {
            output::warn(format!("The route {} is left out: a domain is of one app only.", r.name));
            let auth = policy.get("http").and_then(|h| h.get("basic_auth")).filter(|a| a.is_object());
            let is_first = !http.contains_key("basic_auth") && r.path.as_ref().is_some_and(PathPrefix::is_root);
            // What is behind it would be open at the copy's own name.
            if let Some(auth) = auth.filter(|_| is_first) {
                output::warn("It asks for a password: every route of the copy does.");
                http.insert("basic_auth".into(), auth.clone());
                passwords_of = Some(r.name);
            }
            continue;
        }
        if let Some(http) = policy.get_mut("http").and_then(Value::as_object_mut) {
            without_host(http);
        }
        policy.retain(|_, v| v.as_object().is_none_or(|o| !o.is_empty()));
        // Releases are the app's own as well.
        let mut targets: Vec<Target> = Vec::new();
        for target in r.targets {
            if !targets.iter().any(|t| t.process == target.process) {
                targets.push(Target { version: None, ..target });
            }
        }
        routes.push(Way { kind: r.kind, path: r.path, port: r.port, tls: r.tls, targets, policy });
    }
    Ok(Ways { http, pages, routes, passwords_of })
}

/// Gives an app these ways; `original` is the app that they were read from, if that was just now and there.
pub async fn write(cx: &Context, name: &AppName, own: &DomainName, ways: &Ways, original: Option<&Original>) -> Result<()> {
    let path = |rest: &str| format!("/apps/{name}{rest}");
    if !ways.http.is_empty() || !ways.pages.is_empty() {
        let pages = ways.pages.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
        let mut http = ways.http.clone();
        let passwords_of = original.map(|o| o.passwords(ways.passwords_of.clone()));
        if original.is_none() {
            shut(&mut http, "--all", name);
        }
        let body = UpdateRouting { http: Some(http), pages: Some(pages), passwords_of };
        cx.client.patch::<Routing>(&path("/routing"), &body).await?;
    }
    for way in &ways.routes {
        let named = matches!(way.kind, RouteKind::Http | RouteKind::Sni);
        let mut body = AddRoute {
            kind: way.kind,
            host: named.then(|| own.clone()),
            path: way.path.clone(),
            port: way.port,
            tls: way.tls,
            targets: way.targets.clone(),
            policy: way.policy.clone(),
            passwords_of: original.filter(|_| named).map(|o| o.passwords(Some(way.name(&o.own)))),
        };
        if let (None, Some(Value::Object(http))) = (original, body.policy.get_mut("http")) {
            shut(http, &way.name(own), name);
        }
        let made: Result<Route> = cx.client.post(&path("/routes"), &body).await;
        let made = match made {
            // The port is most likely the first app's: another does as well, but its clients must know.
            Err(_) if !named && way.port.is_some() => {
                body.port = None;
                cx.client.post::<Route>(&path("/routes"), &body).await?
            }
            made => made?,
        };
        if let (Some(was), Some(is)) = (way.port, made.port)
            && was != is
        {
            output::warn(format!("Port {was} is not to be had: {} leads to {name}.", made.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_that_are_not_told_are_found_and_shut() {
        let mut http = object(&serde_json::json!({ "timeout_seconds": 5, "basic_auth": { "users": { "a": HIDDEN, "b": "x" } } }));
        assert_eq!(hidden(&mut http).map(|(user, _)| user.clone()).collect::<Vec<_>>(), ["a"]);
        shut(&mut http, "--all", &"shop".parse().unwrap());
        let users = &http["basic_auth"]["users"];
        assert!(users["a"].as_str().is_some_and(|p| p.len() == 64) && users["b"] == "x", "{users}");
        assert_eq!(hidden(&mut http).count(), 0);
        // One that takes away what app.json asks for is no password.
        assert_eq!(hidden(&mut object(&serde_json::json!({ "basic_auth": false }))).count(), 0);
    }
}
