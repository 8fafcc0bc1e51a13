//! One HTTP/3 request as a stream of HTTP/1.1 bytes, as [`crate::h2`] has it for HTTP/2. QUIC's flow control holds on both
//! sides: what the instance does not take is not read, what the client does not take is not taken from the engine.
//!
//! Must not: keep more than a chunk of content; let an answer that broke off look like one that ended (QUIC's library ends
//! a stream that is merely dropped).

use super::{
    code,
    frame::{self, FrameError, Frames, Piece},
    head, qpack,
};
use crate::h1::{
    carry::{FRAME, Inbound, Outbound, broken, last_chunk, trailers},
    chunk::Piece as Chunk,
};
use bytes::{Buf as _, Bytes};
use quinn::{Connection, SendStream, StoppedError, VarInt, WriteError};
use std::{
    cell::Cell,
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a request ended, for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The answer was not handed over whole.
    Broken,
    /// Likewise, and it was the client who gave up.
    GivenUp,
    /// The answer was handed over whole.
    Whole,
}

/// What the connection knows of a request.
pub(super) struct Start {
    pub(super) connection: Connection,
    pub(super) frames: Frames,
    pub(super) send: SendStream,
    pub(super) outcome: Rc<Cell<Outcome>>,
    /// The largest trailers.
    pub(super) head_bytes: usize,
}

/// Resolves when the client gives up on the answer, and when it has all of it.
type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>>>>;

pub(super) struct Stream {
    start: Start,
    inbound: Inbound,
    /// The content that is still to come by what the client said of it.
    left: Option<u64>,
    queue: VecDeque<Bytes>,
    /// They have come, and nothing may follow.
    trailers: Option<http::HeaderMap>,
    body_done: bool,
    /// The instance switched protocols: the two directions end each by itself.
    tunnel: bool,
    out: Outbound,
    head_only: bool,
    connect: bool,
    /// Frames that QUIC has not taken yet.
    pending: VecDeque<Bytes>,
    stopped: Option<Stopped>,
    /// Why the stream is reset, should it be.
    why: VarInt,
}

impl Stream {
    /// `length`: of the content, if it was said. `ended`: there is none.
    pub(super) fn new(start: Start, inbound: Inbound, head_only: bool, connect: bool, length: Option<u64>, ended: bool) -> Self {
        Self {
            start,
            inbound,
            left: length,
            queue: VecDeque::new(),
            trailers: None,
            body_done: ended,
            tunnel: false,
            out: Outbound::new(),
            head_only,
            connect,
            pending: VecDeque::new(),
            stopped: None,
            why: code::INTERNAL_ERROR,
        }
    }

    fn given_up(&self) {
        if self.start.outcome.get() == Outcome::Broken {
            self.start.outcome.set(Outcome::GivenUp);
        }
    }

