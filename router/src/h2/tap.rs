//! The stream under an HTTP/2 connection. It counts the frames that cost their sender nothing, so that floods of them end
//! the connection; and it gathers what is written until every stream that is ready has had its turn, so that many
//! frames share one system call and one TLS record.
//!
//! Must not: understand frames beyond their nine-byte head; that is the protocol's own business.

use crate::{
    metrics::{Counters, Limit},
    settings::Limits,
};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Written bytes gathered at most; two full frames.
const GATHER: usize = 32 << 10;
/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`
pub(crate) const PREFACE: usize = 24;

/// How many of a kind of frame, or event, may come: so many at once, and so many a second.
#[derive(Debug)]
pub(crate) struct Budget {
    left: f64,
    most: f64,
    per_second: f64,
    at: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(most: f64, per_second: f64) -> Self {
        Self { left: most, most, per_second, at: None }
    }

    /// Requests that a client gives up.
    pub(crate) fn resets(limits: &Limits) -> Self {
        let most = f64::from(limits.http2_resets);
        Self::new(most, most / 4.0)
    }

    /// False: it is used up. The clock is read only then.
    pub(crate) fn spend(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left < 1.0 {
            let now = now();
            let since = self.at.replace(now).map_or(0.0, |at| now.duration_since(at).as_secs_f64());
            self.left = (self.left + since * self.per_second).min(self.most);
        }
        self.left -= 1.0;
        self.left >= 0.0
    }
}

/// Counts frames in the bytes that a client sends.
#[derive(Debug)]
pub(crate) struct FrameCount {
    /// Bytes of the preface or of a frame's payload still to pass.
    skip: usize,
    head: [u8; 9],
    have: usize,
    /// RST_STREAM: each may have cost an instance a request (CVE-2023-44487).
    resets: Budget,
    /// SETTINGS, PING, PRIORITY, frames of unknown kinds, and DATA without content.
    control: Budget,
    /// WINDOW_UPDATE: a client may send two for each frame that it gets.
    windows: Budget,
    /// CONTINUATION frames in a row (CVE-2024-27316).
    continued: usize,
    most_continued: usize,
}

impl FrameCount {
    pub(crate) fn new(limits: &Limits) -> Self {
        let (control, windows) = (f64::from(limits.http2_control_frames), f64::from(limits.http2_window_updates));
        Self {
            skip: PREFACE,
            head: [0; 9],
            have: 0,
            resets: Budget::resets(limits),
            control: Budget::new(control, control / 10.0),
            windows: Budget::new(windows, windows),
            continued: 0,
            // A frame holds 16 KiB; who uses small ones gets twice as many and a few.
            most_continued: limits.head_bytes / (8 << 10) + 4,
        }
    }

    /// Which limit the client is over, if it floods.
    pub(crate) fn count(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Limit> {
        while !bytes.is_empty() {
            let n = self.skip.min(bytes.len());
            self.skip -= n;
            bytes = &bytes[n..];
            if bytes.is_empty() {
                break;
            }
            let n = (9 - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == 9 {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.frame(kind, flags, &now)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u8, now: &impl Fn() -> Instant) -> Result<(), Limit> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const WINDOW_UPDATE: u8 = 8;
        const CONTINUATION: u8 = 9;
        const END_STREAM: u8 = 1;
        if kind == CONTINUATION {
            self.continued += 1;
            return if self.continued <= self.most_continued { Ok(()) } else { Err(Limit::Http2Continuations) };
        }
        self.continued = 0;
        let (budget, limit) = match kind {
            HEADERS => return Ok(()),
            DATA if self.skip > 0 || flags & END_STREAM != 0 => return Ok(()),
            RST_STREAM => (&mut self.resets, Limit::Http2Resets),
            WINDOW_UPDATE => (&mut self.windows, Limit::Http2WindowUpdates),
            _ => (&mut self.control, Limit::Http2ControlFrames),
        };
        if budget.spend(now) { Ok(()) } else { Err(limit) }
    }
}

pub(crate) struct Tap<S> {
    inner: S,
    /// Read before the protocol was known.
    before: Vec<u8>,
    count: FrameCount,
    counters: Arc<Counters>,
    out: Vec<u8>,
    at: usize,
    yielded: bool,
}

impl<S> Tap<S> {
    pub(crate) fn new(inner: S, before: Vec<u8>, limits: &Limits, counters: Arc<Counters>) -> Self {
        Self { inner, before, count: FrameCount::new(limits), counters, out: Vec::new(), at: 0, yielded: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let begun = buf.filled().len();
        if this.before.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        } else {
            let n = this.before.len().min(buf.remaining());
            buf.put_slice(&this.before[..n]);
            this.before.drain(..n);
        }
        let Err(limit) = this.count.count(&buf.filled()[begun..], Instant::now) else { return Poll::Ready(Ok(())) };
        Counters::add(&this.counters.h2_refused, 1);
        this.counters.hit(limit, ());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many HTTP/2 frames")))
    }
}

impl<S: AsyncWrite + Unpin> Tap<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.out.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out[self.at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.at += n,
            }
        }
        // Gives the memory back: a quiet connection holds none.
        (self.out, self.at) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() >= GATHER {
            ready!(self.poll_out(cx))?;
        }
        let n = bytes.len().min(GATHER);
        self.out.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(cx);
        }
        if !self.yielded {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_out(cx))?;
        self.yielded = false;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let n = payload.to_be_bytes();
        [&n[5..], &[kind, flags, 0, 0, 0, 1], &vec![0; payload]].concat()
    }

    #[test]
    fn floods_are_seen_however_they_are_cut_and_use_is_not() {
        let now = Instant::now();
        let run = |frames: Vec<Vec<u8>>, step: usize| {
            let mut count = FrameCount::new(&Limits::default());
            let bytes = [vec![b'P'; PREFACE], frames.concat()].concat();
            bytes.chunks(step).try_for_each(|part| count.count(part, || now))
        };
        let (control, resets) = (Err(Limit::Http2ControlFrames), Err(Limit::Http2Resets));
        for step in [1, 7, 4096, usize::MAX] {
            assert_eq!(run(vec![frame(4, 0, 6); 501], step), control, "settings");
            assert_eq!(run(vec![frame(6, 0, 8); 501], step), control, "pings");
            assert_eq!(run(vec![frame(0, 0, 0); 501], step), control, "empty data");
            assert_eq!(run(vec![[frame(1, 5, 20), frame(3, 0, 4)].concat(); 201], step), resets, "rapid reset");
            let continued = run([vec![frame(1, 1, 20)], vec![frame(9, 0, 0); 13]].concat(), step);
            assert_eq!(continued, Err(Limit::Http2Continuations));
            assert_eq!(run(vec![frame(8, 0, 4); 20_001], step), Err(Limit::Http2WindowUpdates));
            assert_eq!(run(vec![[frame(1, 5, 20), frame(8, 0, 4), frame(0, 0, 100)].concat(); 5000], step), Ok(()), "use");
            assert_eq!(run(vec![frame(3, 0, 4); 200], step), Ok(()), "some resets");
        }
    }
}
