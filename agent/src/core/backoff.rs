//! When a crashed instance is tried again.

use std::time::Duration;

/// Longest wait between two tries.
const CAP: Duration = Duration::from_secs(300);

/// Up this long, and earlier crashes are forgotten.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// Wait after the `crashes`-th crash in a row (from 1): 0, 1, 2, 4 … seconds up to five minutes, each shortened or
/// stretched by up to a fifth. `jitter` is in 0..1.
pub fn delay(crashes: u32, jitter: f64) -> Duration {
    let Some(doublings) = crashes.checked_sub(2) else { return Duration::ZERO };
    let seconds = 1u64.checked_shl(doublings).unwrap_or(u64::MAX).min(CAP.as_secs());
    Duration::from_secs(seconds).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_five_minutes() {
        let middle: Vec<u64> = (0..12).map(|n| delay(n, 0.5).as_secs()).collect();
        assert_eq!(middle, [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(delay(u32::MAX, 0.5).as_secs(), 300);
        assert_eq!(delay(6, 0.0), Duration::from_millis(12_800));
        assert_eq!(delay(6, 1.0), Duration::from_millis(19_200));
    }
}
