//! How fast an app may log: a token bucket that runs on the lines' own times.
//!
//! The lines' times and not the wall clock, so that a backlog read after a restart is judged by how fast the app wrote it,
//! not by how fast it is read now.

use flex_model::{LogLine, Timestamp};
use std::time::Duration;

/// A line costs one token for each started 2 KiB: 5,000 lines a second are then also at most 10 MB a second.
const BYTES_PER_TOKEN: usize = 2048;

/// Steps back that are more than lines arriving out of order: the clock was set.
const CLOCK_STEP: Duration = Duration::from_secs(60);

/// A token bucket. Tokens are counted in millionths, so that whole numbers serve.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: u64,
    burst_micro: u64,
    tokens_micro: u64,
    last: Timestamp,
}

impl Bucket {
    /// Starts full.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let burst_micro = burst.saturating_mul(1_000_000);
        Self { per_second, burst_micro, tokens_micro: burst_micro, last: Timestamp::default() }
    }

    /// Takes the line's tokens, or says no.
    pub fn take(&mut self, line: &LogLine) -> bool {
        let elapsed = line.at.since(self.last);
        if elapsed > Duration::ZERO || self.last.since(line.at) > CLOCK_STEP {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            let refill = micros.saturating_mul(self.per_second);
            self.tokens_micro = self.tokens_micro.saturating_add(refill).min(self.burst_micro);
            self.last = line.at;
        }
        let cost = (line.text.len().div_ceil(BYTES_PER_TOKEN).max(1) as u64) * 1_000_000;
        if self.tokens_micro < cost {
            return false;
        }
        self.tokens_micro -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::LogSource;

    fn line(micros: i64, bytes: usize) -> LogLine {
        let at = Timestamp::from_micros(micros);
        LogLine { at, source: LogSource::App, process: "web.1".into(), text: "x".repeat(bytes).into() }
    }

    fn passed(bucket: &mut Bucket, at: i64, n: usize, bytes: usize) -> usize {
        (0..n).filter(|_| bucket.take(&line(at, bytes))).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut b = Bucket::new(10, 50);
        assert_eq!(passed(&mut b, 1_000_000, 100, 10), 50);
        assert_eq!(passed(&mut b, 2_000_000, 100, 10), 10);
        assert_eq!(passed(&mut b, 2_500_000, 100, 10), 5);
        assert_eq!(passed(&mut b, 99_000_000, 100, 10), 50);
    }

    #[test]
    fn long_lines_cost_more() {
        let mut b = Bucket::new(10, 50);
        assert_eq!(passed(&mut b, 1_000_000, 100, 10 * 1024), 10);
    }

    #[test]
    fn a_clock_set_back_does_not_starve_the_app() {
        let mut b = Bucket::new(10, 50);
        assert_eq!(passed(&mut b, 3_600_000_000, 100, 10), 50);
        assert_eq!(passed(&mut b, 1_000_000, 1, 10), 0);
        assert_eq!(passed(&mut b, 2_000_000, 100, 10), 10);
    }
}
