//! What `flex logs` is given.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  flex logs -t\n  flex logs -n 500 -p worker\n  flex logs --since 2h --grep timeout\n  flex logs --since 2026-11-21T13:00 --until 2026-11-21T14:00 -E 'status=5..'\n  flex logs -s router -t\n  flex logs:retention --size 1G --age 30d"
)]
pub struct Logs {
    #[command(subcommand)]
    pub verb: Option<LogsVerb>,
    /// How many lines of the past [default: 100; with --since as many as there are, 10,000 at most]
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub num: Option<usize>,
    /// Keep following; a broken connection is taken up again where it broke
    #[arg(short, long)]
    pub tail: bool,
    /// Only this process type or instance: web, web.1
    #[arg(short, long, visible_short_alias = 'd', alias = "ps", visible_alias = "dyno", value_name = "NAME")]
    pub process: Option<String>,
    /// Only this source: app, flex or router
    #[arg(short, long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// Not older than this: 30m, 2h, 1d12h, or a moment as 2026-11-21T13:00 (UTC)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not newer than this, in the same forms
    #[arg(long, value_name = "TIME", conflicts_with = "tail")]
    pub until: Option<String>,
    /// Only lines with this text; the server looks
    #[arg(long, value_name = "TEXT", conflicts_with = "regex")]
    pub grep: Option<String>,
    /// Only lines that match this regular expression
    #[arg(short = 'E', long, value_name = "REGEX")]
    pub regex: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum LogsVerb {
    /// Show or set how much of the log is kept
    #[command(
        after_help = "Examples:\n  flex logs:retention\n  flex logs:retention --size 1G --age 30d\n  flex logs:retention --default"
    )]
    Retention {
        /// Bytes on disk, compressed: 512M, 2G
        #[arg(long, value_name = "SIZE")]
        size: Option<flex_model::Memory>,
        /// Older lines go: 12h, 7d
        #[arg(long, value_name = "AGE", value_parser = age)]
        age: Option<u64>,
        /// Back to the server's defaults
        #[arg(long, conflicts_with_all = ["size", "age"])]
        default: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Drains {
    /// Send the log to a receiver, from now on
    #[command(
        after_help = "Examples:\n  flex drains:add syslog+tls://logs.example.com:6514\n  flex drains:add syslog://10.0.0.5:514\n  flex drains:add 'https://user:password@logs.example.com/in?key=abc'"
    )]
    Add {
        /// syslog+tls://HOST:PORT, syslog://HOST:PORT or https://HOST/PATH
        url: String,
    },
    /// Send it there no more
    #[command(after_help = "Example: flex drains:remove syslog://10.0.0.5:514")]
    Remove {
        /// The URL, the token or the id
        drain: String,
    },
}

/// Seconds.
fn age(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no age: use hours or days, as 12h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        assert_eq!((age("12h"), age("7d")), (Ok(43_200), Ok(604_800)));
        for wrong in ["", "7", "d", "0d", "7m", "99999999999999999999d", "7€"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
