//! Versions, and a check of the way from here to a served app.

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::{self, Colour, paint};
use crate::views::{Account, Key};
use serde_json::{Value, json};

pub async fn version(cx: &Context) -> Result<()> {
    let cli = env!("CARGO_PKG_VERSION");
    let server: Option<Value> = cx.client.get("/flex/server").await.ok();
    let server = server.and_then(|s| s["version"].as_str().map(str::to_owned));
    if cx.common.json {
        return output::json(&json!({ "flex": cli, "flexd": server, "api": cx.client.api }));
    }
    output::line(format!("flex/{cli}"));
    match server {
        Some(v) => output::line(format!("flexd/{v} at {}", cx.client.api)),
        None => output::say(format!("flexd: no answer from {}", cx.client.api)),
    }
    Ok(())
}

struct Finding {
    what: String,
    problem: Option<(String, String)>,
}

fn good(what: impl Into<String>) -> Finding {
    Finding { what: what.into(), problem: None }
}

fn bad(what: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), problem: Some((problem.into(), remedy.into())) }
}

/// Each thing that has to be right, in the order in which a push meets it.
pub async fn doctor(cx: &Context) -> Result<()> {
    let mut found = Vec::new();
    match cx.client.get::<Value>("/flex/server").await {
        Err(e) => found.push(bad(
            format!("server {}", cx.client.api),
            e.message,
            "start it with scripts/up, or name another: flex login --api URL",
        )),
        Ok(server) => {
            found.push(good(format!("server {} (flexd {})", cx.client.api, server["version"].as_str().unwrap_or("?"))));
            for check in server["checks"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let text = |k: &str| check[k].as_str().unwrap_or_default().to_owned();
                found.push(if check["ok"] == true {
                    good(text("what"))
                } else {
                    bad(text("what"), text("problem"), text("remedy"))
                });
            }
            signed_in(cx, &mut found).await;
        }
    }
    found.push(match std::process::Command::new("git").arg("--version").output() {
        Ok(out) if out.status.success() => good(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        _ => bad("git", "there is no git command here", "install git"),
    });
    if cx.common.json {
        let all: Vec<Value> = found
            .iter()
            .map(|f| json!({ "what": f.what, "ok": f.problem.is_none(), "problem": f.problem.as_ref().map(|p| &p.0), "remedy": f.problem.as_ref().map(|p| &p.1) }))
            .collect();
        output::json(&all)?;
    } else {
        for f in &found {
            match &f.problem {
                None => output::line(format!("{} {}", paint("ok  ", Colour::Green), f.what)),
                Some((problem, remedy)) => {
                    output::line(format!("{} {}: {problem}", paint("fail", Colour::Red), f.what));
                    output::line(format!("     remedy: {remedy}"));
                }
            }
        }
    }
    let failed = found.iter().filter(|f| f.problem.is_some()).count();
    if failed == 0 { Ok(()) } else { Err(CliError::failed(format!("{failed} of {} checks failed.", found.len()))) }
}

async fn signed_in(cx: &Context, found: &mut Vec<Finding>) {
    match cx.client.get::<Account>("/account").await {
        Err(e) => found.push(bad("account", e.message, "sign in: flex login")),
        Ok(account) => {
            found.push(good(format!("signed in as {}", account.email)));
            match cx.client.get::<Vec<Key>>("/account/keys").await {
                Ok(keys) if !keys.is_empty() => found.push(good(format!("{} SSH key(s) registered", keys.len()))),
                Ok(_) => found.push(bad("SSH keys", "none is registered, so git push will be refused", "flex keys:add")),
                Err(e) => found.push(bad("SSH keys", e.message, "flex keys")),
            }
        }
    }
}
