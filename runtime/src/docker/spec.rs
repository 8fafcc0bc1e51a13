//! What the engine is asked to make: pure translation of the seam's specs into the engine's words, hardening included.
//!
//! Invariants: every container has all capabilities dropped, no way to gain privileges, the engine's default seccomp
//! profile, an init process, and hard limits on memory (swap included), processes and open files. The OOM score is left
//! alone: engines without `CAP_SYS_RESOURCE` cannot start a container that lowers it.

use super::labels::{self, Kind, Tag};
use crate::{Desired, JobSpec, SandboxSpec, TtySize};
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits};
use flex_model::{Command, InstanceSpec, Memory, Secret};
use std::collections::{BTreeMap, HashMap};

/// Soft and hard limit on open files: what Heroku gives, and below what an engine with few rights may set.
const OPEN_FILES: i64 = 10_000;

/// The engine's log driver for what is read from files.
pub(crate) const LOCAL_LOG: &str = "local";

/// The launcher of the stack images.
const LAUNCHER: &str = "/opt/flex/launch";

/// Names in this installation.
pub(crate) struct Names {
    pub(crate) cluster: String,
    /// The instances' network.
    pub(crate) network: String,
    /// The builds' network.
    pub(crate) build_network: String,
}

impl Names {
    /// The engine's name of a cache volume.
    pub(crate) fn volume(&self, name: &str) -> String {
        format!("flex-{}-cache-{name}", self.cluster)
    }
    /// The engine's name of a sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> String {
        format!("flex-{}-build-{id}", self.cluster)
    }
}

fn hardened(memory: Memory, pids: u32, open_files: i64, network: &str) -> HostConfig {
    let bytes = i64::try_from(memory.bytes()).unwrap_or(i64::MAX);
    HostConfig {
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges:true".into()]),
        privileged: Some(false),
        init: Some(true),
        memory: Some(bytes),
        // Memory and swap together, so: no swap beyond the memory limit.
        memory_swap: Some(bytes),
        pids_limit: Some(i64::from(pids)),
        // No core files: they would fill the disk with what was in memory.
        ulimits: Some(vec![limit("nofile", open_files), limit("core", 0)]),
        network_mode: Some(network.to_owned()),
        ipc_mode: Some("private".into()),
        ..HostConfig::default()
    }
}

fn limit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(most), hard: Some(most) }
}

/// The `local` driver: it keeps bytes as they are. Not compressed, since a compressed file cannot be read on from a place.
fn log_files() -> HostConfigLogConfig {
    let options = [("max-size", "10m"), ("max-file", "3"), ("compress", "false")];
    let config = options.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    HostConfigLogConfig { typ: Some(LOCAL_LOG.into()), config: Some(config) }
}

pub(crate) fn env(vars: &BTreeMap<String, Secret>) -> Vec<String> {
    vars.iter().map(|(k, v)| format!("{k}={}", v.expose())).collect()
}

/// Entry point and arguments; none: the image's own.
fn argv(command: &Command) -> Option<Vec<String>> {
    match command {
        Command::Image => None,
        Command::Launch(line) => Some(vec![LAUNCHER.into(), line.clone()]),
        Command::Shell(line) => Some(vec!["/bin/sh".into(), "-c".into(), line.clone()]),
        Command::Exec(argv) => Some(argv.clone()),
    }
}

/// Engines before API 1.42 make every terminal 0 by 0 and can resize it only once the program runs. Where there is a
/// shell for certain it sets the size before the program starts; its text is constant, all else are arguments.
pub(crate) fn sized(argv: Vec<String>, size: TtySize) -> Vec<String> {
    // Only while it has none (which busybox's stty calls an error): it may have been resized meanwhile.
    const SET: &str =
        r#"case "$(stty size 2>/dev/null)" in ""|"0 0") stty rows "$1" cols "$2" 2>/dev/null;; esac; shift 2; exec "$@""#;
    let mut all = vec!["/bin/sh".into(), "-c".into(), SET.into(), "sh".into(), size.rows.to_string(), size.cols.to_string()];
    all.extend(argv);
    all
}

