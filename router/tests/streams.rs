//! Content in both directions: nothing held back, nothing lost, every way of framing.

mod support;
use flex_model::AppState::Serving;
use futures_util::{SinkExt as _, StreamExt as _};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;

async fn world_of(instance: &Instance) -> World {
    World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await
}

/// Bytes that are the same on both sides without being kept: a small generator of its own.
fn noise(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (send, receive) = mpsc::unbounded_channel::<&'static str>();
    let receive = std::sync::Arc::new(tokio::sync::Mutex::new(receive));
    let instance = instance(move |mut conn, _| {
        let receive = receive.clone();
        async move {
            request(&mut conn).await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            while let Some(event) = receive.lock().await.recv().await {
                conn.send(&format!("{:x}\r\n{event}\r\n", event.len())).await;
            }
            conn.send("0\r\nX-End: yes\r\n\r\n").await;
        }
    })
    .await;
    let world = world_of(&instance).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().field("content-type"), Some("text/event-stream"));
    for event in ["data: 1\n\n", "data: two\n\n", "data: 3\n\n"] {
        // The next is sent only when the one before has arrived.
        send.send(event).unwrap();
        assert_eq!(client.chunk().await, event.as_bytes());
    }
    drop(send);
    assert_eq!(client.exact(17).await, b"0\r\nX-End: yes\r\n\r\n");
    world.stop().await;
}

