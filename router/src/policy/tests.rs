use super::*;
use flex_model::Cidr;
use serde_json::json;

fn gate(http: serde_json::Value) -> Gate {
    let serde_json::Value::Object(http) = http else { panic!("no object") };
    let http = HttpPolicy::read(http).unwrap();
    Gate::new(1, &http, None, &Pages::new()).unwrap()
}

fn facts(client: &str) -> Facts<'static> {
    Facts {
        client: client.parse().unwrap(),
        https: false,
        host: "a.test",
        with_port: false,
        target: "/x?y=1",
        reading: true,
        authorization: None,
        length: None,
        head_bytes: 300,
        https_port: Some(8443),
        now_ms: 0,
    }
}

fn decide(gate: &Gate, facts: &Facts<'_>) -> Verdict {
    gate.decide(facts, &Buckets::default(), &mut Extra::default())
}

fn to(status: u16, location: &str) -> Verdict {
    Verdict::Redirect { status, location: location.into() }
}

#[test]
fn nothing_set_is_no_gate() {
    assert!(Gate::new(1, &HttpPolicy::default(), None, &Pages::new()).is_none());
    assert!(Gate::new(1, &HttpPolicy::default(), Some(5), &Pages::new()).is_some());
}

#[test]
fn redirects_go_where_the_client_can_follow() {
    let (https, both) =
        (gate(json!({ "https_redirect": true })), gate(json!({ "https_redirect": true, "canonical_host": "www.a.test" })));
    let canonical = gate(json!({ "canonical_host": "www.a.test" }));
    let plain = facts("192.0.2.1");
    let secure = Facts { https: true, ..plain };
    assert_eq!(decide(&https, &plain), to(301, "https://a.test/x?y=1"));
    assert_eq!(decide(&https, &Facts { reading: false, ..plain }), to(308, "https://a.test/x?y=1"));
    assert_eq!(decide(&https, &Facts { with_port: true, ..plain }), to(301, "https://a.test:8443/x?y=1"));
    assert_eq!(decide(&https, &Facts { target: "*", ..plain }), to(301, "https://a.test/"));
    assert_eq!(decide(&https, &secure), Verdict::Pass);
    assert_eq!(decide(&both, &plain), to(301, "https://www.a.test/x?y=1"));
    assert_eq!(decide(&both, &secure), to(301, "https://www.a.test/x?y=1"));
    assert_eq!(decide(&canonical, &plain), to(301, "http://www.a.test/x?y=1"));
    assert_eq!(decide(&canonical, &Facts { host: "www.a.test", ..plain }), Verdict::Pass);
    assert_eq!(decide(&both, &Facts { host: "www.a.test", https: true, ..plain }), Verdict::Pass);
}

#[test]
fn deny_wins_over_allow() {
    let g = gate(json!({ "allow": ["10.0.0.0/8", "2001:db8::/32"], "deny": ["10.6.0.0/16"] }));
    for (client, enters) in [
        ("10.1.2.3", true),
        ("10.6.2.3", false),
        ("11.1.2.3", false),
        ("2001:db8::7", true),
        ("::1", false),
        ("::ffff:10.1.1.1", true),
    ] {
        let expected = if enters { Verdict::Pass } else { Verdict::Refuse(Code::AddressRefused) };
        assert_eq!(decide(&g, &facts(client)), expected, "{client}");
    }
    let only_deny = gate(json!({ "deny": ["10.0.0.0/8"] }));
    assert_eq!(decide(&only_deny, &facts("10.0.0.1")), Verdict::Refuse(Code::AddressRefused));
    assert_eq!(decide(&only_deny, &facts("11.0.0.1")), Verdict::Pass);
}

