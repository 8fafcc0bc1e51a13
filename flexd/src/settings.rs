//! Every setting of the server, in one place: flag, then environment, then `flexd.toml`, then the default.
//!
//! Read once at the start; a wrong value stops the start with the setting's name. Must not: be read again later, or hold
//! a secret that is not in a [`flex_model::Secret`].

use crate::log_settings::{Logs, LogsFile};
use clap::Args;
use flex_builder::Compression;
use flex_model::{DomainName, Memory, NamedSize};
use flex_router::MinTls;
use flex_runtime::{Net, Target};
use flex_store::Engine;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can be set on the command line or in the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Where everything is kept [default: /var/lib/flex as root, else $XDG_DATA_HOME/flex]
    #[arg(long, env = "FLEXD_DATA_DIR", global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Settings file [default: flexd.toml in the data directory, if it is there]
    #[arg(long, env = "FLEXD_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the HTTP API listens [default: 127.0.0.1:7070]
    #[arg(long, env = "FLEXD_API", global = true, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// Where the apps' HTTP router listens [default: 0.0.0.0:8080]
    #[arg(long, env = "FLEXD_HTTP", global = true, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Where the apps' HTTPS router listens; "off" for nowhere [default: 0.0.0.0:8443]
    #[arg(long, env = "FLEXD_HTTPS", global = true, value_name = "ADDR")]
    pub https: Option<Listen>,
    /// Oldest TLS version of clients: 1.2 or 1.3 [default: 1.2]
    #[arg(long, env = "FLEXD_TLS_MIN", global = true, value_name = "VERSION")]
    pub tls_min: Option<MinTls>,
    /// Where git over SSH listens [default: 0.0.0.0:2222]
    #[arg(long, env = "FLEXD_SSH", global = true, value_name = "ADDR")]
    pub ssh: Option<SocketAddr>,
    /// Domain of the apps: an app is http://APP.DOMAIN [default: localhost]
    #[arg(long, env = "FLEXD_DOMAIN", global = true, value_name = "NAME")]
    pub domain: Option<String>,
    /// URL that users reach the API at, where it is not the listening address (a proxy in front)
    #[arg(long, env = "FLEXD_API_URL", global = true, value_name = "URL")]
    pub api_url: Option<String>,
    /// Disk format of the state store: sled or redb [default: sled]
    #[arg(long, env = "FLEXD_STORE", global = true, value_name = "ENGINE")]
    pub store: Option<Engine>,
    /// Docker's socket [default: /var/run/docker.sock]
    #[arg(long, env = "FLEXD_DOCKER", global = true, value_name = "PATH")]
    pub docker: Option<PathBuf>,
    /// Folder with the built-in buildpacks and stack recipes [default: found beside the executable]
    #[arg(long, env = "FLEXD_BUILDPACKS", global = true, value_name = "DIR")]
    pub buildpacks: Option<PathBuf>,
    /// Stack of new apps [default: flex-13]
    #[arg(long, env = "FLEXD_STACK", global = true, value_name = "NAME")]
    pub stack: Option<String>,
    /// Where metrics are told without a token, for Prometheus; keep it off public networks [default: nowhere]
    #[arg(long, env = "FLEXD_METRICS", global = true, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Log lines as JSON objects
    #[arg(long, env = "FLEXD_LOG_JSON", global = true)]
    pub log_json: bool,
}

/// An address to listen on, or `off`.
#[derive(Debug, Clone, Copy)]
pub struct Listen(Option<SocketAddr>);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|a| Self(Some(a)))
                .map_err(|_| format!("{text:?} is neither an address such as 0.0.0.0:8443 nor off")),
        }
    }
}

/// `flexd.toml`. Unknown names are errors: a misspelt setting must not be a silent default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    api: Option<SocketAddr>,
    http: Option<SocketAddr>,
    https: Option<String>,
    tls_min: Option<String>,
    metrics: Option<SocketAddr>,
    ssh: Option<SocketAddr>,
    domain: Option<String>,
    api_url: Option<String>,
    store: Option<String>,
    docker: Option<PathBuf>,
    buildpacks: Option<PathBuf>,
    stack: Option<String>,
    #[serde(default)]
    build: BuildFile,
    #[serde(default)]
    router: RouterFile,
    #[serde(default)]
    network: NetworkFile,
    #[serde(default)]
    logs: LogsFile,
    /// Sizes of instances by name.
    #[serde(default)]
    sizes: BTreeMap<String, SizeFile>,
    #[serde(default)]
    runs: RunsFile,
    acme: Option<crate::acme_settings::File>,
}

