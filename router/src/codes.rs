//! The platform's error codes, and the pages that tell a visitor what happened. Codes, descriptions and statuses are
//! Heroku's, so that people and log tools know them.
//!
//! Must not: put anything a client sent into a page.

/// Why a request did not get an answer from its app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    AppCrashed,
    BacklogTooDeep,
    RequestTimeout,
    ClosedWithoutResponse,
    NoWebProcesses,
    IdleConnection,
    PoorlyFormattedResponse,
    ServerRequestInterrupted,
    BackendConnectionTimeout,
    AppBootTimeout,
    BackendConnectionRefused,
    TooManyConnections,
    EndpointMisconfigured,
    ForcedClose,
    HttpRestriction,
    RequestError,
    ClientRequestInterrupted,
    ClientConnectionIdle,
    MisdirectedRequest,
    AddressRefused,
    Unauthorized,
    RateLimited,
    BodyTooLarge,
    HeadTooLarge,
    BodyTooSlow,
    Maintenance,
    BlankApp,
    PlatformError,
}

/// Code, description, status as logged, and what a visitor reads.
struct Facts(&'static str, &'static str, u16, &'static str);

const APP_ERROR: &str = "The application did not answer. If you own it, its logs say more: flex logs --tail";
const MISDIRECTED: &str = "This connection was made for another host name. Connect again for this one.";

impl Code {
    /// All codes, in the order of their numbers.
    pub const ALL: [Code; 28] = [
        Self::AppCrashed,
        Self::BacklogTooDeep,
        Self::RequestTimeout,
        Self::ClosedWithoutResponse,
        Self::NoWebProcesses,
        Self::IdleConnection,
        Self::PoorlyFormattedResponse,
        Self::ServerRequestInterrupted,
        Self::BackendConnectionTimeout,
        Self::AppBootTimeout,
        Self::BackendConnectionRefused,
        Self::TooManyConnections,
        Self::EndpointMisconfigured,
        Self::ForcedClose,
        Self::HttpRestriction,
        Self::RequestError,
        Self::ClientRequestInterrupted,
        Self::ClientConnectionIdle,
        Self::MisdirectedRequest,
        Self::AddressRefused,
        Self::Unauthorized,
        Self::RateLimited,
        Self::BodyTooLarge,
        Self::HeadTooLarge,
        Self::BodyTooSlow,
        Self::Maintenance,
        Self::BlankApp,
        Self::PlatformError,
    ];

    fn facts(self) -> Facts {
        match self {
            Self::AppCrashed => Facts("H10", "App crashed", 503, APP_ERROR),
            Self::BacklogTooDeep => {
                Facts("H11", "Backlog too deep", 503, "Too many requests are waiting. Try again in a moment.")
            }
            Self::RequestTimeout => Facts("H12", "Request timeout", 503, APP_ERROR),
            Self::ClosedWithoutResponse => Facts("H13", "Connection closed without response", 503, APP_ERROR),
            Self::NoWebProcesses => Facts("H14", "No web processes running", 503, APP_ERROR),
            Self::IdleConnection => Facts("H15", "Idle connection", 503, APP_ERROR),
            Self::PoorlyFormattedResponse => Facts("H17", "Poorly formatted HTTP response", 503, APP_ERROR),
            Self::ServerRequestInterrupted => Facts("H18", "Server Request Interrupted", 503, APP_ERROR),
            Self::BackendConnectionTimeout => Facts("H19", "Backend connection timeout", 503, APP_ERROR),
            Self::AppBootTimeout => {
                Facts("H20", "App boot timeout", 503, "The application is still starting. Try again in a moment.")
            }
            Self::BackendConnectionRefused => Facts("H21", "Backend connection refused", 503, APP_ERROR),
            Self::TooManyConnections => {
                Facts("H22", "Connection limit reached", 503, "Too many connections are open. Try again in a moment.")
            }
            Self::EndpointMisconfigured => Facts("H23", "Endpoint misconfigured", 503, APP_ERROR),
            Self::ForcedClose => {
                Facts("H24", "Forced close", 503, "The connection was closed for maintenance. Try again in a moment.")
            }
            Self::HttpRestriction => Facts("H25", "HTTP restriction", 502, APP_ERROR),
            Self::RequestError => Facts("H26", "Request Error", 400, "The request is not valid HTTP."),
            Self::ClientRequestInterrupted => Facts("H27", "Client Request Interrupted", 499, "The request was not completed."),
            Self::ClientConnectionIdle => Facts("H28", "Client Connection Idle", 499, "The request was not completed in time."),
            Self::MisdirectedRequest => Facts("H31", "Misdirected request", 421, MISDIRECTED),
            Self::AddressRefused => Facts("H40", "Address not allowed", 403, "This address may not use the application."),
            Self::Unauthorized => Facts("H41", "Authentication required", 401, "A name and a password are needed."),
            Self::RateLimited => Facts("H42", "Rate limit exceeded", 429, "Too many requests from here. Try again in a moment."),
            Self::BodyTooLarge => Facts("H43", "Request body too large", 413, "The request's content is too large."),
            Self::HeadTooLarge => Facts("H44", "Request headers too large", 431, "The request's headers are too large."),
            Self::BodyTooSlow => Facts("H45", "Request body too slow", 408, "The request's content came too slowly."),
            Self::Maintenance => {
                Facts("H80", "Maintenance mode", 503, "This application is down for maintenance and will be back soon.")
            }
            Self::BlankApp => Facts("H81", "Blank app", 503, "Nothing has been deployed to this application yet."),
            Self::PlatformError => {
                Facts("H99", "Platform error", 503, "The platform could not handle the request. Try again in a moment.")
            }
        }
    }

    /// `H12`.
    pub fn code(self) -> &'static str {
        self.facts().0
    }
    /// `Request timeout`.
    pub fn desc(self) -> &'static str {
        self.facts().1
    }
    /// The status of the access line. 499 (the client went away) is never sent.
    pub fn status(self) -> u16 {
        self.facts().2
    }
    /// `at=info` for what the owner asked for, else `at=error`.
    pub fn level(self) -> &'static str {
        match self {
            Self::Maintenance
            | Self::AddressRefused
            | Self::Unauthorized
            | Self::RateLimited
            | Self::BodyTooLarge
            | Self::HeadTooLarge
            | Self::BodyTooSlow => "info",
            _ => "error",
        }
    }
    /// The answer to send, if the client can still get one.
    pub fn page(self) -> Page {
        let Facts(code, desc, status, text) = self.facts();
        let title = match self {
            Self::Maintenance => "Down for maintenance",
            Self::BlankApp => "Nothing here yet",
            Self::AppBootTimeout => "Still starting",
            Self::RequestError | Self::HeadTooLarge => "Bad request",
            Self::MisdirectedRequest => "Misdirected request",
            Self::AddressRefused => "Not allowed",
            Self::Unauthorized => "Sign in",
            Self::RateLimited => "Too many requests",
            Self::BodyTooLarge => "Too large",
            Self::BodyTooSlow => "Too slow",
            _ => "Application error",
        };
        let status = if self == Self::ClientConnectionIdle { 408 } else { status };
        Page { status, id: "", title, text, code: Some((code, desc)) }
    }
}

