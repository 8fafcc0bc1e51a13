//! Versions, and a check of the way from here to a served app.

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::git;
use crate::known_hosts::{self, HostKey};
use crate::output::{self, Colour, paint};
use flex_api::{Account, App, Check, Key, Server, SshServer};
use serde_json::json;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For a port of a server that answers otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn version(cx: &Context) -> Result<()> {
    let server = cx.client.get::<Server>("/flex/server").await.ok().map(|s| s.version);
    if cx.common.json {
        return output::json(&json!({ "flex": VERSION, "flexd": server, "api": cx.client.api }));
    }
    output::line(format!("flex/{VERSION}"));
    match server {
        Some(v) => output::line(format!("flexd/{v} at {}", cx.client.api)),
        None => output::say(format!("flexd: no answer from {}", cx.client.api)),
    }
    Ok(())
}

fn good(what: impl Into<String>) -> Check {
    Check { what: what.into(), ok: true, problem: None, remedy: None }
}

fn bad(what: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what: what.into(), ok: false, problem: Some(problem.into()), remedy: Some(remedy.into()) }
}

/// Each thing that has to be right, in the order in which a push meets it.
pub async fn doctor(cx: &Context) -> Result<()> {
    let found = checks(cx).await;
    if cx.common.json {
        output::json(&found)?;
    } else {
        for f in &found {
            if f.ok {
                output::line(format!("{} {}", paint("ok  ", Colour::Green), f.what));
                continue;
            }
            let problem = f.problem.as_deref().unwrap_or("it is not as it should be");
            output::line(format!("{} {}: {problem}", paint("fail", Colour::Red), f.what));
            if let Some(remedy) = &f.remedy {
                output::line(format!("     remedy: {remedy}"));
            }
        }
    }
    let failed = found.iter().filter(|f| !f.ok).count();
    if failed == 0 { Ok(()) } else { Err(CliError::failed(format!("{failed} of {} checks failed.", found.len()))) }
}

async fn checks(cx: &Context) -> Vec<Check> {
    let mut found = vec![match std::process::Command::new("git").arg("--version").output() {
        Ok(out) if out.status.success() => good(String::from_utf8_lossy(&out.stdout).trim()),
        _ => bad("git", "there is no git command here", "install git"),
    }];
    match cx.client.get::<Server>("/flex/server").await {
        Err(e) => found.push(bad(
            format!("server {}", cx.client.api),
            e.message,
            "start it with scripts/up, or name another: flex login --api URL",
        )),
        Ok(server) => {
            let what = format!("server {} (flexd {})", cx.client.api, server.version);
            found.push(if server.version == VERSION {
                good(what)
            } else {
                bad(what, format!("this is flex {VERSION}"), "install the flex of the server's version")
            });
            found.extend(server.checks);
            found.extend(ssh(&server.ssh));
            account(cx, &mut found).await;
        }
    }
    found
}

/// The way to git.
fn ssh(server: &SshServer) -> Vec<Check> {
    let name = known_hosts::name_of(&server.host, server.port);
    let reached = (server.host.as_str(), server.port).to_socket_addrs().map_err(|e| e.to_string()).and_then(|mut all| {
        all.find_map(|a| std::net::TcpStream::connect_timeout(&a, CONNECT_TIMEOUT).ok()).ok_or_else(|| "nothing answers".into())
    });
    let port = match reached {
        Ok(_) => good(format!("git over SSH answers at {name}")),
        Err(e) => bad(format!("git over SSH at {name}"), e, "look for a firewall between here and there, and at flexd --ssh"),
    };
    let (known, file) = known_hosts::host_key(&server.host, server.port, &server.host_key);
    let file = file.map_or_else(|| "the files that ssh looks in (none)".to_owned(), |f| f.display().to_string());
    let known = match known {
        HostKey::Known => good(format!("the host key of {name} is known")),
        HostKey::Unknown => bad(
            format!("the host key of {name}"),
            format!("it is not in {file}, so the first push asks"),
            "in an app's repository: flex git:remote --app NAME",
        ),
        HostKey::Differs => bad(
            format!("the host key of {name}"),
            format!("{file} has another one, so ssh refuses the server"),
            format!("if the server was made anew: ssh-keygen -f {file} -R '{name}', then flex git:remote --app NAME"),
        ),
    };
    vec![port, known]
}

async fn account(cx: &Context, found: &mut Vec<Check>) {
    let account = match cx.client.get::<Account>("/account").await {
        Ok(account) => account,
        Err(e) => return found.push(bad("account", e.message, "sign in: flex login")),
    };
    found.push(good(format!("signed in as {}", account.email)));
    found.push(match cx.client.list::<Vec<Key>>("/account/keys").await {
        Err(e) => bad("SSH keys", e.message, "see: flex keys"),
        Ok(keys) if keys.is_empty() => bad("SSH keys", "none is registered, so git push will be refused", "flex keys:add"),
        Ok(keys) => {
            let here = keys_here();
            match keys.iter().find(|k| here.contains(&body(&k.public_key))) {
                Some(key) => good(format!("SSH key {} is registered", key.fingerprint)),
                None => bad("SSH keys", "none of those registered is on this machine", "flex keys:add"),
            }
        }
    });
    if let Some(name) = git::app_of_remote(cx.common.remote.as_deref().unwrap_or(git::REMOTE)) {
        found.push(match cx.client.get::<App>(&format!("/apps/{name}")).await {
            Ok(app) => good(format!("the git remote leads to {}", app.name)),
            Err(e) => bad(format!("the git remote's app {name}"), e.message, "point it elsewhere: flex git:remote --app NAME"),
        });
    } else if git::in_repository() {
        found.push(bad("git remote", "this repository has none for an app", "flex create, or flex git:remote --app NAME"));
    }
}

/// Type and key of a public key's line.
fn body(line: &str) -> String {
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// The public keys in `~/.ssh` and in the agent.
fn keys_here() -> Vec<String> {
    let ssh = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".ssh")).unwrap_or_default();
    let files = std::fs::read_dir(ssh).into_iter().flatten().flatten().map(|f| f.path());
    let texts = files.filter(|f| f.extension().is_some_and(|e| e == "pub")).filter_map(|f| std::fs::read_to_string(f).ok());
    let agent = std::process::Command::new("ssh-add").arg("-L").stderr(std::process::Stdio::null()).output();
    let agent = agent.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    texts.chain([agent]).flat_map(|t| t.lines().map(body).collect::<Vec<_>>()).collect()
}
