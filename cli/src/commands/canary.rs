//! Canaries: a release with a share of the requests.

use crate::args::Canary as Verb;
use crate::context::Context;
use crate::error::Result;
use crate::output::{self, Progress};
use flex_api::Release;
use flex_api::canary::{Canary, SetCanary};
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Verb>) -> Result<()> {
    let path = cx.path("/canary")?;
    match verb {
        None => show(cx, &path).await,
        Some(Verb::Start { release, weight }) => set(cx, &path, SetCanary { release, weight }).await,
        Some(Verb::Weight { weight }) => {
            let now: Canary = cx.client.get(&path).await?;
            set(cx, &path, SetCanary { release: now.version.map(|v| format!("v{v}")), weight }).await
        }
        Some(Verb::Promote) => {
            let progress = Progress::start(format!("Promoting the canary of {}", cx.app()?));
            let release: Value = cx.client.post(&format!("{path}/actions/promote"), &serde_json::json!({})).await?;
            let Some(release) = cx.show_or::<Release>(release)? else { return Ok(()) };
            progress.done_with(&format!("v{} takes all requests as its instances come up", release.version));
            Ok(())
        }
        Some(Verb::Abort) => {
            let progress = Progress::start(format!("Ending the canary of {}", cx.app()?));
            cx.client.delete(&path).await?;
            progress.done();
            Ok(())
        }
    }
}

fn name(canary: &Canary) -> String {
    canary.version.map_or_else(|| "the next build".to_owned(), |v| format!("v{v}"))
}

async fn show(cx: &Context, path: &str) -> Result<()> {
    let Some(canary) = cx.fetch::<Canary>(path).await? else { return Ok(()) };
    output::heading(&format!("{} Canary", canary.app.name));
    let stable = canary.stable.map_or_else(|| "-".to_owned(), |v| format!("v{v}"));
    let rows = [
        vec![name(&canary), format!("{}%", canary.weight), canary.state.clone(), canary.instances.to_string()],
        vec![stable, format!("{}%", 100 - canary.weight.min(100)), "stable".to_owned(), String::new()],
    ];
    output::table(&["release", "share", "state", "instances"], &rows);
    output::say("Compare them: flex metrics. Then: flex canary:promote, or flex canary:abort");
    Ok(())
}

async fn set(cx: &Context, path: &str, body: SetCanary) -> Result<()> {
    let progress = Progress::start(format!("Setting the canary of {}", cx.app()?));
    let set: Value = cx.client.put(path, &body).await?;
    progress.done();
    let Some(canary) = cx.show_or::<Canary>(set)? else { return Ok(()) };
    match canary.version {
        Some(v) => output::say(format!("v{v} gets {}% of the requests as soon as it is up. See: flex canary", canary.weight)),
        None => output::say(format!("The next push or deploy gets {}% of the requests. See: flex canary", canary.weight)),
    }
    Ok(())
}
