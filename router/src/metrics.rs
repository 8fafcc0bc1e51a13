//! Counters, one set per worker so that counting never makes two threads wait for one cache line; summed when read.

use crate::{Code, shared::Shared};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// One worker's counters. The alignment keeps two workers' counters off one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// Whose they are.
    pub(crate) worker: usize,
    /// Refusals for a limit, by [`Limit`].
    pub(crate) limits: [AtomicU64; Limit::ALL.len()],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_ended: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) requests_ended: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) proxy_refused: AtomicU64,
    pub(crate) by_class: [AtomicU64; 5],
    pub(crate) by_code: [AtomicU64; Code::ALL.len()],
    pub(crate) connects: AtomicU64,
    pub(crate) connects_failed: AtomicU64,
    pub(crate) reused: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) ejections: AtomicU64,
    pub(crate) upgrades: AtomicU64,
    pub(crate) tls_handshakes: AtomicU64,
    pub(crate) tls_resumed: AtomicU64,
    pub(crate) tls_failed: AtomicU64,
    pub(crate) h2_connections: AtomicU64,
    pub(crate) h2_refused: AtomicU64,
    pub(crate) h3_connections: AtomicU64,
    pub(crate) h3_refused: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// Counts a refusal for a limit, and gives back what is said of it.
    pub(crate) fn hit<T>(&self, limit: Limit, said: T) -> T {
        Self::add(&self.limits[limit as usize], 1);
        said
    }

    pub(crate) fn ended(&self, status: u16, code: Option<Code>) {
        Self::add(&self.requests_ended, 1);
        if let Some(class) = self.by_class.get(usize::from(status / 100).wrapping_sub(1)) {
            Self::add(class, 1);
        }
        if let Some(code) = code {
            Self::add(&self.by_code[code as usize], 1);
        }
    }
}

/// What bounds the router's work and memory. Each has a setting, and a metric that counts who was refused for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Connections,
    ConnectionsPerClient,
    Held,
    HeldPerApp,
    QueuePerApp,
    HeadBytes,
    HeadTime,
    Headers,
    HandshakeTime,
    KeepAliveTime,
    MinBodyRate,
    MaxConnections,
    UdpSessions,
    Http2Resets,
    Http2ControlFrames,
    Http2WindowUpdates,
    Http2Continuations,
    RequestsPerApp,
    Http3Flood,
    QuicUnproven,
    CompressedAnswers,
}

impl Limit {
    pub(crate) const ALL: [Self; 21] = [
        Self::Connections,
        Self::ConnectionsPerClient,
        Self::Held,
        Self::HeldPerApp,
        Self::QueuePerApp,
        Self::HeadBytes,
        Self::HeadTime,
        Self::Headers,
        Self::HandshakeTime,
        Self::KeepAliveTime,
        Self::MinBodyRate,
        Self::MaxConnections,
        Self::UdpSessions,
        Self::Http2Resets,
        Self::Http2ControlFrames,
        Self::Http2WindowUpdates,
        Self::Http2Continuations,
        Self::RequestsPerApp,
        Self::Http3Flood,
        Self::QuicUnproven,
        Self::CompressedAnswers,
    ];

    /// The value of the metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerClient => "connections_per_client",
            Self::Held => "held",
            Self::HeldPerApp => "held_per_app",
            Self::QueuePerApp => "queue_per_app",
            Self::HeadBytes => "head_bytes",
            Self::HeadTime => "head_time",
            Self::Headers => "headers",
            Self::HandshakeTime => "handshake_time",
            Self::KeepAliveTime => "keep_alive_time",
            Self::MinBodyRate => "min_body_rate",
            Self::MaxConnections => "route_connections",
            Self::UdpSessions => "udp_sessions",
            Self::Http2Resets => "http2_resets",
            Self::Http2ControlFrames => "http2_control_frames",
            Self::Http2WindowUpdates => "http2_window_updates",
            Self::Http2Continuations => "http2_continuations",
            Self::RequestsPerApp => "requests_per_app",
            Self::Http3Flood => "http3_flood",
            Self::QuicUnproven => "quic_unproven",
            Self::CompressedAnswers => "compressed_answers",
        }
    }
}

/// Reads a router's counters; cheap to clone and to keep.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) shared: Arc<Shared>,
}

