//! Streams that no client of good will sends, and the one kind of request that the client library does not know.

use super::*;

/// A field section of literals.
fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0, 0];
    for (name, value) in fields {
        for (flags, most, text) in [(0x20, 7, name), (0, 127, value)] {
            if text.len() < most {
                out.push(flags | u8::try_from(text.len()).unwrap());
            } else {
                out.push(flags | u8::try_from(most).unwrap());
                let mut rest = text.len() - most;
                while rest > 127 {
                    out.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
                    rest >>= 7;
                }
                out.push(u8::try_from(rest).unwrap());
            }
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// A frame of up to 2^30 bytes.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let n = (u32::try_from(payload.len()).unwrap() | 0x8000_0000).to_be_bytes();
    [&[kind], &n[..], payload].concat()
}

const USUAL: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "aa.test"), (":path", "/")];

fn head(more: &[(&str, &str)]) -> Vec<u8> {
    frame(1, &section(&[&USUAL, more].concat()))
}

fn instead(at: usize, value: &'static str) -> Vec<u8> {
    let mut fields = USUAL;
    fields[at].1 = value;
    frame(1, &section(&fields))
}

/// A request that nothing is wrong with.
pub(super) fn sound() -> Vec<u8> {
    head(&[])
}

/// What came of a stream.
#[derive(Debug, PartialEq)]
enum Came {
    /// It ended.
    Answer(Vec<u8>),
    Reset(u64),
    Closed(u64),
    /// The packet that says why the connection was closed was lost, as packets are.
    Lost,
}

/// How often a lost one is tried again.
const TRIES: usize = 5;

fn closed(e: &ConnectionError) -> Came {
    match e {
        ConnectionError::ApplicationClosed(c) => Came::Closed(c.error_code.into_inner()),
        ConnectionError::Reset | ConnectionError::TimedOut => Came::Lost,
        e => panic!("{e:?}"),
    }
}

/// Sends a stream's bytes and its end on a connection of its own.
async fn raw(world: &World, config: &quinn::ClientConfig, bytes: &[u8]) -> Came {
    for _ in 0..TRIES {
        match raw_once(world, config, bytes).await {
            Came::Lost => {}
            came => return came,
        }
    }
    Came::Lost
}

async fn raw_once(world: &World, config: &quinn::ClientConfig, bytes: &[u8]) -> Came {
    let (_endpoint, connection) = dial(world.https.unwrap(), config, "aa.test").await.unwrap();
    let (mut send, mut recv) = within(connection.open_bi()).await.unwrap();
    // The router may have stopped it before it is whole.
    let _ = within(send.write_all(bytes)).await;
    let _ = send.finish();
    match within(recv.read_to_end(1 << 20)).await {
        Ok(answer) => Came::Answer(answer),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Came::Reset(code.into_inner()),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(e))) => closed(&e),
        Err(e) => panic!("{e:?}"),
    }
}

/// Sends one of a client's own streams, without an end unless `ended`.
async fn side(world: &World, config: &quinn::ClientConfig, streams: &[Vec<u8>], ended: bool) -> Came {
    for _ in 0..TRIES {
        match side_once(world, config, streams, ended).await {
            Came::Lost => {}
            came => return came,
        }
    }
    Came::Lost
}

async fn side_once(world: &World, config: &quinn::ClientConfig, streams: &[Vec<u8>], ended: bool) -> Came {
    let (_endpoint, connection) = dial(world.https.unwrap(), config, "aa.test").await.unwrap();
    let mut kept = Vec::new();
    for bytes in streams {
        // The router may have closed it by the stream before.
        let Ok(mut send) = within(connection.open_uni()).await else { break };
        let _ = within(send.write_all(bytes)).await;
        if ended {
            let _ = send.finish();
        }
        kept.push(send);
    }
    closed(&within(connection.closed()).await)
}

