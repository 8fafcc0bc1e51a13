//! Certificates: checked, kept secret, told of before they end.

use crate::{common::World, kinds};
use reqwest::Method;
use serde_json::{Value, json};

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

/// An hour ahead of everybody: whoever else was alive a moment ago is long gone.
struct Ahead;

impl flex_controller::ports::Clock for Ahead {
    fn now(&self) -> flex_model::Timestamp {
        flex_controller::ports::SystemClock.now().plus(std::time::Duration::from_secs(3600))
    }
}

/// An authority that takes connections and says nothing, until it is let go: then they end.
async fn silent_authority()
-> (flex_controller::AcmeSettings, tokio::sync::mpsc::UnboundedReceiver<()>, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = format!("https://{}/directory", listener.local_addr().unwrap());
    let (told, met) = tokio::sync::mpsc::unbounded_channel();
    let (go, gone) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, mut gone) = (told.clone(), gone.clone());
            tokio::spawn(async move {
                let _ = told.send(());
                let _ = gone.wait_for(|gone| *gone).await;
                drop(stream);
            });
        }
    });
    (flex_controller::AcmeSettings { directory, self_check: false, ..crate::common::acme() }, met, go)
}

/// Two control planes on one store: who was the issuer, and does not know yet that another is, commits nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_was_replaced_commits_nothing() {
    let (first, mut first_met, first_go) = silent_authority().await;
    let (second, mut second_met, second_go) = silent_authority().await;
    let (first_url, second_url) = (first.directory.clone(), second.directory.clone());
    let w = World::with_acme(first).await;
    w.create("demo").await;
    w.post("/apps/demo/domains", json!({ "hostname": "a.example.com" })).await;
    w.post("/apps/demo/acm", json!({})).await;
    tokio::time::timeout(crate::common::PATIENCE, first_met.recv()).await.unwrap();
    let other = w.beside(second, std::sync::Arc::new(Ahead)).await;
    tokio::time::timeout(crate::common::PATIENCE, second_met.recv()).await.unwrap();
    // Now the second is the issuer. The first hears that its attempt failed, and would note that.
    first_go.send(true).unwrap();
    second_go.send(true).unwrap();
    let fails = async || {
        let events = w.get("/apps/demo/events").await;
        let all = events.as_array().unwrap().iter().filter(|e| e.to_string().contains("certificate.fail"));
        all.map(ToString::to_string).collect::<Vec<_>>()
    };
    w.until("the second notes its failure", async || fails().await.iter().any(|e| e.contains(&second_url))).await;
    let all = fails().await;
    assert!(all.len() == 1 && !all[0].contains(&first_url), "{all:?}");
    other.cancel();
}
