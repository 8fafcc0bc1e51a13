//! One request of an app, from the choice of an instance to the access line. It holds the request while the app starts,
//! sends it again where that is safe, moves both contents at once, and names every failure by its code.

use crate::{
    Code,
    access::Finished,
    conn::{After, Conn},
    h1::{
        request::{Framing, Request},
        response::{self, Response},
    },
    io::Io,
    metrics::{Counters, Limit},
    policy::{Extra, Gate, Verdict},
    pump::{Pump, PumpError, Waits},
    sending::{Answer, Broken, Sending},
    shared::Place,
    stats::Counted,
    table::{App, Lease},
    upstream::{NoUpstream, Upstream, Wire},
};
use flex_model::{AppId, AppState, InstanceProtocol, LineForm};
use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Interim answers (100, 103) of one request; more would be an attack on the client.
const MAX_INTERIM: usize = 16;
/// How often a request is sent that instances did not process.
const MAX_UNPROCESSED: usize = 3;

/// What is known of a request as it goes along, for the access line.
struct Exchange<'a, 'w, S> {
    conn: &'a mut Conn<'w, S>,
    request: Request,
    dyno: String,
    connect: Option<Duration>,
    /// When the connection to the instance stood.
    sent_at: Option<Instant>,
    /// Status and bytes of the answer, once its head was sent to the client.
    status: Option<u16>,
    bytes: u64,
    /// When a held request has waited long enough, in the worker's milliseconds.
    hold_until: Option<u64>,
    /// The cookie that will bring the client back to the same instance.
    set_cookie: Option<String>,
    /// How often an instance said that it did not process it.
    unprocessed: usize,
    counted: Counted,
    app: AppId,
    /// The access line's end.
    protocol: &'static str,
    /// The route's policy, if it says anything, and what it adds to the answer.
    gate: Option<Arc<Gate>>,
    extra: Extra,
    lines: LineForm,
}

/// How one attempt with one instance ended.
enum Attempt {
    Done(After),
    /// The kept connection had been closed; nothing was done with the request.
    Again,
    Failed(Code),
}

/// The router ended before the request did: the access line tells that, too.
impl<S> Drop for Exchange<'_, '_, S> {
    fn drop(&mut self) {
        if self.counted.is_open() {
            self.log(Some(if std::thread::panicking() { Code::PlatformError } else { Code::ForcedClose }));
        }
    }
}

/// Serves `request` and tells what becomes of the client's connection. `refused`: it is not to be served.
pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    conn: &mut Conn<'_, S>,
    request: Request,
    app: Arc<App>,
    protocol: &'static str,
    refused: Option<Code>,
) -> After {
    let counters = conn.worker.counters.clone();
    Counters::add(&counters.requests, 1);
    let lines = app.lines;
    let counted = Counted::begin(&app, &conn.worker.shared.stats, &counters);
    let mut exchange = Exchange {
        conn,
        request,
        dyno: String::new(),
        connect: None,
        sent_at: None,
        status: None,
        bytes: 0,
        hold_until: None,
        set_cookie: None,
        unprocessed: 0,
        counted,
        app: app.id,
        protocol,
        gate: None,
        extra: Extra::default(),
        lines,
    };
    let verdict = match refused {
        Some(code) => Verdict::Refuse(code),
        None => match app.gate.clone() {
            None => Verdict::Pass,
            Some(gate) => exchange.ask(gate).await,
        },
    };
    // An app that answers slowly must not take every connection from the others.
    let (of_app, most) = (app.clone(), exchange.conn.worker.shared.settings.limits.requests_per_app);
    let place = Place::take(&of_app.waiting.open, most);
    let answered = match verdict {
        Verdict::Pass if place.is_some() => exchange.answer(app).await,
        Verdict::Pass => Err(counters.hit(Limit::RequestsPerApp, Code::TooManyConnections)),
        Verdict::Redirect { status, location } => Ok(exchange.redirect(status, &location).await),
        Verdict::Refuse(code) => Err(code),
    };
    match answered {
        Ok(after) => {
            exchange.log(None);
            after
        }
        Err(code) => {
            let service = exchange.service();
            let after = exchange.fail(code).await;
            exchange.log_after(Some(code), service);
            after
        }
    }
}

