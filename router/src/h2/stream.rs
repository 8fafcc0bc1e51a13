//! One HTTP/2 request as a stream of HTTP/1.1 bytes, so that there is one engine and one strict parser for all: the request
//! is read from it as HTTP/1.1, and the answer is written to it as HTTP/1.1. Content passes frame by frame, with
//! HTTP/2's flow control on both sides: what the instance does not take is not asked for, what the client does not take is not read.
//!
//! Must not: put into the head what could end a line, or anything that frames content; keep more than a frame.

use crate::h1::{
    chunk::{ChunkDecoder, Piece},
    request::content_length,
};
use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream, ext::Protocol, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most taken from the engine for one DATA frame.
pub(super) const FRAME: usize = 16 << 10;
/// The largest head of an answer; the engine keeps to its own limit.
const MAX_HEAD: usize = 256 << 10;

/// How content is written to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    /// As it is: its length was said, or it is a tunnel's.
    Raw,
    Chunked,
}

/// What comes next from the engine.
#[derive(Debug)]
enum Outbound {
    Head(Vec<u8>),
    Length(u64),
    Chunked(ChunkDecoder),
    Tunnel,
    Done,
}

pub(crate) struct Stream {
    body: RecvStream,
    inbound: Inbound,
    queue: VecDeque<Part>,
    body_done: bool,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    out: Outbound,
    head_only: bool,
    /// Extended CONNECT (RFC 8441).
    connect: bool,
    /// The instance switched protocols: the two directions end each by itself.
    tunnel: bool,
}

pub(super) enum Part {
    /// Counted by flow control.
    Content(Bytes),
    Framing(Bytes),
}

impl Part {
    pub(super) fn bytes(&mut self) -> &mut Bytes {
        match self {
            Self::Content(b) | Self::Framing(b) => b,
        }
    }
}

/// Makes the stream, and the head that the engine is to read. `key`: randomness for a WebSocket's key.
pub(crate) fn open(request: Request<RecvStream>, respond: SendResponse<Bytes>, key: u128) -> Result<(Stream, Vec<u8>), Refused> {
    let (parts, body) = request.into_parts();
    let tunnel = parts.extensions.get::<Protocol>().map(|p| p.as_str().to_owned());
    let ended = body.is_end_stream();
    let mut head = Vec::with_capacity(512);
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    if parts.headers.get_all(header::HOST).iter().count() > 1 {
        return Err(Refused(respond));
    }
    let authority = match (parts.uri.authority(), parts.headers.get(header::HOST)) {
        (Some(a), None) => a.as_str().as_bytes(),
        (Some(a), Some(h)) if h.as_bytes().eq_ignore_ascii_case(a.as_str().as_bytes()) => a.as_str().as_bytes(),
        (None, Some(h)) => h.as_bytes(),
        // Two names for one request: which one an instance believes is not ours to guess.
        _ => return Err(Refused(respond)),
    };
    let method = match (&parts.method, tunnel.as_deref()) {
        (&Method::CONNECT, Some("websocket")) => "GET",
        (&Method::CONNECT, Some(_)) => return Err(Refused(respond)),
        (method, _) => method.as_str(),
    };
    // A plain CONNECT has no path; the engine refuses it by its method.
    let target =
        if parts.method == Method::CONNECT && tunnel.is_none() { String::from_utf8_lossy(authority) } else { path.into() };
    for part in [method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\nHost: ", authority, b"\r\n"] {
        head.extend_from_slice(part);
    }
    let mut cookies: Vec<u8> = Vec::new();
    for (name, value) in &parts.headers {
        match name {
            &header::HOST => {}
            // RFC 9113 section 8.2.3: pieces of a cookie are put together for HTTP/1.1.
            &header::COOKIE => {
                if !cookies.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value.as_bytes());
            }
            name if is_hop(name) => return Err(Refused(respond)),
            name => field(name.as_str(), value.as_bytes(), &mut head),
        }
    }
    if !cookies.is_empty() {
        field("cookie", &cookies, &mut head);
    }
    let mut inbound = Inbound::Raw;
    let connect = tunnel.is_some();
    if connect {
        field("upgrade", b"websocket", &mut head);
        field("connection", b"Upgrade", &mut head);
        field("sec-websocket-key", base64(&key.to_be_bytes()).as_bytes(), &mut head);
        if parts.headers.contains_key(header::CONTENT_LENGTH) {
            return Err(Refused(respond));
        }
    } else if !ended && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        inbound = Inbound::Chunked;
        field("transfer-encoding", b"chunked", &mut head);
    }
    head.extend_from_slice(b"\r\n");
    let stream = Stream {
        body,
        inbound,
        queue: VecDeque::new(),
        body_done: ended,
        respond,
        send: None,
        out: Outbound::Head(Vec::new()),
        head_only: parts.method == Method::HEAD,
        connect,
        tunnel: false,
    };
    Ok((stream, head))
}

