//! Requests through the router to real sockets: routing, keep-alive, headers, pages, access lines.

mod policies;
mod support;
use flex_model::AppState::{Blank, Crashed, Maintenance, NoWeb, Serving, Starting};
use support::*;

#[tokio::test]
async fn a_request_goes_to_its_app_and_leaves_a_line() {
    let (one, two) = (echo().await, fixed("two").await);
    let mut world =
        World::new(vec![app("one", Serving, vec![backend(1, one.address)]), app("two", Serving, vec![backend(2, two.address)])])
            .await;
    assert_eq!(world.get("TWO.test:1234", "/").await.text(), "two");
    assert!(world.line().await.contains("host=TWO.test "));
    let mut client = world.client().await;
    for n in 0..3 {
        client.send(&format!("POST /p{n} HTTP/1.1\r\nHost: one.test\r\nContent-Length: 5\r\n\r\nhello")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().starts_with(&format!("POST /p{n} HTTP/1.1\r\n")) && answer.text().ends_with("hello"));
        assert_eq!(answer.field("via"), Some("1.1 flex-router"));
        let line = world.line().await;
        assert!(line.starts_with(&format!("at=info method=POST path=\"/p{n}\" host=one.test request_id=")), "{line}");
        assert!(line.contains("fwd=\"127.0.0.1\" dyno=web.1 connect=") && line.contains(" status=200 bytes="), "{line}");
        assert!(line.ends_with(" protocol=http"), "{line}");
    }
    let metrics = world.metrics.snapshot();
    assert_eq!((metrics.requests, metrics.by_class[1], metrics.reused, metrics.connects), (4, 4, 2, 2));
    world.stop().await;
}

#[tokio::test]
async fn states_have_their_codes() {
    let states = [("crash", Crashed, "H10"), ("noweb", NoWeb, "H14"), ("maint", Maintenance, "H80"), ("blank", Blank, "H81")];
    let mut world = World::new(states.iter().map(|(name, state, _)| app(name, *state, vec![])).collect()).await;
    let mut client = world.client().await;
    for (name, _, code) in states {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {name}.test\r\nAccept: application/json\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains(code), "{}", answer.text());
        let line = world.line().await;
        assert!(line.contains(&format!("code={code} desc=\"")) && line.contains("dyno= connect= service= status=503"), "{line}");
        assert_eq!(line.starts_with("at=info"), code == "H80");
    }
    let unknown = world.get("nobody.test", "/").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().contains("No such app"));
    world.stop().await;
}

