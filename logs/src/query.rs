//! Which lines a reader wants.

use crate::wal::View;
use flex_model::{LogLine, LogSource, Timestamp};
use memchr::memmem::Finder;
use std::sync::Arc;

/// How many lines a reader gets who did not say: as `heroku logs`.
pub const DEFAULT_LINES: usize = 100;

/// Which lines a reader wants: the newest [`LogQuery::lines`] of those that pass every filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// At most this many lines of the past.
    pub lines: usize,
    /// Only the app's own lines, or only the platform's.
    pub source: Option<LogSource>,
    /// A process type (`web`: all of its instances) or one instance (`web.1`).
    pub process: Option<String>,
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// Not newer than this.
    pub until: Option<Timestamp>,
    /// Only lines with this in their text.
    pub text: Option<TextFilter>,
}

/// What a line's text must hold.
#[derive(Debug, Clone)]
pub enum TextFilter {
    /// These characters, as they are.
    Contains(Arc<str>),
    Pattern(regex::bytes::Regex),
}

/// Longest text or pattern to search for, in bytes.
pub const MAX_PATTERN: usize = 1000;
/// Memory that a compiled pattern may take.
const MAX_COMPILED: usize = 1 << 20;

impl TextFilter {
    /// Characters to look for.
    ///
    /// # Errors
    /// One sentence: it is too long.
    pub fn contains(text: &str) -> Result<Self, String> {
        short(text)?;
        Ok(Self::Contains(text.into()))
    }

    /// A regular expression, which takes time linear in the text whatever it is.
    ///
    /// # Errors
    /// One sentence: what is wrong with it.
    pub fn pattern(text: &str) -> Result<Self, String> {
        short(text)?;
        let built = regex::bytes::RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
        built.map(Self::Pattern).map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => format!("The pattern {text:?} takes too much memory: use fewer repetitions."),
            e => format!("The pattern {text:?} is no regular expression: {}", e.to_string().replace('\n', " ")),
        })
    }
}

fn short(text: &str) -> Result<(), String> {
    if text.len() > MAX_PATTERN {
        return Err(format!("A text or pattern to search for may have {MAX_PATTERN} bytes; this one has {}.", text.len()));
    }
    Ok(())
}

impl PartialEq for TextFilter {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Pattern(a), Self::Pattern(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for TextFilter {}

impl Default for LogQuery {
    fn default() -> Self {
        Self { lines: DEFAULT_LINES, source: None, process: None, since: None, until: None, text: None }
    }
}

impl LogQuery {
    /// The newest `lines` lines, unfiltered.
    pub fn newest(lines: usize) -> Self {
        Self { lines, ..Self::default() }
    }

    /// Whether a line passes the filters.
    pub fn matches(&self, line: &LogLine) -> bool {
        self.filter().matches(line.into())
    }

    /// The filters, prepared for many lines.
    pub(crate) fn filter(&self) -> Filter<'_> {
        let finder = match &self.text {
            Some(TextFilter::Contains(text)) => Some(Finder::new(text.as_bytes())),
            _ => None,
        };
        Filter { query: self, finder }
    }
}

/// A query's filters, prepared for many lines.
pub(crate) struct Filter<'a> {
    query: &'a LogQuery,
    finder: Option<Finder<'a>>,
}

impl Filter<'_> {
    pub fn matches(&self, line: View<'_>) -> bool {
        let q = self.query;
        q.source.is_none_or(|s| s == line.source)
            && q.process.as_deref().is_none_or(|wanted| process_matches(wanted.as_bytes(), line.process))
            && q.since.is_none_or(|t| line.at >= t)
            && q.until.is_none_or(|t| line.at <= t)
            && match &q.text {
                None => true,
                Some(TextFilter::Contains(_)) => self.finder.as_ref().is_some_and(|f| f.find(line.text).is_some()),
                Some(TextFilter::Pattern(pattern)) => pattern.is_match(line.text),
            }
    }

    /// Whether lines between these moments can pass.
    pub fn overlaps(&self, oldest: Timestamp, newest: Timestamp) -> bool {
        self.query.since.is_none_or(|t| newest >= t) && self.query.until.is_none_or(|t| oldest <= t)
    }
}

/// Whether a process is one that a reader wants, who named a type or one of its instances.
pub(crate) fn process_matches(wanted: &[u8], process: &[u8]) -> bool {
    process.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || (rest[0] == b'.' && !wanted.contains(&b'.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_means_all_its_instances_and_an_instance_only_itself() {
        for (wanted, process, yes) in [
            ("web", "web.1", true),
            ("web", "web.12", true),
            ("web", "web", true),
            ("web", "webby.1", false),
            ("web.1", "web.1", true),
            ("web.1", "web.12", false),
            ("web.1", "web.1.2", false),
            ("router", "router", true),
        ] {
            assert_eq!(process_matches(wanted.as_bytes(), process.as_bytes()), yes, "{wanted} {process}");
        }
    }

    #[test]
    fn times_include_both_ends() {
        let line = LogLine { at: Timestamp::from_micros(5), source: LogSource::App, process: "web.1".into(), text: "x".into() };
        let q = |since, until| LogQuery {
            since: Some(Timestamp::from_micros(since)),
            until: Some(Timestamp::from_micros(until)),
            ..LogQuery::default()
        };
        assert!(q(5, 5).matches(&line));
        assert!(!q(6, 9).matches(&line));
        assert!(!q(1, 4).matches(&line));
        assert!(!LogQuery { source: Some(LogSource::Flex), ..LogQuery::default() }.matches(&line));
    }

    #[test]
    fn text_and_patterns_are_found_and_bounded() {
        let line =
            |text: &str| LogLine { at: Timestamp::default(), source: LogSource::App, process: "web.1".into(), text: text.into() };
        let with = |text| LogQuery { text: Some(text), ..LogQuery::default() };
        let plain = with(TextFilter::contains("a.c").unwrap());
        assert!(plain.matches(&line("xa.cx")) && !plain.matches(&line("abc")));
        let pattern = with(TextFilter::pattern("^a.c$").unwrap());
        assert!(pattern.matches(&line("abc")) && !pattern.matches(&line("xabc")));
        let bytes = LogLine { text: (&b"caf\xe9 \xc3\xa9 end"[..]).into(), ..line("") };
        for found in ["caf", "\u{e9} end"] {
            assert!(with(TextFilter::contains(found).unwrap()).matches(&bytes), "{found}");
        }
        for (found, yes) in [("\u{e9} end$", true), (r"(?-u)^caf\xe9 ", true), (r"(?s-u)caf. ", true), ("caf. ", false)] {
            assert_eq!(with(TextFilter::pattern(found).unwrap()).matches(&bytes), yes, "{found}");
        }
        assert!(TextFilter::pattern("(").unwrap_err().contains("no regular expression"));
        assert!(TextFilter::pattern("(a{1000}){1000}").unwrap_err().contains("memory"));
        assert!(TextFilter::contains(&"x".repeat(1001)).unwrap_err().contains("1000 bytes"));
    }
}
