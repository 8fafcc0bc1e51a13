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
use flex_model::{LogLine, LogSource, Timestamp};
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
    /// So many lines are gone before the reader got to them; `next` is the number of the first after them.
    Missed {
        lines: u64,
        next: u64,
    },
}

/// What a reader is told of lines that it missed.
pub fn overflow_line(lines: u64, now: Timestamp) -> LogLine {
    let text = format!("Error L11 (Tail output buffer overflow): this reader could not keep up and missed {lines} lines");
    LogLine { at: now, source: LogSource::Flex, process: "logs".into(), text: text.into() }
}

pub(crate) struct Follower {
    shared: Arc<Shared>,
    log: Arc<AppLog>,
    query: LogQuery,
    news: watch::Receiver<()>,
    /// The newest lines of the past are to be read first.
    begins: bool,
    /// The ring keeps more for this reader.
    counted: bool,
    /// Number of the first line not looked at.
    next: u64,
    place: Place,
    live: bool,
    ready: VecDeque<Tail>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.counted {
            lock(&self.log.state).followers -= 1;
        }
    }
}

impl Follower {
    /// Begins with the line of number `from`, or with the newest of the past. `counted`: the ring keeps more from now on.
    pub fn new(shared: Arc<Shared>, log: Arc<AppLog>, query: LogQuery, from: Option<u64>, counted: bool) -> Self {
        let visible = {
            let mut state = lock(&log.state);
            state.followers += usize::from(counted);
            state.visible()
        };
        let news = log.news.subscribe();
        // A number that was never given: the disk lost its newest lines.
        let next = from.unwrap_or(0).min(visible);
        let (place, ready) = (Place::default(), VecDeque::new());
        Self { shared, log, query, news, begins: from.is_none(), counted, next, place, live: false, ready }
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
            if std::mem::take(&mut self.begins) {
                self.begin().await;
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

    async fn begin(&mut self) {
        match history(&self.shared, &self.log, &self.query, true).await {
            Ok((lines, next)) => {
                self.ready = lines.into_iter().map(Tail::Line).collect();
                self.next = next;
            }
            Err(e) => {
                tracing::error!(app = %self.log.id, error = %e, "a reader gets no past lines");
                self.next = lock(&self.log.state).visible();
            }
        }
    }

    async fn take_from_files(&mut self) {
        let (from, place) = (self.next, std::mem::take(&mut self.place));
        let (stretch, place) = match read_files(&self.shared, &self.log, &self.query, from, STRETCH, place).await {
            Ok(read) => read,
            Err(e) => {
                tracing::error!(app = %self.log.id, error = %e, "a reader misses lines that cannot be read");
                let first = lock(&self.log.state).ring.first();
                self.ready.push_back(Tail::Missed { lines: first - from, next: first });
                self.next = first;
                return;
            }
        };
        self.place = place;
        if stretch.missed > 0 {
            let next = stretch.lines.first().map_or(stretch.next, |n| n.seq);
            self.ready.push_back(Tail::Missed { lines: stretch.missed, next });
        }
        self.ready.extend(stretch.lines.into_iter().map(Tail::Line));
        self.next = stretch.next;
        if stretch.next == from {
            // Files that end before the ring begins were taken by retention.
            self.next = lock(&self.log.state).ring.first().max(from);
            self.ready.push_back(Tail::Missed { lines: self.next - from, next: self.next });
        }
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
}
