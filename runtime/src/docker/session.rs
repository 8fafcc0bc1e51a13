//! A running command's streams: moves bytes both ways between the engine and a [`Session`], then fetches the exit status.
//!
//! Invariants: a client that reads slowly slows the command and costs no memory; a client that goes (drops both ends) ends
//! a job and an attended exec, by SIGHUP first, as a closed terminal does; the exit status comes after the last output was
//! taken. Who attached to what runs anyway is different: its connection is always read, so that it slows nobody, and what
//! it does not take in time is left out and counted.

use super::{
    Claim, Inner,
    engine::QUICK,
    hijack::{Frames, Hijacked},
};
use crate::{Input, Output, RuntimeError, Session, TtySize};
use bollard::query_parameters::{KillContainerOptionsBuilder, ResizeContainerTTYOptionsBuilder, ResizeExecOptionsBuilder};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{mpsc, oneshot},
};

/// Pieces of output or input under way; each at most [`READ`] bytes.
const PIECES: usize = 32;
const READ: usize = 32 * 1024;
/// Pieces that an attached client may be behind: 8 MiB.
const BEHIND: usize = 256;
/// What a process that was sent SIGHUP may take to end by itself.
pub(super) const HANG_UP: Duration = Duration::from_secs(3);
/// For so long a container may run on after an attached connection ended, before that counts as broken.
const STILL_RUNNING: Duration = Duration::from_secs(2);
/// For so long an engine that went away may come back and still tell how the command ended.
const LOST: Duration = Duration::from_secs(60);

/// For so long the engine may not know the number of a process that it started.
pub(super) const NUMBERED: Duration = Duration::from_secs(2);

/// What runs.
#[derive(Debug, Clone)]
pub(crate) enum Process {
    /// An exec's id, and whether it ends with its client.
    Exec(String, bool),
    /// The id of a container that runs whoever looks on.
    Attached(String),
    /// A job's container id and stop grace in seconds.
    Job(String, u32),
}

/// Starts moving the streams of a process that was started with them attached. A job's claim is held to its removal.
pub(super) fn run(inner: Arc<Inner>, process: Process, conn: Hijacked, tty: bool, stdin: bool, claim: Option<Claim>) -> Session {
    let (input, from_client) = mpsc::channel(PIECES);
    let attached = matches!(process, Process::Attached(_));
    let (to_client, output) = mpsc::channel(if attached { BEHIND } else { PIECES });
    let (drained_tx, drained) = oneshot::channel();
    let (exit_tx, exit) = oneshot::channel();
    let oom = Arc::new(AtomicBool::new(false));
    let hit = oom.clone();
    let (read, write) = conn.stream.into_split();
    let number = match &process {
        Process::Exec(id, true) => Some(inner.learn_number(id)),
        _ => None,
    };
    let early = conn.early;
    tokio::spawn(async move {
        let feeder = tokio::spawn(feed(inner.clone(), process.clone(), write, from_client, to_client.clone(), (stdin, tty)));
        let broken = if attached { watch(read, early, tty, to_client).await } else { pump(read, early, tty, to_client).await };
        feeder.abort();
        let status = ended(&inner, &process, &hit).await;
        // The engine that knew it is gone, and its client with it.
        let lost = number.and_then(|n| n.get().copied()).filter(|_| status.is_err());
        // Removing takes the engine longer than many a command runs: nobody waits for it.
        let remove = async {
            if let Process::Job(id, _) = &process {
                inner.remove_container(id).await;
            }
            if let Some(lost) = lost {
                lost.end().await;
            }
            drop(claim);
        };
        let tell = async {
            // Resolves also when the output was dropped unread.
            let _ = drained.await;
            let _ = exit_tx.send(match (status, broken) {
                (Ok(status), _) => Ok(status),
                (Err(e), None) => Err(e),
                (Err(e), Some(io)) => Err(RuntimeError::Unavailable(format!("{e}; its streams broke: {io}"))),
            });
        };
        tokio::join!(remove, tell);
    });
    let output = Drained { output, drained: Some(drained_tx) };
    Session { input, output: output.boxed(), exit, oom }
}

/// The client's end of the output; tells when all of it was taken, or the client went.
struct Drained {
    output: mpsc::Receiver<Result<Output, RuntimeError>>,
    drained: Option<oneshot::Sender<()>>,
}

impl Stream for Drained {
    type Item = Result<Output, RuntimeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.output.poll_recv(cx);
        if let Poll::Ready(None) = next
            && let Some(drained) = self.drained.take()
        {
            let _ = drained.send(());
        }
        next
    }
}

