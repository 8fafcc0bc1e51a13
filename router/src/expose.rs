//! The router's metrics in Prometheus's text form. The names are in `docs/operating.md`: who changes one changes alerts of
//! people.

use crate::{
    Code, Metrics,
    metrics::Limit,
    stats::{AppStats, Cells, Of},
};
use flex_model::{exposition::Exposition, signals::TIME_BOUNDS};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// A counter of each app: its name, its help, and where it is.
type Sum = (&'static str, &'static str, fn(&Cells) -> &AtomicU64);

/// An app's labels.
struct Named {
    app: Box<str>,
    process: String,
    release: String,
    stats: Arc<AppStats>,
}

impl Named {
    fn new(stats: Arc<AppStats>) -> Self {
        let (app, process, release) = match &stats.of {
            Some(Of { process, version, .. }) => {
                (stats.name(), process.to_string(), version.map_or_else(String::new, |v| format!("v{v}")))
            }
            // No app can be called so.
            None => ("_other".into(), String::new(), String::new()),
        };
        Self { app, process, release, stats }
    }

    fn labels(&self) -> [(&str, &str); 3] {
        [("app", &self.app), ("process", &self.process), ("release", &self.release)]
    }

    fn with<'a>(&'a self, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 4] {
        let [app, process, release] = self.labels();
        [app, process, release, (name, value)]
    }
}

impl Metrics {
    /// All metrics, as text.
    pub fn expose(&self) -> String {
        let mut out = Exposition::default();
        let apps: Vec<Named> = self.shared.stats.all().into_iter().map(Named::new).collect();
        by_app(&mut out, &apps);
        self.whole(&mut out);
        self.limits(&mut out);
        out.into_text()
    }

    fn whole(&self, out: &mut Exposition) {
        let all = self.snapshot();
        let mut count = |name, help, n: u64| {
            out.counter(name, help).sample(&[], n as f64);
        };
        count("flex_router_connections_total", "Client connections accepted.", all.connections);
        count("flex_router_connections_refused_total", "Client connections refused for a limit.", all.connections_refused);
        count("flex_router_requests_refused_total", "Requests refused before an app was found.", all.refused);
        count("flex_router_proxy_headers_refused_total", "Connections refused for their PROXY header.", all.proxy_refused);
        count("flex_router_reused_connections_total", "Requests sent on a kept connection.", all.reused);
        count("flex_router_retries_total", "Requests sent again, the kept connection being closed.", all.retries);
        count("flex_router_upgrades_total", "Connections that switched protocols.", all.upgrades);
        count("flex_router_http2_connections_total", "Client connections that spoke HTTP/2.", all.h2_connections);
        count("flex_router_http3_connections_total", "Client connections that spoke HTTP/3.", all.h3_connections);
        let full = all.tls_handshakes.saturating_sub(all.tls_resumed);
        out.counter("flex_router_tls_handshakes_total", "TLS handshakes of clients, by what came of them.")
            .sample(&[("result", "full")], full as f64)
            .sample(&[("result", "resumed")], all.tls_resumed as f64)
            .sample(&[("result", "failed")], all.tls_failed as f64);
        let mut gauge = |name, help, n: f64| {
            out.gauge(name, help).sample(&[], n);
        };
        let routes = &self.shared.routes;
        gauge("flex_router_connections_open", "Client connections open now.", all.connections_open as f64);
        gauge("flex_router_requests_held", "Requests that wait for an app to start.", self.shared.held.load(SeqCst) as f64);
        gauge("flex_router_table_revision", "Revision of the routing table in force.", routes.revision.load(SeqCst) as f64);
        gauge("flex_router_table_hosts", "Host names in the routing table.", routes.hosts() as f64);
    }

