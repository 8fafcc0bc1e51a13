//! The routing table: all that a router needs to serve, with no call to anyone; and the routes that it is made from.
//!
//! Invariants: what is left out of the serialized form has a default, so that a table of an older control plane reads as
//! it was meant; a field whose absence would be dangerous raises [`TABLE_FORMAT`].

use crate::app_list::{Apps, Difference};
use crate::http_policy::Pages;
use crate::{AppId, AppName, DomainName, InstanceId, Invalid, Policy, ProcessType, RouteId, Secret, path};
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    num::NonZeroU16,
    str::FromStr,
    sync::Arc,
};

/// The newest form of [`RouteTable`] that this program reads and writes. A router refuses a newer one and keeps what it has.
pub const TABLE_FORMAT: u32 = 2;

/// The name of the router that runs inside the control plane's own process.
pub const LOCAL_ROUTER: &str = "router";

/// Where a request of an app may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub instance: InstanceId,
    /// `web.1`, for access lines.
    pub name: String,
    pub address: SocketAddr,
}

/// Why an app has no backends, or what else applies to all of its requests. Decides the H-code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppState {
    /// Has (or had a moment ago) healthy instances.
    Serving,
    /// Instances are on their way: hold requests for a while (then H20).
    Starting,
    /// Every instance crashed: H10.
    Crashed,
    /// Scaled to zero: H14.
    #[default]
    NoWeb,
    /// Nothing was ever deployed: H81.
    Blank,
    /// The owner took it down for a while: H80.
    Maintenance,
}

/// One app's routes. Most apps have a process type `web` at their domains and nothing else, so that is what the first
/// fields say; `pools` and `routes` are for those who asked for more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRoute {
    pub app: AppId,
    pub name: AppName,
    /// Exact names, and `*.` wildcards that match one or more labels. Their path `/` leads to `web`, unless one of
    /// `routes` says otherwise.
    #[serde(deserialize_with = "fitting")]
    pub domains: Vec<DomainName>,
    /// Of `web`.
    pub state: AppState,
    /// Of `web`, whatever release.
    #[serde(deserialize_with = "fitting")]
    pub backends: Vec<Backend>,
    /// How requests at `domains` are treated; none: the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<Policy>>,
    /// What `routes` lead to, where it is not `web` of whatever release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The app's own pages for answers that routers make.
    #[serde(default, skip_serializing_if = "Pages::is_empty")]
    pub pages: Pages,
    /// Everything that leads to `web` leads to this release's `web` for a share. Its instances are in `pools`, and not among
    /// `backends`: a router that knows nothing of it leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryShare>,
    /// How access lines are written; what is not set follows the router's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<LineForm>,
}

/// A list with no room for more: there are tables of 100,000 apps with one domain and one instance each.
fn fitting<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let mut all = Vec::deserialize(from)?;
    all.shrink_to_fit();
    Ok(all)
}

/// How an app's access lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LineForm {
    /// A JSON object instead of Heroku's form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<bool>,
    /// How many of a thousand requests without an error leave a line; those with one always do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_mille: Option<u16>,
}

/// A release's share of the requests, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryShare {
    pub version: u64,
    pub weight: u32,
}

impl AppRoute {
    /// An app whose `web` serves at its domains.
    pub fn new(app: AppId, name: AppName, domains: Vec<DomainName>, state: AppState, backends: Vec<Backend>) -> Self {
        Self {
            app,
            name,
            domains,
            state,
            backends,
            policy: None,
            pools: Vec::new(),
            routes: Vec::new(),
            pages: Pages::new(),
            canary: None,
            lines: None,
        }
    }

    /// Where a route (none: a domain without one) leads, a canary's share taken into account.
    pub fn targets_of(&self, route: Option<&Route>) -> Vec<Target> {
        let web = [Target::to(ProcessType::web())];
        let targets = route.map_or(web.as_slice(), |r| r.targets.as_slice());
        let Some(canary) = self.canary.map(|c| CanaryShare { weight: c.weight.min(100), ..c }) else { return targets.to_vec() };
        let mut out = Vec::with_capacity(targets.len() + 1);
        for t in targets {
            if t.process.is_web() && t.version.is_none() {
                let share = |version, percent| Target { version, weight: t.weight.saturating_mul(percent), ..t.clone() };
                out.push(share(None, 100 - canary.weight));
                out.push(share(Some(canary.version), canary.weight));
            } else {
                out.push(Target { weight: t.weight.saturating_mul(100), ..t.clone() });
            }
        }
        out
    }

    /// Every instance that something may be sent to; one in two pools comes twice.
    pub fn instances(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().chain(self.pools.iter().flat_map(|p| &p.backends))
    }
}

/// The instances of one process type, of one release or of whatever release runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub process: ProcessType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    pub state: AppState,
    pub backends: Vec<Backend>,
}

