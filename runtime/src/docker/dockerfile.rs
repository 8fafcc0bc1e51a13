//! Dockerfiles, by the engine's own builder: its limits where it has some, ours where it has none.
//!
//! The builder runs each `RUN` in a container of the builds' network and says which; that container is given a limit on
//! processes, and what the build has written is added up from its images' growth and its container's own layer. A build
//! whose request is dropped ends with the step that runs. Such containers carry no label, since the builder takes none: what
//! is in the builds' network without one, while nothing is built, was left behind by an engine that was killed.

use super::{
    Inner,
    engine::{Engine, QUICK},
    labels,
};
use crate::{DockerfileSpec, RuntimeError};
use bollard::{
    models::ContainerUpdateBody,
    query_parameters::{BuildImageOptionsBuilder, InspectContainerOptionsBuilder, ListContainersOptionsBuilder},
};
use bytes::Bytes;
use flex_model::ImageRef;
use futures_util::stream::BoxStream;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;

const DOING: &str = "building the Dockerfile";
/// How often what a step has written is looked at.
const DISK_POLL: Duration = Duration::from_secs(2);
/// The share of the processor, beside 1024 of an app: as for other builds.
const CPU_SHARES: i32 = 512;
const PERIOD_MICROS: u32 = 100_000;

/// What is known of a build that is under way.
#[derive(Default)]
struct Progress {
    /// The step's container, as the builder calls it.
    step: Option<String>,
    seen: HashSet<String>,
    /// Bytes of the layers made so far.
    layers: u64,
    /// The last line.
    last: String,
    id: Option<String>,
}

/// Counts the builds under way, so that the sweeper leaves their containers alone.
struct Building(Arc<Inner>);

impl Drop for Building {
    fn drop(&mut self) {
        self.0.building.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inner {
    pub(super) async fn build_dockerfile(
        self: &Arc<Self>,
        spec: DockerfileSpec,
        context: BoxStream<'static, std::io::Result<Bytes>>,
        log: mpsc::Sender<String>,
    ) -> Result<ImageRef, RuntimeError> {
        super::images::check_reference(&spec.tag)?;
        // Whatever is wrong with it, the Dockerfile's author cannot change it.
        let network = self.ensure_network(&self.names.build_network).await;
        network.map_err(|e| RuntimeError::Unavailable(format!("{DOING}: {e}")))?;
        self.building.fetch_add(1, Ordering::SeqCst);
        let _building = Building(self.clone());
        let args: HashMap<String, String> = spec.args.clone().into_iter().collect();
        let labels = labels::owned(&self.names.cluster);
        let memory = i32::try_from(spec.memory.bytes()).unwrap_or(i32::MAX);
        let mut options = BuildImageOptionsBuilder::default()
            .t(&spec.tag)
            .dockerfile(&spec.dockerfile)
            .rm(true)
            .forcerm(true)
            .buildargs(&args)
            .labels(&labels)
            .memory(memory)
            .memswap(memory)
            .cpushares(CPU_SHARES)
            .networkmode(&self.names.build_network);
        if let Some(quota) = spec.cpu_millis.and_then(|m| i32::try_from(m * (PERIOD_MICROS / 1000)).ok()) {
            options = options.cpuperiod(PERIOD_MICROS.cast_signed()).cpuquota(quota);
        }
        let docker = self.engine.docker()?.clone();
        let mut output = std::pin::pin!(docker.build_image(options.build(), None, Some(bollard::body_try_stream(context))));
        let mut progress = Progress::default();
        let mut disk = tokio::time::interval(DISK_POLL);
        disk.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Nobody reads any more: leaving drops the request, at which the engine ends the build.
            let line = tokio::select! {
                line = Engine::next(DOING, &mut output) => line,
                () = log.closed() => return Err(RuntimeError::Refused(format!("{DOING}: cancelled"))),
                _ = disk.tick() => { self.check_disk(&spec, &progress).await?; continue }
            };
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(RuntimeError::Refused(why)) => return Err(refused(&progress.last, &why)),
                Err(e) => return Err(e),
            };
            if let Some(error) = line.error_detail {
                return Err(refused(&progress.last, &error.message.unwrap_or_default()));
            }
            for text in line.stream.iter().chain(line.status.iter()).flat_map(|t| t.lines()).filter(|t| !t.is_empty()) {
                self.follow(&spec, &mut progress, text).await?;
                text.clone_into(&mut progress.last);
                let _ = log.send(text.to_owned()).await;
            }
            progress.id = line.aux.and_then(|a| a.id).or(progress.id);
        }
        let id = match progress.id {
            Some(id) => id,
            None => self.image_id(&spec.tag).await?.ok_or_else(|| refused(&progress.last, "the engine made no image"))?,
        };
        Ok(ImageRef { reference: id, manifest: None })
    }

