//! `flex run`: a one-off instance, attached to this terminal or left to itself.
//!
//! The connection is a WebSocket with the messages of `flex_api::run`.

use super::config;
use crate::args::{Run, Runs};
use crate::context::{Context, typed};
use crate::error::{CliError, Result};
use crate::output::{self, Colour, Progress, paint};
use crate::terminal::{self, End, Mode};
use flex_api::{CreateDyno, Dyno, RunInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

pub async fn run(cx: &Context, args: Run) -> Result<ExitCode> {
    let app = cx.app()?;
    let tty = !args.no_tty && !args.detach && terminal::is_one();
    let env = environment(&args.env, args.env_file.as_deref(), tty)?;
    let command = as_typed(&args.command);
    let what = if command.is_empty() { args.r#type.clone().unwrap_or_default() } else { command.clone() };
    let progress = Progress::start(format!("Running {what} on {app}"));
    let body = CreateDyno {
        command,
        attach: !args.detach,
        env,
        size: args.size,
        force_no_tty: Some(!tty),
        kind: args.r#type,
        time_to_live: args.timeout.as_deref().map(seconds).transpose()?,
        tty: args.tty.then_some(true),
    };
    let made: Value = cx.client.post(&format!("/apps/{app}/dynos"), &body).await?;
    let dyno: Dyno = typed(made.clone())?;
    if args.detach {
        progress.done_with(&dyno.name);
        if cx.common.json {
            output::json(&made)?;
        }
        output::say(format!("Its output: flex logs --app {app} --process {}", dyno.name));
        output::say(format!("Look on:    flex attach --app {app} {}", dyno.name));
        return Ok(ExitCode::SUCCESS);
    }
    progress.becomes(&format!("up, {}", dyno.name));
    let url = dyno.attach_url.ok_or_else(|| CliError::failed("The server gave no way to attach."))?;
    let socket = cx.client.websocket(&url).await?;
    let end = terminal::hold(socket, Mode { tty, stdin: true, leaves: false }).await?;
    if let End::Exit(status @ 1..) = end
        && args.exit_code
    {
        output::error(&CliError::failed(format!("Process exited with code {status}")));
    }
    leave_with(end)
}

/// Ends this process: a read of stdin may be waiting in a thread of its own, and would keep it.
pub fn leave_with(end: End) -> ! {
    std::io::stdout().flush().ok();
    std::process::exit(match end {
        End::Exit(status) => status,
        End::Left => 0,
    })
}

/// What is set for one command alone: a file's lines, then `-e`, then what a terminal needs.
pub fn environment(pairs: &[String], file: Option<&Path>, tty: bool) -> Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    if let Some(file) = file {
        let found = config::parse_env(&config::read(file)?);
        let found = found.map_err(|e| CliError::usage(format!("{}: {e}", file.display())))?;
        env.extend(found.into_iter().map(|(k, v)| (k.to_string(), v)));
    }
    if tty {
        env.extend(terminal::environment());
    }
    for (i, pair) in pairs.iter().enumerate() {
        let (key, value) = config::parse_pair(pair, &format!("Variable {} (-e)", i + 1))?;
        env.insert(key.to_string(), value);
    }
    Ok(env)
}

/// `90`, `30s`, `5m`, `2h`, in seconds.
fn seconds(text: &str) -> Result<u64> {
    let bad = || CliError::usage(format!("{text} is no time.")).hint("Examples: 90, 30s, 5m, 2h");
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0);
    seconds.ok_or_else(bad)
}

/// One argument is a command line, as typed; several are words, each kept whole.
pub fn as_typed(words: &[String]) -> String {
    match words {
        [one] => one.clone(),
        many => many.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "),
    }
}

/// Quoted for the shell that runs the command inside the container.
fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(safe) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// One-off commands among the instances, as Heroku heads them.
pub fn print_running(runs: &[&Dyno]) {
    if runs.is_empty() {
        return;
    }
    let now = jiff::Timestamp::now();
    output::line(paint(&format!("=== run: one-off processes ({})", runs.len()), Colour::Blue));
    output::line("");
    for d in runs {
        let state = paint(d.state.name(), Colour::Green);
        output::line(format!("{} ({}): {state} {}: {}", d.name, d.size, output::moment(d.updated_at, now), d.command));
    }
    output::line("");
}

/// `flex runs`.
pub async fn list(cx: &Context, args: &Runs) -> Result<()> {
    let value: Value = cx.client.get_newest(&cx.path("/runs")?, "started_at", args.num).await?;
    let Some(runs) = cx.show_or::<Vec<RunInfo>>(value)? else { return Ok(()) };
    if runs.is_empty() {
        output::say(format!("Nothing was run on {} yet. Try: flex run bash", cx.app()?));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    output::table(&["NAME", "STARTED", "TOOK", "STATUS", "BY", "COMMAND"], &rows);
    Ok(())
}

fn row(r: &RunInfo) -> Vec<String> {
    let took = r.ended_at.map(|end| format!("{}s", end.0.since(r.started_at.0).as_secs()));
    let status = match (r.status, &r.error, r.ended_at) {
        (Some(n), ..) if r.oom => format!("{n} (out of memory)"),
        (Some(n), ..) => n.to_string(),
        (None, Some(why), _) => why.clone(),
        (None, None, Some(_)) => "unknown".into(),
        (None, None, None) => "running".into(),
    };
    let command: String = r.command.chars().take(60).collect();
    vec![r.name.clone(), r.started_at.to_string(), took.unwrap_or_default(), status, r.user.clone(), command]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole() {
        let words = |w: &[&str]| as_typed(&w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["echo $PORT | cat"]), "echo $PORT | cat");
        assert_eq!(words(&["python", "-c", "print('a b')"]), r"python -c 'print('\''a b'\'')'");
        assert_eq!(words(&["rake", "db:migrate", ""]), "rake db:migrate ''");
        assert_eq!(words(&[]), "");
    }

    #[test]
    fn times() {
        let all: Vec<_> = ["90", "30s", "5m", "2h"].iter().map(|t| seconds(t).unwrap()).collect();
        assert_eq!(all, [90, 30, 300, 7200]);
        assert!(["", "0", "x", "5d", "-1", "m"].iter().all(|t| seconds(t).is_err()));
    }
}
