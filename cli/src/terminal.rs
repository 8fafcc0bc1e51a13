//! A session with something that runs elsewhere, on this terminal or in this pipe.
//!
//! Input and output go each at their own pace: a side that does not read stops the other side of its direction alone, and
//! nothing is held beyond a few messages. On a terminal every key goes through as it is (raw mode), and the terminal is as
//! it was before when the session ends, however it ends.

use crate::client::Socket;
use crate::error::{CliError, Result, while_doing};
use flex_api::run::{RunControl, RunEnd, STDERR};
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// Bytes of input in one message.
const PIECE: usize = 32 << 10;
/// Pause between signs of life that the server is given unasked: one that asks while this side's output is not read is not
/// heard, and must not take that for a client that has gone.
pub const ALIVE: Duration = Duration::from_secs(10);
/// Exit status of what Ctrl-C ends.
const INTERRUPTED: i32 = 130;

/// The terminal in raw mode; as it was before when this goes.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(while_doing("read the terminal's settings"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(while_doing("set the terminal"))?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Whether this is a terminal on both sides.
pub fn is_one() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Columns and rows, where there is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let (rows, cols) = console::Term::stdout().size_checked()?;
    (rows > 0 && cols > 0).then_some((cols, rows))
}

/// What a command on a terminal has in its environment.
pub fn environment() -> Vec<(String, String)> {
    let mut env = vec![("TERM".to_owned(), std::env::var("TERM").unwrap_or_else(|_| "xterm".into()))];
    if let Some((cols, rows)) = size() {
        env.push(("COLUMNS".into(), cols.to_string()));
        env.push(("LINES".into(), rows.to_string()));
    }
    env
}

/// How a session is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// This terminal is the other side's.
    pub tty: bool,
    /// What is typed or piped goes there.
    pub stdin: bool,
    /// It goes on without this client: `~.` and Ctrl-C leave it.
    pub leaves: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit status.
    Exit(i32),
    Left,
}

enum Out {
    Data(Vec<u8>),
    Order(RunControl),
    Alive,
}

/// Holds a session to its end.
pub async fn hold(socket: Socket, mode: Mode) -> Result<End> {
    let (to_server, from_server) = socket.split();
    let raw = if mode.tty { Some(Raw::enter()?) } else { None };
    // Of one message each: what is read from a pipe waits there until the server takes it.
    let (data, data_out) = mpsc::channel(1);
    let (orders, orders_out) = mpsc::channel(8);
    let end = tokio::select! {
        end = receive(from_server) => end,
        () = send(to_server, data_out, orders_out, ALIVE) => unreachable_end(),
        end = type_in(mode, data) => end,
        end = watch_signals(mode, orders) => end,
    };
    drop(raw);
    end
}

fn unreachable_end() -> Result<End> {
    Err(lost())
}

fn lost() -> CliError {
    CliError::failed("The connection to the instance was lost.")
        .hint("What was attached is sent SIGHUP then; what must go on: flex run:detached")
}

async fn receive(mut from_server: SplitStream<Socket>) -> Result<End> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match from_server.next().await {
            Some(Ok(Message::Binary(data))) => {
                let Some((stream, bytes)) = data.split_first() else { continue };
                let written = if *stream == STDERR {
                    err.write_all(bytes).await.and(err.flush().await)
                } else {
                    out.write_all(bytes).await.and(out.flush().await)
                };
                written.map_err(while_doing("write the output"))?;
            }
            Some(Ok(Message::Text(text))) => {
                return match serde_json::from_str(&text) {
                    Ok(RunEnd::Exit(status)) => Ok(End::Exit(i32::try_from(status).unwrap_or(1))),
                    Ok(RunEnd::Error(why)) => Err(CliError::failed(why)),
                    Err(_) => Err(lost()),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(lost()),
        }
    }
}

