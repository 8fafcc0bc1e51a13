//! Instances and the formation.

use super::wait;
use crate::args::{Ps, PsList, Resize, Restart, Scale, StopStart};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Colour, Progress, paint};
use flex_api::{Dyno, DynoSize, DynoState, Formation, Nothing, PastInstance, Quantity, UpdateFormation, UpdateFormations, Why};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(1);

pub async fn run(cx: &Context, args: PsList, verb: Option<Ps>) -> Result<()> {
    match verb {
        None if args.watch => watch(cx, args.kind.as_deref()).await,
        None => list(cx, args.kind.as_deref()).await,
        Some(Ps::Scale(args)) => scale(cx, args).await,
        Some(Ps::Resize(args)) => resize(cx, args).await,
        Some(Ps::Restart(args)) => restart(cx, args).await,
        Some(Ps::Stop(args)) => stop(cx, args, false).await,
        Some(Ps::Start(args)) => stop(cx, args, true).await,
        Some(Ps::Why { process }) => why(cx, &process).await,
        Some(Ps::History { process, num, lines }) => history(cx, process.as_deref(), num, lines).await,
        Some(Ps::Sizes) => sizes(cx).await,
    }
}

/// Shows it again and again; on a screen in place.
async fn watch(cx: &Context, kind: Option<&str>) -> Result<()> {
    loop {
        if output::is_screen() && !cx.common.json {
            output::raw(b"\x1b[H\x1b[2J");
        }
        list(cx, kind).await?;
        tokio::time::sleep(WATCH).await;
    }
}

async fn list(cx: &Context, kind: Option<&str>) -> Result<()> {
    let mut all: Vec<Value> = cx.client.list(&cx.path("/dynos")?).await?;
    all.retain(|d| kind.is_none_or(|k| d["type"] == k));
    let Some(dynos) = cx.show_or::<Vec<Dyno>>(Value::Array(all))? else { return Ok(()) };
    if dynos.is_empty() {
        let formation: Vec<Formation> = cx.client.list(&cx.path("/formation")?).await?;
        let mine = || formation.iter().filter(|f| kind.is_none_or(|k| f.kind.as_str() == k));
        let todo = if formation.is_empty() {
            "Deploy it first: git push flex main"
        } else if mine().any(|f| f.stopped) {
            "They were stopped. Start them: flex ps:start"
        } else {
            "Scale it up: flex ps:scale web=1"
        };
        output::say(format!("No instances of {} are running. {todo}", cx.app()?));
        return Ok(());
    }
    let mut groups = BTreeMap::<(String, String, String), Vec<&Dyno>>::new();
    let runs: Vec<&Dyno> = dynos.iter().filter(|d| d.kind.to_string() == "run").collect();
    super::run::print_running(&runs);
    for d in dynos.iter().filter(|d| d.kind.to_string() != "run") {
        let key = (d.kind.to_string(), d.size.clone(), d.command.clone());
        groups.entry(key).or_default().push(d);
    }
    let now = jiff::Timestamp::now();
    for ((kind, size, command), mut members) in groups {
        members.sort_by_key(|d| (index(&d.name), d.release.version));
        output::line(paint(&format!("=== {kind} ({size}): {command} ({})", members.len()), Colour::Blue));
        output::line("");
        for d in members {
            let colour = match d.state {
                DynoState::Up | DynoState::Complete => Colour::Green,
                DynoState::Crashed | DynoState::Down => Colour::Red,
                DynoState::Starting | DynoState::Idle => Colour::Yellow,
            };
            let why = d.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            output::line(format!("{}: {} {}{why}", d.name, paint(d.state.name(), colour), output::moment(d.updated_at, now)));
        }
        output::line("");
    }
    Ok(())
}

