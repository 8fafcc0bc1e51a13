//! HTTP/3 with a client of other people's making (the `h3` crate), and with streams whose bytes are the test's own where what
//! they say is wrong.

mod wrong;

use crate::support::*;
use bytes::{Buf as _, Bytes};
use flex_model::{
    AppState::{Maintenance, Serving},
    Policy,
    http_policy::HttpPolicy,
};
use h3::{client::RequestStream, error::StreamError};
use h3_quinn::BidiStream;
use http::{HeaderMap, Method, Request};
use quinn::{ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

type Sender = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;
type Stream = RequestStream<BidiStream<Bytes>, Bytes>;

/// A client with one connection.
struct Http3 {
    endpoint: Endpoint,
    connection: quinn::Connection,
    send: Sender,
}

fn client_of(pairs: &[&Pair]) -> quinn::ClientConfig {
    let tls = client_config(pairs, &[b"h3"], &[&rustls::version::TLS13]);
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    // So that what the router takes is seen, and not what this client keeps.
    let mut transport = quinn::TransportConfig::default();
    transport.send_window(1 << 20);
    // Should the word of a connection's end be lost, as packets are, it is asked after.
    transport.keep_alive_interval(Some(Duration::from_millis(300)));
    transport.max_idle_timeout(Some(quinn::IdleTimeout::try_from(Duration::from_secs(10)).unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

async fn dial(
    address: SocketAddr,
    config: &quinn::ClientConfig,
    name: &str,
) -> Result<(Endpoint, quinn::Connection), ConnectionError> {
    let endpoint = Endpoint::client(LOOPBACK.into()).unwrap();
    let connection = within(endpoint.connect_with(config.clone(), address, name).unwrap()).await?;
    Ok((endpoint, connection))
}

impl Http3 {
    async fn new(world: &World, config: &quinn::ClientConfig) -> Self {
        let (endpoint, connection) = dial(world.https.unwrap(), config, "aa.test").await.unwrap();
        let (mut driver, send) = within(h3::client::new(h3_quinn::Connection::new(connection.clone()))).await.unwrap();
        tokio::spawn(async move { driver.wait_idle().await });
        Self { endpoint, connection, send }
    }

    async fn begin(&mut self, request: Request<()>) -> Stream {
        within(self.send.send_request(request)).await.unwrap()
    }

    /// A request without content: status, fields, content.
    async fn ask(&mut self, request: Request<()>) -> (u16, HeaderMap, String) {
        let mut stream = self.begin(request).await;
        within(stream.finish()).await.unwrap();
        let answer = within(stream.recv_response()).await.unwrap();
        let body = content(&mut stream).await.unwrap();
        (answer.status().as_u16(), answer.headers().clone(), String::from_utf8(body).unwrap())
    }
}

async fn content(stream: &mut Stream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(mut part) = within(stream.recv_data()).await? {
        all.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    Ok(all)
}

fn get(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("https://aa.test{path}"))
}

fn plain(path: &str) -> Request<()> {
    get(path).body(()).unwrap()
}

fn setup(pairs: &[&Pair]) -> Setup {
    Setup { certificates: Some(certificates(1, pairs)), tune: |s| s.tls.http3 = true, ..Setup::default() }
}

/// A world with one app, and what its clients trust.
async fn world_of(instance: &Instance) -> (World, quinn::ClientConfig) {
    let pair = Pair::new("one", &["aa.test"]);
    let world = setup(&[&pair]).start(table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    (world, client_of(&[&pair]))
}

#[tokio::test]
async fn requests_reach_the_instance_as_one_each() {
    let instance = echo().await;
    let (one, two) = (Pair::new("one", &["aa.test"]), Pair::new("two", &["bb.test"]));
    let apps =
        vec![app("aa", Serving, vec![backend(1, instance.address)]), app("bb", Serving, vec![backend(1, instance.address)])];
    let mut world = setup(&[&one, &two]).start(table(1, apps)).await;
    let mut client = Http3::new(&world, &client_of(&[&one])).await;
    let request = get("/p?q=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-request-id", "forged-request-id")
        .header("te", "trailers");
    let (status, fields, seen) = client.ask(request.body(()).unwrap()).await;
    assert_eq!(status, 200);
    assert!(seen.starts_with("GET /p?q=1 HTTP/1.1\r\nHost: aa.test\r\n"), "{seen}");
    assert!(seen.contains("cookie: a=1; b=2\r\n") && seen.contains("TE: trailers\r\n"), "{seen}");
    assert!(!seen.contains("6.6.6.6") && !seen.contains("forged") && !seen.contains("chunked"), "{seen}");
    let port = world.https.unwrap().port();
    for line in [
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: https",
        &format!("X-Forwarded-Port: {port}"),
        "Forwarded: for=127.0.0.1;host=\"aa.test\";proto=https",
        "Via: 3.0 flex-router",
    ] {
        assert!(seen.contains(&format!("{line}\r\n")), "{line}: {seen}");
    }
    assert!(!fields.contains_key("alt-svc") && fields["via"] == "1.1 flex-router", "{fields:?}");
    let line = world.line().await;
    assert!(line.contains("path=\"/p?q=1\" host=aa.test ") && line.contains(" fwd=\"127.0.0.1\" dyno=web.1 "), "{line}");
    assert!(line.ends_with(" protocol=https tls_version=tls1.3 http_version=3"), "{line}");

    // Content of unknown length with trailers, and of known length.
    let mut stream = client.begin(get("/up").method(Method::POST).body(()).unwrap()).await;
    for part in ["hello ", "world"] {
        within(stream.send_data(Bytes::from_static(part.as_bytes()))).await.unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    within(stream.send_trailers(trailers)).await.unwrap();
    within(stream.finish()).await.unwrap();
    within(stream.recv_response()).await.unwrap();
    let seen = String::from_utf8(content(&mut stream).await.unwrap()).unwrap();
    assert!(seen.contains("Transfer-Encoding: chunked\r\n") && seen.ends_with("hello world"), "{seen}");
    let request = get("/up").method(Method::POST).header("content-length", "5").body(()).unwrap();
    let mut stream = client.begin(request).await;
    within(stream.send_data(Bytes::from_static(b"hello"))).await.unwrap();
    within(stream.finish()).await.unwrap();
    within(stream.recv_response()).await.unwrap();
    let seen = String::from_utf8(content(&mut stream).await.unwrap()).unwrap();
    assert!(seen.contains("Content-Length: 5\r\n") && seen.ends_with("hello"), "{seen}");

    // More at once on one connection than it may have streams.
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..200 {
        let mut send = client.send.clone();
        asked.spawn(async move {
            let mut stream = within(send.send_request(plain(&format!("/{n}")))).await.unwrap();
            within(stream.finish()).await.unwrap();
            within(stream.recv_response()).await.unwrap();
            assert!(content(&mut stream).await.unwrap().starts_with(format!("GET /{n} ").as_bytes()));
        });
    }
    while let Some(asked) = asked.join_next().await {
        asked.unwrap();
    }
    // The router's own answers.
    let at = |uri: &str| Request::builder().uri(uri).body(()).unwrap();
    assert_eq!(client.ask(at("https://bb.test/")).await.0, 421);
    assert_eq!(client.ask(at("https://nobody.test/")).await.0, 421);
    let head = client.ask(get("/").method(Method::HEAD).body(()).unwrap()).await;
    assert_eq!((head.0, head.2.as_str()), (200, ""));
    let metrics = world.metrics.snapshot();
    assert_eq!((metrics.h3_connections, metrics.tls_handshakes), (1, 1));
    eventually(async || world.metrics.snapshot().in_flight == 0).await;
    world.set(2, vec![app("aa", Maintenance, vec![])]).await;
    assert_eq!(client.ask(plain("/")).await.0, 503);
    world.stop().await;
}

#[tokio::test]
async fn contents_stream_both_ways_with_trailers_and_nobody_is_read_ahead_for() {
    const SIZE: usize = 16 << 20;
    let (sent, got) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, taken) = (sent.clone(), got.clone());
    let (go, gone) = tokio::sync::watch::channel(false);
    let instance = instance(move |mut conn, _| {
        let (count, taken, mut gone) = (count.clone(), taken.clone(), gone.clone());
        async move {
            let head = conn.head_of_request().await;
            if head.starts_with("GET /trailers ") {
                conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n5\r\nhello\r\n").await;
                conn.send("0\r\ngrpc-status: 0\r\n\r\n").await;
                return;
            }
            if head.starts_with("POST ") {
                // Answers before it reads anything, as gRPC's streams do, and reads when it is told to.
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n").await;
                within(gone.wait_for(|go| *go)).await.unwrap();
                loop {
                    let chunk = conn.chunk().await;
                    taken.fetch_add(chunk.len(), SeqCst);
                    if chunk.is_empty() {
                        break;
                    }
                }
                conn.send("4\r\ndone\r\n0\r\n\r\n").await;
                return;
            }
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            for _ in 0..SIZE / 65536 {
                if conn.stream.write_all(&[7; 65536]).await.is_err() {
                    return;
                }
                count.fetch_add(65536, SeqCst);
            }
        }
    })
    .await;
    let (world, config) = world_of(&instance).await;
    let mut client = Http3::new(&world, &config).await;
    let trailers = async |client: &mut Http3| {
        let mut stream = client.begin(plain("/trailers")).await;
        within(stream.finish()).await.unwrap();
        assert_eq!(within(stream.recv_response()).await.unwrap().status(), 103);
        assert_eq!(within(stream.recv_response()).await.unwrap().status(), 200);
        assert_eq!(content(&mut stream).await.unwrap(), b"hello");
        assert_eq!(within(stream.recv_trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    };
    trailers(&mut client).await;

    // What waits for a reader that takes nothing is bounded, and another request passes it.
    let mut big = client.begin(plain("/big")).await;
    within(big.finish()).await.unwrap();
    within(big.recv_response()).await.unwrap();
    let still = async |count: &AtomicUsize| {
        let mut before = usize::MAX;
        within(async {
            loop {
                let now = count.load(SeqCst);
                if now == before && now > 0 {
                    return now;
                }
                before = now;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await
    };
    let ahead = still(&sent).await;
    assert!(ahead < 12 << 20, "{ahead} bytes were taken for a reader that took none");
    trailers(&mut client).await;
    let all = content(&mut big).await.unwrap();
    assert!(all.len() == SIZE && all.iter().all(|b| *b == 7));

    // Upwards likewise, while the answer's beginning is there already.
    let mut up = client.begin(get("/up").method(Method::POST).body(()).unwrap()).await;
    assert_eq!(within(up.recv_response()).await.unwrap().status(), 200);
    assert_eq!(within(up.recv_data()).await.unwrap().unwrap().chunk(), b"yes");
    let (mut send, mut recv) = up.split();
    let pushed = Arc::new(AtomicUsize::new(0));
    let counter = pushed.clone();
    let pushing = tokio::spawn(async move {
        for _ in 0..SIZE / 65536 {
            send.send_data(Bytes::from(vec![8; 65536])).await.unwrap();
            counter.fetch_add(65536, SeqCst);
        }
        send.finish().await.unwrap();
    });
    let ahead = still(&pushed).await;
    assert!(ahead < 12 << 20, "{ahead} bytes were taken for an instance that took none");
    go.send_replace(true);
    within(pushing).await.unwrap();
    assert_eq!(within(recv.recv_data()).await.unwrap().unwrap().chunk(), b"done");
    assert!(within(recv.recv_data()).await.unwrap().is_none());
    assert_eq!(got.load(SeqCst), SIZE);
    world.stop().await;
}

#[tokio::test]
async fn what_breaks_off_is_reset_and_who_gives_up_is_seen() {
    let (gone, mut went) = mpsc::unbounded_channel();
    let instance = instance(move |mut conn, _| {
        let gone = gone.clone();
        async move {
            let Some(got) = request(&mut conn).await else { return };
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await;
            if got.head.starts_with("GET /wait ") {
                conn.rest().await;
                let _ = gone.send(());
            }
        }
    })
    .await;
    let (mut world, config) = world_of(&instance).await;
    let mut client = Http3::new(&world, &config).await;
    let mut stream = client.begin(plain("/")).await;
    within(stream.finish()).await.unwrap();
    // The reset may overtake the head.
    let error = match within(stream.recv_response()).await {
        Ok(_) => content(&mut stream).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, StreamError::RemoteTerminate { code, .. } if code.value() == 0x102), "{error:?}");
    assert!(world.line().await.contains("code=H18"));
    // A client that wants no more of the answer, and one that is gone altogether.
    let mut stream = client.begin(plain("/wait")).await;
    within(stream.finish()).await.unwrap();
    within(stream.recv_response()).await.unwrap();
    stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
    within(went.recv()).await.unwrap();
    assert!(world.line().await.contains("code=H27"));
    let mut stream = client.begin(plain("/wait")).await;
    within(stream.finish()).await.unwrap();
    within(stream.recv_response()).await.unwrap();
    client.connection.close(0_u32.into(), b"");
    within(went.recv()).await.unwrap();
    assert!(world.line().await.contains("code=H27"));
    eventually(async || world.metrics.snapshot().in_flight == 0).await;
    world.stop().await;
}

/// Fields of the answer to a request over TLS, by HTTP/1.1.
async fn over_tcp(world: &World, pair: &Pair, host: &str) -> String {
    let config = client_config(&[pair], &[b"http/1.1"], &[&rustls::version::TLS13]);
    let stream = within(TcpStream::connect(world.https.unwrap())).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("aa.test").unwrap();
    let mut stream = within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    within(stream.write_all(request.as_bytes())).await.unwrap();
    let mut text = Vec::new();
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn it_is_off_unless_set_and_then_told_of_over_tls_alone() {
    let (instance, own) = (
        fixed("ok").await,
        instance(|mut conn, _| async move {
            while request(&mut conn).await.is_some() {
                conn.send("HTTP/1.1 200 OK\r\nalt-svc: clear\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
        .await,
    );
    let pair = Pair::new("one", &["aa.test", "bb.test"]);
    let apps = || {
        table(1, vec![app("aa", Serving, vec![backend(1, instance.address)]), app("bb", Serving, vec![backend(2, own.address)])])
    };
    let off = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() }.start(apps()).await;
    assert!(!over_tcp(&off, &pair, "aa.test").await.to_lowercase().contains("alt-svc"));
    let config = client_of(&[&pair]);
    let nobody = tokio::time::timeout(Duration::from_millis(300), dial(off.https.unwrap(), &config, "aa.test")).await;
    assert!(!matches!(nobody, Ok(Ok(_))));
    off.stop().await;

    let world = setup(&[&pair]).start(apps()).await;
    let line = format!("Alt-Svc: h3=\":{}\"; ma=86400\r\n", world.https.unwrap().port());
    eventually(async || over_tcp(&world, &pair, "aa.test").await.contains(&line)).await;
    // Pages of the router's own say it too, an app that says something itself is left to, and plain HTTP cannot.
    let page = over_tcp(&world, &pair, "nobody.test").await;
    assert!(page.starts_with("HTTP/1.1 421 ") && page.contains(&line), "{page}");
    let said = over_tcp(&world, &pair, "bb.test").await;
    assert!(said.contains("alt-svc: clear\r\n") && !said.contains("Alt-Svc"), "{said}");
    assert!(world.get("aa.test", "/").await.field("alt-svc").is_none());
    // Over HTTP/2.
    let config = client_config(&[&pair], &[b"h2"], &[&rustls::version::TLS13]);
    let stream = within(TcpStream::connect(world.https.unwrap())).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("aa.test").unwrap();
    let stream = within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.unwrap();
    let (mut send, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = within(send.send_request(plain("/"), true).unwrap().0).await.unwrap();
    assert_eq!(answer.headers()["alt-svc"], line.trim_end()["Alt-Svc: ".len()..]);
    drop(send);
    world.stop().await;
    // The port that clients see may be another one.
    let setup = Setup { tune: |s| (s.tls.http3, s.tls.http3_port) = (true, Some(443)), ..setup(&[&pair]) };
    let world = setup.start(apps()).await;
    eventually(async || over_tcp(&world, &pair, "aa.test").await.contains("Alt-Svc: h3=\":443\"; ma=86400\r\n")).await;
    world.stop().await;
}

#[tokio::test]
async fn certificates_are_replaced_sessions_resume_and_addresses_are_proven_on_demand() {
    let instance = echo().await;
    let pair = Pair::new("one", &["aa.test"]);
    let tune = |s: &mut flex_router::RouterSettings| (s.tls.http3, s.limits.quic_unproven) = (true, 0);
    let apps = table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])]);
    let mut world = Setup { tune, ..setup(&[&pair]) }.start(apps).await;
    // Nobody is trusted at once here: each of these was sent a Retry.
    let config = client_of(&[&pair]);
    let mut client = Http3::new(&world, &config).await;
    assert_eq!(client.ask(plain("/")).await.0, 200);
    let hits = world.metrics.snapshot().limits.iter().find(|(name, _)| *name == "quic_unproven").unwrap().1;
    assert!(hits >= 1);

    let renewed = Pair::new("renewed", &["aa.test"]);
    let after = client_of(&[&renewed]);
    assert!(dial(world.https.unwrap(), &after, "aa.test").await.is_err());
    world.certificates.send_replace(Arc::new(certificates(2, &[&renewed])));
    eventually(async || dial(world.https.unwrap(), &after, "aa.test").await.is_ok()).await;
    assert_eq!(client.ask(plain("/")).await.0, 200);
    // Who trusts the old certificate alone gets in by the session of the connection before, and not without one.
    assert!(dial(world.https.unwrap(), &client_of(&[&pair]), "aa.test").await.is_err());
    let mut again = Http3::new(&world, &config).await;
    assert_eq!(again.ask(plain("/")).await.0, 200);

    // The client's address changes under the connection, which goes on as whose it was.
    let (line, before) = (world.line().await, again.endpoint.local_addr().unwrap());
    assert!(line.contains("fwd=\"127.0.0.1\""), "{line}");
    again.endpoint.rebind(std::net::UdpSocket::bind(("127.0.0.2", 0)).unwrap()).unwrap();
    assert_ne!(again.endpoint.local_addr().unwrap(), before);
    let (status, _, seen) = again.ask(plain("/moved")).await;
    assert!(status == 200 && seen.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{seen}");
    world.stop().await;
}

#[tokio::test]
async fn policies_hold_as_over_tcp() {
    let instance = echo().await;
    let pair = Pair::new("one", &["aa.test"]);
    let mut one = app("aa", Serving, vec![backend(1, instance.address)]);
    let http = serde_json::json!({
        "max_body_bytes": 10, "rate_limit": { "requests": 4, "seconds": 3600 }, "headers": { "x-set": "yes" },
        "hsts": { "max_age_seconds": 60 }, "https_redirect": true
    });
    let serde_json::Value::Object(http) = http else { panic!("no object") };
    one.policy = Some(Arc::new(Policy { http: HttpPolicy::read(http).unwrap(), ..Policy::default() }));
    let mut world = setup(&[&pair]).start(table(1, vec![one])).await;
    let mut client = Http3::new(&world, &client_of(&[&pair])).await;
    let (status, fields, _) = client.ask(plain("/")).await;
    assert!(status == 200 && fields["x-set"] == "yes" && fields["strict-transport-security"] == "max-age=60", "{fields:?}");
    let mut stream = client.begin(get("/").method(Method::POST).body(()).unwrap()).await;
    within(stream.send_data(Bytes::from(vec![1; 1000]))).await.unwrap();
    assert_eq!(within(stream.recv_response()).await.unwrap().status(), 413);
    for want in [200, 200, 429] {
        assert_eq!(client.ask(plain("/")).await.0, want);
    }
    let mut codes = Vec::new();
    for _ in 0..5 {
        let line = world.line().await;
        codes.extend(line.split_once("code=").map(|(_, rest)| rest[..3].to_owned()));
    }
    assert_eq!(codes, ["H43", "H42"]);
    world.stop().await;
}

#[tokio::test]
async fn what_a_stop_cuts_off_is_told_at_once() {
    let instance = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await;
        conn.rest().await;
    })
    .await;
    let pair = Pair::new("one", &["aa.test"]);
    let timeouts = flex_router::Timeouts { drain: Duration::from_millis(200), ..Default::default() };
    let mut seen = Vec::new();
    // The packet that tells may be lost.
    for _ in 0..3 {
        let apps = table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])]);
        let mut world = Setup { timeouts: timeouts.clone(), ..setup(&[&pair]) }.start(apps).await;
        let mut client = Http3::new(&world, &client_of(&[&pair])).await;
        let mut stream = client.begin(plain("/")).await;
        within(stream.finish()).await.unwrap();
        within(stream.recv_response()).await.unwrap();
        world.begin_stop();
        // Long before the client would find out by itself.
        let closed = within(client.connection.closed()).await;
        let line = world.line().await;
        assert!(line.contains("code=H24"), "{line}");
        world.stop().await;
        if matches!(closed, ConnectionError::ApplicationClosed(_)) {
            return;
        }
        seen.push(closed);
    }
    panic!("{seen:?}");
}

#[tokio::test]
async fn a_client_that_vanished_does_not_hold_up_a_stop() {
    let instance = fixed("ok").await;
    let (world, config) = world_of(&instance).await;
    let begun = {
        // Without its runtime the client says nothing more, not even that it is gone.
        let (address, thread) =
            (world.https.unwrap(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
        let asked = std::thread::spawn(move || {
            thread.block_on(async {
                let (_endpoint, connection) = dial(address, &config, "aa.test").await.unwrap();
                let (mut send, _recv) = within(connection.open_bi()).await.unwrap();
                within(send.write_all(&wrong::sound())).await.unwrap();
                send.finish().unwrap();
                // The last turn of what sends it.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            });
        });
        tokio::task::spawn_blocking(move || asked.join().unwrap()).await.unwrap();
        std::time::Instant::now()
    };
    world.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_a_router_that_follows_takes_the_port() {
    static PORT: AtomicU16 = AtomicU16::new(0);
    let (begun, mut began) = mpsc::unbounded_channel();
    let instance = instance(move |mut conn, _| {
        let begun = begun.clone();
        async move {
            let Some(got) = request(&mut conn).await else { return };
            if got.head.starts_with("GET /slow ") {
                let (tell, told) = tokio::sync::oneshot::channel::<()>();
                begun.send(tell).unwrap();
                told.await.unwrap();
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let pair = Pair::new("one", &["aa.test"]);
    let apps = || table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])]);
    let mut world = setup(&[&pair]).start(apps()).await;
    let config = client_of(&[&pair]);
    let mut client = Http3::new(&world, &config).await;
    let mut slow = client.begin(plain("/slow")).await;
    within(slow.finish()).await.unwrap();
    let tell = within(began.recv()).await.unwrap();

    // Another router on the same ports, as when one is replaced: TCP is shared, and UDP is had in turn.
    PORT.store(world.https.unwrap().port(), SeqCst);
    let tune = |s: &mut flex_router::RouterSettings| {
        s.tls.http3 = true;
        s.tls.listen[0].set_port(PORT.load(SeqCst));
    };
    let next = Setup { tune, ..setup(&[&pair]) }.start(apps()).await;
    world.begin_stop();
    // The connection takes no more requests, new ones are refused, and the one under way ends.
    within(async {
        loop {
            let Ok(mut stream) = client.send.send_request(plain("/late")).await else { break };
            let _ = stream.finish().await;
            let _ = stream.recv_response().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(dial(next.https.unwrap(), &config, "aa.test").await.is_err());
    tell.send(()).unwrap();
    within(slow.recv_response()).await.unwrap();
    assert_eq!(content(&mut slow).await.unwrap(), b"ok");
    let closed = within(client.connection.closed()).await;
    let by_router = matches!(&closed, ConnectionError::ApplicationClosed(c) if c.error_code.into_inner() == 0x100);
    let lost = matches!(closed, ConnectionError::Reset | ConnectionError::TimedOut);
    assert!(by_router || lost || matches!(closed, ConnectionError::LocallyClosed), "{closed:?}");
    world.stop().await;
    eventually(async || dial(next.https.unwrap(), &config, "aa.test").await.is_ok()).await;
    assert_eq!(Http3::new(&next, &config).await.ask(plain("/")).await.0, 200);
    next.stop().await;
}
