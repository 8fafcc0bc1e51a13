//! Lines that the store has already, from after the place that was kept last.
//!
//! Places are kept every second, lines are stored within milliseconds: after a kill, the last second's lines are read a
//! second time. They are known by process, time and text, and each is passed over as often as it is stored.

use flex_logs::{LogStore, Place};
use flex_model::{AppId, LogSource, LogText, Timestamp};
use std::collections::HashMap;

/// Bytes looked at at a time.
const STRETCH: usize = 1 << 20;

/// Stored lines of one app that may come again.
#[derive(Debug, Default)]
pub struct Repeats {
    lines: HashMap<(String, Timestamp, LogText), u32>,
}

impl Repeats {
    /// The app's own lines from number `from` on.
    pub fn read(logs: &LogStore, app: AppId, mut from: u64) -> Self {
        let mut all = Self::default();
        let mut place = Place::default();
        loop {
            let stretch = match logs.read_on_blocking(app, from, STRETCH, &mut place) {
                Ok(stretch) if stretch.next > from => stretch,
                Ok(_) => return all,
                Err(e) => {
                    tracing::warn!(%app, error = %e, "lines of the last second may come twice");
                    return all;
                }
            };
            from = stretch.next;
            for n in stretch.lines.iter().filter(|n| n.line.source == LogSource::App) {
                *all.lines.entry((n.line.process.clone(), n.line.at, n.line.text.clone())).or_default() += 1;
            }
        }
    }

    /// Whether this line is stored already; each time that it is, one less.
    pub fn take(&mut self, process: &str, at: Timestamp, text: &LogText) -> bool {
        let key = (process.to_owned(), at, text.clone());
        let Some(count) = self.lines.get_mut(&key) else { return false };
        *count -= 1;
        if *count == 0 {
            self.lines.remove(&key);
        }
        true
    }
}
