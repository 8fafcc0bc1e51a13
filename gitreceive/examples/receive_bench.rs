//! How long a large `git push` takes: to this receiver, to OpenSSH's server, and to a folder (git alone, the floor).
//!
//! `cargo run --release -p flex-gitreceive --example receive_bench -- [MEGABYTES [ROUNDS]]` (500 and 3 if not given; build
//! the crate's programs first: `cargo build --release -p flex-gitreceive`). Prints one line of JSON per target: seconds of
//! each round, sorted, and the median. OpenSSH's server is `$FLEX_SSHD`, else `/usr/sbin/sshd`, and left out when there is
//! none. All take the same pack: noise, neither compressible nor with deltas, pushed by the same client.
//!
//! Flex keeps a push as the pack that it came in (`receive.unpackLimit=1`); git as it comes takes the objects of one with
//! fewer than a hundred apart and compresses each anew. So there are two rows of each of the others: `openssh` and `folder`
//! are what a user has without Flex, `openssh-packs` and `folder-packs` have that setting in their repository, and do the
//! same work as Flex does.

use async_trait::async_trait;
use flex_gitreceive::{Access, Caller, Gate, GitServer, GitSettings, Push, PushEvent, Refusal, init_repository};
use flex_model::{AppId, AppName, UserId};
use std::{
    error::Error,
    fs,
    io::Write,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Lets the one user of the bench do everything.
struct Open(PathBuf);

#[async_trait]
impl Gate for Open {
    async fn authenticate(&self, _openssh: &str) -> Option<Caller> {
        Some(Caller { user: UserId(uuid::Uuid::nil()), email: "bench@example.com".parse().ok()? })
    }
    async fn authorize(&self, _: &Caller, app: &str, _: Access) -> std::result::Result<(AppId, AppName), Refusal> {
        let name = app.parse().map_err(|_| Refusal { lines: vec!["no such app".into()] })?;
        Ok((AppId(uuid::Uuid::nil()), name))
    }
    async fn repository(&self, _: AppId) -> std::result::Result<PathBuf, Refusal> {
        init_repository(&self.0).map_err(|e| Refusal { lines: vec![e.to_string()] })?;
        Ok(self.0.clone())
    }
    async fn branches(&self, _: AppId) -> Vec<String> {
        vec!["main".into()]
    }
    async fn push(&self, _: Push) -> mpsc::Receiver<PushEvent> {
        let (send, receive) = mpsc::channel(1);
        let _ = send.send(PushEvent::Verdict(true)).await;
        receive
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).into())
}

fn git(at: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(at).args(["-c", "user.name=bench", "-c", "user.email=bench@example.com"]).args(arguments);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", at);
    command
}

/// A repository of ten-megabyte files of noise.
fn source(at: &Path, megabytes: usize) -> Result<()> {
    fs::create_dir(at)?;
    run(&mut git(at, &["init", "-q", "-b", "main"]))?;
    run(&mut git(at, &["config", "core.compression", "0"]))?;
    run(&mut git(at, &["config", "core.bigFileThreshold", "1m"]))?;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..megabytes.div_ceil(10) {
        let mut file = std::io::BufWriter::new(fs::File::create(at.join(format!("noise{n}")))?);
        for _ in 0..10 << 17 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            file.write_all(&seed.to_le_bytes())?;
        }
        file.flush()?;
    }
    run(&mut git(at, &["add", "-A"]))?;
    run(&mut git(at, &["commit", "-q", "-m", "noise"]))?;
    // One pack, so that sending it is copying it.
    run(&mut git(at, &["repack", "-adq"]))
}

fn push(source: &Path, url: &str, key: &Path, known: &Path) -> Result<f64> {
    let ssh = format!(
        "ssh -Fnone -oIdentitiesOnly=yes -oUserKnownHostsFile={} -oStrictHostKeyChecking=no -oLogLevel=ERROR -i {}",
        known.display(),
        key.display()
    );
    let started = Instant::now();
    run(git(source, &["push", "-q", url, "main"]).env("GIT_SSH_COMMAND", ssh))?;
    Ok(started.elapsed().as_secs_f64())
}

