//! What can be said of how a route treats HTTP requests, and its reading: times as `30s`, sizes as `10M`, rates as `100/1m`.

use clap::Args;
use serde_json::{Map, Value, json};

#[derive(Debug, Args, Default)]
#[command(next_help_heading = "HTTP requests")]
pub struct HttpFlags {
    /// How long an instance may take to begin an answer, such as 30s
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub timeout: Option<u32>,
    /// How long a request may wait for a place on an instance
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub queue_timeout: Option<u32>,
    /// The largest content of a request, such as 10M
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub max_body: Option<u64>,
    /// The largest head of a request, such as 16K
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub max_header: Option<u64>,
    /// How much content a client must send each second, such as 1K
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub min_body_rate: Option<u64>,
    /// Send requests over plain HTTP to HTTPS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub https_redirect: Option<bool>,
    /// Tell browsers to use HTTPS alone for so long, such as 1y
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub hsts: Option<u32>,
    /// With --hsts: names below too
    #[arg(long, requires = "hsts")]
    pub hsts_subdomains: bool,
    /// With --hsts: browsers may have the name built in
    #[arg(long, requires = "hsts")]
    pub hsts_preload: bool,
    /// Send requests at other names to this one
    #[arg(long, value_name = "HOST")]
    pub canonical_host: Option<String>,
    /// Ask for a name and a password; the password is asked for, or read from stdin
    #[arg(long, value_name = "USER")]
    pub basic_auth: Option<String>,
    /// What browsers show when they ask for a password
    #[arg(long, value_name = "TEXT")]
    pub realm: Option<String>,
    /// Let only these addresses in, such as 10.0.0.0/8
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Keep these addresses out
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pub deny: Vec<String>,
    /// So many requests from one address, such as 100/1m
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    pub rate: Option<(u32, u32)>,
    /// With --rate: so many of them at once
    #[arg(long, value_name = "N", requires = "rate")]
    pub burst: Option<u32>,
    /// Compress answers, in these ways: zstd, br, gzip
    #[arg(long, value_name = "WAYS", value_delimiter = ',', num_args = 0..=1, default_missing_value = "zstd,br,gzip")]
    pub compress: Vec<String>,
    /// Set a field of answers
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Remove a field from answers
    #[arg(long, value_name = "NAME")]
    pub remove_header: Vec<String>,
    /// Switch a setting off that holds for the whole app
    #[arg(long, value_name = "SETTING")]
    pub off: Vec<String>,
}

impl HttpFlags {
    /// The fields that are named. `password` is that of the user who is named.
    ///
    /// # Errors
    /// A header without a value.
    pub fn changes(&self, password: Option<String>) -> Result<Map<String, Value>, String> {
        let hsts = self
            .hsts
            .map(|age| json!({ "max_age_seconds": age, "subdomains": self.hsts_subdomains, "preload": self.hsts_preload }));
        let rate = self.rate.map(|(requests, seconds)| json!({ "requests": requests, "seconds": seconds, "burst": self.burst }));
        let list = |l: &[String]| (!l.is_empty()).then(|| json!(l));
        let mut auth = Map::new();
        if let Some(user) = &self.basic_auth {
            let users = Map::from_iter([(user.clone(), Value::from(password))]);
            auth.insert("users".into(), Value::Object(users));
        }
        if let Some(realm) = &self.realm {
            auth.insert("realm".into(), json!(realm));
        }
        let mut headers = Map::new();
        for header in &self.header {
            let (name, value) = header.split_once(':').ok_or_else(|| format!("{header} has no value: use \"Name: value\""))?;
            headers.insert(name.trim().to_ascii_lowercase(), json!(value.trim()));
        }
        headers.extend(self.remove_header.iter().map(|name| (name.trim().to_ascii_lowercase(), json!(false))));
        let given = [
            ("timeout_seconds", self.timeout.map(Value::from)),
            ("queue_seconds", self.queue_timeout.map(Value::from)),
            ("max_body_bytes", self.max_body.map(Value::from)),
            ("max_header_bytes", self.max_header.map(Value::from)),
            ("min_body_bytes_per_second", self.min_body_rate.map(Value::from)),
            ("https_redirect", self.https_redirect.map(Value::from)),
            ("hsts", hsts),
            ("canonical_host", self.canonical_host.as_deref().map(Value::from)),
            ("basic_auth", (!auth.is_empty()).then_some(Value::Object(auth))),
            ("allow", list(&self.allow)),
            ("deny", list(&self.deny)),
            ("rate_limit", rate),
            ("compress", list(&self.compress)),
            ("headers", (!headers.is_empty()).then_some(Value::Object(headers))),
        ];
        let set = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let off = self.off.iter().map(|name| (field(name), Value::Bool(false)));
        Ok(off.chain(set).collect())
    }
}

