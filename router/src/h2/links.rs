//! HTTP/2 connections to instances, without TLS and from the first byte (h2c with prior knowledge): one worker's, shared by
//! its requests as far as the instance lets them be.
//!
//! Must not: give a request to a connection that was told to take no more, or whose last request got no answer in time.

use super::outgoing::Outgoing;
use crate::{
    shared::Shared,
    table::{App, Backend, Lease},
    upstream::{NoUpstream, Reached, reach},
    worker::Worker,
};
use bytes::Bytes;
use flex_model::InstanceId;
use h2::client::SendRequest;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future as _, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Notify};

/// Connections of one worker to one instance; requests beyond what these carry wait their turn on them.
const MAX_LINKS: usize = 8;
/// No instance can say that it takes so many, so that another number is its word. Until then a connection has one request:
/// it may refuse what comes before.
const NOT_SAID: usize = usize::MAX - 1;
/// Content of one answer that may come ahead of its client.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same for all of a connection: so large that a few slow clients do not hold up the others.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Content of one request that waits for its instance.
const SEND_BUFFER: usize = 64 << 10;

/// One connection.
pub(crate) struct Link {
    send: RefCell<SendRequest<Bytes>>,
    open: Cell<usize>,
    /// Takes no more requests.
    closed: Cell<bool>,
    backend: Arc<Backend>,
    /// When its last request ended, in the shared clock's milliseconds.
    quiet_since: Cell<u64>,
}

impl Link {
    /// Whether it may still be used, as far as is known without asking.
    fn is_alive(&self) -> bool {
        let asked = self.send.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        !self.closed.get() && !matches!(asked, Poll::Ready(Err(_)))
    }

    /// How many requests it takes.
    fn most(&self) -> usize {
        match self.send.borrow().current_max_send_streams() {
            NOT_SAID => 1,
            said => said,
        }
    }

    /// `full`: requests may wait their turn on it, once it is known that it has turns.
    fn has_room(&self, full: bool) -> bool {
        self.open.get() < self.most() || full && self.send.borrow().current_max_send_streams() != NOT_SAID
    }
}

/// One request on a connection; dropping it makes room for another.
pub(crate) struct Place(Rc<Link>, crate::io::Clock);

impl Place {
    fn take(link: Rc<Link>, shared: &Shared) -> Self {
        link.open.set(link.open.get() + 1);
        Self(link, shared.clock)
    }

    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.0.send.borrow().clone()
    }

    /// The instance does not answer: whether the connection is at fault cannot be told, so no new request meets it.
    pub(super) fn close(&self) {
        self.0.closed.set(true);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.quiet_since.set(self.1.now_ms());
    }
}

/// A worker's connections, by instance.
#[derive(Default)]
pub(crate) struct Links(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    links: HashMap<u64, Vec<Rc<Link>>>,
    /// Connections of which nobody knows yet whether and how much they carry, and who wants to know.
    dialing: HashMap<u64, Rc<Notify>>,
}

/// Somebody makes a connection, and others wait for it; dropping it tells them.
struct Dialing {
    links: Rc<RefCell<Inner>>,
    serial: u64,
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if let Some(waiting) = self.links.borrow_mut().dialing.remove(&self.serial) {
            waiting.notify_waiters();
        }
    }
}

/// What there is for a request.
enum Look {
    Link(Rc<Link>),
    Soon(Rc<Notify>),
    Nothing,
}

impl Links {
    fn look(&self, serial: u64) -> Look {
        let inner = &mut *self.0.borrow_mut();
        if let Some(links) = inner.links.get_mut(&serial) {
            links.retain(|l| l.is_alive());
            let full = links.len() >= MAX_LINKS;
            let best = links.iter().filter(|l| l.has_room(full)).min_by_key(|l| l.open.get());
            if let Some(link) = best {
                return Look::Link(link.clone());
            }
        }
        inner.dialing.get(&serial).map_or(Look::Nothing, |soon| Look::Soon(soon.clone()))
    }

    fn dial(&self, serial: u64) -> Dialing {
        self.0.borrow_mut().dialing.insert(serial, Rc::default());
        Dialing { links: self.0.clone(), serial }
    }

