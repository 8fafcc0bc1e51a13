//! A request's head: checked, understood, and written anew for the instance. The instance sees exactly one reading of the
//! request, ours; what is ambiguous is refused.
//!
//! Must not: pass on a field that names the client, unless a trusted proxy set it.

use crate::codes::{Prefer, Refusal};
use std::{fmt::Write as _, mem::MaybeUninit, net::IpAddr};

/// The most of a path, or of a way that a request came, that an access line tells: lines wait in memory.
const LOGGED: usize = 2 << 10;
/// The same of a method.
const LOGGED_METHOD: usize = 32;

/// How a message's content ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// To the end of the connection; answers only.
    Close,
}

/// What the connection knows and the client cannot choose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) peer: IpAddr,
    /// The peer is a trusted proxy: its word about the client counts.
    pub(crate) trusted: bool,
    /// The port that the client reached.
    pub(crate) port: u16,
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// What `Via` says where it did not come as HTTP/1.
    pub(crate) via: Option<&'static [u8]>,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Randomness for the request id.
    pub(crate) random: u128,
}

/// A request that may be routed.
#[derive(Debug)]
pub(crate) struct Request {
    /// Lower case, without port: the key of the routing table.
    pub(crate) host: String,
    pub(crate) http10: bool,
    pub(crate) head_only: bool,
    /// RFC 9110 section 9.2.2: doing it twice is doing it once.
    pub(crate) idempotent: bool,
    /// The client wants (and its version allows) another request on this connection.
    pub(crate) keep_alive: bool,
    pub(crate) framing: Framing,
    /// Switching protocols was asked for and is passed on.
    pub(crate) upgrade: bool,
    pub(crate) prefer: Prefer,
    pub(crate) request_id: String,
    /// `method=GET path="/" host=… request_id=… fwd="…"`: the part of the access line known by now.
    pub(crate) log: String,
    /// The head to send to the instance, blank line and all.
    pub(crate) upstream: Vec<u8>,
    /// As the client sent it.
    pub(crate) head_bytes: usize,
    /// Where the path lies in it, without what follows a `?`.
    path: std::ops::Range<usize>,
}

impl Request {
    /// The path as the client sent it, without a query; `*` where the request is for no path.
    pub(crate) fn path(&self) -> &str {
        std::str::from_utf8(&self.upstream[self.path.clone()]).unwrap_or("/")
    }
}

/// Reads a head that [`super::scan::Scanner`] found complete.
pub(crate) fn parse(head: &[u8], max_headers: usize, arrival: &Arrival) -> Result<Request, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; 256];
    let mut raw = httparse::Request::new(&mut []);
    let max = max_headers.min(fields.len());
    match raw.parse_with_uninit_headers(head, &mut fields[..max]) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Refusal::Bad("The request's head is malformed.")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooManyHeaders),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Bad("The request's head is malformed.")),
    }
    let (Some(method), Some(target), Some(version)) = (raw.method, raw.path, raw.version) else {
        return Err(Refusal::Bad("The request's head is malformed."));
    };
    let http10 = version == 0;
    let seen = Seen::collect(raw.headers, http10)?;
    let target = Target::parse(method, target, seen.host)?;
    let upgrade = seen.wants_upgrade() && !http10 && matches!(seen.framing(), Framing::None | Framing::Length(0));
    let request_id = request_id(&seen, arrival);
    let forwarded_for = forwarded_for(raw.headers, arrival);

    let mut log = String::with_capacity(160 + target.path.len().min(LOGGED));
    log.push_str("method=");
    escape(method, LOGGED_METHOD, &mut log);
    log.push_str(" path=\"");
    escape(target.path, LOGGED, &mut log);
    let _ = write!(log, "\" host={} request_id={request_id} fwd=\"", target.host);
    escape(&forwarded_for, LOGGED, &mut log);
    log.push('"');

    let begin = method.len() + 1;
    let path = begin..begin + memchr::memchr(b'?', target.path.as_bytes()).unwrap_or(target.path.len());
    let mut out = Vec::with_capacity(head.len() + 320);
    for part in [method, " ", target.path, " HTTP/1.1\r\nHost: ", target.authority, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for field in raw.headers.iter().filter(|f| !seen.drops(f, arrival.trusted, upgrade)) {
        write_field(field.name, field.value, &mut out);
    }
    match seen.framing() {
        Framing::Length(n) => write_field("Content-Length", n.to_string().as_bytes(), &mut out),
        Framing::Chunked => write_field("Transfer-Encoding", b"chunked", &mut out),
        _ => {}
    }
    // RFC 9110 section 10.1.4: who sends TE names it, so that it ends at the next hop.
    match (upgrade, seen.te_trailers) {
        (true, true) => write_field("Connection", b"Upgrade, TE", &mut out),
        (true, false) => write_field("Connection", b"Upgrade", &mut out),
        (false, true) => write_field("Connection", b"TE", &mut out),
        (false, false) => {}
    }
    write_arrival(&seen, arrival, &target, &forwarded_for, &request_id, http10, &mut out);
    out.extend_from_slice(b"\r\n");

    Ok(Request {
        host: host_key(target.host),
        http10,
        head_only: method == "HEAD",
        idempotent: matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE"),
        keep_alive: if http10 { seen.keep_alive && !seen.close } else { !seen.close },
        framing: seen.framing(),
        upgrade,
        prefer: seen.prefer,
        request_id,
        log,
        upstream: out,
        head_bytes: head.len(),
        path,
    })
}

