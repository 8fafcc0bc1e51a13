//! What routes do with requests, over real sockets, HTTP/1 and HTTP/2 alike.

use crate::support::*;
use bytes::Bytes;
use flex_model::{
    AppRoute,
    AppState::{Maintenance, Serving},
    Match, Policy, http_policy,
};
use serde_json::{Value, json};
use std::{io::Read as _, sync::Arc, time::Duration};
use tokio::net::TcpStream;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    H1,
    H2,
}

const WAYS: [Way; 2] = [Way::H1, Way::H2];

#[derive(Debug)]
struct Got {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Got {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn ask(world: &World, way: Way, method: &str, url: &str, fields: &[(&str, &str)], body: &[u8]) -> Got {
    let (host, path) = url.split_at(url.find('/').unwrap());
    match way {
        Way::H1 => {
            let mut client = world.client().await;
            let more: String = fields.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
            let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            client.send(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}{length}\r\n")).await;
            client.send_bytes(body).await;
            let head = client.head().await.expect("an answer");
            let bare = method == "HEAD" || matches!(head.status, 204 | 304);
            let body = if bare { vec![] } else { client.body(&head).await };
            let lines = head.head.lines().skip(1).filter_map(|l| l.split_once(": "));
            let fields = lines.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
            Got { status: head.status, fields, body }
        }
        Way::H2 => {
            let stream = within(TcpStream::connect(world.address)).await.unwrap();
            let (send, connection) = within(h2::client::handshake(stream)).await.unwrap();
            tokio::spawn(async move {
                let _ = connection.await;
            });
            let mut send = within(send.ready()).await.unwrap();
            let mut request = http::Request::builder().method(method).uri(format!("http://{url}"));
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            if !body.is_empty() {
                request = request.header("content-length", body.len());
            }
            let (answer, mut up) = send.send_request(request.body(()).unwrap(), body.is_empty()).unwrap();
            if !body.is_empty() {
                let _ = up.send_data(Bytes::copy_from_slice(body), true);
            }
            let answer = within(answer).await.unwrap();
            let (head, mut content) = answer.into_parts();
            let mut got = Vec::new();
            while let Some(Ok(part)) = within(content.data()).await {
                content.flow_control().release_capacity(part.len()).unwrap();
                got.extend_from_slice(&part);
            }
            let fields = head.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
            Got { status: head.status.as_u16(), fields, body: got }
        }
    }
}

async fn get(world: &World, way: Way, url: &str, fields: &[(&str, &str)]) -> Got {
    ask(world, way, "GET", url, fields, b"").await
}

fn policy(http: Value) -> Policy {
    let Value::Object(http) = http else { panic!("no object") };
    let http = http_policy::HttpPolicy::read(http).unwrap();
    Policy { http, ..Policy::default() }
}

fn with(mut app: AppRoute, http: Value) -> AppRoute {
    app.policy = Some(Arc::new(policy(http)));
    app
}

/// A router that believes who connects to it about the client.
async fn start(apps: Vec<AppRoute>) -> World {
    Setup { trusted: vec!["127.0.0.1"], ..Setup::default() }.start(table(1, apps)).await
}

/// The next access line must have this.
async fn expect_line(world: &mut World, part: &str) {
    let line = world.line().await;
    assert!(line.contains(part), "{part}: {line}");
}

#[tokio::test]
async fn requests_are_sent_to_https_and_to_the_one_name() {
    let instance = echo().await;
    let one = with(
        app("aa", Serving, vec![backend(1, instance.address)]),
        json!({ "https_redirect": true, "hsts": { "max_age_seconds": 31_536_000, "subdomains": true } }),
    );
    let mut two = with(app("bb", Serving, vec![backend(1, instance.address)]), json!({ "canonical_host": "www.bb.test" }));
    two.domains.push("www.bb.test".parse().unwrap());
    let mut world = start(vec![one, two]).await;
    for way in WAYS {
        let got = get(&world, way, "aa.test/p?q=1", &[]).await;
        assert_eq!((got.status, got.field("location")), (301, Some("https://aa.test/p?q=1")), "{way:?}");
        assert_eq!(got.field("strict-transport-security"), None, "not over plain HTTP");
        expect_line(&mut world, "dyno= connect= service= status=301").await;
        let got = ask(&world, way, "POST", "aa.test/p", &[], b"hello").await;
        assert_eq!((got.status, got.field("location")), (308, Some("https://aa.test/p")));
        expect_line(&mut world, "status=308").await;
        let got = get(&world, way, "aa.test/p", &[("x-forwarded-proto", "https")]).await;
        assert_eq!(got.status, 200);
        assert_eq!(got.field("strict-transport-security"), Some("max-age=31536000; includeSubDomains"));
        expect_line(&mut world, "dyno=web.1 ").await;
        let got = get(&world, way, "bb.test/p", &[]).await;
        assert_eq!((got.status, got.field("location")), (301, Some("http://www.bb.test/p")));
        assert_eq!(get(&world, way, "www.bb.test/p", &[]).await.status, 200);
        world.line().await;
        world.line().await;
    }
    world.stop().await;
}

#[tokio::test]
async fn addresses_are_let_in_or_not_by_who_the_client_is() {
    let instance = fixed("ok").await;
    let one = with(
        app("aa", Serving, vec![backend(1, instance.address)]),
        json!({ "allow": ["203.0.113.0/24"], "deny": ["203.0.113.66"] }),
    );
    let mut world = start(vec![one]).await;
    for way in WAYS {
        for (client, status) in [("203.0.113.7", 200), ("203.0.113.66", 403), ("198.51.100.1", 403)] {
            let got = get(&world, way, "aa.test/", &[("x-forwarded-for", client)]).await;
            assert_eq!(got.status, status, "{client} {way:?}");
            expect_line(
                &mut world,
                if status == 200 { "at=info method" } else { "at=info code=H40 desc=\"Address not allowed\"" },
            )
            .await;
        }
        // Only the last word of the chain is a trusted one's.
        assert_eq!(get(&world, way, "aa.test/", &[("x-forwarded-for", "203.0.113.7, 198.51.100.1")]).await.status, 403);
        world.line().await;
    }
    world.stop().await;
}

#[tokio::test]
async fn clients_have_so_many_requests() {
    let instance = fixed("ok").await;
    let one =
        with(app("aa", Serving, vec![backend(1, instance.address)]), json!({ "rate_limit": { "requests": 2, "seconds": 3600 } }));
    let mut world = start(vec![one.clone()]).await;
    for (way, client) in [(Way::H1, "192.0.2.1"), (Way::H2, "192.0.2.2")] {
        let from = [("x-forwarded-for", client)];
        for left in ["1", "0"] {
            let got = get(&world, way, "aa.test/", &from).await;
            assert_eq!(
                (got.status, got.field("ratelimit-limit"), got.field("ratelimit-remaining")),
                (200, Some("2"), Some(left))
            );
            expect_line(&mut world, "status=200").await;
        }
        let got = get(&world, way, "aa.test/", &from).await;
        let retry: u32 = got.field("retry-after").unwrap().parse().unwrap();
        assert!(got.status == 429 && (1..=1800).contains(&retry), "{got:?}");
        expect_line(&mut world, "code=H42").await;
    }
    // A new table does not forget.
    let mut other = one;
    other.backends.push(backend(2, instance.address));
    world.set(2, vec![other]).await;
    assert_eq!(get(&world, Way::H1, "aa.test/", &[("x-forwarded-for", "192.0.2.1")]).await.status, 429);
    assert_eq!(get(&world, Way::H1, "aa.test/", &[("x-forwarded-for", "192.0.2.3")]).await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let instance = echo().await;
    // Of "geheim", in one round.
    let (salt, mut hash) = ([7_u8; 16], [0_u8; 32]);
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, std::num::NonZeroU32::MIN, &salt, b"geheim", &mut hash);
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let stored = format!("pbkdf2-sha256$1${}${}", hex(&salt), hex(&hash));
    let one = with(
        app("aa", Serving, vec![backend(1, instance.address)]),
        json!({ "basic_auth": { "users": { "ann": stored }, "realm": "Staging" } }),
    );
    let mut world = start(vec![one]).await;
    for way in WAYS {
        let got = get(&world, way, "aa.test/", &[]).await;
        assert_eq!(got.status, 401);
        assert_eq!(got.field("www-authenticate"), Some("Basic realm=\"Staging\", charset=\"UTF-8\""));
        expect_line(&mut world, "code=H41").await;
        // ann:geheim, ann:falsch
        assert_eq!(get(&world, way, "aa.test/", &[("authorization", "Basic YW5uOmdlaGVpbQ==")]).await.status, 200);
        assert_eq!(get(&world, way, "aa.test/", &[("authorization", "Basic YW5uOmZhbHNjaA==")]).await.status, 401);
        let lines = [world.line().await, world.line().await];
        assert!(!lines.concat().contains("YW5u") && !lines.concat().contains("geheim"), "{lines:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn requests_have_limits() {
    let instance = echo().await;
    let one =
        with(app("aa", Serving, vec![backend(1, instance.address)]), json!({ "max_body_bytes": 1000, "max_header_bytes": 1000 }));
    let mut world = start(vec![one]).await;
    for way in WAYS {
        assert_eq!(ask(&world, way, "POST", "aa.test/", &[], &[b'x'; 1000]).await.status, 200);
        expect_line(&mut world, "status=200").await;
        let got = ask(&world, way, "POST", "aa.test/", &[], &[b'x'; 1001]).await;
        assert_eq!(got.status, 413, "{way:?}");
        expect_line(&mut world, "code=H43 desc=\"Request body too large\"").await;
        let got = get(&world, way, "aa.test/", &[("x-long", &"x".repeat(1000))]).await;
        assert_eq!(got.status, 431);
        expect_line(&mut world, "code=H44").await;
    }
    // Content whose length nobody said is counted as it comes.
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..3 {
        client.send(&format!("190\r\n{}\r\n", "x".repeat(400))).await;
    }
    assert_eq!(client.answer().await.status, 413);
    expect_line(&mut world, "code=H43").await;
    world.stop().await;
}

#[tokio::test]
async fn times_are_the_routes_own() {
    let silent = instance(|mut conn, _| async move {
        let got = request(&mut conn).await.unwrap();
        if got.head.contains("/half") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").await;
        }
        conn.fill().await;
    })
    .await;
    let one = with(app("aa", Serving, vec![backend(1, silent.address)]), json!({ "timeout_seconds": 1, "idle_seconds": 1 }));
    let mut world = start(vec![one]).await;
    for way in WAYS {
        assert_eq!(get(&world, way, "aa.test/", &[]).await.status, 503);
        expect_line(&mut world, "code=H12").await;
    }
    let mut client = world.client().await;
    client.send("GET /half HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.rest().await, b"ab");
    expect_line(&mut world, "code=H15").await;
    // A client that owes content.
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 5\r\n\r\nab").await;
    assert_eq!(client.answer().await.status, 408);
    expect_line(&mut world, "code=H28").await;
    world.stop().await;
}

#[tokio::test]
async fn who_waits_too_long_for_a_place_is_told() {
    let stuck = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.fill().await;
    })
    .await;
    let mut one = app("aa", Serving, vec![backend(1, stuck.address)]);
    let limited = Policy { max_per_instance: Some(1), queue: Some(1), ..policy(json!({ "queue_seconds": 1 })) };
    one.policy = Some(Arc::new(limited));
    let mut world = start(vec![one]).await;
    let mut first = world.client().await;
    first.send("GET /first HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    eventually(async || world.metrics.snapshot().connects == 1).await;
    assert_eq!(get(&world, Way::H2, "aa.test/", &[]).await.status, 503);
    expect_line(&mut world, "code=H12").await;
    world.stop_now().await;
}

#[tokio::test]
async fn a_client_that_trickles_is_cut_off() {
    let instance = echo().await;
    let one = with(app("aa", Serving, vec![backend(1, instance.address)]), json!({ "min_body_bytes_per_second": 1000 }));
    let mut world = start(vec![one]).await;
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 100000\r\n\r\n").await;
    let (mut read, mut write) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut text = Vec::new();
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut read, &mut text)).await;
    assert!(text.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&text));
    expect_line(&mut world, "code=H45").await;
    sending.abort();
    world.stop().await;
}

