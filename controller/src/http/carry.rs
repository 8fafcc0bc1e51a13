//! Bytes between a WebSocket and a session, each way in a task's own time: a side that is slow stops the other side of its
//! own direction alone, and nothing is held beyond a few messages.

use crate::ports::{RunInput, RunOutput, RunSession};
use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use flex_api::run::{RunControl, RunEnd, STDERR, STDOUT};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Pause between signs of life that a client is asked for.
const PING: Duration = Duration::from_secs(10);
/// So many in a row without an answer, and it has gone.
const UNANSWERED: u32 = 4;
/// Bytes read from a connection at a time.
const READ: usize = 64 << 10;

type Sink = SplitSink<WebSocket, Message>;

/// Whether the session came to its end; otherwise its client has gone, and dropping the session (done here) ends it.
pub async fn session(socket: WebSocket, session: RunSession) -> bool {
    let RunSession { input, mut output, exit } = session;
    let (mut to_client, from_client) = socket.split();
    let silent = AtomicU32::new(0);
    let send = async {
        let mut ping = tokio::time::interval(PING);
        ping.tick().await;
        loop {
            tokio::select! {
                piece = output.next() => {
                    let message = match piece {
                        Some(Ok(RunOutput::Stdout(data))) => framed(STDOUT, &data),
                        Some(Ok(RunOutput::Stderr(data))) => framed(STDERR, &data),
                        Some(Err(_)) | None => break,
                    };
                    if to_client.send(message).await.is_err() {
                        return false;
                    }
                }
                _ = ping.tick() => if !still_there(&mut to_client, &silent).await { return false },
            }
        }
        let end = match exit.await {
            Ok(Ok(status)) => RunEnd::Exit(status),
            Ok(Err(e)) => RunEnd::Error(e),
            Err(_) => RunEnd::Error("the container was lost".into()),
        };
        if let Ok(text) = serde_json::to_string(&end) {
            let _ = to_client.send(Message::Text(text.into())).await;
        }
        let _ = to_client.send(Message::Close(None)).await;
        true
    };
    tokio::select! {
        ended = send => ended,
        () = orders(from_client, input, &silent) => false,
    }
}

async fn still_there(to_client: &mut Sink, silent: &AtomicU32) -> bool {
    silent.fetch_add(1, Ordering::Relaxed) < UNANSWERED && to_client.send(Message::Ping(Bytes::new())).await.is_ok()
}

/// What a client sends, until it goes.
async fn orders(mut from_client: SplitStream<WebSocket>, input: tokio::sync::mpsc::Sender<RunInput>, silent: &AtomicU32) {
    while let Some(Ok(message)) = from_client.next().await {
        silent.store(0, Ordering::Relaxed);
        let order = match message {
            Message::Binary(data) => RunInput::Data(data),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(RunControl::Eof(_)) => RunInput::Eof,
                Ok(RunControl::Resize(cols, rows)) => RunInput::Resize(cols, rows),
                Ok(RunControl::Signal(n)) => RunInput::Signal(n),
                Err(_) => continue,
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        // A command that no longer reads must not keep its output from being carried.
        let _ = input.send(order).await;
    }
}

fn framed(stream: u8, data: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.put_u8(stream);
    out.put_slice(data);
    Message::Binary(out.freeze())
}

/// One connection to a port, until both directions have ended. The end of one is told as [`RunControl::Eof`].
pub async fn connection(socket: WebSocket, stream: TcpStream) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut read, mut write) = stream.into_split();
    let silent = AtomicU32::new(0);
    let down = async {
        let mut ping = tokio::time::interval(PING);
        ping.tick().await;
        let mut buffer = BytesMut::with_capacity(READ);
        let mut open = true;
        loop {
            buffer.reserve(READ);
            tokio::select! {
                got = read.read_buf(&mut buffer), if open => match got {
                    Ok(0) | Err(_) => {
                        open = false;
                        let Ok(text) = serde_json::to_string(&RunControl::Eof(true)) else { return };
                        if to_client.send(Message::Text(text.into())).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => if to_client.send(Message::Binary(buffer.split().freeze())).await.is_err() { return },
                },
                _ = ping.tick() => if !still_there(&mut to_client, &silent).await { return },
            }
        }
    };
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            silent.store(0, Ordering::Relaxed);
            match message {
                Message::Binary(data) => {
                    // The program there has closed; what it still says is carried on.
                    let _ = write.write_all(&data).await;
                }
                Message::Text(_) => {
                    let _ = write.shutdown().await;
                }
                Message::Ping(_) | Message::Pong(_) => {}
                // The client closes when both directions are done.
                Message::Close(_) => return,
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}
