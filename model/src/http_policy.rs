//! What a route does with HTTP requests before, while and after an instance answers: limits, redirects, who may come in,
//! how often, and what is changed about answers.
//!
//! Invariants: what is not set says nothing, so that a route's settings can lie over an app's and those over what the
//! app's own `app.json` asks for ([`HttpPolicy::over`]); an empty policy costs nothing; passwords are hashes.
//!
//! Unknown fields are refused, also in a routing table: a router that does not know a limit keeps the table it has rather
//! than serve without it.

use crate::{Cidr, DomainName, Invalid, PathPrefix, Secret};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

/// A setting that something less special may have set too: `Off` undoes that, `Unset` does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Setting<T> {
    #[default]
    Unset,
    /// `false` in JSON.
    Off,
    On(T),
}

impl<T> Setting<T> {
    /// The value, if it is on.
    pub fn on(&self) -> Option<&T> {
        match self {
            Self::On(value) => Some(value),
            Self::Unset | Self::Off => None,
        }
    }

    fn is_unset(&self) -> bool {
        matches!(self, Self::Unset)
    }

    fn over(self, below: Self) -> Self {
        if self.is_unset() { below } else { self }
    }
}

impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => s.serialize_none(),
            Self::Off => s.serialize_bool(false),
            Self::On(value) => value.serialize(s),
        }
    }
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(d)? {
            serde_json::Value::Null => Ok(Self::Unset),
            serde_json::Value::Bool(false) => Ok(Self::Off),
            value => T::deserialize(value).map(Self::On).map_err(serde::de::Error::custom),
        }
    }
}

/// What of a policy only HTTP has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpPolicy {
    /// From the end of a request to the first byte of its answer: H12.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub timeout_seconds: Setting<u32>,
    /// No byte either way once content moves, and on upgraded connections: H15 or H28.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub idle_seconds: Setting<u32>,
    /// How long a request may wait for a place on an instance: H12.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub queue_seconds: Setting<u32>,
    /// The largest content of a request: H43.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub max_body_bytes: Setting<u64>,
    /// The largest head of a request: H44. Routers have a limit of their own, which this can only lower.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub max_header_bytes: Setting<u32>,
    /// How fast a client must send its content, after the first seconds: H45.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub min_body_bytes_per_second: Setting<u32>,
    /// Requests over plain HTTP are sent to HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_redirect: Option<bool>,
    /// `Strict-Transport-Security` on answers over HTTPS.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub hsts: Setting<Hsts>,
    /// Requests at other names are sent to this one.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub canonical_host: Setting<DomainName>,
    /// A name and a password are asked for: H41.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub basic_auth: Setting<BasicAuth>,
    /// Only these addresses come in: H40.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub allow: Setting<Vec<Cidr>>,
    /// These addresses do not, not even where `allow` has them.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub deny: Setting<Vec<Cidr>>,
    /// How many requests a client address may make: H42.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub rate_limit: Setting<RateLimit>,
    /// Answers are compressed in one of these ways; of those that a client likes best, the first.
    #[serde(skip_serializing_if = "Setting::is_unset")]
    pub compress: Setting<Vec<Coding>>,
    /// Fields of answers that are set, or with `false` removed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<FieldName, Setting<String>>,
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hsts {
    pub max_age_seconds: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub subdomains: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preload: bool,
}

/// A name and a password before anything else (RFC 7617).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// Passwords by name: given in the clear, stored and told to routers as [`Hashed`].
    pub users: BTreeMap<String, Secret>,
}

/// So many requests in so many seconds from one client address, at most `burst` of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub requests: u32,
    #[serde(default = "one")]
    pub seconds: u32,
    /// Left out: as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

fn one() -> u32 {
    1
}

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    Zstd,
    Br,
    Gzip,
}

impl Coding {
    /// As `Accept-Encoding` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// The name of a header field that a policy may touch: not those that frame a message or belong to one connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct FieldName(String);

impl FieldName {
    /// In lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FieldName {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        const FRAMING: [&str; 12] = [
            "connection",
            "content-encoding",
            "content-length",
            "keep-alive",
            "proxy-authenticate",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "via",
            "www-authenticate",
        ];
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if s.is_empty() || s.len() > 64 || !s.bytes().all(token) {
            return Err(Invalid::new("header", s, "use a header name such as X-Frame-Options"));
        }
        let lower = s.to_ascii_lowercase();
        if FRAMING.contains(&lower.as_str()) {
            return Err(Invalid::new("header", s, "leave it to the router: it says how the answer is sent"));
        }
        Ok(Self(lower))
    }
}

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// A password's hash as text: `pbkdf2-sha256$ITERATIONS$SALT$HASH`, the latter two in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed<'a> {
    pub iterations: u32,
    pub salt: &'a str,
    pub hash: &'a str,
}

impl<'a> Hashed<'a> {
    const SCHEME: &'static str = "pbkdf2-sha256$";
    /// What a hash may cost whoever verifies it: a third of a millisecond for each wrong password.
    pub const ROUNDS: u32 = 2000;

