//! Log sessions: a URL with a secret, from which the log is read as server-sent events or as plain lines. And how much of a
//! log is kept.
//!
//! An event's id is the line's number within its app: a reader whose connection broke says the last one it has, in a new
//! session's `after` or as `Last-Event-ID`, and gets what follows.
//!
//! Plain lines are the bytes that were printed. Events must be UTF-8: a text that is not has U+FFFD in `data`, and before it all
//! its bytes in a field `base64` of the event, which readers that do not know it pass over.

use super::access::Caller;
use super::answer::{Answer, Body, LogLines, Made, Shown};
use super::server::unavailable;
use crate::core::{Controller, invalid, lock, not_found};
use crate::ports::Clock;
use axum::Extension;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flex_api::{ApiError, CreateLogSession, LogRetention, SetLogRetention};
use flex_logs::{LogQuery, Numbered, Tail, TextFilter};
use flex_model::{App, AppId, LogSource, Timestamp};
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a session's URL may be opened for.
const SESSION_LIFE: Duration = Duration::from_secs(300);
/// Keeps proxies from closing a quiet tail.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Most lines of the past that a session gives.
const MAX_LINES: usize = 10_000;
/// Lines that wait already are sent together, up to this many bytes.
const TOGETHER: usize = 64 << 10;

/// What a URL stands for.
#[derive(Clone)]
pub struct LogSession {
    app: AppId,
    query: LogQuery,
    tail: bool,
    after: Option<u64>,
    /// Heroku's own tool knows the platform by another name.
    heroku: bool,
    made: Instant,
}

fn query(body: &CreateLogSession, now: Timestamp) -> Result<LogQuery, ApiError> {
    let mut process = body.dyno.clone().filter(|d| !d.is_empty());
    let source = match body.source.as_deref() {
        None | Some("") => None,
        Some("app") => Some(LogSource::App),
        Some("flex" | "heroku") => Some(LogSource::Flex),
        Some("router") => {
            if let Some(process) = process.filter(|p| p != "router") {
                return Err(invalid(format!("The router's lines have no process {process}: leave it out.")));
            }
            process = Some("router".into());
            Some(LogSource::Flex)
        }
        Some(other) => return Err(invalid(format!("source {other} is not known: use app, flex or router."))),
    };
    let text = match (&body.grep, &body.pattern) {
        (Some(_), Some(_)) => return Err(invalid("Give either grep or pattern.")),
        (Some(text), None) => Some(TextFilter::contains(text).map_err(invalid)?),
        (None, Some(pattern)) => Some(TextFilter::pattern(pattern).map_err(invalid)?),
        (None, None) => None,
    };
    let moment = |name: &str, text: &Option<String>| {
        text.as_deref().map(|t| moment(t, now).map_err(|e| invalid(format!("{name}: {e}")))).transpose()
    };
    let (since, until) = (moment("since", &body.since)?, moment("until", &body.until)?);
    if since.zip(until).is_some_and(|(from, to)| from > to) {
        return Err(invalid("since is later than until: no line is between them."));
    }
    let lines = body.lines.unwrap_or(flex_logs::DEFAULT_LINES).min(MAX_LINES);
    Ok(LogQuery { lines, source, process, since, until, text })
}

/// `2h`, `1d12h` (before now), `2026-11-21T13:00:00Z`, `2026-11-21T13:00`, `2026-11-21`; in UTC where no offset is given.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(age) = duration(text) {
        let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        return Ok(Timestamp::from_micros(now.micros().saturating_sub(micros)));
    }
    let joined = text.trim().replacen(' ', "T", 1);
    let whole = match joined.len() {
        10 => format!("{joined}T00:00:00Z"),
        16 => format!("{joined}:00Z"),
        19 => format!("{joined}Z"),
        _ => joined,
    };
    whole.parse().map_err(|_| {
        format!("{text:?} is neither a duration such as 30m, 2h or 1d12h nor a moment such as 2026-11-21T13:00:00Z or 2026-11-21")
    })
}

