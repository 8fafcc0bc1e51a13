//! Instances that speak HTTP/2 without TLS: requests of every kind of client reach them, share connections, keep their flow
//! control and trailers, and are sent again where the instance did nothing with them.

mod support;
use bytes::Bytes;
use flex_model::{AppRoute, AppState::Serving, InstanceProtocol, Policy, ProxyVersion};
use h2::{Reason, RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Method, Request, Response};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use support::*;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};

/// An instance: each request is given to `handle`, with the number of its connection. `streams`: how many at once.
async fn h2c<F, Fut>(streams: u32, handle: F) -> Instance
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>, usize) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    instance(move |conn, n| {
        let handle = handle.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            let Ok(mut served) = builder.max_concurrent_streams(streams).handshake::<_, Bytes>(conn.stream).await else { return };
            while let Some(Ok((request, respond))) = served.accept().await {
                tokio::spawn(handle(request, respond, n));
            }
        }
    })
    .await
}

async fn all(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut content = Vec::new();
    while let Some(part) = within(body.data()).await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        content.extend_from_slice(&part);
    }
    Ok((content, within(body.trailers()).await?))
}

/// Answers with what it got, and with trailers: the number of the connection, and the request's own trailers.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, n: usize) {
    let (parts, mut body) = request.into_parts();
    let Ok((content, trailed)) = all(&mut body).await else { return };
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let _ = send.send_data(text.into(), false);
    let _ = send.send_data(content.into(), false);
    let mut trailers = trailed.unwrap_or_default();
    trailers.insert("x-connection", n.to_string().parse().unwrap());
    let _ = send.send_trailers(trailers);
}

fn over_h2(policy: Policy, backends: &[&Instance]) -> AppRoute {
    let backends = backends.iter().zip(1..).map(|(i, n)| backend(n, i.address)).collect();
    let mut aa = app("aa", Serving, backends);
    aa.policy = Some(Arc::new(Policy { protocol: InstanceProtocol::H2c, ..policy }));
    aa
}

async fn world(instance: &Instance) -> World {
    Setup { workers: 1, ..Setup::default() }.start(table(1, vec![over_h2(Policy::default(), &[instance])])).await
}

async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = within(TcpStream::connect(world.address)).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (send, connection) = within(builder.initial_connection_window_size(8 << 20).handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    within(send.ready()).await.unwrap()
}

fn to(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://aa.test{path}"))
}

#[tokio::test]
async fn http1_clients_reach_it_as_one_request_each() {
    let instance = h2c(100, echo).await;
    let world = world(&instance).await;
    let mut client = world.client().await;
    client
        .send("GET /p?q=1 HTTP/1.1\r\nHost: aa.test\r\nX-Forwarded-For: 6.6.6.6\r\nTE: trailers\r\nKeep-Alive: 5\r\n\r\n")
        .await;
    let seen = client.answer().await;
    let text = seen.text();
    assert!(seen.status == 200 && text.starts_with("GET http://aa.test/p?q=1 HTTP/2.0\n"), "{text}");
    assert!(text.contains("x-forwarded-for: 127.0.0.1\n") && text.contains("te: trailers\n"), "{text}");
    assert!(!text.contains("keep-alive") && !text.contains("6.6.6.6") && !text.contains("connection"), "{text}");
    // Content whose length is said, in chunks, and with trailers.
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(client.answer().await.text().ends_with("hello"));
    let chunks = "3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 7\r\n\r\n";
    client.send(&format!("POST / HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
    let head = client.head().await.unwrap();
    assert_eq!(head.field("transfer-encoding"), Some("chunked"));
    let mut raw = Vec::new();
    while !raw.windows(4).any(|w| w == b"\r\n\r\n") {
        raw.extend(client.exact(1).await);
    }
    let raw = String::from_utf8_lossy(&raw);
    assert!(raw.contains("hello\r\n0\r\n") && raw.contains("x-sum: 7\r\n") && raw.contains("x-connection: 0\r\n"), "{raw}");
    // All of it on one connection, and requests at once too.
    let many: Vec<_> = (0..50).map(|_| async { world.get("aa.test", "/").await.status }).collect();
    assert!(futures_util::future::join_all(many).await.iter().all(|s| *s == 200));
    assert_eq!(world.metrics.snapshot().connects, 1);
    client.send("HEAD / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(world.get("aa.test", "/").await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn who_switches_protocols_does_so_over_http1() {
    let instance = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi").await;
    })
    .await;
    let world = world(&instance).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status, 101);
    assert_eq!(client.exact(2).await, b"hi");
    world.stop_now().await;
}

