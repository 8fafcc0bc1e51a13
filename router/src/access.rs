//! Access lines: one per request, in Heroku's form, handed on without ever waiting for the reader.

use flex_model::AppId;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Where access lines go. Called on the request path by several threads.
pub trait AccessSink: Send + Sync + 'static {
    /// Takes one line (no line end) of an app's router log. Must not block: drop and count instead.
    fn line(&self, app: AppId, text: String);
}

/// A sink with a bounded queue: when it is full, lines are dropped and counted, and requests go on.
///
/// Lines are read in batches, because waking a reader for each line costs a request as much as its parsing does.
#[derive(Debug, Clone)]
pub struct AccessQueue(Arc<Queue>);

/// The reading end of an [`AccessQueue`].
#[derive(Debug)]
pub struct AccessLines(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    lines: Mutex<Lines>,
    limit: usize,
    /// Of all texts.
    limit_bytes: usize,
    /// Told when the queue is no longer empty.
    some: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Lines {
    all: Vec<(AppId, String)>,
    bytes: usize,
}

/// Room for a line: of most, more than they need, so that a queue is full by its lines; clients that make long ones fill it by
/// its bytes.
const LINE: usize = 512;

/// How long a batch gathers. Readers are people and files: neither minds.
const GATHER: Duration = Duration::from_millis(20);

impl AccessQueue {
    /// The sink, and the end to read from. `lines` is how many may wait, at half a KiB each: fewer where they are longer.
    pub fn new(lines: usize) -> (Self, AccessLines) {
        let queue = Arc::new(Queue {
            lines: Mutex::default(),
            limit: lines,
            limit_bytes: lines.saturating_mul(LINE),
            some: Notify::new(),
            dropped: AtomicU64::new(0),
        });
        (Self(queue.clone()), AccessLines(queue))
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }
}

impl AccessLines {
    /// The lines that came since the last call, oldest first; waits for at least one. Safe to cancel: nothing is lost.
    pub async fn batch(&mut self) -> Vec<(AppId, String)> {
        loop {
            if self.0.lock().all.is_empty() {
                self.0.some.notified().await;
            }
            tokio::time::sleep(GATHER).await;
            let lines = std::mem::take(&mut *self.0.lock()).all;
            if !lines.is_empty() {
                return lines;
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessSink for AccessQueue {
    /// Holds a lock for as long as it takes to push a pointer.
    fn line(&self, app: AppId, text: String) {
        let mut lines = self.0.lock();
        if lines.all.len() >= self.0.limit || lines.bytes + text.len() > self.0.limit_bytes {
            drop(lines);
            self.0.dropped.fetch_add(1, Relaxed);
            return;
        }
        lines.bytes += text.len();
        lines.all.push((app, text));
        let first = lines.all.len() == 1;
        drop(lines);
        if first {
            self.0.some.notify_one();
        }
    }
}

/// A line as a JSON object: what is a number as one, times in milliseconds under `NAME_ms`, what is empty as null.
pub(crate) fn as_json(line: &str) -> String {
    let mut out = serde_json::Map::new();
    let mut rest = line;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => read_quoted(quoted),
            None => after.split_once(' ').map_or((after.to_owned(), ""), |(v, n)| (v.to_owned(), n)),
        };
        let (name, value) = match (name.trim_start(), value.strip_suffix("ms")) {
            (name @ ("connect" | "service"), Some(ms)) => (format!("{name}_ms"), ms.parse::<u64>().ok().into()),
            (name @ ("connect" | "service"), None) => (format!("{name}_ms"), serde_json::Value::Null),
            (name @ ("status" | "bytes" | "bytes_in" | "port"), _) => (name.to_owned(), value.parse::<u64>().ok().into()),
            (name, _) if value.is_empty() => (name.to_owned(), serde_json::Value::Null),
            (name, _) => (name.to_owned(), value.into()),
        };
        out.insert(name, value);
        rest = next;
    }
    serde_json::Value::Object(out).to_string()
}

/// What comes up to the closing quote, and what follows it.
fn read_quoted(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// The end of a request, as the line tells it.
pub(crate) struct Finished<'a> {
    pub(crate) code: Option<crate::Code>,
    /// `method=… fwd="…"`.
    pub(crate) request: &'a str,
    /// `web.1`, or empty when no instance was reached.
    pub(crate) dyno: &'a str,
    pub(crate) connect_ms: Option<u64>,
    pub(crate) service_ms: Option<u64>,
    pub(crate) status: u16,
    /// Sent to the client, without the head.
    pub(crate) bytes: u64,
    pub(crate) protocol: &'static str,
}

impl Finished<'_> {
    pub(crate) fn line(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::with_capacity(self.request.len() + 160);
        match self.code {
            None => out.push_str("at=info "),
            Some(code) => {
                let _ = write!(out, "at={} code={} desc=\"{}\" ", code.level(), code.code(), code.desc());
            }
        }
        out.push_str(self.request);
        let _ = write!(out, " dyno={} connect=", self.dyno);
        for (value, next) in [(self.connect_ms, " service="), (self.service_ms, " status=")] {
            if let Some(ms) = value {
                let _ = write!(out, "{ms}ms");
            }
            out.push_str(next);
        }
        let _ = write!(out, "{} bytes={} protocol={}", self.status, self.bytes, self.protocol);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_herokus() {
        let mut end = Finished {
            code: None,
            request: "method=GET path=\"/\" host=a.b request_id=1 fwd=\"1.2.3.4\"",
            dyno: "web.1",
            connect_ms: Some(0),
            service_ms: Some(2),
            status: 200,
            bytes: 12,
            protocol: "http",
        };
        assert_eq!(
            end.line(),
            "at=info method=GET path=\"/\" host=a.b request_id=1 fwd=\"1.2.3.4\" dyno=web.1 connect=0ms service=2ms status=200 bytes=12 protocol=http"
        );
        (end.code, end.dyno, end.connect_ms, end.service_ms, end.status) =
            (Some(crate::Code::NoWebProcesses), "", None, None, 503);
        assert_eq!(
            end.line(),
            "at=error code=H14 desc=\"No web processes running\" method=GET path=\"/\" host=a.b request_id=1 fwd=\"1.2.3.4\" dyno= connect= service= status=503 bytes=12 protocol=http"
        );
    }

    #[test]
    fn lines_as_json() {
        let json = |line: &str| serde_json::from_str::<serde_json::Value>(&as_json(line)).unwrap();
        let told = json(
            r#"at=error code=H12 desc="Request timeout" method=GET path="/a=\"b\" c" host=a.b request_id=1 fwd="1.2.3.4, 5.6.7.8" dyno= connect=3ms service= status=503 bytes=12 protocol=https tls_version=tls1.3"#,
        );
        assert_eq!((&told["code"], &told["desc"]), (&"H12".into(), &"Request timeout".into()));
        assert_eq!((&told["path"], &told["fwd"]), (&"/a=\"b\" c".into(), &"1.2.3.4, 5.6.7.8".into()));
        assert_eq!(
            (&told["connect_ms"], &told["service_ms"], &told["dyno"]),
            (&3.into(), &serde_json::Value::Null, &serde_json::Value::Null)
        );
        assert_eq!((&told["status"], &told["bytes"], &told["tls_version"]), (&503.into(), &12.into(), &"tls1.3".into()));
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let (queue, mut lines) = AccessQueue::new(2);
        for n in 0..5 {
            queue.line(AppId(flex_model::Uuid::nil()), n.to_string());
        }
        assert_eq!(queue.dropped(), 3);
        let texts: Vec<String> = lines.batch().await.into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["0", "1"]);
        // Long lines are fewer.
        for n in 0..3 {
            queue.line(AppId(flex_model::Uuid::nil()), "x".repeat(500 + n));
        }
        assert_eq!((queue.dropped(), lines.batch().await.len()), (4, 2));
        let long = AccessQueue::new(4).0;
        for _ in 0..4 {
            long.line(AppId(flex_model::Uuid::nil()), "x".repeat(1000));
        }
        assert_eq!(long.dropped(), 2);
        let late = queue.clone();
        let reader = tokio::spawn(async move { lines.batch().await.len() });
        late.line(AppId(flex_model::Uuid::nil()), "x".into());
        assert_eq!(reader.await.unwrap(), 1);
        assert_eq!(queue.dropped(), 4);
    }
}
