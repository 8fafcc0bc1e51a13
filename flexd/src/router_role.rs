//! `flexd router`: a router alone, fed by a control plane elsewhere. It dials out and needs no port that the control plane
//! could reach; while that is away it goes on by the table that it has, after a restart by the one on its disk.

use crate::front::METRICS;
use crate::settings::Settings;
use clap::Args;
use flex_model::table_update::TableUpdate;
use flex_model::{AppId, CertificateTable, CertificateUpdate, RouteTable, RouterStatus, Secret};
use flex_router::{AccessLines, AccessQueue, Predecessor, Router};
use futures_util::StreamExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Three times what the control plane lets pass without a word.
const SILENCE: Duration = Duration::from_secs(6);
/// Before the next try, doubling up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A status says all, so those that come closer together are one.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Access lines on their way; beyond it they are dropped and counted.
const ACCESS_LINES: usize = 65_536;
/// Lines sent at once, and bytes of them: with their escapes and names well below the 4 MiB that the control plane takes.
const BATCH: usize = 5_000;
const BATCH_BYTES: usize = 1 << 20;

/// A router of its own.
#[derive(Debug, Args)]
pub struct RouterArgs {
    /// URL of the control plane's API
    #[arg(long, env = "FLEXD_SERVER", value_name = "URL")]
    server: String,
    /// File with the router's token, which `flexd router:token NAME` prints; or FLEXD_ROUTER_TOKEN
    #[arg(long, env = "FLEXD_ROUTER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The token itself. Others on the machine can read command lines: the file or FLEXD_ROUTER_TOKEN is better
    #[arg(long, env = "FLEXD_ROUTER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Send the token and take the routes over plain HTTP from another machine: only where nobody can listen in between
    #[arg(long, env = "FLEXD_PLAIN_HTTP")]
    plain_http: bool,
    /// Take the certificates with their keys also over plain HTTP from another machine: only where nobody can listen in between
    #[arg(long, env = "FLEXD_PLAIN_CERTIFICATES", requires = "plain_http")]
    plain_certificates: bool,
}

impl RouterArgs {
    fn token(&self) -> Result<Secret, String> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Secret::new(token.trim())),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
                Ok(Secret::new(text.trim()))
            }
            (None, None) => Err("a router needs its token: give --token-file. On the server: flexd router:token NAME".into()),
        }
    }
}

/// Serves until SIGTERM or SIGINT, or until another process takes over; then it lets running requests end.
///
/// # Errors
/// A sentence for the operator.
pub async fn serve(settings: Settings, args: RouterArgs, take_over: bool) -> Result<(), String> {
    let link = Link::new(&args)?;
    let link_name = args.server.clone();
    let (tables, table) = watch::channel(Arc::new(RouteTable::default()));
    let (access, lines) = AccessQueue::new(ACCESS_LINES);
    let http = crate::server::probe_port(settings.http)?;
    let mut router = crate::server::router_settings(&settings, http)?;
    let (certificates, shown) = watch::channel(Arc::default());
    router.tls.certificates = Some(shown);
    let before = match take_over {
        true => Predecessor::find(&settings.data_dir.join("router")).await,
        false => None,
    };
    let taken = |address| before.as_ref()?.take(METRICS, address).pop().map(std::net::TcpListener::from);
    let metrics = settings.metrics.map(|address| (address, taken(address)));
    let follows = before.is_some();
    let router = Router::bind_after(before, router, table, Arc::new(access.clone())).await;
    let router = router.map_err(|e| crate::server::chain(&e))?;
    if follows {
        crate::upgrade::tell_systemd(&format!("MAINPID={}", std::process::id()));
    }
    let mut handover = router.handover();
    let stop = CancellationToken::new();
    if let Some((address, taken)) = metrics {
        let listener = crate::metrics::listen(address, taken).await?;
        crate::front::hand_on(&handover, METRICS, address, &listener)?;
        let router = crate::metrics::router(router.metrics(), access);
        let source: crate::metrics::Source = Arc::new(move || {
            let text = crate::metrics::process() + &router();
            Box::pin(std::future::ready(text))
        });
        tokio::spawn(crate::metrics::serve(listener, source, stop.clone()));
    }
    let signals = tokio::spawn(link.clone().send_signals(router.metrics(), stop.clone()));
    let feed = tokio::spawn(link.clone().follow(tables));
    let (report, mut taken_over) = (link.clone().report(router.status()), router.handover());
    let told = tokio::spawn(async move {
        tokio::select! {
            () = report => {}
            // That process tells what this one still has, under the same name.
            () = taken_over.done() => {}
        }
    });
    let lines = tokio::spawn(link.clone().send_lines(lines));
    let certificates = tokio::spawn(async move {
        if is_private(&link.server) || args.plain_certificates {
            return link.follow_certificates(certificates).await;
        }
        tracing::warn!(
            "the control plane is elsewhere and its URL is not https://, so that anyone between could read the keys of \
             certificates: none are taken. Use https://, or --plain-certificates where nobody can listen"
        );
        // The router goes on with those on its disk: its end of the channel must not close.
        certificates.closed().await;
    });
    tracing::info!(server = link_name, http = %http, data = %settings.data_dir.display(), "flexd routes");
    println!(
        "flexd {} routes: HTTP {http}, fed by {}, data {}",
        env!("CARGO_PKG_VERSION"),
        link_name,
        settings.data_dir.display()
    );
    let ended = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = crate::server::signalled() => {}
            () = handover.done() => {}
        }
        ended.cancel();
    });
    tokio::spawn(crate::upgrade::on_signal());
    let result = router.serve(stop.cancelled_owned()).await.map_err(|e| crate::server::chain(&e));
    // The last requests' lines.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for task in [feed, told, lines, signals, certificates] {
        task.abort();
    }
    result
}