/// The fields that decide something, read in one pass.
#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: Option<&'a [u8]>,
    te_trailers: bool,
    prefer: Prefer,
    request_id: Option<&'a [u8]>,
    proto: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    forwarded_host: Option<&'a [u8]>,
    /// All of them, the first first.
    forwarded: Vec<&'a [u8]>,
    start: Option<&'a [u8]>,
    /// Fields named by `Connection`, lower case: they end here.
    nominated: Vec<String>,
}

impl<'a> Seen<'a> {
    fn collect(fields: &[httparse::Header<'a>], http10: bool) -> Result<Self, Refusal> {
        let mut seen = Self::default();
        let mut transfer_encodings = 0;
        for field in fields {
            let value = field.value;
            match Known::of(field.name) {
                Known::Host => {
                    if seen.host.replace(value).is_some() {
                        return Err(Refusal::Bad("The request has two Host fields."));
                    }
                }
                Known::ContentLength => {
                    let length = content_length(value).ok_or(Refusal::Bad("The Content-Length is not a number."))?;
                    if seen.length.replace(length).is_some() {
                        return Err(Refusal::Bad("The request has two Content-Length fields."));
                    }
                }
                Known::TransferEncoding => {
                    transfer_encodings += 1;
                    if transfer_encodings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refusal::Bad("Only the transfer coding \"chunked\" is understood."));
                    }
                    seen.chunked = true;
                }
                Known::Connection => seen.connection(value),
                Known::Upgrade => {
                    if seen.upgrade.replace(value).is_some() {
                        return Err(Refusal::Bad("The request has two Upgrade fields."));
                    }
                }
                Known::Te => seen.te_trailers |= list(value).any(|t| t.eq_ignore_ascii_case(b"trailers")),
                Known::Expect => {
                    if !http10 && !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Refusal::Expectation);
                    }
                }
                Known::Accept => seen.prefer = Prefer::from_accept(value),
                Known::RequestId => seen.request_id = Some(value),
                Known::Proto => seen.proto = Some(value),
                Known::Port => seen.port = Some(value),
                Known::ForwardedHost => seen.forwarded_host = Some(value),
                Known::Start => seen.start = Some(value),
                Known::Forwarded => seen.forwarded.push(value),
                Known::ForwardedFor | Known::ForwardedOther | Known::Hop | Known::Look | Known::Other => {}
            }
        }
        match (http10, transfer_encodings > 0, seen.length.is_some()) {
            (_, true, true) => Err(Refusal::Bad("The request has both Transfer-Encoding and Content-Length.")),
            (true, true, _) => Err(Refusal::Bad("HTTP/1.0 has no Transfer-Encoding.")),
            _ => Ok(seen),
        }
    }

    fn connection(&mut self, value: &[u8]) {
        for token in list(value) {
            let token = String::from_utf8_lossy(token).to_ascii_lowercase();
            match token.as_str() {
                "close" => self.close = true,
                "keep-alive" => self.keep_alive = true,
                "upgrade" => self.connection_upgrade = true,
                // Naming these would take away what the request means, or what we say about it.
                "host" | "content-length" | "transfer-encoding" | "te" | "cookie" | "authorization" => {}
                _ => self.nominated.push(token),
            }
        }
    }

    fn framing(&self) -> Framing {
        match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        }
    }

    /// Upgrades to other forms of HTTP would carry requests past this router, so they are not passed on.
    fn wants_upgrade(&self) -> bool {
        self.connection_upgrade
            && self.upgrade.is_some_and(|value| {
                !value.is_empty()
                    && list(value).all(|p| {
                        let p = p.to_ascii_lowercase();
                        !(p.starts_with(b"h2") || p.starts_with(b"http") || p.starts_with(b"tls"))
                    })
            })
    }

    /// Whether a field ends here (it is for this hop, is written anew, or lies about the client).
    fn drops(&self, field: &httparse::Header<'_>, trusted: bool, upgrade: bool) -> bool {
        match Known::of(field.name) {
            Known::Upgrade => !upgrade,
            Known::Accept | Known::Expect => false,
            Known::Other => self.nominated.iter().any(|n| field.name.eq_ignore_ascii_case(n)),
            Known::ForwardedOther => !trusted,
            _ => true,
        }
    }
}

