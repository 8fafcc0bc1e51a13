//! The log stream.

use crate::args::Logs;
use crate::context::Context;
use crate::error::Result;
use crate::output::{self, Colour, paint};
use flex_api::{CreateLogSession, LogSession};
use serde_json::json;

/// One a process, in the order in which they turn up.
const COLOURS: [Colour; 5] = [Colour::Cyan, Colour::Yellow, Colour::Green, Colour::Magenta, Colour::Blue];

pub async fn run(cx: &Context, args: Logs) -> Result<()> {
    // `-s router` is a process of the platform's source.
    let (source, process) = match args.source.as_deref() {
        Some("router") => (Some("flex"), Some("router")),
        other => (other, args.process.as_deref()),
    };
    let body = CreateLogSession {
        lines: Some(args.num),
        tail: Some(args.tail),
        dyno: process.map(str::to_owned),
        source: source.map(str::to_owned),
    };
    let session: LogSession = cx.client.post(&cx.path("/log-sessions")?, &body).await?;
    let mut seen = Vec::<String>::new();
    cx.client
        .lines(&session.logplex_url, "text/event-stream", |text| {
            if let Some(line) = text.strip_prefix("data: ").or_else(|| text.strip_prefix("data:")) {
                show(cx, line, &mut seen)?;
            }
            Ok(true)
        })
        .await
}

/// `2024-01-01T00:00:00.000000+00:00 app[web.1]: text`: what comes before the colon is coloured by process.
fn show(cx: &Context, line: &str, seen: &mut Vec<String>) -> Result<()> {
    let split = line.find("]: ").map(|at| line.split_at(at + 2));
    let Some((head, text)) = split else {
        output::line(line);
        return Ok(());
    };
    let (at, who) = head.split_once(' ').unwrap_or(("", head));
    let who = who.trim_end_matches(':');
    if cx.common.json {
        let (source, process) = who.trim_end_matches(']').split_once('[').unwrap_or((who, ""));
        // One object a line, so that a tail can be read as it comes.
        output::line(json!({ "at": at, "source": source, "process": process, "text": &text[1..] }).to_string());
        return Ok(());
    }
    let index = seen.iter().position(|s| s == who).unwrap_or_else(|| {
        seen.push(who.to_owned());
        seen.len() - 1
    });
    output::line(format!("{}{text}", paint(head, COLOURS[index % COLOURS.len()])));
    Ok(())
}
