//! What routers tell every second, kept for a minute: what autoscaling decides from and what people watch; and how far each
//! router is behind the table.
//!
//! All of it is in memory: it is about now, and a controller that has just started has heard nothing yet.

use flex_model::signals::{Counts, RouterSignals};
use flex_model::{AppId, ProcessType, RouterStatus};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long seconds are kept.
pub const KEPT: Duration = Duration::from_secs(60);
/// A router that told nothing for so long has nothing under way that is known of.
const FRESH: Duration = Duration::from_millis(3500);
/// Tables whose moment is remembered, to see how long routers take.
const TABLES: usize = 64;
/// Routers that are remembered.
const ROUTERS: usize = 1000;

/// What one router told.
#[derive(Debug, Clone)]
pub struct Told {
    pub version: String,
    pub connections: u64,
    pub at: Instant,
    /// From a table's publication to this router's word that it routes by it; of the newest that it took.
    pub lag: Option<Duration>,
}

type Row = (Instant, u32, Counts);

/// Counts of one process type, of one release where routes tell them apart.
pub type Of = (ProcessType, Option<u64>);

/// Everything that was told lately.
#[derive(Debug, Default)]
pub struct SignalBook {
    routers: BTreeMap<String, Told>,
    /// By app, then process type, then router; oldest first.
    rows: BTreeMap<AppId, BTreeMap<Of, BTreeMap<String, VecDeque<Row>>>>,
    published: VecDeque<(u64, Instant)>,
    swept: Option<Instant>,
}

/// One process type over some seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Sums, but `in_flight` and `queue` as they are now.
    pub counts: Counts,
    /// Second by second, the newest first: how long ago it ended, and what was counted.
    pub seconds: Vec<(Duration, Counts)>,
}