/// Fields that the router reads, writes or drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Te,
    Expect,
    Accept,
    RequestId,
    ForwardedFor,
    Proto,
    Port,
    ForwardedHost,
    Start,
    Forwarded,
    /// Other words about the client and its way: passed on from trusted proxies only.
    ForwardedOther,
    /// For one hop only.
    Hop,
    /// Looks like one of the above to a CGI-style server, which cannot tell `_` from `-`: always dropped.
    Look,
    Other,
}

impl Known {
    fn of(name: &str) -> Self {
        let mut lower = [0_u8; 24];
        let Some(lower) = lower.get_mut(..name.len()) else { return Self::Other };
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        match &*lower {
            b"host" => Self::Host,
            b"content-length" => Self::ContentLength,
            b"transfer-encoding" => Self::TransferEncoding,
            b"connection" => Self::Connection,
            b"upgrade" => Self::Upgrade,
            b"te" => Self::Te,
            b"expect" => Self::Expect,
            b"accept" => Self::Accept,
            b"x-request-id" => Self::RequestId,
            b"x-forwarded-for" => Self::ForwardedFor,
            b"x-forwarded-proto" => Self::Proto,
            b"x-forwarded-port" => Self::Port,
            b"x-forwarded-host" => Self::ForwardedHost,
            b"x-request-start" => Self::Start,
            b"forwarded" => Self::Forwarded,
            b"x-real-ip"
            | b"x-forwarded-scheme"
            | b"x-forwarded-ssl"
            | b"x-forwarded-server"
            | b"x-forwarded-prefix"
            | b"x-client-ip"
            | b"true-client-ip"
            | b"x-forwarded"
            | b"x-cluster-client-ip"
            | b"via" => Self::ForwardedOther,
            b"keep-alive" | b"proxy-connection" | b"proxy" | b"proxy-authorization" | b"http2-settings" => Self::Hop,
            lower if lower.contains(&b'_') => {
                let dashed: Vec<u8> = lower.iter().map(|b| if *b == b'_' { b'-' } else { *b }).collect();
                match std::str::from_utf8(&dashed).map(Self::of) {
                    Ok(Self::Other) => Self::Other,
                    _ => Self::Look,
                }
            }
            _ => Self::Other,
        }
    }
}

/// Whether a field of this name says who the client is or which way it came: no word of a client's own.
pub(crate) fn tells_of_the_client(name: &str) -> bool {
    use Known::{Forwarded, ForwardedFor, ForwardedHost, ForwardedOther, Look, Port, Proto, RequestId, Start};
    matches!(Known::of(name), RequestId | ForwardedFor | Proto | Port | ForwardedHost | Start | Forwarded | ForwardedOther | Look)
}

