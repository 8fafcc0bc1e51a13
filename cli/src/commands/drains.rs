//! Drains: where an app's log is sent as it comes.

use crate::args::Drains;
use crate::context::Context;
use crate::error::Result;
use crate::output::{self, Progress};
use flex_api::{AddLogDrain, LogDrain};
use flex_model::Secret;
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Drains>) -> Result<()> {
    let path = cx.path("/log-drains")?;
    match verb {
        None => list(cx, &path).await,
        Some(Drains::Add { url }) => {
            let progress = Progress::start(format!("Adding a drain to {}", cx.app()?));
            let added: Value = cx.client.post(&path, &AddLogDrain { url: Secret::new(url) }).await?;
            progress.done();
            if let Some(drain) = cx.show_or::<LogDrain>(added)? {
                output::line(format!("Successfully added drain {} ({})", drain.url, drain.token));
            }
            Ok(())
        }
        Some(Drains::Remove { drain }) => {
            let progress = Progress::start(format!("Removing a drain from {}", cx.app()?));
            cx.client.delete(&format!("{path}/{}", encoded(&drain))).await?;
            progress.done();
            Ok(())
        }
    }
}

/// A URL as one part of a path.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

async fn list(cx: &Context, path: &str) -> Result<()> {
    let Some(all) = cx.fetch_list::<Vec<LogDrain>>(path).await? else { return Ok(()) };
    if all.is_empty() {
        output::say(format!("{} has no drain. Add one: flex drains:add syslog+tls://logs.example.com:6514", cx.app()?));
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|d| {
            let state = d.status.error.as_ref().map_or_else(|| "ok".to_owned(), |e| format!("failing: {e}"));
            let s = &d.status;
            vec![d.url.clone(), d.token.clone(), s.sent.to_string(), s.waiting.to_string(), s.dropped.to_string(), state]
        })
        .collect();
    output::table(&["url", "token", "sent", "waiting", "dropped", "state"], &rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_one_part_of_a_path() {
        assert_eq!(encoded("https://x/a?b=ü"), "https%3A%2F%2Fx%2Fa%3Fb%3D%C3%BC");
    }
}
