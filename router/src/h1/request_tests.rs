//! What a request's head may and may not be, and what is made of it.

use super::*;
use proptest::prelude::*;

fn arrival(trusted: bool) -> Arrival {
    Arrival {
        peer: [192, 0, 2, 9].into(),
        trusted,
        port: 8080,
        scheme: "http",
        via: None,
        at_ms: 1_700_000_000_000,
        random: 0x1234,
    }
}

fn read(head: &str) -> Result<Request, Refusal> {
    parse(head.as_bytes(), 100, &arrival(false))
}

fn sent(request: &Request) -> String {
    String::from_utf8(request.upstream.clone()).unwrap()
}

#[test]
fn a_plain_request() {
    let request = read("GET /a?b HTTP/1.1\r\nHost: App.Example:8080\r\nAccept: */*\r\nX-A: b \r\n\r\n").unwrap();
    assert_eq!(request.host, "app.example");
    assert!(request.keep_alive && request.idempotent && !request.upgrade && !request.head_only);
    assert_eq!(request.framing, Framing::None);
    let sent = sent(&request);
    assert!(sent.starts_with("GET /a?b HTTP/1.1\r\nHost: App.Example:8080\r\nAccept: */*\r\nX-A: b\r\n"), "{sent}");
    for field in [
        "X-Forwarded-For: 192.0.2.9\r\n",
        "Forwarded: for=192.0.2.9;host=\"App.Example:8080\";proto=http\r\n",
        "X-Forwarded-Proto: http\r\n",
        "X-Forwarded-Port: 8080\r\n",
        "X-Forwarded-Host: App.Example:8080\r\n",
        "X-Request-Start: 1700000000000\r\n",
        "Via: 1.1 flex-router\r\n",
        "X-Request-ID: 00000000-0000-4000-8000-000000001234\r\n",
    ] {
        assert!(sent.contains(field), "{field} in {sent}");
    }
    assert!(sent.ends_with("\r\n\r\n") && sent.matches("\r\n\r\n").count() == 1);
    assert_eq!(
        request.log,
        "method=GET path=\"/a?b\" host=App.Example request_id=00000000-0000-4000-8000-000000001234 fwd=\"192.0.2.9\""
    );
}

#[test]
fn clients_cannot_forge_what_names_them() {
    let head = "GET / HTTP/1.1\r\nHost: a.b\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-proto: https\r\nX_Forwarded_For: 1.1.1.1\r\n\
                X-Forwarded-Port: 443\r\nX-Forwarded-Host: evil\r\nX-Request-ID: forged-forged-forged\r\nX-Request-Start: 1\r\n\
                Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nProxy: http://evil\r\nContent_Length: 5\r\nConnection: x-forwarded-for, x-request-id, host\r\n\r\n";
    let told = sent(&read(head).unwrap()).to_ascii_lowercase();
    for lie in ["1.1.1.1", "https", "evil", "forged", "443", "content_length", "x-request-start: 1\r"] {
        assert!(!told.contains(lie), "{lie} in {told}");
    }
    assert!(told.contains("x-forwarded-for: 192.0.2.9\r\n") && told.contains("host: a.b\r\n"));
    let told = sent(&parse(head.as_bytes(), 100, &arrival(true)).unwrap());
    for truth in [
        "X-Forwarded-For: 1.1.1.1, 192.0.2.9\r\n",
        "X-Forwarded-Proto: https\r\n",
        "X-Forwarded-Port: 443\r\n",
        "X-Request-ID: forged-forged-forged\r\n",
        "X-Request-Start: 1\r\n",
        "Forwarded: for=1.1.1.1, for=192.0.2.9;host=\"a.b\";proto=http\r\n",
    ] {
        assert!(told.contains(truth), "{truth} in {told}");
    }
    let odd = "GET / HTTP/1.1\r\nHost: a.b\r\nX-Request-ID: a b\"c\r\n\r\n";
    assert!(!sent(&parse(odd.as_bytes(), 100, &arrival(true)).unwrap()).contains("a b"));
}

#[test]
fn what_is_for_one_hop_ends_here() {
    let head = "GET / HTTP/1.1\r\nHost: a.b\r\nConnection: close, X-Secret\r\nKeep-Alive: 5\r\nX-Secret: 1\r\nTE: trailers, gzip\r\n\
                Proxy-Connection: x\r\nUpgrade: websocket\r\nCookie: c\r\n\r\n";
    let request = read(head).unwrap();
    assert!(!request.keep_alive && !request.upgrade);
    let told = sent(&request);
    for gone in ["close", "Keep-Alive", "Secret", "gzip", "Proxy", "websocket"] {
        assert!(!told.contains(gone), "{gone} in {told}");
    }
    assert!(told.contains("TE: trailers\r\n") && told.contains("Cookie: c\r\n"));
}