/// The way to the control plane.
#[derive(Clone)]
struct Link {
    http: reqwest::Client,
    server: String,
    token: Secret,
}

impl Link {
    fn new(args: &RouterArgs) -> Result<Self, String> {
        let server = args.server.trim_end_matches('/').to_owned();
        if !server.starts_with("http://") && !server.starts_with("https://") {
            return Err(format!("--server: {server} is no URL: use https://HOST"));
        }
        if !args.plain_http && !is_private(&server) {
            return Err(format!(
                "--server: {server} is another machine, and http:// would send it the router's token, and the routes back, for \
                 everyone between to read. Use https://, or --plain-http where nobody can listen"
            ));
        }
        let http =
            reqwest::Client::builder().connect_timeout(TIMEOUT).build().map_err(|e| format!("cannot make a client: {e}"))?;
        Ok(Self { http, server, token: args.token()? })
    }

    /// Keeps the table in step with the control plane's, for ever.
    async fn follow(self, tables: watch::Sender<Arc<RouteTable>>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let before = tables.borrow().revision;
            match self.listen(&tables).await {
                Ok(()) => tracing::warn!("the control plane ended the stream of routes; going on by the last table"),
                Err(e) => tracing::warn!(error = e, "no routes from the control plane; going on by the last table"),
            }
            pause = if tables.borrow().revision > before { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            // Routers that lost the same control plane do not come back in one moment.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    async fn listen(&self, tables: &watch::Sender<Arc<RouteTable>>) -> Result<(), String> {
        let from = tables.borrow().revision;
        self.lines("table", from, |line| {
            let update: TableUpdate = serde_json::from_slice(line).map_err(|e| format!("its routes cannot be read: {e}"))?;
            let before = tables.borrow().clone();
            match update.apply(&before) {
                Ok(Some(next)) => _ = tables.send_replace(Arc::new(next)),
                Ok(None) => {}
                Err(gap @ flex_model::table_update::UpdateError::Gap(_)) => {
                    // The next request says that nothing is known, and gets the whole.
                    tables.send_modify(|t| *t = Arc::new(RouteTable { revision: 0, ..(**t).clone() }));
                    return Err(gap.to_string());
                }
                Err(e) => return Err(e.to_string()),
            }
            Ok(())
        })
        .await
    }

    /// Hands each line of a stream on, until it ends or one is refused.
    async fn lines(&self, what: &str, from: u64, mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        let request = self.http.get(format!("{}/router/{what}?from={from}", self.server)).bearer_auth(self.token.expose());
        let response = tokio::time::timeout(TIMEOUT, request.send()).await.map_err(|_| "it does not answer".to_owned())?;
        let response = response.map_err(|e| crate::server::chain(&e))?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(format!("it answered {status}: {}", response.text().await.unwrap_or_default()));
        }
        let (mut stream, mut buffer) = (response.bytes_stream(), Vec::new());
        loop {
            let part = tokio::time::timeout(SILENCE, stream.next()).await.map_err(|_| "it fell silent".to_owned())?;
            let Some(part) = part else { return Ok(()) };
            let part = part.map_err(|e| crate::server::chain(&e))?;
            let seen = buffer.len();
            buffer.extend_from_slice(&part);
            let Some(last) = buffer[seen..].iter().rposition(|b| *b == b'\n').map(|at| seen + at) else { continue };
            let rest = buffer.split_off(last + 1);
            buffer[..last].split(|b| *b == b'\n').try_for_each(&mut take)?;
            buffer = rest;
        }
    }

