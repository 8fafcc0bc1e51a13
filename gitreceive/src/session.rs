//! `ssh -t flex@HOST run bash -a APP` and its like: what a command over SSH may ask of an app, and the bytes both ways.
//!
//! Invariants: a command becomes one of the variants of [`Wanted`], its words an argument vector; the gate says who may, and
//! does it; nothing is run here. A client that goes takes its session with it, for dropping [`Live`] ends it.

use crate::{Caller, Gate, Refusal, text, words};
use bytes::Bytes;
use flex_model::AppName;
use futures_util::{StreamExt, stream::BoxStream};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, server::Msg};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// The longest command, in bytes.
pub const MAX_COMMAND: usize = 32 << 10;
/// Lines of the log, unless the client says otherwise.
const LINES: usize = 100;

/// A client's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    pub term: String,
    pub cols: u16,
    pub rows: u16,
}

/// What a client wants of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A one-off command: one word is a command line, several are words.
    Run {
        words: Vec<String>,
        env: BTreeMap<String, String>,
        size: Option<String>,
        process: Option<String>,
    },
    /// A command inside an instance; none: a shell.
    Exec {
        instance: String,
        words: Vec<String>,
    },
    /// Looking on at an instance.
    Attach {
        instance: String,
    },
    Logs {
        lines: usize,
        tail: bool,
        process: Option<String>,
    },
    Ps,
}

/// To a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveInput {
    Data(Bytes),
    Eof,
    /// Columns, rows.
    Resize(u16, u16),
    /// A signal's number.
    Signal(i32),
}

/// From a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveOutput {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A session under way; dropping it ends what it is with.
pub struct Live {
    pub input: mpsc::Sender<LiveInput>,
    pub output: BoxStream<'static, LiveOutput>,
    /// Exit status, after the last output; or why there is none.
    pub exit: oneshot::Receiver<Result<i64, String>>,
}

/// Reads `run`, `exec`, `attach`, `logs` and `ps` with their options and `-a APP`. None: it is none of these. `Err` is a
/// line for the user.
pub fn parse(command: &str) -> Option<Result<(AppName, Wanted), String>> {
    let verb = command.trim_start_matches(' ').split(' ').next()?;
    if !matches!(verb, "run" | "exec" | "attach" | "logs" | "ps") {
        return None;
    }
    Some(match words::split(command) {
        Some(words) => read(words),
        None => Err("A quote is not closed in this command.".into()),
    })
}

fn read(words: Vec<String>) -> Result<(AppName, Wanted), String> {
    let mut words = words.into_iter();
    let verb = words.next().unwrap_or_default();
    let mut rest: Vec<String> = words.collect();
    let mut app = None;
    // As with flex itself: an -a APP that ends the command is ours, unless -- stands before it.
    if !rest.iter().any(|w| w == "--") && rest.len() >= 2 && matches!(rest[rest.len() - 2].as_str(), "-a" | "--app") {
        app = rest.pop();
        rest.pop();
    }
    let mut options = Options::default();
    let mut command = Vec::new();
    let mut rest = rest.into_iter();
    while let Some(word) = rest.next() {
        let mut value = |name: &str| rest.next().ok_or_else(|| format!("{name} wants a value."));
        match (verb.as_str(), word.as_str()) {
            (_, "-a" | "--app") => app = Some(value(&word)?),
            ("run", "-e" | "--env") => {
                let pair = value(&word)?;
                let (k, v) = pair.split_once('=').ok_or_else(|| "-e wants KEY=VALUE.".to_owned())?;
                options.env.insert(k.to_owned(), v.to_owned());
            }
            ("run", "-s" | "--size") => options.size = Some(value(&word)?),
            ("run", "--type") => options.process = Some(value(&word)?),
            ("exec" | "logs", "-p" | "--process") => options.process = Some(value(&word)?),
            ("logs", "-t" | "--tail") => options.tail = true,
            ("logs", "-n" | "--num") => {
                options.lines = value(&word)?.parse().map_err(|_| "-n wants a number.".to_owned())?;
            }
            ("run" | "exec", "--") => {
                command.extend(rest);
                break;
            }
            (_, option) if option.starts_with('-') => {
                return Err(format!("{verb} does not know {}.", crate::exec::printable(option.as_bytes())));
            }
            ("run" | "exec", _) => {
                command.push(word);
                command.extend(rest);
                break;
            }
            ("attach", _) if options.process.is_none() => options.process = Some(word),
            _ => return Err(format!("{verb} does not know {}.", crate::exec::printable(word.as_bytes()))),
        }
    }
    let app = app.ok_or_else(|| format!("Which app? Say it: {verb} ... -a APP"))?;
    let app = app.parse().map_err(|_| format!("{} is no app's name.", crate::exec::printable(app.as_bytes())))?;
    let Options { env, size, process, tail, lines } = options;
    let wanted = match verb.as_str() {
        "run" if command.is_empty() && process.is_none() => return Err("Give a command to run.".into()),
        "run" => Wanted::Run { words: command, env, size, process },
        "exec" => Wanted::Exec { instance: process.unwrap_or_else(|| "web.1".into()), words: command },
        "attach" => Wanted::Attach { instance: process.ok_or("attach wants an instance: attach web.1 -a APP")? },
        "logs" => Wanted::Logs { lines: if lines == 0 { LINES } else { lines }, tail, process },
        _ => Wanted::Ps,
    };
    Ok((app, wanted))
}

