//! A reader that stays: the past first, then each line once it is on disk.
//!
//! On disk, so that a line that a reader has seen keeps its number when the process is killed: a reader that comes back
//! with the last number it saw gets what follows, all of it and nothing twice. A reader too slow for the memory kept reads
//! the files, and misses only what retention took.

use crate::{
    LogQuery, Numbered,
    read::Place,
    store::{AppLog, Shared, history, lock, read_files},
};
use flex_model::{LogLine, LogSource};
use futures_util::{Stream, stream};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::watch;

/// Lines taken from the ring at a time, so that its lock is held shortly.
const BATCH: usize = 1000;
/// Bytes of files looked at at a time.
const STRETCH: usize = 1 << 20;

/// What a reader that stays gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    Line(Numbered),
    /// All that was there has been given; what follows is new, and begins with this number.
    Live(u64),
}

enum Start {
    Newest,
    /// After the line of this number.
    After(u64),
}

pub(crate) struct Follower {
    shared: Arc<Shared>,
    log: Arc<AppLog>,
    query: LogQuery,
    news: watch::Receiver<()>,
    start: Option<Start>,
    /// Number of the first line not looked at.
    next: u64,
    place: Place,
    live: bool,
    ready: VecDeque<Tail>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        lock(&self.log.state).followers -= 1;
    }
}

impl Follower {
    /// The ring keeps more from now on.
    pub fn new(shared: Arc<Shared>, log: Arc<AppLog>, query: LogQuery, after: Option<u64>) -> Self {
        lock(&log.state).followers += 1;
        let news = log.news.subscribe();
        let start = Some(after.map_or(Start::Newest, Start::After));
        Self { shared, log, query, news, start, next: 0, place: Place::default(), live: false, ready: VecDeque::new() }
    }

    pub fn into_stream(self) -> impl Stream<Item = Tail> + Send + 'static {
        stream::unfold(self, |mut follower| async move {
            let item = follower.next_item().await?;
            Some((item, follower))
        })
    }

    async fn next_item(&mut self) -> Option<Tail> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if let Some(start) = self.start.take() {
                self.begin(start).await;
                continue;
            }
            // Seen before the ring is looked at: a line that comes after it wakes the wait below.
            self.news.borrow_and_update();
            if self.next < lock(&self.log.state).ring.first() {
                self.take_from_files().await;
                continue;
            }
            let (caught_up, closed) = self.take_from_ring();
            if !caught_up || !self.ready.is_empty() {
                continue;
            }
            if !std::mem::replace(&mut self.live, true) {
                return Some(Tail::Live(self.next));
            }
            if closed || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn begin(&mut self, start: Start) {
        match start {
            // A number that was never given: the disk lost its newest lines.
            Start::After(seq) => self.next = (seq + 1).min(lock(&self.log.state).visible()),
            Start::Newest => match history(&self.shared, &self.log, &self.query, true).await {
                Ok((lines, next)) => {
                    self.ready = lines.into_iter().map(Tail::Line).collect();
                    self.next = next;
                }
                Err(e) => {
                    tracing::error!(app = %self.log.id, error = %e, "a reader gets no past lines");
                    self.next = lock(&self.log.state).visible();
                }
            },
        }
    }

    async fn take_from_files(&mut self) {
        let (from, place) = (self.next, std::mem::take(&mut self.place));
        let (stretch, place) = match read_files(&self.shared, &self.log, &self.query, from, STRETCH, place).await {
            Ok(read) => read,
            Err(e) => {
                tracing::error!(app = %self.log.id, error = %e, "a reader misses lines that cannot be read");
                let first = lock(&self.log.state).ring.first();
                self.ready.push_back(self.missed(first - from));
                self.next = first;
                return;
            }
        };
        self.place = place;
        if stretch.missed > 0 {
            self.ready.push_back(self.missed(stretch.missed));
        }
        self.ready.extend(stretch.lines.into_iter().map(Tail::Line));
        // Files that end before the ring begins were taken by retention.
        self.next = if stretch.next > from { stretch.next } else { lock(&self.log.state).ring.first().max(from) };
    }

    /// Moves matching lines over; says whether that was all, and whether the app is gone.
    fn take_from_ring(&mut self) -> (bool, bool) {
        let state = lock(&self.log.state);
        let visible = state.visible();
        if self.next < state.ring.first() {
            return (false, state.closed);
        }
        let filter = self.query.filter();
        let room = usize::try_from(visible.saturating_sub(self.next)).unwrap_or(usize::MAX).min(BATCH);
        for line in state.ring.from(self.next).take(room) {
            if filter.matches((&**line).into()) {
                self.ready.push_back(Tail::Line(Numbered { seq: self.next, line: line.clone() }));
            }
            self.next += 1;
        }
        (self.next >= visible, state.closed)
    }

    fn missed(&self, lines: u64) -> Tail {
        let text = format!("Error L11 (Tail output buffer overflow): this reader could not keep up and missed {lines} lines");
        let line = LogLine { at: (self.shared.clock)(), source: LogSource::Flex, process: "logs".into(), text };
        Tail::Line(Numbered { seq: self.next, line: Arc::new(line) })
    }
}
