//! Tables that change under load, instances that leave, and a router that starts with nobody to tell it anything.

mod support;
use flex_model::{AppRoute, AppState::Serving, Policy, RouteTable};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use support::*;

/// Instances come and go while clients ask without pause. Each instance is really stopped once the router has said that
/// nothing is under way on it; no request may fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_instances_under_load_fails_no_request() {
    let first = fixed("v").await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1000, first.address)])]).await;
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (done, asked, address) = (done.clone(), asked.clone(), world.address);
        clients.spawn(async move {
            let mut client = Client::new(address).await;
            let mut failed = Vec::new();
            while !done.load(SeqCst) {
                // Some with content, some on a new connection each time.
                if n % 4 == 0 {
                    client = Client::new(address).await;
                }
                let post = "POST / HTTP/1.1\r\nHost: aa.test\r\nContent-Length: 3\r\n\r\nabc";
                client.send(if n % 2 == 0 { post } else { "GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n" }).await;
                let answer = client.answer().await;
                asked.fetch_add(1, SeqCst);
                if answer.status != 200 {
                    failed.push(answer.text());
                }
            }
            failed
        });
    }
    let mut old = (1000, first);
    for n in 0..60_u64 {
        let next = fixed("v").await;
        let id = 2000 + u128::from(n);
        world.set(n + 2, vec![app("aa", Serving, vec![backend(id, next.address)])]).await;
        let gone = flex_model::InstanceId(uuid(old.0));
        within(world.status.wait_for(|s| s.revision == n + 2 && !s.in_flight.contains_key(&gone))).await.unwrap();
        // Stops at once, with all its connections.
        old = (id, next);
    }
    done.store(true, SeqCst);
    let failed: Vec<String> = clients.join_all().await.concat();
    let asked = asked.load(SeqCst);
    assert!(failed.is_empty(), "{} of {asked}: {:?}", failed.len(), failed.first());
    assert!(asked > 200, "{asked}");
    world.stop().await;
}

#[tokio::test]
async fn an_instance_that_left_ends_its_requests_and_gets_no_new_ones() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let old = instance(move |mut conn, _| {
        let mut wait = wait.clone();
        async move {
            while request(&mut conn).await.is_some() {
                let _ = wait.wait_for(|go| *go).await;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold").await;
            }
        }
    })
    .await;
    let new = fixed("new").await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, old.address)])]).await;
    let mut running = world.client().await;
    running.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    let one = flex_model::InstanceId(uuid(1));
    within(world.status.wait_for(|s| s.in_flight.get(&one) == Some(&1))).await.unwrap();
    let changed = std::time::Instant::now();
    world.set(2, vec![app("aa", Serving, vec![backend(2, new.address)])]).await;
    assert!(changed.elapsed() < Duration::from_secs(5));
    assert_eq!(world.status.borrow().in_flight.get(&one), Some(&1));
    for _ in 0..10 {
        assert_eq!(world.get("aa.test", "/").await.text(), "new");
    }
    go.send(true).unwrap();
    assert_eq!(running.answer().await.text(), "old");
    within(world.status.wait_for(|s| !s.in_flight.contains_key(&one))).await.unwrap();
    // Its kept connection goes, too, and the client's stays.
    running.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    assert_eq!(running.answer().await.text(), "new");
    world.stop().await;
}

