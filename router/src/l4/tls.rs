//! TLS that ends here, for TCP routes: the certificate of the name that a client asks for, as for HTTPS; what is inside goes
//! to the instance in the clear.

use super::relay::{End, Moved, reset, while_moving};
use crate::{io::Ahead, metrics::Counters, shared::Shared};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// One record's content.
const BUFFER: usize = 16 << 10;

pub(super) type Client = TlsStream<Ahead>;

/// Begins TLS, in the time that HTTPS clients get. `bytes` were read already.
pub(super) async fn accept(shared: &Shared, counters: &Counters, stream: TcpStream, bytes: Vec<u8>) -> Option<Box<Client>> {
    let acceptor = TlsAcceptor::from(shared.tls.for_tcp.clone());
    let accepted = tokio::time::timeout(shared.settings.timeouts.handshake, acceptor.accept(Ahead::new(bytes, stream))).await;
    let Ok(Ok(client)) = accepted else {
        Counters::add(&counters.tls_failed, 1);
        return None;
    };
    Counters::add(&counters.tls_handshakes, 1);
    if client.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        Counters::add(&counters.tls_resumed, 1);
    }
    Some(Box::new(client))
}

/// Moves bytes until the end. A client that goes without TLS's own end has broken off.
pub(super) async fn relay(client: &mut Client, instance: &mut TcpStream, idle: Duration, moved: &Moved) -> End {
    let end = {
        let (mut from_client, mut to_client) = tokio::io::split(&mut *client);
        let (mut from_instance, mut to_instance) = instance.split();
        let up = one_way(&mut from_client, &mut to_instance, &moved.from_client, (End::Client, End::Instance));
        let down = one_way(&mut from_instance, &mut to_client, &moved.to_client, (End::Instance, End::Client));
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => both.map_or_else(|e| e, |_| End::Whole),
            () = while_moving(moved, idle) => End::Idle,
        }
    };
    if end != End::Whole {
        reset(&client.get_ref().0.stream);
        reset(instance);
    }
    end
}

/// Until `from` ends; then `to` is told so. `ends`: what it means that either breaks.
async fn one_way<A, B>(from: &mut A, to: &mut B, moved: &AtomicU64, ends: (End, End)) -> Result<(), End>
where
    A: AsyncRead + Unpin,
    B: AsyncWrite + Unpin,
{
    let mut buf = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buf).await.map_err(|_| ends.0)?;
        if n == 0 {
            return to.shutdown().await.map_err(|_| ends.1);
        }
        to.write_all(&buf[..n]).await.map_err(|_| ends.1)?;
        to.flush().await.map_err(|_| ends.1)?;
        moved.fetch_add(n as u64, Relaxed);
    }
}