/// A setting by its flag or its name in the API, as the API calls it.
pub fn field(name: &str) -> String {
    let name = name.trim_start_matches("--").replace('-', "_");
    match name.as_str() {
        "timeout" => "timeout_seconds".into(),
        "queue_timeout" => "queue_seconds".into(),
        "max_body" => "max_body_bytes".into(),
        "max_header" => "max_header_bytes".into(),
        "min_body_rate" => "min_body_bytes_per_second".into(),
        "rate" => "rate_limit".into(),
        "idle" => "idle_seconds".into(),
        "header" | "remove_header" => "headers".into(),
        _ => name,
    }
}

/// Whether the API has a setting among those of HTTP.
pub fn is_http(field: &str) -> bool {
    let known = [
        "timeout_seconds",
        "queue_seconds",
        "max_body_bytes",
        "max_header_bytes",
        "min_body_bytes_per_second",
        "https_redirect",
        "hsts",
        "canonical_host",
        "basic_auth",
        "allow",
        "deny",
        "rate_limit",
        "compress",
        "headers",
    ];
    known.contains(&field)
}

fn number(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (n, unit) = text.split_at(digits);
    let factor =
        if unit.is_empty() { Some(1) } else { units.iter().find(|(u, _)| u.eq_ignore_ascii_case(unit)).map(|(_, f)| *f) };
    let value = n.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
    value.ok_or_else(|| format!("use a number such as {example}"))
}

/// `90`, `30s`, `5m`, `1h`, `7d`, `2w`, `1y`.
fn seconds(text: &str) -> Result<u32, String> {
    let day = 24 * 3600;
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", day), ("w", 7 * day), ("y", 365 * day)];
    u32::try_from(number(text, &units, "30s, 5m or 1y")?).map_err(|_| "use a shorter time".into())
}

/// `512`, `16K`, `10M`, `1G`: powers of 1,024.
fn bytes(text: &str) -> Result<u64, String> {
    number(text.strip_suffix(['b', 'B']).unwrap_or(text), &[("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30)], "512K, 10M or 1G")
}

/// `100/1m`, `5/s`, `10` (a second).
fn rate(text: &str) -> Result<(u32, u32), String> {
    let (n, time) = text.split_once('/').unwrap_or((text, "1s"));
    if time.is_empty() {
        return Err("use a rate such as 100/1m".into());
    }
    let time = if time.starts_with(|c: char| c.is_ascii_digit()) { time.to_owned() } else { format!("1{time}") };
    let n = n.parse().map_err(|_| "use a rate such as 100/1m".to_owned())?;
    Ok((n, seconds(&time)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sizes_and_rates() {
        for (text, n) in
            [("30s", Ok(30)), ("90", Ok(90)), ("1y", Ok(31_536_000)), ("5M", Ok(300)), ("x", Err(())), ("1x", Err(()))]
        {
            assert_eq!(seconds(text).map_err(drop), n, "{text}");
        }
        for (text, n) in [("10M", Ok(10 << 20)), ("16kb", Ok(16 << 10)), ("512", Ok(512)), ("", Err(())), ("-1", Err(()))] {
            assert_eq!(bytes(text).map_err(drop), n, "{text}");
        }
        for (text, n) in [("100/1m", Ok((100, 60))), ("5/s", Ok((5, 1))), ("10", Ok((10, 1))), ("x/1m", Err(())), ("1/", Err(()))]
        {
            assert_eq!(rate(text).map_err(drop), n, "{text}");
        }
    }

    #[test]
    fn flags_become_fields_that_the_model_reads() {
        let flags = HttpFlags {
            timeout: Some(30),
            hsts: Some(60),
            basic_auth: Some("ann".into()),
            rate: Some((5, 60)),
            header: vec!["X-A: b: c".into()],
            remove_header: vec!["Server".into()],
            off: vec!["compress".into()],
            ..HttpFlags::default()
        };
        let changes = flags.changes(Some("geheim".into())).unwrap();
        let policy = flex_model::HttpPolicy::read(changes).unwrap();
        assert_eq!(policy.names(), ["basic_auth", "compress", "headers", "hsts", "rate_limit", "timeout_seconds"]);
        assert!(policy.names().iter().all(|name| is_http(name)));
        assert!(HttpFlags { header: vec!["x".into()], ..HttpFlags::default() }.changes(None).is_err());
        assert_eq!((field("--max-body"), field("https-redirect")), ("max_body_bytes".into(), "https_redirect".into()));
    }
}
