//! Connections of drains: names resolved and checked, TCP, TLS, and HTTP/1.1 posts.
//!
//! Must not: connect to an address that the guard refuses, whatever name led there; go through a proxy or follow a redirect.

use super::url::{DrainUrl, Kind};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flex_model::Secret;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

const CONNECT: Duration = Duration::from_secs(10);
/// For an answer, or for the peer to take what is sent.
pub const ANSWER: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 << 10;
/// A body longer than this is not read: the connection ends instead.
const MAX_BODY: usize = 64 << 10;

/// Whether an address may be reached.
pub type Guard = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Addresses that a drain reaches only if the operator says so: this machine, its links, and where clouds keep their machines'
/// credentials.
pub fn is_risky(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(a) => {
            a.is_loopback()
                || a.is_link_local()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_broadcast()
                || a.octets()[0] == 0
                || a == Ipv4Addr::new(100, 100, 100, 200)
                || a == Ipv4Addr::new(168, 63, 129, 16)
        }
        IpAddr::V6(a) => {
            let s = a.segments();
            // NAT64 leads to an IPv4 address.
            if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
                let [.., high, low] = s;
                return is_risky(IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))));
            }
            a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || s[0] & 0xffc0 == 0xfe80
                || a == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

/// What a connection needs besides the URL.
#[derive(Clone)]
pub struct Dialer {
    pub guard: Guard,
    tls: Arc<rustls::ClientConfig>,
}

impl Dialer {
    /// With the platform's roots, and those of a PEM file.
    ///
    /// # Errors
    /// A sentence: the file cannot be used.
    pub fn new(guard: Guard, ca: Option<&Path>) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if let Some(file) = ca {
            let fail = |e: &dyn std::fmt::Display| format!("logs.drain_ca: cannot use {}: {e}", file.display());
            for cert in CertificateDer::pem_file_iter(file).map_err(|e| fail(&e))? {
                roots.add(cert.map_err(|e| fail(&e))?).map_err(|e| fail(&e))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| format!("cannot set up TLS for drains: {e}"))?;
        let tls = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Ok(Self { guard, tls })
    }

    /// The addresses of a drain's host that may be reached.
    ///
    /// # Errors
    /// A sentence: the name has none, or none that may be reached.
    pub async fn resolve(&self, url: &DrainUrl) -> Result<Vec<SocketAddr>, String> {
        let found = timeout(CONNECT, tokio::net::lookup_host((url.host.as_str(), url.port))).await;
        let found: Vec<_> = match found {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(e)) => return Err(format!("the name {} cannot be resolved: {e}", url.host)),
            Err(_) => return Err(format!("the name {} cannot be resolved in time", url.host)),
        };
        let (good, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| (self.guard)(a.ip()));
        if good.is_empty() {
            return Err(refused
                .first()
                .map_or_else(|| format!("the name {} has no address", url.host), |a| refusal(&url.host, a.ip())));
        }
        Ok(good)
    }

    pub async fn connect(&self, url: &DrainUrl) -> Result<Box<dyn Link>, String> {
        let addresses = self.resolve(url).await?;
        let at = format!("{}:{}", url.host, url.port);
        let tcp = match timeout(CONNECT, TcpStream::connect(&addresses[..])).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(e)) => return Err(format!("{at} cannot be reached: {e}")),
            Err(_) => return Err(format!("{at} cannot be reached: no answer in {} s", CONNECT.as_secs())),
        };
        let _ = tcp.set_nodelay(true);
        if url.kind == Kind::Syslog {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(url.host.clone()).map_err(|_| format!("{} is no name for TLS", url.host))?;
        match timeout(CONNECT, TlsConnector::from(self.tls.clone()).connect(name, tcp)).await {
            Ok(Ok(tls)) => Ok(Box::new(tls)),
            Ok(Err(e)) => Err(format!("TLS with {at} failed: {e}")),
            Err(_) => Err(format!("TLS with {at} failed: no answer in {} s", CONNECT.as_secs())),
        }
    }
}

