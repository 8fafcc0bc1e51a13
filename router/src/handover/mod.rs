//! Handing the listening sockets on: the process that follows accepts from the same queues, so that no connection is lost
//! between the two.
//!
//! The one that follows connects to a unix socket in the state directory and is given a copy of each descriptor
//! ([`wire`]). Once it accepts, it says so; then the one before accepts no more, without closing the queues, and drains.
//! Until that word it goes on as ever, so a successor that fails changes nothing.
//!
//! Must not: give anything to another user's process; answer for a socket whose port this router has closed.

mod rest;
mod wire;

pub(crate) use rest::listen;

use flex_model::{AppId, RouterStatus};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::DirBuilderExt as _, fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};

/// One side waits so long for the other's next word.
const PATIENCE: Duration = Duration::from_secs(10);
/// And so long for a successor to read its tables and accept.
const BINDING: Duration = Duration::from_secs(120);
/// How soon the door is tried again where another process has it.
const AGAIN: Duration = Duration::from_secs(1);

/// Listeners for HTTP.
pub(crate) const HTTP: &str = "http";
/// Listeners for HTTPS.
pub(crate) const HTTPS: &str = "https";
/// Ports of TCP routes.
pub(crate) const TCP: &str = "tcp";
/// Ports of UDP routes.
pub(crate) const UDP: &str = "udp";

/// What a socket is for, and its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SocketName {
    kind: String,
    address: SocketAddr,
}

impl SocketName {
    fn new(kind: &str, address: SocketAddr) -> Self {
        Self { kind: kind.to_owned(), address }
    }

    /// Whether this is a socket of that name: a successor must not believe words about what it accepts from.
    fn fits(&self, socket: &OwnedFd) -> bool {
        let Ok(socket) = socket.try_clone() else { return false };
        let datagrams = getsockopt(&socket, sockopt::SockType).is_ok_and(|t| t == SockType::Datagram);
        let listens = getsockopt(&socket, sockopt::AcceptConn).unwrap_or(false);
        match self.kind == UDP {
            true => datagrams && std::net::UdpSocket::from(socket).local_addr().is_ok_and(|a| a == self.address),
            false => listens && std::net::TcpListener::from(socket).local_addr().is_ok_and(|a| a == self.address),
        }
    }
}

type Sockets = BTreeMap<SocketName, Vec<OwnedFd>>;

/// Copies of this process's listening sockets, for the process that follows. While there is a copy, a socket stays open.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// None: nothing is handed on.
    sockets: Mutex<Option<Sockets>>,
}

