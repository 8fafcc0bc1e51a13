//! The list of all settings: `flexd --help` prints it, `flexd settings` fills it with the values in force, and the tests hold
//! it against what `flexd.toml` may hold and against the operator's page.
//!
//! Must not: show a value that may be a secret.

use crate::settings::Settings;
use serde_json::{Map, Value, json};

/// A setting that only `flexd.toml` has.
struct InFile {
    section: &'static str,
    name: &'static str,
    /// As it would be written in `flexd.toml`; words where that would say something else.
    default: &'static str,
    about: &'static str,
}

const fn row(section: &'static str, name: &'static str, default: &'static str, about: &'static str) -> InFile {
    InFile { section, name, default, about }
}

const IN_FILE: &[InFile] = &[
    row("build", "env", "{}", "set in every build: proxies, mirrors"),
    row("build", "timeout_seconds", "900", "longest build"),
    row("build", "memory", "\"2G\"", "of a build"),
    row("build", "disk", "\"4G\"", "of a build, beside its cache"),
    row("build", "slug_limit", "\"500M\"", "largest slug"),
    row("build", "compression", "\"gzip\"", "of slugs in blob storage, or zstd"),
    row("build", "ca_bundle", "SSL_CERT_FILE's, else the machine's own", "what builds trust"),
    row("router", "workers", "one for each processor", "threads"),
    row("router", "trusted_proxies", "[]", "whose X-Forwarded-* are believed: addresses and ranges"),
    row("router", "route_ports", "\"20000-29999\"", "that apps may have for TCP and UDP routes"),
    row("router", "http3", "false", "HTTP/3 beside HTTPS"),
    row("router", "http3_port", "HTTPS's", "at which clients are told to find it"),
    row("router.proxy_protocol", "http", "[]", "load balancers that begin HTTP connections with a PROXY header"),
    row("router.proxy_protocol", "tcp", "[]", "the same for TCP routes"),
    row("router.access_lines", "json", "no", "one JSON object a request, where an app says nothing else"),
    row("router.access_lines", "sample", "all of them", "share of the requests without an error that leave a line, such as 0.1"),
    row("router.limits", "connections", "20000", "client connections"),
    row("router.limits", "connections_per_client", "10000", "of those, of one address (of IPv6, one /64)"),
    row("router.limits", "requests_per_app", "10000", "under way"),
    row("router.limits", "connect_tries", "8", "instances that one request is tried with"),
    row("router.limits", "held", "2000", "requests that wait for apps to start"),
    row("router.limits", "held_per_app", "500", "of those, of one app"),
    row("router.limits", "queue_per_app", "500", "requests that wait for a place on an instance"),
    row("router.limits", "idle_per_instance", "128", "connections kept to each, by each worker"),
    row("router.limits", "head_bytes", "65536", "of one request or answer"),
    row("router.limits", "headers", "128", "fields of one request or answer, at most 256"),
    row("router.limits", "min_body_rate", "0", "bytes a second of a request's content, where its route says nothing else"),
    row("router.limits", "udp_sessions", "4096", "of one port"),
    row("router.limits", "quic_unproven", "128", "HTTP/3 handshakes with addresses that are not proven"),
    row("router.limits", "compressed_answers", "256", "under way; more go out as they are"),
    row("router.limits", "metrics_apps", "2000", "process types that metrics tell apart"),
    row("router.limits", "http2_streams", "128", "requests of one connection under way"),
    row("router.limits", "http2_stream_window", "65536", "bytes that a request may send ahead"),
    row("router.limits", "http2_connection_window", "524288", "the same for all requests of a connection"),
    row("router.limits", "http2_resets", "200", "requests given up at once; a quarter of it each second; HTTP/3 too"),
    row("router.limits", "http2_control_frames", "500", "SETTINGS, PING and the like at once; a tenth of it each second"),
    row("router.limits", "http2_window_updates", "20000", "at once, and each second"),
    row("router.limits", "head_seconds", "10", "that a request's head may take"),
    row("router.limits", "handshake_seconds", "10", "that a TLS handshake may take"),
    row("router.limits", "keep_alive_seconds", "60", "between two requests of a connection"),
    row("router.limits", "first_byte_seconds", "30", "until an answer begins, where its route says nothing else"),
    row("router.limits", "idle_seconds", "55", "without a byte either way, the same"),
    row("router.limits", "connect_seconds", "5", "that the last instance to be tried may take to accept"),
    row("router.limits", "hold_seconds", "30", "that a request waits for its app to start"),
    row("router.limits", "drain_seconds", "30", "that what runs may take when the router stops"),
    row("router.limits", "instance_idle_seconds", "90", "that a connection to an instance is kept"),
    row("router.limits", "tcp_idle_seconds", "3600", "of a TCP route's connection, where it says nothing else"),
    row("router.limits", "udp_idle_seconds", "60", "of a UDP session, the same"),
    row("network", "rules", "true", "whether apps and builds are kept off the machine and its network"),
    row(
        "network",
        "deny",
        "[\"10.0.0.0/8\", \"172.16.0.0/12\", \"192.168.0.0/16\", \"100.64.0.0/10\", \"fc00::/7\"]",
        "ranges that they do not reach",
    ),
    row("network", "allow", "[]", "places that they reach all the same"),
    row("network", "host_ports", "[]", "of this machine that they reach, beside the router's"),
    row("logs", "size", "\"512M\"", "kept of each app that sets nothing"),
    row("logs", "days", "7", "the same"),
    row("logs", "size_limit", "\"4G\"", "the most that an app may set"),
    row("logs", "days_limit", "365", "the same"),
    row("logs", "lines_per_second", "5000", "of each app"),
    row("logs", "drain_allow", "[]", "addresses that drains reach although they are this machine's or a cloud's"),
    row("logs", "drain_deny", "[]", "addresses that drains do not reach"),
    row("logs", "drain_ca", "none", "PEM file with authorities beside the system's"),
    row("sizes.NAME", "memory", "none", "of instances of a size with a name; without it there is none"),
    row("sizes.NAME", "cpu_shares", "1024", "its weight"),
    row("sizes.NAME", "cpu", "no limit", "cores, such as 0.5"),
    row("runs", "max_life_seconds", "86400", "after which a one-off command is stopped"),
    row("runs", "per_app", "50", "one-off commands of one app at a time"),
    row("runs", "release_phase_seconds", "3600", "after which a release phase fails its release"),
    row("acme", "terms_agreed", "none: off", "true: certificates are made automatically"),
    row("acme", "directory", "\"https://acme-v02.api.letsencrypt.org/directory\"", "the authority's"),
    row("acme", "email", "none", "whom the authority may write to"),
    row("acme", "ca_file", "none", "PEM file with the root of the authority's own server"),
    row("acme", "challenge", "\"http-01\"", "or tls-alpn-01, dns-01"),
    row("acme", "dns_hook", "[]", "program that makes DNS records"),
    row("acme", "dns_wait_seconds", "120", "that a record may take to appear"),
    row("acme", "resolver", "the machine's own", "address of a name server"),
    row("acme", "self_check", "true", "whether names are looked at before the authority is asked"),
    row("acme", "http_port", "80", "at which the authority looks"),
    row("acme", "tls_port", "443", "the same"),
    row("acme", "wildcard", "false", "one certificate for all names directly under the domain"),
    row("acme", "retry_seconds", "300", "after the first failure"),
    row("acme", "eab_key_id", "none", "account that the authority knows us by otherwise"),
    row("acme", "eab_key_file", "none", "file with its key"),
];

