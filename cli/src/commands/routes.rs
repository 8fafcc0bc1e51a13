//! Routes of an app.

use super::http_routes::{self, shown};
use crate::args::{AddRoute, RoutePolicy, RouteTo, Routes, SetRoute, UnsetRoute, http};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{Route, RouteKind, UpdateRoute};
use flex_model::{ProcessType, Target};
use serde_json::{Map, Value};

pub async fn run(cx: &Context, verb: Option<Routes>) -> Result<()> {
    let path = cx.path("/routes")?;
    match verb {
        None => list(cx, &path).await,
        Some(Routes::Add(args)) => add(cx, &path, *args).await,
        Some(Routes::Set(args)) => set(cx, &path, &args).await,
        Some(Routes::Unset(args)) => unset(cx, &path, args).await,
        Some(Routes::Info(args)) => http_routes::info(cx, &path, args).await,
        Some(Routes::Page(args)) => http_routes::page(cx, args).await,
        Some(Routes::Remove { route }) => {
            let id = own_id(cx, &path, &route).await?;
            let progress = Progress::start(format!("Removing the route {route} of {}", cx.app()?));
            cx.client.delete(&format!("{path}/{id}")).await?;
            progress.done();
            Ok(())
        }
    }
}

async fn list(cx: &Context, path: &str) -> Result<()> {
    let Some(routes) = cx.fetch_list::<Vec<Route>>(path).await? else { return Ok(()) };
    output::heading(&format!("{} Routes", cx.app()?));
    let mut problems = Vec::new();
    let rows: Vec<Vec<String>> = routes
        .iter()
        .map(|r| {
            problems.extend(r.problems.iter().map(|p| format!("{}: {p}", r.name)));
            vec![format!("{}{}", r.name, if r.tls { " (tls)" } else { "" }), targets(&r.targets), policy(r)]
        })
        .collect();
    output::table(&["route", "to", "policy"], &rows);
    problems.iter().for_each(output::warn);
    Ok(())
}

pub fn targets(targets: &[Target]) -> String {
    match targets {
        [only] => only.to_string(),
        several => several.iter().map(|t| format!("{t}={}", t.weight)).collect::<Vec<_>>().join(" "),
    }
}

/// What is not as it is by default, whoever said so.
fn policy(route: &Route) -> String {
    let object = |v: Value| v.as_object().cloned().unwrap_or_default();
    let mut whole = object(serde_json::to_value(&route.policy).unwrap_or_default());
    whole.remove("http");
    whole.extend(object(serde_json::to_value(&route.http).unwrap_or_default()));
    whole.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect::<Vec<_>>().join(" ")
}

async fn add(cx: &Context, path: &str, args: AddRoute) -> Result<()> {
    let usage = |e: flex_model::Invalid| CliError::usage(e.to_string());
    // 0 stands for "allot one": clap has no other way to tell a flag without a value.
    let port = |p: u16| (p != 0).then_some(p);
    let (kind, host, port) = match (&args.host, args.tcp, &args.sni, args.udp) {
        (_, Some(p), ..) => (RouteKind::Tcp, None, port(p)),
        (_, _, Some(name), _) => (RouteKind::Sni, Some(name), args.port),
        (.., Some(p)) => (RouteKind::Udp, None, port(p)),
        (host, ..) => (RouteKind::Http, host.as_ref(), None),
    };
    let body = flex_api::AddRoute {
        kind,
        host: host.map(|h| h.parse()).transpose().map_err(usage)?,
        path: args.path.as_deref().map(str::parse).transpose().map_err(usage)?,
        port,
        tls: args.tls,
        targets: to(&args.to)?.unwrap_or_default(),
        policy: changes(&args.policy, &[])?,
        passwords_of: None,
    };
    let progress = Progress::start(format!("Adding a route to {}", cx.app()?));
    let made: Value = cx.client.post(path, &body).await?;
    progress.done();
    let Some(route) = cx.show_or::<Route>(made)? else { return Ok(()) };
    output::say(format!("{} leads to {}", route.name, targets(&route.targets)));
    Ok(())
}

async fn set(cx: &Context, path: &str, args: &SetRoute) -> Result<()> {
    let changes = changes(&args.policy, &args.default)?;
    let body = UpdateRoute { targets: to(&args.to)?, policy: (!changes.is_empty()).then_some(changes.clone()) };
    if body == UpdateRoute::default() {
        return Err(CliError::usage("Nothing to change was given.").hint("See: flex routes:set --help"));
    }
    match &args.route {
        Some(route) => change(cx, path, route, body).await,
        None => http_routes::set_all(cx, args, changes).await,
    }
}

