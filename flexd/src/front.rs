//! The router inside `flexd`, and how it follows the one of another process: that one gives its listening sockets, lets go
//! of the data directory, and ends when its requests have ended. Until this process has a controller of its own, its
//! router goes by the table on disk.
//!
//! Must not: say that it serves before it does, since the other process accepts no more from then on.

use crate::server::{Roles, Task, access_lines, chain, relay_status, router_settings, spawn};
use crate::settings::Settings;
use flex_controller::Controller;
use flex_logs::LogStore;
use flex_model::{CertificateTable, RouteTable, RouterStatus};
use flex_router::{AccessLines, AccessQueue, Handover, Metrics, Predecessor, Router};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener as TcpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Access lines on their way to the log; beyond it they are dropped and counted.
const ACCESS_LINES: usize = 8192;
/// So long may the process before take to let go of the data directory: its running pushes have half a minute to end.
const LETTING_GO: Duration = Duration::from_secs(120);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What sockets beside the router's are for.
pub const API: &str = "api";
pub const SSH: &str = "ssh";
pub const METRICS: &str = "metrics";

/// Where a router reads what it routes by.
pub struct Feeds {
    pub tables: watch::Receiver<Arc<RouteTable>>,
    pub certificates: watch::Receiver<Arc<CertificateTable>>,
}

impl Feeds {
    pub fn of(controller: &Controller) -> Self {
        Self { tables: controller.routes(), certificates: controller.certificate_table() }
    }
}

type Own = (watch::Sender<Arc<RouteTable>>, watch::Sender<Arc<CertificateTable>>);

/// A router that serves.
pub struct Front {
    pub http: SocketAddr,
    /// Its HTTPS address, or `off`.
    pub https: String,
    pub handover: Handover,
    metrics: Metrics,
    status: watch::Receiver<RouterStatus>,
    access: AccessQueue,
    lines: AccessLines,
    served: JoinHandle<Result<(), String>>,
    ended: oneshot::Receiver<Result<(), String>>,
    /// What to fill from a controller that was not there at the start.
    own: Option<Own>,
}

/// Listening sockets that another process handed over, beside the router's.
#[derive(Default)]
pub struct Listeners {
    pub api: Option<TcpListener>,
    pub ssh: Option<TcpListener>,
}

