//! The fake's processes: a few words of shell, enough for tests to say what a container does.
//!
//! Statements apart by `;`: `sleep N`, `exit N`, `echo TEXT`, `echo TEXT >&2`, `cat`, `cat FILE`, `true`, `trap '' SIGNALS`,
//! and a loop `while … done`, which never ends. Anything else panics: a test must not believe that it ran.

use crate::{Input, Output, RuntimeError, Session};
use bytes::Bytes;
use futures_util::StreamExt;
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// Where a process reads and writes.
pub(super) struct Pipes {
    /// None: end of file from the start.
    pub(super) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(super) output: mpsc::Sender<Output>,
    /// Signals' numbers.
    pub(super) signals: mpsc::Receiver<i32>,
    pub(super) files: BTreeMap<String, Bytes>,
}

/// Panics, in the test's own task, at a line that the fake cannot run.
pub(super) fn check(line: &str) {
    for statement in statements(line).0 {
        let (word, rest) = statement.split_once(' ').unwrap_or((statement, ""));
        let good = match word {
            "true" | "echo" | "cat" => true,
            "trap" => ignored(rest).is_some(),
            "exit" => rest.parse::<i64>().is_ok(),
            "sleep" => rest.parse::<f64>().is_ok(),
            _ => false,
        };
        assert!(good, "the fake's shell does not know {statement:?} (in {line:?})");
    }
}

/// The signals' numbers in `'' TERM HUP`.
fn ignored(words: &str) -> Option<Vec<i32>> {
    let number = |name| match name {
        "HUP" => Some(1),
        "INT" => Some(2),
        "TERM" => Some(15),
        _ => None,
    };
    words.strip_prefix("''")?.split_whitespace().map(number).collect()
}

/// The statements, and whether an endless loop follows them.
fn statements(line: &str) -> (impl Iterator<Item = &str>, bool) {
    let (script, endless) = match line.split_once("while ") {
        Some((before, _)) => (before, true),
        None => (line, false),
    };
    (script.split(';').map(str::trim).filter(|s| !s.is_empty()), endless)
}

/// Runs a line, which [`check`] has seen, to its exit status; 128+n when a signal ends it.
pub(super) async fn run(line: &str, mut pipes: Pipes) -> i64 {
    let mut deaf = Vec::new();
    let (script, endless) = statements(line);
    for statement in script {
        let (word, rest) = statement.split_once(' ').unwrap_or((statement, ""));
        match word {
            "true" => {}
            "trap" => deaf = ignored(rest).unwrap_or_default(),
            "exit" => return rest.parse().unwrap_or(2),
            "echo" => {
                let piece = match rest.strip_suffix(" >&2") {
                    Some(text) => Output::Stderr(format!("{text}\n").into()),
                    None => Output::Stdout(format!("{rest}\n").into()),
                };
                let _ = pipes.output.send(piece).await;
            }
            "sleep" => {
                if let Some(status) =
                    wait(Some(Duration::from_secs_f64(rest.parse().unwrap_or(0.0))), &deaf, &mut pipes.signals).await
                {
                    return status;
                }
            }
            "cat" if rest.is_empty() => {
                if let Some(status) = copy(&mut pipes, &deaf).await {
                    return status;
                }
            }
            "cat" => match pipes.files.get(rest) {
                Some(bytes) => {
                    let _ = pipes.output.send(Output::Stdout(bytes.clone())).await;
                }
                None => {
                    let text = format!("cat: {rest}: No such file or directory\n");
                    let _ = pipes.output.send(Output::Stderr(text.into())).await;
                    return 1;
                }
            },
            _ => return 127,
        }
    }
    if endless { wait(None, &deaf, &mut pipes.signals).await.unwrap_or(0) } else { 0 }
}

/// Some: a signal ended it.
async fn wait(time: Option<Duration>, deaf: &[i32], signals: &mut mpsc::Receiver<i32>) -> Option<i64> {
    let end = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return None,
            signal = signals.recv() => match signal {
                Some(signal) if signal == 9 || !deaf.contains(&signal) => return Some(128 + i64::from(signal)),
                Some(_) => {}
                // Nobody can signal it any more.
                None => { (&mut end).await; return None; }
            },
        }
    }
}

/// Standard input to standard output, to the end.
async fn copy(pipes: &mut Pipes, deaf: &[i32]) -> Option<i64> {
    let stdin = pipes.stdin.as_mut()?;
    loop {
        tokio::select! {
            piece = stdin.recv() => match piece {
                Some(piece) => { let _ = pipes.output.send(Output::Stdout(piece)).await; }
                None => return None,
            },
            Some(signal) = pipes.signals.recv() => if signal == 9 || !deaf.contains(&signal) { return Some(128 + i64::from(signal)) },
        }
    }
}

/// What a session may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) stdin: bool,
    pub(super) tty: bool,
    /// Ends when both ends of the session were dropped: a job.
    pub(super) needs_client: bool,
}

/// A process with a client. `ended` runs at its end, before the client learns of it.
pub(super) fn session(
    line: String,
    files: BTreeMap<String, Bytes>,
    allowed: Allowed,
    ended: impl FnOnce() + Send + 'static,
) -> Session {
    check(&line);
    let (input, mut from_client) = mpsc::channel::<Input>(32);
    let (to_client, output) = mpsc::channel::<Output>(32);
    let (signal, signals) = mpsc::channel(8);
    let (stdin, from_stdin) = mpsc::channel(32);
    let (exit, exited) = oneshot::channel();
    let gone = to_client.clone();
    let pipes = Pipes { stdin: allowed.stdin.then_some(from_stdin), output: to_client, signals, files };
    let feeder = tokio::spawn(async move {
        let mut stdin = Some(stdin);
        while let Some(message) = from_client.recv().await {
            match message {
                Input::Data(bytes) => {
                    assert!(allowed.stdin, "contract: data was sent to a session without stdin");
                    if let Some(stdin) = &stdin {
                        let _ = stdin.send(bytes).await;
                    }
                }
                Input::Eof => stdin = None,
                Input::Resize(_) => assert!(allowed.tty, "contract: a session without a terminal was resized"),
                Input::Signal(n) => drop(signal.send(n).await),
            }
        }
        drop(stdin);
        if allowed.needs_client {
            gone.closed().await;
            // As a closed terminal does it; what is deaf to that is stopped.
            for n in [1, 15] {
                let _ = signal.send(n).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let _ = signal.send(9).await;
        }
        drop(gone);
        std::future::pending::<()>().await;
        drop(signal);
    });
    tokio::spawn(async move {
        let status = run(&line, pipes).await;
        feeder.abort();
        ended();
        let _ = exit.send(Ok(status));
    });
    let output =
        futures_util::stream::unfold(output, async |mut o| o.recv().await.map(|piece| (Ok::<_, RuntimeError>(piece), o)));
    Session { input, output: output.boxed(), exit: exited, oom: Default::default() }
}
