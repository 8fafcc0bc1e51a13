//! What of an exchange concerns the instance's side of it: the request on its way there, the head of the answer on its way
//! back, and why there may be none.

use crate::{
    Code,
    h1::{
        request::{Framing, Request},
        scan::{Scan, Scanner},
    },
    h2::outgoing::Trouble,
    io::Io,
    policy::Pace,
    pump::{Pump, PumpError, Waits},
};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer's head.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The instance ended its stream before the head was whole.
    Closed,
    /// The instance did nothing with the request, and said so.
    Unprocessed,
    Malformed,
    /// Its head is larger than heads may be.
    TooLarge,
    ClientGone,
    BadContent,
    /// By the route's policy.
    Refused(Code),
    Late(Option<Waits>),
}

impl Broken {
    pub(crate) fn of(e: &std::io::Error) -> Self {
        match Trouble::of(e) {
            None => Self::Closed,
            Some(Trouble::Unprocessed) => Self::Unprocessed,
            Some(Trouble::Protocol) => Self::Malformed,
            Some(Trouble::Unsendable) => Self::BadContent,
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Closed | Self::Unprocessed => Code::ClosedWithoutResponse,
            Self::Malformed => Code::PoorlyFormattedResponse,
            Self::TooLarge => Code::HttpRestriction,
            Self::ClientGone => Code::ClientRequestInterrupted,
            Self::BadContent => Code::RequestError,
            Self::Refused(code) => *code,
            // The client owes content, the instance owes reading it, or the instance owes an answer.
            Self::Late(Some(Waits::Source)) => Code::ClientConnectionIdle,
            Self::Late(Some(Waits::Sink)) => Code::IdleConnection,
            Self::Late(None) => Code::RequestTimeout,
        }
    }
}

/// The head of an answer as it comes in.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) buf: Vec<u8>,
    scanner: Scanner,
    pub(crate) interim: usize,
}

impl Answer {
    pub(crate) fn untouched(&self) -> bool {
        self.buf.is_empty() && self.interim == 0
    }

    pub(crate) fn scan(&mut self, limit: usize) -> Option<Result<usize, Broken>> {
        match self.scanner.advance(&self.buf) {
            Scan::Complete(n) if n <= limit => Some(Ok(n)),
            Scan::Partial if self.buf.len() < limit => None,
            Scan::Bad(_) => Some(Err(Broken::Malformed)),
            Scan::Complete(_) | Scan::Partial => Some(Err(Broken::TooLarge)),
        }
    }

    /// Takes the head of `n` bytes off.
    pub(crate) fn next(&mut self, n: usize) {
        self.buf.drain(..n);
        self.scanner = Scanner::default();
        self.interim += 1;
    }
}

/// The request on its way to the instance.
pub(crate) struct Sending {
    pump: Option<Pump>,
    /// Content that was already there with the head and went out with it; kept in the client's buffer until an answer
    /// begins, so that it can be sent again.
    kept: usize,
    /// All content was kept (or there is none), so the whole request can be sent again.
    whole: bool,
    /// Content that came later and may be sent again.
    record: Option<Vec<u8>>,
    broken: bool,
    moved: u64,
    wrote: bool,
    progress: bool,
    pub(crate) pace: Pace,
}

impl Sending {
    /// `greeting` goes before it. Err: the content's framing is wrong already in what has come.
    pub(crate) fn new(request: &Request, buf: &mut Vec<u8>, greeting: Vec<u8>, record: bool) -> Result<Self, ()> {
        let mut head = greeting;
        head.extend_from_slice(&request.upstream);
        let (mut kept, mut whole) = (0, true);
        let pump = match request.framing {
            Framing::Length(n) if n <= buf.len() as u64 => {
                kept = usize::try_from(n).map_err(|_| ())?;
                head.extend_from_slice(&buf[..kept]);
                Pump::new(Framing::None, false, head)
            }
            Framing::None | Framing::Close => Pump::new(Framing::None, false, head),
            framing => {
                let mut pump = Pump::new(framing, framing == Framing::Chunked, head);
                let n = pump.feed(buf).map_err(|_| ())?;
                if record {
                    pump.record(&buf[..n]);
                }
                buf.drain(..n);
                whole = false;
                pump
            }
        };
        let moved = kept as u64;
        let pump = Some(pump);
        let pace = Pace::default();
        Ok(Self { pump, kept, whole, record: None, broken: false, moved, wrote: false, progress: false, pace })
    }

    pub(crate) fn poll<S, U>(&mut self, cx: &mut Context<'_>, client: &Io<S>, buf: &mut Vec<u8>, io: &Io<U>) -> Result<(), Broken>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(pump) = &mut self.pump else { return Ok(()) };
        let done = pump.poll(cx, client, buf, io);
        let progress = std::mem::take(&mut pump.progress);
        self.progress |= progress;
        self.wrote |= progress;
        match done {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(PumpError::Source)) => return Err(Broken::ClientGone),
            Poll::Ready(Err(PumpError::Framing)) => return Err(Broken::BadContent),
            // The instance reads no more, but may have answered already.
            Poll::Ready(Err(PumpError::Sink)) => self.broken = true,
        }
        self.moved += pump.moved;
        self.record = pump.take_record();
        self.pump = None;
        Ok(())
    }

    /// Nothing more will be sent.
    pub(crate) fn is_done(&self) -> bool {
        self.pump.is_none()
    }

    /// All of it was sent.
    pub(crate) fn is_complete(&self) -> bool {
        self.pump.is_none() && !self.broken
    }

    /// The client owes nothing more of this request.
    pub(crate) fn is_read(&self) -> bool {
        self.pump.as_ref().is_none_or(Pump::source_done)
    }

    pub(crate) fn waits(&self) -> Option<Waits> {
        self.pump.as_ref().map(|p| p.waits)
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved + self.pump.as_ref().map_or(0, |p| p.moved)
    }

    pub(crate) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// The instance cannot have acted on it (nothing was sent), or acting twice is acting once; and it is all still here.
    pub(crate) fn may_repeat(&self, idempotent: bool) -> bool {
        self.whole && (idempotent || !self.wrote)
    }

    /// Puts content back into the client's buffer, to be sent again. False: it was too much to be kept.
    pub(crate) fn put_back(self, buf: &mut Vec<u8>) -> bool {
        if self.whole {
            return true;
        }
        let Some(mut record) = self.pump.map_or(self.record, |mut p| p.take_record()) else { return false };
        record.append(buf);
        *buf = record;
        true
    }

    /// An answer has begun: what was kept to be sent again is not needed any more.
    pub(crate) fn release(&mut self, buf: &mut Vec<u8>) {
        self.record = None;
        if let Some(pump) = &mut self.pump {
            pump.take_record();
        }
        buf.drain(..std::mem::take(&mut self.kept));
        if buf.is_empty() {
            *buf = Vec::new();
        }
    }
}
