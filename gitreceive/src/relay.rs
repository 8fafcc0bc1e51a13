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
/// `watch` looks for complaints about sizes in the output (for pushes, whose output is small).
pub async fn relay(
    running: Running,
    input: ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    gone: &CancellationToken,
    watch: bool,
) -> io::Result<Ended> {
    let Running { mut child, stdin, stdout, stderr } = running;
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    tokio::spawn(feed(input, stdin, gone.clone(), ended.clone()));
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
async fn feed(mut input: ChannelReadHalf, stdin: ChildStdin, gone: CancellationToken, ended: CancellationToken) {
    let mut stdin = Some(stdin);
    loop {
        let message = tokio::select! {
            message = input.wait() => message,
            () = gone.cancelled() => None,
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                let Some(pipe) = &mut stdin else { continue };
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