/// A request that HTTP/2 does not allow.
pub(crate) struct Refused(SendResponse<Bytes>);

impl Refused {
    pub(crate) fn reset(mut self) {
        self.0.send_reset(h2::Reason::PROTOCOL_ERROR);
    }
}

/// Fields that HTTP/2 does not have (RFC 9113 section 8.2.2).
pub(super) fn is_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings")
}

pub(super) fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
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

pub(super) fn broken(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}

impl Stream {
    /// The client has given up.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_| ())
    }

    /// Takes a head off the front of what the engine wrote.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Outbound::Head(head) = &mut self.out else { return Ok(0) };
        let before = head.len();
        head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(at) = head[from..].windows(4).position(|w| w == b"\r\n\r\n") else {
            return if head.len() > MAX_HEAD { Err(broken("an answer's head is too large")) } else { Ok(bytes.len()) };
        };
        let end = from + at + 4;
        let mut head = std::mem::take(head);
        head.truncate(end);
        self.answer(&head)?;
        Ok(end - before)
    }

    fn answer(&mut self, head: &[u8]) -> io::Result<()> {
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
            if is_hop(&name) || self.connect && name == "sec-websocket-accept" {
                continue;
            }
            if name == header::CONTENT_LENGTH {
                length = content_length(f.value);
            }
            answer.headers_mut().append(name, HeaderValue::from_bytes(f.value).map_err(broken)?);
        }
        *answer.status_mut() = status;
        if status == StatusCode::SWITCHING_PROTOCOLS && self.connect {
            *answer.status_mut() = StatusCode::OK;
            self.send = Some(self.respond.send_response(answer, false).map_err(broken)?);
            (self.out, self.tunnel) = (Outbound::Tunnel, true);
            return Ok(());
        }
        if status.is_informational() {
            self.out = Outbound::Head(Vec::new());
            return self.respond.send_informational(answer).map_err(broken);
        }
        self.out = match (chunked, length) {
            _ if self.head_only || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED => Outbound::Done,
            (true, _) => Outbound::Chunked(ChunkDecoder::new()),
            (false, Some(n)) if n > 0 => Outbound::Length(n),
            _ => Outbound::Done,
        };
        let end = matches!(self.out, Outbound::Done);
        self.send = Some(self.respond.send_response(answer, end).map_err(broken)?);
        Ok(())
    }

    fn poll_content(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let can = match &self.out {
            Outbound::Done => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            _ => ready!(poll_capacity(send, cx, bytes.len().min(FRAME)))?,
        };
        let bytes = &bytes[..can];
        match &mut self.out {
            Outbound::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                let end = *left == 0;
                send.send_data(Bytes::copy_from_slice(&bytes[..n]), end).map_err(broken)?;
                if end {
                    self.out = Outbound::Done;
                }
                Poll::Ready(Ok(n))
            }
            Outbound::Chunked(decoder) => {
                let mut input = bytes;
                loop {
                    match decoder.next(&mut input).map_err(|e| broken(e.0))? {
                        Piece::NeedMore => break,
                        Piece::Data(data) => send.send_data(Bytes::copy_from_slice(data), false).map_err(broken)?,
                        Piece::End => {
                            end_with(send, decoder)?;
                            self.out = Outbound::Done;
                            break;
                        }
                    }
                }
                Poll::Ready(Ok(bytes.len() - input.len()))
            }
            _ => {
                send.send_data(Bytes::copy_from_slice(bytes), false).map_err(broken)?;
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    /// The next part of the request's content. False: there is no more.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => {
                if self.inbound == Inbound::Chunked && !data.is_empty() {
                    self.queue.push_back(Part::Framing(format!("{:x}\r\n", data.len()).into()));
                    self.queue.push_back(Part::Content(data));
                    self.queue.push_back(Part::Framing(Bytes::from_static(b"\r\n")));
                } else {
                    self.queue.push_back(Part::Content(data));
                }
                Poll::Ready(Ok(true))
            }
            Some(Err(e)) => Poll::Ready(Err(broken(e))),
            None => {
                let trailers = ready!(self.body.poll_trailers(cx)).map_err(broken)?;
                self.body_done = true;
                if self.inbound == Inbound::Raw {
                    return Poll::Ready(Ok(false));
                }
                let mut end = b"0\r\n".to_vec();
                for (name, value) in trailers.iter().flatten() {
                    field(name.as_str(), value.as_bytes(), &mut end);
                }
                end.extend_from_slice(b"\r\n");
                self.queue.push_back(Part::Framing(end.into()));
                Poll::Ready(Ok(true))
            }
        }
    }
}

