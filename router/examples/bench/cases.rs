//! What is compared, in rounds, and the lines that come out.

use crate::{
    attacks, hosts, is_there, load,
    load::Seen,
    rig::{Peer, Rig, runtime},
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};

/// A load that every proxy gets.
struct Case {
    name: &'static str,
    goal: &'static str,
    /// What `count` counts, as the unit of the figures.
    of: &'static str,
    run: fn(&Rig, &Peer, Duration) -> Seen,
    /// Only proxies that relay bytes.
    tcp: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "kept",
        goal: "rate >= 1.2 x haproxy, cpu <= 0.9 x, p99 no worse",
        of: "request",
        run: |_, p, length| load::wrk(p.http, 64, length, "/hello?x=1", None),
        tcp: false,
    },
    Case {
        name: "close",
        goal: "cpu <= 0.95 x haproxy",
        of: "request",
        run: |_, p, length| load::wrk(p.http, 64, length, "/hello?x=1", Some("Connection: close")),
        tcp: false,
    },
    Case {
        name: "paced",
        goal: "p50 <= direct + 0.05 ms at 8000 a second",
        of: "request",
        run: |_, p, length| load::paced(p.http, 8000, length),
        tcp: false,
    },
    Case {
        name: "large",
        goal: "rate >= 1.0 x haproxy",
        of: "MiB",
        run: |_, p, length| load::wrk(p.http, 16, length, "/big", None),
        tcp: false,
    },
    Case {
        name: "tls",
        goal: "rate >= 1.1 x haproxy",
        of: "request",
        run: |_, p, length| load::h2load(p.https, 64, None, length),
        tcp: false,
    },
    Case {
        name: "http2",
        goal: "rate >= 0.9 x haproxy, >= 1.4 x nginx",
        of: "request",
        run: |_, p, length| load::h2load(p.https, 16, Some(10), length),
        tcp: false,
    },
    Case {
        name: "handshake",
        goal: "cpu <= 0.7 x haproxy",
        of: "handshake",
        run: |rig, p, length| runtime().block_on(load::handshakes(p.https, &rig.dir, false, length)),
        tcp: false,
    },
    Case {
        name: "resumption",
        goal: "none set",
        of: "handshake",
        run: |rig, p, length| runtime().block_on(load::handshakes(p.https, &rig.dir, true, length)),
        tcp: false,
    },
    Case {
        name: "relay",
        goal: "cpu <= 1.0 x haproxy with splice",
        of: "GiB",
        run: |_, p, length| load::bulk(p.tcp.expect("a relay"), 1, length),
        tcp: true,
    },
    Case {
        name: "relay of 8",
        goal: "cpu <= 1.0 x haproxy with splice",
        of: "GiB",
        run: |_, p, length| load::bulk(p.tcp.expect("a relay"), 8, length),
        tcp: true,
    },
];

/// The cases that are named, or all.
pub fn run(rounds: u64, length: Duration, named: &[&str]) {
    if named == ["attacks"] {
        return attacks::measure(rounds, length);
    }
    for program in ["wrk", "h2load", "haproxy", "nginx"] {
        assert!(is_there(program), "{program} is not installed");
    }
    let wanted = |name: &str| named.is_empty() || named.contains(&name);
    let rig = Rig::start();
    if wanted("idle") {
        idle(&rig, "idle", "<= 2 KiB", 7000, false);
        idle(&rig, "idle tls", "<= 20 KiB", 3000, true);
    }
    if CASES.iter().any(|c| wanted(c.name)) {
        let peers = rig.peers();
        for case in CASES.iter().filter(|c| wanted(c.name)) {
            compare(&rig, &peers, case, rounds, length);
        }
    }
    if wanted("hosts") {
        hosts::measure(&rig, rounds, length);
    }
}

/// One proxy's figures of all rounds.
#[derive(Default)]
struct Rounds {
    rate: Vec<f64>,
    /// Microseconds of processor time for each.
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    resumed: f64,
}

fn compare(rig: &Rig, peers: &[Peer], case: &Case, rounds: u64, length: Duration) {
    let mut all: BTreeMap<&str, Rounds> = BTreeMap::new();
    let mut direct = Vec::new();
    // The first round warms up.
    for round in 0..=rounds {
        for peer in peers.iter().filter(|p| !case.tcp || p.tcp.is_some()) {
            let before = peer.process.cpu();
            let seen = (case.run)(rig, peer, length);
            let used = peer.process.cpu() - before;
            if round > 0 {
                let all = all.entry(peer.name).or_default();
                all.rate.push(seen.count / seen.seconds);
                all.cpu.push(used * 1e6 / seen.count);
                all.p50.push(seen.p50);
                all.p99.push(seen.p99);
                all.resumed = seen.resumed;
            }
        }
        if case.name == "paced" && round > 0 {
            direct.push(load::paced(rig.backend, 8000, length).p50);
        }
    }
    let mut line = Map::from_iter([("case".to_owned(), Value::from(case.name))]);
    let mut put = |key: String, value: f64| line.insert(key, json!(short(value)));
    for (name, rounds) in &all {
        put(format!("{name}_per_s"), median(&rounds.rate));
        put(format!("{name}_us_per_{}", case.of), median(&rounds.cpu));
        if median(&rounds.p99) > 0.0 {
            put(format!("{name}_p50_ms"), median(&rounds.p50));
            put(format!("{name}_p99_ms"), median(&rounds.p99));
        }
        if case.name == "resumption" {
            put(format!("{name}_resumed"), rounds.resumed);
        }
    }
    let flex = &all["flex"];
    for (name, other) in all.iter().filter(|(name, _)| **name != "flex") {
        put(format!("rate_to_{name}"), ratio(&flex.rate, &other.rate));
        put(format!("cpu_to_{name}"), ratio(&flex.cpu, &other.cpu));
    }
    if !direct.is_empty() {
        put("added_p50_ms".into(), median(&flex.p50) - median(&direct));
    }
    line.insert("goal".into(), case.goal.into());
    println!("{}", Value::Object(line));
}

/// Memory of new processes before and with so many connections that are kept.
fn idle(rig: &Rig, name: &str, goal: &str, count: usize, secure: bool) {
    let mut line = Map::from_iter([("case".to_owned(), Value::from(name)), ("connections".to_owned(), count.into())]);
    let runtime = runtime();
    for peer in rig.peers() {
        let (address, dir) = if secure { (peer.https, Some(rig.dir.as_path())) } else { (peer.http, None) };
        // What the first connection makes is made once.
        drop(runtime.block_on(load::idle(address, dir, 10)));
        let before = peer.process.memory();
        let kept = runtime.block_on(load::idle(address, dir, count));
        let grown = peer.process.memory() - before;
        line.insert(format!("{}_kib", peer.name), json!(short(grown / count as f64)));
        drop(kept);
    }
    line.insert("goal".into(), goal.into());
    println!("{}", Value::Object(line));
}

/// The median of the ratios of each round: what the machine did meanwhile was done to both.
fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(&ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>())
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Three digits that count.
pub fn short(value: f64) -> f64 {
    let scale = 10_f64.powi(2 - value.abs().max(1e-9).log10().floor() as i32).max(1.0);
    (value * scale).round() / scale
}
