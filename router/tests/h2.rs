//! HTTP/2 of clients, over TLS and with prior knowledge: the same requests reach instances as over HTTP/1.1, streams keep
//! their flow control, and floods end the connection.

mod frames;
mod limits;
mod support;
use bytes::Bytes;
use flex_model::AppState::Serving;
use h2::{Reason, RecvStream, client::SendRequest};
use http::{HeaderMap, Method, Request};
use std::{sync::Arc, time::Duration};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = within(TcpStream::connect(world.address)).await.unwrap();
    // A connection window that one slow stream does not fill.
    let mut builder = h2::client::Builder::new();
    let (send, connection) = within(builder.initial_connection_window_size(1 << 20).handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    within(send.ready()).await.unwrap()
}

async fn content(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(part) = within(body.data()).await {
        let part = part?;
        body.flow_control().release_capacity(part.len()).unwrap();
        all.extend_from_slice(&part);
    }
    Ok(all)
}

fn get(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://aa.test{path}"))
}

async fn text(send: &mut SendRequest<Bytes>, request: Request<()>) -> (u16, String) {
    let (answer, _) = send.send_request(request, true).unwrap();
    let answer = within(answer).await.unwrap();
    let status = answer.status().as_u16();
    (status, String::from_utf8(content(&mut answer.into_body()).await.unwrap()).unwrap())
}

async fn world_of(instance: &Instance) -> World {
    World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await
}

