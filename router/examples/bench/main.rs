//! Compares the router with haproxy and nginx in one run: the same instance, the same clients, one processor for the proxy and
//! another for everything else, access lines on for all, rounds interleaved. The verdict is processor time of the proxy
//! alone, read from `/proc`, and the ratio of each round; requests a second depend on what else the machine does.
//!
//! `cargo run --release -p flex-router --example bench [ROUNDS [SECONDS [CASE...]]]`
//!
//! With `attacks` as the only CASE, it measures what a neighbour notices of each of them instead, with nothing else installed.
//!
//! Prints a line of JSON for each case. `wrk`, `h2load`, `haproxy` and `nginx` must be installed.

mod attacks;
mod cases;
mod flex;
mod hosts;
mod instance;
mod load;
mod rig;

use std::{path::Path, process::Command, time::Duration};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["instance"] => rig::runtime().block_on(instance::serve()),
        ["router", dir, backend, source] => {
            let address = |a: &str| a.parse().expect("an address");
            rig::runtime().block_on(flex::serve(Path::new(dir), address(backend), address(source)));
        }
        ["kept", dir] => rig::runtime().block_on(flex::serve_kept(Path::new(dir))),
        ["changes", backend, seconds] => {
            hosts::changes(backend.parse().expect("an address"), seconds.parse().expect("a number"));
        }
        ["attacked", backend, sink] => {
            let address = |a: &str| a.parse().expect("an address");
            rig::runtime().block_on(attacks::serve(address(backend), address(sink)));
        }
        ["sink"] => rig::runtime().block_on(attacks::sink()),
        ["attack", name, address] => rig::runtime().block_on(attacks::attack(name, address.parse().expect("an address"))),
        ["pinned", ref rest @ ..] => {
            let number = |n: usize, or: u64| rest.get(n).map_or(or, |a| a.parse().expect("a number"));
            cases::run(number(0, 5), Duration::from_secs(number(1, 3)), rest.get(2..).unwrap_or_default());
        }
        _ => {
            let status = rig::on(rig::Side::Client, &[&["pinned"], &args[..]].concat()).status();
            std::process::exit(status.ok().and_then(|s| s.code()).unwrap_or(1));
        }
    }
}

/// Whether a program can be started at all.
fn is_there(program: &str) -> bool {
    let quiet = || std::process::Stdio::null();
    Command::new(program).arg("-v").stdin(quiet()).stdout(quiet()).stderr(quiet()).status().is_ok()
}