#[test]
fn the_target_decides_over_the_host_field() {
    let request = read("GET http://One.example:81/x?y HTTP/1.1\r\nHost: two.example\r\n\r\n").unwrap();
    assert_eq!(request.host, "one.example");
    assert!(sent(&request).starts_with("GET /x?y HTTP/1.1\r\nHost: One.example:81\r\n"));
    assert!(sent(&read("GET http://a.b HTTP/1.1\r\nHost: a.b\r\n\r\n").unwrap()).starts_with("GET / HTTP/1.1\r\n"));
    assert!(sent(&read("OPTIONS * HTTP/1.1\r\nHost: a.b\r\n\r\n").unwrap()).starts_with("OPTIONS * HTTP/1.1\r\n"));
    assert_eq!(read("GET / HTTP/1.1\r\nHost: a.b.\r\n\r\n").unwrap().host, "a.b");
    assert_eq!(read("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").unwrap().host, "[::1]");
}

#[test]
fn versions_and_persistence() {
    assert!(!read("GET / HTTP/1.0\r\nHost: a.b\r\n\r\n").unwrap().keep_alive);
    assert!(read("GET / HTTP/1.0\r\nHost: a.b\r\nConnection: keep-alive\r\n\r\n").unwrap().keep_alive);
    assert!(!read("GET / HTTP/1.1\r\nHost: a.b\r\nConnection: Close\r\n\r\n").unwrap().keep_alive);
    assert_eq!(read("GET / HTTP/2.0\r\nHost: a.b\r\n\r\n").unwrap_err(), Refusal::Version);
    assert_eq!(read("PRI * HTTP/2.0\r\n\r\n").unwrap_err(), Refusal::Version);
}

#[test]
fn upgrades_to_other_forms_of_http_are_not_passed_on() {
    let ask = |to: &str| {
        read(&format!(
            "GET / HTTP/1.1\r\nHost: a.b\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {to}\r\nHTTP2-Settings: x\r\n\r\n"
        ))
        .unwrap()
    };
    assert!(ask("websocket").upgrade);
    assert!(sent(&ask("websocket")).contains("Upgrade: websocket\r\n"));
    for to in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0", ""] {
        let request = ask(to);
        assert!(!request.upgrade && !sent(&request).to_lowercase().contains("upgrade"), "{to}");
    }
    let with_content = "POST / HTTP/1.1\r\nHost: a.b\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n";
    assert!(!read(with_content).unwrap().upgrade);
}

#[test]
fn framing_is_written_anew_once() {
    let request = read("POST / HTTP/1.1\r\nHost: a.b\r\ncontent-length: 007\r\n\r\n").unwrap();
    assert_eq!(request.framing, Framing::Length(7));
    assert_eq!(sent(&request).to_lowercase().matches("content-length: 7\r\n").count(), 1);
    let request = read("POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: Chunked\r\n\r\n").unwrap();
    assert_eq!(request.framing, Framing::Chunked);
    assert_eq!(sent(&request).matches("Transfer-Encoding: chunked\r\n").count(), 1);
}

#[test]
fn paths_cannot_forge_access_lines() {
    let request = read("GET /\"status=200 HTTP/1.1\r\nHost: a.b\r\n\r\n").map(|r| r.log);
    if let Ok(log) = request {
        assert!(log.contains("path=\"/%22status=200\""), "{log}");
    }
}

/// Heads that must be refused, whoever would have understood them.
pub(crate) const BAD_HEADS: &[&str] = &[
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nHost: c.d\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b/x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: user@a.b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b:80:80\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b:99999\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b, c.d\r\n\r\n",
    "GET http://a.b@c.d/ HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET ftp://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET http:/// HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET /#x HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET x HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET /  HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET / x HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET\t/ HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET /\r\nHost: a.b\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a.b\r\n\r\n",
    "GET / http/1.1\r\nHost: a.b\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : a.b\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a.b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX: a\r\n\tb\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\n: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX(: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX: \x01\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nX: \x7f\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5, 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: +5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: -5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 0x5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5;\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length : 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked;x=y\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding : chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding\r\n: chunked\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.b\r\nExpect: 200-maybe\r\n\r\n",
];

#[test]
fn ambiguous_heads_are_refused() {
    for head in BAD_HEADS {
        assert!(read(head).is_err(), "{head:?}");
    }
}

