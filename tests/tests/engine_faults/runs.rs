//! What was run by hand while the engine dies.

use crate::private::Engine;
use crate::world::{files, is_sound, list, push_page, world};
use flex_tests::{Setup, wait_for};
use nix::sys::signal::Signal;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn runs_while_dockerd_dies() {
    let mut engine = Engine::start();
    let (server, user) = world(Setup { docker: Some(engine.socket()), ..Setup::default() });
    let app = user.repo("runs", &files("one"));
    app.push().ok();
    let long = Duration::from_secs(60);
    let ticks = "for i in $(seq 600); do echo tick $i; sleep 0.1; done";
    let started = app.flex(&["run:detached", "--json", ticks]).ok();
    let name = serde_json::from_str::<serde_json::Value>(&started.out).unwrap()["name"].as_str().unwrap().to_owned();
    let logged =
        |text: &str| app.flex(&["logs", "-n", "2000", "-p", &name]).ok().out.contains(&format!("]: {text}")).then_some(());
    wait_for("its output", long, || logged("tick 5"));
    let spawn = |args: &[&str]| user.command("flex", &app.dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut attached = spawn(&["run", "exec sleep 1000"]);
    let mut looking = spawn(&["attach", &name]);
    let mut inside = spawn(&["exec", "trap '' HUP; sleep 98761; true"]);
    let sleeps = || app.flex(&["exec", "--", "ps"]).ok().out.contains("sleep 98761");
    wait_for("a command inside an instance to run", long, || sleeps().then_some(()));
    wait_for("both to run", long, || (list(&app, &["ps"]).iter().filter(|d| d["type"] == "run").count() == 2).then_some(()));

    engine.signal_dockerd(Signal::SIGKILL);
    engine.start_dockerd();
    // Who waited hears of it; the detached one goes on, its output in the log, and can be looked on at again.
    for client in [&mut attached, &mut looking, &mut inside] {
        let status = wait_for("a client to be told", long * 2, || client.try_wait().unwrap());
        assert!(!status.success());
    }
    // The engine has forgotten what runs inside an instance; it is ended all the same.
    wait_for("the command inside to be ended", long, || (!sleeps()).then_some(()));
    wait_for("its output to go on", long, || logged("tick 150"));
    let mut again = user.command("flex", &app.dir, &["attach", &name]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(again.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert!(line.starts_with("tick "), "{line:?}");
    again.kill().unwrap();
    again.wait().unwrap();
    let all = app.flex(&["logs", "-n", "2000", "-p", &name]).ok().out;
    let seen: Vec<u32> = all.lines().filter_map(|l| l.split("]: tick ").nth(1)?.trim().parse().ok()).collect();
    assert!((1..=150).all(|n| seen.contains(&n)), "{all}");
    app.flex(&["ps:stop", &name]).ok();
    is_sound(&server, &app, &["one"]);
    push_page(&server, &app, "two");
    is_sound(&server, &app, &["two"]);
}
