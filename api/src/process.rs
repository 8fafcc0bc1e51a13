//! What is asked of process types beside how many there are: health checks, roll-outs, sizes, and what became of instances.

use crate::schema::{EmailText, Id, ProcessTypeText, Time};
use crate::{ReleaseRef, ReleaseStatus};
use flex_model::{Email, HealthCheck, HealthProbe, InstanceId, Invalid, ProcessType};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a health check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// `GET path` on `PORT` answers 200 to 399.
    Http,
    /// `PORT` accepts connections.
    Tcp,
    /// A command in the instance exits 0.
    Command,
    /// It has run for a while.
    Running,
}

/// Where a health check comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckSource {
    /// `flex checks:set`.
    Set,
    /// `healthchecks` in app.json.
    AppJson,
    Default,
}

/// What proves that an instance of a process type works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessCheck {
    #[serde(rename = "type")]
    #[schema(value_type = ProcessTypeText)]
    pub process: ProcessType,
    pub kind: CheckKind,
    /// Of `http`.
    pub path: Option<String>,
    /// Of `command`: an argument vector.
    pub command: Option<Vec<String>>,
    /// Of `running`: milliseconds.
    pub millis: Option<u64>,
    /// How long an instance may take to become healthy the first time.
    pub start_seconds: u32,
    /// Pause between probes.
    pub interval_seconds: u32,
    /// Time limit of one probe.
    pub timeout_seconds: u32,
    /// Successes in a row that make it healthy.
    pub successes: u32,
    /// Failures in a row that make it unhealthy.
    pub failures: u32,
    pub source: CheckSource,
}

/// A health check to set; what is left out has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetCheck {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<CheckKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
}

impl SetCheck {
    /// The check of this process type that is meant.
    ///
    /// # Errors
    /// The first value that is out of range or missing, by its name.
    pub fn check(&self, process: &ProcessType) -> Result<HealthCheck, Invalid> {
        let default = HealthCheck::default_for(process);
        let range = |what: &'static str, value: Option<u32>, default: u32, max: u32| match value {
            Some(n) if n == 0 || n > max => Err(Invalid::new(what, &n.to_string(), format!("use 1 to {max}"))),
            Some(n) => Ok(n),
            None => Ok(default),
        };
        let kind =
            self.kind.or(self.path.as_ref().map(|_| CheckKind::Http)).or(self.command.as_ref().map(|_| CheckKind::Command));
        let probe = match kind {
            None => default.probe,
            Some(CheckKind::Tcp) => HealthProbe::Tcp,
            Some(CheckKind::Running) => HealthProbe::Running { millis: self.millis.unwrap_or(2000).clamp(100, 3_600_000) },
            Some(CheckKind::Http) => {
                let path = self.path.as_deref().unwrap_or("/");
                if !path.starts_with('/') || path.len() > 2000 || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
                    return Err(Invalid::new("path", path, "it begins with / and holds no spaces"));
                }
                HealthProbe::Http { path: path.to_owned() }
            }
            Some(CheckKind::Command) => {
                let argv = self.command.clone().unwrap_or_default();
                if argv.first().is_none_or(String::is_empty) || argv.iter().any(|a| a.contains('\0')) || argv.len() > 100 {
                    return Err(Invalid::new("command", &argv.join(" "), "give a program and its arguments"));
                }
                HealthProbe::Command { argv }
            }
        };
        Ok(HealthCheck {
            probe,
            start_seconds: range("start_seconds", self.start_seconds, default.start_seconds, 3600)?,
            interval_seconds: range("interval_seconds", self.interval_seconds, default.interval_seconds, 3600)?,
            timeout_seconds: range("timeout_seconds", self.timeout_seconds, default.timeout_seconds, 60)?,
            successes: range("successes", self.successes, default.successes, 100)?,
            failures: range("failures", self.failures, default.failures, 100)?,
        })
    }
}

impl ProcessCheck {
    /// As it is sent.
    pub fn of(process: &ProcessType, check: &HealthCheck, source: CheckSource) -> Self {
        let (kind, path, command, millis) = match &check.probe {
            HealthProbe::Http { path } => (CheckKind::Http, Some(path.clone()), None, None),
            HealthProbe::Tcp => (CheckKind::Tcp, None, None, None),
            HealthProbe::Command { argv } => (CheckKind::Command, None, Some(argv.clone()), None),
            HealthProbe::Running { millis } => (CheckKind::Running, None, None, Some(*millis)),
        };
        Self {
            process: process.clone(),
            kind,
            path,
            command,
            millis,
            start_seconds: check.start_seconds,
            interval_seconds: check.interval_seconds,
            timeout_seconds: check.timeout_seconds,
            successes: check.successes,
            failures: check.failures,
            source,
        }
    }
}

/// How far what runs is from what should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// All of it runs and is reached, and nothing else does.
    pub settled: bool,
    /// Instances that should run.
    pub wanted: usize,
    /// Those of them that are up (and, of `web`, that routers send requests to).
    pub ready: usize,
    /// Instances that are still there and will go.
    pub old: usize,
    /// What should run; none before the first.
    pub release: Option<ReleaseRef>,
    pub status: Option<ReleaseStatus>,
    /// What is in the way, a line each.
    pub problems: Vec<String>,
}

/// How one start of an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PastInstance {
    #[schema(value_type = Id)]
    pub id: InstanceId,
    /// `web.1`.
    pub name: String,
    /// The number of its release, where it is known.
    pub version: Option<u64>,
    pub started_at: Time,
    pub ended_at: Time,
    /// 128+n for a signal. None: it was not seen to exit.
    pub exit_status: Option<i64>,
    /// The kernel killed it for memory.
    pub oom: bool,
    /// It was told to stop; otherwise it ended by itself.
    pub stopped: bool,
    pub reason: String,
    /// The last that it printed.
    pub lines: Vec<String>,
}

/// A size of instances that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DynoSize {
    pub name: String,
    /// Such as `512M`.
    pub memory: String,
    pub cpu_shares: u32,
    /// Hard limit in thousandths of a core.
    pub cpu_millis: Option<u32>,
}

/// Why nothing is to be deployed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockApp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who is to own an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferApp {
    #[schema(value_type = EmailText)]
    pub recipient: Email,
}
