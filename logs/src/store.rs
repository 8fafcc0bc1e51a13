//! The store's face: apps by id, each a ring in memory and files behind it.

use crate::{
    LogQuery,
    disk::{AppDisk, Limits, remove_dir},
    follow::{Follower, Tail, overflow_line},
    limit::Bucket,
    read::{Place, Stretch},
    ring::{Keep, Ring},
    text::{is_one_line, split_lines},
    writer::{Message, Writer},
};
use flex_model::{AppId, LogLine, LogSource, Timestamp};
use futures_util::{Stream, StreamExt as _, stream};
use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};
use tokio::sync::{Semaphore, oneshot, watch};

/// Searches of files at a time; further ones wait, so that they do not take the machine from the apps.
const SEARCHES: usize = 2;

/// A line with its number within its app. Numbers grow by one from line to line, and are never given twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    pub seq: u64,
    pub line: Arc<LogLine>,
}

/// How much is kept of an app's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Bytes on disk (compressed, the newest write-ahead file not counted).
    pub max_bytes: u64,
    /// Lines older than this go, whole files at a time.
    pub max_age: Duration,
}

/// Tells the time; the system's clock outside of tests.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the store may use.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Bytes on disk for each app (compressed, the newest write-ahead file not counted).
    pub max_bytes_per_app: u64,
    /// Lines older than this go, whole files at a time.
    pub max_age: Duration,
    /// Size at which a segment file is finished; what retention removes at a time.
    pub segment_bytes: u64,
    /// Lines a second that an app may log in the long run; the platform's own lines are not counted.
    pub lines_per_second: u64,
    /// Lines that an app may log at once.
    pub burst_lines: u64,
    /// When files that are too old are looked for the first time: once all retentions are known.
    pub first_sweep: Duration,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            max_bytes_per_app: 512 << 20,
            max_age: Duration::from_secs(7 * 24 * 3600),
            segment_bytes: 64 << 20,
            lines_per_second: 5_000,
            burst_lines: 50_000,
            first_sweep: Duration::from_secs(60),
        }
    }
}

/// Why the log store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the logs in {}: {source}", path.display())]
pub struct LogError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What readers and the writer thread share of one app.
pub(crate) struct AppLog {
    pub id: AppId,
    pub state: Mutex<State>,
    pub disk: Mutex<AppDisk>,
    /// Changes when lines were written; readers wait on it.
    pub news: watch::Sender<()>,
}

pub(crate) struct State {
    pub ring: Ring,
    bucket: Bucket,
    /// Lines not taken since the last note about it, and since when.
    pub dropped: u64,
    pub dropped_since: Timestamp,
    /// The writer knows that lines wait.
    pub queued: bool,
    /// The last write failed.
    pub failing: bool,
    /// The app is gone.
    pub closed: bool,
    pub followers: usize,
    pub last_used: Timestamp,
}

impl State {
    /// Number of the first line that readers who stay do not see yet: it is not on disk, and may get there.
    pub fn visible(&self) -> u64 {
        if self.failing { self.ring.next() } else { self.ring.written() }
    }

    pub fn keep(&self) -> Keep {
        if self.followers > 0 { Keep::FOLLOWED } else { Keep::TAIL }
    }
}

#[derive(Default)]
pub(crate) struct Apps {
    pub open: HashMap<AppId, Arc<AppLog>>,
    /// Ids are never used twice: late lines of a dropped app must not bring its directory back.
    dropped: HashSet<AppId>,
}

pub(crate) struct Shared {
    pub dir: PathBuf,
    pub settings: LogSettings,
    pub clock: Clock,
    pub apps: Mutex<Apps>,
    retentions: Mutex<HashMap<AppId, Retention>>,
    searches: Semaphore,
    writer: mpsc::Sender<Message>,
}

/// Takes a lock; a panic elsewhere does not make log lines unreachable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The logs of all apps. Dropping it writes what waits.
pub struct LogStore {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LogStore {
    /// Opens (or makes) the store in a directory of its own and starts its writer thread. One process at a time.
    pub fn open(dir: impl AsRef<Path>, settings: LogSettings) -> Result<Self, LogError> {
        let clock = || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timestamp::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
        };
        Self::open_with_clock(dir, settings, Arc::new(clock))
    }

