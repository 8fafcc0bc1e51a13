//! Domains of an app.

use crate::args::Domains;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{AddDomain, Domain, DomainKind};
use flex_model::DomainName;
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Domains>) -> Result<()> {
    let path = cx.path("/domains")?;
    let parse = |s: &str| s.parse::<DomainName>().map_err(|e| CliError::usage(e.to_string()));
    match verb {
        None => list(cx, &path).await,
        Some(Domains::Add { hostname }) => {
            let hostname = parse(&hostname)?;
            let progress = Progress::start(format!("Adding {hostname} to {}", cx.app()?));
            let added: Value = cx.client.post(&path, &AddDomain { hostname }).await?;
            progress.done();
            let Some(domain) = cx.show_or::<Domain>(added)? else { return Ok(()) };
            if let Some(target) = domain.cname {
                output::say(format!("Point its DNS (CNAME or ALIAS) at {target}"));
            }
            Ok(())
        }
        Some(Domains::Remove { hostname }) => {
            let hostname = parse(&hostname)?;
            let progress = Progress::start(format!("Removing {hostname} from {}", cx.app()?));
            cx.client.delete(&format!("{path}/{hostname}")).await?;
            progress.done();
            Ok(())
        }
    }
}

async fn list(cx: &Context, path: &str) -> Result<()> {
    let Some(domains) = cx.fetch_list::<Vec<Domain>>(path).await? else { return Ok(()) };
    let app = cx.app()?;
    let (own, custom): (Vec<_>, Vec<_>) = domains.into_iter().partition(|d| d.kind == DomainKind::Heroku);
    output::heading(&format!("{app} Domain"));
    for d in own {
        output::line(d.hostname.as_str());
    }
    if !custom.is_empty() {
        output::line("");
        output::heading(&format!("{app} Custom Domains"));
        let acm = custom.iter().any(|d| d.acm_status.is_some());
        let rows: Vec<_> = custom
            .into_iter()
            .map(|d| {
                let mut row = vec![d.hostname.to_string(), d.cname.map(|c| c.to_string()).unwrap_or_default()];
                row.extend(acm.then(|| d.acm_status.unwrap_or_default()));
                row
            })
            .collect();
        let heads: &[&str] = if acm { &["domain", "dns target", "certificate"] } else { &["domain", "dns target"] };
        output::table(heads, &rows);
    }
    Ok(())
}
