//! One HTTP/2 request as a stream of HTTP/1.1 bytes, so that there is one engine and one strict parser for all: the request
//! is read from it as HTTP/1.1, and the answer is written to it as HTTP/1.1. Content passes frame by frame, with
//! HTTP/2's flow control on both sides: what the instance does not take is not asked for, what the client does not take is not read.
//!
//! Must not: put into the head what could end a line, or anything that frames content; keep more than a frame.

use crate::h1::{
    carry::{Asked, Carried, FRAME, Inbound, Outbound, broken, last_chunk, trailers},
    chunk::{ChunkDecoder, Piece},
};
use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream, ext::Protocol, server::SendResponse};
use http::Request;
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    let ended = body.is_end_stream();
    let asked = Asked {
        method: &parts.method,
        authority: parts.uri.authority().map(http::uri::Authority::as_str),
        path: parts.uri.path_and_query().map_or("", |p| p.as_str()),
        protocol: parts.extensions.get::<Protocol>().map(Protocol::as_str),
        headers: &parts.headers,
        ended,
    };
    let Some(Carried { head, inbound, head_only, connect }) = Carried::new(&asked, key) else { return Err(Refused(respond)) };
    let stream = Stream {
        body,
        inbound,
        queue: VecDeque::new(),
        body_done: ended,
        respond,
        send: None,
        out: Outbound::new(),
        head_only,
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
        let (n, answer) = self.out.take_head(bytes, self.connect, self.head_only)?;
        let Some(answer) = answer else { return Ok(n) };
        match &self.out {
            Outbound::Head(_) => self.respond.send_informational(answer).map_err(broken)?,
            out => {
                self.tunnel = matches!(out, Outbound::Tunnel);
                self.send = Some(self.respond.send_response(answer, out.is_done()).map_err(broken)?);
            }
        }
        Ok(n)
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
                let end = last_chunk(trailers.as_ref());
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
    let trailers = trailers(decoder)?;
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
