//! Requests of HTTP/2 and HTTP/3 as HTTP/1.1 text, and answers back: what both have in common on their way through the one
//! engine and its one strict parser. Framing, flow control and streams are each protocol's own.
//!
//! Must not: put into the head what could end a line, or anything that frames content.

use super::{chunk::ChunkDecoder, request::content_length};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use std::io;

/// Most taken from the engine for one DATA frame.
pub(crate) const FRAME: usize = 16 << 10;
/// The largest head of an answer; the engine keeps to its own limit.
const MAX_HEAD: usize = 256 << 10;

/// What a request says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) authority: Option<&'a str>,
    pub(crate) path: &'a str,
    /// `:protocol` of an extended CONNECT (RFC 8441, RFC 9220).
    pub(crate) protocol: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    /// There is no content.
    pub(crate) ended: bool,
}

/// How content is written to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// As it is: its length was said, or it is a tunnel's.
    Raw,
    Chunked,
}

/// A request as the engine is to read it.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) head: Vec<u8>,
    pub(crate) inbound: Inbound,
    pub(crate) head_only: bool,
    /// Extended CONNECT.
    pub(crate) connect: bool,
}

impl Carried {
    /// `key`: randomness for a WebSocket's key. `None`: the protocol does not allow such a request.
    pub(crate) fn new(asked: &Asked<'_>, key: u128) -> Option<Self> {
        let Asked { method, headers, .. } = *asked;
        let mut head = Vec::with_capacity(512);
        if headers.get_all(header::HOST).iter().count() > 1 {
            return None;
        }
        let authority = match (asked.authority, headers.get(header::HOST)) {
            (Some(a), None) => a.as_bytes(),
            (Some(a), Some(h)) if h.as_bytes().eq_ignore_ascii_case(a.as_bytes()) => a.as_bytes(),
            (None, Some(h)) => h.as_bytes(),
            // Two names for one request: which one an instance believes is not ours to guess.
            _ => return None,
        };
        let name = match (method, asked.protocol) {
            (&Method::CONNECT, Some("websocket")) => "GET",
            (&Method::CONNECT, Some(_)) => return None,
            (method, _) => method.as_str(),
        };
        // A plain CONNECT has no path; the engine refuses it by its method.
        let plain_connect = *method == Method::CONNECT && asked.protocol.is_none();
        let target = if plain_connect { authority } else { asked.path.as_bytes() };
        for part in [name.as_bytes(), b" ", target, b" HTTP/1.1\r\nHost: ", authority, b"\r\n"] {
            head.extend_from_slice(part);
        }
        let mut cookies: Vec<u8> = Vec::new();
        for (name, value) in headers {
            match name {
                &header::HOST => {}
                // RFC 9113 section 8.2.3, RFC 9114 section 4.2.1: pieces of a cookie are put together for HTTP/1.1.
                &header::COOKIE => {
                    if !cookies.is_empty() {
                        cookies.extend_from_slice(b"; ");
                    }
                    cookies.extend_from_slice(value.as_bytes());
                }
                name if is_hop(name) => return None,
                name => field(name.as_str(), value.as_bytes(), &mut head),
            }
        }
        if !cookies.is_empty() {
            field("cookie", &cookies, &mut head);
        }
        let mut inbound = Inbound::Raw;
        let connect = asked.protocol.is_some();
        if connect {
            field("upgrade", b"websocket", &mut head);
            field("connection", b"Upgrade", &mut head);
            field("sec-websocket-key", base64(&key.to_be_bytes()).as_bytes(), &mut head);
            if headers.contains_key(header::CONTENT_LENGTH) {
                return None;
            }
        } else if !asked.ended && !headers.contains_key(header::CONTENT_LENGTH) {
            inbound = Inbound::Chunked;
            field("transfer-encoding", b"chunked", &mut head);
        }
        head.extend_from_slice(b"\r\n");
        Some(Self { head, inbound, head_only: *method == Method::HEAD, connect })
    }
}

