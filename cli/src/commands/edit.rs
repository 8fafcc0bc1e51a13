//! `config:edit`: config vars in an editor, by way of a file that nobody else can read and that is gone afterwards.
//!
//! Must not: leave values behind in a file, in an error, or in an argument.

use super::config;
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output;
use flex_api::{ConfigChanges, ConfigVars};
use flex_model::{ConfigKey, Secret};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

const HEADER: &str = "# One KEY=VALUE a line. A line that is taken out unsets its config var.
# A value in double quotes is read as JSON: \"two\\nlines\".
";

pub async fn run(cx: &Context, path: &str, key: Option<&str>, restart: bool) -> Result<()> {
    let vars: ConfigVars = cx.client.get(path).await?;
    let before: BTreeMap<String, String> = vars.0.into_iter().map(|(k, v)| (k, v.expose().to_owned())).collect();
    let changes = match key {
        Some(key) => {
            let key: ConfigKey = key.parse().map_err(|e: flex_model::Invalid| CliError::usage(e.to_string()))?;
            let old = before.get(key.as_str()).cloned().unwrap_or_default();
            let new = edited(&old).await?;
            // Editors end a file with a line break; a value had one only if it had it before.
            let new = if old.ends_with('\n') { new } else { new.trim_end_matches('\n').to_owned() };
            ConfigChanges((new != old).then(|| (key, Some(Secret::new(new)))).into_iter().collect())
        }
        None => {
            let after = parse(&edited(&format!("{HEADER}{}", render(&before))).await?)?;
            difference(&before, after)
        }
    };
    if changes.0.is_empty() {
        output::say("Nothing was changed.");
        return Ok(());
    }
    config::send(cx, path, changes, restart, false).await
}

/// How long an editor that is told to end may take.
const EDITOR_ENDS: Duration = Duration::from_secs(2);

/// The text as it is after the user's editor.
async fn edited(text: &str) -> Result<String> {
    // From here on no signal ends this process by itself: the values would stay behind.
    let mut signals = Signals::watch()?;
    let failed = || while_doing("make a file to edit");
    // 0600, in a folder of its own with 0700: the copies that editors make beside it are as private.
    let dir = tempfile::Builder::new().prefix("flex-config-").tempdir().map_err(failed())?;
    let file = dir.path().join("config.env");
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    options.open(&file).and_then(|mut f| f.write_all(text.as_bytes())).map_err(failed())?;
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|v| std::env::var(v).ok().filter(|e| !e.trim().is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".into());
    // "code --wait" is a program with an argument; no shell reads it.
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let child = Command::new(program).args(words).arg(&file).spawn().map_err(|e| {
        CliError::failed(format!("Cannot start the editor {program}: {e}")).hint("Choose another: EDITOR=nano flex config:edit")
    })?;
    let ended = signals.until_ended(child).await.map_err(while_doing(format!("wait for {program}")))?;
    drop(signals);
    let after = match ended {
        Some(status) if status.success() => std::fs::read_to_string(&file).map_err(while_doing("read the edited file")),
        Some(status) => Err(CliError::failed(format!("{program} ended with {status}. Nothing was changed."))),
        None => Err(CliError::failed(format!("{program} had to end. Nothing was changed."))),
    };
    drop(dir);
    ends_again()?;
    after
}

/// What would end this process, taken care of.
struct Signals {
    /// Ctrl-C and Ctrl-\ are the editor's keys, and reach this process as well.
    keys: [Signal; 2],
    /// These are meant for this process: the terminal is closed, or somebody wants it to end.
    ends: [Signal; 2],
}

fn watch(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(while_doing("watch for signals"))
}

impl Signals {
    fn watch() -> Result<Self> {
        Ok(Self {
            keys: [watch(SignalKind::interrupt())?, watch(SignalKind::quit())?],
            ends: [watch(SignalKind::hangup())?, watch(SignalKind::terminate())?],
        })
    }

    /// How the editor ended; none: it had to.
    async fn until_ended(&mut self, mut editor: Child) -> std::io::Result<Option<ExitStatus>> {
        let ([interrupt, quit], [hangup, terminate]) = (&mut self.keys, &mut self.ends);
        loop {
            tokio::select! {
                status = editor.wait() => return status.map(Some),
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
                _ = hangup.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        // Asked first, so that it takes away its own copies of the file.
        if let Some(id) = editor.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        }
        if tokio::time::timeout(EDITOR_ENDS, editor.wait()).await.is_err() {
            editor.kill().await?;
        }
        Ok(None)
    }
}

/// From here on each signal ends this process, as it does one that never watched for it.
fn ends_again() -> Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup(), SignalKind::terminate()] {
        let mut signal = watch(kind)?;
        tokio::spawn(async move {
            signal.recv().await;
            std::process::exit(128 + kind.as_raw_value());
        });
    }
    Ok(())
}

