//! The ways into an app in a document of its settings: what holds for all its routes, its own pages, and the routes that
//! somebody made for its own name or for ports.
//!
//! Left out, and said so: passwords, which the server shows to nobody, and routes of other names, which are of one app only.

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;
use flex_api::{AddRoute, Route, RouteKind, Routing, UpdateRouting};
use flex_model::http_policy::PageKind;
use flex_model::{AppName, DomainName, PathPrefix, Target};
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

/// Takes passwords out of settings of HTTP; whether there were any.
fn without_passwords(http: &mut Map<String, Value>) -> bool {
    let asks = http.get("basic_auth").is_some_and(Value::is_object);
    if asks {
        http.remove("basic_auth");
    }
    asks
}

/// Takes out the name that requests are sent to: it would lead away from the new app.
fn without_host(http: &mut Map<String, Value>) {
    if let Some(Value::String(host)) = http.get("canonical_host") {
        output::warn(format!("The canonical host {host} is left out: a domain is of one app only."));
        http.remove("canonical_host");
    }
}

fn warn_of_passwords(what: &str, route: &str) {
    output::warn(format!("{what} asked for a password, which is not carried over: the new app lets everybody in."));
    output::warn(format!("Set it there: flex routes:set {route} --basic-auth USER"));
}

pub async fn read(cx: &Context, own: &DomainName) -> Result<Ways> {
    let all: Routing = cx.client.get(&cx.path("/routing")?).await?;
    let mut http = object(&all.http);
    if without_passwords(&mut http) {
        warn_of_passwords(&format!("Each route of {}", cx.app()?), "--all");
    }
    without_host(&mut http);
    let pages = all.pages.into_iter().map(|p| (p.name, p.text)).collect();
    let made: Vec<Route> = cx.client.list(&cx.path("/routes")?).await?;
    let mut routes = Vec::new();
    for r in made.into_iter().filter(|r| r.id.is_some()) {
        if r.host.as_ref().is_some_and(|h| h != own) {
            output::warn(format!("The route {} is left out: a domain is of one app only.", r.name));
            continue;
        }
        let mut policy = object(&r.policy);
        if let Some(http) = policy.get_mut("http").and_then(Value::as_object_mut) {
            if without_passwords(http) {
                warn_of_passwords(&format!("The route {}", r.name), "ROUTE");
            }
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
    Ok(Ways { http, pages, routes })
}

pub async fn write(cx: &Context, name: &AppName, own: &DomainName, ways: &Ways) -> Result<()> {
    let path = |rest: &str| format!("/apps/{name}{rest}");
    if !ways.http.is_empty() || !ways.pages.is_empty() {
        let pages = ways.pages.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
        let body = UpdateRouting { http: Some(ways.http.clone()), pages: Some(pages) };
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
        };
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
    fn passwords_are_taken_out_and_nothing_else() {
        let mut http = object(&serde_json::json!({ "timeout_seconds": 5, "basic_auth": { "users": { "a": "[hidden]" } } }));
        assert!(without_passwords(&mut http));
        assert_eq!(Value::Object(http), serde_json::json!({ "timeout_seconds": 5 }));
        // One that takes away what app.json asks for is no password.
        assert!(!without_passwords(&mut object(&serde_json::json!({ "basic_auth": false }))));
    }
}