/// Up in chunks, counted and hashed there; down by length, by chunks, and to the end of the connection.
#[tokio::test]
async fn large_contents_come_through_whole() {
    const SIZE: usize = 6 << 20;
    let instance = instance(|mut conn, _| async move {
        let Some(got) = request(&mut conn).await else { return };
        let hash = hex(&got.body);
        let kind = got.head.split(' ').nth(1).unwrap_or("").to_owned();
        let framing = match kind.as_str() {
            "/length" => format!("Content-Length: {SIZE}\r\n"),
            "/chunked" => "Transfer-Encoding: chunked\r\n".into(),
            _ => String::new(),
        };
        conn.send(&format!("HTTP/1.1 200 OK\r\nX-Hash: {hash}\r\n{framing}\r\n")).await;
        for at in (0..SIZE).step_by(1 << 20) {
            let piece = noise(at, 1 << 20);
            if kind == "/chunked" {
                conn.send(&format!("{:x}\r\n", piece.len())).await;
            }
            conn.send_bytes(&piece).await;
            if kind == "/chunked" {
                conn.send("\r\n").await;
            }
        }
        if kind == "/chunked" {
            conn.send("0\r\n\r\n").await;
        }
    })
    .await;
    let world = world_of(&instance).await;
    let down = hex(&noise(0, SIZE));
    for (kind, version) in [("length", "1.1"), ("chunked", "1.1"), ("close", "1.1"), ("chunked", "1.0"), ("close", "1.0")] {
        let mut client = world.client().await;
        let body = noise(7, 2 << 20);
        if version == "1.1" {
            client.send(&format!("POST /{kind} HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
            for piece in body.chunks(100_000) {
                client.send(&format!("{:X}\r\n", piece.len())).await;
                client.send_bytes(piece).await;
                client.send("\r\n").await;
            }
            client.send("0\r\n\r\n").await;
        } else {
            client.send(&format!("POST /{kind} HTTP/1.0\r\nHost: aa.test\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            client.send_bytes(&body).await;
        }
        let answer = client.answer().await;
        assert_eq!(answer.field("x-hash"), Some(hex(&body).as_str()), "{kind} {version}");
        assert_eq!(hex(&answer.body), down, "{kind} {version}");
        assert_eq!(answer.field("transfer-encoding").is_some(), version == "1.1" && kind != "length");
    }
    world.stop().await;
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A receiver that does not read stops the sender, and the router keeps little in between.
#[tokio::test]
async fn a_slow_client_stops_the_instance() {
    let (sent, mut progress) = tokio::sync::watch::channel(0_usize);
    let instance = instance(move |mut conn, _| {
        let sent = sent.clone();
        async move {
            request(&mut conn).await;
            conn.send("HTTP/1.1 200 OK\r\n\r\n").await;
            let piece = vec![b'x'; 64 << 10];
            while conn.stream.write_all(&piece).await.is_ok() {
                sent.send_modify(|n| *n += piece.len());
            }
        }
    })
    .await;
    let world = world_of(&instance).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    client.head().await.unwrap();
    // Until nothing has moved for a while: only the kernel's buffers are full then.
    while tokio::time::timeout(Duration::from_millis(300), progress.changed()).await.is_ok() {}
    let stalled_at = *progress.borrow();
    assert!(stalled_at < 64 << 20, "{stalled_at}");
    let mut taken = 0;
    let mut buf = vec![0; 1 << 20];
    while *progress.borrow() < stalled_at + (8 << 20) {
        taken += within(client.stream.read(&mut buf)).await.unwrap();
    }
    assert!(taken > 0);
    world.stop_now().await;
}

#[tokio::test]
async fn both_ways_at_once() {
    // Answers while it is still being told: an echo without an end in sight.
    let instance = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        assert!(head.contains("Transfer-Encoding: chunked"));
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        loop {
            let chunk = conn.chunk().await;
            conn.send(&format!("{:x}\r\n", chunk.len())).await;
            conn.send_bytes(&chunk).await;
            conn.send("\r\n").await;
            if chunk.is_empty() {
                return;
            }
        }
    })
    .await;
    let world = world_of(&instance).await;
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.head().await.unwrap();
    for word in ["one", "two", "three"] {
        client.send(&format!("{:x}\r\n{word}\r\n", word.len())).await;
        assert_eq!(client.chunk().await, word.as_bytes());
    }
    client.send("0\r\n\r\n").await;
    assert!(client.chunk().await.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn websockets() {
    let instance = instance(|conn, _| async move {
        let mut socket = tokio_tungstenite::accept_async(conn.stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    })
    .await;
    let timeouts = flex_router::Timeouts { idle: Duration::from_secs(5), ..Default::default() };
    let setup = Setup { timeouts, ..Setup::default() };
    let mut world = setup.start(table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    let client = world.client().await;
    let (mut socket, answer) = tokio_tungstenite::client_async("ws://aa.test/chat", client.stream).await.unwrap();
    assert_eq!(answer.status(), 101);
    for n in [0, 1, 125, 126, 70_000, 1 << 20] {
        let message = Message::binary(noise(n, n));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), message);
    }
    within(world.status.wait_for(|s| s.in_flight.values().sum::<u32>() == 1)).await.unwrap();
    socket.close(None).await.unwrap();
    while within(socket.next()).await.is_some_and(|m| m.is_ok()) {}
    // The instance has closed; a client that holds on to its end is not waited for.
    assert!(world.line().await.contains(" status=101 bytes="));
    within(world.status.wait_for(|s| s.in_flight.is_empty())).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn continue_and_hints_are_passed_on() {
    let instance = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        if head.contains("Expect: 100-continue") {
            assert!(conn.buf.is_empty());
            conn.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
        }
        let body = conn.exact(5).await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        conn.send_bytes(&body).await;
    })
    .await;
    let world = world_of(&instance).await;
    let mut client = world.client().await;
    client.send("PUT / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status, 100);
    let hint = client.head().await.unwrap();
    assert_eq!((hint.status, hint.field("link")), (103, Some("</a>")));
    client.send("hello").await;
    assert_eq!(client.answer().await.body, b"hello");
    world.stop().await;
}

/// An early no ends the upload, and the client can still read it.
#[tokio::test]
async fn an_early_refusal_reaches_the_client() {
    let instance = instance(|mut conn, _| async move {
        conn.head_of_request().await;
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n").await;
    })
    .await;
    let mut world = world_of(&instance).await;
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 50000000\r\n\r\n").await;
    let piece = vec![b'x'; 1 << 16];
    for _ in 0..100 {
        if client.stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str(), answer.field("connection")), (413, "no\n", Some("close")));
    assert!(world.line().await.contains(" status=413 "));
    world.stop().await;
}

#[tokio::test]
async fn answers_without_content() {
    let instance = instance(|mut conn, _| async move {
        while let Some(got) = request(&mut conn).await {
            let path = got.head.split(' ').nth(1).unwrap();
            conn.send(match path {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            })
            .await;
        }
    })
    .await;
    let world = world_of(&instance).await;
    let mut client = world.client().await;
    for _ in 0..3 {
        client.send("GET /204 HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        assert_eq!(client.head().await.unwrap().status, 204);
        client.send("GET /304 HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        assert_eq!(client.head().await.unwrap().field("content-length"), Some("10"));
        client.send("HEAD / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        assert_eq!(client.head().await.unwrap().field("content-length"), Some("1000"));
    }
    assert!(client.buf.is_empty());
    assert_eq!(world.metrics.snapshot().connects, 1);
    world.stop().await;
}
