//! HTTP/2, to instances ([`links`], [`outgoing`]) and of clients: one task for a connection, one for each of its requests,
//! which the same exchange serves as it serves HTTP/1.1. What clients may do at no cost to themselves is counted ([`tap`]);
//! what they may make us keep is bounded by the settings below.

pub(crate) mod links;
pub(crate) mod outgoing;
mod stream;
mod tap;

pub(crate) use tap::Budget;

use crate::{
    conn::{self, Meeting},
    io::Guard,
    metrics::Counters,
    worker::Worker,
};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};
use tap::Tap;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a client begins with that speaks HTTP/2 without having asked; the rest of the preface follows.
pub(crate) const PRIOR_KNOWLEDGE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// What `Via` says of requests that came so.
pub(crate) const VIA: &[u8] = b"2.0 flex-router";
/// Content of an answer that waits for its client.
const SEND_BUFFER: usize = 64 << 10;

/// The requests of a connection under way.
#[derive(Default)]
pub(crate) struct Open {
    count: Cell<usize>,
    connection: RefCell<Option<Waker>>,
}

impl Open {
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// Wakes the task once when one of them ends.
    pub(crate) fn wake_when_fewer(&self, cx: &Context<'_>) {
        *self.connection.borrow_mut() = Some(cx.waker().clone());
    }
}

pub(crate) struct OneOpen(Rc<Open>);

impl OneOpen {
    pub(crate) fn of(open: &Rc<Open>) -> Self {
        open.count.set(open.count.get() + 1);
        Self(open.clone())
    }
}

impl Drop for OneOpen {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if let Some(waker) = self.0.connection.take() {
            waker.wake();
        }
    }
}

/// Serves a connection to its end. `before`: what was read of it already.
pub(crate) async fn serve<S>(worker: &Rc<Worker>, io: S, before: Vec<u8>, guard: &Guard, meeting: Meeting)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let settings = &worker.shared.settings;
    Counters::add(&worker.counters.h2_connections, 1);
    let io = Tap::new(io, before, &settings.limits, worker.counters.clone());
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.limits.http2_streams)
        .initial_window_size(settings.limits.http2_stream_window)
        .initial_connection_window_size(settings.limits.http2_connection_window)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(settings.limits.head_bytes).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(32)
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(Some(128))
        .enable_connect_protocol();
    // Idle as the guard sees it: when the router stops, the connection is told at once, and its requests end by themselves.
    guard.set_idle(true);
    guard.arm(settings.timeouts.head);
    let mut handshake = pin!(builder.handshake::<_, Bytes>(io));
    let begun =
        poll_fn(|cx| if guard.poll_expired(cx) { Poll::Ready(None) } else { handshake.as_mut().poll(cx).map(Result::ok) });
    let Some(mut connection) = begun.await else { return };
    guard.arm(settings.timeouts.keep_alive);
    let (open, meeting) = (Rc::new(Open::default()), Rc::new(meeting));
    let mut leaving = false;
    loop {
        let was_open = open.count() > 0;
        let next = poll_fn(|cx| {
            if !leaving && (worker.draining.get() || guard.poll_expired(cx) && open.count() == 0) {
                leaving = true;
                connection.graceful_shutdown();
                guard.arm(settings.timeouts.head);
            } else if leaving && open.count() == 0 && !worker.draining.get() && guard.poll_expired(cx) {
                return Poll::Ready(None);
            }
            if let Poll::Ready(next) = connection.poll_accept(cx) {
                return Poll::Ready(next.map(|n| n.map(Some)));
            }
            open.wake_when_fewer(cx);
            if was_open && open.count() == 0 { Poll::Ready(Some(Ok(None))) } else { Poll::Pending }
        });
        match next.await {
            Some(Ok(Some((request, respond)))) => {
                let one = OneOpen::of(&open);
                let request = serve_request(worker.clone(), request, respond, meeting.clone(), one);
                tokio::task::spawn_local(request);
            }
            // The last request ended: the time for an idle connection begins.
            Some(Ok(None)) => guard.arm(settings.timeouts.keep_alive),
            Some(Err(_)) | None => return,
        }
    }
}

async fn serve_request(
    worker: Rc<Worker>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    meeting: Rc<Meeting>,
    _one: OneOpen,
) {
    match stream::open(request, respond, rand::random()) {
        Ok((stream, head)) => conn::serve_one(&worker, stream, head, &meeting).await,
        Err(refused) => {
            Counters::add(&worker.counters.refused, 1);
            refused.reset();
        }
    }
}
