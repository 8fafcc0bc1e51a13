//! What fingers type all day: texts and exit statuses as Heroku's users know them, what a terminal changes, and that values
//! stay where they belong.

use super::{SOON, Terminal, app, none_is_left, stty, world};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flex_tests::{Repo, Server, User, get, get_with, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// With each number as one 0: moments, ages, names of runs.
fn shape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c => out.push(c),
        }
    }
    out
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

/// Heroku's own texts, with `flex` for `heroku`.
#[test]
#[allow(clippy::too_many_lines, reason = "one app for all of it: each takes seconds to be there")]
fn texts_and_exit_statuses_are_herokus() {
    let (server, user) = world();
    let http = server.http.port();
    let made = user.flex(&["create", "bare"]).ok();
    assert_eq!(made.err, "Creating bare... done\n");
    let git = server.ssh.port();
    assert_eq!(made.out, format!("http://bare.localhost:{http}/ | ssh://git@localhost:{git}/bare.git\n"));
    let app = app(&user, "demo");

    let set = app.flex(&["config:set", "A=1", "B=two"]).ok();
    assert_eq!((set.err.as_str(), set.out.as_str()), ("Setting A, B and restarting demo... done, v2\n", "A: 1\nB: two\n"));
    wait_for("v2 to be alone", SOON, || {
        let dynos = json(&app.flex(&["ps", "--json"]).ok().out);
        let dynos = dynos.as_array().unwrap();
        (dynos.len() == 1 && dynos[0]["release"]["version"] == 2 && dynos[0]["state"] == "up").then_some(())
    });
    let ps = app.flex(&["ps"]).ok();
    let up = "=== web (0M): exec httpd -f -p $PORT -h www (0)\n\nweb.0: up 0/0/0 0:0:0 +0 (~ 0s ago)\n\n";
    assert_eq!((shape(&ps.out).as_str(), ps.err.as_str()), (up, ""));

    let ran = app.flex(&["run", "echo hi"]).ok();
    assert_eq!((shape(&ran.err).as_str(), ran.out.as_str()), ("Running echo hi on demo... up, run.0\n", "hi\n"));
    let ran = app.flex(&["run", "-x", "(exit 3)"]);
    let said = "Running (exit 0) on demo... up, run.0\n ›   Error: Process exited with code 0\n";
    assert_eq!((ran.status, shape(&ran.err).as_str()), (3, said));
    let ran = app.flex(&["run", "(exit 3)"]);
    assert_eq!((ran.status, shape(&ran.err).as_str()), (3, "Running (exit 0) on demo... up, run.0\n"));
    assert_eq!(app.flex(&["run", "-x", "true"]).ok().err.lines().count(), 1);
    let apart = app.flex(&["run:detached", "true"]).ok();
    assert!(shape(&apart.err).starts_with("Running true on demo... done, run.0\n"), "{}", apart.err);

    let scaled = app.flex(&["ps:scale", "web=2", "worker=1:64M", "--no-wait"]).ok();
    assert_eq!(scaled.err, "Scaling dynos... done, now running web at 2:512M, worker at 1:64M\n");
    assert_eq!(app.flex(&["ps:scale"]).ok().out, "web=2:512M worker=1:64M\n");
    // The worker ends again and again, which is nothing to wait for.
    let scaled = app.flex(&["ps:scale", "worker=0", "web=1"]).ok();
    assert!(scaled.err.starts_with("Scaling dynos... done, now running"), "{}", scaled.err);
    let waited: Vec<&str> = scaled.err.lines().skip(1).collect();
    assert!(waited.iter().all(|l| l.starts_with("Waiting... ")) && !scaled.err.contains('\x1b'), "{}", scaled.err);

    let back = app.flex(&["rollback", "v1"]).ok();
    let said = "Rolling back demo to v1... done, v3\n \
        ›   Warning: Rollback affects code and config vars; it doesn't add or remove addons.\n \
        ›   Warning: To undo, run: flex rollback v2\n";
    assert!(back.err.starts_with(said), "{}", back.err);
    let releases = app.flex(&["releases"]).ok().out;
    let lines: Vec<&str> = releases.lines().collect();
    assert_eq!(&lines[..2], ["=== demo Releases - Current: v3", ""]);
    let columns =
        |line: &str| -> Vec<String> { line.split("  ").map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect() };
    assert_eq!(columns(lines[2]), ["v", "description", "user", "created_at"], "{releases}");
    assert!(lines[4].starts_with("  v2  Set A, B config vars  admin@example.com  "), "{releases}");
    assert!(shape(&columns(lines[4])[3]).starts_with("0/0/0 0:0:0 +0 (~ 0"), "{releases}");

    // Wrong use and what is not there: 2. What could not be done: 1.
    let nope = user.flex(&["config", "-a", "nope"]);
    assert_eq!((nope.status, nope.err.as_str()), (2, " ›   Error: Couldn't find that app.\n ›   Error ID: not_found\n"));
    assert_eq!(app.flex(&["run", "--size", "huge", "true"]).fails_with("There is no size huge").status, 2);
    assert_eq!(app.flex(&["ps:scale", "web=1000000"]).status, 2);
    let unknown = user.flex(&["confg"]);
    assert!(unknown.status == 2 && unknown.err.contains("a similar subcommand exists: 'config'"), "{}", unknown.err);
    let unknown = app.flex(&["ps", "scal"]);
    assert!(unknown.status == 2 && unknown.err.contains("'scale'"), "{}", unknown.err);
    let mut away = user.command("flex", user.home.path(), &["apps"]);
    assert_eq!(away.env("FLEX_API", "http://127.0.0.1:1").output().unwrap().status.code(), Some(1));

    // One instance's lines, by Heroku's letter; none of before the app was there, all of them until now.
    let log = app.flex(&["logs", "-d", "web.1"]).ok().out;
    assert!(!log.is_empty() && log.lines().all(|l| l.contains("[web.1]: ")), "{log}");
    assert_eq!(app.flex(&["logs", "--until", "2020-01-01T00:00"]).ok().out, "");
    // One that is being replaced may say something in between.
    let later = app.flex(&["logs", "--until", "2100-01-01T00:00", "-d", "web.1"]).ok().out;
    assert!(later.starts_with(&log), "{later}\n{log}");
    for line in [&["logs", "-p", "run"][..], &["logs", "--grep", "run"], &["events", "--kind", "run"], &["ps", "-t", "run"]] {
        user.flex(&[line, &["-a", "demo"]].concat()).ok();
    }
    a_copy_is_treated_alike(&server, &app);
    what_failed_is_remembered_and_retried(&app);
}

