//! Two routers on two machines, one of which is killed: an address that keepalived moves by the settings of
//! docs/high-availability-router.md, and clients that know two addresses. The machines are network namespaces.
//!
//! Everything happens in a namespace of the test's own: it runs itself there, as the first process of its kind, and with
//! that process everything else ends.

mod support;
use flex_model::RouteTable;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::*;
use tokio::sync::watch;

const INSIDE: &str = "FLEX_TEST_INSIDE";
/// Longer than a client waits for an answer before it tries elsewhere.
const PATIENCE: Duration = Duration::from_secs(1);

fn run(command: &str) {
    let mut words = command.split(' ');
    let out = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|e| panic!("{command}: {e}: scripts/test installs what is needed"));
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Another machine on the bridge.
struct Machine {
    holder: Process,
    address: IpAddr,
    dir: tempfile::TempDir,
}

impl Machine {
    async fn new(n: u8) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = holder.id();
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        until("the namespace is there", async || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "sleep" && of(&pid.to_string()) != of("self")
        })
        .await;
        let machine = Self { holder: Process(holder), address: [10, 77, 0, 10 + n].into(), dir: tempfile::tempdir().unwrap() };
        run(&format!("ip link add port{n} type veth peer name eth0 netns {pid}"));
        run(&format!("ip link set port{n} master lan up"));
        for command in ["ip link set lo up", "ip link set eth0 up", &format!("ip addr add {}/24 dev eth0", machine.address)] {
            run(&format!("{} {command}", machine.inside().join(" ")));
        }
        machine
    }

    fn inside(&self) -> [String; 2] {
        ["nsenter".into(), format!("--net=/proc/{}/ns/net", self.holder.0.id())]
    }

    fn start(&self, program: &str, args: &[&str]) -> Process {
        let [enter, there] = self.inside();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(enter);
        command.args([&there, program]).args(args).env("FLEXD_ROUTER_TOKEN", format!("token-of-{}", self.address));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Process(child.unwrap_or_else(|e| panic!("{program}: {e}: scripts/test installs what is needed")))
    }

    fn router(&self, server: SocketAddr) -> Process {
        let (server, data) = (format!("http://{server}"), self.dir.path().to_str().unwrap());
        let args = ["router", "--server", &server, "--plain-http", "--http", "0.0.0.0:80", "--https", "off", "--data-dir", data];
        self.start(env!("CARGO_BIN_EXE_flexd"), &args)
    }

    /// As the page says: the second machine with a lower priority, and the addresses exchanged.
    fn keepalived(&self, first: bool) -> Process {
        let page =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/high-availability-router.md")).unwrap();
        let (_, rest) = page.split_once("```keepalived\n").unwrap();
        let mut conf = rest.split_once("```").unwrap().0.to_owned();
        if !first {
            conf = conf.replace("priority 100", "priority 90").replace("10.77.0.11", "first");
            conf = conf.replace("10.77.0.12", "10.77.0.11").replace("first", "10.77.0.12");
        }
        assert!(conf.contains(&format!("unicast_src_ip {}", self.address)), "{conf}");
        let at = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("keepalived.conf"), conf).unwrap();
        let [conf, pid, vrrp] = ["keepalived.conf", "keepalived.pid", "vrrp.pid"].map(at);
        self.start("keepalived", &["--dont-fork", "--log-console", "--vrrp", "-f", &conf, "-p", &pid, "-r", &vrrp])
    }

    fn has(&self, address: IpAddr) -> bool {
        let [enter, there] = self.inside();
        let out = Command::new(enter).args([&there, "ip", "-o", "addr", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).contains(&format!("inet {address}/"))
    }
}

