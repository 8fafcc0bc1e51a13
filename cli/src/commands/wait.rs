//! Waiting until what runs is what should run, and saying how far it is.
//!
//! On a terminal one line that changes; elsewhere a plain line for each step.

use crate::args::Wait;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;
use flex_api::{Release, ReleaseStatus, Rollout};
use std::time::{Duration, Instant};

/// The longest wait. A roll-out that fails ends sooner by itself.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// How long something may be in the way before it counts as lasting: crashed instances are started again.
const TROUBLE: Duration = Duration::from_secs(60);
/// Seconds that the server may hold an answer back, so that troubles are seen while nothing else changes.
const HOLD: u32 = 2;

/// Waits until the app's instances are what they should be; `release` is one that was just made and must not fail.
pub async fn settled(cx: &Context, wait: Wait, mut release: Option<u64>) -> Result<()> {
    if wait.no_wait {
        return Ok(());
    }
    let started = Instant::now();
    let mut steps = output::Steps::new();
    let (mut ready, mut in_trouble_since) = (None::<usize>, None::<Instant>);
    loop {
        let query = ready.map(|n| format!("?wait={HOLD}&ready={n}")).unwrap_or_default();
        let now: Rollout = cx.client.get(&cx.path(&format!("/rollout{query}"))?).await?;
        if let Some(version) = release
            && now.release.as_ref().is_none_or(|r| r.version != version)
        {
            overtaken(cx, version).await?;
            release = None;
        }
        if now.settled {
            steps.done(&said(&now));
            return Ok(());
        }
        if ready != Some(now.ready) {
            steps.step(&said(&now));
        }
        ready = Some(now.ready);
        if now.problems.is_empty() {
            in_trouble_since = None;
        } else if in_trouble_since.get_or_insert_with(Instant::now).elapsed() > TROUBLE || started.elapsed() > PATIENCE {
            let mut error = CliError::failed(format!("It is not up: {}", now.problems.join("; ")));
            if let Some(name) = now.problems[0].split(' ').next() {
                error = error.hint(format!("Why: flex ps:why {name}, flex ps:history {name}, flex logs -p {name}"));
            }
            return Err(error);
        }
        if started.elapsed() > PATIENCE {
            return Err(CliError::failed(format!("It is not up after {} minutes: {}", PATIENCE.as_secs() / 60, said(&now)))
                .hint("See: flex ps, flex logs"));
        }
    }
}

fn said(now: &Rollout) -> String {
    let gone = if now.old > 0 { format!(", {} to go", now.old) } else { String::new() };
    if now.wanted == 0 { format!("nothing is to run{gone}") } else { format!("{} of {} up{gone}", now.ready, now.wanted) }
}

/// Another release took the place of the one that is waited for: was that one a failure? If not, the other one is waited for.
async fn overtaken(cx: &Context, version: u64) -> Result<()> {
    let release: Release = cx.client.get(&cx.path(&format!("/releases/{version}"))?).await?;
    if let Some(by) = release.superseded_by {
        output::say(format!("v{by} took the place of v{version} before it was up."));
        return Ok(());
    }
    if release.status != ReleaseStatus::Failed {
        return Ok(());
    }
    let why = release.failure.unwrap_or_else(|| "no reason is known".into());
    Err(CliError::failed(format!("v{version} failed, and what ran before runs on: {why}"))
        .hint(format!("Once it is mended: flex releases:retry v{version}")))
}