impl SignalBook {
    /// Takes what a router tells of its last second.
    pub fn take(&mut self, signals: RouterSignals, now: Instant) {
        if !self.routers.contains_key(&signals.router) && self.routers.len() >= ROUTERS {
            return;
        }
        let told = self.routers.entry(signals.router.clone()).or_insert_with(|| Told {
            version: String::new(),
            connections: 0,
            at: now,
            lag: None,
        });
        (told.version, told.connections, told.at) = (signals.version, signals.connections, now);
        for s in signals.apps {
            let of = self.rows.entry(s.app).or_default().entry((s.process, s.version)).or_default();
            of.entry(signals.router.clone()).or_default().push_back((now, signals.millis, s.counts));
        }
        if self.swept.is_none_or(|at| now.duration_since(at) > Duration::from_secs(5)) {
            self.swept = Some(now);
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.rows.retain(|_, by_process| {
            by_process.retain(|_, by_router| {
                by_router.retain(|_, rows| {
                    while rows.front().is_some_and(|(at, ..)| now.duration_since(*at) > KEPT) {
                        rows.pop_front();
                    }
                    !rows.is_empty()
                });
                !by_router.is_empty()
            });
            !by_process.is_empty()
        });
        self.routers.retain(|_, told| now.duration_since(told.at) < KEPT * 10);
    }

    /// A table was published.
    pub fn published(&mut self, revision: u64, now: Instant) {
        self.published.push_back((revision, now));
        while self.published.len() > TABLES {
            self.published.pop_front();
        }
    }

    /// A router says what it routes by; `before` is what it said last.
    pub fn acknowledged(&mut self, status: &RouterStatus, before: Option<u64>, now: Instant) {
        if before == Some(status.revision) || (self.routers.len() >= ROUTERS && !self.routers.contains_key(&status.router)) {
            return;
        }
        let Some((_, at)) = self.published.iter().find(|(r, _)| *r == status.revision) else { return };
        let lag = now.duration_since(*at);
        let told = Told { version: String::new(), connections: 0, at: now, lag: None };
        self.routers.entry(status.router.clone()).or_insert(told).lag = Some(lag);
    }

    pub fn router(&self, name: &str) -> Option<&Told> {
        self.routers.get(name)
    }

    /// What was counted of an app within `window`, by process type.
    pub fn of(&self, app: AppId, window: Duration, now: Instant) -> BTreeMap<Of, Seen> {
        let mut out = BTreeMap::new();
        for (of, by_router) in self.rows.get(&app).into_iter().flatten() {
            let mut seen = Seen { counts: Counts::default(), seconds: Vec::new() };
            let mut seconds: BTreeMap<u64, Counts> = BTreeMap::new();
            for rows in by_router.values() {
                let mut newest = Counts::default();
                for (at, _, counts) in rows.iter().filter(|(at, ..)| now.duration_since(*at) < window) {
                    seconds.entry(now.duration_since(*at).as_secs()).or_default().add(counts);
                    let flow = Counts { in_flight: 0, queue: 0, ..counts.clone() };
                    seen.counts.add(&flow);
                    // Silence is quiet: a router leaves out what nothing happened with.
                    if now.duration_since(*at) < FRESH {
                        newest = counts.clone();
                    }
                }
                (seen.counts.in_flight, seen.counts.queue) =
                    (seen.counts.in_flight + newest.in_flight, seen.counts.queue + newest.queue);
            }
            seen.seconds = seconds.into_iter().map(|(ago, counts)| (Duration::from_secs(ago), counts)).collect();
            out.insert(of.clone(), seen);
        }
        out
    }

    /// Requests a second over all routers, or over one.
    pub fn rate(&self, router: Option<&str>, window: Duration, now: Instant) -> f64 {
        let all = self.rows.values().flat_map(BTreeMap::values).flatten();
        let rows = all.filter(|(name, _)| router.is_none_or(|r| r == *name)).flat_map(|(_, rows)| rows);
        let arrivals: u64 = rows.filter(|(at, ..)| now.duration_since(*at) < window).map(|(.., c)| c.arrivals).sum();
        arrivals as f64 / window.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::signals::Signal;

    fn told(router: &str, arrivals: u64, in_flight: u64) -> RouterSignals {
        let counts = Counts { arrivals, ended: arrivals, in_flight, ..Counts::default() };
        let app = AppId(flex_model::Uuid::nil());
        let apps = vec![Signal { app, process: ProcessType::web(), version: None, counts }];
        RouterSignals { router: router.into(), version: "1".into(), millis: 1000, connections: 5, apps }
    }

    #[test]
    fn flows_add_up_and_levels_are_the_newest() {
        let (mut book, start) = (SignalBook::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        for s in 0..70 {
            book.take(told("a", 10, s), at(s));
            book.take(told("b", 1, 1), at(s));
        }
        let app = AppId(flex_model::Uuid::nil());
        let seen = &book.of(app, Duration::from_secs(10), at(69))[&(ProcessType::web(), None)];
        assert_eq!((seen.counts.arrivals, seen.counts.in_flight, seen.seconds.len()), (110, 70, 10));
        assert!((book.rate(None, Duration::from_secs(10), at(69)) - 11.0).abs() < 0.01);
        assert!((book.rate(Some("b"), Duration::from_secs(10), at(69)) - 1.0).abs() < 0.01);
        // Two that fell silent: nothing is known to be under way, and in the end nothing of them is left.
        let seen = &book.of(app, Duration::from_secs(60), at(80))[&(ProcessType::web(), None)];
        assert_eq!((seen.counts.in_flight, seen.counts.arrivals), (0, 11 * 49));
        book.sweep(at(200));
        assert!(book.rows.is_empty());
    }

    #[test]
    fn lag_is_from_a_table_to_the_word_that_it_is_in_force() {
        let (mut book, start) = (SignalBook::default(), Instant::now());
        book.published(7, start);
        let status = RouterStatus { router: "a".into(), revision: 7, ..RouterStatus::default() };
        book.acknowledged(&status, Some(6), start + Duration::from_millis(40));
        book.acknowledged(&status, Some(7), start + Duration::from_secs(9));
        assert_eq!(book.router("a").unwrap().lag, Some(Duration::from_millis(40)));
    }
}