#[tokio::test]
async fn metrics_count_what_was_asked() {
    use flex_model::exposition::parse;
    let (good, slow) =
        (fixed("hello").await, instance(|mut conn, _| async move { while request(&mut conn).await.is_some() {} }).await);
    let dead = refused().await;
    let apps = vec![
        app("aa", Serving, vec![backend(1, good.address)]),
        app("bb", Serving, vec![backend(2, dead)]),
        app("cc", Serving, vec![backend(3, slow.address)]),
        app("dd", Starting, vec![]),
    ];
    let tune = |s: &mut flex_router::RouterSettings| s.limits.metrics_apps = 4;
    let mut world = Setup { tune, ..Setup::default() }.start(table(7, apps.clone())).await;
    for _ in 0..3 {
        assert_eq!(world.get("aa.test", "/").await.status, 200);
    }
    assert_eq!(world.get("bb.test", "/").await.status, 503);
    assert_eq!(world.get("nobody.test", "/").await.status, 404);
    // A client has its answer a moment before it is counted.
    let read = || parse(&world.metrics.expose()).unwrap();
    eventually(async || read().sum("flex_router_requests_in_flight", &[]) == 0.0).await;
    let mut meter = flex_router::SignalMeter::new(world.metrics.clone());
    let (mut under_way, mut held) = (world.client().await, world.client().await);
    under_way.send("GET / HTTP/1.1\r\nHost: cc.test\r\n\r\n").await;
    held.send("GET / HTTP/1.1\r\nHost: dd.test\r\n\r\n").await;
    assert_eq!(world.get("aa.test", "/").await.status, 200);
    eventually(async || read().sum("flex_router_requests_waiting", &[("app", "dd")]) == 1.0).await;
    eventually(async || read().sum("flex_router_requests_in_flight", &[]) == 2.0).await;
    eventually(async || read().sum("flex_router_requests_total", &[("app", "aa")]) == 4.0).await;
    let seen = read();
    let get = |name: &str, app: &str, more: &[(&str, &str)]| {
        seen.get(name, &[&[("app", app), ("process", "web")], more].concat()).unwrap_or(0.0)
    };
    assert_eq!(get("flex_router_requests_total", "aa", &[("code", "2xx")]), 4.0);
    assert_eq!(get("flex_router_requests_total", "bb", &[("code", "5xx")]), 1.0);
    assert_eq!(get("flex_router_errors_total", "bb", &[("code", "H21")]), 1.0);
    assert!(get("flex_router_connect_failures_total", "bb", &[]) >= 1.0 && get("flex_router_ejections_total", "bb", &[]) >= 1.0);
    assert_eq!(get("flex_router_request_duration_seconds_count", "aa", &[]), 4.0);
    assert_eq!(get("flex_router_request_duration_seconds_bucket", "aa", &[("le", "+Inf")]), 4.0);
    assert_eq!((get("flex_router_sent_bytes_total", "aa", &[]), get("flex_router_arrivals_total", "cc", &[])), (20.0, 1.0));
    assert_eq!(get("flex_router_requests_in_flight", "cc", &[]), 1.0);
    assert_eq!(seen.get("flex_router_table_revision", &[]), Some(7.0));
    assert_eq!(seen.get("flex_router_table_hosts", &[]), Some(4.0));
    assert_eq!(seen.get("flex_router_requests_refused_total", &[]), Some(1.0));
    assert_eq!(seen.get("flex_router_limit", &[("limit", "connections")]), Some(20_000.0));
    // The same as signals: only what happened since, and what is under way.
    let signals = meter.read();
    let of = |name: &str| {
        let id = app(name, Blank, vec![]).app;
        signals.apps.iter().find(|s| s.app == id).map(|s| (s.counts.arrivals, s.counts.ended, s.counts.in_flight, s.counts.queue))
    };
    assert_eq!((of("aa"), of("bb")), (Some((1, 1, 0, 0)), None));
    assert_eq!((of("cc"), of("dd")), (Some((1, 0, 1, 0)), Some((1, 0, 1, 1))));
    assert!(meter.read().apps.iter().all(|s| s.counts.arrivals == 0));
    // A fifth app is counted with the others, and one that is gone makes room.
    let other = app("ee", Serving, vec![backend(5, good.address)]);
    world.set(8, [apps.clone(), vec![other.clone()]].concat()).await;
    assert_eq!(world.get("ee.test", "/").await.status, 200);
    eventually(async || {
        parse(&world.metrics.expose()).unwrap().get("flex_router_arrivals_total", &[("app", "_other")]) == Some(1.0)
    })
    .await;
    world.set(9, vec![other]).await;
    eventually(async || parse(&world.metrics.expose()).unwrap().sum("flex_router_arrivals_total", &[("app", "aa")]) == 0.0).await;
}

/// What stands in a source's string literals, a line each; comments are none. Raw strings and quotes as characters do not
/// stand in the way of a search for a code: they hold none.
fn literals(source: &str) -> String {
    let code = |line: &str| -> String {
        let (mut out, mut inside, mut escaped, mut before) = (String::new(), false, false, ' ');
        for c in line.chars() {
            match (inside, c) {
                (false, '/') if before == '/' => break,
                (_, '"') if !escaped && before != '\'' => inside = !inside,
                (true, c) => out.push(c),
                (false, _) => {}
            }
            escaped = inside && c == '\\' && !escaped;
            before = c;
        }
        out
    };
    source.lines().map(|line| code(line) + "\n").collect()
}

#[test]
fn a_comment_provokes_nothing() {
    let source = "// H1\nlet x = 5; // \"H2\"\n/// `H3`\nassert_eq!(a, \"code=H4 \\\"H5\\\" // H6\", H7);\n";
    let found: Vec<String> = (1..=7).map(|n| format!("H{n}")).filter(|c| literals(source).contains(c)).collect();
    assert_eq!(found, ["H4", "H5", "H6"]);
}

/// A code that no test expects, or that nobody can look up, is one that may be wrong.
#[test]
fn every_code_is_provoked_by_a_test_and_explained() {
    let tests = [
        include_str!("basics.rs"),
        include_str!("faults.rs"),
        include_str!("h2.rs"),
        include_str!("l4.rs"),
        include_str!("smuggling.rs"),
        include_str!("policies/mod.rs"),
    ]
    .map(literals);
    let page = include_str!("../../docs/routing.md");
    for code in flex_router::Code::ALL {
        let name = code.code();
        assert!(tests.iter().any(|text| text.contains(name)), "no test provokes {name}");
        let row = format!("| {name} | {} | {} |", code.status(), code.desc());
        assert!(page.contains(&row), "docs/routing.md has no row that begins with {row}");
    }
}