/// Engine to client, until the engine closes. Without a client it reads on, so that the command is not blocked.
async fn pump(
    mut read: OwnedReadHalf,
    mut buffer: BytesMut,
    tty: bool,
    to_client: mpsc::Sender<Result<Output, RuntimeError>>,
) -> Option<std::io::Error> {
    let mut frames = Frames::default();
    loop {
        if tty {
            if !buffer.is_empty() {
                let _ = to_client.send(Ok(Output::Stdout(buffer.split().freeze()))).await;
            }
        } else {
            while let Some((is_err, piece)) = frames.next(&mut buffer) {
                let piece = if is_err { Output::Stderr(piece) } else { Output::Stdout(piece) };
                let _ = to_client.send(Ok(piece)).await;
            }
        }
        buffer.reserve(READ);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) => return Some(e),
        }
    }
}

/// Engine to a client that looks on: never waits for it.
async fn watch(
    mut read: OwnedReadHalf,
    mut buffer: BytesMut,
    tty: bool,
    to_client: mpsc::Sender<Result<Output, RuntimeError>>,
) -> Option<std::io::Error> {
    let mut frames = Frames::default();
    let mut skipped = 0_usize;
    let mut give = |piece: Output| {
        let (Output::Stdout(bytes) | Output::Stderr(bytes)) = &piece;
        let size = bytes.len();
        if skipped > 0 && to_client.capacity() > BEHIND / 2 {
            let note = format!("\r\n[{skipped} bytes were left out: this connection is too slow]\r\n");
            let _ = to_client.try_send(Ok(Output::Stderr(note.into())));
            skipped = 0;
        }
        if skipped > 0 || matches!(to_client.try_send(Ok(piece)), Err(mpsc::error::TrySendError::Full(_))) {
            skipped += size;
        }
        !to_client.is_closed()
    };
    loop {
        if tty {
            if !buffer.is_empty() && !give(Output::Stdout(buffer.split().freeze())) {
                return None;
            }
        } else {
            while let Some((is_err, piece)) = frames.next(&mut buffer) {
                if !give(if is_err { Output::Stderr(piece) } else { Output::Stdout(piece) }) {
                    return None;
                }
            }
        }
        buffer.reserve(READ);
        let got = tokio::select! {
            got = read.read_buf(&mut buffer) => got,
            () = to_client.closed() => return None,
        };
        match got {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) => return Some(e),
        }
    }
}

