//! Containers to build in.

use super::{
    Claim, Inner,
    engine::{PROGRESS, QUICK, SLOW, refine},
    labels, spec,
};
use crate::{ExecSpec, RuntimeError, Sandbox, SandboxSpec, Session};
use async_trait::async_trait;
use bollard::{
    models::VolumeCreateRequest,
    query_parameters::{DownloadFromContainerOptionsBuilder, InspectContainerOptionsBuilder, UploadToContainerOptionsBuilder},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use std::sync::Arc;

struct DockerSandbox {
    inner: Arc<Inner>,
    container: String,
    _claim: Claim,
}

impl Inner {
    /// Makes and starts a sandbox.
    pub(super) async fn sandbox(self: Arc<Self>, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, RuntimeError> {
        let name = self.names.sandbox(labels::name_part("the build's id", &spec.id)?);
        let taken = || RuntimeError::Refused(format!("making build container {name}: it exists already"));
        let claim = self.claim(&spec.id).ok_or_else(taken)?;
        self.ensure_network(&self.names.build_network).await?;
        let new_volume = match &spec.cache {
            Some((name, _)) => self.ensure_volume(name).await?,
            None => false,
        };
        let container = self.create(&name, spec::sandbox(&spec, &self.names)).await?.ok_or_else(taken)?;
        let sandbox = DockerSandbox { inner: self.clone(), container, _claim: claim };
        let ready = async {
            if let (true, Some((_, at)), Some(owner)) = (new_volume, &spec.cache, spec.user.as_deref().and_then(numeric)) {
                sandbox.give(at, owner).await?;
            }
            self.start(&sandbox.container).await
        };
        if let Err(e) = ready.await {
            if matches!(&e, RuntimeError::NotFound(why) if why.contains("network")) {
                self.forget_network(&self.names.build_network).await;
            }
            self.remove_container(&sandbox.container).await;
            return Err(e);
        }
        Ok(Box::new(sandbox))
    }

    /// Makes a cache volume unless it is there; true when it is new.
    async fn ensure_volume(&self, name: &str) -> Result<bool, RuntimeError> {
        let full = self.names.volume(labels::name_part("the cache's name", name)?);
        let doing = format!("looking for volume {full}");
        match self.engine.call(&doing, QUICK, async |d| d.inspect_volume(&full).await).await {
            Ok(_) => return Ok(false),
            Err(RuntimeError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
        let request = VolumeCreateRequest {
            name: Some(full.clone()),
            labels: Some(labels::owned(&self.names.cluster)),
            ..VolumeCreateRequest::default()
        };
        self.engine.call(&format!("making volume {full}"), SLOW, async |d| d.create_volume(request).await).await?;
        Ok(true)
    }

    /// Removes a cache volume; absent is fine.
    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let full = self.names.volume(labels::name_part("the cache's name", name)?);
        let none = None::<bollard::query_parameters::RemoveVolumeOptions>;
        match self.engine.call(&format!("removing volume {full}"), SLOW, async |d| d.remove_volume(&full, none).await).await {
            Ok(()) | Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// `uid:gid` when both are numbers: a new volume belongs to root, and inside nobody may change that.
fn numeric(user: &str) -> Option<(u64, u64)> {
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

impl DockerSandbox {
    /// Makes a directory in the container belong to a user.
    async fn give(&self, path: &str, (uid, gid): (u64, u64)) -> Result<(), RuntimeError> {
        let relative = path.trim_matches('/');
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(0);
        let mut archive = tar::Builder::new(Vec::new());
        let tar = archive
            .append_data(&mut header, format!("{relative}/"), std::io::empty())
            .and_then(|()| archive.into_inner())
            .map_err(|e| RuntimeError::Refused(format!("preparing {path}: {e}")))?;
        self.put("/", futures_util::stream::iter([Ok(Bytes::from(tar))]).boxed()).await
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    async fn put(&self, path: &str, tar: BoxStream<'static, std::io::Result<Bytes>>) -> Result<(), RuntimeError> {
        let options = UploadToContainerOptionsBuilder::default().path(path).build();
        let doing = format!("unpacking files at {path} of a build container");
        // The stream's own failure reaches the engine as a broken request; its text is worth more than that.
        let failure = Arc::new(std::sync::Mutex::new(None));
        let noted = failure.clone();
        let tar = tar.inspect(move |item| {
            if let (Err(e), Ok(mut slot)) = (item, noted.lock()) {
                *slot = Some(e.to_string());
            }
        });
        let put =
            async |d: bollard::Docker| d.upload_to_container(&self.container, Some(options), bollard::body_try_stream(tar)).await;
        let done = self.inner.engine.call(&doing, PROGRESS, put).await;
        match failure.lock().ok().and_then(|mut f| f.take()) {
            Some(e) => Err(RuntimeError::Refused(format!("{doing}: reading the archive: {e}"))),
            None => done,
        }
    }

    async fn exec(&self, exec: ExecSpec) -> Result<Session, RuntimeError> {
        self.inner.clone().exec(&self.container, exec, false).await
    }

    async fn get(&self, path: &str) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        let doing = format!("reading {path} of a build container");
        let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
        let docker = self.inner.engine.docker()?.clone();
        let mut stream = docker.download_from_container(&self.container, Some(options)).boxed();
        // The first piece is waited for here, so that a path that does not exist is an error of this call.
        let first = match tokio::time::timeout(SLOW, stream.next()).await {
            Ok(Some(Ok(first))) => first,
            Ok(Some(Err(e))) => return Err(refine(&doing, &e)),
            Ok(None) => Bytes::new(),
            Err(_) => return Err(RuntimeError::Unavailable(format!("{doing}: no answer within {} s", SLOW.as_secs()))),
        };
        let rest = stream.map(move |item| item.map_err(|e| refine(&doing, &e)));
        Ok(futures_util::stream::iter([Ok(first)]).chain(rest).boxed())
    }

    async fn disk_used(&self) -> Result<u64, RuntimeError> {
        let options = InspectContainerOptionsBuilder::default().size(true).build();
        let doing = "measuring a build container";
        let container = async |d: bollard::Docker| d.inspect_container(&self.container, Some(options)).await;
        let container = self.inner.engine.call(doing, SLOW, container).await?;
        Ok(container.size_rw.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }

    async fn destroy(&self) -> Result<(), RuntimeError> {
        self.inner.remove_container_checked(&self.container).await
    }
}
