//! The chunked coding, byte by byte, strict: CRLF and nothing else ends a line, a size is hex digits only, extensions are
//! read past (bounded) and never passed on, trailers are checked like headers. What is written is framed anew.

use super::request::tells_of_the_client;

/// A chunk's extensions are thrown away, so there is no reason to read many.
const MAX_EXTENSION: usize = 1024;
/// Trailers of one body. They are kept until the body ends.
const MAX_TRAILERS: usize = 8 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of the size line seen: a digit must follow.
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// In the trailer section; its bytes are collected.
    Trailer,
    Done,
}

/// Why a chunked body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadChunk(pub(crate) &'static str);

/// Reads a chunked body, given in pieces of any size.
#[derive(Debug)]
pub(crate) struct ChunkDecoder {
    state: State,
    /// Of the size being read, then of the data still to come.
    left: u64,
    digits: u8,
    extension: usize,
    trailer: Vec<u8>,
}

/// What `next` found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Content.
    Data(&'a [u8]),
    /// All of `input` was taken; more is needed.
    NeedMore,
    /// The body is over.
    End,
}

impl ChunkDecoder {
    pub(crate) fn new() -> Self {
        Self { state: State::SizeStart, left: 0, digits: 0, extension: 0, trailer: Vec::new() }
    }

    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes bytes off the front of `input` up to and including the next piece of content or the body's end.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Piece<'a>, BadChunk> {
        loop {
            if self.state == State::Done {
                return Ok(Piece::End);
            }
            if self.state == State::Data {
                if input.is_empty() {
                    return Ok(Piece::NeedMore);
                }
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                let (data, rest) = input.split_at(n);
                *input = rest;
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Piece::Data(data));
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(Piece::NeedMore) };
            *input = rest;
            self.step(byte)?;
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), BadChunk> {
        match self.state {
            State::SizeStart | State::Size => match (byte as char).to_digit(16) {
                // Fifteen digits are 1 EiB: more is an attack on somebody's integer.
                Some(_) if self.digits == 15 => return Err(BadChunk("a chunk size is too large")),
                Some(digit) => {
                    self.left = self.left << 4 | u64::from(digit);
                    self.digits += 1;
                    self.state = State::Size;
                }
                None if self.state == State::SizeStart => return Err(BadChunk("a chunk size is missing")),
                None if byte == b';' => self.state = State::Extension,
                None if byte == b'\r' => self.state = State::SizeLf,
                None => return Err(BadChunk("a chunk size is not a hexadecimal number")),
            },
            State::Extension => {
                self.extension += 1;
                match byte {
                    b'\r' => self.state = State::SizeLf,
                    _ if self.extension > MAX_EXTENSION => return Err(BadChunk("a chunk extension is too long")),
                    b'\t' | 0x20..=0x7e | 0x80.. => {}
                    _ => return Err(BadChunk("a chunk extension holds a control character")),
                }
            }
            State::SizeLf => {
                if byte != b'\n' {
                    return Err(BadChunk("a chunk size line does not end in CRLF"));
                }
                self.state = if self.left == 0 { State::Trailer } else { State::Data };
                self.digits = 0;
                self.extension = 0;
            }
            State::DataCr | State::DataLf => {
                let (want, next) = if self.state == State::DataCr { (b'\r', State::DataLf) } else { (b'\n', State::SizeStart) };
                if byte != want {
                    return Err(BadChunk("a chunk is longer than its size"));
                }
                self.state = next;
            }
            State::Trailer => self.trailer_byte(byte)?,
            State::Data | State::Done => {}
        }
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(), BadChunk> {
        let last = self.trailer.last().copied();
        if byte == b'\n' && last != Some(b'\r') || byte != b'\n' && last == Some(b'\r') {
            return Err(BadChunk("a trailer line does not end in CRLF"));
        }
        if self.trailer.len() >= MAX_TRAILERS {
            return Err(BadChunk("the trailers are too large"));
        }
        self.trailer.push(byte);
        if self.trailer == b"\r\n" || self.trailer.ends_with(b"\r\n\r\n") {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            match httparse::parse_headers(&self.trailer, &mut fields) {
                Ok(httparse::Status::Complete(_)) => self.state = State::Done,
                _ => return Err(BadChunk("a trailer is not a valid header field")),
            }
        }
        Ok(())
    }

    /// Writes the end of the body, with those trailers that may travel: none that frame, route or name the client.
    pub(crate) fn write_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"0\r\n");
        let mut fields = [httparse::EMPTY_HEADER; 64];
        if let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&self.trailer, &mut fields) {
            for field in fields.iter().filter(|f| may_trail(f.name)) {
                out.extend_from_slice(field.name.as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(field.value);
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 9110 section 6.5.1: no framing, routing, authentication or request modifiers in trailers; nor, from anybody, what says
/// who the client is: programs that put trailers to the fields would believe it.
fn may_trail(name: &str) -> bool {
    let told = tells_of_the_client(name);
    let name = name.to_ascii_lowercase().replace('_', "-");
    !(told
        || name.starts_with("x-forwarded")
        || matches!(
            name.as_str(),
            "transfer-encoding"
                | "content-length"
                | "content-encoding"
                | "content-type"
                | "content-range"
                | "host"
                | "trailer"
                | "te"
                | "connection"
                | "keep-alive"
                | "proxy-connection"
                | "upgrade"
                | "authorization"
                | "proxy-authorization"
                | "cookie"
                | "set-cookie"
                | "expect"
                | "cache-control"
                | "max-forwards"
                | "range"
                | "proxy-authenticate"
                | "www-authenticate"
        ))
}

/// Writes one chunk.
pub(crate) fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    let mut digits = [0_u8; 16];
    let (mut n, mut at) = (data.len(), digits.len());
    while n > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[n & 15];
        n >>= 4;
    }
    out.reserve(data.len() + 20);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Content, trailers as written, and bytes left over; pieces of `step` bytes.
    fn decode(body: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), BadChunk> {
        let (mut decoder, mut content, mut at) = (ChunkDecoder::new(), Vec::new(), 0);
        while at < body.len() && !decoder.is_done() {
            let end = (at + step.max(1)).min(body.len());
            let mut input = &body[at..end];
            while let Piece::Data(data) = decoder.next(&mut input)? {
                content.extend_from_slice(data);
            }
            at = end - input.len();
        }
        let mut end = Vec::new();
        decoder.write_end(&mut end);
        Ok((content, end, body.len() - at, decoder.is_done()))
    }

    #[test]
    fn good_bodies_at_every_split() {
        let body = b"5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n00\r\nGrpc-Status: 0\r\nContent-Length: 4\r\n\r\nGET /";
        for step in 1..=body.len() {
            let (content, end, rest, done) = decode(body, step).unwrap();
            assert!(done);
            assert_eq!(content, b"hello0123456789");
            assert_eq!(end, b"0\r\nGrpc-Status: 0\r\n\r\n");
            assert_eq!(rest, 5);
        }
    }

    #[test]
    fn trailers_do_not_say_who_the_client_is() {
        let names = [
            "X-Forwarded-For",
            "x-forwarded-anything",
            "Forwarded",
            "Via",
            "X-Request-ID",
            "X-Request-Start",
            "X-Real-IP",
            "X-Client-IP",
            "x_client_ip",
            "True-Client-IP",
            "X-Cluster-Client-IP",
            "x_real-ip",
        ];
        for name in names {
            let body = format!("0\r\n{name}: 6.6.6.6\r\nX-Sum: 1\r\n\r\n");
            assert_eq!(decode(body.as_bytes(), 100).unwrap().1, b"0\r\nX-Sum: 1\r\n\r\n", "{name}");
        }
    }

    #[test]
    fn bad_bodies_at_every_split() {
        let bad: [&[u8]; 16] = [
            b"\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\nhello\r\n0\r\n\r\n",
            b"5\rXhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\nhello",
            b"5\r\nhello\r\n0\r\nA: b\n\r\n",
            b"5\r\nhello\r\n0\r\nA : b\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
            b"5;\x00\r\nhello\r\n0\r\n\r\n",
        ];
        for body in bad {
            for step in 1..=body.len() {
                assert!(decode(body, step).is_err(), "{:?} by {step}", String::from_utf8_lossy(body));
            }
        }
        assert!(decode(&[b"5;".as_slice(), &[b'a'; 2000]].concat(), 100).is_err());
        assert!(decode(&[b"0\r\nA: ".as_slice(), &[b'a'; 9000]].concat(), 100).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 0..8), step in 1_usize..64) {
            let mut wire = Vec::new();
            for piece in &pieces { write_chunk(piece, &mut wire); }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (content, _, rest, done) = decode(&wire, step).unwrap();
            prop_assert!(done);
            prop_assert_eq!(content, pieces.concat());
            prop_assert_eq!(rest, 0);
        }

        #[test]
        fn no_bytes_panic_and_splits_agree(body in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';'), any::<u8>()], 0..40), step in 1_usize..8) {
            prop_assert_eq!(decode(&body, step).is_ok(), decode(&body, body.len()).is_ok());
        }
    }
}