    /// [`LogStore::open`] with another clock.
    pub fn open_with_clock(dir: impl AsRef<Path>, settings: LogSettings, clock: Clock) -> Result<Self, LogError> {
        let dir = dir.as_ref().to_owned();
        std::fs::create_dir_all(&dir).map_err(|source| LogError { doing: "open", path: dir.clone(), source })?;
        let (writer, messages) = mpsc::channel();
        let shared = Arc::new(Shared {
            dir,
            settings,
            clock,
            apps: Mutex::default(),
            retentions: Mutex::default(),
            searches: Semaphore::new(SEARCHES),
            writer,
        });
        let thread = std::thread::Builder::new()
            .name("flex-logs".into())
            .spawn({
                let writer = Writer::new(shared.clone());
                move || writer.run(&messages)
            })
            .map_err(|source| LogError { doing: "start the writer of", path: shared.dir.clone(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a line (several, if it has line ends inside or is too long). Returns at once; the disk is the writer's work.
    /// A line beyond the app's rate is dropped and counted, the count goes into the log once a second.
    pub fn append(&self, app: AppId, line: LogLine) {
        self.append_all(app, [line]);
    }

    /// [`LogStore::append`] of several lines, for less work a line. The app's readers wait meanwhile.
    pub fn append_all(&self, app: AppId, lines: impl IntoIterator<Item = LogLine>) {
        match self.shared.app(app) {
            Ok(Some(log)) => self.shared.append(&log, lines),
            Ok(None) => {}
            Err(e) => tracing::error!(%app, error = %e, "log lines are lost"),
        }
    }

    /// The newest lines that the query asks for, oldest first.
    pub async fn query(&self, app: AppId, query: LogQuery) -> Result<Vec<LogLine>, LogError> {
        let lines = self.read(app, query).await?;
        Ok(lines.into_iter().map(|n| Arc::unwrap_or_clone(n.line)).collect())
    }

    /// [`LogStore::query`] with the lines' numbers. By time; the lines of one process stay in the order in which they came.
    pub async fn read(&self, app: AppId, query: LogQuery) -> Result<Vec<Numbered>, LogError> {
        let Some(log) = self.shared.app(app)? else { return Ok(Vec::new()) };
        Ok(history(&self.shared, &log, &query, false).await?.0)
    }

    /// Lines from number `from` on, about `max_bytes` of them. For threads that wait for the disk.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn read_on_blocking(&self, app: AppId, from: u64, max_bytes: usize, place: &mut Place) -> Result<Stretch, LogError> {
        let Some(log) = self.shared.app(app)? else { return Ok(Stretch { next: from, ..Stretch::default() }) };
        let snapshot = lock(&log.disk).snapshot();
        let read = snapshot.read_on(from, max_bytes, &LogQuery::default(), place);
        read.map_err(|source| LogError { doing: "read", path: self.shared.app_dir(app), source })
    }

    /// The app's lines below this number are on disk, where the end of this process does not take them.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn written(&self, app: AppId) -> Result<u64, LogError> {
        Ok(self.shared.app(app)?.map_or(0, |log| lock(&log.state).ring.written()))
    }

    /// The newest lines that the query asks for, and then each new one as it comes: none is left out or doubled between
    /// the two. The stream ends when the app is dropped.
    pub fn follow(&self, app: AppId, query: LogQuery) -> Pin<Box<dyn Stream<Item = LogLine> + Send + 'static>> {
        let clock = self.clock();
        let lines = self.tail(app, query, None).filter_map(move |item| {
            std::future::ready(match item {
                Tail::Line(n) => Some(Arc::unwrap_or_clone(n.line)),
                Tail::Live(_) => None,
                Tail::Missed { lines, .. } => Some(overflow_line(lines, clock())),
            })
        });
        Box::pin(lines)
    }

    /// [`LogStore::follow`] with the lines' numbers, and a mark where the past ends. `from` is one more than the number of
    /// the last line that the reader has: it gets all that follow, by number, also when this process was killed since.
    pub fn tail(&self, app: AppId, query: LogQuery, from: Option<u64>) -> Pin<Box<dyn Stream<Item = Tail> + Send + 'static>> {
        self.follower(app, query, from, true)
    }

