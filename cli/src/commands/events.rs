//! The history of changes.

use crate::args::Events;
use crate::context::{Context, typed};
use crate::error::Result;
use crate::output::{self, Colour, paint};
use flex_api::Event;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks of a tail.
const EVERY: Duration = Duration::from_secs(1);
/// Looked back at in each look of a tail: far more than happens in between.
const TAIL: usize = 200;

pub async fn run(cx: &Context, args: Events) -> Result<()> {
    let path = match cx.app() {
        Ok(app) => format!("/apps/{app}/events"),
        Err(_) => "/events".to_owned(),
    };
    // A kind may be rare: it is looked for in all of them.
    let count = if args.kind.is_some() { 1000 } else { args.num.clamp(1, 1000) };
    let newest: Value = cx.client.get_newest(&path, "at", count).await?;
    let mut events = wanted(newest, args.kind.as_deref());
    events.truncate(args.num);
    if args.tail {
        return follow(cx, &path, events, args.kind.as_deref()).await;
    }
    let Some(events) = cx.show_or::<Vec<Event>>(Value::Array(events))? else { return Ok(()) };
    let now = jiff::Timestamp::now();
    let row = |e: Event| {
        let from = e.from.unwrap_or_default();
        vec![output::moment(e.at, now), e.actor_name, from, e.kind, e.outcome, e.message]
    };
    output::table(&["when", "who", "from", "kind", "outcome", "what"], &events.into_iter().map(row).collect::<Vec<_>>());
    Ok(())
}

/// Those of a kind (`ps` is all of `ps.…`), newest first.
fn wanted(all: Value, kind: Option<&str>) -> Vec<Value> {
    let Value::Array(all) = all else { return Vec::new() };
    let fits = |e: &Value| {
        let is = e["kind"].as_str().unwrap_or_default();
        kind.is_none_or(|k| is == k || is.strip_prefix(k).is_some_and(|rest| rest.starts_with('.')))
    };
    all.into_iter().filter(fits).collect()
}

/// One line an event, oldest first, until the reader leaves.
async fn follow(cx: &Context, path: &str, first: Vec<Value>, kind: Option<&str>) -> Result<()> {
    let mut seen = BTreeSet::<String>::new();
    let mut page = first;
    loop {
        for value in page.into_iter().rev() {
            let id = value["id"].as_str().unwrap_or_default().to_owned();
            if seen.insert(id) {
                show(cx, value)?;
            }
        }
        tokio::time::sleep(EVERY).await;
        page = wanted(cx.client.get_newest(path, "at", TAIL).await?, kind);
    }
}

fn show(cx: &Context, value: Value) -> Result<()> {
    if cx.common.json {
        output::line(value.to_string());
        return Ok(());
    }
    let e: Event = typed(value)?;
    let from = e.from.map(|f| format!(" ({f})")).unwrap_or_default();
    let outcome = if e.outcome == "done" { String::new() } else { format!(" [{}]", e.outcome) };
    output::line(format!("{} {}{from} {}{outcome}: {}", e.at, e.actor_name, paint(&e.kind, Colour::Cyan), e.message));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_and_families_of_kinds() {
        let all = json!([{ "kind": "ps.stop" }, { "kind": "psx.stop" }, { "kind": "ps" }]);
        assert_eq!(wanted(all.clone(), Some("ps")).len(), 2);
        assert_eq!(wanted(all.clone(), Some("ps.stop")).len(), 1);
        assert_eq!(wanted(all, None).len(), 3);
    }
}
