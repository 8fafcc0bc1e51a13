//! Drains, and logs that are searched, resumed and kept.

use crate::common::World;
use flex_model::{LogLine, LogSource, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn drains_hide_their_credentials_and_go_on_after_a_restart() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let url = "https://u:s3cret@127.0.0.1:1/in/0123456789abcdef0123?key=s3cret";
    let added = w.post("/apps/demo/log-drains", json!({ "url": url })).await;
    assert_eq!(added["url"], "https://****:****@127.0.0.1:1/in/****?key=****");
    let token = w.user("you@example.com").await;
    let (status, _) = w.send(Method::GET, "/apps/demo/log-drains", &token, None).await;
    assert_eq!(status, 404, "another user's app");
    for (url, said) in [
        (url, "already"),
        ("http://x.org/", "plain HTTP"),
        ("syslog://169.254.169.254:80", "drain_allow"),
        ("syslog://[::1]:80", "drain_allow"),
    ] {
        let (status, body) = w.send(Method::POST, "/apps/demo/log-drains", &w.admin, Some(json!({ "url": url }))).await;
        assert_eq!(status, 422, "{url}");
        assert!(body["message"].as_str().unwrap().contains(said), "{body}");
    }
    let (entries, _) = w.store.list("").await.unwrap();
    assert!(entries.iter().all(|e| !String::from_utf8_lossy(&e.value).contains("s3cret")), "a credential is in the store");
    w.controller
        .deps
        .logs
        .append(app, LogLine { at: w.controller.now(), source: LogSource::App, process: "web.1".into(), text: "x".into() });
    w.until("it fails and says so", async || {
        w.get("/apps/demo/log-drains").await[0]["status"]["error"].as_str().is_some_and(|e| e.contains("127.0.0.1:1"))
    })
    .await;
    let store = w.store.clone();
    let w = w.again(store).await;
    let listed = w.get("/apps/demo/log-drains").await;
    assert_eq!((&listed[0]["id"], &listed[0]["token"]), (&added["id"], &added["token"]));
    let encoded = url.replace('%', "%25").replace('/', "%2F").replace(':', "%3A").replace('?', "%3F");
    w.ok(Method::DELETE, &format!("/apps/demo/log-drains/{encoded}"), None).await;
    assert_eq!(w.get("/apps/demo/log-drains").await, json!([]));
    let events = w.get("/apps/demo/events").await.to_string();
    assert!(events.contains("Removed drain") && !events.contains("s3cret"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_searched_resumed_and_kept_as_long_as_the_app_says() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let now = w.controller.now();
    let line = |n: i64, source, process: &str, text: String| LogLine {
        at: Timestamp::from_micros(now.micros() - (100 - n) * 60_000_000),
        source,
        process: process.into(),
        text: text.into(),
    };
    for n in 0..100 {
        w.controller.deps.logs.append(app, line(n, LogSource::App, "web.1", format!("GET /{n} status={}", 200 + n % 5)));
    }
    w.controller.deps.logs.append(app, line(100, LogSource::Flex, "router", "at=info".into()));
    assert!(w.controller.deps.logs.flush().await);
    let read = async |body: Value| {
        let url = w.post("/apps/demo/log-sessions", body).await["logplex_url"].as_str().unwrap().to_owned();
        let request = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        request.send().await.unwrap().text().await.unwrap()
    };
    let count = |text: &str| text.lines().filter(|l| l.starts_with("data: ")).count();
    assert_eq!(count(&read(json!({ "lines": 1000, "grep": "status=203" })).await), 20);
    assert_eq!(count(&read(json!({ "lines": 1000, "pattern": "GET /9[0-9] " })).await), 10);
    assert_eq!(count(&read(json!({ "lines": 1000, "since": "10m30s", "source": "app", "dyno": "web.1" })).await), 10);
    let router = read(json!({ "source": "router" })).await;
    assert!(count(&router) == 1 && router.contains(" flex[router]: at=info"), "{router}");
    assert!(read(json!({ "source": "heroku", "dyno": "router" })).await.contains(" heroku[router]: at=info"));
    let (status, _) = w.send(Method::POST, "/apps/demo/log-sessions", &w.admin, Some(json!({ "pattern": "(" }))).await;
    assert_eq!(status, 422);
    // A tail that broke goes on after the number it has.
    let last: u64 = router.lines().find_map(|l| l.strip_prefix("id: ")).unwrap().parse().unwrap();
    let body = json!({ "tail": true, "after": last - 3 });
    let url = w.post("/apps/demo/log-sessions", body).await["logplex_url"].as_str().unwrap().to_owned();
    let mut tail = reqwest::Client::new().get(url).header("accept", "text/event-stream").send().await.unwrap();
    let mut heard = String::new();
    while !heard.contains(": live ") {
        let chunk = tokio::time::timeout(crate::common::PATIENCE, tail.chunk()).await.unwrap().unwrap().unwrap();
        heard.push_str(&String::from_utf8_lossy(&chunk));
    }
    let ids: Vec<u64> = heard.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids, [last - 2, last - 1, last]);

    let kept = w.get("/apps/demo/log-retention").await;
    assert_eq!((kept["max_bytes"].as_u64(), kept["max_age_seconds"].as_u64()), (Some(512 << 20), Some(7 * 86_400)));
    assert!(kept["used_bytes"].as_u64().unwrap() > 1000);
    let set = w.patch("/apps/demo/log-retention", json!({ "max_bytes": 8 << 20 })).await;
    assert_eq!((set["max_bytes"].as_u64(), set["max_age_seconds"].as_u64()), (Some(8 << 20), Some(7 * 86_400)));
    for wrong in [json!({ "max_bytes": 5 }), json!({ "max_bytes": 1u64 << 60 }), json!({ "max_age_seconds": 1 })] {
        let (status, _) = w.send(Method::PATCH, "/apps/demo/log-retention", &w.admin, Some(wrong)).await;
        assert_eq!(status, 422);
    }
    let store = w.store.clone();
    let w = w.again(store).await;
    assert_eq!(w.get("/apps/demo/log-retention").await["max_bytes"], 8 << 20);
    let back = w.patch("/apps/demo/log-retention", json!({ "max_bytes": 0 })).await;
    assert_eq!(back["max_bytes"], 512 << 20);
}
