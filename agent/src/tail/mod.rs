//! Carries the instances' output from the engine's files to the log store.
//!
//! One thread reads all files, each when it has changed (`watch.rs`). Places read up to are kept on disk every second, after
//! the store has the lines. A restart loses none, and passes over those that the store has already (`repeats.rs`).

mod file;
mod join;
mod json;
mod local;
mod repeats;
mod watch;

use file::{Follow, Position, Progress};
use flex_logs::{LogStore, is_one_line, split_lines};
use flex_model::{AppId, InstanceId, LogLine, LogSource, LogText, Timestamp};
use flex_runtime::LogForm;
use join::{Begun, Joiner};
use repeats::Repeats;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use watch::{Bell, Watcher, Woken};

/// Pause between two reads of a file that changes all the time.
const ACTIVE: Duration = Duration::from_millis(20);
/// Pause between looks at a file that is not there yet, or cannot be watched.
const UNWATCHED: Duration = Duration::from_millis(150);
/// Pause between looks at all files, whether or not a change was told.
const ROUND: Duration = Duration::from_secs(5);
/// Files due this soon are read with those that are due: one waking for many.
const TOGETHER: Duration = Duration::from_millis(10);
/// Bytes read of one file before the next one's turn.
const TURN: usize = 1 << 20;
/// Pause between two writes of the places.
const SAVE: Duration = Duration::from_secs(1);
/// Longest time spent on the last output of instances that ended: they are reported afterwards.
const LAST_WORDS: Duration = Duration::from_secs(2);
const PLACES: &str = "log-places.json";

/// An instance's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub instance: InstanceId,
    pub attempt: u32,
    pub app: AppId,
    pub name: String,
    pub path: PathBuf,
    pub form: LogForm,
    /// Nothing more will be written.
    pub ended: bool,
}

enum Message {
    /// All files there are; answered when those that ended are read to their ends.
    Sources(Vec<Source>, oneshot::Sender<()>),
    Stop,
}

/// The thread's handle. Dropping it saves the places and ends the thread.
pub struct Tailer {
    messages: mpsc::Sender<Message>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Tailer {
    /// Starts the thread; places are kept in `dir`.
    pub fn start(dir: &Path, logs: Arc<LogStore>) -> io::Result<Self> {
        let (messages, receiver) = mpsc::channel();
        let (watcher, bell) = Watcher::new()?;
        let work = Work::new(dir, logs, watcher);
        let thread = std::thread::Builder::new().name("flex-tail".into()).spawn(move || work.run(&receiver))?;
        Ok(Self { messages, bell, thread: Some(thread) })
    }

    /// Tells all the files there are. Returns when the last output of instances that ended, or are gone, is in the log.
    pub async fn sources(&self, sources: Vec<Source>) {
        let (done, wait) = oneshot::channel();
        if self.messages.send(Message::Sources(sources, done)).is_ok() {
            self.bell.ring();
            let _ = wait.await;
        }
    }
}

impl Drop for Tailer {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Places = BTreeMap<String, Place>;

/// How far a file was read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Place {
    #[serde(flatten)]
    position: Position,
    #[serde(default, skip_serializing_if = "Begun::is_none")]
    begun: Begun,
}

/// What is kept on disk.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Kept {
    places: Places,
    /// For each app, the number of the first line that may come from after the places.
    #[serde(default)]
    stored: BTreeMap<AppId, u64>,
}

fn load(path: &Path) -> Kept {
    let Ok(bytes) = fs::read(path) else { return Kept::default() };
    let read = serde_json::from_slice(&bytes).or_else(|e| {
        // Version 0.1.0 kept the places alone.
        let places = serde_json::from_slice(&bytes).map_err(|_| e)?;
        Ok::<_, serde_json::Error>(Kept { places, stored: BTreeMap::new() })
    });
    read.unwrap_or_else(|e| {
        tracing::error!(path = %path.display(), error = %e, "cannot read how far logs were read; lines are read again");
        Kept::default()
    })
}

type Key = (InstanceId, u32);

fn place_name(key: Key) -> String {
    format!("{}/{}", key.0, key.1)
}

