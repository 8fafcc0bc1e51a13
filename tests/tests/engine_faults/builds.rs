//! Hostile builds, each pushed with git as an app with its own buildpack, several at once. Each ends with the name of what
//! it ran into; nothing else changes, a neighbour's requests do not fail, and nothing is left behind.

use crate::world::{Steady, WEB, files, fsck, is_sound, list, world};
use flex_tests::{Server, Setup, User, wait_for};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

/// Small enough that a test can run into each of them, large enough that nothing runs into two.
const LIMITS: &str = "[build]\ntimeout_seconds = 120\nmemory = \"256M\"\ndisk = \"64M\"\nslug_limit = \"16M\"\n[runs]\nrelease_phase_seconds = 10\n";

/// Processes of a build.
const MOST_PROCESSES: u32 = 2048;

struct Hostile {
    app: &'static str,
    compile: String,
    /// The names of how it may end.
    ends: &'static [&'static str],
}

fn hostile(app: &'static str, compile: &str, ends: &'static [&'static str]) -> Hostile {
    Hostile { app, compile: format!("#!/bin/bash\n{compile}\n"), ends }
}

/// Pushes it as a new app; what the push said.
fn refused(user: &User, h: &Hostile) -> String {
    let mut files = files("never").to_vec();
    files[1].1 = &h.compile;
    let repo = user.repo(h.app, &files);
    let ran = repo.push().fails_with("pre-receive hook declined");
    assert!(h.ends.iter().any(|e| ran.err.contains(&format!("[{e}]"))), "{}: {}", h.app, ran.err);
    let builds = list(&repo, &["builds"]);
    assert!(builds.len() == 1 && builds[0]["status"] == "failed", "{}: {builds:#?}", h.app);
    assert!(list(&repo, &["releases"]).iter().all(|r| r["slug"].is_null()), "{}", h.app);
    ran.err
}

fn hangs_in_its_release_phase(user: &User) {
    let procfile = format!("{WEB}release: echo migrating; sleep 1000\n");
    let mut files = files("never").to_vec();
    files[2].1 = &procfile;
    let repo = user.repo("migrates", &files);
    let said = repo.push().fails_with("pre-receive hook declined").err;
    assert!(said.contains("migrating") && said.contains("its release phase took longer than 10 seconds"), "{said}");
    assert_eq!(list(&repo, &["releases"])[0]["status"], "failed");
}

/// Bytes below the data directory.
fn used(server: &Server) -> u64 {
    let out = Command::new("du").args(["-sb", "--"]).arg(server.data_dir()).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap().parse().unwrap()
}

/// No container of a build or of an app that was refused: the neighbour's one instance and nothing else.
#[track_caller]
fn only_the_neighbour(server: &Server, also: usize) {
    wait_for("the builds' containers to go", Duration::from_secs(20), || (server.containers().len() == 1 + also).then_some(()));
}

#[test]
fn hostile_builds_end_at_their_limits() {
    let (server, user) = world(Setup { toml: LIMITS.into(), ..Setup::default() });
    let calm = user.repo("calm", &files("calm"));
    calm.push().ok();
    is_sound(&server, &calm, &["calm"]);
    let before = used(&server);
    let client = Steady::on(server.http, "calm", &["calm"]);

    let first = [
        hostile("fills", "head -c 400000000 /dev/zero >\"$1/large\"; sleep 1000", &["disk_limit"]),
        hostile("floods", "while :; do printf '%01000d\\n' 0; done", &["output_limit"]),
        hostile("weighs", "head -c 20000000 </dev/urandom >\"$1/large\"", &["slug_limit"]),
        hostile("eats", "all=$(head -c 1000000000 /dev/zero | tr '\\0' x); echo ${#all}; exit 1", &["memory_limit"]),
    ];
    // The bomb's processes sleep: what is tried is the limit on their number, not the machine's patience. What it hits
    // first besides that limit, its memory or bash's own patience, does not matter: what its control group allows is said,
    // and that a build gets no further is tried with a lower limit in the builder's own tests.
    let bomb =
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null | while read -r n; do echo \"pids.max=$n\"; done
                n=0; while :; do sleep 1000 & n=$((n+1)); echo \"forked=$n\"; done";
    let second = [hostile("forks", bomb, &["compile_failed", "memory_limit", "time_limit"])];
    let mut said = Vec::new();
    for wave in [&first[..], &second[..]] {
        said = std::thread::scope(|s| {
            let pushes: Vec<_> = wave.iter().map(|h| s.spawn(|| refused(&user, h))).collect();
            if wave.len() > 1 {
                s.spawn(|| hangs_in_its_release_phase(&user));
            }
            pushes.into_iter().map(|p| p.join().unwrap()).collect()
        });
        only_the_neighbour(&server, 0);
    }
    let numbers = |name: &str| -> Vec<u32> {
        let of = |line: &str| line.split_once(name)?.1.trim().parse().ok();
        said[0].lines().filter_map(of).collect()
    };
    assert_eq!(numbers("pids.max="), [MOST_PROCESSES], "{}", said[0]);
    let forked = numbers("forked=").into_iter().max().unwrap_or_default();
    assert!((1..MOST_PROCESSES).contains(&forked), "{forked} forks");
    let grown = used(&server).saturating_sub(before);
    assert!(grown < 48 << 20, "refused builds left {grown} bytes");
    client.none_failed();
    fsck(&server);
    is_sound(&server, &calm, &["calm"]);

    // What a build leaves running ends with it and holds nothing up.
    let daemon =
        "#!/bin/bash\nsleep 1000 &\nsetsid sleep 1000 &\nmkdir -p \"$1/www\"; cp \"$1/page.txt\" \"$1/www/index.html\"\n";
    let mut files = files("daemons").to_vec();
    files[1].1 = daemon;
    let repo = user.repo("daemons", &files);
    repo.push().ok();
    assert_eq!(is_sound_with(&server, "daemons"), "daemons");
    only_the_neighbour(&server, 1);
}

#[test]
fn a_build_that_hangs_ends_at_its_time() {
    let limit = "[build]\ntimeout_seconds = 8\n";
    let (server, user) = world(Setup { toml: limit.into(), ..Setup::default() });
    refused(&user, &hostile("hangs", "sleep 1000", &["time_limit"]));
    wait_for("its container to go", Duration::from_secs(20), || server.containers().is_empty().then_some(()));
}

fn is_sound_with(server: &Server, app: &str) -> String {
    server.page(app, "/").body.trim().to_owned()
}

#[test]
fn builds_reach_nothing_of_the_platform() {
    let (server, user) = world(Setup::default());
    let calm = user.repo("neighbour", &files("calm"));
    calm.push().ok();
    is_sound(&server, &calm, &["calm"]);
    // Something of this machine that listens on every address, as an API or a database might.
    let service = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = service.local_addr().unwrap().port();
    let names = server.containers();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let neighbour = server.docker(&["inspect", "--format", format, &names[0]]).pop().unwrap();
    let env = server.docker(&["inspect", "--format", "{{range .Config.Env}}{{println .}}{{end}}", &names[0]]);
    let app_port = env.iter().find_map(|e| e.strip_prefix("PORT=")).expect("PORT").to_owned();
    let bridge = server.docker(&["network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Gateway}}{{end}}"]);
    let (api, ssh) = (server.api.port(), server.ssh.port());
    let compile = format!(
        r#"#!/bin/bash
gate=$(ip route | awk '$1 == "default" {{ print $3 }}')
try() {{ nc -w 2 "$1" "$2" </dev/null >/dev/null 2>&1 && echo "REACHED $1:$2"; }}
httpd -p 8099 -h /tmp
try 127.0.0.1 8099
echo "GATEWAY $gate"
for host in $gate {bridge}; do for port in {port} {api} {ssh} 2375 2376; do try "$host" "$port" & done; done
try 169.254.169.254 80 &
try {neighbour} {app_port} &
sleep 6
for socket in /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock; do [ -e $socket ] && echo "REACHED $socket"; done
exit 1
"#,
        bridge = bridge.join(" ")
    );
    let said = refused(&user, &Hostile { app: "scans", compile, ends: &["compile_failed"] });
    let reached: Vec<&str> = said.lines().filter(|l| l.contains("REACHED ")).collect();
    // The first shows that the probe can tell.
    assert!(reached.len() == 1 && reached[0].contains("127.0.0.1:8099"), "{said}");
    assert!(said.lines().any(|l| l.contains("GATEWAY 1")), "the build has no network at all: {said}");
    // And from here both can be reached: it is the build that cannot.
    let reachable = |host: &str, port: u16| std::net::TcpStream::connect((host, port)).is_ok();
    assert!(reachable("127.0.0.1", port) && reachable(&neighbour, app_port.parse().unwrap()));
    is_sound(&server, &calm, &["calm"]);
}
