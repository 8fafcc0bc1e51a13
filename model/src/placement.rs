//! What should run where, what a host is told, and what it says back.

use crate::{AppId, AppName, HealthCheck, HostId, ImageRef, InstanceId, Memory, ProcessType, ReleaseId, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};

/// Where a placement is in its life. A placement that is over is deleted; what still runs then is stopped by its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPhase {
    /// To run, and to be routed to while healthy.
    Active,
    /// Still runs, but gets no new requests: finishes what it has, until the deadline at the latest.
    Draining { deadline: Timestamp },
}

/// One instance's place, chosen by the planner and stored before anyone acts on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub instance: InstanceId,
    pub app: AppId,
    pub process: ProcessType,
    /// From 1; `web.1`. Two placements share an index only while one of them drains or replaces the other.
    pub index: u32,
    pub release: ReleaseId,
    pub version: u64,
    pub host: HostId,
    /// Promised to it on that host.
    pub memory: Memory,
    /// 1024 is ordinary.
    #[serde(default = "ordinary_shares")]
    pub cpu_shares: u32,
    /// Hard limit in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    pub phase: PlacementPhase,
    pub created_at: Timestamp,
    /// Why it is there: one sentence for `flex ps:why`.
    pub reason: String,
}

fn ordinary_shares() -> u32 {
    crate::app::ORDINARY_SHARES
}

impl Placement {
    /// `web.1`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.process, self.index)
    }
}

/// What a container runs. The only shell ever involved is inside the container, on the app's own command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The image's own entry point and command.
    Image,
    /// `/opt/flex/launch LINE`: sources `/app/.profile.d/*.sh` and `.profile`, then runs the line with bash.
    Launch(String),
    /// `/bin/sh -c LINE`, for images without the launcher.
    Shell(String),
    /// An argument vector.
    Exec(Vec<String>),
}

/// All that an engine needs to run one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub image: ImageRef,
    pub command: Command,
    /// Config vars plus `PORT`, `DYNO` and the like. Secret, all of it.
    pub env: BTreeMap<String, Secret>,
    /// Where it is expected to listen, inside its own network namespace.
    pub port: Option<u16>,
    /// Hard limit.
    pub memory: Memory,
    /// 1024 is ordinary.
    pub cpu_shares: u32,
    /// Hard limit in thousandths of a core; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Most processes and threads.
    pub pids: u32,
    /// SIGTERM to SIGKILL.
    pub stop_grace_seconds: u32,
    pub read_only_root: bool,
    pub check: HealthCheck,
    /// It expects this header before everything on its port, from health checks too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<crate::ProxyVersion>,
}

/// One line of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkItem {
    pub instance: InstanceId,
    pub app: AppId,
    pub app_name: AppName,
    /// `web.1`.
    pub name: String,
    pub version: u64,
    pub spec: InstanceSpec,
}

/// Everything that one host is to run, at one revision of the store. Whole, never a difference: what is not in it stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub host: HostId,
    /// The fence: a host refuses an assignment whose revision is lower than one it has seen.
    pub revision: u64,
    /// Which controller run sent it; echoed in reports, so that a controller can tell reports to it from older ones.
    pub epoch: u64,
    pub items: Vec<WorkItem>,
}

/// What an instance is doing, in the words of `flex ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Being made, or made and not healthy yet.
    Starting,
    /// Runs and passed its check.
    Up,
    /// Runs, and fails its check after having passed it.
    Unhealthy,
    /// Ended by itself, or never became healthy and was stopped; restarts after a back-off.
    Crashed,
    /// Told to stop.
    Stopping,
    /// Cannot be made on this host (no image, no space): see the message.
    Down,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Exit status, 128+n for a signal.
    pub status: i64,
    /// The kernel killed it for memory.
    pub oom: bool,
    pub at: Timestamp,
}

/// One instance as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    pub instance: InstanceId,
    pub state: InstanceState,
    /// When it entered the state.
    pub since: Timestamp,
    /// Where its port can be reached, once it has one.
    pub address: Option<SocketAddr>,
    /// Starts after the first one.
    pub restarts: u32,
    /// It has been up at least once since it was placed.
    pub was_up: bool,
    pub exit: Option<ExitInfo>,
    /// What a person should know: "bound port 3000 instead of 5000".
    pub message: Option<String>,
}

/// All that a host says at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub host: HostId,
    /// The epoch of the assignment that it last applied.
    pub epoch: u64,
    /// The revision of the assignment that it last applied.
    pub revision: u64,
    pub at: Timestamp,
    /// Every instance that exists there, also those that are in no assignment any more and still stopping.
    pub instances: Vec<InstanceReport>,
    /// The newest ends, oldest first, told again and again: a report may be lost.
    #[serde(default)]
    pub ended: Vec<Ended>,
}

/// How one start of an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub instance: InstanceId,
    pub app: AppId,
    /// `web.1`.
    pub name: String,
    /// Starts of the instance before this one.
    pub attempt: u32,
    pub started_at: Timestamp,
    pub at: Timestamp,
    /// None: it was never seen to exit, or was stopped for not starting in time.
    pub exit: Option<ExitInfo>,
    /// It was told to stop.
    pub stopped: bool,
    /// What a person should know.
    pub message: Option<String>,
}
