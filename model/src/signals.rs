//! What routers count of each app, second by second: what autoscaling decides from, and what people watch.

use crate::{AppId, ProcessType};
use serde::{Deserialize, Serialize};

/// Upper bounds of the classes of times, in microseconds. Slower ones make one class more.
pub const TIME_BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
    30_000_000, 60_000_000,
];

/// One second (or so) of one router.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterSignals {
    /// Names the router among several.
    pub router: String,
    /// Version of the program.
    #[serde(default)]
    pub version: String,
    /// What the counts are of, in milliseconds: about 1,000.
    pub millis: u32,
    /// Client connections open now.
    pub connections: u64,
    /// Only process types that something happened with, or that have something under way.
    pub apps: Vec<Signal>,
}

/// One process type of one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    pub app: AppId,
    pub process: ProcessType,
    /// Where a route leads to a certain release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(flatten)]
    pub counts: Counts,
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Requests (or connections) that came.
    pub arrivals: u64,
    /// That ended.
    pub ended: u64,
    /// Of those, with a status of 500 or more.
    pub errors: u64,
    /// Under way at the end of the second, waiting ones included.
    pub in_flight: u64,
    /// Of those, waiting for an instance or for a place on one.
    pub queue: u64,
    /// Requests that reached an instance and ended.
    pub served: u64,
    /// How long instances took for them, in microseconds, all together.
    pub service_us: u64,
    /// Answered requests by the time that they took in the router, in the classes of [`TIME_BOUNDS`]. Empty: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<u64>,
}

impl Counts {
    /// Puts another's counts in: of another router, or of another second (`in_flight` and `queue` then are the later's).
    pub fn add(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.ended += other.ended;
        self.errors += other.errors;
        self.in_flight += other.in_flight;
        self.queue += other.queue;
        self.served += other.served;
        self.service_us += other.service_us;
        if self.times.len() < other.times.len() {
            self.times.resize(other.times.len(), 0);
        }
        for (mine, theirs) in self.times.iter_mut().zip(&other.times) {
            *mine += theirs;
        }
    }

    /// Nothing happened, and nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.arrivals == 0 && self.ended == 0 && self.in_flight == 0 && self.queue == 0
    }

    /// The time, in milliseconds, that this share of the requests did not exceed, as near as the classes tell: evenly spread
    /// within each. `None`: there were none.
    pub fn percentile_ms(&self, share: f64) -> Option<f64> {
        let all: u64 = self.times.iter().sum();
        if all == 0 {
            return None;
        }
        let rank = share * all as f64;
        let mut before = 0;
        for (at, count) in self.times.iter().copied().enumerate() {
            if count > 0 && (before + count) as f64 >= rank {
                let low = if at == 0 { 0 } else { TIME_BOUNDS[(at - 1).min(TIME_BOUNDS.len() - 1)] };
                let high = TIME_BOUNDS.get(at).copied().unwrap_or(low);
                let into = (rank - before as f64) / count as f64;
                return Some((low as f64 + (high - low) as f64 * into) / 1000.0);
            }
            before += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_within_their_class() {
        assert_eq!(Counts::default().percentile_ms(0.5), None);
        let mut times = vec![0; TIME_BOUNDS.len() + 1];
        (times[1], times[6]) = (90, 10);
        let counts = Counts { times, ..Counts::default() };
        let at = |share| counts.percentile_ms(share).unwrap();
        assert!((1.0..=2.5).contains(&at(0.5)) && (50.0..=100.0).contains(&at(0.95)), "{} {}", at(0.5), at(0.95));
        let slow = Counts { times: vec![0; TIME_BOUNDS.len()].into_iter().chain([1]).collect(), ..Counts::default() };
        assert_eq!(slow.percentile_ms(0.99), Some(60_000.0));
    }

    #[test]
    fn counts_of_several_routers_are_one() {
        let one = Counts { arrivals: 2, in_flight: 1, times: vec![1, 2], ..Counts::default() };
        let mut sum = Counts { arrivals: 1, ..Counts::default() };
        sum.add(&one);
        assert_eq!((sum.arrivals, sum.in_flight, sum.times), (3, 1, vec![1, 2]));
        let signal = Signal { app: AppId(crate::Uuid::nil()), process: ProcessType::web(), version: None, counts: one };
        let text = serde_json::to_string(&signal).unwrap();
        assert_eq!(serde_json::from_str::<Signal>(&text).unwrap(), signal);
    }
}
