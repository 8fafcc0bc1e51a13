//! The planner against a simulated cluster: seeds drive deploys, scaling, restarts, host losses, silence, controller
//! restarts and refused commits; after each step what must never happen is looked for, and in the end, in quiet, what is
//! wanted must be what runs. The planner keeps its state from second to second and is told what changed.
//!
//! A failure prints its seed: `FLEX_SIM_SEED=n` runs that one alone, `FLEX_SIM_SEEDS=n` runs more of them.
//!
//! Never: a host promised more memory than it has; an instance placed twice; an app without routes that had some before a
//! plan (unless nobody wants any, or their host died); a serving instance stopped without a drain, or a drain cut short
//! while a router still sends to it; a new instance on a host that takes none; anything let go of on silence; a plan that
//! does not come to rest; another answer than from a planner that is told everything anew; a failed release that takes the
//! good one with it; a host that stops what is placed there, or runs what was never committed.

#[path = "../changes/feed.rs"]
mod feed;
mod fleet;
mod records;
mod sim;

use feed::Deaf;

/// What is planted, to see that it is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Agents apply whatever order comes last, older ones too.
    NoFence,
    /// A host that says nothing for a while counts as dead.
    SilenceIsDeath,
    /// Hosts are told of a plan before it is committed.
    ActsFirst,
    /// The planner is not told of some kind of change.
    Deaf(Deaf),
}

impl Fault {
    fn deaf(self) -> Option<Deaf> {
        if let Self::Deaf(to) = self { Some(to) } else { None }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is not a number")))
}

#[test]
fn nothing_that_must_never_happen_happens() {
    let seeds = match number("FLEX_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLEX_SIM_SEEDS").unwrap_or(2000),
    };
    for seed in seeds {
        if let Err(problem) = sim::Sim::new(seed).run() {
            panic!("FLEX_SIM_SEED={seed}: {problem}");
        }
    }
}

#[test]
fn planted_faults_are_found_out() {
    let deaf = [Deaf::Apps, Deaf::Hosts, Deaf::Placements, Deaf::Reports].map(Fault::Deaf);
    for fault in [Fault::NoFence, Fault::SilenceIsDeath, Fault::ActsFirst].into_iter().chain(deaf) {
        let found = (0..256).find_map(|seed| Some((seed, sim::Sim::with(seed, fault).run().err()?)));
        let (seed, problem) = found.unwrap_or_else(|| panic!("{fault:?} was not found out within 256 seeds"));
        println!("{fault:?}: seed {seed}: {problem}");
    }
}