/// Totals since the start, except where a name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct MetricsSnapshot {
    /// Client connections accepted.
    pub connections: u64,
    /// Client connections open now.
    pub connections_open: u64,
    /// Client connections refused for the limit.
    pub connections_refused: u64,
    /// Requests that were routed to an app (whatever came of it).
    pub requests: u64,
    /// Requests under way now, held ones and upgraded connections included.
    pub in_flight: u64,
    /// Requests refused before any app was found: malformed, too large, unknown host.
    pub refused: u64,
    /// Connections refused for the PROXY header: a malformed one, none in time, or not from a load balancer.
    pub proxy_refused: u64,
    /// Ended requests by class of status, `1xx` first.
    pub by_class: [u64; 5],
    /// Ended requests by platform code, without zeros.
    pub by_code: Vec<(&'static str, u64)>,
    /// Refusals by limit.
    pub limits: Vec<(&'static str, u64)>,
    /// Connections made to instances.
    pub connects: u64,
    /// Attempts to connect that failed or took too long.
    pub connects_failed: u64,
    /// Requests sent on a connection that an earlier request had used.
    pub reused: u64,
    /// Requests sent again, because a kept connection turned out to be closed.
    pub retries: u64,
    /// Times that an instance was taken out for a while.
    pub ejections: u64,
    /// Connections that switched protocols.
    pub upgrades: u64,
    /// TLS handshakes that succeeded.
    pub tls_handshakes: u64,
    /// Of those, sessions resumed.
    pub tls_resumed: u64,
    /// TLS handshakes that failed or took too long.
    pub tls_failed: u64,
    /// Client connections that spoke HTTP/2.
    pub h2_connections: u64,
    /// Of those, connections closed for flooding.
    pub h2_refused: u64,
    /// Client connections that spoke HTTP/3.
    pub h3_connections: u64,
    /// Of those, connections closed for flooding.
    pub h3_refused: u64,
    /// Content of requests and what upgraded clients sent, in bytes.
    pub bytes_in: u64,
    /// Content of answers and what upgraded clients got, in bytes.
    pub bytes_out: u64,
}

impl Metrics {
    /// The sums over all workers.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let sum = |f: fn(&Counters) -> &AtomicU64| self.counters.iter().map(|c| f(c).load(Relaxed)).sum::<u64>();
        let (connections, requests) = (sum(|c| &c.connections), sum(|c| &c.requests));
        let array = |f: &dyn Fn(&Counters) -> u64| self.counters.iter().map(|c| f(c)).sum::<u64>();
        MetricsSnapshot {
            connections,
            connections_open: connections.saturating_sub(sum(|c| &c.connections_ended)),
            connections_refused: sum(|c| &c.connections_refused),
            requests,
            in_flight: requests.saturating_sub(sum(|c| &c.requests_ended)),
            refused: sum(|c| &c.refused),
            proxy_refused: sum(|c| &c.proxy_refused),
            by_class: std::array::from_fn(|i| array(&|c| c.by_class[i].load(Relaxed))),
            limits: Limit::ALL.map(|l| (l.name(), array(&|c| c.limits[l as usize].load(Relaxed)))).into(),
            by_code: Code::ALL
                .iter()
                .enumerate()
                .map(|(i, code)| (code.code(), array(&|c| c.by_code[i].load(Relaxed))))
                .filter(|(_, n)| *n > 0)
                .collect(),
            connects: sum(|c| &c.connects),
            connects_failed: sum(|c| &c.connects_failed),
            reused: sum(|c| &c.reused),
            retries: sum(|c| &c.retries),
            ejections: sum(|c| &c.ejections),
            upgrades: sum(|c| &c.upgrades),
            tls_handshakes: sum(|c| &c.tls_handshakes),
            tls_resumed: sum(|c| &c.tls_resumed),
            tls_failed: sum(|c| &c.tls_failed),
            h2_connections: sum(|c| &c.h2_connections),
            h2_refused: sum(|c| &c.h2_refused),
            h3_connections: sum(|c| &c.h3_connections),
            h3_refused: sum(|c| &c.h3_refused),
            bytes_in: sum(|c| &c.bytes_in),
            bytes_out: sum(|c| &c.bytes_out),
        }
    }
}