/// A refusal made before any app was found: no access line, only an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP/1.1 as RFC 9112 has it; the reason is for the visitor and the tests.
    Bad(&'static str),
    HeadTooLarge,
    TooManyHeaders,
    HeadTimeout,
    Version,
    /// `CONNECT`: this is no forward proxy.
    Method,
    Expectation,
    NoSuchApp,
    /// The name of the request has another certificate than the name that the connection was made for.
    Misdirected,
    ConnectionLimit,
    /// The client's address has its most.
    ClientConnections,
}

impl Refusal {
    pub fn page(self) -> Page {
        let p = |status, id, title, text| Page { status, id, title, text, code: None };
        match self {
            Self::Bad(why) => p(400, "bad_request", "Bad request", why),
            Self::HeadTooLarge | Self::TooManyHeaders => {
                p(431, "headers_too_large", "Bad request", "The request's headers are too large.")
            }
            Self::HeadTimeout => p(408, "request_timeout", "Request timeout", "The request's headers did not arrive in time."),
            Self::Version => p(505, "http_version", "Bad request", "This HTTP version is not spoken here."),
            Self::Method => p(405, "method_not_allowed", "Method not allowed", "CONNECT is not served here."),
            Self::Expectation => p(417, "expectation_failed", "Bad request", "Only Expect: 100-continue is understood."),
            Self::NoSuchApp => p(
                404,
                "no_such_app",
                "No such app",
                "There is no app at this host name. Check the address, or add the domain to your app.",
            ),
            Self::Misdirected => p(421, "misdirected_request", "Misdirected request", MISDIRECTED),
            Self::ClientConnections => p(
                429,
                "too_many_connections",
                "Too many connections",
                "There are too many connections from your address. Close some, or try again in a moment.",
            ),
            Self::ConnectionLimit => {
                p(503, "connection_limit", "Too many connections", "The router has no connection left. Try again in a moment.")
            }
        }
    }
}