    /// The client does not want the answer any more, or the connection is gone.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let send = &self.start.send;
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(send.stopped()));
        if let Ok(Some(_)) = ready!(stopped.as_mut().poll(cx)) {
            self.given_up();
        }
        self.stopped = None;
        Poll::Ready(())
    }

    fn malformed(&mut self, what: &'static str) -> io::Error {
        self.why = code::MESSAGE_ERROR;
        broken(what)
    }

    /// Takes the next part of the request's content.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let piece = match ready!(self.start.frames.poll(cx)) {
            Ok(piece) => piece,
            Err(FrameError::Reset) => {
                self.given_up();
                return Poll::Ready(Err(broken("the client gave the request up")));
            }
            Err(FrameError::Lost(e)) => return Poll::Ready(Err(e)),
            Err(FrameError::TooLarge) => {
                self.why = code::EXCESSIVE_LOAD;
                return Poll::Ready(Err(broken("the trailers are too large")));
            }
            Err(FrameError::Fatal(why, what)) => {
                self.start.connection.close(why, what.as_bytes());
                return Poll::Ready(Err(broken(what)));
            }
        };
        match piece {
            Piece::Data(_) | Piece::Frame(..) if self.trailers.is_some() => {
                self.start.connection.close(code::FRAME_UNEXPECTED, b"behind the trailers");
                Poll::Ready(Err(broken("there is more behind the trailers")))
            }
            Piece::Data(data) => {
                if let Some(left) = &mut self.left {
                    match left.checked_sub(data.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return Poll::Ready(Err(self.malformed("there is more content than was said"))),
                    }
                }
                if self.inbound == Inbound::Chunked {
                    self.queue.push_back(format!("{:x}\r\n", data.len()).into());
                    self.queue.push_back(data);
                    self.queue.push_back(Bytes::from_static(b"\r\n"));
                } else {
                    self.queue.push_back(data);
                }
                Poll::Ready(Ok(()))
            }
            Piece::Frame(_, block) => {
                let Ok(fields) = qpack::decode(&block, self.start.head_bytes) else {
                    self.start.connection.close(code::DECOMPRESSION_FAILED, b"trailers");
                    return Poll::Ready(Err(broken("the trailers cannot be read")));
                };
                let Some(trailers) = head::trailers(fields) else {
                    return Poll::Ready(Err(self.malformed("the trailers are malformed")));
                };
                self.trailers = Some(trailers);
                Poll::Ready(Ok(()))
            }
            Piece::End => Poll::Ready(self.end_content()),
        }
    }

    fn end_content(&mut self) -> io::Result<()> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(self.malformed("there is less content than was said"));
        }
        self.body_done = true;
        if self.inbound == Inbound::Chunked {
            self.queue.push_back(last_chunk(self.trailers.as_ref()).into());
        }
        Ok(())
    }

    fn put_headers(&mut self, status: Option<http::StatusCode>, headers: &http::HeaderMap) {
        let block = head::section(status, headers);
        let mut out = Vec::with_capacity(block.len() + 8);
        frame::put_head(frame::HEADERS, block.len(), &mut out);
        out.extend_from_slice(&block);
        self.pending.push_back(out.into());
    }

    fn put_data(pending: &mut VecDeque<Bytes>, data: &[u8]) {
        let mut out = Vec::with_capacity(data.len() + 8);
        frame::put_head(frame::DATA, data.len(), &mut out);
        out.extend_from_slice(data);
        pending.push_back(out.into());
    }

    /// Makes frames of what the engine wrote, and says how much of it that was.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Outbound::Head(_) = self.out {
            let (n, answer) = self.out.take_head(bytes, self.connect, self.head_only)?;
            if let Some(answer) = answer {
                self.put_headers(Some(answer.status()), answer.headers());
                self.tunnel = matches!(self.out, Outbound::Tunnel);
            }
            return Ok(n);
        }
        let bytes = &bytes[..bytes.len().min(FRAME)];
        match &mut self.out {
            Outbound::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                Self::put_data(&mut self.pending, &bytes[..n]);
                if *left == 0 {
                    self.out = Outbound::Done;
                }
                Ok(n)
            }
            Outbound::Chunked(decoder) => {
                let mut input = bytes;
                loop {
                    match decoder.next(&mut input).map_err(|e| broken(e.0))? {
                        Chunk::NeedMore => break,
                        Chunk::Data(data) => Self::put_data(&mut self.pending, data),
                        Chunk::End => {
                            let trailers = trailers(decoder)?;
                            if !trailers.is_empty() {
                                self.put_headers(None, &trailers);
                            }
                            self.out = Outbound::Done;
                            break;
                        }
                    }
                }
                Ok(bytes.len() - input.len())
            }
            Outbound::Tunnel => {
                Self::put_data(&mut self.pending, bytes);
                Ok(bytes.len())
            }
            Outbound::Head(_) | Outbound::Done => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Hands over what waits, and the stream's end behind it.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            // What was taken is off the chunks when it says so, and nothing is when it does not.
            let written = ready!(pin!(self.start.send.write_chunks(self.pending.make_contiguous())).poll(cx));
            let written = written.map_err(|e| {
                if let WriteError::Stopped(_) = e {
                    self.given_up();
                }
                broken(e)
            })?;
            self.pending.drain(..written.chunks);
        }
        if self.out.is_done() && self.start.outcome.get() != Outcome::Whole {
            let _ = self.start.send.finish();
            self.start.outcome.set(Outcome::Whole);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let begun = buf.filled().len();
        loop {
            while let Some(bytes) = this.queue.front_mut() {
                let n = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..n]);
                bytes.advance(n);
                if !bytes.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.queue.pop_front();
            }
            if buf.filled().len() > begun {
                return Poll::Ready(Ok(()));
            }
            if this.body_done {
                // As over HTTP/2: a tunnel's end is told, and otherwise only whether the client still wants the answer.
                return if this.tunnel { Poll::Ready(Ok(())) } else { this.poll_stopped(cx).map(Ok) };
            }
            ready!(this.poll_part(cx))?;
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_pending(cx))?;
        let mut taken = 0;
        while taken < bytes.len() {
            taken += this.take(&bytes[taken..])?;
            match this.poll_pending(cx) {
                Poll::Ready(done) => done?,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_pending(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_pending(cx))?;
        if matches!(this.out, Outbound::Tunnel) {
            this.out = Outbound::Done;
            return this.poll_pending(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let whole = self.start.outcome.get() == Outcome::Whole;
        if !whole {
            let _ = self.start.send.reset(self.why);
        }
        if !self.body_done {
            // RFC 9114 section 4.1: an answer may come before the whole request, which is then not needed.
            self.start.frames.stop(if whole { code::NO_ERROR } else { self.why });
        }
    }
}
