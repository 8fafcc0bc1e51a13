//! A line of an app's log stream, as Heroku's tools expect it.

use crate::{LogText, Timestamp};
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

/// One line. `text` holds no line end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: Timestamp,
    pub source: LogSource,
    /// `web.1`, `router`, `api`, `run.4711`.
    pub process: String,
    pub text: LogText,
}

impl LogLine {
    /// What comes before the text, `2024-01-01T00:00:00.000000+00:00 app[web.1]: `; `platform` is what the platform is called.
    pub fn head(&self, platform: &str) -> String {
        let source = match self.source {
            LogSource::App => "app",
            LogSource::Flex => platform,
        };
        format!("{} {source}[{}]: ", self.at.log_stamp(), self.process)
    }

    /// The line as [`fmt::Display`] has it, with the text's bytes as they are.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.head("flex").into_bytes();
        out.extend_from_slice(self.text.as_bytes());
        out
    }
}

impl fmt::Display for LogLine {
    /// `2024-01-01T00:00:00.000000+00:00 app[web.1]: text`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head("flex"), self.text)
    }
}