#[tokio::test]
async fn a_websocket_outlives_its_instances_place_in_the_table() {
    let chat = instance(|mut conn, _| async move {
        let head = conn.head_of_request().await;
        if !head.contains("Upgrade: websocket") {
            return conn.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold").await;
        }
        conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
        while conn.fill().await > 0 {
            let bytes = std::mem::take(&mut conn.buf);
            conn.send_bytes(&bytes).await;
        }
    })
    .await;
    let next = fixed("new").await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, chat.address)])]).await;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let mut socket = world.client().await;
        socket.send("GET / HTTP/1.1\r\nHost: aa.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
        assert_eq!(socket.head().await.unwrap().status, 101);
        sockets.push(socket);
    }
    // It leaves: what comes is for the other, and the status says for how long it must stay.
    world.set(2, vec![app("aa", Serving, vec![backend(2, next.address)])]).await;
    let old = flex_model::InstanceId(uuid(1));
    within(world.status.wait_for(|s| s.revision == 2 && s.in_flight.get(&old) == Some(&2))).await.unwrap();
    for _ in 0..20 {
        assert_eq!(world.get("aa.test", "/").await.text(), "new");
    }
    for socket in &mut sockets {
        socket.send("still here").await;
        assert_eq!(socket.exact(10).await, b"still here");
    }
    // One ends by itself. When the instance's time is over, it is stopped, and the other hears of it.
    drop(sockets.pop());
    within(world.status.wait_for(|s| s.in_flight.get(&old) == Some(&1))).await.unwrap();
    drop(chat);
    assert!(sockets[0].rest().await.is_empty());
    within(world.status.wait_for(|s| !s.in_flight.contains_key(&old))).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_restarted_router_serves_by_the_table_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let instance = fixed("kept").await;
    let setup = || Setup { state_dir: Some(dir.path().join("router")), ..Setup::default() };
    let mut world = setup().start(Arc::new(RouteTable::default())).await;
    assert_eq!(world.get("aa.test", "/").await.status, 404);
    world.set(7, vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    within(async {
        while !dir.path().join("router/routes.json").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    world.stop().await;
    // Nobody tells it anything.
    let world = setup().start(Arc::new(RouteTable::default())).await;
    assert_eq!(world.status.borrow().revision, 7);
    assert_eq!(world.get("aa.test", "/").await.text(), "kept");
    world.stop().await;
    // A newer table wins over the kept one.
    let world = setup().start(table(8, vec![])).await;
    assert_eq!(world.get("aa.test", "/").await.status, 404);
    world.stop().await;
    // A damaged file does not keep it from starting.
    std::fs::write(dir.path().join("router/routes.json"), "{").unwrap();
    let world = setup().start(table(9, vec![app("aa", Serving, vec![backend(1, instance.address)])])).await;
    assert_eq!(world.get("aa.test", "/").await.text(), "kept");
    world.stop().await;
}

#[tokio::test]
async fn stopping_ends_what_runs_and_takes_no_more() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let instance = instance(move |mut conn, _| {
        let mut wait = wait.clone();
        async move {
            request(&mut conn).await;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbeg").await;
            let _ = wait.wait_for(|go| *go).await;
            conn.send("end").await;
        }
    })
    .await;
    let mut world = World::new(vec![app("aa", Serving, vec![backend(1, instance.address)])]).await;
    let (mut running, mut idle) = (world.client().await, world.client().await);
    idle.send("GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 404);
    running.send("GET / HTTP/1.1\r\nHost: aa.test\r\n\r\n").await;
    running.head().await.unwrap();
    world.begin_stop();
    assert_eq!(idle.fill().await, 0);
    go.send(true).unwrap();
    assert_eq!(running.rest().await, b"begend");
    let address = world.address;
    world.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_canary_gets_its_share_and_no_more() {
    use flex_model::{CanaryShare, Pool, ProcessType};
    let (stable, canary) = (fixed("stable").await, fixed("canary").await);
    let demo = |weight: u32, up: bool| {
        let backends = if up { vec![backend(2, canary.address)] } else { vec![] };
        let state = if up { Serving } else { flex_model::AppState::Starting };
        let pool = Pool { process: ProcessType::web(), version: Some(7), state, backends };
        let share = (weight > 0).then_some(CanaryShare { version: 7, weight });
        let made = route(
            9,
            flex_model::Match::Http { host: "aa.test".parse().unwrap(), path: "/made".parse().unwrap() },
            Policy::default(),
        );
        AppRoute { pools: vec![pool], routes: vec![made], canary: share, ..app("aa", Serving, vec![backend(1, stable.address)]) }
    };
    let mut world = World::new(vec![demo(20, true)]).await;
    let count = async |world: &World, path: &str| {
        let (mut client, mut canaries) = (world.client().await, 0);
        for _ in 0..1000 {
            client.send(&format!("GET {path} HTTP/1.1\r\nHost: aa.test\r\n\r\n")).await;
            canaries += u32::from(client.answer().await.text() == "canary");
        }
        canaries
    };
    // Of 1000 with a chance of 0.2 each, all but one in a billion draws lie within 80 of 200; also where a route was made.
    for path in ["/", "/made/x"] {
        let n = count(&world, path).await;
        assert!((120..=280).contains(&n), "{path}: {n}");
    }
    // Told apart in the metrics, which forget it with the canary.
    let sum = |world: &World, release: &[(&str, &str)]| {
        let seen = flex_model::exposition::parse(&world.metrics.expose()).unwrap();
        seen.sum("flex_router_arrivals_total", &[&[("app", "aa")], release].concat())
    };
    assert_eq!(sum(&world, &[]), 2000.0);
    assert!((240.0..=560.0).contains(&sum(&world, &[("release", "v7")])));
    // One that is not up costs nobody anything, and one that ended gets nothing.
    world.set(2, vec![demo(20, false)]).await;
    assert_eq!(count(&world, "/").await, 0);
    world.set(3, vec![demo(0, true)]).await;
    assert_eq!((count(&world, "/").await, sum(&world, &[("release", "v7")])), (0, 0.0));
    world.stop().await;
}
