//! From counters that only grow to what happened in the last second.

use crate::{Metrics, stats::Of};
use flex_model::signals::{Counts, RouterSignals, Signal};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Remembers what it read last, so that each reading tells of the time since.
pub struct SignalMeter {
    metrics: Metrics,
    last: BTreeMap<Of, Counts>,
    at: Instant,
}

impl SignalMeter {
    /// Begins now.
    pub fn new(metrics: Metrics) -> Self {
        let mut meter = Self { metrics, last: BTreeMap::new(), at: Instant::now() };
        meter.read();
        meter
    }

    /// What happened since the last call. Process types of which nothing is to be told are left out.
    pub fn read(&mut self) -> RouterSignals {
        let now = Instant::now();
        let took: Duration = now.duration_since(std::mem::replace(&mut self.at, now));
        let mut last = BTreeMap::new();
        let mut apps = Vec::new();
        for stats in self.metrics.shared.stats.all() {
            let Some(of) = stats.of.clone() else { continue };
            let counts = stats.counts();
            let since = since(&counts, self.last.get(&of));
            if !since.is_quiet() {
                apps.push(Signal { app: of.app, process: of.process.clone(), version: of.version, counts: since });
            }
            last.insert(of, counts);
        }
        self.last = last;
        RouterSignals {
            router: self.metrics.shared.settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            millis: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            connections: self.metrics.snapshot().connections_open,
            apps,
        }
    }
}

fn since(now: &Counts, before: Option<&Counts>) -> Counts {
    let Some(before) = before else { return now.clone() };
    // An app that went and came back counts from nothing again.
    let less = |a: u64, b: u64| a.saturating_sub(b);
    let times: Vec<u64> = now.times.iter().zip(&before.times).map(|(a, b)| less(*a, *b)).collect();
    Counts {
        arrivals: less(now.arrivals, before.arrivals),
        ended: less(now.ended, before.ended),
        errors: less(now.errors, before.errors),
        in_flight: now.in_flight,
        queue: now.queue,
        served: less(now.served, before.served),
        service_us: less(now.service_us, before.service_us),
        times: if times.iter().all(|n| *n == 0) { Vec::new() } else { times },
    }
}