/// One-off commands.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunsFile {
    /// Seconds after which one is stopped.
    max_life_seconds: Option<u64>,
    /// The most of one app at a time.
    per_app: Option<usize>,
    /// Seconds after which a release phase fails its release.
    release_phase_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeFile {
    memory: String,
    cpu_shares: Option<u32>,
    /// Cores, such as 0.5: a hard limit.
    cpu: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BuildFile {
    /// Set in every build: proxies, mirrors.
    #[serde(default)]
    env: BTreeMap<String, String>,
    timeout_seconds: Option<u64>,
    memory: Option<String>,
    disk: Option<String>,
    slug_limit: Option<String>,
    compression: Option<Compression>,
    /// What builds trust.
    ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouterFile {
    workers: Option<usize>,
    #[serde(default)]
    trusted_proxies: Vec<String>,
    /// Load balancers whose connections begin with a PROXY header, by listener.
    #[serde(default)]
    proxy_protocol: ProxyFile,
    /// Ports of TCP and UDP routes: `20000-29999`.
    route_ports: Option<String>,
    /// HTTP/3 beside HTTPS.
    #[serde(default)]
    http3: bool,
    /// The port that clients are told to reach it at.
    http3_port: Option<u16>,
    #[serde(default)]
    access_lines: LinesFile,
    #[serde(default)]
    limits: crate::router_limits::File,
}

impl RouterFile {
    fn check_http3(&self, https: Option<SocketAddr>) -> Result<(), String> {
        match (self.http3, self.http3_port) {
            (false, Some(_)) => Err("router.http3_port: there is no HTTP/3 to tell of: set router.http3 = true too".into()),
            (_, Some(0)) => Err("router.http3_port: 0 is no port: use the one that clients reach".into()),
            (true, _) if https.is_none() => Err("router.http3: HTTP/3 needs HTTPS, which is off: set https too".into()),
            (true, _) if !self.proxy_protocol.http.is_empty() => {
                Err("router.http3: QUIC has no place for a PROXY header: turn off either http3 or router.proxy_protocol.http"
                    .into())
            }
            _ => Ok(()),
        }
    }
}

/// How access lines are written, where an app says nothing else.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LinesFile {
    json: Option<bool>,
    /// Share of the requests without an error that leave a line: 0 to 1.
    sample: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProxyFile {
    http: Vec<String>,
    tcp: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkFile {
    rules: Option<bool>,
    deny: Option<Vec<String>>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    host_ports: Vec<u16>,
}

/// The settings in force.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    /// The settings file that was read, and what is in it.
    pub config: Option<PathBuf>,
    pub file: toml::Table,
    pub log_json: bool,
    pub api: SocketAddr,
    pub http: SocketAddr,
    /// `None`: no HTTPS.
    pub https: Option<SocketAddr>,
    pub tls_min: MinTls,
    /// HTTP/3 beside HTTPS.
    pub http3: bool,
    /// Where clients are told to find it; `None`: at HTTPS's port.
    pub http3_port: Option<u16>,
    /// Metrics without a token. `None`: only at the API, with one.
    pub metrics: Option<SocketAddr>,
    pub ssh: SocketAddr,
    pub domain: DomainName,
    pub api_url: String,
    pub store: Engine,
    /// Said by a flag, the environment or a settings file outside the data directory, all of which a restore leaves alone.
    pub store_given: bool,
    pub docker: PathBuf,
    pub buildpacks: PathBuf,
    pub stack: String,
    pub build: Build,
    pub router_workers: Option<usize>,
    pub trusted_proxies: Vec<String>,
    /// Load balancers in front of the HTTP listener, and of the ports of TCP routes.
    pub proxy_protocol_http: Vec<String>,
    pub proxy_protocol_tcp: Vec<String>,
    pub router_limits: flex_router::Limits,
    pub router_timeouts: flex_router::Timeouts,
    /// How access lines are written, where an app says nothing else.
    pub access_lines: flex_model::LineForm,
    /// Ports that apps may have for TCP and UDP routes.
    pub route_ports: std::ops::RangeInclusive<u16>,
    pub network: Network,
    pub logs: Logs,
    pub runs: flex_controller::RunLimits,
    /// Sizes of instances by name, in lower case.
    pub sizes: BTreeMap<String, NamedSize>,
    /// How certificates are made automatically; none: they are not.
    pub acme: Option<flex_controller::AcmeSettings>,
}

/// What apps and builds may reach.
#[derive(Debug, Clone)]
pub struct Network {
    /// Whether the packet filter keeps it so.
    pub rules: bool,
    /// Ranges that they do not reach.
    pub deny: Vec<Net>,
    /// Places that they reach all the same.
    pub allow: Vec<Target>,
    /// TCP ports of this machine that they reach, beside the router's.
    pub host_ports: Vec<u16>,
}

/// Limits and environment of builds.
#[derive(Debug, Clone)]
pub struct Build {
    pub env: BTreeMap<String, String>,
    pub timeout: Duration,
    pub memory: Memory,
    /// Bytes that a build may write outside its cache.
    pub disk: Memory,
    /// Largest accepted slug.
    pub slug_limit: Memory,
    /// Of slugs in blob storage.
    pub compression: Compression,
    /// What builds trust, where it is not the machine's own bundle.
    pub ca_bundle: Option<PathBuf>,
}

impl Settings {
    /// Merges the sources.
    ///
    /// # Errors
    /// One line that names the setting and what is wrong with it.
    pub fn load(flags: Flags) -> Result<Self, String> {
        let data_dir = match flags.data_dir {
            Some(dir) => std::path::absolute(dir).map_err(|e| format!("--data-dir: {e}"))?,
            None => default_data_dir()?,
        };
        let (config, file, table) = match settings_file(flags.config.as_deref(), &data_dir) {
            Some(path) => read_file(&path).map(|(file, table)| (Some(path), file, table))?,
            None => <_>::default(),
        };
        let domain = flags.domain.or(file.domain).unwrap_or_else(|| "localhost".into());
        let domain = domain.parse().map_err(|e| format!("domain: {e}"))?;
        let api = flags.api.or(file.api).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7070)));
        let store_given = flags.store.is_some() || flags.config.is_some();
        let store = match (flags.store, file.store) {
            (Some(engine), _) => engine,
            (None, Some(name)) => name.parse().map_err(|e| format!("store: {e}"))?,
            (None, None) => Engine::Sled,
        };
        let buildpacks = match flags.buildpacks.or(file.buildpacks) {
            Some(dir) => dir,
            None => find_buildpacks()?,
        };
        let size = |name: &str, text: Option<String>, default: Memory| match text {
            Some(t) => t.parse().map_err(|e| format!("build.{name}: {e}")),
            None => Ok(default),
        };
        let https = match (flags.https, file.https) {
            (Some(listen), _) => listen,
            (None, Some(text)) => text.parse().map_err(|e| format!("https: {e}"))?,
            (None, None) => Listen(Some(SocketAddr::from(([0, 0, 0, 0], 8443)))),
        };
        let tls_min = match (flags.tls_min, file.tls_min) {
            (Some(min), _) => min,
            (None, Some(text)) => text.parse().map_err(|e| format!("tls_min: {e}"))?,
            (None, None) => MinTls::default(),
        };
        let (router_limits, router_timeouts) = file.router.limits.checked()?;
        file.router.check_http3(https.0)?;
        Ok(Self {
            config,
            file: table,
            log_json: flags.log_json,
            router_limits,
            router_timeouts,
            https: https.0,
            tls_min,
            http3: file.router.http3,
            http3_port: file.router.http3_port,
            metrics: flags.metrics.or(file.metrics),
            api,
            http: flags.http.or(file.http).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 8080))),
            ssh: flags.ssh.or(file.ssh).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 2222))),
            domain,
            api_url: flags.api_url.or(file.api_url).unwrap_or_else(|| format!("http://{api}")),
            store,
            store_given,
            docker: flags.docker.or(file.docker).unwrap_or_else(|| "/var/run/docker.sock".into()),
            buildpacks: std::path::absolute(buildpacks).map_err(|e| format!("buildpacks: {e}"))?,
            stack: flags.stack.or(file.stack).unwrap_or_else(|| "flex-13".into()),
            build: Build {
                env: file.build.env,
                timeout: Duration::from_secs(file.build.timeout_seconds.unwrap_or(15 * 60)),
                memory: size("memory", file.build.memory, Memory::from_mib(2048))?,
                disk: size("disk", file.build.disk, Memory::from_mib(4096))?,
                slug_limit: size("slug_limit", file.build.slug_limit, Memory::from_mib(500))?,
                compression: file.build.compression.unwrap_or(Compression::Gzip),
                ca_bundle: match file.build.ca_bundle {
                    Some(path) if !path.is_absolute() || !path.is_file() => {
                        return Err(format!("build.ca_bundle: {} is not the whole path of a file", path.display()));
                    }
                    other => other,
                },
            },
            router_workers: file.router.workers,
            trusted_proxies: file.router.trusted_proxies,
            proxy_protocol_http: file.router.proxy_protocol.http,
            proxy_protocol_tcp: file.router.proxy_protocol.tcp,
            route_ports: port_range(file.router.route_ports.as_deref().unwrap_or("20000-29999"))?,
            access_lines: lines(&file.router.access_lines)?,
            network: network(file.network)?,
            logs: file.logs.read()?,
            runs: runs(&file.runs)?,
            sizes: sizes(file.sizes)?,
            acme: file.acme.map(crate::acme_settings::read).transpose()?.flatten(),
            data_dir,
        })
    }
}

