//! `flex port-forward`: ports of this machine that lead into an instance, a WebSocket for each connection.

use super::exec::instance;
use crate::args::PortForward;
use crate::client::{Client, Socket};
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output;
use flex_api::Dyno;
use flex_api::run::RunControl;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
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
                Ok(socket) => carry(stream, socket).await,
                Err(e) => output::warn(e.to_string()),
            }
        });
    }
}

/// Until both directions have ended.
async fn carry(stream: TcpStream, socket: Socket) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let (mut to_server, mut from_server) = socket.split();
    let up = async {
        let mut buffer = vec![0; READ];
        loop {
            let n = read.read(&mut buffer).await.unwrap_or(0);
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
    tokio::join!(up, down);
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
}