    /// [`LogStore::tail`] for a reader that may be slow or away for long: no memory is kept for it.
    pub(crate) fn drain_from(
        &self,
        app: AppId,
        query: LogQuery,
        from: u64,
    ) -> Pin<Box<dyn Stream<Item = Tail> + Send + 'static>> {
        self.follower(app, query, Some(from), false)
    }

    pub(crate) fn clock(&self) -> Clock {
        self.shared.clock.clone()
    }

    fn follower(
        &self,
        app: AppId,
        query: LogQuery,
        from: Option<u64>,
        counted: bool,
    ) -> Pin<Box<dyn Stream<Item = Tail> + Send + 'static>> {
        match self.shared.app(app) {
            Ok(Some(log)) => Box::pin(Follower::new(self.shared.clone(), log, query, from, counted).into_stream()),
            Ok(None) => Box::pin(stream::empty()),
            Err(e) => {
                tracing::error!(%app, error = %e, "cannot follow an app's log");
                Box::pin(stream::empty())
            }
        }
    }

    /// How much is kept of an app's log.
    pub fn retention(&self, app: AppId) -> Retention {
        self.shared.retention(app)
    }

    /// What is kept of the log of apps that say nothing else.
    pub fn default_retention(&self) -> Retention {
        self.shared.default_retention()
    }

    /// Sets how much is kept (none: the default), and lets go of what is beyond it. Whoever sets it does so again at each
    /// start: the store does not remember it.
    pub async fn set_retention(&self, app: AppId, retention: Option<Retention>) -> Result<(), LogError> {
        let changed = {
            let mut all = lock(&self.shared.retentions);
            let before = all.get(&app).copied();
            match retention {
                Some(r) => all.insert(app, r),
                None => all.remove(&app),
            };
            before != retention
        };
        let open = lock(&self.shared.apps).open.get(&app).cloned();
        let Some(log) = open.filter(|_| changed) else { return Ok(()) };
        let (limits, age) = (self.shared.limits(app), self.shared.retention(app).max_age);
        let enforce = move || {
            let mut disk = lock(&log.disk);
            disk.set_limits(limits);
            if let Some(before) = SystemTime::now().checked_sub(age) {
                disk.enforce_age(before);
            }
            Ok(())
        };
        on_blocking_thread("trim", self.shared.app_dir(app), enforce).await
    }

    /// Bytes that an app's log has on disk.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn bytes(&self, app: AppId) -> Result<u64, LogError> {
        Ok(self.shared.app(app)?.map_or(0, |log| lock(&log.disk).bytes()))
    }

    /// Waits until all lines that this task added are written to their files, where they survive the end of this
    /// process.
    /// False: some could not be written yet, and the store goes on trying.
    pub async fn flush(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.shared.writer.send(Message::Flush(done)).is_ok() && wait.await.unwrap_or(false)
    }

    /// [`LogStore::flush`] for threads. Must not be called from an async task.
    pub fn flush_blocking(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.shared.writer.send(Message::Flush(done)).is_ok() && wait.blocking_recv().unwrap_or(false)
    }

    /// Removes an app's log for good; later lines of it are ignored, followers' streams end.
    pub async fn drop_app(&self, app: AppId) -> Result<(), LogError> {
        let open = {
            let mut apps = lock(&self.shared.apps);
            apps.dropped.insert(app);
            apps.open.remove(&app)
        };
        if let Some(log) = &open {
            lock(&log.state).closed = true;
            log.news.send_replace(());
        }
        let path = self.shared.app_dir(app);
        let dir = path.clone();
        let remove = move || match open {
            Some(log) => lock(&log.disk).remove(),
            None => remove_dir(&dir),
        };
        on_blocking_thread("remove", path, remove).await
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        let _ = self.shared.writer.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub fn app_dir(&self, app: AppId) -> PathBuf {
        self.dir.join(app.to_string())
    }

    pub fn default_retention(&self) -> Retention {
        Retention { max_bytes: self.settings.max_bytes_per_app, max_age: self.settings.max_age }
    }

    pub fn retention(&self, app: AppId) -> Retention {
        lock(&self.retentions).get(&app).copied().unwrap_or_else(|| self.default_retention())
    }

    fn limits(&self, app: AppId) -> Limits {
        let Retention { max_bytes, max_age } = self.retention(app);
        // Retention removes whole segments: an eighth at a time at most.
        Limits { max_bytes, segment_bytes: self.settings.segment_bytes.min(max_bytes / 8).max(1), span: max_age / 8 }
    }

    /// The app's log; its files are looked at when it is needed the first time.
    /// None: it was dropped.
    fn app(&self, id: AppId) -> Result<Option<Arc<AppLog>>, LogError> {
        let mut apps = lock(&self.apps);
        if let Some(log) = apps.open.get(&id) {
            return Ok(Some(log.clone()));
        }
        if apps.dropped.contains(&id) {
            return Ok(None);
        }
        let dir = self.app_dir(id);
        let disk = AppDisk::open(dir.clone(), self.limits(id)).map_err(|source| LogError { doing: "read", path: dir, source })?;
        let state = State {
            ring: Ring::new(disk.next_seq()),
            bucket: Bucket::new(self.settings.lines_per_second, self.settings.burst_lines),
            dropped: 0,
            dropped_since: Timestamp::default(),
            queued: false,
            failing: false,
            closed: false,
            followers: 0,
            last_used: (self.clock)(),
        };
        let log = AppLog { id, state: Mutex::new(state), disk: Mutex::new(disk), news: watch::Sender::new(()) };
        Ok(Some(apps.open.entry(id).or_insert(Arc::new(log)).clone()))
    }

    pub fn append(&self, log: &Arc<AppLog>, lines: impl IntoIterator<Item = LogLine>) {
        let wake = {
            let mut state = lock(&log.state);
            if state.closed {
                return;
            }
            state.last_used = (self.clock)();
            for line in lines {
                if !is_one_line(line.text.as_bytes()) {
                    for text in split_lines(line.text.as_bytes()) {
                        state.push(LogLine { text, ..line.clone() });
                    }
                } else {
                    state.push(line);
                }
            }
            state.ring.is_dirty() && !std::mem::replace(&mut state.queued, true)
        };
        if wake {
            let _ = self.writer.send(Message::Dirty(log.clone()));
        }
    }
}

