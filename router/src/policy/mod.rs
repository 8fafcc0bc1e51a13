//! What a route does with a request before anything else, and with its answer: limits, redirects, who may come in, how
//! often, compression, header fields, pages of the app's own. The same for HTTP/1 and HTTP/2, since both go through
//! [`crate::exchange`].
//!
//! Invariants: decisions are pure, time and addresses are arguments (what clients have used of their rates, [`Buckets`], is
//! the one state); a route that sets nothing has no [`Gate`], so that it costs a request one branch.

mod address;
mod answer;
mod auth;
mod compress;
mod head;
mod pages;
mod rate;

pub(crate) use answer::Extra;
pub(crate) use auth::Check;
pub(crate) use compress::Encoder;
pub(crate) use rate::{Buckets, subscriber};

use crate::{
    Code,
    h1::request::{Framing, Request},
    settings::RouterSettings,
};
use flex_model::{
    HttpPolicy,
    http_policy::{Coding, Pages},
};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// A route's policy, ready to be asked.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Whose clients' rates are counted together.
    scope: u128,
    http: HttpPolicy,
    hsts: Option<String>,
    auth: Option<Arc<auth::Auth>>,
    pages: Pages,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) queue: Option<Duration>,
    pub(crate) max_body: Option<u64>,
    /// Bytes a second.
    pub(crate) min_body_rate: Option<u32>,
}

/// What is asked about one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) client: IpAddr,
    pub(crate) https: bool,
    /// Lower case, without port.
    pub(crate) host: &'a str,
    /// The client wrote a port behind the host.
    pub(crate) with_port: bool,
    /// Path and query.
    pub(crate) target: &'a str,
    /// GET or HEAD.
    pub(crate) reading: bool,
    pub(crate) authorization: Option<&'a str>,
    pub(crate) length: Option<u64>,
    pub(crate) head_bytes: usize,
    /// The router's own HTTPS port.
    pub(crate) https_port: Option<u16>,
    /// On the router's clock.
    pub(crate) now_ms: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Redirect { status: u16, location: String },
    Refuse(Code),
}

impl Gate {
    /// None: nothing is set.
    pub(crate) fn new(scope: u128, http: &HttpPolicy, idle_seconds: Option<u32>, pages: &Pages) -> Option<Self> {
        if *http == HttpPolicy::default() && idle_seconds.is_none() && pages.is_empty() {
            return None;
        }
        let seconds = |n: Option<&u32>| n.map(|n| Duration::from_secs(u64::from(*n)));
        Some(Self {
            scope,
            hsts: http.hsts.on().map(|h| {
                let subdomains = if h.subdomains { "; includeSubDomains" } else { "" };
                let preload = if h.preload { "; preload" } else { "" };
                format!("max-age={}{subdomains}{preload}", h.max_age_seconds)
            }),
            auth: http.basic_auth.on().map(|a| Arc::new(auth::Auth::new(a))),
            pages: pages.clone(),
            timeout: seconds(http.timeout_seconds.on()),
            idle: seconds(idle_seconds.as_ref().or(http.idle_seconds.on())),
            queue: seconds(http.queue_seconds.on()),
            max_body: http.max_body_bytes.on().copied(),
            min_body_rate: http.min_body_bytes_per_second.on().copied(),
            http: http.clone(),
        })
    }