impl Front {
    /// Binds the router and begins to serve.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn start(
        settings: &Settings,
        http: SocketAddr,
        feeds: Feeds,
        before: Option<Predecessor>,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let (access, lines) = AccessQueue::new(ACCESS_LINES);
        let mut router = router_settings(settings, http)?;
        router.tls.certificates = Some(feeds.certificates);
        let follows = before.is_some();
        let router = Router::bind_after(before, router, feeds.tables, Arc::new(access.clone())).await.map_err(|e| chain(&e))?;
        if follows {
            // Now, and not later: when the process before has gone, its service must be known to go on.
            crate::upgrade::tell_systemd(&format!("MAINPID={}", std::process::id()));
        }
        let (handover, metrics, status) = (router.handover(), router.metrics(), router.status());
        let https = router.local_tls_addrs().first().map_or_else(|| "off".to_owned(), ToString::to_string);
        let (stop, (tell, ended)) = (stop.clone(), oneshot::channel());
        let served = tokio::spawn(async move {
            let result = router.serve(stop.cancelled_owned()).await.map_err(|e| chain(&e));
            let _ = tell.send(result.clone());
            result
        });
        Ok(Self { http, https, handover, metrics, status, access, lines, served, ended, own: None })
    }

    /// Serves with the sockets of the process that has this data directory, and waits until that process has let go of it.
    /// Nothing: there is no process that hands its sockets on.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn take_over(
        settings: &Settings,
        roles: Roles,
        stop: &CancellationToken,
    ) -> Result<(Option<Self>, Listeners), String> {
        if roles != Roles::All {
            return Err(
                "--take-over is for the process that has the router: stop the server that runs, then start this one".into()
            );
        }
        let Some(before) = Predecessor::find(&settings.data_dir.join("router")).await else { return Ok(<_>::default()) };
        tracing::info!("taking over from the flexd that runs");
        let first = |kind, address| before.take(kind, address).pop().map(TcpListener::from);
        let listeners = Listeners { api: first(API, settings.api), ssh: first(SSH, settings.ssh) };
        let http = crate::server::probe_port(settings.http)?;
        let ((tables, table), (certificates, shown)) = (watch::channel(Arc::default()), watch::channel(Arc::default()));
        let feeds = Feeds { tables: table, certificates: shown };
        let mut front = Self::start(settings, http, feeds, Some(before), stop).await?;
        front.own = Some((tables, certificates));
        wait_until_free(&settings.data_dir).await?;
        Ok((Some(front), listeners))
    }

    /// Puts it together with the controller. What is given ends when the router has ended.
    pub fn connect(
        self,
        tasks: &mut JoinSet<Task>,
        controller: &Controller,
        logs: &Arc<LogStore>,
        stop: &CancellationToken,
    ) -> JoinHandle<Result<(), String>> {
        controller.expose_too(crate::metrics::router(self.metrics.clone(), self.access));
        let told = controller.clone();
        let signals = crate::metrics::signals(self.metrics, stop.clone(), move |s| {
            told.take_signals(s);
            std::future::ready(())
        });
        spawn(tasks, "signals", async move {
            signals.await;
            Ok(())
        });
        if let Some((tables, certificates)) = self.own {
            spawn(tasks, "routes", feed(Feeds::of(controller), tables, certificates, stop.clone()));
        }
        let (stopped, ended) = (stop.clone(), self.ended);
        spawn(tasks, "router", async move {
            tokio::select! {
                result = ended => result.unwrap_or(Ok(())),
                () = stopped.cancelled() => Ok(()),
            }
        });
        spawn(tasks, "access lines", access_lines(self.lines, logs.clone(), stop.clone()));
        spawn(tasks, "router status", relay_status(self.status, controller.router_status(), stop.clone()));
        self.served
    }
}

/// Gives the process that follows a copy of a socket.
///
/// # Errors
/// A sentence for the operator.
pub fn hand_on(to: &Handover, kind: &str, address: SocketAddr, socket: &impl AsFd) -> Result<(), String> {
    to.add(kind, address, socket).map_err(|e| format!("cannot copy the socket of {address}: {e}"))
}

/// Gives it the sockets of the API and of SSH, where there is one that may follow.
///
/// # Errors
/// A sentence for the operator.
pub fn hand_on_both(
    to: Option<&Handover>,
    (api, api_socket): (SocketAddr, &TcpSocket),
    (ssh, ssh_socket): (SocketAddr, &TcpSocket),
) -> Result<(), String> {
    let Some(to) = to else { return Ok(()) };
    hand_on(to, API, api, api_socket)?;
    hand_on(to, SSH, ssh, ssh_socket)
}

/// Hands on what the controller says. What it has not said yet is no news.
async fn feed(
    mut from: Feeds,
    tables: watch::Sender<Arc<RouteTable>>,
    certificates: watch::Sender<Arc<CertificateTable>>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        pass_on(from.tables.borrow_and_update().clone(), &tables, |t| t.revision);
        pass_on(from.certificates.borrow_and_update().clone(), &certificates, |t| t.revision);
        let changed = tokio::select! {
            changed = from.tables.changed() => changed,
            changed = from.certificates.changed() => changed,
            () = stop.cancelled() => return Ok(()),
        };
        if changed.is_err() {
            return Ok(());
        }
    }
}

fn pass_on<T>(next: Arc<T>, to: &watch::Sender<Arc<T>>, revision: impl Fn(&T) -> u64) {
    to.send_if_modified(|now| {
        let is_new = revision(&next) > 0 && revision(now) != revision(&next);
        if is_new {
            *now = next;
        }
        is_new
    });
}

async fn wait_until_free(dir: &Path) -> Result<(), String> {
    let until = tokio::time::Instant::now() + LETTING_GO;
    loop {
        match crate::installation::lock(dir) {
            Ok(_) => return Ok(()),
            Err(e) if tokio::time::Instant::now() > until => return Err(e),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
