//! Each limit bites, says so to who is over it, and is counted by its own name, with real sockets.

use crate::support::*;
use flex_model::{AppRoute, AppState::Serving};
use flex_router::{Limits, Timeouts};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const ASK: &str = "GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n";

fn apps(instance: &Instance) -> Vec<AppRoute> {
    vec![app("aa", Serving, vec![backend(1, instance.address)])]
}

/// Who was refused for limits so far, without zeros.
fn hits(world: &World) -> Vec<(&'static str, u64)> {
    world.metrics.snapshot().limits.into_iter().filter(|(_, n)| *n > 0).collect()
}

async fn served(client: &mut Client) -> u16 {
    client.send(ASK).await;
    client.answer().await.status
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_no_more() {
    let instance = fixed("ok").await;
    let limits = || Limits { connections_per_client: 3, ..Limits::default() };
    let world = Setup { limits: limits(), ..Setup::default() }.start(table(1, apps(&instance))).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = world.client().await;
        assert_eq!(served(&mut client).await, 200);
        open.push(client);
    }
    let refused = world.client().await.answer().await;
    assert_eq!((refused.status, hits(&world)), (429, vec![("connections_per_client", 1)]));
    assert!(refused.text().contains("too many connections from your address"), "{refused:?}");
    assert_eq!(world.metrics.snapshot().connections_refused, 1);
    // Those that are open go on, and one that ends makes room.
    assert_eq!(served(&mut open[0]).await, 200);
    drop(open.pop());
    eventually(async || world.metrics.snapshot().connections_open == 2).await;
    assert_eq!(served(&mut world.client().await).await, 200);
    world.stop().await;

    // A trusted proxy brings the connections of many.
    let world =
        Setup { limits: limits(), trusted: vec!["127.0.0.1/32"], ..Setup::default() }.start(table(1, apps(&instance))).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut client = world.client().await;
        assert_eq!(served(&mut client).await, 200);
        open.push(client);
    }
    world.stop().await;

    // Behind a load balancer it is the true address that counts.
    let tune = |s: &mut flex_router::RouterSettings| s.proxy_protocol_http = vec!["127.0.0.1/32".parse().unwrap()];
    let world = Setup { limits: limits(), tune, ..Setup::default() }.start(table(1, apps(&instance))).await;
    let mut open = Vec::new();
    for (source, status) in [(1, 200), (1, 200), (1, 200), (2, 200), (1, 429), (2, 200)] {
        let mut client = world.client().await;
        client.send(&format!("PROXY TCP4 192.0.2.{source} 192.0.2.9 4000 80\r\n")).await;
        if status == 200 {
            client.send(ASK).await;
        }
        assert_eq!(client.answer().await.status, status, "192.0.2.{source}");
        open.push(client);
    }
    assert_eq!(hits(&world), [("connections_per_client", 1)]);
    world.stop().await;
}