#[derive(Default)]
struct Options {
    env: BTreeMap<String, String>,
    size: Option<String>,
    process: Option<String>,
    tail: bool,
    lines: usize,
}

/// What a session needs besides its channel.
pub struct Asked {
    pub caller: Caller,
    pub app: AppName,
    pub wanted: Wanted,
    pub terminal: Option<Terminal>,
}

/// Holds a session to its end: last lines to say, and the exit status.
pub async fn hold(
    gate: &dyn Gate,
    asked: Asked,
    input: ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    gone: &CancellationToken,
    closing: &CancellationToken,
) -> Result<(Vec<String>, u32), Refusal> {
    let Asked { caller, app, wanted, terminal } = asked;
    let live = gate.session(&caller, app.as_str(), wanted, terminal).await?;
    let Live { input: to_app, output: mut from_app, exit } = live;
    // Outlives the session: a channel that nobody reads stops its connection.
    tokio::spawn(feed(input, to_app, gone.clone()));
    let show = async {
        while let Some(piece) = from_app.next().await {
            let sent = match piece {
                LiveOutput::Stdout(bytes) => output.data_bytes(bytes).await,
                LiveOutput::Stderr(bytes) => output.extended_data_bytes(1, bytes).await,
            };
            if sent.is_err() {
                return None;
            }
        }
        Some(exit.await.unwrap_or_else(|_| Err("its container was lost".into())))
    };
    tokio::select! {
        ended = show => Ok(match ended {
            Some(Ok(status)) => (Vec::new(), u32::try_from(status).unwrap_or(255)),
            Some(Err(why)) => (vec![why], 1),
            None => (Vec::new(), 255),
        }),
        () = gone.cancelled() => Ok((Vec::new(), 255)),
        () = closing.cancelled() => Err(text::restarting()),
    }
}

/// Client to app.
async fn feed(mut input: ChannelReadHalf, to_app: mpsc::Sender<LiveInput>, gone: CancellationToken) {
    let mut to_app = Some(to_app);
    loop {
        let message = tokio::select! {
            message = input.wait() => message,
            () = gone.cancelled() => None,
        };
        let order = match message {
            Some(ChannelMsg::Data { data }) => LiveInput::Data(data),
            Some(ChannelMsg::Eof) => LiveInput::Eof,
            Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => LiveInput::Resize(side(col_width), side(row_height)),
            Some(ChannelMsg::Signal { signal }) => match number(&signal) {
                Some(n) => LiveInput::Signal(n),
                None => continue,
            },
            Some(ChannelMsg::Close) | None => break,
            Some(_) => continue,
        };
        if let Some(to) = &to_app {
            let sent = tokio::select! {
                sent = to.send(order) => sent.is_ok(),
                () = gone.cancelled() => false,
            };
            if !sent {
                to_app = None;
            }
        }
    }
    gone.cancel();
}

/// A terminal's side, whatever a client says.
pub fn side(n: u32) -> u16 {
    u16::try_from(n.clamp(1, 10_000)).unwrap_or(80)
}

fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ABRT => 6,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn what_may_be_asked() {
        let ok = |line: &str| parse(line).unwrap().unwrap();
        let app: AppName = "shop".parse().unwrap();
        let run = |w: &[&str]| Wanted::Run { words: words(w), env: BTreeMap::new(), size: None, process: None };
        assert_eq!(ok("run bash -a shop"), (app.clone(), run(&["bash"])));
        assert_eq!(ok("run -a shop 'echo $X | cat'"), (app.clone(), run(&["echo $X | cat"])));
        assert_eq!(ok("run -a shop ls -la"), (app.clone(), run(&["ls", "-la"])));
        assert_eq!(ok("run -a shop -- ls -a x"), (app.clone(), run(&["ls", "-a", "x"])));
        assert_eq!(ok("run -a shop ; id"), (app.clone(), run(&[";", "id"])));
        let Wanted::Run { env, size, .. } = ok("run -e A='b c' --size 1G x -a shop").1 else { panic!() };
        assert_eq!((env["A"].as_str(), size.as_deref()), ("b c", Some("1G")));
        assert_eq!(ok("exec -p web.2 ps -a shop").1, Wanted::Exec { instance: "web.2".into(), words: words(&["ps"]) });
        assert_eq!(ok("attach run.17 -a shop").1, Wanted::Attach { instance: "run.17".into() });
        assert_eq!(ok("logs -t -n 5 -a shop").1, Wanted::Logs { lines: 5, tail: true, process: None });
        assert_eq!(ok("ps -a shop").1, Wanted::Ps);
    }

    #[test]
    fn what_may_not() {
        for line in ["sh", "bash", "runs x -a shop", "RUN x -a shop", "", "scp -t /", "run\tx"] {
            assert!(parse(line).is_none(), "{line}");
        }
        for line in [
            "run -a shop",
            "run x",
            "run x -a ../y",
            "run 'x -a shop",
            "ps x -a shop",
            "logs -n x -a shop",
            "exec --root x -a shop",
        ] {
            assert!(parse(line).unwrap().is_err(), "{line}");
        }
    }
}
