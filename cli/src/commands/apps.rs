//! Apps themselves.

use super::portable;
use crate::args::{Apps, Confirm, Create, Info, Maintenance, ReadOnly};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::git;
use crate::output::{self, Progress};
use flex_api::{
    App, BuildpackInstallation, CreateApp, Dyno, LockApp, Server, SetBuildpack, SetBuildpacks, TransferApp, UpdateApp,
};
use serde_json::Value;

pub async fn run(cx: &Context, verb: Option<Apps>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Apps::Create(args)) => create(cx, args).await,
        Some(Apps::Info(args)) => info(cx, args).await,
        Some(Apps::Rename { new_name }) => rename(cx, &new_name).await,
        Some(Apps::Transfer { recipient }) => transfer(cx, &recipient).await,
        Some(Apps::Branches { branches: chosen }) => branches(cx, chosen).await,
        Some(Apps::Lock { reason }) => lock(cx, reason).await,
        Some(Apps::Unlock) => unlock(cx).await,
        Some(Apps::ReadOnly { verb }) => read_only(cx, verb).await,
        Some(Apps::Clone { new_name, no_config }) => portable::clone(cx, &new_name, no_config).await,
        Some(Apps::Export { file, no_config }) => portable::export(cx, &file, no_config).await,
        Some(Apps::Import { file, new_name }) => portable::import(cx, &file, new_name.as_deref()).await,
        Some(Apps::Destroy(args)) => destroy(cx, args).await,
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(apps) = cx.fetch_list::<Vec<App>>("/apps").await? else { return Ok(()) };
    if apps.is_empty() {
        output::say("You have no apps. Make one: flex create NAME");
        return Ok(());
    }
    let rows: Vec<_> = apps.into_iter().map(|a| vec![a.name.to_string(), a.owner.email, a.web_url]).collect();
    output::table(&["name", "owner", "url"], &rows);
    Ok(())
}

pub async fn create(cx: &Context, args: Create) -> Result<()> {
    let name = match args.name.or_else(|| cx.common.app.clone()) {
        Some(n) => Some(n.parse::<flex_model::AppName>().map_err(|e| CliError::usage(e.to_string()))?),
        None => None,
    };
    // Read before anything is made: a mistake leaves no app behind.
    let buildpack =
        args.buildpack.map(|b| b.parse()).transpose().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
    let progress = Progress::start(name.as_ref().map_or_else(|| "Creating app".to_owned(), |n| format!("Creating {n}")));
    let is_named = name.is_some();
    let created: Value = cx.client.post("/apps", &CreateApp { name, stack: args.stack }).await?;
    let App { name: made, git_url, .. } = typed(created.clone())?;
    if is_named {
        progress.done();
    } else {
        progress.done_with(made.as_str());
    }
    if let Some(buildpack) = buildpack {
        let body = SetBuildpacks { updates: vec![SetBuildpack { buildpack }] };
        cx.client.put::<Vec<BuildpackInstallation>>(&format!("/apps/{made}/buildpack-installations"), &body).await?;
    }
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    if !args.no_remote && git::in_repository() {
        connect(cx, remote, &git_url).await?;
    }
    let Some(app) = cx.show_or::<App>(created)? else { return Ok(()) };
    output::line(format!("{} | {git_url}", app.web_url));
    if !args.no_remote && git::in_repository() {
        output::say(format!("Deploy with: git push {remote} main"));
    }
    Ok(())
}

/// Sets the remote and makes the server's host key known.
async fn connect(cx: &Context, remote: &str, git_url: &str) -> Result<()> {
    git::set_remote(remote, git_url)?;
    let ssh = cx.client.get::<Server>("/flex/server").await?.ssh;
    crate::known_hosts::add(&ssh.host, ssh.port, &ssh.host_key)
}

pub async fn git_remote(cx: &Context) -> Result<()> {
    let name = cx.app_or(None)?;
    if !git::in_repository() {
        return Err(CliError::usage("This is not a git repository.").hint("Make one: git init"));
    }
    let app: App = cx.client.get(&format!("/apps/{name}")).await?;
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    connect(cx, remote, &app.git_url).await?;
    output::line(format!("set git remote {remote} to {}", app.git_url));
    Ok(())
}

