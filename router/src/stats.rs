//! What is counted of each app: by process type, and by release where a route leads to a certain one.
//!
//! Each worker has cells of its own, made when the first request of an app comes to it, so that counting makes no two threads
//! wait for one cache line and apps that nobody asks for cost nothing. How many apps are told apart is bounded; what is
//! beyond that is counted together.

use crate::{Code, metrics::Counters, table::App};
use flex_model::{
    AppId, ProcessType,
    signals::{Counts, TIME_BOUNDS},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// One worker's counts of one app. The alignment keeps two workers' off one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Cells {
    pub(crate) arrivals: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) waits_ended: AtomicU64,
    pub(crate) by_class: [AtomicU64; 5],
    pub(crate) by_code: [AtomicU64; Code::ALL.len()],
    /// Answered requests by the time from the head's arrival to the end, in the classes of [`TIME_BOUNDS`].
    pub(crate) times: [AtomicU64; TIME_BOUNDS.len() + 1],
    pub(crate) time_us: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) service_us: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) connects_failed: AtomicU64,
    pub(crate) ejections: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

/// What tells the counts of an app apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Of {
    pub(crate) app: AppId,
    pub(crate) process: ProcessType,
    /// Only where a route leads to a certain release.
    pub(crate) version: Option<u64>,
}

/// The counts of one app's process type.
#[derive(Debug)]
pub(crate) struct AppStats {
    /// None: of all apps beyond the bound.
    pub(crate) of: Option<Of>,
    /// As the app is called now.
    name: Mutex<Box<str>>,
    cells: Box<[OnceLock<Box<Cells>>]>,
}

impl AppStats {
    fn new(of: Option<Of>, name: &str, workers: usize) -> Self {
        Self { of, name: Mutex::new(name.into()), cells: (0..workers).map(|_| OnceLock::new()).collect() }
    }

    /// A worker's cells. One beyond the last counts with the first.
    pub(crate) fn at(&self, worker: usize) -> &Cells {
        self.cells.get(worker).unwrap_or(&self.cells[0]).get_or_init(Box::default)
    }

    pub(crate) fn name(&self) -> Box<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sum over all workers.
    pub(crate) fn sum(&self, of: impl Fn(&Cells) -> &AtomicU64) -> u64 {
        self.cells.iter().filter_map(OnceLock::get).map(|c| of(c).load(Relaxed)).sum()
    }

    /// One sum for each place of an array.
    pub(crate) fn sums<const N: usize>(&self, of: impl Fn(&Cells) -> &[AtomicU64; N]) -> [u64; N] {
        std::array::from_fn(|i| self.sum(|c| &of(c)[i]))
    }

    /// All that ever was, but `in_flight` and `queue` as they are now.
    pub(crate) fn counts(&self) -> Counts {
        // Ends first: what ends meanwhile must not be missing among what came.
        let (ended, waits_ended) = (self.sum(|c| &c.ended), self.sum(|c| &c.waits_ended));
        let (arrivals, waits) = (self.sum(|c| &c.arrivals), self.sum(|c| &c.waits));
        Counts {
            arrivals,
            ended,
            errors: self.sum(|c| &c.by_class[4]),
            in_flight: arrivals.saturating_sub(ended),
            queue: waits.saturating_sub(waits_ended),
            served: self.sum(|c| &c.served),
            service_us: self.sum(|c| &c.service_us),
            times: self.sums(|c| &c.times).into(),
        }
    }
}

/// All apps that something was counted of.
#[derive(Debug)]
pub(crate) struct StatsBook {
    apps: Mutex<BTreeMap<Of, Arc<AppStats>>>,
    other: Arc<AppStats>,
    workers: usize,
    most: usize,
}

impl StatsBook {
    /// `most` apps' process types are told apart.
    pub(crate) fn new(workers: usize, most: usize) -> Self {
        let other = Arc::new(AppStats::new(None, "", workers.max(1)));
        Self { apps: Mutex::default(), other, workers: workers.max(1), most }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Of, Arc<AppStats>>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, of: Of, name: &str) -> Arc<AppStats> {
        let mut apps = self.lock();
        if let Some(known) = apps.get(&of) {
            *known.name.lock().unwrap_or_else(PoisonError::into_inner) = name.into();
            return known.clone();
        }
        if apps.len() >= self.most {
            return self.other.clone();
        }
        let new = Arc::new(AppStats::new(Some(of.clone()), name, self.workers));
        apps.insert(of, new.clone());
        new
    }

