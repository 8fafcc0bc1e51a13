//! Certificates that are made automatically, against a real authority: Debian's `pebble` with the name server that comes
//! with it (scripts/test installs them). The server is a process without a container engine: what is routed is enough.

use flex_tests::Port;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const DEADLINE: Duration = Duration::from_secs(60);

struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self(child.unwrap_or_else(|e| panic!("{command:?}: {e}: scripts/test installs what is needed")))
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The authority, with a name server for its world.
struct Authority {
    dir: tempfile::TempDir,
    http: reqwest::Client,
    dns: u16,
    manage_dns: u16,
    manage: u16,
    acme: u16,
    /// Where it looks at names.
    http_port: u16,
    tls_port: u16,
    _processes: Vec<Process>,
    _ports: [Port; 6],
}

impl Authority {
    /// Its certificates are good for so many seconds.
    async fn start(life: u64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let ports: [Port; 6] = std::array::from_fn(|_| Port::reserve());
        let [acme, manage, dns, manage_dns, http_port, tls_port] = ports.each_ref().map(Port::number);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{manage}"),
            "certificate": dir.path().join("cert.pem"),
            "privateKey": dir.path().join("key.pem"),
            "httpPort": http_port,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": life,
            "domainBlocklist": ["blocked.test"],
        } });
        std::fs::write(dir.path().join("pebble.json"), config.to_string()).unwrap();
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        names.args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{manage_dns}")]);
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(dir.path().join("pebble.json")).args(["-dnsserver", &format!("127.0.0.1:{dns}")]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        let processes = vec![
            Process::start(&mut names, &dir.path().join("dns.log")),
            Process::start(&mut pebble, &dir.path().join("pebble.log")),
        ];
        let http = reqwest::Client::builder().danger_accept_invalid_certs(true).build().unwrap();
        let authority =
            Self { dir, http, dns, manage_dns, manage, acme, http_port, tls_port, _processes: processes, _ports: ports };
        until("the authority answers", async || authority.root().await.is_some()).await;
        until("its name server answers", async || authority.name("set-txt", json!({ "host": "up.test.", "value": "x" })).await)
            .await;
        authority
    }

    async fn root(&self) -> Option<CertificateDer<'static>> {
        let answer = self.http.get(format!("https://127.0.0.1:{}/roots/0", self.manage)).send().await.ok()?;
        CertificateDer::from_pem_slice(answer.text().await.ok()?.as_bytes()).ok()
    }

    async fn name(&self, what: &str, body: Value) -> bool {
        let url = format!("http://127.0.0.1:{}/{what}", self.manage_dns);
        self.http.post(url).body(body.to_string()).send().await.is_ok_and(|r| r.status().is_success())
    }

    /// Soon after it is issued, the router has it.
    async fn is_shown(&self, at: SocketAddr, name: &str) -> Vec<u8> {
        let mut shown = None;
        until(&format!("{at} shows {name}"), async || {
            shown = self.shown(at, name).await;
            shown.is_some()
        })
        .await;
        shown.expect("it was waited for")
    }

    /// A program as an operator would write it. It waits while there is a file `wait` beside it.
    fn hook(&self) -> PathBuf {
        let path = self.dir.path().join("hook");
        let manage = self.manage_dns;
        let script = format!(
            r#"#!/bin/sh
cd "${{0%/*}}" || exit 1
echo "$1 $2" >> hook.log
while [ -e wait ]; do sleep 0.1; done
case $1 in
  present) body="{{\"host\":\"$2.\",\"value\":\"$3\"}}" do=set-txt ;;
  cleanup) body="{{\"host\":\"$2.\"}}" do=clear-txt ;;
esac
exec curl -fsS -d "$body" "http://127.0.0.1:{manage}/$do"
"#
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// The chain that a router shows for a name, if it is one of this authority's and good now.
    async fn shown(&self, at: SocketAddr, name: &str) -> Option<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root().await?).ok()?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(at).await.ok()?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
        Some(stream.get_ref().1.peer_certificates()?[0].to_vec())
    }
}

/// A server without an engine.
struct Server {
    dir: tempfile::TempDir,
    api: String,
    token: String,
    https: SocketAddr,
    /// The API's, and the one for git.
    ports: [Port; 2],
    plain: SocketAddr,
    http: reqwest::Client,
    process: Option<Process>,
}

