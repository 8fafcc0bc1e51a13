//! The allow-list of SSH commands: what a client may ask for, as a grammar. Pure.
//!
//! Invariants: nothing of a command string is ever handed to a shell or, unparsed, to a program; what comes out is one of
//! the variants of [`Request`], and an app in it obeys the grammar of app names.
//!
//! What may be asked of a running app is read by [`session::parse`].

use crate::session::{self, Wanted};
use flex_model::AppName;

/// The longest command that is looked at, in bytes: a verb, two quotes and a 30-character name need 60.
pub const MAX_COMMAND: usize = 512;

/// The two halves of git's transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `git push`.
    ReceivePack,
    /// `git clone`, `git fetch`, `git ls-remote`.
    UploadPack,
}

/// A command that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Git { service: Service, app: AppName },
    App { app: AppName, wanted: Wanted },
}

/// A command that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsupported {
    /// Not on the list. The text is safe to print.
    Verb(String),
    /// An app's command that is not as it should be, in words for the user.
    Usage(String),
    /// A git command whose path does not name an app. The text is safe to print.
    Path(String),
}

/// Reads `git-receive-pack 'app.git'` in the spellings that git clients use: `git receive-pack` for `git-receive-pack`,
/// single, double or no quotes, with or without a leading `/` and the ending `.git`.
pub fn parse(command: &[u8]) -> Result<Request, Unsupported> {
    let asked = std::str::from_utf8(command).ok().filter(|s| s.len() <= session::MAX_COMMAND && !s.contains('\0'));
    match asked.and_then(session::parse) {
        Some(Ok((app, wanted))) => return Ok(Request::App { app, wanted }),
        Some(Err(why)) => return Err(Unsupported::Usage(why)),
        None => {}
    }
    let text = std::str::from_utf8(command).ok().filter(|s| s.len() <= MAX_COMMAND && !s.chars().any(char::is_control));
    let text = text.ok_or_else(|| Unsupported::Verb(printable(command)))?.trim_matches(' ');
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (verb, rest) = match (verb, rest.split_once(' ')) {
        ("git", Some((sub, rest))) => (sub, rest),
        ("git", None) => ("", ""),
        _ => (verb.strip_prefix("git-").unwrap_or(""), rest),
    };
    match verb {
        "receive-pack" => git(Service::ReceivePack, rest),
        "upload-pack" => git(Service::UploadPack, rest),
        _ => Err(Unsupported::Verb(printable(command))),
    }
}

fn git(service: Service, argument: &str) -> Result<Request, Unsupported> {
    let bad = || Unsupported::Path(printable(argument.as_bytes()));
    let path = unquote(argument).ok_or_else(bad)?;
    let name = path.strip_prefix('/').unwrap_or(path);
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = name.strip_suffix(".git").unwrap_or(name);
    Ok(Request::Git { service, app: name.parse().map_err(|_| bad())? })
}

/// One shell word without anything that a shell would expand: the quotes come off in pairs and none may be inside.
fn unquote(word: &str) -> Option<&str> {
    let inner = match word.as_bytes() {
        [b'\'', .., b'\''] | [b'"', .., b'"'] if word.len() >= 2 => &word[1..word.len() - 1],
        _ => word,
    };
    (!inner.contains(['\'', '"', ' '])).then_some(inner)
}

