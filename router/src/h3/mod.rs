//! HTTP/3 of clients (RFC 9114) on QUIC: one task for a connection, one for each of its requests, which the same exchange
//! serves as it serves HTTP/1.1. [`endpoint`] is the UDP port; QUIC itself is `quinn`'s. Frames and field sections are read
//! here, strictly and within bounds, since this is where requests would be smuggled in.
//!
//! A connection belongs to the worker that it was given to. The client's address is that of its first packets: one that moves on
//! (RFC 9000 section 9) stays who it was. No request is taken before the handshake is done (no 0-RTT), so none can be replayed.

pub(crate) mod endpoint;
mod frame;
mod head;
mod huffman;
mod qpack;
mod stream;

use crate::{
    codes::Refusal,
    conn::{self, Meeting},
    h1::carry::{Asked, Carried, Inbound},
    h2::{Budget, OneOpen, Open},
    io::Guard,
    metrics::{Counters, Limit},
    tls::within,
    worker::Worker,
};
use endpoint::Arrived;
use frame::{FrameError, Frames, Piece, Role};
use quinn::{Connection, RecvStream, SendStream, VarInt, crypto::rustls::HandshakeData};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};
use stream::{Outcome, Start, Stream};

/// RFC 9114 section 8.1, RFC 9204 section 6.
mod code {
    use quinn::VarInt;

    pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
    pub(super) const INTERNAL_ERROR: VarInt = VarInt::from_u32(0x102);
    pub(super) const STREAM_CREATION_ERROR: VarInt = VarInt::from_u32(0x103);
    pub(super) const CLOSED_CRITICAL_STREAM: VarInt = VarInt::from_u32(0x104);
    pub(super) const FRAME_UNEXPECTED: VarInt = VarInt::from_u32(0x105);
    pub(super) const FRAME_ERROR: VarInt = VarInt::from_u32(0x106);
    pub(super) const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
    pub(super) const SETTINGS_ERROR: VarInt = VarInt::from_u32(0x109);
    pub(super) const MISSING_SETTINGS: VarInt = VarInt::from_u32(0x10a);
    pub(super) const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
    pub(super) const REQUEST_INCOMPLETE: VarInt = VarInt::from_u32(0x10d);
    pub(super) const MESSAGE_ERROR: VarInt = VarInt::from_u32(0x10e);
    pub(super) const DECOMPRESSION_FAILED: VarInt = VarInt::from_u32(0x200);
    pub(super) const ENCODER_STREAM_ERROR: VarInt = VarInt::from_u32(0x201);
}

/// The largest frame of a control stream that is understood.
const CONTROL_FRAME: usize = 4 << 10;
/// A request without content may be told to be so a moment after its head.
const END_MAY_FOLLOW: Duration = Duration::from_millis(250);
/// How long requests on their way are waited for that were sent before the client heard that the connection ends.
const LEAVING: Duration = Duration::from_millis(250);

/// How long a router that stops waits for clients to confirm their answers, and how often it looks whether it stops.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(250);

/// What the tasks of a connection share.
struct Shared {
    connection: Connection,
    meeting: Meeting,
    open: Rc<Open>,
    /// Requests that the client gave up: each may have cost an instance one.
    resets: RefCell<Budget>,
    sides: Cell<Sides>,
}

/// Streams of the client's that there may be one of.
#[derive(Debug, Clone, Copy, Default)]
struct Sides {
    control: bool,
    encoder: bool,
    decoder: bool,
}

/// How far a connection is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client was told to send nothing more; what is on its way is served.
    Told,
    /// The client was told which request was the last.
    Last,
}

/// What a connection's task wakes for.
enum Event {
    Request(SendStream, RecvStream),
    Side(RecvStream),
    /// The last request ended.
    Quiet,
    Leave(Leaving),
    End,
}

