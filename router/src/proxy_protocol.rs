//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): who a connection really comes from, told by a
//! load balancer in front, and told on to instances that want to know.
//!
//! Reading takes exactly the header and nothing of what follows it. A header is believed only where the listener's
//! settings name its sender; parsing is strict, because what is let through here is what access rules are held against.

use flex_model::ProxyVersion;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// Where a connection comes from and goes to, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
    /// Extensions, from a version 2 header or of our own.
    pub tlvs: Vec<Tlv>,
}

/// An extension of version 2: type and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tlv {
    pub kind: u8,
    pub value: Vec<u8>,
}

/// The protocol spoken, as ALPN has it.
pub const ALPN: u8 = 0x01;
/// The host name that the client asked for (SNI).
pub const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const NOOP: u8 = 0x04;
/// A name for the connection that logs along the way agree on. At most 128 bytes.
pub const UNIQUE_ID: u8 = 0x05;
/// What TLS found: see [`Tlv::ssl`].
pub const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, by its definition.
const V1_MAX: usize = 107;
/// The longest rest of a version 2 header that is read. Real ones are under 1 KiB even with a client certificate's names.
const V2_MAX: usize = 4096;
/// How long a load balancer may take to send its header.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a header was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
    #[error("no PROXY header came in time")]
    Late,
    #[error("the connection broke within the PROXY header")]
    Broken(#[source] io::Error),
}

impl Tlv {
    /// What TLS found, for a client without a certificate: the protocol's version, such as `TLSv1.3`.
    pub fn ssl(version: &str) -> Self {
        // Client over TLS; "verify" is non-zero where no certificate was verified.
        let mut value = vec![1, 0, 0, 0, 1];
        put(&mut value, SSL_VERSION, version.as_bytes());
        Self { kind: SSL, value }
    }
}

impl Origin {
    /// A connection with nobody in between.
    pub fn direct(source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source: canonical(source), destination: canonical(destination), tlvs: Vec::new() }
    }

    /// The value of an extension.
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|t| t.kind == kind).map(|t| t.value.as_slice())
    }

    /// Adds an extension, unless a load balancer in front said it already.
    pub fn add(&mut self, kind: u8, value: impl Into<Vec<u8>>) {
        if self.tlv(kind).is_none() {
            self.tlvs.push(Tlv { kind, value: value.into() });
        }
    }

    /// Writes the header to send to an instance.
    pub fn header(&self, version: ProxyVersion) -> Vec<u8> {
        match version {
            ProxyVersion::V1 => self.v1(),
            ProxyVersion::V2 => self.v2(),
        }
    }

    fn v1(&self) -> Vec<u8> {
        let (source, destination) = same_family(self.source, self.destination);
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.port(), destination.port());
        format!("PROXY {family} {} {} {from} {to}\r\n", source.ip(), destination.ip()).into_bytes()
    }

    fn v2(&self) -> Vec<u8> {
        let (source, destination) = same_family(self.source, self.destination);
        let mut rest = Vec::with_capacity(64);
        let family = match (source.ip(), destination.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                rest.extend([a.octets(), b.octets()].concat());
                0x11
            }
            (a, b) => {
                rest.extend([v6(a).octets(), v6(b).octets()].concat());
                0x21
            }
        };
        rest.extend(source.port().to_be_bytes());
        rest.extend(destination.port().to_be_bytes());
        for tlv in self.tlvs.iter().filter(|t| !matches!(t.kind, CRC32C | NOOP)) {
            if rest.len() + 3 + tlv.value.len() <= V2_MAX {
                put(&mut rest, tlv.kind, &tlv.value);
            }
        }
        let mut out = SIGNATURE.to_vec();
        out.extend([0x21, family]);
        out.extend(u16::try_from(rest.len()).unwrap_or(0).to_be_bytes());
        out.extend(rest);
        out
    }
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.push(kind);
    out.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(value);
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// One family for both: an IPv4 address in IPv6 clothes where they differ.
fn same_family(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (a, b) = (canonical(a), canonical(b));
    if a.is_ipv4() == b.is_ipv4() {
        return (a, b);
    }
    (SocketAddr::new(v6(a.ip()).into(), a.port()), SocketAddr::new(v6(b.ip()).into(), b.port()))
}

/// Reads the header that a trusted load balancer owes. A header that names nobody (`LOCAL`, `UNKNOWN`: the balancer's own
/// health check) gives the connection's own addresses.
///
/// # Errors
/// No header, one that is malformed, or not in time. Close the connection then.
pub async fn accept(stream: &mut TcpStream, peer: SocketAddr, local: SocketAddr) -> Result<Origin, ProxyError> {
    let header = tokio::time::timeout(PATIENCE, read(stream)).await.map_err(|_| ProxyError::Late)??;
    let own = Origin::direct(peer, local);
    Ok(match header {
        Header { addresses: Some((source, destination)), tlvs } => {
            Origin { source: canonical(source), destination: canonical(destination), tlvs }
        }
        Header { addresses: None, tlvs } => Origin { tlvs, ..own },
    })
}