    /// What becomes of `request`, if the password is right that is to be looked at elsewhere ([`Extra::check`]); and what its
    /// answer is to say besides.
    pub(crate) fn judge(
        &self,
        request: &Request,
        settings: &RouterSettings,
        https_port: Option<u16>,
        buckets: &Buckets,
        now_ms: u64,
    ) -> (Verdict, Extra) {
        let head = head::Head::of(&request.upstream);
        let https = head.field("x-forwarded-proto") == Some("https");
        let mut extra = Extra { https, ..Extra::default() };
        let Some(client) = address::client(head.field("x-forwarded-for").unwrap_or(""), &settings.trusted_proxies) else {
            return (Verdict::Refuse(Code::PlatformError), extra);
        };
        let authority = head.field("host").unwrap_or("");
        let facts = Facts {
            client,
            https,
            host: &request.host,
            with_port: authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']')),
            target: head.target(),
            reading: matches!(head.method(), "GET" | "HEAD"),
            authorization: head.field("authorization"),
            length: match request.framing {
                Framing::Length(n) => Some(n),
                _ => None,
            },
            head_bytes: request.head_bytes,
            https_port,
            now_ms,
        };
        let verdict = self.decide(&facts, buckets, &mut extra);
        (verdict, extra)
    }

    /// In this order: who may not come in learns nothing else; a redirect comes before a password is asked for, so that none
    /// is sent in the clear.
    fn decide(&self, facts: &Facts<'_>, buckets: &Buckets, extra: &mut Extra) -> Verdict {
        if !address::may_enter(facts.client, self.http.allow.on(), self.http.deny.on()) {
            return Verdict::Refuse(Code::AddressRefused);
        }
        if let Some(rate) = self.http.rate_limit.on() {
            let taken = buckets.take(self.scope, facts.client, rate, facts.now_ms);
            taken.describe(rate, extra);
            if !taken.granted {
                return Verdict::Refuse(Code::RateLimited);
            }
        }
        if let Some(location) = self.elsewhere(facts) {
            // 308 keeps the method; browsers and tools of old know 301.
            return Verdict::Redirect { status: if facts.reading { 301 } else { 308 }, location };
        }
        if let Some(auth) = &self.auth {
            match auth.check(facts.authorization, self.scope, facts.client, buckets, facts.now_ms) {
                auth::Answer::Known => {}
                auth::Answer::Costly(check) => extra.check = Some(check),
                auth::Answer::Unknown => return self.ask_for_password(extra),
                auth::Answer::TooMany => {
                    extra.add("Retry-After", "1");
                    return Verdict::Refuse(Code::RateLimited);
                }
            }
        }
        if self.http.max_header_bytes.on().is_some_and(|most| facts.head_bytes > *most as usize) {
            return Verdict::Refuse(Code::HeadTooLarge);
        }
        if let (Some(most), Some(length)) = (self.max_body, facts.length)
            && length > most
        {
            return Verdict::Refuse(Code::BodyTooLarge);
        }
        Verdict::Pass
    }

    /// What becomes of a request whose password is not right.
    pub(crate) fn ask_for_password(&self, extra: &mut Extra) -> Verdict {
        if let Some(auth) = &self.auth {
            extra.add("WWW-Authenticate", auth.challenge());
        }
        Verdict::Refuse(Code::Unauthorized)
    }

    /// Where a request should have gone, in one step.
    fn elsewhere(&self, facts: &Facts<'_>) -> Option<String> {
        let secure = !facts.https && self.http.https_redirect == Some(true);
        let host = self.http.canonical_host.on().map(flex_model::DomainName::as_str).filter(|h| *h != facts.host);
        if !secure && host.is_none() {
            return None;
        }
        let scheme = if secure || facts.https { "https" } else { "http" };
        // Who wrote no port came by the default one, whatever port it leads to here.
        let port = match facts.https_port.filter(|p| secure && facts.with_port && *p != 443 && host.is_none()) {
            Some(port) => format!(":{port}"),
            None => String::new(),
        };
        let path = if facts.target.starts_with('/') { facts.target } else { "/" };
        Some(format!("{scheme}://{}{port}{path}", host.unwrap_or(facts.host)))
    }

    fn compress(&self) -> &[Coding] {
        self.http.compress.on().map_or(&[], Vec::as_slice)
    }
}

/// Where a slow client's content is watched: how much came, and for how long it was waited for.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited_ms: u64,
    last_ms: Option<u64>,
}

/// Nobody is slow before this.
const GRACE_MS: u64 = 5_000;

impl Pace {
    /// Whether `moved` bytes are too few by now. `waiting`: it is the client that is waited for.
    pub(crate) fn is_too_slow(&mut self, least: u32, moved: u64, waiting: bool, now_ms: u64) -> bool {
        let since = self.last_ms.replace(now_ms).map_or(0, |last| now_ms.saturating_sub(last));
        if waiting {
            self.waited_ms += since;
        }
        self.waited_ms > GRACE_MS && moved < u64::from(least) * (self.waited_ms / 1000)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