/// One request, tried at these addresses in turn until one of them answers. How often it failed before.
async fn answered(addresses: &[SocketAddr]) -> usize {
    let begun = Instant::now();
    for (failed, at) in addresses.iter().cycle().enumerate() {
        if tokio::time::timeout(PATIENCE, says(*at, "a1.test", "200 ok")).await == Ok(true) {
            return failed;
        }
        assert!(begun.elapsed() < DEADLINE, "no answer after {failed} tries");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("there are addresses")
}

/// What clients of these addresses met.
struct Clients {
    done: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<(usize, Duration)>,
}

impl Clients {
    /// Each begins with another of the addresses.
    fn of(addresses: &[SocketAddr], clients: usize) -> Self {
        let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..clients {
            let (done, asked, mut addresses) = (done.clone(), asked.clone(), addresses.to_vec());
            let first = n % addresses.len();
            addresses.rotate_left(first);
            tasks.spawn(async move {
                let (mut again, mut longest) = (0, Duration::ZERO);
                while !done.load(SeqCst) {
                    let begun = Instant::now();
                    again += usize::from(answered(&addresses).await > 0);
                    longest = longest.max(begun.elapsed());
                    asked.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (again, longest)
            });
        }
        Self { done, asked, tasks }
    }

    async fn go_on(&self) {
        let before = self.asked.load(SeqCst);
        until("requests go on", async || self.asked.load(SeqCst) > before + 50).await;
    }

    /// How many requests had to be tried again, and how long the longest took.
    async fn end(self, what: &str) -> (usize, Duration) {
        self.done.store(true, SeqCst);
        let met = self.tasks.join_all().await;
        let (again, longest) = (met.iter().map(|m| m.0).sum(), met.iter().map(|m| m.1).max().unwrap());
        println!("{what}: of {} requests {again} were tried again, the longest took {longest:?}", self.asked.load(SeqCst));
        (again, longest)
    }
}

#[test]
fn one_of_two_machines_loses_its_router() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(inside());
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "one_of_two_machines_loses_its_router", "--nocapture"]).env(INSIDE, "1");
    assert!(command.status().unwrap().success());
}

async fn inside() {
    for command in ["ip link set lo up", "ip link add lan type bridge", "ip addr add 10.77.0.1/24 dev lan", "ip link set lan up"]
    {
        run(command);
    }
    let instance = instance_at("10.77.0.1:0", "ok").await;
    let (_tables, watched) = watch::channel(Arc::new(RouteTable::new(5, [app(1, instance)])));
    let server = Server::of(watched);
    let serving = serve(&server, "10.77.0.1:0").await;
    let machines = [Machine::new(1).await, Machine::new(2).await];
    let mut routers = [0, 1].map(|n: usize| machines[n].router(serving.address));
    let both = async || server.statuses.lock().unwrap().values().filter(|s| s.revision == 5).count() == 2;
    until("both routers have the table", both).await;
    for machine in &machines {
        until("it is on disk", async || machine.dir.path().join("router/routes.json").exists()).await;
    }
    // The control plane is dead from here on.
    let control = serving.address;
    serving.task.abort();

    // DNS with two addresses.
    let addresses = [0, 1].map(|n: usize| SocketAddr::new(machines[n].address, 80));
    let clients = Clients::of(&addresses, 4);
    clients.go_on().await;
    kill_one(&mut routers[0]);
    clients.go_on().await;
    routers[0] = machines[0].router(control);
    assert_eq!(answered(&addresses[1..]).await, 0);
    until("it serves by its disk", async || says(addresses[0], "a1.test", "200 ok").await).await;
    kill_one(&mut routers[1]);
    clients.go_on().await;
    routers[1] = machines[1].router(control);
    until("it serves by its disk", async || says(addresses[1], "a1.test", "200 ok").await).await;
    let (_, longest) = clients.end("two addresses").await;
    // A refused connection is known at once, and so is a reset.
    assert!(longest < Duration::from_secs(10), "{longest:?}");

    // An address that moves.
    let _keepalived = [machines[0].keepalived(true), machines[1].keepalived(false)];
    let shared: IpAddr = [10, 77, 0, 10].into();
    let moved = async |to: usize| {
        let (has, other) = (&machines[to], &machines[1 - to]);
        until("the address has moved", async || has.has(shared) && !other.has(shared)).await;
    };
    moved(0).await;
    let clients = Clients::of(&[SocketAddr::new(shared, 80)], 4);
    clients.go_on().await;
    kill_one(&mut routers[0]);
    moved(1).await;
    clients.go_on().await;
    // It comes back, and gets the address back.
    routers[0] = machines[0].router(control);
    moved(0).await;
    clients.go_on().await;
    let (_, longest) = clients.end("an address that moves").await;
    // About a second; more where a busy machine lets keepalived's looks time out.
    assert!(longest < Duration::from_secs(15), "{longest:?}");
}

fn kill_one(router: &mut Process) {
    router.0.kill().unwrap();
    router.0.wait().unwrap();
}
