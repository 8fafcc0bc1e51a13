//! The processes that are measured, each on its own side of the machine, and what `/proc` says of them.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The host name of the app that is asked for.
pub const HOST: &str = "app.test";
/// `USER_HZ` of every Linux that matters: what `/proc/PID/stat` counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which processor a process runs on, where there are two.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Proxy,
    Client,
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// This program again, on that side.
pub fn on(side: Side, args: &[&str]) -> Command {
    let me = std::env::current_exe().expect("this program");
    let mut command = program(side, &me.to_string_lossy());
    command.args(args);
    command
}

fn program(side: Side, name: &str) -> Command {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = processors > 1 || std::env::var_os("FLEX_BENCH_PINNED").is_some();
    if !pinned {
        return Command::new(name);
    }
    let mut command = Command::new("taskset");
    let processor = match side {
        Side::Proxy => "0",
        Side::Client => "1",
    };
    // Once this process is pinned itself it sees one processor only.
    command.env("FLEX_BENCH_PINNED", "yes").args(["-c", processor, name]);
    command
}

/// A process that ends with its owner.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Owned {
    /// A child that prints its addresses first, in one line.
    pub fn start(side: Side, args: &[&str]) -> (Self, Vec<SocketAddr>) {
        let mut child = on(side, args).stdout(Stdio::piped()).spawn().expect("this program again");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("its addresses");
        (Self(child), line.split_whitespace().map(|a| a.parse().expect("an address")).collect())
    }

    /// Seconds of processor time, user and system, of all its threads.
    pub fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a running process");
        let after = stat.rsplit(") ").next().unwrap_or("");
        let fields: Vec<f64> = after.split(' ').skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        fields.iter().sum::<f64>() / TICKS_PER_SECOND
    }

    /// Its own share of memory, in KiB.
    pub fn memory(&self) -> f64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).expect("a running process");
        let pss = maps.lines().find_map(|l| l.strip_prefix("Pss:"));
        pss.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).expect("its memory")
    }
}

/// A proxy with all its listeners.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// Where it relays bytes; none of nginx, whose module for that need not be there.
    pub tcp: Option<SocketAddr>,
    pub process: Owned,
}

/// What all proxies lead to, and where their files are.
#[derive(Debug)]
pub struct Rig {
    pub dir: PathBuf,
    pub backend: SocketAddr,
    pub source: SocketAddr,
    _instance: Owned,
}

impl Rig {
    pub fn start() -> Self {
        // Thousands of connections are held at once.
        let most = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit").1;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).expect("the hard limit");
        let dir = std::env::temp_dir().join(format!("flex-router-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).expect("a certificate");
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        for (name, text) in [("chain.pem", chain.clone()), ("key.pem", key.clone()), ("both.pem", chain + &key)] {
            std::fs::write(dir.join(name), text).expect("room for it");
        }
        let (instance, addresses) = Owned::start(Side::Client, &["instance"]);
        Self { dir, backend: addresses[0], source: addresses[1], _instance: instance }
    }

    /// New processes of all proxies, each asked once.
    pub fn peers(&self) -> Vec<Peer> {
        let dir = self.dir.to_string_lossy();
        let (process, a) = Owned::start(Side::Proxy, &["router", &dir, &self.backend.to_string(), &self.source.to_string()]);
        let mut peers = vec![Peer { name: "flex", http: a[0], https: a[1], tcp: Some(a[2]), process }];
        peers.push(self.other("haproxy", &["-db", "-f"], |ports| haproxy(ports, self)));
        peers.push(self.other("nginx", &["-c"], |ports| nginx(ports, self)));
        peers[2].tcp = None;
        for peer in &peers {
            crate::load::ask(peer.http).unwrap_or_else(|e| panic!("{} does not answer: {e}", peer.name));
        }
        peers
    }

    fn other(&self, name: &'static str, args: &[&str], config: impl Fn([u16; 3]) -> String) -> Peer {
        let held: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let a: Vec<SocketAddr> = held.iter().map(|l| l.local_addr().expect("an address")).collect();
        drop(held);
        let file = self.dir.join(format!("{name}.conf"));
        std::fs::write(&file, config([a[0].port(), a[1].port(), a[2].port()])).expect("a configuration");
        let out = std::fs::File::create(self.dir.join(format!("{name}.out"))).expect("a log");
        let errors = std::fs::File::create(self.dir.join(format!("{name}.err"))).expect("a log");
        let child = program(Side::Proxy, name).args(args).arg(&file).stdout(out).stderr(errors).spawn();
        let process = Owned(child.unwrap_or_else(|e| panic!("{name} cannot be started: {e}")));
        wait_for(name, a[0], &self.dir);
        Peer { name, http: a[0], https: a[1], tcp: Some(a[2]), process }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn wait_for(name: &str, address: SocketAddr, dir: &Path) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        if begun.elapsed() > Duration::from_secs(5) {
            let said = std::fs::read_to_string(dir.join(format!("{name}.err"))).unwrap_or_default();
            panic!("{name} does not listen: {said}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn haproxy([http, https, tcp]: [u16; 3], rig: &Rig) -> String {
    let (to, source, dir) = (rig.backend, rig.source, rig.dir.display());
    format!(
        "global\n nbthread 1\n maxconn 7500\n log stdout format raw local0\n ssl-default-bind-options ssl-min-ver TLSv1.3\n\
         defaults\n log global\n timeout client 60s\n timeout server 30s\n timeout connect 5s\n\
         frontend f\n mode http\n option httplog\n option forwardfor\n bind 127.0.0.1:{http}\n\
         bind 127.0.0.1:{https} ssl crt {dir}/both.pem alpn h2,http/1.1\n\
         unique-id-format %[uuid()]\n unique-id-header X-Request-ID\n\
         http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n\
         acl known hdr(host),host_only -i {HOST}\n use_backend b if known\n\
         backend b\n mode http\n http-reuse always\n server s {to}\n\
         listen t\n mode tcp\n option tcplog\n option splice-auto\n bind 127.0.0.1:{tcp}\n server s {source}\n"
    )
}

fn nginx([http, https, _]: [u16; 3], rig: &Rig) -> String {
    let (to, dir) = (rig.backend, rig.dir.display());
    let server = |listen: &str| {
        format!(
            "server {{ listen {listen}; server_name {HOST}; location / {{ proxy_pass http://u; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Request-ID $request_id;\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }}\n"
        )
    };
    let (plain, secure) = (server(&format!("127.0.0.1:{http}")), server(&format!("127.0.0.1:{https} ssl http2")));
    format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.err; worker_rlimit_nofile 20000;\n\
         events {{ worker_connections 20000; }}\n\
         http {{ access_log {dir}/nginx.log combined buffer=64k flush=1s; keepalive_requests 100000000;\n\
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         ssl_certificate {dir}/chain.pem; ssl_certificate_key {dir}/key.pem; ssl_protocols TLSv1.3;\n\
         upstream u {{ server {to}; keepalive 256; keepalive_requests 100000000; }}\n{plain}{secure} }}\n"
    )
}
