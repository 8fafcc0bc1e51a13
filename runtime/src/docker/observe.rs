//! What exists: one list call, plus one inspection for each container since it last changed state.

use super::{
    Inner,
    engine::QUICK,
    labels::{self, Kind, Tag},
    spec::LOCAL_LOG,
};
use crate::{LogFile, LogForm, Observed, ObservedPhase, RuntimeError};
use bollard::{
    models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum as State},
    query_parameters::ListContainersOptionsBuilder,
};
use flex_model::{ExitInfo, InstanceId, Timestamp};
use futures_util::{StreamExt, stream};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

/// Inspections under way at once when many containers are new.
const INSPECTIONS: usize = 8;

/// What only inspection tells, and the state in which it was told.
#[derive(Debug, Clone)]
pub(super) struct Detail {
    pub(super) state: State,
    pub(super) pid: Option<u32>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) exit: Option<ExitInfo>,
    pub(super) log_file: Option<LogFile>,
}

/// A container of ours in the engine's list.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) tag: Tag,
    pub(super) state: State,
    pub(super) ip: Option<std::net::IpAddr>,
}

impl Inner {
    /// The containers of all instances, or of one.
    pub(super) async fn list(&self, instance: Option<InstanceId>) -> Result<Vec<Listed>, RuntimeError> {
        let cluster = &self.names.cluster;
        let filter = instance.map_or_else(|| labels::filter(cluster, Kind::Instance), |i| labels::filter_instance(cluster, i));
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let list = self.engine.call("listing containers", QUICK, async |d| d.list_containers(Some(options)).await).await?;
        Ok(list.into_iter().filter_map(|c| self.read_summary(c)).collect())
    }

    pub(super) fn read_summary(&self, c: ContainerSummary) -> Option<Listed> {
        let tag = Tag::read(&c.labels?)?;
        let ip = c.network_settings.and_then(|n| n.networks?.remove(&self.names.network)?.ip_address?.parse().ok());
        Some(Listed { id: c.id?, tag, state: c.state.unwrap_or(State::EMPTY), ip })
    }

    pub(super) async fn observe(&self) -> Result<Vec<Observed>, RuntimeError> {
        let listed = self.list(None).await?;
        let (unknown, stopping) = {
            let mut state = self.state();
            let present: HashSet<&str> = listed.iter().map(|c| c.id.as_str()).collect();
            state.details.retain(|id, _| present.contains(id.as_str()));
            state.stopping.retain(|id| present.contains(id.as_str()));
            let unknown: Vec<_> = listed
                .iter()
                .filter(|c| c.state != State::CREATED && state.details.get(&c.id).is_none_or(|d| d.state != c.state))
                .map(|c| c.id.clone())
                .collect();
            (unknown, state.stopping.clone())
        };
        let mut inspections = stream::iter(unknown)
            .map(|id| async move {
                let doing = "inspecting a container";
                (self.engine.call(doing, QUICK, async |d| d.inspect_container(&id, None).await).await, id)
            })
            .buffer_unordered(INSPECTIONS);
        let mut gone = HashSet::new();
        while let Some((answer, id)) = inspections.next().await {
            match answer {
                Ok(container) => {
                    let detail = read_inspection(&container);
                    self.state().details.insert(id, detail);
                }
                Err(RuntimeError::NotFound(_)) => {
                    gone.insert(id);
                }
                Err(e) => return Err(e),
            }
        }
        let state = self.state();
        let mut all: HashMap<InstanceId, Observed> = HashMap::with_capacity(listed.len());
        for c in listed.into_iter().filter(|c| !gone.contains(&c.id)) {
            let detail = state.details.get(&c.id);
            let phase = phase(&c, detail, stopping.contains(&c.id));
            let running = matches!(phase, ObservedPhase::Running | ObservedPhase::Stopping);
            let seen = Observed {
                instance: c.tag.instance,
                app: c.tag.app,
                app_name: c.tag.app_name,
                name: c.tag.name,
                version: c.tag.version,
                attempt: c.tag.attempt,
                phase,
                ip: c.ip.filter(|_| running),
                pid: detail.and_then(|d| d.pid).filter(|_| running),
                started_at: detail.and_then(|d| d.started_at),
                log_file: detail.and_then(|d| d.log_file.clone()),
            };
            // Two only while an older incarnation has not been removed yet.
            if all.get(&seen.instance).is_none_or(|other| other.attempt <= seen.attempt) {
                all.insert(seen.instance, seen);
            }
        }
        for (instance, wanted) in state.desired.iter().flatten() {
            let failed = state.failed.get(instance).filter(|(attempt, _)| *attempt >= wanted.attempt);
            let phase = match failed {
                Some((_, why)) => ObservedPhase::Failed(why.clone()),
                None if state.busy.contains(instance) => ObservedPhase::Creating,
                None => continue,
            };
            all.entry(*instance).or_insert_with(|| Observed {
                instance: *instance,
                app: wanted.app,
                app_name: wanted.app_name.clone(),
                name: wanted.name.clone(),
                version: wanted.version,
                attempt: wanted.attempt,
                phase,
                ip: None,
                pid: None,
                started_at: None,
                log_file: None,
            });
        }
        drop(state);
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by_key(|o| o.instance);
        Ok(all)
    }
}

