//! Ways in and out other than `git push`: deploys of a directory, an archive and an image; images copied out by a stock
//! client; a terminal; backup, restore and the other store engine.

use flex_tests::{Repo, Server, User, binary, flexd, wait_for};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SERVER: &str = r#"
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = open("page.txt").read().encode() + os.environ.get("TAIL", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
"#;

fn repo<'a>(user: &'a User, app: &str, page: &str) -> Repo<'a> {
    user.repo(app, &[("Procfile", "web: exec python3 server.py\n"), ("server.py", SERVER), ("page.txt", page)])
}

fn serves(server: &Server, app: &str, page: &str) {
    wait_for(&format!("{app} to say {page:?}"), Duration::from_secs(60), || {
        let answer = server.page(app, "/");
        (answer.status == 200 && answer.body == page).then_some(())
    });
}

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {said}");
    said
}

#[test]
fn a_directory_an_archive_and_an_image_are_deployed() {
    let server = Server::start();
    let user = server.admin();
    let app = repo(&user, "ways", "from a directory");

    let said = app.flex(&["deploy"]).ok();
    assert!(said.all().contains("Released v1"), "{}", said.all());
    assert_eq!(server.page("ways", "/").body, "from a directory");

    std::fs::write(app.dir.join("page.txt"), "from an archive").unwrap();
    let archive = user.home.path().join("app.tar.gz");
    run("tar", &["-czf", archive.to_str().unwrap(), "-C", app.dir.to_str().unwrap(), "Procfile", "server.py", "page.txt"]);
    app.flex(&["deploy", archive.to_str().unwrap()]).ok();
    assert_eq!(server.page("ways", "/").body, "from an archive");

    // A file that is no archive, and one that is not there: said, and nothing changes.
    let no_archive = user.home.path().join("no.tar");
    std::fs::write(&no_archive, "this is not an archive").unwrap();
    assert_ne!(app.flex(&["deploy", no_archive.to_str().unwrap()]).status, 0);
    app.flex(&["deploy", "/nowhere"]).fails_with("/nowhere");

    // Both images are copied out by the distribution protocol, with a token as the password, and only with one.
    let out = user.home.path().join("image");
    let image = format!("docker://{}/ways:v1", server.api);
    let copy = |credentials: &str| {
        Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--src-creds", credentials, &image])
            .arg(format!("dir:{}", out.display()))
            .output()
            .unwrap()
    };
    let refused = copy("x:wrong");
    assert!(!refused.status.success(), "an image without a token");
    let copied = copy(&format!("x:{}", server.token("admin@example.com", false)));
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert!(layers.len() >= 2, "the stack's layers and the slug: {manifest}");
    for layer in layers {
        let digest = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let size = std::fs::metadata(out.join(digest)).unwrap().len();
        assert_eq!(Some(size), layer["size"].as_u64());
    }

    // The engine takes what skopeo brought, and another app is deployed from that image.
    let name = format!("flex-test-{}:v1", server.cluster());
    run("skopeo", &["copy", "--quiet", &format!("dir:{}", out.display()), &format!("docker-daemon:{name}")]);
    user.flex(&["create", "from-image", "--no-remote"]).ok();
    let deployed = user.flex(&["deploy", "-a", "from-image", "--image", &name]);
    run("docker", &["rmi", &name]);
    deployed.ok();
    assert_eq!(server.page("from-image", "/").body, "from a directory");
    user.flex(&["deploy", "-a", "from-image", "--image", "not-there:v9"]).fails_with("not-there:v9");
    assert_eq!(server.page("from-image", "/").body, "from a directory");

    // Maintenance, a domain, a collaborator: seen from outside.
    app.flex(&["maintenance:on"]).ok();
    wait_for("the maintenance page", Duration::from_secs(10), || (server.page("ways", "/").status == 503).then_some(()));
    app.flex(&["maintenance:off"]).ok();
    serves(&server, "ways", "from an archive");
    app.flex(&["domains:add", "www.ways.example"]).ok();
    wait_for("the domain", Duration::from_secs(10), || {
        flex_tests::get(server.http, "www.ways.example", "/").is_some_and(|a| a.body == "from an archive").then_some(())
    });
    let friend = User::new(&server, "friend@example.com", false);
    assert_eq!(friend.flex(&["ps", "-a", "ways"]).status, 2);
    app.flex(&["access:add", "friend@example.com"]).ok();
    friend.flex(&["ps", "-a", "ways"]).ok();
    app.flex(&["access:remove", "friend@example.com"]).ok();
    assert_eq!(friend.flex(&["ps", "-a", "ways"]).status, 2);
}