impl State {
    fn push(&mut self, line: LogLine) {
        let at = line.at;
        let allowed = line.source == LogSource::Flex || self.bucket.take(&line);
        if !allowed || !self.ring.push(line) {
            if self.dropped == 0 {
                self.dropped_since = at;
            }
            self.dropped += 1;
        }
    }
}

async fn on_blocking_thread<T: Send + 'static>(
    doing: &'static str,
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, LogError> {
    let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    result.map_err(|source| LogError { doing, path, source })
}

/// The past by time, and the number of the first line after it. `on_disk`: nothing that a kill could take.
pub(crate) async fn history(
    shared: &Shared,
    log: &Arc<AppLog>,
    query: &LogQuery,
    on_disk: bool,
) -> Result<(Vec<Numbered>, u64), LogError> {
    let (mut lines, below, next) = {
        let state = lock(&log.state);
        let (first, next) = (state.ring.first(), if on_disk { state.visible() } else { state.ring.next() });
        let filter = query.filter();
        let there = usize::try_from(next - first).unwrap_or(usize::MAX);
        let there = (first..next).rev().zip(state.ring.from(first).take(there).rev());
        let matching = there.filter(|(_, l)| filter.matches((&***l).into())).take(query.lines);
        let mut lines: Vec<_> = matching.map(|(seq, l)| Numbered { seq, line: l.clone() }).collect();
        lines.reverse();
        (lines, first, next)
    };
    let wanted = query.lines.saturating_sub(lines.len());
    if wanted > 0 && below > 0 {
        let path = shared.app_dir(log.id);
        let (log, query) = (log.clone(), query.clone());
        let _turn = shared.searches.acquire().await;
        let read = move || {
            let snapshot = lock(&log.disk).snapshot();
            snapshot.read_back(below, wanted, &query)
        };
        let mut older = on_blocking_thread("read", path, read).await?;
        older.append(&mut lines);
        lines = older;
    }
    sort_by_time(&mut lines);
    Ok((lines, next))
}

/// A stretch of the files.
pub(crate) async fn read_files(
    shared: &Shared,
    log: &Arc<AppLog>,
    query: &LogQuery,
    from: u64,
    max_bytes: usize,
    mut place: Place,
) -> Result<(Stretch, Place), LogError> {
    let path = shared.app_dir(log.id);
    let (log, query) = (log.clone(), query.clone());
    let read = move || {
        let snapshot = lock(&log.disk).snapshot();
        Ok((snapshot.read_on(from, max_bytes, &query, &mut place)?, place))
    };
    on_blocking_thread("read", path, read).await
}

/// By time, while the lines of one process keep their order: files of several instances are read in turns.
fn sort_by_time(lines: &mut Vec<Numbered>) {
    if lines.is_sorted_by_key(|n| n.line.at) {
        return;
    }
    let mut newest = HashMap::<(LogSource, String), Timestamp>::new();
    let mut keyed: Vec<_> = std::mem::take(lines)
        .into_iter()
        .map(|n| {
            let at = newest.entry((n.line.source, n.line.process.clone())).or_insert(n.line.at);
            *at = (*at).max(n.line.at);
            (*at, n)
        })
        .collect();
    keyed.sort_by_key(|(at, n)| (*at, n.seq));
    lines.extend(keyed.into_iter().map(|(_, n)| n));
}