impl InFile {
    /// The default as a value; none: words.
    fn literal(&self) -> Option<Value> {
        let table: toml::Table = toml::from_str(&format!("it = {}", self.default)).ok()?;
        serde_json::to_value(table.get("it")?).ok()
    }

    /// What `flexd.toml` says.
    fn said<'a>(&self, file: &'a toml::Table) -> Option<&'a toml::Value> {
        self.section.split('.').try_fold(file, |table, part| table.get(part)?.as_table())?.get(self.name)
    }
}

/// The part of `flexd --help` about what no flag says.
pub fn help() -> String {
    let mut text = String::from(
        "Settings come from flags, then FLEXD_* variables, then flexd.toml, where a flag's name is written with underscores \
         (tls_min); `flexd settings` prints those in force. Only in flexd.toml, with their defaults:\n",
    );
    let mut section = "";
    for s in IN_FILE {
        if s.section != section {
            section = s.section;
            text += &format!("  [{section}]\n");
        }
        let default = match s.literal() {
            Some(_) => format!("{} = {}", s.name, s.default),
            None => format!("{}  (default: {})", s.name, s.default),
        };
        text += &format!("    {default:<34} {}\n", s.about);
    }
    text
}

/// Every setting with the value in force, by its name in `flexd.toml`. Null where there is no value to name.
pub fn in_force(settings: &Settings) -> Map<String, Value> {
    let mut all = Map::new();
    let s = settings;
    for (name, value) in [
        ("data_dir", json!(s.data_dir.to_string_lossy())),
        ("config", json!(s.config.as_ref().map(|p| p.to_string_lossy()))),
        ("api", json!(s.api)),
        ("http", json!(s.http)),
        ("https", s.https.map_or(json!("off"), |a| json!(a))),
        ("tls_min", json!(if s.tls_min == flex_router::MinTls::Tls13 { "1.3" } else { "1.2" })),
        ("ssh", json!(s.ssh)),
        ("domain", json!(s.domain.as_str())),
        ("api_url", json!(s.api_url)),
        ("store", json!(s.store.name())),
        ("docker", json!(s.docker.to_string_lossy())),
        ("buildpacks", json!(s.buildpacks.to_string_lossy())),
        ("stack", json!(s.stack)),
        ("metrics", json!(s.metrics)),
        ("log_json", json!(s.log_json)),
    ] {
        all.insert(name.into(), value);
    }
    for setting in IN_FILE {
        if setting.section == "sizes.NAME" {
            let sizes = s.file.get("sizes").and_then(|sizes| serde_json::to_value(sizes).ok());
            all.insert("sizes".into(), sizes.unwrap_or(json!({})));
            continue;
        }
        let said = setting.said(&s.file).and_then(|v| serde_json::to_value(v).ok());
        let mut value = said.or_else(|| setting.literal()).unwrap_or(Value::Null);
        // Proxies and mirrors often have a password in their URL.
        if (setting.section, setting.name) == ("build", "env") {
            value.as_object_mut().into_iter().flatten().for_each(|(_, value)| *value = json!("(hidden)"));
        }
        all.insert(format!("{}.{}", setting.section, setting.name), value);
    }
    all
}

