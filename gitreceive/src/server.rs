//! The listener: binds, keeps the door, and hands each connection to russh in a task of its own.
//!
//! Invariants: an error of `accept` (out of file descriptors, say) never ends the server; a connection that shows no key
//! in time is cut at its socket, whatever state its key exchange is in; a fault in one session stays in its task.

use crate::{
    Gate,
    git::{Git, GitLimits},
    host_key::{self, HostKeyError},
    limits::{ConnectionLimits, Doorkeeper, Turns},
    repository::{Swept, receiving, sweep},
    ssh::{Connection, METHODS},
    verdicts::{Verdicts, listen},
};
use nix::sys::socket::{Shutdown, shutdown};
use russh::{MethodSet, Preferred, SshId, cipher, compression, server::Config};
use std::{
    borrow::Cow,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Notify, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long git and its clients have to say goodbye at a shutdown.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Sessions with apps at a time.
pub const MAX_SESSIONS: usize = 200;

/// What the receiver needs to know.
#[derive(Debug, Clone)]
pub struct GitSettings {
    /// Where to listen for SSH.
    pub listen: SocketAddr,
    /// A socket that listens there already.
    pub listener: Option<Arc<std::net::TcpListener>>,
    /// The host key's file; made when it is not there.
    pub host_key_path: PathBuf,
    /// The program that calls [`crate::run_hook`] when its `argv[0]` ends in `pre-receive`: flexd itself.
    pub hook_program: PathBuf,
    /// The unix socket between hooks and daemon. Its folder becomes private to the daemon's user, and holds git's hooks
    /// and HOME as well. At most 100 bytes long, the system's limit for sockets.
    pub socket_path: PathBuf,
    /// The folder of the repositories, to be swept of interrupted pushes at the start.
    pub repositories: Option<PathBuf>,
    pub limits: GitLimits,
    pub connections: ConnectionLimits,
    /// How long running commands may take to end after a shutdown was asked for.
    pub drain: Duration,
}

impl GitSettings {
    /// Settings with the usual limits.
    pub fn new(listen: SocketAddr, host_key_path: PathBuf, hook_program: PathBuf, socket_path: PathBuf) -> Self {
        Self {
            listen,
            listener: None,
            host_key_path,
            hook_program,
            socket_path,
            repositories: None,
            limits: GitLimits::default(),
            connections: ConnectionLimits::default(),
            drain: Duration::from_secs(30),
        }
    }
}

/// Why the receiver could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen for SSH on {address}: is another program there? Set another address with --ssh")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot listen for git hooks on {path} (at most 100 bytes, in a folder that may be written)")]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot lay out git's hooks in {path} for {program}")]
    Hooks { path: PathBuf, program: PathBuf, source: io::Error },
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    #[error("cannot write out the public host key")]
    PublicKey(#[source] russh::keys::ssh_key::Error),
}

/// What all connections use.
pub struct Shared {
    pub gate: Arc<dyn Gate>,
    pub git: Git,
    pub verdicts: Arc<Verdicts>,
    pub socket: PathBuf,
    pub places: Semaphore,
    /// Places for sessions with apps, which last longer than git commands and take none of theirs.
    pub sessions: Semaphore,
    pub max_commands: usize,
    pub pushes: Arc<Turns>,
    pub commands: TaskTracker,
    /// No new commands.
    pub closing: CancellationToken,
    door: Mutex<Doorkeeper>,
}

/// The SSH git receiver, listening.
pub struct GitServer {
    listener: TcpListener,
    hooks: UnixListener,
    config: Arc<Config>,
    public_key: String,
    login_grace: Duration,
    drain: Duration,
    repositories: Option<PathBuf>,
    started: SystemTime,
    shared: Arc<Shared>,
}

/// An unauthenticated connection's place, given back once: at the login or at the end.
pub struct Ticket {
    shared: Arc<Shared>,
    address: IpAddr,
    held: bool,
    known: Arc<Notify>,
}

impl Ticket {
    pub fn authenticated(&mut self) {
        self.give_back(true);
        self.known.notify_one();
    }
    fn give_back(&mut self, authenticated: bool) {
        if std::mem::take(&mut self.held) {
            self.shared.door.lock().unwrap_or_else(PoisonError::into_inner).release(self.address, authenticated);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_back(false);
    }
}

impl GitServer {
    /// Takes the address, the socket and the host key; serves nothing yet.
    pub async fn bind(settings: GitSettings, gate: Arc<dyn Gate>) -> Result<Self, BindError> {
        let GitSettings { listen: address, listener, host_key_path, hook_program, socket_path, limits, connections, .. } =
            settings;
        let key = host_key::load_or_make(&host_key_path, &rand::random())?;
        let public_key = key.public_key().to_openssh().map_err(BindError::PublicKey)?;
        let hooks = listen(&socket_path).map_err(|source| BindError::Socket { path: socket_path.clone(), source })?;
        let state = socket_path.parent().unwrap_or(Path::new("/"));
        let git = Git::new(state, &hook_program, limits.clone()).map_err(|source| BindError::Hooks {
            path: state.to_owned(),
            program: hook_program,
            source,
        })?;
        let listener = match listener {
            Some(listener) => listener.try_clone().and_then(TcpListener::from_std),
            None => TcpListener::bind(address).await,
        };
        let listener = listener.map_err(|source| BindError::Listen { address, source })?;
        let login_grace = connections.login_grace;
        let shared = Shared {
            gate,
            git,
            verdicts: Arc::new(Verdicts::new(limits.max_refs)),
            socket: socket_path,
            places: Semaphore::new(limits.max_commands),
            sessions: Semaphore::new(MAX_SESSIONS),
            max_commands: limits.max_commands,
            pushes: Arc::new(Turns::new(limits.max_pushes_per_user)),
            commands: TaskTracker::new(),
            closing: CancellationToken::new(),
            door: Mutex::new(Doorkeeper::new(connections)),
        };
        Ok(Self {
            listener,
            hooks,
            config: Arc::new(config(key)),
            public_key: public_key.trim_end().to_owned(),
            login_grace,
            drain: settings.drain,
            repositories: settings.repositories,
            started: SystemTime::now(),
            shared: Arc::new(shared),
        })
    }

    /// Where it listens: the port that was taken when the settings said 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The socket that it listens on.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// The public host key, `ssh-ed25519 AAAA…`: behind `[host]:port ` it is a line of `known_hosts`.
    pub fn host_key_openssh(&self) -> &str {
        &self.public_key
    }

    /// Serves until `shutdown`, then lets running commands end for a while and cuts what is left.
    pub async fn serve(self, shutdown: CancellationToken) {
        let cut = CancellationToken::new();
        let connections = TaskTracker::new();
        let hooks = tokio::spawn(self.shared.verdicts.clone().serve(self.hooks, self.shared.gate.clone()));
        let sweeper = tokio::spawn(sweep_until_clean(self.repositories, self.started));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let door = &self.shared.door;
                    let admitted =
                        door.lock().unwrap_or_else(PoisonError::into_inner).admit(peer.ip(), Instant::now(), rand::random());
                    if let Err(reason) = admitted {
                        tracing::debug!(%peer, ?reason, "turned away");
                        continue;
                    }
                    let known = Arc::new(Notify::new());
                    let ticket = Ticket { shared: self.shared.clone(), address: peer.ip(), held: true, known: known.clone() };
                    let serving = serve_connection(self.config.clone(), stream, ticket, known, self.login_grace, cut.clone());
                    connections.spawn(async move {
                        if let Err(error) = serving.await {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        let Shared { commands, verdicts, closing, .. } = &*self.shared;
        closing.cancel();
        commands.close();
        let ended = |limit| tokio::time::timeout(limit, commands.wait());
        if ended(self.drain).await.is_err() {
            // Pushes that wait for their build: a refusal lets git clean up and tells the pusher.
            verdicts.close();
            let _ = ended(LAST_WORDS).await;
        }
        cut.cancel();
        connections.close();
        // What was still sending hears the end of its input.
        let _ = tokio::time::timeout(LAST_WORDS, async { tokio::join!(connections.wait(), commands.wait()) }).await;
        hooks.abort();
        sweeper.abort();
        let _ = std::fs::remove_file(&self.shared.socket);
    }
}

/// So many looks, a second apart, that find nothing, and nothing is left to come.
const CLEAN: u32 = 10;

/// Removes what an earlier run left. Its last git processes end by themselves, for their input, output and hook ended with
/// that run; until they have, their quarantines stay.
async fn sweep_until_clean(root: Option<PathBuf>, started: SystemTime) {
    let Some(root) = root else { return };
    let mut clean = 0;
    for _ in 0..60 {
        let root = root.clone();
        let swept = tokio::task::spawn_blocking(move || sweep(&root, started, receiving)).await;
        match swept {
            Ok(Ok(Swept { removed, busy })) => {
                if removed > 0 {
                    tracing::info!(removed, "removed what interrupted pushes had left");
                }
                // What such a git had started may come to write a moment after it.
                clean = if busy + removed == 0 { clean + 1 } else { 0 };
                if clean == CLEAN {
                    return;
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot sweep the repositories"),
            Err(_) => return,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn config(key: russh::keys::PrivateKey) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-flex")),
        methods: MethodSet::from(METHODS),
        // Keys are public: how long their refusal takes tells nobody anything, and users with several pay for each.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        // Five keys, the first probe, and the words for strangers (see the ssh module).
        max_auth_attempts: 8,
        inactivity_timeout: Some(Duration::from_secs(3600)),
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        nodelay: true,
        // Twice russh's own, for long links; a channel's buffer holds a window of 32 KiB packets, so that a busy git
        // does not stop the connection's other channels and keepalives.
        window_size: 4 << 20,
        channel_buffer_size: 160,
        preferred: Preferred {
            // AES-GCM takes a third of the processor time of ChaCha20 where the processor helps.
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            // Packs are compressed already.
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}

async fn serve_connection(
    config: Arc<Config>,
    stream: TcpStream,
    ticket: Ticket,
    known: Arc<Notify>,
    grace: Duration,
    cut: CancellationToken,
) -> Result<(), russh::Error> {
    stream.set_nodelay(true)?;
    let socket: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    let gone = CancellationToken::new();
    let _gone = gone.clone().drop_guard();
    let handler = Connection::new(ticket.shared.clone(), ticket, gone);
    let deadline = tokio::time::Instant::now() + grace;
    let starting = tokio::time::timeout_at(deadline, russh::server::run_stream(config, stream, handler));
    let Ok(session) = starting.await else { return Ok(()) };
    let mut session = std::pin::pin!(session?);
    tokio::select! {
        ended = &mut session => return ended,
        () = known.notified() => {}
        () = tokio::time::sleep_until(deadline) => hang_up(&socket),
        () = cut.cancelled() => hang_up(&socket),
    }
    tokio::select! {
        ended = &mut session => return ended,
        () = cut.cancelled() => hang_up(&socket),
    }
    session.await
}

/// Ends a session from below: russh hears of it in every state, also in a key exchange that the peer has stalled.
fn hang_up(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}
