//! One SSH connection: who it is, what it asks for. All of russh's callbacks are here.
//!
//! Invariants: only a public key that the gate knows opens a session; of what a session can ask for, `exec` of an
//! allow-listed command, a terminal for it and the `GIT_PROTOCOL` variable are all there is. Callbacks return at once (they run in the
//! connection's read loop); work is done in tasks.
//!
//! Keyboard-interactive is offered for its words alone: a client turns to it after its last key was refused, which is the
//! one moment to tell a stranger what to do without disturbing users who own several keys. It never lets anybody in.

use crate::{
    Access, Caller, Refusal, Terminal,
    exec::{self, Request, Service, Unsupported},
    git::{HookPass, Protocol},
    relay::relay,
    repository::adopt_head,
    server::{MAX_SESSIONS, Shared, Ticket},
    session::{self, Asked},
    text::{self, UnknownKey},
    verdicts::Expected,
};
use flex_model::{AppId, AppName};
use russh::{
    Channel, ChannelId, ChannelWriteHalf, MethodKind, MethodSet,
    keys::{Algorithm, HashAlg, PublicKey},
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey},
};
use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc, time::Instant};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Keys that one connection may try. OpenSSH tries all that its agent has.
const MAX_KEYS: usize = 5;
/// Channels of one connection that were opened and have not asked for anything yet.
const MAX_OPEN: usize = 10;

/// A channel that waits for its command.
struct Open {
    channel: Channel<Msg>,
    protocol: Option<Protocol>,
    terminal: Option<Terminal>,
}

/// The state of one connection.
pub struct Connection {
    shared: Arc<Shared>,
    ticket: Ticket,
    caller: Option<Caller>,
    offered: Vec<UnknownKey>,
    told: bool,
    open: HashMap<ChannelId, Open>,
    gone: CancellationToken,
}

impl Connection {
    /// `gone` is cancelled by the owner when the connection has ended.
    pub fn new(shared: Arc<Shared>, ticket: Ticket, gone: CancellationToken) -> Self {
        Self { shared, ticket, caller: None, offered: Vec::new(), told: false, open: HashMap::new(), gone }
    }

    async fn known(&self, key: &PublicKey, algorithm: &Algorithm) -> Option<Caller> {
        // RSA with SHA-1: broken, and no client of this decade needs it.
        if *algorithm == (Algorithm::Rsa { hash: None }) {
            return None;
        }
        self.shared.gate.authenticate(&openssh(key)?).await
    }

    fn reject(&mut self, key: &PublicKey) -> Auth {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        if self.offered.len() <= MAX_KEYS && !self.offered.iter().any(|k| k.fingerprint == fingerprint) {
            self.offered.push(UnknownKey { fingerprint, algorithm: key.algorithm().to_string() });
        }
        let enough = self.offered.len() >= MAX_KEYS && !self.told;
        let next = if enough { &[MethodKind::KeyboardInteractive][..] } else { METHODS };
        Auth::Reject { proceed_with_methods: Some(MethodSet::from(next)), partial_success: false }
    }
}

/// What the server offers, see the module's text for the second.
pub const METHODS: &[MethodKind] = &[MethodKind::PublicKey, MethodKind::KeyboardInteractive];

