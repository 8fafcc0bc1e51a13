//! Broken apps: they listen where nobody asks, crash, eat memory, start slowly, ignore SIGTERM. On a first deploy the push
//! says what is wrong; on a later one the old release serves on, and no request fails.

use crate::world::{self, COMPILE, DETECT, Steady, is_sound, push_page, world};
use flex_tests::{Repo, Server, Setup, wait_for};
use std::time::{Duration, Instant};

/// Ten seconds to start instead of a minute: for what never does.
const IMPATIENT: &str = r#"{ "healthchecks": { "web": [{ "type": "startup", "attempts": 5, "wait": 2 }] } }"#;

fn files<'a>(procfile: &'a str, page: &'a str, manifest: &'a str) -> [(&'a str, &'a str); 5] {
    [("bin/detect", DETECT), ("bin/compile", COMPILE), ("Procfile", procfile), ("page.txt", page), ("app.json", manifest)]
}

/// An app with a minute to start.
fn odd<'a>(procfile: &'a str, page: &'a str) -> [(&'a str, &'a str); 5] {
    files(procfile, page, "{}")
}

/// Pushes it; it must be refused, and say all this.
#[track_caller]
fn refused(repo: &Repo<'_>, procfile: &str, says: &[&str]) {
    repo.commit(&files(procfile, "never", IMPATIENT));
    let said = repo.push().fails_with("pre-receive hook declined").err;
    for text in says {
        assert!(said.contains(text), "does not say {text:?}: {said}");
    }
}

const WRONG_PORT: &str = "web: exec httpd -f -p 9999 -h www\n";
const ONLY_LOCAL: &str = "web: exec httpd -f -p 127.0.0.1:$PORT -h www\n";
const CRASHES: &str = "web: echo 'out of luck'; exit 3\n";

#[test]
fn a_first_deploy_that_cannot_serve_says_why() {
    let (server, user) = world(Setup::default());
    let app = user.repo("first", &odd(WRONG_PORT, "one"));
    refused(&app, WRONG_PORT, &["bound port 9999", "Nothing is serving yet"]);
    refused(&app, CRASHES, &["out of luck", "Nothing is serving yet"]);
    let page = server.page("first", "/");
    assert!(page.status == 503, "{page:?}");
    // And then it can.
    push_page(&server, &app, "two");
    is_sound(&server, &app, &["two"]);
}

#[test]
fn a_later_deploy_that_cannot_serve_leaves_the_old_one() {
    let (server, user) = world(Setup::default());
    let app = user.repo("later", &world::files("one"));
    app.push().ok();
    let client = Steady::on(server.http, "later", &["one", "slow"]);
    refused(&app, WRONG_PORT, &["bound port 9999", "v1 keeps serving"]);
    refused(&app, ONLY_LOCAL, &["on 127.0.0.1 instead of 0.0.0.0", "v1 keeps serving"]);
    refused(&app, CRASHES, &["out of luck", "v1 keeps serving"]);
    assert_eq!(is_sound(&server, &app, &["one"]), "one");

    // Slow to start is not broken: the old one serves until the new one does.
    app.commit(&odd("web: sleep 5; exec httpd -f -p $PORT -h www\n", "slow"));
    let started = Instant::now();
    app.push().ok();
    assert!(started.elapsed() > Duration::from_secs(5));
    assert_eq!(is_sound(&server, &app, &["slow"]), "slow");
    client.none_failed();
}

#[test]
fn apps_that_crash_later_or_do_not_stop() {
    let (server, user) = world(Setup::default());
    let app = user.repo("unruly", &world::files("one"));

    // Killed at its memory limit when it has been up: said, and started again.
    let hungry = "web: httpd -p $PORT -h www; until rm /tmp/eat 2>/dev/null; do sleep 1; done; \
                  x=$(head -c 900000000 /dev/zero | tr '\\0' x); sleep 1000\n";
    app.commit(&odd(hungry, "one"));
    app.push().ok();
    app.flex(&["exec", "--", "touch", "/tmp/eat"]).ok();
    logs_say(&app, "R15");
    wait_for("it to be up again", Duration::from_secs(30), || (up(&server, &app) == 200).then_some(()));

    // Deaf to SIGTERM: replaced without a failed request, and ended by force in its time.
    app.commit(&odd("web: trap '' TERM; httpd -p $PORT -h www; while :; do sleep 1; done\n", "two"));
    app.push().ok();
    assert_eq!(server.page("unruly", "/").body.trim(), "two");
    let client = Steady::on(server.http, "unruly", &["two", "three"]);
    let started = Instant::now();
    push_page(&server, &app, "three");
    assert!(started.elapsed() < Duration::from_secs(28), "the push waited for a deaf instance: {:?}", started.elapsed());
    logs_say(&app, "R12");
    is_sound(&server, &app, &["three"]);
    client.none_failed();
}

fn up(server: &Server, app: &Repo<'_>) -> u16 {
    server.page(&app.app, "/").status
}

/// Waits until the app's log says it.
#[track_caller]
fn logs_say(app: &Repo<'_>, text: &str) {
    wait_for(&format!("the log to say {text}"), Duration::from_secs(60), || {
        app.flex(&["logs", "-n", "200"]).out.contains(text).then_some(())
    });
}
