//! Whole-system tests over the real binaries: a server with its own data directory and free ports, a user with their own
//! home, stock git and ssh, a real engine.
//!
//! The binaries are `target/release/flexd` and `flex`, or those in the directory that `FLEX_TEST_BIN` names; the stack images come from the data directory that
//! `FLEX_TEST_STACKS` names (made by scripts/test). Everything that a server made is removed when it goes.

mod http;
mod ports;
mod server;
mod user;

pub use http::{Answer, get, get_with};
pub use ports::Port;
pub use server::{Server, Setup, binary, flexd, root, stacks};
pub use user::{Ran, Repo, User};

use std::time::{Duration, Instant};

/// Waits until `probe` gives a value.
///
/// # Panics
/// When it takes longer than `limit`: with what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
