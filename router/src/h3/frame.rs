//! Frames of HTTP/3 (RFC 9114 section 7) on a stream of a client. Content passes as it comes; of other frames the few that
//! mean something are gathered up to a limit, and the rest is thrown away as it comes, whatever length it says.
//!
//! Must not: gather because a client says how much is to come.

use super::code;
use bytes::Bytes;
use quinn::{ReadError, RecvStream, VarInt};
use std::{
    future::Future as _,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

pub(super) const DATA: u64 = 0;
pub(super) const HEADERS: u64 = 1;
pub(super) const CANCEL_PUSH: u64 = 3;
pub(super) const SETTINGS: u64 = 4;
pub(super) const PUSH_PROMISE: u64 = 5;
pub(super) const GOAWAY: u64 = 7;
pub(super) const MAX_PUSH_ID: u64 = 13;

/// Taken from a stream at once.
const CHUNK: usize = 16 << 10;

/// Which frames a stream may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Request,
    Control,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Frame(u64, Vec<u8>),
    End,
}

/// Why reading ends.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The client reset the stream.
    Reset,
    /// The connection is gone.
    Lost(io::Error),
    /// The frame that is gathered is larger than it may be.
    TooLarge,
    /// The connection has to end with this code.
    Fatal(VarInt, &'static str),
}

impl From<ReadError> for FrameError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Reset(_) => Self::Reset,
            e => Self::Lost(io::Error::new(io::ErrorKind::ConnectionReset, e)),
        }
    }
}

#[derive(Debug)]
enum State {
    Head,
    Data(u64),
    Skip(u64),
    Gather(u64, usize, Vec<u8>),
}

/// The part of a reader that knows no stream.
#[derive(Debug)]
struct Parser {
    role: Role,
    /// The largest frame that is gathered.
    most: usize,
    state: State,
    /// A frame's type and length, as far as they have come.
    head: ([u8; 16], usize),
}

impl Parser {
    fn new(role: Role, most: usize) -> Self {
        Self { role, most, state: State::Head, head: ([0; 16], 0) }
    }

    /// Takes from `bytes` what makes up the next piece. `None`: more is needed, and nothing is left.
    fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Piece>, FrameError> {
        while !bytes.is_empty() {
            let here = bytes.len() as u64;
            match &mut self.state {
                State::Head => {
                    let (head, have) = &mut self.head;
                    head[*have] = bytes[0];
                    *have += 1;
                    let _ = bytes.split_to(1);
                    let mut seen = &head[..*have];
                    if let (Some(kind), Some(length)) = (number(&mut seen), number(&mut seen)) {
                        *have = 0;
                        self.state = self.begin(kind, length)?;
                        if let State::Gather(kind, 0, _) = self.state {
                            self.state = State::Head;
                            return Ok(Some(Piece::Frame(kind, Vec::new())));
                        }
                    }
                }
                State::Data(0) | State::Skip(0) => self.state = State::Head,
                State::Data(left) => {
                    let data = bytes.split_to(usize::try_from((*left).min(here)).unwrap_or(0));
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    return Ok(Some(Piece::Data(data)));
                }
                State::Skip(left) => {
                    let n = (*left).min(here);
                    let _ = bytes.split_to(usize::try_from(n).unwrap_or(0));
                    *left -= n;
                }
                State::Gather(kind, whole, buf) => {
                    let part = bytes.split_to((*whole - buf.len()).min(bytes.len()));
                    buf.extend_from_slice(&part);
                    if buf.len() == *whole {
                        let piece = Piece::Frame(*kind, std::mem::take(buf));
                        self.state = State::Head;
                        return Ok(Some(piece));
                    }
                }
            }
        }
        if let State::Data(0) | State::Skip(0) = self.state {
            self.state = State::Head;
        }
        Ok(None)
    }

    fn begin(&self, kind: u64, length: u64) -> Result<State, FrameError> {
        let gather = || match usize::try_from(length) {
            Ok(n) if n <= self.most => Ok(State::Gather(kind, n, Vec::new())),
            _ => Err(FrameError::TooLarge),
        };
        match (self.role, kind) {
            (Role::Request, DATA) => Ok(State::Data(length)),
            (Role::Request, HEADERS) => gather(),
            (Role::Control, SETTINGS | CANCEL_PUSH | GOAWAY | MAX_PUSH_ID) => gather(),
            // 2, 6, 8 and 9 were HTTP/2's.
            (_, DATA | HEADERS | CANCEL_PUSH | SETTINGS | PUSH_PROMISE | GOAWAY | MAX_PUSH_ID | 2 | 6 | 8 | 9) => {
                Err(FrameError::Fatal(code::FRAME_UNEXPECTED, "a frame that does not belong on this stream"))
            }
            _ => Ok(State::Skip(length)),
        }
    }

    /// Whether a stream may end here.
    fn is_between(&self) -> bool {
        self.head.1 == 0 && matches!(self.state, State::Head | State::Data(0) | State::Skip(0))
    }
}

/// Reads frames off a stream.
#[derive(Debug)]
pub(super) struct Frames {
    recv: RecvStream,
    parser: Parser,
    /// Read and not used yet.
    chunk: Bytes,
    /// Likewise, made out already.
    held: Option<Piece>,
    ended: bool,
}

