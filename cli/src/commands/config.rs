//! Config vars.

use crate::args::Config;
use crate::context::Context;
use crate::error::{CliError, EXIT_USAGE, Result, while_doing};
use crate::output::{self, Progress};
use flex_api::{ConfigChanges, ConfigVars, Release};
use flex_model::{ConfigKey, Secret};
use serde_json::{Value, json};
use std::path::Path;

pub async fn run(cx: &Context, verb: Option<Config>) -> Result<()> {
    let path = cx.path("/config-vars")?;
    match verb {
        None => show(cx, &path).await,
        Some(Config::Set { pairs, file, no_restart }) => set(cx, &path, &pairs, file.as_deref(), !no_restart).await,
        Some(Config::Edit { key, no_restart }) => super::edit::run(cx, &path, key.as_deref(), !no_restart).await,
        Some(Config::Get { key, shell }) => get(cx, &path, &key, shell).await,
        Some(Config::Unset { keys, no_restart }) => unset(cx, &path, &keys, !no_restart).await,
    }
}

async fn show(cx: &Context, path: &str) -> Result<()> {
    let Some(vars) = cx.fetch::<ConfigVars>(path).await? else { return Ok(()) };
    output::heading(&format!("{} Config Vars", cx.app()?));
    if vars.0.is_empty() {
        output::say("There are none. Set one: flex config:set KEY=VALUE");
    }
    print_vars(&vars.0);
    Ok(())
}

fn print_vars<'a>(vars: impl IntoIterator<Item = (&'a String, &'a Secret)>) {
    let vars: Vec<_> = vars.into_iter().collect();
    let width = vars.iter().map(|(k, _)| k.len() + 1).max().unwrap_or(0);
    for (k, v) in vars {
        output::line(format!("{:<width$} {}", format!("{k}:"), v.expose()));
    }
}

async fn get(cx: &Context, path: &str, key: &str, shell: bool) -> Result<()> {
    let vars: ConfigVars = cx.client.get(path).await?;
    let Some(value) = vars.0.get(key).map(Secret::expose) else {
        return Err(CliError { exit: EXIT_USAGE, ..CliError::failed(format!("{key} is not set for {}.", cx.app()?)) });
    };
    if cx.common.json {
        return output::json(&json!({ key: value }));
    }
    output::line(if shell { format!("{key}='{}'", value.replace('\'', r"'\''")) } else { value.to_owned() });
    Ok(())
}

async fn set(cx: &Context, path: &str, pairs: &[String], file: Option<&Path>, restart: bool) -> Result<()> {
    let stdin = Path::new("-");
    let files = file.into_iter().chain(pairs.iter().any(|p| p == "-").then_some(stdin));
    let mut vars = Vec::new();
    for file in files {
        vars.extend(parse_env(&read(file)?).map_err(|e| CliError::usage(format!("{}: {e}", file.display())))?);
    }
    for pair in pairs.iter().filter(|p| *p != "-") {
        vars.push(parse_pair(pair)?);
    }
    if vars.is_empty() {
        return Err(CliError::usage("Nothing to set.").hint("Example: flex config:set KEY=VALUE"));
    }
    let changes = vars.into_iter().map(|(k, v)| (k, Some(Secret::new(v)))).collect();
    send(cx, path, ConfigChanges(changes), restart, true).await
}

async fn unset(cx: &Context, path: &str, keys: &[String], restart: bool) -> Result<()> {
    let mut changes = ConfigChanges::default();
    for key in keys {
        let key: ConfigKey = key.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
        changes.0.insert(key, None);
    }
    send(cx, path, changes, restart, true).await
}

/// Sets and unsets, and (if asked to) shows what was set.
pub async fn send(cx: &Context, path: &str, changes: ConfigChanges, restart: bool, show: bool) -> Result<()> {
    if !restart {
        // What is still being rolled out starts instances anyhow: the server refuses to promise otherwise.
        super::wait::settled(cx, crate::args::Wait { no_wait: false, wait: true }, None).await?;
    }
    let names = |set: bool| changes.0.iter().filter(|(_, v)| v.is_some() == set).map(|(k, _)| k.to_string()).collect::<Vec<_>>();
    let (set, unset) = (names(true), names(false));
    let said = [("Setting", "setting", &set), ("Unsetting", "unsetting", &unset)];
    let mut doing = String::new();
    for (first, later, names) in said.into_iter().filter(|(.., names)| !names.is_empty()) {
        let verb = if doing.is_empty() { first } else { later };
        doing = format!("{doing}{}{verb} {}", if doing.is_empty() { "" } else { ", " }, names.join(", "));
    }
    let what = if restart { format!("{doing} and restarting {}", cx.app()?) } else { format!("{doing} on {}", cx.app()?) };
    let progress = Progress::start(what);
    let query = if restart { "" } else { "?restart=false" };
    let all: Value = cx.client.patch(&format!("{path}{query}"), &changes).await?;
    progress.done_with(&format!("v{}", newest_version(cx).await?));
    if !restart {
        output::say("What runs does not see it yet. Later: flex restart");
    }
    let Some(all) = cx.show_or::<ConfigVars>(all)? else { return Ok(()) };
    if show {
        print_vars(all.0.iter().filter(|(k, _)| set.contains(k)));
    }
    Ok(())
}

pub async fn newest_version(cx: &Context) -> Result<u64> {
    let releases: Vec<Release> = cx.client.get_newest(&cx.path("/releases")?, "version", 1).await?;
    Ok(releases.first().map_or(0, |r| r.version))
}

/// `KEY=VALUE`.
pub fn parse_pair(text: &str) -> Result<(ConfigKey, String)> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| CliError::usage(format!("{text} is invalid. Must be in the format KEY=VALUE.")))?;
    Ok((key.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?, value.to_owned()))
}

/// Reads a file whole, `-` being stdin.
pub fn read(file: &Path) -> Result<String> {
    let doing = || while_doing(format!("read {}", file.display()));
    if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).map_err(doing())
    } else {
        std::fs::read_to_string(file).map_err(doing())
    }
}

/// The lines of a `.env` file: blank lines and comments passed over, `export` allowed, one pair of quotes taken off. No
/// expansion of any kind.
pub fn parse_env(text: &str) -> std::result::Result<Vec<(ConfigKey, String)>, String> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=').ok_or_else(|| format!("line {}: expected KEY=VALUE", i + 1))?;
        let key = key.trim().parse().map_err(|e| format!("line {}: {e}", i + 1))?;
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        out.push((key, unquoted.unwrap_or(value).to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files() {
        let text = "# c\n\nA=1\nexport B='two words'\nC=\"x=y\"\nD=\n";
        let vars: Vec<_> = parse_env(text).unwrap().into_iter().map(|(k, v)| format!("{k}:{v}")).collect();
        assert_eq!(vars, ["A:1", "B:two words", "C:x=y", "D:"]);
        assert!(parse_env("A=1\nnonsense").unwrap_err().contains("line 2"));
        assert!(parse_env("1A=1").unwrap_err().contains("line 1"));
    }
}
