//! `flex port-forward`: ports of this machine that lead into an instance, a WebSocket for each connection.

use super::exec::instance;
use crate::args::PortForward;
use crate::client::Client;
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output;
use crate::terminal::ALIVE;
use bytes::Bytes;
use flex_api::Dyno;
use flex_api::run::RunControl;
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const READ: usize = 32 << 10;

/// `5432`, `8080:5000`, `0:5000`.
fn ports(text: &str) -> Result<(u16, u16)> {
    let bad = || CliError::usage(format!("{text} is no port.")).hint("Examples: 5432, 8080:5000, 0:5000");
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let number = |t: &str| t.parse::<u16>().map_err(|_| bad());
    let (local, remote) = (number(local)?, number(remote)?);
    if remote == 0 { Err(bad()) } else { Ok((local, remote)) }
}

pub async fn run(cx: &Context, args: &PortForward) -> Result<()> {
    let wanted = args.ports.iter().map(|p| ports(p)).collect::<Result<Vec<_>>>()?;
    let process = instance(&args.process)?;
    let at = cx.path(&format!("/dynos/{process}"))?;
    // One that does not run is told now, not at the first connection.
    cx.client.get::<Dyno>(&at).await?;
    let mut serving = tokio::task::JoinSet::new();
    for (local, remote) in wanted {
        let listener = TcpListener::bind((args.address, local));
        let listener = listener.await.map_err(while_doing(format!("listen on {}:{local}", args.address)))?;
        let address = listener.local_addr().map_err(while_doing("tell where it listens"))?;
        output::line(format!("{address} leads to port {remote} of {process}"));
        serving.spawn(serve(listener, cx.client.clone(), format!("{at}/ports/{remote}")));
    }
    output::say("Ctrl-C ends it.");
    let mut interrupted = signal(SignalKind::interrupt()).map_err(while_doing("watch for signals"))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(while_doing("watch for signals"))?;
    tokio::select! {
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
        ended = serving.join_next() => match ended {
            Some(Ok(result)) => result,
            _ => Ok(()),
        },
    }
}

async fn serve(listener: TcpListener, client: Client, path: String) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.map_err(while_doing("accept a connection"))?;
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            match client.websocket(&path).await {
                Ok(socket) => carry(stream, socket, ALIVE).await,
                Err(e) => output::warn(e.to_string()),
            }
        });
    }
}

/// Until both directions have ended.
async fn carry<T: AsyncRead + AsyncWrite + Unpin>(stream: TcpStream, socket: WebSocketStream<T>, pause: Duration) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let (mut to_server, mut from_server) = socket.split();
    let mut alive = tokio::time::interval(pause);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let up = async {
        let mut buffer = vec![0; READ];
        loop {
            let n = tokio::select! {
                n = read.read(&mut buffer) => n.unwrap_or(0),
                // The program here may not read for long, and then no ping is seen.
                _ = alive.tick() => match to_server.send(Message::Pong(Bytes::new())).await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let message = if n == 0 {
                Message::Text(serde_json::to_string(&RunControl::Eof(true)).unwrap_or_default().into())
            } else {
                Message::Binary(buffer[..n].to_vec().into())
            };
            if to_server.send(message).await.is_err() || n == 0 {
                return;
            }
        }
    };
    let down = async {
        while let Some(Ok(message)) = from_server.next().await {
            match message {
                Message::Binary(data) if write.write_all(&data).await.is_ok() => {}
                // Its end, or ours.
                Message::Binary(_) | Message::Text(_) | Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        let _ = write.shutdown().await;
    };
    let mut down = std::pin::pin!(down);
    let mut over = {
        let mut up = std::pin::pin!(up);
        tokio::select! {
            () = &mut up => false,
            () = &mut down => {
                up.await;
                true
            }
        }
    };
    while !over {
        over = tokio::select! {
            () = &mut down => true,
            _ = alive.tick() => {
                // An error: what has come already is handed on all the same.
                let _ = to_server.send(Message::Pong(Bytes::new())).await;
                false
            }
        };
    }
    let _ = to_server.send(Message::Close(None)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!((ports("5432").unwrap(), ports("0:80").unwrap()), ((5432, 5432), (0, 80)));
        assert!(["", "0", "80:0", "x", "1:2:3", "70000"].iter().all(|t| ports(t).is_err()));
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (stream, listener.accept().await.unwrap().0)
    }

    /// The program here does not read for long, before and after it has sent all it will: the server hears of it all the same.
    #[tokio::test]
    async fn a_program_that_does_not_read_is_still_there() {
        use tokio_tungstenite::tungstenite::protocol::Role;
        let ((mut program, local), (server, client)) = (pair().await, pair().await);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (mut down, mut up) = WebSocketStream::from_raw_socket(server, Role::Server, None).await.split();
        let carrying = tokio::spawn(carry(local, client, Duration::from_millis(10)));
        let pieces = 32;
        let sending = tokio::spawn(async move {
            for _ in 0..pieces {
                down.send(Message::Binary(vec![7; 1 << 20].into())).await.unwrap();
            }
            down.send(Message::Text("{\"eof\":true}".into())).await.unwrap();
            down
        });
        for half_closed in [false, true] {
            if half_closed {
                program.shutdown().await.unwrap();
                while !matches!(up.next().await.unwrap().unwrap(), Message::Text(_)) {}
            }
            for _ in 0..3 {
                assert!(matches!(up.next().await.unwrap().unwrap(), Message::Pong(_)));
            }
        }
        let mut all = Vec::new();
        program.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), pieces << 20);
        carrying.await.unwrap();
        drop(sending.await.unwrap());
    }
}