#[tokio::test]
async fn requests_reach_the_instance_as_one_each() {
    let instance = echo().await;
    let mut world = world_of(&instance).await;
    let mut send = connect(&world).await;
    let request = get("/p?q=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-request-id", "forged-request-id")
        .header("te", "trailers")
        .body(());
    let (status, seen) = text(&mut send, request.unwrap()).await;
    assert_eq!(status, 200);
    assert!(seen.starts_with("GET /p?q=1 HTTP/1.1\r\nHost: aa.test\r\n"), "{seen}");
    assert!(seen.contains("cookie: a=1; b=2\r\n") && seen.contains("TE: trailers\r\n"), "{seen}");
    assert!(!seen.contains("6.6.6.6") && !seen.contains("forged"), "{seen}");
    let line = world.line().await;
    assert!(line.contains("path=\"/p?q=1\" host=aa.test ") && line.ends_with(" protocol=http http_version=2"), "{line}");

    // Content of unknown length with trailers, and of known length.
    let (answer, mut up) = send.send_request(get("/up").method(Method::POST).body(()).unwrap(), false).unwrap();
    up.send_data(Bytes::from_static(b"hello "), false).unwrap();
    up.send_data(Bytes::from_static(b"world"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    up.send_trailers(trailers).unwrap();
    let seen = content(&mut within(answer).await.unwrap().into_body()).await.unwrap();
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("Transfer-Encoding: chunked\r\n") && seen.ends_with("hello world"), "{seen}");
    let request = get("/up").method(Method::POST).header("content-length", "5").body(()).unwrap();
    let (answer, mut up) = send.send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let seen = String::from_utf8(content(&mut within(answer).await.unwrap().into_body()).await.unwrap()).unwrap();
    assert!(seen.contains("Content-Length: 5\r\n") && seen.ends_with("hello"), "{seen}");
    // Many at once on one connection.
    let answers: Vec<_> = (0..100).map(|n| send.send_request(get(&format!("/{n}")).body(()).unwrap(), true).unwrap().0).collect();
    for (n, answer) in answers.into_iter().enumerate() {
        let seen = content(&mut within(answer).await.unwrap().into_body()).await.unwrap();
        assert!(seen.starts_with(format!("GET /{n} ").as_bytes()));
    }
    assert_eq!(text(&mut send, Request::builder().uri("http://nobody.test/").body(()).unwrap()).await.0, 404);
    world.stop().await;
}

#[tokio::test]
async fn over_tls_it_is_chosen_and_other_names_are_misdirected() {
    let instance = echo().await;
    let apps =
        vec![app("aa", Serving, vec![backend(1, instance.address)]), app("bb", Serving, vec![backend(1, instance.address)])];
    let (one, two) = (Pair::new("one", &["aa.test"]), Pair::new("two", &["bb.test"]));
    let setup = Setup { certificates: Some(certificates(1, &[&one, &two])), ..Setup::default() };
    let mut world = setup.start(table(1, apps)).await;
    let config = client_config(&[&one], &[b"h2", b"http/1.1"], &[&rustls::version::TLS13]);
    let stream = within(TcpStream::connect(world.https.unwrap())).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("aa.test").unwrap();
    let stream = within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let mut send = within(send.ready()).await.unwrap();
    let (status, seen) = text(&mut send, Request::builder().uri("https://aa.test/").body(()).unwrap()).await;
    assert!(status == 200 && seen.contains("X-Forwarded-Proto: https\r\n"), "{seen}");
    assert!(world.line().await.ends_with(" protocol=https tls_version=tls1.3 http_version=2"));
    assert_eq!(text(&mut send, Request::builder().uri("https://bb.test/").body(()).unwrap()).await.0, 421);
    let line = world.line().await;
    assert!(line.contains("at=error code=H31 desc=\"Misdirected request\" method=GET path=\"/\" host=bb.test "), "{line}");
    assert_eq!(text(&mut send, Request::builder().uri("https://aa.test/").body(()).unwrap()).await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn answers_stream_with_trailers_and_a_slow_reader_is_not_read_ahead_for() {
    const SIZE: usize = 16 << 20;
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let instance = instance(move |mut conn, _| {
        let count = count.clone();
        async move {
            let Some(got) = request(&mut conn).await else { return };
            if got.head.starts_with("GET /trailers ") {
                conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n5\r\nhello\r\n").await;
                conn.send("0\r\ngrpc-status: 0\r\n\r\n").await;
                return;
            }
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            for _ in 0..SIZE / 65536 {
                if conn.stream.write_all(&[7; 65536]).await.is_err() {
                    return;
                }
                count.fetch_add(65536, std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    let world = world_of(&instance).await;
    let mut send = connect(&world).await;
    let (answer, _) = send.send_request(get("/trailers").body(()).unwrap(), true).unwrap();
    let mut body = within(answer).await.unwrap().into_body();
    assert_eq!(content(&mut body).await.unwrap(), b"hello");
    assert_eq!(within(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");

    let (answer, _) = send.send_request(get("/big").body(()).unwrap(), true).unwrap();
    let mut body = within(answer).await.unwrap().into_body();
    // Another request passes while this one's reader does nothing, and what the instance sends ahead is bounded.
    assert_eq!(text(&mut send, get("/trailers").body(()).unwrap()).await.1, "hello");
    let mut before = usize::MAX;
    within(async {
        loop {
            let now = sent.load(std::sync::atomic::Ordering::SeqCst);
            if now == before && now > 0 {
                break;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert!(before < 12 << 20, "{before} bytes were taken for a reader that took none");
    assert_eq!(content(&mut body).await.unwrap().len(), SIZE);
    world.stop().await;
}

#[tokio::test]
async fn what_breaks_off_is_reset_and_who_gives_up_is_seen() {
    let (gone, mut went) = tokio::sync::mpsc::unbounded_channel();
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
    let mut world = world_of(&instance).await;
    let mut send = connect(&world).await;
    let (answer, _) = send.send_request(get("/").body(()).unwrap(), true).unwrap();
    // The reset may overtake the head.
    let error = match within(answer).await {
        Ok(answer) => content(&mut answer.into_body()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    assert!(world.line().await.contains("code=H18"));
    let (answer, mut up) = send.send_request(get("/wait").body(()).unwrap(), false).unwrap();
    up.send_data(Bytes::new(), true).unwrap();
    let body = within(answer).await.unwrap().into_body();
    up.send_reset(Reason::CANCEL);
    drop(body);
    within(went.recv()).await.unwrap();
    assert!(world.line().await.contains("code=H27"));
    assert_eq!(world.metrics.snapshot().in_flight, 0);
    world.stop().await;
}

#[tokio::test]
async fn websockets_run_in_a_stream() {
    let instance = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        assert!(
            head.starts_with("GET /chat HTTP/1.1\r\n") && head.contains("Upgrade: websocket\r\n")
                || head.contains("upgrade: websocket\r\n"),
            "{head}"
        );
        let key = head.lines().find_map(|l| l.strip_prefix("sec-websocket-key: ")).unwrap();
        assert_eq!(key.len(), 24);
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhi",
        )
        .await;
        loop {
            if conn.buf.is_empty() && conn.fill().await == 0 {
                return;
            }
            let got = std::mem::take(&mut conn.buf);
            conn.send_bytes(&got).await;
        }
    })
    .await;
    let mut world = world_of(&instance).await;
    let mut send = connect(&world).await;
    within(async {
        while !send.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut request = get("/chat").method(Method::CONNECT).header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, mut up) = send.send_request(request, false).unwrap();
    let answer = within(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("sec-websocket-accept") && !answer.headers().contains_key("upgrade"));
    let mut body = answer.into_body();
    assert_eq!(within(body.data()).await.unwrap().unwrap(), "hi");
    for text in ["one", "two"] {
        up.send_data(Bytes::from_static(text.as_bytes()), false).unwrap();
        assert_eq!(within(body.data()).await.unwrap().unwrap(), text);
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(content(&mut body).await.unwrap(), b"");
    assert!(world.line().await.contains(" status=101 "));

    // A plain CONNECT, and one to something else.
    let request = Request::builder().method(Method::CONNECT).uri("aa.test:80").body(()).unwrap();
    let (answer, _) = send.send_request(request, true).unwrap();
    assert_eq!(within(answer).await.unwrap().status(), 405);
    let mut request = get("/chat").method(Method::CONNECT).body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("connect-udp"));
    let (answer, _) = send.send_request(request, false).unwrap();
    assert_eq!(within(answer).await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    world.stop().await;
}

/// A frame of stream `id`.
fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let n = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&n[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// A field without index or Huffman coding.
fn hpack(name: &str, value: &str) -> Vec<u8> {
    let n = |s: &str| u8::try_from(s.len()).unwrap();
    [&[0, n(name)], name.as_bytes(), &[n(value)], value.as_bytes()].concat()
}

fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(n, v)| hpack(n, v)).collect()
}

const USUAL: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "aa.test")];

/// Sends bytes after the preface, and returns what comes back until the router closes.
async fn raw(world: &World, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let stream = within(TcpStream::connect(world.address)).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let answered = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = within(read.read_to_end(&mut all)).await;
        all
    });
    within(write.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat())).await.unwrap();
    for part in frames {
        if within(write.write_all(&part)).await.is_err() {
            break;
        }
    }
    within(answered).await.unwrap()
}

#[tokio::test]
async fn heads_that_would_smuggle_are_reset_or_refused_and_never_reach_an_instance() {
    // What an instance gets besides the sound requests.
    let slipped = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = slipped.clone();
    let instance = instance(move |mut conn, _| {
        let kept = kept.clone();
        async move {
            while let Some(got) = request(&mut conn).await {
                if !got.head.starts_with("GET /sound HTTP/1.1\r\n") {
                    kept.lock().unwrap().push(got.head);
                }
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let world = world_of(&instance).await;
    let with = |extra: &[(&'static str, &'static str)]| head(&[&USUAL[..], extra].concat());
    let changed = |n: usize, value: &'static str| {
        let mut fields = USUAL;
        fields[n].1 = value;
        head(&fields)
    };
    let cases = [
        with(&[("transfer-encoding", "chunked")]),
        with(&[("connection", "close")]),
        with(&[("upgrade", "h2c")]),
        with(&[("te", "gzip")]),
        with(&[("x", "a\r\ncontent-length: 5")]),
        with(&[("x", "a\nb")]),
        with(&[("x\r\ny", "a")]),
        with(&[("x: y", "a")]),
        with(&[("X-Upper", "a")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "5")]),
        with(&[("host", "other.test")]),
        with(&[("host", "aa.test"), ("host", "aa.test")]),
        with(&[(":path", "/two")]),
        with(&[(":unknown", "x")]),
        head(&[&[("x", "y")], &USUAL[..]].concat()),
        changed(0, "GET / HTTP/1.1\r\nHost: aa.test\r\n\r\nGET"),
        changed(0, "G T"),
        changed(2, "/ HTTP/1.1\r\nX: y\r\n\r\n"),
        changed(2, "/a b"),
        changed(2, "relative"),
        changed(2, ""),
        changed(3, "aa.test\r\nX: y"),
        changed(3, "user@aa.test"),
        changed(3, ""),
        head(&USUAL[..3]),
        head(&USUAL[1..]),
    ];
    for (n, case) in cases.iter().enumerate() {
        let sound = head(&[USUAL[0], USUAL[1], (":path", "/sound"), USUAL[3]]);
        // A refused request may end the connection or only itself; GOAWAY at the end makes the router close.
        let got = raw(&world, [frame(1, 5, 1, case), frame(1, 5, 3, &sound), frame(7, 0, 0, &[0; 8])]).await;
        assert!(!got.is_empty(), "case {n}");
    }
    assert_eq!(*slipped.lock().unwrap(), Vec::<String>::new());
    world.stop().await;
}

fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn floods_end_the_connection_and_leave_no_memory_behind() {
    let instance = fixed("ok").await;
    let world = world_of(&instance).await;
    assert_eq!(text(&mut connect(&world).await, get("/").body(()).unwrap()).await.1, "ok");
    let before = resident_kib();
    let resets =
        (0..100_000_u32).map(|n| [frame(1, 5, 2 * n + 1, &head(&USUAL)), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat());
    raw(&world, resets).await;
    raw(&world, (0..100_000).map(|_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]))).await;
    raw(&world, (0..100_000).map(|_| frame(6, 0, 0, &[0; 8]))).await;
    let begun = [frame(1, 1, 1, &head(&USUAL))];
    raw(
        &world,
        begun.into_iter().chain((0..100_000).map(|_| frame(9, 0, 1, &hpack("x", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy")))),
    )
    .await;
    // A small head that unpacks to a large one: one indexed field, again and again.
    let indexed = [&[0x40, 1, b'x', 120][..], &[b'y'; 120], &[0xbe; 15_000]].concat();
    raw(&world, [frame(1, 5, 1, &[head(&USUAL), indexed].concat()), frame(7, 0, 0, &[0; 8])]).await;
    let after = resident_kib();
    assert!(after < before + (50 << 10), "{before} KiB before, {after} KiB after");
    // SETTINGS and PING are counted here alone; the protocol's own limit may have met the others first.
    eventually(async || world.metrics.snapshot().h2_refused >= 2).await;
    eventually(async || world.metrics.snapshot().in_flight == 0).await;
    assert_eq!(text(&mut connect(&world).await, get("/").body(()).unwrap()).await.1, "ok");
    world.stop().await;
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_tells_the_client() {
    let (begun, mut began) = tokio::sync::mpsc::unbounded_channel();
    let instance = instance(move |mut conn, _| {
        let begun = begun.clone();
        async move {
            let Some(_) = request(&mut conn).await else { return };
            let (tell, told) = tokio::sync::oneshot::channel::<()>();
            begun.send(tell).unwrap();
            told.await.unwrap();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let mut world = world_of(&instance).await;
    let mut send = connect(&world).await;
    let (answer, _) = send.send_request(get("/").body(()).unwrap(), true).unwrap();
    let tell = within(began.recv()).await.unwrap();
    world.begin_stop();
    // The connection takes no more requests, and the one under way ends.
    within(async {
        while send.clone().ready().await.is_ok_and(|mut s| s.send_request(get("/late").body(()).unwrap(), true).is_ok()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    tell.send(()).unwrap();
    let mut body = within(answer).await.unwrap().into_body();
    assert_eq!(content(&mut body).await.unwrap(), b"ok");
    world.stop().await;
}