async fn read(stream: &mut TcpStream) -> Result<Header, ProxyError> {
    let broken = ProxyError::Broken;
    let mut head = Vec::with_capacity(V1_MAX + 1);
    // Both versions are at least this long, so reading it takes nothing of what follows.
    head.resize(13, 0);
    stream.read_exact(&mut head).await.map_err(broken)?;
    if head.starts_with(SIGNATURE) {
        let mut rest = [0; 3];
        stream.read_exact(&mut rest).await.map_err(broken)?;
        let length = usize::from(u16::from_be_bytes([rest[1], rest[2]]));
        if length > V2_MAX {
            return Err(ProxyError::Malformed("it is too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(broken)?;
        return parse_v2(head[12], rest[0], &body);
    }
    if !head.starts_with(b"PROXY ") {
        return Err(ProxyError::Malformed("it begins like neither version"));
    }
    // Usually the whole line has come; looking first finds how much of what is there belongs to it.
    let mut ahead = [0; V1_MAX];
    while !head.ends_with(b"\n") {
        if head.len() >= V1_MAX {
            return Err(ProxyError::Malformed("the line has no end"));
        }
        let room = V1_MAX - head.len();
        let seen = stream.peek(&mut ahead[..room]).await.map_err(broken)?;
        if seen == 0 {
            return Err(ProxyError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let take = memchr::memchr(b'\n', &ahead[..seen]).map_or(seen, |at| at + 1);
        stream.read_exact(&mut ahead[..take]).await.map_err(broken)?;
        head.extend_from_slice(&ahead[..take]);
    }
    parse_v1(&head)
}

/// What a header says. No addresses: the sender speaks for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    addresses: Option<(SocketAddr, SocketAddr)>,
    tlvs: Vec<Tlv>,
}

fn parse_v1(line: &[u8]) -> Result<Header, ProxyError> {
    let bad = ProxyError::Malformed;
    let line = std::str::from_utf8(line).map_err(|_| bad("the line is not text"))?;
    let line = line.strip_suffix("\r\n").ok_or(bad("the line does not end in CRLF"))?;
    let mut words = line.split(' ');
    words.next();
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Header { addresses: None, tlvs: Vec::new() });
    }
    let (Some(source), Some(destination), Some(from), Some(to), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("the line has not six words"));
    };
    let port = |text: &str| {
        let plain = text == "0" || !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse::<u16>().ok()).flatten().ok_or(bad("a port is none"))
    };
    let (from, to) = (port(from)?, port(to)?);
    let (source, destination): (IpAddr, IpAddr) = match family {
        Some("TCP4") => {
            let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| bad("an address is none of IPv4"));
            (ip(source)?.into(), ip(destination)?.into())
        }
        Some("TCP6") => {
            let ip = |text: &str| text.parse::<Ipv6Addr>().map_err(|_| bad("an address is none of IPv6"));
            (ip(source)?.into(), ip(destination)?.into())
        }
        _ => return Err(bad("the family is neither TCP4 nor TCP6")),
    };
    Ok(Header { addresses: Some((SocketAddr::new(source, from), SocketAddr::new(destination, to))), tlvs: Vec::new() })
}

fn parse_v2(command: u8, family: u8, body: &[u8]) -> Result<Header, ProxyError> {
    let bad = ProxyError::Malformed;
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(bad("version or command are not known")),
    };
    let array = |at: usize| body.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()).unwrap_or_default();
    let port = |at: usize| body.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let (addresses, used) = match family {
        // TCP over IPv4 and IPv6; UDP has the same form.
        0x11 | 0x12 if body.len() >= 12 => {
            let ip = |at: usize| IpAddr::from([body[at], body[at + 1], body[at + 2], body[at + 3]]);
            (Some((SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10)))), 12)
        }
        0x21 | 0x22 if body.len() >= 36 => {
            let ip = |at: usize| IpAddr::from(array(at));
            (Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)))), 36)
        }
        // Unix sockets: there is no address that could be told on.
        0x31 | 0x32 if body.len() >= 216 => (None, 216),
        0x00 => (None, body.len()),
        _ if local => (None, body.len()),
        0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32 => return Err(bad("it is too short for its addresses")),
        _ => return Err(bad("the family is not known")),
    };
    let tlvs = tlvs(&body[used..])?;
    check_crc(command, family, body, used, &tlvs)?;
    Ok(Header { addresses: if local { None } else { addresses }, tlvs: tlvs.into_iter().map(|(_, t)| t).collect() })
}

/// With the place of each value.
fn tlvs(mut rest: &[u8]) -> Result<Vec<(usize, Tlv)>, ProxyError> {
    let (mut out, mut at) = (Vec::new(), 0);
    while !rest.is_empty() {
        let [kind, high, low, more @ ..] = rest else { return Err(ProxyError::Malformed("an extension is cut off")) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = more.get(..length).ok_or(ProxyError::Malformed("an extension is longer than the header"))?;
        if *kind != NOOP {
            out.push((at + 3, Tlv { kind: *kind, value: value.to_vec() }));
        }
        at += 3 + length;
        rest = &more[length..];
    }
    Ok(out)
}

/// A checksum is verified where there is one, as the protocol demands of those who know it.
fn check_crc(command: u8, family: u8, body: &[u8], used: usize, tlvs: &[(usize, Tlv)]) -> Result<(), ProxyError> {
    let Some((at, crc)) = tlvs.iter().find(|(_, t)| t.kind == CRC32C) else { return Ok(()) };
    let given = <[u8; 4]>::try_from(crc.value.as_slice()).map_err(|_| ProxyError::Malformed("the checksum is not 4 bytes"))?;
    let mut whole = SIGNATURE.to_vec();
    whole.extend([command, family]);
    whole.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    whole.extend_from_slice(body);
    let place = 16 + used + at;
    whole[place..place + 4].fill(0);
    if crc32c(&whole) == u32::from_be_bytes(given) { Ok(()) } else { Err(ProxyError::Malformed("the checksum is wrong")) }
}

/// Castagnoli's CRC, bit by bit: headers are short and seldom carry one.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0x82F6_3B78 & 0_u32.wrapping_sub(c & 1)))
    })
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;
