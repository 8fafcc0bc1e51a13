//! The `[logs]` section of `flexd.toml`: what is kept, and the most that apps may set for themselves.

use flex_logs::{LogSettings, Retention};
use flex_model::Memory;
use serde::Deserialize;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsFile {
    /// Of each app, if it sets nothing: `512M`.
    size: Option<String>,
    days: Option<u32>,
    /// The most that an app may set.
    size_limit: Option<String>,
    days_limit: Option<u32>,
    /// Lines a second that an app may log in the long run.
    lines_per_second: Option<u64>,
}

/// What is kept of the apps' logs.
#[derive(Debug, Clone)]
pub struct Logs {
    pub store: LogSettings,
    /// The most that an app may set.
    pub limit: Retention,
}

impl LogsFile {
    /// # Errors
    /// One line that names the setting and what is wrong with it.
    pub fn read(self) -> Result<Logs, String> {
        let size = |name: &str, text: Option<String>, default: Memory| match text {
            Some(t) => t.parse().map_err(|e| format!("logs.{name}: {e}")),
            None => Ok(default),
        };
        let default = LogSettings::default();
        let kept = Retention {
            max_bytes: size("size", self.size, Memory::from_mib(512))?.bytes(),
            max_age: self.days.map_or(default.max_age, |d| DAY * d),
        };
        let limit = Retention {
            max_bytes: size("size_limit", self.size_limit, Memory::from_mib(4096))?.bytes().max(kept.max_bytes),
            max_age: (DAY * self.days_limit.unwrap_or(365)).max(kept.max_age),
        };
        if kept.max_age.is_zero() || self.lines_per_second == Some(0) {
            return Err("logs: days and lines_per_second must be 1 or more".into());
        }
        let rate = self.lines_per_second.unwrap_or(default.lines_per_second);
        let store = LogSettings {
            max_bytes_per_app: kept.max_bytes,
            max_age: kept.max_age,
            lines_per_second: rate,
            burst_lines: rate.saturating_mul(10),
            ..default
        };
        Ok(Logs { store, limit })
    }
}
