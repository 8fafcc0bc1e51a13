//! One-off commands, detached and attached.

use crate::common::World;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn runs_detached_end_in_the_log() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let run = w.post("/apps/demo/dynos", json!({ "command": "say hello", "env": { "X": "1" } })).await;
    let name = run["name"].as_str().unwrap().to_owned();
    w.until("its end is in the log", async || {
        let url = w.post("/apps/demo/log-sessions", json!({ "lines": 50, "dyno": name })).await["logplex_url"].clone();
        let text = reqwest::get(url.as_str().unwrap()).await.unwrap().text().await.unwrap();
        text.contains("Starting process with command `say hello`") && text.contains("Process exited with status 3")
    })
    .await;
    let runs = w.get("/apps/demo/runs").await;
    assert_eq!((&runs[0]["name"], &runs[0]["status"], &runs[0]["attached"]), (&json!(name), &json!(3), &json!(false)), "{runs}");
    w.until("what it left is removed", async || w.runs.started.lock().unwrap().is_empty()).await;
    let events = w.get("/apps/demo/events").await.to_string();
    assert!(events.contains("run.start") && events.contains("exited with status 3 after"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_attached_carry_both_ways() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let attach = async || {
        let body = json!({ "command": "cat", "attach": true, "env": { "COLUMNS": "100", "LINES": "40" } });
        let url = w.post("/apps/demo/dynos", body).await["attach_url"].as_str().unwrap().to_owned();
        let (socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
        // A secret serves once.
        assert!(tokio_tungstenite::connect_async(&url).await.is_err());
        socket
    };
    let mut socket = attach().await;
    assert_eq!(w.runs.jobs.lock().unwrap()[0].tty, Some((100, 40)));
    let heard = async |socket: &mut tokio_tungstenite::WebSocketStream<_>| {
        tokio::time::timeout(crate::common::PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
    };
    assert_eq!(heard(&mut socket).await, Message::binary(b"\x01ran cat\n".to_vec()));
    socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
    assert_eq!(heard(&mut socket).await, Message::binary(b"\x01hello".to_vec()));
    socket.send(Message::text(r#"{"resize":[80,24]}"#)).await.unwrap();
    assert_eq!(heard(&mut socket).await, Message::binary(b"\x0180x24".to_vec()));
    socket.send(Message::text(r#"{"signal":2}"#)).await.unwrap();
    assert_eq!(heard(&mut socket).await, Message::text(r#"{"exit":130}"#));
    // A client that goes away hangs up.
    drop(attach().await);
    w.until("the run was hung up", async || *w.runs.ended.lock().unwrap() == [130, 129]).await;
}
