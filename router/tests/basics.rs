//! Requests through the router to real sockets: routing, keep-alive, headers, pages, access lines.

mod support;
use flex_model::AppState::{Blank, Crashed, Maintenance, NoWeb, Serving};
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
