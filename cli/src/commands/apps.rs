//! Apps themselves.

use crate::args::{Apps, Confirm, Create, Info, Maintenance};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::git;
use crate::output::{self, Progress};
use crate::views::{App, Dyno};
use serde_json::{Value, json};

pub async fn run(cx: &Context, verb: Option<Apps>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Apps::Create(args)) => create(cx, args).await,
        Some(Apps::Info(args)) => info(cx, args).await,
        Some(Apps::Rename { new_name }) => rename(cx, &new_name).await,
        Some(Apps::Destroy(args)) => destroy(cx, args).await,
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(apps) = cx.fetch::<Vec<App>>("/apps").await? else { return Ok(()) };
    if apps.is_empty() {
        output::say("You have no apps. Make one: flex create NAME");
        return Ok(());
    }
    let rows: Vec<_> = apps
        .iter()
        .map(|a| {
            vec![
                a.name.clone(),
                a.owner.as_ref().map(|o| o.email.clone()).unwrap_or_default(),
                a.web_url.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["name", "owner", "url"], &rows);
    Ok(())
}

pub async fn create(cx: &Context, args: Create) -> Result<()> {
    let name = match args.name.or_else(|| cx.common.app.clone()) {
        Some(n) => Some(n.parse::<flex_model::AppName>().map_err(|e| CliError::usage(e.to_string()))?),
        None => None,
    };
    let progress = Progress::start(name.as_ref().map_or_else(|| "Creating app".to_owned(), |n| format!("Creating {n}")));
    let created: Value = cx.client.post("/apps", &json!({ "name": name })).await?;
    let made = created["name"].as_str().unwrap_or_default().to_owned();
    if name.is_some() {
        progress.done();
    } else {
        progress.done_with(&made);
    }
    if let Some(buildpack) = args.buildpack {
        let body = json!({"updates": [{"buildpack": buildpack}]});
        cx.client.put::<Value>(&format!("/apps/{made}/buildpack-installations"), &body).await?;
    }
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    let git_url = created["git_url"].as_str().unwrap_or_default().to_owned();
    if !args.no_remote && git::in_repository() && !git_url.is_empty() {
        connect(cx, remote, &git_url).await?;
    }
    let Some(app) = cx.show_or::<App>(created)? else { return Ok(()) };
    output::line(format!("{} | {git_url}", app.web_url.unwrap_or_default()));
    if !args.no_remote && git::in_repository() {
        output::say(format!("Deploy with: git push {remote} main"));
    }
    Ok(())
}

/// Sets the remote and makes the server's host key known.
async fn connect(cx: &Context, remote: &str, git_url: &str) -> Result<()> {
    git::set_remote(remote, git_url)?;
    let server: Value = cx.client.get("/flex/server").await?;
    if let (Some(host), Some(port), Some(key)) =
        (server["ssh"]["host"].as_str(), server["ssh"]["port"].as_u64(), server["ssh"]["host_key"].as_str())
    {
        git::know_host(host, u16::try_from(port).unwrap_or(22), key)?;
    }
    Ok(())
}

pub async fn git_remote(cx: &Context) -> Result<()> {
    let name = cx.app_or(None)?;
    if !git::in_repository() {
        return Err(CliError::usage("This is not a git repository.").hint("Make one: git init"));
    }
    let app: App = cx.client.get(&format!("/apps/{name}")).await?;
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    let url = app.git_url.unwrap_or_default();
    connect(cx, remote, &url).await?;
    output::line(format!("set git remote {remote} to {url}"));
    Ok(())
}

pub async fn info(cx: &Context, args: Info) -> Result<()> {
    let name = cx.app_or(args.name.as_deref())?;
    let Some(app) = cx.fetch::<App>(&format!("/apps/{name}")).await? else { return Ok(()) };
    if args.url {
        output::line(app.web_url.unwrap_or_default());
        return Ok(());
    }
    let dynos: Vec<Dyno> = cx.client.get(&format!("/apps/{name}/dynos")).await?;
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for d in &dynos {
        *counts.entry(&d.kind).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(k, n)| format!("{k}: {n}")).collect();
    output::heading(&app.name);
    let rows = [
        ("Dynos", counts.join(", ")),
        ("Git URL", app.git_url.unwrap_or_default()),
        ("Owner", app.owner.map(|o| o.email).unwrap_or_default()),
        ("Slug Size", app.slug_size.map(output::size).unwrap_or_default()),
        ("Stack", app.stack.map(|s| s.name).unwrap_or_default()),
        ("Maintenance", if app.maintenance { "on".into() } else { String::new() }),
        ("Created", app.created_at.unwrap_or_default()),
        ("Web URL", app.web_url.unwrap_or_default()),
    ];
    for (label, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        output::line(format!("{:<13} {value}", format!("{label}:")));
    }
    Ok(())
}

pub async fn rename(cx: &Context, new_name: &str) -> Result<()> {
    let old = cx.app()?;
    let new: flex_model::AppName = new_name.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
    let progress = Progress::start(format!("Renaming {old} to {new}"));
    let app: Value = cx.client.patch(&format!("/apps/{old}"), &json!({ "name": new })).await?;
    progress.done();
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    if git::app_of_remote(remote).is_some_and(|a| a == old.as_str()) {
        git::set_remote(remote, app["git_url"].as_str().unwrap_or_default())?;
        output::say(format!("The git remote {remote} follows."));
    }
    output::line(app["web_url"].as_str().unwrap_or_default());
    Ok(())
}

pub async fn destroy(cx: &Context, args: Confirm) -> Result<()> {
    let name = cx.app_or(args.name.as_deref())?;
    // An app that is not there should be said before anyone is asked to confirm.
    let _: Value = cx.client.get(&format!("/apps/{name}")).await?;
    output::confirm(name.as_str(), args.confirm.as_deref(), &format!("Destroying {name} with its releases and domains"))?;
    let progress = Progress::start(format!("Destroying {name}"));
    cx.client.delete(&format!("/apps/{name}")).await?;
    progress.done();
    Ok(())
}

pub async fn maintenance(cx: &Context, verb: Option<Maintenance>) -> Result<()> {
    let path = cx.path("")?;
    let on = match verb {
        None => {
            let Some(app) = cx.fetch::<App>(&path).await? else { return Ok(()) };
            output::line(if app.maintenance { "on" } else { "off" });
            return Ok(());
        }
        Some(Maintenance::On) => true,
        Some(Maintenance::Off) => false,
    };
    let progress = Progress::start(format!("{} maintenance mode for {}", if on { "Enabling" } else { "Disabling" }, cx.app()?));
    cx.client.patch::<Value>(&path, &json!({ "maintenance": on })).await?;
    progress.done();
    Ok(())
}

pub async fn open(cx: &Context) -> Result<()> {
    let app: App = cx.client.get(&cx.path("")?).await?;
    let url = app.web_url.unwrap_or_default();
    output::line(&url);
    // Where there is no desktop the URL is all that there is to do.
    let _ = std::process::Command::new("xdg-open")
        .arg(&url)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    Ok(())
}
