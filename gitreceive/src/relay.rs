//! Moves bytes between an SSH channel and a git child, with backpressure both ways.
//!
//! Invariants: nothing is buffered beyond one message each way; a client that goes away closes git's input and nothing
//! more, git's output is then read and dropped until it ends by itself.

use crate::git::{self, Complaint, Running};
use bytes::BytesMut;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, server::Msg};
use std::{io, process::ExitStatus, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

/// One read of git's output: eight SSH packets.
const CHUNK: usize = 256 << 10;
/// A grandchild that keeps git's output open (an automatic `gc`) is not waited for longer than this after git has ended.
const AFTER_EXIT: Duration = Duration::from_secs(2);

/// How git ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// What git said about sizes.
    pub complaint: Option<Complaint>,
}

/// Runs the child to its end. `gone` is cancelled by this function or its caller when the client is no longer there.
/// A push has a `first`: it is told the first ref that the push moves as soon as the client names it, and the output (which
/// is small) is watched for complaints about sizes.
pub async fn relay(
    running: Running,
    input: ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    gone: &CancellationToken,
    first: Option<oneshot::Sender<String>>,
) -> io::Result<Ended> {
    let watch = first.is_some();
    let Running { mut child, stdin, stdout, stderr } = running;
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    tokio::spawn(feed(input, stdin, first, gone.clone(), ended.clone()));
    let mut outputs = std::pin::pin!(async {
        let mut complaint = None;
        let seen = |bytes: &[u8]| {
            if watch && complaint.is_none() {
                complaint = git::complaint(bytes);
            }
        };
        let (a, b) = tokio::join!(copy(stdout, output, None, gone, seen), copy(stderr, output, Some(1), gone, |_| {}));
        a.and(b).map(|()| complaint)
    });
    let copied = tokio::select! {
        copied = &mut outputs => copied,
        _ = child.wait() => tokio::time::timeout(AFTER_EXIT, &mut outputs).await.unwrap_or(Ok(None)),
    };
    let complaint = copied.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read git's output");
        None
    });
    let status = child.wait().await?;
    Ok(Ended { status, complaint })
}

/// Client to git. Outlives its input: the channel is read until it closes, because an unread channel stops the connection.
async fn feed(
    mut input: ChannelReadHalf,
    stdin: ChildStdin,
    mut first: Option<oneshot::Sender<String>>,
    gone: CancellationToken,
    ended: CancellationToken,
) {
    let mut stdin = Some(stdin);
    loop {
        let message = tokio::select! {
            message = input.wait() => message,
            () = gone.cancelled() => None,
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                let Some(pipe) = &mut stdin else { continue };
                if let Some(first) = first.take()
                    && let Some(reference) = first_ref(&data)
                {
                    let _ = first.send(reference);
                }
                let written = tokio::select! {
                    written = pipe.write_all(&data) => written.is_ok(),
                    () = ended.cancelled() => false,
                    () = gone.cancelled() => false,
                };
                if !written {
                    stdin = None;
                }
            }
            Some(ChannelMsg::Eof) => stdin = None,
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    gone.cancel();
}

/// The ref that the first command of a push updates: `OLD NEW REF`, a NUL and capabilities, in git's pkt-line format
/// (gitprotocol-pack, "Reference Update Request"). None: nothing is pushed, the ref is deleted, or the line is not whole.
fn first_ref(mut data: &[u8]) -> Option<String> {
    loop {
        let length = usize::from_str_radix(std::str::from_utf8(data.get(..4)?).ok()?, 16).ok()?;
        let line = data.get(4..length)?;
        data = &data[length..];
        if line.starts_with(b"shallow ") {
            continue;
        }
        let command = line.split(|b| *b == 0 || *b == b'\n').next()?;
        let mut words = std::str::from_utf8(command).ok()?.splitn(3, ' ').skip(1);
        let deleted = words.next()?.bytes().all(|b| b == b'0');
        return words.next().filter(|_| !deleted).map(str::to_owned);
    }
}

/// Git to client, on the data stream or as extended data.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
    gone: &CancellationToken,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        seen(&buffer);
        let chunk = buffer.split().freeze();
        if gone.is_cancelled() {
            continue;
        }
        let send = async {
            match extended {
                None => to.data_bytes(chunk).await,
                Some(code) => to.extended_data_bytes(code, chunk).await,
            }
        };
        tokio::select! {
            sent = send => if sent.is_err() { gone.cancel() },
            // Waiting for the window of a client that has gone would be for ever.
            () = gone.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ref_of_a_push() {
        let (zero, a) = ("0".repeat(40), "a".repeat(40));
        let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let command = |new: &str| packet(&format!("{a} {new} refs/heads/main\0 report-status side-band-64k"));
        let first = |text: String| first_ref(text.as_bytes());
        assert_eq!(first(command(&a) + "0000PACK").as_deref(), Some("refs/heads/main"));
        assert_eq!(first(packet(&format!("shallow {a}")) + &command(&a)).as_deref(), Some("refs/heads/main"));
        assert_eq!(first(packet(&format!("{zero} {a} refs/tags/v1"))).as_deref(), Some("refs/tags/v1"));
        for nothing in
            [command(&zero), "0000".into(), "0001".into(), "00ffshort".into(), "zzzz".into(), String::new(), packet("a b")]
        {
            assert_eq!(first(nothing.clone()), None, "{nothing}");
        }
    }
}
