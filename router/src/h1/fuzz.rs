//! Random requests against the way of a request through this crate: found by the scanner, read by the parser, its content by
//! the pump, and written anew. Nothing may panic, however the bytes are cut; and what is accepted must come out as exactly
//! one request that a second reader reads the same: it takes fields from httparse as the first does, and judges framing, content
//! and what HTTP allows by itself.
//!
//! The seeds are fixed, so a failure comes back. `FLEX_FUZZ_SECONDS=600 cargo nextest run -p flex-router fuzz` goes on for
//! longer, from where the fixed ones end.

use super::{
    request::{self, Arrival, Framing},
    scan::{Scan, Scanner},
};
use crate::pump::Pump;
use std::time::{Duration, Instant};

/// Rounds of every run.
const ROUNDS: u64 = 20_000;

/// Numbers that look random and are the same each time (splitmix64).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n.max(1) as u64).unwrap()
    }

    fn one<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.below(of.len())]
    }

    /// Changes some bytes, cuts, doubles, and puts in what is known to confuse.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => _ = bytes.remove(at),
                2 => bytes.insert(at, u8::try_from(self.below(256)).unwrap()),
                3 => {
                    let end = (at + self.below(20)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                4 => {
                    let end = (at + self.below(20)).min(bytes.len());
                    bytes.drain(at..end);
                }
                _ => _ = bytes.splice(at..at, self.one(words).iter().copied()),
            }
        }
    }
}

/// Runs `round` for every seed, and for longer if that was asked for.
pub(crate) fn rounds(mut round: impl FnMut(u64)) {
    let more = std::env::var("FLEX_FUZZ_SECONDS").ok().map(|s| Duration::from_secs(s.parse().expect("a number of seconds")));
    let begun = Instant::now();
    (0..ROUNDS).for_each(&mut round);
    (ROUNDS..).take_while(|_| more.is_some_and(|more| begun.elapsed() < more)).for_each(round);
}

const WORDS: [&[u8]; 28] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Connection: content-length\r\n",
    b"Connection: close, transfer-encoding\r\n",
    b"Host: c.d\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"X-Forwarded-For: 6.6.6.6\r\n",
    b"HTTP/1.0",
    b"chunked",
    b"ffffffffffffffff",
    b"\x80\xff",
    b"GET /hidden HTTP/1.1\r\nHost: a.b\r\n\r\n",
];

