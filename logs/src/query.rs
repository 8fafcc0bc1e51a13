//! Which lines a reader wants.

use flex_model::{LogLine, LogSource, Timestamp};

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
}

impl Default for LogQuery {
    fn default() -> Self {
        Self { lines: DEFAULT_LINES, source: None, process: None, since: None, until: None }
    }
}

impl LogQuery {
    /// The newest `lines` lines, unfiltered.
    pub fn newest(lines: usize) -> Self {
        Self { lines, ..Self::default() }
    }

    /// Whether a line passes the filters.
    pub fn matches(&self, line: &LogLine) -> bool {
        self.source.is_none_or(|s| s == line.source)
            && self.process.as_deref().is_none_or(|wanted| process_matches(wanted, &line.process))
            && self.since.is_none_or(|t| line.at >= t)
            && self.until.is_none_or(|t| line.at <= t)
    }

    /// Whether lines between these moments can pass the filters.
    pub(crate) fn overlaps(&self, oldest: Timestamp, newest: Timestamp) -> bool {
        self.since.is_none_or(|t| newest >= t) && self.until.is_none_or(|t| oldest <= t)
    }
}

fn process_matches(wanted: &str, process: &str) -> bool {
    process.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && !wanted.contains('.')))
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
            assert_eq!(process_matches(wanted, process), yes, "{wanted} {process}");
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
}