#[tokio::test]
async fn requests_that_would_smuggle_are_refused_and_never_reach_an_instance() {
    const MESSAGE: Came = Came::Reset(0x10e);
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
    let (world, config) = world_of(&instance).await;
    let sound = instead(3, "/sound");
    let malformed = [
        head(&[("transfer-encoding", "chunked")]),
        head(&[("connection", "close")]),
        head(&[("upgrade", "h2c")]),
        head(&[("te", "gzip")]),
        head(&[("x", "a\r\ncontent-length: 5")]),
        head(&[("x\r\ny", "a")]),
        head(&[("x: y", "a")]),
        head(&[("X-Upper", "a")]),
        head(&[("content-length", "5")]),
        head(&[("host", "other.test")]),
        head(&[("host", "aa.test"), ("host", "aa.test")]),
        head(&[(":path", "/two")]),
        head(&[(":unknown", "x")]),
        frame(1, &section(&[&[("x", "y")], &USUAL[..]].concat())),
        frame(1, &section(&USUAL[..3])),
        frame(1, &section(&USUAL[1..])),
        frame(1, &section(&[USUAL[0], USUAL[1], USUAL[3]])),
        instead(0, "GET / HTTP/1.1\r\nHost: aa.test\r\n\r\nGET"),
        instead(1, "http"),
        instead(2, ""),
        instead(2, "aa.test\r\nX: y"),
        instead(3, "/ HTTP/1.1\r\nX: y\r\n\r\n"),
        instead(3, "relative"),
        instead(3, ""),
    ];
    for (n, bytes) in malformed.iter().enumerate() {
        assert_eq!(raw(&world, &config, bytes).await, MESSAGE, "case {n}");
    }
    // Refused by the engine, with a page that has the status.
    for (bytes, status) in [
        (instead(2, "user@aa.test"), "400"),
        (head(&[("content-length", "0"), ("content-length", "0")]), "400"),
        (frame(1, &section(&[(":method", "CONNECT"), (":authority", "aa.test:80")])), "405"),
        (head(&[("x-large", &"y".repeat(70 << 10))]), "431"),
        // By what it says of its length alone.
        ([&[1][..], &0xc000_0000_7fff_ffff_u64.to_be_bytes()].concat(), "431"),
    ] {
        let came = raw(&world, &config, &bytes).await;
        assert!(matches!(&came, Came::Answer(a) if a.windows(3).any(|w| w == status.as_bytes())), "{status}: {came:?}");
    }
    // Content that is not as long as it was said to be; frames that are out of place or cut off.
    let with_length = head(&[("content-length", "5")]);
    let (data, none) = (frame(0, b"hello!"), Vec::new());
    for (parts, want) in [
        (vec![&with_length, &data], MESSAGE),
        (vec![&frame(0, b"hel"), &sound], Came::Closed(0x105)),
        (vec![&sound, &frame(4, b"")], Came::Closed(0x105)),
        (vec![&frame(4, b"")], Came::Closed(0x105)),
        (vec![&frame(6, b"")], Came::Closed(0x105)),
        (vec![&sound[..9].to_vec()], Came::Closed(0x106)),
        (vec![&none], Came::Reset(0x10d)),
        (vec![&frame(1, &[0, 0, 0x80])], Came::Closed(0x200)),
        (vec![&frame(1, &[1, 0, 0xd1])], Came::Closed(0x200)),
    ] {
        let bytes: Vec<u8> = parts.into_iter().flatten().copied().collect();
        let came = raw(&world, &config, &bytes).await;
        // A sound request before it may have been answered by then.
        assert!(came == want || bytes.starts_with(&sound) && matches!(came, Came::Answer(_)), "{bytes:x?}: {came:?}");
    }
    assert!(matches!(raw(&world, &config, &sound).await, Came::Answer(a) if a.ends_with(b"ok")));
    let reached: Vec<String> = std::mem::take(&mut *slipped.lock().unwrap());
    // The head of what had too much content may have gone there before that was known, and nothing else.
    assert!(reached.iter().all(|head| head.contains("Content-Length: 5\r\n")), "{reached:?}");
    eventually(async || world.metrics.snapshot().in_flight == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn streams_that_break_the_protocol_and_floods_end_the_connection() {
    let instance = fixed("ok").await;
    let (world, config) = world_of(&instance).await;
    let settings = frame(4, &[]);
    let control = |frames: &[&[u8]]| [&[0][..], &frames.concat()].concat();
    let cases = [
        (vec![control(&[&settings]), control(&[&settings])], false, 0x103),
        (vec![vec![1]], false, 0x103),
        (vec![control(&[&settings])], true, 0x104),
        (vec![control(&[&frame(7, &[0])])], false, 0x10a),
        (vec![control(&[&settings, &settings])], false, 0x105),
        (vec![control(&[&settings, &frame(0, b"x")])], false, 0x105),
        (vec![control(&[&frame(4, &[2, 1])])], false, 0x109),
        (vec![control(&[&frame(4, &[0x40])])], false, 0x106),
        (vec![control(&[&frame(4, &[0x21; 5000])])], false, 0x107),
        // A dynamic table that nobody offered.
        (vec![vec![2, 0x3f, 0xe1, 0x1f]], false, 0x201),
    ];
    for (n, (streams, ended, code)) in cases.into_iter().enumerate() {
        assert_eq!(side(&world, &config, &streams, ended).await, Came::Closed(code), "case {n}");
    }
    // Unknown streams and settings mean nothing, and requests on the same connection are served.
    let (_endpoint, connection) = dial(world.https.unwrap(), &config, "aa.test").await.unwrap();
    let unknown = control(&[&frame(4, &[0x21, 5, 6, 0x40, 0xff]), &frame(0x21, b"grease")]);
    let mut kept = Vec::new();
    for bytes in [&unknown[..], &[0x21, 1, 2, 3], &[2, 0x20], &[3]] {
        let mut send = within(connection.open_uni()).await.unwrap();
        within(send.write_all(bytes)).await.unwrap();
        kept.push(send);
    }
    let (mut send, mut recv) = within(connection.open_bi()).await.unwrap();
    within(send.write_all(&head(&[]))).await.unwrap();
    send.finish().unwrap();
    assert!(within(recv.read_to_end(1 << 16)).await.unwrap().ends_with(b"ok"));

    // Requests that are given up as soon as they are made.
    let flood = async {
        while let Ok((mut send, _recv)) = connection.open_bi().await {
            let _ = send.write_all(&head(&[])).await;
            let _ = send.reset(0x10c_u32.into());
        }
    };
    within(flood).await;
    assert!(matches!(closed(&within(connection.closed()).await), Came::Closed(0x107) | Came::Lost));
    eventually(async || world.metrics.snapshot().h3_refused == 1).await;
    eventually(async || world.metrics.snapshot().in_flight == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn websockets_run_in_a_stream() {
    let instance = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n") && head.to_lowercase().contains("upgrade: websocket\r\n"), "{head}");
        let accept =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhi";
        conn.send(accept).await;
        loop {
            if conn.buf.is_empty() && conn.fill().await == 0 {
                return;
            }
            let got = std::mem::take(&mut conn.buf);
            conn.send_bytes(&got).await;
        }
    })
    .await;
    let (mut world, config) = world_of(&instance).await;
    let (_endpoint, connection) = dial(world.https.unwrap(), &config, "aa.test").await.unwrap();
    let (mut send, mut recv) = within(connection.open_bi()).await.unwrap();
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        USUAL[1],
        USUAL[2],
        (":path", "/chat"),
        ("sec-websocket-version", "13"),
    ];
    within(send.write_all(&frame(1, &section(&fields)))).await.unwrap();
    let mut got = Vec::new();
    let mut until = async |end: &[u8]| {
        while !got.ends_with(end) {
            let chunk = within(recv.read_chunk(1 << 10, true)).await.unwrap().expect("more");
            got.extend_from_slice(&chunk.bytes);
        }
    };
    until(&[0, 2, b'h', b'i']).await;
    for text in ["one", "two"] {
        within(send.write_all(&frame(0, text.as_bytes()))).await.unwrap();
        until(&[&[0, 3], text.as_bytes()].concat()).await;
    }
    send.finish().unwrap();
    assert!(within(recv.read_to_end(10)).await.unwrap().is_empty());
    // The answer's status is the table's 25: 200.
    assert_eq!(got[2..5], [0, 0, 0xc0 | 25]);
    let line = world.line().await;
    assert!(line.contains(" status=101 "), "{line}");
    // An extended CONNECT to something else.
    let other = frame(1, &section(&[(":method", "CONNECT"), (":protocol", "connect-udp"), USUAL[1], USUAL[2], USUAL[3]]));
    assert_eq!(raw(&world, &config, &other).await, Came::Reset(0x10e));
    world.stop().await;
}

#[tokio::test]
async fn silence_ends_and_names_that_are_passed_through_are_not_served() {
    let instance = fixed("ok").await;
    let pair = Pair::new("one", &["aa.test", "own.test"]);
    let timeouts =
        flex_router::Timeouts { head: Duration::from_millis(300), keep_alive: Duration::from_secs(3), ..Default::default() };
    let mut one = app("aa", Serving, vec![backend(1, instance.address)]);
    one.routes = vec![route(1, flex_model::Match::Sni { host: "own.test".parse().unwrap(), port: None }, Policy::default())];
    let world = Setup { timeouts, ..setup(&[&pair]) }.start(table(1, vec![one])).await;
    let config = client_of(&[&pair]);
    // A head that does not come to its end, and a connection that nothing comes on.
    let (_endpoint, connection) = dial(world.https.unwrap(), &config, "aa.test").await.unwrap();
    let (mut send, mut recv) = within(connection.open_bi()).await.unwrap();
    within(send.write_all(&head(&[])[..10])).await.unwrap();
    let answer = within(recv.read_to_end(1 << 16)).await.unwrap();
    assert!(answer.windows(3).any(|w| w == b"408"), "{answer:?}");
    assert!(world.metrics.snapshot().limits.contains(&("head_time", 1)));
    drop((send, recv));
    assert!(matches!(closed(&within(connection.closed()).await), Came::Closed(0x100) | Came::Lost));
    // TLS of this name is its app's, and the router has no way to hand QUIC on.
    let (_endpoint, connection) = dial(world.https.unwrap(), &config, "own.test").await.unwrap();
    assert!(matches!(closed(&within(connection.closed()).await), Came::Closed(0x100) | Came::Lost));
    eventually(async || world.metrics.snapshot().connections_open == 0).await;
    world.stop().await;
}