async fn unset(cx: &Context, path: &str, args: UnsetRoute) -> Result<()> {
    let mut words = args.words;
    let route = if args.all { None } else { Some(words.remove(0)) };
    if words.is_empty() {
        return Err(CliError::usage("No setting was named.").hint("See: flex routes:info"));
    }
    let nothing = changes(&RoutePolicy::default(), &words)?;
    match route {
        Some(route) => change(cx, path, &route, UpdateRoute { targets: None, policy: Some(nothing) }).await,
        None => {
            let args = SetRoute { all: true, default: words, ..SetRoute::default() };
            http_routes::set_all(cx, &args, nothing).await
        }
    }
}

async fn change(cx: &Context, path: &str, name: &str, body: UpdateRoute) -> Result<()> {
    let route = find(cx, path, name).await?;
    let progress = Progress::start(format!("Changing the route {} of {}", route.name, cx.app()?));
    let changed: Value = match route.id {
        Some(id) => cx.client.patch(&format!("{path}/{id}"), &body).await?,
        // A domain's own becomes one that somebody made.
        None => {
            let (targets, policy) = (body.targets.unwrap_or_default(), body.policy.unwrap_or_default());
            let add = flex_api::AddRoute {
                kind: route.kind,
                host: route.host,
                path: route.path,
                port: None,
                tls: false,
                targets,
                policy,
                passwords_of: None,
            };
            cx.client.post(path, &add).await?
        }
    };
    progress.done();
    cx.show_or::<Route>(changed).map(drop)
}

fn to(args: &RouteTo) -> Result<Option<Vec<Target>>> {
    let process = |s: &str| s.parse::<ProcessType>().map_err(|e| CliError::usage(e.to_string()));
    if let Some(name) = &args.process {
        return Ok(Some(vec![Target::to(process(name)?)]));
    }
    let weight = |text: &String| {
        let (name, weight) =
            text.split_once('=').ok_or_else(|| CliError::usage(format!("{text} has no weight: use TYPE=N, such as web=90")))?;
        let weight = weight.parse().map_err(|_| CliError::usage(format!("{weight} is no weight: use a whole number")))?;
        Ok(Target { weight, ..Target::to(process(name)?) })
    };
    let all = args.weight.iter().map(weight).collect::<Result<Vec<_>>>()?;
    Ok((!all.is_empty()).then_some(all))
}

/// The policy's fields that are named, null where the default is to come back.
fn changes(args: &RoutePolicy, defaults: &[String]) -> Result<Map<String, Value>> {
    let password = args.http.basic_auth.as_deref().map(http_routes::password).transpose()?;
    let mut of_http = args.http.changes(password).map_err(CliError::usage)?;
    let given = [
        ("balancing", args.balancing.clone().map(Value::from)),
        ("sticky", args.sticky.map(Value::from)),
        ("proxy_protocol", args.proxy_protocol.clone().map(Value::from)),
        ("protocol", args.protocol.clone().map(Value::from)),
        ("max_per_instance", args.max_per_instance.map(Value::from)),
        ("queue", args.queue.map(Value::from)),
        ("max_connections", args.max_connections.map(Value::from)),
        ("idle_seconds", args.idle.map(Value::from)),
    ];
    let set = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let (http_ones, others): (Vec<String>, Vec<String>) = defaults.iter().map(|n| http::field(n)).partition(|n| http::is_http(n));
    of_http.extend(http_ones.into_iter().map(|name| (name, Value::Null)));
    let of_http = (!of_http.is_empty()).then(|| ("http".to_owned(), Value::Object(of_http)));
    let reset = others.into_iter().map(|name| (name, Value::Null));
    Ok(reset.chain(set).chain(of_http).collect())
}

pub async fn find(cx: &Context, path: &str, name: &str) -> Result<Route> {
    let all: Vec<Route> = cx.client.get(path).await?;
    let plain = |s: &str| s.trim_end_matches('/').to_lowercase();
    let found = all.into_iter().find(|r| plain(&r.name) == plain(name) || r.id.is_some_and(|id| id.to_string() == name));
    found.ok_or_else(|| {
        CliError::usage(format!("{} has no route {name}.", cx.common.app.as_deref().unwrap_or("The app")))
            .hint("See: flex routes")
    })
}

async fn own_id(cx: &Context, path: &str, name: &str) -> Result<flex_model::RouteId> {
    let route = find(cx, path, name).await?;
    route.id.ok_or_else(|| {
        CliError::usage(format!("{name} is what its domain does by itself."))
            .hint("Remove the domain to end it: flex domains:remove")
    })
}