/// An answer made by the router itself.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub status: u16,
    /// A stable word for programs; for codes it is made of the description.
    id: &'static str,
    title: &'static str,
    text: &'static str,
    code: Option<(&'static str, &'static str)>,
}

/// What a client would rather read, by its `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    #[default]
    Html,
    Json,
    Text,
}

impl Prefer {
    /// The first of the three that is named; weights are ignored, since nobody needs them for an error page.
    pub fn from_accept(value: &[u8]) -> Self {
        let value = String::from_utf8_lossy(value).to_ascii_lowercase();
        for item in value.split(',') {
            let kind = item.split(';').next().unwrap_or("").trim();
            match kind {
                "text/html" | "application/xhtml+xml" => return Self::Html,
                "text/plain" => return Self::Text,
                _ if kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json") => {
                    return Self::Json;
                }
                _ => {}
            }
        }
        Self::Html
    }
}

impl Page {
    /// The whole answer as bytes. `head_only` leaves the body out (HEAD), `close` says that the connection ends here.
    pub fn render(&self, prefer: Prefer, request_id: &str, head_only: bool, close: bool) -> Vec<u8> {
        let Page { status, title, text, .. } = self;
        let (kind, body) = match prefer {
            Prefer::Html => ("text/html; charset=utf-8", self.html()),
            Prefer::Text => ("text/plain; charset=utf-8", {
                let code = self.code.map_or(String::new(), |(c, d)| format!(" ({c} {d})"));
                format!("{title}{code}\n{text}\n")
            }),
            Prefer::Json => ("application/json", self.json()),
        };
        let id = if request_id.is_empty() { String::new() } else { format!("X-Request-ID: {request_id}\r\n") };
        let retry = if *status == 503 { "Retry-After: 5\r\n" } else { "" };
        let connection = if close { "Connection: close\r\n" } else { "" };
        let mut out = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-cache, no-store\r\n{id}{retry}{connection}\r\n",
            reason(*status),
            body.len()
        );
        if !head_only {
            out.push_str(&body);
        }
        out.into_bytes()
    }

    fn json(&self) -> String {
        let (id, message) = match self.code {
            Some((code, desc)) => (desc.to_ascii_lowercase().replace(' ', "_"), format!("{} ({code})", self.text)),
            None => (self.id.to_owned(), self.text.to_owned()),
        };
        let mut out = serde_json::json!({ "id": id, "message": message, "status": self.status });
        if let Some((code, desc)) = self.code {
            out["code"] = code.into();
            out["desc"] = desc.into();
        }
        format!("{out}\n")
    }

    fn html(&self) -> String {
        let Page { title, text, .. } = self;
        let foot = self.code.map_or(format!("{}", self.status), |(code, desc)| format!("{code} · {desc}"));
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;place-items:center;\
             background:#f7f7f9;color:#222}}main{{max-width:32rem;padding:2rem}}h1{{font-size:1.5rem;margin:0 0 .5rem}}small{{color:#767676}}\
             @media(prefers-color-scheme:dark){{body{{background:#17171a;color:#eee}}}}</style></head>\
             <body><main><h1>{title}</h1><p>{text}</p><small>{foot}</small></main></body></html>\n"
        )
    }
}

pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        301 => "Moved Permanently",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        505 => "HTTP Version Not Supported",
        _ => "Service Unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ordered_and_distinct() {
        let numbers: Vec<&str> = Code::ALL.iter().map(|c| c.code()).collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(numbers, sorted);
        // Counters are found by it.
        assert!(Code::ALL.iter().enumerate().all(|(at, code)| *code as usize == at));
    }

    #[test]
    fn pages_follow_accept() {
        assert_eq!(Prefer::from_accept(b"*/*"), Prefer::Html);
        assert_eq!(Prefer::from_accept(b"application/vnd.heroku+json; version=3"), Prefer::Json);
        assert_eq!(Prefer::from_accept(b"text/plain, text/html"), Prefer::Text);
        let answer = String::from_utf8(Code::RequestTimeout.page().render(Prefer::Json, "id", false, true)).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Connection: close"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["code"], "H12");
        assert!(Code::RequestTimeout.page().render(Prefer::Html, "", true, true).ends_with(b"\r\n\r\n"));
    }
}
