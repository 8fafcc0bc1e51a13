//! Routes and how requests are treated, and what routers tell.

use crate::common::World;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn routes_reach_the_table_and_belong_to_somebody() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let product = crate::common::parts::product("up-x", &[("web", "serve"), ("db", "db")]);
    w.builders.then(crate::common::parts::Outcome::Good(product));
    assert!(w.push(app).await.0);
    w.patch("/apps/demo/formation", json!({ "updates": [{ "type": "db", "quantity": 1 }] })).await;
    let table = || w.controller.routes().borrow().app(app).cloned().unwrap();
    // A port of the range, for a process type that gets PORT and an address by it.
    let made = w.post("/apps/demo/routes", json!({ "kind": "tcp", "targets": [{ "process": "db" }] })).await;
    let port = made["port"].as_u64().unwrap();
    assert!((20_000..=20_009).contains(&port), "{made}");
    w.until("db is routed", async || table().pools.iter().any(|p| p.process.as_str() == "db" && p.backends.len() == 1)).await;
    assert_eq!(table().routes[0].matches.to_string(), format!("tcp:{port}"));
    // Shares, and settings that come and go.
    let api = json!({ "kind": "http", "host": "demo.localhost", "path": "/api/", "targets": [{ "process": "web", "weight": 9 }, { "process": "db" }] });
    assert_eq!(w.post("/apps/demo/routes", api.clone()).await["name"], "demo.localhost/api");
    let id = w.get("/apps/demo/routes").await.as_array().unwrap().iter().find(|r| r["path"] == "/api").unwrap()["id"].clone();
    let path = format!("/apps/demo/routes/{}", id.as_str().unwrap());
    let set = w.patch(&path, json!({ "policy": { "balancing": "round_robin", "queue": 5 } })).await;
    assert_eq!(set["policy"], json!({ "balancing": "round_robin", "queue": 5 }));
    let set = w.patch(&path, json!({ "policy": { "queue": null }, "targets": [{ "process": "web" }] })).await;
    assert_eq!((&set["policy"], set["targets"].as_array().unwrap().len()), (&json!({ "balancing": "round_robin" }), 1));
    // What is wrong is refused, with the reason.
    for (body, why) in [
        (api.clone(), "is taken"),
        (json!({ "kind": "http", "host": "elsewhere.example.com" }), "domains:add"),
        (json!({ "kind": "tcp", "targets": [{ "process": "nope" }] }), "has no process type nope; it has db, web"),
        (json!({ "kind": "tcp", "targets": [{ "process": "web", "weight": 0 }] }), "Weights"),
        (json!({ "kind": "tcp", "host": "a.b" }), "neither host nor path"),
        (json!({ "kind": "sni", "host": "a.b" }), "no domain of an app"),
        (json!({ "kind": "udp", "tls": true }), "for TCP"),
        (json!({ "kind": "udp", "policy": { "proxy_protocol": "v1" } }), "UDP"),
        (json!({ "kind": "tcp", "policy": { "sticky": true } }), "for HTTP"),
        (json!({ "kind": "http", "host": "demo.localhost", "path": "x" }), "path"),
        (json!({ "kind": "tcp", "policy": { "stiky": true } }), "stiky"),
    ] {
        let (status, answer) = w.send(Method::POST, "/apps/demo/routes", &w.admin, Some(body.clone())).await;
        assert!(status.as_u16() == 422 && answer["message"].as_str().unwrap().contains(why), "{body}: {status} {answer}");
    }
    // Another user's app gets neither this host nor a port of the machine.
    let other = w.user("other@example.com").await;
    let ask = async |body: Value| w.send(Method::POST, "/apps/other/routes", &other, Some(body)).await.0.as_u16();
    assert_eq!(w.send(Method::POST, "/apps", &other, Some(json!({ "name": "other" }))).await.0.as_u16(), 201);
    assert_eq!(ask(json!({ "kind": "http", "host": "demo.localhost", "path": "/mine" })).await, 422);
    assert_eq!(ask(json!({ "kind": "tcp", "port": 22 })).await, 403);
    assert_eq!(ask(json!({ "kind": "tcp", "tls": true })).await, 201);
    assert_eq!(ask(json!({ "kind": "sni", "host": "demo.localhost" })).await, 422);
    assert_eq!(ask(json!({ "kind": "sni", "host": "other.localhost" })).await, 201);
    // A domain that leaves takes its routes out of force.
    w.post("/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    w.post("/apps/demo/routes", json!({ "kind": "http", "host": "www.example.com", "path": "/x" })).await;
    let is_routed = || table().routes.iter().any(|r| r.matches.to_string() == "www.example.com/x");
    w.until("it is routed", async || is_routed()).await;
    w.ok(Method::DELETE, "/apps/demo/domains/www.example.com", None).await;
    w.until("it is not", async || !is_routed()).await;
    w.ok(Method::DELETE, &format!("/apps/demo/routes/tcp:{port}"), None).await;
    w.until("the port is free", async || !table().routes.iter().any(|r| r.matches.kind() == "tcp")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_requests_are_treated_is_said_by_route_app_and_file() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let mut product = crate::common::parts::product("up-x", &[("web", "serve")]);
    let file = r#"{"routes": {"*": {"timeout_seconds": 7, "idle_seconds": 8}, "/api": {"max_body_bytes": 9}}}"#;
    product.app_json = flex_model::app_json::parse(file).unwrap();
    w.builders.then(crate::common::parts::Outcome::Good(product));
    assert!(w.push(app).await.0);
    let at = |name: &str| {
        let table = w.controller.routes().borrow().app(app).cloned().unwrap();
        let made = table.routes.iter().find(|r| r.matches.to_string() == name).map(|r| r.policy.clone());
        let policy = made.unwrap_or(table.policy.clone()).unwrap_or_default();
        serde_json::to_value(&policy.http).unwrap()
    };
    w.until("app.json holds", async || at("-") == json!({ "timeout_seconds": 7, "idle_seconds": 8 })).await;
    assert_eq!(at("demo.localhost/api"), json!({ "timeout_seconds": 7, "idle_seconds": 8, "max_body_bytes": 9 }));
    // What is set by hand wins, a route's own over the app's.
    let http = json!({ "timeout_seconds": 70, "basic_auth": { "users": { "ann": "geheim" } } });
    let said = w.patch("/apps/demo/routing", json!({ "http": http, "pages": { "h12": "<p>slow</p>" } })).await;
    assert_eq!(said["http"]["basic_auth"]["users"]["ann"], "[hidden]");
    assert_eq!(said["pages"], json!([{ "name": "H12", "bytes": 11, "text": "<p>slow</p>" }]));
    assert_eq!(said["app_json"]["/api"], json!({ "max_body_bytes": 9 }));
    let route =
        json!({ "kind": "http", "host": "demo.localhost", "path": "/api", "policy": { "http": { "timeout_seconds": 700 } } });
    let made = w.post("/apps/demo/routes", route).await;
    assert_eq!(made["policy"], json!({ "http": { "timeout_seconds": 700 } }));
    assert_eq!((&made["http"]["timeout_seconds"], &made["http"]["max_body_bytes"]), (&json!(700), &json!(9)));
    let path = format!("/apps/demo/routes/{}", made["id"].as_str().unwrap());
    let users = json!({ "policy": { "http": { "basic_auth": { "users": { "bob": "sehrgeheim" } } } } });
    assert_eq!(w.patch(&path, users).await["http"]["basic_auth"]["users"], json!({ "bob": "[hidden]" }));
    w.until("routers have it", async || at("demo.localhost/api")["timeout_seconds"] == 700).await;
    let hash = at("demo.localhost/api")["basic_auth"]["users"]["bob"].as_str().unwrap().to_owned();
    assert!(hash.starts_with("pbkdf2-sha256$"), "{hash}");
    assert_eq!(at("-")["timeout_seconds"], 70);
    assert_eq!(&*w.controller.routes().borrow().app(app).unwrap().pages[&"H12".parse().unwrap()], "<p>slow</p>");
    // No secret in any answer or event, and each change told.
    let told = format!(
        "{} {} {}",
        w.get("/apps/demo/routes").await,
        w.get("/apps/demo/routing").await,
        w.get("/apps/demo/events").await
    );
    assert!(!told.contains("geheim") && !told.contains("pbkdf2"), "{told}");
    assert!(told.contains("basic_auth, timeout_seconds, page H12") && told.contains("(basic_auth)"), "{told}");
    // A default comes back.
    w.patch(&path, json!({ "policy": { "http": null } })).await;
    w.until("the app's holds again", async || at("demo.localhost/api")["timeout_seconds"] == 70).await;
    for (path, body, why) in [
        ("/apps/demo/routing", json!({ "http": { "timeout": 1 } }), "unknown field `timeout`"),
        ("/apps/demo/routing", json!({ "http": { "rate_limit": { "requests": 0 } } }), "rate_limit.requests"),
        ("/apps/demo/routing", json!({ "pages": { "H12": "x".repeat(70_000) } }), "65536"),
        ("/apps/demo/routing", json!({ "pages": { "H1": "x" } }), "H12"),
        (&path, json!({ "policy": { "http": { "allow": ["x"] } } }), "allow"),
    ] {
        let (status, answer) = w.send(Method::PATCH, path, &w.admin, Some(body.clone())).await;
        assert!(status.as_u16() == 422 && answer["message"].as_str().unwrap().contains(why), "{body}: {status} {answer}");
    }
    let tcp = json!({ "kind": "tcp", "policy": { "http": { "timeout_seconds": 1 } } });
    let (status, answer) = w.send(Method::POST, "/apps/demo/routes", &w.admin, Some(tcp)).await;
    assert!(status.as_u16() == 422 && answer["message"].as_str().unwrap().contains("for HTTP"), "{answer}");
    w.ok(Method::DELETE, "/apps/demo", None).await;
    w.until("nothing is left", async || w.store.list(&format!("routing/{app}")).await.unwrap().0.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_routers_see_is_told() {
    use flex_model::exposition::parse;
    use flex_model::signals::{Counts, RouterSignals, Signal};
    let w = World::new().await;
    let (app, stranger) = (w.create("demo").await, w.user("you@example.com").await);
    assert!(w.push(app).await.0);
    w.post("/apps/demo/domains", json!({ "hostname": "*.example.com" })).await;
    w.post(
        "/apps/demo/routes",
        json!({ "kind": "http", "host": "demo.localhost", "path": "/api", "policy": { "sticky": true } }),
    )
    .await;
    // A router elsewhere tells what it counted, with its own token.
    let token = w.controller.router_token("edge").await.unwrap();
    let counts =
        Counts { arrivals: 30, ended: 28, errors: 7, in_flight: 2, queue: 1, served: 28, service_us: 56_000, times: vec![28] };
    let signal = Signal { app, process: "web".parse().unwrap(), version: None, counts };
    let told =
        RouterSignals { router: "somebody".into(), version: "1.2".into(), millis: 1000, connections: 9, apps: vec![signal] };
    let send = async |token: &str| {
        let request = reqwest::Client::new().post(format!("{}/router/signals", w.url)).bearer_auth(token).json(&told);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((send(&w.admin).await, send(token.expose()).await), (401, 200));
    let seen = w.get("/apps/demo/metrics?seconds=10").await;
    let web = seen["processes"].as_array().unwrap().iter().find(|p| p["type"] == "web").unwrap().clone();
    assert_eq!(
        (&web["instances"], &web["traffic"]["arrival_rate"], &web["traffic"]["in_flight"]),
        (&json!(1), &json!(3.0), &json!(2))
    );
    assert_eq!((&web["traffic"]["queue"], &web["traffic"]["service_ms"]), (&json!(1), &json!(2.0)));
    assert_eq!((&web["traffic"]["error_share"], &web["history"][0]["traffic"]["arrival_rate"]), (&json!(0.25), &json!(30.0)));
    for (path, token, status) in [
        ("/apps/demo/metrics?seconds=61", &w.admin, 400),
        ("/apps/demo/metrics", &stranger, 404),
        ("/metrics", &stranger, 403),
        ("/routers", &stranger, 403),
        ("/routes/trace?host=demo.localhost", &stranger, 404),
        ("/routes/trace?host=nobody.localhost", &w.admin, 404),
    ] {
        assert_eq!(w.send(Method::GET, path, token, None).await.0.as_u16(), status, "{path}");
    }
    // The routers, their lag, and the whole as Prometheus reads it.
    let current = async || {
        w.get("/routers").await["routers"].as_array().unwrap().iter().all(|r| r["name"] != "router" || r["current"] == true)
    };
    w.until("the router has the table", current).await;
    let all = w.get("/routers").await;
    let mine = all["routers"].as_array().unwrap().iter().find(|r| r["name"] == "router").unwrap().clone();
    assert!(mine["lag_ms"].as_u64().unwrap() < 5000 && mine["revision"] == all["revision"], "{all}");
    let text = w.get("/metrics").await.as_str().unwrap().to_owned();
    let metrics = parse(&text).unwrap();
    assert_eq!(
        (metrics.get("flex_apps", &[]), metrics.get("flex_instances", &[("state", "up")])),
        (Some(1.0), Some(1.0)),
        "{text}"
    );
    assert_eq!(metrics.get("flex_router_current", &[("router", "router")]), Some(1.0));
    assert!(metrics.get("flex_plan_passes_total", &[]).unwrap() > 0.0 && metrics.get("flex_store_revision", &[]).unwrap() > 0.0);
    // Which way a request takes.
    let way = w.get("/routes/trace?host=DEMO.localhost&path=/").await;
    assert_eq!((&way["matched"], &way["route"], &way["app"]["name"]), (&json!("demo.localhost/"), &Value::Null, &json!("demo")));
    let instance = &way["targets"][0]["instances"][0];
    assert_eq!(
        (&instance["name"], &instance["routed"], &instance["release"]),
        (&json!("web.1"), &json!(true), &json!(1)),
        "{way}"
    );
    let way = w.get("/routes/trace?host=x.example.com&path=y").await;
    assert_eq!((&way["matched"], &way["path"]), (&json!("*.example.com/"), &json!("/y")));
    let way = w.get("/routes/trace?host=demo.localhost&path=/api/x").await;
    assert_eq!((&way["matched"], &way["policy"]["sticky"]), (&json!("demo.localhost/api"), &json!(true)), "{way}");
}
