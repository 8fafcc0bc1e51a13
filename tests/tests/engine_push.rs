//! From `git push` to a page: an app with its own inline buildpack, on a server of the test's own.

use flex_tests::{Server, wait_for};
use nix::sys::signal::Signal;
use std::time::Duration;

const DETECT: &str = "#!/bin/sh\necho Inline\n";
const COMPILE: &str = "#!/bin/sh\nset -e\necho '-----> Compiling the page'\n\
    if [ -e \"$2/seen\" ]; then echo 'with its cache'; fi\ntouch \"$2/seen\"\ncp \"$1/page.txt\" \"$1/index.html\"\n";
const RELEASE: &str = "#!/bin/sh\necho '---'\necho 'default_process_types:'\necho '  web: exec python3 server.py'\n";
const SERVER: &str = r#"
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = (open("index.html").read() + os.environ.get("GREETING", "")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
print("hello from the log", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
"#;

fn app(page: &str) -> Vec<(&'static str, String)> {
    [("bin/detect", DETECT), ("bin/compile", COMPILE), ("bin/release", RELEASE), ("server.py", SERVER), ("page.txt", page)]
        .map(|(n, t)| (n, t.to_owned()))
        .to_vec()
}

/// That what a build that failed went through was printed and is kept, and that what it did not reach was not.
fn has_phases(repo: &flex_tests::Repo<'_>, said: &str, through: &[&str], not: &[&str]) {
    let kept: serde_json::Value = serde_json::from_str(&repo.flex(&["builds:info", "--json"]).ok().out).unwrap();
    let line = |phase: &str| format!("remote:        {phase:<12}");
    let is_kept = |phase: &str| kept["phases"].as_array().unwrap().iter().any(|p| p["phase"] == phase.replace(' ', "_"));
    for phase in through {
        assert!(said.contains(&line(phase)) && is_kept(phase), "{phase}: {said}\n{kept:#}");
    }
    for phase in not {
        assert!(!said.contains(&line(phase)) && !is_kept(phase), "{phase}: {said}\n{kept:#}");
    }
}

#[test]
fn a_push_is_built_served_changed_and_survives() {
    let mut server = Server::start();
    let user = server.admin();
    let files = app("one");
    let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let repo = user.repo("hello", &files);

    // Nothing deployed yet: the router says so.
    wait_for("the app to be routed", Duration::from_secs(10), || (server.page("hello", "/").status == 503).then_some(()));

    let pushed = repo.push().ok();
    for text in [
        "remote: -----> Compiling the page",
        "Released v1",
        "http://hello.localhost:",
        "Verifying deploy... done.",
        "compile",
        "routed",
    ] {
        assert!(pushed.err.contains(text), "the push does not say {text:?}:\n{}", pushed.err);
    }
    let page = server.page("hello", "/");
    assert_eq!((page.status, page.body.as_str()), (200, "one"));
    let kept: serde_json::Value = serde_json::from_str(&repo.flex(&["builds:info", "--json"]).ok().out).unwrap();
    for phase in ["receive", "fetch_cache", "detect", "compile", "pack", "start", "healthy", "routed"] {
        let of = |p: &&serde_json::Value| p["phase"] == phase && p["millis"].is_u64();
        assert_eq!(kept["phases"].as_array().unwrap().iter().filter(of).count(), 1, "{phase}: {kept:#}");
        assert!(pushed.err.contains(&format!("remote:        {}", phase.replace('_', " "))), "{phase}: {}", pushed.err);
    }

    // A change is served when the push returns.
    repo.commit(&[("page.txt", "two")]);
    assert!(!pushed.err.contains("with its cache") && repo.push().ok().err.contains("with its cache"));
    assert_eq!(server.page("hello", "/").body, "two");

    // A build that fails refuses the push and changes nothing.
    repo.commit(&[("bin/compile", "#!/bin/sh\necho 'no such luck'\nexit 3\n")]);
    let refused = repo.push().fails_with("pre-receive hook declined");
    assert!(refused.err.contains("no such luck") && refused.err.contains("Push rejected"), "{}", refused.err);
    has_phases(&repo, &refused.err, &["receive", "fetch cache", "detect", "compile"], &["start"]);
    assert_eq!(server.page("hello", "/").body, "two");

    // An app that never listens: the old release keeps serving, and the push shows the last lines.
    repo.commit(&[("bin/compile", COMPILE), ("server.py", "print('I give up', flush=True)\nraise SystemExit(4)\n")]);
    repo.flex(&["builds:cache:purge"]).ok();
    let refused = repo.push().fails_with("pre-receive hook declined");
    assert!(!refused.err.contains("with its cache"), "{}", refused.err);
    assert!(refused.err.contains("I give up") && refused.err.contains("keeps serving"), "{}", refused.err);
    has_phases(&repo, &refused.err, &["receive", "compile", "pack", "release", "start"], &["routed"]);
    assert_eq!(server.page("hello", "/").body, "two");
    repo.commit(&[("server.py", SERVER)]);
    repo.push().ok();

    // Config, scale, logs, one-off commands, rollback.
    repo.flex(&["config:set", "GREETING= hello"]).ok();
    wait_for("the new config", Duration::from_secs(30), || (server.page("hello", "/").body == "two hello").then_some(()));
    repo.flex(&["ps:scale", "web=2"]).ok();
    wait_for("two instances", Duration::from_secs(30), || {
        (repo.flex(&["ps"]).ok().out.matches(": up ").count() == 2).then_some(())
    });
    assert!(repo.flex(&["logs", "-p", "web"]).ok().out.contains("app[web.1]: hello from the log"));
    assert!(repo.flex(&["logs", "-s", "router"]).ok().out.contains("method=GET path=\"/\""));
    let ran = repo.flex(&["run", "--no-tty", "echo to stdout; echo to stderr >&2; exit 7"]);
    assert_eq!((ran.status, ran.out.as_str()), (7, "to stdout\n"), "{}", ran.err);
    assert!(ran.err.contains("to stderr"));
    let releases = repo.flex(&["releases"]).ok().out;
    assert!(releases.contains("Set GREETING config vars") && releases.contains("(failed)"), "{releases}");
    repo.flex(&["rollback", "v1"]).ok();
    wait_for("the first page", Duration::from_secs(30), || (server.page("hello", "/").body == "one").then_some(()));

    // kill -9: the apps run on; a new flexd adopts them and serves at once.
    wait_for("the old containers to go", Duration::from_secs(30), || (server.containers().len() == 2).then_some(()));
    let before = server.containers();
    server.end(Signal::SIGKILL);
    server.up();
    wait_for("the page after a restart", Duration::from_secs(20), || (server.page("hello", "/").status == 200).then_some(()));
    wait_for("the same containers", Duration::from_secs(10), || {
        let mut now = server.containers();
        let mut before = before.clone();
        now.sort();
        before.sort();
        (now == before).then_some(())
    });

    // Gone with everything.
    repo.flex(&["apps:destroy", "hello", "--confirm", "hello"]).ok();
    wait_for("the containers to go", Duration::from_secs(60), || server.containers().is_empty().then_some(()));
    assert_eq!(server.page("hello", "/").status, 404);
}

#[test]
fn what_is_wrong_is_said() {
    let server = Server::start();
    let user = server.admin();
    let files = app("x");
    let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let repo = user.repo("talk", &files);

    // Another branch is stored and says that it did not deploy.
    let other = repo.git(&["push", "flex", "main:topic"]).ok();
    assert!(other.err.contains("topic: stored, not deployed"), "{}", other.err);

    // An app that is not there, and one of somebody else's, look the same.
    let url = repo.git(&["remote", "get-url", "flex"]).ok().out.trim().replace("talk.git", "nope.git");
    repo.git(&["push", &url, "main"]).fails_with("flex create nope");
    let stranger = flex_tests::User::new(&server, "stranger@example.com", false);
    stranger.flex(&["apps:info", "talk"]).fails_with("Couldn't find that app.");
    assert_eq!(stranger.flex(&["ps", "-a", "talk"]).status, 2);

    // A broken Procfile names its line; a source that nothing knows names what was looked for.
    repo.commit(&[("Procfile", "web: x\n<<<<<<< HEAD\n")]);
    repo.push().fails_with("Procfile line 2");
    repo.git(&["rm", "-q", "-r", "bin", "Procfile"]).ok();
    repo.commit(&[("notes.txt", "nothing to run")]);
    repo.push().fails_with("pre-receive hook declined");

    // Names that are taken or not valid.
    user.flex(&["create", "talk"]).fails_with("already taken");
    user.flex(&["create", "No_Good"]).fails_with("lower-case letters");
    assert_eq!(user.flex(&["frobnicate"]).status, 2);
}

#[test]
fn requests_are_treated_as_the_file_and_the_owner_say() {
    let server = Server::start();
    let user = server.admin();
    let mut files = app("page");
    let json = r#"{ "routes": { "*": { "headers": { "X-From": "app.json" } }, "/secret": { "deny": ["0.0.0.0/0", "::/0"] } } }"#;
    files.push(("app.json", json.to_owned()));
    let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let repo = user.repo("treated", &files);
    repo.push().ok();
    let (path, host) = (user.home.path().join("soon.html"), "treated.localhost");
    let sees = |what: &str, fits: &dyn Fn(&flex_tests::Answer) -> bool| {
        wait_for(what, Duration::from_secs(10), || fits(&server.page("treated", "/")).then_some(()));
    };
    let page = server.page("treated", "/");
    assert!(page.status == 200 && page.head.contains("X-From: app.json"), "{}", page.head);
    assert_eq!(server.page("treated", "/secret/x").status, 403);

    repo.flex(&["routes:set", host, "--https-redirect", "--header", "X-From: hand", "--timeout", "1m"]).ok();
    sees("a redirect", &|a| {
        a.status == 301 && a.head.contains("Location: https://treated.localhost/") && a.head.contains("X-From: hand")
    });
    let shown = repo.flex(&["routes"]).ok().out;
    for text in ["https_redirect=on", "timeout_seconds=60", "x-from=hand", "treated.localhost/secret", "deny=0.0.0.0/0,::/0"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    repo.flex(&["routes:unset", host, "https-redirect"]).ok();
    sees("no redirect", &|a| a.status == 200);

    // A password for the whole app, read from stdin; no command shows it.
    let bin = flex_tests::binary("flex");
    let line = format!("echo geheim | {} routes:set -a treated --all --basic-auth ann --realm Staging", bin.display());
    let out = user.command("sh", &repo.dir, &["-c", &line]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    sees("a question", &|a| a.status == 401 && a.head.contains("Basic realm=\"Staging\""));
    let told = [&["routes", "--json"][..], &["routes:info"], &["routes:info", host, "--json"], &["events"], &["logs"]]
        .map(|c| repo.flex(c).ok().all());
    assert!(!told.concat().contains("geheim") && !told.concat().contains("pbkdf2"), "{told:?}");
    assert!(told[1].contains("users=ann=[hidden]") && told[3].contains("basic_auth"), "{told:?}");
    repo.flex(&["routes:unset", "--all", "basic-auth"]).ok();
    sees("no question", &|a| a.status == 200);

    std::fs::write(&path, "<h1>Back at noon</h1>").unwrap();
    repo.flex(&["routes:page", "maintenance", path.to_str().unwrap()]).ok();
    repo.flex(&["maintenance:on"]).ok();
    sees("the app's own page", &|a| a.status == 503 && a.body == "<h1>Back at noon</h1>");
    repo.flex(&["maintenance:off"]).ok();

    repo.flex(&["routes:set", host, "--allow", "10.0.0.0/99"]).fails_with("allow");
    repo.commit(&[("app.json", r#"{ "routes": { "/x": { "timeout_seconds": 0 } } }"#)]);
    repo.push().fails_with("routes[\"/x\"]: timeout_seconds");
    sees("what was released before", &|a| a.head.contains("X-From: hand"));
}
