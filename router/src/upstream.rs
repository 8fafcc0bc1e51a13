//! Connections to instances: which instance, kept or new, and what happens when it does not answer.

use crate::{
    Code,
    io::Io,
    metrics::Counters,
    table::{App, Backend, Lease},
    worker::Worker,
};
use std::{
    collections::HashMap,
    io,
    os::fd::AsRawFd as _,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::net::TcpStream;

/// More instances than this are not tried for one request: then the app is broken, not an instance.
const MAX_TRIES: usize = 8;

/// A connection to an instance, with the request that it is counted for.
pub(crate) struct Upstream {
    pub(crate) io: Io<TcpStream>,
    pub(crate) lease: Lease,
    /// An earlier request used it: it may have been closed while it was idle.
    pub(crate) reused: bool,
}

/// Why there is no connection.
pub(crate) enum NoUpstream {
    /// The table changed under us: look again.
    Stale,
    Failed(Code),
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

impl Worker {
    /// A connection to one of the app's instances. `fresh`: none that was used before. `certain`: see [`Pool::take`].
    pub(crate) async fn connect(&self, app: &App, fresh: bool, certain: bool) -> Result<Upstream, NoUpstream> {
        let timeouts = &self.shared.settings.timeouts;
        let mut tried: Vec<u64> = Vec::new();
        let mut slow: Option<Arc<Backend>> = None;
        while tried.len() < MAX_TRIES
            && let Some(backend) = pick(&app.backends, &tried, self.now_ms(), &mut rand::rng())
        {
            let lease = Lease::take(backend, &self.shared.dirty).ok_or(NoUpstream::Stale)?;
            if !fresh && let Some(io) = self.pool.borrow_mut().take(backend, certain) {
                Counters::add(&self.counters.reused, 1);
                return Ok(Upstream { io, lease, reused: true });
            }
            let last = slow.is_none() && tried.len() + 1 == app.backends.len();
            match self.dial(backend, if last { timeouts.connect } else { timeouts.slow_connect }).await {
                Ok(io) => return Ok(Upstream { io, lease, reused: false }),
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
        let lease = Lease::take(&backend, &self.shared.dirty).ok_or(NoUpstream::Stale)?;
        match self.dial(&backend, timeouts.connect).await {
            Ok(io) => Ok(Upstream { io, lease, reused: false }),
            Err(_) => Err(NoUpstream::Failed(Code::BackendConnectionTimeout)),
        }
    }

    async fn dial(&self, backend: &Backend, within: Duration) -> io::Result<Io<TcpStream>> {
        let dialed = tokio::time::timeout(within, TcpStream::connect(backend.address)).await;
        match dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                backend.succeeded();
                Counters::add(&self.counters.connects, 1);
                Ok(Io::new(stream))
            }
            Err(e) => {
                if !is_ours(&e) {
                    Counters::add(&self.counters.connects_failed, 1);
                    if backend.failed(self.now_ms(), self.shared.settings.timeouts.eject) {
                        Counters::add(&self.counters.ejections, 1);
                    }
                }
                Err(e)
            }
        }
    }
}

/// Failures that say nothing about the instance.
fn is_ours(e: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    e.raw_os_error().is_some_and(|n| [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL].contains(&n))
}

/// Power of two choices: of two instances taken at random, the one with fewer requests under way. Instances that are out
/// are taken only when nothing else is left; those in `tried` never.
fn pick<'a>(backends: &'a [Arc<Backend>], tried: &[u64], now_ms: u64, rng: &mut impl rand::Rng) -> Option<&'a Arc<Backend>> {
    let fit = |b: &Arc<Backend>| !tried.contains(&b.serial) && !b.is_out(now_ms);
    match backends {
        [] => return None,
        [only] => return (!tried.contains(&only.serial)).then_some(only),
        _ => {}
    }
    let (a, b) = two(backends.len(), rng);
    let (mut a, mut b) = (&backends[a], &backends[b]);
    if !fit(a) || !fit(b) {
        let untried = || backends.iter().filter(|b| !tried.contains(&b.serial));
        let mut left: Vec<&Arc<Backend>> = untried().filter(|b| fit(b)).collect();
        if left.is_empty() {
            left = untried().collect();
        }
        match left[..] {
            [] => return None,
            [only] => return Some(only),
            _ => {}
        }
        let (i, j) = two(left.len(), rng);
        (a, b) = (left[i], left[j]);
    }
    Some(if b.in_flight() < a.in_flight() { b } else { a })
}

/// Two different numbers below `n`, which is at least 2.
fn two(n: usize, rng: &mut impl rand::Rng) -> (usize, usize) {
    let a = rng.random_range(0..n);
    let b = rng.random_range(0..n - 1);
    (a, if b >= a { b + 1 } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry::Registry, shared::Dirty, table::Routes};
    use flex_model::{AppId, AppRoute, AppState, InstanceId, RouteTable, Uuid};
    use rand::SeedableRng as _;

    fn backends(n: u16) -> Vec<Arc<Backend>> {
        let one = |i: u16| flex_model::Backend {
            instance: InstanceId(Uuid::from_u128(i.into())),
            name: format!("web.{i}"),
            address: ([127, 0, 0, 1], i + 1).into(),
        };
        let domains = vec!["a.b".parse().unwrap()];
        let app =
            AppRoute::new(AppId(Uuid::nil()), "app".parse().unwrap(), domains, AppState::Serving, (0..n).map(one).collect());
        let routes = Routes::default();
        Registry::default().apply(&routes, &RouteTable::new(1, [app]));
        routes.find("a.b", "/").unwrap().choose(0).unwrap().backends.clone()
    }

    #[test]
    fn the_less_busy_of_two() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let (all, dirty) = (backends(2), Arc::new(Dirty::default()));
        let _busy = Lease::take(&all[0], &dirty).unwrap();
        for _ in 0..50 {
            assert_eq!(pick(&all, &[], 0, rng).unwrap().name, "web.1");
        }
    }

    #[test]
    fn load_spreads() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(2);
        let (all, dirty) = (backends(10), Arc::new(Dirty::default()));
        let _leases: Vec<Lease> = (0..1000).map(|_| Lease::take(pick(&all, &[], 0, rng).unwrap(), &dirty).unwrap()).collect();
        assert!(
            all.iter().all(|b| (95..=105).contains(&b.in_flight())),
            "{:?}",
            all.iter().map(|b| b.in_flight()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn tried_ones_never_and_ejected_ones_last() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = backends(3);
        all[0].failed(0, Duration::from_secs(1));
        for _ in 0..50 {
            assert_ne!(pick(&all, &[], 0, rng).unwrap().name, "web.0");
            assert_eq!(pick(&all, &[all[1].serial], 0, rng).unwrap().name, "web.2");
            assert_eq!(pick(&all, &[all[1].serial, all[2].serial], 0, rng).unwrap().name, "web.0");
        }
        let serials: Vec<u64> = all.iter().map(|b| b.serial).collect();
        assert!(pick(&all, &serials, 0, rng).is_none());
        assert!(pick(&all[..1], &serials, 0, rng).is_none());
    }
}
