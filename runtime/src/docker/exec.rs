//! Commands in containers, and one-off containers.

use super::{
    Inner,
    engine::{QUICK, SLOW},
    hijack::hijack,
    labels::{self, Kind, Tag},
    session::{self, Process},
    spec,
};
use crate::{ExecSpec, JobSpec, RuntimeError, Session};
use bollard::{models::ExecConfig, query_parameters::ListContainersOptionsBuilder};
use std::{collections::HashMap, sync::Arc};

/// The keys at which the engine lets go of a terminal, Ctrl-P Ctrl-Q if none are given: it would keep each Ctrl-P back until
/// the next key. This many NULs nobody types.
pub(super) const NO_DETACH: &str =
    "ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@,ctrl-@";

/// The first API version that takes a terminal's size before the program starts.
pub(super) const CONSOLE_SIZE: (u32, u32) = (1, 42);

impl Inner {
    /// Runs a command in a container; an attended one ends with its client.
    pub(super) async fn exec(self: Arc<Self>, container: &str, exec: ExecSpec, attended: bool) -> Result<Session, RuntimeError> {
        if exec.argv.is_empty() {
            return Err(RuntimeError::Refused("running a command: it has no words".into()));
        }
        let console_size = self.engine.api().await? >= CONSOLE_SIZE;
        let size = exec.tty.filter(|_| console_size).map(|s| vec![usize::from(s.rows), usize::from(s.cols)]);
        let config = ExecConfig {
            attach_stdin: Some(exec.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(exec.tty.is_some()),
            detach_keys: Some(NO_DETACH.into()),
            console_size: size.clone(),
            env: Some(spec::env(&exec.env)),
            cmd: Some(exec.argv),
            user: exec.user,
            working_dir: exec.workdir,
            ..ExecConfig::default()
        };
        let doing = "running a command in a container";
        let id = self.engine.call(doing, SLOW, async |d| d.create_exec(container, config).await).await?.id;
        // Before it runs, so that it never looks like one that was left.
        let claim = self.claim(&id);
        let body = serde_json::json!({ "Detach": false, "Tty": exec.tty.is_some(), "ConsoleSize": size });
        let conn = hijack(self.engine.socket(), &format!("/exec/{id}/start"), &body.to_string(), doing).await?;
        let process = Process::Exec(id, attended);
        if let (Some(size), false) = (exec.tty, console_size) {
            session::resize(&self, &process, size).await;
        }
        Ok(session::run(self, process, conn, exec.tty.is_some(), exec.stdin, claim))
    }

    /// Runs a container to its end.
    pub(super) async fn run_once(self: Arc<Self>, job: JobSpec) -> Result<Session, RuntimeError> {
        let console_size = self.engine.api().await? >= CONSOLE_SIZE;
        self.ensure_network(&self.names.network).await?;
        let name = Tag::of_job(&job).container_name(&self.names.cluster);
        let taken = || RuntimeError::Refused(format!("starting {}: it is running already as {name}", job.name));
        let claim = self.claim(&job.instance.to_string()).ok_or_else(taken)?;
        let body = spec::job(&job, &self.names, console_size);
        let made = self.create_of(&name, body, job.app, &job.app_name, &job.spec.image).await?;
        let id = made.ok_or_else(taken)?;
        match self.attach_and_start(&id, &job).await {
            Ok(conn) => {
                let process = Process::Job(id, job.spec.stop_grace_seconds);
                if let (Some(size), false) = (job.tty, console_size) {
                    session::resize(&self, &process, size).await;
                }
                Ok(session::run(self, process, conn, job.tty.is_some(), job.stdin, Some(claim)))
            }
            Err(e) => {
                if matches!(&e, RuntimeError::NotFound(why) if why.contains("network")) {
                    self.forget_network(&self.names.network).await;
                }
                self.remove_container(&id).await;
                Err(e)
            }
        }
    }

    /// Attached before the start, so that no output is missed.
    async fn attach_and_start(&self, id: &str, job: &JobSpec) -> Result<super::hijack::Hijacked, RuntimeError> {
        let stdin = if job.stdin { "&stdin=1" } else { "" };
        let path = format!("/containers/{id}/attach?stream=1&stdout=1&stderr=1{stdin}&detachKeys={NO_DETACH}");
        let conn = hijack(self.engine.socket(), &path, "", &format!("attaching to {}", job.name)).await?;
        self.start(id).await?;
        Ok(conn)
    }

    /// Removes jobs and sandboxes that no living caller of this process has and that are not to be kept, and ends what such
    /// callers ran inside instances.
    pub(super) async fn reap(self: &Arc<Self>, keep: &[String]) -> Result<Vec<String>, RuntimeError> {
        self.sweep_steps().await?;
        self.end_left_commands().await?;
        let mut reaped = Vec::new();
        for kind in [Kind::Job, Kind::Sandbox] {
            let filter: HashMap<_, _> = labels::filter(&self.names.cluster, kind);
            let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
            let list = self.engine.call("listing containers", QUICK, async |d| d.list_containers(Some(options)).await).await?;
            for container in list {
                let reap_id = container.labels.unwrap_or_default().remove(labels::REAP);
                let (Some(id), Some(reap_id)) = (container.id, reap_id) else { continue };
                let live = self.state().live.contains(&reap_id);
                if !live && !keep.contains(&reap_id) {
                    self.remove_container_checked(&id).await?;
                    reaped.push(reap_id);
                }
            }
        }
        Ok(reaped)
    }
}