    /// Takes notice of a step's container and of a finished layer. A program may print such lines too; it can only add to
    /// what is counted against it.
    async fn follow(&self, spec: &DockerfileSpec, progress: &mut Progress, line: &str) -> Result<(), RuntimeError> {
        let Some(rest) = line.trim_start().strip_prefix("---> ") else { return Ok(()) };
        if let Some(id) = rest.strip_prefix("Running in ").filter(|id| is_short_id(id)) {
            progress.step = Some(id.to_owned());
            let update = ContainerUpdateBody { pids_limit: Some(i64::from(spec.pids)), ..ContainerUpdateBody::default() };
            if self.is_step(id).await
                && let Err(e) =
                    self.engine.call("limiting a build step", QUICK, async |d| d.update_container(id, update).await).await
            {
                // Over already, most of the time.
                tracing::debug!(error = %e, container = id, "a build step has no limit on its processes");
            }
        } else if is_short_id(rest) && progress.seen.insert(rest.to_owned()) {
            progress.step = None;
            // One with a name is an image to begin with, neither made by this build nor this build's to remove.
            if let Some(bytes) = self.growth(rest).await {
                progress.layers = progress.layers.saturating_add(bytes);
                let whole = self.image_id(rest).await.ok().flatten();
                if let (Some(id), Ok(mut left)) = (whole, spec.left.lock()) {
                    *left = Some(id);
                }
            }
            self.check_disk(spec, progress).await?;
        }
        Ok(())
    }

    /// Whether a container is a step of some Dockerfile: in the builds' network, and nothing that was made here.
    async fn is_step(&self, id: &str) -> bool {
        let found = self.engine.call("looking at a build step", QUICK, async |d| d.inspect_container(id, None).await).await;
        let Ok(found) = found else { return false };
        let ours = found.config.and_then(|c| c.labels).unwrap_or_default().contains_key(labels::KIND);
        !ours && found.host_config.and_then(|h| h.network_mode).as_deref() == Some(&self.names.build_network)
    }

    /// Bytes of an image's last layer; none for an image that has a name.
    async fn growth(&self, id: &str) -> Option<u64> {
        let image = self.engine.call("looking at a layer", QUICK, async |d| d.inspect_image(id).await).await.ok()?;
        if !image.repo_tags.unwrap_or_default().is_empty() || !image.repo_digests.unwrap_or_default().is_empty() {
            return None;
        }
        let history = self.engine.call("measuring a layer", QUICK, async |d| d.image_history(id).await).await.ok()?;
        u64::try_from(history.first()?.size).ok()
    }

    async fn check_disk(&self, spec: &DockerfileSpec, progress: &Progress) -> Result<(), RuntimeError> {
        let mut used = progress.layers;
        if let Some(step) = &progress.step {
            let options = InspectContainerOptionsBuilder::default().size(true).build();
            let found =
                self.engine.call("measuring a build step", QUICK, async |d| d.inspect_container(step, Some(options)).await).await;
            used += found.ok().and_then(|c| c.size_rw).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        }
        if used > spec.disk_bytes {
            return Err(RuntimeError::Exceeded(format!(
                "the build wrote more than {} MiB to disk and was stopped",
                spec.disk_bytes >> 20
            )));
        }
        Ok(())
    }

    /// Removes containers of Dockerfile steps that an engine which was killed left behind.
    pub(super) async fn sweep_steps(&self) -> Result<usize, RuntimeError> {
        let filter = HashMap::from([("network".to_owned(), vec![self.names.build_network.clone()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let all = self.engine.call("listing build steps", QUICK, async |d| d.list_containers(Some(options)).await).await?;
        let mut swept = 0;
        for container in all {
            let Some(id) = container.id else { continue };
            if self.building.load(Ordering::SeqCst) > 0 {
                break;
            }
            if self.is_step(&id).await {
                self.remove_container(&id).await;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

fn is_short_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn refused(last: &str, why: &str) -> RuntimeError {
    let why = why.trim().trim_start_matches(&format!("{DOING}: ")).to_owned();
    if last.is_empty() || why.contains(last) {
        RuntimeError::Refused(format!("{DOING}: {why}"))
    } else {
        RuntimeError::Refused(format!("{DOING}: {why} (after: {last})"))
    }
}