pub async fn info(cx: &Context, args: Info) -> Result<()> {
    let name = cx.app_or(args.name.as_deref())?;
    let Some(app) = cx.fetch::<App>(&format!("/apps/{name}")).await? else { return Ok(()) };
    if args.url {
        output::line(app.web_url);
        return Ok(());
    }
    let dynos: Vec<Dyno> = cx.client.list(&format!("/apps/{name}/dynos")).await?;
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for d in &dynos {
        *counts.entry(d.kind.as_str()).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(k, n)| format!("{k}: {n}")).collect();
    output::heading(app.name.as_str());
    let rows = [
        ("Dynos", counts.join(", ")),
        ("Git URL", app.git_url),
        ("Owner", app.owner.email),
        ("Slug Size", app.slug_size.map(output::size).unwrap_or_default()),
        ("Stack", app.stack.name),
        ("Maintenance", if app.maintenance { "on".into() } else { String::new() }),
        ("File System", if app.read_only_root { "read-only".into() } else { String::new() }),
        (
            "Locked",
            app.locked_by.map(|by| app.lock_reason.map_or(format!("by {by}"), |r| format!("by {by}: {r}"))).unwrap_or_default(),
        ),
        ("Deploys", app.deploy_branches.join(", ")),
        ("Created", app.created_at.to_string()),
        ("Web URL", app.web_url),
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
    let renamed: Value = cx.client.patch(&format!("/apps/{old}"), &UpdateApp { name: Some(new), ..UpdateApp::default() }).await?;
    progress.done();
    let app: App = typed(renamed.clone())?;
    let remote = cx.common.remote.as_deref().unwrap_or(git::REMOTE);
    if git::app_of_remote(remote).is_some_and(|a| a == old.as_str()) {
        git::set_remote(remote, &app.git_url)?;
        output::say(format!("The git remote {remote} follows."));
    }
    let Some(app) = cx.show_or::<App>(renamed)? else { return Ok(()) };
    output::line(app.web_url);
    Ok(())
}

async fn transfer(cx: &Context, recipient: &str) -> Result<()> {
    let recipient: flex_model::Email = recipient.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
    let progress = Progress::start(format!("Transferring {} to {recipient}", cx.app()?));
    let app: Value = cx.client.post(&cx.path("/transfer")?, &TransferApp { recipient }).await?;
    progress.done();
    if cx.common.json {
        return output::json(&app);
    }
    output::say("You stay a collaborator, if you owned it.");
    Ok(())
}

async fn branches(cx: &Context, chosen: Vec<String>) -> Result<()> {
    let path = cx.path("")?;
    let app: Value = if chosen.is_empty() {
        cx.client.get(&path).await?
    } else {
        let progress = Progress::start(format!("Setting the branches of {} that deploy", cx.app()?));
        let set = cx.client.patch(&path, &UpdateApp { deploy_branches: Some(chosen), ..UpdateApp::default() }).await?;
        progress.done();
        set
    };
    let Some(app) = cx.show_or::<App>(app)? else { return Ok(()) };
    app.deploy_branches.iter().for_each(output::line);
    Ok(())
}

async fn lock(cx: &Context, reason: Option<String>) -> Result<()> {
    let progress = Progress::start(format!("Locking {}", cx.app()?));
    let app: Value = cx.client.put(&cx.path("/lock")?, &LockApp { reason }).await?;
    progress.done();
    if cx.common.json {
        return output::json(&app);
    }
    output::say("Nothing can be deployed until: flex apps:unlock");
    Ok(())
}

async fn unlock(cx: &Context) -> Result<()> {
    let progress = Progress::start(format!("Unlocking {}", cx.app()?));
    cx.client.delete(&cx.path("/lock")?).await?;
    progress.done();
    Ok(())
}

pub async fn destroy(cx: &Context, args: Confirm) -> Result<()> {
    let name = cx.app_or(args.name.as_deref())?;
    // An app that is not there should be said before anyone is asked to confirm.
    let _: App = cx.client.get(&format!("/apps/{name}")).await?;
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
    cx.client.patch::<App>(&path, &UpdateApp { maintenance: Some(on), ..UpdateApp::default() }).await?;
    progress.done();
    Ok(())
}

async fn read_only(cx: &Context, verb: Option<ReadOnly>) -> Result<()> {
    let path = cx.path("")?;
    let Some(verb) = verb else {
        let Some(app) = cx.fetch::<App>(&path).await? else { return Ok(()) };
        output::line(if app.read_only_root { "on" } else { "off" });
        return Ok(());
    };
    let on = matches!(verb, ReadOnly::On);
    let doing = if on { "Making the file system read-only" } else { "Making the file system writable" };
    let progress = Progress::start(format!("{doing} for {}", cx.app()?));
    let app: Value = cx.client.patch(&path, &UpdateApp { read_only_root: Some(on), ..UpdateApp::default() }).await?;
    progress.done();
    if cx.common.json {
        return output::json(&app);
    }
    output::say("It holds for what is started from now on. For what runs: flex ps:restart");
    if !on {
        output::say("It stays read-only where the deployed app.json says so.");
    }
    Ok(())
}

pub async fn open(cx: &Context) -> Result<()> {
    let app: App = cx.client.get(&cx.path("")?).await?;
    let url = app.web_url;
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
