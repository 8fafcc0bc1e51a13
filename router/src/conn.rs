//! A client's connection over HTTP/1.1: request after request until one side has enough. Other front ends (HTTP/2) will
//! stand beside this file and use the same exchange.

use crate::{
    Code,
    clients::ClientPlace,
    codes::{Prefer, Refusal},
    exchange,
    h1::{
        request::{self, Arrival, Framing},
        scan::{Scan, Scanner},
    },
    h2,
    io::{Ahead, Guard, Io},
    l4,
    metrics::{Counters, Limit},
    proxy_protocol::{self, Origin, Tlv},
    tls,
    worker::{Accepted, Worker},
};
use flex_model::ProxyVersion;
use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// After an answer that the client may not have asked for yet (it is still sending), closing at once would destroy the
/// answer on its way; so what still comes is thrown away for so long, and up to so much.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// What a client may send ahead of the answer before it is no longer read.
const AHEAD: usize = 64 << 10;

/// Which rules hold for it depends on how its path is read.
const UNCLEAR: Refusal =
    Refusal::Bad("The path can be read in several ways, and different rules hold for them: write it plainly.");

pub(crate) struct Conn<'a, S> {
    pub(crate) worker: &'a Worker,
    pub(crate) io: Io<S>,
    /// Read and not used yet.
    pub(crate) buf: Vec<u8>,
    pub(crate) guard: Rc<Guard>,
    meeting: Kept<'a>,
    /// Nothing was read of it yet, so that it may turn out to be HTTP/2.
    fresh: bool,
}

/// All requests of an HTTP/2 or HTTP/3 connection share one meeting.
enum Kept<'a> {
    Own(Meeting),
    Shared(&'a Meeting),
}

impl std::ops::Deref for Kept<'_> {
    type Target = Meeting;

    fn deref(&self) -> &Meeting {
        match self {
            Self::Own(meeting) => meeting,
            Self::Shared(meeting) => meeting,
        }
    }
}

/// How a connection's HTTP/1.1 ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// It never was: the client speaks HTTP/2.
    Http2,
}

/// How the wait for a head ended.
enum Next {
    Head(usize),
    Refuse(Refusal),
    End,
}

/// What becomes of the connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Reuse,
    Close,
    /// Close, though the client may still be sending.
    Linger,
}

/// What is known of a client before its first request.
pub(crate) struct Meeting {
    origin: Origin,
    trusted: bool,
    scheme: &'static str,
    /// The access line's end.
    protocol: &'static str,
    /// What `Via` says of a connection that carries requests of HTTP/2 or HTTP/3.
    via: Option<&'static [u8]>,
    /// The name that the TLS connection was made for.
    sni: Option<Box<str>>,
    /// The client may hear that there is HTTP/3.
    tells_http3: bool,
}

impl Meeting {
    fn new(worker: &Worker, origin: Origin, scheme: &'static str, protocol: &'static str) -> Self {
        let trusted = worker.shared.settings.trusted_proxies.iter().any(|range| range.contains(origin.source.ip()));
        Self { origin, trusted, scheme, protocol, via: None, sni: None, tells_http3: false }
    }

    /// Of a QUIC connection. `name`: what it was made for.
    pub(crate) fn quic(worker: &Worker, peer: SocketAddr, local: SocketAddr, name: Option<String>) -> Self {
        let origin = Origin::direct(peer, local);
        let mut meeting = Self::new(worker, origin, "https", "https tls_version=tls1.3 http_version=3");
        meeting.via = Some(b"3.0 flex-router");
        meeting.secure(name.map(String::into_boxed_str), "TLSv1.3");
        meeting
    }

    fn secure(&mut self, name: Option<Box<str>>, version: &str) {
        self.sni = name;
        if let Some(sni) = &self.sni {
            self.origin.add(proxy_protocol::AUTHORITY, sni.as_bytes());
        }
        if self.origin.tlv(proxy_protocol::SSL).is_none() {
            self.origin.tlvs.push(Tlv::ssl(version));
        }
    }
}

