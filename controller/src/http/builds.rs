//! Builds, their sources and their output.

use super::access::Caller;
use super::{Answer, Body, Failure, Range, listed, ok, with};
use crate::core::{Controller, invalid, not_found};
use crate::db::{SourceRecord, Tx, keys};
use crate::deploy::DeployRequest;
use crate::ports::Source;
use crate::users::token_hash;
use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, ErrorId};
use flex_model::{App, AppId, Build, BuildId, Slug, SlugId, SourceId};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type TheApp = Extension<Arc<App>>;

/// The largest source archive that may be uploaded.
const MAX_SOURCE: u64 = 1 << 30;
/// How often a running build's output is looked at for more.
const FOLLOW: Duration = Duration::from_millis(100);

impl Controller {
    /// Where an uploaded source lies.
    pub fn source_path(&self, id: SourceId) -> PathBuf {
        self.deps.data_dir.join("sources").join(format!("{id}.tar"))
    }

    /// The path of the source that a `get_url` names.
    async fn source_of_url(&self, url: &str) -> Result<PathBuf, ApiError> {
        let unknown = || invalid("source_blob.url must be a get_url that POST /sources gave.");
        let rest = url.strip_prefix(&self.deps.settings.api_url).and_then(|r| r.strip_prefix("/sources/")).ok_or_else(unknown)?;
        let (id, secret) = rest.split_once('/').ok_or_else(unknown)?;
        let record = self.source_record(id, secret).await?;
        let path = self.source_path(record.id);
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            Ok(path)
        } else {
            Err(invalid("Nothing was uploaded to that source's put_url yet."))
        }
    }

    async fn source_record(&self, id: &str, secret: &str) -> Result<Arc<SourceRecord>, ApiError> {
        let missing = || not_found("Couldn't find that source.");
        let id: SourceId = id.parse().map_err(|_| missing())?;
        let found = self.db.get::<SourceRecord>(&keys::source(id)).await?.ok_or_else(missing)?;
        if found.value.secret_sha256 == token_hash(secret) { Ok(found.value) } else { Err(missing()) }
    }

    async fn find_build(&self, app: &App, id: &str) -> Result<Arc<Build>, ApiError> {
        let missing = || not_found("Couldn't find that build.");
        let id: BuildId = id.parse().map_err(|_| missing())?;
        Ok(self.db.get::<Build>(&keys::build(app.id, id)).await?.ok_or_else(missing)?.value)
    }
}

pub async fn source(State(c): State<Controller>, Extension(caller): Extension<Caller>) -> Answer {
    let secret = hex::encode(crate::crypt::random::<32>());
    let record = SourceRecord { id: c.id(), user: caller.user.id, secret_sha256: token_hash(&secret), created_at: c.now() };
    c.db.commit(Tx::new().put(keys::source(record.id), &record)).await.map_err(crate::core_error)?;
    let url = format!("{}/sources/{}/{secret}", c.deps.settings.api_url, record.id);
    with(StatusCode::CREATED, &json!({ "source_blob": { "get_url": url, "put_url": url } }))
}

pub async fn upload(State(c): State<Controller>, Path((id, secret)): Path<(String, String)>, body: HttpBody) -> Answer {
    let record = c.source_record(&id, &secret).await?;
    let path = c.source_path(record.id);
    let part = path.with_extension("part");
    let failed = |e: std::io::Error| ApiError::new(ErrorId::Unavailable, format!("The source cannot be stored: {e}"));
    if let Some(dir) = path.parent() {
        tokio::fs::create_dir_all(dir).await.map_err(failed)?;
    }
    let result = receive(body, &part).await;
    if let Err(e) = result {
        let _ = tokio::fs::remove_file(&part).await;
        return Err(Failure(e));
    }
    tokio::fs::rename(&part, &path).await.map_err(failed)?;
    ok(&json!({}))
}

async fn receive(body: HttpBody, part: &std::path::Path) -> Result<(), ApiError> {
    let failed = |e: std::io::Error| ApiError::new(ErrorId::Unavailable, format!("The source cannot be stored: {e}"));
    let mut file = tokio::fs::File::create(part).await.map_err(failed)?;
    let (mut stream, mut size) = (body.into_data_stream(), 0u64);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| ApiError::new(ErrorId::BadRequest, format!("The upload broke off: {e}")))?;
        size += chunk.len() as u64;
        if size > MAX_SOURCE {
            return Err(invalid(format!("The source is larger than {} MiB.", MAX_SOURCE >> 20)));
        }
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.sync_all().await.map_err(failed)
}

#[derive(Deserialize)]
pub struct Create {
    source_blob: Blob,
}

#[derive(Deserialize)]
pub struct Blob {
    url: Option<String>,
    /// Flex's own: an image in place of a source.
    image: Option<String>,
    version: Option<String>,
}

