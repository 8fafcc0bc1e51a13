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
    for (i, pair) in pairs.iter().enumerate().filter(|(_, p)| *p != "-") {
        vars.push(parse_pair(pair, &format!("Argument {}", i + 1))?);
    }
    if vars.is_empty() {
        return Err(CliError::usage("Nothing to set.").hint("Example: flex config:set KEY=VALUE"));
    }
    let changes = vars.into_iter().map(|(k, v)| (k, Some(Secret::new(v)))).collect();
    send(cx, path, ConfigChanges(changes), restart, true).await
}

async fn unset(cx: &Context, path: &str, keys: &[String], restart: bool) -> Result<()> {
    let mut changes = ConfigChanges::default();
    for (i, key) in keys.iter().enumerate() {
        let key: ConfigKey = key.parse().map_err(|e| CliError::usage(format!("Argument {}: {e}", i + 1)))?;
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

/// `KEY=VALUE`, which stands at `place`. It may be a piece of a value, or have one in it: nothing of it is said.
pub fn parse_pair(text: &str, place: &str) -> Result<(ConfigKey, String)> {
    let hint = "A value with spaces goes in quotes, and no space stands beside the =: KEY='two words'";
    let bad = |what: &str| CliError::usage(format!("{place} {what}")).hint(hint);
    let (key, value) = text.split_once('=').ok_or_else(|| bad("is invalid. Must be in the format KEY=VALUE."))?;
    Ok((key.parse().map_err(|e| bad(&format!("is invalid: {e}.")))?, value.to_owned()))
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

/// What a `.env` file says: blank lines and comments passed over, `export` allowed. A value in quotes may go on over several
/// lines; in double ones `\n`, `\r`, `\t`, `\"`, `\\` and `\$` stand for what they do elsewhere. No expansion of any kind.
///
/// # Errors
/// Names the line, and nothing of what is in it: that may be a value.
pub fn parse_env(text: &str) -> std::result::Result<Vec<(ConfigKey, String)>, String> {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let (mut out, mut rest, mut number) = (Vec::new(), text.as_str(), 0);
    while !rest.is_empty() {
        number += 1;
        let (whole, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = whole.trim();
        if line.is_empty() || line.starts_with('#') {
            rest = after;
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let bad = |what: &str| format!("line {number}: {what}. A value of several lines goes in quotes");
        let (key, value) = line.split_once('=').ok_or_else(|| bad("expected KEY=VALUE"))?;
        let key: ConfigKey = key.trim().parse().map_err(|e: flex_model::Invalid| bad(&e.to_string()))?;
        let value = value.trim_start();
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            if value.starts_with("-----BEGIN ") && !value.contains("-----END ") {
                return Err(bad("a PEM block is not whole"));
            }
            out.push((key, value.to_owned()));
            rest = after;
            continue;
        };
        // From behind the quote, which is the first of the line, to wherever it is closed.
        let quoted = rest.split_once(quote).map_or("", |(_, quoted)| quoted);
        rest = after;
        match closed(quoted, quote) {
            Some((value, end)) => {
                number += quoted[..end].matches('\n').count();
                rest = quoted[end..].split_once('\n').map_or("", |(_, after)| after);
                out.push((key, value));
            }
            // Quotes within a value, as in 'it's': one pair is taken off.
            None => match value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
                Some(inner) => out.push((key, inner.to_owned())),
                None if value[1..].contains(quote) => out.push((key, value.to_owned())),
                None => return Err(format!("line {number}: the quote is not closed")),
            },
        }
    }
    Ok(out)
}

/// What stands before the closing quote, and where the text goes on after it. None: there is no such quote, or more than a
/// comment follows it.
fn closed(text: &str, quote: char) -> Option<(String, usize)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                c @ ('"' | '\\' | '$') => out.push(c),
                other => out.extend(['\\', other]),
            },
            c if c == quote => {
                let rest = text[at + 1..].split('\n').next().unwrap_or_default().trim();
                return (rest.is_empty() || rest.starts_with('#')).then_some((out, at + 1));
            }
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        parse_env(text).unwrap().into_iter().map(|(k, v)| format!("{k}:{v}")).collect()
    }

    #[test]
    fn env_files() {
        let text =
            "# c\n\nA=1\nexport B='two words'\nC=\"x=y\"\nD=\nE= spaced # kept\nF='x' # left out\nG=a'b\nH='it's'\nI='a' 'b";
        let wanted = ["A:1", "B:two words", "C:x=y", "D:", "E:spaced # kept", "F:x", "G:a'b", "H:it's", "I:'a' 'b"];
        assert_eq!(read(text), wanted);
    }

    #[test]
    fn values_of_several_lines() {
        let pem = "-----BEGIN KEY-----\nMIIE+/==\n-----END KEY-----\n";
        assert_eq!(read(&format!("A=1\nKEY=\"{pem}\"\nB=2")), ["A:1".to_owned(), format!("KEY:{pem}"), "B:2".to_owned()]);
        assert_eq!(read(&format!("KEY='{pem}' # the key\r\nB=2\r\n")), [format!("KEY:{pem}"), "B:2".to_owned()]);
        assert_eq!(
            read("A=\"one\\ntwo \\\"x\\\" \\$y \\d \\\\n\"\nB='one\\ntwo'"),
            ["A:one\ntwo \"x\" $y \\d \\n", "B:one\\ntwo"]
        );
    }

    #[test]
    fn mistakes_name_the_place_and_show_nothing() {
        for (text, line) in [
            ("A=1\nhunter2", "line 2:"),
            ("1hunter2=1", "line 1:"),
            ("KEY=-----BEGIN KEY-----\nhunter2==\n", "line 1:"),
            ("KEY=--\nhunter2/+==\n", "line 2:"),
            ("A='x\ny'\n\nhunter2+==", "line 4:"),
            ("A=1\nB=\"hunter2\nC=3", "line 2: the quote is not closed"),
        ] {
            let told = parse_env(text).unwrap_err();
            assert!(told.starts_with(line) && !told.contains("hunter2"), "{told}");
        }
        for text in ["hunter2", "hunter2 x=1", "=hunter2"] {
            let told = parse_pair(text, "Argument 2").unwrap_err().message;
            assert!(told.starts_with("Argument 2 is invalid") && !told.contains("hunter2"), "{told}");
        }
        assert_eq!(parse_pair("A=b=c", "").unwrap().1, "b=c");
    }
}
