//! Docker's `json-file` lines: what the containers of earlier versions write.

use super::file::Found;
use super::join::Piece;
use flex_model::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;

/// A line longer than this is not the engine's.
const MAX_RAW: usize = 1 << 20;

/// The line at the beginning of these bytes.
pub fn first(bytes: &[u8]) -> Found<'_> {
    match memchr::memchr(b'\n', bytes) {
        Some(end) => Found::Record(&bytes[..end], end + 1),
        None if bytes.len() > MAX_RAW => Found::Junk(bytes.len()),
        None => Found::Part,
    }
}

/// Reads a line of the file; none if it is no such line (torn by a crash of the machine).
pub fn parse(raw: &[u8]) -> Option<Piece<'_>> {
    parse_plain(raw).or_else(|| parse_any(raw))
}

/// What most lines are: as the engine writes them, with no escape but that of the line end. Copies nothing.
fn parse_plain(raw: &[u8]) -> Option<Piece<'_>> {
    let log = raw.strip_prefix(br#"{"log":""#)?;
    let (text, rest) = log.split_at(memchr::memchr2(b'\\', b'"', log)?);
    let (stderr, time) = match rest.strip_prefix(br#"\n","stream":"std"#)? {
        [b'o', b'u', b't', rest @ ..] => (false, rest),
        [b'e', b'r', b'r', rest @ ..] => (true, rest),
        _ => return None,
    };
    let time = time.strip_prefix(br#"","time":""#)?.strip_suffix(br#""}"#)?;
    let plain = str::from_utf8(text).is_ok() && text.iter().all(|b| *b >= b' ');
    plain.then_some(Piece { text: text.into(), ends: true, stderr, time: str::from_utf8(time).ok()?.parse().ok()? })
}

fn parse_any(raw: &[u8]) -> Option<Piece<'_>> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        log: Cow<'a, str>,
        #[serde(borrow, default)]
        stream: Cow<'a, str>,
        time: Timestamp,
    }
    let Line { mut log, stream, time } = serde_json::from_slice(raw).ok()?;
    let ends = log.ends_with('\n');
    if ends {
        let text = &log[..log.len() - 1];
        let length = text.strip_suffix('\r').unwrap_or(text).len();
        log.to_mut().truncate(length);
    }
    let text = match log {
        Cow::Borrowed(text) => text.as_bytes().into(),
        Cow::Owned(text) => text.into_bytes().into(),
    };
    Some(Piece { text, ends, stderr: stream == "stderr", time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(log: &str, stream: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({"log": log, "stream": stream, "time": "2026-11-21T07:20:53.123456789Z"})).unwrap()
    }

    #[test]
    fn times_are_the_engines() {
        let raw = raw("a \"b\"\t\u{1f600}\r\n", "stdout");
        let piece = parse(&raw).unwrap();
        assert_eq!(piece.time.to_string(), "2026-11-21T07:20:53.123456Z");
        assert_eq!((&*piece.text, piece.ends), ("a \"b\"\t\u{1f600}".as_bytes(), true));
        assert!(parse(b"{\"log\":\"torn").is_none());
    }

    proptest! {
        #[test]
        fn both_ways_of_reading_agree(text in "([ -~äß😀\\t]{0,40})(\r?\n)?", stream in "stdout|stderr", attrs in any::<bool>()) {
            let log = serde_json::to_string(&text).unwrap();
            let attrs = if attrs { r#","attrs":{"a":"b"}"# } else { "" };
            let raw = format!(r#"{{"log":{log},"stream":"{stream}"{attrs},"time":"2026-11-21T07:20:53.123456789Z"}}"#);
            let any = parse_any(raw.as_bytes()).unwrap();
            let shown = text.strip_suffix('\n').map_or(&*text, |t| t.strip_suffix('\r').unwrap_or(t));
            prop_assert_eq!(&*any.text, shown.as_bytes());
            prop_assert_eq!(any.ends, text.ends_with('\n'));
            prop_assert_eq!(any.stderr, stream == "stderr");
            if let Some(plain) = parse_plain(raw.as_bytes()) {
                prop_assert_eq!(plain, any);
            }
        }
    }

    #[test]
    fn ordinary_lines_are_read_without_copies() {
        let raw = raw("level=info ä", "stderr");
        assert!(parse_plain(&raw).is_none(), "it does not end");
        let raw = br#"{"log":"level=info \u00e4\n","stream":"stdout","time":"2026-11-21T07:20:53.123456789Z"}"#;
        assert!(parse_plain(raw).is_none(), "an escape");
        let raw = "{\"log\":\"level=info ä\\n\",\"stream\":\"stderr\",\"time\":\"2026-11-21T07:20:53.123456789Z\"}";
        let piece = parse_plain(raw.as_bytes()).unwrap();
        assert_eq!((&piece.text, piece.stderr), (&Cow::Borrowed("level=info ä".as_bytes()), true));
        let control = raw.replace("info", "\u{1}");
        assert!(parse(control.as_bytes()).is_none(), "no JSON");
    }
}
