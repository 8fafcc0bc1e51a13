//! A request that turns its connection into a plain byte stream: how the engine serves attach and exec.
//!
//! The client library offers the same, but guesses from the first byte of output whether it is framed, so that a
//! terminal program whose output begins with a byte below 3 stalls; here the caller, who made the thing, says it.

use super::engine::{QUICK, by_status};
use crate::RuntimeError;
use bytes::{Buf, Bytes, BytesMut};
use std::{io, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// An answer's head is a few hundred bytes; more than this is no engine.
const MAX_HEAD: usize = 16 * 1024;

/// The connection after the switch, with what already arrived behind the head.
pub(crate) struct Hijacked {
    pub(crate) stream: UnixStream,
    pub(crate) early: BytesMut,
}

/// Sends `POST path` and takes the connection over.
pub(crate) async fn hijack(socket: &Path, path: &str, body: &str, doing: &str) -> Result<Hijacked, RuntimeError> {
    match tokio::time::timeout(QUICK, switch(socket, path, body)).await {
        Ok(Ok(Ok(hijacked))) => Ok(hijacked),
        Ok(Ok(Err((status, message)))) => Err(by_status(doing, status, &message)),
        Ok(Err(e)) => Err(RuntimeError::Unavailable(format!("{doing}: {e}"))),
        Err(_) => Err(RuntimeError::Unavailable(format!("{doing}: no answer within {} s", QUICK.as_secs()))),
    }
}

async fn switch(socket: &Path, path: &str, body: &str) -> io::Result<Result<Hijacked, (u16, String)>> {
    let mut stream = UnixStream::connect(socket).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut early = BytesMut::with_capacity(4096);
    let end = loop {
        if let Some(at) = early.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if early.len() > MAX_HEAD || stream.read_buf(&mut early).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the engine closed the connection instead of answering"));
        }
    };
    let head = early.split_to(end);
    let status = std::str::from_utf8(&head).ok().and_then(|h| h.split(' ').nth(1)?.parse::<u16>().ok()).unwrap_or(0);
    if status == 101 || status == 200 {
        return Ok(Ok(Hijacked { stream, early }));
    }
    // A refusal comes with a short JSON text; the engine may keep the connection open behind it.
    while !early.contains(&b'}') && early.len() < MAX_HEAD {
        if stream.read_buf(&mut early).await? == 0 {
            break;
        }
    }
    Ok(Err((status, message(&early))))
}

fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json = text.find('{').zip(text.rfind('}')).and_then(|(a, b)| text.get(a..=b));
    json.and_then(|j| serde_json::from_str::<serde_json::Value>(j).ok())
        .and_then(|v| Some(v.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| text.trim().to_owned())
}

/// Takes the framing off: eight bytes (stream, three zeros, big-endian length), then the payload. Hands on what has
/// arrived of a payload at once, so that nothing larger than one read is ever held.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Stream and bytes left of the frame being read.
    current: Option<(u8, usize)>,
}

impl Frames {
    /// The next piece: (is standard error, bytes). None: more input is needed.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Option<(bool, Bytes)> {
        loop {
            match self.current {
                Some((_, 0)) => self.current = None,
                Some((stream, left)) => {
                    if input.is_empty() {
                        return None;
                    }
                    let piece = input.split_to(left.min(input.len())).freeze();
                    self.current = Some((stream, left - piece.len()));
                    return Some((stream >= 2, piece));
                }
                None => {
                    if input.len() < 8 {
                        return None;
                    }
                    let stream = input[0];
                    input.advance(4);
                    self.current = Some((stream, input.get_u32() as usize));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
        let mut f = vec![stream, 0, 0, 0];
        f.extend((text.len() as u32).to_be_bytes());
        f.extend(text);
        f
    }

    #[test]
    fn frames_come_apart_however_they_are_cut() {
        let mut wire = frame(1, b"out");
        wire.extend(frame(2, b""));
        wire.extend(frame(2, b"err\x01\x00"));
        wire.extend(frame(1, b"more"));
        for cut in 1..wire.len() {
            let (mut frames, mut buffer) = (Frames::default(), BytesMut::new());
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some((is_err, piece)) = frames.next(&mut buffer) {
                    if is_err { err.extend(piece) } else { out.extend(piece) }
                }
            }
            assert_eq!((out.as_slice(), err.as_slice()), (&b"outmore"[..], &b"err\x01\x00"[..]), "cut {cut}");
        }
    }

    #[test]
    fn a_refusal_gives_its_text() {
        assert_eq!(message(b"2b\r\n{\"message\":\"No such exec\"}\r\n0\r\n"), "No such exec");
        assert_eq!(message(b"gone"), "gone");
    }
}