/// Resolves when the client has dropped both its ends.
async fn abandoned(to_client: &mpsc::Sender<Result<Output, RuntimeError>>, from_client: &mpsc::Receiver<Input>) {
    to_client.closed().await;
    // There is nothing to wait for but the last sender.
    while !from_client.is_closed() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a write has taken off the front.
fn took(pending: &mut VecDeque<Bytes>, open: &mut bool, written: &std::io::Result<usize>) {
    match written {
        Ok(n) => {
            let left = pending.front_mut().map_or(0, |b| {
                bytes::Buf::advance(b, *n);
                b.len()
            });
            if left == 0 {
                pending.pop_front();
            }
        }
        // The command closed its input; what else is meant for it has nowhere to go.
        Err(_) => {
            pending.clear();
            *open = false;
        }
    }
}

/// Client to engine. Signals and sizes overtake data that the command does not read.
async fn feed(
    inner: Arc<Inner>,
    process: Process,
    mut write: OwnedWriteHalf,
    mut from_client: mpsc::Receiver<Input>,
    to_client: mpsc::Sender<Result<Output, RuntimeError>>,
    (stdin, tty): (bool, bool),
) {
    let mut pending: VecDeque<Bytes> = VecDeque::new();
    let mut open = stdin;
    let mut ending = false;
    loop {
        if ending && open && pending.is_empty() {
            end_input(&mut write, tty).await;
            open = false;
        }
        if pending.len() >= PIECES {
            // A command that does not read: a client that has gone is noticed all the same.
            let front = pending.front().cloned().unwrap_or_default();
            tokio::select! {
                written = write.write(&front) => took(&mut pending, &mut open, &written),
                () = abandoned(&to_client, &from_client) => break,
            }
            continue;
        }
        let front = pending.front().cloned().unwrap_or_default();
        tokio::select! {
            message = from_client.recv() => match message {
                Some(Input::Data(bytes)) if open && !ending && !bytes.is_empty() => pending.push_back(bytes),
                Some(Input::Data(_)) => {}
                Some(Input::Eof) => ending = true,
                Some(Input::Resize(size)) => resize(&inner, &process, size).await,
                Some(Input::Signal(signal)) => signal_to(&inner, &process, signal).await,
                None => break,
            },
            written = write.write(&front), if !pending.is_empty() => took(&mut pending, &mut open, &written),
        }
    }
    if matches!(process, Process::Attached(_)) {
        // What it looked on at goes on, and so does its input.
        return std::future::pending().await;
    }
    while let (true, Some(bytes)) = (open, pending.pop_front()) {
        tokio::select! {
            written = write.write_all(&bytes) => open = written.is_ok(),
            () = to_client.closed() => break,
        }
    }
    if open {
        let _ = tokio::time::timeout(HANG_UP, end_input(&mut write, tty)).await;
    }
    // This task is ended from outside as soon as the process has ended.
    match &process {
        Process::Job(id, grace) => {
            to_client.closed().await;
            signal_to(&inner, &process, 1).await;
            tokio::time::sleep(HANG_UP).await;
            inner.stop_container(id, *grace).await;
        }
        Process::Exec(_, true) => {
            to_client.closed().await;
            for signal in [1, 15, 9] {
                signal_to(&inner, &process, signal).await;
                tokio::time::sleep(HANG_UP).await;
            }
        }
        Process::Exec(_, false) | Process::Attached(_) => {}
    }
    // The write half stays until the end: dropping it would be a shutdown, which a command without stdin must not get.
    std::future::pending::<()>().await;
}

/// Lets the command see the end of its input while its output still flows. Half a close does it, but makes the engine
/// cut a terminal's output too; there it is Ctrl-D, as sshd does it.
async fn end_input(write: &mut OwnedWriteHalf, tty: bool) {
    let _ = if tty { write.write_all(b"\x04").await } else { write.shutdown().await };
}

/// Tells a process its terminal's size. Best effort: it may just have ended.
pub(crate) async fn resize(inner: &Inner, process: &Process, size: TtySize) {
    let doing = "resizing a terminal";
    let (rows, cols) = (i32::from(size.rows), i32::from(size.cols));
    let done = match process {
        Process::Exec(id, _) => {
            let options = ResizeExecOptionsBuilder::default().h(rows).w(cols).build();
            inner.engine.call(doing, QUICK, async |d| d.resize_exec(id, options).await).await
        }
        Process::Job(id, _) | Process::Attached(id) => {
            let options = ResizeContainerTTYOptionsBuilder::default().h(rows).w(cols).build();
            inner.engine.call(doing, QUICK, async |d| d.resize_container_tty(id, options).await).await
        }
    };
    if let Err(e) = done {
        tracing::debug!(error = %e, "a terminal was not resized");
    }
}

pub(super) async fn signal_to(inner: &Inner, process: &Process, signal: i32) {
    let result = match process {
        Process::Exec(id, _) => signal_exec(inner, id, signal).await,
        // Who looks on at an instance does not end it.
        Process::Attached(_) => Ok(()),
        Process::Job(id, _) => {
            let options = KillContainerOptionsBuilder::default().signal(&signal.to_string()).build();
            inner.engine.call("sending a signal", QUICK, async |d| d.kill_container(id, Some(options)).await).await
        }
    };
    if let Err(e) = result {
        tracing::debug!(error = %e, signal, "a signal was not delivered");
    }
}

/// The engine cannot signal an exec's process, but tells its number on this host.
async fn signal_exec(inner: &Inner, id: &str, signal: i32) -> Result<(), RuntimeError> {
    let signal =
        nix::sys::signal::Signal::try_from(signal).map_err(|e| RuntimeError::Refused(format!("signal {signal}: {e}")))?;
    let Some(pid) = inner.number_of(id).await? else { return Ok(()) };
    // It leads a session of its own: what it started hears of it too, as at a terminal.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal)
        .or_else(|_| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal))
        .map_err(|e| RuntimeError::Refused(format!("sending {signal} to process {pid}: {e}")))
}

/// Waits until it has ended. The streams close a moment before the engine knows the status.
async fn ended(inner: &Inner, process: &Process, oom: &AtomicBool) -> Result<i64, RuntimeError> {
    let mut pause = Duration::from_millis(2);
    let mut silent_since = None;
    let since_start = tokio::time::Instant::now();
    loop {
        let status = match process {
            Process::Exec(id, _) => {
                let exec = inner.engine.call("asking how a command ended", QUICK, async |d| d.inspect_exec(id).await).await;
                exec.map(|e| if e.running == Some(true) { None } else { Some(e.exit_code.unwrap_or(-1)) })
            }
            Process::Job(id, _) | Process::Attached(id) => {
                let doing = "asking how a container ended";
                let c = inner.engine.call(doing, QUICK, async |d| d.inspect_container(id, None).await).await;
                c.map(|c| {
                    let state = c.state.unwrap_or_default();
                    oom.store(state.oom_killed == Some(true), Ordering::Relaxed);
                    if state.running == Some(true) { None } else { Some(state.exit_code.unwrap_or(-1)) }
                })
            }
        };
        match status {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if matches!(process, Process::Attached(_)) && since_start.elapsed() > STILL_RUNNING => {
                return Err(RuntimeError::Unavailable("the connection to it broke; it runs on".into()));
            }
            Ok(None) => {
                if let (Some(_), Process::Job(id, grace)) = (silent_since, process) {
                    // It outlived the engine that its streams went through; nobody can follow it any more.
                    inner.stop_container(id, *grace).await;
                }
            }
            Err(e @ RuntimeError::Unavailable(_)) => {
                let since = *silent_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > LOST {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
