//! Access lines: one per request, in Heroku's form, handed on without ever waiting for the reader.

use flex_model::AppId;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::mpsc;

/// Where access lines go. Called on the request path by several threads.
pub trait AccessSink: Send + Sync + 'static {
    /// Takes one line (no line end) of an app's router log. Must not block: drop and count instead.
    fn line(&self, app: AppId, text: String);
}

/// A sink with a bounded queue: when it is full, lines are dropped and counted, and requests go on.
#[derive(Debug, Clone)]
pub struct AccessQueue {
    send: mpsc::Sender<(AppId, String)>,
    dropped: Arc<AtomicU64>,
}

impl AccessQueue {
    /// The sink, and the end to read from. `lines` is how many may wait.
    pub fn new(lines: usize) -> (Self, mpsc::Receiver<(AppId, String)>) {
        let (send, receive) = mpsc::channel(lines);
        (Self { send, dropped: Arc::default() }, receive)
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl AccessSink for AccessQueue {
    fn line(&self, app: AppId, text: String) {
        if self.send.try_send((app, text)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
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
    fn a_full_queue_drops_and_counts() {
        let (queue, _receive) = AccessQueue::new(2);
        for _ in 0..5 {
            queue.line(AppId(flex_model::Uuid::nil()), "x".into());
        }
        assert_eq!(queue.dropped(), 3);
    }
}
