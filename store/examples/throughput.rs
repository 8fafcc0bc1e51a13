//! Durable commits and reads a second, for each embedded engine, beside what the disk can do at all.
//!
//! `cargo run --release -p flex-store --example throughput -- [SECONDS]` (3 for each figure if not given). Prints one line
//! of JSON per engine; `FLEX_BENCH_DISK` is a folder on the disk to measure. The floor, taken before each engine in the same run and folder, is one thread that appends 4 KiB to a
//! file and calls fdatasync: a store that commits one change at a time and syncs it cannot be faster.

use flex_store::{Engine, StateStore, Write, open};
use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// As many as a busy installation has records.
const KEYS: u64 = 10_000;
/// An ordinary record.
const VALUE: usize = 512;
/// Committers at once.
const MANY: u64 = 64;

fn key(n: u64) -> String {
    format!("bench/{:08}", n % KEYS)
}

fn floor(dir: &Path, time: Duration) -> Result<f64> {
    let mut file = std::fs::File::create(dir.join("floor"))?;
    let (started, mut done) = (Instant::now(), 0_u32);
    while started.elapsed() < time {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        done += 1;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// Runs `tasks` loops side by side for `time`; how often a second the step was done.
async fn rate<F, S>(tasks: u64, time: Duration, step: F) -> Result<f64>
where
    F: Fn(u64) -> S,
    S: Future<Output = Result<()>> + Send + 'static,
    F: Clone + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let loops: Vec<_> = (0..tasks)
        .map(|_| {
            let (next, step) = (next.clone(), step.clone());
            // Each looks at the clock by itself: steps that never wait leave a timer no thread to go off on.
            tokio::spawn(async move {
                while started.elapsed() < time {
                    let turn = step(next.fetch_add(1, Relaxed));
                    turn.await?;
                }
                Ok(())
            })
        })
        .collect();
    for one in loops {
        let ended: Result<()> = one.await?;
        ended?;
    }
    Ok(next.load(Relaxed) as f64 / started.elapsed().as_secs_f64())
}

async fn measure(dir: &Path, engine: Engine, time: Duration) -> Result<serde_json::Value> {
    let floor = floor(dir, time)?;
    let store = Arc::new(open(dir, engine)?);
    for first in (0..KEYS).step_by(100) {
        let writes = (first..first + 100).map(|n| Write::Put(key(n), vec![1; VALUE])).collect();
        store.commit(Vec::new(), writes).await?;
    }
    let commit = {
        let store = store.clone();
        move |n: u64| {
            let store = store.clone();
            async move {
                // Spread over the keys, as changes to many apps are.
                store.commit(Vec::new(), vec![Write::Put(key(n.wrapping_mul(7919)), n.to_le_bytes().repeat(VALUE / 8))]).await?;
                Ok(())
            }
        }
    };
    let one = rate(1, time, commit.clone()).await?;
    let many = rate(MANY, time, commit).await?;
    let get = {
        let store = store.clone();
        move |n: u64| {
            let store = store.clone();
            async move {
                let (entry, _) = store.get(&key(n.wrapping_mul(7919))).await?;
                entry.map(|_| ()).ok_or_else(|| "a key is missing".into())
            }
        }
    };
    let gets = rate(2, time, get).await?;
    let list = move |_| {
        let store = store.clone();
        async move {
            let (entries, _) = store.list("bench/00001").await?;
            if entries.len() == 1000 { Ok(()) } else { Err(format!("{} keys", entries.len()).into()) }
        }
    };
    let lists = rate(1, time, list).await?;
    Ok(serde_json::json!({
        "engine": engine.name(),
        "floor_fdatasyncs_per_s": floor.round(),
        "commits_per_s_1": one.round(),
        "commits_per_s_64": many.round(),
        "ratio_1_to_floor": (one / floor * 100.0).round() / 100.0,
        "ratio_64_to_floor": (many / floor * 100.0).round() / 100.0,
        "gets_per_s": gets.round(),
        "lists_of_1000_per_s": lists.round(),
    }))
}

#[tokio::main]
async fn main() -> Result<()> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(3.0), |a| a.parse())?;
    for engine in Engine::ALL {
        // Not in memory, where a sync costs nothing: beside the binary, on the disk that was built on.
        let at = match std::env::var_os("FLEX_BENCH_DISK") {
            Some(folder) => folder.into(),
            None => std::env::current_exe()?.parent().ok_or("no folder")?.to_owned(),
        };
        let dir = tempfile::tempdir_in(at)?;
        println!("{}", measure(dir.path(), engine, Duration::from_secs_f64(seconds)).await?);
    }
    Ok(())
}
