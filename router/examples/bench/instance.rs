//! What the proxies lead to: 1 KiB for every request, 1 MiB for `/big`, and a port that sends as long as it is read.

use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Prints both addresses, then serves until it is ended.
pub async fn serve() {
    let (http, source) = (bound().await, bound().await);
    let address = |l: &TcpListener| -> SocketAddr { l.local_addr().expect("an address") };
    println!("{} {}", address(&http), address(&source));
    tokio::spawn(async move {
        while let Ok((stream, _)) = source.accept().await {
            tokio::spawn(pour(stream));
        }
    });
    let (small, large) = (answer(1 << 10), answer(1 << 20));
    let (small, large): (&'static [u8], &'static [u8]) = (small.leak(), large.leak());
    while let Ok((stream, _)) = http.accept().await {
        tokio::spawn(converse(stream, small, large));
    }
}

async fn bound() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

fn answer(content: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {content}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; content]].concat()
}

/// Requests without content, one after another.
async fn converse(mut stream: TcpStream, small: &[u8], large: &[u8]) -> std::io::Result<()> {
    let (mut buf, mut have) = (vec![0; 8192], 0);
    stream.set_nodelay(true)?;
    loop {
        match stream.read(&mut buf[have..]).await? {
            0 => return Ok(()),
            n => have += n,
        }
        if buf[..have].ends_with(b"\r\n\r\n") {
            let is_large = buf.starts_with(b"GET /big ");
            have = 0;
            stream.write_all(if is_large { large } else { small }).await?;
        }
    }
}

async fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let block = vec![b'x'; 256 << 10];
    loop {
        stream.write_all(&block).await?;
    }
}