    fn limits(&self, out: &mut Exposition) {
        let mut family = out.counter("flex_router_limits_hit_total", "Who was refused, or closed, for a limit of the router's.");
        for (name, n) in self.snapshot().limits {
            family.sample(&[("limit", name)], n as f64);
        }
        let (limits, timeouts) = (&self.shared.settings.limits, &self.shared.settings.timeouts);
        let seconds = |d: Duration| d.as_secs_f64();
        out.gauge("flex_router_limit", "The limits that are set; times in seconds.")
            .sample(&[("limit", Limit::Connections.name())], limits.connections as f64)
            .sample(&[("limit", Limit::ConnectionsPerClient.name())], limits.connections_per_client as f64)
            .sample(&[("limit", Limit::RequestsPerApp.name())], limits.requests_per_app as f64)
            .sample(&[("limit", Limit::Held.name())], limits.held as f64)
            .sample(&[("limit", Limit::HeldPerApp.name())], limits.held_per_app as f64)
            .sample(&[("limit", Limit::QueuePerApp.name())], limits.queue_per_app as f64)
            .sample(&[("limit", Limit::HeadBytes.name())], limits.head_bytes as f64)
            .sample(&[("limit", Limit::HeadTime.name())], seconds(timeouts.head))
            .sample(&[("limit", Limit::Headers.name())], limits.headers as f64)
            .sample(&[("limit", Limit::HandshakeTime.name())], seconds(timeouts.handshake))
            .sample(&[("limit", Limit::KeepAliveTime.name())], seconds(timeouts.keep_alive))
            .sample(&[("limit", Limit::MinBodyRate.name())], f64::from(limits.min_body_rate))
            .sample(&[("limit", Limit::Http2Resets.name())], f64::from(limits.http2_resets))
            .sample(&[("limit", Limit::Http2ControlFrames.name())], f64::from(limits.http2_control_frames))
            .sample(&[("limit", Limit::Http2WindowUpdates.name())], f64::from(limits.http2_window_updates))
            .sample(&[("limit", Limit::UdpSessions.name())], limits.udp_sessions as f64)
            .sample(&[("limit", Limit::QuicUnproven.name())], limits.quic_unproven as f64)
            .sample(&[("limit", Limit::CompressedAnswers.name())], limits.compressed_answers as f64);
    }
}

fn by_app(out: &mut Exposition, apps: &[Named]) {
    let mut family = out.counter("flex_router_requests_total", "Requests that ended, by class of status.");
    for app in apps {
        for (class, n) in CLASSES.iter().zip(app.stats.sums(|c| &c.by_class)).filter(|(_, n)| *n > 0) {
            family.sample(&app.with("code", class), n as f64);
        }
    }
    let mut family = out.counter("flex_router_errors_total", "Requests and connections that ended with a platform code.");
    for app in apps {
        for (code, n) in Code::ALL.iter().zip(app.stats.sums(|c| &c.by_code)).filter(|(_, n)| *n > 0) {
            family.sample(&app.with("code", code.code()), n as f64);
        }
    }
    let bounds = TIME_BOUNDS.map(|us| us as f64 / 1e6);
    let mut family =
        out.histogram("flex_router_request_duration_seconds", "From a request's head to its end, without upgraded connections.");
    for app in apps {
        let sum = app.stats.sum(|c| &c.time_us) as f64 / 1e6;
        family.buckets(&app.labels(), &bounds, &app.stats.sums(|c| &c.times), sum);
    }
    let mut family = out.summary("flex_router_service_seconds", "How long instances took, from the connection to the end.");
    for app in apps {
        family.total(&app.labels(), app.stats.sum(|c| &c.service_us) as f64 / 1e6, app.stats.sum(|c| &c.served));
    }
    let mut family = out.gauge("flex_router_requests_in_flight", "Requests and connections under way, waiting ones included.");
    let counts: Vec<_> = apps.iter().map(|app| app.stats.counts()).collect();
    for (app, counts) in apps.iter().zip(&counts) {
        family.sample(&app.labels(), counts.in_flight as f64);
    }
    let mut family = out.gauge("flex_router_requests_waiting", "Of those, waiting for an instance or for a place on one.");
    for (app, counts) in apps.iter().zip(&counts) {
        family.sample(&app.labels(), counts.queue as f64);
    }
    let sums: [Sum; 6] = [
        ("flex_router_arrivals_total", "Requests, and TCP connections and UDP sessions, that came.", |c| &c.arrivals),
        ("flex_router_connects_total", "Connections made to instances.", |c| &c.connects),
        ("flex_router_connect_failures_total", "Attempts to connect that failed or took too long.", |c| &c.connects_failed),
        ("flex_router_ejections_total", "Times that an instance was taken out for a while.", |c| &c.ejections),
        ("flex_router_received_bytes_total", "Content received from clients.", |c| &c.bytes_in),
        ("flex_router_sent_bytes_total", "Content sent to clients.", |c| &c.bytes_out),
    ];
    for (name, help, of) in sums {
        let mut family = out.counter(name, help);
        for app in apps {
            family.sample(&app.labels(), app.stats.sum(of) as f64);
        }
    }
}
