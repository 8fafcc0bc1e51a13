//! Instances, and how many of them there are to be.

use crate::schema::{Id, ProcessTypeText, Quantity, Time};
use crate::{AppRef, NameRef, ReleaseRef};
use flex_model::{InstanceId, ProcessType, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DynoState {
    Starting,
    Up,
    Crashed,
    Idle,
    Down,
    Complete,
}

impl DynoState {
    /// As it is sent.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Crashed => "crashed",
            Self::Idle => "idle",
            Self::Down => "down",
            Self::Complete => "complete",
        }
    }
}

/// An instance of a process type, or a one-off run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dyno {
    #[schema(value_type = Id)]
    pub id: InstanceId,
    /// `web.1`, `run.4711`.
    pub name: String,
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub kind: ProcessType,
    pub app: AppRef,
    pub command: String,
    /// Memory, such as `512M`.
    pub size: String,
    pub state: DynoState,
    pub release: ReleaseRef,
    /// Where to attach to a run: a WebSocket, once.
    pub attach_url: Option<String>,
    pub created_at: Time,
    /// Since when it is in its state.
    pub updated_at: Time,
    /// Flex: starts after the first.
    pub restarts: u32,
    /// Flex: what is wrong with it.
    pub message: Option<String>,
}

/// A one-off command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateDyno {
    pub command: String,
    /// Wait for a client; otherwise the output goes to the log.
    #[serde(default)]
    pub attach: bool,
    /// Config vars of this run alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Memory, such as `1G`, or a size that the server names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// No terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_no_tty: Option<bool>,
    /// The process type whose size it has, and whose command if `command` is empty.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Seconds after which it is stopped, at most the server's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<u64>,
    /// Flex: a terminal for a run that nobody waits for, to attach to later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
}

/// Flex: a command to run inside a running instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateExec {
    /// As typed, for the app's shell; empty (and no `argv`): a shell.
    #[serde(default)]
    pub command: String,
    /// Words that no shell sees, instead of `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Environment variables of this command alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether it gets a terminal; its size is in `COLUMNS` and `LINES`.
    #[serde(default)]
    pub tty: bool,
}

/// Flex: a look at a running instance or one-off command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateAttach {
    /// How many lines of earlier output are shown first, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
}

/// Flex: a session that waits for its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionCreated {
    /// Where to attach: a WebSocket, once.
    pub attach_url: String,
    /// Of the instance, such as `web.1`.
    pub name: String,
    /// Whether there is a terminal.
    pub tty: bool,
    /// Whether what is sent reaches it.
    pub stdin: bool,
}

/// Flex: a one-off command, running or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunInfo {
    #[schema(value_type = Id)]
    pub id: InstanceId,
    /// `run.4711`.
    pub name: String,
    pub app: AppRef,
    pub command: String,
    /// Memory, such as `512M`, or the size's name.
    pub size: String,
    /// E-mail of who started it.
    pub user: String,
    pub release: ReleaseRef,
    /// Whether somebody waited for it.
    pub attached: bool,
    pub started_at: Time,
    /// None: it runs.
    pub ended_at: Option<Time>,
    /// Exit status, 128+n for a signal; none: it runs, or nobody knows.
    pub status: Option<i64>,
    /// Why there is no status.
    pub error: Option<String>,
    /// Whether its memory limit was hit.
    #[serde(default)]
    pub oom: bool,
}

/// Why an instance is where it is, or is not running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Why {
    pub name: String,
    pub lines: Vec<String>,
}

/// How many instances of a process type there are to be, and how large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Formation {
    #[schema(value_type = Id)]
    pub id: Uuid,
    pub app: AppRef,
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub kind: ProcessType,
    pub quantity: u32,
    /// Memory, such as `512M`.
    pub size: String,
    pub dyno_size: NameRef,
    /// Flex: CPU weight, 1024 being ordinary.
    pub cpu_shares: u32,
    /// Flex: hard limit in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Flex: none of it runs until it is started again.
    pub stopped: bool,
    /// None: the image's own.
    pub command: Option<String>,
    pub created_at: Time,
    pub updated_at: Time,
}

/// A change of several process types at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateFormations {
    pub updates: Vec<UpdateFormation>,
    /// Flex: before the first deploy, also of process types that it has yet to bring.
    #[serde(default)]
    pub ahead: bool,
}

/// A change of one process type, named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateFormation {
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub kind: ProcessType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// Memory, such as `512M`, or one of `/dyno-sizes`. Heroku's names of sizes change nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Flex: CPU weight, 1024 being ordinary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u32>,
    /// Flex: hard limit in thousandths of a core; 0 takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
}

/// A change of the process type in the path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scale {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}
