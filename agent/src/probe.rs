//! Sends one health probe and says how it went.

use flex_model::{HealthCheck, HealthProbe, InstanceId, ProxyVersion};
use flex_runtime::{ExecSpec, Runtime};
use futures_util::StreamExt;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longest status line read.
const MAX_STATUS_LINE: usize = 1024;

/// One probe. The error is for people: what was tried and what came of it.
pub async fn send(
    runtime: Arc<dyn Runtime>,
    instance: InstanceId,
    check: &HealthCheck,
    address: Option<SocketAddr>,
    proxy_protocol: Option<ProxyVersion>,
) -> Result<(), String> {
    let limit = Duration::from_secs(u64::from(check.timeout_seconds.max(1)));
    let address = address.ok_or_else(|| "it has no network address and port to be reached at".to_owned());
    let probe = async {
        match &check.probe {
            HealthProbe::Running { .. } => Ok(()),
            HealthProbe::Tcp => tcp(address?, proxy_protocol).await.map(drop),
            HealthProbe::Http { path } => http(address?, path, proxy_protocol).await,
            HealthProbe::Command { argv } => command(runtime, instance, argv).await,
        }
    };
    timeout(limit, probe).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

/// A PROXY header that names nobody: the connection is the sender's own. haproxy's `proxy-protocol.txt`, section 2.
fn local_header(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

async fn tcp(address: SocketAddr, proxy_protocol: Option<ProxyVersion>) -> Result<TcpStream, String> {
    let failed = |e| format!("cannot connect to port {}: {e}", address.port());
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    if let Some(version) = proxy_protocol {
        stream.write_all(local_header(version)).await.map_err(failed)?;
    }
    Ok(stream)
}

async fn http(address: SocketAddr, path: &str, proxy_protocol: Option<ProxyVersion>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("GET {path} on port {}: {e}", address.port());
    let mut stream = tcp(address, proxy_protocol).await?;
    // A path with white space in it could smuggle a second header line in.
    let path: String = path.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    let request = format!(
        "GET {}{path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: flex-health\r\nAccept: */*\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n",
        if path.starts_with('/') { "" } else { "/" },
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < MAX_STATUS_LINE {
        if stream.read_buf(&mut answer).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("GET {path} answered {code}")),
        None => Err(format!("GET {path} was not answered with HTTP")),
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\n').next()?;
    let rest = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

async fn command(runtime: Arc<dyn Runtime>, instance: InstanceId, argv: &[String]) -> Result<(), String> {
    let spec = ExecSpec { argv: argv.to_vec(), ..ExecSpec::default() };
    let failed = |e: &dyn std::fmt::Display| format!("the check command did not run: {e}");
    let mut session = runtime.exec(instance, spec).await.map_err(|e| failed(&e))?;
    // Its output is nobody's, but a full pipe would stop it.
    while session.output.next().await.is_some() {}
    match session.exit.await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(status)) => Err(format!("the check command exited with status {status}")),
        Ok(Err(e)) => Err(failed(&e)),
        Err(e) => Err(failed(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn status_lines() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nX: y\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 503"), Some(503));
        assert_eq!(status(b"SSH-2.0-x\r\n"), None);
        assert_eq!(status(b""), None);
    }

    async fn answers(with: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /health?a=b HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(with.as_bytes()).await.unwrap();
        };
        tokio::join!(server, http(address, "/health?a=b", None)).1
    }

    #[tokio::test]
    async fn http_takes_200_to_399() {
        answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        answers("HTTP/1.1 302 Found\r\n\r\n").await.unwrap();
        assert_eq!(answers("HTTP/1.1 404 No\r\n\r\n").await.unwrap_err(), "GET /health?a=b answered 404");
        assert!(answers("hello").await.unwrap_err().contains("not answered with HTTP"));
    }

    #[tokio::test]
    async fn instances_behind_the_proxy_protocol_are_probed_with_local() {
        for (version, begin) in
            [(ProxyVersion::V1, b"PROXY UNKNOWN\r\n".as_slice()), (ProxyVersion::V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut got = vec![0; begin.len() + 3];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, [begin, b"GET"].concat());
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            };
            tokio::join!(server, http(address, "/", Some(version))).1.unwrap();
        }
    }

    #[tokio::test]
    async fn tcp_names_the_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tcp(address, None).await.unwrap();
        drop(listener);
        assert!(tcp(address, None).await.unwrap_err().contains(&address.port().to_string()));
    }
}
