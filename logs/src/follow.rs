//! A reader that stays: the past first, then each line as it comes.

use crate::{
    LogQuery,
    store::{AppLog, Shared, history, lock},
};
use flex_model::{LogLine, LogSource};
use futures_util::{Stream, stream};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::watch;

/// Lines taken from the ring at a time, so that its lock is held shortly.
const BATCH: usize = 1000;

pub(crate) struct Follower {
    shared: Arc<Shared>,
    log: Arc<AppLog>,
    query: LogQuery,
    news: watch::Receiver<()>,
    /// Number of the first line not looked at; none before the past was read.
    next: Option<u64>,
    ready: VecDeque<LogLine>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        lock(&self.log.state).followers -= 1;
    }
}

impl Follower {
    /// The ring keeps more from now on.
    pub fn new(shared: Arc<Shared>, log: Arc<AppLog>, query: LogQuery) -> Self {
        lock(&log.state).followers += 1;
        let news = log.news.subscribe();
        Self { shared, log, query, news, next: None, ready: VecDeque::new() }
    }

    pub fn into_stream(self) -> impl Stream<Item = LogLine> + Send + 'static {
        stream::unfold(self, |mut follower| async move {
            let line = follower.next_line().await?;
            Some((line, follower))
        })
    }

    async fn next_line(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let Some(next) = self.next else {
                self.read_past().await;
                continue;
            };
            // Seen before the ring is looked at: a line that comes after it wakes the wait below.
            self.news.borrow_and_update();
            let (next, end, closed) = self.take_from_ring(next);
            self.next = Some(next);
            let caught_up = self.ready.is_empty() && next == end;
            if caught_up && (closed || self.news.changed().await.is_err()) {
                return None;
            }
        }
    }

    async fn read_past(&mut self) {
        match history(&self.shared, &self.log, &self.query).await {
            Ok((lines, next)) => {
                self.ready = lines.into();
                self.next = Some(next);
            }
            Err(e) => {
                tracing::error!(app = %self.log.id, error = %e, "a reader gets no past lines");
                self.next = Some(lock(&self.log.state).ring.next());
            }
        }
    }

    /// Moves matching lines over; says where it got to, where the ring ends, and whether the app is gone.
    fn take_from_ring(&mut self, from: u64) -> (u64, u64, bool) {
        let state = lock(&self.log.state);
        let first = state.ring.first();
        if first > from {
            self.ready.push_back(self.missed(first - from));
        }
        let from = from.max(first);
        let mut seen = 0;
        for line in state.ring.from(from).take(BATCH) {
            seen += 1;
            if self.query.matches(line) {
                self.ready.push_back((**line).clone());
            }
        }
        (from + seen, state.ring.next(), state.closed)
    }

    fn missed(&self, lines: u64) -> LogLine {
        let text = format!("Error L11 (Tail output buffer overflow): this reader could not keep up and missed {lines} lines");
        LogLine { at: (self.shared.clock)(), source: LogSource::Flex, process: "logs".into(), text }
    }
}
