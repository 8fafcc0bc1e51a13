//! What the workers share: the current routes, the settings, and a few counts.

use crate::{
    AccessSink, RouterSettings, access,
    clients::{ClientPlace, Clients},
    h3::endpoint::Http3,
    handover::Book,
    io::Clock,
    persist,
    policy::Buckets,
    stats::StatsBook,
    table::{Backend, Routes},
    tls::Tls,
};
use flex_model::{AppId, CertificateTable, InstanceId, LineForm, RouteProblem};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::sync::{Notify, mpsc, watch};

pub(crate) struct Shared {
    pub(crate) settings: RouterSettings,
    pub(crate) routes: Routes,
    /// Changes after each new table; the value is only a count.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) access: Arc<dyn AccessSink>,
    pub(crate) dirty: Arc<Dirty>,
    /// What is counted of each app.
    pub(crate) stats: StatsBook,
    pub(crate) held: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    pub(crate) clients: Clients,
    /// Answers that are being compressed.
    pub(crate) compressing: AtomicUsize,
    pub(crate) clock: Clock,
    /// What clients used of their rates.
    pub(crate) buckets: Buckets,
    /// Where HTTPS is served, if it is.
    pub(crate) https_port: Option<u16>,
    pub(crate) tls: Tls,
    /// HTTP/3, if it is on.
    pub(crate) http3: Option<Http3>,
    /// Takes connections whose TLS is passed through.
    pub(crate) pass: tokio::sync::mpsc::UnboundedSender<crate::l4::Passed>,
    /// The revision of the certificates in force.
    pub(crate) certificates: AtomicU64,
    /// Ports that the router itself listens on.
    pub(crate) own_ports: Vec<u16>,
    /// Whose turn it is to write the table to disk.
    pub(crate) keeping: Mutex<()>,
    /// Copies of the listening sockets, for the process that follows.
    pub(crate) book: Arc<Book>,
    /// What the process before this one still has under way.
    pub(crate) inherited: Mutex<BTreeMap<InstanceId, u32>>,
    /// Takes lines to the process that follows, once it has taken over.
    pub(crate) rest: mpsc::UnboundedSender<(AppId, String)>,
    /// That process accepts from them now: what waits in their queues is its.
    pub(crate) handed_over: AtomicBool,
    /// Ports of routes that could not be opened.
    pub(crate) port_problems: Mutex<Vec<RouteProblem>>,
}

impl Shared {
    /// A place for one more connection of this address. `None`: it has its most. Trusted proxies, which bring the connections
    /// of many, are not counted.
    pub(crate) fn client(&self, address: IpAddr) -> Option<Option<ClientPlace<'_>>> {
        if self.settings.trusted_proxies.iter().any(|range| range.contains(address)) {
            return Some(None);
        }
        self.clients.take(address, self.settings.limits.connections_per_client).map(Some)
    }

    pub(crate) fn keep_certificates(&self, table: &CertificateTable) {
        if let Some(dir) = &self.settings.state_dir
            && let Err(e) = persist::save_certificates(dir, table)
        {
            tracing::error!(
                error = &e as &dyn std::error::Error,
                "the certificates are not kept: a router restarted alone would not have them"
            );
        }
    }

    /// Hands a line on, in the form that the app or this router wants; one that tells of no error only now and then, if so set.
    pub(crate) fn tell(&self, app: AppId, form: LineForm, failed: bool, line: impl FnOnce() -> String) {
        let own = &self.settings.lines;
        let kept = form.per_mille.or(own.per_mille).unwrap_or(1000);
        if !failed && kept < 1000 && rand::random_range(0..1000) >= kept {
            return;
        }
        let json = form.json.or(own.json).unwrap_or(false);
        let line = line();
        let line = if json { access::as_json(&line) } else { line };
        if self.handed_over.load(SeqCst) {
            let _ = self.rest.send((app, line));
        } else {
            self.access.line(app, line);
        }
    }

    pub(crate) fn set_inherited(&self, now: BTreeMap<InstanceId, u32>) {
        *self.inherited.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.dirty.mark();
    }

    pub(crate) fn set_port_problems(&self, problems: Vec<RouteProblem>) {
        let mut known = self.port_problems.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != problems {
            for problem in problems.iter().filter(|p| !known.contains(p)) {
                tracing::warn!(app = %problem.app, "{}", problem.message);
            }
            *known = problems;
            self.dirty.mark();
        }
    }
}

/// Says that a status is out of date. Marking costs one load while a publication is under way already.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    flag: AtomicBool,
    notify: Notify,
    /// Instances that there is something to tell of, and that who tells it does not know yet.
    noted: Mutex<Vec<Arc<Backend>>>,
}

impl Dirty {
    /// Marks, because of this instance: requests are under way on it, or it is out. Costs one load more while that is known.
    pub(crate) fn note(&self, backend: &Arc<Backend>) {
        if backend.list() {
            self.noted.lock().unwrap_or_else(PoisonError::into_inner).push(backend.clone());
        }
        self.mark();
    }

    /// Who was noted since the last call.
    pub(crate) fn noted(&self) -> Vec<Arc<Backend>> {
        std::mem::take(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn mark(&self) {
        if !self.flag.load(SeqCst) && !self.flag.swap(true, SeqCst) {
            self.notify.notify_one();
        }
    }

    /// Waits until something was marked. Call [`Dirty::clear`] before reading what was marked.
    pub(crate) async fn marked(&self) {
        while !self.flag.load(SeqCst) {
            self.notify.notified().await;
        }
    }

    pub(crate) fn clear(&self) {
        self.flag.store(false, SeqCst);
    }
}

/// One more of something bounded; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    /// `None` when `limit` are taken.
    pub(crate) fn take(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let place = (count.fetch_add(1, SeqCst), Self(count));
        (place.0 < limit).then_some(place.1)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
