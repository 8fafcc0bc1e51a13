//! The git side of an app: its remote, and the ssh that git uses.

use crate::error::{CliError, Result};
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

/// The words of the command that git starts ssh with; plain `ssh` where only a shell could say them.
pub fn ssh_command() -> Vec<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let line = set("GIT_SSH_COMMAND").or_else(|| git(&["config", "--get", "core.sshCommand"]));
    let words = match line {
        Some(line) => words(&line),
        // A program's path, not a command line.
        None => set("GIT_SSH").map(|program| vec![program]),
    };
    words.filter(|w| !w.is_empty()).unwrap_or_else(|| vec!["ssh".to_owned()])
}

/// A command line's words. None where it holds what only a shell can expand.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '$' | '`' | '\\') => return None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (None, '~' | '*' | '?' | '[' | '#' | ';' | '&' | '|' | '<' | '>' | '(' | ')' | '\n') => return None,
            (None, c) if c.is_whitespace() => all.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    quote.is_none().then_some(all)
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
    fn a_command_line_is_taken_apart_where_no_shell_is_needed() {
        let of = |line: &str| words(line).map(|w| w.join("|"));
        assert_eq!(of("ssh -F none -o A=b").as_deref(), Some("ssh|-F|none|-o|A=b"));
        assert_eq!(of("'my ssh'  -o \"A=b c\"'d$'").as_deref(), Some("my ssh|-o|A=b cd$"));
        assert_eq!(of("ssh ''").as_deref(), Some("ssh|"));
        for shells in ["ssh -i $KEY", "ssh -i ~/key", "a; b", "ssh 'x", "ssh \"`x`\"", "ssh a\\ b"] {
            assert_eq!(of(shells), None, "{shells}");
        }
    }
}