    /// Whether it says of itself that it is a hash.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(Self::SCHEME)
    }

    /// None: it is no hash, so a password in the clear.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix(Self::SCHEME)?.split('$');
        let (iterations, salt, hash) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
        let sound = parts.next().is_none() && (1..=100_000).contains(&iterations) && hex(salt, 32) && hex(hash, 64);
        sound.then_some(Self { iterations, salt, hash })
    }
}

impl fmt::Display for Hashed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}${}${}", Self::SCHEME, self.iterations, self.salt, self.hash)
    }
}

/// What stands for a password where policies are shown.
pub const HIDDEN: &str = "[hidden]";
/// The longest of anything that is a time: a week.
const MAX_SECONDS: u32 = 7 * 24 * 3600;
/// Ranges, users, header fields: enough for people, few enough to look at each.
const MAX_LISTED: usize = 100;

impl HttpPolicy {
    /// These settings, and where they say nothing those of `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let mut headers = below.headers;
        headers.extend(self.headers);
        Self {
            timeout_seconds: self.timeout_seconds.over(below.timeout_seconds),
            idle_seconds: self.idle_seconds.over(below.idle_seconds),
            queue_seconds: self.queue_seconds.over(below.queue_seconds),
            max_body_bytes: self.max_body_bytes.over(below.max_body_bytes),
            max_header_bytes: self.max_header_bytes.over(below.max_header_bytes),
            min_body_bytes_per_second: self.min_body_bytes_per_second.over(below.min_body_bytes_per_second),
            https_redirect: self.https_redirect.or(below.https_redirect),
            hsts: self.hsts.over(below.hsts),
            canonical_host: self.canonical_host.over(below.canonical_host),
            basic_auth: self.basic_auth.over(below.basic_auth),
            allow: self.allow.over(below.allow),
            deny: self.deny.over(below.deny),
            rate_limit: self.rate_limit.over(below.rate_limit),
            compress: self.compress.over(below.compress),
            headers,
        }
    }

    /// Whether whoever comes in by these rules could come in by the other's too, as far as that can be told without asking:
    /// each rule of the other's about who comes in and how often is the same here.
    pub fn guards_as_much_as(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(ours: &Setting<T>, theirs: &Setting<T>) -> bool {
            theirs.on().is_none() || ours == theirs
        }
        same(&self.basic_auth, &other.basic_auth)
            && same(&self.allow, &other.allow)
            && same(&self.deny, &other.deny)
            && same(&self.rate_limit, &other.rate_limit)
    }

    /// Reads a policy, and names the field that is wrong.
    ///
    /// # Errors
    /// An unknown field, a value of the wrong kind or out of range.
    pub fn read(fields: serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let parse = |map| serde_json::from_value::<Self>(serde_json::Value::Object(map));
        let policy = parse(fields.clone()).map_err(|whole| {
            // The errors of values do not say where they are: the first field that fails by itself is it.
            let wrong = fields.into_iter().find_map(|(name, value)| {
                let known = parse([(name.clone(), serde_json::Value::Null)].into_iter().collect()).is_ok() || name == "headers";
                parse([(name.clone(), value)].into_iter().collect()).err().map(|e| (known, name, e))
            });
            wrong.map_or_else(|| whole.to_string(), |(known, name, e)| if known { format!("{name}: {e}") } else { e.to_string() })
        })?;
        policy.check().map_err(|e| e.to_string())?;
        Ok(policy)
    }

    /// Holds values against their ranges.
    ///
    /// # Errors
    /// The first that is out of range, by its name.
    pub fn check(&self) -> Result<(), Invalid> {
        let range = |name: &'static str, value: Option<u64>, min: u64, max: u64| match value {
            Some(n) if n < min || n > max => Err(Invalid::new(name, &n.to_string(), format!("use {min} to {max}"))),
            _ => Ok(()),
        };
        let number = |s: &Setting<u32>| s.on().copied().map(u64::from);
        range("timeout_seconds", number(&self.timeout_seconds), 1, u64::from(MAX_SECONDS))?;
        range("idle_seconds", number(&self.idle_seconds), 1, u64::from(MAX_SECONDS))?;
        range("queue_seconds", number(&self.queue_seconds), 1, 3600)?;
        range("max_body_bytes", self.max_body_bytes.on().copied(), 0, 1 << 50)?;
        range("max_header_bytes", number(&self.max_header_bytes), 256, 1 << 20)?;
        range("min_body_bytes_per_second", number(&self.min_body_bytes_per_second), 1, 1 << 30)?;
        if let Some(auth) = self.basic_auth.on() {
            auth.check()?;
        }
        if let Some(rate) = self.rate_limit.on() {
            range("rate_limit.requests", Some(u64::from(rate.requests)), 1, 1_000_000)?;
            range("rate_limit.seconds", Some(u64::from(rate.seconds)), 1, 24 * 3600)?;
            range("rate_limit.burst", rate.burst.map(u64::from), 1, 1_000_000)?;
        }
        let lists = [("allow", &self.allow), ("deny", &self.deny)];
        for (name, list) in lists.into_iter().filter_map(|(n, l)| Some((n, l.on()?))) {
            range(name, Some(list.len() as u64), 1, MAX_LISTED as u64)?;
        }
        if self.compress.on().is_some_and(Vec::is_empty) {
            return Err(Invalid::new("compress", "[]", "name zstd, br or gzip, or use false"));
        }
        range("headers", Some(self.headers.len() as u64), 0, MAX_LISTED as u64)?;
        for value in self.headers.values().filter_map(Setting::on) {
            // RFC 9110 section 5.5, without what nobody means to send.
            let sound = value.bytes().all(|b| matches!(b, b' '..=b'~')) && value.trim() == value;
            if !sound || value.is_empty() || value.len() > 4096 {
                return Err(Invalid::new("headers", value, "use 1 to 4,096 printable ASCII characters as a value"));
            }
        }
        Ok(())
    }

    /// As it may be shown: without even the hashes of passwords.
    #[must_use]
    pub fn hidden(&self) -> Self {
        let mut shown = self.clone();
        if let Setting::On(auth) = &mut shown.basic_auth {
            auth.users.values_mut().for_each(|p| *p = Secret::new(HIDDEN));
        }
        shown
    }

    /// The names of what it sets.
    pub fn names(&self) -> Vec<String> {
        let whole = serde_json::to_value(self.hidden()).unwrap_or_default();
        whole.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default()
    }
}

