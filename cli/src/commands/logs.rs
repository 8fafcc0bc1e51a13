//! The log stream, and how much of it is kept.
//!
//! A tail whose connection breaks asks for what follows the last line it printed, so that none is missing and none comes
//! twice, also when the server was killed in between.
//!
//! Off a terminal a line's text is the bytes that were printed; on one, and in JSON, U+FFFD stands for what is not UTF-8.

use crate::args::{Logs, LogsVerb};
use crate::client::Events;
use crate::context::Context;
use crate::error::{CliError, EXIT_USAGE, Result};
use crate::output::{self, Colour, Progress, paint};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flex_api::{CreateLogSession, LogRetention, LogSession, SetLogRetention};
use flex_model::Memory;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::IsTerminal;
use std::time::Duration;

/// One a process, in the order in which they turn up.
const COLOURS: [Colour; 5] = [Colour::Cyan, Colour::Yellow, Colour::Green, Colour::Magenta, Colour::Blue];
/// Three of the server's signs of life.
const SILENCE: Duration = Duration::from_secs(45);
/// Pauses before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub async fn run(cx: &Context, args: Logs) -> Result<()> {
    if let Some(LogsVerb::Retention { size, age, default }) = args.verb {
        return retention(cx, size, age, default).await;
    }
    let lines = args.num.unwrap_or(if args.since.is_some() { 10_000 } else { 100 });
    let mut body = CreateLogSession {
        lines: Some(lines),
        tail: Some(args.tail),
        dyno: args.process,
        source: args.source,
        since: args.since,
        until: args.until,
        grep: args.grep,
        pattern: args.regex,
        after: None,
    };
    let mut reader = Reader { cx, colours: Vec::new(), seen: HashSet::new(), live: false, newest: None };
    let mut pause = FIRST_PAUSE;
    let mut lost = false;
    let path = cx.path("/log-sessions")?;
    loop {
        let read_before = reader.newest;
        let broke = match reader.connect(&path, &body).await {
            Ok(()) if !args.tail => return Ok(()),
            Ok(()) => None,
            // What was wrong from the start stays wrong.
            Err(e) if !args.tail || !passes(&e) || reader.newest.is_none() && !reader.live && !lost => return Err(e),
            Err(e) => Some(e),
        };
        if reader.newest != read_before {
            (pause, lost) = (FIRST_PAUSE, false);
        }
        if !std::mem::replace(&mut lost, true) {
            let why = broke.map_or_else(|| "The server closed the stream.".into(), |e| e.message);
            output::say(format!(" ›   {why} Connecting again..."));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // Until the past is whole, it is asked for again, and what was printed is passed over.
        if reader.live {
            body.after = reader.newest;
            // An empty log has no number to go on from: all that came since is asked for.
            body.lines = Some(10_000);
        }
    }
}

/// Whether the same may work in a moment.
fn passes(e: &CliError) -> bool {
    match e.id.as_deref() {
        None => e.exit != EXIT_USAGE,
        Some(id) => matches!(id, "unavailable" | "internal" | "rate_limit"),
    }
}

struct Reader<'a> {
    cx: &'a Context,
    colours: Vec<String>,
    /// Numbers of the past's lines that were printed.
    seen: HashSet<u64>,
    /// The past is whole.
    live: bool,
    newest: Option<u64>,
}