impl Book {
    pub(crate) fn new(on: bool) -> Self {
        Self { sockets: Mutex::new(on.then(Sockets::new)) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Option<Sockets>) -> T) -> T {
        work(&mut self.sockets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add(&self, kind: &str, address: SocketAddr, socket: &impl AsFd) -> io::Result<()> {
        self.with(|sockets| {
            let Some(sockets) = sockets else { return Ok(()) };
            let copy = socket.as_fd().try_clone_to_owned()?;
            sockets.entry(SocketName::new(kind, address)).or_default().push(copy);
            Ok(())
        })
    }

    /// The port is closed.
    pub(crate) fn remove(&self, kind: &str, address: SocketAddr) {
        self.with(|sockets| _ = sockets.as_mut().and_then(|s| s.remove(&SocketName::new(kind, address))));
    }

    /// Nothing more is handed on.
    pub(crate) fn close(&self) {
        self.with(|sockets| *sockets = None);
    }

    fn copies(&self) -> io::Result<Vec<(SocketName, OwnedFd)>> {
        self.with(|sockets| {
            let all = sockets.iter().flatten().flat_map(|(name, fds)| fds.iter().map(move |fd| (name, fd)));
            all.map(|(name, fd)| Ok((name.clone(), fd.try_clone()?))).collect()
        })
    }
}

/// What a process that follows takes over beside the router, and word that it has.
#[derive(Debug, Clone)]
pub struct Handover {
    book: Arc<Book>,
    handed: watch::Receiver<bool>,
}

impl Handover {
    pub(crate) fn new(book: Arc<Book>, handed: watch::Receiver<bool>) -> Self {
        Self { book, handed }
    }

    /// Gives the process that follows a listening socket that is not the router's. [`Predecessor::take`] finds it.
    ///
    /// # Errors
    /// This process has no descriptors left.
    pub fn add(&self, kind: &str, address: SocketAddr, socket: &impl AsFd) -> io::Result<()> {
        self.book.add(kind, address, socket)
    }

    /// Ends when another process has taken over: this one only drains from then on.
    pub async fn done(&mut self) {
        if self.handed.wait_for(|handed| *handed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The process before this one, and what it gave.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    sockets: Mutex<Sockets>,
}

impl Predecessor {
    /// Asks whoever routes by this state directory for its sockets. `None`: nobody is there, or nobody whose sockets can be
    /// had, which is told in the log. It goes on until [`crate::Router::serve`] has begun here.
    pub async fn find(state_dir: &Path) -> Option<Self> {
        let path = path(state_dir);
        let asked = tokio::task::spawn_blocking(move || (Self::ask(&path), path)).await;
        let (answer, path) = asked.ok()?;
        match answer {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(
                    error = &e as &dyn std::error::Error,
                    "the process at {} does not hand its sockets on; this one goes on without them",
                    path.display()
                );
                None
            }
        }
    }

    fn ask(path: &Path) -> io::Result<Option<Self>> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
            Err(e) => return Err(e),
        };
        if !is_own(&stream)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut sockets = Sockets::new();
        for (name, socket) in wire::receive(&stream)? {
            if name.fits(&socket) {
                sockets.entry(name).or_default().push(socket);
            } else {
                tracing::warn!(kind = name.kind, address = %name.address, "what was handed on is no such socket");
            }
        }
        Ok(Some(Self { stream, sockets: Mutex::new(sockets) }))
    }

    /// Takes the sockets of one purpose and address, if there are any.
    pub fn take(&self, kind: &str, address: SocketAddr) -> Vec<OwnedFd> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.remove(&SocketName::new(kind, address)).unwrap_or_default()
    }

    /// This process accepts: tells the one before. What was not taken is closed. Gives what [`listen`] listens to.
    pub(crate) async fn ready(self) -> Option<UnixStream> {
        let told = tokio::task::spawn_blocking(move || {
            drop(self.sockets);
            wire::ready(&self.stream).map(|()| self.stream)
        });
        match told.await {
            Ok(Ok(stream)) => {
                tracing::info!("took over from the process before, which drains");
                return Some(stream);
            }
            Ok(Err(e)) => tracing::warn!(error = &e as &dyn std::error::Error, "the process before was not heard any more"),
            Err(_) => tracing::error!("telling the process before failed by a fault in the program"),
        }
        None
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("handover.sock")
}

/// Whether the other end is a process of this user, or of root.
fn is_own(stream: &UnixStream) -> io::Result<bool> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    Ok(peer == 0 || peer == nix::unistd::geteuid().as_raw())
}

/// What a process that drains tells its successor, and until when.
pub(crate) struct Rest {
    pub(crate) status: watch::Receiver<RouterStatus>,
    pub(crate) lines: mpsc::UnboundedReceiver<(AppId, String)>,
    pub(crate) over: watch::Receiver<bool>,
}

