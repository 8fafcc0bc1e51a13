//! What a deploy says: kept in a file, and sent on to whoever listens.
//!
//! Must not: end a deploy that may still succeed, because nobody reads or the disk is full.

use super::DeployEvent;
use flex_model::PhaseTime;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// How long a deploy stands still for a client that does not read; then the client misses lines, the kept output does not.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// The kept output of a build, and whoever listens.
pub(crate) struct Output {
    file: tokio::fs::File,
    client: mpsc::Sender<DeployEvent>,
    /// It did not take a line in time: nobody waits for it any more.
    is_slow: bool,
}

impl Output {
    pub fn new(file: tokio::fs::File, client: mpsc::Sender<DeployEvent>) -> Self {
        Self { file, client, is_slow: false }
    }

    pub async fn line(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(b'\n');
        // A full disk must not end a deploy that may still succeed; what fails for want of room says so itself.
        let _ = self.file.write_all(&bytes).await;
        let _ = self.file.flush().await;
        let line = DeployEvent::Line(text.to_owned());
        if self.is_slow {
            let _ = self.client.try_send(line);
        } else {
            let sent = self.client.send_timeout(line, CLIENT_PATIENCE).await;
            self.is_slow = matches!(sent, Err(mpsc::error::SendTimeoutError::Timeout(_)));
        }
    }

    /// A line of a phase whose output is not bounded by anything else: while there is `room` (bytes), then one line that says
    /// where the rest is.
    pub async fn line_within(&mut self, room: &mut usize, text: &str, process: &str) {
        if *room == 0 {
            return;
        }
        match room.checked_sub(text.len() + 1).filter(|left| *left > 0) {
            Some(left) => {
                *room = left;
                self.line(format!("       {text}")).await;
            }
            None => {
                *room = 0;
                self.line(format!("       ... it prints too much to be shown here; all of it: flex logs -n 1000 -p {process}"))
                    .await;
            }
        }
    }

    /// What each phase took, and an empty line; nothing where nothing was begun.
    pub async fn phases(&mut self, phases: &[PhaseTime]) {
        if phases.is_empty() {
            return;
        }
        for line in phase_lines(phases) {
            self.line(line).await;
        }
        self.line("").await;
    }
}

fn phase_lines(phases: &[PhaseTime]) -> Vec<String> {
    let seconds = |ms: u64| format!("{:>7.2} s", Duration::from_millis(ms).as_secs_f64());
    let mut lines: Vec<String> = phases.iter().map(|p| format!("       {:<12}{}", p.phase, seconds(p.millis))).collect();
    lines.push(format!("       {:<12}{}", "in all", seconds(phases.iter().map(|p| p.millis).sum())));
    lines
}

pub(super) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // An abbreviation or a file name keeps its capital.
        Some(c) if chars.clone().next().is_some_and(|n| n.is_lowercase() || n == ' ') && !text.starts_with("Procfile") => {
            c.to_lowercase().collect::<String>() + chars.as_str()
        }
        _ => text.to_owned(),
    }
}
