//! Sources that become builds, and images as a registry serves them.

use crate::common::World;
use reqwest::Method;
use serde_json::json;

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
    let mut made = crate::common::parts::product("up-1", &[("web", "serve")]);
    made.image.manifest = Some(digest.clone());
    w.builders.then(crate::common::parts::Outcome::Good(made));
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