/// Numbers with units: `s`, `m`, `h`, `d`, `w`.
fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(std::mem::take(&mut number).parse::<u64>().ok()?.checked_mul(unit)?)?;
    }
    (number.is_empty() && !text.is_empty()).then(|| Duration::from_secs(seconds))
}

pub async fn create(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    headers: HeaderMap,
    Body(body): Body<CreateLogSession>,
) -> Answer<Made<flex_api::LogSession>> {
    let client = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let session = LogSession {
        app: app.id,
        query: query(&body, c.now())?,
        tail: body.tail.unwrap_or(false),
        after: body.after,
        heroku: client.starts_with("heroku") || body.source.as_deref() == Some("heroku"),
        made: Instant::now(),
    };
    let secret = hex::encode(crate::crypt::random::<32>());
    let mut sessions = lock(&c.log_sessions);
    sessions.retain(|_, s| s.made.elapsed() < SESSION_LIFE);
    sessions.insert(secret.clone(), session);
    drop(sessions);
    let (now, logplex_url) = (c.now().into(), format!("{}/logs/{secret}", c.deps.settings.api_url));
    Ok(Made(flex_api::LogSession { id: c.id(), logplex_url, created_at: now, updated_at: now }))
}

type Items = Pin<Box<dyn Stream<Item = Tail> + Send>>;

pub async fn read(State(c): State<Controller>, Path(secret): Path<String>, headers: HeaderMap) -> Answer<LogLines> {
    let found = lock(&c.log_sessions).get(&secret).filter(|s| s.made.elapsed() < SESSION_LIFE).cloned();
    let session = found.ok_or_else(|| not_found("That log session is over. Ask for a new one."))?;
    let header = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let after = header("last-event-id").and_then(|v| v.parse().ok()).or(session.after);
    let items: Items = if session.tail {
        Box::pin(c.deps.logs.tail(session.app, session.query, after.map(|n| n.saturating_add(1))))
    } else {
        let found = c.deps.logs.read(session.app, session.query).await.map_err(unavailable)?;
        Box::pin(futures_util::stream::iter(found).map(Tail::Line))
    };
    let events = header("accept").is_some_and(|a| a.contains("text/event-stream"));
    Ok(LogLines(respond(items, c.deps.clock.clone(), events, session.heroku)))
}

fn show(item: &Tail, now: Timestamp, events: bool, heroku: bool, out: &mut Vec<u8>) {
    let (seq, line) = match item {
        Tail::Line(Numbered { seq, line }) => (seq, line),
        // A comment, which readers of events pass over: the past ends here, and what is new begins with this number.
        Tail::Live(next) => {
            if events {
                out.extend_from_slice(format!(": live {next}\n\n").as_bytes());
            }
            return;
        }
        Tail::Missed { lines, next } => (&next.saturating_sub(1), &Arc::new(flex_logs::overflow_line(*lines, now))),
    };
    let (head, text) = (line.head(if heroku { "heroku" } else { "flex" }), &line.text);
    if !events {
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
        return;
    }
    let bytes = text.as_str().map_or_else(|| format!("base64: {}\n", BASE64_STANDARD.encode(text.as_bytes())), |_| String::new());
    out.extend_from_slice(format!("id: {seq}\n{bytes}data: {head}{text}\n\n").as_bytes());
}

