//! The thread that carries lines from the rings to disk.

use crate::{
    disk::sweep_unopened,
    ring::Keep,
    store::{AppLog, Shared, lock},
};
use flex_model::{LogLine, LogSource};
use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::oneshot;

/// Pause after being woken, so that lines which come close together are written together.
const GATHER: Duration = Duration::from_millis(2);
/// Pause between syncs, notes about dropped lines, and further tries after an error.
const TICK: Duration = Duration::from_secs(1);
/// Pause between looks for files that are too old.
const SWEEP: Duration = Duration::from_secs(600);
/// An app that nobody wrote to for this long gives its memory back.
const IDLE: Duration = Duration::from_secs(600);
/// Bytes taken from a ring at a time.
const BATCH_BYTES: usize = 256 << 10;

/// What the thread is told.
pub(crate) enum Message {
    /// Lines of this app wait (sent once until they are taken).
    Dirty(Arc<AppLog>),
    /// Answer when all lines so far are written, or say no if some cannot be.
    Flush(oneshot::Sender<bool>),
    /// Write what waits and end.
    Stop,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// Apps whose last write failed.
    failed: HashMap<flex_model::AppId, Arc<AppLog>>,
    /// Apps whose lines wait, in the order of their turns.
    waiting: VecDeque<Arc<AppLog>>,
    /// Apps written to since the last sync.
    unsynced: HashMap<flex_model::AppId, Arc<AppLog>>,
    next_tick: Instant,
    next_sweep: Instant,
}

impl Writer {
    pub fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let shared_sweep = shared.settings.first_sweep;
        Self {
            shared,
            failed: HashMap::new(),
            waiting: VecDeque::new(),
            unsynced: HashMap::new(),
            next_tick: now + TICK,
            next_sweep: now + shared_sweep,
        }
    }

    pub fn run(mut self, messages: &mpsc::Receiver<Message>) {
        loop {
            match self.next(messages) {
                Ok(Message::Dirty(log)) => {
                    if self.waiting.is_empty() {
                        std::thread::sleep(GATHER);
                    }
                    self.waiting.push_back(log);
                    continue;
                }
                Ok(Message::Flush(done)) => {
                    while self.write_next() {}
                    let _ = done.send(self.failed.is_empty());
                }
                Ok(Message::Stop) => {
                    while self.write_next() {}
                    self.tick();
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.write_next();
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= self.next_tick {
                self.tick();
                self.next_tick = Instant::now() + TICK;
            }
        }
    }

    /// A message; none in time if there is something to write, or to be done at the next tick.
    fn next(&self, messages: &mpsc::Receiver<Message>) -> Result<Message, mpsc::RecvTimeoutError> {
        if self.waiting.is_empty() {
            return messages.recv_timeout(self.next_tick.saturating_duration_since(Instant::now()));
        }
        messages.try_recv().map_err(|e| match e {
            mpsc::TryRecvError::Empty => mpsc::RecvTimeoutError::Timeout,
            mpsc::TryRecvError::Disconnected => mpsc::RecvTimeoutError::Disconnected,
        })
    }

    /// Writes a batch of the app whose turn it is. The apps take turns, so that one with a backlog keeps no other waiting.
    /// Says whether there was anything to write.
    fn write_next(&mut self) -> bool {
        let Some(log) = self.waiting.pop_front() else { return false };
        if self.write(&log) {
            self.waiting.push_back(log);
        }
        true
    }

    /// Writes a batch of what waits of one app; says whether more may wait.
    fn write(&mut self, log: &Arc<AppLog>) -> bool {
        let (first, lines) = {
            let mut state = lock(&log.state);
            let taken = state.ring.unwritten(BATCH_BYTES);
            state.queued = !taken.1.is_empty();
            taken
        };
        if lines.is_empty() {
            return false;
        }
        if let Err(e) = write_batch(log, first, &lines) {
            tracing::error!(app = %log.id, error = %e, "cannot write an app's log; trying again");
            self.failed.insert(log.id, log.clone());
            lock(&log.state).failing = true;
            log.news.send_replace(());
            return false;
        }
        self.unsynced.insert(log.id, log.clone());
        let mut state = lock(&log.state);
        let keep = state.keep();
        state.ring.mark_written(first + lines.len() as u64, keep);
        state.failing = false;
        drop(state);
        log.news.send_replace(());
        true
    }

    fn tick(&mut self) {
        for (_, log) in std::mem::take(&mut self.failed) {
            while self.write(&log) {}
        }
        for (_, log) in std::mem::take(&mut self.unsynced) {
            if let Err(e) = lock(&log.disk).sync() {
                tracing::error!(app = %log.id, error = %e, "cannot sync an app's log");
            }
        }
        let now = (self.shared.clock)();
        let open: Vec<_> = lock(&self.shared.apps).open.values().cloned().collect();
        for log in &open {
            if let Some(line) = take_drop_note(log, now) {
                self.shared.append(log, [line]);
                while self.write(log) {}
            }
            let mut state = lock(&log.state);
            if state.followers == 0 && now.since(state.last_used) > IDLE {
                state.ring.trim(Keep::IDLE);
            }
        }
        if Instant::now() >= self.next_sweep {
            self.next_sweep = Instant::now() + SWEEP;
            if let Err(e) = self.sweep(&open) {
                tracing::warn!(error = %e, "cannot look for old log files");
            }
        }
    }

    /// Removes files that are too old, of apps in memory and of those that are not.
    fn sweep(&self, open: &[Arc<AppLog>]) -> io::Result<()> {
        let before = |app| SystemTime::now().checked_sub(self.shared.retention(app).max_age);
        for log in open {
            if let Some(before) = before(log.id) {
                lock(&log.disk).enforce_age(before);
            }
        }
        for entry in fs::read_dir(&self.shared.dir)? {
            let path = entry?.path();
            let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else { continue };
            // Held while the files go, so that the app is not opened meanwhile.
            let apps = lock(&self.shared.apps);
            if let Some(before) = before(id).filter(|_| !apps.open.contains_key(&id)) {
                sweep_unopened(&path, before)?;
            }
        }
        Ok(())
    }
}

fn write_batch(log: &AppLog, first: u64, lines: &[Arc<LogLine>]) -> io::Result<()> {
    let mut disk = lock(&log.disk);
    // Checked under the disk's lock: a dropped app's files must not come back.
    if lock(&log.state).closed {
        return Ok(());
    }
    if disk.next_seq() != first {
        return Err(io::Error::other(format!("line {first} is due, the file expects {}", disk.next_seq())));
    }
    disk.append(lines)
}

fn take_drop_note(log: &AppLog, now: flex_model::Timestamp) -> Option<LogLine> {
    let mut state = lock(&log.state);
    let lines = std::mem::take(&mut state.dropped);
    let since = state.dropped_since;
    drop(state);
    (lines > 0).then(|| {
        let text = format!("Error L12 (Local buffer overflow): {lines} lines dropped since {since}: this app logs too fast");
        LogLine { at: now, source: LogSource::Flex, process: "logs".into(), text: text.into() }
    })
}
