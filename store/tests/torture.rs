//! kill -9 in the middle of commits, over and over on the same store: nothing acknowledged is lost, nothing is torn.
//! `FLEX_TORTURE_ROUNDS` sets how often.

mod common;

use common::{Writer, verify, writer};
use flex_store::Engine;
use std::time::Duration;

#[test]
fn child() {
    writer();
}

fn rounds(default: u64) -> u64 {
    std::env::var("FLEX_TORTURE_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(default)
}

/// Stores that are tortured side by side: most of a round is waiting.
const STORES: u64 = 4;

fn torture(engine: Engine, rounds: u64) {
    std::thread::scope(|s| {
        for n in 0..STORES {
            s.spawn(move || torture_one(engine, rounds.div_ceil(STORES), u64::from(std::process::id()) * STORES + n));
        }
    });
}

/// A small generator with a printed seed: moments need to differ, not to be unpredictable.
fn torture_one(engine: Engine, rounds: u64, mut seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    println!("seed {seed}");
    let mut n = 0;
    for _ in 0..rounds {
        seed = next(seed);
        let mut writer = Writer::start("child", dir.path(), engine);
        // Most rounds die between two commits somewhere; some while the store is being opened.
        if !seed.is_multiple_of(8) {
            writer.wait_beyond(n);
        }
        std::thread::sleep(Duration::from_micros(seed % 12_000));
        let acknowledged = writer.kill().max(n);
        n = verify(dir.path(), engine, acknowledged);
    }
    println!("{}: {n} commits over {rounds} rounds", engine.name());
    assert!(n > rounds, "hardly anything was written");
}

fn next(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn sled_survives_kill() {
    torture(Engine::Sled, rounds(1000));
}

#[test]
fn redb_survives_kill() {
    torture(Engine::Redb, rounds(1000));
}
