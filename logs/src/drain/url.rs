//! Where a drain leads. Pure: reads what people write, and shows it without what may be a credential.

use flex_model::Secret;
use std::fmt;
use url::Url;

/// Longest URL.
const MAX_URL: usize = 2000;
/// A part of a path this long is taken for a token.
const TOKEN_LENGTH: usize = 16;
const HIDDEN: &str = "****";

/// How lines are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RFC 5424 messages with their lengths (RFC 6587) over TCP.
    Syslog,
    /// The same over TLS (RFC 5425).
    SyslogTls,
    /// `application/logplex-1`, as Heroku posts it.
    Https,
}

/// A drain's URL, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct DrainUrl {
    pub kind: Kind,
    /// A name, or an address (IPv6 without brackets).
    pub host: String,
    pub port: u16,
    /// Path and query of an HTTPS drain.
    pub(crate) target: String,
    /// `user:password` of an HTTPS drain, decoded.
    pub(crate) login: Option<Secret>,
    full: Secret,
    masked: String,
}

impl fmt::Debug for DrainUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

impl DrainUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// One sentence, without what may be a credential: what is wrong, and what is possible.
    pub fn parse(text: &Secret) -> Result<Self, String> {
        const KINDS: &str = "A drain is syslog+tls://HOST:PORT, syslog://HOST:PORT or https://HOST/PATH";
        let text = text.expose().trim();
        if text.len() > MAX_URL {
            return Err(format!("A drain's URL may have {MAX_URL} characters."));
        }
        let url = Url::parse(text).map_err(|e| format!("That is no URL ({e}). {KINDS}."))?;
        let kind = match url.scheme() {
            "syslog" => Kind::Syslog,
            "syslog+tls" => Kind::SyslogTls,
            "https" => Kind::Https,
            "http" => return Err(format!("Logs are not sent over plain HTTP. {KINDS}.")),
            other => return Err(format!("{other}:// is not known. {KINDS}.")),
        };
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| format!("The URL names no host. {KINDS}."))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b)) {
            return Err("The URL's host is neither a host name nor an address.".into());
        }
        let default = match kind {
            Kind::Syslog => 514,
            Kind::SyslogTls => 6514,
            Kind::Https => 443,
        };
        let port = url.port().unwrap_or(default);
        if port == 0 {
            return Err("The URL's port is 0.".into());
        }
        if kind != Kind::Https && (!matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty()) {
            return Err("A syslog drain is SCHEME://HOST:PORT and nothing more: syslog knows neither path nor user.".into());
        }
        let decoded = |text: &str| percent_decode(text).ok_or("The URL's user or password is not UTF-8.");
        let login = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            let (user, password) = (decoded(url.username())?, decoded(url.password().unwrap_or(""))?);
            Some(Secret::new(format!("{user}:{password}")))
        };
        let target = url.query().map_or_else(|| url.path().to_owned(), |q| format!("{}?{q}", url.path()));
        let masked = mask(&url);
        Ok(Self { kind, host, port, target, login, full: Secret::new(text), masked })
    }

    /// All of it.
    pub fn full(&self) -> &Secret {
        &self.full
    }

    /// What may be shown: without user, password, the query's values and parts of the path that look like tokens.
    pub fn masked(&self) -> &str {
        &self.masked
    }

    /// `HOST:PORT`, for a request's head.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.kind == Kind::Https && self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

fn mask(url: &Url) -> String {
    use fmt::Write as _;
    let mut out = format!("{}://", url.scheme());
    if !url.username().is_empty() || url.password().is_some() {
        let _ = write!(out, "{HIDDEN}:{HIDDEN}@");
    }
    let _ = write!(out, "{}", url.host_str().unwrap_or(""));
    if let Some(port) = url.port() {
        let _ = write!(out, ":{port}");
    }
    let parts = url.path().split('/').map(|p| if p.len() >= TOKEN_LENGTH { HIDDEN } else { p });
    out.push_str(&parts.collect::<Vec<_>>().join("/"));
    if let Some(query) = url.query() {
        let pairs =
            query.split('&').map(|p| p.split_once('=').map_or_else(|| HIDDEN.to_owned(), |(k, _)| format!("{k}={HIDDEN}")));
        let _ = write!(out, "?{}", pairs.collect::<Vec<_>>().join("&"));
    }
    out
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            out.push(u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DrainUrl, String> {
        DrainUrl::parse(&Secret::new(text))
    }

    #[test]
    fn kinds_ports_and_what_is_shown() {
        for (text, kind, host, port, masked) in [
            ("syslog://logs.example.com", Kind::Syslog, "logs.example.com", 514, "syslog://logs.example.com"),
            (
                "syslog+tls://Logs.example.com:7000/",
                Kind::SyslogTls,
                "logs.example.com",
                7000,
                "syslog+tls://Logs.example.com:7000/",
            ),
            ("syslog://[::1]:5", Kind::Syslog, "::1", 5, "syslog://[::1]:5"),
            ("https://me:p%40ss@x.org/in?key=abc&raw", Kind::Https, "x.org", 443, "https://****:****@x.org/in?key=****&****"),
            ("https://x.org:8443/v1/0123456789abcdef/in", Kind::Https, "x.org", 8443, "https://x.org:8443/v1/****/in"),
        ] {
            let url = parse(text).unwrap();
            assert_eq!((url.kind, url.host.as_str(), url.port, url.masked()), (kind, host, port, masked), "{text}");
            assert_eq!(format!("{url:?}"), masked);
        }
        let url = parse("https://me:p%40ss@x.org/in?key=abc").unwrap();
        assert_eq!((url.login.unwrap().expose(), url.target.as_str()), ("me:p@ss", "/in?key=abc"));
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        for (text, said) in [
            ("logs.example.com:514", "not known"),
            ("ftp://x.org", "not known"),
            ("http://u:hunter2@x.org", "plain HTTP"),
            ("syslog://", "no host"),
            ("syslog://u:hunter2@x.org:1", "neither path nor user"),
            ("syslog://x.org/a", "neither path nor user"),
            ("syslog://x org", "no URL"),
            ("https://x.org:0/", "port is 0"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(said) && !e.contains("hunter2"), "{text}: {e}");
        }
    }
}