/// What is set of an app goes with it.
fn a_copy_is_treated_alike(server: &Server, app: &Repo<'_>) {
    let flex = |line: &str| app.flex(&line.split(' ').collect::<Vec<_>>()).ok();
    fs::write(app.dir.join("sorry.html"), "<h1>sorry</h1>").unwrap();
    flex("routes:set --all --timeout 7s --max-body 3M");
    flex("routes:page maintenance sorry.html");
    flex("routes:add demo.localhost --path /api --balancing round_robin --rate 5/1m");
    flex("routes:add --tcp --process worker");
    set_password(app, "demo", "--all", "ann", "geheim");
    set_password(app, "demo", "demo.localhost/api", "bob", "secret");
    flex("logs:retention --age 3d");
    flex("router:lines --json-form --sample 0.25");
    assert!(flex("apps:export kept.json").err.contains("It holds the config vars"));
    let without = flex("apps:export bare.json --no-config");
    assert!(!without.err.contains("It holds") && !fs::read_to_string(app.dir.join("bare.json")).unwrap().contains("two"));
    flex("apps:clone copy --no-config");
    flex("apps:import kept.json again");
    for name in ["copy", "again"] {
        let is =
            |line: &str| json(&app.flex(&[&line.split(' ').collect::<Vec<_>>()[..], &["--json", "-a", name]].concat()).ok().out);
        let all = is("routes:info");
        assert_eq!((&all["http"]["timeout_seconds"], &all["http"]["max_body_bytes"]), (&7.into(), &(3 << 20).into()), "{all}");
        assert_eq!((&all["pages"][0]["name"], &all["pages"][0]["text"]), (&"maintenance".into(), &"<h1>sorry</h1>".into()));
        let routes = is("routes");
        let route = |part: &str| {
            let found = routes.as_array().unwrap().iter().find(|r| r["name"].as_str().unwrap().contains(part));
            found.unwrap_or_else(|| panic!("no {part} in {routes}")).clone()
        };
        let api = route(&format!("{name}.localhost/api"));
        assert_eq!(
            (&api["policy"]["balancing"], &api["policy"]["http"]["rate_limit"]["requests"]),
            (&"round_robin".into(), &5.into())
        );
        assert_eq!(route("tcp:")["targets"][0]["process"], "worker");
        assert_eq!(is("logs:retention")["max_age_seconds"], 3 * 86_400);
        let info = is("info");
        let info = info.get("app").unwrap_or(&info);
        assert_eq!((&info["access_lines_json"], &info["access_lines_per_mille"]), (&true.into(), &250.into()), "{info}");
    }

    // Who had to know a password has to know it there: a clone has the same ones, a file has none that anybody knows.
    let comes_in = |name: &str, path: &str, who: &str| {
        let head = format!("Authorization: Basic {}\r\n", STANDARD.encode(who));
        wait_for(&format!("{name} to be asked for a password"), SOON, || {
            let host = format!("{name}.localhost");
            let closed = get(server.http, &host, path).is_some_and(|a| a.status == 401);
            closed.then(|| get_with(server.http, &host, path, &head))?.map(|a| ![401, 429].contains(&a.status))
        })
    };
    for name in ["demo", "copy"] {
        assert!(comes_in(name, "/", "ann:geheim") && comes_in(name, "/api", "bob:secret"), "{name}");
        assert!(!comes_in(name, "/", "bob:secret") && !comes_in(name, "/", "ann:[hidden]"), "{name}");
    }
    assert!(!comes_in("again", "/", "ann:geheim") && !comes_in("again", "/api", "bob:secret"));
    assert!(!fs::read_to_string(app.dir.join("kept.json")).unwrap().contains("pbkdf2"));
    set_password(app, "again", "--all", "ann", "neu");
    wait_for("the new password to be known", SOON, || comes_in("again", "/", "ann:neu").then_some(()));
    let left = |line: &str| flex(line).err;
    let said = left("apps:import kept.json third");
    assert!(said.contains("flex routes:set --all --basic-auth ann -a third"), "{said}");
    assert!(!left("apps:clone fourth").contains("password"));
}