struct Tail {
    source: Source,
    follow: Follow,
    joiner: Joiner,
    /// When it is to be read; none: when it changes.
    due: Option<Instant>,
    read_at: Instant,
    finished: bool,
    /// It was read to its end since this process started.
    caught_up: bool,
    /// Why it could not be read last time.
    failing: Option<String>,
}

struct Work {
    logs: Arc<LogStore>,
    places_file: PathBuf,
    places: Places,
    /// As it was kept by the process before this one.
    stored: BTreeMap<AppId, u64>,
    /// Of apps whose files were not all read to their ends yet.
    repeats: BTreeMap<AppId, Repeats>,
    /// Nobody told yet which files there are.
    first: bool,
    tails: BTreeMap<Key, Tail>,
    watcher: Watcher<Key>,
    /// When all files are looked at next.
    round: Instant,
    saved: Instant,
    changed: bool,
}

impl Work {
    fn new(dir: &Path, logs: Arc<LogStore>, watcher: Watcher<Key>) -> Self {
        let places_file = dir.join(PLACES);
        let kept = load(&places_file);
        Self {
            logs,
            places_file,
            places: kept.places,
            stored: kept.stored,
            repeats: BTreeMap::new(),
            first: true,
            tails: BTreeMap::new(),
            watcher,
            round: Instant::now() + ROUND,
            saved: Instant::now(),
            changed: false,
        }
    }

