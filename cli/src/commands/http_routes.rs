//! How HTTP requests of an app's routes are treated, and its own error pages.

use crate::args::{RouteInfo, RoutePage, SetRoute};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{Route, Routing, UpdateRouting};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal as _, Read as _};

/// The largest file that is sent; the server says what a page may have.
const MAX_FILE: u64 = 1 << 20;

/// Asks for the password of a user that routes are to know.
pub fn password(user: &str) -> Result<String> {
    let password = if std::io::stdin().is_terminal() {
        super::session::ask_hidden(&format!("Password for {user}: "))?
    } else {
        super::session::read_line()?
    };
    if password.is_empty() { Err(CliError::usage("The password is empty.")) } else { Ok(password) }
}

/// Changes what holds for all routes.
pub async fn set_all(cx: &Context, args: &SetRoute, changes: Map<String, Value>) -> Result<()> {
    if args.to.process.is_some() || !args.to.weight.is_empty() {
        return Err(CliError::usage("Where a route leads is said of one route, not of all."));
    }
    let mut http = Map::new();
    for (name, value) in changes {
        match (name.as_str(), value) {
            ("http", Value::Object(fields)) => http.extend(fields),
            ("idle_seconds", value) => drop(http.insert(name, value)),
            _ => return Err(CliError::usage(format!("{name} is said of one route, not of all."))),
        }
    }
    let progress = Progress::start(format!("Changing all routes of {}", cx.app()?));
    let body = UpdateRouting { http: Some(http), ..UpdateRouting::default() };
    let changed: Value = cx.client.patch(&cx.path("/routing")?, &body).await?;
    progress.done();
    cx.show_or::<Routing>(changed).map(drop)
}

/// Shows one route, or what holds for all.
pub async fn info(cx: &Context, routes: &str, args: RouteInfo) -> Result<()> {
    let routing = cx.path("/routing")?;
    let Some(name) = args.route else {
        let Some(all) = cx.fetch::<Routing>(&routing).await? else { return Ok(()) };
        output::heading(&format!("All HTTP routes of {}", cx.app()?));
        let mut rows = rows(&serde_json::to_value(&all.http).unwrap_or_default());
        for (place, policy) in &all.app_json {
            let said = serde_json::to_value(policy).unwrap_or_default();
            rows.extend(self::rows(&said).into_iter().map(|r| vec![r[0].clone(), format!("{} (app.json, {place})", r[1])]));
        }
        rows.extend(all.pages.iter().map(|p| vec![format!("page {}", p.name), format!("{} bytes", p.bytes)]));
        output::table(&["setting", "value"], &rows);
        return Ok(());
    };
    let route = super::routes::find(cx, routes, &name).await?;
    let value = serde_json::to_value(&route).unwrap_or_default();
    let Some(route) = cx.show_or::<Route>(value)? else { return Ok(()) };
    output::heading(&format!("{} leads to {}", route.name, super::routes::targets(&route.targets)));
    let mut all = rows(&serde_json::to_value(&route.policy).unwrap_or_default());
    all.retain(|row| row[0] != "http");
    all.extend(rows(&serde_json::to_value(&route.http).unwrap_or_default()));
    output::table(&["setting", "value"], &all);
    route.problems.iter().for_each(output::warn);
    Ok(())
}

fn rows(policy: &Value) -> Vec<Vec<String>> {
    policy.as_object().into_iter().flatten().map(|(name, value)| vec![name.clone(), shown(value)]).collect()
}

/// A value in one line, as short as it can be said.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(false) => "off".into(),
        Value::Bool(true) => "on".into(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        Value::Object(fields) => fields.iter().map(|(n, v)| format!("{n}={}", shown(v))).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Puts a page in place, or takes it away.
pub async fn page(cx: &Context, args: RoutePage) -> Result<()> {
    let name = args.name.parse::<flex_model::http_policy::PageKind>().map_err(|e| CliError::usage(e.to_string()))?;
    let text = match &args.file {
        None => None,
        Some(file) => {
            let failed = |e: std::io::Error| CliError::failed(format!("Cannot read {}: {e}", file.display()));
            let mut text = String::new();
            std::fs::File::open(file).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text)).map_err(failed)?;
            Some(text)
        }
    };
    let verb = if text.is_some() { "Setting" } else { "Removing" };
    let progress = Progress::start(format!("{verb} the page {name} of {}", cx.app()?));
    let changed: Value = cx.client.patch(&cx.path("/routing")?, &json!({ "pages": { name.as_str(): text } })).await?;
    progress.done();
    cx.show_or::<Routing>(changed).map(drop)
}