#[test]
fn the_client_is_who_trusted_proxies_say() {
    let trusted: Vec<Cidr> = ["10.0.0.0/8", "192.0.2.1"].iter().map(|c| c.parse().unwrap()).collect();
    for (chain, who) in [
        ("203.0.113.9", Some("203.0.113.9")),
        ("1.1.1.1, 203.0.113.9", Some("203.0.113.9")),
        ("1.1.1.1, 203.0.113.9, 10.0.0.1", Some("203.0.113.9")),
        ("203.0.113.9, 10.0.0.2, 192.0.2.1", Some("203.0.113.9")),
        ("10.0.0.3, 10.0.0.2", Some("10.0.0.3")),
        ("unknown, 10.0.0.2", Some("10.0.0.2")),
        ("::ffff:10.0.0.2", Some("10.0.0.2")),
        ("", None),
        ("x", None),
    ] {
        assert_eq!(address::client(chain, &trusted), who.map(|w| w.parse().unwrap()), "{chain}");
    }
}

#[test]
fn sizes() {
    let g = gate(json!({ "max_body_bytes": 100, "max_header_bytes": 300 }));
    let f = facts("::1");
    assert_eq!(decide(&g, &Facts { length: Some(100), ..f }), Verdict::Pass);
    assert_eq!(decide(&g, &Facts { length: Some(101), ..f }), Verdict::Refuse(Code::BodyTooLarge));
    assert_eq!(decide(&g, &Facts { head_bytes: 301, ..f }), Verdict::Refuse(Code::HeadTooLarge));
}

#[test]
fn passwords() {
    // PBKDF2 of "geheim".
    let (salt, mut hash) = ([7_u8; 16], [0_u8; 32]);
    let rounds = std::num::NonZeroU32::new(10).unwrap();
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, b"geheim", &mut hash);
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let stored = format!("pbkdf2-sha256$10${}${}", hex(&salt), hex(&hash));
    let g = gate(json!({ "basic_auth": { "users": { "ann": stored, "clear": "geheim" }, "realm": "Staging" } }));
    let buckets = Buckets::default();
    let ask = |user: &str, password: &str, now_ms| {
        use base64::Engine as _;
        let field = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")));
        g.decide(&Facts { authorization: Some(&field), now_ms, ..facts("::1") }, &buckets, &mut Extra::default())
    };
    let refused = Verdict::Refuse(Code::Unauthorized);
    assert_eq!(decide(&g, &facts("::1")), refused);
    for _ in 0..3 {
        assert_eq!(ask("ann", "geheim", 0), Verdict::Pass);
    }
    assert_eq!(
        (ask("ann", "x", 0), ask("bob", "geheim", 0), ask("clear", "geheim", 0)),
        (refused.clone(), refused.clone(), refused)
    );
    for _ in 0..7 {
        ask("ann", "x", 0);
    }
    // Wrong too often: looked at no more, for a while; what is right already stays so.
    assert_eq!(ask("ann", "y", 0), Verdict::Refuse(Code::RateLimited));
    assert_eq!(ask("ann", "geheim", 0), Verdict::Pass);
    assert_eq!(ask("ann", "y", 2_000), Verdict::Refuse(Code::Unauthorized));
    for bad in ["", "Basic", "Basic !", "Bearer x", "Basic YQ=="] {
        let f = Facts { authorization: Some(bad), ..facts("::1") };
        assert_eq!(decide(&g, &f), Verdict::Refuse(Code::Unauthorized), "{bad}");
    }
}