impl BasicAuth {
    fn check(&self) -> Result<(), Invalid> {
        let printable = |s: &str| s.chars().all(|c| !c.is_control());
        if self.users.is_empty() || self.users.len() > 50 {
            return Err(Invalid::new("basic_auth.users", &self.users.len().to_string(), "name 1 to 50 users"));
        }
        for (name, password) in &self.users {
            if name.is_empty() || name.len() > 100 || name.contains(':') || !printable(name) {
                return Err(Invalid::new("basic_auth.users", name, "use names of 1 to 100 characters, without colons"));
            }
            let password = password.expose();
            if password.is_empty() || password == HIDDEN || password.len() > 200 || !printable(password) {
                return Err(Invalid::new("basic_auth.users", name, "give a password of 1 to 200 characters"));
            }
        }
        match &self.realm {
            Some(realm)
                if realm.is_empty()
                    || realm.len() > 100
                    || realm.bytes().any(|b| !matches!(b, b' '..=b'~') || b == b'"' || b == b'\\') =>
            {
                Err(Invalid::new("basic_auth.realm", realm, "use 1 to 100 printable ASCII characters, without quotes"))
            }
            _ => Ok(()),
        }
    }
}

/// Where in an app a policy of `app.json` holds: `*` (everywhere), `/api` (at each of its hosts), `www.example.com`,
/// `www.example.com/api`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub host: Option<DomainName>,
    pub path: PathPrefix,
}

impl FromStr for Place {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        if s == "*" {
            return Ok(Self { host: None, path: PathPrefix::default() });
        }
        if s.is_empty() {
            return Err(Invalid::new("place", s, "use *, /PATH, HOST or HOST/PATH"));
        }
        let (host, path) = s.split_at(s.find('/').unwrap_or(s.len()));
        let host = if host.is_empty() { None } else { Some(host.parse()?) };
        let path = if path.is_empty() { PathPrefix::default() } else { path.parse()? };
        Ok(Self { host, path })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None if self.path.is_root() => f.write_str("*"),
            None => write!(f, "{}", self.path),
            Some(host) => write!(f, "{host}{}", self.path),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// Policies by where they hold.
pub type Places = BTreeMap<Place, HttpPolicy>;

/// What a page of an app's own stands in for: `maintenance`, `error` (every answer with status 503 but that), or one code
/// such as `H12`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PageKind(String);

impl PageKind {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PageKind {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        let code = |s: &str| s.len() == 3 && s.starts_with('H') && s[1..].bytes().all(|b| b.is_ascii_digit());
        match s {
            "maintenance" | "error" => Ok(Self(s.into())),
            _ if code(&s.to_ascii_uppercase()) => Ok(Self(s.to_ascii_uppercase())),
            _ => Err(Invalid::new("page", s, "use maintenance, error, or a code such as H12")),
        }
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for PageKind {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// An app's own pages, as HTML.
pub type Pages = BTreeMap<PageKind, Arc<str>>;
/// The largest page, in bytes: it is in every router's table.
pub const MAX_PAGE: usize = 64 << 10;
/// The most that all pages of an app may have together.
pub const MAX_PAGES: usize = 256 << 10;

/// What an app's owner set for all of its routes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AppRouting {
    pub http: HttpPolicy,
    pub pages: Pages,
}

#[cfg(test)]
#[path = "http_policy_tests.rs"]
mod tests;
