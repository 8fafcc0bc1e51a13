//! Long lines put together again from the pieces in which the engine keeps them.

use flex_logs::{CONTINUED, MAX_LINE_BYTES, open_character};
use flex_model::{LogText, Timestamp};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// One record of the engine's. It cuts lines at 16 KiB; all pieces but the last have no line end.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Without the line end.
    pub text: Cow<'a, [u8]>,
    pub ends: bool,
    pub stderr: bool,
    pub time: Timestamp,
}

/// Puts the pieces of each stream's lines together.
#[derive(Debug, Default)]
pub struct Joiner {
    stdout: Option<Line>,
    stderr: Option<Line>,
}

/// A line that has begun.
#[derive(Debug)]
struct Line {
    at: Timestamp,
    text: Vec<u8>,
    /// Its first part was let go already.
    continued: bool,
}

/// What a reader that begins at the next piece must know of the lines before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdout: Option<Rest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr: Option<Rest>,
}

/// A line whose parts so far were let go, all but the beginning of a character.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rest {
    at: Timestamp,
    text: LogText,
}

impl Begun {
    /// Whether no line has begun.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Joiner {
    /// Goes on where another one was.
    pub fn resume(begun: Begun) -> Self {
        let line = |rest: Rest| Line { at: rest.at, text: rest.text.into_bytes(), continued: true };
        Self { stdout: begun.stdout.map(line), stderr: begun.stderr.map(line) }
    }

    /// Takes a piece in; gives a line out when there is one.
    pub fn push(&mut self, piece: Piece<'_>) -> Option<(Timestamp, LogText)> {
        let slot = if piece.stderr { &mut self.stderr } else { &mut self.stdout };
        if piece.ends && slot.is_none() {
            return Some((piece.time, piece.text.into_owned().into()));
        }
        let line = slot.get_or_insert_with(|| Line { at: piece.time, text: Vec::new(), continued: false });
        if line.is_rest() {
            line.at = piece.time;
        }
        line.text.extend_from_slice(&piece.text);
        if piece.ends {
            return slot.take().and_then(Line::end);
        }
        (line.text.len() >= MAX_LINE_BYTES).then(|| line.let_go())
    }

    /// What has begun, if nothing is lost by beginning after it.
    pub fn begun(&self) -> Option<Begun> {
        Some(Begun { stdout: Line::rest(self.stdout.as_ref())?, stderr: Line::rest(self.stderr.as_ref())? })
    }

    /// What has begun, when nothing more will come.
    pub fn finish(&mut self) -> impl Iterator<Item = (Timestamp, LogText)> {
        [self.stdout.take().and_then(Line::end), self.stderr.take().and_then(Line::end)].into_iter().flatten()
    }
}

impl Line {
    fn is_rest(&self) -> bool {
        self.continued && self.text.len() == open_character(&self.text)
    }

    fn rest(line: Option<&Self>) -> Option<Option<Rest>> {
        match line {
            None => Some(None),
            Some(l) if l.is_rest() => Some(Some(Rest { at: l.at, text: l.text.as_slice().into() })),
            Some(_) => None,
        }
    }

    fn marked(text: Vec<u8>, continued: bool) -> LogText {
        if continued { [CONTINUED.as_bytes(), &text].concat().into() } else { text.into() }
    }

    /// What there is of it, but for a character whose end is still to come.
    fn let_go(&mut self) -> (Timestamp, LogText) {
        let rest = self.text.split_off(self.text.len() - open_character(&self.text));
        let text = std::mem::replace(&mut self.text, rest);
        (self.at, Self::marked(text, std::mem::replace(&mut self.continued, true)))
    }

    fn end(self) -> Option<(Timestamp, LogText)> {
        // The rest of a line whose end came in a piece of its own.
        if self.continued && self.text.is_empty() {
            return None;
        }
        Some((self.at, Self::marked(self.text, self.continued)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &[u8], stderr: bool) -> Piece<'_> {
        let ends = text.ends_with(b"\n");
        Piece { text: text.strip_suffix(b"\n").unwrap_or(text).into(), ends, stderr, time: Timestamp::default() }
    }

    fn texts(joiner: &mut Joiner, pieces: &[(&str, bool)]) -> Vec<LogText> {
        pieces.iter().filter_map(|(text, stderr)| joiner.push(piece(text.as_bytes(), *stderr))).map(|l| l.1).collect()
    }

    fn is_empty(joiner: &Joiner) -> bool {
        joiner.begun().is_some_and(|b| b.is_none())
    }

    #[test]
    fn streams_do_not_mix() {
        let mut j = Joiner::default();
        assert_eq!(texts(&mut j, &[("ab", false), ("X\n", true), ("c\n", false), ("\n", false)]), ["X", "abc", ""]);
        assert!(is_empty(&j));
        assert!(texts(&mut j, &[("prompt", false)]).is_empty());
        assert_eq!(j.begun(), None);
        assert_eq!(j.finish().map(|l| l.1).collect::<Vec<_>>(), ["prompt"]);
        assert!(is_empty(&j));
    }

    #[test]
    fn very_long_lines_are_let_go_in_marked_parts() {
        let part = "x".repeat(16 * 1024);
        let mut j = Joiner::default();
        let lines = texts(&mut j, &[(&part, false), (&part, false), ("end\n", false), ("next\n", false)]);
        assert_eq!(lines, [part.clone(), format!("[continued] {part}"), "[continued] end".into(), "next".into()]);
        let lines = texts(&mut j, &[(&part, false), ("\n", false), ("next\n", false)]);
        assert_eq!(lines, [part, "next".into()]);
    }

    /// Also by a reader that begins anew after each piece after which it may.
    #[test]
    fn characters_stay_whole_over_pieces_and_restarts() {
        for restarts in [false, true] {
            let text = format!("{}{}\n", "x".repeat(7), "\u{20ac}\u{1f600}".repeat(12_000));
            let mut joiner = Joiner::default();
            let mut lines = Vec::new();
            for bytes in text.as_bytes().chunks(16 * 1024) {
                lines.extend(joiner.push(piece(bytes, false)));
                if let Some(begun) = joiner.begun().filter(|_| restarts) {
                    let kept = serde_json::to_string(&begun).unwrap();
                    joiner = Joiner::resume(serde_json::from_str(&kept).unwrap());
                }
            }
            assert!(is_empty(&joiner) && lines.len() > 4);
            let parts = lines.iter().map(|(_, line)| line.as_str().expect("no character is parted"));
            let joined: String = parts.map(|p| p.strip_prefix(CONTINUED).unwrap_or(p)).collect();
            assert_eq!(joined, text.trim_end());
        }
        let mut joiner = Joiner::default();
        joiner.push(piece(&[b"x".repeat(16_000), b"\xe2\x82".to_vec()].concat(), true));
        let mut joiner = Joiner::resume(joiner.begun().unwrap());
        let rest: Vec<_> = joiner.finish().map(|l| l.1).collect();
        assert_eq!(rest, [LogText::from(&b"[continued] \xe2\x82"[..])]);
    }
}
