//! Every word that the receiver says to a person, in one place. Pure.

use crate::{Refusal, exec::Unsupported, git::Complaint};

/// The lines as git users know them from Heroku: ` !     …`, ended with CR LF, which is right on raw terminals too.
pub fn refusal(lines: &[String]) -> String {
    lines.iter().map(|l| format!(" !     {l}\r\n")).collect()
}

fn lines(lines: &[&str]) -> Refusal {
    Refusal { lines: lines.iter().map(|l| (*l).to_owned()).collect() }
}

/// A key that the client offered and nobody has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// `SHA256:…`
    pub fingerprint: String,
    /// `ssh-ed25519`, …
    pub algorithm: String,
}

impl UnknownKey {
    /// Where OpenSSH keeps a key of this kind if its owner does not say otherwise.
    fn usual_file(&self) -> &'static str {
        match self.algorithm.as_str() {
            a if a.starts_with("sk-ssh-ed25519") => "~/.ssh/id_ed25519_sk.pub",
            a if a.starts_with("sk-ecdsa") => "~/.ssh/id_ecdsa_sk.pub",
            a if a.starts_with("ecdsa") => "~/.ssh/id_ecdsa.pub",
            a if a.contains("rsa") => "~/.ssh/id_rsa.pub",
            _ => "~/.ssh/id_ed25519.pub",
        }
    }
}

/// Said when the client has run out of keys, or out of tries.
pub fn unknown_keys(keys: &[UnknownKey], out_of_tries: bool) -> Refusal {
    let mut out = Vec::new();
    match keys {
        [] => {
            out.push("No SSH key was offered. Flex knows its users by their keys.".to_owned());
            out.push("Make one, register it, and try again:".to_owned());
            out.push("  ssh-keygen -t ed25519".to_owned());
            out.push("  flex keys:add ~/.ssh/id_ed25519.pub".to_owned());
        }
        [key] => {
            out.push("This SSH key is not registered with Flex:".to_owned());
            out.push(format!("  {} ({})", key.fingerprint, key.algorithm));
            out.push("Register it, and try again:".to_owned());
            out.push(format!("  flex keys:add {}", key.usual_file()));
        }
        [first, ..] => {
            out.push("None of these SSH keys is registered with Flex:".to_owned());
            out.extend(keys.iter().map(|k| format!("  {} ({})", k.fingerprint, k.algorithm)));
            out.push("Register one, and try again:".to_owned());
            out.push(format!("  flex keys:add {}", first.usual_file()));
        }
    }
    if out_of_tries {
        out.push("Your SSH client has more keys than may be tried. Name the right one in ~/.ssh/config with".to_owned());
        out.push("IdentityFile, and add IdentitiesOnly yes.".to_owned());
    }
    Refusal { lines: out }
}

/// Said for a command that is not on the list.
pub fn unsupported(what: &Unsupported) -> Refusal {
    let first = match what {
        Unsupported::Verb(v) if v.trim().is_empty() => "There is no shell here.".to_owned(),
        Unsupported::Verb(v) => format!("Flex does not run this over SSH: {v}"),
        Unsupported::Path(p) => format!("This path does not name an app: {p}"),
        Unsupported::Usage(why) => {
            let mut refusal =
                lines(&["Possible are, with -a APP:", "  run COMMAND, exec -p web.1 [COMMAND], attach web.1, logs [-t], ps"]);
            refusal.lines.insert(0, why.clone());
            return refusal;
        }
    };
    let mut refusal = lines(&[
        "Possible are git push, git fetch and git clone of APP.git, for example:",
        "  git clone ssh://git@HOST:PORT/my-app.git",
        "and run, exec, attach, logs and ps of an app that runs, for example:",
        "  ssh -t -p PORT flex@HOST run bash -a my-app",
    ]);
    refusal.lines.insert(0, first);
    refusal
}

/// Said when somebody opens a shell.
pub fn no_shell(email: &str) -> Refusal {
    let mut refusal = unsupported(&Unsupported::Verb(String::new()));
    refusal.lines[0] = format!("Hello {email}. Your key works, but there is no shell here.");
    refusal
}

/// Said when all places for git commands are taken.
pub fn busy(running: usize) -> Refusal {
    lines(&[&format!("Flex is at its limit of {running} git commands at a time. Try again in a minute.")])
}

/// Said when a user has as many pushes under way as one may have.
pub fn too_many_pushes(most: usize) -> Refusal {
    let pushes = if most == 1 { "push" } else { "pushes" };
    lines(&[
        &format!("You have {most} {pushes} under way, as many as one user may have at a time."),
        "Push again when one of them has ended.",
        "See what runs:  flex builds -a APP        End one:  flex builds:cancel -a APP",
    ])
}

/// Said to commands that come during a shutdown.
pub fn restarting() -> Refusal {
    lines(&["Flex is being restarted. Try again in a minute."])
}

/// Said when git could not be started.
pub fn internal(what: &str) -> Refusal {
    lines(&[what, "This is a fault of the server, not of your repository. Its log says more; flex doctor may too."])
}

/// Said after a push that git refused by itself.
pub fn refused_by_git(why: Complaint) -> Refusal {
    let what = match why {
        Complaint::LargeFile => "The push has a file that is larger than Flex takes.",
        Complaint::LargePush => "The push is larger than Flex takes.",
        Complaint::DiskFull => {
            return lines(&[
                "The server's disk is full, and nothing was changed. [disk_full]",
                "Its operator has to make room; then push again.",
            ]);
        }
    };
    lines(&[
        what,
        "Keep large files out of the repository: an object store or an app's volume is the place for them.",
        "A file that was committed before must leave the history as well (git filter-repo does that).",
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_key_and_the_command() {
        let key = UnknownKey { fingerprint: "SHA256:abc".into(), algorithm: "ssh-rsa".into() };
        let text = refusal(&unknown_keys(std::slice::from_ref(&key), false).lines);
        assert!(text.contains("SHA256:abc (ssh-rsa)") && text.contains("flex keys:add ~/.ssh/id_rsa.pub"), "{text}");
        assert!(text.lines().all(|l| l.starts_with(" !     ")));
        assert!(!text.contains("IdentitiesOnly"));
        let many = refusal(&unknown_keys(&[key.clone(), key], true).lines);
        assert!(many.contains("None of these") && many.contains("IdentitiesOnly"));
        assert!(refusal(&unknown_keys(&[], false).lines).contains("ssh-keygen -t ed25519"));
    }
}
