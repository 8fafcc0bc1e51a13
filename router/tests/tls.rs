//! TLS with real handshakes: certificates by name, replacement under way, resumption, versions, and what instances are
//! told of it.

mod http3;
mod support;
use flex_model::{AppState::Serving, Challenge};
use rustls::{HandshakeKind, pki_types::ServerName};
use std::sync::Arc;
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

async fn connect(world: &World, config: &Arc<rustls::ClientConfig>, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = within(TcpStream::connect(world.https.unwrap())).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within(TlsConnector::from(config.clone()).connect(name, stream)).await
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    within(stream.write_all(request.as_bytes())).await.unwrap();
    let mut text = Vec::new();
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

fn get(host: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn certificates_are_found_by_name_and_replaced_while_serving() {
    let instance = echo().await;
    let apps =
        vec![app("aa", Serving, vec![backend(1, instance.address)]), app("bb", Serving, vec![backend(1, instance.address)])];
    let (one, fallback) = (Pair::new("one", &["aa.test"]), Pair::new("none", &["none.example"]));
    // Clients believe no `*.test`, so the names inside are others than those it is kept for.
    let mut wild = Pair::new("wild", &["bb.test", "cc.test"]);
    wild.certificate.names = vec!["*.test".parse().unwrap()];
    let mut table = certificates(1, &[&one, &wild]);
    table.fallback = Some(Arc::new(fallback.certificate.clone()));
    let setup = Setup { certificates: Some(table), ..Setup::default() };
    let mut world = setup.start(support::table(1, apps)).await;
    let all = client_config(&[&one, &wild, &fallback], &[], &[&rustls::version::TLS13]);

    let mut stream = connect(&world, &all, "aa.test").await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], one.der);
    let text = ask(&mut stream, &get("aa.test")).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let port = world.https.unwrap().port();
    assert!(text.contains("X-Forwarded-Proto: https\r\n") && text.contains(&format!("X-Forwarded-Port: {port}\r\n")), "{text}");
    let line = world.line().await;
    assert!(line.ends_with(" protocol=https tls_version=tls1.3"), "{line}");

    let stream = connect(&world, &all, "bb.test").await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], wild.der);
    // A name that nobody registered gets the fallback, which is not for it: the client refuses, the router goes on.
    assert!(connect(&world, &all, "a.b.c.test").await.is_err());
    let stream = connect(&world, &all, "none.example").await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], fallback.der);

    // The request's name has another certificate than the connection's: 421. The same one: served.
    let mut stream = connect(&world, &all, "aa.test").await.unwrap();
    assert!(ask(&mut stream, &get("bb.test")).await.starts_with("HTTP/1.1 421 Misdirected Request\r\n"));
    let mut stream = connect(&world, &all, "cc.test").await.unwrap();
    assert!(ask(&mut stream, &get("bb.test")).await.starts_with("HTTP/1.1 200 "));

    let mut kept = connect(&world, &all, "aa.test").await.unwrap();
    let renewed = Pair::new("renewed", &["aa.test"]);
    let after = client_config(&[&renewed], &[], &[&rustls::version::TLS13]);
    assert!(connect(&world, &after, "aa.test").await.is_err());
    let broken = flex_model::Certificate { key: wild.certificate.key.clone(), ..Pair::new("broken", &["bb.test"]).certificate };
    let mut table = certificates(2, &[&renewed]);
    table.certificates.push(Arc::new(broken));
    world.certificates.send_replace(Arc::new(table));
    eventually(async || connect(&world, &after, "aa.test").await.is_ok()).await;
    assert!(ask(&mut kept, &get("aa.test")).await.starts_with("HTTP/1.1 200 "));
    world.stop().await;
}

#[tokio::test]
async fn sessions_resume_on_any_worker_and_old_versions_are_refused_when_told() {
    let instance = echo().await;
    let pair = Pair::new("one", &["aa.test"]);
    let apps = || support::table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])]);
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), workers: 4, ..Setup::default() };
    let world = setup.start(apps()).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = client_config(&[&pair], &[b"http/1.1"], &[version]);
        for n in 0..12 {
            let mut stream = connect(&world, &config, "aa.test").await.unwrap();
            assert!(ask(&mut stream, &get("aa.test")).await.starts_with("HTTP/1.1 200 "));
            let kind = stream.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(if n == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed }), "{version:?} {n}");
        }
    }
    let metrics = world.metrics.snapshot();
    assert_eq!((metrics.tls_handshakes, metrics.tls_resumed), (24, 22));
    world.stop().await;
    // With keys of the control plane, by another router and by one that was restarted too.
    let mut table = certificates(2, &[&pair]);
    table.ticket_keys = vec![flex_model::TicketKey { period: 1, key: flex_model::Secret::new("0f".repeat(32)) }];
    let setup = || Setup { certificates: Some(table.clone()), ..Setup::default() };
    let mut worlds = vec![setup().start(apps()).await, setup().start(apps()).await];
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = client_config(&[&pair], &[b"http/1.1"], &[version]);
        for n in 0..4 {
            if n == 3 {
                worlds.remove(1).stop().await;
                worlds.push(setup().start(apps()).await);
            }
            let mut stream = connect(&worlds[n % 2], &config, "aa.test").await.unwrap();
            assert!(ask(&mut stream, &get("aa.test")).await.starts_with("HTTP/1.1 200 "));
            let kind = stream.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(if n == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed }), "{version:?} {n}");
        }
    }
    for world in worlds {
        world.stop().await;
    }

    let setup = Setup { certificates: Some(certificates(1, &[&pair])), min_tls: flex_router::MinTls::Tls13, ..Setup::default() };
    let world = setup.start(apps()).await;
    assert!(connect(&world, &client_config(&[&pair], &[], &[&rustls::version::TLS12]), "aa.test").await.is_err());
    assert!(connect(&world, &client_config(&[&pair], &[], &[&rustls::version::TLS13]), "aa.test").await.is_ok());
    world.stop().await;
}