/// Orders overtake data that still waits here. Never ends by itself: how it went is said by what is received.
async fn send(
    mut to_server: impl Sink<Message> + Unpin,
    mut data: mpsc::Receiver<Out>,
    mut orders: mpsc::Receiver<RunControl>,
    pause: Duration,
) {
    let mut alive = tokio::time::interval(pause);
    alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let out = tokio::select! {
            biased;
            Some(order) = orders.recv() => Out::Order(order),
            Some(out) = data.recv() => out,
            _ = alive.tick() => Out::Alive,
        };
        let message = match out {
            Out::Alive => Message::Pong(Vec::new().into()),
            Out::Data(bytes) => Message::Binary(bytes.into()),
            Out::Order(order) => Message::Text(serde_json::to_string(&order).unwrap_or_default().into()),
        };
        if to_server.send(message).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Standard input to the server; ends only with the key that leaves.
async fn type_in(mode: Mode, data: mpsc::Sender<Out>) -> Result<End> {
    if !mode.stdin && !mode.leaves {
        return std::future::pending().await;
    }
    let mut keys = Keys::default();
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = stdin.read(&mut buffer).await.unwrap_or(0);
        if n == 0 {
            // Of what goes on without us the input does not end with ours.
            if mode.stdin && !mode.leaves {
                let _ = data.send(Out::Order(RunControl::Eof(true))).await;
            }
            return std::future::pending().await;
        }
        let (typed, leave) = if mode.leaves { keys.filter(&buffer[..n]) } else { (buffer[..n].to_vec(), false) };
        if mode.stdin && !typed.is_empty() {
            let _ = data.send(Out::Data(typed)).await;
        }
        if leave {
            return Ok(End::Left);
        }
    }
}

/// Sizes and signals. On a terminal in raw mode Ctrl-C is a byte like any other.
async fn watch_signals(mode: Mode, orders: mpsc::Sender<RunControl>) -> Result<End> {
    let watch = |kind| signal(kind).map_err(while_doing("watch for signals"));
    let mut resized = watch(SignalKind::window_change())?;
    let (mut interrupted, mut terminated) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    if let (true, Some((cols, rows))) = (mode.tty && mode.leaves, size()) {
        let _ = orders.send(RunControl::Resize(cols, rows)).await;
    }
    let mut asked = false;
    loop {
        let order = tokio::select! {
            _ = resized.recv() => match size() {
                Some((cols, rows)) if mode.tty => RunControl::Resize(cols, rows),
                _ => continue,
            },
            _ = interrupted.recv() => {
                if mode.leaves {
                    return Ok(End::Left);
                }
                // A second time: it did not help, or does not get through.
                if asked {
                    return Ok(End::Exit(INTERRUPTED));
                }
                asked = true;
                RunControl::Signal(2)
            }
            _ = terminated.recv() => {
                if mode.leaves {
                    return Ok(End::Left);
                }
                RunControl::Signal(15)
            }
        };
        let _ = orders.try_send(order);
    }
}

/// Looks for `~.` at the beginning of a line; `~~` there is one `~`.
#[derive(Debug)]
struct Keys {
    line_begins: bool,
    tilde: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self { line_begins: true, tilde: false }
    }
}

impl Keys {
    /// What goes on, and whether it is time to leave.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if std::mem::take(&mut self.tilde) {
                match byte {
                    b'.' => return (out, true),
                    b'~' => {}
                    _ => out.push(b'~'),
                }
            } else if self.line_begins && *byte == b'~' {
                (self.tilde, self.line_begins) = (true, false);
                continue;
            }
            self.line_begins = matches!(byte, b'\r' | b'\n');
            out.push(*byte);
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_leaves_at_the_beginning_of_a_line_alone() {
        let all = |pieces: &[&str]| {
            let (mut keys, mut out) = (Keys::default(), Vec::new());
            for piece in pieces {
                let (typed, leave) = keys.filter(piece.as_bytes());
                out.extend(typed);
                if leave {
                    return (String::from_utf8(out).unwrap(), true);
                }
            }
            (String::from_utf8(out).unwrap(), false)
        };
        assert_eq!(all(&["~."]), (String::new(), true));
        assert_eq!(all(&["ls\r", "~", ".rest"]), ("ls\r".into(), true));
        assert_eq!(all(&["ls ~.\r"]), ("ls ~.\r".into(), false));
        assert_eq!(all(&["~~.\r"]), ("~.\r".into(), false));
        assert_eq!(all(&["~x\r~~"]), ("~x\r~".into(), false));
    }

    #[tokio::test]
    async fn a_session_gives_signs_of_life_unasked() {
        let (seen, mut sent) = mpsc::channel(1);
        let sink = futures_util::sink::unfold(seen, async |seen: mpsc::Sender<Message>, m| {
            seen.send(m).await.map_err(drop)?;
            Ok::<_, ()>(seen)
        });
        let ((_data, data), (orders, orders_out)) = (mpsc::channel(1), mpsc::channel(1));
        // Nobody reads what the server sends, as when a pager holds back the output.
        let sending = tokio::spawn(send(Box::pin(sink), data, orders_out, Duration::from_millis(10)));
        for _ in 0..3 {
            assert!(matches!(sent.recv().await, Some(Message::Pong(_))));
        }
        orders.send(RunControl::Signal(2)).await.unwrap();
        while !matches!(sent.recv().await.expect("the order"), Message::Text(t) if t.as_str() == r#"{"signal":2}"#) {}
        sending.abort();
    }
}