pub async fn create(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<Create>,
) -> Answer {
    let blob = body.source_blob;
    let source = match (blob.url, blob.image) {
        (Some(url), None) => Source::Tar(c.source_of_url(&url).await?),
        (None, Some(image))
            if !image.is_empty()
                && image.len() < 300
                && !image.starts_with('-')
                && !image.chars().any(|c| c.is_whitespace() || c.is_control()) =>
        {
            Source::Image(image)
        }
        _ => return Err(invalid("source_blob needs either a url or an image.").into()),
    };
    let version = blob.version.map(|v| v.chars().filter(|c| !c.is_control()).take(200).collect());
    let request = DeployRequest { app: app.id, source, source_version: version, phases: Vec::new() };
    let (build, _) = c.deploy(caller.actor(), request).await?;
    with(StatusCode::CREATED, &c.render_build(&app, &build).await)
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, headers: HeaderMap) -> Answer {
    let mut all: Vec<_> = c.db.list::<Build>(&keys::builds(app.id)).await?.into_iter().map(|s| s.value).collect();
    all.sort_by_key(|b| b.created_at);
    let (part, more) = Range::of(&headers).apply(all);
    let mut out = Vec::with_capacity(part.len());
    for b in part {
        out.push(c.render_build(&app, &b).await);
    }
    listed(out, more)
}

pub async fn info(State(c): State<Controller>, Extension(app): TheApp, Path((_, build)): Path<(String, String)>) -> Answer {
    let build = c.find_build(&app, &build).await?;
    ok(&c.render_build(&app, &build).await)
}

pub async fn cancel(State(c): State<Controller>, Extension(app): TheApp, Path((_, build)): Path<(String, String)>) -> Answer {
    let build = c.find_build(&app, &build).await?;
    if build.status.is_over() || !c.cancel_build(build.id) {
        return Err(invalid("That build is over already.").into());
    }
    ok(&c.render_build(&app, &build).await)
}

pub async fn purge_cache(State(c): State<Controller>, Extension(app): TheApp) -> Answer {
    c.deps.builders.purge_cache(app.id).await.map_err(|e| ApiError::new(ErrorId::Unavailable, e))?;
    ok(&json!({}))
}

pub async fn slug(State(c): State<Controller>, Extension(app): TheApp, Path((_, slug)): Path<(String, String)>) -> Answer {
    let missing = || not_found("Couldn't find that slug.");
    let id: SlugId = slug.parse().map_err(|_| missing())?;
    let s = c.db.get::<Slug>(&keys::slug(app.id, id)).await?.ok_or_else(missing)?.value;
    ok(&json!({
        "id": s.id, "size": s.size_bytes, "commit": s.commit, "process_types": s.process_types, "buildpack_provided_description": s.buildpack_description,
        "stack": { "name": s.stack, "id": s.stack }, "image": s.image.reference, "addons": s.addons, "created_at": s.created_at.rfc3339_seconds(), "updated_at": s.created_at.rfc3339_seconds()
    }))
}

impl Controller {
    /// What makes the URL of a build's output a secret: Heroku's clients read it without credentials.
    pub fn output_secret(&self, app: AppId, build: BuildId) -> String {
        self.crypt.sign(&format!("build-output/{app}/{build}"))
    }
}

/// The kept output, and what comes until the deploy is over.
pub async fn output(State(c): State<Controller>, Extension(app): TheApp, Path((_, build)): Path<(String, String)>) -> Answer {
    let build = c.find_build(&app, &build).await?;
    stream_output(c, app.id, build.id).await
}

/// As [`output`], for whoever knows the URL.
pub async fn open_output(State(c): State<Controller>, Path((app, build, secret)): Path<(String, String, String)>) -> Answer {
    let missing = || not_found("Couldn't find that build.");
    let (app, build) = (app.parse::<AppId>().map_err(|_| missing())?, build.parse::<BuildId>().map_err(|_| missing())?);
    // Compared by hash: the time it takes tells nothing about the secret.
    if token_hash(&secret) != token_hash(&c.output_secret(app, build)) {
        return Err(missing().into());
    }
    stream_output(c, app, build).await
}

async fn stream_output(c: Controller, app: AppId, build: BuildId) -> Answer {
    let file = tokio::fs::File::open(c.build_log(app, build))
        .await
        .map_err(|_| not_found("That build's output is not kept any more."))?;
    let stream = futures_util::stream::unfold((file, c, build), |(mut file, c, id)| async move {
        loop {
            // Looked at before reading: what was written until then is read below.
            let running = crate::core::lock(&c.running_builds).contains_key(&id);
            let mut buffer = vec![0; 32 << 10];
            match file.read(&mut buffer).await {
                Ok(0) if running => tokio::time::sleep(FOLLOW).await,
                Ok(0) => return None,
                Ok(n) => {
                    buffer.truncate(n);
                    return Some((Ok::<_, std::io::Error>(buffer), (file, c, id)));
                }
                Err(e) => return Some((Err(e), (file, c, id))),
            }
        }
    });
    let mut response: Response = HttpBody::from_stream(stream).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}
