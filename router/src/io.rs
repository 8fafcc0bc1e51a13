//! Reading and writing for one thread: a shared scratch buffer instead of a buffer per connection, so that an idle
//! connection costs next to nothing; and the guard that ends what takes too long without a timer per request.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Large enough that a system call's cost no longer shows in bulk transfers, small enough to stay in the cache.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// A connection of which the first bytes were read already.
pub(crate) struct Ahead {
    bytes: Vec<u8>,
    pub(crate) stream: TcpStream,
}

impl Ahead {
    pub(crate) fn new(bytes: Vec<u8>, stream: TcpStream) -> Self {
        Self { bytes, stream }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes[..n]);
        self.bytes.drain(..n);
        if self.bytes.is_empty() {
            // An idle connection does not hold the room for its hello.
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A byte stream that both directions of an exchange share on one thread.
pub(crate) struct Io<S>(RefCell<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(RefCell::new(stream))
    }

    /// Reads once, at most `limit` bytes, and shows them to `f`. No bytes means the end of the stream.
    ///
    /// `f` must not read through another `Io`: the scratch buffer is in use.
    pub(crate) fn poll_read<R>(
        &self,
        cx: &mut Context<'_>,
        limit: usize,
        f: impl FnOnce(&mut Context<'_>, &[u8]) -> R,
    ) -> Poll<io::Result<R>> {
        BUFFER.with_borrow_mut(|scratch| {
            let limit = limit.min(scratch.len());
            let mut buf = ReadBuf::new(&mut scratch[..limit]);
            ready!(Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(f(cx, buf.filled())))
        })
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, bytes)) {
            Ok(0) if !bytes.is_empty() => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            done => Poll::Ready(done),
        }
    }

    /// Sends what the stream itself holds back: TLS writes records, and a record may be taken in part. Does nothing on a
    /// plain connection.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }

    pub(crate) fn into_inner(self) -> S {
        self.0.into_inner()
    }

    /// Looks at the stream itself.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&S) -> R) -> R {
        f(&self.0.borrow())
    }
}

/// Milliseconds on this worker's own clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }
    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One connection's deadline. The worker's sweep marks it; the connection, woken, looks at it first thing.
#[derive(Debug)]
pub(crate) struct Guard {
    clock: Clock,
    deadline: Cell<u64>,
    expired: Cell<bool>,
    /// Between two requests: may be closed at once when the router stops.
    idle: Cell<bool>,
    stop: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Guard {
    pub(crate) fn new(clock: Clock) -> Rc<Self> {
        Rc::new(Self {
            clock,
            deadline: Cell::new(u64::MAX),
            expired: Cell::new(false),
            idle: Cell::new(true),
            stop: Cell::new(false),
            waker: RefCell::new(None),
        })
    }

    /// Starts the time anew.
    pub(crate) fn arm(&self, within: std::time::Duration) {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.deadline.set(self.clock.now_ms().saturating_add(ms));
        self.expired.set(false);
    }

    /// Its own time is over; the router's end is something else.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired.get()
    }

    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.set(idle);
    }

    /// Whether the time is over; otherwise the task is woken when it is.
    pub(crate) fn poll_expired(&self, cx: &mut Context<'_>) -> bool {
        if self.expired.get() || self.stop.get() && self.idle.get() {
            return true;
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// The worker's look at it. With `stop`, an idle connection ends now.
    pub(crate) fn sweep(&self, now_ms: u64, stop: bool) {
        if stop {
            self.stop.set(true);
        }
        if now_ms >= self.deadline.get() {
            self.expired.set(true);
        }
        if (self.expired.get() || stop && self.idle.get())
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}