/// Why an address is not reached, and what the operator may do.
pub fn refusal(host: &str, address: IpAddr) -> String {
    format!(
        "{host} is at {address}, which drains may not reach. If they should, the operator adds it to drain_allow in [logs] of flexd.toml"
    )
}

/// A connection.
pub trait Link: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// The headers of a post besides the usual.
pub struct Post<'a> {
    pub token: &'a str,
    pub frame_id: &'a str,
    pub count: usize,
    pub body: &'a [u8],
}

/// Posts a frame. Gives the status, and whether the connection may be used again.
pub async fn post(link: &mut dyn Link, url: &DrainUrl, post: &Post<'_>) -> io::Result<(u16, bool)> {
    let basic = |s: &Secret| format!("Authorization: Basic {}\r\n", STANDARD.encode(s.expose()));
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: flex/{}\r\nContent-Type: application/logplex-1\r\n\
         Logplex-Msg-Count: {}\r\nLogplex-Frame-Id: {}\r\nLogplex-Drain-Token: {}\r\n{}Content-Length: {}\r\n\r\n",
        url.target,
        url.authority(),
        env!("CARGO_PKG_VERSION"),
        post.count,
        post.frame_id,
        post.token,
        url.login.as_ref().map(basic).unwrap_or_default(),
        post.body.len()
    );
    let exchange = async {
        link.write_all(head.as_bytes()).await?;
        link.write_all(post.body).await?;
        link.flush().await?;
        read_answer(link).await
    };
    timeout(ANSWER, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_answer(link: &mut dyn Link) -> io::Result<(u16, bool)> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(&bytes).map_err(|e| io::Error::other(format!("the answer is no HTTP: {e}")))?;
        if let httparse::Status::Complete(end) = parsed {
            let status = answer.code.unwrap_or(0);
            // Goes before the answer itself.
            if (100..200).contains(&status) {
                bytes.drain(..end);
                continue;
            }
            let header = |name: &str| {
                let found = answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
                found.and_then(|h| std::str::from_utf8(h.value).ok()).map(str::trim)
            };
            let closes = header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) || answer.version == Some(0);
            let length = if status == 204 { Some(0) } else { header("content-length").and_then(|v| v.parse::<usize>().ok()) };
            let Some(rest) = length.filter(|n| *n <= MAX_BODY).and_then(|n| n.checked_sub(bytes.len() - end)) else {
                return Ok((status, false));
            };
            let mut body = vec![0; rest];
            let whole = link.read_exact(&mut body).await.is_ok();
            return Ok((status, whole && !closes));
        }
        if bytes.len() > MAX_HEAD {
            return Err(io::Error::other("the answer's head is too long"));
        }
        if link.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_metadata_are_risky() {
        for (address, risky) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("100.100.100.200", true),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("224.0.0.1", true),
            ("10.1.2.3", false),
            ("192.0.2.1", false),
            ("64:ff9b::0a01:0203", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_risky(address.parse().unwrap()), risky, "{address}");
        }
    }

    #[tokio::test]
    async fn answers_are_read_to_their_end_or_the_connection_is_not_used_again() {
        for (answer, said) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", (204, true)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, true)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\ncontent-length: 0\r\nConnection: close\r\n\r\n", (503, false)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (200, false)),
            ("HTTP/1.1 500 Oops\r\nContent-Length: 99999999\r\n\r\n", (500, false)),
        ] {
            let mut stream = io::Cursor::new(answer.as_bytes().to_vec());
            assert_eq!(read_answer(&mut stream).await.unwrap(), said, "{answer}");
        }
        assert!(read_answer(&mut io::Cursor::new(b"SSH-2.0-x\r\n".to_vec())).await.is_err());
        assert!(read_answer(&mut io::Cursor::new(b"HTTP/1.1 2".to_vec())).await.is_err());
    }
}