/// Where the request goes, by its target and Host (RFC 9112 section 3.2).
struct Target<'a> {
    /// Origin-form (or `*`), as sent on.
    path: &'a str,
    /// Host and port as the client wrote them.
    authority: &'a str,
    /// Without port.
    host: &'a str,
}

impl<'a> Target<'a> {
    fn parse(method: &str, target: &'a str, host: Option<&'a [u8]>) -> Result<Self, Refusal> {
        const BAD_TARGET: Refusal = Refusal::Bad("The request's target is not valid.");
        if method == "CONNECT" {
            return Err(Refusal::Method);
        }
        let host = host.ok_or(Refusal::Bad("The request has no Host field."))?;
        let host = std::str::from_utf8(host).map_err(|_| Refusal::Bad("The Host field is not valid."))?;
        // The Host field must be sound even where the target overrides it.
        let from_field = authority_host(host).ok_or(Refusal::Bad("The Host field is not valid."))?;
        if target.contains('#') {
            return Err(BAD_TARGET);
        }
        if target.starts_with('/') || target == "*" && method == "OPTIONS" {
            return Ok(Self { path: target, authority: host, host: from_field });
        }
        let (scheme, rest) = target.split_once("://").ok_or(BAD_TARGET)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(BAD_TARGET);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = authority_host(authority).ok_or(BAD_TARGET)?;
        let path = match path {
            "" if method == "OPTIONS" => "*",
            "" => "/",
            // `http://host?query` has an empty path, which origin-form cannot say.
            _ if path.starts_with('?') => return Err(BAD_TARGET),
            _ => path,
        };
        Ok(Self { path, authority, host })
    }
}

/// The host of `host[:port]`, if both are sound: a registered name, an IPv4 address, or a bracketed IPv6 address.
fn authority_host(authority: &str) -> Option<&str> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']')?;
        let inside = &authority[1..end];
        inside.parse::<std::net::Ipv6Addr>().ok()?;
        let (host, rest) = authority.split_at(end + 1);
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
        let ok = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if !ok || host.is_empty() || host.len() > 254 {
            return None;
        }
        (host, port)
    };
    match port {
        None => Some(host),
        Some(port) => {
            (port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok()))
                .then_some(host)
        }
    }
}

fn host_key(host: &str) -> String {
    let mut host = host.strip_suffix('.').unwrap_or(host).to_owned();
    host.make_ascii_lowercase();
    host
}

/// Digits only: `+5`, ` 5`, `5,5` and `0x5` mean different lengths to different servers.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

/// The items of a comma-separated field value.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

pub(crate) fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A trusted proxy's id, if it looks like one (Heroku takes 20 to 200 such characters; proxies also use shorter ones).
fn request_id(seen: &Seen<'_>, arrival: &Arrival) -> String {
    if let Some(id) = seen.request_id.filter(|_| arrival.trusted)
        && (8..=200).contains(&id.len())
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b'+' | b'/'))
    {
        return String::from_utf8_lossy(id).into_owned();
    }
    // A version 4 UUID, made here because reading the system's randomness for each would cost a system call.
    uuid_v4(arrival.random)
}

fn uuid_v4(random: u128) -> String {
    let version = 0x4_u128 << 76;
    let variant = 0x8_u128 << 60;
    let bits = random & !(0xf_u128 << 76) & !(0xc_u128 << 60) | version | variant;
    flex_model::Uuid::from_u128(bits).to_string()
}

