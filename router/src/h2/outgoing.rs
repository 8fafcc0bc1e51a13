//! One request to an instance that speaks HTTP/2, as a stream of HTTP/1.1 bytes: the engine writes its request and reads
//! the answer as HTTP/1.1, so that there is one engine for all. The mirror image of [`super::stream`], with HTTP/2's flow
//! control on both sides here too.
//!
//! Must not: keep more than a frame; say that a request was not processed when that is not certain.

use super::{
    links::Place,
    stream::{Part, end_with},
};
use crate::h1::{
    carry::{FRAME, broken, field, is_hop, last_chunk},
    chunk::{ChunkDecoder, Piece},
    request::content_length,
};
use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use std::{
    collections::VecDeque,
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long an instance may take to end a stream whose content is whole.
const END: Duration = Duration::from_secs(1);

/// What happened to a request, where that decides what becomes of it. Found inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// The instance did nothing with it (RFC 9113 section 8.7).
    #[error("the instance did not process the request")]
    Unprocessed,
    /// The instance does not speak HTTP/2 as it should.
    #[error("the instance does not speak HTTP/2")]
    Protocol,
    /// There is no such request in HTTP/2.
    #[error("the request cannot be sent over HTTP/2")]
    Unsendable,
}

impl Trouble {
    pub(crate) fn of(e: &io::Error) -> Option<Self> {
        e.get_ref()?.downcast_ref().copied()
    }

    fn error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, self)
    }
}

/// What comes next from the engine.
enum Up {
    Head(Vec<u8>),
    Length(u64),
    Chunked(ChunkDecoder),
    Done,
}

/// What comes next for the engine.
enum Down {
    /// The request is not sent yet; who waits for the answer.
    Nothing(Option<Waker>),
    Head(ResponseFuture),
    Raw(RecvStream),
    Chunked(RecvStream),
    End,
}

pub(crate) struct Outgoing {
    place: Place,
    up: Up,
    send: Option<SendStream<Bytes>>,
    down: Down,
    queue: VecDeque<Part>,
    head_only: bool,
    trouble: Option<Trouble>,
}

impl Outgoing {
    pub(super) fn new(place: Place) -> Self {
        let (up, down) = (Up::Head(Vec::new()), Down::Nothing(None));
        Self { place, up, send: None, down, queue: VecDeque::new(), head_only: false, trouble: None }
    }

    /// The instance took too long.
    pub(crate) fn late(&self) {
        self.place.close();
    }

    /// Takes the stream's end off, where its content's length said it before: dropped at once, it would look like a request
    /// that was given up.
    pub(crate) fn finish(mut self) {
        if let Down::Raw(mut body) = std::mem::replace(&mut self.down, Down::End)
            && !body.is_end_stream()
        {
            tokio::task::spawn_local(async move {
                let _ = tokio::time::timeout(END, body.data()).await;
                drop(self);
            });
        }
    }

