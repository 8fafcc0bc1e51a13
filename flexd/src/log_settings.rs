//! The `[logs]` section of `flexd.toml`: what is kept, and the most that apps may set for themselves.

use flex_logs::drain::{Guard, is_risky};
use flex_logs::{LogSettings, Retention};
use flex_model::Memory;
use flex_runtime::Net;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Addresses that drains reach although they are this machine's, a link's or a cloud's metadata.
    drain_allow: Vec<String>,
    /// Addresses that drains do not reach, beside those.
    drain_deny: Vec<String>,
    /// PEM file of authorities that drains trust, beside the system's.
    drain_ca: Option<PathBuf>,
}

/// What is kept of the apps' logs.
#[derive(Debug, Clone)]
pub struct Logs {
    pub store: LogSettings,
    /// The most that an app may set.
    pub limit: Retention,
    pub drain_allow: Vec<Net>,
    pub drain_deny: Vec<Net>,
    pub drain_ca: Option<PathBuf>,
}

impl Logs {
    /// Which addresses drains reach.
    pub fn guard(&self) -> Guard {
        let (allow, deny) = (self.drain_allow.clone(), self.drain_deny.clone());
        Arc::new(move |address| {
            let address = address.to_canonical();
            let within = |nets: &[Net]| nets.iter().any(|n| n.contains(address));
            within(&allow) || !(is_risky(address) || within(&deny))
        })
    }
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
        let nets = |name: &str, all: Vec<String>| {
            all.iter().map(|n| n.parse().map_err(|e| format!("logs.{name}: {e}"))).collect::<Result<Vec<Net>, String>>()
        };
        let (drain_allow, drain_deny) = (nets("drain_allow", self.drain_allow)?, nets("drain_deny", self.drain_deny)?);
        Ok(Logs { store, limit, drain_allow, drain_deny, drain_ca: self.drain_ca })
    }
}