/// Why a request cannot be served, nor by waiting.
pub(crate) fn unavailable(app: &App) -> Option<Code> {
    match app.state {
        AppState::Maintenance => Some(Code::Maintenance),
        _ if !app.backends.is_empty() => None,
        AppState::Crashed => Some(Code::AppCrashed),
        AppState::NoWeb => Some(Code::NoWebProcesses),
        AppState::Blank => Some(Code::BlankApp),
        AppState::Starting | AppState::Serving => None,
    }
}

impl<S> Exchange<'_, '_, S> {
    /// How long an instance has had it.
    fn service(&self) -> Option<Duration> {
        self.sent_at.map(|at| at.elapsed())
    }

    fn log(&mut self, code: Option<Code>) {
        self.log_after(code, self.service());
    }

    fn log_after(&mut self, code: Option<Code>, service: Option<Duration>) {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let status = code.map_or_else(|| self.status.unwrap_or(0), Code::status);
        let end = Finished {
            code,
            request: &self.request.log,
            dyno: &self.dyno,
            connect_ms: self.connect.map(ms),
            service_ms: service.map(ms),
            status,
            bytes: self.bytes,
            protocol: self.protocol,
        };
        let shared = &self.conn.worker.shared;
        let counters = &self.conn.worker.counters;
        Counters::add(&counters.bytes_out, self.bytes);
        counters.ended(status, code);
        self.counted.end(status, code, service, self.bytes);
        shared.tell(self.app, self.lines, code.is_some() || status >= 500, || end.line());
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<'_, '_, S> {
    /// Sends the code's page where the client can still make sense of it.
    async fn fail(&mut self, code: Code) -> After {
        if self.status.is_some() {
            // In the middle of an answer there is no way to tell but to break off.
            return After::Close;
        }
        if code == Code::ClientRequestInterrupted {
            return After::Close;
        }
        let (request, keep) = (&self.request, self.may_keep());
        let page = match &self.gate {
            None => code.page().render(request.prefer, &request.request_id, request.head_only, !keep),
            Some(gate) => gate.refusal(code, request, !keep, &self.extra),
        };
        self.reply(page, keep).await
    }

    /// Whether the connection can go on after an answer that the router makes.
    fn may_keep(&self) -> bool {
        let request = &self.request;
        let whole = request.framing == Framing::None || self.sent_at.is_none() && request.framing == Framing::Length(0);
        whole && request.keep_alive && !request.http10 && !request.upgrade && !self.conn.worker.draining.get()
    }

    async fn reply(&mut self, page: Vec<u8>, keep: bool) -> After {
        let body = page.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| page.len() - at - 4);
        self.bytes = body as u64;
        let page = self.conn.told_http3(page);
        if self.conn.send(&page).await && keep { After::Reuse } else { After::Linger }
    }

    async fn ask(&mut self, gate: Arc<Gate>) -> Verdict {
        let (worker, request) = (self.conn.worker, &self.request);
        let shared = &worker.shared;
        let (mut verdict, mut extra) = gate.judge(request, &shared.settings, shared.https_port, &shared.buckets, worker.now_ms());
        if let Some(check) = extra.check.take()
            && !Box::pin(check.verify()).await
        {
            verdict = gate.ask_for_password(&mut extra);
        }
        (self.gate, self.extra) = (Some(gate), extra);
        verdict
    }

    async fn redirect(&mut self, status: u16, location: &str) -> After {
        let Some(gate) = self.gate.clone() else { return After::Close };
        let keep = self.may_keep();
        let page = gate.redirect(status, location, &self.request, !keep, &self.extra);
        self.status = Some(status);
        self.reply(page, keep).await
    }

    /// No byte either way for so long, and it ends.
    fn idle(&self) -> Duration {
        self.gate.as_ref().and_then(|g| g.idle).unwrap_or(self.conn.worker.shared.settings.timeouts.idle)
    }

    /// So long may an instance take to begin its answer.
    fn first_byte(&self) -> Duration {
        self.gate.as_ref().and_then(|g| g.timeout).unwrap_or(self.conn.worker.shared.settings.timeouts.first_byte)
    }

    /// Whether the client's content keeps to the route's limits.
    fn check_content(&mut self, sending: &mut Sending) -> Result<(), Broken> {
        let worker = self.conn.worker;
        let (most, least) = self.gate.as_ref().map_or((None, None), |g| (g.max_body, g.min_body_rate));
        let least = least.unwrap_or(worker.shared.settings.limits.min_body_rate);
        let moved = sending.moved();
        if most.is_some_and(|most| moved > most) {
            return Err(Broken::Refused(Code::BodyTooLarge));
        }
        if least == 0 || sending.is_read() {
            return Ok(());
        }
        let waiting = sending.waits() == Some(Waits::Source);
        if sending.pace.is_too_slow(least, moved, waiting, worker.now_ms()) {
            return Err(Broken::Refused(worker.counters.hit(Limit::MinBodyRate, Code::BodyTooSlow)));
        }
        Ok(())
    }

    async fn answer(&mut self, app: Arc<App>) -> Result<After, Code> {
        let (mut app, mut fresh) = (app, false);
        loop {
            if let Some(code) = unavailable(&app) {
                return Err(code);
            }
            if app.backends.is_empty() {
                app = self.hold(&app).await?;
                continue;
            }
            let begun = Instant::now();
            // A request that may not be sent twice had better not meet a closed connection.
            let wanted = self.conn.worker.wanted(&app.policy, app.id, &self.request);
            // The PROXY header tells of one client, so the connection is that client's alone.
            let alone = app.policy.proxy_protocol.is_some();
            // Who switches protocols does so from HTTP/1.1.
            let connected = if app.policy.protocol == InstanceProtocol::H2c && !self.request.upgrade {
                let greeting = app.policy.proxy_protocol.map(|v| self.conn.proxy_header(v, &self.request.request_id));
                Box::pin(self.conn.worker.connect_h2(&app, wanted, fresh, greeting)).await
            } else {
                self.conn.worker.connect(&app, wanted, fresh || alone, !self.request.idempotent).await
            };
            let upstream = match connected {
                Ok(upstream) => upstream,
                Err(NoUpstream::Stale) => {
                    app = self.look_up()?;
                    continue;
                }
                Err(NoUpstream::Full) => {
                    app = self.queue(&app).await?;
                    continue;
                }
                Err(NoUpstream::Failed(code)) => {
                    self.connect = Some(begun.elapsed());
                    return Err(code);
                }
            };
            let now = Instant::now();
            (self.connect, self.sent_at) = (Some(now - begun), Some(now));
            self.dyno.clone_from(&upstream.lease.backend.name);
            self.set_cookie = self.conn.worker.cookie(&app, wanted, &upstream.lease.backend, self.conn.scheme());
            match self.attempt(upstream, &app).await {
                Attempt::Done(after) => return Ok(after),
                Attempt::Failed(code) => return Err(code),
                Attempt::Again => {
                    Counters::add(&self.conn.worker.counters.retries, 1);
                    fresh = true;
                }
            }
        }
    }

    /// The app as the table has it now. It may have been deleted a moment ago.
    fn look_up(&self) -> Result<Arc<App>, Code> {
        self.conn.worker.find(&self.request).ok_or(Code::NoWebProcesses)
    }

    /// Waits for the next table while the app has no instance yet.
    async fn hold(&mut self, app: &App) -> Result<Arc<App>, Code> {
        let worker = self.conn.worker;
        let limits = &worker.shared.settings.limits;
        let full = |limit| worker.counters.hit(limit, Code::BacklogTooDeep);
        let _place = Place::take(&worker.shared.held, limits.held).ok_or_else(|| full(Limit::Held))?;
        let _of_app = Place::take(&app.waiting.held, limits.held_per_app).ok_or_else(|| full(Limit::HeldPerApp))?;
        let _waiting = self.counted.wait();
        let now = worker.now_ms();
        let until = self.hold_until();
        self.conn.guard.arm(Duration::from_millis(until.saturating_sub(now)));
        let mut changes = worker.shared.changes.subscribe();
        // Subscribed first, looked up second: a table that came in between is seen.
        let fresh = self.look_up()?;
        if !fresh.backends.is_empty() || !matches!(fresh.state, AppState::Starting | AppState::Serving) {
            return Ok(fresh);
        }
        {
            let mut changed = pin!(changes.changed());
            poll_fn(|cx| {
                if self.conn.guard.poll_expired(cx) {
                    return Poll::Ready(Err(Code::AppBootTimeout));
                }
                if self.conn.poll_gone(cx) {
                    return Poll::Ready(Err(Code::ClientRequestInterrupted));
                }
                changed.as_mut().poll(cx).map(|_| Ok(()))
            })
            .await?;
        }
        self.look_up()
    }

    /// Waits for a place on an instance, when every one has its most requests.
    async fn queue(&mut self, app: &App) -> Result<Arc<App>, Code> {
        let worker = self.conn.worker;
        let most = app.policy.queue.map_or(worker.shared.settings.limits.queue_per_app, |n| n as usize);
        let full = || worker.counters.hit(Limit::QueuePerApp, Code::BacklogTooDeep);
        let _place = Place::take(&app.waiting.queued, most).ok_or_else(full)?;
        let _waiting = self.counted.wait();
        if let Some(most) = self.gate.as_ref().and_then(|g| g.queue) {
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            self.hold_until.get_or_insert(worker.now_ms().saturating_add(most));
        }
        let until = self.hold_until();
        let ms = Duration::from_millis(until.saturating_sub(worker.now_ms()));
        self.conn.guard.arm(ms);
        let mut changes = worker.shared.changes.subscribe();
        let (mut freed, mut changed) = (pin!(app.freed.notified()), pin!(changes.changed()));
        // Listening first, looking second: a place that became free in between is seen.
        freed.as_mut().enable();
        if !app.has_room() {
            poll_fn(|cx| {
                if self.conn.guard.poll_expired(cx) {
                    return Poll::Ready(Err(Code::RequestTimeout));
                }
                if self.conn.poll_gone(cx) {
                    return Poll::Ready(Err(Code::ClientRequestInterrupted));
                }
                if freed.as_mut().poll(cx).is_ready() || changed.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending
            })
            .await?;
        }
        self.look_up()
    }

    /// When this request has waited long enough, whatever for.
    fn hold_until(&mut self) -> u64 {
        let worker = self.conn.worker;
        let whole = u64::try_from(worker.shared.settings.timeouts.hold.as_millis()).unwrap_or(u64::MAX);
        *self.hold_until.get_or_insert(worker.now_ms().saturating_add(whole))
    }

    async fn attempt(&mut self, upstream: Upstream, app: &App) -> Attempt {
        let Upstream { wire, lease, reused } = upstream;
        let alone = app.policy.proxy_protocol;
        match wire {
            Wire::One(io) => {
                let greeting = alone.map_or_else(Vec::new, |v| self.conn.proxy_header(v, &self.request.request_id));
                let (attempt, keep) = self.attempt_on(&io, (app, &lease), greeting, reused, false).await;
                if keep && alone.is_none() {
                    let (worker, limits) = (self.conn.worker, &self.conn.worker.shared.settings.limits);
                    worker.pool.borrow_mut().put(&lease.backend, io, worker.now_ms(), limits.idle_per_instance);
                }
                attempt
            }
            // Boxed, so that requests over HTTP/1.1 do not hold the room for one.
            Wire::Two(io) => {
                let (attempt, keep) = Box::pin(self.attempt_on(&io, (app, &lease), Vec::new(), reused, true)).await;
                match attempt {
                    Attempt::Done(_) if keep => io.into_inner().finish(),
                    Attempt::Failed(Code::RequestTimeout) => io.into_inner().late(),
                    _ => {}
                }
                attempt
            }
        }
    }

    /// One attempt on a connection `to` an instance, and whether that may be kept. `record`: keep content that can be sent again.
    async fn attempt_on<U>(
        &mut self,
        io: &Io<U>,
        to: (&App, &Lease),
        greeting: Vec<u8>,
        reused: bool,
        record: bool,
    ) -> (Attempt, bool)
    where
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |code| (Attempt::Failed(code), false);
        self.conn.guard.arm(self.idle());
        let mut sending = match Sending::new(&self.request, &mut self.conn.buf, greeting, record) {
            Ok(sending) => sending,
            Err(()) => return failed(Code::RequestError),
        };
        let mut answer = Answer::default();
        let response = loop {
            let got = poll_fn(|cx| self.poll_answer(cx, io, &mut sending, &mut answer)).await;
            let n = match got {
                Ok(n) => n,
                Err(Broken::Closed) if answer.untouched() && reused && sending.may_repeat(self.request.idempotent) => {
                    return (Attempt::Again, false);
                }
                Err(Broken::Unprocessed) if answer.untouched() && self.unprocessed + 1 < MAX_UNPROCESSED => {
                    self.unprocessed += 1;
                    let again = sending.put_back(&mut self.conn.buf);
                    return if again { (Attempt::Again, false) } else { failed(Code::ClosedWithoutResponse) };
                }
                Err(broken) => {
                    if matches!(broken, Broken::Closed) && answer.untouched() && !reused {
                        self.conn.worker.was_silent(to.0, &to.1.backend);
                    }
                    return failed(broken.code());
                }
            };
            let limit = self.conn.worker.shared.settings.limits.headers;
            let mut response = match response::parse(&answer.buf[..n], limit, &self.request) {
                Ok(response) => response,
                Err(code) => return failed(code),
            };
            if record {
                response.via = b"2.0 flex-router";
            }
            answer.next(n);
            if response.status >= 200 || response.status == 101 {
                to.1.backend.answered();
                break response;
            }
            if answer.interim > MAX_INTERIM {
                return failed(Code::PoorlyFormattedResponse);
            }
            if !self.request.http10 {
                response::finish_interim(&mut response);
                if !self.conn.send(&response.head).await {
                    return failed(Code::ClientRequestInterrupted);
                }
                self.conn.guard.arm(self.first_byte());
            }
        };
        sending.release(&mut self.conn.buf);
        let ended = if response.status == 101 {
            self.tunnel(io, response, answer.buf).await
        } else {
            self.deliver(io, sending, response, answer.buf).await
        };
        match ended {
            Ok((after, keep)) => (Attempt::Done(after), keep),
            Err(code) => failed(code),
        }
    }