/// What `flexd settings` prints.
///
/// # Errors
/// There is no such setting.
pub fn show(settings: &Settings, name: Option<&str>, as_json: bool) -> Result<String, String> {
    let all = in_force(settings);
    let plain = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match name {
        Some(name) => {
            let value =
                all.get(name).ok_or_else(|| format!("there is no setting {name:?}; flexd settings prints all of them"))?;
            Ok(if as_json { value.to_string() } else { plain(value) })
        }
        None if as_json => serde_json::to_string_pretty(&all).map_err(|e| e.to_string()),
        None => Ok(all.iter().map(|(name, value)| format!("{name} = {}", plain(value))).collect::<Vec<_>>().join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Flags;
    use std::collections::BTreeSet;

    fn load(toml: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("flexd.toml"), toml).unwrap();
        let mut settings =
            Settings::load(Flags { data_dir: Some(dir.path().into()), buildpacks: Some("/bp".into()), ..Flags::default() })
                .unwrap_or_else(|e| panic!("{e}: {toml}"));
        settings.data_dir = "/data".into();
        settings.config = None;
        settings
    }

    /// What `flexd.toml` may hold, by asking the reader itself: it names all that it knows where it meets what it does not know.
    fn known(section: &str) -> BTreeSet<String> {
        let asked = format!("{}nonsense = 1\n", if section.is_empty() { String::new() } else { format!("[{section}]\n") });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("flexd.toml"), asked).unwrap();
        let flags = Flags { data_dir: Some(dir.path().into()), buildpacks: Some("/bp".into()), ..Flags::default() };
        let said = Settings::load(flags).err().unwrap_or_default();
        let Some((_, names)) = said.split_once("unknown field `nonsense`, expected ") else { return BTreeSet::new() };
        let mut found = BTreeSet::new();
        for name in names.split('`').skip(1).step_by(2) {
            let below = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            let deeper = known(if below == "sizes" { "sizes.NAME" } else { &below });
            match deeper.is_empty() {
                true => found.insert(below),
                false => {
                    found.extend(deeper);
                    true
                }
            };
        }
        found
    }

    fn of_flags() -> Vec<(String, String, String)> {
        let command = <crate::Cli as clap::CommandFactory>::command();
        let all = command.get_arguments().filter(|a| a.get_env().is_some());
        all.map(|a| {
            let (flag, env) = (a.get_long().unwrap().to_owned(), a.get_env().unwrap().to_string_lossy().into_owned());
            (flag, env, a.get_help().unwrap().to_string())
        })
        .collect()
    }

    #[test]
    fn every_setting_is_in_the_help_and_in_force() {
        let listed: BTreeSet<String> = IN_FILE.iter().map(|s| format!("{}.{}", s.section, s.name)).collect();
        let flags: BTreeSet<String> = of_flags().into_iter().map(|(flag, ..)| flag.replace('-', "_")).collect();
        let known = known("");
        assert!(known.len() > 50 && known.contains("router.limits.head_seconds"), "{known:?}");
        let all: BTreeSet<String> = listed.union(&flags).cloned().collect();
        let missing: Vec<_> = known.difference(&all).collect();
        assert!(missing.is_empty(), "in no list: {missing:?}");
        let gone: Vec<_> = listed.difference(&known).collect();
        assert!(gone.is_empty(), "no setting any more: {gone:?}");
        let shown = in_force(&load(""));
        for name in known.union(&flags).filter(|n| !n.starts_with("sizes.")) {
            assert!(shown.contains_key(name), "{name}");
        }
        let help = <crate::Cli as clap::CommandFactory>::command().render_help().to_string();
        for s in IN_FILE {
            assert!(help.contains(&format!("[{}]", s.section)) && help.contains(&format!("    {} ", s.name)), "{}", s.name);
        }
        for (flag, env, _) in of_flags() {
            assert!(help.contains(&format!("--{flag}")) && help.contains(&env), "{flag}");
        }
    }

    #[test]
    fn defaults_are_what_they_are_said_to_be() {
        let with = |acme: &str| {
            let mut toml = format!("[acme]\nterms_agreed = {acme}\n");
            let mut section = "acme";
            // That of `acme` is open, and the others follow one another in the list.
            let (acme, others): (Vec<_>, Vec<_>) =
                IN_FILE.iter().filter(|s| s.literal().is_some()).partition(|s| s.section == "acme");
            for s in acme.into_iter().chain(others).filter(|s| s.section != "sizes.NAME") {
                if s.section != section {
                    section = s.section;
                    toml += &format!("[{section}]\n");
                }
                toml += &format!("{} = {}\n", s.name, s.default);
            }
            load(&toml)
        };
        for acme in ["true", "false"] {
            let (mut said, mut unsaid) = (with(acme), load(&format!("[acme]\nterms_agreed = {acme}\n")));
            (said.file, unsaid.file) = (toml::Table::new(), toml::Table::new());
            assert_eq!(format!("{said:#?}"), format!("{unsaid:#?}"));
        }
        // And of those that have a flag, whose help says them.
        let shown = in_force(&load(""));
        for (flag, _, help) in of_flags() {
            let Some((_, default)) = help.rsplit_once("[default: ") else { continue };
            let (default, value) = (default.trim_end_matches(']'), &shown[&flag.replace('-', "_")]);
            if !default.contains(' ') && default != "nowhere" {
                assert_eq!(value.as_str(), Some(default), "--{flag}");
            }
        }
    }

    #[test]
    fn every_setting_is_on_the_operators_page() {
        let page = include_str!("../../docs/operating.md");
        let rows: Vec<&str> = page.lines().filter(|l| l.starts_with("| ")).collect();
        let words = |row: &str| -> BTreeSet<String> {
            row.split('`').skip(1).step_by(2).flat_map(str::split_whitespace).map(str::to_owned).collect()
        };
        for s in IN_FILE {
            let section = format!("[{}]", s.section);
            let found = rows.iter().map(|r| words(r)).any(|w| w.contains(&section) && w.contains(s.name));
            assert!(found, "{section} {} is in no row of docs/operating.md", s.name);
        }
        for (flag, env, _) in of_flags() {
            let found = rows.iter().map(|r| words(r)).any(|w| w.contains(&format!("--{flag}")) && w.contains(&env));
            assert!(found, "--{flag} with {env} is in no row of docs/operating.md");
        }
        assert!(rows.iter().any(|r| r.contains("FLEXD_LOG`")), "FLEXD_LOG is in no row");
    }

    #[test]
    fn what_is_in_force_is_shown_and_secrets_are_not() {
        let settings =
            load("api = \"127.0.0.1:9999\"\n[build.env]\nHTTPS_PROXY = \"http://me:secret@proxy\"\n[logs]\ndays = 3\n");
        let one = |name: &str| show(&settings, Some(name), false).unwrap();
        assert_eq!((one("api"), one("http"), one("logs.days")), ("127.0.0.1:9999".into(), "0.0.0.0:8080".into(), "3".into()));
        assert_eq!((one("metrics"), one("router.limits.held")), (String::new(), "2000".into()));
        for all in [show(&settings, None, false).unwrap(), show(&settings, None, true).unwrap()] {
            assert!(all.contains("HTTPS_PROXY") && all.contains("127.0.0.1:9999") && !all.contains("secret"), "{all}");
        }
        assert!(show(&settings, Some("apu"), false).unwrap_err().contains("apu"));
    }
}
