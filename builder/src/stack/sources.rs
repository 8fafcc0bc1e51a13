//! The machine's own package sources: which mirror of Debian it uses, read from apt's files. Pure but for [`of_machine`].

use std::{fs, path::Path};

/// Mirrors of Debian's two archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    pub main: String,
    /// Security updates; none where the machine has no such source.
    pub security: Option<String>,
}

impl Mirrors {
    /// One-line sources for a release.
    pub fn lines(&self, suite: &str, components: &[String]) -> Vec<String> {
        let components = components.join(" ");
        let mut out = vec![format!("deb {} {suite} {components}", self.main)];
        if suite != "sid" && suite != "unstable" {
            out.push(format!("deb {} {suite}-updates {components}", self.main));
            if let Some(security) = &self.security {
                out.push(format!("deb {security} {suite}-security {components}"));
            }
        }
        out
    }
}

/// Reads apt's files below `etc_apt` (`/etc/apt`). Files that cannot be read count as absent. None: this machine uses no
/// mirror of Debian (Ubuntu, say); then mmdebstrap's own default is the one to take.
pub fn of_machine(etc_apt: &Path) -> Option<Mirrors> {
    let mut paths = vec![etc_apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc_apt.join("sources.list.d")) {
        paths.extend(dir.filter_map(|e| Some(e.ok()?.path())));
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => all.extend(one_line(&text)),
            Some("sources") => all.extend(deb822(&text)),
            _ => {}
        }
    }
    choose(&all)
}

/// One source: its URI and one suite.
type Entry = (String, String);

fn choose(all: &[Entry]) -> Option<Mirrors> {
    let is_debian = |uri: &str| {
        let last = uri.trim_end_matches('/').rsplit('/').next().unwrap_or("");
        uri.starts_with("http") && (last == "debian" || last == "debian-security" || uri.contains("debian.org/"))
    };
    let found = |security: bool| {
        all.iter()
            .find(|(uri, suite)| {
                let of_security = suite.ends_with("-security") || suite.contains("/updates");
                is_debian(uri) && !suite.ends_with('/') && of_security == security && !suite.ends_with("-backports")
            })
            .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
    };
    Some(Mirrors { main: found(false)?, security: found(true) })
}

/// `deb [options] URI SUITE COMPONENTS…`
fn one_line(text: &str) -> Vec<Entry> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else { continue };
        let rest = rest.trim_start();
        let rest = rest.strip_prefix('[').map_or(Some(rest), |r| r.split_once(']').map(|(_, r)| r));
        let mut words = rest.unwrap_or("").split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            out.push((uri.to_owned(), suite.to_owned()));
        }
    }
    out
}

/// Stanzas of `Field: value`, continued by indented lines.
fn deb822(text: &str) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            out.extend(entries_of(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    out
}

fn entries_of(stanza: &[(String, String)]) -> Vec<Entry> {
    let words = |key: &str| -> Vec<&str> {
        stanza.iter().find(|(k, _)| k == key).map(|(_, v)| v.split_whitespace().collect()).unwrap_or_default()
    };
    let enabled = !matches!(words("enabled").first(), Some(&"no" | &"false" | &"0"));
    if !enabled || !words("types").contains(&"deb") {
        return Vec::new();
    }
    let suites = words("suites");
    words("uris").iter().flat_map(|uri| suites.iter().map(|s| ((*uri).to_owned(), (*s).to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "Types: deb\n# note\nURIs: http://mirror.lan/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
        Types: deb\nURIs:\n http://mirror.lan/debian-security\nSuites: bookworm-security\n\nTypes: deb\nURIs: https://deb.nodesource.com/x\n\
        Suites: nodistro\n\nEnabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: trixie\n";
    const OLD: &str = "# deb http://a/debian sid main\ndeb [arch=amd64 signed-by=/x] http://m/debian bookworm main contrib\n\
        deb-src http://s/debian bookworm main\ndeb https://packages.example.com/apt x main\ndeb http://m/debian-security bookworm-security main\n";

    #[test]
    fn both_forms_are_read() {
        let new = choose(&deb822(NEW)).unwrap();
        assert_eq!(
            (new.main.as_str(), new.security.as_deref()),
            ("http://mirror.lan/debian", Some("http://mirror.lan/debian-security"))
        );
        let old = choose(&one_line(OLD)).unwrap();
        assert_eq!((old.main.as_str(), old.security.as_deref()), ("http://m/debian", Some("http://m/debian-security")));
        assert_eq!(choose(&one_line("deb http://archive.ubuntu.com/ubuntu jammy main")), None);
    }

    #[test]
    fn the_suite_is_the_recipes() {
        let lines = choose(&deb822(NEW)).unwrap().lines("trixie", &["main".into()]);
        assert_eq!(
            lines,
            [
                "deb http://mirror.lan/debian trixie main",
                "deb http://mirror.lan/debian trixie-updates main",
                "deb http://mirror.lan/debian-security trixie-security main"
            ]
        );
    }
}