fn set_password(app: &Repo<'_>, name: &str, route: &str, user: &str, password: &str) {
    let mut set = app.user.command("flex", &app.dir, &["routes:set", route, "--basic-auth", user, "-a", name]);
    let mut set = set.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    set.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    assert!(set.wait().unwrap().success());
}

/// How instances ended, and a release that can be had once what it missed is there.
fn what_failed_is_remembered_and_retried(app: &Repo<'_>) {
    let past = |args: &[&str]| json(&app.flex(&[&["ps:history", "--json"], args].concat()).ok().out).as_array().unwrap().clone();
    let web = wait_for("the first instance's end to be known", SOON, || {
        past(&["web.1"]).into_iter().find(|e| e["version"] == 1 && e["stopped"] == true)
    });
    assert!(web["reason"].as_str().is_some_and(|r| !r.is_empty()), "{web}");
    let table = app.flex(&["ps:history"]).ok().out;
    assert!(table.lines().any(|l| l.starts_with("web.1 ") && l.contains(" v1 ") && l.contains(" stopped ")), "{table}");
    let lines = app.flex(&["ps:history", "web.1", "-n", "1", "--lines"]).ok().out;
    assert!(lines.starts_with("=== web.1 v"), "{lines}");
    assert_eq!(past(&["-n", "2"]).len(), 2);

    let newest = || json(&app.flex(&["releases", "--json", "-n", "1"]).ok().out)[0].clone();
    let procfile = "web: exec httpd -f -p $PORT -h www\nrelease: echo may=$MAY; test \"$MAY\" = yes\n";
    app.commit(&[("Procfile", procfile)]);
    let refused = app.push().fails_with("its release phase exited with status 1");
    assert!(refused.err.contains("may="), "{}", refused.err);
    let failed = newest();
    assert_eq!(failed["status"], "failed", "{failed}");
    let version = |release: &serde_json::Value| format!("v{}", release["version"]);
    app.flex(&["config:set", "MAY=yes"]).ok();
    let retried = app.flex(&["releases:retry", &version(&failed)]).ok();
    let made = newest();
    assert!(
        retried.err.starts_with(&format!("Retrying {} on demo... done, {}", version(&failed), version(&made))),
        "{}",
        retried.err
    );
    assert_eq!((&made["status"], &made["current"]), (&"succeeded".into(), &true.into()), "{made}");
    assert!(made["description"].as_str().unwrap().starts_with(&format!("Retry of {}: ", version(&failed))), "{made}");
    let printed = |args: &[&str]| app.flex(&[&["releases:output"], args].concat()).ok().out;
    assert!(printed(&[]).lines().any(|l| l == "may=yes"));
    assert!(printed(&[&version(&failed)]).lines().any(|l| l == "may="));
    assert_eq!(app.flex(&["releases:retry"]).fails_with("did not fail").status, 2);
}