fn forwarded_for(fields: &[httparse::Header<'_>], arrival: &Arrival) -> String {
    let mut chain = String::new();
    if arrival.trusted {
        for field in fields.iter().filter(|f| Known::of(f.name) == Known::ForwardedFor) {
            for item in list(field.value) {
                chain.push_str(&String::from_utf8_lossy(item));
                chain.push_str(", ");
            }
        }
    }
    let _ = write!(chain, "{}", arrival.peer);
    chain
}

fn write_arrival(
    seen: &Seen<'_>,
    arrival: &Arrival,
    target: &Target<'_>,
    forwarded_for: &str,
    request_id: &str,
    http10: bool,
    out: &mut Vec<u8>,
) {
    let trusted = |value: Option<&[u8]>| value.filter(|_| arrival.trusted).map(<[u8]>::to_vec);
    if seen.te_trailers {
        write_field("TE", b"trailers", out);
    }
    write_field("X-Request-ID", request_id.as_bytes(), out);
    write_field("X-Forwarded-For", forwarded_for.as_bytes(), out);
    let proto = trusted(seen.proto).filter(|p| p == b"http" || p == b"https").unwrap_or_else(|| arrival.scheme.into());
    write_field("X-Forwarded-Proto", &proto, out);
    let port = trusted(seen.port).filter(|p| content_length(p).is_some()).unwrap_or_else(|| arrival.port.to_string().into());
    write_field("X-Forwarded-Port", &port, out);
    write_forwarded(seen, arrival, target, forwarded_for, &proto, out);
    let host = trusted(seen.forwarded_host).unwrap_or_else(|| target.authority.into());
    write_field("X-Forwarded-Host", &host, out);
    let start = trusted(seen.start).unwrap_or_else(|| arrival.at_ms.to_string().into());
    write_field("X-Request-Start", &start, out);
    let via: &[u8] = match (arrival.via, http10) {
        (Some(via), _) => via,
        (None, true) => b"1.0 flex-router",
        (None, false) => b"1.1 flex-router",
    };
    write_field("Via", via, out);
}

/// `Forwarded` (RFC 7239). A trusted proxy's own is continued; one that speaks only in `X-Forwarded-*` is understood.
fn write_forwarded(
    seen: &Seen<'_>,
    arrival: &Arrival,
    target: &Target<'_>,
    forwarded_for: &str,
    proto: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"Forwarded: ");
    let told = arrival.trusted && !seen.forwarded.is_empty();
    if told {
        for value in &seen.forwarded {
            out.extend_from_slice(value);
            out.extend_from_slice(b", ");
        }
    } else if arrival.trusted {
        let (first, rest) = forwarded_for.split_once(", ").unwrap_or((forwarded_for, ""));
        let host = seen.forwarded_host.unwrap_or(target.authority.as_bytes());
        write_element(first, Some((host, proto)), out);
        for node in rest.split(", ").filter(|n| !n.is_empty()) {
            out.extend_from_slice(b", ");
            write_element(node, None, out);
        }
    }
    if told || !arrival.trusted {
        let own = (target.authority.as_bytes(), arrival.scheme.as_bytes());
        match arrival.peer {
            IpAddr::V4(_) => {
                let at = forwarded_for.rfind(' ').map_or(0, |at| at + 1);
                out.extend_from_slice(b"for=");
                out.extend_from_slice(&forwarded_for.as_bytes()[at..]);
                write_rest(own, out);
            }
            IpAddr::V6(peer) => write_element(&peer.to_string(), Some(own), out),
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// One element. What is no address is `unknown`: a proxy's word is believed, not its spelling.
fn write_element(node: &str, rest: Option<(&[u8], &[u8])>, out: &mut Vec<u8>) {
    use std::net::SocketAddr;
    let node = match (node.parse::<IpAddr>(), node.parse::<SocketAddr>()) {
        (Ok(IpAddr::V4(ip)), _) => ip.to_string(),
        (Ok(IpAddr::V6(ip)), _) => format!("\"[{ip}]\""),
        (Err(_), Ok(both)) => format!("\"{both}\""),
        _ => "unknown".to_owned(),
    };
    out.extend_from_slice(b"for=");
    out.extend_from_slice(node.as_bytes());
    if let Some(rest) = rest {
        write_rest(rest, out);
    }
}

/// The host, quoted because of its port, and the scheme. Only what is sound in quotes is written.
fn write_rest((host, proto): (&[u8], &[u8]), out: &mut Vec<u8>) {
    if host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')) {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(proto);
}

/// Makes text safe inside the quotes of an access line: no quote, nothing that escapes one, no control character. What would
/// make more than `most` bytes is cut off, and `…` says so.
fn escape(text: &str, most: usize, out: &mut String) {
    let end = out.len() + most;
    for c in text.chars() {
        if out.len() >= end {
            return out.push('…');
        }
        match c {
            '"' => out.push_str("%22"),
            '\\' => out.push_str("%5C"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