fn phase(c: &Listed, detail: Option<&Detail>, stopping: bool) -> ObservedPhase {
    // Inspection is newer than the list.
    match (detail.map_or(c.state, |d| d.state), detail.and_then(|d| d.exit.clone())) {
        (_, Some(exit)) => ObservedPhase::Exited(exit),
        (State::CREATED | State::EMPTY | State::RESTARTING, None) if !stopping => ObservedPhase::Creating,
        (State::REMOVING | State::DEAD | State::STOPPING, None) => ObservedPhase::Stopping,
        (_, None) if stopping => ObservedPhase::Stopping,
        (_, None) => ObservedPhase::Running,
    }
}

pub(super) fn read_inspection(c: &ContainerInspectResponse) -> Detail {
    let state = c.state.clone().unwrap_or_default();
    let status = state.status.map_or(State::EMPTY, |s| match s.to_string().as_str() {
        "created" => State::CREATED,
        "running" => State::RUNNING,
        "paused" => State::PAUSED,
        "restarting" => State::RESTARTING,
        "removing" => State::REMOVING,
        "exited" => State::EXITED,
        "dead" => State::DEAD,
        "stopping" => State::STOPPING,
        _ => State::EMPTY,
    });
    let exit = matches!(status, State::EXITED | State::DEAD).then(|| ExitInfo {
        status: state.exit_code.unwrap_or(-1),
        oom: state.oom_killed.unwrap_or(false),
        at: moment(state.finished_at.as_deref()).unwrap_or_default(),
    });
    Detail {
        state: status,
        pid: state.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0),
        started_at: moment(state.started_at.as_deref()),
        exit,
        log_file: log_file(c),
    }
}

/// The engine names the `json-file` driver's file. The `local` driver's it does not: it lies beside the container's other files,
/// below the engine's root directory.
fn log_file(c: &ContainerInspectResponse) -> Option<LogFile> {
    let given = |path: &Option<String>| path.clone().filter(|p| !p.is_empty()).map(PathBuf::from);
    let driver = c.host_config.as_ref().and_then(|h| h.log_config.as_ref()).and_then(|l| l.typ.as_deref());
    if driver != Some(LOCAL_LOG) {
        return Some(LogFile { path: given(&c.log_path)?, form: LogForm::JsonFile });
    }
    let known = [&c.hostname_path, &c.resolv_conf_path, &c.hosts_path].into_iter().filter_map(given);
    let own = known
        .filter_map(|p| p.parent().map(Path::to_owned))
        .find(|d| d.file_name().is_some_and(|n| c.id.as_deref().is_some_and(|id| n == id)));
    Some(LogFile { path: own?.join("local-logs/container.log"), form: LogForm::Local })
}

/// The engine writes year 1 for "not yet".
fn moment(text: Option<&str>) -> Option<Timestamp> {
    text?.parse::<Timestamp>().ok().filter(|t| t.micros() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{HostConfig, HostConfigLogConfig};

    #[test]
    fn both_drivers_files_are_found() {
        let container = |driver: &str, log: &str, hostname: &str| ContainerInspectResponse {
            id: Some("c0ffee".into()),
            log_path: Some(log.into()),
            hostname_path: Some(hostname.into()),
            hosts_path: Some("/data/containers/c0ffee/hosts".into()),
            host_config: Some(HostConfig {
                log_config: Some(HostConfigLogConfig { typ: Some(driver.into()), config: None }),
                ..HostConfig::default()
            }),
            ..ContainerInspectResponse::default()
        };
        let found = |c: &ContainerInspectResponse| log_file(c).map(|l| (l.path.to_string_lossy().into_owned(), l.form));
        let json = "/data/containers/c0ffee/c0ffee-json.log";
        assert_eq!(found(&container("json-file", json, "")), Some((json.into(), LogForm::JsonFile)));
        assert_eq!(found(&container("none", "", "/data/containers/c0ffee/hostname")), None);
        let local = Some(("/data/containers/c0ffee/local-logs/container.log".into(), LogForm::Local));
        assert_eq!(found(&container("local", "", "/data/containers/c0ffee/hostname")), local);
        assert_eq!(found(&container("local", "", "/data/containers/other/hostname")), local);
        let early = ContainerInspectResponse { hosts_path: None, ..container("local", "", "") };
        assert_eq!(found(&early), None);
    }
}
