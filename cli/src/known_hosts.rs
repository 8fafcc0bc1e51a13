//! The server's host key among those that ssh knows.
//!
//! Where ssh looks is ssh's own affair: not below `$HOME` but in the home of the user database, unless a setting says otherwise.
//! So it is asked, with the command and the options that git will start it with.

use crate::error::{Result, while_doing};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the files of known hosts say of the server's host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKey {
    Known,
    Unknown,
    /// Another key is known for that host: ssh will refuse it.
    Differs,
}

/// As `known_hosts` writes a host: with its port where that is not 22.
pub fn name_of(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// The files in which git's ssh looks for that server's key, the one that it would write to first. None: it looks in none.
fn files(host: &str, port: u16) -> Vec<PathBuf> {
    let [program, options @ ..] = &crate::git::ssh_command()[..] else { return Vec::new() };
    let ask = |program: &str, options: &[String]| {
        let port = port.to_string();
        let out = Command::new(program)
            .args(options)
            .args(["-G", "-p", &port, "--", &format!("git@{host}")])
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        of_settings(&String::from_utf8_lossy(&out.stdout))
    };
    // What git starts may be a script that knows nothing of this question.
    ask(program, options)
        .or_else(|| ask("ssh", &[]))
        .unwrap_or_else(|| home().map(|h| h.join(".ssh/known_hosts")).into_iter().collect())
}

/// Of what `ssh -G` tells. None: it tells nothing of them.
fn of_settings(told: &str) -> Option<Vec<PathBuf>> {
    let value = told.lines().find_map(|l| l.strip_prefix("userknownhostsfile "))?.trim();
    // Names may hold blanks and are not quoted, but each begins at the root.
    let starts = value.match_indices(" /").map(|(at, _)| at);
    let (mut all, mut from) = (Vec::new(), 0);
    for end in starts.chain([value.len()]) {
        all.push(value[from..end].trim());
        from = end;
    }
    // `none`, and what is thrown away.
    let real = |f: &&str| f.starts_with('/') && *f != "/dev/null";
    Some(all.into_iter().filter(real).map(PathBuf::from).collect())
}

/// Where ssh is at home.
fn home() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten();
    user.map(|u| u.dir).or_else(|| std::env::var_os("HOME").map(PathBuf::from))
}

/// Whether the server's host key is among the known ones, and the file that says so, or would.
pub fn host_key(host: &str, port: u16, key: &str) -> (HostKey, Option<PathBuf>) {
    let (name, files) = (name_of(host, port), files(host, port));
    for file in &files {
        match known(&lines_of(file, &name), key) {
            HostKey::Unknown => {}
            found => return (found, Some(file.clone())),
        }
    }
    (HostKey::Unknown, files.into_iter().next())
}

/// A file's lines about one host. `ssh-keygen` looks, since names may be hashed.
fn lines_of(file: &Path, name: &str) -> String {
    match Command::new("ssh-keygen").args(["-F", name, "-f"]).arg(file).stdin(Stdio::null()).output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(_) => {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().filter(|l| names(l, name)).collect::<Vec<_>>().join("\n")
        }
    }
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

/// Adds the server's host key where ssh will look, unless it is there, so that the first push asks nothing. A different key for
/// that host is left alone: ssh will say so, as it should.
pub fn add(host: &str, port: u16, key: &str) -> Result<()> {
    let (HostKey::Unknown, Some(file)) = host_key(host, port, key) else { return Ok(()) };
    let doing = || while_doing(format!("write {}", file.display()));
    if let Some(dir) = file.parent().filter(|d| !d.exists()) {
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(doing())?;
    }
    let before = std::fs::read(&file).unwrap_or_default();
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(&file).map_err(doing())?;
    let newline = if before.is_empty() || before.ends_with(b"\n") { "" } else { "\n" };
    // In one write: others may add theirs at the same time.
    let line = format!("{newline}{} {}\n", name_of(host, port), key.trim());
    out.write_all(line.as_bytes()).map_err(doing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_known_by_kind_and_key() {
        let lines = "# Host [h]:2222 found: line 1\n[h]:2222 ssh-rsa AAAR\n|1|x|y ssh-ed25519 AAAA comment\n";
        assert_eq!(known(lines, "ssh-ed25519 AAAA flexd"), HostKey::Known);
        assert_eq!(known(lines, "ssh-ed25519 BBBB"), HostKey::Differs);
        assert_eq!(known("", "ssh-ed25519 BBBB"), HostKey::Unknown);
        assert_eq!((name_of("h", 22), name_of("h", 2222)), ("h".into(), "[h]:2222".into()));
        assert!(names("[h]:2222,h2 ssh-rsa AAAR", "h2") && !names("[h]:2222 ssh-rsa", "h"));
    }

    #[test]
    fn ssh_says_where_it_looks() {
        let of = |value: &str| of_settings(&format!("user git\nuserknownhostsfile {value}\nport 2222\n"));
        let paths = |all: &[&str]| Some(all.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(
            of("/root/.ssh/known_hosts /root/.ssh/known_hosts2"),
            paths(&["/root/.ssh/known_hosts", "/root/.ssh/known_hosts2"])
        );
        assert_eq!(of("/home/a b/known /c"), paths(&["/home/a b/known", "/c"]));
        assert_eq!((of("none"), of("/dev/null")), (paths(&[]), paths(&[])));
        assert_eq!(of_settings("user git\n"), None);
    }
}
