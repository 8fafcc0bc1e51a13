//! scripts/up and scripts/down as an operator runs them, over an installation of the test's own.

use flex_tests::{Port, binary, get, root, stacks};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Operator {
    home: tempfile::TempDir,
    api: Port,
    http: Port,
    ssh: Port,
}

impl Operator {
    fn data(&self) -> std::path::PathBuf {
        self.home.path().join("data")
    }

    /// The programs, by a way that is not their real path.
    fn link(&self) -> std::path::PathBuf {
        self.home.path().join("bin")
    }

    fn command(&self, program: &Path, args: &[&str]) -> (bool, String) {
        let home = self.home.path();
        // ssh looks for keys in the home of the user database, whatever HOME says.
        let ssh = format!(
            "ssh -F none -o IdentitiesOnly=yes -o UserKnownHostsFile={0}/known_hosts -i {0}/id_ed25519",
            home.join(".ssh").display()
        );
        let cargo =
            std::env::var_os("CARGO_HOME").unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cargo").into());
        let out = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home)
            .env("CARGO_HOME", cargo)
            .env("FLEX_BIN", self.link())
            .env("FLEX_ADMIN_EMAIL", "operator@example.com")
            .env("FLEXD_DATA_DIR", self.data())
            .env("FLEXD_HTTP", self.http.local().to_string())
            .env("FLEXD_HTTPS", "127.0.0.1:0")
            .env("FLEXD_SSH", self.ssh.local().to_string())
            .env("GIT_SSH_COMMAND", ssh)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    fn script(&self, name: &str, args: &[&str]) -> (bool, String) {
        self.command(&root().join("scripts").join(name), args)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // After a failure; after a purge there is nothing left to do.
        if self.data().exists() {
            self.script("down", &["--purge"]);
        }
    }
}