/// A way into an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub id: RouteId,
    #[serde(rename = "match")]
    pub matches: Match,
    /// At least one. A request goes to one of them, by weight.
    pub targets: Vec<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<Policy>>,
}

/// What a route is chosen by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Match {
    /// Requests by host and path. An exact host wins over a wildcard, a longer wildcard over a shorter one; within a host
    /// the longest path wins.
    Http {
        host: DomainName,
        #[serde(default)]
        path: PathPrefix,
    },
    /// Connections to a port of every router.
    Tcp {
        port: NonZeroU16,
        /// The router ends TLS, with the certificate of the name that the client asks for.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tls: bool,
    },
    /// TLS connections by the name that the client asks for, passed through as they are. Without a port: those that
    /// come to the routers' HTTPS listeners.
    Sni {
        host: DomainName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<NonZeroU16>,
    },
    /// Datagrams to a port of every router.
    Udp { port: NonZeroU16 },
}

impl Match {
    /// `http`, `tcp`, `sni` or `udp`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Sni { .. } => "sni",
            Self::Udp { .. } => "udp",
        }
    }
}

impl fmt::Display for Match {
    /// `www.example.com/api`, `tcp:5432`, `sni:db.example.com:5432`, `udp:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { host, path } => write!(f, "{host}{path}"),
            Self::Tcp { port, .. } => write!(f, "tcp:{port}"),
            Self::Sni { host, port: None } => write!(f, "sni:{host}"),
            Self::Sni { host, port: Some(port) } => write!(f, "sni:{host}:{port}"),
            Self::Udp { port } => write!(f, "udp:{port}"),
        }
    }
}

/// The beginning of a path, whole segments: `/api` is for `/api` and `/api/x`, not for `/apis`. It is in the form that
/// [`path::normal`] gives, and compared with that form of what the client sent before any `?`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// The longest accepted.
    pub const MAX: usize = 1024;

    /// Without a slash at the end, except the root's.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Whether `path` begins with it.
    pub fn covers(&self, path: &str) -> bool {
        self.is_root() || path.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The same for programs to which `/API` is `/api`.
    pub fn covers_in_any_case(&self, path: &str) -> bool {
        path::begins_in_any_case(path, if self.is_root() { "" } else { &self.0 })
    }
}

impl Default for PathPrefix {
    fn default() -> Self {
        Self("/".into())
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for PathPrefix {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |rule: &str| Invalid::new("path", s, rule);
        if !s.starts_with('/') || s.len() > Self::MAX {
            return Err(bad("start it with / and keep it under 1,024 characters"));
        }
        // RFC 3986 section 3.3: what a path may consist of; anything else is sent percent-encoded.
        if !s.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b)) {
            return Err(bad("use only characters that a path may hold, the rest percent-encoded (%20), and no ? or #"));
        }
        let trimmed = s.trim_end_matches('/');
        if trimmed.split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(bad("leave out empty segments, . and .."));
        }
        let normal = path::normal(trimmed);
        let normal = normal.trim_end_matches('/');
        Ok(if normal.is_empty() { Self::default() } else { Self(normal.to_owned()) })
    }
}

impl<'de> Deserialize<'de> for PathPrefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// The largest weight of a target, so that a sum of weights cannot overflow.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// The most targets of one route.
pub const MAX_TARGETS: usize = 16;

/// One of the places that a route leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub process: ProcessType,
    /// Only instances of this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Its share, against the sum of the route's weights. 0: nothing, for now.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl Target {
    /// A process type, whatever its release.
    pub fn to(process: ProcessType) -> Self {
        Self { process, version: None, weight: 1 }
    }
}

impl fmt::Display for Target {
    /// `web`, `web:v12`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            None => write!(f, "{}", self.process),
            Some(v) => write!(f, "{}:v{v}", self.process),
        }
    }
}

/// The whole table at one revision. Replaced as a whole; revisions grow. A clone shares what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    pub revision: u64,
    /// In the order of their ids, each once. What did not change since the table before is the same allocation, so that a
    /// router sees what did without comparing.
    pub apps: Apps,
    /// What routers sign their cookies with; the same in all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_key: Option<Secret>,
}

impl RouteTable {
    /// A table of these apps, put in order.
    pub fn new(revision: u64, apps: impl IntoIterator<Item = AppRoute>) -> Self {
        Self { revision, apps: apps.into_iter().map(Arc::new).collect(), cookie_key: None }
    }

