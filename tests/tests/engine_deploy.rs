//! Ways in and out other than `git push`: deploys of a directory, an archive and an image; images copied out by a stock
//! client; a terminal; backup, restore and the other store engine. A release for a share of the requests, and what routers
//! write and bound.

use flex_tests::{Repo, Server, Setup, User, binary, flexd, get, wait_for};
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

const SERVER: &str = r#"
import http.server, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/hold"):
            time.sleep(3600)
        body = open("page.txt").read().encode() + os.environ.get("TAIL", "").encode()
        self.send_response(500 if self.path.startswith("/fail") else 200)
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

    // What was uploaded goes when it is deployed.
    let uploads = || std::fs::read_dir(server.dir.path().join("sources")).map_or(0, Iterator::count);
    wait_for("the uploads to go", Duration::from_secs(10), || (uploads() == 0).then_some(()));

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

fn docked(user: &User) -> Repo<'_> {
    let dockerfile = "FROM flex/flex-13:run\nCOPY . /app\nWORKDIR /app\nCMD [\"python3\", \"server.py\"]\n";
    user.repo("docked", &[("Dockerfile", dockerfile), ("server.py", SERVER), ("page.txt", "from a Dockerfile")])
}

/// Whether the description of an image that is kept has this text.
fn has_image_with(server: &Server, text: &str) -> bool {
    let apps = || std::fs::read_dir(server.dir.path().join("images")).into_iter().flatten().flatten().map(|app| app.path());
    let blobs = apps().flat_map(|app| std::fs::read_dir(app.join("blobs/sha256")).into_iter().flatten().flatten());
    let small = blobs.filter(|blob| blob.metadata().is_ok_and(|m| m.len() < 1 << 20)).map(|blob| blob.path());
    let mut files = small.chain(apps().map(|app| app.join("index.json")));
    files.any(|file| std::fs::read(file).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text)))
}

/// Removes the apps' images from the engine, and the containers that would hold them. Gives the images' names.
fn lose_images(server: &Server) -> Vec<String> {
    let names = format!("reference=flex-{}/*", server.cluster());
    let list = || server.docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &names]);
    let all = list();
    // One that is just being stopped holds its image a moment longer.
    wait_for("the images to go", Duration::from_secs(30), || {
        for container in server.containers() {
            server.docker(&["rm", "-f", &container]);
        }
        for name in list() {
            server.docker(&["image", "rm", &name]);
        }
        list().is_empty().then_some(())
    });
    all
}

/// Runs flexd to its end: whether it succeeded, and what it said.
fn command(dir: &Path, args: &[&str]) -> (bool, String) {
    let out = flexd(dir).args(args).output().unwrap();
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn a_backup_brings_everything_back_and_the_store_changes_its_engine() {
    let mut server = Server::start_with(Setup { toml: "[build]\ncompression = \"zstd\"\n".into(), ..Setup::default() });
    let user = server.admin();
    let app = repo(&user, "kept", "kept");
    app.push().ok();
    app.flex(&["config:set", "TAIL= and secret"]).ok();
    serves(&server, "kept", "kept and secret");
    assert!(has_image_with(&server, "tar+zstd") && !has_image_with(&server, "\"engine-"));
    // An image that no buildpack made is copied out of the engine soon after its deploy.
    let docked = docked(&user);
    docked.push().ok();
    wait_for("the image to be kept", Duration::from_secs(300), || has_image_with(&server, "\"engine-").then_some(()));
    let backup = user.home.path().join("backup.tar.zst");
    let (ok, said) = command(server.dir.path(), &["backup", backup.to_str().unwrap()]);
    assert!(ok, "{said}");
    let certificate = || std::fs::read(server.dir.path().join("tls/self-signed.crt")).unwrap();
    let shown = certificate();
    std::fs::write(server.dir.path().join("tls/self-signed.crt"), "spoilt").unwrap();
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
    assert_eq!(std::fs::read(server.dir.path().join("tls/self-signed.crt")).unwrap(), shown);
    // As on a new machine: its engine has neither containers nor images of the apps.
    let lost = lose_images(&server);
    assert!(lost.len() >= 2, "{lost:?}");
    server.up();
    serves(&server, "kept", "kept and secret");
    serves(&server, "docked", "from a Dockerfile");
    // Somebody cleans up while it runs: what is started next gets its image again.
    app.flex(&["ps:scale", "web=0"]).ok();
    wait_for("the instance to go", Duration::from_secs(60), || app.flex(&["ps"]).ok().out.is_empty().then_some(()));
    lose_images(&server);
    assert_eq!(app.flex(&["run", "--no-tty", "cat", "page.txt"]).ok().out, "kept");
    app.flex(&["ps:scale", "web=1"]).ok();
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

    // The backup of another installation does not orphan this one's containers.
    let mut other = Server::start();
    let theirs = user.home.path().join("theirs.tar.zst");
    other.end(Signal::SIGTERM);
    let (ok, said) = command(other.dir.path(), &["backup", theirs.to_str().unwrap()]);
    assert!(ok, "with flexd stopped: {said}");
    server.end(Signal::SIGTERM);
    let (ok, said) = command(server.dir.path(), &["restore", theirs.to_str().unwrap()]);
    assert!(!ok && said.contains(&server.cluster()) && said.contains("docker rm"), "{said}");
    server.up();
    serves(&server, "kept", "again and secret");
}

#[test]
fn what_is_no_installation_is_not_backed_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.tar.zst");
    for place in [dir.path().join("empty"), dir.path().join("none")] {
        if place.ends_with("empty") {
            std::fs::create_dir(&place).unwrap();
        }
        let (ok, said) = command(&place, &["backup", file.to_str().unwrap()]);
        assert!(!ok && said.contains("is no installation") && said.contains("--data-dir"), "{said}");
        assert!(std::fs::read_dir(&place).is_ok_and(|mut d| d.next().is_none()) == place.ends_with("empty"));
    }
    assert!(!file.exists());
}

