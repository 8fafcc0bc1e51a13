//! A line of an app's log stream, as Heroku's tools expect it.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The app's own processes, and what users did to the app (`app[api]`).
    App,
    /// The platform: state changes, the router.
    Flex,
}

/// One line. `text` holds no line end; bytes that were not UTF-8 arrive as U+FFFD here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: Timestamp,
    pub source: LogSource,
    /// `web.1`, `router`, `api`, `run.4711`.
    pub process: String,
    pub text: String,
}

impl fmt::Display for LogLine {
    /// `2024-01-01T00:00:00.000000+00:00 app[web.1]: text`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            LogSource::App => "app",
            LogSource::Flex => "flex",
        };
        write!(f, "{} {source}[{}]: {}", self.at.log_stamp(), self.process, self.text)
    }
}
