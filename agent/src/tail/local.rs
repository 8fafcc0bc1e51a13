//! Docker's `local` records: the bytes that a container printed, as they are.
//!
//! A record is its length as four bytes (big endian), a message in the protocol buffers' encoding, and the length again. The
//! message is `LogEntry` of Docker's `api/types/plugins/logdriver/entry.proto`:
//! `source = 1` (text), `time_nano = 2`, `line = 3` (bytes without the line end), `partial = 4`,
//! `partial_log_metadata = 5 { last = 1, id = 2, ordinal = 3 }`.
//!
//! A disk that is full, or a machine that crashes, leaves the beginning of a record, or zeroes, with the next ones after it:
//! these are found again by how every message begins. It begins with the byte of a line end, which no line holds: nothing that
//! a container prints looks like a record.

use super::file::Found;
use super::join::Piece;
use flex_model::Timestamp;
use memchr::memmem::Finder;

/// How a message begins: field 1, six bytes, `stdout` or `stderr`.
const BEGIN: &[u8] = b"\x0a\x06std";
/// The length before a message, and after it.
const FRAME: usize = 4;
/// A message longer than this is not the engine's, which cuts lines at 16 KiB.
const MAX_MESSAGE: usize = 1 << 20;

/// What bytes that should begin with a record begin with.
enum Frame<'a> {
    Whole(&'a [u8]),
    Part,
    Wrong,
}

/// The record at the beginning of these bytes.
pub fn first(bytes: &[u8]) -> Found<'_> {
    match frame(bytes) {
        Frame::Whole(message) => Found::Record(message, message.len() + 2 * FRAME),
        // One that another one follows will never be whole.
        Frame::Part => next(bytes, |f| matches!(f, Frame::Whole(m) if parse(m).is_some())).map_or(Found::Part, Found::Junk),
        Frame::Wrong => {
            // The next one may have come no further than to its first bytes.
            let kept = FRAME + BEGIN.len() - 1;
            let after = || bytes.len().saturating_sub(kept).max(1);
            Found::Junk(next(bytes, |f| !matches!(f, Frame::Wrong)).unwrap_or_else(after))
        }
    }
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME>() else { return Frame::Part };
    let length = u32::from_be_bytes(*head) as usize;
    let seen = rest.len().min(BEGIN.len());
    if !(BEGIN.len()..=MAX_MESSAGE).contains(&length) || rest[..seen] != BEGIN[..seen] {
        return Frame::Wrong;
    }
    match rest.get(..length + FRAME).map(|r| r.split_at(length)) {
        None => Frame::Part,
        Some((message, tail)) if tail == head => Frame::Whole(message),
        Some(_) => Frame::Wrong,
    }
}

/// Where the next record that is good enough begins, beyond the first byte.
fn next(bytes: &[u8], good: impl Fn(&Frame<'_>) -> bool) -> Option<usize> {
    let from = FRAME + 1;
    let begins = Finder::new(BEGIN);
    let found = begins.find_iter(bytes.get(from..)?).map(|at| from + at - FRAME);
    found.into_iter().find(|at| good(&frame(&bytes[*at..])))
}

/// Reads a record's message; none if it makes no sense.
pub fn parse(message: &[u8]) -> Option<Piece<'_>> {
    let (mut stderr, mut nanos, mut text, mut partial, mut last) = (None, 0, &b""[..], false, false);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(source)) => stderr = Some(source == b"stderr"),
            (2, Value::Number(n)) => nanos = n.cast_signed(),
            (3, Value::Bytes(line)) => text = line,
            (4, Value::Number(n)) => partial = n != 0,
            (5, Value::Bytes(metadata)) => {
                for field in Fields(metadata) {
                    if let (1, Value::Number(n)) = field? {
                        last = n != 0;
                    }
                }
            }
            _ => {}
        }
    }
    let ends = !partial || last;
    let text = if ends { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
    let time = Timestamp::from_micros(nanos.div_euclid(1000));
    Some(Piece { text: text.into(), ends, stderr: stderr?, time })
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed size; none of those that are read is.
    Other,
}

