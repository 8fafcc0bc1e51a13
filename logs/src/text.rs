//! Text as log lines: no line ends inside, and a largest size.
//!
//! A text is bytes. Where it is cut, no UTF-8 character is parted; what is not UTF-8 is cut where the size says.

use flex_model::LogText;

/// Longest text of one line in bytes; longer ones are split (Heroku cuts at the same place).
pub const MAX_LINE_BYTES: usize = 10 * 1024;

/// What every piece but the first of a split line starts with.
pub const CONTINUED: &str = "[continued] ";

/// Whether [`split_lines`] would give the text back as it is.
pub fn is_one_line(text: &[u8]) -> bool {
    text.len() <= MAX_LINE_BYTES && memchr::memchr(b'\n', text).is_none()
}

/// Cuts text into lines: at its line ends (a `\r` before one goes too, and so does one last empty line), and where a line
/// is longer than [`MAX_LINE_BYTES`], with the further pieces marked by [`CONTINUED`].
pub fn split_lines(text: &[u8]) -> Vec<LogText> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut out = Vec::with_capacity(1);
    for line in text.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() <= MAX_LINE_BYTES {
            out.push(line.into());
        } else {
            split_long(line, &mut out);
        }
    }
    out
}

fn split_long(mut rest: &[u8], out: &mut Vec<LogText>) {
    let mut mark = "";
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(character_boundary(rest, MAX_LINE_BYTES - mark.len()));
        out.push([mark.as_bytes(), piece].concat().into());
        rest = more;
        mark = CONTINUED;
    }
}

/// The longest beginning of at most `max` bytes after which no UTF-8 character is parted.
fn character_boundary(text: &[u8], max: usize) -> usize {
    let Some(piece) = text.get(..max) else { return text.len() };
    let open = open_character(piece);
    let start = max - open;
    // The beginning of a character that does not go on is a few bytes like others.
    let goes_on =
        text[start..].utf8_chunks().next().is_some_and(|chunk| chunk.valid().chars().next().is_some_and(|c| c.len_utf8() > open));
    if open > 0 && goes_on { start } else { max }
}

/// How many bytes at the end are the beginning of a UTF-8 character, and no more than that.
pub fn open_character(text: &[u8]) -> usize {
    let tail = &text[text.len().saturating_sub(3)..];
    let Some(first) = tail.iter().rposition(|b| b & 0xc0 != 0x80) else { return 0 };
    match str::from_utf8(&tail[first..]) {
        // No length: bytes that follow could make it whole.
        Err(e) if e.error_len().is_none() => tail.len() - first,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_ends_split_and_vanish() {
        assert_eq!(split_lines(b"a\r\nb\n\nc\n"), ["a", "b", "", "c"]);
        assert_eq!(split_lines(b""), [""]);
        assert_eq!(split_lines(b"\n"), [""]);
        assert_eq!(split_lines(b"\xff\r\n\r\xfe\0"), [&b"\xff"[..], b"\r\xfe\0"].map(LogText::from));
    }

    #[test]
    fn the_beginnings_of_characters_are_known() {
        let euro = "\u{20ac}".as_bytes();
        for (text, open) in [(&b""[..], 0), (b"a", 0), (euro, 0), (&euro[..2], 2), (&euro[..1], 1), (&euro[1..], 0)] {
            assert_eq!(open_character(text), open, "{text:x?}");
        }
        assert_eq!(open_character(b"abc\xf0\x9f\x98"), 3);
        assert_eq!(open_character(b"abc\xff"), 0);
        assert_eq!(open_character(b"abc\xc3("), 0);
    }

    fn joined(pieces: &[LogText]) -> Vec<u8> {
        let unmarked = |(i, p): (usize, &LogText)| {
            let bytes = p.as_bytes();
            if i == 0 { bytes.to_vec() } else { bytes.strip_prefix(CONTINUED.as_bytes()).unwrap().to_vec() }
        };
        pieces.iter().enumerate().flat_map(unmarked).collect()
    }

    proptest! {
        #[test]
        fn long_lines_lose_nothing_and_no_character_is_parted(parts in prop::collection::vec("[a-zäß€😀]{0,3000}", 0..9)) {
            let text = parts.concat();
            let pieces = split_lines(text.as_bytes());
            prop_assert!(pieces.iter().all(|p| p.len() <= MAX_LINE_BYTES && p.as_str().is_some()));
            prop_assert_eq!(joined(&pieces), text.as_bytes());
        }

        #[test]
        fn other_bytes_lose_nothing_either(seed in prop::collection::vec(any::<u8>().prop_filter("no line end", |b| *b != b'\n' && *b != b'\r'), 1..60), length in 0usize..40_000) {
            let text: Vec<u8> = seed.iter().copied().cycle().take(length).collect();
            let pieces = split_lines(&text);
            prop_assert!(pieces.iter().all(|p| p.len() <= MAX_LINE_BYTES));
            prop_assert!(pieces.len() <= length / (MAX_LINE_BYTES - CONTINUED.len() - 3) + 1);
            prop_assert_eq!(joined(&pieces), text);
        }
    }
}