fn docker(args: &[&str]) -> String {
    let out = Command::new("docker").args(args).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// What systemd would be told, judged by systemd's own checker.
#[test]
fn the_unit_has_the_settings_and_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let flexd = dir.path().join("flexd");
    std::os::unix::fs::symlink(binary("flexd"), &flexd).unwrap();
    let script = ". scripts/lib/common.sh; . scripts/lib/server.sh; unit_text";
    let out = Command::new("bash")
        .args(["-euc", script])
        .current_dir(root())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir.path())
        .env("FLEX_BIN", dir.path())
        .env("FLEXD_DOMAIN", "apps.example.com")
        .env("FLEXD_CONFIG", r#"/etc/100%/a "b"\c.toml"#)
        .env("FLEXD_ROUTER_TOKEN", "hidden")
        .env("https_proxy", "http://proxy:3128")
        .env("SSL_CERT_FILE", "/etc/own.pem")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let has = |line: &str| assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    has(&format!("ExecStart=\"{}\"", flexd.display()));
    has(r#"Environment="FLEXD_DOMAIN=apps.example.com""#);
    has(r#"Environment="FLEXD_CONFIG=/etc/100%%/a \"b\"\\c.toml""#);
    has(r#"Environment="https_proxy=http://proxy:3128""#);
    has(r#"Environment="SSL_CERT_FILE=/etc/own.pem""#);
    assert!(!text.contains("hidden"));
    let unit = dir.path().join("flexd.service");
    std::fs::write(&unit, &text).unwrap();
    let out = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    // The engine's unit is there only where its package is.
    assert!(out.status.success() && !said.contains("flexd.service:"), "{said}\n{text}");
}

#[test]
fn up_ends_with_a_served_app_and_purge_with_nothing() {
    let home = tempfile::Builder::new().prefix("flex-operator-").tempdir().unwrap();
    let operator = Operator { home, api: Port::reserve(), http: Port::reserve(), ssh: Port::reserve() };
    std::fs::create_dir(operator.data()).unwrap();
    std::os::unix::fs::symlink(stacks(), operator.data().join("stacks")).unwrap();
    std::os::unix::fs::symlink(binary("flexd").parent().unwrap(), operator.link()).unwrap();
    // The scripts go by what the server goes by, which is not the environment alone.
    std::fs::write(operator.data().join("flexd.toml"), format!("api = \"{}\"\n", operator.api.local())).unwrap();

    let (ok, said) = operator.script("up", &[]);
    assert!(ok && said.contains("Flex is up"), "{said}");
    let page = get(operator.http.local(), "flex-hello.localhost", "/").expect("the router answers");
    assert_eq!(page.status, 200, "{page:?}");
    let pid = std::fs::read_to_string(operator.data().join("flexd.pid")).unwrap();

    // Again: nothing is made anew, and nobody waits for it.
    let began = Instant::now();
    let (ok, said) = operator.script("up", &[]);
    assert!(ok && said.contains("flexd is running") && !said.contains("Building on the"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(std::fs::read_to_string(operator.data().join("flexd.pid")).unwrap(), pid);

    // An upgrade: another process has it, and the one before is gone.
    let upgrade =
        format!("cd {}; . scripts/lib/common.sh; . scripts/lib/server.sh; upgrade_server; server_pid", root().display());
    let (ok, said) = operator.command(Path::new("bash"), &["-euc", &upgrade]);
    let now = std::fs::read_to_string(operator.data().join("flexd.pid")).unwrap();
    assert!(ok && now != pid && said.trim().ends_with(now.trim()), "{pid} {now} {said}");
    assert!(std::fs::read_link(format!("/proc/{}/exe", pid.trim())).is_err());
    assert_eq!(get(operator.http.local(), "flex-hello.localhost", "/").expect("the router answers").status, 200);

    // Down ends flexd and the apps, and keeps the data: up brings them back.
    let cluster = std::fs::read_to_string(operator.data().join("cluster")).unwrap();
    let label = format!("label=flex.cluster={}", cluster.trim());
    let (ok, said) = operator.script("down", &[]);
    assert!(ok, "{said}");
    assert_eq!(docker(&["ps", "-aq", "--filter", &label]), "");
    assert!(get(operator.http.local(), "flex-hello.localhost", "/").is_none());
    let (ok, said) = operator.script("up", &[]);
    assert!(ok && said.contains("It says: It works"), "{said}");

    let (ok, said) = operator.script("down", &["--purge"]);
    assert!(ok, "{said}");
    assert!(!operator.data().exists(), "{said}");
    for left in ["ps -aq --filter", "network ls -q --filter", "volume ls -q --filter"] {
        let mut args: Vec<&str> = left.split(' ').collect();
        args.push(&label);
        assert_eq!(docker(&args), "", "{left}");
    }
    assert_eq!(docker(&["image", "ls", "-q", &format!("flex-{}/*", cluster.trim())]), "");
    // Only root may ask; where nobody may, there are no rules either.
    let rules = Command::new("iptables-save").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    assert!(!rules.unwrap_or_default().contains(&format!("flex-{}-", cluster.trim())), "packet filter rules are left");
    let known = std::fs::read_to_string(operator.home.path().join(".ssh/known_hosts")).unwrap_or_default();
    assert_eq!(known.trim(), "", "its host key is still trusted");

    // The wrong use says so.
    let (ok, said) = operator.script("up", &["--frobnicate"]);
    assert!(!ok && said.contains("--frobnicate"), "{said}");
}

/// An installation's containers are found by the id in its data directory: that does not go while they cannot be looked for.
#[test]
fn down_changes_nothing_while_the_engine_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (data, tools) = (dir.path().join("data"), dir.path().join("tools"));
    let socket = dir.path().join("engine.sock");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("cluster"), "feedfade\n").unwrap();
    // Everything that the script uses but docker.
    std::fs::create_dir(&tools).unwrap();
    for tool in ["bash", "cat", "cut", "dirname", "env", "getent", "grep", "head", "id", "readlink", "rm", "sed", "tail", "tr"] {
        let found = ["/usr/bin", "/bin"].iter().map(|d| Path::new(d).join(tool)).find(|p| p.exists());
        std::os::unix::fs::symlink(found.unwrap(), tools.join(tool)).unwrap();
    }
    let usual = std::env::var("PATH").unwrap();
    let down = |path: &str, env: &[(&str, &Path)]| {
        let mut command = Command::new(root().join("scripts/down"));
        command.arg("--purge").env_clear().env("PATH", path).env("HOME", dir.path()).env("FLEXD_DATA_DIR", &data);
        let out = command.envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success() && said.contains("Nothing was changed"), "{said}");
        assert!(data.join("cluster").exists(), "{said}");
        said
    };
    let bin = binary("flexd");
    let bin = bin.parent().unwrap();
    let said = down(&usual, &[("FLEXD_DOCKER", &socket), ("FLEX_BIN", bin)]);
    assert!(said.contains("engine.sock"), "{said}");
    // Also as the settings file names it, with and without a flexd to ask.
    std::fs::write(data.join("flexd.toml"), format!("docker = \"{}\"\n", socket.display())).unwrap();
    for bin in [bin, dir.path()] {
        let said = down(&usual, &[("FLEX_BIN", bin)]);
        assert!(said.contains("engine.sock"), "{said}");
    }
    let said = down(tools.to_str().unwrap(), &[("FLEX_BIN", bin)]);
    assert!(said.contains("docker command is missing"), "{said}");

    let out = Command::new(root().join("scripts/up")).env("FLEXD_DOCKER", &socket).env("FLEX_BIN", bin).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("FLEXD_DOCKER names") && said.contains("engine.sock"), "{said}");
}

/// What scripts/up writes into the engine's settings; that a running engine takes it up is tested with one of the tests' own.
#[test]
fn live_restore_is_put_among_the_engines_settings() {
    let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    let tools: Vec<&str> = ["python3", "jq"].into_iter().filter(|t| has(t)).collect();
    assert!(!tools.is_empty());
    for tool in tools {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("etc/docker/daemon.json");
        let set = || {
            let script = format!(
                "set -euo pipefail; . scripts/lib/common.sh; . scripts/lib/engine.sh; ENGINE_CONFIG=$1 ENGINE_PID=$1.pid
                 have() {{ [ \"$1\" = {tool} ]; }}
                 set_live_restore; live_restore_is_set"
            );
            let out = Command::new("bash").args(["-c", &script, "set"]).arg(&config).current_dir(root()).output().unwrap();
            (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        let now = || serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&config).unwrap()).unwrap();
        let on = serde_json::json!({"live-restore": true});
        assert_eq!(set(), (true, String::new()), "where there is no file");
        assert_eq!(now(), on);
        std::fs::write(&config, "").unwrap();
        assert_eq!(set(), (true, String::new()), "where it is empty");
        assert_eq!(now(), on);

        std::fs::write(&config, r#"{"data-root": "/srv/docker", "live-restore": false, "dns": ["10.0.0.1"]}"#).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&config, private).unwrap();
        assert_eq!(set(), (true, String::new()));
        assert_eq!(now(), serde_json::json!({"data-root": "/srv/docker", "live-restore": true, "dns": ["10.0.0.1"]}));
        let mode = std::os::unix::fs::PermissionsExt::mode(&config.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);

        for wrong in ["{\"data-root\": \"/srv\",}", "[1]", "# nothing\n"] {
            std::fs::write(&config, wrong).unwrap();
            let (ok, said) = set();
            assert!(!ok && said.contains("not valid JSON") && said.contains("daemon.json"), "{wrong}: {said}");
            assert_eq!(std::fs::read_to_string(&config).unwrap(), wrong);
        }
        let left: Vec<_> = std::fs::read_dir(config.parent().unwrap()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(left, ["daemon.json"]);
    }
}
