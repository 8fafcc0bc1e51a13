//! The planner against a simulated cluster: seeds drive deploys, scaling, restarts, host losses, silence, controller
//! restarts and refused commits; after each step what must never happen is looked for, and in the end, in quiet, what is
//! wanted must be what runs.
//!
//! A failure prints its seed: `FLEX_SIM_SEED=n` runs that one alone, `FLEX_SIM_SEEDS=n` runs more of them.
//!
//! Never: a host promised more memory than it has; an instance placed twice; an app without routes that had some before a
//! plan (unless nobody wants any, or their host died); a serving instance stopped without a drain, or a drain cut short
//! while a router still sends to it; a new instance on a host that takes none; anything let go of on silence; a plan that
//! does not come to rest; two answers to one question; a failed release that takes the good one with it.

mod fleet;
mod sim;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is not a number")))
}

#[test]
fn nothing_that_must_never_happen_happens() {
    let seeds = match number("FLEX_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLEX_SIM_SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        if let Err(problem) = sim::Sim::new(seed).run() {
            panic!("FLEX_SIM_SEED={seed}: {problem}");
        }
    }
}