/// Serves a connection from its first packet to its end.
pub(crate) async fn serve(worker: &Rc<Worker>, arrived: Arrived) {
    let watched = worker.watch();
    let (guard, timeouts) = (&watched.guard, &worker.shared.settings.timeouts);
    guard.arm(timeouts.handshake);
    let Arrived { incoming, local, unproven } = arrived;
    let failed = || Counters::add(&worker.counters.tls_failed, 1);
    // This answers the client's first packets, signature and all: here, so that one at a time of them takes this worker's time.
    let Ok(connecting) = incoming.accept() else { return failed() };
    let Some(Ok(connection)) = Box::pin(within(guard, connecting)).await else { return failed() };
    drop(unproven);
    // Not before: until now, the address could be somebody else's.
    let Some(_client) = worker.client(connection.remote_address().ip()) else {
        return connection.close(code::EXCESSIVE_LOAD, b"too many connections from this address");
    };
    Counters::add(&worker.counters.tls_handshakes, 1);
    Counters::add(&worker.counters.h3_connections, 1);
    let seen = connection.handshake_data().and_then(|d| d.downcast::<HandshakeData>().ok());
    let name = seen.and_then(|d| d.server_name);
    // TLS of such a name is not ours to end, and QUIC's is not passed through.
    if name.as_deref().is_some_and(|n| worker.shared.routes.passes(n)) {
        return connection.close(code::NO_ERROR, b"");
    }
    let local = SocketAddr::new(connection.local_ip().unwrap_or(local.ip()), local.port());
    let meeting = Meeting::quic(worker, connection.remote_address(), local, name);
    let shared = Rc::new(Shared {
        connection,
        meeting,
        open: Rc::new(Open::default()),
        resets: RefCell::new(Budget::resets(&worker.shared.settings.limits)),
        sides: Cell::default(),
    });
    Box::pin(run(worker, &shared, guard)).await;
    shared.connection.close(code::NO_ERROR, b"");
}

async fn run(worker: &Rc<Worker>, shared: &Rc<Shared>, guard: &Guard) {
    let (settings, connection) = (&worker.shared.settings, &shared.connection);
    let control = async {
        let mut control = connection.open_uni().await.ok()?;
        control.write_all(&settings_of(settings.limits.head_bytes)).await.ok()?;
        Some(control)
    };
    guard.arm(settings.timeouts.head);
    let Some(Some(mut control)) = within(guard, control).await else { return };
    guard.arm(settings.timeouts.keep_alive);
    let (mut leaving, mut next, mut sides) = (Leaving::No, 0, Budget::new(100.0, 10.0));
    loop {
        match event(worker, shared, guard, leaving).await {
            Event::Request(mut send, mut recv) if leaving == Leaving::Last => {
                // The client may send it elsewhere: nothing was done with it.
                let _ = (send.reset(code::REQUEST_REJECTED), recv.stop(code::REQUEST_REJECTED));
            }
            Event::Request(send, recv) => {
                next = next.max(u64::from(send.id()) + 4);
                let one = OneOpen::of(&shared.open);
                tokio::task::spawn_local(serve_request(worker.clone(), shared.clone(), send, recv, one));
            }
            Event::Side(recv) if sides.spend(Instant::now) => {
                tokio::task::spawn_local(side(shared.clone(), recv));
            }
            Event::Side(_) => return connection.close(code::EXCESSIVE_LOAD, b"too many streams that mean nothing"),
            Event::Quiet => guard.arm(settings.timeouts.keep_alive),
            Event::Leave(now) => {
                leaving = now;
                // From now on only its time counts: an end of the router is known.
                guard.set_idle(false);
                guard.arm(LEAVING.min(settings.timeouts.drain / 4));
                // The first one names no request, as RFC 9114 section 5.2 has it: those on their way are served.
                let last = if now == Leaving::Told { (1 << 62) - 4 } else { next };
                if within(guard, control.write_all(&goaway(last))).await.is_none_or(|r| r.is_err()) {
                    return;
                }
            }
            Event::End => return,
        }
    }
}