    /// Apps that came, went or differ in the later table, in the order of their ids.
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        self.apps.differences(&after.apps)
    }

    /// This table with these apps in the place of those with their ids, and without those that are gone.
    pub fn with(&self, revision: u64, changed: Vec<Arc<AppRoute>>, gone: &BTreeSet<AppId>) -> Self {
        Self { revision, apps: self.apps.with(changed, gone), cookie_key: self.cookie_key.clone() }
    }

    /// The table with just these apps, which shares with this one what is the same; none: all of them are.
    pub fn followed_by(&self, revision: u64, apps: impl IntoIterator<Item = AppRoute>) -> Option<Self> {
        let mut gone: BTreeSet<AppId> = self.apps.iter().map(|a| a.app).collect();
        let mut changed = Vec::new();
        for app in apps {
            gone.remove(&app.app);
            if self.app(app.app).is_none_or(|known| **known != app) {
                changed.push(Arc::new(app));
            }
        }
        (!changed.is_empty() || !gone.is_empty()).then(|| self.with(revision, changed, &gone))
    }

    /// `next`, where what is the same as here is the same allocation.
    pub fn shared_with(&self, next: &Self) -> Self {
        let (mut changed, mut gone) = (Vec::new(), BTreeSet::new());
        for (old, new) in self.differences(next) {
            match new {
                Some(app) => changed.push(app),
                None => gone.extend(old.map(|a| a.app)),
            }
        }
        Self { cookie_key: next.cookie_key.clone(), ..self.with(next.revision, changed, &gone) }
    }

    /// The app of that id.
    pub fn app(&self, id: AppId) -> Option<&Arc<AppRoute>> {
        self.apps.get(id)
    }
}

/// What a router says back, so that draining ends when the last request does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Names the router among several.
    pub router: String,
    /// The revision it routes by now: requests to instances that are not in it were begun earlier.
    pub revision: u64,
    /// Requests and upgraded connections under way; instances with none are left out.
    pub in_flight: BTreeMap<InstanceId, u32>,
    /// The revision of the certificates that it shows.
    #[serde(default)]
    pub certificates: u64,
    /// What of the table it could not do: a port that another program has, a name that two apps claim. For people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<RouteProblem>,
    /// Instances that get no requests for a moment, because connecting to them failed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub out: BTreeSet<InstanceId>,
}

/// Something of the table that a router could not do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteProblem {
    pub app: AppId,
    /// The route, where it is one that somebody made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteId>,
    /// One sentence.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_whole_segments() {
        let prefix = |s: &str| s.parse::<PathPrefix>().unwrap();
        assert_eq!(prefix("/api/").as_str(), "/api");
        assert!(prefix("///").is_root() && prefix("/").covers("/x"));
        assert!(prefix("/api").covers("/api") && prefix("/api").covers("/api/x") && !prefix("/api").covers("/apis"));
        // Written in another way, it is the same place.
        assert_eq!(prefix("/%61dmin;x/caf%c3%a9").as_str(), "/admin/caf%C3%A9");
        assert!(prefix("/api").covers_in_any_case("/API/x") && !prefix("/api").covers_in_any_case("/APIs"));
        for bad in ["", "api", "/a b", "/a?b", "/a//b", "/../a", "/a/.", "/é"] {
            assert!(bad.parse::<PathPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_of_the_first_form_reads_as_it_was_meant() {
        let text = r#"{"revision":7,"apps":[{"app":"00000000-0000-0000-0000-000000000001","name":"aa","domains":["aa.test"],
            "state":"serving","backends":[{"instance":"00000000-0000-0000-0000-000000000002","name":"web.1","address":"127.0.0.1:80"}]}]}"#;
        let table: RouteTable = serde_json::from_str(text).unwrap();
        let first = table.apps.iter().next().unwrap();
        assert_eq!((table.revision, first.backends.len(), first.backends.capacity()), (7, 1, 1));
        assert!(first.policy.is_none() && first.routes.is_empty());
        assert_eq!(serde_json::from_str::<RouteTable>(&serde_json::to_string(&table).unwrap()).unwrap(), table);
    }

    #[test]
    fn routes_read_as_they_are_written() {
        for (text, shown) in [
            (r#"{"kind":"http","host":"A.b"}"#, "a.b/"),
            (r#"{"kind":"http","host":"a.b","path":"/x"}"#, "a.b/x"),
            (r#"{"kind":"tcp","port":5432}"#, "tcp:5432"),
            (r#"{"kind":"sni","host":"db.b","port":5432}"#, "sni:db.b:5432"),
            (r#"{"kind":"sni","host":"db.b"}"#, "sni:db.b"),
            (r#"{"kind":"udp","port":53}"#, "udp:53"),
        ] {
            let parsed: Match = serde_json::from_str(text).unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(serde_json::from_str::<Match>(&serde_json::to_string(&parsed).unwrap()).unwrap(), parsed);
        }
        for bad in [r#"{"kind":"tcp","port":0}"#, r#"{"kind":"http","host":"a b"}"#, r#"{"kind":"x"}"#] {
            assert!(serde_json::from_str::<Match>(bad).is_err(), "{bad}");
        }
    }
}
