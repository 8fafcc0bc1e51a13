//! What the git receiver asks about apps that run (`ssh flex@HOST run bash -a APP`), answered by the controller. Who may is
//! decided by the API's own table of routes; only names and shapes change here.

use flex_api::{ApiError, ErrorId};
use flex_controller::ports::{RunInput, RunOutput, RunSession};
use flex_controller::{Controller, ExecRequest, RunRequest};
use flex_gitreceive::{Caller, Live, LiveInput, LiveOutput, Refusal, Terminal, Wanted};
use flex_logs::LogQuery;
use flex_model::LogLine;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::bytes::Bytes;

/// The most lines of a log at a time.
const MAX_LINES: usize = 10_000;

fn refused(e: &ApiError) -> Refusal {
    Refusal { lines: e.message.lines().map(str::to_owned).collect() }
}

/// One word is a command line, as typed; several are words, each kept whole for the shell inside the container.
fn as_typed(words: &[String]) -> String {
    let quoted = |w: &String| format!("'{}'", w.replace('\'', r"'\''"));
    match words {
        [one] => one.clone(),
        many => many.iter().map(quoted).collect::<Vec<_>>().join(" "),
    }
}

fn environment(terminal: Option<&Terminal>) -> BTreeMap<String, String> {
    let pairs = |t: &Terminal| {
        [("TERM", t.term.clone()), ("COLUMNS", t.cols.to_string()), ("LINES", t.rows.to_string())].map(|(k, v)| (k.to_owned(), v))
    };
    terminal.map(pairs).into_iter().flatten().collect()
}

pub async fn begin(
    c: &Controller,
    caller: &Caller,
    app: &str,
    wanted: Wanted,
    terminal: Option<Terminal>,
) -> Result<Live, Refusal> {
    open(c, caller, app, wanted, terminal).await.map_err(|e| refused(&e))
}

async fn open(c: &Controller, caller: &Caller, app: &str, wanted: Wanted, terminal: Option<Terminal>) -> Result<Live, ApiError> {
    let (method, path) = match &wanted {
        Wanted::Run { .. } => ("POST", "/apps/{app}/dynos"),
        Wanted::Exec { .. } => ("POST", "/apps/{app}/dynos/{dyno}/exec"),
        Wanted::Attach { .. } => ("POST", "/apps/{app}/dynos/{dyno}/attach"),
        Wanted::Logs { .. } => ("POST", "/apps/{app}/log-sessions"),
        Wanted::Ps => ("GET", "/apps/{app}/dynos"),
    };
    let (actor, app) = c.may(caller.user, app, method, path).await?;
    let actor = actor.at(Some("ssh".into()));
    let mut env = environment(terminal.as_ref());
    match wanted {
        Wanted::Run { words, env: more, size, process } => {
            env.extend(more);
            let wrong = |e: String| ApiError::new(ErrorId::InvalidParams, e);
            let process = process.map(|p| p.parse().map_err(|e: flex_model::Invalid| wrong(e.to_string()))).transpose()?;
            let request = RunRequest { command: as_typed(&words), env, size, process, tty: terminal.is_some(), life: None };
            Ok(live(c.open_run(&actor, &app, request).await?.1))
        }
        Wanted::Exec { instance, words } => {
            let request = ExecRequest { command: as_typed(&words), argv: Vec::new(), env, tty: terminal.is_some() };
            Ok(live(c.open_exec(&actor, &app, &instance, request).await?.1))
        }
        Wanted::Attach { instance } => {
            let attached = c.open_attach(&actor, &app, &instance, None).await?.1;
            let (stdin, tty) = (attached.stdin, attached.tty);
            let mut session = live(attached.session);
            // What has no terminal of its own writes lines that ours would show as stairs.
            if terminal.is_some() && !tty {
                session.output = session.output.map(with_returns).boxed();
            }
            Ok(if stdin { session } else { leaving(session) })
        }
        Wanted::Logs { lines, tail, process } => {
            let query = LogQuery { process, ..LogQuery::newest(lines.min(MAX_LINES)) };
            // A terminal gets what it can show, all else the bytes that were printed.
            let on_terminal = terminal.is_some();
            let shown = move |l: LogLine| printed(if on_terminal { l.to_string().into_bytes() } else { l.to_bytes() });
            let output: BoxStream<'static, LiveOutput> = if tail {
                c.deps.logs.follow(app.id, query).map(shown).boxed()
            } else {
                let found = c.deps.logs.query(app.id, query).await;
                let found = found.map_err(|e| ApiError::new(ErrorId::Unavailable, e.to_string()))?;
                stream::iter(found).map(shown).boxed()
            };
            Ok(told(output, terminal.is_some()))
        }
        Wanted::Ps => {
            let lines = c.ps_lines(&app).await?;
            Ok(told(stream::iter(lines).map(|l| printed(l.into_bytes())).boxed(), terminal.is_some()))
        }
    }
}

fn printed(mut line: Vec<u8>) -> LiveOutput {
    line.push(b'\n');
    LiveOutput::Stdout(Bytes::from(line))
}

/// A client's terminal is raw: a line's end alone does not lead back to its beginning.
fn with_returns(piece: LiveOutput) -> LiveOutput {
    let fixed = |bytes: &Bytes| {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for b in bytes {
            if *b == b'\n' {
                out.push(b'\r');
            }
            out.push(*b);
        }
        Bytes::from(out)
    };
    match piece {
        LiveOutput::Stdout(b) => LiveOutput::Stdout(fixed(&b)),
        LiveOutput::Stderr(b) => LiveOutput::Stderr(fixed(&b)),
    }
}

/// Something to read, and nothing to type but Ctrl-C.
fn told(output: BoxStream<'static, LiveOutput>, terminal: bool) -> Live {
    let output = if terminal { output.map(with_returns).boxed() } else { output };
    leaving(Live { input: mpsc::channel(1).0, output, exit: oneshot::channel().1 })
}

/// Ctrl-C at what takes no input leaves it, and so does its end; both are well.
fn leaving(live: Live) -> Live {
    let Live { input: kept, output, .. } = live;
    let (input, mut typed) = mpsc::channel(8);
    let (left, leave) = oneshot::channel::<()>();
    tokio::spawn(async move {
        while let Some(order) = typed.recv().await {
            match order {
                LiveInput::Data(bytes) if bytes.contains(&3) => break,
                LiveInput::Signal(2 | 15) => break,
                _ => {}
            }
        }
        // Dropping it earlier would be taken for the client's going.
        drop(kept);
        let _ = left.send(());
    });
    let (done, exit) = oneshot::channel();
    let _ = done.send(Ok(0));
    Live { input, output: output.take_until(leave).boxed(), exit }
}

fn live(session: RunSession) -> Live {
    let RunSession { input: to_app, output, exit, .. } = session;
    let (input, mut orders) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            let order = match order {
                LiveInput::Data(bytes) => RunInput::Data(bytes),
                LiveInput::Eof => RunInput::Eof,
                LiveInput::Resize(cols, rows) => RunInput::Resize(cols, rows),
                LiveInput::Signal(n) => RunInput::Signal(n),
            };
            let sent = tokio::select! {
                sent = to_app.send(order) => sent,
                () = crate::runs::gone(&orders) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    });
    let output = output.filter_map(|piece| async move {
        match piece {
            Ok(RunOutput::Stdout(bytes)) => Some(LiveOutput::Stdout(bytes)),
            Ok(RunOutput::Stderr(bytes)) => Some(LiveOutput::Stderr(bytes)),
            // How it ended says what was wrong.
            Err(_) => None,
        }
    });
    Live { input, output: output.boxed(), exit }
}
