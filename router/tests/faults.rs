//! What goes wrong, and what the client, the access line and the other instances see of it.

mod support;
use flex_model::AppState::{Crashed, NoWeb, Serving, Starting};
use flex_router::{Limits, Timeouts};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use support::*;
use tokio::io::AsyncWriteExt as _;

fn quick() -> Timeouts {
    let ms = Duration::from_millis;
    Timeouts {
        head: ms(300),
        keep_alive: ms(400),
        first_byte: ms(300),
        idle: ms(400),
        hold: ms(400),
        connect: ms(500),
        ..Timeouts::default()
    }
}

async fn quick_world(backends: Vec<flex_model::Backend>) -> World {
    Setup { timeouts: quick(), ..Setup::default() }.start(table(1, vec![app("aa", Serving, backends)])).await
}

#[tokio::test]
async fn failures_of_an_instance_have_their_codes() {
    // What the instance does after it has read the request, and the code.
    for (does, code, status) in [
        ("closes", "H13", 503),
        ("closes in the head", "H13", 503),
        ("says nothing", "H12", 503),
        ("stops in the content", "H18", 200),
        ("pauses in the content", "H15", 200),
        ("sends bad chunks", "H18", 200),
    ] {
        let instance = instance(move |mut conn, _| async move {
            request(&mut conn).await;
            match does {
                "closes" => return,
                "closes in the head" => return conn.send("HTTP/1.1 200 OK\r\nContent").await,
                "stops in the content" => return conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await,
                "pauses in the content" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await,
                "sends bad chunks" => {
                    conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
                    conn.send("zz\r\n").await;
                }
                _ => {}
            }
            conn.rest().await;
        })
        .await;
        let mut world = quick_world(vec![backend(1, instance.address)]).await;
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        // Bad chunks that come with the head are refused with it.
        let got = client.head().await.unwrap();
        if does != "sends bad chunks" {
            assert_eq!(got.status, status, "{does}");
        }
        let line = world.line().await;
        if does == "sends bad chunks" {
            assert!(line.contains("code=H18 ") || line.contains("code=H17 "), "{does}: {line}");
        } else {
            assert!(line.contains(&format!("at=error code={code} desc=")), "{does}: {line}");
        }
        assert!(line.contains(" dyno=web.1 ") && line.contains(" status=503 "), "{does}: {line}");
        if status == 200 {
            // Cut off, so that the client knows that it has not got all.
            client.rest().await;
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn a_refused_connection_is_h21_and_takes_the_instance_out() {
    let (gone, good) = (refused().await, fixed("good").await);
    let mut world = quick_world(vec![backend(1, gone)]).await;
    assert_eq!(world.get("aa.test", "/").await.status, 503);
    assert!(world.line().await.contains("code=H21 desc=\"Backend connection refused\""));
    world.set(2, vec![app("aa", Serving, vec![backend(1, gone), backend(2, good.address)])]).await;
    for _ in 0..30 {
        assert_eq!(world.get("aa.test", "/").await.text(), "good");
        assert!(world.line().await.contains("dyno=web.2"));
    }
    // It was tried, and then left alone for its time.
    let metrics = world.metrics.snapshot();
    assert!(metrics.connects_failed <= 4, "{metrics:?}");
    assert!(metrics.ejections >= 1, "{metrics:?}");
    world.stop().await;
}

#[tokio::test]
async fn an_instance_that_takes_connections_and_resets_them_is_left_alone() {
    let rude = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.stream.set_zero_linger().unwrap();
    })
    .await;
    let good = fixed("good").await;
    // So long out that the test ends before.
    let timeouts = Timeouts { eject: Duration::from_secs(120), ..Timeouts::default() };
    let apps = vec![app("aa", Serving, vec![backend(1, rude.address), backend(2, good.address)])];
    let world = Setup { timeouts, ..Setup::default() }.start(table(1, apps)).await;
    let mut failed = 0;
    for _ in 0..60 {
        let got = world.get("aa.test", "/").await;
        failed += u32::from(got.status != 200);
        assert!(got.status == 503 || got.text() == "good", "{got:?}");
    }
    // Three in a row say that it is not the request.
    assert_eq!((failed, world.metrics.snapshot().ejections), (3, 1));
    world.stop().await;
}

/// A listener whose queue is full answers no handshake: the next instance is tried after 250 ms, not after seconds.
#[tokio::test]
async fn a_slow_connect_goes_to_the_next_instance() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let stuck = socket.listen(0).unwrap();
    let address = stuck.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await {
        fill.push(stream);
    }
    let good = fixed("good").await;
    let world = quick_world(vec![backend(1, address), backend(2, good.address)]).await;
    let mut world = world;
    for _ in 0..8 {
        let begun = Instant::now();
        assert_eq!(world.get("aa.test", "/").await.text(), "good");
        assert!(world.line().await.contains("dyno=web.2 "));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    world.set(2, vec![app("aa", Serving, vec![backend(1, address)])]).await;
    assert_eq!(world.get("aa.test", "/").await.status, 503);
    assert!(world.line().await.contains("code=H19 desc=\"Backend connection timeout\""));
    world.stop().await;
}

/// A kept connection that the instance closes at the moment it is used again.
#[tokio::test]
async fn a_closed_kept_connection_is_tried_again_if_that_is_safe() {
    let posts = Arc::new(AtomicUsize::new(0));
    let seen = posts.clone();
    // Every connection serves one request and reads (then drops) a second without an answer.
    let instance = instance(move |mut conn, _| {
        let seen = seen.clone();
        async move {
            request(&mut conn).await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            if let Some(got) = request(&mut conn).await
                && got.head.starts_with("POST")
            {
                seen.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    let mut world = Setup { workers: 1, ..Setup::default() }
        .start(table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])]))
        .await;
    let mut client = world.client().await;
    for _ in 0..5 {
        client.send("PUT / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(client.answer().await.text(), "ok");
    }
    assert_eq!(world.metrics.snapshot().retries, 4);
    for _ in 0..5 {
        assert!(world.line().await.contains("status=200"));
    }
    // A POST that may have been acted on is not sent twice.
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(client.answer().await.status, 503);
    assert!(world.line().await.contains("code=H13"));
    assert_eq!((posts.load(SeqCst), world.metrics.snapshot().retries), (1, 4));
    world.stop().await;
}

#[tokio::test]
async fn connections_closed_while_idle_are_not_used() {
    let instance = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        // Closed with no word of it, as servers do after their own idle time.
    })
    .await;
    let world = quick_world(vec![backend(1, instance.address)]).await;
    let mut client = world.client().await;
    for _ in 0..20 {
        client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\nabc").await;
        assert_eq!(client.answer().await.text(), "ok");
        // Until the close has reached this machine's other sockets.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_h27_and_its_instance_learns_it() {
    let (left, mut learned) = tokio::sync::mpsc::unbounded_channel();
    let instance = instance(move |mut conn, _| {
        let left = left.clone();
        async move {
            request(&mut conn).await;
            left.send("asked").unwrap();
            assert_eq!(conn.fill().await, 0);
            left.send("ended").unwrap();
        }
    })
    .await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(within(learned.recv()).await, Some("asked"));
    drop(client);
    assert_eq!(within(learned.recv()).await, Some("ended"));
    let line = world.line().await;
    assert!(line.contains("at=error code=H27 desc=\"Client Request Interrupted\"") && line.contains(" status=499 "), "{line}");
    within(world.status.wait_for(|s| s.in_flight.is_empty())).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let instance = echo().await;
    let mut world = quick_world(vec![backend(1, instance.address)]).await;
    // A head that does not end, though a byte comes now and then.
    let mut drip = world.client().await;
    let begun = Instant::now();
    drip.send("GET / HTTP/1.1\r\nHost: aa.test\r\nX: ").await;
    let (mut read, mut write) = drip.stream.into_split();
    let dripping = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut text = String::new();
    within(tokio::io::AsyncReadExt::read_to_string(&mut read, &mut text)).await.ok();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    dripping.abort();
    // Content that stops.
    let mut client = world.client().await;
    client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 10\r\n\r\nabc").await;
    assert_eq!(client.answer().await.status, 408);
    assert!(world.line().await.contains("code=H28 desc=\"Client Connection Idle\""));
    // Nothing at all.
    let mut idle = world.client().await;
    assert_eq!(idle.fill().await, 0);
    within(async {
        while world.metrics.snapshot().connections_open > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn requests_wait_while_an_app_starts() {
    let instance = fixed("up").await;
    let mut world = World::new(vec![app("aa", Starting, vec![])]).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = world.client().await;
        client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\nabc").await;
        clients.push(client);
    }
    within(async {
        while world.metrics.snapshot().in_flight < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // A table that changes nothing for it does not end the wait.
    world.set(2, vec![app("aa", Starting, vec![]), app("bb", NoWeb, vec![])]).await;
    world.set(3, vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "up");
    }
    // And an app that crashes instead says so at once.
    world.set(4, vec![app("aa", Starting, vec![])]).await;
    clients[0].send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    within(async {
        while world.metrics.snapshot().in_flight < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    world.set(5, vec![app("aa", Crashed, vec![])]).await;
    assert!(clients[0].answer().await.text().contains("H10"));
    world.stop().await;
}

#[tokio::test]
async fn waiting_is_bounded_in_time_and_number() {
    let limits = Limits { held_per_app: 2, ..Limits::default() };
    let setup = Setup { timeouts: quick(), limits, ..Setup::default() };
    let mut world = setup.start(table(1, vec![app("aa", Starting, vec![])])).await;
    let mut held = Vec::new();
    for n in 1..=2 {
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        held.push(client);
        within(async {
            while world.metrics.snapshot().in_flight < n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    assert!(world.get("aa.test", "/").await.text().contains("H11"));
    for client in &mut held {
        assert!(client.answer().await.text().contains("H20"));
    }
    let mut codes = [world.line().await, world.line().await, world.line().await].map(|l| l.split(' ').nth(1).unwrap().to_owned());
    codes.sort();
    assert_eq!(codes, ["code=H11", "code=H20", "code=H20"]);
    world.stop().await;
}

#[tokio::test]
async fn heads_have_a_limit_and_connections_too() {
    let instance = echo().await;
    let limits = Limits { head_bytes: 4096, connections: 3, ..Limits::default() };
    let world =
        Setup { limits, ..Setup::default() }.start(table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    let mut client = world.client().await;
    client.send(&format!("GET / HTTP/1.1\r\nHost: aa.test\r\nX: {}\r\n\r\n", "x".repeat(5000))).await;
    assert_eq!(client.answer().await.status, 431);
    drop(client);
    within(async {
        while world.metrics.snapshot().connections_open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200);
        open.push(client);
    }
    let mut one_more = world.client().await;
    assert_eq!(one_more.answer().await.status, 503);
    assert_eq!(world.metrics.snapshot().connections_refused, 1);
    world.stop().await;
}

/// An instance that agrees to switch protocols must say to what: else neither side knows what the bytes are.
#[tokio::test]
async fn a_switch_without_its_field_is_h23() {
    let instance = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").await;
        conn.rest().await;
    })
    .await;
    let mut world = quick_world(vec![backend(1, instance.address)]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: aa.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 503);
    let line = world.line().await;
    assert!(line.contains("at=error code=H23 desc=\"Endpoint misconfigured\"") && line.contains(" dyno=web.1 "), "{line}");
    world.stop().await;
}

/// Who is still there when the time to drain is over is cut off, and its access line says by whom.
#[tokio::test]
async fn what_a_stopping_router_cuts_off_is_h24() {
    let instance = instance(|mut conn, _| async move {
        let got = request(&mut conn).await.unwrap();
        if got.head.starts_with("GET /begun ") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
        }
        conn.rest().await;
    })
    .await;
    let timeouts = Timeouts { drain: Duration::from_millis(300), ..Timeouts::default() };
    let setup = Setup { timeouts, ..Setup::default() };
    let mut world = setup.start(table(1, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    let (mut begun, mut silent) = (world.client().await, world.client().await);
    begun.send("GET /begun HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(begun.head().await.unwrap().status, 200);
    assert_eq!(begun.exact(5).await, b"hello");
    silent.send("GET /silent HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    let one = flex_model::InstanceId(uuid(1));
    within(world.status.wait_for(|s| s.in_flight.get(&one) == Some(&2))).await.unwrap();
    world.begin_stop();
    assert!(begun.rest().await.is_empty() && silent.rest().await.is_empty());
    let mut lines = [world.line().await, world.line().await];
    lines.sort_by_key(|line| line.contains("/silent"));
    for (line, bytes) in lines.iter().zip([5, 0]) {
        assert!(line.contains("at=error code=H24 desc=\"Forced close\""), "{line}");
        assert!(line.contains(" dyno=web.1 ") && line.contains(&format!(" status=503 bytes={bytes} ")), "{line}");
    }
    assert_eq!(world.metrics.snapshot().by_code, [("H24", 2)]);
    world.stop().await;
}

/// What is wrong with a request's content is the client's doing, not the app's.
#[tokio::test]
async fn content_that_is_not_framed_is_h26() {
    let instance = instance(|mut conn, _| async move {
        conn.head_of_request().await;
        conn.rest().await;
    })
    .await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let one = flex_model::InstanceId(uuid(1));
    for at_once in [true, false] {
        let mut client = world.client().await;
        client.send("POST / HTTP/1.1\r\nHost: aa.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        if !at_once {
            within(world.status.wait_for(|s| s.in_flight.contains_key(&one))).await.unwrap();
        }
        client.send("five\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.field("connection")), (400, Some("close")));
        let line = world.line().await;
        assert!(line.contains("at=error code=H26 desc=\"Request Error\"") && line.contains(" status=400 "), "{line}");
        within(world.status.wait_for(|s| s.in_flight.is_empty())).await.unwrap();
    }
    world.stop().await;
}

/// Without a descriptor left for a connection to the instance. In a process of its own, because the limit is a process's.
#[tokio::test]
async fn a_router_that_is_out_of_descriptors_is_h99_and_recovers() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    const ALONE: &str = "FLEX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_router_that_is_out_of_descriptors_is_h99_and_recovers"]).env(ALONE, "1").kill_on_drop(true);
        let ended = within(command.output()).await.unwrap();
        return assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    }
    let instance = instance(|mut conn, _| async move {
        request(&mut conn).await;
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let mut client = world.client().await;
    let ask = "GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n";
    client.send(ask).await;
    assert_eq!(client.answer().await.text(), "ok");
    assert!(world.line().await.contains("status=200"));
    let (soft, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
    setrlimit(RLIMIT_NOFILE, 3, hard).unwrap();
    client.send(ask).await;
    let answer = client.answer().await;
    setrlimit(RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(answer.status, 503);
    let line = world.line().await;
    assert!(line.contains("at=error code=H99 desc=\"Platform error\"") && line.contains(" dyno= "), "{line}");
    // It was not the instance's fault.
    assert_eq!(world.metrics.snapshot().ejections, 0);
    client.send(ask).await;
    assert_eq!(client.answer().await.text(), "ok");
    world.stop().await;
}

/// One app that takes all it can, clients that dribble their heads, clients that do not read, and idle connections: the
/// other app is served, each is bounded, and each is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_app_or_client_takes_is_not_taken_from_the_others() {
    use flex_model::exposition::parse;
    let (good, hangs) =
        (fixed("ok").await, instance(|mut conn, _| async move { while request(&mut conn).await.is_some() {} }).await);
    let large = instance(|mut conn, _| async move {
        while request(&mut conn).await.is_some() {
            conn.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 << 20)).await;
            let part = vec![b'x'; 64 << 10];
            for _ in 0..1024 {
                if conn.stream.write_all(&part).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let apps = vec![
        app("good", Serving, vec![backend(1, good.address)]),
        app("hangs", Serving, vec![backend(2, hangs.address)]),
        app("large", Serving, vec![backend(3, large.address)]),
    ];
    let limits = Limits { connections: 400, requests_per_app: 50, ..Limits::default() };
    let timeouts = Timeouts { head: Duration::from_millis(600), ..Timeouts::default() };
    let mut world = Setup { limits, timeouts, ..Setup::default() }.start(table(1, apps)).await;
    // All but 20 of the connections: 60 for the app that hangs, 60 dribbling, 20 that do not read, 240 idle.
    let (mut hanging, mut dribbling, mut unread, mut idle) = (vec![], vec![], vec![], vec![]);
    for n in 0..60 {
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: hangs.test\r\n\r\n").await;
        hanging.push(client);
        let mut client = world.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test\r\nX-Slow: ").await;
        dribbling.push(client);
        if n < 20 {
            let mut client = world.client().await;
            client.send("GET / HTTP/1.1\r\nHost: large.test\r\n\r\n").await;
            unread.push(client);
        }
        for _ in 0..4 {
            idle.push(world.client().await);
        }
    }
    let read = || parse(&world.metrics.expose()).unwrap();
    let hit = |limit: &str| read().get("flex_router_limits_hit_total", &[("limit", limit)]).unwrap();
    eventually(async || hit("requests_per_app") == 10.0).await;
    eventually(async || read().sum("flex_router_requests_in_flight", &[("app", "hangs")]) == 50.0).await;
    let mut quick = world.client().await;
    for _ in 0..50 {
        quick.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert_eq!(quick.answer().await.text(), "ok");
    }
    // Those that dribble are cut off, however they go on.
    eventually(async || hit("head_time") == 60.0).await;
    assert!(dribbling[0].answer().await.status == 408);
    // Beyond the last connection: told so, and seen.
    while hit("connections") == 0.0 {
        idle.push(world.client().await);
        assert!(idle.len() < 1000, "connections are not bounded");
    }
    // Another may be refused between two looks, or between the two counts.
    eventually(async || {
        let now = read();
        let hit = now.get("flex_router_limits_hit_total", &[("limit", "connections")]);
        hit.is_some() && now.get("flex_router_connections_refused_total", &[]) == hit
    })
    .await;
    quick.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    assert_eq!(quick.answer().await.text(), "ok");
    let mut h22 = 0;
    while let Ok((_, line)) = world.lines.try_recv() {
        h22 += u32::from(line.contains("code=H22 desc=\"Connection limit reached\"") && line.contains("host=hangs.test"));
    }
    assert_eq!(h22, 10);
    drop((hanging, unread));
    world.stop_now().await;
}

#[tokio::test]
async fn access_lines_have_the_form_that_was_asked_for() {
    use flex_model::{AppState, LineForm};
    let good = fixed("ok").await;
    let form = |json, per_mille| Some(LineForm { json, per_mille });
    let mut apps = ["plain", "json", "some"].map(|name| app(name, AppState::Serving, vec![backend(1, good.address)])).to_vec();
    apps[1].lines = form(Some(true), Some(1000));
    apps[2].lines = form(None, Some(0));
    let mut down = app("down", AppState::Crashed, vec![]);
    down.lines = form(Some(true), Some(0));
    apps.push(down);
    let mut world = World::new(apps).await;
    // Of the third app only requests with an error leave a line.
    for name in ["some", "json", "down", "plain"] {
        world.get(&format!("{name}.test"), "/a?b=c").await;
    }
    let (json, down, plain) = (world.line().await, world.line().await, world.line().await);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["status"], &json["path"], &json["host"]), (&200.into(), &"/a?b=c".into(), &"json.test".into()));
    let down: serde_json::Value = serde_json::from_str(&down).unwrap();
    assert_eq!((&down["code"], &down["at"], &down["dyno"]), (&"H10".into(), &"error".into(), &serde_json::Value::Null));
    assert!(plain.starts_with("at=info method=GET") && plain.contains("host=plain.test"), "{plain}");
    world.stop().await;
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Clients that have had an answer and stay, and clients that never ask, as many as there may be files, up to ten thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_cost_little_memory_and_nobody_else_time() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    use std::io::{Read as _, Write as _};
    /// Of memory, for one; what the kernel keeps of it does not count.
    const MOST_BYTES: usize = 8 << 10;
    let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
    setrlimit(RLIMIT_NOFILE, hard, hard).unwrap();
    // Both ends are in this process.
    let many = (usize::try_from(hard).unwrap_or(usize::MAX) / 2).saturating_sub(300).min(10_000);
    let good = fixed("ok").await;
    let timeouts = Timeouts { keep_alive: Duration::from_secs(600), head: Duration::from_secs(600), ..Timeouts::default() };
    let setup = Setup { timeouts, ..Setup::default() };
    let world = setup.start(table(1, vec![app("aa", Serving, vec![backend(1, good.address)])])).await;
    let open = || flex_model::exposition::parse(&world.metrics.expose()).unwrap().sum("flex_router_connections_open", &[]);
    let address = world.address;
    let connect = async |count: usize| {
        let opened = tokio::task::spawn_blocking(move || {
            let client = |n: usize| {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                if n.is_multiple_of(2) {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").unwrap();
                    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
                    while !answer.ends_with(b"\r\n\r\nok") {
                        let n = stream.read(&mut part).unwrap();
                        assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
                        answer.extend_from_slice(&part[..n]);
                    }
                }
                stream
            };
            (0..count).map(client).collect::<Vec<_>>()
        });
        opened.await.unwrap()
    };
    let first = connect(200).await;
    eventually(async || open() == 200.0).await;
    let before = resident_bytes();
    let rest = connect(many - 200).await;
    eventually(async || open() == many as f64).await;
    let each = resident_bytes().saturating_sub(before) / (many - 200);
    println!("{many} idle connections, {each} bytes each");
    assert!(each <= MOST_BYTES, "{each} bytes for each of {many} idle connections");
    assert_eq!(world.get("aa.test", "/").await.text(), "ok");
    drop((first, rest));
    eventually(async || open() == 0.0).await;
    world.stop_now().await;
}
