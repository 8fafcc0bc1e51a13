//! `[router.limits]` of `flexd.toml`: what bounds a router's work and memory, held against its ranges.

use flex_router::{Limits, Timeouts};
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What is left out stays as it is by default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    connections: Option<usize>,
    connections_per_client: Option<usize>,
    requests_per_app: Option<usize>,
    connect_tries: Option<usize>,
    held: Option<usize>,
    held_per_app: Option<usize>,
    queue_per_app: Option<usize>,
    idle_per_instance: Option<usize>,
    head_bytes: Option<usize>,
    headers: Option<usize>,
    /// Bytes a second; 0: as slowly as clients like.
    min_body_rate: Option<u32>,
    udp_sessions: Option<usize>,
    quic_unproven: Option<usize>,
    compressed_answers: Option<usize>,
    metrics_apps: Option<usize>,
    http2_streams: Option<u32>,
    http2_stream_window: Option<u32>,
    http2_connection_window: Option<u32>,
    http2_resets: Option<u32>,
    http2_control_frames: Option<u32>,
    http2_window_updates: Option<u32>,
    head_seconds: Option<u64>,
    handshake_seconds: Option<u64>,
    keep_alive_seconds: Option<u64>,
    first_byte_seconds: Option<u64>,
    idle_seconds: Option<u64>,
    connect_seconds: Option<u64>,
    hold_seconds: Option<u64>,
    drain_seconds: Option<u64>,
    instance_idle_seconds: Option<u64>,
    tcp_idle_seconds: Option<u64>,
    udp_idle_seconds: Option<u64>,
}

/// A day: longer than anything here makes sense.
const LONGEST: u64 = 24 * 3600;
/// RFC 9113 section 6.9.1.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

fn set<T: PartialOrd + std::fmt::Display + Copy>(
    name: &str,
    given: Option<T>,
    range: RangeInclusive<T>,
    to: &mut T,
) -> Result<(), String> {
    match given {
        Some(n) if !range.contains(&n) => Err(format!("router.limits.{name}: use {} to {}", range.start(), range.end())),
        Some(n) => {
            *to = n;
            Ok(())
        }
        None => Ok(()),
    }
}

impl File {
    /// The limits in force.
    ///
    /// # Errors
    /// The first value that is out of its range, by its name.
    pub fn checked(&self) -> Result<(Limits, Timeouts), String> {
        let (mut limits, mut timeouts) = (Limits::default(), Timeouts::default());
        let (l, t) = (&mut limits, &mut timeouts);
        for (name, given, to) in [
            ("connections", self.connections, &mut l.connections),
            ("connections_per_client", self.connections_per_client, &mut l.connections_per_client),
            ("requests_per_app", self.requests_per_app, &mut l.requests_per_app),
            ("connect_tries", self.connect_tries, &mut l.connect_tries),
            ("held", self.held, &mut l.held),
            ("held_per_app", self.held_per_app, &mut l.held_per_app),
            ("queue_per_app", self.queue_per_app, &mut l.queue_per_app),
            ("idle_per_instance", self.idle_per_instance, &mut l.idle_per_instance),
            ("udp_sessions", self.udp_sessions, &mut l.udp_sessions),
            ("quic_unproven", self.quic_unproven, &mut l.quic_unproven),
            ("compressed_answers", self.compressed_answers, &mut l.compressed_answers),
            ("metrics_apps", self.metrics_apps, &mut l.metrics_apps),
        ] {
            match given {
                Some(0) => return Err(format!("router.limits.{name}: 0 would let nothing through: use 1 or more")),
                Some(n) => *to = n,
                None => {}
            }
        }
        set("head_bytes", self.head_bytes, 1024..=1 << 20, &mut l.head_bytes)?;
        set("headers", self.headers, 16..=256, &mut l.headers)?;
        set("min_body_rate", self.min_body_rate, 0..=1 << 30, &mut l.min_body_rate)?;
        set("http2_streams", self.http2_streams, 1..=10_000, &mut l.http2_streams)?;
        set("http2_stream_window", self.http2_stream_window, 16 << 10..=LARGEST_WINDOW, &mut l.http2_stream_window)?;
        set("http2_connection_window", self.http2_connection_window, 64 << 10..=LARGEST_WINDOW, &mut l.http2_connection_window)?;
        if l.http2_connection_window < l.http2_stream_window {
            return Err("router.limits.http2_connection_window: it is for all streams, so use http2_stream_window or more".into());
        }
        for (name, given, to) in [
            ("http2_resets", self.http2_resets, &mut l.http2_resets),
            ("http2_control_frames", self.http2_control_frames, &mut l.http2_control_frames),
            ("http2_window_updates", self.http2_window_updates, &mut l.http2_window_updates),
        ] {
            set(name, given, 10..=1_000_000, to)?;
        }
        for (name, given, to) in [
            ("head_seconds", self.head_seconds, &mut t.head),
            ("handshake_seconds", self.handshake_seconds, &mut t.handshake),
            ("keep_alive_seconds", self.keep_alive_seconds, &mut t.keep_alive),
            ("first_byte_seconds", self.first_byte_seconds, &mut t.first_byte),
            ("idle_seconds", self.idle_seconds, &mut t.idle),
            ("connect_seconds", self.connect_seconds, &mut t.connect),
            ("hold_seconds", self.hold_seconds, &mut t.hold),
            ("drain_seconds", self.drain_seconds, &mut t.drain),
            ("instance_idle_seconds", self.instance_idle_seconds, &mut t.upstream_idle),
            ("tcp_idle_seconds", self.tcp_idle_seconds, &mut t.tcp_idle),
            ("udp_idle_seconds", self.udp_idle_seconds, &mut t.udp_idle),
        ] {
            let mut seconds = to.as_secs();
            set(name, given, 1..=LONGEST, &mut seconds)?;
            *to = Duration::from_secs(seconds);
        }
        Ok((limits, timeouts))
    }
}