async fn event(worker: &Worker, shared: &Shared, guard: &Guard, leaving: Leaving) -> Event {
    let (open, connection) = (&shared.open, &shared.connection);
    let was_open = open.count() > 0;
    let own = poll_fn(|cx| {
        let mut expired = guard.poll_expired(cx);
        if expired && open.count() > 0 && leaving == Leaving::No && !worker.draining.get() {
            // Requests keep it. The guard still has to wake this task when the router stops.
            guard.arm(worker.shared.settings.timeouts.keep_alive);
            expired = guard.poll_expired(cx);
        }
        match leaving {
            Leaving::No if worker.draining.get() || expired && open.count() == 0 => Poll::Ready(Event::Leave(Leaving::Told)),
            Leaving::Told if expired => Poll::Ready(Event::Leave(Leaving::Last)),
            Leaving::Last if open.count() == 0 => Poll::Ready(Event::End),
            _ => {
                open.wake_when_fewer(cx);
                // On its way out it has its time already.
                let quiet = was_open && open.count() == 0 && leaving == Leaving::No;
                if quiet { Poll::Ready(Event::Quiet) } else { Poll::Pending }
            }
        }
    });
    tokio::select! {
        event = own => event,
        accepted = connection.accept_bi() => accepted.map_or(Event::End, |(send, recv)| Event::Request(send, recv)),
        accepted = connection.accept_uni() => accepted.map_or(Event::End, Event::Side),
    }
}

/// The control stream's type and SETTINGS. No dynamic table is announced, so QPACK's own streams are not needed.
fn settings_of(head_bytes: usize) -> Vec<u8> {
    let mut settings = Vec::new();
    // MAX_FIELD_SECTION_SIZE, and ENABLE_CONNECT_PROTOCOL (RFC 9220).
    for (name, value) in [(6, head_bytes as u64), (8, 1)] {
        frame::put_number(name, &mut settings);
        frame::put_number(value, &mut settings);
    }
    let mut out = vec![0];
    frame::put_head(frame::SETTINGS, settings.len(), &mut out);
    out.extend_from_slice(&settings);
    out
}

fn goaway(id: u64) -> Vec<u8> {
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    frame::put_number(id, &mut payload);
    frame::put_head(frame::GOAWAY, payload.len(), &mut out);
    out.extend_from_slice(&payload);
    out
}

/// Follows one of the client's own streams. What goes wrong there ends the connection.
async fn side(shared: Rc<Shared>, recv: RecvStream) {
    if let Err((why, what)) = follow_side(&shared, recv).await {
        shared.connection.close(why, what.as_bytes());
    }
}

