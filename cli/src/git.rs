//! The git side of an app: its remote, and the server's host key among the known ones.

use crate::error::{CliError, Result, while_doing};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// The remote's name unless someone says otherwise.
pub const REMOTE: &str = "flex";

fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).stderr(std::process::Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Whether this is inside a work tree.
pub fn in_repository() -> bool {
    git(&["rev-parse", "--is-inside-work-tree"]).as_deref() == Some("true")
}

/// The app that a remote's URL names: `ssh://git@HOST:2222/app.git`.
fn app_of(url: &str) -> Option<String> {
    let name = url.trim_end_matches('/').rsplit(['/', ':']).next()?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    name.parse::<flex_model::AppName>().ok().map(|n| n.to_string())
}

/// The app of a remote.
pub fn app_of_remote(remote: &str) -> Option<String> {
    app_of(&git(&["remote", "get-url", "--", remote])?)
}

/// Makes (or points) the remote.
pub fn set_remote(remote: &str, url: &str) -> Result<()> {
    let verb: &[&str] =
        if git(&["remote", "get-url", "--", remote]).is_some() { &["remote", "set-url"] } else { &["remote", "add"] };
    let args = [verb, &["--", remote, url]].concat();
    git(&args).map(drop).ok_or_else(|| CliError::failed(format!("git could not set the remote {remote} to {url}.")))
}

/// Adds the server's host key to `~/.ssh/known_hosts` unless it is there, so that the first push asks nothing. A
/// different key for that host is left alone: ssh will say so, as it should.
pub fn know_host(host: &str, port: u16, key: &str) -> Result<()> {
    let Some(home) = std::env::var_os("HOME") else { return Ok(()) };
    let dir = PathBuf::from(home).join(".ssh");
    let file = dir.join("known_hosts");
    let name = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    if known.lines().any(|l| l.split_whitespace().next().is_some_and(|names| names.split(',').any(|n| n == name))) {
        return Ok(());
    }
    let doing = || while_doing(format!("write {}", file.display()));
    if !dir.exists() {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir).map_err(doing())?;
    }
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(&file).map_err(doing())?;
    let newline = if known.is_empty() || known.ends_with('\n') { "" } else { "\n" };
    writeln!(out, "{newline}{name} {}", key.trim()).map_err(doing())
}

#[cfg(test)]
mod tests {
    use super::app_of;

    #[test]
    fn apps_of_urls() {
        for url in ["ssh://git@localhost:2222/my-app.git", "git@host:my-app.git", "https://h/my-app.git/", "http://h/my-app"] {
            assert_eq!(app_of(url).as_deref(), Some("my-app"), "{url}");
        }
        assert_eq!(app_of("https://github.com/a/B.git"), None);
    }
}
