//! Traffic of an app, the routers, and the way that a request takes.

use crate::args::{Lines, Metrics, Routing};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Colour, paint};
use flex_api::seen::{AppMetrics, RouteTrace, Routers, TraceTarget};
use flex_api::{App, UpdateApp};
use flex_model::Policy;
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;

/// A dash where nothing is known.
fn or_dash(n: Option<f64>, digits: usize, unit: &str) -> String {
    n.map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}{unit}"))
}

pub async fn metrics(cx: &Context, args: &Metrics) -> Result<()> {
    let path = cx.path(&format!("/metrics?seconds={}", args.seconds))?;
    loop {
        let value: Value = cx.client.get(&path).await?;
        if args.watch && cx.common.json {
            // A line each: for programs that read along.
            output::line(value.to_string());
        } else if let Some(metrics) = cx.show_or::<AppMetrics>(value)? {
            if args.watch && std::io::stdout().is_terminal() {
                output::line("\x1b[2J\x1b[H");
            }
            show(&metrics);
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn show(metrics: &AppMetrics) {
    output::heading(&format!("{}, last {} s", metrics.app.name, metrics.seconds));
    let rows: Vec<Vec<String>> = metrics
        .processes
        .iter()
        .map(|p| {
            let t = &p.traffic;
            let name = p.release.map_or_else(|| p.process.to_string(), |v| format!("{}:v{v}", p.process));
            vec![
                name,
                p.instances.to_string(),
                format!("{:.1}/s", t.arrival_rate),
                t.in_flight.to_string(),
                t.queue.to_string(),
                or_dash(t.service_ms, 1, "ms"),
                or_dash(t.p50_ms, 1, "ms"),
                or_dash(t.p95_ms, 1, "ms"),
                or_dash(t.p99_ms, 1, "ms"),
                or_dash(t.error_share.map(|s| s * 100.0), 1, "%"),
            ]
        })
        .collect();
    if rows.is_empty() {
        output::say("No route leads to it, and nothing came. Deploy it first: git push flex main");
        return;
    }
    let head = ["type", "instances", "arrivals", "in flight", "queue", "service", "p50", "p95", "p99", "errors"];
    output::table(&head, &rows);
}

pub async fn router(cx: &Context, verb: Option<Routing>) -> Result<()> {
    match verb {
        None | Some(Routing::Status) => status(cx).await,
        Some(Routing::Trace { url }) => trace(cx, &url).await,
        Some(Routing::Lines(args)) => lines(cx, &args).await,
    }
}

async fn lines(cx: &Context, args: &Lines) -> Result<()> {
    let form = match (args.json_form, args.text, args.reset) {
        (true, ..) => Some("json"),
        (_, true, _) => Some("text"),
        (.., true) => Some("default"),
        _ => None,
    };
    let per_mille = match args.sample {
        Some(share) if (0.0..=1.0).contains(&share) => Some((share * 1000.0).round() as u16),
        Some(share) => return Err(CliError::usage(format!("{share} is no share: use 0 to 1, such as 0.1"))),
        None => args.reset.then_some(u16::MAX),
    };
    let path = cx.path("")?;
    let body = UpdateApp { access_lines: form.map(str::to_owned), access_lines_per_mille: per_mille, ..UpdateApp::default() };
    let app: Value =
        if body == UpdateApp::default() { cx.client.get(&path).await? } else { cx.client.patch(&path, &body).await? };
    let Some(app) = cx.show_or::<App>(app)? else { return Ok(()) };
    let form = app.access_lines_json.map_or("as the server is set", |json| if json { "JSON" } else { "text" });
    let share =
        app.access_lines_per_mille.map_or_else(|| "as the server is set".to_owned(), |n| format!("{:.1}%", f64::from(n) / 10.0));
    output::line(format!("Form:   {form}"));
    output::line(format!("Sample: {share} (requests with an error: all)"));
    Ok(())
}

async fn status(cx: &Context) -> Result<()> {
    let Some(all) = cx.fetch::<Routers>("/routers").await? else { return Ok(()) };
    output::heading(&format!("Routers (table {}: {} apps, {} hosts)", all.revision, all.apps, all.hosts));
    if all.routers.is_empty() {
        output::say("No router has said anything yet.");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = all
        .routers
        .iter()
        .map(|r| {
            let state = match (r.connected, r.current) {
                (true, true) => paint("current", Colour::Green),
                (true, false) => paint("behind", Colour::Yellow),
                (false, _) => paint("away", Colour::Red),
            };
            vec![
                r.name.clone(),
                state,
                r.revision.to_string(),
                r.lag_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms}ms")),
                r.connections.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                r.in_flight.to_string(),
                format!("{:.1}/s", r.request_rate),
                r.version.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    output::table(&["router", "state", "table", "lag", "connections", "in flight", "requests", "version"], &rows);
    for r in &all.routers {
        r.problems.iter().for_each(|p| output::warn(format!("{}: {p}", r.name)));
    }
    Ok(())
}

/// Host and path of what people copy from a browser.
fn host_and_path(url: &str) -> Result<(String, String)> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or(url);
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(CliError::usage(format!("{url} names no host.")).hint("Such as: flex router:trace www.example.com/api"));
    }
    Ok((host.to_lowercase(), if path.starts_with('/') { path.to_owned() } else { "/".to_owned() }))
}

/// For a query: everything but what is surely harmless, percent-encoded.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

async fn trace(cx: &Context, url: &str) -> Result<()> {
    let (host, path) = host_and_path(url)?;
    let value: Value = cx.client.get(&format!("/routes/trace?host={}&path={}", encoded(&host), encoded(&path))).await?;
    if cx.common.json {
        return output::json(&value);
    }
    let t: RouteTrace = typed(value)?;
    output::line(format!("{}{} is {} of the app {}", t.host, t.path, t.matched, t.app.name));
    match t.route {
        Some(id) => output::line(format!("by the route {id}")),
        None => output::line("by its domain"),
    }
    if t.policy != Policy::default() {
        output::line(format!("with {}", serde_json::to_string(&t.policy).unwrap_or_default()));
    }
    for target in &t.targets {
        show_target(target, t.targets.len() > 1);
    }
    t.notes.iter().for_each(|note| output::say(format!("Note: {note}")));
    Ok(())
}

fn show_target(target: &TraceTarget, several: bool) {
    let name = target.release.map_or_else(|| target.process.to_string(), |v| format!("{}:v{v}", target.process));
    let share = if several { format!(", {:.1}% of the requests", target.share * 100.0) } else { String::new() };
    output::line("");
    output::line(paint(&format!("=== {name} ({}){share}", target.state), Colour::Blue));
    output::line("");
    let rows: Vec<Vec<String>> = target
        .instances
        .iter()
        .map(|i| {
            vec![
                i.name.clone(),
                format!("v{}", i.release),
                if i.routed { paint("yes", Colour::Green) } else { paint("no", Colour::Yellow) },
                i.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
                i.in_flight.to_string(),
                i.why.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return output::line("no instance: visitors get an error page");
    }
    output::table(&["instance", "release", "gets requests", "address", "in flight", "why"], &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_as_people_have_them() {
        let split = |url: &str| host_and_path(url).map_err(|e| e.message);
        assert_eq!(split("https://u@WWW.a.test:8443/x?y#z").unwrap(), ("www.a.test".into(), "/x?y#z".into()));
        assert_eq!(split("a.test").unwrap(), ("a.test".into(), "/".into()));
        assert_eq!(split("a.test?x").unwrap().1, "/");
        assert!(split("/only/a/path").is_err() && split("").is_err());
        assert_eq!(encoded("/a b?c&d=é"), "/a%20b%3Fc%26d%3D%C3%A9");
    }
}