#[test]
fn a_terminal_is_one() {
    let server = Server::start();
    let user = server.admin();
    let app = repo(&user, "term", "x");
    app.push().ok();
    let flex = binary("flex");
    // `script` gives its command a terminal of its own and passes the exit status on.
    let inner = format!(
        "stty rows 33 cols 77; {} run -a term 'tty >/dev/null && stty size; printf \"[%s]\" \"$0\"; exit 5'; echo status=$?",
        flex.display()
    );
    let ran = user.run("script", &app.dir, &["-q", "-e", "-c", &inner, "/dev/null"]);
    let said = ran.all();
    assert!(said.contains("33 77"), "the terminal's size: {said}");
    assert!(said.contains("status=5"), "{said}");
    // Without a terminal, bytes go through untouched and stdin ends where it ends.
    let mut child = user.command("flex", &app.dir, &["run", "--no-tty", "sha256sum"]);
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from((n ^ (n >> 8)) & 0xff).unwrap()).collect();
    let input = user.home.path().join("input");
    std::fs::write(&input, &data).unwrap();
    let out = child.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
    let expected = run("sha256sum", &[input.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&out.stdout).split(' ').next(), expected.split(' ').next());
}

/// Runs flexd to its end: whether it succeeded, and what it said.
fn command(dir: &Path, args: &[&str]) -> (bool, String) {
    let out = flexd(dir).args(args).output().unwrap();
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn a_backup_brings_everything_back_and_the_store_changes_its_engine() {
    let mut server = Server::start();
    let user = server.admin();
    let app = repo(&user, "kept", "kept");
    app.push().ok();
    app.flex(&["config:set", "TAIL= and secret"]).ok();
    serves(&server, "kept", "kept and secret");
    let backup = user.home.path().join("backup.tar.zst");
    let (ok, said) = command(server.dir.path(), &["backup", backup.to_str().unwrap()]);
    assert!(ok, "{said}");
    // What happens after the backup is gone after the restore.
    app.flex(&["config:set", "TAIL= and lost"]).ok();
    serves(&server, "kept", "kept and lost");

    let (ok, said) = command(server.dir.path(), &["restore", backup.to_str().unwrap()]);
    assert!(!ok && said.contains("running"), "a restore under a running server: {said}");
    server.end(Signal::SIGTERM);
    let torn = user.home.path().join("torn.tar.zst");
    let whole = std::fs::read(&backup).unwrap();
    std::fs::write(&torn, &whole[..whole.len() * 2 / 3]).unwrap();
    let (ok, said) = command(server.dir.path(), &["restore", torn.to_str().unwrap()]);
    assert!(!ok, "a backup that was cut off: {said}");
    let (ok, said) = command(server.dir.path(), &["restore", backup.to_str().unwrap()]);
    assert!(ok, "{said}");
    server.up();
    serves(&server, "kept", "kept and secret");
    assert_eq!(app.flex(&["config:get", "TAIL"]).ok().out.trim_end_matches('\n'), " and secret");
    // The repository came back as well.
    app.commit(&[("page.txt", "again")]);
    app.push().ok();
    serves(&server, "kept", "again and secret");

    // To the other engine and back; a setting that does not fit the files is refused.
    for engine in ["redb", "sled"] {
        server.end(Signal::SIGTERM);
        let (ok, said) = command(server.dir.path(), &["store", "convert", "--to", engine]);
        assert!(ok, "{said}");
        let other = if engine == "redb" { "sled" } else { "redb" };
        std::fs::write(server.dir.path().join("flexd.toml"), format!("store = \"{other}\"\n")).unwrap();
        let (ok, said) = command(
            server.dir.path(),
            &["--api", "127.0.0.1:0", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--ssh", "127.0.0.1:0"],
        );
        assert!(!ok && said.contains(engine), "{said}");
        std::fs::write(server.dir.path().join("flexd.toml"), format!("store = \"{engine}\"\n")).unwrap();
        server.up();
        serves(&server, "kept", "again and secret");
    }
    assert_eq!(app.flex(&["releases", "--json"]).ok().out.matches("\"version\"").count(), 3);
}

#[test]
fn two_installations_never_share_a_port() {
    let server = Server::start();
    let other = tempfile::tempdir().unwrap();
    let http = server.http.to_string();
    let any = "127.0.0.1:0";
    let (ok, said) = command(other.path(), &["--api", any, "--http", &http, "--https", any, "--ssh", any]);
    assert!(!ok && said.contains(&http) && said.contains("--http"), "{said}");
    let (ok, said) = command(other.path(), &["--api", any, "--http", any, "--https", &http, "--ssh", any]);
    assert!(!ok && said.contains(&http) && said.contains("--https"), "{said}");
}