/// What of a client's bytes may go to a terminal or a log: printable ASCII, at most 80 characters.
pub fn printable(bytes: &[u8]) -> String {
    bytes.iter().take(80).map(|b| if b.is_ascii_graphic() || *b == b' ' { *b as char } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn app(service: Service, name: &str) -> Result<Request, Unsupported> {
        Ok(Request::Git { service, app: name.parse().unwrap() })
    }

    #[test]
    fn spellings_of_git() {
        for line in [
            "git-receive-pack 'my-app.git'",
            "git-receive-pack '/my-app.git'",
            "git-receive-pack 'my-app'",
            "git-receive-pack my-app.git",
            "git-receive-pack \"/my-app\"",
            "git receive-pack 'my-app.git'",
            "git receive-pack '/my-app.git/'",
            " git-receive-pack 'my-app.git' ",
        ] {
            assert_eq!(parse(line.as_bytes()), app(Service::ReceivePack, "my-app"), "{line}");
        }
        assert_eq!(parse(b"git-upload-pack '/my-app.git'"), app(Service::UploadPack, "my-app"));
        assert_eq!(parse(b"git upload-pack my-app"), app(Service::UploadPack, "my-app"));
    }

    /// What attackers and mistaken users send. The left column is from reports about other git servers.
    #[test]
    fn everything_else_is_refused() {
        let table: &[&[u8]] = &[
            b"",
            b" ",
            b"git",
            b"git ",
            b"git-",
            b"sh",
            b"bash -i",
            b"/bin/sh -c id",
            b"id; git-receive-pack 'my-app.git'",
            b"git-receive-pack",
            b"git-receive-pack ",
            b"git-receive-pack ''",
            b"git-receive-pack '",
            b"git-receive-pack '.git'",
            b"git-receive-pack 'my-app.git'; id",
            b"git-receive-pack 'my-app.git' && id",
            b"git-receive-pack 'my-app.git' | id",
            b"git-receive-pack 'my-app.git' 'other.git'",
            b"git-receive-pack 'my-app'x'.git'",
            b"git-receive-pack 'my-app'\\''.git'",
            b"git-receive-pack `id`",
            b"git-receive-pack $(id)",
            b"git-receive-pack '$(id)'",
            b"git-receive-pack '../other.git'",
            b"git-receive-pack '/srv/../my-app.git'",
            b"git-receive-pack '/etc'x",
            b"git-receive-pack '//my-app.git'",
            b"git-receive-pack '~/my-app.git'",
            b"git-receive-pack '-upload.git'",
            b"git-receive-pack '--help'",
            b"git-receive-pack --stateless-rpc 'my-app.git'",
            b"git-receive-pack 'my-app.git'\n",
            b"git-receive-pack 'my\napp.git'",
            b"git-receive-pack 'my-app.git\0'",
            b"git-receive-pack 'MY-APP.git'",
            b"git-receive-pack 'my_app.git'",
            b"git-receive-pack 'm\xc3\xa4.git'",
            b"git-receive-pack '\xff\xfe.git'",
            b"git-receive-pack\t'my-app.git'",
            b"git-receive-packer 'my-app.git'",
            b"git-receive-pack  'my-app.git'",
            b"git-upload-archive 'my-app.git'",
            b"git upload-archive 'my-app.git'",
            b"git -c core.sshCommand=id receive-pack 'my-app.git'",
            b"git --exec-path=/tmp receive-pack 'my-app.git'",
            b"git-shell",
            b"git-lfs-authenticate my-app.git download",
            b"GIT-RECEIVE-PACK 'my-app.git'",
            b"env GIT_DIR=/ git-receive-pack 'my-app.git'",
            b"scp -t /tmp",
            b"sftp-server",
            b"rsync --server",
            b"internal-sftp",
            b"receive-pack 'my-app.git'",
        ];
        for line in table {
            assert!(parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
        assert!(parse(format!("git-receive-pack '{}'", "a".repeat(MAX_COMMAND)).as_bytes()).is_err());
    }

    proptest! {
        /// Whatever comes in, an accepted path is an app name and a refusal is safe to print.
        #[test]
        fn never_lets_more_than_a_name_through(tail in proptest::collection::vec(any::<u8>(), 0..60), verb in 0..5usize) {
            let verbs: [&[u8]; 5] = [b"git-receive-pack ", b"git upload-pack '", b"git-upload-pack ", b"git ", b""];
            let command = [verbs[verb], &tail].concat();
            match parse(&command) {
                Ok(Request::Git { app, .. } | Request::App { app, .. }) => prop_assert!(app.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')),
                Err(Unsupported::Verb(t) | Unsupported::Path(t) | Unsupported::Usage(t)) => {
                    prop_assert!(t.len() <= 80 && t.bytes().all(|b| (b' '..=b'~').contains(&b)));
                }
            }
        }
    }
}