#[tokio::test]
async fn silent_and_foreign_clients_end_and_a_restart_knows_the_certificates() {
    let instance = echo().await;
    let pair = Pair::new("one", &["aa.test"]);
    let dir = tempfile::tempdir().unwrap();
    let timeouts = flex_router::Timeouts { handshake: std::time::Duration::from_millis(200), ..Default::default() };
    let apps = vec![app("aa", Serving, vec![backend(1, instance.address)])];
    let setup = |certificates| Setup {
        certificates: Some(certificates),
        timeouts: timeouts.clone(),
        state_dir: Some(dir.path().to_owned()),
        ..Setup::default()
    };
    let world = setup(certificates(1, &[&pair])).start(support::table(1, apps)).await;
    let https = world.https.unwrap();
    assert_eq!(Client::new(https).await.rest().await, b"");
    let mut plain = Client::new(https).await;
    plain.send(&get("aa.test")).await;
    plain.rest().await;
    eventually(async || world.metrics.snapshot().tls_failed == 2).await;
    let kept = dir.path().join("certificates.json");
    eventually(async || kept.exists()).await;
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&kept.metadata().unwrap().permissions()) & 0o777, 0o600);
    world.stop().await;
    let world = setup(Default::default()).start(Default::default()).await;
    let config = client_config(&[&pair], &[], &[&rustls::version::TLS13]);
    let mut stream = connect(&world, &config, "aa.test").await.unwrap();
    assert!(ask(&mut stream, &get("aa.test")).await.starts_with("HTTP/1.1 200 "));
    world.stop().await;
}

#[tokio::test]
async fn a_large_answer_comes_whole_to_a_slow_reader() {
    const SIZE: usize = 8 << 20;
    let instance = instance(|mut conn, _| async move {
        while request(&mut conn).await.is_some() {
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            let content: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
            conn.send_bytes(&content).await;
        }
    })
    .await;
    let pair = Pair::new("one", &["aa.test"]);
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() };
    let world = setup.start(support::table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    let config = client_config(&[&pair], &[], &[&rustls::version::TLS13]);
    let mut stream = connect(&world, &config, "aa.test").await.unwrap();
    // Kept open: the end must come by the length, not by the close.
    within(stream.write_all(b"GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n")).await.unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        within(stream.read_exact(&mut byte)).await.unwrap();
        head.push(byte[0]);
    }
    let mut content = vec![0; SIZE];
    for part in content.chunks_mut(300_007) {
        within(stream.read_exact(part)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(content.iter().enumerate().all(|(n, b)| *b == (n % 251) as u8));
    world.stop().await;
}

#[tokio::test]
async fn challenges_are_answered_for_their_own_name_only() {
    let pair = Pair::new("acme", &["aa.test"]);
    let mut table = certificates(1, &[]);
    let challenge =
        |name: &str, alpn| Challenge { name: name.parse().unwrap(), token: "tok".into(), proof: "tok.thumb".into(), alpn };
    table.challenges = vec![challenge("aa.test", Some(pair.certificate.clone()))];
    let setup = Setup { certificates: Some(table), ..Setup::default() };
    let world = setup.start(support::table(1, vec![])).await;
    let answer = world.get("aa.test", "/.well-known/acme-challenge/tok").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "tok.thumb"));
    assert_eq!(world.get("bb.test", "/.well-known/acme-challenge/tok").await.status, 404);
    assert_eq!(world.get("aa.test", "/.well-known/acme-challenge/other").await.status, 404);
    let acme = client_config(&[&pair], &[b"acme-tls/1"], &[&rustls::version::TLS13]);
    let mut stream = connect(&world, &acme, "aa.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    assert_eq!(ask(&mut stream, "").await, "");
    assert!(connect(&world, &acme, "bb.test").await.is_err());
    let plain = client_config(&[&pair], &[b"http/1.1"], &[&rustls::version::TLS13]);
    assert!(connect(&world, &plain, "aa.test").await.is_err());
    world.stop().await;
}