/// A message's fields with their numbers; none in place of the first that makes no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let count = self.number()?;
                Value::Bytes(self.take(count)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the engine is given to write.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Printed {
        pub text: Vec<u8>,
        pub ends: bool,
        pub stderr: bool,
        pub micros: i64,
    }

    fn put_number(mut n: u64, out: &mut Vec<u8>) {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    }

    fn put_bytes(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
        put_number(field << 3 | 2, out);
        put_number(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }

    /// As `daemon/logger/local` has it.
    pub fn record(p: &Printed) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(1, if p.stderr { b"stderr" } else { b"stdout" }, &mut message);
        if p.micros != 0 {
            put_number(2 << 3, &mut message);
            put_number((p.micros * 1000 + 999).cast_unsigned(), &mut message);
        }
        if !p.text.is_empty() {
            put_bytes(3, &p.text, &mut message);
        }
        if !p.ends {
            message.extend_from_slice(&[4 << 3, 1]);
            put_bytes(5, b"\x12\x03abc\x18\x02", &mut message);
        }
        let length = (message.len() as u32).to_be_bytes();
        [&length[..], &message, &length].concat()
    }

    pub fn any_printed() -> impl Strategy<Value = Printed> {
        let bytes = prop::collection::vec(any::<u8>().prop_filter("ends a line", |b| *b != b'\n'), 0..40);
        // A line may be what a log file holds, without the line ends.
        let nested = bytes.clone().prop_map(|text| {
            let inner = record(&Printed { text, ends: true, stderr: false, micros: 1 });
            inner.into_iter().filter(|b| *b != b'\n').collect()
        });
        let text = prop_oneof![bytes, nested, Just(b"\x06stdout\x1a\x01x".to_vec()), Just(vec![b'x'; 16_384])];
        (text, any::<bool>(), any::<bool>(), 0i64..2_000_000_000_000_000).prop_map(|(mut text, ends, stderr, micros)| {
            while ends && text.ends_with(b"\r") {
                text.pop();
            }
            Printed { text, ends, stderr, micros }
        })
    }

    fn read(bytes: &[u8]) -> Vec<Printed> {
        let (mut at, mut all) = (0, Vec::new());
        loop {
            match first(&bytes[at..]) {
                Found::Record(message, length) => {
                    at += length;
                    all.extend(parse(message).map(|p| Printed {
                        text: p.text.into_owned(),
                        ends: p.ends,
                        stderr: p.stderr,
                        micros: p.time.micros(),
                    }));
                }
                Found::Junk(length) => {
                    assert!(length > 0);
                    at += length;
                }
                Found::Part => return all,
            }
        }
    }

    #[test]
    fn records_of_the_real_engine_are_read() {
        // Docker 20.10: printf 'a\377b\r\n', and the end of a line of 20,000 bytes.
        let line = b"\0\0\0\x18\x0a\x06stdout\x10\xbe\xc8\x91\xa8\xa1\xa1\x8a\xf5\x18\x1a\x04a\xffb\r\0\0\0\x18";
        let Found::Record(message, length) = first(line) else { panic!("no record") };
        let piece = parse(message).unwrap();
        assert_eq!((length, &*piece.text, piece.ends, piece.stderr), (line.len(), &b"a\xffb"[..], true, false));
        assert_eq!(piece.time.to_string(), "2026-11-21T20:22:04.739585Z");
        let last = b"\x0a\x06stderr\x10\x01\x1a\x03xxx\x20\x01\x2a\x06\x08\x01\x12\x02ab";
        let piece = parse(last).unwrap();
        assert_eq!((&*piece.text, piece.ends, piece.stderr, piece.time.micros()), (&b"xxx"[..], true, true, 0));
        let part = b"\x0a\x06stdout\x10\x01\x1a\x03xx\r\x20\x01\x2a\x04\x12\x02ab";
        assert_eq!(parse(part).map(|p| (p.text.into_owned(), p.ends)), Some((b"xx\r".to_vec(), false)));
        for wrong in [&b""[..], b"\x0a\x06stdout\x1a\x09short", b"\x0a\x06stdout\x10\xff", b"\x1a\x01x", b"\x0a\x06stdout\x0b"] {
            assert!(parse(wrong).is_none(), "{wrong:x?}");
        }
    }

    #[test]
    fn zeroes_and_noise_are_passed_over() {
        let line = |text: &str| Printed { text: text.into(), ends: true, stderr: false, micros: 5 };
        let (a, b) = (line("a"), line("b"));
        for noise in [vec![0; 5000], vec![0; 7], b"\0\0\0\x09\x0a\x06std".to_vec(), vec![0xff; 70_000], b"\0\0\x10\0".to_vec()] {
            let bytes = [record(&a), noise, record(&b)].concat();
            assert_eq!(read(&bytes), [a.clone(), b.clone()]);
        }
    }

    proptest! {
        #[test]
        fn what_was_printed_is_read_and_a_cut_gives_a_prefix(printed in prop::collection::vec(any_printed(), 0..12), cut in any::<prop::sample::Index>()) {
            let records: Vec<_> = printed.iter().map(record).collect();
            let bytes = records.concat();
            prop_assert_eq!(&read(&bytes), &printed);
            let cut = cut.index(bytes.len() + 1);
            let mut end = 0;
            let whole = records.iter().take_while(|r| { end += r.len(); end <= cut }).count();
            prop_assert_eq!(&read(&bytes[..cut]), &printed[..whole]);
        }

        /// Each record is of another length, or the parts of two could look like one.
        #[test]
        fn a_torn_record_hides_no_other(count in 2usize..9, which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(), step in 1usize..50) {
            let printed: Vec<_> = (0..count).map(|n| Printed { text: vec![b'a' + n as u8; n * step], ends: true, stderr: n % 2 == 0, micros: 1 + n as i64 }).collect();
            let mut records: Vec<_> = printed.iter().map(record).collect();
            let which = which.index(count);
            let cut = cut.index(records[which].len());
            records[which].truncate(cut);
            let wanted: Vec<_> = printed.iter().enumerate().filter(|(n, _)| *n != which).map(|(_, p)| p.clone()).collect();
            prop_assert_eq!(read(&records.concat()), wanted);
        }

        #[test]
        fn noise_ends_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read(&bytes);
            let _ = parse(&bytes);
        }
    }
}
