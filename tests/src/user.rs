//! A user with a home of their own: the CLI, stock git, and an SSH key.

use crate::{Server, binary};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command did.
#[derive(Debug, Clone)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "failed:\n{}\n{}", self.out, self.err);
        self
    }

    /// It must have failed, and said this.
    #[track_caller]
    pub fn fails_with(self, text: &str) -> Self {
        assert_ne!(self.status, 0, "succeeded:\n{}\n{}", self.out, self.err);
        assert!(self.all().contains(text), "did not say {text:?}:\n{}", self.all());
        self
    }

    /// Everything that it printed.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A signed-in user.
pub struct User {
    pub home: tempfile::TempDir,
    api: String,
    token: String,
}

impl User {
    /// Makes the user on the server, and registers a new key of theirs.
    pub fn new(server: &Server, email: &str, admin: bool) -> Self {
        let token = server.token(email, admin);
        let home = tempfile::Builder::new().prefix("flex-home-").tempdir().unwrap();
        let user = Self { home, api: format!("http://{}", server.api), token };
        let ssh = user.home.path().join(".ssh");
        std::fs::create_dir(&ssh).unwrap();
        let key = ssh.join("id_ed25519");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", email, "-f"]).arg(&key).status().unwrap();
        assert!(made.success());
        user.flex(&["keys:add", key.with_extension("pub").to_str().unwrap()]).ok();
        user
    }

    fn base(&self, program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
        let ssh = self.home.path().join(".ssh");
        let mut command = Command::new(program);
        // The stock client, with nothing of the machine's own settings; the host key must be known already.
        let ssh_command = format!(
            "ssh -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile={0}/known_hosts -i {0}/id_ed25519",
            ssh.display()
        );
        command
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .env("FLEX_API", &self.api)
            .env("FLEX_TOKEN", &self.token)
            .env("GIT_SSH_COMMAND", ssh_command)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "Test")
            .env("GIT_AUTHOR_EMAIL", "test@example.com")
            .env("GIT_COMMITTER_NAME", "Test")
            .env("GIT_COMMITTER_EMAIL", "test@example.com")
            .stdin(Stdio::null());
        command
    }

    /// A command, not started yet.
    pub fn command(&self, program: &str, dir: &Path, args: &[&str]) -> Command {
        let mut command = match program {
            "flex" => self.base(binary("flex"), dir),
            other => self.base(other, dir),
        };
        command.args(args);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, program: &str, dir: &Path, args: &[&str]) -> Ran {
        let out = self.command(program, dir, args).output().unwrap();
        Ran {
            status: out.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&out.stdout).into_owned(),
            err: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// The CLI, in the user's home.
    pub fn flex(&self, args: &[&str]) -> Ran {
        self.run("flex", self.home.path(), args)
    }

    /// A repository with these files, committed on `main`, with an app and its remote.
    pub fn repo(&self, app: &str, files: &[(&str, &str)]) -> Repo<'_> {
        let dir = self.home.path().join(app);
        std::fs::create_dir_all(&dir).unwrap();
        let repo = Repo { user: self, dir, app: app.to_owned() };
        repo.git(&["init", "-q", "-b", "main"]).ok();
        repo.commit(files);
        self.run("flex", &repo.dir, &["create", app]).ok();
        repo
    }
}

/// A work tree of an app.
pub struct Repo<'a> {
    pub user: &'a User,
    pub dir: PathBuf,
    pub app: String,
}

impl Repo<'_> {
    pub fn git(&self, args: &[&str]) -> Ran {
        self.user.run("git", &self.dir, args)
    }

    pub fn flex(&self, args: &[&str]) -> Ran {
        self.user.run("flex", &self.dir, args)
    }

    /// Writes files (those under `bin/` executable) and commits them.
    pub fn commit(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            if name.starts_with("bin/") {
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        let mut names = String::new();
        for (name, _) in files {
            let _ = write!(names, "{name} ");
        }
        self.git(&["add", "-A"]).ok();
        self.git(&["commit", "-q", "--allow-empty", "-m", &format!("Change {names}")]).ok();
    }

    pub fn push(&self) -> Ran {
        self.git(&["push", "flex", "main"])
    }
}
