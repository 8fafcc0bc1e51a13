//! The engine stopped, killed, hanging; containerd killed; the whole machine without power.

use crate::private::Engine;
use crate::world::{Steady, files, is_sound, list, push_page, world};
use flex_tests::{Server, Setup, wait_for};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Apps of this many instances tell a lost one from none.
const INSTANCES: usize = 2;

#[test]
fn engines_die_hang_and_lose_power() {
    let mut engine = Engine::start();
    let (mut server, user) = world(Setup { docker: Some(engine.socket()), ..Setup::default() });
    let app = user.repo("engine", &files("one"));
    app.push().ok();
    app.flex(&["ps:scale", &format!("web={INSTANCES}")]).ok();
    is_sound(&server, &app, &["one"]);
    assert_eq!(list(&app, &["ps"]).len(), INSTANCES);

    let client = Steady::on(server.http, "engine", &["one", "two", "three", "four", "five"]);
    let mut before = server.containers();

    // dockerd dies and is stopped: the apps do not notice; a push says what is the matter, and works afterwards.
    for (signal, page) in [(Signal::SIGKILL, "two"), (Signal::SIGTERM, "three")] {
        engine.signal_dockerd(signal);
        app.commit(&files(page));
        let refused = app.push().fails_with("pre-receive hook declined");
        assert!(
            refused.err.contains("[platform]") && refused.err.contains("the container engine does not answer"),
            "{}",
            refused.err
        );
        engine.start_dockerd();
        assert_eq!(server.containers(), before, "after {signal}");
        app.push().ok();
        is_sound(&server, &app, &[page]);
        before = server.containers();
    }

    // containerd dies.
    engine.kill_containerd();
    engine.start_containerd();
    // dockerd looks for it at growing intervals, and refuses what needs it until then.
    let answers = || server.docker(&["exec", &before[0], "echo", "found"]) == ["found"];
    wait_for("dockerd to find containerd again", Duration::from_secs(60), || answers().then_some(()));
    assert_eq!(server.containers(), before, "after containerd died");
    push_page(&server, &app, "four");
    is_sound(&server, &app, &["four"]);

    // dockerd accepts and never answers: calls end in time, apps are routed, nothing is needed when it goes on.
    engine.signal_dockerd(Signal::SIGSTOP);
    let started = Instant::now();
    let doctor = app.flex(&["doctor"]);
    assert!(started.elapsed() < Duration::from_secs(25), "the doctor took {:?}", started.elapsed());
    assert!(doctor.all().contains("no answer within"), "{}", doctor.all());
    engine.signal_dockerd(Signal::SIGCONT);
    push_page(&server, &app, "five");
    is_sound(&server, &app, &["five"]);
    client.none_failed();

    // Power: everything dies at once; what is started then is the engine and flexd, as at boot.
    let dead = server.containers();
    server.end(Signal::SIGKILL);
    engine.lose_power();
    engine.start_containerd();
    engine.start_dockerd();
    let booted = Instant::now();
    server.up();
    assert_eq!(is_serving(&server, "engine"), "five");
    println!("served {:?} after flexd was started on a machine that had lost power", booted.elapsed());
    is_sound(&server, &app, &["five"]);
    assert_eq!(list(&app, &["ps"]).len(), INSTANCES);
    assert!(server.containers().iter().all(|c| !dead.contains(c)), "{dead:?} {:?}", server.containers());
    push_page(&server, &app, "six");
    is_sound(&server, &app, &["six"]);
}

/// Waits for the app's page.
fn is_serving(server: &Server, app: &str) -> String {
    wait_for("the app to be back", Duration::from_secs(60), || {
        let answer = server.page(app, "/");
        (answer.status == 200).then(|| answer.body.trim().to_owned())
    })
}