#[tokio::test]
async fn wrong_passwords_are_counted_over_all_routes_and_costly_ones_elsewhere() {
    use base64::Engine as _;
    let stored = |rounds: u32| {
        let (salt, mut hash) = ([7_u8; 16], [0_u8; 32]);
        let iterations = std::num::NonZeroU32::new(rounds).unwrap();
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, b"geheim", &mut hash);
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        format!("pbkdf2-sha256${rounds}${}${}", hex(&salt), hex(&hash))
    };
    let at = |scope, rounds| {
        let http = json!({ "basic_auth": { "users": { "ann": stored(rounds) } } });
        let http = HttpPolicy::read(http.as_object().unwrap().clone()).unwrap();
        Gate::new(scope, &http, None, &Pages::new()).unwrap()
    };
    let field = |password: &str| format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("ann:{password}")));
    let (wrong, right) = (field("x"), field("geheim"));
    let buckets = Buckets::default();
    let ask = |gate: &Gate, field: &str| {
        let mut extra = Extra::default();
        let verdict = gate.decide(&Facts { authorization: Some(field), ..facts("192.0.2.7") }, &buckets, &mut extra);
        (verdict, extra.check)
    };
    // Each route would bear ten.
    let gates: Vec<Gate> = (1..11).map(|scope| at(scope, 1)).collect();
    let looked_at = (0..100).filter(|n| ask(&gates[n % 10], &wrong).0 == Verdict::Refuse(Code::Unauthorized)).count();
    assert_eq!(looked_at, 30);
    // What takes long is nothing for an event loop; the verdict is what holds if it is right.
    let (buckets, costly) = (Buckets::default(), at(11, 20_000));
    let ask = |field: &str| {
        let mut extra = Extra::default();
        let verdict = costly.decide(&Facts { authorization: Some(field), ..facts("192.0.2.7") }, &buckets, &mut extra);
        (verdict, extra.check)
    };
    for (field, is_right) in [(&wrong, false), (&right, true)] {
        let (verdict, check) = ask(field);
        assert_eq!((verdict, check.unwrap().verify().await), (Verdict::Pass, is_right));
    }
    // It is known now.
    let (verdict, check) = ask(&right);
    assert!(verdict == Verdict::Pass && check.is_none());
    // So many at once are as many, though none is looked at yet.
    let open = (0..50).filter(|_| ask(&wrong).1.is_some()).count();
    assert_eq!(open, 8);
}

#[test]
fn codings_are_chosen_by_weight_then_by_order() {
    use Coding::{Br, Gzip, Zstd};
    let all = [Zstd, Br, Gzip];
    for (accept, coding) in [
        ("gzip, deflate, br, zstd", Some(Zstd)),
        ("gzip, br;q=0.9", Some(Gzip)),
        ("gzip;q=0.5, br;q=0.8, zstd;q=0", Some(Br)),
        ("*", Some(Zstd)),
        ("*;q=0.1, gzip", Some(Gzip)),
        ("x-gzip", Some(Gzip)),
        ("GZIP", Some(Gzip)),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=x, br;q=1.5", None),
        ("", None),
    ] {
        assert_eq!(compress::choose(&all, accept.split(',').map(str::trim)), coding, "{accept}");
    }
    assert_eq!(compress::choose(&[Gzip], ["br"].into_iter()), None);
    for (kind, shrinks) in [
        ("text/html; charset=utf-8", true),
        ("application/json", true),
        ("application/problem+json", true),
        ("image/svg+xml", true),
        ("text/event-stream", true),
        ("image/png", false),
        ("application/octet-stream", false),
        ("video/mp4", false),
        ("", false),
    ] {
        assert_eq!(compress::shrinks(kind), shrinks, "{kind}");
    }
}

#[test]
fn every_flush_can_be_read_by_itself() {
    use std::io::Read as _;
    for coding in [Coding::Zstd, Coding::Br, Coding::Gzip] {
        let mut encoder = Encoder::new(coding).unwrap();
        let mut sent = Vec::new();
        for part in ["first ", "second ", ""] {
            encoder.write(part.as_bytes()).unwrap();
            sent.extend(encoder.flush().unwrap());
            let mut reader: Box<dyn std::io::Read> = match coding {
                Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(&sent[..]).unwrap()),
                Coding::Br => Box::new(brotli::Decompressor::new(&sent[..], 4096)),
                Coding::Gzip => Box::new(flate2::read::GzDecoder::new(&sent[..])),
            };
            let expected = if part == "first " { 6 } else { 13 };
            reader.read_exact(&mut vec![0; expected]).unwrap();
        }
        sent.extend(encoder.finish().unwrap());
        assert!(!sent.is_empty());
    }
}

#[test]
fn slow_clients_are_told_from_slow_instances() {
    let mut pace = Pace::default();
    assert!(!pace.is_too_slow(100, 0, true, 0));
    assert!(!pace.is_too_slow(100, 10, true, 5_000), "before the grace is over");
    assert!(!pace.is_too_slow(100, 10, false, 60_000), "it was the instance that was waited for");
    assert!(!pace.is_too_slow(100, 600, true, 61_000));
    assert!(pace.is_too_slow(100, 600, true, 63_000));
}
