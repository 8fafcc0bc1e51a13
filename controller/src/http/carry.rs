//! Bytes between a WebSocket and a session, each way in a task's own time: a side that is slow stops the other side of its
//! own direction alone, and nothing is held beyond a few messages.
//!
//! A client has gone when it answers several pings in a row with nothing. Where it is this side that does not read, or waits
//! for it to read, silence proves nothing and is not counted.

use crate::ports::{RunInput, RunOutput, RunSession};
use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use flex_api::run::{RunControl, RunEnd, STDERR, STDOUT};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior};

/// Pause between signs of life that a client is asked for.
pub const PING: Duration = Duration::from_secs(10);
/// So many in a row without an answer, and it has gone.
const UNANSWERED: u32 = 4;
/// Bytes read from a connection at a time.
const READ: usize = 64 << 10;

type Sink = SplitSink<WebSocket, Message>;

/// What is known of a client being there.
#[derive(Debug, Default)]
struct Life {
    /// Pings since it was heard of.
    silent: AtomicU32,
    /// What it sent waits for whoever it is for, so that its answers are not read.
    held: AtomicBool,
}

impl Life {
    fn heard(&self) {
        self.silent.store(0, Ordering::Relaxed);
    }

    /// Hands on what the client sent, however long that takes.
    async fn handing<T>(&self, work: impl Future<Output = T>) -> T {
        self.held.store(true, Ordering::Relaxed);
        let done = work.await;
        self.held.store(false, Ordering::Relaxed);
        self.heard();
        done
    }

    /// Sends; whether the client is there. One that takes what it did not take before shows by it that it is.
    async fn tell(&self, to_client: &mut Sink, message: Message) -> bool {
        let mut sent = to_client.send(message);
        if let Some(done) = (&mut sent).now_or_never() {
            return done.is_ok();
        }
        let done = sent.await;
        self.heard();
        done.is_ok()
    }

    /// Asks for a sign of life, unless too many were asked for already: then it has gone.
    async fn ask(&self, to_client: &mut Sink) -> bool {
        let unanswered = !self.held.load(Ordering::Relaxed) && self.silent.fetch_add(1, Ordering::Relaxed) >= UNANSWERED;
        // A client whose connection broke is noticed here too, held or not.
        !unanswered && self.tell(to_client, Message::Ping(Bytes::new())).await
    }
}

/// Ticks that are never nearer together than `pause`, whatever was waited for between them.
async fn pings(pause: Duration) -> Interval {
    let mut ping = tokio::time::interval(pause);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.tick().await;
    ping
}

/// Whether the session came to its end; otherwise its client has gone, and dropping the session (done here) ends it.
pub async fn session(socket: WebSocket, session: RunSession, pause: Duration) -> bool {
    let RunSession { input, mut output, exit, .. } = session;
    let (mut to_client, from_client) = socket.split();
    let life = Life::default();
    let send = async {
        let mut ping = pings(pause).await;
        loop {
            tokio::select! {
                piece = output.next() => {
                    let message = match piece {
                        Some(Ok(RunOutput::Stdout(data))) => framed(STDOUT, &data),
                        Some(Ok(RunOutput::Stderr(data))) => framed(STDERR, &data),
                        Some(Err(_)) | None => break,
                    };
                    if !life.tell(&mut to_client, message).await {
                        return false;
                    }
                }
                _ = ping.tick() => if !life.ask(&mut to_client).await { return false },
            }
        }
        let end = match exit.await {
            Ok(Ok(status)) => RunEnd::Exit(status),
            Ok(Err(e)) => RunEnd::Error(e),
            Err(_) => RunEnd::Error("the container was lost".into()),
        };
        if let Ok(text) = serde_json::to_string(&end) {
            let _ = to_client.send(Message::Text(text.into())).await;
        }
        let _ = to_client.send(Message::Close(None)).await;
        true
    };
    tokio::select! {
        ended = send => ended,
        () = orders(from_client, input, &life) => false,
    }
}