#[test]
fn a_backup_of_a_server_that_receives_is_sound() {
    let server = Server::start();
    let user = server.admin();
    let app = user.repo("grows", &[("README", "grows")]);
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 0..4 {
                // What cannot be compressed; the branch is one that does not deploy.
                run("dd", &["if=/dev/urandom", &format!("of={}", app.dir.join("data").display()), "bs=1M", "count=40"]);
                app.commit(&[]);
                let pushed = app.git(&["push", "-q", "flex", &format!("HEAD:refs/heads/side-{n}")]);
                if pushed.status != 0 {
                    over.store(true, SeqCst);
                    panic!("{}", pushed.all());
                }
            }
            over.store(true, SeqCst);
        });
        let file = user.home.path().join("live.tar.zst");
        let mut last = false;
        while !last {
            last = over.load(SeqCst);
            let (ok, said) = command(server.dir.path(), &["backup", file.to_str().unwrap()]);
            assert!(ok, "{said}");
            let fresh = tempfile::tempdir().unwrap();
            let (ok, said) = command(fresh.path(), &["restore", file.to_str().unwrap()]);
            assert!(ok, "{said}");
            let repositories = fresh.path().join("repositories");
            // Before the first push there is none.
            assert!(!last || repositories.is_dir());
            for repository in std::fs::read_dir(&repositories).into_iter().flatten() {
                let path = repository.unwrap().path();
                let git = |args: &[&str]| run("git", &[&["-C", path.to_str().unwrap()], args].concat());
                git(&["fsck", "--full", "--strict"]);
                let branches = git(&["for-each-ref", "refs/heads"]).lines().count();
                assert!(!last || branches == 4, "{branches} branches");
                assert!(
                    !std::fs::read_dir(path.join("objects"))
                        .unwrap()
                        .any(|o| { o.unwrap().file_name().to_string_lossy().starts_with("tmp_") })
                );
            }
        }
    });
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

/// How long a busy machine may take to what takes a moment.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often an app answered with which page, and every answer that was none of those.
#[derive(Debug, Default)]
struct Heard {
    one: u32,
    two: u32,
    other: Vec<String>,
}

impl Heard {
    fn add(&mut self, server: std::net::SocketAddr) {
        match get(server, "share.localhost", "/") {
            Some(a) if a.status == 200 && a.body == "one" => self.one += 1,
            Some(a) if a.status == 200 && a.body == "two" => self.two += 1,
            other => self.other.push(format!("{other:?}")),
        }
    }

    fn of(server: &Server, requests: u32) -> Self {
        let mut heard = Self::default();
        (0..requests).for_each(|_| heard.add(server.http));
        heard
    }
}

/// A client that asks without a pause until it is told to stop.
struct Client(Arc<AtomicBool>, JoinHandle<Heard>);

impl Client {
    fn start(server: &Server) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), server.http);
        let stopped = stop.clone();
        let asks = std::thread::spawn(move || {
            let mut heard = Heard::default();
            while !stopped.load(SeqCst) {
                heard.add(address);
            }
            heard
        });
        Self(stop, asks)
    }

    /// No request may have failed.
    #[track_caller]
    fn stop(self) {
        self.0.store(true, SeqCst);
        let heard = self.1.join().unwrap();
        assert!(heard.other.is_empty() && heard.one + heard.two > 0, "{heard:?}");
    }
}

