//! What apps and builds reach and what they do not, tried from inside real containers.

use super::{
    Docker, busybox,
    hardening::{sandbox_spec, shell},
    with_docker,
};
use flex_runtime::{
    DockerRuntime, DockerSettings, GuardSettings, Isolation, ObservedPhase, Runtime, Sandbox,
    contract::{World, desired, finish, until},
};
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// What the program prints; it must succeed.
fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A machine beside this one: a network namespace with a web server on its public address, on private ones and on the one
/// where clouds keep credentials.
struct Beside {
    name: String,
    servers: Vec<Child>,
    _page: tempfile::TempDir,
}

const PUBLIC: &str = "198.18.77.2";
const PRIVATE: &str = "10.213.77.7";
const MIRROR: &str = "10.213.77.8";
const RESOLVER: &str = "10.213.77.53";
const METADATA: &str = "169.254.169.254";

impl Beside {
    fn new() -> Self {
        let name = format!("flexn{}", std::process::id());
        let page = tempfile::tempdir().unwrap();
        std::fs::write(page.path().join("index.html"), "served\n").unwrap();
        let mut beside = Self { name: name.clone(), servers: Vec::new(), _page: page };
        let peer = format!("{}p", beside.link());
        run("ip", &["netns", "add", &name]);
        run("ip", &["link", "add", beside.link(), "type", "veth", "peer", "name", &peer]);
        run("ip", &["link", "set", &peer, "netns", &name]);
        run("ip", &["addr", "add", "198.18.77.1/30", "dev", beside.link()]);
        run("ip", &["link", "set", beside.link(), "up"]);
        let inside = |args: &[&str]| run("ip", &[&["-n", name.as_str()], args].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["addr", "add", "198.18.77.2/30", "dev", &peer]);
        inside(&["link", "set", &peer, "up"]);
        inside(&["route", "add", "default", "via", "198.18.77.1"]);
        for address in [PRIVATE, MIRROR, RESOLVER, METADATA] {
            inside(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
            run("ip", &["route", "add", address, "via", PUBLIC, "dev", beside.link()]);
        }
        for port in ["80", "53"] {
            let mut server = Command::new("ip");
            server.args(["netns", "exec", &name]).arg(busybox()).args(["httpd", "-f", "-p", port, "-h"]).arg(beside._page.path());
            beside.servers.push(server.stdin(Stdio::null()).spawn().unwrap());
        }
        beside
    }
    fn link(&self) -> &str {
        &self.name
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        // The routes go with the link.
        let _ = Command::new("ip").args(["link", "del", self.link()]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A container to try from: the app's or the build's.
enum From<'a> {
    App(Arc<DockerRuntime>, flex_model::InstanceId),
    Build(&'a dyn Sandbox),
}

impl From<'_> {
    /// Whether a web server's page, or a connection at all, can be had at an address.
    async fn reaches(&self, address: &str, port: u16) -> bool {
        let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {port}");
        let session = match self {
            Self::App(runtime, instance) => runtime.exec(*instance, shell(&line)).await,
            Self::Build(sandbox) => sandbox.exec(shell(&line)).await,
        };
        let (out, _, status) = finish(session.expect("exec")).await;
        out.contains("served") || status == Ok(0)
    }
}

fn guarded(docker: &Docker, guard: GuardSettings) -> Arc<DockerRuntime> {
    let settings = DockerSettings { guard: Some(guard), ..docker.settings.clone() };
    Arc::new(DockerRuntime::connect(settings).unwrap())
}

async fn kept(runtime: &DockerRuntime) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match runtime.facts().await.unwrap().isolation {
            Isolation::Kept(_) => return,
            other => assert!(Instant::now() < deadline, "the rules never came: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Listens on all addresses of this machine, both families, and answers with a page.
fn listen() -> u16 {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            // What is not read would turn the end into a reset, and that could overtake the page.
            let _ = client.set_read_timeout(Some(Duration::from_secs(3)));
            let _ = std::io::Read::read(&mut client, &mut [0; 256]);
            let _ = std::io::Write::write_all(&mut client, b"HTTP/1.0 200 OK\r\n\r\nserved\n");
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_reach_neither_the_machine_nor_its_network() {
    with_docker("guard", async |docker| {
        let beside = Beside::new();
        let (service, router) = (listen(), listen());
        let open = docker.docker();
        let serve = "echo served > /tmp/index.html; exec httpd -f -p 5000 -h /tmp";
        let (a, b) = (desired(&docker.image(), "web.1", serve), desired(&docker.image(), "web.2", serve));
        open.converge(vec![a.clone(), b.clone()]).await.unwrap();
        let both = |s: &[flex_runtime::Observed]| s.iter().filter(|o| o.phase == ObservedPhase::Running).count() == 2;
        let seen = until(&*open, "both run", both).await;
        let other = seen.iter().find(|o| o.instance == b.instance).and_then(|o| o.ip).expect("an address").to_string();
        let sandbox = open.sandbox(sandbox_spec(docker, "guard")).await.unwrap();
        let own = addresses(&[bridge(docker, ""), bridge(docker, "-build")]);
        assert!(!own.is_empty());
        let from = [From::App(open.clone(), a.instance), From::Build(&*sandbox)];

        // Without rules all of it is open: what follows can fail.
        for from in &from {
            for address in [PUBLIC, PRIVATE, METADATA] {
                assert!(from.reaches(address, 80).await, "{address} without rules");
            }
            assert!(from.reaches(&own[0], service).await, "this machine without rules");
        }

        let resolv = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(resolv.path(), format!("nameserver {RESOLVER}\n")).unwrap();
        let guard = GuardSettings {
            host_ports: vec![router],
            used: flex_runtime::targets_in(&format!("http://{MIRROR}/simple"), false),
            resolvers: vec![resolv.path().to_owned()],
            ..GuardSettings::default()
        };
        let runtime = guarded(docker, guard.clone());
        kept(&runtime).await;
        for from in &from {
            for address in &own {
                assert!(!from.reaches(address, service).await, "a service of this machine at {address}");
                assert!(from.reaches(address, router).await, "the router at {address}");
            }
            for (address, port) in [(METADATA, 80), (PRIVATE, 80), (RESOLVER, 80), (other.as_str(), 5000)] {
                assert!(!from.reaches(address, port).await, "{address}:{port}");
            }
            for (address, port) in [(PUBLIC, 80), (MIRROR, 80), (RESOLVER, 53)] {
                assert!(from.reaches(address, port).await, "{address}:{port}");
            }
            assert!(!from.reaches(MIRROR, 53).await, "the mirror's other port");
        }
        // The router's way, from this machine into the container, is open.
        let web = seen.iter().find(|o| o.instance == a.instance).and_then(|o| o.ip).expect("an address");
        tokio::net::TcpStream::connect((web, 5000)).await.expect("the machine reaches the app");

        // A reload of a firewall that wipes them does not last.
        let tag = run("iptables", &["-w", "10", "-S", "DOCKER-USER"]);
        let tag = tag.lines().filter_map(|l| l.strip_prefix("-A DOCKER-USER -j ")).map(str::to_owned).collect::<Vec<_>>();
        let mine =
            tag.iter().find(|t| run("iptables", &["-w", "10", "-S", t]).contains(&bridge(docker, ""))).expect("a chain of ours");
        let host = mine.replace("-fwd", "-in");
        run("iptables", &["-w", "10", "-D", "INPUT", "-j", &host]);
        run("iptables", &["-w", "10", "-F", mine]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while from[0].reaches(&own[0], service).await || from[0].reaches(PRIVATE, 80).await {
            assert!(Instant::now() < deadline, "the rules do not come back");
        }

        // What the operator allows is open, and another installation's end changes nothing.
        drop(runtime);
        let allow = vec![format!("{PRIVATE}:80").parse().unwrap()];
        let runtime = guarded(docker, GuardSettings { allow, ..guard.clone() });
        kept(&runtime).await;
        with_docker("guard2", async |another| {
            let theirs = guarded(another, GuardSettings::default());
            let sandbox = theirs.sandbox(sandbox_spec(another, "theirs")).await.unwrap();
            assert!(!From::Build(&*sandbox).reaches(PRIVATE, 80).await, "rules are there before anything runs");
            sandbox.destroy().await.unwrap();
            theirs.purge().await.unwrap();
        })
        .await;
        assert!(from[0].reaches(PRIVATE, 80).await && !from[0].reaches(METADATA, 80).await);

        // Nothing is left of them.
        sandbox.destroy().await.unwrap();
        runtime.purge().await.unwrap();
        for program in ["iptables", "ip6tables"] {
            let left = run(program, &["-w", "10", "-S"]);
            let stem = mine.trim_end_matches("fwd");
            assert!(!left.contains(stem), "{program}: {left}");
        }
        drop(beside);
    })
    .await;
}

/// This machine's addresses, but for those on bridges of other tests: they come and go.
fn addresses(own_bridges: &[String]) -> Vec<String> {
    let all = run("ip", &["-o", "-4", "addr", "show", "scope", "global"]);
    let words = all.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let stays = |name: &str| !name.starts_with("br-") && !name.starts_with("flexn") || own_bridges.iter().any(|b| b == name);
    let found = words.filter(|w| w.len() > 3 && stays(w[1])).filter_map(|w| Some(w[3].split('/').next()?.to_owned()));
    found.collect()
}

/// The bridge of the instances' network, or of the builds' (`-build`).
fn bridge(docker: &Docker, which: &str) -> String {
    let name = format!("flex-{}{which}", docker.settings.cluster);
    let id = run("docker", &["network", "inspect", "-f", "{{.Id}}", &name]);
    format!("br-{}", &id[..12])
}