fn body(tag: &Tag, cluster: &str, kind: Kind, spec: &InstanceSpec, network: &str) -> ContainerCreateBody {
    let mut host = hardened(spec.memory, spec.pids, OPEN_FILES, network);
    host.cpu_shares = Some(i64::from(spec.cpu_shares));
    // Billionths of a core.
    host.nano_cpus = spec.cpu_millis.map(|m| i64::from(m) * 1_000_000);
    if spec.read_only_root {
        host.readonly_rootfs = Some(true);
        let size = spec.memory.bytes() / 2;
        host.tmpfs = Some(HashMap::from([("/tmp".to_owned(), format!("rw,exec,nosuid,nodev,mode=1777,size={size}"))]));
    }
    let argv = argv(&spec.command);
    ContainerCreateBody {
        image: Some(spec.image.reference.clone()),
        env: Some(env(&spec.env)),
        labels: Some(tag.labels(cluster, kind)),
        stop_signal: Some("SIGTERM".into()),
        stop_timeout: Some(i64::from(spec.stop_grace_seconds)),
        // An entry point that is given replaces the image's own, and with it the image's command.
        entrypoint: argv.as_ref().map(|a| a.iter().take(1).cloned().collect()),
        cmd: argv.map(|a| a.into_iter().skip(1).collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// An instance's container.
pub(crate) fn instance(d: &Desired, names: &Names) -> ContainerCreateBody {
    let mut body = body(&Tag::of(d), &names.cluster, Kind::Instance, &d.spec, &names.network);
    if let Some(host) = &mut body.host_config {
        host.log_config = Some(log_files());
    }
    body
}

/// A job's container; `console_size` says whether the engine takes a terminal's size at creation (API 1.42).
pub(crate) fn job(j: &JobSpec, names: &Names, console_size: bool) -> ContainerCreateBody {
    let tag = Tag::of_job(j);
    let mut body = body(&tag, &names.cluster, Kind::Job, &j.spec, &names.network);
    if let (Some(size), false) = (j.tty, console_size)
        && matches!(j.spec.command, Command::Launch(_) | Command::Shell(_))
    {
        let argv = sized(argv(&j.spec.command).unwrap_or_default(), size);
        body.entrypoint = Some(argv[..1].to_vec());
        body.cmd = Some(argv[1..].to_vec());
    }
    body.tty = Some(j.tty.is_some());
    body.open_stdin = Some(j.stdin);
    body.stdin_once = Some(j.stdin);
    body.attach_stdin = Some(j.stdin);
    body.attach_stdout = Some(true);
    body.attach_stderr = Some(true);
    if let Some(labels) = &mut body.labels {
        labels.insert(labels::REAP.into(), j.instance.to_string());
    }
    if let Some(host) = &mut body.host_config {
        // Its client is the only reader; without one it does not run on.
        host.log_config = Some(HostConfigLogConfig { typ: Some("none".into()), config: None });
        host.console_size = j.tty.filter(|_| console_size).map(|s| vec![usize::from(s.rows), usize::from(s.cols)]);
    }
    body
}

/// As [`job`], for one that needs no client: its output goes to the engine's files, and it stays until it is removed.
pub(crate) fn run(j: &JobSpec, names: &Names, console_size: bool) -> ContainerCreateBody {
    let mut body = job(j, names, console_size);
    // Input can only be given at a terminal that somebody attaches to; who leaves does not end it.
    body.open_stdin = Some(j.tty.is_some());
    body.stdin_once = Some(false);
    body.attach_stdin = Some(false);
    body.attach_stdout = Some(false);
    body.attach_stderr = Some(false);
    if let Some(labels) = &mut body.labels {
        labels.remove(labels::REAP);
        labels.insert(labels::KIND.into(), Kind::Run.label().into());
    }
    if let Some(host) = &mut body.host_config {
        host.log_config = Some(log_files());
    }
    body
}

/// A sandbox's container: lives until it is destroyed.
pub(crate) fn sandbox(s: &SandboxSpec, names: &Names) -> ContainerCreateBody {
    let mut host = hardened(s.memory, s.pids, OPEN_FILES, &names.build_network);
    host.nano_cpus = s.cpu_millis.map(|m| i64::from(m) * 1_000_000);
    // Below apps, when the machine is busy.
    host.cpu_shares = Some(512);
    host.log_config = Some(HostConfigLogConfig { typ: Some("none".into()), config: None });
    let mut mounts: Vec<Mount> = s
        .read_only_mounts
        .iter()
        .map(|(from, to)| Mount {
            typ: Some(MountType::BIND),
            source: Some(from.to_string_lossy().into_owned()),
            target: Some(to.clone()),
            read_only: Some(true),
            ..Mount::default()
        })
        .collect();
    if let Some((name, at)) = &s.cache {
        mounts.push(Mount {
            typ: Some(MountType::VOLUME),
            source: Some(names.volume(name)),
            target: Some(at.clone()),
            ..Mount::default()
        });
    }
    host.mounts = Some(mounts);
    let mut labels = labels::base(&names.cluster, Kind::Sandbox);
    labels.insert(labels::REAP.into(), s.id.clone());
    ContainerCreateBody {
        image: Some(s.image.clone()),
        env: Some(env(&s.env)),
        labels: Some(labels),
        user: s.user.clone(),
        // Not `infinity`, which not every sleep knows: 68 years.
        entrypoint: Some(vec!["/bin/sleep".into()]),
        cmd: Some(vec!["2147483647".into()]),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}