#[test]
fn a_canary_gets_its_share_until_it_is_promoted_or_ended() {
    let mut server = Server::start();
    let user = server.admin();
    let app = repo(&user, "share", "one");
    app.push().ok();
    app.flex(&["canary:start", "v1"]).fails_with("runs already");
    app.flex(&["canary:promote"]).fails_with("no canary");
    app.flex(&["canary:start", "--weight", "30"]).ok();
    app.flex(&["canary:promote"]).fails_with("waits for the next build");
    let client = Client::start(&server);
    app.commit(&[("page.txt", "two")]);
    let said = app.push().ok().all();
    assert!(said.contains("Released v2 as a canary: 30 % of the requests"), "{said}");
    let state = || -> serde_json::Value { serde_json::from_str(&app.flex(&["canary", "--json"]).ok().out).unwrap() };
    let serves_at = |weight: u64| {
        wait_for("the canary to serve", PATIENCE, || {
            let now = state();
            (now["state"] == "serving" && now["version"] == 2 && now["stable"] == 1 && now["weight"] == weight).then_some(())
        });
    };
    serves_at(30);
    client.stop();
    // Of 400 with a chance of 0.3 each, all but one in a billion draws lie within 60 of 120.
    let heard = Heard::of(&server, 400);
    assert!(heard.other.is_empty() && (60..=180).contains(&heard.two), "{heard:?}");

    // It is still one after a restart of the server.
    server.end(Signal::SIGTERM);
    server.up();
    serves_at(30);
    wait_for("both to answer again", PATIENCE, || {
        let heard = Heard::of(&server, 20);
        (heard.other.is_empty() && heard.one > 0 && heard.two > 0).then_some(())
    });

    // Promoted without a failed request.
    let client = Client::start(&server);
    app.flex(&["canary:promote"]).ok();
    wait_for("v2 alone", PATIENCE, || (Heard::of(&server, 40).two == 40).then_some(()));
    client.stop();
    app.flex(&["canary"]).fails_with("no canary");
    let releases = app.flex(&["releases"]).ok().out;
    assert!(releases.contains("Current: v2"), "{releases}");

    // An earlier release is tried, and given up again.
    let client = Client::start(&server);
    app.flex(&["canary:start", "v1", "--weight", "50"]).ok();
    wait_for("v1 to be heard again", PATIENCE, || (Heard::of(&server, 20).one > 0).then_some(()));
    app.flex(&["canary:abort"]).ok();
    wait_for("v2 alone again", PATIENCE, || (Heard::of(&server, 40).two == 40).then_some(()));
    client.stop();
}

#[test]
fn access_lines_have_the_wanted_form_and_one_app_leaves_room_for_others() {
    const MOST: usize = 5;
    let toml = format!("[router.limits]\nrequests_per_app = {MOST}\n\n[router.access_lines]\njson = true\n");
    let server = Server::start_with(Setup { toml, ..Setup::default() });
    let user = server.admin();
    let (app, other) = (repo(&user, "share", "one"), repo(&user, "other", "other"));
    app.push().ok();
    other.push().ok();
    // The access line of the app's request for a path, as soon as there is one.
    let find = |path: &str| {
        let said = app.flex(&["logs", "-n", "500", "--grep", path]).ok().out;
        said.lines().find(|l| l.contains("router") && l.contains(path)).map(str::to_owned)
    };
    let line = |path: &str| wait_for(&format!("the line of {path}"), PATIENCE, || find(path));
    let json = |line: &str| -> serde_json::Value { serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap() };

    // As the server is set.
    server.page("share", "/first");
    let first = json(&line("/first"));
    assert_eq!((&first["at"], &first["status"], &first["dyno"]), (&"info".into(), &200.into(), &"web.1".into()), "{first}");
    // As the app is: Heroku's form, and of requests without an error none. A change takes effect when routers have it.
    app.flex(&["router:lines", "--text", "--sample", "0"]).ok();
    let mut n = 0;
    wait_for("lines to be left out", PATIENCE, || {
        n += 1;
        server.page("share", &format!("/fine-{n}-"));
        server.page("share", &format!("/fail-{n}-"));
        let failed = line(&format!("/fail-{n}-"));
        (failed.contains("at=info method=GET") && find(&format!("/fine-{n}-")).is_none()).then_some(())
    });
    for n in 0..20 {
        server.page("share", &format!("/quiet-{n}-"));
    }
    server.page("share", "/fail-last");
    assert!(line("/fail-last").contains("status=500"));
    assert_eq!(find("/quiet-"), None);
    let shown = app.flex(&["router:lines"]).ok().out;
    assert!(shown.contains("text") && shown.contains("0.0%"), "{shown}");
    app.flex(&["router:lines", "--sample", "2"]).fails_with("is no share");

    // One app takes all that it may have, and one request more is refused; another app answers.
    let hold = |n: usize| {
        let mut stream = std::net::TcpStream::connect(server.http).unwrap();
        let request = format!("GET /hold-{n} HTTP/1.1\r\nHost: share.localhost\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        stream
    };
    let held: Vec<std::net::TcpStream> = (0..=MOST).map(hold).collect();
    let refused = line("/hold-");
    assert!(refused.contains("code=H22 desc=\"Connection limit reached\"") && refused.contains("status=503"), "{refused}");
    assert_eq!(server.page("share", "/").status, 503);
    assert_eq!((server.page("other", "/").status, server.page("other", "/").body.as_str()), (200, "other"));
    drop(held);
    serves(&server, "share", "one");
}