impl Reader<'_> {
    async fn connect(&mut self, path: &str, body: &CreateLogSession) -> Result<()> {
        let session: LogSession = self.cx.client.post(path, body).await?;
        let mut events = Events::open(&self.cx.client, &session.logplex_url).await?;
        let (mut id, mut bytes) = (None, None);
        while let Some(line) = events.next(SILENCE).await? {
            let line = line.trim_end_matches('\r');
            if let Some(text) = line.strip_prefix("data:") {
                self.take(id.take(), text.strip_prefix(' ').unwrap_or(text), bytes.take());
            } else if let Some(encoded) = line.strip_prefix("base64:") {
                bytes = BASE64_STANDARD.decode(encoded.trim()).ok();
            } else if let Some(n) = line.strip_prefix("id:") {
                id = n.trim().parse::<u64>().ok();
            } else if let Some(next) = line.strip_prefix(": live ").and_then(|n| n.parse::<u64>().ok()) {
                self.live = true;
                self.newest = self.newest.max(next.checked_sub(1));
            }
        }
        Ok(())
    }

    fn take(&mut self, id: Option<u64>, line: &str, bytes: Option<Vec<u8>>) {
        if let Some(id) = id {
            if self.live {
                // Beside what was printed of the past.
                if self.seen.contains(&id) {
                    return;
                }
            } else if !self.seen.insert(id) {
                return;
            }
            self.newest = self.newest.max(Some(id));
        }
        self.show(line, bytes);
    }

    /// `2024-01-01T00:00:00.000000+00:00 app[web.1]: text`: what comes before the colon is coloured by process. `bytes`: the
    /// text as it was printed, where it is not UTF-8.
    fn show(&mut self, line: &str, bytes: Option<Vec<u8>>) {
        let split = line.find("]: ").map(|at| line.split_at(at + 2));
        let Some((head, text)) = split else {
            output::line(line);
            return;
        };
        let (at, who) = head.split_once(' ').unwrap_or(("", head));
        let who = who.trim_end_matches(':');
        if self.cx.common.json {
            let (source, process) = who.trim_end_matches(']').split_once('[').unwrap_or((who, ""));
            // One object a line, so that a tail can be read as it comes.
            let mut object = json!({ "at": at, "source": source, "process": process, "text": &text[1..] });
            if let Some(bytes) = bytes {
                object["text_base64"] = BASE64_STANDARD.encode(bytes).into();
            }
            output::line(object.to_string());
            return;
        }
        if let Some(bytes) = bytes.filter(|_| !std::io::stdout().is_terminal()) {
            output::raw(&[head.as_bytes(), b" ", &bytes, b"\n"].concat());
            return;
        }
        let index = self.colours.iter().position(|s| s == who).unwrap_or_else(|| {
            self.colours.push(who.to_owned());
            self.colours.len() - 1
        });
        output::line(format!("{}{text}", paint(head, COLOURS[index % COLOURS.len()])));
    }
}

async fn retention(cx: &Context, size: Option<Memory>, age: Option<u64>, default: bool) -> Result<()> {
    let path = cx.path("/log-retention")?;
    let shown: Value = if size.is_none() && age.is_none() && !default {
        cx.client.get(&path).await?
    } else {
        let body = SetLogRetention {
            max_bytes: size.map(|s| s.bytes()).or(default.then_some(0)),
            max_age_seconds: age.or(default.then_some(0)),
        };
        let progress = Progress::start(format!("Setting how much of {}'s log is kept", cx.app()?));
        let set: Value = cx.client.patch(&path, &body).await?;
        progress.done();
        set
    };
    let Some(r) = cx.show_or::<LogRetention>(shown)? else { return Ok(()) };
    let row = |bytes: u64, seconds: u64| format!("{} MiB, {}", bytes >> 20, age_text(seconds));
    output::line(format!("Kept:    {}", row(r.max_bytes, r.max_age_seconds)));
    output::line(format!("Default: {}", row(r.default_max_bytes, r.default_max_age_seconds)));
    #[allow(clippy::cast_precision_loss, reason = "one decimal place of it is shown")]
    let mib = r.used_bytes as f64 / f64::from(1 << 20);
    output::line(format!("Used:    {mib:.1} MiB"));
    Ok(())
}

fn age_text(seconds: u64) -> String {
    let (n, unit) = if seconds.is_multiple_of(86_400) { (seconds / 86_400, "day") } else { (seconds / 3600, "hour") };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}