#[test]
fn forwarded_tells_the_way_as_rfc_7239_has_it() {
    let forwarded = |fields: &str, arrival: &Arrival| {
        let head = format!("GET / HTTP/1.1\r\nHost: a.b:81\r\n{fields}\r\n");
        let told = sent(&parse(head.as_bytes(), 100, arrival).unwrap());
        let mut all = told.lines().filter_map(|l| l.strip_prefix("Forwarded: ")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(all.len(), 1, "{told}");
        all.remove(0)
    };
    let six = Arrival { peer: "2001:db8::7".parse().unwrap(), scheme: "https", ..arrival(false) };
    assert_eq!(forwarded("Forwarded: for=6.6.6.6\r\n", &six), "for=\"[2001:db8::7]\";host=\"a.b:81\";proto=https");
    // A trusted proxy that knows only the older fields.
    let old = "X-Forwarded-For: 2001:db8::1, 192.0.2.1:4711, \";evil\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: c.d\r\n";
    let told = "for=\"[2001:db8::1]\";host=\"c.d\";proto=https, for=\"192.0.2.1:4711\", for=unknown, for=192.0.2.9";
    assert_eq!(forwarded(old, &arrival(true)), told);
    let bad = "X-Forwarded-Host: c\";for=1.1.1.1\r\n";
    assert_eq!(forwarded(bad, &arrival(true)), "for=192.0.2.9;proto=http");
    let two = "Forwarded: for=a\r\nForwarded: for=b\r\n";
    assert_eq!(forwarded(two, &arrival(true)), "for=a, for=b, for=192.0.2.9;host=\"a.b:81\";proto=http");
}

#[test]
fn a_client_says_nothing_of_the_way_it_came() {
    let head = b"GET / HTTP/1.1\r\nHost: a.b\r\nVia: 1.0 first\r\nX-Client-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\n\r\n";
    let told = sent(&parse(head, 100, &arrival(false)).unwrap());
    assert!(!told.contains("first") && !told.contains("6.6.6.6") && told.contains("Via: 1.1 flex-router\r\n"), "{told}");
}

#[test]
fn access_lines_hold_whatever_a_client_sends() {
    let line = |head: &str| parse(head.as_bytes(), 100, &arrival(true)).unwrap().log;
    let odd = line("GET /a\\ HTTP/1.1\r\nHost: a.b\r\nX-Forwarded-For: x\\\"\r\n\r\n");
    assert!(odd.starts_with("method=GET path=\"/a%5C\" host=a.b request_id=") && odd.contains(" fwd=\"x%5C%22, "), "{odd}");
    let json: serde_json::Value = serde_json::from_str(&crate::access::as_json(&odd)).unwrap();
    assert_eq!((&json["path"], &json["host"]), (&"/a%5C".into(), &"a.b".into()));
    // What is long is cut off, and says so.
    for (method, path, forwarded) in
        [("GET", "/x".repeat(20_000), "1.2.3.4, ".repeat(5_000)), (&*"M".repeat(5_000), "x".repeat(30), String::new())]
    {
        let long = line(&format!("{method} /{path} HTTP/1.1\r\nHost: a.b\r\nX-Forwarded-For: {forwarded}\r\n\r\n"));
        assert!(long.len() < 5_000 && long.contains('…') && long.ends_with('"'), "{} {long}", long.len());
    }
}

#[test]
fn via_tells_the_version_that_was_spoken() {
    let via = |version: &str, via| {
        let head = format!("GET / HTTP/{version}\r\nHost: a.b\r\nVia: 1.0 first\r\n\r\n");
        let told = sent(&parse(head.as_bytes(), 100, &Arrival { via, ..arrival(true) }).unwrap());
        told.lines().filter_map(|l| l.strip_prefix("Via: ")).collect::<Vec<_>>().join("|")
    };
    assert_eq!(via("1.1", None), "1.0 first|1.1 flex-router");
    assert_eq!(via("1.0", None), "1.0 first|1.0 flex-router");
    assert_eq!(via("1.1", Some(b"2.0 flex-router")), "1.0 first|2.0 flex-router");
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_passes_is_one_head(head in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = parse(&head, 100, &arrival(false)) {
            prop_assert!(request.upstream.windows(4).filter(|w| w == b"\r\n\r\n").count() == 1);
        }
    }

    /// Fields made of what smuggling is made of: whatever passes has one framing and one host, and no bare CR or LF.
    #[test]
    fn what_passes_has_one_reading(fields in proptest::collection::vec(
        prop::sample::select(vec![
            "Content-Length: 3", "Content-Length: 4", "Transfer-Encoding: chunked", "Transfer-Encoding: x", "Content-Length:3 ",
            "transfer-encoding:\tchunked", "Connection: transfer-encoding", "Connection: content-length, close", "X: y", "Host: c.d",
            "Transfer_Encoding: chunked", "Content_Length: 9", "Upgrade: h2c", "TE: chunked", "X-Forwarded-For: 1.1.1.1",
        ]), 0..6)) {
        let head = format!("POST / HTTP/1.1\r\nHost: a.b\r\n{}\r\n", fields.iter().map(|f| format!("{f}\r\n")).collect::<String>());
        if let Ok(request) = read(&head) {
            let told = sent(&request).to_lowercase().replace('_', "-");
            let count = |name: &str| told.matches(&format!("\r\n{name}:")).count();
            prop_assert_eq!(count("host"), 1);
            prop_assert_eq!(count("content-length") + count("transfer-encoding"), usize::from(request.framing != Framing::None));
            prop_assert_eq!(count("x-forwarded-for"), 1);
            prop_assert!(!told.contains("1.1.1.1"));
        }
    }
}