/// Serves at the door until `stop`, or until a successor has said that it accepts: then `handed` turns true, and the successor is
/// told the rest. `keep` is called before anything is given: what the successor reads from disk must be there.
pub(crate) async fn serve(
    book: Arc<Book>,
    state_dir: PathBuf,
    keep: impl Fn() + Clone + Send + 'static,
    handed: watch::Sender<bool>,
    rest: Rest,
    mut stop: watch::Receiver<bool>,
) {
    let path = path(&state_dir);
    let opened = tokio::select! {
        opened = open(&path) => opened,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    let listener = match opened {
        Ok(listener) => listener,
        Err(e) => {
            return tracing::warn!(
                error = &e as &dyn std::error::Error,
                "cannot listen at {}: a process that follows cannot take over from this one",
                path.display()
            );
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (book, keep, path, given) = (book.clone(), keep.clone(), path.clone(), handed.clone());
        let exchange = move || {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            if !is_own(&stream)? {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user's process asked for the sockets"));
            }
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            wire::give(&stream, || {
                keep();
                book.copies()
            })?;
            stream.set_read_timeout(Some(BINDING))?;
            if !wire::is_ready(&stream)? {
                return Ok(None);
            }
            // The door is the successor's from here on.
            let _ = fs::remove_file(&path);
            given.send_replace(true);
            wire::draining(&stream)?;
            Ok(Some(stream))
        };
        let mut exchanged = tokio::task::spawn_blocking(exchange);
        let first = tokio::select! {
            exchanged = &mut exchanged => Some(exchanged),
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let given = *handed.borrow();
        let exchanged = match first {
            Some(exchanged) => exchanged,
            None if given => exchanged.await,
            // Whoever asks now is too late.
            None => break,
        };
        match exchanged {
            Ok(Ok(Some(stream))) => {
                tracing::info!("another process has taken over; this one ends when its connections have");
                if let Err(e) = rest::tell(stream, rest.status, rest.lines, rest.over).await {
                    tracing::warn!(error = %e, "the process that took over is not told the rest");
                }
                return;
            }
            Ok(Ok(None)) => tracing::warn!("a process asked for the sockets and did not take over"),
            Ok(Err(e)) if *handed.borrow() => return tracing::debug!(error = %e, "the process that took over was not heard"),
            Ok(Err(e)) => tracing::warn!(error = &e as &dyn std::error::Error, "the sockets could not be handed on"),
            Err(_) => tracing::error!("handing the sockets on failed by a fault in the program"),
        }
    }
    let _ = fs::remove_file(&path);
}

/// The door. Where another process has it, it is waited for.
async fn open(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    while tokio::net::UnixStream::connect(path).await.is_ok() {
        tokio::time::sleep(AGAIN).await;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn tcp() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    struct Door {
        book: Arc<Book>,
        handed: watch::Receiver<bool>,
        stop: watch::Sender<bool>,
        dir: tempfile::TempDir,
        task: tokio::task::JoinHandle<()>,
        status: watch::Sender<RouterStatus>,
        lines: mpsc::UnboundedSender<(AppId, String)>,
        over: watch::Sender<bool>,
    }

    fn door(book: Book) -> Door {
        let (book, dir, stop) = (Arc::new(book), tempfile::tempdir().unwrap(), watch::Sender::new(false));
        let (handed, seen) = watch::channel(false);
        let ((status, shown), (lines, told), (over, end)) =
            (watch::channel(<_>::default()), mpsc::unbounded_channel(), watch::channel(false));
        let rest = Rest { status: shown, lines: told, over: end };
        let task = tokio::spawn(serve(book.clone(), dir.path().to_owned(), || (), handed, rest, stop.subscribe()));
        Door { book, handed: seen, stop, dir, task, status, lines, over }
    }

    async fn found(dir: &Path) -> Predecessor {
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = Predecessor::find(dir).await {
                return found;
            }
            assert!(tokio::time::Instant::now() < until, "nobody opened the door");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn many_sockets_go_over_with_what_is_in_their_queues() {
        let book = Book::new(true);
        let open: Vec<_> = (0..100).map(|_| tcp()).collect();
        for (socket, address) in &open {
            book.add(TCP, *address, socket).unwrap();
        }
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        book.add(UDP, datagrams.local_addr().unwrap(), &datagrams).unwrap();
        let (gone, closed) = tcp();
        book.add(HTTP, closed, &gone).unwrap();
        book.remove(HTTP, closed);
        let mut door = door(book);
        let before = found(door.dir.path()).await;
        // Who connects now waits, and is taken by the one that follows although the one before closes its socket.
        let clients: Vec<_> = open.iter().map(|(_, address)| TcpStream::connect(address).unwrap()).collect();
        let addresses: Vec<_> = open.iter().map(|(_, a)| *a).collect();
        drop(open);
        assert!(before.take(HTTP, closed).is_empty() && before.take(HTTP, addresses[0]).is_empty());
        let taken: Vec<TcpListener> = addresses.iter().map(|a| before.take(TCP, *a).remove(0).into()).collect();
        assert_eq!(before.take(UDP, datagrams.local_addr().unwrap()).len(), 1);
        let told = before.ready().await.unwrap();
        door.handed.wait_for(|h| *h).await.unwrap();
        // What it still has is told to its end.
        let instance = flex_model::InstanceId(flex_model::Uuid::from_u128(7));
        door.status.send_modify(|s| _ = s.in_flight.insert(instance, 2));
        door.lines.send((AppId(flex_model::Uuid::nil()), "at=info".into())).unwrap();
        door.over.send_replace(true);
        let said = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            io::Read::read_to_string(&mut &told, &mut said).map(|_| said)
        });
        let said = said.await.unwrap().unwrap();
        assert!(
            said.contains(&format!("{{\"in_flight\":{{\"{instance}\":2}}}}\n")) && said.contains("\"at=info\"]}\n"),
            "{said}"
        );
        door.task.await.unwrap();
        door.book.close();
        for (client, listener) in clients.iter().zip(&taken) {
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
        assert!(!path(door.dir.path()).exists(), "the door is the next one's");
    }

    #[tokio::test]
    async fn a_successor_that_fails_changes_nothing() {
        let book = Book::new(true);
        let (socket, address) = tcp();
        book.add(HTTP, address, &socket).unwrap();
        let door = door(book);
        assert_eq!(found(door.dir.path()).await.take(HTTP, address).len(), 1);
        let again = found(door.dir.path()).await;
        assert_eq!(again.take(HTTP, address).len(), 1);
        assert!(!*door.handed.borrow());
        let mode = fs::metadata(path(door.dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(again);
        door.stop.send_replace(true);
        door.task.await.unwrap();
        assert!(!path(door.dir.path()).exists());
        assert!(Predecessor::find(door.dir.path()).await.is_none());
    }

    #[tokio::test]
    async fn one_that_is_of_another_kind_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(path(dir.path())).unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, b"{\"refused\":\"this is version 9\"}\n").unwrap();
            let mut said = String::new();
            let _ = io::Read::read_to_string(&mut stream, &mut said);
            said
        });
        assert!(Predecessor::find(dir.path()).await.is_none());
        assert_eq!(other.join().unwrap(), "{\"take\":1}\n");
    }

    #[test]
    fn words_about_a_socket_are_not_believed() {
        let ((listener, address), datagrams) = (tcp(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let connected: OwnedFd = TcpStream::connect(address).unwrap().into();
        let other = SocketAddr::from(([127, 0, 0, 1], 1));
        let (listener, at): (OwnedFd, _) = (listener.into(), datagrams.local_addr().unwrap());
        let datagrams: OwnedFd = datagrams.into();
        assert!(SocketName::new(HTTP, address).fits(&listener) && SocketName::new(UDP, at).fits(&datagrams));
        assert!(!SocketName::new(HTTP, other).fits(&listener) && !SocketName::new(UDP, address).fits(&listener));
        assert!(!SocketName::new(HTTP, at).fits(&datagrams) && !SocketName::new(HTTP, address).fits(&connected));
    }
}