/// What a client sends, until it goes.
async fn orders(mut from_client: SplitStream<WebSocket>, input: tokio::sync::mpsc::Sender<RunInput>, life: &Life) {
    while let Some(Ok(message)) = from_client.next().await {
        life.heard();
        let order = match message {
            Message::Binary(data) => RunInput::Data(data),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(RunControl::Eof(_)) => RunInput::Eof,
                Ok(RunControl::Resize(cols, rows)) => RunInput::Resize(cols, rows),
                Ok(RunControl::Signal(n)) => RunInput::Signal(n),
                Err(_) => continue,
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        // A command that no longer reads must not keep its output from being carried.
        let _ = life.handing(input.send(order)).await;
    }
}

fn framed(stream: u8, data: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.put_u8(stream);
    out.put_slice(data);
    Message::Binary(out.freeze())
}

/// One connection to a port, until both directions have ended. The end of one is told as [`RunControl::Eof`].
pub async fn connection(socket: WebSocket, stream: TcpStream, pause: Duration) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut read, mut write) = stream.into_split();
    let life = Life::default();
    let down = async {
        let mut ping = pings(pause).await;
        let mut buffer = BytesMut::with_capacity(READ);
        let mut open = true;
        loop {
            buffer.reserve(READ);
            tokio::select! {
                got = read.read_buf(&mut buffer), if open => match got {
                    Ok(0) | Err(_) => {
                        open = false;
                        let Ok(text) = serde_json::to_string(&RunControl::Eof(true)) else { return };
                        if !life.tell(&mut to_client, Message::Text(text.into())).await {
                            return;
                        }
                    }
                    Ok(_) => if !life.tell(&mut to_client, Message::Binary(buffer.split().freeze())).await { return },
                },
                _ = ping.tick() => if !life.ask(&mut to_client).await { return },
            }
        }
    };
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            life.heard();
            match message {
                Message::Binary(data) => {
                    // An error: the program there has closed; what it still says is carried on.
                    let _ = life.handing(write.write_all(&data)).await;
                }
                Message::Text(_) => {
                    let _ = write.shutdown().await;
                }
                Message::Ping(_) | Message::Pong(_) => {}
                // The client closes when both directions are done.
                Message::Close(_) => return,
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{State, WebSocketUpgrade};
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, oneshot};
    use tokio_tungstenite::tungstenite::Message as Theirs;

    const PAUSE: Duration = Duration::from_millis(50);
    /// Far beyond what a client may be silent for.
    const STALL: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(30);

    type Client = tokio_tungstenite::WebSocketStream<TcpStream>;
    type Job = Box<dyn FnOnce(WebSocket) -> futures_util::future::BoxFuture<'static, bool> + Send>;

    /// What is served, to the first that comes, and who hears of its end.
    type Once = Arc<std::sync::Mutex<Option<(Job, oneshot::Sender<bool>)>>>;

    /// A client of a WebSocket that `job` serves, and what came of that.
    async fn served(job: Job) -> (Client, oneshot::Receiver<bool>) {
        let (tell, told) = oneshot::channel();
        let once: Once = Arc::new(std::sync::Mutex::new(Some((job, tell))));
        let serve = |State(once): State<Once>, up: WebSocketUpgrade| async move {
            let (job, tell) = once.lock().unwrap().take().unwrap();
            up.on_upgrade(move |socket| async move { _ = tell.send(job(socket).await) })
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let app = axum::Router::new().route("/", axum::routing::any(serve)).with_state(once);
        tokio::spawn(async move { axum::serve(listener, app).await });
        let stream = TcpStream::connect(at).await.unwrap();
        (tokio_tungstenite::client_async(format!("ws://{at}/"), stream).await.unwrap().0, told)
    }

    struct Command {
        stdin: mpsc::Receiver<RunInput>,
        output: mpsc::Sender<RunOutput>,
        exit: oneshot::Sender<Result<i64, String>>,
    }

    fn command() -> (Command, RunSession) {
        let (input, stdin) = mpsc::channel(1);
        let (output, from_command) = mpsc::channel::<RunOutput>(1);
        let (exit, exited) = oneshot::channel();
        let output_of = futures_util::stream::unfold(from_command, async |mut o| o.recv().await.map(|p| (Ok(p), o)));
        (Command { stdin, output, exit }, RunSession { input, output: output_of.boxed(), exit: exited, oom: Arc::default() })
    }

    fn of(run: RunSession) -> Job {
        Box::new(move |socket| session(socket, run, PAUSE).boxed())
    }

    async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("too long: {what}"))
    }

    /// Reads until the end is told: how many bytes of output came, and the end.
    async fn drained(
        client: &mut (impl futures_util::Stream<Item = Result<Theirs, tokio_tungstenite::tungstenite::Error>> + Unpin),
    ) -> (usize, String) {
        let mut bytes = 0;
        loop {
            match client.next().await.expect("it goes on").expect("a message") {
                Theirs::Binary(data) => bytes += data.len() - 1,
                Theirs::Text(text) => return (bytes, text.to_string()),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn a_command_may_pause_in_reading() {
        let (mut command, run) = command();
        let (client, _) = served(of(run)).await;
        let (mut up, mut down) = client.split();
        // More than all buffers between the two hold.
        let (piece, pieces) = (vec![7; 1 << 20], 64);
        let sending = tokio::spawn(async move {
            for _ in 0..pieces {
                up.send(Theirs::Binary(piece.clone().into())).await.expect("it is still there");
            }
            up
        });
        let ended = tokio::spawn(async move { drained(&mut down).await });
        tokio::time::sleep(STALL).await;
        let mut read = 0;
        while read < pieces << 20 {
            match within("the rest", command.stdin.recv()).await {
                Some(RunInput::Data(data)) => read += data.len(),
                other => panic!("{other:?} after {read} bytes"),
            }
        }
        // It reads no more, and a client that says nothing but that it is there is not given up either.
        tokio::time::sleep(STALL).await;
        command.exit.send(Ok(3)).unwrap();
        drop(command.output);
        assert_eq!(within("the end", ended).await.unwrap(), (0, r#"{"exit":3}"#.into()));
        drop(sending);
    }

    #[tokio::test]
    async fn a_client_may_pause_in_reading() {
        let (command, run) = command();
        let (mut client, _) = served(of(run)).await;
        let pieces = 64;
        let printing = tokio::spawn(async move {
            let Command { output, exit, stdin } = command;
            for _ in 0..pieces {
                if output.send(RunOutput::Stdout(vec![b'x'; 1 << 20].into())).await.is_err() {
                    return;
                }
            }
            drop(output);
            let _ = exit.send(Ok(0));
            drop(stdin);
        });
        tokio::time::sleep(STALL).await;
        assert_eq!(within("the rest", drained(&mut client)).await, (pieces << 20, r#"{"exit":0}"#.into()));
        printing.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_answers_nothing_has_gone() {
        let (command, run) = command();
        let (client, told) = served(of(run)).await;
        assert!(!within("it to be given up", told).await.unwrap());
        drop((client, command));
    }

    #[tokio::test]
    async fn a_program_behind_a_port_may_pause_in_reading() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut program, _) = listener.accept().await.unwrap();
        let job: Job = Box::new(move |socket| connection(socket, stream, PAUSE).map(|()| true).boxed());
        let (client, _) = served(job).await;
        let (mut up, mut down) = client.split();
        let pieces = 64;
        let sending = tokio::spawn(async move {
            for _ in 0..pieces {
                up.send(Theirs::Binary(vec![7; 1 << 20].into())).await.expect("it is still there");
            }
            up.send(Theirs::Text("{\"eof\":true}".into())).await.expect("it is still there");
            up
        });
        let answering = tokio::spawn(async move { while let Some(Ok(_)) = down.next().await {} });
        tokio::time::sleep(STALL).await;
        let mut read = 0;
        let mut buffer = vec![0; 1 << 16];
        while let n @ 1.. = within("the rest", program.read(&mut buffer)).await.unwrap() {
            read += n;
        }
        assert_eq!(read, pieces << 20);
        sending.await.unwrap().send(Theirs::Close(None)).await.unwrap();
        within("the end", answering).await.unwrap();
    }
}
