//! Docker's `json-file` lines, and long lines put together again.

use flex_logs::MAX_LINE_BYTES;
use flex_model::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;

/// One line of the file. The engine cuts lines at 16 KiB; all pieces but the last have no line end.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Without the line end.
    text: Cow<'a, str>,
    ends: bool,
    stderr: bool,
    time: Timestamp,
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
    let text = str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b >= b' '))?;
    Some(Piece { text: text.into(), ends: true, stderr, time: str::from_utf8(time).ok()?.parse().ok()? })
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
    Some(Piece { text: log, ends, stderr: stream == "stderr", time })
}

/// Puts the pieces of each stream's lines together.
#[derive(Debug, Default)]
pub struct Joiner {
    stdout: Pending,
    stderr: Pending,
}

#[derive(Debug, Default)]
struct Pending {
    text: String,
    at: Option<Timestamp>,
    /// The line's first part was let go already.
    continued: bool,
}

impl Joiner {
    /// Takes a piece in; gives a line out when there is one.
    pub fn push(&mut self, piece: Piece<'_>) -> Option<(Timestamp, String)> {
        let pending = if piece.stderr { &mut self.stderr } else { &mut self.stdout };
        if piece.ends && pending.at.is_none() && !pending.continued {
            return Some((piece.time, piece.text.into_owned()));
        }
        pending.text.push_str(&piece.text);
        pending.at.get_or_insert(piece.time);
        if piece.ends || pending.text.len() >= MAX_LINE_BYTES { pending.take(!piece.ends) } else { None }
    }

    /// Whether no line has begun.
    pub fn is_empty(&self) -> bool {
        self.stdout.at.is_none() && self.stderr.at.is_none()
    }

    /// What has begun, when nothing more will come.
    pub fn finish(&mut self) -> impl Iterator<Item = (Timestamp, String)> {
        [self.stdout.take(false), self.stderr.take(false)].into_iter().flatten()
    }
}

impl Pending {
    fn take(&mut self, goes_on: bool) -> Option<(Timestamp, String)> {
        let at = self.at.take()?;
        let mark = if std::mem::replace(&mut self.continued, goes_on) { flex_logs::CONTINUED } else { "" };
        let text = std::mem::take(&mut self.text);
        // The rest of a line whose end came in a piece of its own.
        if !mark.is_empty() && text.is_empty() {
            return None;
        }
        Some((at, format!("{mark}{text}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(log: &str, stream: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({"log": log, "stream": stream, "time": "2026-11-21T07:20:53.123456789Z"})).unwrap()
    }

    fn texts(joiner: &mut Joiner, pieces: &[(&str, &str)]) -> Vec<String> {
        pieces.iter().filter_map(|(log, stream)| joiner.push(parse(&raw(log, stream)).unwrap())).map(|l| l.1).collect()
    }

    #[test]
    fn times_are_the_engines() {
        let (at, text) = Joiner::default().push(parse(&raw("a \"b\"\t\u{1f600}\r\n", "stdout")).unwrap()).unwrap();
        assert_eq!(at.to_string(), "2026-11-21T07:20:53.123456Z");
        assert_eq!(text, "a \"b\"\t\u{1f600}");
        assert!(parse(b"{\"log\":\"torn").is_none());
    }

    #[test]
    fn streams_do_not_mix() {
        let mut j = Joiner::default();
        assert_eq!(texts(&mut j, &[("ab", "stdout"), ("X\n", "stderr"), ("c\n", "stdout"), ("\n", "stdout")]), ["X", "abc", ""]);
        assert!(j.is_empty());
        assert!(texts(&mut j, &[("prompt", "stdout")]).is_empty());
        assert!(!j.is_empty());
        assert_eq!(j.finish().map(|l| l.1).collect::<Vec<_>>(), ["prompt"]);
        assert!(j.is_empty());
    }

    #[test]
    fn very_long_lines_are_let_go_in_marked_parts() {
        let part = "x".repeat(16 * 1024);
        let mut j = Joiner::default();
        let lines = texts(&mut j, &[(&part, "stdout"), (&part, "stdout"), ("end\n", "stdout"), ("next\n", "stdout")]);
        assert_eq!(lines, [part.clone(), format!("[continued] {part}"), "[continued] end".into(), "next".into()]);
        let lines = texts(&mut j, &[(&part, "stdout"), ("\n", "stdout"), ("next\n", "stdout")]);
        assert_eq!(lines, [part, "next".into()]);
    }

    proptest! {
        #[test]
        fn both_ways_of_reading_agree(text in "([ -~äß😀\\t]{0,40})(\r?\n)?", stream in "stdout|stderr", attrs in any::<bool>()) {
            let log = serde_json::to_string(&text).unwrap();
            let attrs = if attrs { r#","attrs":{"a":"b"}"# } else { "" };
            let raw = format!(r#"{{"log":{log},"stream":"{stream}"{attrs},"time":"2026-11-21T07:20:53.123456789Z"}}"#);
            let any = parse_any(raw.as_bytes()).unwrap();
            let shown = text.strip_suffix('\n').map_or(&*text, |t| t.strip_suffix('\r').unwrap_or(t));
            prop_assert_eq!(&*any.text, shown);
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
        assert_eq!((&piece.text, piece.stderr), (&Cow::Borrowed("level=info ä"), true));
        let control = raw.replace("info", "\u{1}");
        assert!(parse(control.as_bytes()).is_none(), "no JSON");
    }
}