/// `ssh-ed25519 AAAA…`, without a comment.
fn openssh(key: &PublicKey) -> Option<String> {
    let line = key.to_openssh().ok()?;
    let mut parts = line.split_ascii_whitespace();
    Some(format!("{} {}", parts.next()?, parts.next()?))
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(match self.known(offer.public_key, offer.algorithm).await {
            Some(_) => Auth::Accept,
            None => self.reject(offer.public_key),
        })
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.caller = self.known(key.public_key, key.algorithm).await;
        Ok(if self.caller.is_some() { Auth::Accept } else { self.reject(key.public_key) })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        if self.told || response.is_some() {
            let proceed_with_methods = Some(MethodSet::from(&[MethodKind::PublicKey][..]));
            return Ok(Auth::Reject { proceed_with_methods, partial_success: false });
        }
        self.told = true;
        let refusal = text::unknown_keys(&self.offered, self.offered.len() >= MAX_KEYS);
        let instructions = Cow::Owned(text::refusal(&refusal.lines).replace("\r\n", "\n"));
        Ok(Auth::Partial { name: Cow::Borrowed(""), instructions, prompts: Cow::Borrowed(&[]) })
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.ticket.authenticated();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.caller.is_some() && self.open.len() < MAX_OPEN {
            self.open.insert(channel.id(), Open { channel, protocol: None, terminal: None });
            reply.accept().await;
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.open.remove(&channel);
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, _data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        // Data before a command is nothing that a client sends; unread, it would stop the connection.
        if self.open.remove(&channel).is_some() {
            session.close(channel)?;
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let protocol = (name == "GIT_PROTOCOL").then(|| Protocol::parse(value)).flatten();
        match (protocol, self.open.get_mut(&channel)) {
            (Some(protocol), Some(open)) => {
                open.protocol = Some(protocol);
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let (Some(open), Some(caller)) = (self.open.remove(&id), self.caller.clone()) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let request = exec::parse(data);
        let (shared, gone) = (self.shared.clone(), self.gone.child_token());
        self.shared.commands.spawn(run(shared, caller, request, open, gone));
        Ok(())
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        let (Some(open), Some(caller)) = (self.open.remove(&id), self.caller.as_ref()) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let refusal = text::no_shell(caller.email.as_str());
        let gone = self.gone.child_token();
        self.shared.commands.spawn(async move {
            let (_, output) = open.channel.split();
            finish(&output, &refusal.lines, 1, &gone).await;
        });
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "the signature is the trait's")]
    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let good = term.len() <= 64 && term.bytes().all(|b| b.is_ascii_graphic());
        match self.open.get_mut(&channel) {
            Some(open) if good => {
                let (cols, rows) = (session::side(columns), session::side(rows));
                open.terminal = Some(Terminal { term: term.to_owned(), cols, rows });
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn subsystem_request(&mut self, channel: ChannelId, _name: &str, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}

/// One command, from the parsed request to the exit status.
async fn run(shared: Arc<Shared>, caller: Caller, request: Result<Request, Unsupported>, open: Open, gone: CancellationToken) {
    let started = Instant::now();
    let (protocol, terminal) = (open.protocol, open.terminal);
    let (input, output) = open.channel.split();
    let (lines, status) = match request {
        Ok(Request::Git { service, app }) => {
            let job = Job { service, app, caller, protocol, started };
            match git(&shared, job, input, &output, &gone).await {
                Ok((lines, status)) => (lines, status),
                Err(refusal) => (refusal.lines, 1),
            }
        }
        Ok(Request::App { app, wanted }) => {
            let asked = Asked { caller, app, wanted, terminal };
            match sit(&shared, asked, input, &output, &gone).await {
                Ok(ended) => ended,
                Err(refusal) => (refusal.lines, 1),
            }
        }
        Err(what) => {
            let status = if matches!(what, Unsupported::Verb(_)) { 127 } else { 1 };
            (text::unsupported(&what).lines, status)
        }
    };
    finish(&output, &lines, status, &gone).await;
}

/// A session with an app.
async fn sit(
    shared: &Shared,
    asked: Asked,
    input: russh::ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    gone: &CancellationToken,
) -> Result<(Vec<String>, u32), Refusal> {
    if shared.closing.is_cancelled() {
        return Err(text::restarting());
    }
    let Ok(_place) = shared.sessions.try_acquire() else { return Err(text::busy(MAX_SESSIONS)) };
    session::hold(&*shared.gate, asked, input, output, gone, &shared.closing).await
}

/// Prints what is left to say and ends the channel.
async fn finish(output: &ChannelWriteHalf<Msg>, lines: &[String], status: u32, gone: &CancellationToken) {
    let end = async {
        if !lines.is_empty() {
            output.extended_data_bytes(1, text::refusal(lines)).await?;
        }
        output.exit_status(status).await?;
        output.eof().await?;
        output.close().await
    };
    tokio::select! {
        // Errors mean that the client has gone, which is an end too.
        _ = end => {}
        () = gone.cancelled() => {}
    }
}

struct Job {
    service: Service,
    app: AppName,
    caller: Caller,
    protocol: Option<Protocol>,
    started: Instant,
}

async fn git(
    shared: &Arc<Shared>,
    job: Job,
    input: russh::ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    gone: &CancellationToken,
) -> Result<(Vec<String>, u32), Refusal> {
    let Job { service, app, caller, protocol, started } = job;
    if shared.closing.is_cancelled() {
        return Err(text::restarting());
    }
    let access = if service == Service::ReceivePack { Access::Push } else { Access::Fetch };
    let (id, name) = shared.gate.authorize(&caller, app.as_str(), access).await?;
    let repository = shared.gate.repository(id).await?;
    let pushing = service == Service::ReceivePack;
    let _turn = if pushing { Some(shared.pushes.take(caller.user).map_err(text::too_many_pushes)?) } else { None };
    let Ok(_place) = shared.places.try_acquire() else { return Err(text::busy(shared.max_commands)) };
    let fault = |error: std::io::Error| {
        tracing::error!(%error, app = %name, ?service, repository = %repository.display(), "cannot run git");
        text::internal("Flex cannot run git on this app's repository.")
    };
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    let registration = pushing.then(|| {
        let (caller, app_name, repository) = (caller.clone(), name.clone(), repository.clone());
        let expected = Expected { caller, app: id, app_name, repository, started, left: gone.clone(), over: over.clone() };
        shared.verdicts.expect(expected, rand::random())
    });
    let pass = registration.as_ref().map(|r| HookPass { socket: &shared.socket, secret: r.secret() });
    if !pushing {
        follow_branches(shared, id, &repository).await;
    }
    let running = shared.git.spawn(service, &repository, protocol, pass).map_err(fault)?;
    let (first, named) = oneshot::channel::<String>();
    let gate = shared.gate.clone();
    // Holds what the gate made ready until this push is over.
    let _ready = AbortOnDropHandle::new(tokio::spawn(async move {
        match named.await {
            Ok(reference) => gate.receiving(id, &reference).await,
            Err(_) => None,
        }
    }));
    let ended = relay(running, input, output, gone, pushing.then_some(first)).await.map_err(fault)?;
    tracing::info!(app = %name, user = %caller.email, ?service, status = ?ended.status.code(), "git ended");
    if pushing {
        follow_branches(shared, id, &repository).await;
    }
    // A push that git refused ends with status 0 all the same: the refusal is in git's own protocol.
    let lines = ended.complaint.map(|c| text::refused_by_git(c).lines).unwrap_or_default();
    Ok((lines, ended.status.code().map_or(255, i32::cast_unsigned)))
}

/// Has `HEAD` follow the branches that deploy.
async fn follow_branches(shared: &Shared, app: AppId, repository: &Path) {
    let (path, branches) = (repository.to_owned(), shared.gate.branches(app).await);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || adopt_head(&path, &branches)).await {
        tracing::warn!(error = &error as &dyn std::error::Error, %app, "HEAD stays as it is");
    }
}