fn runs(file: &RunsFile) -> Result<flex_controller::RunLimits, String> {
    let default = flex_controller::RunLimits::default();
    let max_life = file.max_life_seconds.map_or(default.max_life, Duration::from_secs);
    if max_life.is_zero() {
        return Err("runs.max_life_seconds: 0 would let nothing run".into());
    }
    let release_phase = file.release_phase_seconds.map_or(default.release_phase, Duration::from_secs);
    if release_phase.is_zero() {
        return Err("runs.release_phase_seconds: 0 would let no release phase end".into());
    }
    Ok(flex_controller::RunLimits { max_life, per_app: file.per_app.unwrap_or(default.per_app), release_phase })
}

fn lines(file: &LinesFile) -> Result<flex_model::LineForm, String> {
    let per_mille = match file.sample {
        None => None,
        Some(share) if (0.0..=1.0).contains(&share) => Some((share * 1000.0).round() as u16),
        Some(share) => return Err(format!("router.access_lines.sample: {share} is no share: use 0 to 1")),
    };
    Ok(flex_model::LineForm { json: file.json, per_mille })
}

fn network(file: NetworkFile) -> Result<Network, String> {
    let deny = file.deny.map(|all| all.iter().map(|n| n.parse()).collect::<Result<_, _>>());
    let allow = file.allow.iter().map(|t| t.parse()).collect::<Result<_, _>>();
    Ok(Network {
        rules: file.rules.unwrap_or(true),
        deny: deny.transpose().map_err(|e| format!("network.deny: {e}"))?.unwrap_or_else(Net::private),
        allow: allow.map_err(|e| format!("network.allow: {e}"))?,
        host_ports: file.host_ports,
    })
}