/// A gRPC service in all but the messages: what is said is said back, at once, and the verdict is in the trailers.
async fn talk(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, _: usize) {
    if request.uri().path() == "/none" {
        // "Trailers only": the verdict is the whole answer.
        respond.send_response(Response::builder().header("grpc-status", "12").body(()).unwrap(), true).unwrap();
        return;
    }
    let mut body = request.into_body();
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
        if send.send_data(part, false).is_err() {
            return;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = send.send_trailers(trailers);
}

#[tokio::test]
async fn both_sides_stream_at_once_and_the_verdict_comes_last() {
    let instance = h2c(100, talk).await;
    let world = world(&instance).await;
    let mut send = connect(&world).await;
    let (answer, mut up) = send.send_request(to("/talk").method(Method::POST).body(()).unwrap(), false).unwrap();
    let mut down = within(answer).await.unwrap().into_body();
    for n in 0..20_u8 {
        up.send_data(Bytes::from(vec![n; 1000]), false).unwrap();
        let mut back = Vec::new();
        while back.len() < 1000 {
            let part = within(down.data()).await.unwrap().unwrap();
            down.flow_control().release_capacity(part.len()).unwrap();
            back.extend_from_slice(&part);
        }
        assert_eq!(back, vec![n; 1000]);
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert!(within(down.data()).await.is_none());
    assert_eq!(within(down.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    let (answer, _) = send.send_request(to("/none").method(Method::POST).body(()).unwrap(), true).unwrap();
    let answer = within(answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(all(&mut answer.into_body()).await.unwrap().0.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn nobody_reads_ahead_for_a_slow_reader_and_others_go_on() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let instance = h2c(100, move |request, mut respond: SendResponse<Bytes>, n| {
        let count = count.clone();
        async move {
            if request.uri().path() != "/big" {
                return echo(request, respond, n).await;
            }
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            loop {
                send.reserve_capacity(16 << 10);
                let Some(Ok(can)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                if send.send_data(Bytes::from(vec![0; can]), false).is_err() {
                    return;
                }
                count.fetch_add(can, SeqCst);
            }
        }
    })
    .await;
    let world = world(&instance).await;
    let mut send = connect(&world).await;
    let (answer, _) = send.send_request(to("/big").body(()).unwrap(), true).unwrap();
    let slow = within(answer).await.unwrap().into_body();
    eventually(async || sent.load(SeqCst) >= 64 << 10).await;
    // What fits into the windows along the way, and no more, however long it takes.
    let before = loop {
        let before = sent.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if before == sent.load(SeqCst) {
            break before;
        }
    };
    assert!(before < 1 << 20, "{before} bytes were taken for a client that reads none");
    assert_eq!(world.get("aa.test", "/").await.status, 200);
    // Who gives up is given up on at the instance too.
    drop(slow);
    assert_eq!(world.metrics.snapshot().connects, 1);
    world.stop().await;
}

#[tokio::test]
async fn what_was_not_processed_is_sent_again_with_its_content() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let instance = h2c(100, move |request, mut respond: SendResponse<Bytes>, n| {
        let count = count.clone();
        async move {
            match (request.uri().path(), count.fetch_add(1, SeqCst)) {
                ("/refused", 0) => respond.send_reset(Reason::REFUSED_STREAM),
                ("/never", _) => respond.send_reset(Reason::REFUSED_STREAM),
                ("/broken", _) => respond.send_reset(Reason::INTERNAL_ERROR),
                _ => echo(request, respond, n).await,
            }
        }
    })
    .await;
    let mut world = world(&instance).await;
    let mut client = world.client().await;
    client.send("POST /refused HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let answer = client.answer().await;
    assert!(answer.status == 200 && answer.text().ends_with("hello"), "{answer:?}");
    assert_eq!(tries.swap(0, SeqCst), 2);
    let mut send = connect(&world).await;
    let (answer, mut up) = send.send_request(to("/refused").method(Method::POST).body(()).unwrap(), false).unwrap();
    up.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let (content, _) = all(&mut within(answer).await.unwrap().into_body()).await.unwrap();
    assert!(content.ends_with(b"hello"));
    assert_eq!(tries.swap(0, SeqCst), 2);
    assert_eq!(world.metrics.snapshot().retries, 2);
    // Not for ever; and not where the instance may have done something.
    assert_eq!(world.get("aa.test", "/never").await.status, 503);
    assert_eq!(tries.swap(0, SeqCst), 3);
    client.send("POST /broken HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 503);
    assert_eq!(tries.swap(0, SeqCst), 1);
    let codes = [world.line().await, world.line().await, world.line().await, world.line().await];
    assert!(codes[2].contains("code=H13") && codes[3].contains("code=H13"), "{codes:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_goodbye_ends_its_requests_and_gets_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (leave, mut left) = tokio::sync::mpsc::channel::<()>(1);
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let served = tokio::spawn(async move {
        let mut n = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut served = h2::server::handshake(stream).await.unwrap();
            let mut leaving = false;
            loop {
                tokio::select! {
                    Some(()) = left.recv(), if !leaving => {
                        leaving = true;
                        served.graceful_shutdown();
                    }
                    next = served.accept() => match next {
                        Some(Ok((request, respond))) => {
                            count.fetch_add(1, SeqCst);
                            tokio::spawn(echo(request, respond, n));
                        }
                        _ => break,
                    },
                }
            }
            n += 1;
        }
    });
    let mut aa = app("aa", Serving, vec![backend(1, address)]);
    aa.policy = Some(Arc::new(Policy { protocol: InstanceProtocol::H2c, ..Policy::default() }));
    let world = Setup { workers: 1, ..Setup::default() }.start(table(1, vec![aa])).await;
    let mut send = connect(&world).await;
    let (answer, mut up) = send.send_request(to("/").method(Method::POST).body(()).unwrap(), false).unwrap();
    eventually(async || begun.load(SeqCst) == 1).await;
    up.send_data(Bytes::from_static(b"begun "), false).unwrap();
    leave.send(()).await.unwrap();
    // The first connection is told to end, and ends what it has; then the next serves.
    up.send_data(Bytes::from_static(b"and ended"), true).unwrap();
    let (content, trailers) = all(&mut within(answer).await.unwrap().into_body()).await.unwrap();
    assert!(content.ends_with(b"begun and ended") && trailers.unwrap()["x-connection"] == "0");
    let (answer, _) = send.send_request(to("/").body(()).unwrap(), true).unwrap();
    let (_, trailers) = all(&mut within(answer).await.unwrap().into_body()).await.unwrap();
    assert_eq!(trailers.unwrap()["x-connection"], "1");
    world.stop().await;
    served.abort();
}

#[tokio::test]
async fn more_requests_than_one_connection_takes_get_another() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (now.clone(), most.clone());
    let (open, opened) = tokio::sync::watch::channel(false);
    let instance = h2c(4, move |request, respond, n| {
        let ((now, most), mut opened) = (counts.clone(), opened.clone());
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let _ = opened.wait_for(|o| *o || request.uri().path() == "/first").await;
            echo(request, respond, n).await;
            now.fetch_sub(1, SeqCst);
        }
    })
    .await;
    let world = world(&instance).await;
    // The first tells how many there may be.
    assert_eq!(world.get("aa.test", "/first").await.status, 200);
    let asked = async { futures_util::future::join_all((0..20).map(|_| world.get("aa.test", "/"))).await };
    let opener = async {
        eventually(async || most.load(SeqCst) == 20).await;
        open.send_replace(true);
    };
    let (answers, ()) = tokio::join!(asked, opener);
    assert!(answers.iter().all(|a| a.status == 200));
    assert_eq!(world.metrics.snapshot().connects, 5);
    world.stop().await;
}

#[tokio::test]
async fn an_instance_that_speaks_http1_is_told_as_such() {
    let instance = fixed("hello").await;
    let mut world = world(&instance).await;
    assert_eq!(world.get("aa.test", "/").await.status, 503);
    let line = world.line().await;
    assert!(line.contains("code=H17") || line.contains("code=H13"), "{line}");
    world.stop().await;
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_preface_on_a_connection_of_its_own() {
    let instance = instance(|mut conn, n| async move {
        let mut line = vec![0; 5];
        conn.stream.read_exact(&mut line).await.unwrap();
        while !line.ends_with(b"\r\n") {
            line.push(conn.stream.read_u8().await.unwrap());
        }
        assert!(line.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "));
        let mut served = h2::server::handshake(conn.stream).await.unwrap();
        while let Some(Ok((request, respond))) = served.accept().await {
            tokio::spawn(echo(request, respond, n));
        }
    })
    .await;
    let policy = Policy { proxy_protocol: Some(ProxyVersion::V1), ..Policy::default() };
    let world = Setup::default().start(table(1, vec![over_h2(policy, &[&instance])])).await;
    for _ in 0..3 {
        assert_eq!(world.get("aa.test", "/").await.status, 200);
    }
    assert_eq!(world.metrics.snapshot().connects, 3);
    world.stop().await;
}

#[tokio::test]
async fn a_connection_whose_request_got_no_answer_in_time_gets_no_more() {
    let instance = h2c(100, |request, respond, n| async move {
        if request.uri().path() == "/hang" {
            return std::future::pending().await;
        }
        echo(request, respond, n).await;
    })
    .await;
    let mut setup = Setup { workers: 1, ..Setup::default() };
    setup.timeouts.first_byte = Duration::from_millis(200);
    let world = setup.start(table(1, vec![over_h2(Policy::default(), &[&instance])])).await;
    assert_eq!(world.get("aa.test", "/hang").await.status, 503);
    assert_eq!(world.get("aa.test", "/").await.status, 200);
    assert_eq!(world.metrics.snapshot().connects, 2);
    world.stop().await;
}

#[tokio::test]
async fn an_instance_that_takes_one_at_a_time_has_said_so() {
    let instance = h2c(1, echo).await;
    let world = world(&instance).await;
    // Who waited for its word, which had come, would end with H19.
    let many: Vec<_> = (0..30).map(|_| async { world.get("aa.test", "/").await.status }).collect();
    assert!(futures_util::future::join_all(many).await.iter().all(|s| *s == 200));
    world.stop().await;
}
