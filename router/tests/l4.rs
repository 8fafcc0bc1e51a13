//! TCP and UDP routes over real sockets: ports that come and go, ends and resets, names, sessions; and who a connection
//! comes from, told in and told on.

mod support;
use flex_model::{AppRoute, AppState::Serving, Balancing, Match, Policy, ProxyVersion};
use flex_router::proxy_protocol::{AUTHORITY, Origin, Tlv, UNIQUE_ID};
use std::{sync::Arc, time::Duration};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use tokio_rustls::client::TlsStream;

fn tcp(port: u16) -> Match {
    Match::Tcp { port: port.try_into().unwrap(), tls: false }
}

fn udp(port: u16) -> Match {
    Match::Udp { port: port.try_into().unwrap() }
}

fn with(app: AppRoute, routes: Vec<flex_model::Route>) -> AppRoute {
    AppRoute { routes, ..app }
}

async fn connected(port: u16) -> Client {
    within(async {
        loop {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => return Client { stream, buf: vec![] },
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

async fn closed(port: u16) {
    within(async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn ports_open_and_close_with_the_table_and_leave_a_line() {
    let instance = mirror().await;
    let port = free_port().await;
    let mut world = World::new(vec![]).await;
    let one = || app("db", Serving, vec![backend(1, instance.address)]);
    world.set(2, vec![with(one(), vec![route(1, tcp(port), Policy::default())])]).await;
    let mut client = connected(port).await;
    client.send("ping").await;
    assert_eq!(client.exact(4).await, b"ping");
    within(world.status.wait_for(|s| s.in_flight.len() == 1)).await.unwrap();
    // The client's end is passed on as an end, and what the instance still has to say arrives.
    let (mut read, mut write) = client.stream.split();
    let send = async {
        write.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = within(async { tokio::join!(send, read.read_to_end(&mut got)) }).await;
    assert_eq!(read.unwrap(), 1 << 20);
    let line = world.line().await;
    assert!(line.starts_with(&format!("at=info port={port} connection_id=")), "{line}");
    assert!(line.contains("fwd=\"127.0.0.1\" dyno=web.1 connect="), "{line}");
    assert!(line.ends_with("bytes_in=1048580 bytes=1048580 protocol=tcp"), "{line}");
    within(world.status.wait_for(|s| s.in_flight.is_empty())).await.unwrap();
    world.set(3, vec![one()]).await;
    closed(port).await;
    world.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_opened_when_it_is_free() {
    let instance = mirror().await;
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, free) = (other.local_addr().unwrap().port(), free_port().await);
    let pair = Pair::new("one", &["aa.test"]);
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() };
    let mut world = setup.start(table(1, vec![])).await;
    let own = world.address.port();
    let secure = world.https.unwrap().port();
    let routes = vec![
        route(1, tcp(taken), Policy::default()),
        route(2, tcp(free), Policy::default()),
        route(3, tcp(own), Policy::default()),
        route(4, tcp(secure), Policy::default()),
    ];
    world.set(2, vec![with(app("db", Serving, vec![backend(1, instance.address)]), routes)]).await;
    let status = within(world.status.wait_for(|s| s.problems.len() == 3)).await.unwrap().clone();
    assert!(status.problems.iter().any(|p| p.message.contains(&format!("TCP port {taken} cannot be opened"))), "{status:?}");
    for port in [own, secure] {
        let told =
            |p: &flex_model::RouteProblem| p.message.contains("the router itself") && p.message.contains(&port.to_string());
        assert!(status.problems.iter().any(told), "{port}: {status:?}");
    }
    connected(free).await;
    drop(other);
    within(world.status.wait_for(|s| s.problems.len() == 2)).await.unwrap();
    let mut client = connected(taken).await;
    client.send("a").await;
    assert_eq!(client.exact(1).await, b"a");
    world.stop_now().await;
}

#[tokio::test]
async fn failures_have_codes_and_resets_stay_resets() {
    let rude = instance(|mut conn, _| async move {
        conn.exact(1).await;
        conn.send("half an answ").await;
        conn.stream.set_zero_linger().unwrap();
    })
    .await;
    let (dead, broken, limited) = (free_port().await, free_port().await, free_port().await);
    let mut world = World::new(vec![]).await;
    let one = Policy { max_connections: Some(1), ..Policy::default() };
    world
        .set(
            2,
            vec![
                with(app("aa", Serving, vec![backend(1, refused().await)]), vec![route(1, tcp(dead), Policy::default())]),
                with(
                    app("bb", Serving, vec![backend(2, rude.address)]),
                    vec![route(2, tcp(broken), Policy::default()), route(3, tcp(limited), one)],
                ),
            ],
        )
        .await;
    assert_eq!(connected(dead).await.rest().await, b"");
    let line = world.line().await;
    assert!(line.starts_with("at=error code=H21") && line.contains("dyno= "), "{line}");
    let mut client = connected(broken).await;
    client.send("x").await;
    let mut got = Vec::new();
    let end = within(client.stream.read_to_end(&mut got)).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(world.line().await.starts_with("at=error code=H18"));
    let _first = connected(limited).await;
    within(world.status.wait_for(|s| !s.in_flight.is_empty())).await.unwrap();
    assert_eq!(connected(limited).await.rest().await, b"");
    assert!(world.line().await.starts_with("at=error code=H22"));
    world.stop_now().await;
}

#[tokio::test]
async fn quiet_connections_end_and_busy_ones_do_not() {
    let instance = mirror().await;
    let port = free_port().await;
    let mut world = World::new(vec![]).await;
    let policy = Policy { idle_seconds: Some(1), ..Policy::default() };
    world.set(2, vec![with(app("db", Serving, vec![backend(1, instance.address)]), vec![route(1, tcp(port), policy)])]).await;
    let mut client = connected(port).await;
    for _ in 0..6 {
        client.send("x").await;
        client.exact(1).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(client.fill().await, 0);
    assert!(world.line().await.starts_with("at=error code=H15"));
    world.stop().await;
}

#[tokio::test]
async fn what_a_stopping_router_cuts_off_is_told() {
    let (instance, port) = (mirror().await, free_port().await);
    let timeouts = flex_router::Timeouts { drain: Duration::from_millis(300), ..Default::default() };
    let mut world = Setup { timeouts, ..Setup::default() }.start(table(1, vec![])).await;
    let routes = vec![route(1, tcp(port), Policy::default())];
    world.set(2, vec![with(app("db", Serving, vec![backend(1, instance.address)]), routes)]).await;
    let mut client = connected(port).await;
    client.send("hello").await;
    assert_eq!(client.exact(5).await, b"hello");
    world.begin_stop();
    assert!(client.rest().await.is_empty());
    let line = world.line().await;
    assert!(line.starts_with("at=error code=H24 desc=\"Forced close\"") && line.contains(" dyno=web.1 "), "{line}");
    world.stop().await;
}

/// The first bytes of a TLS client that asks for a name.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

#[tokio::test]
async fn names_are_routed_without_touching_tls() {
    let (first, second, plain) = (mirror().await, fixed_bytes("second").await, fixed_bytes("plain").await);
    let (port, strict) = (free_port().await, free_port().await);
    let sni = |host: &str, port: u16| Match::Sni { host: host.parse().unwrap(), port: Some(port.try_into().unwrap()) };
    let mut world = World::new(vec![]).await;
    world
        .set(
            2,
            vec![
                with(
                    app("aa", Serving, vec![backend(1, first.address)]),
                    vec![
                        route(1, sni("db.example.com", port), Policy::default()),
                        route(4, sni("db.example.com", strict), Policy::default()),
                    ],
                ),
                with(
                    app("bb", Serving, vec![backend(2, second.address)]),
                    vec![route(2, sni("*.example.com", port), Policy::default())],
                ),
                with(app("cc", Serving, vec![backend(3, plain.address)]), vec![route(3, tcp(port), Policy::default())]),
            ],
        )
        .await;
    // Cut into pieces, so that the name has not come with the first of them.
    let mut client = connected(port).await;
    let bytes = hello("DB.example.com");
    for part in bytes.chunks(50) {
        client.send_bytes(part).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.exact(bytes.len()).await, bytes);
    drop(client);
    let line = world.line().await;
    assert!(line.contains(" sni=db.example.com ") && line.contains("dyno=web.1"), "{line}");
    for (bytes, answer) in
        [(hello("x.example.com"), "second"), (hello("other.test"), "plain"), (b"SSH-2.0-x\r\n".to_vec(), "plain")]
    {
        let mut client = connected(port).await;
        client.send_bytes(&bytes).await;
        assert_eq!(client.exact(6).await[..answer.len().min(6)], answer.as_bytes()[..answer.len().min(6)]);
    }
    // A name that nobody routes, and nothing else on the port: an alert, as TLS has it.
    let mut client = connected(strict).await;
    client.send_bytes(&hello("other.test")).await;
    assert_eq!(client.rest().await, [21, 3, 3, 0, 2, 2, 112]);
    world.stop_now().await;
}

/// Sends its name, padded to six bytes, and waits for the end.
async fn fixed_bytes(text: &'static str) -> Instance {
    instance(move |mut conn, _| async move {
        conn.send(&format!("{text:<6}")).await;
        conn.rest().await;
    })
    .await
}

#[tokio::test]
async fn datagrams_have_sessions() {
    let instances = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    let addresses: Vec<_> = instances.iter().map(|i| i.local_addr().unwrap()).collect();
    for (n, socket) in instances.into_iter().enumerate() {
        tokio::spawn(async move {
            let mut buf = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buf).await {
                let text = format!("{n}:{from}:{}", String::from_utf8_lossy(&buf[..len]));
                socket.send_to(text.as_bytes(), from).await.unwrap();
            }
        });
    }
    let port = free_port().await;
    let mut world =
        Setup { tune: |s| s.timeouts.udp_idle = Duration::from_millis(300), ..Setup::default() }.start(table(1, vec![])).await;
    let policy = Policy { balancing: Balancing::RoundRobin, max_connections: Some(2), ..Policy::default() };
    let backends = vec![backend(1, addresses[0]), backend(2, addresses[1])];
    world.set(2, vec![with(app("dn", Serving, backends), vec![route(1, udp(port), policy.clone())])]).await;
    let client = || async {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(("127.0.0.1", port)).await.unwrap();
        socket
    };
    let ask = |socket: Arc<UdpSocket>, text: &'static str| async move {
        let mut buf = [0; 2048];
        loop {
            let _ = socket.send(text.as_bytes()).await;
            // The port may not be open yet.
            if let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buf)).await {
                return String::from_utf8_lossy(&buf[..n]).into_owned();
            }
        }
    };
    let (one, two) = (Arc::new(client().await), Arc::new(client().await));
    let first = within(ask(one.clone(), "a")).await;
    let again = within(ask(one.clone(), "a")).await;
    assert_eq!(first, again);
    let second = within(ask(two.clone(), "a")).await;
    assert_ne!(first[..1], second[..1]);
    // An instance that leaves loses its sessions.
    let stays = usize::from(first.starts_with('0'));
    let left = vec![backend(stays as u128 + 1, addresses[stays])];
    world.set(3, vec![with(app("dn", Serving, left), vec![route(1, udp(port), policy)])]).await;
    assert!(within(ask(one, "b")).await.starts_with(&stays.to_string()));
    let line = world.line().await;
    assert!(line.starts_with(&format!("at=info port={port}")) && line.ends_with("protocol=udp"), "{line}");
    within(world.status.wait_for(|s| s.in_flight.is_empty())).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_balancer_is_believed_and_nobody_else() {
    let seen = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        let text = head.lines().filter(|l| l.to_lowercase().starts_with("x-forwarded")).collect::<Vec<_>>().join("|");
        conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
        conn.rest().await;
    })
    .await;
    let setup = |tune| Setup { tune, ..Setup::default() };
    let apps = || table(1, vec![app("aa", Serving, vec![backend(1, seen.address)])]);
    let mut world = setup(|s| s.proxy_protocol_http = vec!["127.0.0.1".parse().unwrap()]).start(apps()).await;
    let mut client = world.client().await;
    let origin =
        Origin { source: "192.0.2.7:5555".parse().unwrap(), destination: "203.0.113.1:8443".parse().unwrap(), tlvs: vec![] };
    client.send_bytes(&origin.header(ProxyVersion::V2)).await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
    let text = client.answer().await.text();
    assert!(text.contains("X-Forwarded-For: 192.0.2.7|") || text.ends_with("X-Forwarded-For: 192.0.2.7"), "{text}");
    assert!(text.contains("X-Forwarded-Port: 8443"), "{text}");
    assert!(world.line().await.contains("fwd=\"192.0.2.7\""));
    // No header from where one is owed: closed without a word.
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(client.rest().await, b"");
    assert_eq!(world.metrics.snapshot().proxy_refused, 1);
    world.stop_now().await;
    // From elsewhere: refused, header or not.
    let world = setup(|s| s.proxy_protocol_http = vec!["192.0.2.0/24".parse().unwrap()]).start(apps()).await;
    for bytes in [origin.header(ProxyVersion::V1), b"GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n".to_vec()] {
        let mut client = world.client().await;
        client.send_bytes(&bytes).await;
        assert_eq!(client.rest().await, b"");
    }
    world.stop_now().await;
    // Nobody is trusted: a header is a malformed request.
    let world = World::new(vec![app("aa", Serving, vec![backend(1, seen.address)])]).await;
    let mut client = world.client().await;
    client.send_bytes(&[origin.header(ProxyVersion::V1), b"GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n".to_vec()].concat()).await;
    assert_eq!(client.answer().await.status, 505);
    world.stop_now().await;
}

#[tokio::test]
async fn instances_are_told_who_is_coming() {
    // Answers with the header's length and the rest of what came first.
    let http = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        assert!(head.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{head}");
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        conn.rest().await;
    })
    .await;
    let raw = instance(|mut conn, _| async move {
        let head = conn.exact(16).await;
        let rest = conn.exact(usize::from(u16::from_be_bytes([head[14], head[15]]))).await;
        conn.send_bytes(&[u8::try_from(rest.len()).unwrap()]).await;
        conn.send_bytes(&rest).await;
        let (mut read, mut write) = conn.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let port = free_port().await;
    let tune: fn(&mut flex_router::RouterSettings) = |s| s.proxy_protocol_tcp = vec!["127.0.0.0/8".parse().unwrap()];
    let mut world = Setup { tune, ..Setup::default() }.start(table(1, vec![])).await;
    let policy = |version| Policy { proxy_protocol: Some(version), ..Policy::default() };
    let mut web = app("aa", Serving, vec![backend(1, http.address)]);
    web.policy = Some(Arc::new(policy(ProxyVersion::V1)));
    let sni = Match::Sni { host: "db.test".parse().unwrap(), port: Some(port.try_into().unwrap()) };
    world
        .set(2, vec![web, with(app("db", Serving, vec![backend(2, raw.address)]), vec![route(1, sni, policy(ProxyVersion::V2))])])
        .await;
    // Two clients on kept connections: each request has a connection of its own, with that client's header.
    for _ in 0..2 {
        let mut client = world.client().await;
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
            assert_eq!(client.answer().await.text(), "ok");
        }
    }
    // What the balancer in front said is told on, with the name added.
    let tlvs = vec![Tlv { kind: UNIQUE_ID, value: b"from-in-front".to_vec() }, Tlv::ssl("TLSv1.3")];
    let origin = Origin { source: "192.0.2.7:5555".parse().unwrap(), destination: "203.0.113.1:443".parse().unwrap(), tlvs };
    let mut client = connected(port).await;
    client.send_bytes(&origin.header(ProxyVersion::V2)).await;
    client.send_bytes(&hello("db.test")).await;
    let length = client.exact(1).await[0];
    let got = client.exact(length.into()).await;
    let mut expected = origin.clone();
    expected.tlvs.push(Tlv { kind: AUTHORITY, value: b"db.test".to_vec() });
    assert_eq!(got, expected.header(ProxyVersion::V2)[16..]);
    world.stop_now().await;
}

#[tokio::test]
async fn a_signed_cookie_keeps_a_client_with_its_instance() {
    let (one, two) = (fixed("one").await, fixed("two").await);
    let mut world = World::new(vec![]).await;
    let apps = |backends| {
        let mut app = app("aa", Serving, backends);
        app.policy = Some(Arc::new(Policy { sticky: true, ..Policy::default() }));
        vec![app]
    };
    world.set(2, apps(vec![backend(1, one.address), backend(2, two.address)])).await;
    let ask = |world: &World, cookie: &str| {
        let (address, request) = (world.address, format!("GET / HTTP/1.1\r\nHost: aa.test\r\nCookie: {cookie}\r\n\r\n"));
        async move {
            let mut client = Client::new(address).await;
            client.send(&request).await;
            client.answer().await
        }
    };
    let first = ask(&world, "a=b").await;
    let cookie = first.field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..20 {
        let again = ask(&world, &format!("a=b; {cookie}")).await;
        assert_eq!((again.text(), again.field("set-cookie")), (first.text(), None));
    }
    // A forged one is worth nothing.
    let forged = cookie.replace("0000000000000000000000000000000", "000000000000000000000000000000f");
    assert!(ask(&world, &forged).await.field("set-cookie").is_some());
    // Its instance leaves: another, and another cookie.
    let stays = if first.text() == "one" { backend(2, two.address) } else { backend(1, one.address) };
    world.set(3, apps(vec![stays])).await;
    let moved = ask(&world, &cookie).await;
    assert!(moved.text() != first.text() && moved.field("set-cookie").is_some());
    world.stop().await;
}

#[tokio::test]
async fn places_on_an_instance_are_limited_and_waited_for() {
    let (go, wait) = tokio::sync::watch::channel(0);
    let slow = instance(move |mut conn, _| {
        let mut wait = wait.clone();
        async move {
            while request(&mut conn).await.is_some() {
                let _ = wait.wait_for(|n| *n > 0).await;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let mut world = World::new(vec![]).await;
    let mut one = app("aa", Serving, vec![backend(1, slow.address)]);
    one.policy = Some(Arc::new(Policy { max_per_instance: Some(1), queue: Some(2), ..Policy::default() }));
    world.set(2, vec![one]).await;
    let mut clients = Vec::new();
    for n in 0..3_u64 {
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        clients.push(client);
        within(async {
            while world.metrics.snapshot().in_flight < n + 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    // One runs, two wait, one more is too many.
    assert_eq!(world.get("aa.test", "/").await.status, 503);
    assert!(world.line().await.contains("code=H11"));
    within(world.status.wait_for(|s| s.in_flight.values().sum::<u32>() == 1)).await.unwrap();
    go.send(1).unwrap();
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "ok");
    }
    world.stop().await;
}

async fn over_tls(pair: &Pair, to: std::net::SocketAddr, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let config = client_config(&[pair], &[], &[&rustls::version::TLS13]);
    let stream = within(TcpStream::connect(to)).await?;
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    within(tokio_rustls::TlsConnector::from(config).connect(name, stream)).await
}

#[tokio::test]
async fn tls_ends_at_a_tcp_route_with_the_certificate_of_the_name() {
    let said = instance(|mut conn, _| async move {
        let head = conn.exact(16).await;
        let rest = conn.exact(usize::from(u16::from_be_bytes([head[14], head[15]]))).await;
        let text = String::from_utf8_lossy(&rest).into_owned();
        assert!(text.contains("db.test") && text.contains("TLSv1.3"), "{text}");
        let ahead = std::mem::take(&mut conn.buf);
        conn.send_bytes(&ahead).await;
        let (mut read, mut write) = conn.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let (pair, passed) = (Pair::new("one", &["db.test", "other.test"]), free_port().await);
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() };
    let mut world = setup.start(table(1, vec![])).await;
    let matches = Match::Tcp { port: passed.try_into().unwrap(), tls: true };
    let policy = Policy { proxy_protocol: Some(ProxyVersion::V2), ..Policy::default() };
    world.set(2, vec![with(app("db", Serving, vec![backend(1, said.address)]), vec![route(1, matches, policy)])]).await;
    drop(connected(passed).await);
    let mut client = over_tls(&pair, ([127, 0, 0, 1], passed).into(), "db.test").await.unwrap();
    // More than any buffer along the way, both ways at once; then the client's end comes back as the instance's.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = tokio::io::split(&mut client);
    let up = async {
        within(write.write_all(&sent)).await.unwrap();
        within(write.shutdown()).await.unwrap();
    };
    let mut back = Vec::new();
    let ((), n) = tokio::join!(up, within(read.read_to_end(&mut back)));
    n.unwrap();
    assert!(back == sent);
    let line = loop {
        let line = world.line().await;
        if line.contains("protocol=tls") {
            break line;
        }
    };
    assert!(line.contains(&format!("port={passed} sni=db.test ")) && line.contains("bytes_in=3000000 bytes=3000000"), "{line}");
    // No TLS, no connection to the instance.
    let before = world.metrics.snapshot();
    let mut plain = connected(passed).await;
    plain.send("GET / HTTP/1.1\r\n\r\n").await;
    plain.rest().await;
    eventually(async || world.metrics.snapshot().tls_failed > before.tls_failed).await;
    assert_eq!(world.metrics.snapshot().connects, before.connects);
    world.stop_now().await;
}

#[tokio::test]
async fn a_name_is_passed_through_on_the_https_port() {
    // An instance that ends TLS itself, with a certificate that the router has not.
    let (own, routers) = (Pair::new("own", &["own.test"]), Pair::new("one", &["aa.test"]));
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(own.certificate.key.expose().as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let itself = instance(move |conn, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(conn.stream).await else { return };
            let _ = stream.write_all(b"from the instance").await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let plain = fixed("from the router").await;
    let setup = Setup { certificates: Some(certificates(1, &[&routers])), ..Setup::default() };
    let mut world = setup.start(table(1, vec![])).await;
    let https = world.https.unwrap();
    let matches = Match::Sni { host: "own.test".parse().unwrap(), port: None };
    let passed = with(app("own", Serving, vec![backend(1, itself.address)]), vec![route(1, matches, Policy::default())]);
    world.set(2, vec![passed, app("aa", Serving, vec![backend(2, plain.address)])]).await;
    let mut client = over_tls(&own, https, "own.test").await.unwrap();
    let mut said = String::new();
    within(client.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "from the instance");
    drop(client);
    let line = world.line().await;
    assert!(line.contains(&format!("port={} sni=own.test ", https.port())) && line.ends_with("protocol=tcp"), "{line}");
    // Names that are not passed.
    let mut client = over_tls(&routers, https, "aa.test").await.unwrap();
    within(client.write_all(b"GET / HTTP/1.1\r\nHost: aa.test\r\nConnection: close\r\n\r\n")).await.unwrap();
    let mut said = String::new();
    within(client.read_to_string(&mut said)).await.unwrap();
    assert!(said.ends_with("from the router"), "{said}");
    assert!(over_tls(&routers, https, "nobody.test").await.is_err());
    world.stop_now().await;
}

#[tokio::test]
async fn a_wildcard_that_is_passed_through_takes_no_name_that_is_served() {
    let (stranger, plain) = (fixed_bytes("mine!!").await, fixed("from the router").await);
    let pair = Pair::new("one", &["aa.test", "x.sub.aa.test", "y.sub.bb.test"]);
    let setup = Setup { certificates: Some(certificates(1, &[&pair])), ..Setup::default() };
    let mut world = setup.start(table(1, vec![])).await;
    let https = world.https.unwrap();
    let sni = |n, host: &str| route(n, Match::Sni { host: host.parse().unwrap(), port: None }, Policy::default());
    // The stranger's id comes first, and its wildcards cover everybody.
    let mine = with(app("a0", Serving, vec![backend(1, stranger.address)]), vec![sni(1, "*.test"), sni(2, "*.sub.bb.test")]);
    let mut theirs = app("aa", Serving, vec![backend(2, plain.address)]);
    theirs.domains.extend(["*.sub.aa.test", "*.bb.test"].map(|d| d.parse::<flex_model::DomainName>().unwrap()));
    world.set(2, vec![mine, theirs]).await;
    for name in ["aa.test", "x.sub.aa.test"] {
        let mut client = over_tls(&pair, https, name).await.unwrap();
        within(client.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes()))
            .await
            .unwrap();
        let mut said = String::new();
        within(client.read_to_string(&mut said)).await.unwrap();
        assert!(said.ends_with("from the router"), "{name}: {said}");
    }
    // Nobody's, and one that the stranger's wildcard is nearer to. The hello comes in pieces.
    for name in ["zz.test", "y.sub.bb.test"] {
        let mut client = Client::new(https).await;
        for part in hello(name).chunks(40) {
            client.send_bytes(part).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.exact(6).await, b"mine!!", "{name}");
    }
    world.stop_now().await;
}

#[tokio::test]
async fn a_free_place_is_told_to_who_waits_for_it() {
    let (go, wait) = tokio::sync::watch::channel("");
    let slow = move |name: &'static str| {
        let wait = wait.clone();
        instance(move |mut conn, _| {
            let mut wait = wait.clone();
            async move {
                while request(&mut conn).await.is_some() {
                    let _ = wait.wait_for(|go| go.contains(name)).await;
                    conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{name}")).await;
                }
            }
        })
    };
    let (web, api) = (slow("web").await, slow("api").await);
    let limited = |most| Policy { max_per_instance: Some(most), ..Policy::default() };
    let http = |n, path: &str, process: &str, policy| {
        let matches = Match::Http { host: "aa.test".parse().unwrap(), path: path.parse().unwrap() };
        let targets = vec![flex_model::Target::to(process.parse().unwrap())];
        flex_model::Route { targets, ..route(n, matches, policy) }
    };
    let mut one = app("aa", Serving, vec![backend(1, web.address)]);
    let backends = vec![backend(2, api.address)];
    one.pools = vec![flex_model::Pool { process: "api".parse().unwrap(), version: None, state: Serving, backends }];
    // The same instance is reached by another route, whose limit is another.
    one.routes =
        vec![http(1, "/", "web", limited(1)), http(2, "/api", "api", limited(1)), http(3, "/any", "web", Policy::default())];
    let mut world = Setup { workers: 1, ..Setup::default() }.start(table(1, vec![])).await;
    world.set(2, vec![one]).await;
    let (mut clients, mut count) = (Vec::new(), 0);
    // One of each is served; then one waits for the busy api, and after it one for web.
    for path in ["/any", "/api", "/api", "/"] {
        let mut client = world.client().await;
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: aa.test\r\n\r\n")).await;
        clients.push(client);
        count += 1;
        eventually(async || world.metrics.snapshot().in_flight == count).await;
        if count <= 2 {
            within(world.status.wait_for(|s| s.in_flight.len() as u64 == count)).await.unwrap();
        }
    }
    go.send("web").unwrap();
    for n in [0, 3] {
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), clients[n].answer()).await.unwrap().text(), "web", "{n}");
    }
    go.send("web api").unwrap();
    for n in [1, 2] {
        assert_eq!(clients[n].answer().await.text(), "api");
    }
    world.stop().await;
}