type Fatal = (VarInt, &'static str);

async fn follow_side(shared: &Shared, mut recv: RecvStream) -> Result<(), Fatal> {
    const CONTROL: u64 = 0;
    const PUSH: u64 = 1;
    const ENCODER: u64 = 2;
    const DECODER: u64 = 3;
    let mut before = Vec::new();
    let kind = loop {
        if let Some(kind) = frame::number(&mut &before[..]) {
            break kind;
        }
        // One that ends or is reset before it says its type is none.
        let mut byte = [0];
        match recv.read(&mut byte).await {
            Ok(Some(_)) => before.push(byte[0]),
            Ok(None) | Err(_) => return Ok(()),
        }
    };
    let mut sides = shared.sides.get();
    let there = match kind {
        CONTROL => std::mem::replace(&mut sides.control, true),
        ENCODER => std::mem::replace(&mut sides.encoder, true),
        DECODER => std::mem::replace(&mut sides.decoder, true),
        PUSH => true,
        _ => {
            let _ = recv.stop(code::STREAM_CREATION_ERROR);
            return Ok(());
        }
    };
    shared.sides.set(sides);
    if there {
        return Err((code::STREAM_CREATION_ERROR, "a stream of which there is one at most, or none of a client's"));
    }
    if kind == CONTROL {
        return follow_control(recv).await;
    }
    loop {
        match recv.read_chunk(1 << 10, true).await {
            // Without a dynamic table there is nothing to say to it but that it stays so.
            Ok(Some(chunk)) if kind == ENCODER && chunk.bytes.iter().any(|b| *b != 0x20) => {
                return Err((code::ENCODER_STREAM_ERROR, "there is no dynamic table"));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(quinn::ReadError::Reset(_)) => return Err((code::CLOSED_CRITICAL_STREAM, "a QPACK stream ended")),
            Err(_) => return Ok(()),
        }
    }
}

async fn follow_control(recv: RecvStream) -> Result<(), Fatal> {
    const ENDED: Fatal = (code::CLOSED_CRITICAL_STREAM, "the control stream ended");
    let mut frames = Frames::new(recv, Role::Control, CONTROL_FRAME);
    let mut known = false;
    loop {
        match poll_fn(|cx| frames.poll(cx)).await {
            Ok(Piece::Frame(frame::SETTINGS, _)) if known => return Err((code::FRAME_UNEXPECTED, "a second SETTINGS")),
            Ok(Piece::Frame(frame::SETTINGS, payload)) => {
                check_settings(&payload)?;
                known = true;
            }
            Ok(_) if !known => return Err((code::MISSING_SETTINGS, "SETTINGS come first")),
            // There are no pushes, so what is said of them, and of their end, changes nothing.
            Ok(Piece::Frame(..) | Piece::Data(_)) => {}
            Ok(Piece::End) | Err(FrameError::Reset) => return Err(ENDED),
            Err(FrameError::TooLarge) => return Err((code::EXCESSIVE_LOAD, "a frame is too large")),
            Err(FrameError::Fatal(why, what)) => return Err((why, what)),
            Err(FrameError::Lost(_)) => return Ok(()),
        }
    }
}

/// Nothing that a client can set concerns us; what it must not say is an error (RFC 9114 section 7.2.4).
fn check_settings(mut payload: &[u8]) -> Result<(), Fatal> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let (Some(name), Some(_)) = (frame::number(&mut payload), frame::number(&mut payload)) else {
            return Err((code::FRAME_ERROR, "SETTINGS are cut off"));
        };
        // 2 to 5 were HTTP/2's.
        if (2..=5).contains(&name) || seen.len() > 100 || seen.contains(&name) {
            return Err((code::SETTINGS_ERROR, "a setting that must not be, or one twice"));
        }
        seen.push(name);
    }
    Ok(())
}

async fn serve_request(worker: Rc<Worker>, shared: Rc<Shared>, send: SendStream, recv: RecvStream, _one: OneOpen) {
    let delivered = send.stopped();
    let outcome = Rc::new(Cell::new(Outcome::Broken));
    let head_bytes = worker.shared.settings.limits.head_bytes;
    let frames = Frames::new(recv, Role::Request, head_bytes);
    let start = Start { connection: shared.connection.clone(), frames, send, outcome: outcome.clone(), head_bytes };
    Box::pin(answer(&worker, &shared, start)).await;
    match outcome.get() {
        Outcome::Whole => arrived(&worker, delivered).await,
        Outcome::GivenUp if !shared.resets.borrow_mut().spend(Instant::now) && shared.connection.close_reason().is_none() => {
            Counters::add(&worker.counters.h3_refused, 1);
            worker.counters.hit(Limit::Http3Flood, ());
            shared.connection.close(code::EXCESSIVE_LOAD, b"too many requests were given up");
        }
        Outcome::GivenUp | Outcome::Broken => {}
    }
}

/// Waits for the client to confirm an answer, since the connection has to stay until then: not for ever, and less long when the
/// router stops, because it may have vanished.
async fn arrived(worker: &Worker, delivered: impl Future) {
    let (mut delivered, mut waited) = (pin!(delivered), Duration::ZERO);
    while tokio::time::timeout(LOOK, delivered.as_mut()).await.is_err() {
        waited += LOOK;
        let idle = worker.shared.settings.timeouts.idle;
        if waited >= if worker.draining.get() { idle.min(LAST_ANSWERS) } else { idle } {
            return;
        }
    }
}