/// What the script of an editor does until the file `go` is there, whatever keys come.
fn editor(user: &User) -> String {
    let script = user.home.path().join("editor");
    let text = "#!/bin/sh\ntrap 'echo heard' INT QUIT\necho editing\nwhile [ ! -e \"$HOME/go\" ]; do sleep 0.1; done\necho GREETING=edited > \"$1\"\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script.display().to_string()
}

/// `flex config:edit` on a terminal, with a folder of its own for temporary files.
fn editing(user: &User, folder: &Path) -> Terminal {
    let flex = flex_tests::binary("flex");
    let mut command = user.command("setsid", user.home.path(), &["--ctty", "--wait", flex.to_str().unwrap()]);
    command.env("EDITOR", editor(user)).env("TMPDIR", folder);
    let terminal = Terminal::of(command, 24, 80, &["config:edit", "-a", "keys"]);
    terminal.shows("editing");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    terminal
}

/// Process ids below one, by their names.
fn children(of: u32, name: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1).and_then(|p| p.parse::<u32>().ok());
        if parent == Some(of) && head.ends_with(name) {
            found.push(pid);
        }
    }
    found
}

#[test]
#[allow(clippy::too_many_lines, reason = "one app for all of it: each takes seconds to be there")]
fn what_a_terminal_changes() {
    let (server, user) = world();
    let app = app(&user, "keys");

    // Ctrl-C and Ctrl-\ are the editor's; nothing stays behind, also where somebody ends it.
    let folder = user.home.path().join("temporary");
    fs::create_dir(&folder).unwrap();
    app.flex(&["config:set", "GREETING=before"]).ok();
    let mut edit = editing(&user, &folder);
    edit.type_in("\x03");
    edit.shows("heard");
    edit.type_in("\x1c");
    edit.shows("heard");
    fs::write(user.home.path().join("go"), "").unwrap();
    assert_eq!(edit.ends(), 0, "{}", edit.seen());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(app.flex(&["config:get", "GREETING"]).ok().out, "edited\n");
    fs::remove_file(user.home.path().join("go")).unwrap();
    let mut edit = editing(&user, &folder);
    // Of setsid the child is flex.
    let flex = wait_for("flex", SOON, || children(edit.child.id(), "flex").first().copied().or(Some(edit.child.id() as i32)));
    kill(Pid::from_raw(flex), Signal::SIGTERM).unwrap();
    assert_eq!(edit.ends(), 1, "{}", edit.seen());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(app.flex(&["config:get", "GREETING"]).ok().out, "edited\n");

    // A command that is to have no terminal has none, on one.
    let mut none = Terminal::open(&user, 24, 80, &["run", "--no-tty", "-a", "keys", "test -t 0 || test -t 1 || echo no''ne"]);
    none.shows("none");
    assert_eq!(none.ends(), 0);

    // The wait is one line that changes; each process's lines have a colour; a list is drawn in place.
    let mut scale = Terminal::open(&user, 24, 100, &["ps:scale", "-a", "keys", "web=2"]);
    scale.shows("Scaling dynos... done, now running web at 2:512M");
    scale.shows("\x1b[2K");
    scale.shows("Waiting... done, 2 of 2 up");
    assert_eq!(scale.ends(), 0);
    let mut log = Terminal::open(&user, 24, 200, &["logs", "-a", "keys", "-s", "flex"]);
    assert_eq!(log.ends(), 0);
    let seen = log.seen();
    let colour_of = |name: &str| {
        let line =
            seen.lines().find(|l| l.contains(&format!("flex[{name}]:\x1b[0m "))).unwrap_or_else(|| panic!("{name}: {seen}"));
        line.split('m').next().unwrap().to_owned()
    };
    assert!(colour_of("web.1").starts_with("\x1b[3") && colour_of("web.1") != colour_of("web.2"), "{seen}");
    assert!(!app.flex(&["logs"]).ok().out.contains('\x1b'));
    let mut watch = Terminal::open(&user, 24, 100, &["ps", "--watch", "-a", "keys"]);
    for _ in 0..2 {
        watch.shows("\x1b[H\x1b[2J");
        watch.shows("web.2");
    }
    watch.type_in("\x03");
    assert_ne!(watch.ends(), 0);
    let mut watch = user.command("flex", &app.dir, &["ps", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let heads: Vec<String> = lines.filter(|l| l.contains("===")).take(2).collect();
    assert!(heads.iter().all(|l| l.starts_with("=== web (512M)")), "{heads:?}");
    watch.kill().unwrap();
    watch.wait().unwrap();

    // Two at one terminal see the same, and both may type.
    let started = app.flex(&["run:detached", "--tty", "--json", "bash"]).ok();
    let name = json(&started.out)["name"].as_str().unwrap().to_owned();
    let mut both = [0, 1].map(|_| Terminal::open(&user, 25, 85, &["attach", "-a", "keys", &name]));
    both.iter().for_each(|t| t.shows("It goes on when you leave"));
    both[0].type_in("N=se''ven; echo set=$N\r");
    both.iter().for_each(|t| t.shows("set=seven"));
    both[1].type_in("echo got=$N\r");
    both.iter().for_each(|t| t.shows("got=seven"));
    drop(both);

    // The same with the stock ssh: a third at that terminal, and a shell inside an instance.
    let home = user.home.path().join(".ssh");
    let (known, key) =
        (format!("UserKnownHostsFile={}/known_hosts", home.display()), home.join("id_ed25519").display().to_string());
    let port = server.ssh.port().to_string();
    let ssh = |rows: u16, words: &[&str]| {
        let mut args = vec!["--ctty", "--wait", "ssh", "-t", "-F", "none", "-o", "IdentitiesOnly=yes", "-o", &known];
        args.extend(["-o", "StrictHostKeyChecking=yes", "-i", &key, "-p", &port, "flex@localhost"]);
        args.extend(words);
        Terminal::of(user.command("setsid", user.home.path(), &args), rows, 70, &[])
    };
    let mut attached = ssh(26, &["attach", &name, "-a", "keys"]);
    attached.type_in("echo still=$N\r");
    attached.shows("still=seven");
    drop(attached);
    let mut inside = ssh(27, &["exec", "-p", "web.2", "-a", "keys", "bash"]);
    inside.type_in("echo $DYNO; stty size\r");
    inside.shows("web.2\r\n27 70");
    stty(&inside.slave, &["rows", "19", "cols", "59"]);
    inside.type_in("stty size\r");
    inside.shows("19 59");
    inside.type_in("exit 9\r");
    assert_eq!(inside.ends(), 9, "{}", inside.seen());
    assert!(app.flex(&["runs"]).ok().out.lines().any(|l| l.starts_with(&name) && l.contains("running")), "it goes on");

    // A port of something else than web.1.
    let served = app.flex(&["run:detached", "--json", "exec httpd -f -p 7000 -h www"]).ok();
    let served = json(&served.out)["name"].as_str().unwrap().to_owned();
    let mut forward = user.command("flex", &app.dir, &["port-forward", "0:7000", "-p", &served]);
    let mut forward = forward.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with(&format!("leads to port 7000 of {served}\n")), "{line}");
    let address = line.split(' ').next().unwrap().to_owned();
    wait_for("the page through the port", SOON, || {
        let mut stream = std::net::TcpStream::connect(&address).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.ends_with("page\n").then_some(())
    });
    forward.kill().unwrap();
    forward.wait().unwrap();
    for run in [&name, &served] {
        app.flex(&["ps:stop", run]).ok();
    }
    none_is_left(&server);
}

/// Looks at what each process of this machine was started with, until it is told to stop.
fn watch_processes(text: String, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut found = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                if line.contains(&text) {
                    found.push(line);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        found
    })
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &Path, text: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files_with(&path, text, found);
        } else if kind.is_file() && fs::read(&path).unwrap_or_default().windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn values_are_nobodys_business() {
    let (server, user) = world();
    let secret = format!("hunter{}", std::process::id());
    let pem = format!("-----BEGIN KEY-----\nMII{secret}+/==\n-----END KEY-----\n");
    let stop = Arc::new(AtomicBool::new(false));
    let watched = watch_processes(secret.clone(), stop.clone());
    let app = app(&user, "quiet");

    // From a file, from stdin, and for one command alone.
    fs::write(app.dir.join(".env"), format!("# all of it\nA='{secret}'\nKEY=\"{pem}\"\nTWO=\"one\\ntwo\"\n")).unwrap();
    let from_file = app.flex(&["config:set", "-f", ".env"]);
    assert_eq!((from_file.status, from_file.err.contains(&secret)), (0, false), "{}", from_file.err);
    let fed = |args: &[&str], input: &str| {
        let mut child = user.command("flex", &app.dir, args);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (status, _, err) = fed(&["config:set", "-"], &format!("B={secret}\n"));
    assert_eq!((status, err.contains(&secret)), (Some(0), false), "{err}");
    let sum = "printf %s \"$KEY\" | sha256sum; printf %s \"$TWO\" | wc -l; echo ${#ONCE}";
    let (status, out, err) = fed(&["run", "--env-file", "-", sum], &format!("ONCE={secret}\n"));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((status, lines.len()), (Some(0), 3), "{out}{err}");
    fs::write(user.home.path().join("pem"), pem.trim_end_matches('\n').to_owned() + "\n").unwrap();
    let wanted = user.run("sha256sum", user.home.path(), &["pem"]).ok().out;
    assert_eq!(
        (lines[0].split(' ').next(), lines[1], lines[2]),
        (wanted.split(' ').next(), "1", secret.len().to_string().as_str())
    );
    // The instance of before, in which it may begin, is stopped when the new one is up.
    wait_for("an instance with the variables", Duration::from_secs(30), || {
        (app.flex(&["exec", "test -n \"$A\" && test -n \"$KEY\""]).status == 0).then_some(())
    });

    // Slips of the hand.
    let mut said = String::new();
    fs::write(app.dir.join("loose"), format!("KEY=-----BEGIN KEY-----\nMII{secret}+/==\n-----END KEY-----\n")).unwrap();
    fs::write(app.dir.join("open"), format!("A=\"{secret}\n")).unwrap();
    for file in ["loose", "open"] {
        let refused = app.flex(&["config:set", "-f", file]);
        assert!(refused.status == 2 && refused.err.contains("line 1: "), "{}", refused.err);
        said.push_str(&refused.all());
    }
    stop.store(true, Ordering::SeqCst);
    assert_eq!(watched.join().unwrap(), Vec::<String>::new(), "in the arguments of a process");
    for slip in
        [vec!["config:set", "PASSWORD=two", &secret], vec!["config:set", "SECRET=", &secret], vec!["run", "-e", &secret, "ls"]]
    {
        let refused = app.flex(&slip);
        assert_eq!(refused.status, 2, "{}", refused.all());
        said.push_str(&refused.all());
    }
    let spaced = format!("{secret} x=1");
    said.push_str(&app.flex(&["config:set", &spaced]).fails_with("Argument 1 is invalid").all());
    assert!(!said.contains(&secret), "in an error: {said}");

    for args in
        [&["events", "-n", "200"][..], &["events", "-n", "200", "--json"], &["logs", "-n", "1000"], &["runs"], &["releases"]]
    {
        let out = app.flex(args).ok().all();
        assert!(!out.contains(&secret), "in {args:?}: {out}");
    }
    app.flex(&["config:unset", "B"]).ok();
    assert!(!server.log().contains(&secret), "in flexd's log");
    let mut found = Vec::new();
    files_with(server.data_dir(), &secret, &mut found);
    assert_eq!(found, Vec::<String>::new(), "on disk");
    none_is_left(&server);
}
