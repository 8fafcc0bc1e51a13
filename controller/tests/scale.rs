//! A thousand apps: all are placed and routed, and so is a change of one of them.

mod common;

use common::World;
use flex_model::{App, AppId, AppName, Release, Uuid};
use flex_store::Write;
use serde_json::json;
use std::time::{Duration, Instant};

const APPS: u128 = 1000;
/// No measurement: without the optimiser and beside other tests it must come to an end.
const DEADLINE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn one_change_among_a_thousand_apps() {
    let w = World::new().await;
    let first = w.create("app-0").await;
    assert!(w.push(first).await.0);
    let read = async |key: String| w.store.get(&key).await.unwrap().0.unwrap().value;
    let app: App = serde_json::from_slice(&read(format!("apps/{first}")).await).unwrap();
    let release: Release = serde_json::from_slice(&read(format!("releases/{first}/{:010}", 1)).await).unwrap();
    for n in 1..APPS {
        let id = AppId(Uuid::from_u128(n));
        let name: AppName = format!("app-{n}").parse().unwrap();
        let put = |key: String, value: serde_json::Value| Write::Put(key, value.to_string().into_bytes());
        let writes = vec![
            put(format!("app-names/{name}"), json!(id)),
            put(format!("apps/{id}"), json!(App { id, name, ..app.clone() })),
            put(format!("releases/{id}/{:010}", 1), json!(Release { app: id, ..release.clone() })),
        ];
        w.store.commit(Vec::new(), writes).await.unwrap();
    }
    let all_serve = async || {
        let table = w.controller.routes().borrow().clone();
        table.apps.iter().filter(|a| a.backends.len() == 1).count() as u128 == APPS
    };
    let start = Instant::now();
    while !all_serve().await {
        assert!(start.elapsed() < DEADLINE, "a thousand apps were not placed within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{APPS} apps placed and routed after {:?}", start.elapsed());
    let mut slowest = Duration::ZERO;
    for name in ["app-7", "app-500", "app-999"] {
        let start = Instant::now();
        w.patch(&format!("/apps/{name}/formation"), json!({ "updates": [{ "type": "web", "quantity": 2 }] })).await;
        w.until("its second instance is routed", async || {
            let table = w.controller.routes().borrow().clone();
            table.apps.iter().any(|a| a.name.as_str() == name && a.backends.len() == 2)
        })
        .await;
        slowest = slowest.max(start.elapsed());
    }
    println!("scaling one of them took {slowest:?} at most until it was routed");
}
