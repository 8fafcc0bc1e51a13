//! Builds, their sources and their output.

use super::access::Caller;
use super::answer::{Answer, Body, Failure, Listed, Made, Shown, Text};
use super::list::{Key, Range};
use super::server::unavailable;
use crate::core::{Controller, invalid, not_found};
use crate::db::{SourceRecord, Tx, keys};
use crate::deploy::DeployRequest;
use crate::ports::Source;
use crate::users::token_hash;
use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use flex_api::{ApiError, CreateBuild, ErrorId, NameRef, Nothing, SlugBlob, SourceUrls};
use flex_model::{App, AppId, Build, BuildId, Slug, SlugId, SourceId};
use futures_util::StreamExt;
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

pub async fn source(State(c): State<Controller>, Extension(caller): Extension<Caller>) -> Answer<Made<flex_api::Source>> {
    let secret = hex::encode(crate::crypt::random::<32>());
    let record = SourceRecord { id: c.id(), user: caller.user.id, secret_sha256: token_hash(&secret), created_at: c.now() };
    c.db.commit(Tx::new().put(keys::source(record.id), &record)).await.map_err(crate::core_error)?;
    let url = format!("{}/sources/{}/{secret}", c.deps.settings.api_url, record.id);
    Ok(Made(flex_api::Source { source_blob: SourceUrls { get_url: url.clone(), put_url: url } }))
}

pub async fn upload(
    State(c): State<Controller>,
    Path((id, secret)): Path<(String, String)>,
    body: HttpBody,
) -> Answer<Shown<Nothing>> {
    let record = c.source_record(&id, &secret).await?;
    let path = c.source_path(record.id);
    if let Some(what) = c.deps.machine.no_room() {
        return Err(Failure(ApiError::new(ErrorId::Unavailable, format!("{what}: make room on the server, then try again."))));
    }
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
    Ok(Shown(Nothing {}))
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

pub async fn create(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Body(body): Body<CreateBuild>,
) -> Answer<Made<flex_api::Build>> {
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
    let request = DeployRequest { app: app.id, source, source_version: version, phases: Vec::new(), moving: None };
    let (build, _) = c.deploy(caller.actor(), request).await?;
    Ok(Made(c.render_build(&app, &build).await))
}

pub async fn list(State(c): State<Controller>, Extension(app): TheApp, range: Range) -> Answer<Listed<flex_api::Build>> {
    let all: Vec<_> = c.db.list::<Build>(&keys::builds(app.id)).await?.into_iter().map(|s| s.value).collect();
    let page = range.page(
        all,
        |b| b.id.to_string(),
        &[("created_at", |b| Key::Time(b.created_at)), ("updated_at", |b| Key::Time(b.updated_at))],
    )?;
    let mut items = Vec::with_capacity(page.items.len());
    for item in page.items {
        items.push(c.render_build(&app, &item).await);
    }
    Ok(Listed { items, head: page.head })
}

pub async fn info(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, build)): Path<(String, String)>,
) -> Answer<Shown<flex_api::Build>> {
    let build = c.find_build(&app, &build).await?;
    Ok(Shown(c.render_build(&app, &build).await))
}

pub async fn cancel(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
    Path((_, build)): Path<(String, String)>,
) -> Answer<Shown<flex_api::Build>> {
    let build = c.find_build(&app, &build).await?;
    if !c.cancel_build(&build).await? {
        return Err(invalid("That build is over already.").into());
    }
    c.note(&caller.actor(), app.id, "build.cancel", format!("Cancelled build {}", build.id)).await?;
    Ok(Shown(c.render_build(&app, &build).await))
}

pub async fn purge_cache(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Extension(caller): Extension<Caller>,
) -> Answer<Shown<Nothing>> {
    c.deps.builders.purge_cache(app.id).await.map_err(unavailable)?;
    c.note(&caller.actor(), app.id, "build-cache.delete", "Removed the build cache".to_owned()).await?;
    Ok(Shown(Nothing {}))
}

pub async fn slug(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, slug)): Path<(String, String)>,
) -> Answer<Shown<flex_api::Slug>> {
    let missing = || not_found("Couldn't find that slug.");
    let id: SlugId = slug.parse().map_err(|_| missing())?;
    let s = c.db.get::<Slug>(&keys::slug(app.id, id)).await?.ok_or_else(missing)?.value;
    let manifest = s.image.manifest.clone();
    let url = |digest: &String| format!("{}/v2/{}/manifests/{digest}", c.deps.settings.api_url, app.name);
    Ok(Shown(flex_api::Slug {
        id: s.id,
        blob: manifest.as_ref().map(|m| SlugBlob { method: "get".into(), url: url(m) }),
        buildpack_provided_description: s.buildpack_description.clone(),
        checksum: manifest,
        commit: s.commit.clone(),
        commit_description: None,
        process_types: s.process_types.clone(),
        size: s.size_bytes,
        stack: NameRef::of(s.stack.as_str()),
        created_at: s.created_at.into(),
        updated_at: s.created_at.into(),
        image: s.image.reference.clone(),
        addons: s.addons.clone(),
    }))
}

impl Controller {
    /// What makes the URL of a build's output a secret: Heroku's clients read it without credentials.
    pub fn output_secret(&self, app: AppId, build: BuildId) -> String {
        self.crypt.sign(&format!("build-output/{app}/{build}"))
    }
}

/// The kept output, and what comes until the deploy is over.
pub async fn output(
    State(c): State<Controller>,
    Extension(app): TheApp,
    Path((_, build)): Path<(String, String)>,
) -> Answer<Text> {
    let build = c.find_build(&app, &build).await?;
    stream_output(c, app.id, build.id).await
}

/// As [`output`], for whoever knows the URL.
pub async fn open_output(
    State(c): State<Controller>,
    Path((app, build, secret)): Path<(String, String, String)>,
) -> Answer<Text> {
    let missing = || not_found("Couldn't find that build.");
    let (app, build) = (app.parse::<AppId>().map_err(|_| missing())?, build.parse::<BuildId>().map_err(|_| missing())?);
    // Compared by hash: the time it takes tells nothing about the secret.
    if token_hash(&secret) != token_hash(&c.output_secret(app, build)) {
        return Err(missing().into());
    }
    stream_output(c, app, build).await
}

async fn stream_output(c: Controller, app: AppId, build: BuildId) -> Answer<Text> {
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
    Ok(Text(response))
}