    /// Keeps the certificates in step with the control plane's, for ever. It begins with the whole: what is on the disk
    /// lacks the challenges.
    async fn follow_certificates(self, tables: watch::Sender<Arc<CertificateTable>>) {
        let (mut pause, mut had) = (FIRST_PAUSE, 0);
        loop {
            let before = had;
            let result = self
                .lines("certificates", had, |line| {
                    let update = serde_json::from_slice(line).map_err(|e| format!("its certificates cannot be read: {e}"))?;
                    if let CertificateUpdate::Whole { table } = update {
                        had = table.revision;
                        tables.send_replace(table);
                    }
                    Ok(())
                })
                .await;
            if let Err(e) = result {
                tracing::warn!(error = e, "no certificates from the control plane; going on with the last ones");
            }
            pause = if had > before { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<(), String> {
        let request = self.http.post(format!("{}{path}", self.server)).bearer_auth(self.token.expose()).json(body);
        let response = request.timeout(TIMEOUT).send().await.map_err(|e| crate::server::chain(&e))?;
        if response.status().is_success() { Ok(()) } else { Err(format!("it answered {}", response.status())) }
    }

    /// Tells the control plane what the router says, each change once; after a failure the newest again.
    async fn report(self, mut status: watch::Receiver<RouterStatus>) {
        loop {
            let now = status.borrow_and_update().clone();
            match self.post("/router/status", &now).await {
                Ok(()) => {
                    tokio::time::sleep(STATUS_PAUSE).await;
                    // Said again now and then: a control plane that was restarted has not heard it.
                    if tokio::time::timeout(SILENCE, status.changed()).await.is_ok_and(|r| r.is_err()) {
                        return;
                    }
                }
                Err(e) => {
                    tracing::debug!(error = e, "the control plane did not take the router's status");
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
            }
        }
    }

    /// Tells the control plane what happened in each second. What it does not take is of no use later.
    async fn send_signals(self, metrics: flex_router::Metrics, stop: CancellationToken) {
        let link = &self;
        let send = |signals: flex_model::signals::RouterSignals| async move {
            if let Err(e) = link.post("/router/signals", &signals).await {
                tracing::debug!(error = e, "the control plane did not take a second's signals");
            }
        };
        crate::metrics::signals(metrics, stop, send).await;
    }

    /// Hands access lines on. What the control plane does not take is lost: requests matter more.
    async fn send_lines(self, mut lines: AccessLines) {
        loop {
            let batch: Vec<(AppId, String)> = lines.batch().await;
            for part in parts(&batch) {
                if let Err(e) = self.post("/router/lines", &serde_json::json!({ "lines": part })).await {
                    tracing::warn!(error = e, lines = part.len(), "access lines are lost");
                }
            }
        }
    }
}

/// Whether nobody between could read what is sent to this URL.
fn is_private(server: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(server) else { return false };
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    url.scheme() == "https" || host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A batch in parts that the control plane takes. A line is never cut: it is a few KiB at most.
fn parts(batch: &[(AppId, String)]) -> impl Iterator<Item = &[(AppId, String)]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |(at, (_, text)): &(usize, &(AppId, String))| {
            bytes += text.len();
            *at == 0 || *at < BATCH && bytes <= BATCH_BYTES
        };
        let n = rest.iter().enumerate().take_while(fits).count();
        let (part, left) = rest.split_at(n);
        rest = left;
        (n > 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_travel_in_the_clear_unasked() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let args = |server: &str, plain_http| RouterArgs {
            server: server.into(),
            token_file: None,
            token: Some("secret".into()),
            plain_http,
            plain_certificates: false,
        };
        let elsewhere =
            ["http://10.0.0.1:7070", "http://flex.example.com/", "http://localhost.example.com", "http://[2001:db8::1]"];
        // A name before the @ is no host.
        for server in elsewhere.into_iter().chain(["http://localhost:7070@flex.example.com"]) {
            let said = Link::new(&args(server, false)).err().unwrap_or_else(|| panic!("{server} is taken"));
            assert!(said.contains("--plain-http") && !said.contains("secret"), "{said}");
            assert!(Link::new(&args(server, true)).is_ok(), "{server}");
        }
        for server in ["https://flex.example.com", "http://127.0.0.1:7070", "http://localhost:7070/", "http://[::1]:7070"] {
            assert!(Link::new(&args(server, false)).is_ok(), "{server}");
        }
        assert!(Link::new(&args("flex.example.com", true)).is_err());
    }

    #[test]
    fn lines_go_in_parts_that_are_taken() {
        let line = |text: String| (AppId(flex_model::Uuid::nil()), text);
        // As long as lines get, each byte of them written as two.
        let long: Vec<_> = (0..BATCH).map(|_| line("\"".repeat(6 << 10))).collect();
        let short: Vec<_> = (0..2 * BATCH + 1).map(|n| line(n.to_string())).collect();
        for (batch, least) in [(long, 30), (short, 3), (vec![line("x".repeat(2 * BATCH_BYTES))], 1), (vec![], 0)] {
            let all: Vec<_> = parts(&batch).collect();
            assert_eq!(all.concat(), batch);
            assert_eq!(all.len(), least, "{:?}", all.iter().map(|p| p.len()).collect::<Vec<_>>());
            for part in all.iter().filter(|p| p.len() > 1) {
                assert!(serde_json::json!({ "lines": part }).to_string().len() < 4 << 20);
            }
        }
    }
}