fn index(name: &str) -> u64 {
    name.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

pub async fn scale(cx: &Context, args: Scale) -> Result<()> {
    let path = cx.path("/formation")?;
    if args.changes.is_empty() {
        let Some(formation) = cx.fetch_list::<Vec<Formation>>(&path).await? else { return Ok(()) };
        let all: Vec<_> = formation.iter().map(|f| format!("{}={}:{}", f.kind, f.quantity, f.size)).collect();
        if all.is_empty() {
            return Err(CliError::failed(format!("{} has no process types yet. Deploy it first: git push flex main", cx.app()?)));
        }
        output::line(all.join(" "));
        return Ok(());
    }
    let updates: Vec<UpdateFormation> = args.changes.iter().map(|c| change(c)).collect::<Result<_>>()?;
    change_formation(cx, "Scaling dynos", "now running", updates, args.wait).await
}

async fn change_formation(
    cx: &Context,
    doing: &str,
    done: &str,
    updates: Vec<UpdateFormation>,
    wait: crate::args::Wait,
) -> Result<()> {
    let progress = Progress::start(doing);
    let kinds: Vec<_> = updates.iter().map(|u| u.kind.clone()).collect();
    let answer: Value = cx.client.patch(&cx.path("/formation")?, &UpdateFormations { updates, ahead: false }).await?;
    let formation: Vec<Formation> = typed(answer.clone())?;
    let mine: Vec<&Formation> = formation.iter().filter(|f| kinds.contains(&f.kind)).collect();
    let now: Vec<_> = mine.iter().map(|f| format!("{} at {}:{}", f.kind, f.quantity, f.size)).collect();
    progress.done_with(&format!("{done} {}", now.join(", ")));
    for f in mine.iter().filter(|f| f.stopped) {
        output::warn(format!("{0} was stopped, and none of it runs. Start it: flex ps:start {0}", f.kind));
    }
    wait::settled(cx, wait, None).await?;
    if cx.common.json { output::json(&answer) } else { Ok(()) }
}

async fn resize(cx: &Context, args: Resize) -> Result<()> {
    let cpu_millis = match args.cpu.as_deref() {
        None => None,
        Some("none") => Some(0),
        Some(text) => {
            let bad = |e: &dyn std::fmt::Display| {
                CliError::usage(format!("--cpu {text} is invalid: {e}")).hint("Examples: --cpu 0.5, --cpu none")
            };
            let cores: f64 = text.parse().map_err(|e: std::num::ParseFloatError| bad(&e))?;
            Some(flex_model::app::cpu_millis(cores).map_err(|e| bad(&e))?)
        }
    };
    let one = |text: &String| {
        let bad = || CliError::usage(format!("{text} is invalid.")).hint("Examples: web=1G, worker=small, worker --cpu 0.5");
        let (kind, size) = text.split_once('=').map_or((text.as_str(), None), |(k, s)| (k, Some(s)));
        if size.is_none_or(str::is_empty) && cpu_millis.is_none() && args.cpu_shares.is_none() {
            return Err(bad());
        }
        let kind = kind.parse().map_err(|_| bad())?;
        let size = size.map(str::to_owned);
        Ok(UpdateFormation { kind, quantity: None, size, cpu_shares: args.cpu_shares, cpu_millis })
    };
    let updates = args.sizes.iter().map(one).collect::<Result<_>>()?;
    change_formation(cx, "Resizing", "now", updates, args.wait).await
}

/// `web=2`, `worker+1`, `web-1`, `web=2:512M`.
pub(super) fn change(text: &str) -> Result<UpdateFormation> {
    let bad = || CliError::usage(format!("{text} is invalid.")).hint("Examples: web=2 worker+1 worker-1 web=1:512M");
    // A process type may hold a dash itself, so the last sign that leaves a number behind it counts.
    let at = text.rfind(['=', '+', '-']).ok_or_else(bad)?;
    let (kind, rest) = text.split_at(at);
    let (sign, rest) = rest.split_at(1);
    let (quantity, size) = rest.split_once(':').map_or((rest, None), |(q, s)| (q, Some(s)));
    let kind: flex_model::ProcessType = kind.parse().map_err(|_| bad())?;
    let count: u32 = quantity.parse().map_err(|_| bad())?;
    let quantity = match sign {
        "=" => Quantity::To(count),
        "+" => Quantity::By(count.into()),
        _ => Quantity::By(-i64::from(count)),
    };
    Ok(UpdateFormation { kind, quantity: Some(quantity), size: size.map(str::to_owned), cpu_shares: None, cpu_millis: None })
}

pub async fn restart(cx: &Context, args: Restart) -> Result<()> {
    let process = args.process.or(args.dyno).or(args.kind);
    let (what, rest) = match process.as_deref() {
        None => ("all dynos".to_owned(), "/dynos".to_owned()),
        Some(p) => (p.to_owned(), format!("/dynos/{}", checked(p)?)),
    };
    let progress = Progress::start(format!("Restarting {what} on {}", cx.app()?));
    cx.client.delete(&cx.path(&rest)?).await?;
    progress.done();
    wait::settled(cx, args.wait, None).await
}

/// A process type or an instance's name, and nothing that means something else in a path.
fn checked(name: &str) -> Result<&str> {
    let (kind, number) = name.split_once('.').map_or((name, None), |(k, n)| (k, Some(n)));
    let ok = kind.parse::<flex_model::ProcessType>().is_ok() && number.is_none_or(|n| n.parse::<u32>().is_ok());
    if ok { Ok(name) } else { Err(CliError::usage(format!("{name} is no process.")).hint("Examples: web, web.1")) }
}

async fn stop(cx: &Context, args: StopStart, start: bool) -> Result<()> {
    let verb = if start { "start" } else { "stop" };
    let (what, rest) = match args.process.as_deref() {
        None => ("all dynos", format!("/actions/{verb}")),
        Some(p) => (p, format!("/dynos/{}/actions/{verb}", checked(p)?)),
    };
    let progress = Progress::start(format!("{} {what} on {}", if start { "Starting" } else { "Stopping" }, cx.app()?));
    cx.client.post::<Nothing>(&cx.path(&rest)?, &Nothing {}).await?;
    progress.done();
    wait::settled(cx, args.wait, None).await
}

async fn history(cx: &Context, process: Option<&str>, num: usize, lines: bool) -> Result<()> {
    let mut all: Vec<Value> = cx.client.get_newest(&cx.path("/history")?, "ended_at", 1000).await?;
    let name = |e: &Value| e["name"].as_str().unwrap_or_default().to_owned();
    all.retain(|e| process.is_none_or(|p| name(e) == p || name(e).split_once('.').is_some_and(|(k, _)| k == p)));
    all.truncate(num);
    let Some(past) = cx.show_or::<Vec<PastInstance>>(Value::Array(all))? else { return Ok(()) };
    if past.is_empty() {
        output::say("Nothing has ended yet.");
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    let exit = |e: &PastInstance| match e.exit_status {
        _ if e.oom => "OOM".to_owned(),
        Some(status) => status.to_string(),
        None => String::new(),
    };
    let release = |e: &PastInstance| e.version.map(|v| format!("v{v}")).unwrap_or_default();
    if !lines {
        let row = |e: &PastInstance| {
            let how = if e.stopped { "stopped" } else { "crashed" };
            vec![e.name.clone(), release(e), output::moment(e.ended_at, now), how.to_owned(), exit(e), e.reason.clone()]
        };
        let rows: Vec<_> = past.iter().map(row).collect();
        output::table(&["instance", "release", "ended", "how", "exit", "reason"], &rows);
        return Ok(());
    }
    for e in past {
        output::heading(&format!("{} {} {}: {}", e.name, release(&e), output::moment(e.ended_at, now), e.reason));
        for line in e.lines {
            output::line(format!("  {line}"));
        }
        output::line("");
    }
    Ok(())
}

async fn sizes(cx: &Context) -> Result<()> {
    let Some(sizes) = cx.fetch_list::<Vec<DynoSize>>("/dyno-sizes").await? else { return Ok(()) };
    if sizes.is_empty() {
        output::say("This server names no sizes. An amount of memory always works: flex ps:resize web=1G");
        return Ok(());
    }
    let cpu = |s: &DynoSize| s.cpu_millis.map_or_else(|| "no limit".to_owned(), |m| (f64::from(m) / 1000.0).to_string());
    let rows: Vec<_> = sizes.iter().map(|s| vec![s.name.clone(), s.memory.clone(), cpu(s), s.cpu_shares.to_string()]).collect();
    output::table(&["size", "memory", "cores", "cpu shares"], &rows);
    Ok(())
}

async fn why(cx: &Context, process: &str) -> Result<()> {
    let path = cx.path(&format!("/dynos/{}/why", checked(process)?))?;
    let Some(why) = cx.fetch::<Why>(&path).await? else { return Ok(()) };
    for line in why.lines {
        output::line(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        let text = |c: &str| serde_json::to_value(change(c).unwrap()).unwrap();
        assert_eq!(text("web=2"), serde_json::json!({"type": "web", "quantity": 2}));
        assert_eq!(text("my-worker+1"), serde_json::json!({"type": "my-worker", "quantity": "+1"}));
        assert_eq!(text("my-worker-3"), serde_json::json!({"type": "my-worker", "quantity": "-3"}));
        assert_eq!(text("web=1:512M"), serde_json::json!({"type": "web", "quantity": 1, "size": "512M"}));
        for bad in ["web", "web=", "=2", "web=x", "web=-1x", "we b=1"] {
            assert!(change(bad).is_err(), "{bad}");
        }
        assert!(checked("../x").is_err() && checked("web.1").is_ok());
    }
}