fn respond(items: Items, clock: Arc<dyn Clock>, events: bool, heroku: bool) -> Response {
    let stream = futures_util::stream::unfold((items, clock), move |(mut items, clock)| async move {
        let first = match tokio::time::timeout(KEEP_ALIVE, items.next()).await {
            Ok(None) => return None,
            Ok(Some(item)) => item,
            // A comment; nothing at all for plain readers.
            Err(_) => return Some((if events { b":\n\n".to_vec() } else { Vec::new() }, (items, clock))),
        };
        let (mut out, now) = (Vec::new(), clock.now());
        show(&first, now, events, heroku, &mut out);
        while out.len() < TOGETHER {
            match futures_util::FutureExt::now_or_never(items.next()) {
                Some(Some(item)) => show(&item, now, events, heroku, &mut out),
                _ => break,
            }
        }
        Some((out, (items, clock)))
    });
    let body = HttpBody::from_stream(stream.map(Ok::<_, std::convert::Infallible>));
    let mut response = body.into_response();
    let kind = if events { "text/event-stream" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

pub async fn retention(State(c): State<Controller>, Extension(app): Extension<Arc<App>>) -> Answer<Shown<LogRetention>> {
    Ok(Shown(c.show_retention(app.id)?))
}

pub async fn set_retention(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body<SetLogRetention>,
) -> Answer<Shown<LogRetention>> {
    c.set_log_retention(&caller.actor(), &app, &body).await?;
    Ok(Shown(c.show_retention(app.id)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_durations_and_dates() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, meant) in [
            ("2h", "2026-11-21T10:00:00Z"),
            ("1d12h", "2026-11-20T00:00:00Z"),
            ("90s", "2026-11-21T11:58:30Z"),
            ("1w", "2026-11-14T12:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("2026-11-20 13:05", "2026-11-20T13:05:00Z"),
            ("2026-11-20T13:05:06", "2026-11-20T13:05:06Z"),
            ("2026-11-20T13:05:06.5+01:00", "2026-11-20T12:05:06.5Z"),
        ] {
            assert_eq!(moment(text, now).unwrap(), meant.parse().unwrap(), "{text}");
        }
        for wrong in ["", "h", "2", "2x", "99999999999999999999h", "yesterday", "2026-13-01"] {
            assert!(moment(wrong, now).unwrap_err().contains("neither a duration"), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_in_plain_lines_as_it_is_and_in_events_beside_the_text() {
        let line = |text: &[u8]| {
            let (at, process) = ("2026-11-21T04:00:00Z".parse().unwrap(), "web.1".into());
            let line = flex_model::LogLine { at, source: LogSource::App, process, text: text.into() };
            Tail::Line(Numbered { seq: 7, line: Arc::new(line) })
        };
        let shown = |text: &[u8], events| {
            let mut out = Vec::new();
            show(&line(text), Timestamp::default(), events, false, &mut out);
            out
        };
        let head = "2026-11-21T04:00:00.000000+00:00 app[web.1]: ";
        assert_eq!(shown(b"a\xff", false), [head.as_bytes(), b"a\xff\n"].concat());
        let event = |fields: &str| format!("id: 7\n{fields}\n\n").into_bytes();
        assert_eq!(shown(b"a\xff", true), event(&format!("base64: Yf8=\ndata: {head}a\u{fffd}")));
        assert_eq!(shown(b"h\xc3\xa9", true), event(&format!("data: {head}h\u{e9}")));
    }

    #[test]
    fn queries_are_checked() {
        let now = Timestamp::default();
        let ask = |body: CreateLogSession| query(&body, now).map_err(|e| e.to_string());
        let router = ask(CreateLogSession { source: Some("router".into()), ..Default::default() }).unwrap();
        assert_eq!((router.source, router.process.as_deref()), (Some(LogSource::Flex), Some("router")));
        let text = |t: &str| Some(t.to_owned());
        for (body, said) in [
            (CreateLogSession { source: text("db"), ..Default::default() }, "not known"),
            (CreateLogSession { source: text("router"), dyno: text("web"), ..Default::default() }, "no process web"),
            (CreateLogSession { grep: text("a"), pattern: text("b"), ..Default::default() }, "either grep or pattern"),
            (CreateLogSession { pattern: text("("), ..Default::default() }, "no regular expression"),
            (CreateLogSession { since: text("1h"), until: text("2h"), ..Default::default() }, "later than until"),
        ] {
            let e = ask(body).unwrap_err();
            assert!(e.contains(said), "{e}");
        }
    }
}
