//! SSH keys for git.

use crate::args::Keys;
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output::{self, Progress};
use flex_api::{AddKey, Key};
use serde_json::Value;
use std::path::PathBuf;

/// In the order that ssh itself tries them.
const DEFAULTS: &[&str] = &["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"];

pub async fn run(cx: &Context, verb: Option<Keys>) -> Result<()> {
    match verb {
        None => list(cx).await,
        Some(Keys::Add { file, quiet }) => add(cx, file, quiet).await,
        Some(Keys::Remove { key }) => remove(cx, &key).await,
    }
}

async fn list(cx: &Context) -> Result<()> {
    let Some(keys) = cx.fetch_list::<Vec<Key>>("/account/keys").await? else { return Ok(()) };
    if keys.is_empty() {
        output::say("You have no SSH keys. Add one: flex keys:add");
        return Ok(());
    }
    let kind = |k: &Key| k.public_key.split(' ').next().unwrap_or_default().to_owned();
    let rows: Vec<_> = keys.iter().map(|k| vec![k.fingerprint.clone(), kind(k), k.comment.clone()]).collect();
    output::table(&["fingerprint", "type", "comment"], &rows);
    Ok(())
}

async fn add(cx: &Context, file: Option<PathBuf>, quiet: bool) -> Result<()> {
    let file = match file {
        Some(f) => f,
        None => default_key()?,
    };
    let text = std::fs::read_to_string(&file).map_err(while_doing(format!("read {}", file.display())))?;
    if text.contains("PRIVATE KEY") {
        return Err(CliError::usage(format!("{} is a private key: it must never leave this machine.", file.display()))
            .hint(format!("Add its public half: flex keys:add {}.pub", file.display())));
    }
    let text = text.trim();
    let keys: Vec<Key> = cx.client.list("/account/keys").await?;
    let body = |k: &str| k.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    if keys.iter().any(|k| body(&k.public_key) == body(text)) {
        if !quiet {
            output::say(format!("{} is registered already.", file.display()));
        }
        return Ok(());
    }
    let progress = Progress::start(format!("Uploading {}", file.display()));
    let added: Value = cx.client.post("/account/keys", &AddKey { public_key: text.to_owned() }).await?;
    progress.done();
    let Some(key) = cx.show_or::<Key>(added)? else { return Ok(()) };
    if !quiet {
        output::line(key.fingerprint);
    }
    Ok(())
}

fn default_key() -> Result<PathBuf> {
    let ssh = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".ssh")).unwrap_or_default();
    DEFAULTS.iter().map(|f| ssh.join(f)).find(|f| f.exists()).ok_or_else(|| {
        CliError::failed(format!("There is no public key in {}.", ssh.display()))
            .hint("Make one: ssh-keygen -t ed25519")
            .hint("Or name it: flex keys:add FILE")
    })
}

async fn remove(cx: &Context, wanted: &str) -> Result<()> {
    let keys: Vec<Key> = cx.client.list("/account/keys").await?;
    let found: Vec<_> =
        keys.iter().filter(|k| k.fingerprint == wanted || k.id.to_string() == wanted || k.comment == wanted).collect();
    let [key] = found[..] else {
        let what = if found.is_empty() { "No key" } else { "More than one key" };
        return Err(CliError::usage(format!("{what} matches {wanted}.")).hint("Give the fingerprint; see: flex keys"));
    };
    let progress = Progress::start(format!("Removing {}", key.fingerprint));
    cx.client.delete(&format!("/account/keys/{}", key.id)).await?;
    progress.done();
    Ok(())
}
