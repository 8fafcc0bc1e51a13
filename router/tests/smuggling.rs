//! What must never happen: an instance sees a request that the router did not see as one. Every case of the corpus is sent
//! on the wire, whole and byte by byte; the instance counts the requests that it reads.

mod support;
use flex_model::AppState::Serving;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use support::*;

/// The request that each case tries to slip past the router.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.test\r\n\r\n";

struct Case {
    what: &'static str,
    sent: String,
}

fn case(what: &'static str, sent: impl Into<String>) -> Case {
    Case { what, sent: sent.into() }
}

/// Each must be answered 4xx or 5xx, the connection closed, and nothing of it (or of what follows) reach the instance as a
/// request of its own.
fn corpus() -> Vec<Case> {
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}");
    let mut cases = vec![
        case("CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
        case("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &format!("5c\r\n{HIDDEN}\r\n0\r\n\r\n"))),
        case("two lengths", post("Content-Length: 0\r\nContent-Length: 39\r\n", HIDDEN)),
        case("the same length twice", post("Content-Length: 0\r\nContent-Length: 0\r\n", HIDDEN)),
        case("a list of lengths", post("Content-Length: 0, 39\r\n", HIDDEN)),
        case("a signed length", post("Content-Length: +0\r\n", HIDDEN)),
        case("1.0 with TE", format!("POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        case("bare LF ends the head", format!("POST / HTTP/1.1\nHost: a.test\nContent-Length: 0\n\n{HIDDEN}")),
        case(
            "a bare LF among CRLFs",
            format!("POST / HTTP/1.1\r\nHost: a.test\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        case(
            "a bare CR",
            format!("POST / HTTP/1.1\r\nHost: a.test\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        case("a folded field", post("Transfer-Encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
        case("a NUL", post("X: \0\r\n", HIDDEN)),
        case("CONNECT", format!("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test\r\n\r\n{HIDDEN}")),
        case("h2 prior knowledge, changed", format!("PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n{HIDDEN}")),
        case("h2 prior knowledge with fields", format!("PRI * HTTP/2.0\r\nHost: a.test\r\n\r\nSM\r\n\r\n{HIDDEN}")),
        case("not HTTP", format!("\x16\x03\x01\x02{HIDDEN}")),
    ];
    for te in [
        "chunked, identity",
        "identity, chunked",
        "xchunked",
        "chunked ,",
        "\"chunked\"",
        "\x0bchunked",
        "chunked\x0b",
        "chunk",
        "",
    ] {
        cases.push(case("obfuscated TE", post(&format!("Transfer-Encoding: {te}\r\n"), &format!("0\r\n\r\n{HIDDEN}"))));
    }
    for name in ["Transfer-Encoding ", "Transfer-Encoding\t", " Transfer-Encoding", "Content-Length "] {
        cases.push(case("space about the colon", post(&format!("{name}: chunked\r\n"), &format!("0\r\n\r\n{HIDDEN}"))));
    }
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\n0\n\n",
        "5;x\ny\r\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
    ] {
        cases.push(case("bad chunks", post("Transfer-Encoding: chunked\r\n", &format!("{body}{HIDDEN}"))));
    }
    cases.push(case(
        "a huge chunk extension",
        post("Transfer-Encoding: chunked\r\n", &format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000))),
    ));
    cases.push(case("huge trailers", post("Transfer-Encoding: chunked\r\n", &format!("0\r\nX: {}\r\n\r\n", "x".repeat(20_000)))));
    cases
}

/// An instance that counts whole requests and remembers whether the hidden one was among them.
async fn counting() -> (Instance, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (count, hidden) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (c, h) = (count.clone(), hidden.clone());
    let instance = instance(move |mut conn, _| {
        let (c, h) = (c.clone(), h.clone());
        async move {
            while let Some(got) = request(&mut conn).await {
                c.fetch_add(1, SeqCst);
                if got.head.contains("/hidden") {
                    h.fetch_add(1, SeqCst);
                }
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    (instance, count, hidden)
}

#[tokio::test]
async fn no_case_of_the_corpus_reaches_an_instance_as_a_request() {
    let (instance, count, hidden) = counting().await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    for slowly in [false, true] {
        for Case { what, sent } in corpus() {
            let sent = sent.replace("a.test", "aa.test");
            if slowly && sent.len() > 1000 {
                continue;
            }
            let mut client = world.client().await;
            client.stream.set_nodelay(true).unwrap();
            if slowly {
                for byte in sent.as_bytes() {
                    use tokio::io::AsyncWriteExt as _;
                    // It may be refused in the middle.
                    if client.stream.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                }
            } else {
                client.send(&sent).await;
            }
            let answer = client.answer().await;
            assert!(answer.status >= 400, "{what}: {}\n{sent:?}", answer.head);
            assert_eq!(answer.field("connection"), Some("close"), "{what}: {sent:?}");
            assert!(client.rest().await.is_empty(), "{what}: more than one answer\n{sent:?}");
        }
    }
    assert_eq!(hidden.load(SeqCst), 0);
    assert_eq!(count.load(SeqCst), 0, "a refused request reached the instance as a whole one");
    assert_eq!(world.get("aa.test", "/").await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn what_is_allowed_reaches_the_instance_as_the_one_request_that_it_is() {
    let instance = echo().await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let text = "POST /x HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                5;ext=\"GET / HTTP/1.1\"\r\nhello\r\n27\r\nGET /hidden HTTP/1.1\r\nHost: aa.test\r\n\r\n\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n";
    // However the bytes are cut on their way, the instance sees the same.
    for step in [1, 2, 3, 7, 50, 1000] {
        let mut client = world.client().await;
        client.stream.set_nodelay(true).unwrap();
        for piece in text.as_bytes().chunks(step) {
            client.send_bytes(piece).await;
            tokio::task::yield_now().await;
        }
        let answer = client.answer().await;
        let (head, body) = answer.text().split_once("\r\n\r\n").map(|(h, b)| (h.to_owned(), b.to_owned())).unwrap();
        assert!(head.starts_with("POST /x HTTP/1.1\r\n") && !head.contains("ext="), "{head}");
        assert_eq!(body, "helloGET /hidden HTTP/1.1\r\nHost: aa.test\r\n\r\n", "by {step}");
    }
    world.stop().await;
}

/// Requests sent in one go are answered in order, each as itself.
#[tokio::test]
async fn pipelining_keeps_the_order() {
    let instance = echo().await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let mut client = world.client().await;
    let mut all = String::new();
    for n in 0..20 {
        all += &format!("POST /{n} HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\n{n:03}");
        all += &format!("GET /g{n} HTTP/1.1\r\nHost: aa.test\r\n\r\n");
        all += &format!("POST /c{n} HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    }
    client.send(&all).await;
    for n in 0..20 {
        let post = client.answer().await.text();
        assert!(post.starts_with(&format!("POST /{n} ")) && post.ends_with(&format!("{n:03}")), "{post}");
        assert!(client.answer().await.text().starts_with(&format!("GET /g{n} ")));
        let chunked = client.answer().await.text();
        assert!(chunked.starts_with(&format!("POST /c{n} ")) && chunked.ends_with("\r\n\r\nx"), "{chunked}");
    }
    world.stop().await;
}

/// What follows an upgrade request is not for the instance unless it agreed to switch.
#[tokio::test]
async fn nothing_passes_an_upgrade_before_101() {
    let refuses = instance(|mut conn, _| async move {
        request(&mut conn).await.unwrap();
        // Anything that comes now came too early.
        let early = tokio::time::timeout(std::time::Duration::from_millis(150), conn.fill()).await;
        let text = if early.is_ok() || !conn.buf.is_empty() { "early" } else { "quiet" };
        conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{text}")).await;
        conn.rest().await;
    })
    .await;
    let world = World::new(vec![app("aa", Serving, vec![backend(1, refuses.address)])]).await;
    let mut client = world.client().await;
    let ask = "GET / HTTP/1.1\r\nHost: aa.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send(&format!("{ask}{HIDDEN}")).await;
    let answer = client.answer().await;
    assert_eq!(answer.text(), "quiet");
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(client.rest().await.is_empty());
    world.stop().await;
}

/// Answers that cannot be read, can be read two ways, or are too much are not passed on.
#[tokio::test]
async fn answers_that_are_none_have_their_codes() {
    let h17 = "H17 desc=\"Poorly formatted HTTP response\"";
    let h23 = "H23 desc=\"Endpoint misconfigured\"";
    let h25 = "H25 desc=\"HTTP restriction\"";
    let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let bad = [
        (h25, ok("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
        (h25, ok("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello"),
        (h25, ok("Content-Length: x\r\n")),
        // A head that ends, and one that would go on for ever.
        (h25, ok(&format!("Set-Cookie: {}\r\n", "x".repeat(70_000)))),
        (h25, format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(70_000))),
        (h25, ok(&"X: y\r\n".repeat(300))),
        (h17, ok("Transfer-Encoding: gzip, chunked\r\n")),
        (h17, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        (h17, "HTTP/1.1 200 OK\nContent-Length: 0\n\n".into()),
        (h17, ok("X : y\r\nContent-Length: 0\r\n")),
        (h17, "HTTP/3 200 OK\r\n\r\n".into()),
        (h17, "hello\r\n\r\n".into()),
        (h23, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".into()),
    ];
    for (code, text) in bad {
        let sent = text.clone();
        let instance = instance(move |mut conn, _| {
            let sent = sent.clone();
            async move {
                request(&mut conn).await;
                conn.send(&sent).await;
                conn.rest().await;
            }
        })
        .await;
        let mut world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
        let status = if code == h25 { 502 } else { 503 };
        assert_eq!(world.get("aa.test", "/").await.status, status, "{text:.200?}");
        let line = world.line().await;
        assert!(line.contains(&format!("at=error code={code} ")), "{text:.200?}: {line}");
        assert!(line.contains(&format!(" status={status} ")), "{text:.200?}: {line}");
        world.stop().await;
    }
}