fn render(vars: &BTreeMap<String, String>) -> String {
    let plain = |v: &str| v.trim() == v && !v.starts_with('"') && !v.chars().any(char::is_control);
    let value = |v: &String| if plain(v) { v.clone() } else { serde_json::Value::from(v.as_str()).to_string() };
    vars.iter().map(|(k, v)| format!("{k}={}\n", value(v))).collect()
}

fn parse(text: &str) -> Result<BTreeMap<ConfigKey, String>> {
    let mut out = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        // The line itself may hold a secret: only its number is said.
        let bad = |what: &str| CliError::failed(format!("Line {}: {what}. Nothing was changed.", i + 1));
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| bad("expected KEY=VALUE"))?;
        let key: ConfigKey = key.trim().parse().map_err(|_| bad("what is before the = is no name of a config var"))?;
        let value = value.trim();
        let value = if value.starts_with('"') {
            serde_json::from_str::<String>(value).map_err(|_| bad("the value in double quotes is not closed, or no JSON"))?
        } else {
            value.to_owned()
        };
        if out.insert(key, value).is_some() {
            return Err(bad("this config var is there twice"));
        }
    }
    Ok(out)
}

fn difference(before: &BTreeMap<String, String>, after: BTreeMap<ConfigKey, String>) -> ConfigChanges {
    let gone = before.keys().filter_map(|k| k.parse::<ConfigKey>().ok()).filter(|k| !after.contains_key(k));
    let mut changes: BTreeMap<ConfigKey, Option<Secret>> = gone.map(|k| (k, None)).collect();
    let new = after.into_iter().filter(|(k, v)| before.get(k.as_str()) != Some(v));
    changes.extend(new.map(|(k, v)| (k, Some(Secret::new(v)))));
    ConfigChanges(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let vars: BTreeMap<String, String> =
            [("A", "1"), ("B", "two\nlines"), ("C", " spaces "), ("D", ""), ("E", "\"q\""), ("F", "a=b#c")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        let back = parse(&format!("{HEADER}{}", render(&vars))).unwrap();
        assert!(difference(&vars, back).0.is_empty());
    }

    #[test]
    fn a_change_an_addition_and_a_removal() {
        let before = [("A", "1"), ("B", "2"), ("C", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let changes = difference(&before, parse("A=1\nB=x\n# C=3\nD=4\n").unwrap()).0;
        let said: Vec<_> = changes.iter().map(|(k, v)| format!("{k}:{}", v.as_ref().map_or("-", |v| v.expose()))).collect();
        assert_eq!(said, ["B:x", "C:-", "D:4"]);
    }

    #[test]
    fn mistakes_name_the_line_and_show_no_value() {
        for (text, line) in
            [("A=1\nsecret", "Line 2"), ("1A=secret", "Line 1"), ("A=\"secret", "Line 1"), ("A=1\nA=secret", "Line 2")]
        {
            let e = parse(text).unwrap_err().message;
            assert!(e.contains(line) && !e.contains("secret"), "{e}");
        }
    }
}
