//! What `scripts/up` does to an engine that ends all containers when it restarts.

use crate::private::Engine;
use flex_tests::{root, wait_for};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs `ensure_engine` of the scripts, which takes this engine for the machine's own; or for somebody else's, by
/// `FLEXD_DOCKER`.
fn ensure(engine: &Engine, foreign: bool) -> String {
    let ours = "ENGINE_SOCKET=$1 ENGINE_CONFIG=$2 ENGINE_PID=$3; ensure_engine";
    let script = format!(
        "set -euo pipefail; . scripts/lib/common.sh; . scripts/lib/engine.sh; {}",
        if foreign { "ensure_engine" } else { ours }
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script, "ensure"]).args([engine.socket(), engine.config(), engine.pid_file()]);
    if foreign {
        command.env("FLEXD_DOCKER", engine.socket());
    } else {
        command.env_remove("FLEXD_DOCKER");
    }
    let out = command.current_dir(root()).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    said
}

fn docker(socket: &Path, args: &[&str]) -> String {
    let host = format!("unix://{}", socket.display());
    let out = Command::new("docker").args(["-H", &host]).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn it_is_switched_on_and_nothing_else_is_touched() {
    let settings = r#"{ "userland-proxy": false, "labels": ["of=the operator"] }"#;
    let engine = Engine::start_with(settings);
    let keeps = || docker(&engine.socket(), &["info", "--format", "{{.LiveRestoreEnabled}}"]);
    let written = || fs::read_to_string(engine.config()).unwrap();
    let pid = fs::read_to_string(engine.pid_file()).unwrap();
    assert_eq!(keeps(), "false");

    // One that somebody else looks after is told of and left alone.
    let said = ensure(&engine, true);
    assert!(said.contains("switch on its live-restore"), "{said}");
    assert_eq!((written().as_str(), keeps().as_str()), (settings, "false"));

    // A swarm knows no live-restore: the engine would not even start with it.
    docker(&engine.socket(), &["swarm", "init", "--advertise-addr", "127.0.0.1"]);
    let said = ensure(&engine, false);
    assert!(said.contains("swarm mode"), "{said}");
    assert_eq!((written().as_str(), keeps().as_str()), (settings, "false"));
    docker(&engine.socket(), &["swarm", "leave", "--force"]);
    wait_for("the swarm to be gone", Duration::from_secs(30), || {
        (docker(&engine.socket(), &["info", "--format", "{{.Swarm.LocalNodeState}}"]) == "inactive").then_some(())
    });

    let said = ensure(&engine, false);
    assert!(said.contains("Switching on"), "{said}");
    assert_eq!(keeps(), "true");
    let now: serde_json::Value = serde_json::from_str(&written()).unwrap();
    let wanted = serde_json::json!({"userland-proxy": false, "labels": ["of=the operator"], "live-restore": true});
    assert_eq!(now, wanted);
    assert_eq!(fs::read_to_string(engine.pid_file()).unwrap(), pid, "it was restarted");
    // Again: nothing is to be done.
    let before = written();
    assert_eq!(ensure(&engine, false), "");
    assert_eq!(written(), before);
}
