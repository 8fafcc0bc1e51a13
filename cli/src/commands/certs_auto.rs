//! Certificates that are made automatically.

use crate::commands::certs::date;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{App, Domain, SniEndpoint};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long `--wait` waits: DNS changes take minutes.
const WAIT: Duration = Duration::from_secs(15 * 60);
const AGAIN: Duration = Duration::from_millis(500);

/// Heroku's words, as people read them.
fn words(status: Option<&str>) -> String {
    match status {
        None | Some("pending") => "Waiting".into(),
        Some("cert issued" | "ok") => "OK".into(),
        Some(other) => other
            .split('-')
            .map(|word| {
                let mut letters = word.chars();
                letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
            })
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// Domains that have, or are to have, a certificate of their own or the platform's.
async fn domains(cx: &Context) -> Result<Vec<Domain>> {
    let all: Vec<Domain> = cx.client.list(&cx.path("/domains")?).await?;
    Ok(all.into_iter().filter(|d| d.acm_status.is_some()).collect())
}

pub async fn show(cx: &Context, wait: bool) -> Result<()> {
    let app: App = cx.client.get(&cx.path("")?).await?;
    if app.acm && wait {
        wait_for(cx).await?;
    }
    let shown = if app.acm { domains(cx).await? } else { Vec::new() };
    if cx.common.json {
        output::json(&json!({ "enabled": app.acm, "domains": shown }))?;
        return Ok(());
    }
    let state = if app.acm { "enabled" } else { "disabled" };
    output::heading(&format!("Automatic certificates are {state} on {}", app.name));
    if !app.acm {
        output::say("Turn them on: flex certs:auto:enable");
        return Ok(());
    }
    let certificates: Vec<SniEndpoint> = cx.client.list(&cx.path("/sni-endpoints")?).await?;
    let rows: Vec<_> = shown
        .iter()
        .map(|d| {
            let own = certificates.iter().find(|c| c.ssl_cert.acm && c.domains.contains(&d.hostname));
            let expires = own.map(|c| date(c.ssl_cert.expires_at)).unwrap_or_default();
            vec![d.hostname.to_string(), words(d.acm_status.as_deref()), expires, d.acm_status_reason.clone().unwrap_or_default()]
        })
        .collect();
    if rows.is_empty() {
        output::say("Add a domain: flex domains:add NAME");
        return Ok(());
    }
    output::table(&["domain", "status", "expires", "reason"], &rows);
    Ok(())
}

pub async fn enable(cx: &Context, wait: bool) -> Result<()> {
    let progress = Progress::start(format!("Enabling automatic certificates on {}", cx.app()?));
    let app: Value = cx.client.post(&cx.path("/acm")?, &json!({})).await?;
    progress.done();
    if wait {
        wait_for(cx).await?;
        return show(cx, false).await;
    }
    if cx.show_or::<App>(app)?.is_some() {
        output::say("See how it goes: flex certs:auto, or wait: flex certs:auto --wait");
    }
    Ok(())
}

pub async fn disable(cx: &Context, confirm: Option<&str>) -> Result<()> {
    output::confirm(cx.app()?.as_str(), confirm, "the certificates that were made automatically")?;
    let progress = Progress::start(format!("Disabling automatic certificates on {}", cx.app()?));
    cx.client.delete(&cx.path("/acm")?).await?;
    progress.done();
    Ok(())
}

pub async fn refresh(cx: &Context) -> Result<()> {
    let progress = Progress::start(format!("Trying again for the domains of {}", cx.app()?));
    let app: Value = cx.client.patch(&cx.path("/acm")?, &json!({ "acm_refresh": true })).await?;
    progress.done();
    cx.show_or::<App>(app).map(|_| ())
}

/// Until every domain has a certificate. One that failed ends it.
async fn wait_for(cx: &Context) -> Result<()> {
    let progress = Progress::start("Waiting for certificates");
    let until = Instant::now() + WAIT;
    loop {
        let all = domains(cx).await?;
        let failed = all.iter().find(|d| matches!(d.acm_status.as_deref(), Some("failed" | "failing")));
        if let Some(domain) = failed {
            let why = domain.acm_status_reason.as_deref().unwrap_or_default();
            return Err(CliError::failed(format!("No certificate for {}: {why}", domain.hostname)));
        }
        if all.iter().all(|d| d.acm_status.as_deref() == Some("cert issued")) {
            progress.done();
            return Ok(());
        }
        if Instant::now() > until {
            return Err(CliError::failed("Not every domain has a certificate yet. See: flex certs:auto"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn statuses_are_words() {
        let words = [None, Some("cert issued"), Some("failing"), Some("in-progress")].map(super::words);
        assert_eq!(words, ["Waiting", "OK", "Failing", "In Progress"]);
    }
}
