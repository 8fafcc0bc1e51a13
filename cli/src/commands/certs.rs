//! Certificates of an app.

use crate::args::Certs;
use crate::commands::certs_auto;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Progress};
use flex_api::{PutSniEndpoint, SniEndpoint};
use flex_model::Secret;
use serde_json::Value;
use std::path::Path;

pub async fn run(cx: &Context, verb: Option<Certs>) -> Result<()> {
    let path = cx.path("/sni-endpoints")?;
    match verb {
        None => list(cx, &path).await,
        Some(Certs::Auto { wait }) => certs_auto::show(cx, wait).await,
        Some(Certs::AutoEnable { wait }) => certs_auto::enable(cx, wait).await,
        Some(Certs::AutoDisable { confirm }) => certs_auto::disable(cx, confirm.as_deref()).await,
        Some(Certs::AutoRefresh) => certs_auto::refresh(cx).await,
        Some(Certs::Add { certificate, key }) => {
            let body = read(&certificate, &key)?;
            let progress = Progress::start(format!("Adding a certificate to {}", cx.app()?));
            let added: Value = cx.client.post(&path, &body).await?;
            progress.done();
            show(cx, added)
        }
        Some(Certs::Update { certificate, key, name }) => {
            let body = read(&certificate, &key)?;
            let name = one(cx, &path, name).await?;
            let progress = Progress::start(format!("Replacing certificate {name} of {}", cx.app()?));
            let changed: Value = cx.client.patch(&format!("{path}/{name}"), &body).await?;
            progress.done();
            show(cx, changed)
        }
        Some(Certs::Info { name }) => {
            let name = one(cx, &path, name).await?;
            let found: Value = cx.client.get(&format!("{path}/{name}")).await?;
            show(cx, found)
        }
        Some(Certs::Remove { name, confirm }) => {
            let name = one(cx, &path, name).await?;
            output::confirm(cx.app()?.as_str(), confirm.as_deref(), &format!("certificate {name}"))?;
            let progress = Progress::start(format!("Removing certificate {name} from {}", cx.app()?));
            cx.client.delete(&format!("{path}/{name}")).await?;
            progress.done();
            Ok(())
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<PutSniEndpoint> {
    let read =
        |path: &Path| std::fs::read_to_string(path).map_err(|e| CliError::usage(format!("Cannot read {}: {e}", path.display())));
    Ok(PutSniEndpoint { certificate_chain: read(certificate)?, private_key: Secret::new(read(key)?) })
}

/// The certificate that is meant: the one named, or the only one.
async fn one(cx: &Context, path: &str, name: Option<String>) -> Result<String> {
    if let Some(name) = name {
        return Ok(name);
    }
    let all: Vec<SniEndpoint> = cx.client.list(path).await?;
    match &all[..] {
        [only] => Ok(only.name.clone()),
        [] => Err(CliError::usage("The app has no certificate. Add one: flex certs:add CERTIFICATE KEY")),
        several => {
            let names: Vec<_> = several.iter().map(|c| c.name.as_str()).collect();
            Err(CliError::usage(format!("The app has several certificates: say which with --name ({})", names.join(", "))))
        }
    }
}

/// Most are in the future, so how long ago does not matter.
pub fn date(at: flex_api::Time) -> String {
    jiff::Timestamp::from_microsecond(at.0.micros()).unwrap_or_default().strftime("%Y/%m/%d %H:%M:%S +0000").to_string()
}

fn hosts(names: &[flex_model::DomainName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn show(cx: &Context, value: Value) -> Result<()> {
    let Some(c) = cx.show_or::<SniEndpoint>(value)? else { return Ok(()) };
    output::line(format!("Name:         {}", c.name));
    output::line(format!("Common names: {}", hosts(&c.ssl_cert.cert_domains)));
    output::line(format!("Shown for:    {}", hosts(&c.domains)));
    output::line(format!("Subject:      {}", c.ssl_cert.subject));
    output::line(format!("Issuer:       {}", c.ssl_cert.issuer));
    output::line(format!("Starts at:    {}", date(c.ssl_cert.starts_at)));
    output::line(format!("Expires at:   {}", date(c.ssl_cert.expires_at)));
    if c.ssl_cert.self_signed {
        output::warn("The certificate is self-signed: browsers will not trust it.");
    }
    Ok(())
}

async fn list(cx: &Context, path: &str) -> Result<()> {
    let Some(all) = cx.fetch_list::<Vec<SniEndpoint>>(path).await? else { return Ok(()) };
    if all.is_empty() {
        output::say(format!(
            "{} has no certificate. Add one: flex certs:add CERTIFICATE KEY, or have them made: flex certs:auto:enable",
            cx.app()?
        ));
        return Ok(());
    }
    let rows: Vec<_> = all
        .iter()
        .map(|c| {
            let trusted = if c.ssl_cert.ca_signed { "yes" } else { "no" };
            vec![c.name.clone(), hosts(&c.domains), date(c.ssl_cert.expires_at), trusted.into()]
        })
        .collect();
    output::table(&["name", "shown for", "expires", "signed by an authority"], &rows);
    Ok(())
}