fn sizes(file: BTreeMap<String, SizeFile>) -> Result<BTreeMap<String, NamedSize>, String> {
    let one = |(name, size): (String, SizeFile)| {
        let bad = |what: &str, why: &dyn std::fmt::Display| format!("sizes.{name}{what}: {why}");
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(bad("", &"a size's name begins with a letter and holds letters, digits and dashes"));
        }
        let memory = size.memory.parse().map_err(|e: flex_model::ParseSizeError| bad(".memory", &e))?;
        let cpu_shares = size.cpu_shares.unwrap_or(flex_model::app::ORDINARY_SHARES);
        if !flex_model::app::SHARES.contains(&cpu_shares) {
            return Err(bad(".cpu_shares", &"use 2 to 262144; 1024 is ordinary"));
        }
        let cpu_millis = size.cpu.map(flex_model::app::cpu_millis).transpose().map_err(|e| bad(".cpu", &e))?;
        Ok((name.to_ascii_lowercase(), NamedSize { memory, cpu_shares, cpu_millis }))
    };
    file.into_iter().map(one).collect()
}

fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let parsed = text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match parsed {
        Some((first, last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err(format!("router.route_ports: {text} is no range of ports: use 20000-29999")),
    }
}

fn settings_file(given: Option<&Path>, data_dir: &Path) -> Option<PathBuf> {
    let beside = data_dir.join("flexd.toml");
    given.map(Path::to_owned).or_else(|| beside.exists().then_some(beside))
}

fn read_file(path: &Path) -> Result<(File, toml::Table), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let wrong = |e: toml::de::Error| format!("{}: {e}", path.display());
    Ok((toml::from_str(&text).map_err(wrong)?, toml::from_str(&text).map_err(wrong)?))
}

fn default_data_dir() -> Result<PathBuf, String> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok("/var/lib/flex".into());
    }
    let home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share")));
    home.map(|h| h.join("flex")).ok_or_else(|| "neither HOME nor XDG_DATA_HOME is set: give --data-dir".into())
}

/// What builds trust: what the settings name, else what this machine's programs are told to (`SSL_CERT_FILE`), else the
/// distribution's bundle.
pub fn ca_bundle(set: Option<&Path>, named: Option<PathBuf>, usual: Option<PathBuf>) -> Option<PathBuf> {
    // The engine takes whole paths only; a variable that leads nowhere is what OpenSSL passes over, too.
    let named = named.and_then(|path| std::fs::canonicalize(path).ok()).filter(|path| path.is_file());
    set.map(Path::to_owned).or(named).or(usual)
}

