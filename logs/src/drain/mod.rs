//! Drains: an app's log sent on as it comes, to syslog or over HTTPS.
//!
//! Each drain is a task with a place in the app's log, kept in a file of its own: it reads ring and segments as any reader
//! that follows, so a drain that is slow or down costs nobody anything, and goes on where it was. At least once: what is not
//! known to have arrived is sent again. Must not: hold lines in memory for a drain, or show a URL unmasked.

mod frame;
mod link;
mod run;
mod url;

pub use link::{Guard, is_risky};
pub use url::{DrainUrl, Kind};

use crate::store::{LogStore, lock};
use flex_model::{AppId, DrainId, Timestamp};
use link::Dialer;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::task::JoinHandle;

/// A drain as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainSpec {
    pub id: DrainId,
    pub app: AppId,
    /// Names the drain in what is sent.
    pub token: String,
    pub url: DrainUrl,
}

/// How a drain does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainStatus {
    /// Lines sent since this process started.
    pub sent: u64,
    /// Number of the next line to send.
    pub next: u64,
    /// Lines that fell out of the retention unsent, since this process started; counted when the receiver was told of them.
    pub dropped: u64,
    /// Why it does not get on.
    pub error: Option<String>,
    /// When it last got on.
    pub good_at: Option<Timestamp>,
}

struct Running {
    spec: DrainSpec,
    status: Arc<Mutex<DrainStatus>>,
    task: JoinHandle<()>,
}

/// All drains of this installation.
pub struct Drains {
    logs: Arc<LogStore>,
    dir: PathBuf,
    dialer: Dialer,
    running: Mutex<HashMap<DrainId, Running>>,
}

impl Drains {
    /// Places are kept in `dir`; `guard` says which addresses may be reached; `ca` is a PEM file of roots beside the platform's.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn new(logs: Arc<LogStore>, dir: PathBuf, guard: Guard, ca: Option<&Path>) -> Result<Self, String> {
        fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        Ok(Self { logs, dir, dialer: Dialer::new(guard, ca)?, running: Mutex::default() })
    }

    /// Makes these the drains that run. The same again changes nothing. One that was not there before begins with the lines
    /// that come from now on. Must be called within the runtime.
    ///
    /// # Errors
    /// A place cannot be kept; the drains before it run.
    pub fn set(&self, specs: Vec<DrainSpec>) -> io::Result<()> {
        let mut running = lock(&self.running);
        let wanted: HashMap<_, _> = specs.into_iter().map(|s| (s.id, s)).collect();
        running.retain(|id, r| {
            let stays = wanted.get(id) == Some(&r.spec) && !r.task.is_finished();
            if !stays {
                r.task.abort();
            }
            if !wanted.contains_key(id) {
                let _ = fs::remove_file(self.place(*id));
            }
            stays
        });
        for (id, spec) in wanted {
            if running.contains_key(&id) {
                continue;
            }
            let place = self.place(id);
            let next = match run::load(&place) {
                Some(next) => next,
                None => {
                    let next = self.logs.written(spec.app).map_err(io::Error::other)?;
                    run::save(&place, next)?;
                    next
                }
            };
            let status = Arc::new(Mutex::new(DrainStatus { next, ..DrainStatus::default() }));
            let drain = run::Drain::new(spec.clone(), self.logs.clone(), self.dialer.clone(), place, next, status.clone());
            running.insert(id, Running { spec, status, task: tokio::spawn(drain.run()) });
        }
        Ok(())
    }

    /// How a drain does; none: it does not run.
    pub fn status(&self, id: DrainId) -> Option<DrainStatus> {
        lock(&self.running).get(&id).map(|r| lock(&r.status).clone())
    }

    /// Whether a drain may lead there, as far as its name can be resolved now.
    ///
    /// # Errors
    /// A sentence: it leads to an address that may not be reached.
    pub async fn check(&self, url: &DrainUrl) -> Result<(), String> {
        let Ok(found) = tokio::net::lookup_host((url.host.as_str(), url.port)).await else { return Ok(()) };
        let found: Vec<_> = found.collect();
        if found.iter().any(|a| (self.dialer.guard)(a.ip())) {
            return Ok(());
        }
        found.first().map_or(Ok(()), |a| Err(link::refusal(&url.host, a.ip())))
    }

    fn place(&self, id: DrainId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

impl Drop for Drains {
    fn drop(&mut self) {
        lock(&self.running).values().for_each(|r| r.task.abort());
    }
}
