//! What the platform writes into an app's log, and into reports: the wording that Heroku's users and tools know.

use flex_model::{Command, ExitInfo, InstanceSpec, InstanceState, Memory};
use std::net::SocketAddr;

/// A state as `flex ps` and the log say it.
pub fn state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Up => "up",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Crashed => "crashed",
        InstanceState::Stopping => "stopping",
        InstanceState::Down => "down",
    }
}

pub fn changed(from: InstanceState, to: InstanceState) -> String {
    format!("State changed from {} to {}", state(from), state(to))
}

pub fn starting(command: &Command) -> String {
    match command {
        Command::Image => "Starting process with the image's own command".into(),
        Command::Launch(line) | Command::Shell(line) => format!("Starting process with command `{line}`"),
        Command::Exec(argv) => format!("Starting process with command `{}`", argv.join(" ")),
    }
}

pub const STOPPING: &str = "Stopping all processes with SIGTERM";

pub fn exited(exit: &ExitInfo) -> String {
    format!("Process exited with status {}", exit.status)
}

pub fn out_of_memory(name: &str, spec: Option<&InstanceSpec>) -> String {
    let limit = spec.map(|s| format!(" of {}", s.memory)).unwrap_or_default();
    let more = spec.map_or_else(|| "1G".to_owned(), |s| Memory::from_mib((s.memory.mib() * 2).max(64)).to_string());
    format!(
        "Error R15 (Memory quota vastly exceeded): the process was killed at its memory limit{limit}. More: flex ps:resize {}={more}",
        process_of(name)
    )
}

/// `web.1` is one of `web`.
fn process_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(p, _)| p)
}

/// An instance that ends again and again is started less and less often.
pub fn backing_off(crashes: u32, pause: std::time::Duration) -> String {
    format!(
        "Ended by itself {crashes} times in a row; next start in {} s. Why: flex ps:history, flex logs. A fixed release starts at once",
        pause.as_secs().max(1)
    )
}

pub fn exit_timeout(grace_seconds: u32) -> String {
    format!(
        "Error R12 (Exit timeout) -> Process failed to exit within {grace_seconds} seconds of SIGTERM; stopping it with SIGKILL"
    )
}

/// `what` is the reason, as [`listeners`] or the last probe gives it.
pub fn boot_timeout(name: &str, spec: &InstanceSpec, why: Option<&str>) -> String {
    let seconds = spec.check.start_seconds;
    let why = why.map(|w| format!(": {w}")).unwrap_or_default();
    match (&spec.check.probe, spec.port) {
        (flex_model::HealthProbe::Tcp, Some(_)) => {
            format!(
                "Error R10 (Boot timeout) -> Web process failed to bind to $PORT within {seconds} seconds of launch{why}. Listen on 0.0.0.0 and the port in $PORT; a slow start: flex checks:set {} --grace {}",
                process_of(name),
                more(seconds)
            )
        }
        _ => format!(
            "Error R10 (Boot timeout) -> Process failed its health check for the first {seconds} seconds{why}. Look at or change the check: flex checks, flex checks:set {} --grace {}",
            process_of(name),
            more(seconds)
        ),
    }
}

/// A longer grace to propose.
fn more(seconds: u32) -> u32 {
    seconds.saturating_mul(2).min(3600)
}

/// What it listens on, where that is not what it should listen on; none if it listens rightly.
pub fn listeners(sockets: &[SocketAddr], port: u16) -> Option<String> {
    let reachable = |s: &&SocketAddr| s.port() == port && !s.ip().is_loopback();
    if sockets.iter().any(|s| reachable(&s)) {
        return None;
    }
    let mut shown: Vec<_> = sockets.iter().map(|s| (s.ip().is_loopback(), s.port(), s.ip().to_string())).collect();
    // The same port on two address families says nothing more.
    shown.sort();
    shown.dedup_by_key(|s| (s.0, s.1));
    if shown.is_empty() {
        return Some(format!("it listens on no port; it should listen on 0.0.0.0:{port} (the PORT config var)"));
    }
    let list: Vec<_> = shown.iter().take(4).map(|(_, port, ip)| format!("port {port} on {ip}")).collect();
    Some(format!("bound {} instead of 0.0.0.0:{port}", list.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_port_is_named() {
        let say = |list: &[&str]| listeners(&list.iter().map(|s| s.parse().unwrap()).collect::<Vec<_>>(), 5000);
        assert_eq!(say(&["127.0.0.1:3000"]).unwrap(), "bound port 3000 on 127.0.0.1 instead of 0.0.0.0:5000");
        assert_eq!(say(&["0.0.0.0:3000", "[::]:3000"]).unwrap(), "bound port 3000 on 0.0.0.0 instead of 0.0.0.0:5000");
        assert_eq!(say(&["127.0.0.1:5000"]).unwrap(), "bound port 5000 on 127.0.0.1 instead of 0.0.0.0:5000");
        assert_eq!(say(&["[::]:5000", "127.0.0.1:9"]), None);
        assert!(say(&[]).unwrap().starts_with("it listens on no port"));
    }
}
