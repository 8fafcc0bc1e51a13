//! The bytes of lines: entries, and the records of the write-ahead file.
//!
//! An entry is `len u32, at i64, source u8, process length u8, process, text`, little endian, `len` counting what follows
//! it. A record is `crc32 u32, seq u64, entry`, the checksum covering all that follows it.

use flex_model::{LogLine, LogSource, Timestamp};

/// Longest entry believed: far above what is written, far below what would exhaust memory.
const MAX_ENTRY: usize = 1 << 20;
const RECORD_HEAD: usize = 4 + 8;

/// Appends a line's entry.
pub fn put_entry(line: &LogLine, out: &mut Vec<u8>) {
    let process = &line.process.as_bytes()[..line.process.floor_char_boundary(255)];
    let len = 8 + 1 + 1 + process.len() + line.text.len();
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&line.at.micros().to_le_bytes());
    out.push(match line.source {
        LogSource::App => 0,
        LogSource::Flex => 1,
    });
    out.push(process.len() as u8);
    out.extend_from_slice(process);
    out.extend_from_slice(line.text.as_bytes());
}

/// A line as it lies in a file, without copies.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub at: Timestamp,
    pub source: LogSource,
    pub process: &'a [u8],
    pub text: &'a [u8],
}

impl View<'_> {
    pub fn to_line(self) -> LogLine {
        LogLine {
            at: self.at,
            source: self.source,
            process: String::from_utf8_lossy(self.process).into_owned(),
            text: self.text.into(),
        }
    }
}

impl<'a> From<&'a LogLine> for View<'a> {
    fn from(line: &'a LogLine) -> Self {
        Self { at: line.at, source: line.source, process: line.process.as_bytes(), text: line.text.as_bytes() }
    }
}

/// Reads the entry at the start of `bytes` and says how long it is; none if it is not whole or makes no sense.
pub fn get_entry(bytes: &[u8]) -> Option<(View<'_>, usize)> {
    let len = entry_len(bytes)?;
    let body = bytes.get(4..len)?;
    let at = Timestamp::from_micros(i64::from_le_bytes(body.get(..8)?.try_into().ok()?));
    let source = match body.get(8)? {
        0 => LogSource::App,
        1 => LogSource::Flex,
        _ => return None,
    };
    let text_at = 10 + usize::from(*body.get(9)?);
    Some((View { at, source, process: body.get(10..text_at)?, text: body.get(text_at..)? }, len))
}

/// How long the entry at the start of `bytes` says to be; none if it makes no sense. It may go beyond their end.
pub fn entry_len(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    (len <= MAX_ENTRY).then_some(4 + len)
}

/// Appends a line's record.
pub fn put_record(seq: u64, line: &LogLine, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    put_entry(line, out);
    let crc = crc32fast::hash(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A record found in a write-ahead file.
#[derive(Debug)]
pub struct Record<'a> {
    pub seq: u64,
    /// The entry's bytes; [`get_entry`] reads them.
    pub entry: &'a [u8],
}

/// Walks a write-ahead file's records and stops at its end or at the first that is damaged.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Where the last good record ended.
    pub fn good(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let rest = &self.bytes[self.at..];
        let entry_len = entry_len(rest.get(RECORD_HEAD..)?)?;
        let whole = rest.get(..RECORD_HEAD + entry_len)?;
        let crc = u32::from_le_bytes(whole[..4].try_into().ok()?);
        if crc32fast::hash(&whole[4..]) != crc {
            return None;
        }
        self.at += whole.len();
        Some(Record { seq: u64::from_le_bytes(whole[4..12].try_into().ok()?), entry: &whole[RECORD_HEAD..] })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use flex_model::LogText;
    use proptest::prelude::*;

    pub fn any_line() -> impl Strategy<Value = LogLine> {
        (any::<i64>(), any::<bool>(), "[a-z]{1,8}(\\.[0-9]{1,3})?", any_text()).prop_map(|(at, app, process, text)| LogLine {
            at: Timestamp::from_micros(at),
            source: if app { LogSource::App } else { LogSource::Flex },
            process,
            text,
        })
    }

    fn any_text() -> impl Strategy<Value = LogText> {
        let bytes = prop::collection::vec(any::<u8>(), 0..200).prop_map(LogText::from);
        prop_oneof![".{0,200}".prop_map(LogText::from), bytes]
    }

    proptest! {
        #[test]
        fn a_torn_file_gives_back_a_prefix(lines in prop::collection::vec(any_line(), 0..20), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (n, line) in lines.iter().enumerate() {
                put_record(n as u64, line, &mut bytes);
                ends.push(bytes.len());
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let whole = ends.iter().filter(|e| **e <= bytes.len()).count() - 1;
            let mut records = Records::new(&bytes);
            let got: Vec<_> = records.by_ref().map(|r| (r.seq, get_entry(r.entry).unwrap().0.to_line())).collect();
            prop_assert_eq!(records.good(), ends[whole]);
            prop_assert_eq!(got, lines.into_iter().take(whole).enumerate().map(|(n, l)| (n as u64, l)).collect::<Vec<_>>());
        }

        #[test]
        fn damage_never_gives_a_wrong_line(line in any_line(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = Vec::new();
            put_record(1, &line, &mut bytes);
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            prop_assert!(Records::new(&bytes).next().is_none());
        }
    }
}
