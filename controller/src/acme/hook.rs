//! The operator's program that puts DNS records in place: `PROGRAM [ARGUMENT…] present|cleanup NAME VALUE`.
//!
//! Must not: use a shell, or hand on the server's environment.

use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long it may take; programs that wait for a provider take tens of seconds.
const TIMEOUT: Duration = Duration::from_secs(300);
/// What is told of its output.
const MAX_TOLD: usize = 400;
/// The only variable that it is given.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end.
///
/// # Errors
/// One sentence: that it failed, with the end of what it said.
pub async fn run(hook: &[String], action: &str, name: &str, value: &str) -> Result<(), String> {
    let Some((program, arguments)) = hook.split_first() else { return Err("No program is set for DNS records.".into()) };
    let mut command = Command::new(program);
    command.args(arguments).args([action, name, value]).env_clear().env("PATH", PATH);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(TIMEOUT, command.output()).await;
    let ended = ended.map_err(|_| format!("{program} {action} {name} did not end within {} s.", TIMEOUT.as_secs()))?;
    let output = ended.map_err(|e| format!("{program} cannot be run: {e}."))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect();
    let from = said.char_indices().rev().nth(MAX_TOLD).map_or(0, |(at, _)| at);
    Err(format!("{program} {action} {name} failed ({}): {}", output.status, &said[from..]))
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn gets_its_arguments_as_they_are_and_no_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("said");
        let script = r#"{ for a in "$@"; do echo "<$a>"; done; env | grep -c CARGO; } > "$0""#;
        let hook =
            |script: &str| -> Vec<String> { ["/bin/sh", "-c", script, file.to_str().unwrap(), "a b"].map(String::from).into() };
        super::run(&hook(&format!("{script}; true")), "present", "_acme-challenge.x.test", "-$(id);x").await.unwrap();
        let said = std::fs::read_to_string(&file).unwrap();
        assert_eq!(said, "<a b>\n<present>\n<_acme-challenge.x.test>\n<-$(id);x>\n0\n");
        let e = super::run(&hook("echo no such zone >&2; exit 3"), "present", "n", "v").await.unwrap_err();
        assert!(e.contains("no such zone") && e.contains('3'), "{e}");
        assert!(super::run(&["/nowhere".into()], "present", "n", "v").await.unwrap_err().contains("/nowhere cannot be run"));
    }
}