fn unpack(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        _ => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out),
    }
    .unwrap();
    out
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_likes() {
    let text = "all work and no play ".repeat(20_000);
    let sent = text.clone();
    let origin = instance(move |mut conn, _| {
        let text = sent.clone();
        async move {
            while let Some(got) = request(&mut conn).await {
                let path = got.head.split(' ').nth(1).unwrap().to_owned();
                let kind = if path == "/image" { "image/png" } else { "text/html" };
                let more = if path == "/encoded" { "Content-Encoding: gzip\r\n" } else { "" };
                if path == "/chunked" {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                    for part in text.as_bytes().chunks(50_000) {
                        conn.send(&format!("{:x}\r\n", part.len())).await;
                        conn.send_bytes(part).await;
                        conn.send("\r\n").await;
                    }
                    conn.send("0\r\n\r\n").await;
                    continue;
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nETag: \"1\"\r\n{more}Content-Length: {}\r\n\r\n",
                    text.len()
                );
                conn.send(&head).await;
                if !got.head.starts_with("HEAD") {
                    conn.send_bytes(text.as_bytes()).await;
                }
            }
        }
    })
    .await;
    let one = with(app("aa", Serving, vec![backend(1, origin.address)]), json!({ "compress": ["zstd", "br", "gzip"] }));
    let mut world = start(vec![one]).await;
    for way in WAYS {
        for (accept, coding) in [("gzip, br, zstd", "zstd"), ("br, gzip", "br"), ("gzip", "gzip")] {
            for path in ["/", "/chunked"] {
                let got = get(&world, way, &format!("aa.test{path}"), &[("accept-encoding", accept)]).await;
                assert_eq!(got.field("content-encoding"), Some(coding), "{way:?} {path} {got:?}");
                assert_eq!((got.field("vary"), got.field("content-length")), (Some("Accept-Encoding"), None));
                assert!(path == "/chunked" || got.field("etag") == Some("W/\"1\""));
                assert!(unpack(coding, &got.body) == text.as_bytes(), "{way:?} {path} {coding}");
                expect_line(&mut world, &format!(" bytes={} ", got.body.len())).await;
            }
        }
        for (method, path, accept, vary) in [
            ("GET", "/", "identity", Some("Accept-Encoding")),
            ("HEAD", "/", "gzip", Some("Accept-Encoding")),
            ("GET", "/image", "gzip", None),
            ("GET", "/encoded", "gzip", None),
        ] {
            let got = ask(&world, way, method, &format!("aa.test{path}"), &[("accept-encoding", accept)], b"").await;
            let expected = if path == "/encoded" { Some("gzip") } else { None };
            assert_eq!((got.field("content-encoding"), got.field("vary")), (expected, vary), "{way:?} {method} {path}");
            assert!(method == "HEAD" || got.body == text.as_bytes());
            world.line().await;
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn what_a_cache_asks_again_is_told_as_of_the_compressed_answer() {
    let origin = instance(|mut conn, _| async move {
        while let Some(got) = request(&mut conn).await {
            conn.send(match got.head.split(' ').nth(1).unwrap() {
                "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
                "/206" => "HTTP/1.1 206 Partial Content\r\nContent-Type: text/css\r\nETag: \"1\"\r\nContent-Range: bytes 0-1/9000\r\nContent-Length: 2\r\n\r\nab",
                "/png" => "HTTP/1.1 206 Partial Content\r\nContent-Type: image/png\r\nETag: \"1\"\r\nContent-Range: bytes 0-1/9000\r\nContent-Length: 2\r\n\r\nab",
                _ => "HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nETag: \"1\"\r\nContent-Length: 9000\r\n\r\n",
            })
            .await;
        }
    })
    .await;
    let one = with(app("aa", Serving, vec![backend(1, origin.address)]), json!({ "compress": ["gzip"] }));
    let world = start(vec![one]).await;
    for way in WAYS {
        for (method, path, accept, etag, vary) in [
            ("GET", "/304", "gzip", "W/\"1\"", Some("Accept-Encoding")),
            ("GET", "/304", "identity", "\"1\"", Some("Accept-Encoding")),
            ("GET", "/206", "gzip", "W/\"1\"", Some("Accept-Encoding")),
            ("GET", "/206", "identity", "\"1\"", Some("Accept-Encoding")),
            ("GET", "/png", "gzip", "\"1\"", None),
            ("HEAD", "/", "gzip", "W/\"1\"", Some("Accept-Encoding")),
        ] {
            let got = ask(&world, way, method, &format!("aa.test{path}"), &[("accept-encoding", accept)], b"").await;
            let seen = (got.field("etag"), got.field("vary"), got.field("content-encoding"));
            assert_eq!(seen, (Some(etag), vary, None), "{way:?} {method} {path} {accept}");
            assert!(method == "HEAD" || path == "/304" || got.body == b"ab");
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn so_many_answers_are_compressed_at_one_time() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let origin = instance(move |mut conn, _| {
        let mut wait = wait.clone();
        async move {
            while request(&mut conn).await.is_some() {
                conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nETag: \"1\"\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                let _ = wait.wait_for(|go| *go).await;
                conn.send("2\r\nab\r\n0\r\n\r\n").await;
            }
        }
    })
    .await;
    let one = with(app("aa", Serving, vec![backend(1, origin.address)]), json!({ "compress": ["br"] }));
    let limits = flex_router::Limits { compressed_answers: 2, ..flex_router::Limits::default() };
    let world = Setup { limits, ..Setup::default() }.start(table(1, vec![one])).await;
    let (mut clients, mut codings) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: aa.test\r\nAccept-Encoding: br\r\n\r\n").await;
        let head = client.head().await.unwrap();
        assert_eq!(head.field("vary"), Some("Accept-Encoding"));
        codings.push((head.field("content-encoding").map(str::to_owned), head.field("etag").unwrap().to_owned()));
        clients.push((client, head));
    }
    let compressed = (Some("br".to_owned()), "W/\"1\"".to_owned());
    assert_eq!(codings, [compressed.clone(), compressed.clone(), (None, "\"1\"".to_owned())]);
    assert!(world.metrics.snapshot().limits.contains(&("compressed_answers", 1)));
    go.send(true).unwrap();
    for (n, (client, head)) in clients.iter_mut().enumerate() {
        let body = client.body(head).await;
        assert_eq!(if n < 2 { unpack("br", &body) } else { body }, b"ab");
    }
    // They ended, so there is room again.
    eventually(async || {
        get(&world, Way::H1, "aa.test/", &[("accept-encoding", "br")]).await.field("content-encoding") == Some("br")
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_rule_of_a_path_holds_however_the_path_is_written() {
    let instance = echo().await;
    let rules = |n, path: &str, http: Value| {
        let matches = Match::Http { host: "aa.test".parse().unwrap(), path: path.parse().unwrap() };
        let Value::Object(http) = http else { panic!("no object") };
        let http = http_policy::HttpPolicy::read(http).unwrap();
        route(n, matches, Policy { http, ..Policy::default() })
    };
    let mut one = app("aa", Serving, vec![backend(1, instance.address)]);
    one.routes = vec![
        rules(1, "/admin", json!({ "deny": ["0.0.0.0/0"] })),
        rules(2, "/slow", json!({ "rate_limit": { "requests": 1000 } })),
    ];
    let world = start(vec![one]).await;
    for way in WAYS {
        for path in
            ["/admin", "/%61dmin", "//admin", "/./admin", "/x/../admin", "/admin;x", "/admin/../x", "/x%2f..%2fadmin", "/ADMIN"]
        {
            assert_eq!(get(&world, way, &format!("aa.test{path}"), &[]).await.status, 403, "{way:?} {path}");
        }
        // What may pass is sent on as it came.
        for path in ["/x/../y", "/%61", "/slow/..%2fz", "//y;x"] {
            let got = get(&world, way, &format!("aa.test{path}"), &[]).await;
            assert!(got.status == 200 && got.text().starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{way:?} {path} {got:?}");
        }
        let got = get(&world, way, "aa.test/slow/../admin", &[]).await;
        assert!(got.status == 400 && got.text().contains("several ways"), "{got:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn compressed_events_arrive_when_they_are_sent() {
    let (go, wait) = tokio::sync::watch::channel(0);
    let origin = instance(move |mut conn, _| {
        let mut wait = wait.clone();
        async move {
            request(&mut conn).await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
            for n in 1..=2 {
                conn.send(&format!("data: {n}\n\n")).await;
                let _ = wait.wait_for(|go| *go >= n).await;
            }
        }
    })
    .await;
    let one = with(app("aa", Serving, vec![backend(1, origin.address)]), json!({ "compress": ["gzip"] }));
    let world = start(vec![one]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\nAccept-Encoding: gzip\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().field("content-encoding"), Some("gzip"));
    let mut sent = Vec::new();
    for n in 1..=2 {
        let expected = (1..=n).map(|n| format!("data: {n}\n\n")).collect::<String>();
        let mut text = vec![0; expected.len()];
        while flate2::read::GzDecoder::new(&sent[..]).read_exact(&mut text).is_err() {
            sent.extend(client.chunk().await);
        }
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        go.send(n).unwrap();
    }
    world.stop().await;
}

#[tokio::test]
async fn fields_are_set_and_removed_and_pages_are_the_apps_own() {
    let origin = instance(|mut conn, _| async move {
        while request(&mut conn).await.is_some() {
            conn.send("HTTP/1.1 200 OK\r\nServer: old\r\nX-Frame-Options: ALLOW\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let headers = json!({ "headers": { "Server": false, "X-Frame-Options": "DENY" } });
    let one = with(app("aa", Serving, vec![backend(1, origin.address)]), headers.clone());
    let pages = |list: &[(&str, &str)]| list.iter().map(|(k, v)| (k.parse().unwrap(), Arc::from(*v))).collect();
    let mut down = with(app("bb", Maintenance, vec![]), headers);
    down.pages = pages(&[("maintenance", "<h1>Back soon</h1>"), ("error", "<h1>Oh</h1>"), ("H40", "<h1>No</h1>")]);
    let mut broken = app("cc", Serving, vec![backend(2, refused().await)]);
    broken.pages = down.pages.clone();
    let closed = Match::Http { host: "cc.test".parse().unwrap(), path: "/closed".parse().unwrap() };
    broken.routes.push(route(7, closed, policy(json!({ "deny": ["0.0.0.0/0"] }))));
    let mut world = start(vec![one, down, broken]).await;
    for way in WAYS {
        let got = get(&world, way, "aa.test/", &[]).await;
        assert_eq!(
            (got.field("server"), got.field("x-frame-options"), got.text().as_str()),
            (None, Some("DENY"), "ok"),
            "{way:?}"
        );
        world.line().await;
        for (url, status, text, code) in [
            ("bb.test/", 503, "<h1>Back soon</h1>", "H80"),
            ("cc.test/", 503, "<h1>Oh</h1>", "H21"),
            ("cc.test/closed", 403, "<h1>No</h1>", "H40"),
        ] {
            let got = get(&world, way, url, &[("accept", "text/html")]).await;
            assert_eq!((got.status, got.text().as_str()), (status, text), "{way:?} {url}");
            assert_eq!(got.field("content-type"), Some("text/html; charset=utf-8"));
            assert_eq!(got.field("x-frame-options"), if url == "bb.test/" { Some("DENY") } else { None });
            expect_line(&mut world, &format!("code={code}")).await;
        }
        let got = get(&world, way, "bb.test/", &[("accept", "application/json")]).await;
        assert!(got.text().contains("\"H80\""), "{}", got.text());
        let got = ask(&world, way, "HEAD", "bb.test/", &[], b"").await;
        assert_eq!((got.status, got.field("content-length"), got.body.len()), (503, Some("18"), 0));
        world.line().await;
        world.line().await;
    }
    world.stop().await;
}
