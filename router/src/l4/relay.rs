//! Moves bytes both ways between two connections until both have ended.
//!
//! A half that ends is passed on as an end of that half alone; a connection that breaks breaks the other, so that nobody
//! takes a cut-off stream for a whole one. Nothing is kept for a connection that is quiet.

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

/// Large enough that a system call's cost no longer shows.
const SCRATCH: usize = 256 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides ended their halves.
    Whole,
    /// The client's connection broke.
    Client,
    /// The instance's connection broke.
    Instance,
    /// Nothing moved for too long.
    Idle,
    /// The router ends.
    Cut,
}

/// Bytes moved, from the client and to it.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) from_client: AtomicU64,
    pub(super) to_client: AtomicU64,
}

/// Moves bytes until the end. `ahead` was read from the client already.
pub(super) async fn relay(client: &TcpStream, instance: &TcpStream, ahead: &[u8], idle: Duration, moved: &Moved) -> End {
    let up = async {
        if write_all(instance, ahead).await.is_err() {
            return Err(End::Instance);
        }
        moved.from_client.fetch_add(ahead.len() as u64, Relaxed);
        one_way(client, instance, &moved.from_client).await.map_err(|broken| match broken {
            Broken::From => End::Client,
            Broken::To => End::Instance,
        })
    };
    let down = async {
        one_way(instance, client, &moved.to_client).await.map_err(|broken| match broken {
            Broken::From => End::Instance,
            Broken::To => End::Client,
        })
    };
    let end = tokio::select! {
        both = async { tokio::try_join!(up, down) } => both.map_or_else(|e| e, |_| End::Whole),
        () = while_moving(moved, idle) => End::Idle,
    };
    if end != End::Whole {
        reset(client);
        reset(instance);
    }
    end
}

/// Ends when nothing moved for `idle`.
pub(super) async fn while_moving(moved: &Moved, idle: Duration) {
    let sum = || moved.from_client.load(Relaxed) + moved.to_client.load(Relaxed);
    let (mut seen, mut since) = (sum(), Instant::now());
    loop {
        tokio::time::sleep_until((since + idle).into()).await;
        // Looked at once a period: something that moved early in it gets between one and two of them.
        if sum() == seen {
            return;
        }
        (seen, since) = (sum(), Instant::now());
    }
}

enum Broken {
    From,
    To,
}

/// Until `from` ends; then `to` is told so.
async fn one_way(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> Result<(), Broken> {
    loop {
        from.readable().await.map_err(|_| Broken::From)?;
        // Straight from the thread's buffer, so that only what the receiver does not take at once is kept.
        let step = BUFFER.with_borrow_mut(|buf| {
            let n = from.try_read(buf)?;
            let sent = if n == 0 { 0 } else { accept_blocked(to.try_write(&buf[..n])).map_err(|_| io::ErrorKind::BrokenPipe)? };
            Ok::<_, io::Error>((n, buf[sent..n].to_vec()))
        });
        match step {
            Ok((0, _)) => break,
            Ok((n, rest)) => {
                write_all(to, &rest).await.map_err(|_| Broken::To)?;
                moved.fetch_add(n as u64, Relaxed);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(Broken::To),
            Err(_) => return Err(Broken::From),
        }
    }
    shutdown(to.as_raw_fd(), Shutdown::Write).map_err(|_| Broken::To)
}

fn accept_blocked(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Writes all of it, waiting as often as need be.
pub(super) async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        let n = accept_blocked(to.try_write(bytes))?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Closing will send a reset, not an end.
pub(super) fn reset(stream: &TcpStream) {
    let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&stream.as_fd(), sockopt::Linger, &now);
}

/// Finds out about peers that vanished without a word, well before the idle time of a database's connections.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let _ = setsockopt(&stream.as_fd(), sockopt::KeepAlive, &true);
    let _ = setsockopt(&stream.as_fd(), sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(&stream.as_fd(), sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(&stream.as_fd(), sockopt::TcpKeepCount, &4);
}
