//! The API over real HTTP: shapes, errors, and what each change leads to.

mod common;

use common::World;
use flex_model::{LogLine, LogSource, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn an_app_from_its_making_to_its_end() {
    let w = World::new().await;
    let made = w.post("/apps", json!({})).await;
    assert!(made["name"].as_str().is_some_and(|n| n.contains('-')), "{made}");
    let id = w.create("demo").await;
    let (status, error) = w.send(Method::POST, "/apps", &w.admin, Some(json!({ "name": "demo" }))).await;
    assert_eq!(
        (status.as_u16(), &error["id"], &error["message"]),
        (422, &json!("invalid_params"), &json!("Name demo is already taken"))
    );
    assert_eq!(w.get(&format!("/apps/{id}")).await["name"], "demo");
    assert_eq!(w.patch("/apps/demo", json!({ "name": "other" })).await["name"], "other");
    let (status, error) = w.send(Method::GET, "/apps/demo", &w.admin, None).await;
    assert_eq!((status.as_u16(), &error["id"], &error["message"]), (404, &json!("not_found"), &json!("Couldn't find that app.")));
    // The name is free again.
    w.create("demo").await;
    let (status, _) = w.send(Method::PATCH, "/apps/demo", &w.admin, Some(json!({ "name": "other" }))).await;
    assert_eq!(status.as_u16(), 422);
    assert_eq!(w.patch("/apps/other", json!({ "maintenance": true })).await["maintenance"], true);
    w.ok(Method::DELETE, "/apps/other", None).await;
    assert_eq!(w.send(Method::GET, "/apps/other", &w.admin, None).await.0.as_u16(), 404);
    let kinds: Vec<String> = kinds(&w.get("/events").await);
    for kind in ["app.create", "app.rename", "app.update", "app.destroy"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is missing in {kinds:?}");
    }
}

fn kinds(events: &Value) -> Vec<String> {
    events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_clearly() {
    let w = World::new().await;
    w.create("demo").await;
    let cases: Vec<(Method, &str, Value, u16)> = vec![
        (Method::POST, "/apps", json!({ "name": "Bad Name" }), 422),
        (Method::POST, "/apps", json!({ "name": 3 }), 422),
        (Method::PATCH, "/apps/demo/formation", json!({ "updates": [{ "type": "web", "quantity": "x" }] }), 422),
        (Method::PATCH, "/apps/demo/formation", json!({ "updates": [{ "type": "nope", "quantity": 1 }] }), 404),
        (Method::PATCH, "/apps/demo/config-vars", json!({ "A B": "1" }), 422),
        (Method::PATCH, "/apps/demo/config-vars", json!({ "A": "x".repeat(40_000) }), 422),
        (Method::PATCH, "/apps/demo", json!({ "deploy_branches": ["--x"] }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": {} }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": { "url": "http://169.254.169.254/x" } }), 422),
        (Method::POST, "/apps/demo/builds", json!({ "source_blob": { "image": "--help" } }), 422),
        (Method::POST, "/apps/demo/dynos", json!({ "command": "ls" }), 422),
        (Method::POST, "/apps/demo/releases", json!({ "release": "v9" }), 404),
        (Method::POST, "/apps/demo/domains", json!({ "hostname": "x.localhost" }), 422),
        (Method::POST, "/apps/demo/collaborators", json!({ "user": "nobody@example.com" }), 422),
        (Method::PUT, "/apps/demo/buildpack-installations", json!({ "updates": [{ "buildpack": "--x" }] }), 422),
        (Method::POST, "/account/keys", json!({ "public_key": "ssh-dss AAAA" }), 422),
        (Method::GET, "/apps/%2e%2e", Value::Null, 404),
        (Method::GET, "/nowhere", Value::Null, 404),
        (Method::PUT, "/apps", Value::Null, 404),
    ];
    for (method, path, body, expected) in cases {
        let url = format!("{}{path}", w.url);
        let request = reqwest::Client::new().request(method.clone(), &url).bearer_auth(&w.admin).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(status, expected, "{method} {path} {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(error["id"].is_string() && error["message"].as_str().is_some_and(|m| m.len() > 5), "{method} {path} {text}");
    }
    let broken =
        reqwest::Client::new().post(format!("{}/apps", w.url)).bearer_auth(&w.admin).body("{\"name\":").send().await.unwrap();
    assert_eq!(broken.status().as_u16(), 400);
    assert!(broken.text().await.unwrap().contains("line 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn config_makes_releases_and_rollback_brings_it_back() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert_eq!(w.patch("/apps/demo/config-vars", json!({ "A": "1", "B": "2" })).await, json!({ "A": "1", "B": "2" }));
    assert!(w.push(app).await.0);
    assert_eq!(w.patch("/apps/demo/config-vars", json!({ "B": null, "A": "3" })).await, json!({ "A": "3" }));
    // Setting what is set already is no change.
    w.patch("/apps/demo/config-vars", json!({ "A": "3" })).await;
    w.until("v3 is up", async || w.versions_up("demo").await == [3]).await;
    let releases = w.get("/apps/demo/releases").await;
    let said: Vec<&str> = releases.as_array().unwrap().iter().map(|r| r["description"].as_str().unwrap()).collect();
    assert_eq!(said, ["Set A, B config vars", "Deploy 01234567", "Set A config vars, Unset B config vars"]);
    let rolled = w.post("/apps/demo/releases", json!({ "release": releases[1]["id"] })).await;
    assert_eq!((rolled["version"].as_u64(), rolled["description"].as_str()), (Some(4), Some("Rollback to v2")));
    assert_eq!(w.get("/apps/demo/config-vars").await, json!({ "A": "1", "B": "2" }));
    assert_eq!(w.get("/apps/demo/releases/3/config-vars").await, json!({ "A": "3" }));
    w.until("v4 is up", async || w.versions_up("demo").await == [4]).await;
    let newest = reqwest::Client::new()
        .get(format!("{}/apps/demo/releases", w.url))
        .bearer_auth(&w.admin)
        .header("Range", "version ..; order=desc,max=1")
        .send()
        .await
        .unwrap();
    assert_eq!(newest.status().as_u16(), 206);
    let newest: Value = serde_json::from_str(&newest.text().await.unwrap()).unwrap();
    assert_eq!((newest.as_array().unwrap().len(), newest[0]["version"].as_u64()), (1, Some(4)));
    // No value is in the store as it is.
    for entry in w.store.list("").await.unwrap().0 {
        assert!(!String::from_utf8_lossy(&entry.value).contains("\"A\":\"3\""), "{}", entry.key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_by_numbers_texts_and_steps() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    for (quantity, count) in [(json!("3"), 3), (json!("-1"), 2), (json!(1), 1), (json!("+1"), 2), (json!(0), 0)] {
        let body = json!({ "updates": [{ "type": "web", "quantity": quantity }] });
        assert_eq!(w.patch("/apps/demo/formation", body).await[0]["quantity"], count);
        w.until(&format!("{count} are up"), async || w.versions_up("demo").await.len() == count && w.routed(app).len() == count)
            .await;
    }
    let (status, _) = w.send(Method::PATCH, "/apps/demo/formation/web", &w.admin, Some(json!({ "quantity": "-1" }))).await;
    assert_eq!(status.as_u16(), 422);
    let one = w.patch("/apps/demo/formation/web", json!({ "quantity": 1, "size": "256M" })).await;
    assert_eq!((one["quantity"].as_u64(), one["size"].as_str()), (Some(1), Some("256M")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_replaces_instances() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let id = async || w.get("/apps/demo/dynos").await[0]["id"].as_str().unwrap_or_default().to_owned();
    for path in ["/apps/demo/dynos", "/apps/demo/dynos/web.1", "/apps/demo/formations/web"] {
        let before = id().await;
        w.ok(Method::DELETE, path, None).await;
        w.until("another is up alone", async || {
            let now = w.get("/apps/demo/dynos").await;
            now.as_array().unwrap().len() == 1 && now[0]["id"] != before.as_str() && now[0]["state"] == "up"
        })
        .await;
        assert_eq!(w.routed(app), ["web.1"]);
    }
    assert_eq!(w.send(Method::DELETE, "/apps/demo/dynos/web.7", &w.admin, None).await.0.as_u16(), 404);
    let why = w.get("/apps/demo/dynos/web.1/why").await;
    assert!(why["lines"][0].as_str().unwrap().contains("was placed on one"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_world_belong_to_one_app() {
    let w = World::new().await;
    w.create("demo").await;
    w.create("other").await;
    let made = w.post("/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    assert_eq!((made["kind"].as_str(), made["cname"].as_str()), (Some("custom"), Some("demo.localhost")));
    let (status, error) =
        w.send(Method::POST, "/apps/other/domains", &w.admin, Some(json!({ "hostname": "www.example.com" }))).await;
    assert_eq!(status.as_u16(), 422, "{error}");
    w.until("it is in the table", async || {
        let table = w.controller.routes().borrow().clone();
        table.apps.iter().any(|a| a.name.as_str() == "demo" && a.domains.iter().any(|d| d.as_str() == "www.example.com"))
    })
    .await;
    w.ok(Method::DELETE, "/apps/demo", None).await;
    w.post("/apps/other/domains", json!({ "hostname": "www.example.com" })).await;
    w.ok(Method::DELETE, "/apps/other/domains/www.example.com", None).await;
    assert_eq!(w.get("/apps/other/domains").await.as_array().unwrap().len(), 1);
}

/// A certificate signed by `issuer`, or by itself; valid from and to these days of 2026.
fn certificate(
    names: &[&str],
    issuer: Option<&rcgen::Issuer<'static, rcgen::KeyPair>>,
    years: (i32, i32),
) -> (rcgen::CertificateParams, rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, names.first().copied().unwrap_or("authority"));
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(years.0, 1, 1), rcgen::date_time_ymd(years.1, 1, 1));
    let made = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap()
        }
    };
    (params, key, made.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_kept_secret_and_shown_for_own_domains_only() {
    let w = World::new().await;
    w.create("demo").await;
    w.create("other").await;
    w.post("/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    w.post("/apps/other/domains", json!({ "hostname": "api.example.com" })).await;
    let (params, ca_key, ca) = certificate(&[], None, (2020, 2100));
    let issuer = rcgen::Issuer::new(params, ca_key);
    let (_, key, cert) = certificate(&["www.example.com", "api.example.com", "*.localhost"], Some(&issuer), (2020, 2100));
    let (_, old_key, old) = certificate(&["www.example.com"], Some(&issuer), (2020, 2021));
    let (_, early_key, early) = certificate(&["www.example.com"], Some(&issuer), (2090, 2100));
    let (_, else_key, elsewhere) = certificate(&["example.org"], Some(&issuer), (2020, 2100));
    let put = |chain: String, key: &rcgen::KeyPair| json!({ "certificate_chain": chain, "private_key": key.serialize_pem() });
    for (body, said) in [
        (put(cert.clone(), &old_key), "does not belong to the certificate"),
        (put(old, &old_key), "expired at 2021-01-01"),
        (put(early, &early_key), "is not valid before 2090-01-01"),
        (put(elsewhere, &else_key), "flex domains:add"),
        (put(format!("{ca}{cert}"), &key), "does not belong"),
        (put(format!("{cert}{cert}"), &key), "was not issued by certificate 2"),
        (put("hello".into(), &key), "There is no certificate"),
        (put(key.serialize_pem(), &key), "There is no certificate"),
        (json!({ "certificate_chain": cert, "private_key": "hello" }), "not an unencrypted private key"),
        (put("x".repeat(40_000), &key), "32 KiB"),
    ] {
        let (status, error) = w.send(Method::POST, "/apps/demo/sni-endpoints", &w.admin, Some(body)).await;
        assert_eq!(status.as_u16(), 422, "{error}");
        assert!(error["message"].as_str().unwrap().contains(said), "{said}: {error}");
    }
    assert_eq!(w.get("/apps/demo/sni-endpoints").await.as_array().unwrap().len(), 0);

    let made = w.post("/apps/demo/sni-endpoints", put(format!("{cert}{ca}"), &key)).await;
    assert_eq!(made["domains"], json!(["demo.localhost", "www.example.com"]));
    assert_eq!(made["ssl_cert"]["ca_signed?"], true);
    assert!(!made.to_string().contains("PRIVATE KEY"));
    // In the store the key is not to be read; the routers get it, for this app's names and not for the other's.
    let (entries, _) = w.store.list("certificates/").await.unwrap();
    assert!(entries.len() == 1 && !String::from_utf8_lossy(&entries[0].value).contains("PRIVATE KEY"));
    let table = w.controller.certificate_table();
    let names = |table: &flex_model::CertificateTable| -> Vec<String> {
        table.certificates.iter().flat_map(|c| &c.names).map(ToString::to_string).collect()
    };
    w.until("routers have it", async || names(&table.borrow()) == ["demo.localhost", "www.example.com"]).await;
    assert_eq!(table.borrow().certificates[0].key.expose(), key.serialize_pem());

    let name = made["name"].as_str().unwrap();
    let (_, new_key, new) = certificate(&["www.example.com"], Some(&issuer), (2020, 2100));
    w.patch(&format!("/apps/demo/sni-endpoints/{name}"), put(new, &new_key)).await;
    w.until("routers have the new one", async || names(&table.borrow()) == ["www.example.com"]).await;
    w.ok(Method::DELETE, "/apps/demo/domains/www.example.com", None).await;
    w.until("a domain that left takes its certificate along", async || names(&table.borrow()).is_empty()).await;
    w.ok(Method::DELETE, "/apps/demo", None).await;
    w.until("nothing is left", async || w.store.list("certificates/").await.unwrap().0.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_made_say_why() {
    let w = World::new().await;
    w.create("demo").await;
    let names = ["a.example.com", "b.example.com", "c.example.com"];
    for name in names {
        w.post("/apps/demo/domains", json!({ "hostname": name })).await;
    }
    let (status, error) = w.send(Method::PATCH, "/apps/demo/acm", &w.admin, Some(json!({ "acm_refresh": true }))).await;
    assert!(status.as_u16() == 422 && error["message"].as_str().unwrap().contains("certs:auto:enable"), "{error}");
    assert_eq!(w.get("/apps/demo/domains/a.example.com").await["acm_status"], Value::Null);
    assert_eq!(w.post("/apps/demo/acm", json!({})).await["acm"], true);
    let failing = async || {
        let all = w.get("/apps/demo/domains").await;
        let all = all.as_array().unwrap().iter().filter(|d| d["kind"] == "custom").cloned().collect::<Vec<_>>();
        all.iter().all(|d| {
            let reason = d["acm_status_reason"].as_str().unwrap_or_default();
            d["acm_status"] == "failing" && reason.contains("acme_unavailable")
        })
    };
    w.until("every name says why", failing).await;
    let fails = async || {
        let events = w.get("/apps/demo/events").await;
        kinds(&events).iter().filter(|k| *k == "certificate.fail").count()
    };
    assert_eq!(fails().await, names.len());
    // What was tried again says the same, which is no news.
    w.patch("/apps/demo/acm", json!({ "acm_refresh": true })).await;
    let tried = async || {
        let (entries, _) = w.store.list("acme/names/").await.unwrap();
        let failures = entries.iter().map(|e| serde_json::from_slice::<Value>(&e.value).unwrap()["failures"].clone());
        failures.filter(|f| *f == 1).count() == names.len()
    };
    w.until("they were tried again", tried).await;
    assert_eq!(fails().await, names.len());
    assert_eq!(w.ok(Method::DELETE, "/apps/demo/acm", None).await["acm"], false);
    w.until("nothing is left", async || w.store.list("acme/names/").await.unwrap().0.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_told_once_and_ticket_keys_outlive_a_restart() {
    let w = World::new().await;
    w.create("demo").await;
    let now = std::time::SystemTime::now();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["demo.localhost".to_owned()]).unwrap();
    let day = std::time::Duration::from_secs(24 * 3600);
    (params.not_before, params.not_after) = ((now - 80 * day).into(), (now + 5 * day).into());
    let chain = params.self_signed(&key).unwrap().pem();
    let body = json!({ "certificate_chain": chain, "private_key": key.serialize_pem() });
    w.post("/apps/demo/sni-endpoints", body).await;
    let told = async |w: &World| kinds(&w.get("/apps/demo/events").await).iter().filter(|k| *k == "certificate.expiring").count();
    w.until("it is told", async || told(&w).await == 1).await;
    w.until("there are ticket keys", async || w.controller.certificate_table().borrow().ticket_keys.len() == 3).await;
    let keys = w.controller.certificate_table().borrow().ticket_keys.clone();
    assert!(keys.windows(2).all(|k| k[0].period + 1 == k[1].period && k[0].key != k[1].key));
    let (entry, _) = w.store.get("tls-tickets").await.unwrap();
    assert!(!String::from_utf8_lossy(&entry.unwrap().value).contains(keys[0].key.expose()));
    let store = w.store.clone();
    let w = w.again(store).await;
    w.until("they are the same", async || w.controller.certificate_table().borrow().ticket_keys == keys).await;
    assert_eq!(told(&w).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_uploaded_and_built() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let blob = w.post("/sources", json!({})).await["source_blob"].clone();
    let url = blob["put_url"].as_str().unwrap();
    let body = json!({ "source_blob": { "url": blob["get_url"], "version": "abc" } });
    let (status, error) = w.send(Method::POST, "/apps/demo/builds", &w.admin, Some(body.clone())).await;
    assert_eq!(status.as_u16(), 422, "{error}");
    let put = async |url: &str| reqwest::Client::new().put(url).body(vec![7; 100_000]).send().await.unwrap().status().as_u16();
    assert_eq!(put(&format!("{url}0")).await, 404);
    assert_eq!(put(url).await, 200);
    let build = w.post("/apps/demo/builds", body).await;
    let output = w.get(build["output_stream_url"].as_str().unwrap()).await;
    assert!(output.as_str().unwrap().contains("Verifying deploy... done."), "{output}");
    assert_eq!(w.routed(app), ["web.1"]);
    let image = w.post("/apps/demo/builds", json!({ "source_blob": { "image": "nginx:1" } })).await;
    let output = w.get(image["output_stream_url"].as_str().unwrap()).await;
    assert!(output.as_str().unwrap().contains("Released v2"), "{output}");
}

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
        text,
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
        let chunk = tokio::time::timeout(common::PATIENCE, tail.chunk()).await.unwrap().unwrap().unwrap();
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
        tokio::time::timeout(common::PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
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

#[tokio::test(flavor = "multi_thread")]
async fn images_are_served_as_a_registry_does() {
    use sha2::{Digest, Sha256};
    let w = World::new().await;
    let app = w.create("demo").await;
    let blobs = w.dir.path().join("images").join(app.to_string()).join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |bytes: &[u8]| {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        format!("sha256:{hex}")
    };
    let layer = keep(b"0123456789");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "layers": [{ "digest": layer }] }).to_string();
    let digest = keep(manifest.as_bytes());
    let mut made = common::parts::product("up-1", &[("web", "serve")]);
    made.image.manifest = Some(digest.clone());
    w.builders.then(common::parts::Outcome::Good(made));
    assert!(w.push(app).await.0);
    let stranger = w.user("stranger@example.com").await;
    let get = async |method: Method, path: &str, token: &str, range: &'static str| {
        let mut request = reqwest::Client::new().request(method, format!("{}/v2/{path}", w.url));
        if !token.is_empty() {
            request = request.basic_auth("any", Some(token));
        }
        let response = request.header("range", range).send().await.unwrap();
        let header = |n: &str| response.headers().get(n).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let told =
            (response.status().as_u16(), header("docker-content-digest"), header("content-length"), header("content-type"));
        assert_eq!(header("docker-distribution-api-version"), "registry/2.0");
        (told.0, told.1, told.2, told.3, response.text().await.unwrap())
    };
    assert_eq!(get(Method::GET, "", "", "").await.0, 401);
    assert_eq!(get(Method::GET, "", &stranger, "").await.0, 200);
    assert_eq!(get(Method::GET, "demo/manifests/v1", &stranger, "").await.0, 404);
    for reference in ["v1", "latest", &digest] {
        let (status, named, _, media, body) = get(Method::GET, &format!("demo/manifests/{reference}"), &w.admin, "").await;
        assert_eq!((status, &named, media.as_str(), &body), (200, &digest, kind, &manifest), "{reference}");
    }
    assert!(get(Method::GET, "demo/tags/list", &w.admin, "").await.4.contains("\"v1\",\"latest\""));
    let path = format!("demo/blobs/{layer}");
    assert_eq!(get(Method::GET, &path, &w.admin, "").await.4, "0123456789");
    let (status, _, length, _, body) = get(Method::HEAD, &path, &w.admin, "").await;
    assert_eq!((status, length.as_str(), body.as_str()), (200, "10", ""));
    let (status, _, _, _, body) = get(Method::GET, &path, &w.admin, "bytes=4-6").await;
    assert_eq!((status, body.as_str()), (206, "456"));
    assert_eq!(get(Method::GET, &path, &w.admin, "bytes=10-").await.0, 416);
    for bad in ["demo/blobs/sha256:..%2f..%2f..%2fmaster.key", "demo/blobs/sha256:00", "demo/manifests/v9", "demo/manifests/nope"]
    {
        assert_eq!(get(Method::GET, bad, &w.admin, "").await.0, 404, "{bad}");
    }
    // A layer is no manifest.
    assert_eq!(get(Method::GET, &format!("demo/manifests/{layer}"), &w.admin, "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_with_a_password_and_out_again() {
    let w = World::new().await;
    w.post("/users", json!({ "email": "me@example.com", "password": "correct horse" })).await;
    let sign_in = async |password: &str| {
        let request = reqwest::Client::new().post(format!("{}/oauth/authorizations", w.url));
        let response = request.basic_auth("me@example.com", Some(password)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap())
    };
    assert_eq!(sign_in("wrong horse").await.0, 401);
    let (status, made) = sign_in("correct horse").await;
    assert_eq!((status, made["user"]["email"].as_str()), (201, Some("me@example.com")));
    let token = made["access_token"]["token"].as_str().unwrap();
    assert!(token.starts_with("flx_") && token.len() == 68, "{token}");
    assert_eq!(w.send(Method::GET, "/account", token, None).await.1["email"], "me@example.com");
    for entry in w.store.list("").await.unwrap().0 {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!text.contains(token) && !text.contains("correct horse"), "{}", entry.key);
    }
    for _ in 0..5 {
        assert_eq!(sign_in("wrong horse").await.0, 401);
    }
    assert_eq!(sign_in("correct horse").await.0, 429);
    let id = made["id"].as_str().unwrap();
    assert_eq!(w.send(Method::DELETE, &format!("/oauth/authorizations/{id}"), token, None).await.0.as_u16(), 200);
    assert_eq!(w.send(Method::GET, "/account", token, None).await.0.as_u16(), 401);
}

/// The event of each route that changes something.
const EVENTS: &[(&str, &str)] = &[
    ("POST /oauth/authorizations", "token.create"),
    ("DELETE /oauth/authorizations/{id}", "token.delete"),
    ("POST /account/keys", "key.create"),
    ("DELETE /account/keys/{key}", "key.delete"),
    ("POST /users", "user.create"),
    ("POST /apps", "app.create"),
    ("PATCH /apps/{app}", "app.update"),
    ("DELETE /apps/{app}", "app.destroy"),
    ("PUT /apps/{app}/lock", "app.lock"),
    ("DELETE /apps/{app}/lock", "app.unlock"),
    ("POST /apps/{app}/transfer", "app.transfer"),
    ("PATCH /apps/{app}/config-vars", "config.update"),
    ("PATCH /apps/{app}/formation", "formation.update"),
    ("PATCH /apps/{app}/formation/{type}", "formation.update"),
    ("PUT /apps/{app}/checks/{type}", "checks.update"),
    ("DELETE /apps/{app}/checks/{type}", "checks.update"),
    ("DELETE /apps/{app}/dynos", "ps.restart"),
    ("DELETE /apps/{app}/dynos/{dyno}", "ps.restart"),
    ("DELETE /apps/{app}/formations/{dyno}", "ps.restart"),
    ("POST /apps/{app}/dynos/{dyno}/actions/stop", "ps.stop"),
    ("POST /apps/{app}/dynos/{dyno}/actions/start", "ps.start"),
    ("POST /apps/{app}/actions/stop", "ps.stop"),
    ("POST /apps/{app}/actions/start", "ps.start"),
    ("POST /apps/{app}/releases", "release.rollback"),
    ("PUT /apps/{app}/canary", "canary.update"),
    ("DELETE /apps/{app}/canary", "canary.abort"),
    ("POST /apps/{app}/canary/actions/promote", "canary.promote"),
    ("POST /apps/{app}/releases/{release}/actions/retry", "release.retry"),
    ("POST /apps/{app}/builds", "build.create"),
    ("DELETE /apps/{app}/builds/{build}", "build.cancel"),
    ("PATCH /apps/{app}/builds/{build}", "build.cancel"),
    ("DELETE /apps/{app}/build-cache", "build-cache.delete"),
    ("PUT /apps/{app}/buildpack-installations", "buildpacks.update"),
    ("POST /apps/{app}/collaborators", "collaborator.create"),
    ("DELETE /apps/{app}/collaborators/{user}", "collaborator.delete"),
    ("POST /apps/{app}/domains", "domain.create"),
    ("DELETE /apps/{app}/domains/{domain}", "domain.delete"),
    ("POST /apps/{app}/sni-endpoints", "sni-endpoint.update"),
    ("PATCH /apps/{app}/sni-endpoints/{endpoint}", "sni-endpoint.update"),
    ("DELETE /apps/{app}/sni-endpoints/{endpoint}", "sni-endpoint.delete"),
    ("POST /apps/{app}/acm", "acm.enable"),
    ("DELETE /apps/{app}/acm", "acm.disable"),
    ("POST /apps/{app}/log-drains", "log-drain.create"),
    ("DELETE /apps/{app}/log-drains/{drain}", "log-drain.delete"),
    ("PATCH /apps/{app}/log-retention", "log-retention.update"),
    ("POST /apps/{app}/routes", "route.create"),
    ("PATCH /apps/{app}/routes/{route}", "route.update"),
    ("DELETE /apps/{app}/routes/{route}", "route.delete"),
    ("PATCH /apps/{app}/routing", "routing.update"),
];

/// Routes that take something and change nothing that lasts.
const WITHOUT_EVENT: &[(&str, &str)] = &[
    ("PATCH /apps/{app}/acm", "what comes of it is told: certificate.issue or certificate.fail"),
    ("POST /sources", "a promise that ends by itself"),
    ("PUT /sources/{id}/{secret}", "the build that uses it is the event"),
    ("POST /apps/{app}/log-sessions", "it reads"),
    ("POST /apps/{app}/dynos", "a one-off run tells of itself"),
    ("POST /apps/{app}/dynos/{dyno}/exec", "a session tells of itself"),
    ("POST /apps/{app}/dynos/{dyno}/attach", "it looks on"),
    ("POST /router/status", "observed, not desired"),
    ("POST /router/lines", "observed, not desired"),
    ("POST /router/signals", "observed, not desired"),
];

/// One good answer of each route, each held against the document (`World::send` does that for all that is asked).
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one line for each route")]
async fn every_route_answers_as_the_document_says() {
    use std::collections::BTreeSet;
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    assert!(w.push(app).await.0);
    w.until("v2 is up", async || w.versions_up("demo").await == [2]).await;
    w.user("you@example.com").await;
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let build = text(&w.get("/apps/demo/builds").await[0]["id"]);
    let output = text(&w.get(&format!("/apps/demo/builds/{build}")).await["output_stream_url"]);
    let slug = text(&w.get("/apps/demo/releases/1").await["slug"]["id"]);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me";
    let mut seen = BTreeSet::new();
    let happened = async |kind: &str| {
        let entries = w.store.list("events/").await.unwrap().0;
        let events = entries.iter().map(|e| serde_json::from_slice::<Value>(&e.value).unwrap());
        events.filter(|e| e["kind"] == kind && e["actor_name"] == "admin@example.com" && e["from"] == "127.0.0.1").count()
    };
    let mut ask = async |method: Method, path: &str, body: Value| {
        let route = common::schema::route_of(&method, path.strip_prefix(&w.url).unwrap_or(path)).unwrap();
        let kind = EVENTS.iter().find(|(r, _)| *r == format!("{} {}", route.method, route.path)).map(|(_, kind)| *kind);
        let before = happened(kind.unwrap_or_default()).await;
        let body = (method != Method::GET).then_some(body);
        let path = path.strip_prefix(&w.url).unwrap_or(path);
        let (status, answer) = w.send(method.clone(), path, &w.admin, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        if let Some(kind) = kind {
            assert!(happened(kind).await > before, "{method} {path} is no event {kind}");
        }
        seen.insert(format!("{} {}", route.method, route.path));
        answer
    };
    let none = || json!({});
    let (get, post, patch, put, delete) = (Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE);
    for path in [
        "/health",
        "/openapi.json",
        "/errors/not_found",
        "/flex/server",
        "/oauth/authorizations",
        "/account",
        "/users/~",
        "/account/keys",
        "/users",
        "/events",
        "/hosts",
        "/stacks",
        "/regions",
        "/apps",
        "/users/~/apps",
        "/apps/demo",
        "/v2/",
        "/apps/demo/config-vars",
        "/apps/demo/checks",
        "/apps/demo/history",
        "/apps/demo/rollout",
        "/apps/demo/releases/v1/output",
        "/dyno-sizes",
        "/apps/demo/formation",
        "/apps/demo/formation/web",
        "/apps/demo/dynos",
        "/apps/demo/dynos/web.1",
        "/apps/demo/dynos/web.1/why",
        "/apps/demo/releases",
        "/apps/demo/releases/v1",
        "/apps/demo/releases/1/config-vars",
        "/apps/demo/builds",
        "/apps/demo/collaborators",
        "/apps/demo/domains",
        "/apps/demo/domains/demo.localhost",
        "/apps/demo/events",
        "/apps/demo/metrics?seconds=5",
        "/metrics",
        "/routers",
        "/routes/trace?host=demo.localhost&path=/x",
        "/v2/demo/tags/list",
        &output,
        &format!("/apps/demo/builds/{build}"),
        &format!("/apps/demo/builds/{build}/output"),
        &format!("/apps/demo/slugs/{slug}"),
    ] {
        ask(get.clone(), path, Value::Null).await;
    }
    let made =
        ask(post.clone(), "/oauth/authorizations", json!({ "description": "x", "expires_in": 60, "scope": ["read"] })).await;
    for method in [&get, &delete] {
        ask(method.clone(), &format!("/oauth/authorizations/{}", text(&made["id"])), none()).await;
    }
    let made = ask(post.clone(), "/account/keys", json!({ "public_key": key })).await;
    for method in [&get, &delete] {
        ask(method.clone(), &format!("/account/keys/{}", text(&made["id"])), none()).await;
    }
    ask(post.clone(), "/users", json!({ "email": "new@example.com" })).await;
    let source = ask(post.clone(), "/sources", none()).await;
    ask(put.clone(), &text(&source["source_blob"]["put_url"]), json!("an archive")).await;
    ask(post.clone(), "/apps", json!({ "name": "other", "stack": "heroku-24", "region": "eu" })).await;
    ask(patch.clone(), "/apps/other", json!({ "maintenance": true })).await;
    ask(patch.clone(), "/apps/other", json!({ "build_stack": "flex-0" })).await;
    ask(delete.clone(), "/apps/other", none()).await;
    ask(patch.clone(), "/apps/demo/config-vars", json!({ "A": "1", "B": null })).await;
    ask(patch.clone(), "/apps/demo/formation", json!({ "updates": [{ "type": "web", "quantity": "+1" }] })).await;
    ask(patch.clone(), "/apps/demo/formation/web", json!({ "quantity": 1, "size": "256M" })).await;
    ask(put.clone(), "/apps/demo/checks/web", json!({ "path": "/up", "interval_seconds": 9 })).await;
    ask(delete.clone(), "/apps/demo/checks/web", none()).await;
    ask(post.clone(), "/apps/demo/actions/stop", none()).await;
    ask(post.clone(), "/apps/demo/actions/start", none()).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/actions/stop", none()).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/actions/start", none()).await;
    ask(put.clone(), "/apps/demo/lock", json!({ "reason": "audit" })).await;
    ask(delete.clone(), "/apps/demo/lock", none()).await;
    ask(post.clone(), "/apps/demo/dynos", json!({ "command": "say hello" })).await;
    ask(post.clone(), "/apps/demo/dynos", json!({ "command": "cat", "attach": true })).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/exec", json!({ "argv": ["ls"] })).await;
    ask(post.clone(), "/apps/demo/dynos/web.1/attach", none()).await;
    ask(get.clone(), "/apps/demo/runs", Value::Null).await;
    for path in ["/apps/demo/dynos", "/apps/demo/dynos/web.1", "/apps/demo/formations/web", "/apps/demo/build-cache"] {
        ask(delete.clone(), path, none()).await;
    }
    ask(post.clone(), "/apps/demo/releases", json!({ "release": "v1" })).await;
    ask(put.clone(), "/apps/demo/buildpack-installations", json!({ "updates": [{ "buildpack": "heroku/python" }] })).await;
    ask(get.clone(), "/apps/demo/buildpack-installations", Value::Null).await;
    ask(post.clone(), "/apps/demo/collaborators", json!({ "user": "you@example.com" })).await;
    ask(delete.clone(), "/apps/demo/collaborators/you@example.com", none()).await;
    ask(post.clone(), "/apps/demo/domains", json!({ "hostname": "www.example.com" })).await;
    let made = rcgen::generate_simple_self_signed(vec!["www.example.com".to_owned()]).unwrap();
    let body = json!({ "certificate_chain": made.cert.pem(), "private_key": made.signing_key.serialize_pem() });
    let name = text(&ask(post.clone(), "/apps/demo/sni-endpoints", body.clone()).await["name"]);
    ask(get.clone(), "/apps/demo/sni-endpoints", Value::Null).await;
    ask(patch.clone(), &format!("/apps/demo/sni-endpoints/{name}"), body).await;
    ask(get.clone(), &format!("/apps/demo/sni-endpoints/{name}"), Value::Null).await;
    ask(delete.clone(), &format!("/apps/demo/sni-endpoints/{name}"), none()).await;
    ask(post.clone(), "/apps/demo/acm", json!({})).await;
    ask(patch.clone(), "/apps/demo/acm", json!({ "acm_refresh": true })).await;
    ask(delete.clone(), "/apps/demo/acm", none()).await;
    ask(delete.clone(), "/apps/demo/domains/www.example.com", none()).await;
    let route = json!({ "kind": "http", "host": "demo.localhost", "path": "/api", "policy": { "sticky": true } });
    let route = text(&ask(post.clone(), "/apps/demo/routes", route).await["id"]);
    ask(get.clone(), "/apps/demo/routes", Value::Null).await;
    ask(get.clone(), &format!("/apps/demo/routes/{route}"), Value::Null).await;
    ask(patch.clone(), &format!("/apps/demo/routes/{route}"), json!({ "policy": { "sticky": null, "queue": 9 } })).await;
    ask(delete.clone(), &format!("/apps/demo/routes/{route}"), none()).await;
    let url = json!({ "url": "syslog://127.0.0.1:9" });
    let drain = text(&ask(post.clone(), "/apps/demo/log-drains", url).await["id"]);
    ask(get.clone(), "/apps/demo/log-drains", Value::Null).await;
    ask(get.clone(), &format!("/apps/demo/log-drains/{drain}"), Value::Null).await;
    ask(delete.clone(), &format!("/apps/demo/log-drains/{drain}"), none()).await;
    ask(get.clone(), "/apps/demo/log-retention", Value::Null).await;
    ask(patch.clone(), "/apps/demo/log-retention", json!({ "max_age_seconds": 86400 })).await;
    ask(patch.clone(), "/apps/demo/routing", json!({ "http": { "https_redirect": true }, "pages": { "error": "<p>" } })).await;
    ask(get.clone(), "/apps/demo/routing", Value::Null).await;
    let session = ask(post.clone(), "/apps/demo/log-sessions", json!({ "lines": 5 })).await;
    ask(get.clone(), &text(&session["logplex_url"]), Value::Null).await;
    for method in [&delete, &patch] {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        w.builders.then(common::parts::Outcome::Held(gate, common::parts::product("up-x", &[("web", "serve")])));
        let body = json!({ "source_blob": { "url": source["source_blob"]["get_url"], "version": "x" } });
        let held = text(&ask(post.clone(), "/apps/demo/builds", body).await["id"]);
        ask(method.clone(), &format!("/apps/demo/builds/{held}"), none()).await;
        w.until("it is over", async || w.get(&format!("/apps/demo/builds/{held}")).await["status"] == "failed").await;
    }
    ask(post.clone(), "/apps/demo/transfer", json!({ "recipient": "you@example.com" })).await;
    // Attaching, release phases, failed releases and the images of a registry have tests of their own.
    let elsewhere = [
        "POST /apps/{app}/releases/{release}/actions/retry",
        "GET /release-output/{app_id}/{release}/{secret}",
        "GET /runs/{secret}",
        "GET /apps/{app}/dynos/{dyno}/ports/{port}",
        "GET /v2/{app}/manifests/{reference}",
        "GET /v2/{app}/blobs/{digest}",
        "GET /router/table",
        "GET /router/certificates",
        "POST /router/status",
        "POST /router/lines",
        "POST /router/signals",
        "GET /apps/{app}/canary",
        "PUT /apps/{app}/canary",
        "DELETE /apps/{app}/canary",
        "POST /apps/{app}/canary/actions/promote",
    ];
    let every = flex_controller::http::table::all().iter().map(|r| format!("{} {}", r.method, r.path));
    let missed: Vec<_> = every.filter(|r| !seen.contains(r) && !elsewhere.contains(&r.as_str())).collect();
    assert!(missed.is_empty(), "never asked: {missed:?}");
    // A new route that changes something has to say here which event tells of it, or why none does.
    let changing = flex_controller::http::table::all().iter().filter(|r| r.method != Method::GET);
    let silent: Vec<_> = changing
        .map(|r| format!("{} {}", r.method, r.path))
        .filter(|r| !EVENTS.iter().any(|(e, _)| e == r) && !WITHOUT_EVENT.iter().any(|(e, _)| e == r))
        .collect();
    assert!(silent.is_empty(), "no event is known of: {silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_reach_the_table_and_belong_to_somebody() {
    let w = World::new().await;
    let app = w.create("demo").await;
    let product = common::parts::product("up-x", &[("web", "serve"), ("db", "db")]);
    w.builders.then(common::parts::Outcome::Good(product));
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
    let mut product = common::parts::product("up-x", &[("web", "serve")]);
    let file = r#"{"routes": {"*": {"timeout_seconds": 7, "idle_seconds": 8}, "/api": {"max_body_bytes": 9}}}"#;
    product.app_json = flex_model::app_json::parse(file).unwrap();
    w.builders.then(common::parts::Outcome::Good(product));
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
    assert_eq!(said["pages"], json!([{ "name": "H12", "bytes": 11 }]));
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
async fn lists_come_in_parts_and_are_not_sent_twice() {
    let w = World::new().await;
    w.create("demo").await;
    for n in 1..=5 {
        w.patch("/apps/demo/config-vars", json!({ "N": n.to_string() })).await;
    }
    let ask = async |range: &str, tag: &str| {
        let request = reqwest::Client::new().get(format!("{}/apps/demo/releases", w.url)).bearer_auth(&w.admin);
        let response = request.header("Range", range).header("If-None-Match", tag).send().await.unwrap();
        let header = |n: &str| response.headers().get(n).map(|v| v.to_str().unwrap().to_owned());
        let told = (response.status().as_u16(), header("next-range"), header("content-range"), header("etag"));
        assert!(header("request-id").is_some() && header("ratelimit-remaining").is_some());
        let text = response.text().await.unwrap();
        let versions: Vec<u64> = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|all| Some(all.as_array()?.iter().map(|r| r["version"].as_u64().unwrap()).collect()))
            .unwrap_or_default();
        (told, versions, text)
    };
    let ((status, next, content, tag), versions, _) = ask("version ..; order=desc,max=2", "\"x\"").await;
    assert_eq!((status, versions, content.as_deref()), (206, vec![5, 4], Some("version 5..4")));
    let ((status, next, _, _), versions, _) = ask(&next.unwrap(), "").await;
    assert_eq!((status, versions), (206, vec![3, 2]));
    let ((status, next, _, _), versions, _) = ask(&next.unwrap(), "").await;
    assert_eq!((status, versions, next), (200, vec![1], None));
    let ((status, ..), _, text) = ask("version ..; order=desc,max=2", &tag.unwrap()).await;
    assert_eq!((status, text.as_str()), (304, ""));
    let ((status, ..), _, text) = ask("colour ..", "").await;
    assert_eq!(status, 416);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["id"], "requested_range_not_satisfiable");
    let page = reqwest::get(error["url"].as_str().unwrap()).await.unwrap().text().await.unwrap();
    assert!(page.starts_with("# `requested_range_not_satisfiable` (416)"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_do_no_more_than_they_may_and_no_longer() {
    let w = World::new().await;
    w.create("demo").await;
    let make = async |token: &str, body: Value| w.send(Method::POST, "/oauth/authorizations", token, Some(body)).await;
    let text = |made: &Value| made["access_token"]["token"].as_str().unwrap().to_owned();
    let (_, made) = make(&w.admin, json!({ "scope": ["read", "identity"], "expires_in": 3600 })).await;
    assert_eq!(made["scope"], json!(["identity", "read"]));
    assert!((3500..=3600).contains(&made["access_token"]["expires_in"].as_u64().unwrap()), "{made}");
    let read = text(&made);
    for (method, path, expected) in [
        (Method::GET, "/apps/demo", 200),
        (Method::GET, "/account", 200),
        (Method::GET, "/apps/demo/config-vars", 403),
        (Method::PATCH, "/apps/demo/config-vars", 403),
        (Method::POST, "/apps", 403),
        (Method::GET, "/account/keys", 403),
        (Method::GET, "/users", 403),
    ] {
        let body = (method != Method::GET).then(|| json!({}));
        let (status, answer) = w.send(method.clone(), path, &read, body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path} {answer}");
    }
    // It cannot make itself a better one.
    assert_eq!(make(&read, json!({ "scope": ["global"] })).await.0.as_u16(), 403);
    for bad in [json!({ "scope": ["all"] }), json!({ "expires_in": 0 }), json!({ "expires_in": u64::MAX })] {
        assert_eq!(make(&w.admin, bad.clone()).await.0.as_u16(), 422, "{bad}");
    }
    // Nor one that outlives it.
    let short = text(&make(&w.admin, json!({ "expires_in": 1 })).await.1);
    let (status, made) = make(&short, json!({})).await;
    if status.as_u16() == 201 {
        assert!(made["access_token"]["expires_in"].as_u64().unwrap() <= 1, "{made}");
        let late = text(&made);
        w.until("it has expired", async || w.send(Method::GET, "/account", &late, None).await.0.as_u16() == 401).await;
    }
    w.until("it has expired", async || w.send(Method::GET, "/account", &short, None).await.0.as_u16() == 401).await;
    assert_eq!(w.get("/account").await["email"], "admin@example.com");
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_stays_so_and_says_why() {
    let w = World::new().await;
    let app = w.create("demo").await;
    w.builders.then(common::parts::Outcome::Good(common::parts::product("up-x", &[("web", "serve"), ("worker", "work")])));
    assert!(w.push(app).await.0);
    w.patch(
        "/apps/demo/formation",
        json!({ "updates": [{ "type": "web", "quantity": 2 }, { "type": "worker", "quantity": 1 }] }),
    )
    .await;
    let settled = async || w.get("/apps/demo/rollout?wait=1&ready=9").await["settled"] == true;
    w.until("all are up", settled).await;
    let names = async || -> Vec<String> {
        let dynos = w.get("/apps/demo/dynos").await;
        dynos
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| d["message"] != "draining")
            .map(|d| d["name"].as_str().unwrap().to_owned())
            .collect()
    };
    w.post("/apps/demo/dynos/web.2/actions/stop", json!({})).await;
    w.until("web.2 is gone", async || names().await == ["web.1", "worker.1"]).await;
    let why = w.get("/apps/demo/dynos/web.2/why").await;
    assert!(why["lines"][0].as_str().unwrap().contains("flex ps:start web.2"), "{why}");
    let why = w.get("/apps/demo/dynos/web.3/why").await;
    assert!(why["lines"][0].as_str().unwrap().contains("flex ps:scale web=3"), "{why}");
    // A release does not start it.
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    w.until("v2 is up", async || settled().await && w.versions_up("demo").await == [2, 2]).await;
    assert_eq!(names().await, ["web.1", "worker.1"]);
    w.post("/apps/demo/actions/stop", json!({})).await;
    w.until("all are gone", async || names().await.is_empty()).await;
    assert_eq!(w.get("/apps/demo/formation/web").await["stopped"], true);
    w.post("/apps/demo/actions/start", json!({})).await;
    w.until("all are back", async || settled().await && names().await.len() == 3).await;
    let (status, _) = w.send(Method::POST, "/apps/demo/dynos/web.9/actions/stop", &w.admin, Some(json!({}))).await;
    assert_eq!(status.as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_without_a_restart_reaches_what_is_started_later() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    w.until("v1 is up", async || w.versions_up("demo").await == [1]).await;
    let settled = async || w.get("/apps/demo/rollout").await["settled"] == true;
    for n in 2..4 {
        w.patch("/apps/demo/config-vars?restart=false", json!({ "A": n.to_string() })).await;
        assert_eq!(w.get(&format!("/apps/demo/releases/{n}")).await["status"], "succeeded");
    }
    w.until("nothing is to be done", settled).await;
    assert_eq!(w.versions_up("demo").await, [1]);
    w.ok(Method::DELETE, "/apps/demo/dynos/web.1", None).await;
    w.until("the newest config runs", async || w.versions_up("demo").await == [3]).await;
    w.patch("/apps/demo/config-vars", json!({ "A": "5" })).await;
    w.until("an ordinary change restarts", async || w.versions_up("demo").await == [4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_locks_owners_and_checks() {
    let w = World::new().await;
    let app = w.create("demo").await;
    assert!(w.push(app).await.0);
    let size = async |body: Value| w.send(Method::PATCH, "/apps/demo/formation/web", &w.admin, Some(body)).await;
    assert_eq!(size(json!({ "size": "Small" })).await.1["size"], "small");
    let now = w.get("/apps/demo/formation/web").await;
    assert_eq!((now["cpu_millis"].as_u64(), now["cpu_shares"].as_u64()), (Some(500), Some(256)), "{now}");
    w.until("it is resized", async || w.get("/apps/demo/dynos").await[0]["size"] == "small").await;
    let (status, answer) = size(json!({ "size": "huge" })).await;
    assert!(status.as_u16() == 422 && answer["message"].as_str().unwrap().contains("There are: small"), "{answer}");
    assert_eq!(size(json!({ "size": "Standard-1X" })).await.1["size"], "small", "Heroku's names change nothing");
    let limit = json!({ "updates": [{ "type": "web", "size": "256M", "cpu_millis": 0, "cpu_shares": 1024 }] });
    assert_eq!(w.patch("/apps/demo/formation", limit).await[0]["cpu_millis"], Value::Null);
    // A lock keeps code out, and nothing else.
    w.ok(Method::PUT, "/apps/demo/lock", Some(json!({ "reason": "audit" }))).await;
    let (good, said) = w.push(app).await;
    assert!(!good && said.contains("locked by admin@example.com (audit)") && said.contains("flex apps:unlock"), "{said}");
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    let (status, _) = w.send(Method::POST, "/apps/demo/releases", &w.admin, Some(json!({ "release": "v1" }))).await;
    assert_eq!(status.as_u16(), 403);
    w.ok(Method::DELETE, "/apps/demo/lock", None).await;
    assert!(w.push(app).await.0);
    // A check is a release, and a deploy keeps it.
    let check = json!({ "path": "/health", "start_seconds": 90, "failures": 2 });
    let set = w.ok(Method::PUT, "/apps/demo/checks/web", Some(check)).await;
    assert_eq!((&set["kind"], &set["path"], &set["source"]), (&json!("http"), &json!("/health"), &json!("set")));
    assert!(w.push(app).await.0);
    assert_eq!(w.get("/apps/demo/checks").await[0]["start_seconds"], 90);
    let bad = async |path: &str, body: Value| w.send(Method::PUT, path, &w.admin, Some(body)).await.0.as_u16();
    assert_eq!(bad("/apps/demo/checks/web", json!({ "path": "health" })).await, 422);
    assert_eq!(bad("/apps/demo/checks/web", json!({ "interval_seconds": 0 })).await, 422);
    assert_eq!(bad("/apps/demo/checks/nope", json!({})).await, 404);
    w.ok(Method::DELETE, "/apps/demo/checks/web", None).await;
    assert_eq!(w.get("/apps/demo/checks").await[0]["source"], "default");
    // Who gives an app away stays a collaborator.
    let (me, you) = (w.user("me@example.com").await, w.user("you@example.com").await);
    assert_eq!(w.send(Method::POST, "/apps", &me, Some(json!({ "name": "mine" }))).await.0.as_u16(), 201);
    let give = async |token: &str, to: &str| {
        w.send(Method::POST, "/apps/mine/transfer", token, Some(json!({ "recipient": to }))).await.0.as_u16()
    };
    assert_eq!(give(&you, "you@example.com").await, 404);
    assert_eq!(give(&me, "nobody@example.com").await, 422);
    assert_eq!(give(&me, "you@example.com").await, 200);
    assert_eq!(give(&me, "me@example.com").await, 403);
    assert_eq!(w.send(Method::GET, "/apps/mine", &me, None).await.1["owner"]["email"], "you@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_serves_beside_what_runs() {
    use common::parts::{Outcome, product};
    let w = World::new().await;
    let app = w.create("demo").await;
    let refused = async |method: Method, path: &str, body: Value| w.send(method, path, &w.admin, Some(body)).await.0.as_u16();
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    // Nothing to stand beside.
    assert_eq!(refused(Method::PUT, "/apps/demo/canary", json!({ "weight": 10 })).await, 422);
    assert!(w.push(app).await.0);
    w.patch("/apps/demo/formation/web", json!({ "quantity": 4 })).await;
    w.until("four serve", async || w.routed(app).len() == 4).await;
    for bad in [json!({ "weight": 0 }), json!({ "weight": 100 }), json!({ "weight": 5, "release": "v1" })] {
        assert_eq!(refused(Method::PUT, "/apps/demo/canary", bad).await, 422);
    }
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 404);
    // The next push is one: half of four is two, and what runs goes on.
    let waiting = w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 50 }))).await;
    assert_eq!((&waiting["state"], &waiting["version"], &waiting["stable"]), (&json!("waiting"), &Value::Null, &json!(1)));
    let (good, said) = w.push(app).await;
    assert!(good, "{said}");
    let canary = async || w.get("/apps/demo/canary").await;
    w.until("both instances of it serve", async || canary().await["instances"] == 2).await;
    assert_eq!((&canary().await["state"], &canary().await["version"]), (&json!("serving"), &json!(2)));
    let table = || w.controller.routes().borrow().app(app).cloned().unwrap();
    assert_eq!((table().backends.len(), table().canary.map(|c| (c.version, c.weight))), (4, Some((2, 50))));
    let mut versions = w.versions_up("demo").await;
    versions.sort_unstable();
    assert_eq!(versions, [1, 1, 1, 1, 2, 2]);
    assert!(said.contains("Released v2 as a canary: 50 % of the requests"), "{said}");
    let rolled_out = async |version: u64| {
        let all_up = w.versions_up("demo").await.iter().filter(|v| **v == version).count() == 4;
        all_up && w.get(&format!("/apps/demo/releases/{version}")).await["status"] == "succeeded"
    };
    // A change of config and another share leave it where it is.
    w.patch("/apps/demo/config-vars", json!({ "A": "1" })).await;
    w.until("what runs has the config", async || rolled_out(3).await).await;
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "release": "v2", "weight": 25 }))).await;
    w.until("one is enough", async || w.versions_up("demo").await.iter().filter(|v| **v == 2).count() == 1).await;
    let way = w.get("/routes/trace?host=demo.localhost").await;
    let shares: Vec<_> = way["targets"].as_array().unwrap().iter().map(|t| (t["release"].clone(), t["share"].clone())).collect();
    assert_eq!(shares, [(Value::Null, json!(0.75)), (json!(2), json!(0.25))]);
    // It has what was stopped as little as anything else has; nothing of it is left running.
    w.post("/apps/demo/actions/stop", json!({})).await;
    w.until("nothing runs", async || w.versions_up("demo").await.is_empty()).await;
    w.post("/apps/demo/actions/start", json!({})).await;
    w.until("all run", async || w.versions_up("demo").await.len() == 5).await;
    // A lock keeps its code from everyone, and lets it be ended only.
    w.ok(Method::PUT, "/apps/demo/lock", Some(json!({ "reason": "audit" }))).await;
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 403);
    assert_eq!(refused(Method::PUT, "/apps/demo/canary", json!({ "release": "v2", "weight": 99 })).await, 403);
    w.ok(Method::DELETE, "/apps/demo/lock", None).await;
    // Further code takes its place, at its share; what runs stays. What was never more than a canary is nothing to go back to.
    assert!(w.push(app).await.0);
    w.until("the next one serves", async || canary().await["state"] == "serving" && canary().await["version"] == 4).await;
    let second = w.get("/apps/demo/releases/2").await;
    assert_eq!((&second["status"], &second["eligible_for_rollback"]), (&json!("failed"), &json!(false)), "{second}");
    assert_eq!(w.get("/apps/demo/releases/3").await["current"], true);
    // Promoted, it is what runs: itself, since nothing came after it.
    let promoted = w.post("/apps/demo/canary/actions/promote", json!({})).await;
    assert_eq!((&promoted["version"], &promoted["current"]), (&json!(4), &json!(true)));
    w.until("it serves alone", async || w.versions_up("demo").await == [4, 4, 4, 4]).await;
    assert!(table().canary.is_none() && table().backends.len() == 4);
    // After a change of config it is promoted with the config of today.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 25 }))).await;
    assert_eq!(refused(Method::POST, "/apps/demo/canary/actions/promote", json!({})).await, 409);
    assert!(w.push(app).await.0);
    w.patch("/apps/demo/config-vars", json!({ "A": "2" })).await;
    w.until("what runs has the config", async || rolled_out(6).await).await;
    let promoted = w.post("/apps/demo/canary/actions/promote", json!({})).await;
    assert_eq!((&promoted["version"], &promoted["description"]), (&json!(7), &json!("Promote canary v5")));
    assert_eq!(w.get("/apps/demo/releases/7/config-vars").await["A"], "2");
    w.until("it serves alone", async || w.versions_up("demo").await == [7, 7, 7, 7]).await;
    // Going back ends one that stands beside what runs.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 25 }))).await;
    assert!(w.push(app).await.0);
    w.post("/apps/demo/releases", json!({ "release": "v4" })).await;
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    assert_eq!(w.get("/apps/demo/releases/8").await["status"], "failed");
    w.until("it serves alone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    // One that crashes is given up: the push says so, and nothing else changes.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "weight": 10 }))).await;
    w.builders.then(Outcome::Good(product("crash-1", &[("web", "serve")])));
    assert!(!w.push(app).await.0);
    assert_eq!(refused(Method::GET, "/apps/demo/canary", json!({})).await, 404);
    w.until("it is gone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    // An earlier release can be one too, and be given up, and be gone back to.
    w.ok(Method::PUT, "/apps/demo/canary", Some(json!({ "release": "v1", "weight": 10 }))).await;
    w.until("it serves", async || canary().await["state"] == "serving").await;
    w.ok(Method::DELETE, "/apps/demo/canary", None).await;
    w.until("it is gone", async || w.versions_up("demo").await == [9, 9, 9, 9]).await;
    assert_eq!(w.get("/apps/demo/releases/1").await["eligible_for_rollback"], true);
    let events = w.get("/apps/demo/events").await.to_string();
    for kind in ["canary.update", "canary.promote", "canary.abort"] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
}
