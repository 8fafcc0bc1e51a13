//! Whether an instance is healthy, judged from the answers of its probes. Pure: times come in.

use flex_model::{HealthCheck, HealthProbe};
use std::time::Duration;

/// Shortest and longest pause between probes of one that starts.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);
/// In between, the pause is this part of the time it has been starting: that much later than at once is its readiness seen.
const PART: u32 = 20;
/// Pause between probes of one that failed after it was healthy: how late its recovery is noticed at most.
const RECOVERY_PAUSE: Duration = Duration::from_secs(1);

/// What the probes said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Has not passed yet.
    Unproven,
    Healthy,
    /// Passed once, and fails now.
    Failing,
}

/// The probing of one running incarnation.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    pub verdict: Verdict,
    /// Since when it has been seen running.
    pub running_since: Duration,
    successes: u32,
    failures: u32,
    /// When the next probe is due; none while one is under way.
    next_probe: Option<Duration>,
    /// Why the last probe failed.
    pub last_failure: Option<String>,
}

impl Health {
    /// Of one seen running for the first time at `now`, judged as it was when it was seen last.
    pub fn new(now: Duration, verdict: Verdict) -> Self {
        Self { verdict, running_since: now, successes: 0, failures: 0, next_probe: Some(now), last_failure: None }
    }

    /// When [`Health::start_probe`] or the check's own clock has something to do next.
    pub fn next_due(&self, check: &HealthCheck) -> Option<Duration> {
        match check.probe {
            HealthProbe::Running { millis } => {
                (self.verdict == Verdict::Unproven).then(|| self.running_since + Duration::from_millis(millis))
            }
            _ => self.next_probe,
        }
    }

    /// Whether a probe must be sent now; it is under way then until [`Health::record`].
    pub fn start_probe(&mut self, check: &HealthCheck, now: Duration) -> bool {
        if let HealthProbe::Running { millis } = check.probe {
            if now >= self.running_since + Duration::from_millis(millis) {
                self.verdict = Verdict::Healthy;
            }
            return false;
        }
        let due = self.next_probe.is_some_and(|t| now >= t);
        if due {
            self.next_probe = None;
        }
        due
    }

    /// Takes a probe's answer.
    pub fn record(&mut self, check: &HealthCheck, now: Duration, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                if self.successes >= check.successes.max(1) {
                    self.verdict = Verdict::Healthy;
                    self.last_failure = None;
                }
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                self.last_failure = Some(why);
                if self.verdict == Verdict::Healthy && self.failures >= check.failures.max(1) {
                    self.verdict = Verdict::Failing;
                }
            }
        }
        let interval = Duration::from_secs(u64::from(check.interval_seconds.max(1)));
        let pause = match self.verdict {
            Verdict::Healthy => interval,
            Verdict::Failing => interval.min(RECOVERY_PAUSE),
            Verdict::Unproven => (now.saturating_sub(self.running_since) / PART).clamp(SHORTEST, LONGEST),
        };
        self.next_probe = Some(now + pause);
    }

    /// When its time to become healthy for the first time is over; none once it was.
    pub fn boot_deadline(&self, check: &HealthCheck) -> Option<Duration> {
        let patience = Duration::from_secs(u64::from(check.start_seconds));
        (self.verdict == Verdict::Unproven).then(|| self.running_since + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(successes: u32, failures: u32) -> HealthCheck {
        let (start_seconds, interval_seconds, timeout_seconds) = (60, 5, 5);
        HealthCheck { probe: HealthProbe::Tcp, start_seconds, interval_seconds, timeout_seconds, successes, failures }
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn needs_its_successes_and_failures_in_a_row() {
        let check = check(2, 3);
        let mut h = Health::new(S, Verdict::Unproven);
        let said = |h: &mut Health, ok: bool| {
            h.record(&check, S, if ok { Ok(()) } else { Err("refused".into()) });
            h.verdict
        };
        for ok in [false, true, false, true] {
            assert_eq!(said(&mut h, ok), Verdict::Unproven);
        }
        assert_eq!(said(&mut h, true), Verdict::Healthy);
        for ok in [false, false, true, false, false] {
            assert_eq!(said(&mut h, ok), Verdict::Healthy);
        }
        assert_eq!(said(&mut h, false), Verdict::Failing);
        assert_eq!(said(&mut h, true), Verdict::Failing);
        assert_eq!(said(&mut h, true), Verdict::Healthy);
    }

    #[test]
    fn probes_are_never_doubled_and_get_rarer() {
        let check = check(1, 3);
        let mut h = Health::new(S, Verdict::Unproven);
        assert!(h.start_probe(&check, S));
        assert!(!h.start_probe(&check, S * 9), "one is under way");
        h.record(&check, S, Err(String::new()));
        assert_eq!(h.next_due(&check), Some(S + SHORTEST));
        h.record(&check, S * 3, Err(String::new()));
        assert_eq!(h.next_due(&check), Some(S * 3 + Duration::from_millis(100)));
        h.record(&check, S * 30, Err(String::new()));
        assert_eq!(h.next_due(&check), Some(S * 30 + LONGEST));
        h.record(&check, S * 31, Ok(()));
        assert_eq!(h.next_due(&check), Some(S * 36));
        assert_eq!(h.boot_deadline(&check), None);
    }

    #[test]
    fn running_long_enough_is_a_check_of_its_own() {
        let check = HealthCheck { probe: HealthProbe::Running { millis: 2000 }, ..check(1, 1) };
        let mut h = Health::new(S, Verdict::Unproven);
        assert_eq!(h.next_due(&check), Some(S * 3));
        assert!(!h.start_probe(&check, S * 2));
        assert_eq!(h.verdict, Verdict::Unproven);
        assert!(!h.start_probe(&check, S * 3));
        assert_eq!(h.verdict, Verdict::Healthy);
        assert_eq!(h.next_due(&check), None);
    }
}
