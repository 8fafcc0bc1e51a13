//! Commands inside instances that outlive whoever asked for them: the process that started them was killed, or the engine was
//! and forgot them. They have no client any more, so they are hung up on, and ended if they do not heed it.
//!
//! Invariant: what somebody else runs in an instance (`docker exec` by hand) is left alone, and so is a process that has
//! another's number.

use super::{
    Inner,
    engine::QUICK,
    labels::{self, Kind},
    session::{HANG_UP, NUMBERED},
};
use crate::RuntimeError;
use bollard::query_parameters::ListContainersOptionsBuilder;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// `NO_DETACH` as the engine tells it: what was started with these keys was started here.
const MARK: &str = "AAAAAAAAAAAAAAAAAAAAAA==";

/// A process of this host: its number, and the moment of its start (in ticks since boot), by which it is told from a later one
/// of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) pid: Pid,
    started: u64,
}

impl Numbered {
    fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid: Pid::from_raw(pid), started: started(&stat)? })
    }

    /// Sends a signal to it and to what it started, as a terminal would. Tells whether it was there.
    fn signal(self, signal: Signal) -> bool {
        Self::of(self.pid.as_raw()) == Some(self) && killpg(self.pid, signal).or_else(|_| kill(self.pid, signal)).is_ok()
    }

    /// Ends it: SIGHUP, then SIGTERM, then SIGKILL.
    pub(super) async fn end(self) {
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGKILL] {
            if !self.signal(signal) {
                return;
            }
            tokio::time::sleep(HANG_UP).await;
        }
    }
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold blanks and brackets.
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

impl Inner {
    /// The number of an exec's process. None: it has ended, or the engine does not tell. It tells a moment after the process
    /// runs, and may have printed something.
    pub(super) async fn number_of(&self, exec: &str) -> Result<Option<i32>, RuntimeError> {
        let deadline = tokio::time::Instant::now() + NUMBERED;
        loop {
            let doing = "looking for the process of a command";
            let found = self.engine.call(doing, QUICK, async |d| d.inspect_exec(exec).await).await?;
            let running = found.running == Some(true);
            if let Some(pid) = found.pid.and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 1 && running) {
                return Ok(Some(pid));
            }
            let ended = !running && found.exit_code.is_some();
            if ended || tokio::time::Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Learns the number of an exec's process, for when the engine no longer knows it.
    pub(super) fn learn_number(self: &Arc<Self>, exec: &str) -> Arc<OnceLock<Numbered>> {
        let number = Arc::new(OnceLock::new());
        let (inner, exec, known) = (self.clone(), exec.to_owned(), number.clone());
        self.spawn(async move {
            if let Some(found) = inner.number_of(&exec).await.ok().flatten().and_then(Numbered::of) {
                let _ = known.set(found);
            }
        });
        number
    }

    /// Ends commands that a process before this one started inside instances, in the background.
    pub(super) async fn end_left_commands(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for kind in [Kind::Instance, Kind::Run] {
            let mut filter: HashMap<_, _> = labels::filter(&self.names.cluster, kind);
            filter.insert("status".to_owned(), vec!["running".to_owned()]);
            let options = ListContainersOptionsBuilder::default().filters(&filter).build();
            let list = self.engine.call("listing containers", QUICK, async |d| d.list_containers(Some(options)).await).await?;
            for id in list.into_iter().filter_map(|c| c.id) {
                let doing = "inspecting a container";
                let execs = match self.engine.call(doing, QUICK, async |d| d.inspect_container(&id, None).await).await {
                    Ok(found) => found.exec_ids.unwrap_or_default(),
                    Err(RuntimeError::NotFound(_)) => continue,
                    Err(e) => return Err(e),
                };
                for exec in execs {
                    self.end_if_left(&exec).await?;
                }
            }
        }
        Ok(())
    }

    async fn end_if_left(self: &Arc<Self>, exec: &str) -> Result<(), RuntimeError> {
        let doing = "looking for commands that were left";
        let found = match self.engine.call(doing, QUICK, async |d| d.inspect_exec(exec).await).await {
            Ok(found) => found,
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        let mine = found.detach_keys.as_deref() == Some(MARK);
        // Asked after the engine was: one that began in between is known by now.
        if !mine || found.running != Some(true) || self.state().live.contains(exec) {
            return Ok(());
        }
        if let Some(left) = found.pid.and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 1).and_then(Numbered::of) {
            tracing::info!(pid = left.pid.as_raw(), "ending a command whose client is gone");
            self.spawn(left.end());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_what_was_given() {
        let keys = super::super::exec::NO_DETACH.split(',').count();
        assert!(super::super::exec::NO_DETACH.split(',').all(|k| k == "ctrl-@"));
        // Base64 of that many zeros.
        assert_eq!((MARK.trim_end_matches('=').len() * 6 / 8, MARK.trim_matches(['A', '='])), (keys, ""));
    }

    #[test]
    fn a_process_is_its_number_and_its_start() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2";
        assert_eq!(started(stat), Some(98765));
        let own = i32::try_from(std::process::id()).unwrap();
        let mine = Numbered::of(own).unwrap();
        assert_eq!(Numbered::of(own), Some(mine));
        // Another one's number is not signalled: this test goes on.
        assert!(!Numbered { started: mine.started + 1, ..mine }.signal(Signal::SIGKILL));
        assert_eq!(started("no process"), None);
    }
}