/// How much content the other side takes now; at least one byte.
pub(super) fn poll_capacity(send: &mut SendStream<Bytes>, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
    send.reserve_capacity(want);
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Poll::Ready(Err(broken(e))),
            None => return Poll::Ready(Err(broken("the other side ended the stream"))),
        }
    }
    Poll::Ready(Ok(send.capacity().min(want)))
}

/// Ends the content, with its trailers if it has some.
pub(super) fn end_with(send: &mut SendStream<Bytes>, decoder: &ChunkDecoder) -> io::Result<()> {
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
    let ended = if trailers.is_empty() { send.send_data(Bytes::new(), true) } else { send.send_trailers(trailers) };
    ended.map_err(broken)
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let begun = buf.filled().len();
        loop {
            while let Some(part) = this.queue.front_mut() {
                let bytes = part.bytes();
                let n = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..n]);
                bytes.advance(n);
                let whole = bytes.is_empty();
                if matches!(part, Part::Content(_)) {
                    this.body.flow_control().release_capacity(n).map_err(broken)?;
                }
                if !whole {
                    return Poll::Ready(Ok(()));
                }
                this.queue.pop_front();
            }
            if buf.filled().len() > begun {
                return Poll::Ready(Ok(()));
            }
            if this.body_done {
                // The end of a tunnel's stream is told; a request's end is known by its framing, and what remains to be
                // seen is whether the client still wants the answer.
                return if this.tunnel { Poll::Ready(Ok(())) } else { this.poll_reset(cx).map(Ok) };
            }
            if !ready!(this.poll_part(cx))? {
                continue;
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let (mut taken, mut rest) = (0, bytes);
        while !rest.is_empty() {
            let n = if matches!(this.out, Outbound::Head(_)) {
                this.take_head(rest)?
            } else {
                match this.poll_content(cx, rest) {
                    Poll::Ready(n) => n?,
                    Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                    Poll::Pending => return Poll::Pending,
                }
            };
            taken += n;
            rest = &rest[n..];
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.out, Outbound::Tunnel)
            && let Some(send) = &mut self.send
        {
            let ended = send.send_data(Bytes::new(), true);
            self.out = Outbound::Done;
            return Poll::Ready(ended.map_err(broken));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if matches!(self.out, Outbound::Done) {
            return;
        }
        // An answer that broke off must not look like one that ended.
        match &mut self.send {
            Some(send) => send.send_reset(h2::Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
}
