//! Measures the planner: `cargo run --release -p flex-scheduler --example scale [HOSTS] [INSTANCES] [MANY]` (10,000 hosts,
//! 100,000 and 1,000,000 instances if not given). Prints a line of JSON for each figure; what they are is in `src/bench.rs`.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; what it measures does not")]

use flex_scheduler::bench::{Figure, Meters, Sizes, run};
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>().expect("a number"));
    let default = Sizes::default();
    let sizes = Sizes {
        hosts: args.next().unwrap_or(default.hosts),
        instances: args.next().unwrap_or(default.instances),
        many: args.next().unwrap_or(default.many),
    };
    let start = Instant::now();
    run(sizes, &mut Meters { clock: &|| start.elapsed(), memory: &resident, tell: &mut say });
}

fn say(figure: Figure) {
    let mut line = serde_json::Map::from_iter([("figure".to_owned(), figure.name.into())]);
    line.extend(figure.values.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
    line.extend(figure.met.map(|met| ("met".to_owned(), met.into())));
    println!("{}", serde_json::Value::Object(line));
}

/// Bytes of memory of this process; 0 where the kernel does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