impl Frames {
    /// `most`: the largest frame that is gathered.
    pub(super) fn new(recv: RecvStream, role: Role, most: usize) -> Self {
        Self { recv, parser: Parser::new(role, most), chunk: Bytes::new(), held: None, ended: false }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, FrameError>> {
        if let Some(piece) = self.held.take() {
            return Poll::Ready(Ok(piece));
        }
        loop {
            if let Some(piece) = self.parser.next(&mut self.chunk)? {
                return Poll::Ready(Ok(piece));
            }
            if ready!(self.poll_fill(cx))? {
                continue;
            }
            return Poll::Ready(if self.parser.is_between() {
                Ok(Piece::End)
            } else {
                Err(FrameError::Fatal(code::FRAME_ERROR, "the stream ended within a frame"))
            });
        }
    }

    /// Whether nothing that means something is left. What there is stays to be polled for.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, FrameError>> {
        let piece = ready!(self.poll(cx))?;
        let ended = piece == Piece::End;
        self.held = Some(piece);
        Poll::Ready(Ok(ended))
    }

    /// False: there is no more.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, FrameError>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        // Nothing is lost with such a read when it is dropped before its time.
        match ready!(pin!(self.recv.read_chunk(CHUNK, true)).poll(cx))? {
            Some(chunk) => {
                self.chunk = chunk.bytes;
                Poll::Ready(Ok(true))
            }
            None => {
                self.ended = true;
                Poll::Ready(Ok(false))
            }
        }
    }

    /// Asks the client to send no more.
    pub(super) fn stop(&mut self, why: VarInt) {
        if !self.ended {
            let _ = self.recv.stop(why);
        }
    }
}

/// A variable-length integer (RFC 9000 section 16), taken off the front. `None`: it has not come whole.
pub(super) fn number(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let (all, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(all[1..].iter().fold(u64::from(first & 0x3f), |n, b| n << 8 | u64::from(*b)))
}

/// Writes one; at most 2^62 - 1.
pub(super) fn put_number(number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    match number {
        0..0x40 => out.push(bytes[7]),
        0x40..0x4000 => out.extend_from_slice(&[bytes[6] | 0x40, bytes[7]]),
        0x4000..0x4000_0000 => out.extend_from_slice(&[bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]]),
        _ => {
            out.push(bytes[0] | 0xc0);
            out.extend_from_slice(&bytes[1..]);
        }
    }
}

/// A frame's type and length.
pub(super) fn put_head(kind: u64, length: usize, out: &mut Vec<u8>) {
    put_number(kind, out);
    put_number(length as u64, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_head(kind, payload.len(), &mut out);
        [out, payload.to_vec()].concat()
    }

    /// All pieces of a stream that comes in parts of `size`; DATA put together.
    fn read(stream: &[u8], size: usize, role: Role) -> Result<(Vec<Piece>, bool), &'static str> {
        let (mut parser, mut pieces) = (Parser::new(role, 100), Vec::new());
        for part in stream.chunks(size) {
            let mut bytes = Bytes::copy_from_slice(part);
            loop {
                match parser.next(&mut bytes) {
                    Ok(Some(Piece::Data(data))) => match pieces.last_mut() {
                        Some(Piece::Data(before)) => *before = [&before[..], &data].concat().into(),
                        _ => pieces.push(Piece::Data(data)),
                    },
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => break,
                    Err(FrameError::TooLarge) => return Err("too large"),
                    Err(_) => return Err("fatal"),
                }
            }
            assert!(bytes.is_empty());
        }
        Ok((pieces, parser.is_between()))
    }

    #[test]
    fn frames_are_the_same_however_they_come() {
        let stream = [
            frame(HEADERS, b"head"),
            // Unknown, and larger than what is gathered.
            frame(0x21 + 0x1f * 7, &[7; 500]),
            frame(DATA, b"hello "),
            frame(DATA, b""),
            frame(DATA, b"world"),
            frame(HEADERS, b""),
        ]
        .concat();
        let want = vec![
            Piece::Frame(HEADERS, b"head".to_vec()),
            Piece::Data(Bytes::from_static(b"hello world")),
            Piece::Frame(HEADERS, Vec::new()),
        ];
        for size in 1..stream.len() + 1 {
            assert_eq!(read(&stream, size, Role::Request), Ok((want.clone(), true)), "{size}");
        }
        assert!(!read(&stream[..3], 10, Role::Request).unwrap().1);
        assert!(!read(&frame(DATA, b"abc")[..4], 10, Role::Request).unwrap().1);
        // Longer than anything that could come, and thrown away as it comes.
        let endless = [&[0x40, 0x21][..], &[0xff; 8], &[1; 1000]].concat();
        assert_eq!(read(&endless, 7, Role::Request), Ok((Vec::new(), false)));
    }

    #[test]
    fn frames_in_the_wrong_place_and_large_ones_end_it() {
        for kind in [SETTINGS, PUSH_PROMISE, GOAWAY, CANCEL_PUSH, MAX_PUSH_ID, 2, 6, 8, 9] {
            assert_eq!(read(&frame(kind, b""), 9, Role::Request), Err("fatal"), "{kind}");
        }
        for kind in [DATA, HEADERS, PUSH_PROMISE, 2, 6, 8, 9] {
            assert_eq!(read(&frame(kind, b""), 9, Role::Control), Err("fatal"), "{kind}");
        }
        // Refused by what its head says, not once it is here.
        assert_eq!(read(&[1, 0x40, 101], 9, Role::Request), Err("too large"));
        assert!(read(&frame(HEADERS, &[0; 100]), 9, Role::Request).is_ok());
    }

    proptest! {
        #[test]
        fn numbers_are_read_again(n in 0..1_u64 << 62) {
            let mut out = Vec::new();
            put_number(n, &mut out);
            let mut left = &out[..];
            prop_assert_eq!(number(&mut left), Some(n));
            prop_assert!(left.is_empty() && number(&mut &out[..out.len() - 1]).is_none());
        }

        #[test]
        fn no_bytes_panic(stream in proptest::collection::vec(any::<u8>(), 1..400), size in 1..50_usize) {
            let whole = read(&stream, stream.len(), Role::Request);
            prop_assert_eq!(read(&stream, size, Role::Request), whole);
        }
    }
}
