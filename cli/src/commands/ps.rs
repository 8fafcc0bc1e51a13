//! Instances and the formation.

use crate::args::{Ps, Scale};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Colour, Progress, paint};
use flex_api::{Dyno, DynoState, Formation, Nothing, Quantity, UpdateFormation, UpdateFormations, Why};
use serde_json::Value;
use std::collections::BTreeMap;

pub async fn run(cx: &Context, verb: Option<Ps>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Ps::Scale(args)) => scale(cx, args).await,
        Some(Ps::Restart { process }) => restart(cx, process.as_deref()).await,
        Some(Ps::Stop { process }) => stop(cx, &process).await,
        Some(Ps::Why { process }) => why(cx, &process).await,
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(dynos) = cx.fetch_list::<Vec<Dyno>>(&cx.path("/dynos")?).await? else { return Ok(()) };
    if dynos.is_empty() {
        let formation: Vec<Formation> = cx.client.list(&cx.path("/formation")?).await?;
        let todo = if formation.is_empty() { "Deploy it first: git push flex main" } else { "Scale it up: flex ps:scale web=1" };
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
    let progress = Progress::start("Scaling dynos");
    let kinds: Vec<_> = updates.iter().map(|u| u.kind.clone()).collect();
    let answer: Value = cx.client.patch(&path, &UpdateFormations { updates }).await?;
    let now: Vec<_> = typed::<Vec<Formation>>(answer.clone())?
        .iter()
        .filter(|f| kinds.contains(&f.kind))
        .map(|f| format!("{} at {}:{}", f.kind, f.quantity, f.size))
        .collect();
    progress.done_with(&format!("now running {}", now.join(", ")));
    if cx.common.json { output::json(&answer) } else { Ok(()) }
}

/// `web=2`, `worker+1`, `web-1`, `web=2:512M`.
fn change(text: &str) -> Result<UpdateFormation> {
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
    Ok(UpdateFormation { kind, quantity: Some(quantity), size: size.map(str::to_owned) })
}

/// `/dynos/web.1`, `/formations/web` or `/dynos`.
pub async fn restart(cx: &Context, process: Option<&str>) -> Result<()> {
    let (what, rest) = match process {
        None => ("all dynos".to_owned(), "/dynos".to_owned()),
        Some(p) => (p.to_owned(), format!("/dynos/{}", checked(p)?)),
    };
    let progress = Progress::start(format!("Restarting {what} on {}", cx.app()?));
    cx.client.delete(&cx.path(&rest)?).await?;
    progress.done();
    Ok(())
}

/// A process type or an instance's name, and nothing that means something else in a path.
fn checked(name: &str) -> Result<&str> {
    let (kind, number) = name.split_once('.').map_or((name, None), |(k, n)| (k, Some(n)));
    let ok = kind.parse::<flex_model::ProcessType>().is_ok() && number.is_none_or(|n| n.parse::<u32>().is_ok());
    if ok { Ok(name) } else { Err(CliError::usage(format!("{name} is no process.")).hint("Examples: web, web.1")) }
}

async fn stop(cx: &Context, process: &str) -> Result<()> {
    let progress = Progress::start(format!("Stopping {process} on {}", cx.app()?));
    cx.client.post::<Nothing>(&cx.path(&format!("/dynos/{}/actions/stop", checked(process)?))?, &Nothing {}).await?;
    progress.done();
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
