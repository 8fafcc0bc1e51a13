//! `flex run`: a one-off instance attached to this terminal.
//!
//! The connection is a WebSocket with the messages of `flex_api::run`.

use crate::args::Run;
use crate::context::{Context, typed};
use crate::error::{CliError, Result, while_doing};
use crate::output::{self, Progress};
use flex_api::run::{RunControl, RunEnd, STDERR};
use flex_api::{CreateDyno, Dyno};
use futures_util::{SinkExt, StreamExt};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::Message;

/// The terminal in raw mode; as it was before when this goes.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(while_doing("read the terminal's settings"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(while_doing("set the terminal"))?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Columns and rows, where there is a terminal.
fn terminal_size() -> Option<(u16, u16)> {
    let (rows, cols) = console::Term::stdout().size_checked()?;
    (rows > 0 && cols > 0).then_some((cols, rows))
}

pub async fn run(cx: &Context, args: Run) -> Result<ExitCode> {
    let app = cx.app()?;
    let tty = !args.no_tty && !args.detach && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut env = BTreeMap::new();
    for pair in &args.env {
        let (key, value) = super::config::parse_pair(pair)?;
        env.insert(key.to_string(), value);
    }
    if tty {
        env.insert("TERM".into(), std::env::var("TERM").unwrap_or_else(|_| "xterm".into()));
        if let Some((cols, rows)) = terminal_size() {
            env.insert("COLUMNS".into(), cols.to_string());
            env.insert("LINES".into(), rows.to_string());
        }
    }
    let command = command_line(&args.command);
    let progress = Progress::start(format!("Running {command} on {app}"));
    let body = CreateDyno { command, attach: !args.detach, env, size: args.size, force_no_tty: Some(!tty) };
    let made: Value = cx.client.post(&format!("/apps/{app}/dynos"), &body).await?;
    let dyno: Dyno = typed(made.clone())?;
    if args.detach {
        progress.done_with(&dyno.name);
        if cx.common.json {
            output::json(&made)?;
        }
        output::say(format!("Its output: flex logs --app {app} --process {}", dyno.name));
        return Ok(ExitCode::SUCCESS);
    }
    progress.done_with(&format!("up, {}", dyno.name));
    let url = dyno.attach_url.ok_or_else(|| CliError::failed("The server gave no way to attach."))?;
    attach(&url, tty).await
}

/// One argument is a command line, as typed; several are words, each kept whole.
fn command_line(words: &[String]) -> String {
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

async fn attach(url: &str, tty: bool) -> Result<ExitCode> {
    let (socket, _) = tokio_tungstenite::connect_async(url).await.map_err(while_doing("attach to the instance"))?;
    let (mut to_server, mut from_server) = socket.split();
    let raw = if tty { Some(Raw::enter()?) } else { None };
    let mut resized = signal(SignalKind::window_change()).map_err(while_doing("watch the terminal's size"))?;
    // On a terminal in raw mode Ctrl-C is a byte like any other; without one, signals are passed on.
    let mut interrupted = signal(SignalKind::interrupt()).map_err(while_doing("watch for signals"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(while_doing("watch for signals"))?;
    let (mut stdin, mut stdin_open, mut buffer) = (tokio::io::stdin(), true, vec![0; 32 << 10]);
    let text = |order: RunControl| Message::Text(serde_json::to_string(&order).unwrap_or_default().into());
    let end = loop {
        tokio::select! {
            message = from_server.next() => match message {
                Some(Ok(Message::Binary(data))) => show(&data)?,
                Some(Ok(Message::Text(t))) => break serde_json::from_str::<RunEnd>(&t).ok(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => break None,
            },
            read = stdin.read(&mut buffer), if stdin_open => {
                let n = read.unwrap_or(0);
                stdin_open = n > 0;
                let message = if n > 0 { Message::Binary(buffer[..n].to_vec().into()) } else { text(RunControl::Eof(true)) };
                if to_server.send(message).await.is_err() { stdin_open = false; }
            },
            _ = resized.recv() => if let (true, Some((cols, rows))) = (tty, terminal_size()) {
                let _ = to_server.send(text(RunControl::Resize(cols, rows))).await;
            },
            _ = interrupted.recv() => { let _ = to_server.send(text(RunControl::Signal(2))).await; },
            _ = terminated.recv() => { let _ = to_server.send(text(RunControl::Signal(15))).await; },
        }
    };
    drop(raw);
    let status = match end.ok_or_else(|| CliError::failed("The connection to the instance was lost."))? {
        RunEnd::Exit(status) => status,
        RunEnd::Error(why) => return Err(CliError::failed(why)),
    };
    // A read of stdin may be waiting in a thread of its own, and would keep the process from ending.
    std::io::stdout().flush().ok();
    std::process::exit(i32::try_from(status).unwrap_or(1));
}

fn show(data: &[u8]) -> Result<()> {
    let Some((stream, bytes)) = data.split_first() else { return Ok(()) };
    let written = if *stream == STDERR {
        std::io::stderr().write_all(bytes)
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    };
    written.map_err(while_doing("write the output"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole() {
        let words = |w: &[&str]| command_line(&w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["echo $PORT | cat"]), "echo $PORT | cat");
        assert_eq!(words(&["python", "-c", "print('a b')"]), r"python -c 'print('\''a b'\'')'");
        assert_eq!(words(&["rake", "db:migrate", ""]), "rake db:migrate ''");
    }
}
