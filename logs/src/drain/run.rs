//! One drain at work: connects, sends, remembers how far it got, and tries again.
//!
//! HTTPS says what arrived. Syslog over TCP says nothing: what was sent within the last seconds of a connection that broke
//! may have been lost with it, so it is sent again.

use super::{
    DrainSpec, DrainStatus, frame,
    link::{self, Dialer, Link},
    url::Kind,
};
use crate::{
    LogQuery, LogStore, Tail,
    store::{Clock, lock},
};
use flex_model::{LogLine, Timestamp};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

/// Pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Bytes sent together; Logplex's frames have this size too.
const BATCH_BYTES: usize = 100 << 10;
const BATCH_LINES: usize = 1000;
/// Lines that come this close together go together over HTTPS.
const GATHER: Duration = Duration::from_millis(50);
/// What a syslog connection took this long ago, and did not break since, has arrived.
const TRUSTED_AFTER: Duration = Duration::from_secs(5);
/// Pause between two writes of the place.
const SAVE: Duration = Duration::from_secs(1);

/// The number of the next line to send, as it was kept.
pub fn load(place: &Path) -> Option<u64> {
    fs::read_to_string(place).ok()?.trim().parse().ok()
}

/// Keeps the number of the next line to send.
pub fn save(place: &Path, next: u64) -> io::Result<()> {
    let new = place.with_extension("new");
    fs::write(&new, format!("{next}\n"))?;
    fs::rename(new, place)
}

type Items = Pin<Box<dyn Stream<Item = Tail> + Send>>;

/// Lines ready to go.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: usize,
    /// Lines that were gone before they could be part of it, as it says.
    dropped: u64,
    /// Number of the first line after it.
    next: u64,
}

/// What was sent, and may have been lost with the connection.
struct UnderWay {
    at: Instant,
    dropped: u64,
    next: u64,
}

pub struct Drain {
    spec: DrainSpec,
    logs: Arc<LogStore>,
    clock: Clock,
    dialer: Dialer,
    place: PathBuf,
    /// All lines below it have arrived.
    arrived: u64,
    kept: u64,
    saved: Instant,
    status: Arc<Mutex<DrainStatus>>,
}

