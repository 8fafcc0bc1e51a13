//! Connections to instances: which instance, kept or new, and what happens when it does not answer.

use crate::{
    Code,
    balance::{self, Choice},
    h2::{links, outgoing::Outgoing},
    io::Io,
    metrics::Counters,
    shared::Shared,
    table::{App, Backend, Lease, NoPlace},
    worker::Worker,
};
use flex_model::InstanceId;
use std::{
    collections::HashMap,
    io,
    os::fd::AsRawFd as _,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::net::TcpStream;

/// A connection to an instance, with the request that it is counted for.
pub(crate) struct Upstream {
    pub(crate) wire: Wire,
    pub(crate) lease: Lease,
    /// An earlier request used it: it may have been closed while it was idle.
    pub(crate) reused: bool,
}

/// What the instance speaks.
pub(crate) enum Wire {
    One(Io<TcpStream>),
    Two(Box<Io<Outgoing>>),
}

/// Why there is no connection.
pub(crate) enum NoUpstream {
    /// The table changed under us: look again.
    Stale,
    /// Every instance that could be tried has its most requests: wait for a place.
    Full,
    Failed(Code),
}

impl From<NoPlace> for NoUpstream {
    fn from(why: NoPlace) -> Self {
        match why {
            NoPlace::Retired => Self::Stale,
            NoPlace::Full => Self::Full,
        }
    }
}

/// Idle connections of one worker.
#[derive(Default)]
pub(crate) struct Pool(HashMap<u64, Vec<Idle>>);

struct Idle {
    io: Io<TcpStream>,
    backend: Arc<Backend>,
    since_ms: u64,
}

impl Pool {
    /// The connection used last, because it is the least likely to have been closed. `certain`: ask the kernel too, which
    /// costs a system call; without it only what epoll already told is known.
    fn take(&mut self, backend: &Backend, certain: bool) -> Option<Io<TcpStream>> {
        let kept = self.0.get_mut(&backend.serial)?;
        while let Some(idle) = kept.pop() {
            if is_quiet(&idle.io) && !(certain && is_closed(&idle.io)) {
                return Some(idle.io);
            }
        }
        None
    }

    pub(crate) fn put(&mut self, backend: &Arc<Backend>, io: Io<TcpStream>, now_ms: u64, limit: usize) {
        if backend.is_retired() {
            return;
        }
        let kept = self.0.entry(backend.serial).or_default();
        if kept.len() < limit {
            kept.push(Idle { io, backend: backend.clone(), since_ms: now_ms });
        }
    }

    /// Closes what is too old, was closed by its instance, or leads to an instance that left.
    pub(crate) fn sweep(&mut self, now_ms: u64, keep: Duration) {
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.0.retain(|_, kept| {
            kept.retain(|idle| now_ms.saturating_sub(idle.since_ms) < keep && !idle.backend.is_retired() && is_quiet(&idle.io));
            !kept.is_empty()
        });
    }
}

/// Nothing came on it: neither an end nor bytes that nobody asked for. Costs nothing unless epoll reported something.
fn is_quiet(io: &Io<TcpStream>) -> bool {
    io.poll_read(&mut Context::from_waker(Waker::noop()), 1, |_, _| ()).is_pending()
}

fn is_closed(io: &Io<TcpStream>) -> bool {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    !matches!(io.with(|s| recv(s.as_raw_fd(), &mut [0], flags)), Err(nix::errno::Errno::EAGAIN))
}

/// How an instance was reached.
pub(crate) enum Reached<T> {
    /// By a connection that was there.
    Kept(T),
    New(TcpStream),
}

impl Worker {
    /// A connection to one of the app's instances, `prefer` if that can be. `fresh`: none that was used before. `certain`:
    /// see [`Pool::take`].
    pub(crate) async fn connect(
        &self,
        app: &App,
        prefer: Option<InstanceId>,
        fresh: bool,
        certain: bool,
    ) -> Result<Upstream, NoUpstream> {
        let kept = |backend: &Backend| if fresh { None } else { self.pool.borrow_mut().take(backend, certain) };
        let (lease, reached) = reach(&self.shared, &self.counters, app, prefer, kept).await?;
        Ok(match reached {
            Reached::Kept(io) => {
                Counters::add(&self.counters.reused, 1);
                Upstream { wire: Wire::One(io), lease, reused: true }
            }
            Reached::New(stream) => Upstream { wire: Wire::One(Io::new(stream)), lease, reused: false },
        })
    }
}

impl Worker {
    /// The same over HTTP/2. `greeting`: on a connection that begins with it, and is this request's alone.
    pub(crate) async fn connect_h2(
        &self,
        app: &App,
        prefer: Option<InstanceId>,
        fresh: bool,
        greeting: Option<Vec<u8>>,
    ) -> Result<Upstream, NoUpstream> {
        let (outgoing, lease, reused) = links::connect(self, app, prefer, fresh, greeting).await?;
        if reused {
            Counters::add(&self.counters.reused, 1);
        }
        Ok(Upstream { wire: Wire::Two(Box::new(Io::new(outgoing))), lease, reused })
    }
}

/// Reaches one of an app's instances: one after another, as long as there are others to try. `kept` may have a connection.
pub(crate) async fn reach<T>(
    shared: &Shared,
    counters: &Counters,
    app: &App,
    prefer: Option<InstanceId>,
    mut kept: impl FnMut(&Backend) -> Option<T>,
) -> Result<(Lease, Reached<T>), NoUpstream> {
    let timeouts = &shared.settings.timeouts;
    // Each instance once, and no more than so many: of an app whose instances hang, every request would wait for all of them.
    // Who was tried in vain is out, so that the next request begins with others.
    let most = shared.settings.limits.connect_tries;
    let mut tried: Vec<u64> = Vec::new();
    let mut slow: Option<Arc<Backend>> = None;
    while tried.len() < most {
        let backend = match balance::choose(app, prefer, &tried, shared.clock.now_ms(), &mut rand::rng()) {
            Choice::One(backend) => backend,
            Choice::Full => return Err(NoUpstream::Full),
            Choice::None => break,
        };
        let lease = Lease::take(app, backend, &shared.dirty)?;
        if let Some(kept) = kept(backend) {
            return Ok((lease, Reached::Kept(kept)));
        }
        let last = slow.is_none() && tried.len() + 1 == app.backends.len().min(most);
        match dial(shared, counters, app, backend, if last { timeouts.connect } else { timeouts.slow_connect }).await {
            Ok(stream) => return Ok((lease, Reached::New(stream))),
            Err(e) if is_ours(&e) => {
                tracing::error!(error = %e, address = %backend.address, "cannot open a connection to an instance: the router is out of a resource");
                return Err(NoUpstream::Failed(Code::PlatformError));
            }
            Err(e) => {
                tried.push(backend.serial);
                if e.kind() == io::ErrorKind::TimedOut {
                    if last {
                        return Err(NoUpstream::Failed(Code::BackendConnectionTimeout));
                    }
                    slow.get_or_insert_with(|| backend.clone());
                }
            }
        }
    }
    // All were tried; one was only slow, so give it the time that an only instance gets.
    let Some(backend) = slow else { return Err(NoUpstream::Failed(Code::BackendConnectionRefused)) };
    let lease = Lease::take(app, &backend, &shared.dirty)?;
    match dial(shared, counters, app, &backend, timeouts.connect).await {
        Ok(stream) => Ok((lease, Reached::New(stream))),
        Err(_) => Err(NoUpstream::Failed(Code::BackendConnectionTimeout)),
    }
}

async fn dial(
    shared: &Shared,
    counters: &Counters,
    app: &App,
    backend: &Arc<Backend>,
    within: Duration,
) -> io::Result<TcpStream> {
    let dialed = tokio::time::timeout(within, TcpStream::connect(backend.address)).await;
    match dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => {
            stream.set_nodelay(true)?;
            backend.succeeded();
            Counters::add(&counters.connects, 1);
            Counters::add(&app.stats(&shared.stats).at(counters.worker).connects, 1);
            Ok(stream)
        }
        Err(e) => {
            if !is_ours(&e) {
                Counters::add(&counters.connects_failed, 1);
                Counters::add(&app.stats(&shared.stats).at(counters.worker).connects_failed, 1);
                if backend.failed(shared.clock.now_ms(), shared.settings.timeouts.eject) {
                    ejected(shared, counters, app, backend);
                }
            }
            Err(e)
        }
    }
}

fn ejected(shared: &Shared, counters: &Counters, app: &App, backend: &Arc<Backend>) {
    Counters::add(&counters.ejections, 1);
    Counters::add(&app.stats(&shared.stats).at(counters.worker).ejections, 1);
    shared.dirty.note(backend);
}

impl Worker {
    /// An instance took a new connection and ended it without a byte of an answer.
    pub(crate) fn was_silent(&self, app: &App, backend: &Arc<Backend>) {
        if backend.was_silent(self.now_ms(), self.shared.settings.timeouts.eject) {
            ejected(&self.shared, &self.counters, app, backend);
        }
    }
}

/// Failures that say nothing about the instance.
fn is_ours(e: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    e.raw_os_error().is_some_and(|n| [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL].contains(&n))
}