#[tokio::test]
async fn connections_of_tcp_routes_count_too() {
    let (instance, port) = (mirror().await, free_port().await);
    let matches = flex_model::Match::Tcp { port: port.try_into().unwrap(), tls: false };
    let apps = vec![AppRoute {
        routes: vec![route(1, matches, flex_model::Policy::default())],
        ..app("aa", Serving, vec![backend(1, instance.address)])
    }];
    let limits = Limits { connections_per_client: 2, ..Limits::default() };
    let world = Setup { limits, ..Setup::default() }.start(table(1, apps)).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = within(async {
            loop {
                match TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(stream) => return Client { stream, buf: vec![] },
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
        client.send("hello").await;
        assert_eq!(client.exact(5).await, b"hello");
        open.push(client);
    }
    let mut refused = Client::new(([127, 0, 0, 1], port).into()).await;
    assert!(refused.rest().await.is_empty());
    assert_eq!(hits(&world), [("connections_per_client", 1)]);
    drop(open);
    world.stop().await;
}

#[tokio::test]
async fn heads_have_a_number_of_fields_and_connections_have_times() {
    let instance = fixed("ok").await;
    let timeouts =
        Timeouts { keep_alive: Duration::from_millis(200), handshake: Duration::from_millis(200), ..Timeouts::default() };
    let pair = Pair::new("one", &["aa.test"]);
    let limits = Limits { headers: 20, ..Limits::default() };
    let setup = Setup { limits, timeouts, certificates: Some(certificates(1, &[&pair])), ..Setup::default() };
    let world = setup.start(table(1, apps(&instance))).await;
    for (fields, status) in [(19, 200), (20, 431)] {
        let mut client = world.client().await;
        let more: String = (0..fields).map(|n| format!("X-{n}: y\r\n")).collect();
        client.send(&format!("GET / HTTP/1.1\r\nHost: aa.test\r\n{more}\r\n")).await;
        assert_eq!(client.answer().await.status, status, "{fields}");
    }
    let hit = |name| hits(&world).iter().find(|(limit, _)| *limit == name).map_or(0, |(_, n)| *n);
    assert_eq!(hit("headers"), 1);
    let mut idle = world.client().await;
    assert_eq!(served(&mut idle).await, 200);
    assert!(idle.rest().await.is_empty(), "closed without a word");
    let mut silent = Client::new(world.https.unwrap()).await;
    assert!(silent.rest().await.is_empty());
    // The first client may still be there, and end in the same way. What is counted is counted after the end.
    eventually(async || (1..=2).contains(&hit("keep_alive_time")) && hit("handshake_time") == 1).await;
    world.stop().await;
}

#[tokio::test]
async fn a_body_that_dribbles_is_refused_where_no_route_says_so() {
    let instance = echo().await;
    let limits = Limits { min_body_rate: 1000, ..Limits::default() };
    let mut world = Setup { limits, ..Setup::default() }.start(table(1, apps(&instance))).await;
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 100000\r\n\r\n").await;
    let (mut read, mut write) = client.stream.into_split();
    let dribble = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = Vec::new();
    within(read.read_buf(&mut said)).await.unwrap();
    assert!(said.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&said));
    dribble.abort();
    assert!(world.line().await.contains("code=H45 "));
    assert_eq!(hits(&world), [("min_body_rate", 1)]);
    world.stop().await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n = payload.len().to_be_bytes();
    [&n[5..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends a preface and these frames, and gives what the router says until it closes.
async fn over_http2(world: &World, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = within(TcpStream::connect(world.address)).await.unwrap();
    let all = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frames.concat()].concat();
    // The router may close before it has read all.
    let _ = within(stream.write_all(&all)).await;
    let mut said = Vec::new();
    let _ = within(stream.read_to_end(&mut said)).await;
    said
}

#[tokio::test]
async fn each_flood_of_http2_is_counted_by_its_kind() {
    let instance = fixed("ok").await;
    let limits = Limits {
        http2_resets: 20,
        http2_control_frames: 30,
        http2_window_updates: 40,
        http2_streams: 2,
        http2_stream_window: 32 << 10,
        head_bytes: 4096,
        ..Limits::default()
    };
    let world = Setup { limits, ..Setup::default() }.start(table(1, apps(&instance))).await;
    // GET, http, /, :authority aa.test.
    let head = [&[0x82, 0x86, 0x84, 0x41, 7][..], b"aa.test"].concat();
    let ask = |n: u32| frame(1, 5, 2 * n + 1, &head);
    let floods = [
        ("http2_resets", (0..40).flat_map(|n| [ask(n), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])]).collect::<Vec<_>>()),
        ("http2_control_frames", vec![frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]); 50]),
        ("http2_control_frames", vec![frame(6, 0, 0, &[0; 8]); 50]),
        ("http2_window_updates", vec![frame(8, 0, 0, &[0, 0, 0, 1]); 60]),
        ("http2_continuations", [vec![frame(1, 1, 1, &head)], vec![frame(9, 0, 1, &[]); 8]].concat()),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (limit, frames) in &floods {
        over_http2(&world, frames).await;
        *expected.entry(*limit).or_insert(0) += 1;
        eventually(async || hits(&world).into_iter().collect::<std::collections::BTreeMap<_, _>>() == expected).await;
    }
    assert_eq!(world.metrics.snapshot().h2_refused, floods.len() as u64);
    // What a client is told it may do: SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_INITIAL_WINDOW_SIZE. GOAWAY makes the router close.
    let said = over_http2(&world, &[ask(0), frame(7, 0, 0, &[0; 8])]).await;
    assert_eq!(said[3], 4, "SETTINGS come first");
    let settings: Vec<&[u8]> = said[9..9 + usize::from(said[2])].chunks(6).collect();
    assert!(settings.contains(&&[0, 3, 0, 0, 0, 2][..]) && settings.contains(&&[0, 4, 0, 0, 0x80, 0][..]), "{settings:?}");
    assert!(said.windows(2).any(|w| w == b"ok"));
    world.stop().await;
}
