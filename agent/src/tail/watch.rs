//! Sleeps until a followed file changes, a message comes or a time is there: a file that nobody writes to costs nothing.
//!
//! Each watch (inotify) tells of one change and is gone then, so a writer of many lines pays for the first only. The file is
//! watched anew before it is read: what is written after the look tells again. Where watching does not work, [`Watcher::arm`]
//! says so, and the caller looks from time to time instead.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

/// Changes of files are heard of this often at most: one waking for many.
const GATHER: Duration = Duration::from_millis(10);

/// Wakes a sleeping [`Watcher`].
pub struct Bell(UnixStream);

impl Bell {
    pub fn ring(&self) {
        // Full: it is ringing already. Closed: nobody sleeps there any more.
        let _ = (&self.0).write(&[1]);
    }
}

/// What woke the sleeper.
#[derive(Debug, PartialEq, Eq)]
pub enum Woken<K> {
    /// A message, or the time.
    Called,
    /// These files changed.
    Changed(Vec<K>),
    /// So many changes that some went untold: any file may have changed.
    Overflow,
}

/// The sleeper; `K` names a file.
pub struct Watcher<K> {
    bell: UnixStream,
    inotify: Option<Inotify>,
    watched: HashMap<WatchDescriptor, K>,
    /// When changes may be heard of again.
    deaf_until: Instant,
}

impl<K: Copy + Eq> Watcher<K> {
    /// A sleeper and what wakes it. A machine that has no watches left is told of in the log, and does without.
    pub fn new() -> io::Result<(Self, Bell)> {
        let (bell, ringer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .inspect_err(|e| {
                tracing::warn!(error = %e, "cannot watch the instances' log files, and looks at them in turns instead; raise fs.inotify.max_user_instances");
            })
            .ok();
        Ok((Self { bell, inotify, watched: HashMap::new(), deaf_until: Instant::now() }, Bell(ringer)))
    }

    /// Watches the file that has this name now, until its next change. False: it cannot be watched.
    pub fn arm(&mut self, key: K, path: &Path) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mask = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONESHOT;
        match inotify.add_watch(path, mask) {
            Ok(watch) => {
                self.watched.insert(watch, key);
                true
            }
            Err(_) => false,
        }
    }

    /// Lets go of a file's watches.
    pub fn disarm(&mut self, key: K) {
        let Some(inotify) = &self.inotify else { return };
        self.watched.retain(|watch, k| {
            if *k == key {
                // Gone already, if it has told.
                let _ = inotify.rm_watch(*watch);
            }
            *k != key
        });
    }

    /// Sleeps until a file changes, the bell rings, or `until` (none: for ever) is there.
    pub fn sleep(&mut self, until: Option<Instant>) -> Woken<K> {
        loop {
            let now = Instant::now();
            let hears = self.deaf_until <= now;
            let wake = if hears { until } else { Some(until.map_or(self.deaf_until, |u| u.min(self.deaf_until))) };
            let (rang, changed) = self.poll(wake.map(|w| w.saturating_duration_since(now)), hears);
            if rang {
                let mut buffer = [0; 256];
                while (&self.bell).read(&mut buffer).is_ok_and(|n| n == buffer.len()) {}
            }
            if changed {
                self.deaf_until = Instant::now() + GATHER;
                match self.changes() {
                    Woken::Changed(keys) if keys.is_empty() => {}
                    woken => return woken,
                }
            }
            if rang || until.is_some_and(|u| u <= Instant::now()) {
                return Woken::Called;
            }
        }
    }

    /// Whether the bell rang, and whether files changed.
    fn poll(&self, timeout: Option<Duration>, hears: bool) -> (bool, bool) {
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.inotify.as_ref().filter(|_| hears).map(|i| PollFd::new(i.as_fd(), PollFlags::POLLIN)));
        // Rounded up: a wait that ends too early is a wait without rest.
        let millis = timeout.map(|t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let timeout = millis.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) => {
                let any = |n: usize| fds.get(n).is_some_and(|fd| fd.any().unwrap_or(true));
                (any(0), any(1))
            }
            Err(Errno::EINTR) => (false, false),
            Err(e) => {
                tracing::warn!(error = %e, "cannot wait for the instances' log files");
                std::thread::sleep(GATHER);
                (true, false)
            }
        }
    }

    fn changes(&mut self) -> Woken<K> {
        let mut keys = Vec::new();
        let mut overflow = false;
        while let Some(events) = self.inotify.as_ref().and_then(|i| i.read_events().ok()) {
            for event in events {
                overflow |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                // One-shot: whatever it told, it is gone.
                keys.extend(self.watched.remove(&event.wd).filter(|k| !keys.contains(k)));
            }
        }
        if overflow { Woken::Overflow } else { Woken::Changed(keys) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(20))
    }

    #[test]
    fn a_change_is_told_once_for_each_arming() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut file = File::create(&a).unwrap();
        File::create(&b).unwrap();
        let (mut watcher, bell) = Watcher::new().unwrap();
        assert!(watcher.arm(1, &a) && watcher.arm(2, &b));
        for _ in 0..100 {
            file.write_all(b"x").unwrap();
        }
        assert_eq!(watcher.sleep(soon()), Woken::Changed(vec![1]));
        file.write_all(b"x").unwrap();
        bell.ring();
        assert_eq!(watcher.sleep(None), Woken::Called, "not armed again");
        assert!(watcher.arm(1, &a));
        file.write_all(b"x").unwrap();
        assert_eq!(watcher.sleep(soon()), Woken::Changed(vec![1]));
    }

    #[test]
    fn a_rotation_and_a_removal_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("x"), dir.path().join("x.1"));
        File::create(&path).unwrap();
        let (mut watcher, _bell) = Watcher::new().unwrap();
        assert!(watcher.arm(7, &path));
        fs::rename(&path, &rotated).unwrap();
        assert_eq!(watcher.sleep(soon()), Woken::Changed(vec![7]));
        assert!(!watcher.arm(7, &path), "there is no such file");
        assert!(watcher.arm(7, &rotated));
        fs::remove_file(&rotated).unwrap();
        assert_eq!(watcher.sleep(soon()), Woken::Changed(vec![7]));
    }

    #[test]
    fn what_is_let_go_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = File::create(&path).unwrap();
        let (mut watcher, bell) = Watcher::new().unwrap();
        assert!(watcher.arm(1, &path));
        watcher.disarm(1);
        file.write_all(b"x").unwrap();
        bell.ring();
        assert_eq!(watcher.sleep(None), Woken::Called);
    }

    #[test]
    fn the_time_ends_a_sleep_and_the_bell_one_without_end() {
        let (mut watcher, bell) = Watcher::<u8>::new().unwrap();
        let began = Instant::now();
        assert_eq!(watcher.sleep(Some(began + Duration::from_millis(30))), Woken::Called);
        assert!(began.elapsed() >= Duration::from_millis(30));
        let ringer = std::thread::spawn(move || bell.ring());
        assert_eq!(watcher.sleep(None), Woken::Called);
        ringer.join().unwrap();
    }
}