    fn run(mut self, messages: &mpsc::Receiver<Message>) {
        loop {
            let woken = self.watcher.sleep(self.next_due());
            loop {
                match messages.try_recv() {
                    Ok(Message::Sources(sources, done)) => {
                        self.take_sources(sources);
                        let _ = done.send(());
                    }
                    Ok(Message::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                        self.save();
                        return;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.note(woken);
            self.poll();
            if self.changed && self.saved.elapsed() >= SAVE {
                self.save();
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let reads = self.tails.values().filter(|t| !t.finished).map(|t| t.due.unwrap_or(self.round));
        reads.chain(self.changed.then(|| self.saved + SAVE)).min()
    }

    /// Notes which files are to be read.
    fn note(&mut self, woken: Woken<Key>) {
        let now = Instant::now();
        let all = matches!(woken, Woken::Overflow) || self.round <= now;
        if self.round <= now {
            self.round = now + ROUND;
        }
        let mut due = |tail: &mut Tail| {
            let at = (tail.read_at + ACTIVE).max(now);
            tail.due = Some(tail.due.map_or(at, |due| due.min(at)));
        };
        if all {
            self.tails.values_mut().for_each(due);
        } else if let Woken::Changed(keys) = woken {
            for key in keys {
                self.tails.get_mut(&key).into_iter().for_each(&mut due);
            }
        }
    }

    fn take_sources(&mut self, sources: Vec<Source>) {
        let deadline = Instant::now() + LAST_WORDS;
        let mut there = BTreeMap::new();
        for source in sources {
            there.insert((source.instance, source.attempt), source);
        }
        let gone: Vec<Key> = self.tails.keys().filter(|k| !there.contains_key(k)).copied().collect();
        for key in gone {
            if let Some(mut tail) = self.tails.remove(&key) {
                self.finish(&mut tail, deadline);
            }
            self.watcher.disarm(key);
            self.places.remove(&place_name(key));
            self.changed = true;
        }
        for (key, source) in there {
            if !self.tails.contains_key(&key) && self.first {
                let from = self.stored.get(&source.app).copied().unwrap_or(0);
                let logs = &self.logs;
                self.repeats.entry(source.app).or_insert_with(|| Repeats::read(logs, source.app, from));
            }
            let mut tail = self.tails.remove(&key).unwrap_or_else(|| {
                let place = self.places.get(&place_name(key)).cloned();
                let (position, begun) = place.map(|p| (p.position, p.begun)).unzip();
                let follow = Follow::new(source.path.clone(), source.form, position);
                let (joiner, now) = (Joiner::resume(begun.unwrap_or_default()), Instant::now());
                Tail {
                    source: source.clone(),
                    follow,
                    joiner,
                    due: Some(now),
                    read_at: now,
                    finished: false,
                    caught_up: false,
                    failing: None,
                }
            });
            tail.source = source;
            if tail.source.ended {
                self.finish(&mut tail, deadline);
                if tail.finished {
                    self.watcher.disarm(key);
                } else {
                    tail.due = Some(Instant::now());
                }
            }
            self.tails.insert(key, tail);
        }
        self.first = false;
        self.forget_repeats();
        // Places of instances that went while nobody looked.
        let known: Vec<String> = self.tails.keys().map(|k| place_name(*k)).collect();
        self.places.retain(|name, _| known.contains(name));
    }

    /// Reads a file whose writer is gone to its end.
    fn finish(&mut self, tail: &mut Tail, deadline: Instant) {
        if tail.finished {
            return;
        }
        while self.read(tail) && Instant::now() < deadline {}
        let repeats = &mut self.repeats;
        let mut lines = Vec::new();
        for (at, text) in tail.joiner.finish() {
            add(&mut lines, repeats.get_mut(&tail.source.app), &tail.source, at, text);
        }
        self.logs.append_all(tail.source.app, lines);
        tail.finished = Instant::now() < deadline;
    }

    /// Of apps all of whose files were read to their ends.
    fn forget_repeats(&mut self) {
        let tails = &self.tails;
        self.repeats.retain(|app, _| tails.values().any(|t| t.source.app == *app && !t.caught_up));
    }

    fn poll(&mut self) {
        let now = Instant::now();
        let is_due = |t: &Tail| !t.finished && t.due.is_some_and(|due| due <= now + TOGETHER);
        let due: Vec<Key> = self.tails.iter().filter(|(_, t)| is_due(t)).map(|(k, _)| *k).collect();
        for key in due {
            let Some(mut tail) = self.tails.remove(&key) else { continue };
            // Before the read: what is written after it is told.
            let watched = self.watcher.arm(key, &tail.source.path);
            let more = self.read(&mut tail);
            tail.read_at = Instant::now();
            let watched = watched && tail.failing.is_none();
            tail.due = if more { Some(now) } else { (!watched).then(|| tail.read_at + UNWATCHED) };
            self.tails.insert(key, tail);
        }
        if !self.repeats.is_empty() {
            self.forget_repeats();
        }
    }

    /// Reads a turn's worth; says whether there is more.
    fn read(&mut self, tail: &mut Tail) -> bool {
        let Tail { source, follow, joiner, failing, .. } = tail;
        let (mut place, mut lines) = (None, Vec::new());
        let mut newest = None;
        let mut repeats = self.repeats.get_mut(&source.app);
        let result = follow.read(TURN, |raw, position| {
            let piece = match source.form {
                LogForm::JsonFile => json::parse(raw),
                LogForm::Local => local::parse(raw),
            };
            match piece {
                Some(piece) => {
                    if let Some((at, text)) = joiner.push(piece) {
                        newest = Some(at);
                        add(&mut lines, repeats.as_deref_mut(), source, at, text);
                    }
                }
                None => tracing::warn!(instance = %source.instance, "skipped a damaged line of the engine's log"),
            }
            if let Some(begun) = joiner.begun() {
                place = Some(Place { position, begun });
            }
        });
        if std::mem::take(&mut follow.damaged) {
            tracing::warn!(instance = %source.instance, path = %source.path.display(), "skipped a damaged part of the engine's log");
        }
        // As one: the store is asked once for a turn's lines.
        if !lines.is_empty() {
            self.logs.append_all(source.app, lines);
        }
        if let Some(place) = place {
            self.places.insert(place_name((source.instance, source.attempt)), place);
            self.changed = true;
        }
        // Told at the time of the lines that came after the gap.
        if let Some(at) = newest.filter(|_| std::mem::take(&mut follow.lost_files)) {
            tracing::warn!(instance = %source.instance, "log files were rotated away unread");
            let text = format!(
                "Error L12 (Local buffer overflow): lines of {} are lost: it wrote faster than they were read",
                source.name
            );
            self.logs.append(source.app, LogLine { at, source: LogSource::Flex, process: "logs".into(), text: text.into() });
        }
        let error = result.as_ref().err().map(ToString::to_string);
        if let Some(error) = error.as_ref().filter(|e| failing.as_ref() != Some(e)) {
            tracing::warn!(instance = %source.instance, path = %source.path.display(), error, "cannot read an instance's log");
        }
        *failing = error;
        tail.caught_up |= matches!(result, Ok(Progress::End));
        let more = result.is_ok_and(|progress| progress == Progress::More);
        if more {
            // A backlog is read faster than it is written: what waits in memory must stay small, or it would be dropped.
            self.logs.flush_blocking();
        }
        more
    }

    fn save(&mut self) {
        // Only what the store has on disk may be skipped by the next run.
        if !self.logs.flush_blocking() {
            self.saved = Instant::now();
            return;
        }
        let new = self.places_file.with_extension("new");
        // Of an app that has no files now, nothing is read again.
        let apps: std::collections::BTreeSet<AppId> = self.tails.values().map(|t| t.source.app).collect();
        // Where repeats may still come, they are those of the process before this one too.
        let stored = |app| match self.repeats.contains_key(&app) {
            true => Some((app, self.stored.get(&app).copied()?)),
            false => Some((app, self.logs.written(app).ok()?)),
        };
        let stored = apps.into_iter().filter_map(stored).collect();
        let kept = Kept { places: self.places.clone(), stored };
        let written = serde_json::to_vec(&kept)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.places_file));
        if let Err(e) = written {
            tracing::warn!(path = %self.places_file.display(), error = %e, "cannot keep how far logs were read");
        }
        self.saved = Instant::now();
        self.changed = false;
    }
}

/// Adds a line, unless the store has it already.
fn add(lines: &mut Vec<LogLine>, repeats: Option<&mut Repeats>, source: &Source, at: Timestamp, text: LogText) {
    let mut push = |text| lines.push(LogLine { at, source: LogSource::App, process: source.name.clone(), text });
    let Some(repeats) = repeats else { return push(text) };
    // As the store cuts them.
    let pieces = if is_one_line(text.as_bytes()) { vec![text] } else { split_lines(text.as_bytes()) };
    pieces.into_iter().filter(|p| !repeats.take(&source.name, at, p)).for_each(push);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_logs::{CONTINUED, LogQuery, LogSettings};
    use flex_model::Uuid;
    use std::io::Write;

    fn source(dir: &Path, ended: bool) -> Source {
        let (instance, app) = (InstanceId(Uuid::from_u128(1)), AppId(Uuid::from_u128(2)));
        Source { instance, attempt: 0, app, name: "web.1".into(), path: dir.join("x.log"), form: LogForm::JsonFile, ended }
    }

    fn write(path: &Path, from: u64, to: u64) {
        let mut file = std::io::BufWriter::new(fs::File::options().create(true).append(true).open(path).unwrap());
        for n in from..to {
            let time = format!("2026-11-21T07:{:02}:{:02}.{:09}Z", n / 600_000 % 60, n / 10_000 % 60, n % 10_000 * 100_000);
            writeln!(file, r#"{{"log":"line {n} {}\n","stream":"stdout","time":"{time}"}}"#, "x".repeat(100)).unwrap();
        }
    }

    fn open(dir: &Path) -> Arc<LogStore> {
        let settings = LogSettings { lines_per_second: 1 << 30, burst_lines: 1 << 40, ..LogSettings::default() };
        Arc::new(LogStore::open(dir.join("logs"), settings).unwrap())
    }

    async fn numbers(logs: &LogStore) -> Vec<u64> {
        let lines = logs.query(source(Path::new(""), false).app, LogQuery::newest(usize::MAX)).await.unwrap();
        lines.iter().map(|l| l.text.as_str().unwrap().split(' ').nth(1).unwrap().parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_orderly_restart_neither_loses_nor_doubles() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..4 {
            let logs = open(dir.path());
            write(&source(dir.path(), false).path, round * 1000, (round + 1) * 1000);
            let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
            tailer.sources(vec![source(dir.path(), true)]).await;
            assert_eq!(numbers(&logs).await, (0..(round + 1) * 1000).collect::<Vec<_>>());
            drop(tailer);
        }
    }

    /// What a kill leaves: lines in the store, and places from before them.
    #[tokio::test]
    async fn a_kill_neither_loses_nor_doubles() {
        let dir = tempfile::tempdir().unwrap();
        let places = dir.path().join(PLACES);
        for round in 0..4u64 {
            let kept = fs::read(&places).ok();
            for part in 0..2 {
                let logs = open(dir.path());
                write(&source(dir.path(), false).path, round * 1000 + part * 500, round * 1000 + (part + 1) * 500);
                // Equal lines are as many as were written.
                let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
                tailer.sources(vec![source(dir.path(), true)]).await;
                assert_eq!(numbers(&logs).await, (0..round * 1000 + (part + 1) * 500).collect::<Vec<_>>());
                drop(tailer);
                match (&kept, round % 2) {
                    (Some(kept), 0) => fs::write(&places, kept).unwrap(),
                    (None, _) => fs::remove_file(&places).unwrap(),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn places_of_the_first_version_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(PLACES);
        let name = place_name((source(dir.path(), true).instance, 3));
        fs::write(&file, format!(r#"{{"{name}":{{"inode":7,"offset":9}}}}"#)).unwrap();
        let place = Place { position: Position { inode: 7, offset: 9 }, begun: Begun::default() };
        assert_eq!(load(&file).places.get(&name), Some(&place));
        // As before there were lines that have begun, and still where none has.
        let kept = Kept { places: BTreeMap::from([(name.clone(), place.clone())]), stored: BTreeMap::new() };
        let text = format!(r#"{{"places":{{"{name}":{{"inode":7,"offset":9}}}},"stored":{{}}}}"#);
        assert_eq!(serde_json::to_string(&kept).unwrap(), text);
        fs::write(&file, text).unwrap();
        assert_eq!(load(&file).places.get(&name), Some(&place));
    }

    /// A line of 100,000 bytes whose pieces part characters, with a kill and an orderly restart after each piece.
    #[tokio::test]
    async fn long_lines_of_the_local_driver_survive_restarts_whole() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("x{}", "\u{e4}\u{20ac}".repeat(20_000));
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(16 * 1024).collect();
        let file = Source { form: LogForm::Local, ..source(dir.path(), false) };
        // Read after the other file: once its line is there, all of the other's is.
        let instance = InstanceId(Uuid::from_u128(9));
        let marks = Source { instance, name: "mark.1".into(), path: dir.path().join("marks"), ..source(dir.path(), false) };
        let query = |process: &str| LogQuery { process: Some(process.into()), ..LogQuery::newest(usize::MAX) };
        let mut round = 0;
        for (n, piece) in pieces.iter().enumerate() {
            let printed = local::tests::Printed { text: piece.to_vec(), ends: n + 1 == pieces.len(), stderr: false, micros: 9 };
            let mut out = fs::File::options().create(true).append(true).open(&file.path).unwrap();
            out.write_all(&local::tests::record(&printed)).unwrap();
            let kept = fs::read(dir.path().join(PLACES));
            for killed in [true, false] {
                let logs = open(dir.path());
                write(&marks.path, round, round + 1);
                round += 1;
                let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
                tailer.sources(vec![file.clone(), marks.clone()]).await;
                let deadline = Instant::now() + Duration::from_secs(20);
                while logs.query(file.app, query("mark")).await.unwrap().len() < round as usize {
                    assert!(Instant::now() < deadline, "mark {round} is not there");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                drop(tailer);
                if let (true, Ok(kept)) = (killed, &kept) {
                    fs::write(dir.path().join(PLACES), kept).unwrap();
                }
            }
        }
        let logs = open(dir.path());
        assert_eq!(logs.query(file.app, query("mark")).await.unwrap().len() as u64, round);
        let lines = logs.query(file.app, query("web")).await.unwrap();
        let all: String = lines.iter().map(|l| l.text.as_str().unwrap().trim_start_matches(CONTINUED)).collect();
        assert!(all == text, "{} of {} bytes", all.len(), text.len());
        assert_eq!(lines.iter().filter(|l| !l.text.as_bytes().starts_with(CONTINUED.as_bytes())).count(), 1);
    }

    /// What a kill leaves, and then a process that is stopped in order before it has read the files.
    #[tokio::test]
    async fn a_stop_soon_after_a_kill_doubles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let places = dir.path().join(PLACES);
        let mut kept = None;
        for part in 0..3 {
            write(&source(dir.path(), false).path, part * 100, (part + 1) * 100);
            let logs = open(dir.path());
            let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
            tailer.sources(vec![source(dir.path(), true)]).await;
            drop(tailer);
            match part {
                0 => kept = fs::read(&places).ok(),
                1 => fs::write(&places, kept.take().unwrap()).unwrap(),
                _ => break,
            }
            let dir = dir.path().to_owned();
            let stopped = std::thread::spawn(move || {
                let (watcher, _bell) = Watcher::new().unwrap();
                let mut work = Work::new(&dir, logs, watcher);
                work.take_sources(vec![source(&dir, false)]);
                work.save();
            });
            stopped.join().unwrap();
        }
        assert_eq!(numbers(&open(dir.path())).await, (0..300).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_file_that_vanishes_is_read_to_its_end_first() {
        let dir = tempfile::tempdir().unwrap();
        let logs = open(dir.path());
        let path = source(dir.path(), false).path;
        write(&path, 0, 1);
        let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
        tailer.sources(vec![source(dir.path(), false)]).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while numbers(&logs).await.is_empty() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write(&path, 1, 500);
        fs::remove_file(&path).unwrap();
        tailer.sources(vec![]).await;
        assert_eq!(numbers(&logs).await, (0..500).collect::<Vec<_>>());
    }

    /// Each line waits for the one before: were changes not told, each would wait for a round of all files.
    #[tokio::test]
    async fn changes_are_told_also_over_rotations() {
        const LINES: u64 = 30;
        let dir = tempfile::tempdir().unwrap();
        let logs = open(dir.path());
        let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
        let path = source(dir.path(), false).path;
        write(&path, 0, 1);
        tailer.sources(vec![source(dir.path(), false)]).await;
        let deadline = Instant::now() + ROUND * LINES as u32 / 2;
        for n in 1..LINES {
            if n % 7 == 0 {
                fs::rename(&path, dir.path().join("x.log.1")).unwrap();
            }
            write(&path, n, n + 1);
            while numbers(&logs).await.last() != Some(&n) {
                assert!(Instant::now() < deadline, "line {n} is not there");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        assert_eq!(numbers(&logs).await, (0..LINES).collect::<Vec<_>>());
    }

    /// A figure, not a test: `cargo test --release -p flex-agent -- --ignored --nocapture rate`.
    #[tokio::test]
    #[ignore = "measures; meaningful in release builds only"]
    async fn rate() {
        let dir = tempfile::tempdir().unwrap();
        let logs = open(dir.path());
        let lines = 2_000_000;
        write(&source(dir.path(), false).path, 0, lines);
        let tailer = Tailer::start(dir.path(), logs.clone()).unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(120) {
            tailer.sources(vec![source(dir.path(), true)]).await;
            if tailer_is_done(&tailer, dir.path()).await {
                break;
            }
        }
        assert!(logs.flush().await);
        let took = began.elapsed();
        let found = logs.query(source(dir.path(), false).app, LogQuery { lines: 1, ..LogQuery::default() }).await.unwrap();
        println!("{:.0} lines/s; the newest: {}", lines as f64 / took.as_secs_f64(), &found[0].text.to_str_lossy()[..20]);
        let began = Instant::now();
        assert_eq!(numbers(&logs).await.len() as u64, lines);
        println!("read all back in {:?}", began.elapsed());
        let began = Instant::now();
        let query = LogQuery { since: Some("2026-11-21T07:01:00Z".parse().unwrap()), lines: 100, ..LogQuery::default() };
        logs.query(source(dir.path(), false).app, query).await.unwrap();
        println!("a window in {:?}", began.elapsed());
    }

    async fn tailer_is_done(tailer: &Tailer, dir: &Path) -> bool {
        let began = Instant::now();
        tailer.sources(vec![source(dir, true)]).await;
        began.elapsed() < Duration::from_millis(50)
    }
}
