//! One-off containers that need no client, and looking on at what runs.

use super::{
    Inner,
    engine::{QUICK, refine},
    exec::{CONSOLE_SIZE, NO_DETACH},
    hijack::hijack,
    labels::{self, Kind, Tag},
    observe::read_inspection,
    session::{self, Process},
    spec,
};
use crate::{Attached, JobSpec, Observed, ObservedPhase, Output, RuntimeError, Session};
use bollard::{
    container::LogOutput,
    models::ContainerSummaryStateEnum as State,
    query_parameters::{ListContainersOptionsBuilder, LogsOptionsBuilder},
};
use flex_model::InstanceId;
use futures_util::{StreamExt, stream};
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// The most bytes of earlier output that are shown.
const REPLAY: usize = 256 << 10;

impl Inner {
    pub(super) async fn start_job(&self, job: JobSpec) -> Result<(), RuntimeError> {
        let console_size = self.engine.api().await? >= CONSOLE_SIZE;
        self.ensure_network(&self.names.network).await?;
        let name = Tag::of_job(&job).container_name(&self.names.cluster);
        let taken = || RuntimeError::Refused(format!("starting {}: it is running already as {name}", job.name));
        let body = spec::run(&job, &self.names, console_size);
        let made = self.create_of(&name, body, job.app, &job.app_name, &job.spec.image).await?;
        let id = made.ok_or_else(taken)?;
        if let Err(e) = self.start(&id).await {
            if matches!(&e, RuntimeError::NotFound(why) if why.contains("network")) {
                self.forget_network(&self.names.network).await;
            }
            self.remove_container(&id).await;
            return Err(e);
        }
        // Whoever reads log files looks for new ones.
        self.wake();
        Ok(())
    }

    async fn containers(&self, filter: HashMap<String, Vec<String>>) -> Result<Vec<super::observe::Listed>, RuntimeError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let list = self.engine.call("listing containers", QUICK, async |d| d.list_containers(Some(options)).await).await?;
        Ok(list.into_iter().filter_map(|c| self.read_summary(c)).collect())
    }

    pub(super) async fn jobs(&self) -> Result<Vec<Observed>, RuntimeError> {
        let mut all = Vec::new();
        for c in self.containers(labels::filter(&self.names.cluster, Kind::Run)).await? {
            let doing = "inspecting a container";
            let detail = match self.engine.call(doing, QUICK, async |d| d.inspect_container(&c.id, None).await).await {
                Ok(found) => read_inspection(&found),
                Err(RuntimeError::NotFound(_)) => continue,
                Err(e) => return Err(e),
            };
            let phase = match detail.exit {
                Some(exit) => ObservedPhase::Exited(exit),
                None if matches!(detail.state, State::CREATED | State::EMPTY) => ObservedPhase::Creating,
                None => ObservedPhase::Running,
            };
            all.push(Observed {
                instance: c.tag.instance,
                app: c.tag.app,
                app_name: c.tag.app_name,
                name: c.tag.name,
                version: c.tag.version,
                attempt: c.tag.attempt,
                phase,
                ip: c.ip,
                pid: detail.pid,
                started_at: detail.started_at,
                log_file: detail.log_file,
            });
        }
        Ok(all)
    }

    pub(super) async fn remove_job(&self, instance: InstanceId) -> Result<(), RuntimeError> {
        for c in self.containers(labels::filter_id(&self.names.cluster, instance)).await? {
            self.remove_container_checked(&c.id).await?;
        }
        Ok(())
    }

    pub(super) async fn stop_job(&self, instance: InstanceId, grace: u32) -> Result<(), RuntimeError> {
        let id = self.container_of(instance).await?;
        let doing = "stopping a container";
        let config = self.engine.call(doing, QUICK, async |d| d.inspect_container(&id, None).await).await?.config;
        if config.and_then(|c| c.tty) == Some(true) {
            // Shells at a terminal do not heed SIGTERM; a terminal that is closed they do.
            session::signal_to(self, &Process::Job(id.clone(), grace), 1).await;
        }
        self.stop_container(&id, grace).await;
        Ok(())
    }

    /// The running container of an instance or a one-off command.
    pub(super) async fn container_of(&self, instance: InstanceId) -> Result<String, RuntimeError> {
        self.running(instance).await.map(|c| c.id)
    }

    pub(super) async fn address(&self, instance: InstanceId) -> Result<IpAddr, RuntimeError> {
        let ip = self.running(instance).await?.ip;
        ip.ok_or_else(|| RuntimeError::NotFound(format!("instance {instance} has no address")))
    }

    async fn running(&self, instance: InstanceId) -> Result<super::observe::Listed, RuntimeError> {
        let list = self.containers(labels::filter_id(&self.names.cluster, instance)).await?;
        let newest = list.into_iter().filter(|c| c.state == State::RUNNING).max_by_key(|c| c.tag.attempt);
        newest.ok_or_else(|| RuntimeError::NotFound(format!("instance {instance} is not running on this host")))
    }

    pub(super) async fn attach(self: Arc<Self>, instance: InstanceId, replay: u32) -> Result<Attached, RuntimeError> {
        let id = self.container_of(instance).await?;
        let doing = "attaching to a container";
        let config = self.engine.call(doing, QUICK, async |d| d.inspect_container(&id, None).await).await?.config;
        let config = config.unwrap_or_default();
        let tty = config.tty == Some(true);
        // A container that closes its input with its client must not lose it to another one that leaves.
        let stdin = tty && config.open_stdin == Some(true) && config.stdin_once != Some(true);
        let with_stdin = if stdin { "&stdin=1" } else { "" };
        let path = format!("/containers/{id}/attach?stream=1&stdout=1&stderr=1{with_stdin}&detachKeys={NO_DETACH}");
        let conn = hijack(self.engine.socket(), &path, "", doing).await?;
        let before = self.recent(&id, replay).await;
        let Session { input, output, exit, oom } = session::run(self, Process::Attached(id), conn, tty, stdin, None);
        let output = stream::iter(before.into_iter().map(Ok)).chain(output).boxed();
        Ok(Attached { session: Session { input, output, exit, oom }, tty, stdin })
    }

    /// The last lines of a container's output, as far as the engine keeps it.
    async fn recent(&self, id: &str, lines: u32) -> Vec<Output> {
        let Ok(docker) = self.engine.docker() else { return Vec::new() };
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let mut found = docker.logs(id, Some(options));
        let (mut all, mut size) = (std::collections::VecDeque::new(), 0);
        let read = async {
            while let Some(piece) = found.next().await {
                let piece = match piece {
                    Ok(LogOutput::StdErr { message }) => Output::Stderr(message),
                    Ok(LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message }) => {
                        Output::Stdout(message)
                    }
                    Err(e) => {
                        // One that keeps none has none to show.
                        tracing::debug!(error = %refine("reading a container's log", &e), "no earlier output is shown");
                        break;
                    }
                };
                size += length(&piece);
                all.push_back(piece);
                while size > REPLAY {
                    size -= all.pop_front().map_or(size, |p| length(&p));
                }
            }
        };
        let _ = tokio::time::timeout(QUICK, read).await;
        all.into()
    }
}

fn length(piece: &Output) -> usize {
    let (Output::Stdout(bytes) | Output::Stderr(bytes)) = piece;
    bytes.len()
}
