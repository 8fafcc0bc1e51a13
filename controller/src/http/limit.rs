//! How many requests a user may make: enough for any person and any sensible program, too few to keep others from being
//! served. Each user has a bucket that refills steadily; `RateLimit-Remaining` tells what is left in it.

use std::time::Instant;

/// What a full bucket holds.
const BURST: f64 = 10_000.0;
/// What comes back each second: half of what one core answers.
const REFILL: f64 = 200.0;

/// One user's bucket.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Full.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Takes one, and says how many are left; none: there was none to take.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * REFILL).min(BURST);
        self.at = self.at.max(now);
        if self.left < 1.0 {
            return None;
        }
        self.left -= 1.0;
        Some(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_runs_out_and_refills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert_eq!(bucket.take(start), Some(9999));
        let taken = (0..20_000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!((taken, bucket.take(start)), (9999, None));
        assert_eq!(bucket.take(start + Duration::from_secs(1)), Some(199));
        assert_eq!(bucket.take(start + Duration::from_secs(86_400)), Some(9999));
        // A clock that went back gives nothing.
        assert_eq!(bucket.take(start), Some(9998));
    }
}
