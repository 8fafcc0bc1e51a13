//! Docker's `json-file` lines, and long lines put together again.

use flex_logs::MAX_LINE_BYTES;
use flex_model::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;

/// One line of the file. The engine cuts lines at 16 KiB; all pieces but the last have no line end.
#[derive(Debug, Deserialize)]
pub struct Piece<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    time: Timestamp,
}

/// Reads a line of the file; none if it is no such line (torn by a crash of the machine).
pub fn parse(raw: &[u8]) -> Option<Piece<'_>> {
    serde_json::from_slice(raw).ok()
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
    pub fn push(&mut self, piece: &Piece<'_>) -> Option<(Timestamp, String)> {
        let pending = if piece.stream == "stderr" { &mut self.stderr } else { &mut self.stdout };
        let (text, ends) = match piece.log.strip_suffix('\n') {
            Some(text) => (text.strip_suffix('\r').unwrap_or(text), true),
            None => (&*piece.log, false),
        };
        pending.text.push_str(text);
        pending.at.get_or_insert(piece.time);
        if ends || pending.text.len() >= MAX_LINE_BYTES { pending.take(!ends) } else { None }
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

    fn raw(log: &str, stream: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({"log": log, "stream": stream, "time": "2026-11-21T07:20:53.123456789Z"})).unwrap()
    }

    fn texts(joiner: &mut Joiner, pieces: &[(&str, &str)]) -> Vec<String> {
        pieces.iter().filter_map(|(log, stream)| joiner.push(&parse(&raw(log, stream)).unwrap())).map(|l| l.1).collect()
    }

    #[test]
    fn times_are_the_engines() {
        let (at, text) = Joiner::default().push(&parse(&raw("a \"b\"\t\u{1f600}\r\n", "stdout")).unwrap()).unwrap();
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
}