/// What comes next from the engine.
#[derive(Debug)]
pub(crate) enum Outbound {
    Head(Vec<u8>),
    Length(u64),
    Chunked(ChunkDecoder),
    Tunnel,
    Done,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        Self::Head(Vec::new())
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Takes what belongs to a head off the front of what the engine wrote: how much that is, and the head once it is whole.
    /// Behind an interim one another head follows.
    pub(crate) fn take_head(
        &mut self,
        bytes: &[u8],
        connect: bool,
        head_only: bool,
    ) -> io::Result<(usize, Option<Response<()>>)> {
        let Self::Head(head) = self else { return Ok((0, None)) };
        let before = head.len();
        head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(at) = head[from..].windows(4).position(|w| w == b"\r\n\r\n") else {
            return if head.len() > MAX_HEAD { Err(broken("an answer's head is too large")) } else { Ok((bytes.len(), None)) };
        };
        let end = from + at + 4;
        let mut head = std::mem::take(head);
        head.truncate(end);
        let answer = self.answer(&head, connect, head_only)?;
        Ok((end - before, Some(answer)))
    }

    fn answer(&mut self, head: &[u8], connect: bool, head_only: bool) -> io::Result<Response<()>> {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut raw = httparse::Response::new(&mut fields);
        raw.parse(head).map_err(broken)?;
        let status = StatusCode::from_u16(raw.code.unwrap_or(0)).map_err(broken)?;
        let mut answer = Response::new(());
        let (mut length, mut chunked) = (None, false);
        for f in &*raw.headers {
            let name = HeaderName::from_bytes(f.name.as_bytes()).map_err(broken)?;
            if name == header::TRANSFER_ENCODING {
                chunked = true;
            }
            if is_hop(&name) || connect && name == "sec-websocket-accept" {
                continue;
            }
            if name == header::CONTENT_LENGTH {
                length = content_length(f.value);
            }
            answer.headers_mut().append(name, HeaderValue::from_bytes(f.value).map_err(broken)?);
        }
        *answer.status_mut() = status;
        *self = if status == StatusCode::SWITCHING_PROTOCOLS && connect {
            *answer.status_mut() = StatusCode::OK;
            Self::Tunnel
        } else if status.is_informational() {
            Self::new()
        } else {
            match (chunked, length) {
                _ if head_only || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED => Self::Done,
                (true, _) => Self::Chunked(ChunkDecoder::new()),
                (false, Some(n)) if n > 0 => Self::Length(n),
                _ => Self::Done,
            }
        };
        Ok(answer)
    }
}

/// The trailers behind chunked content that has ended.
pub(crate) fn trailers(decoder: &ChunkDecoder) -> io::Result<HeaderMap> {
    let mut end = Vec::new();
    decoder.write_end(&mut end);
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut trailers = HeaderMap::new();
    if let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&end[3..], &mut fields) {
        for f in fields {
            let name = HeaderName::from_bytes(f.name.as_bytes()).map_err(broken)?;
            trailers.append(name, HeaderValue::from_bytes(f.value).map_err(broken)?);
        }
    }
    Ok(trailers)
}

/// The end of chunked content, with its trailers.
pub(crate) fn last_chunk(trailers: Option<&HeaderMap>) -> Vec<u8> {
    let mut end = b"0\r\n".to_vec();
    for (name, value) in trailers.into_iter().flatten() {
        field(name.as_str(), value.as_bytes(), &mut end);
    }
    end.extend_from_slice(b"\r\n");
    end
}

/// Fields that HTTP/2 and HTTP/3 do not have (RFC 9113 section 8.2.2, RFC 9114 section 4.2).
pub(crate) fn is_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings")
}

pub(crate) fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn base64(bytes: &[u8; 16]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: usize| char::from(DIGITS[n & 63]);
    let mut out: String = bytes[..15]
        .chunks_exact(3)
        .flat_map(|c| {
            let n = usize::from(c[0]) << 16 | usize::from(c[1]) << 8 | usize::from(c[2]);
            [digit(n >> 18), digit(n >> 12), digit(n >> 6), digit(n)]
        })
        .collect();
    let last = usize::from(bytes[15]);
    out.extend([digit(last >> 2), digit(last << 4), '=', '=']);
    out
}

pub(crate) fn broken(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}