/// `buildpacks/` above the executable (a checkout), or where a package puts it.
fn find_buildpacks() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| format!("cannot tell where this executable is: {e}"))?;
    let above = exe.ancestors().skip(1).map(|d| d.join("buildpacks"));
    let packaged = ["/usr/local/share/flex/buildpacks", "/usr/share/flex/buildpacks"].map(PathBuf::from);
    above
        .chain(packaged)
        .find(|d| d.join("stacks").is_dir())
        .ok_or_else(|| "the folder of buildpacks was not found: give --buildpacks DIR".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, flags: Flags) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("flexd.toml"), toml).unwrap();
        Settings::load(Flags { data_dir: Some(dir.path().into()), buildpacks: Some("/bp".into()), ..flags })
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let s = load(
            "api = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\n[build]\nmemory = \"3G\"",
            Flags { api: Some(SocketAddr::from(([127, 0, 0, 1], 9))), ..Flags::default() },
        )
        .unwrap();
        assert_eq!((s.api.port(), s.http.port(), s.ssh.port()), (9, 2, 2222));
        assert_eq!(s.build.memory, Memory::from_mib(3072));
        assert_eq!(s.api_url, "http://127.0.0.1:9");
    }

    #[test]
    fn mistakes_stop_the_start_and_are_named() {
        for (toml, word) in [
            ("htpp = 1", "htpp"),
            ("domain = \"a b\"", "domain"),
            ("store = \"x\"", "sled or redb"),
            ("[router]\nroute_ports = \"9-2\"", "router.route_ports"),
            ("[build]\nmemory = \"1\"", "build.memory"),
            ("https = \"off\"\n[router]\nhttp3 = true", "router.http3"),
            ("[router]\nhttp3_port = 443", "router.http3_port"),
            ("[router]\nhttp3 = true\n[router.proxy_protocol]\nhttp = [\"10.0.0.1/32\"]", "PROXY header"),
            ("[build]\nca_bundle = \"/no/such/file\"", "build.ca_bundle"),
            ("[build]\nca_bundle = \"Cargo.toml\"", "build.ca_bundle"),
            ("[router.limits]\nconnections = 0", "router.limits.connections"),
            ("[router.limits]\nconections = 5", "conections"),
            ("[router.limits]\nheaders = 300", "router.limits.headers"),
            ("[router.limits]\nidle_seconds = 0", "router.limits.idle_seconds"),
            ("[router.limits]\nhttp2_stream_window = 100", "router.limits.http2_stream_window"),
            ("[router.limits]\nhttp2_connection_window = 65536\nhttp2_stream_window = 131072", "http2_connection_window"),
            ("[router.access_lines]\nsample = 2.0", "router.access_lines.sample"),
            ("[network]\ndeny = [\"10.0.0.0/40\"]", "network.deny"),
            ("[network]\nallow = [\"a b\"]", "network.allow"),
            ("[runs]\nmax_life_seconds = 0", "runs.max_life_seconds"),
            ("[runs]\nrelease_phase_seconds = 0", "runs.release_phase_seconds"),
            ("[acme]\nterms_agreed = true\nchallenge = \"x\"", "acme.challenge"),
            ("[acme]\nterms_agreed = true\nchallenge = \"dns-01\"", "acme.dns_hook"),
            ("[acme]\nterms_agreed = true\nwildcard = true", "acme.dns_hook"),
            ("[acme]\nterms_agreed = true\ndirectory = \"http://x\"", "acme.directory"),
            ("[acme]\nterms_agreed = true\nca_file = \"/nowhere\"", "acme.ca_file"),
            ("[acme]\nemail = \"me@example.com\"", "acme.terms_agreed"),
        ] {
            let e = load(toml, Flags::default()).unwrap_err();
            assert!(e.contains(word), "{toml}: {e}");
        }
    }

    #[test]
    fn builds_trust_what_is_set_then_what_the_machine_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| std::fs::canonicalize(dir.path()).unwrap().join(name);
        std::fs::write(path("named.pem"), "").unwrap();
        let usual = || Some(PathBuf::from("/usual"));
        assert_eq!(ca_bundle(Some(Path::new("/set")), Some(path("named.pem")), usual()), Some("/set".into()));
        assert_eq!(ca_bundle(None, Some(path("named.pem")), usual()), Some(path("named.pem")));
        assert_eq!(ca_bundle(None, Some(path("absent.pem")), usual()), usual());
        assert_eq!(ca_bundle(None, Some(path(".")), None), None);
    }
}