/// What becomes of a request before the engine has it.
enum Unserved {
    /// An answer says why.
    Refused(Refusal),
    /// The stream is reset.
    Reset(VarInt),
    /// The connection ends.
    Fatal(VarInt, &'static str),
    /// There is nobody to tell.
    Gone,
}

impl From<FrameError> for Unserved {
    fn from(e: FrameError) -> Self {
        match e {
            FrameError::Reset | FrameError::Lost(_) => Self::Gone,
            FrameError::TooLarge => Self::Refused(Refusal::HeadTooLarge),
            FrameError::Fatal(why, what) => Self::Fatal(why, what),
        }
    }
}

async fn answer(worker: &Worker, shared: &Shared, mut start: Start) {
    let begun = match tokio::time::timeout(worker.shared.settings.timeouts.head, begin(&mut start)).await {
        Ok(begun) => begun,
        Err(_) => Err(Unserved::Refused(Refusal::HeadTimeout)),
    };
    match begun {
        Ok((carried, length, ended)) => {
            let Carried { head, inbound, head_only, connect } = carried;
            let stream = Stream::new(start, inbound, head_only, connect, length, ended);
            conn::serve_one(worker, stream, head, &shared.meeting).await;
        }
        Err(Unserved::Refused(why)) => {
            let stream = Stream::new(start, Inbound::Raw, false, false, None, false);
            conn::refuse_one(worker, stream, why, &shared.meeting).await;
        }
        Err(Unserved::Reset(why)) => {
            Counters::add(&worker.counters.refused, 1);
            let _ = start.send.reset(why);
            start.frames.stop(why);
        }
        Err(Unserved::Fatal(why, what)) => {
            Counters::add(&worker.counters.refused, 1);
            start.connection.close(why, what.as_bytes());
        }
        Err(Unserved::Gone) => start.outcome.set(Outcome::GivenUp),
    }
}

/// Reads the head: as the engine is to read it, with the length of the content where that was said, and whether there is none.
async fn begin(start: &mut Start) -> Result<(Carried, Option<u64>, bool), Unserved> {
    const MALFORMED: Unserved = Unserved::Reset(code::MESSAGE_ERROR);
    let block = match poll_fn(|cx| start.frames.poll(cx)).await? {
        Piece::Frame(_, block) => block,
        Piece::Data(_) => return Err(Unserved::Fatal(code::FRAME_UNEXPECTED, "content before a head")),
        Piece::End => return Err(Unserved::Reset(code::REQUEST_INCOMPLETE)),
    };
    let fields = qpack::decode(&block, start.head_bytes).map_err(|e| match e {
        qpack::Bad::Malformed => Unserved::Fatal(code::DECOMPRESSION_FAILED, "a head cannot be read"),
        qpack::Bad::TooLarge => Unserved::Refused(Refusal::HeadTooLarge),
    })?;
    let head = head::Head::new(fields).ok_or(MALFORMED)?;
    let length = head.length();
    let ended = head.method != http::Method::CONNECT && ends(start, &head, length).await?;
    if ended && length.is_some_and(|n| n > 0) {
        return Err(MALFORMED);
    }
    let asked = Asked {
        method: &head.method,
        authority: head.authority.as_deref(),
        path: &head.path,
        protocol: head.protocol.as_deref(),
        headers: &head.headers,
        ended,
    };
    let carried = Carried::new(&asked, rand::random()).ok_or(MALFORMED)?;
    Ok((carried, length, ended))
}

/// Whether the request ends with its head. Some clients say so a moment later; those whose request hardly ever has content are
/// given it, since an instance would be told of content otherwise.
async fn ends(start: &mut Start, head: &head::Head, length: Option<u64>) -> Result<bool, Unserved> {
    let patience = if head.method.is_safe() && length.is_none() { END_MAY_FOLLOW } else { Duration::ZERO };
    match tokio::time::timeout(patience, poll_fn(|cx| start.frames.poll_ended(cx))).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Ok(false),
    }
}
