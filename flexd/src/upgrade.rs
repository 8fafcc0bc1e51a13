//! Upgrades in place: at SIGUSR2 this process starts the executable that is in its place by now, with its own arguments and
//! environment. That process takes over, and this one ends. And what systemd is told of it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Stdio;

const TAKE_OVER: &str = "--take-over";

/// For ever. Must be called within the runtime.
pub async fn on_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut asked = match signal(SignalKind::user_defined2()) {
        Ok(asked) => asked,
        Err(e) => return tracing::warn!(error = %e, "SIGUSR2 cannot be heard: there are no upgrades in place"),
    };
    while asked.recv().await.is_some() {
        match begin() {
            Ok(mut child) => {
                tracing::info!(pid = child.id(), "started the process that is to take over from this one");
                // Here again only if it did not: this one would have ended before.
                let ended = child.wait().await;
                tracing::error!(?ended, "the process that was to take over has ended; this one goes on");
            }
            Err(e) => tracing::error!("cannot start the process that is to take over: {e}; this one goes on"),
        }
    }
}

fn begin() -> Result<tokio::process::Child, String> {
    let program = crate::server::own_path()?;
    let mut command = tokio::process::Command::new(&program);
    command.args(std::env::args_os().skip(1));
    if !std::env::args_os().any(|a| a == TAKE_OVER) {
        command.arg(TAKE_OVER);
    }
    command.stdin(Stdio::null()).spawn().map_err(|e| format!("{}: {e}", program.display()))
}

/// Tells systemd, where it wants to be told (`sd_notify`).
pub fn tell_systemd(what: &str) {
    let Some(at) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(e) = tell(&at.to_string_lossy(), what) {
        tracing::warn!(error = %e, "systemd could not be told: {what}");
    }
}

fn tell(at: &str, what: &str) -> std::io::Result<()> {
    let to = match at.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(at)?,
    };
    UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("flexd-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, at) in [
            (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
        ] {
            tell(&at, "MAINPID=7").unwrap();
            let mut said = [0; 32];
            let n = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..n], b"MAINPID=7");
        }
        assert!(tell(dir.path().join("none").to_str().unwrap(), "x").is_err());
    }
}
