//! README's tour and the pages of daily use and of logs, word for word: each line of their `sh` blocks, in one shell that stops at the first
//! failure.

use flex_tests::{Server, User, binary, root, wait_for};
use std::path::Path;
use std::time::Duration;

#[test]
fn the_tour_is_true() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = readme.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).find(|b| b.contains("git init"));
    let block = block.expect("README has a tour that begins with git init");
    let server = Server::start();
    let user = server.admin();
    // An installation of its own has ports of its own: the only thing that differs from a reader's machine.
    let tour = block.replace(":8080", &format!(":{}", server.http.port()));
    let said = run(&user, user.home.path(), &tour);
    assert!(said.contains("Hello from web.1"), "{said}");
    daily_use(&server, &user);
    logs(&server, &user);
}

/// What a shell says that runs these lines and stops at the first failure, which there must not be.
fn run(user: &User, dir: &Path, lines: &str) -> String {
    let bin = binary("flex");
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let out = user.command("sh", dir, &["-e", "-x", "-c", lines]).env("PATH", path).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    said
}

/// The app that the tour made and, at its end, destroyed.
const AGAIN: &str = "flex create my-app\ngit push flex main\nflex ps:scale web=2\n";

/// Every block of the page, in the repository that the tour left.
fn daily_use(server: &Server, user: &User) {
    let page = std::fs::read_to_string(root().join("docs/daily-use.md")).unwrap();
    // One-off commands have a test of their own, with an app that they suit.
    let page = page.split("## One-off commands").next().unwrap();
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 8, "the page has lost its blocks");
    let all = format!("{AGAIN}{}", blocks.concat()).replace(":8080", &format!(":{}", server.http.port()));
    let said = run(user, &user.home.path().join("my-app"), &all);
    for text in [
        "=== web (256M)",
        "web.9 is not wanted",
        "now web at 3:256M",
        "GET /",
        "two words",
        "+ config COLOUR: ********",
        "Rolling back my-app to v1... done",
        "admin@example.com owner",
        "app.lock",
        "It will run web=3:256M then.",
        "/my-app-staging.git\nweb=3:256M\n",
        "127.0.0.1",
        "Set how many instances",
    ] {
        assert!(said.contains(text), "nothing says {text:?}:\n{said}");
    }
    assert!(!said.contains("COLOUR: green"), "a masked value is shown:\n{said}");
}

/// Every block of the page, for the app as the page of daily use left it.
fn logs(server: &Server, user: &User) {
    let page = std::fs::read_to_string(root().join("docs/logs.md")).unwrap();
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 2, "the page has lost its blocks");
    let dir = user.home.path().join("my-app");
    assert_eq!(server.page("my-app", "/").status, 200);
    wait_for("the request to be in the log", Duration::from_secs(30), || {
        run(user, &dir, "flex logs -s router").contains("method=GET").then_some(())
    });
    let said = run(user, &dir, &blocks.concat());
    for text in [
        "app[web.1]: ",
        "flex[router]: at=info method=GET",
        "\"source\":",
        "512 MiB",
        "30 days",
        "syslog+tls://logs.example.com:6514",
    ] {
        assert!(said.contains(text), "nothing says {text:?}:\n{said}");
    }
}
