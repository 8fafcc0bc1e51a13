//! `flex exec` and `flex attach`: sessions with what runs already.

use super::run::{as_typed, environment, leave_with};
use crate::args::{Attach, Exec};
use crate::client::Socket;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output;
use crate::terminal::{self, End, Mode};
use flex_api::{CreateAttach, CreateExec, SessionCreated};
use std::process::ExitCode;

/// A name that stands in a path: letters, digits, dots, dashes.
pub fn instance(name: &str) -> Result<&str> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !name.is_empty() && name.chars().all(good) && !name.starts_with('.') {
        Ok(name)
    } else {
        Err(CliError::usage(format!("{name} is no instance.")).hint("Examples: web.1, run.4711. See: flex ps"))
    }
}

/// Starts a command inside an instance.
pub async fn open(cx: &Context, process: &str, body: &CreateExec) -> Result<Socket> {
    let path = cx.path(&format!("/dynos/{}/exec", instance(process)?))?;
    let made: SessionCreated = cx.client.post(&path, body).await?;
    cx.client.websocket(&made.attach_url).await
}

pub async fn exec(cx: &Context, args: &Exec) -> Result<ExitCode> {
    let tty = !args.no_tty && terminal::is_one();
    let env = environment(&args.env, None, tty)?;
    let body = CreateExec { command: as_typed(&args.command), argv: Vec::new(), env, tty };
    let socket = open(cx, &args.process, &body).await?;
    leave_with(terminal::hold(socket, Mode { tty, stdin: true, leaves: false }).await?)
}

pub async fn attach(cx: &Context, args: &Attach) -> Result<ExitCode> {
    let path = cx.path(&format!("/dynos/{}/attach", instance(&args.process)?))?;
    let made: SessionCreated = cx.client.post(&path, &CreateAttach { lines: Some(args.lines) }).await?;
    let stdin = made.stdin && !args.no_stdin;
    let tty = made.tty && stdin && terminal::is_one();
    let socket = cx.client.websocket(&made.attach_url).await?;
    let keys = if tty { "Enter ~." } else { "Ctrl-C" };
    let what = if stdin { "Attached to" } else { "Looking on at" };
    output::say(format!("{what} {}. It goes on when you leave: {keys}", made.name));
    match terminal::hold(socket, Mode { tty, stdin, leaves: true }).await? {
        End::Left => {
            output::say(format!("\nLeft {}; it runs on.", made.name));
            leave_with(End::Exit(0))
        }
        end => leave_with(end),
    }
}