    /// Takes the head off the front of what the engine wrote.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Up::Head(head) = &mut self.up else { return Ok(0) };
        let before = head.len();
        head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(at) = head[from..].windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(bytes.len()) };
        let end = from + at + 4;
        let mut head = std::mem::take(head);
        head.truncate(end);
        let Some((request, up)) = translate(&head) else {
            self.trouble = Some(Trouble::Unsendable);
            return Err(Trouble::Unsendable.error());
        };
        self.head_only = request.method() == Method::HEAD;
        let ended = matches!(up, Up::Done);
        self.up = up;
        match self.place.sender().send_request(request, ended) {
            Ok((answer, send)) => {
                self.send = Some(send);
                if let Down::Nothing(Some(waiting)) = std::mem::replace(&mut self.down, Down::Head(answer)) {
                    waiting.wake();
                }
                Ok(end - before)
            }
            // Nothing was sent: the connection had been told to take no more, or is gone.
            Err(e) => {
                self.trouble = Some(if e.is_library() { Trouble::Protocol } else { Trouble::Unprocessed });
                Err(broken(e))
            }
        }
    }

    fn poll_content(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if matches!(self.up, Up::Done) {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let can = ready!(super::stream::poll_capacity(send, cx, bytes.len().min(FRAME)))?;
        let mut input = &bytes[..can];
        let mut taken = can;
        match &mut self.up {
            Up::Length(left) => {
                taken = usize::try_from(*left).unwrap_or(usize::MAX).min(can);
                *left -= taken as u64;
                let end = *left == 0;
                send.send_data(Bytes::copy_from_slice(&input[..taken]), end).map_err(broken)?;
                if end {
                    self.up = Up::Done;
                }
            }
            Up::Chunked(decoder) => loop {
                match decoder.next(&mut input).map_err(|e| broken(e.0))? {
                    Piece::NeedMore => break,
                    Piece::Data(data) => send.send_data(Bytes::copy_from_slice(data), false).map_err(broken)?,
                    Piece::End => {
                        end_with(send, decoder)?;
                        taken -= input.len();
                        self.up = Up::Done;
                        break;
                    }
                }
            },
            Up::Head(_) | Up::Done => {}
        }
        // Room that framing would have taken is another stream's.
        if !matches!(self.up, Up::Done) {
            send.reserve_capacity(0);
        }
        Poll::Ready(Ok(taken))
    }

    /// Writes an answer's head for the engine. `body`: none for interim ones.
    fn answer(&mut self, answer: &Response<()>, body: Option<RecvStream>) {
        let status = answer.status();
        let mut head = Vec::with_capacity(256);
        let reason = status.canonical_reason().unwrap_or("");
        head.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        let empty = self.head_only || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        // HTTP/1.1 has no trailers behind content whose length was said.
        let trailed = answer.headers().contains_key(header::TRAILER) && !empty;
        let mut length = false;
        for (name, value) in answer.headers() {
            if is_hop(name) || trailed && name == header::CONTENT_LENGTH {
                continue;
            }
            length |= name == header::CONTENT_LENGTH;
            field(name.as_str(), value.as_bytes(), &mut head);
        }
        if let Some(body) = body {
            self.down = match (empty, length, body.is_end_stream()) {
                (true, ..) => Down::Raw(body),
                (false, true, _) => Down::Raw(body),
                (false, false, true) => {
                    field("content-length", b"0", &mut head);
                    Down::Raw(body)
                }
                (false, false, false) => {
                    field("transfer-encoding", b"chunked", &mut head);
                    Down::Chunked(body)
                }
            };
        }
        head.extend_from_slice(b"\r\n");
        self.queue.push_back(Part::Framing(head.into()));
    }

    /// The next bytes for the engine. False: there are none any more.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match &mut self.down {
            Down::Nothing(waiting) => {
                *waiting = Some(cx.waker().clone());
                Poll::Pending
            }
            Down::Head(answer) => {
                match answer.poll_informational(cx) {
                    Poll::Ready(Some(Ok(interim))) => {
                        self.answer(&interim, None);
                        return Poll::Ready(Ok(true));
                    }
                    Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(why(e))),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                let (parts, body) = ready!(Pin::new(answer).poll(cx)).map_err(why)?.into_parts();
                self.answer(&Response::from_parts(parts, ()), Some(body));
                Poll::Ready(Ok(true))
            }
            Down::Raw(body) => match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.queue.push_back(Part::Content(data));
                    Poll::Ready(Ok(true))
                }
                Some(Err(e)) => Poll::Ready(Err(broken(e))),
                None => Poll::Ready(Ok(false)),
            },
            Down::Chunked(body) => {
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) if data.is_empty() => {}
                    Some(Ok(data)) => {
                        self.queue.push_back(Part::Framing(format!("{:x}\r\n", data.len()).into()));
                        self.queue.push_back(Part::Content(data));
                        self.queue.push_back(Part::Framing(Bytes::from_static(b"\r\n")));
                    }
                    Some(Err(e)) => return Poll::Ready(Err(broken(e))),
                    None => {
                        let trailers = ready!(body.poll_trailers(cx)).map_err(broken)?;
                        let end = last_chunk(trailers.as_ref());
                        self.queue.push_back(Part::Framing(end.into()));
                        self.down = Down::End;
                    }
                }
                Poll::Ready(Ok(true))
            }
            Down::End => Poll::Ready(Ok(false)),
        }
    }
}

/// Why there is no answer.
fn why(e: h2::Error) -> io::Error {
    let refused = e.is_reset() && e.reason() == Some(Reason::REFUSED_STREAM);
    // A GOAWAY's error is given to requests that it does not cover; the others go on.
    if e.is_remote() && (refused || e.is_go_away()) {
        Trouble::Unprocessed.error()
    } else if e.is_library() {
        Trouble::Protocol.error()
    } else {
        broken(e)
    }
}

/// The request of an HTTP/1.1 head as the engine writes it, and how its content will come.
fn translate(head: &[u8]) -> Option<(Request<()>, Up)> {
    let mut fields = [httparse::EMPTY_HEADER; 320];
    let mut raw = httparse::Request::new(&mut fields);
    raw.parse(head).ok()?;
    let mut request = Request::new(());
    let (mut authority, mut up) = (None, Up::Done);
    for f in &*raw.headers {
        let name = HeaderName::from_bytes(f.name.as_bytes()).ok()?;
        if name == header::HOST {
            authority = Some(f.value);
        } else if name == header::TRANSFER_ENCODING {
            up = Up::Chunked(ChunkDecoder::new());
        } else if !is_hop(&name) {
            if name == header::CONTENT_LENGTH {
                up = content_length(f.value).filter(|n| *n > 0).map_or(Up::Done, Up::Length);
            }
            request.headers_mut().append(name, HeaderValue::from_bytes(f.value).ok()?);
        }
    }
    *request.method_mut() = Method::from_bytes(raw.method?.as_bytes()).ok()?;
    // What the connection to the instance is, not what the client's is: that is told by `X-Forwarded-Proto`.
    *request.uri_mut() = Uri::builder().scheme("http").authority(authority?).path_and_query(raw.path?).build().ok()?;
    Some((request, up))
}

impl AsyncRead for Outgoing {
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
                if matches!(part, Part::Content(_))
                    && let Down::Raw(body) | Down::Chunked(body) = &mut this.down
                {
                    body.flow_control().release_capacity(n).map_err(broken)?;
                }
                if !whole {
                    return Poll::Ready(Ok(()));
                }
                this.queue.pop_front();
            }
            if buf.filled().len() > begun {
                return Poll::Ready(Ok(()));
            }
            if let Some(trouble) = this.trouble {
                return Poll::Ready(Err(trouble.error()));
            }
            if !ready!(this.poll_part(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let (mut taken, mut rest) = (0, bytes);
        while !rest.is_empty() {
            let n = if matches!(this.up, Up::Head(_)) {
                this.take_head(rest)?
            } else {
                match this.poll_content(cx, rest) {
                    Poll::Ready(Ok(n)) => n,
                    // What was taken before is told first; the next write tells of the error.
                    Poll::Ready(Err(_)) | Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
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

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
