//! Metrics for Prometheus: what the process itself uses, a listener of its own for a scraper without a token, and each
//! second's signals on their way to the controller.
//!
//! The listener asks for no token: it is off unless set, and belongs on an address that only the scraper reaches. With a
//! token the same text is at `/metrics` of the API.

use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use flex_model::exposition::{CONTENT_TYPE, Exposition};
use flex_model::signals::RouterSignals;
use flex_router::{AccessQueue, Metrics, SignalMeter};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often signals are read.
const SECOND: Duration = Duration::from_secs(1);

/// Makes the text.
pub type Source = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// What this process uses, by the names that Prometheus's own libraries give it.
pub fn process() -> String {
    let mut out = Exposition::default();
    out.gauge("flex_build_info", "1, with the program's version.").sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let stat = read("stat");
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
    out.counter("process_cpu_seconds_total", "Processor time used.").sample(&[], (field(11) + field(12)) / ticks);
    out.gauge("process_resident_memory_bytes", "Memory in use.").sample(&[], field(21) * page);
    out.gauge("process_threads", "Threads.").sample(&[], field(17));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    out.gauge("process_open_fds", "Open descriptors.").sample(&[], open as f64);
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        out.gauge("process_max_fds", "The most descriptors that may be open.").sample(&[], soft as f64);
    }
    let booted = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = booted.lines().find_map(|l| l.strip_prefix("btime ")?.parse::<f64>().ok()).unwrap_or(0.0);
    out.gauge("process_start_time_seconds", "When the process began, in seconds since 1970.")
        .sample(&[], booted + field(19) / ticks);
    out.into_text()
}

/// A router's metrics, with what became of its access lines.
pub fn router(metrics: Metrics, access: AccessQueue) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let mut out = Exposition::default();
        out.counter("flex_router_access_lines_dropped_total", "Access lines dropped, because nobody took them in time.")
            .sample(&[], access.dropped() as f64);
        out.append(&metrics.expose());
        out.into_text()
    })
}

/// Takes the address of a listener for scrapers, or a socket that listens there already.
///
/// # Errors
/// A sentence for the operator.
pub async fn listen(address: SocketAddr, taken: Option<std::net::TcpListener>) -> Result<tokio::net::TcpListener, String> {
    crate::server::listener(address, taken)
        .await
        .map_err(|e| format!("cannot listen for metrics on {address}: {e}. Set another address with --metrics"))
}

/// Answers scrapers until told to stop.
pub async fn serve(listener: tokio::net::TcpListener, source: Source, stop: CancellationToken) -> Result<(), String> {
    let handler = move || {
        let source = source.clone();
        async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], source().await).into_response() }
    };
    let app = axum::Router::new().route("/metrics", get(handler));
    tokio::select! {
        served = axum::serve(listener, app) => served.map_err(|e| e.to_string()),
        () = stop.cancelled() => Ok(()),
    }
}

/// Reads the router's signals each second and hands them on, until told to stop.
pub async fn signals<F: Future<Output = ()>>(metrics: Metrics, stop: CancellationToken, mut to: impl FnMut(RouterSignals) -> F) {
    let mut meter = SignalMeter::new(metrics);
    let mut tick = tokio::time::interval(SECOND);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tokio::select! {
            _ = tick.tick() => to(meter.read()).await,
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_told_as_it_is() {
        let told = flex_model::exposition::parse(&process()).unwrap();
        let get = |name: &str| told.get(name, &[]).unwrap();
        assert!(get("process_resident_memory_bytes") > 1e5 && get("process_threads") >= 1.0 && get("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - get("process_start_time_seconds")).abs() < 3600.0, "{}", get("process_start_time_seconds"));
    }
}