/// Serves one plain connection to its end. What is not needed while it waits for a request is not in this task's own state,
/// which there are as many of as connections: its size is held by a test.
pub(crate) async fn plain(worker: Rc<Worker>, accepted: Box<Accepted>) {
    let Some(_admitted) = worker.admit() else { return tell_full(&accepted.stream, Refusal::ConnectionLimit) };
    let watched = worker.watch();
    let Some((stream, origin)) = met(&worker, accepted).await else { return };
    let Some(_client) = worker.client(origin.source.ip()) else { return tell_full(&stream, Refusal::ClientConnections) };
    let mut conn = Conn::new(&worker, stream, Meeting::new(&worker, origin, "http", "http"), &watched.guard);
    conn.fresh = true;
    if conn.run().await == End::Http2 {
        over_http2(&worker, conn).await;
    }
}

/// Who a connection comes from; `None`: it is refused, or went away.
async fn met(worker: &Worker, accepted: Box<Accepted>) -> Option<(TcpStream, Origin)> {
    if worker.shared.settings.proxy_protocol_http.is_empty() {
        let Accepted { stream, peer, local } = *accepted;
        return Some((stream, Origin::direct(peer, local)));
    }
    Box::pin(async move {
        let Accepted { mut stream, peer, local } = *accepted;
        let origin = worker.origin(&mut stream, peer, local).await?;
        Some((stream, origin))
    })
    .await
}

/// Goes on with a connection whose client turned out to speak HTTP/2.
fn over_http2<'a>(worker: &'a Rc<Worker>, conn: Conn<'a, TcpStream>) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(async move {
        let Conn { io, buf, guard, meeting: Kept::Own(mut meeting), .. } = conn else { return };
        (meeting.protocol, meeting.via) = ("http http_version=2", Some(h2::VIA));
        h2::serve(worker, io.into_inner(), buf, &guard, meeting).await;
    })
}

/// Serves one TLS connection to its end.
pub(crate) async fn secure(worker: Rc<Worker>, accepted: Box<Accepted>) {
    let Some(_admitted) = worker.admit() else { return };
    let watched = worker.watch();
    let Some((stream, meeting, client)) = Box::pin(handshake(&worker, accepted, &watched.guard)).await else { return };
    let _client = client;
    if meeting.via.is_some() {
        return Box::pin(h2::serve(&worker, stream, Vec::new(), &watched.guard, meeting)).await;
    }
    Conn::new(&worker, stream, meeting, &watched.guard).run().await;
}

/// A TLS connection past its handshake, what is known of the client, and its place among those of its address.
type Shaken<'a> = (Box<TlsStream<Ahead>>, Meeting, Option<ClientPlace<'a>>);

/// From the connection to the end of the handshake. `None`: it is over.
async fn handshake<'a>(worker: &'a Rc<Worker>, accepted: Box<Accepted>, guard: &Guard) -> Option<Shaken<'a>> {
    let port = accepted.local.port();
    let (stream, origin) = met(worker, accepted).await?;
    // Words in the clear are no answer to a TLS client.
    let client = worker.client(origin.source.ip())?;
    guard.arm(worker.shared.settings.timeouts.handshake);
    let mut ahead = Vec::new();
    if !worker.shared.routes.l4.load().names.is_empty() {
        let Some(name) = tls::asked_for(guard, &stream, &mut ahead).await else {
            worker.handshake_failed(guard);
            return None;
        };
        if let Some(name) = name.filter(|n| worker.shared.routes.passes(n)) {
            // It is counted anew there.
            drop(client);
            if let Ok(stream) = stream.into_std() {
                let _ = worker.shared.pass.send(l4::Passed { stream, origin, port, name, ahead });
            }
            return None;
        }
    }
    let mut meeting = Meeting::new(worker, origin, "https", "");
    let Some(stream) = tls::accept(worker, guard, Ahead::new(ahead, stream)).await else {
        worker.handshake_failed(guard);
        return None;
    };
    let session = stream.get_ref().1;
    let newest = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
    let two = match session.alpn_protocol() {
        Some(tls::ACME_PROTOCOL) => return None,
        alpn => alpn == Some(b"h2"),
    };
    meeting.protocol = match (newest, two) {
        (true, false) => "https tls_version=tls1.3",
        (true, true) => "https tls_version=tls1.3 http_version=2",
        (false, false) => "https tls_version=tls1.2",
        (false, true) => "https tls_version=tls1.2 http_version=2",
    };
    meeting.secure(session.server_name().map(Box::from), if newest { "TLSv1.3" } else { "TLSv1.2" });
    meeting.tells_http3 = worker.shared.http3.is_some();
    meeting.via = two.then_some(h2::VIA);
    Some((Box::new(stream), meeting, client))
}

