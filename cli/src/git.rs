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

/// What `~/.ssh/known_hosts` says of the server's host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKey {
    Known,
    Unknown,
    /// Another key is known for that host: ssh will refuse it.
    Differs,
}

/// The file of known hosts, and how a host and port are written in it.
fn known_hosts(host: &str, port: u16) -> Option<(PathBuf, String)> {
    let file = PathBuf::from(std::env::var_os("HOME")?).join(".ssh/known_hosts");
    Some((file, known_name(host, port)))
}

/// As `known_hosts` writes a host: with its port where that is not 22.
pub fn known_name(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// Whether the server's host key is among the known ones. `ssh-keygen` looks, since names may be hashed.
pub fn host_key(host: &str, port: u16, key: &str) -> HostKey {
    let Some((file, name)) = known_hosts(host, port) else { return HostKey::Unknown };
    let text = match Command::new("ssh-keygen").args(["-F", &name, "-f"]).arg(&file).output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(_) => std::fs::read_to_string(&file).unwrap_or_default().lines().filter(|l| names(l, &name)).fold(
            String::new(),
            |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            },
        ),
    };
    known(&text, key)
}

fn names(line: &str, name: &str) -> bool {
    line.split_whitespace().next().is_some_and(|names| names.split(',').any(|n| n == name))
}

/// Of the lines about one host.
fn known(lines: &str, key: &str) -> HostKey {
    let wanted: Vec<&str> = key.split_whitespace().take(2).collect();
    let found: Vec<Vec<&str>> = lines
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| l.split_whitespace().skip(1).take(2).collect())
        .filter(|k: &Vec<&str>| k.first() == wanted.first())
        .collect();
    match found.first() {
        None => HostKey::Unknown,
        Some(_) if found.contains(&wanted) => HostKey::Known,
        Some(_) => HostKey::Differs,
    }
}

/// Adds the server's host key to `~/.ssh/known_hosts` unless it is there, so that the first push asks nothing. A
/// different key for that host is left alone: ssh will say so, as it should.
pub fn know_host(host: &str, port: u16, key: &str) -> Result<()> {
    let Some((file, name)) = known_hosts(host, port) else { return Ok(()) };
    if host_key(host, port, key) != HostKey::Unknown {
        return Ok(());
    }
    let doing = || while_doing(format!("write {}", file.display()));
    if let Some(dir) = file.parent().filter(|d| !d.exists()) {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(dir).map_err(doing())?;
    }
    let before = std::fs::read(&file).unwrap_or_default();
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(&file).map_err(doing())?;
    let newline = if before.is_empty() || before.ends_with(b"\n") { "" } else { "\n" };
    writeln!(out, "{newline}{name} {}", key.trim()).map_err(doing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_of_urls() {
        for url in ["ssh://git@localhost:2222/my-app.git", "git@host:my-app.git", "https://h/my-app.git/", "http://h/my-app"] {
            assert_eq!(app_of(url).as_deref(), Some("my-app"), "{url}");
        }
        assert_eq!(app_of("https://github.com/a/B.git"), None);
    }

    #[test]
    fn host_keys_are_known_by_kind_and_key() {
        let lines = "# Host [h]:2222 found: line 1\n[h]:2222 ssh-rsa AAAR\n|1|x|y ssh-ed25519 AAAA comment\n";
        assert_eq!(known(lines, "ssh-ed25519 AAAA flexd"), HostKey::Known);
        assert_eq!(known(lines, "ssh-ed25519 BBBB"), HostKey::Differs);
        assert_eq!(known("", "ssh-ed25519 BBBB"), HostKey::Unknown);
        assert_eq!((known_name("h", 22), known_name("h", 2222)), ("h".into(), "[h]:2222".into()));
        assert!(names("[h]:2222,h2 ssh-rsa AAAR", "h2") && !names("[h]:2222 ssh-rsa", "h"));
    }
}