impl Drain {
    pub fn new(
        spec: DrainSpec,
        logs: Arc<LogStore>,
        dialer: Dialer,
        place: PathBuf,
        next: u64,
        status: Arc<Mutex<DrainStatus>>,
    ) -> Self {
        let clock = logs.clock();
        lock(&status).good_at = Some(clock());
        Self { spec, logs, clock, dialer, place, arrived: next, kept: next, saved: Instant::now(), status }
    }

    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let before = self.arrived;
            let ended = match self.spec.url.kind {
                Kind::Syslog | Kind::SyslogTls => self.syslog().await,
                Kind::Https => self.https().await,
            };
            self.keep(true);
            let Err(error) = ended else {
                // The app is gone.
                return;
            };
            tracing::debug!(drain = %self.spec.id, app = %self.spec.app, error, "a drain does not get on");
            lock(&self.status).error = Some(error);
            if self.arrived > before {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn items(&self) -> Items {
        self.logs.drain_from(self.spec.app, LogQuery::default(), self.arrived)
    }

    /// Waits for a line. None: the app is gone.
    /// Loses none when it is dropped: it has nothing in hand while it waits.
    async fn first(&mut self, items: &mut Items) -> Option<Batch> {
        let mut batch = Batch::default();
        while batch.lines == 0 {
            let item = items.next().await?;
            self.add(item, &mut batch);
        }
        Some(batch)
    }

    /// Takes further lines that are there.
    fn fill(&mut self, items: &mut Items, batch: &mut Batch) {
        while batch.lines < BATCH_LINES && batch.bytes.len() < BATCH_BYTES {
            match items.next().now_or_never() {
                Some(Some(item)) => self.add(item, batch),
                _ => break,
            }
        }
    }

    fn add(&self, item: Tail, batch: &mut Batch) {
        match item {
            Tail::Live(_) => {}
            Tail::Missed { lines, next } => {
                let since = lock(&self.status).good_at.unwrap_or_default();
                batch.dropped += lines;
                self.put(&frame::overflow(lines, since, (self.clock)()), next, batch);
            }
            Tail::Line(n) => self.put(&n.line, n.seq + 1, batch),
        }
    }

    fn put(&self, line: &LogLine, next: u64, batch: &mut Batch) {
        frame::put(self.spec.url.kind, &self.spec.token, line, &mut batch.bytes);
        batch.lines += 1;
        batch.next = next;
    }

    /// All below `next` has arrived: a gap that was told of is counted now, since one that was not is told of again.
    fn arrived(&mut self, next: u64, dropped: u64) {
        self.arrived = next;
        lock(&self.status).dropped += dropped;
    }

    fn got_on(&mut self, lines: usize, next: u64) {
        let now: Timestamp = (self.clock)();
        let mut status = lock(&self.status);
        status.sent += lines as u64;
        status.next = next;
        status.error = None;
        status.good_at = Some(now);
    }

    /// Writes the place down, now and then.
    fn keep(&mut self, now: bool) {
        if self.arrived == self.kept || !(now || self.saved.elapsed() >= SAVE) {
            return;
        }
        self.saved = Instant::now();
        match save(&self.place, self.arrived) {
            Ok(()) => self.kept = self.arrived,
            Err(e) => tracing::warn!(path = %self.place.display(), error = %e, "cannot keep a drain's place"),
        }
    }

    async fn syslog(&mut self) -> Result<(), String> {
        let link = self.dialer.connect(&self.spec.url).await?;
        lock(&self.status).error = None;
        let (mut reader, mut writer) = tokio::io::split(link);
        let mut items = self.items();
        // What was sent when, as far as it may still be under way.
        let mut under_way = VecDeque::<UnderWay>::new();
        let mut scratch = [0; 1024];
        let broke = |e: io::Error| format!("the connection broke: {e}");
        loop {
            while let Some(sent) = under_way.pop_front_if(|sent| sent.at.elapsed() >= TRUSTED_AFTER) {
                self.arrived(sent.next, sent.dropped);
            }
            self.keep(false);
            let wake = under_way.front().map_or(Duration::from_secs(3600), |sent| {
                TRUSTED_AFTER.saturating_sub(sent.at.elapsed()).max(Duration::from_millis(100))
            });
            let batch = tokio::select! {
                biased;
                // Receivers say nothing but that they are gone.
                read = reader.read(&mut scratch) => match read {
                    Ok(0) => return Err("the receiver closed the connection".into()),
                    Ok(_) => continue,
                    Err(e) => return Err(broke(e)),
                },
                batch = self.first(&mut items) => batch,
                () = sleep(wake) => continue,
            };
            let Some(mut batch) = batch else { return Ok(()) };
            self.fill(&mut items, &mut batch);
            let sent = timeout(link::ANSWER, async {
                writer.write_all(&batch.bytes).await?;
                writer.flush().await
            });
            match sent.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(broke(e)),
                Err(_) => return Err(format!("the receiver took nothing for {} s", link::ANSWER.as_secs())),
            }
            under_way.push_back(UnderWay { at: Instant::now(), dropped: batch.dropped, next: batch.next });
            self.got_on(batch.lines, batch.next);
        }
    }

    async fn https(&mut self) -> Result<(), String> {
        let mut items = self.items();
        let mut open: Option<Box<dyn Link>> = None;
        loop {
            self.keep(false);
            let batch = tokio::select! {
                batch = self.first(&mut items) => batch,
                () = sleep(SAVE), if self.arrived != self.kept => {
                    self.keep(true);
                    continue;
                }
            };
            let Some(mut batch) = batch else { return Ok(()) };
            sleep(GATHER).await;
            self.fill(&mut items, &mut batch);
            let frame_id = format!("{}-{}-{}", self.spec.id, self.arrived, batch.next);
            let post = link::Post { token: &self.spec.token, frame_id: &frame_id, count: batch.lines, body: &batch.bytes };
            // A connection that was idle may be closed by now: then once more over a new one.
            let reused = match open.take() {
                Some(mut link) => link::post(&mut *link, &self.spec.url, &post).await.ok().map(|answer| (answer, link)),
                None => None,
            };
            let ((status, again), link) = match reused {
                Some(done) => done,
                None => {
                    let mut link = self.dialer.connect(&self.spec.url).await?;
                    let answer = link::post(&mut *link, &self.spec.url, &post).await;
                    (answer.map_err(|e| format!("the receiver did not answer: {e}"))?, link)
                }
            };
            if !(200..300).contains(&status) {
                return Err(format!("the receiver answered {status}"));
            }
            open = again.then_some(link);
            self.arrived(batch.next, batch.dropped);
            self.got_on(batch.lines, batch.next);
        }
    }
}