    fn put(&self, link: Rc<Link>) {
        if !link.backend.is_retired() {
            self.0.borrow_mut().links.entry(link.backend.serial).or_default().push(link);
        }
    }

    /// Lets go of what is closed, unused for long, or leads to an instance that left. Requests under way go on.
    pub(crate) fn sweep(&self, now_ms: u64, keep: Duration) {
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.0.borrow_mut().links.retain(|_, links| {
            links.retain(|l| {
                let used = l.open.get() > 0 || now_ms.saturating_sub(l.quiet_since.get()) < keep;
                used && !l.backend.is_retired() && l.is_alive()
            });
            !links.is_empty()
        });
    }
}

/// A place for one request at one of the app's instances, `prefer` if that can be; and whether others used the connection
/// before. `fresh`: on a new connection. `greeting`: on one of its own, which begins with that.
pub(crate) async fn connect(
    worker: &Worker,
    app: &App,
    prefer: Option<InstanceId>,
    fresh: bool,
    greeting: Option<Vec<u8>>,
) -> Result<(Outgoing, Lease, bool), NoUpstream> {
    let shared = &worker.shared;
    let alone = greeting.is_some();
    loop {
        let mut dialing = None;
        let kept = |backend: &Backend| {
            // What was being made to another instance failed.
            dialing = None;
            if alone || fresh {
                return None;
            }
            match worker.links.look(backend.serial) {
                Look::Nothing => {
                    dialing = Some(worker.links.dial(backend.serial));
                    None
                }
                found => Some(found),
            }
        };
        let (lease, reached) = reach(shared, &worker.counters, app, prefer, kept).await?;
        match reached {
            Reached::Kept(Look::Link(link)) => return Ok((Outgoing::new(Place::take(link, shared)), lease, true)),
            Reached::Kept(Look::Soon(notify)) => {
                if tokio::time::timeout(shared.settings.timeouts.connect, notify.notified()).await.is_err() {
                    return Err(NoUpstream::Failed(crate::Code::BackendConnectionTimeout));
                }
            }
            Reached::Kept(Look::Nothing) => {}
            Reached::New(stream) => {
                let made = begin(stream, greeting.as_deref(), &lease.backend, shared, dialing.take()).await;
                let Ok(link) = made else {
                    worker.was_silent(app, &lease.backend);
                    return Err(NoUpstream::Failed(crate::Code::ClosedWithoutResponse));
                };
                if !alone {
                    worker.links.put(link.clone());
                }
                return Ok((Outgoing::new(Place::take(link, shared)), lease, false));
            }
        }
    }
}

/// Begins HTTP/2. Does not wait for the instance's word, which ends `dialing`.
async fn begin(
    mut stream: TcpStream,
    greeting: Option<&[u8]>,
    backend: &Arc<Backend>,
    shared: &Shared,
    mut dialing: Option<Dialing>,
) -> Result<Rc<Link>, h2::Error> {
    crate::l4::keep_alive(&stream);
    if let Some(greeting) = greeting {
        stream.write_all(greeting).await.map_err(h2_io)?;
    }
    let limits = &shared.settings.limits;
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(NOT_SAID)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .handshake::<_, Bytes>(stream)
        .await?;
    let (send, open, closed) = (RefCell::new(send), Cell::new(0), Cell::new(false));
    let quiet_since = Cell::new(shared.clock.now_ms());
    let link = Rc::new(Link { send, open, closed, backend: backend.clone(), quiet_since });
    let seen = Rc::downgrade(&link);
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| {
            let ended = Pin::new(&mut connection).poll(cx);
            if connection.max_concurrent_send_streams() != NOT_SAID {
                dialing = None;
            }
            ended
        });
        if let Err(e) = ended.await {
            tracing::debug!(error = %e, "an HTTP/2 connection to an instance ended");
        }
        if let Some(link) = seen.upgrade() {
            link.closed.set(true);
        }
    });
    Ok(link)
}

fn h2_io(_: std::io::Error) -> h2::Error {
    h2::Reason::CONNECT_ERROR.into()
}