/// A request made of parts that are mostly right.
fn request(noise: &mut Noise) -> Vec<u8> {
    let mut out = noise.one(&[b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"X-Y"]).to_vec();
    out.push(b' ');
    out.extend(noise.one(&[b"/", b"/a?b=c", b"http://a.b/x", b"*", b"/%00/..//;a"]));
    out.extend(noise.one(&[b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"]));
    out.extend(b"Host: a.b\r\n");
    for _ in 0..noise.below(3) {
        out.extend(noise.one(&[
            b"Accept: */*\r\n",
            b"Cookie: a=b\r\n",
            b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
            b"Via: 1.0 x\r\n",
            b"TE: trailers\r\n",
        ]));
    }
    match noise.below(3) {
        0 => out.extend(b"\r\n"),
        1 => out.extend(b"Content-Length: 5\r\n\r\nhello"),
        _ => out.extend(
            [
                b"Transfer-Encoding: chunked\r\n\r\n",
                noise.one(&[b"5\r\nhello\r\n", b"005;a=b\r\nhello\r\n", b"1\r\nx\r\nA\r\n0123456789\r\n", b""]),
                noise.one(&[b"0\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n", b"000;x\r\nContent-Length: 9\r\n\r\n"]),
            ]
            .concat(),
        ),
    }
    out.extend(noise.one(&[b"", b"", b"GET /next HTTP/1.1\r\nHost: a.b\r\n\r\n"]));
    out
}

/// A request as the second parser reads it.
#[derive(Debug, PartialEq, Eq)]
struct Second {
    method: String,
    target: String,
    content: Vec<u8>,
    /// Bytes that it took.
    taken: usize,
}

/// Reads one request; `strict` as an instance that hopes for the best, so that it must find nothing odd.
fn second(bytes: &[u8], strict: bool) -> Option<Second> {
    let mut fields = [httparse::EMPTY_HEADER; 300];
    let mut raw = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = raw.parse(bytes) else { return None };
    let named = |name: &'static str| raw.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name));
    let (lengths, codings) = (named("content-length").count(), named("transfer-encoding").count());
    if strict {
        assert_eq!(raw.version, Some(1));
        assert_eq!(named("host").count(), 1);
        assert!(lengths + codings <= 1, "one framing");
        assert!(named("transfer-encoding").all(|h| h.value == b"chunked"));
        assert!(named("content-length").all(|h| !h.value.is_empty() && h.value.iter().all(u8::is_ascii_digit)));
        let text = &bytes[..head];
        for (i, byte) in text.iter().enumerate() {
            assert!(*byte != b'\n' || text[i - 1] == b'\r', "a bare LF");
            assert!(*byte != b'\r' || text[i + 1] == b'\n', "a bare CR");
            assert!(*byte != 0, "a NUL");
            assert!(i == 0 || text[i - 1] != b'\n' || !matches!(byte, b' ' | b'\t'), "a folded line");
        }
        let lines = text.windows(2).filter(|w| w == b"\r\n").count();
        assert_eq!(lines, raw.headers.len() + 2, "a field for each line");
    }
    let (mut content, mut at) = (Vec::new(), head);
    if codings > 0 {
        loop {
            let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(&bytes[at..]) else { return None };
            if strict {
                let said = &bytes[at..at + line];
                assert_eq!(said, format!("{size:x}\r\n").as_bytes(), "a chunk's size as everybody reads it");
            }
            at += line;
            if size == 0 {
                break;
            }
            let end = at.checked_add(usize::try_from(size).ok()?)?;
            content.extend_from_slice(bytes.get(at..end)?);
            assert_eq!(bytes.get(end..end + 2), Some(&b"\r\n"[..]), "a chunk's end");
            at = end + 2;
        }
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let Ok(httparse::Status::Complete((n, _))) = httparse::parse_headers(&bytes[at..], &mut fields) else { return None };
        at += n;
    } else if let Some(length) = named("content-length").next() {
        let n: usize = std::str::from_utf8(length.value).ok()?.trim().parse().ok()?;
        content.extend_from_slice(bytes.get(at..at + n)?);
        at += n;
    }
    Some(Second { method: raw.method?.into(), target: raw.path?.into(), content, taken: at })
}

/// The request as it goes to an instance, and how many bytes of `bytes` it was. None: refused, or not whole.
fn ours(bytes: &[u8], cuts: &mut Noise) -> Option<(Vec<u8>, usize)> {
    let (mut scanner, mut have) = (Scanner::default(), 0);
    let head = loop {
        match scanner.advance(&bytes[..have]) {
            Scan::Complete(n) => break n,
            Scan::Bad(_) => return None,
            Scan::Partial if have == bytes.len() => return None,
            Scan::Partial => have += 1 + cuts.below(bytes.len() - have),
        }
    };
    let arrival =
        Arrival { peer: [192, 0, 2, 9].into(), trusted: false, port: 80, scheme: "http", via: None, at_ms: 1, random: 2 };
    let request = request::parse(&bytes[..head], 128, &arrival).ok()?;
    let mut pump = Pump::new(request.framing, request.framing == Framing::Chunked, request.upstream);
    let mut at = head;
    while !pump.source_done() && at < bytes.len() {
        let end = at + 1 + cuts.below(bytes.len() - at);
        at += pump.feed(&bytes[at..end]).ok()?;
    }
    pump.source_done().then(|| (pump.unsent().to_vec(), at))
}

#[test]
fn what_is_accepted_is_one_request_that_others_read_the_same() {
    let (mut accepted, mut chunked) = (0_u64, 0_u64);
    rounds(|seed| {
        let mut noise = Noise(seed);
        let mut bytes = request(&mut noise);
        noise.mutate(&mut bytes, &WORDS);
        // Wherever it is cut, the same comes out.
        let whole = ours(&bytes, &mut Noise(seed));
        let cut = ours(&bytes, &mut Noise(!seed));
        let show = || format!("seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        let content = |o: &Option<(Vec<u8>, usize)>| o.as_ref().map(|(out, n)| (second(out, true).map(|s| s.content), *n));
        assert_eq!(content(&whole), content(&cut), "{}", show());
        let Some((out, taken)) = whole else { return };
        let told = second(&out, true).unwrap_or_else(|| panic!("{}\n{:?}", show(), String::from_utf8_lossy(&out)));
        assert_eq!(told.taken, out.len(), "more than one request\n{}", show());
        let asked = second(&bytes, false).unwrap_or_else(|| panic!("only we can read this\n{}", show()));
        assert_eq!((&told.method, &told.content, taken), (&asked.method, &asked.content, asked.taken), "{}", show());
        if asked.target.starts_with('/') {
            assert_eq!(told.target, asked.target, "{}", show());
        }
        accepted += 1;
        chunked += u64::from(out.windows(12).any(|w| w == b"\r\n\r\n5\r\nhello"));
    });
    // It would prove nothing if everything were refused.
    assert!(accepted > ROUNDS / 4 && chunked > ROUNDS / 50, "{accepted} accepted, {chunked} of them by chunks");
}