impl Server {
    async fn start(authority: &Authority, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [api, ssh] = [Port::reserve(), Port::reserve()];
        let file = format!(
            "[network]\nrules = false\n[acme]\nterms_agreed = true\nemail = \"ops@example.com\"\n\
             directory = \"https://localhost:{}/dir\"\nca_file = \"{}\"\nresolver = \"127.0.0.1:{}\"\n\
             http_port = {}\ntls_port = {}\nretry_seconds = 600\n{more}",
            authority.acme,
            authority.dir.path().join("cert.pem").display(),
            authority.dns,
            authority.http_port,
            authority.tls_port,
        );
        std::fs::write(dir.path().join("flexd.toml"), file).unwrap();
        let mut server = Self {
            api: format!("http://{}", api.local()),
            token: String::new(),
            https: SocketAddr::from(([127, 0, 0, 1], authority.tls_port)),
            ports: [api, ssh],
            plain: SocketAddr::from(([127, 0, 0, 1], authority.http_port)),
            http: reqwest::Client::new(),
            dir,
            process: None,
        };
        server.run().await;
        let token = server.command(&["user:token", "me@example.com", "--admin"]);
        server.token = token;
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("flexd.log")).unwrap_or_default()
    }

    fn flexd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flexd"));
        command.env("FLEXD_DATA_DIR", self.dir.path());
        command.env("FLEXD_BUILDPACKS", Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("buildpacks"));
        command
    }

    /// Starts it, or starts it again.
    async fn run(&mut self) {
        let mut command = self.flexd();
        command.args(["--api", self.api.strip_prefix("http://").unwrap(), "--domain", "apps.test"]);
        command.args(["--http", &self.plain.to_string(), "--https", &self.https.to_string()]);
        command.args(["--ssh", &self.ports[1].local().to_string(), "--docker", "/nowhere/docker.sock"]);
        self.process = Some(Process::start(&mut command, &self.dir.path().join("flexd.log")));
        let (http, health) = (self.http.clone(), format!("{}/health", self.api));
        until("the server answers", async || {
            let ended = self.process.as_mut().unwrap().0.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {}", self.log());
            http.get(&health).send().await.is_ok_and(|r| r.status().is_success())
        })
        .await;
    }

    fn command(&self, arguments: &[&str]) -> String {
        let output = self.flexd().args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().find(|w| w.len() > 30).unwrap_or_else(|| panic!("no token in {text}")).to_owned()
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: Value) -> Value {
        let request = self.http.request(method, format!("{}{path}", self.api)).bearer_auth(&self.token).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.ask(reqwest::Method::POST, path, body).await
    }

    /// What `flex certs:auto` says of a name.
    async fn status(&self, app: &str, name: &str) -> (String, String) {
        let all = self.ask(reqwest::Method::GET, &format!("/apps/{app}/domains"), Value::Null).await;
        let found = all.as_array().unwrap().iter().find(|d| d["hostname"] == name).unwrap_or_else(|| panic!("{name}: {all}"));
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&found["acm_status"]), text(&found["acm_status_reason"]))
    }

    async fn issued(&self, app: &str, name: &str) {
        let started = Instant::now();
        loop {
            let (status, reason) = self.status(app, name).await;
            if status == "cert issued" {
                return;
            }
            assert!(
                status != "failing" && status != "failed" && started.elapsed() < DEADLINE,
                "{name}: {status} {reason}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn events(&self, app: &str) -> Vec<(String, String)> {
        let all = self.ask(reqwest::Method::GET, &format!("/apps/{app}/events"), Value::Null).await;
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        all.as_array().unwrap().iter().map(|e| (text(&e["kind"]), text(&e["message"]))).collect()
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_proofs_on_two_routers_renewal_and_names_that_are_refused() {
    let authority = Authority::start(45).await;
    let mut server = Server::start(&authority, "").await;
    server.post("/apps", json!({ "name": "demo" })).await;
    for name in ["www.shop.test", "far.shop.test", "www.blocked.test", "gone.test", "*.wild.test"] {
        server.post("/apps/demo/domains", json!({ "hostname": name })).await;
    }
    // A router of its own, on another address; one of the names leads there and nowhere else.
    let far = SocketAddr::from(([127, 0, 0, 2], authority.tls_port));
    assert!(authority.name("add-a", json!({ "host": "far.shop.test.", "addresses": ["127.0.0.2"] })).await);
    assert!(authority.name("add-a", json!({ "host": "gone.test.", "addresses": ["127.0.0.3"] })).await);
    let data = tempfile::tempdir().unwrap();
    let token = server.command(&["router:token", "far"]);
    let api = server.api.clone();
    let router = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flexd"));
        command.args(["router", "--server", &api, "--https", &far.to_string()]);
        command.args(["--http", &format!("127.0.0.2:{}", authority.http_port)]).arg("--data-dir").arg(data.path());
        Process::start(command.env("FLEXD_ROUTER_TOKEN", &token), &data.path().join("log"))
    };
    let mut process = router();
    until("the far router listens", async || tokio::net::TcpStream::connect(far).await.is_ok()).await;
    assert_eq!(server.post("/apps/demo/acm", json!({})).await["acm"], true);
    for name in ["www.shop.test", "far.shop.test", "demo.apps.test"] {
        server.issued("demo", name).await;
    }
    authority.is_shown(far, "far.shop.test").await;
    let first = authority.is_shown(server.https, "www.shop.test").await;
    // Both routers have all of them; the far one keeps them where only its owner can read.
    authority.is_shown(far, "www.shop.test").await;
    let kept = data.path().join("router/certificates.json");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // Names that cannot have one say why, and are left alone for a while.
    for (name, code) in
        [("www.blocked.test", "acme_refused"), ("gone.test", "acme_unreachable"), ("*.wild.test", "acme_wildcard")]
    {
        until(name, async || server.status("demo", name).await.1.contains(code)).await;
    }
    assert_eq!(server.status("demo", "*.wild.test").await.0, "failed");
    let failed = |events: &[(String, String)]| events.iter().filter(|(kind, _)| kind == "certificate.fail").count();
    assert_eq!(failed(&server.events("demo").await), 3);
    // Renewed two thirds into its life, while the old one serves.
    until("it is renewed", async || {
        let now = authority.shown(server.https, "www.shop.test").await;
        now.expect("there is always one that is good") != first
    })
    .await;
    until("that is an event", async || server.events("demo").await.iter().any(|(kind, _)| kind == "certificate.renew")).await;
    assert_eq!(failed(&server.events("demo").await), 3, "nothing was tried again before its time");
    // Without the server, a restarted router has them from its disk.
    server.process.as_mut().unwrap().kill();
    process.kill();
    process = router();
    authority.is_shown(far, "far.shop.test").await;
    server.run().await;
    // Turned off, they are gone everywhere.
    server.ask(reqwest::Method::DELETE, "/apps/demo/acm", Value::Null).await;
    until("they are gone", async || {
        authority.shown(far, "far.shop.test").await.is_none() && authority.shown(server.https, "www.shop.test").await.is_none()
    })
    .await;
    process.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_proofs_and_a_name_that_is_mended() {
    let authority = Authority::start(3600).await;
    let server = Server::start(&authority, "challenge = \"tls-alpn-01\"\n").await;
    server.post("/apps", json!({ "name": "demo" })).await;
    server.post("/apps/demo/acm", json!({})).await;
    server.issued("demo", "demo.apps.test").await;
    authority.is_shown(server.https, "demo.apps.test").await;
    // A name that leads elsewhere is tried again at once when somebody says so.
    assert!(authority.name("add-a", json!({ "host": "moved.test.", "addresses": ["127.0.0.3"] })).await);
    server.post("/apps/demo/domains", json!({ "hostname": "moved.test" })).await;
    until("it fails", async || server.status("demo", "moved.test").await.1.contains("acme_unreachable")).await;
    assert!(authority.name("clear-a", json!({ "host": "moved.test." })).await);
    server.ask(reqwest::Method::PATCH, "/apps/demo/acm", json!({ "acm_refresh": true })).await;
    until("it is mended", async || server.status("demo", "moved.test").await.0 == "cert issued").await;
    authority.is_shown(server.https, "moved.test").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_proofs_for_wildcards_and_an_order_that_outlives_its_server() {
    let authority = Authority::start(3600).await;
    let hook = authority.hook();
    let more = format!("challenge = \"dns-01\"\nwildcard = true\ndns_hook = [\"{}\"]\n", hook.display());
    std::fs::write(authority.dir.path().join("wait"), "").unwrap();
    let mut server = Server::start(&authority, &more).await;
    let hook_log = || std::fs::read_to_string(authority.dir.path().join("hook.log")).unwrap_or_default();
    until("the order is at its proof", async || hook_log().contains("present _acme-challenge.apps.test")).await;
    // Killed in the middle, the next one goes on with the same order.
    server.process.as_mut().unwrap().kill();
    std::fs::remove_file(authority.dir.path().join("wait")).unwrap();
    server.run().await;
    authority.is_shown(server.https, "any.apps.test").await;
    assert!(server.log().contains("going on with an order"));
    authority.is_shown(server.https, "apps.test").await;
    let orders = std::fs::read_to_string(authority.dir.path().join("pebble.log")).unwrap();
    assert_eq!(orders.matches("Added order").count(), 1, "{orders}");
    // An app's own wildcard; its own domain is the platform's business.
    server.post("/apps", json!({ "name": "demo" })).await;
    server.post("/apps/demo/domains", json!({ "hostname": "*.shop.test" })).await;
    server.post("/apps/demo/acm", json!({})).await;
    server.issued("demo", "*.shop.test").await;
    authority.is_shown(server.https, "x.shop.test").await;
    assert_eq!(server.status("demo", "demo.apps.test").await.0, "cert issued");
    let endpoints = server.ask(reqwest::Method::GET, "/apps/demo/sni-endpoints", Value::Null).await;
    assert_eq!((endpoints.as_array().unwrap().len(), &endpoints[0]["ssl_cert"]["acm"]), (1, &json!(true)));
    // What was put into DNS was taken out again.
    assert!(hook_log().contains("cleanup _acme-challenge.shop.test"));
}
