//! The images of apps, read by the OCI distribution protocol (version 2): `docker pull HOST/APP:v5`, `skopeo copy`.
//!
//! An app's images lie in an OCI image layout of their own, written by the builder; a blob's name is its digest, so what
//! is served is what was asked for. Tags are releases (`v5`, `latest`), looked up in the store.
//!
//! Must not: write. Pushing is the builder's work.

use super::access::refused_by_registry;
use super::answer::{Answer, Failure, Json, Octets, Shown};

use crate::core::{Controller, not_found};
use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, ErrorId, ImageTags, Nothing};
use flex_model::{App, AppId, Release};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

type TheApp = Extension<Arc<App>>;

/// The largest manifest that is read whole, as the protocol advises.
const MAX_MANIFEST: u64 = 4 << 20;
const DIGEST: &str = "docker-content-digest";

#[derive(Deserialize)]
struct MediaType {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
}

impl Controller {
    /// Where a blob lies, if its digest is well formed: nothing else can be named.
    fn blob_path(&self, app: AppId, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        let good = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| self.deps.data_dir.join("images").join(app.to_string()).join("blobs/sha256").join(hex))
    }

    /// The digest that a tag stands for: `v5` or `latest` (what serves).
    async fn digest_of_tag(&self, app: &App, tag: &str) -> Result<Option<String>, ApiError> {
        let which = match (tag, app.good) {
            ("latest", Some(v)) => v.to_string(),
            ("latest", None) => return Ok(None),
            (tag, _) => tag.to_owned(),
        };
        let digest = |r: &Release| r.image.as_ref().and_then(|i| i.manifest.clone());
        match self.find_release(app.id, &which).await {
            Ok(release) => Ok(digest(&release)),
            Err(e) if e.id == ErrorId::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

pub async fn version() -> Answer<Shown<Nothing>> {
    Ok(Shown(Nothing {}))
}

pub async fn tags(State(c): State<Controller>, Extension(app): TheApp) -> Answer<Shown<ImageTags>> {
    let releases = c.releases_of(app.id).await?;
    let has_image = |r: &&Arc<Release>| r.image.as_ref().is_some_and(|i| i.manifest.is_some());
    let mut tags: Vec<String> = releases.iter().filter(has_image).map(|r| format!("v{}", r.version)).collect();
    if c.digest_of_tag(&app, "latest").await?.is_some() {
        tags.push("latest".into());
    }
    Ok(Shown(ImageTags { name: app.name.clone(), tags }))
}

pub async fn manifest(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, reference)): Path<(String, String)>,
) -> Answer<Json> {
    let unknown = || Ok(Json(refused_by_registry(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "There is no such manifest.")));
    let digest = match reference.contains(':') {
        true => Some(reference),
        false => c.digest_of_tag(&app, &reference).await?,
    };
    let Some((digest, path)) = digest.and_then(|d| Some((d.clone(), c.blob_path(app.id, &d)?))) else { return unknown() };
    let small = tokio::fs::metadata(&path).await.is_ok_and(|m| m.is_file() && m.len() <= MAX_MANIFEST);
    let Ok(bytes) = tokio::fs::read(&path).await else { return unknown() };
    // A layer is a blob as well; only what says that it is a manifest is one.
    let kind = serde_json::from_slice::<MediaType>(if small { &bytes } else { b"" }).ok().and_then(|m| m.media_type);
    let Some(kind) = kind.and_then(|k| HeaderValue::from_str(&k).ok()) else { return unknown() };
    let headers = [(header::CONTENT_TYPE, kind), (header::HeaderName::from_static(DIGEST), value(&digest)?)];
    Ok(Json((headers, bytes).into_response()))
}

pub async fn blob(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, digest)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Octets> {
    let unknown = || Ok(Octets(refused_by_registry(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "There is no such blob.")));
    let Some(path) = c.blob_path(app.id, &digest) else { return unknown() };
    let Ok(mut file) = tokio::fs::File::open(&path).await else { return unknown() };
    let size = file.metadata().await.map_err(|e| unreadable(&e))?.len();
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).and_then(|r| bytes_of(r, size));
    let (status, start, length) = match range {
        None => (StatusCode::OK, 0, size),
        Some(Some((first, last))) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Some(None) => {
            let mut response = refused_by_registry(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "The blob is smaller.");
            response.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{size}"))?);
            return Ok(Octets(response));
        }
    };
    file.seek(std::io::SeekFrom::Start(start)).await.map_err(|e| unreadable(&e))?;
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(file.take(length), 64 << 10)));
    *response.status_mut() = status;
    let set = response.headers_mut();
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    set.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    set.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set.insert(DIGEST, value(&digest)?);
    if status == StatusCode::PARTIAL_CONTENT {
        set.insert(header::CONTENT_RANGE, value(&format!("bytes {start}-{}/{size}", start + length - 1))?);
    }
    Ok(Octets(response))
}

/// First and last byte of `bytes=…`. `None`: no range that is understood, so it is not heeded; `Some(None)`: it lies outside.
fn bytes_of(text: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first.trim(), last.trim()) {
        ("", n) => (size.saturating_sub(n.parse().ok()?), u64::MAX),
        (n, "") => (n.parse().ok()?, u64::MAX),
        (n, m) => (n.parse().ok()?, m.parse().ok()?),
    };
    if first > last {
        return None;
    }
    Some((first < size).then(|| (first, last.min(size - 1))))
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|_| Failure(not_found("There is nothing of that name.")))
}

fn unreadable(e: &std::io::Error) -> Failure {
    Failure(ApiError::new(ErrorId::Unavailable, format!("The image cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn ranges_of_bytes() {
        assert_eq!(bytes_of("bytes=0-3", 10), Some(Some((0, 3))));
        assert_eq!(bytes_of("bytes=4-", 10), Some(Some((4, 9))));
        assert_eq!(bytes_of("bytes=-3", 10), Some(Some((7, 9))));
        assert_eq!(bytes_of("bytes=-30", 10), Some(Some((0, 9))));
        assert_eq!(bytes_of("bytes=5-99", 10), Some(Some((5, 9))));
        assert_eq!(bytes_of("bytes=10-", 10), Some(None));
        for odd in ["bytes=3-1", "bytes=a-b", "lines=1-2", "bytes=1", "version ..; max=1"] {
            assert_eq!(bytes_of(odd, 10), None, "{odd}");
        }
    }
}