    /// Every app's counts, and last those of the others, if there are any.
    pub(crate) fn all(&self) -> Vec<Arc<AppStats>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        if self.other.sum(|c| &c.arrivals) > 0 {
            all.push(self.other.clone());
        }
        all
    }

    /// Forgets what is counted of an app, except what `stays`.
    pub(crate) fn retain(&self, app: AppId, stays: impl Fn(&Of) -> bool) {
        // Nothing is counted of most apps.
        let mut apps = self.lock();
        let from = Of { app, process: first_process(), version: None };
        let gone: Vec<Of> =
            apps.range(from..).map(|(of, _)| of).take_while(|of| of.app == app).filter(|of| !stays(of)).cloned().collect();
        for of in gone {
            apps.remove(&of);
        }
    }
}

/// No process type sorts before it: its grammar ([`ProcessType`]) has nothing below `0` to begin with.
fn first_process() -> ProcessType {
    static FIRST: LazyLock<ProcessType> = LazyLock::new(|| "0".parse().unwrap_or_else(|_| ProcessType::web()));
    FIRST.clone()
}

impl App {
    /// Where its requests are counted.
    pub(crate) fn stats(&self, book: &StatsBook) -> &Arc<AppStats> {
        self.stats.get_or_init(|| {
            let of = Of { app: self.id, process: self.process.clone(), version: self.version };
            book.of(of, self.name.as_str())
        })
    }
}

/// A request or connection as it is counted. One that is dropped counts as ended.
#[derive(Debug)]
pub(crate) struct Counted {
    stats: Arc<AppStats>,
    worker: usize,
    begun: Instant,
    open: bool,
}

impl Counted {
    pub(crate) fn begin(app: &App, book: &StatsBook, counters: &Counters) -> Self {
        let (stats, worker) = (app.stats(book).clone(), counters.worker);
        Counters::add(&stats.at(worker).arrivals, 1);
        Self { stats, worker, begun: Instant::now(), open: true }
    }

    fn cells(&self) -> &Cells {
        self.stats.at(self.worker)
    }

    /// Waits, until that is dropped.
    pub(crate) fn wait(&self) -> CountedWait {
        Counters::add(&self.cells().waits, 1);
        CountedWait { stats: self.stats.clone(), worker: self.worker }
    }

    pub(crate) fn received(&self, bytes: u64) {
        Counters::add(&self.cells().bytes_in, bytes);
    }

    /// It has not ended yet.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// `service`: since an instance was reached, if one was. `status`: 0 where there is none, as of TCP.
    pub(crate) fn end(&mut self, status: u16, code: Option<Code>, service: Option<Duration>, bytes: u64) {
        self.open = false;
        let cells = self.cells();
        Counters::add(&cells.ended, 1);
        Counters::add(&cells.bytes_out, bytes);
        if let Some(class) = cells.by_class.get(usize::from(status / 100).wrapping_sub(1)) {
            Counters::add(class, 1);
        }
        if let Some(code) = code {
            Counters::add(&cells.by_code[code as usize], 1);
        }
        if let Some(service) = service {
            Counters::add(&cells.served, 1);
            Counters::add(&cells.service_us, micros(service));
        }
        // An upgraded connection lasts as long as its user stays, and a client that left got no answer.
        if status >= 200 && status != 499 {
            let time = micros(self.begun.elapsed());
            Counters::add(&cells.times[TIME_BOUNDS.partition_point(|bound| *bound < time)], 1);
            Counters::add(&cells.time_us, time);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.open {
            Counters::add(&self.cells().ended, 1);
        }
    }
}

/// A wait that is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct CountedWait {
    stats: Arc<AppStats>,
    worker: usize,
}

impl Drop for CountedWait {
    fn drop(&mut self) {
        Counters::add(&self.stats.at(self.worker).waits_ended, 1);
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_apps_than_are_told_apart_count_together() {
        let book = StatsBook::new(2, 1);
        let of = |n| Of { app: AppId(flex_model::Uuid::from_u128(n)), process: ProcessType::web(), version: None };
        let (a, b) = (book.of(of(1), "a"), book.of(of(2), "b"));
        assert!(a.of.is_some() && b.of.is_none());
        Counters::add(&b.at(7).arrivals, 1);
        assert_eq!(book.all().len(), 2);
        // Renamed, the same counts go on; gone, there is room for another.
        assert_eq!(&*book.of(of(1), "c").name(), "c");
        assert!(Arc::ptr_eq(&a, &book.of(of(1), "c")));
        book.retain(of(2).app, |_| false);
        book.retain(of(0).app, |_| false);
        assert!(book.of(of(2), "b").of.is_none());
        book.retain(of(1).app, |_| false);
        assert!(book.of(of(2), "b").of.is_some());
    }

    #[test]
    fn sums_are_over_workers() {
        let stats = AppStats::new(None, "", 2);
        Counters::add(&stats.at(0).arrivals, 2);
        Counters::add(&stats.at(1).arrivals, 3);
        Counters::add(&stats.at(1).ended, 1);
        assert_eq!((stats.counts().arrivals, stats.counts().in_flight), (5, 4));
    }
}
