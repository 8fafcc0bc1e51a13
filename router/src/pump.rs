//! Moves a message's content from one stream to another as it comes, checking its framing and framing it anew. Nothing is
//! kept that the receiver has taken, and nothing is read that the receiver cannot take (backpressure).

use crate::{
    h1::{
        chunk::{ChunkDecoder, Piece, write_chunk},
        request::Framing,
    },
    io::Io,
    policy::Encoder,
};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// How the content is read.
#[derive(Debug)]
enum Decode {
    Length(u64),
    Chunked(ChunkDecoder),
    /// Until the sender ends its stream.
    Close,
}

/// How the content is sent.
#[derive(Debug)]
struct Encode {
    /// Frame what is sent as chunks.
    chunked: bool,
    /// Compress it first.
    coding: Option<Encoder>,
}

impl Encode {
    /// Puts content into `out`. What a coding keeps back comes with [`Encode::flush`].
    fn put(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<u64, PumpError> {
        if let Some(coding) = &mut self.coding {
            return coding.write(data).map(|()| 0).map_err(|_| PumpError::Source);
        }
        self.frame(data, out);
        Ok(data.len() as u64)
    }

    fn frame(&self, data: &[u8], out: &mut Vec<u8>) {
        if self.chunked {
            write_chunk(data, out);
        } else {
            out.extend_from_slice(data);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<u64, PumpError> {
        let Some(coding) = &mut self.coding else { return Ok(0) };
        let ready = coding.flush().map_err(|_| PumpError::Source)?;
        self.frame(&ready, out);
        Ok(ready.len() as u64)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<u64, PumpError> {
        let Some(coding) = self.coding.take() else { return Ok(0) };
        let rest = coding.finish().map_err(|_| PumpError::Source)?;
        self.frame(&rest, out);
        Ok(rest.len() as u64)
    }
}

/// Why content stopped before its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The sender's stream ended or broke in the middle.
    Source,
    /// The receiver's stream broke.
    Sink,
    /// The framing is not valid.
    Framing,
}

/// Whom a pump that does not move is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Source,
    Sink,
}

/// While the receiver is slow, read less at once: a stalled stream then holds 16 KiB, not 64.
const STALLED_READ: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Pump {
    decode: Decode,
    encode: Encode,
    /// Ready to send, from `at`.
    out: Vec<u8>,
    at: usize,
    /// All content has been read.
    ended: bool,
    stalled: bool,
    /// Bytes of content moved, as they are sent.
    pub(crate) moved: u64,
    /// Something moved since the owner last cleared it.
    pub(crate) progress: bool,
    pub(crate) waits: Waits,
    /// What was taken from the sender, as it came, as long as it is little.
    record: Option<Vec<u8>>,
}

/// The most that is recorded.
const RECORD: usize = 64 << 10;

impl Pump {
    /// `head` is sent before the content. `chunked` frames the content; otherwise it goes as it is.
    pub(crate) fn new(framing: Framing, chunked: bool, head: Vec<u8>) -> Self {
        let decode = match framing {
            Framing::None => Decode::Length(0),
            Framing::Length(n) => Decode::Length(n),
            Framing::Chunked => Decode::Chunked(ChunkDecoder::new()),
            Framing::Close => Decode::Close,
        };
        let ended = matches!(decode, Decode::Length(0));
        Self {
            decode,
            encode: Encode { chunked, coding: None },
            out: head,
            at: 0,
            ended,
            stalled: false,
            moved: 0,
            progress: false,
            waits: Waits::Source,
            record: None,
        }
    }

    /// Compresses the content, which must be framed by chunks or by the end of the stream. Before anything was read.
    pub(crate) fn compress(&mut self, coding: Option<Encoder>) {
        self.encode.coding = coding;
    }

    /// Takes bytes that were read already, and says how many belong to this message.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<usize, PumpError> {
        if self.ended || bytes.is_empty() {
            return Ok(0);
        }
        let n = self.decode(bytes)?;
        self.moved += if self.ended { 0 } else { self.encode.flush(&mut self.out)? };
        Ok(n)
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<usize, PumpError> {
        match &mut self.decode {
            Decode::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                self.ended = *left == 0;
                self.moved += self.encode.put(&bytes[..n], &mut self.out)?;
                if self.ended && self.encode.coding.is_some() {
                    self.finish()?;
                }
                Ok(n)
            }
            Decode::Close => {
                self.moved += self.encode.put(bytes, &mut self.out)?;
                Ok(bytes.len())
            }
            Decode::Chunked(decoder) => {
                let mut input = bytes;
                loop {
                    match decoder.next(&mut input).map_err(|_| PumpError::Framing)? {
                        Piece::NeedMore => break,
                        Piece::Data(data) => {
                            self.moved += self.encode.put(data, &mut self.out)?;
                        }
                        Piece::End => {
                            self.moved += self.encode.finish(&mut self.out)?;
                            if self.encode.chunked {
                                decoder.write_end(&mut self.out);
                            }
                            self.ended = true;
                            break;
                        }
                    }
                }
                Ok(bytes.len() - input.len())
            }
        }
    }

    /// Keeps what is taken from the sender from now on; `taken` was before.
    pub(crate) fn record(&mut self, taken: &[u8]) {
        self.record = Some(Vec::new());
        self.note(taken);
    }

    /// What was recorded, unless it was too much.
    pub(crate) fn take_record(&mut self) -> Option<Vec<u8>> {
        self.record.take()
    }

    fn note(&mut self, bytes: &[u8]) {
        if let Some(record) = &mut self.record {
            if record.len() + bytes.len() > RECORD {
                self.record = None;
            } else {
                record.extend_from_slice(bytes);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.out[self.at..]
    }

    /// All content has been taken from the sender.
    pub(crate) fn source_done(&self) -> bool {
        self.ended
    }

    /// Moves what can be moved. Ready when all has been handed to the receiver. Bytes of the sender that belong to its
    /// next message are put into `rest`.
    pub(crate) fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &Io<A>,
        rest: &mut Vec<u8>,
        to: &Io<B>,
    ) -> Poll<Result<(), PumpError>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            while self.at < self.out.len() {
                match to.poll_write(cx, &self.out[self.at..]) {
                    Poll::Ready(Ok(n)) => {
                        self.at += n;
                        self.progress = true;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpError::Sink)),
                    Poll::Pending => {
                        (self.stalled, self.waits) = (true, Waits::Sink);
                        return Poll::Pending;
                    }
                }
            }
            match to.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpError::Sink)),
                Poll::Pending => {
                    (self.stalled, self.waits) = (true, Waits::Sink);
                    return Poll::Pending;
                }
            }
            // Nothing waits: give the memory back, since most streams are quiet most of the time.
            (self.out, self.at) = (Vec::new(), 0);
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            self.waits = Waits::Source;
            let limit = if self.stalled { STALLED_READ } else { usize::MAX };
            let read = from.poll_read(cx, limit, |cx, bytes| self.take(cx, bytes, rest, to));
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(PumpError::Source)),
                Poll::Ready(Ok(taken)) => {
                    self.progress = true;
                    taken?;
                }
            }
        }
    }

    /// Sends what was just read straight from the scratch buffer where that is possible, and keeps what was not taken.
    fn take<B: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        rest: &mut Vec<u8>,
        to: &Io<B>,
    ) -> Result<(), PumpError> {
        if bytes.is_empty() {
            return self.end_of_stream();
        }
        let straight = match &mut self.decode {
            Decode::Length(left) if !self.encode.chunked => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                self.ended = *left == 0;
                n
            }
            Decode::Close if !self.encode.chunked => bytes.len(),
            _ => {
                let n = self.feed(bytes)?;
                self.note(&bytes[..n]);
                rest.extend_from_slice(&bytes[n..]);
                return Ok(());
            }
        };
        self.note(&bytes[..straight]);
        rest.extend_from_slice(&bytes[straight..]);
        self.moved += straight as u64;
        let sent = match to.poll_write(cx, &bytes[..straight]) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Err(PumpError::Sink),
            Poll::Pending => 0,
        };
        self.stalled = sent < straight;
        self.out.extend_from_slice(&bytes[sent..straight]);
        Ok(())
    }

    fn end_of_stream(&mut self) -> Result<(), PumpError> {
        if !matches!(self.decode, Decode::Close) {
            return Err(PumpError::Source);
        }
        self.ended = true;
        self.finish()
    }

    /// The end of what is sent, where the sender's own end has no form to be passed on.
    fn finish(&mut self) -> Result<(), PumpError> {
        self.moved += self.encode.finish(&mut self.out)?;
        if self.encode.chunked {
            self.out.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(())
    }
}
