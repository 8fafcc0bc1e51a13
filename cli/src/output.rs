//! How things look: data on stdout, everything else on stderr, colour and motion only on a terminal.

use crate::error::{CliError, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// A colour of the terminal's own palette.
#[derive(Debug, Clone, Copy)]
pub enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Magenta = 35,
    Cyan = 36,
}

/// `NO_COLOR` and dumb terminals are respected (no-color.org).
fn plain() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|t| t == "dumb")
}

/// The text in a colour, if stdout can show it.
pub fn paint(text: &str, colour: Colour) -> String {
    painted(text, colour, std::io::stdout().is_terminal())
}

fn painted(text: &str, colour: Colour, terminal: bool) -> String {
    if terminal && !plain() { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
}

/// Prints a line of data. A reader that has gone away (`| head`) is no error.
pub fn line(text: impl AsRef<str>) {
    if writeln!(std::io::stdout(), "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::failed(format!("Cannot print JSON: {e}")))?;
    line(text);
    Ok(())
}

/// Prints bytes as they are.
pub fn raw(bytes: &[u8]) {
    if std::io::stdout().write_all(bytes).is_err() {
        std::process::exit(0);
    }
}

/// Whether stdout is a terminal that can be written over.
pub fn is_screen() -> bool {
    std::io::stdout().is_terminal() && !plain()
}

/// Steps on a way: one line that changes on a terminal, a line each elsewhere. Nothing at all for a way of no steps.
pub struct Steps {
    bar: Option<ProgressBar>,
    steps: usize,
}

impl Steps {
    pub fn new() -> Self {
        Self { bar: None, steps: 0 }
    }

    pub fn step(&mut self, text: &str) {
        self.steps += 1;
        if !std::io::stderr().is_terminal() || plain() {
            eprintln!("Waiting... {text}");
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("Waiting... {msg} {spinner}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(text.to_owned());
    }

    pub fn done(self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.steps > 0 {
            eprintln!("Waiting... done, {text}");
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `=== title`, as Heroku heads its lists.
pub fn heading(text: &str) {
    line(paint(&format!("=== {text}"), Colour::Blue));
    line("");
}

/// A message to people, off stdout.
pub fn say(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// ` ›   Warning: …`.
pub fn warn(text: impl AsRef<str>) {
    let mark = painted(" ›   Warning:", Colour::Yellow, std::io::stderr().is_terminal());
    eprintln!("{mark} {}", text.as_ref());
}

/// The error with what to do about it.
pub fn error(e: &CliError) {
    let mark = painted(" ›   Error:", Colour::Red, std::io::stderr().is_terminal());
    eprintln!("{mark} {}", e.message);
    if let Some(id) = &e.id {
        eprintln!(" ›   Error ID: {id}");
    }
    for hint in &e.hints {
        eprintln!(" ›   {hint}");
    }
}

/// Columns wide enough for their cells, two spaces apart, without a frame: for eyes and for `awk`.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    spaced(head, rows, 1, "");
}

/// The same as Heroku draws it: three spaces apart, and two before.
pub fn set_in(head: &[&str], rows: &[Vec<String>]) {
    spaced(head, rows, 2, "  ");
}

fn spaced(head: &[&str], rows: &[Vec<String>], padding: u16, before: &str) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, padding));
    }
    for text in table.lines() {
        line(format!("{before}{}", text.trim_end()));
    }
}

/// Something under way: a spinner on a terminal, one line at the end elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
}

impl Progress {
    /// `Creating demo`.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = (std::io::stderr().is_terminal() && !plain()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{msg}... {spinner}") {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, what }
    }

    fn end(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}... {text}", self.what);
    }

    /// `Creating demo... done`.
    pub fn done(self) {
        self.end("done");
    }
    /// `Running ls on demo... up, run.1003`.
    pub fn becomes(self, what: &str) {
        self.end(what);
    }
    /// `Setting A... done, v2`.
    pub fn done_with(self, more: &str) {
        self.end(&format!("done, {more}"));
    }
}

impl Drop for Progress {
    /// An error is about to be printed: leave no half line behind.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take().filter(|b| !b.is_finished()) {
            bar.finish_and_clear();
            eprintln!("{}... {}", self.what, painted("!", Colour::Red, true));
        }
    }
}

/// `2026/11/21 03:57:25 +0000 (~ 5m ago)`; from 25 hours on the date alone.
pub fn moment(at: flex_api::Time, now: jiff::Timestamp) -> String {
    let at = jiff::Timestamp::from_microsecond(at.0.micros()).unwrap_or_default();
    let date = at.strftime("%Y/%m/%d %H:%M:%S +0000").to_string();
    let seconds = now.as_second().saturating_sub(at.as_second()).max(0);
    match seconds {
        0..60 => format!("{date} (~ {seconds}s ago)"),
        60..3600 => format!("{date} (~ {}m ago)", seconds / 60),
        3600..90_000 => format!("{date} (~ {}h ago)", seconds / 3600),
        _ => date,
    }
}

/// `54.4M`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T"];
    let (mut n, mut unit) = (bytes as f64, 0);
    while n >= 1024.0 && unit + 1 < units.len() {
        n /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{n:.1}{}", units[unit]) }
}

/// Asks for the name to be typed before something is destroyed.
pub fn confirm(name: &str, given: Option<&str>, what: &str) -> Result<()> {
    if given == Some(name) {
        return Ok(());
    }
    if let Some(other) = given {
        return Err(CliError::failed(format!("Confirmation {other} did not match {name}. Aborted.")));
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::failed(format!("{what} needs confirmation.")).hint(format!("Say it with: --confirm {name}")));
    }
    warn(format!("{what} cannot be undone. To proceed, type {name}."));
    eprint!("> ");
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed).map_err(|e| CliError::failed(format!("Cannot read the answer: {e}")))?;
    if typed.trim() == name { Ok(()) } else { Err(CliError::failed(format!("Confirmation did not match {name}. Aborted."))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_an_age_until_they_are_a_day_old() {
        let now = "2026-11-21T04:00:00Z".parse().unwrap();
        let moment = |at: &str, now| moment(flex_api::Time(at.parse().unwrap()), now);
        assert_eq!(moment("2026-11-21T03:59:55Z", now), "2026/11/21 03:59:55 +0000 (~ 5s ago)");
        assert_eq!(moment("2026-11-21T03:55:00Z", now), "2026/11/21 03:55:00 +0000 (~ 5m ago)");
        assert_eq!(moment("2026-11-20T04:00:00Z", now), "2026/11/20 04:00:00 +0000 (~ 24h ago)");
        assert_eq!(moment("2026-11-20T02:00:00Z", now), "2026/11/20 02:00:00 +0000");
        assert_eq!(moment("2026-11-21T05:00:00Z", now), "2026/11/21 05:00:00 +0000 (~ 0s ago)");
    }

    #[test]
    fn sizes() {
        assert_eq!((size(12), size(2048), size(57_042_534)), ("12B".into(), "2.0K".into(), "54.4M".into()));
    }
}