/// OpenSSH's server with the settings of its package, as the user who runs the bench.
struct Sshd(Child, u16);

impl Sshd {
    fn start(program: &Path, dir: &Path, key: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = dir.join("sshd_host");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&host))?;
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}.pub\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin yes\nLogLevel FATAL\n",
            host.display(),
            key.display()
        );
        fs::write(dir.join("sshd_config"), settings)?;
        // OpenSSH insists on it when root starts it; the package makes it at boot.
        let _ = fs::create_dir("/run/sshd");
        let child = Command::new(program).args(["-D", "-e", "-f"]).arg(dir.join("sshd_config")).spawn()?;
        let sshd = Self(child, port);
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err("sshd does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let megabytes: usize = arguments.next().map_or(Ok(500), |a| a.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(3), |a| a.parse())?;
    let hook = std::env::current_exe()?.parent().and_then(Path::parent).ok_or("no target folder")?.join("flex-git-hook");
    if !hook.is_file() {
        return Err(format!("{} is missing: cargo build --release -p flex-gitreceive", hook.display()).into());
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path();
    let (from, key, known) = (path.join("src"), path.join("key"), path.join("known"));
    source(&from, megabytes)?;
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let to = path.join("to.git");
    let settings = GitSettings::new("127.0.0.1:0".parse()?, path.join("host"), hook, path.join("run/hook.sock"));
    let server = runtime.block_on(GitServer::bind(settings, Arc::new(Open(to.clone()))))?;
    let flex = format!("ssh://git@127.0.0.1:{}/bench-app.git", server.local_addr()?.port());
    let shutdown = CancellationToken::new();
    let serving = runtime.spawn(server.serve(shutdown.clone()));

    let program = PathBuf::from(std::env::var_os("FLEX_SSHD").unwrap_or_else(|| "/usr/sbin/sshd".into()));
    let sshd = program.is_file().then(|| Sshd::start(&program, path, &key)).transpose()?;
    let mut targets = vec![("folder", to.display().to_string()), ("folder-packs", to.display().to_string()), ("flex", flex)];
    match &sshd {
        Some(Sshd(_, port)) => {
            let user = nix::unistd::User::from_uid(nix::unistd::getuid())?.ok_or("who am I?")?.name;
            let url = format!("ssh://{user}@127.0.0.1:{port}{}", to.display());
            targets.extend([("openssh", url.clone()), ("openssh-packs", url)]);
        }
        None => eprintln!("no {}: OpenSSH's server is left out (set FLEX_SSHD)", program.display()),
    }
    let mut seconds = vec![Vec::new(); targets.len()];
    for _ in 0..rounds {
        for ((name, url), seconds) in targets.iter().zip(&mut seconds) {
            if to.exists() {
                fs::remove_dir_all(&to)?;
            }
            init_repository(&to)?;
            if name.ends_with("-packs") {
                run(&mut git(&to, &["config", "receive.unpackLimit", "1"]))?;
            }
            seconds.push(push(&from, url, &key, &known)?);
        }
    }
    shutdown.cancel();
    runtime.block_on(serving)?;
    let median = |seconds: &[f64]| seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    seconds.iter_mut().for_each(|s| s.sort_by(f64::total_cmp));
    let of_flex = targets.iter().zip(&seconds).find(|((name, _), _)| *name == "flex").map_or(f64::NAN, |(_, s)| median(s));
    for ((name, _), seconds) in targets.iter().zip(&seconds) {
        // Of how many times Flex's time it takes.
        let ratio = (median(seconds) / of_flex * 1000.0).round() / 1000.0;
        println!(
            "{}",
            serde_json::json!({"target": name, "megabytes": megabytes, "seconds": seconds, "median": median(seconds), "ratio_to_flex": ratio})
        );
    }
    Ok(())
}