    /// Sends the request and reads the answer's head, both at once: an instance may answer before it was told all.
    fn poll_answer<U: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &Io<U>,
        sending: &mut Sending,
        answer: &mut Answer,
    ) -> Poll<Result<usize, Broken>> {
        let settings = &self.conn.worker.shared.settings;
        let was_done = sending.is_done();
        if let Err(broken) = sending.poll(cx, &self.conn.io, &mut self.conn.buf, io) {
            return Poll::Ready(Err(broken));
        }
        if let Err(refused) = self.check_content(sending) {
            return Poll::Ready(Err(refused));
        }
        let progress = sending.take_progress();
        if sending.is_done() && !was_done {
            self.conn.guard.arm(self.first_byte());
        } else if progress {
            self.conn.guard.arm(self.idle());
        }
        loop {
            // Before reading: an interim answer may have brought the next one along.
            if let Some(found) = answer.scan(settings.limits.head_bytes) {
                return Poll::Ready(found);
            }
            let read = io.poll_read(cx, usize::MAX, |_, bytes| {
                answer.buf.extend_from_slice(bytes);
                bytes.len()
            });
            match read {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Closed)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Broken::of(&e))),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if self.conn.guard.poll_expired(cx) {
            return Poll::Ready(Err(Broken::Late(sending.waits())));
        }
        // While the request's content is read, the reading of it notices that the client has gone.
        if sending.is_read() && self.conn.poll_gone(cx) {
            return Poll::Ready(Err(Broken::ClientGone));
        }
        Poll::Pending
    }

    /// Passes the answer on, and what is left of the request. Tells what becomes of the client's connection, and whether
    /// the instance's may be kept.
    async fn deliver<U: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &Io<U>,
        mut sending: Sending,
        mut response: Response,
        extra: Vec<u8>,
    ) -> Result<(After, bool), Code> {
        let idle = self.idle();
        let (request, worker) = (&self.request, self.conn.worker);
        let coding = match &self.gate {
            None => None,
            Some(gate) => gate.shape(request, &mut response, &self.extra, || {
                let (shared, most) = (&worker.shared, worker.shared.settings.limits.compressed_answers);
                Place::take(&shared.compressing, most).or_else(|| worker.counters.hit(Limit::CompressedAnswers, None))
            }),
        };
        // Given back when the answer is over.
        let (coding, _room) = coding.unzip();
        let open_ended = coding.is_some() || matches!(response.framing, Framing::Chunked | Framing::Close);
        let chunked = open_ended && !request.http10;
        // An upgrade that was refused leaves it open what the client's further bytes were meant to be.
        let unclear = !sending.is_complete() || request.upgrade && !self.conn.buf.is_empty();
        let close = !request.keep_alive || unclear || open_ended && !chunked || worker.draining.get();
        if let Some(line) = self.conn.alt_svc()
            && !response.names("alt-svc")
        {
            response.head.extend_from_slice(line);
        }
        response::finish(&mut response, request, chunked, close);
        if let Some(cookie) = &self.set_cookie {
            let end = response.head.len() - 2;
            response.head.splice(end..end, format!("Set-Cookie: {cookie}\r\n").into_bytes());
        }
        let mut down = Pump::new(response.framing, chunked, response.head);
        down.compress(coding);
        let fed = down.feed(&extra).map_err(|_| Code::PoorlyFormattedResponse)?;
        let mut surplus = fed < extra.len();
        self.status = Some(response.status);
        self.conn.guard.arm(idle);
        let mut rest = Vec::new();
        let sent = poll_fn(|cx| {
            let mut moved = false;
            if !sending.is_done() {
                // The answer counts for more than the rest of the request: an instance may refuse the latter.
                match sending.poll(cx, &self.conn.io, &mut self.conn.buf, io) {
                    Err(Broken::BadContent) => return Poll::Ready(Err(Code::RequestError)),
                    Err(_) => return Poll::Ready(Err(Code::ClientRequestInterrupted)),
                    Ok(()) => moved = sending.take_progress(),
                }
                if let Err(Broken::Refused(code)) = self.check_content(&mut sending) {
                    return Poll::Ready(Err(code));
                }
            }
            let done = down.poll(cx, io, &mut rest, &self.conn.io);
            moved |= std::mem::take(&mut down.progress);
            self.bytes = down.moved;
            match done {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::Sink)) => return Poll::Ready(Err(Code::ClientRequestInterrupted)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Code::ServerRequestInterrupted)),
                Poll::Pending => {}
            }
            if moved {
                self.conn.guard.arm(idle);
            }
            if self.conn.guard.poll_expired(cx) {
                return Poll::Ready(Err(if down.waits == Waits::Sink {
                    Code::ClientConnectionIdle
                } else {
                    Code::IdleConnection
                }));
            }
            if sending.is_read() && self.conn.poll_gone(cx) {
                return Poll::Ready(Err(Code::ClientRequestInterrupted));
            }
            Poll::Pending
        })
        .await;
        self.bytes = down.moved;
        Counters::add(&worker.counters.bytes_in, sending.moved());
        self.counted.received(sending.moved());
        sent?;
        surplus |= !rest.is_empty();
        let keep = response.keep_alive && sending.is_complete() && !surplus;
        let after = match (close, unclear || !sending.is_complete()) {
            (_, true) => After::Linger,
            (true, false) => After::Close,
            (false, false) => After::Reuse,
        };
        Ok((after, keep))
    }

    /// After 101 both sides speak something else: bytes go both ways until both have ended.
    async fn tunnel<U: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &Io<U>,
        mut response: Response,
        extra: Vec<u8>,
    ) -> Result<(After, bool), Code> {
        let (worker, idle) = (self.conn.worker, self.idle());
        response::finish(&mut response, &self.request, false, false);
        if let Some(cookie) = &self.set_cookie {
            let end = response.head.len() - 2;
            response.head.splice(end..end, format!("Set-Cookie: {cookie}\r\n").into_bytes());
        }
        let ahead = std::mem::take(&mut self.conn.buf);
        let mut up = Pump::new(Framing::Close, false, ahead);
        let mut down = Pump::new(Framing::Close, false, response.head);
        let _ = down.feed(&extra);
        Counters::add(&worker.counters.upgrades, 1);
        self.status = Some(101);
        self.conn.guard.arm(idle);
        let (mut up_open, mut down_open, mut were_both, mut none) = (true, true, true, Vec::new());
        let ended = poll_fn(|cx| {
            let client = &self.conn.io;
            if up_open && let Poll::Ready(done) = up.poll(cx, client, &mut none, io) {
                up_open = false;
                if done.is_err() || matches!(io.poll_shutdown(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(Ok(()));
                }
            }
            if down_open && let Poll::Ready(done) = down.poll(cx, io, &mut none, client) {
                down_open = false;
                if done.is_err() || matches!(client.poll_shutdown(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(Ok(()));
                }
            }
            if !up_open && !down_open {
                return Poll::Ready(Ok(()));
            }
            self.bytes = down.moved;
            let both = up_open && down_open;
            if std::mem::take(&mut up.progress) | std::mem::take(&mut down.progress) | (both != were_both) {
                // Who hears the other side end usually ends too; who does not is not waited for as long.
                self.conn.guard.arm(if both { idle } else { idle / 10 });
                were_both = both;
            }
            match self.conn.guard.poll_expired(cx) {
                true if both => Poll::Ready(Err(Code::IdleConnection)),
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await;
        self.bytes = down.moved;
        Counters::add(&worker.counters.bytes_in, up.moved);
        self.counted.received(up.moved);
        ended.map(|()| (After::Close, false))
    }
}