/// Refuses one request of an HTTP/3 connection whose head did not come as it should.
pub(crate) async fn refuse_one<S>(worker: &Worker, stream: S, why: Refusal, meeting: &Meeting)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let watched = worker.watch();
    let (guard, io) = (watched.guard.clone(), Io::new(stream));
    let mut conn = Conn { worker, io, buf: Vec::new(), guard, meeting: Kept::Shared(meeting), fresh: false };
    conn.guard.set_idle(false);
    conn.refuse(why, Prefer::Html, false).await;
}

/// Serves one request of an HTTP/2 or HTTP/3 connection; `head` was read of it, the rest comes from `stream`.
pub(crate) async fn serve_one<S>(worker: &Worker, stream: S, head: Vec<u8>, meeting: &Meeting)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let watched = worker.watch();
    let (guard, io) = (watched.guard.clone(), Io::new(stream));
    let mut conn = Conn { worker, io, buf: head, guard, meeting: Kept::Shared(meeting), fresh: false };
    match conn.head().await {
        Next::Head(n) => {
            conn.request(n).await;
        }
        Next::Refuse(why) => {
            conn.refuse(why, Prefer::Html, false).await;
        }
        Next::End => {}
    }
}

/// Tells a client, if it listens, that there is no room. One write that cannot block.
fn tell_full(stream: &TcpStream, why: Refusal) {
    let _ = stream.try_write(&why.page().render(Prefer::Html, "", false, true));
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Conn<'a, S> {
    fn new(worker: &'a Worker, stream: S, meeting: Meeting, guard: &Rc<Guard>) -> Self {
        let (io, guard, meeting) = (Io::new(stream), guard.clone(), Kept::Own(meeting));
        Conn { worker, io, buf: Vec::new(), guard, meeting, fresh: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<'_, S> {
    async fn run(&mut self) -> End {
        loop {
            let after = match self.head().await {
                Next::Head(n) if self.fresh && self.buf[..n] == *h2::PRIOR_KNOWLEDGE => return End::Http2,
                // Boxed, so that an idle connection does not hold the room that a request needs.
                Next::Head(n) => Box::pin(self.request(n)).await,
                Next::Refuse(why) => Box::pin(self.refuse(why, Prefer::Html, false)).await,
                Next::End => return End::Closed,
            };
            self.fresh = false;
            match after {
                After::Reuse => {}
                After::Close => {
                    let _ = poll_fn(|cx| self.io.poll_shutdown(cx)).await;
                    return End::Closed;
                }
                After::Linger => {
                    Box::pin(self.linger()).await;
                    return End::Closed;
                }
            }
        }
    }

    /// The line of an answer that tells of HTTP/3, where there is something to tell.
    pub(crate) fn alt_svc(&self) -> Option<&[u8]> {
        if !self.meeting.tells_http3 {
            return None;
        }
        self.worker.shared.http3.as_ref()?.alt_svc()
    }

    /// Adds that line to an answer of the router's own.
    pub(crate) fn told_http3(&self, mut page: Vec<u8>) -> Vec<u8> {
        if let Some(line) = self.alt_svc()
            && let Some(at) = page.windows(2).position(|w| w == b"\r\n")
        {
            page.splice(at + 2..at + 2, line.iter().copied());
        }
        page
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.meeting.scheme
    }

    /// What tells an instance who the client is.
    pub(crate) fn proxy_header(&self, version: ProxyVersion, request_id: &str) -> Vec<u8> {
        let mut origin = self.meeting.origin.clone();
        origin.add(proxy_protocol::UNIQUE_ID, request_id);
        origin.header(version)
    }

    /// Waits for a whole head at the front of the buffer.
    async fn head(&mut self) -> Next {
        let Self { worker, io, buf, guard, .. } = self;
        let settings = &worker.shared.settings;
        let (mut scanner, mut begun) = (Scanner::default(), false);
        guard.arm(settings.timeouts.keep_alive);
        poll_fn(|cx| {
            loop {
                if !begun {
                    // RFC 9112 section 2.2: empty lines before a request are skipped.
                    while buf.starts_with(b"\r\n") {
                        buf.drain(..2);
                    }
                    if !buf.is_empty() {
                        begun = true;
                        guard.set_idle(false);
                        guard.arm(settings.timeouts.head);
                    } else {
                        guard.set_idle(true);
                    }
                }
                if begun {
                    // A TLS handshake or a line noise is told at once, not after the time for heads.
                    if !(buf[0].is_ascii_alphabetic() || buf == b"\r") {
                        return Poll::Ready(Next::Refuse(Refusal::Bad("This is not an HTTP request.")));
                    }
                    match scanner.advance(buf) {
                        Scan::Complete(n) if n <= settings.limits.head_bytes => return Poll::Ready(Next::Head(n)),
                        Scan::Partial if buf.len() < settings.limits.head_bytes => {}
                        Scan::Complete(_) | Scan::Partial => return Poll::Ready(Next::Refuse(Refusal::HeadTooLarge)),
                        Scan::Bad(_) => {
                            return Poll::Ready(Next::Refuse(Refusal::Bad("The request's lines do not end in CRLF.")));
                        }
                    }
                }
                let expired = guard.poll_expired(cx);
                // Read before giving up on an idle connection: a request may have come in this very moment.
                let read = io.poll_read(cx, usize::MAX, |_, bytes| {
                    buf.extend_from_slice(bytes);
                    bytes.len()
                });
                match read {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                    Poll::Ready(Ok(_)) if !begun || !expired => {}
                    _ if expired && begun => return Poll::Ready(Next::Refuse(Refusal::HeadTimeout)),
                    _ if expired => {
                        if guard.is_expired() {
                            worker.counters.hit(Limit::KeepAliveTime, ());
                        }
                        return Poll::Ready(Next::End);
                    }
                    _ => return Poll::Pending,
                }
            }
        })
        .await
    }

    async fn request(&mut self, n: usize) -> After {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        let arrival = Arrival {
            peer: self.meeting.origin.source.ip(),
            trusted: self.meeting.trusted,
            port: self.meeting.origin.destination.port(),
            scheme: self.meeting.scheme,
            via: self.meeting.via,
            at_ms,
            random: rand::random(),
        };
        let parsed = request::parse(&self.buf[..n], self.worker.shared.settings.limits.headers, &arrival);
        self.consume(n);
        let request = match parsed {
            Ok(request) => request,
            Err(why) => return self.refuse(why, Prefer::Html, false).await,
        };
        if let Some(sni) = &self.meeting.sni
            && **sni != *request.host
            && !self.worker.shared.tls.store.same_certificate(sni, &request.host)
        {
            return match self.worker.find(&request) {
                Some(app) => exchange::run(self, request, app, self.meeting.protocol, Some(Code::MisdirectedRequest)).await,
                None => self.refuse(Refusal::Misdirected, request.prefer, request.head_only).await,
            };
        }
        if let Some(token) = request.path().strip_prefix("/.well-known/acme-challenge/")
            && let Some(proof) = self.worker.shared.tls.store.proof(&request.host, token)
        {
            return self.prove(&proof).await;
        }
        let app = self.worker.find(&request);
        match app {
            Some(app) => exchange::run(self, request, app, self.meeting.protocol, None).await,
            None if self.worker.shared.routes.is_unclear(&request.host, request.path()) => {
                self.refuse(UNCLEAR, request.prefer, request.head_only).await
            }
            None => {
                let keep =
                    request.keep_alive && request.framing == Framing::None && !request.http10 && !self.worker.draining.get();
                let page = Refusal::NoSuchApp.page().render(request.prefer, &request.request_id, request.head_only, !keep);
                Counters::add(&self.worker.counters.refused, 1);
                let sent = self.send(&self.told_http3(page)).await;
                if !sent || !keep { After::Linger } else { After::Reuse }
            }
        }
    }

    /// Answers a certificate authority, which asks once.
    async fn prove(&mut self, proof: &str) -> After {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\nContent-Length: ";
        self.send(format!("{head}{}\r\n\r\n{proof}", proof.len()).as_bytes()).await;
        After::Linger
    }

    async fn refuse(&mut self, why: Refusal, prefer: Prefer, head_only: bool) -> After {
        Counters::add(&self.worker.counters.refused, 1);
        match why {
            Refusal::HeadTooLarge => self.worker.counters.hit(Limit::HeadBytes, ()),
            Refusal::TooManyHeaders => self.worker.counters.hit(Limit::Headers, ()),
            Refusal::HeadTimeout => self.worker.counters.hit(Limit::HeadTime, ()),
            _ => {}
        }
        self.send(&self.told_http3(why.page().render(prefer, "", head_only, true))).await;
        After::Linger
    }

    /// Drops bytes off the front of the buffer; an empty one gives its memory back.
    pub(crate) fn consume(&mut self, n: usize) {
        if n == self.buf.len() {
            self.buf = Vec::new();
        } else {
            self.buf.drain(..n);
        }
    }

    /// Sends all of `bytes`, within the idle time. False if the client did not take them.
    pub(crate) async fn send(&self, bytes: &[u8]) -> bool {
        self.guard.arm(self.worker.shared.settings.timeouts.idle);
        let mut at = 0;
        poll_fn(|cx| {
            while at < bytes.len() {
                if self.guard.poll_expired(cx) {
                    return Poll::Ready(false);
                }
                match ready!(self.io.poll_write(cx, &bytes[at..])) {
                    Ok(n) => at += n,
                    Err(_) => return Poll::Ready(false),
                }
            }
            if self.guard.poll_expired(cx) {
                return Poll::Ready(false);
            }
            Poll::Ready(ready!(self.io.poll_flush(cx)).is_ok())
        })
        .await
    }

    /// Whether the client has gone. What it sends ahead is kept, up to a limit, beyond which it is not looked at.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        while self.buf.len() < AHEAD {
            let buf = &mut self.buf;
            let read = self.io.poll_read(cx, AHEAD, |_, bytes| {
                buf.extend_from_slice(bytes);
                bytes.len()
            });
            match read {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
            }
        }
        false
    }

    async fn linger(&mut self) {
        self.guard.set_idle(false);
        if poll_fn(|cx| self.io.poll_shutdown(cx)).await.is_err() {
            return;
        }
        self.guard.arm(LINGER);
        let mut left = LINGER_BYTES;
        poll_fn(|cx| {
            while left > 0 && !self.guard.poll_expired(cx) {
                match ready!(self.io.poll_read(cx, usize::MAX, |_, bytes| bytes.len())) {
                    Ok(n) if n > 0 => left = left.saturating_sub(n),
                    _ => break,
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F: Future>(_: impl FnOnce(Rc<Worker>, Box<Accepted>) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    /// An idle connection is this task, its socket's registration and its guard, and nothing else: buffers are given back. So
    /// what is added to the state between two requests is added to each of ten thousand connections.
    #[test]
    fn an_idle_connection_is_small() {
        let (plain, secure) = (size(plain), size(secure));
        assert!(plain <= 640, "{plain} bytes");
        assert!(secure <= 640, "{secure} bytes");
    }
}
