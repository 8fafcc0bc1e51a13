//! One-off commands and sessions, over the real binary: in pipes, in a real pseudo-terminal (`setsid --ctty` makes it the
//! controlling one), with the stock `ssh`, and with what holds them killed.
//!
//! All apps here are of the tiny stack (see there), whose busybox has `vi`, `tar`, `nc` and `sha256sum`.

#[path = "engine_runs/at_rest.rs"]
mod at_rest;
#[path = "engine_runs/commands.rs"]
mod commands;
#[path = "engine_runs/daily.rs"]
mod daily;
#[path = "engine_faults/tiny.rs"]
mod tiny;

use flex_tests::{Repo, Server, Setup, User, binary, wait_for};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn world() -> (Server, User) {
    let stack = tiny::stacks(None);
    let server = Server::start_with(Setup { stack: Some((stack, tiny::NAME.into())), ..Setup::default() });
    let user = server.admin();
    (server, user)
}

/// An app that serves a page and has a `worker` that counts.
fn app<'a>(user: &'a User, name: &str) -> Repo<'a> {
    let compile = "#!/bin/sh\nset -e\nmkdir -p \"$1/www\"\necho page > \"$1/www/index.html\"\n";
    let procfile = "web: exec httpd -f -p $PORT -h www\nworker: echo worker says $GREETING\n";
    let repo = user.repo(name, &[("bin/detect", "#!/bin/sh\necho Runs\n"), ("bin/compile", compile), ("Procfile", procfile)]);
    repo.push().ok();
    repo
}

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    slave: String,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open(user: &User, rows: u16, cols: u16, args: &[&str]) -> Self {
        let flex = binary("flex");
        Self::of(user.command("setsid", user.home.path(), &["--ctty", "--wait", flex.to_str().unwrap()]), rows, cols, args)
    }

    fn of(mut command: Command, rows: u16, cols: u16, args: &[&str]) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&slave).unwrap().display().to_string();
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        if command.get_envs().all(|(name, _)| name != "TERM") {
            command.env("TERM", "xterm");
        }
        command.args(args).stdin(end(&slave)).stdout(end(&slave)).stderr(end(&slave));
        stty(&name, &["rows", &rows.to_string(), "cols", &cols.to_string()]);
        let child = command.spawn().unwrap();
        drop((command, slave));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, all) = (File::from(master.try_clone().unwrap()), seen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is how a terminal without a program ends.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                all.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, keys: File::from(master), slave: name, seen }
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until this was shown, and forgets all that was shown until now.
    #[track_caller]
    fn shows(&self, text: &str) {
        let began = std::time::Instant::now();
        wait_for(&format!("{text:?} on the terminal"), SOON, || {
            assert!(began.elapsed() < SOON - Duration::from_secs(1), "no {text:?} on the terminal: {:?}", self.seen());
            let mut seen = self.seen.lock().unwrap();
            let found = seen.windows(text.len()).position(|w| w == text.as_bytes());
            found.map(|at| drop(seen.drain(..at + text.len())))
        });
    }

    /// Waits until it has ended: its exit status.
    fn ends(&mut self) -> i32 {
        let status = wait_for(&format!("the program to end: {}", self.seen()), SOON, || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stty(terminal: &str, args: &[&str]) -> String {
    let out = Command::new("stty").args(["-F", terminal]).args(args).output().unwrap();
    assert!(out.status.success(), "stty {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Containers of one-off commands.
fn one_offs(server: &Server) -> Vec<String> {
    server.containers().into_iter().filter(|c| c.contains("-run.")).collect()
}

#[track_caller]
fn none_is_left(server: &Server) {
    wait_for("no container of a one-off command to be left", SOON, || one_offs(server).is_empty().then_some(()));
}

#[test]
#[allow(clippy::too_many_lines, reason = "one app for all of it: each takes seconds to be there")]
fn one_off_commands_in_pipes() {
    let (server, user) = world();
    let app = app(&user, "pipes");

    // Streams apart, exit statuses and signals, what is set for one run alone.
    let ran = app.flex(&["run", "--no-tty", "-e", "A=two words", "echo out $A; echo err >&2; exit 7"]);
    assert_eq!((ran.status, ran.out.as_str()), (7, "out two words\n"), "{}", ran.err);
    assert!(ran.err.contains("err\n"), "{}", ran.err);
    assert_eq!(app.flex(&["run", "kill -KILL $$"]).status, 137);
    std::fs::write(app.dir.join("vars"), "B='from a file'\n# no\nA=first\n").unwrap();
    let ran = app.flex(&["run", "--env-file", "vars", "-e", "A=second", "echo $A $B"]).ok();
    assert_eq!(ran.out, "second from a file\n");
    assert_eq!(app.flex(&["run", "--", "echo", "-a", "x"]).ok().out, "-a x\n");
    assert_eq!(user.flex(&["run", "echo", "hi", "-a", "pipes"]).ok().out, "hi\n");
    app.flex(&["config:set", "GREETING=hello"]).ok();
    assert_eq!(app.flex(&["run", "--type", "worker"]).ok().out, "worker says hello\n");
    app.flex(&["run", "--type", "nope"]).fails_with("There is no process type nope");
    let ran = app.flex(&[
        "run",
        "--size",
        "64M",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null",
    ]);
    assert_eq!(ran.out.trim(), (64 << 20).to_string());
    assert_eq!(app.flex(&["run", "--size", "32M", r"x=$(head -c 900000000 /dev/zero | tr '\0' x)"]).status, 137);
    wait_for("what it needed to be said", SOON, || {
        let log = app.flex(&["logs", "--grep", "Error R15"]).ok().out;
        log.contains("killed at its memory limit of 32M. More: flex run --size 64M").then_some(())
    });
    let ran = app.flex(&["run", "--timeout", "1s", "trap 'exit 9' TERM; while :; do sleep 0.1; done"]);
    assert_eq!(ran.status, 9, "it is sent SIGTERM at its limit: {}", ran.all());

    // Much of it, there, back, and both at once: what comes out is what goes in, and nobody's memory grows by a part of it
    // that would tell of one who keeps it. The agent is within flexd.
    let mib: usize = std::env::var("FLEX_TEST_PIPE_MIB").map_or(256, |n| n.parse().unwrap());
    let bound = 64;
    let before = server.begin_peak_mib();
    let grows_little = || {
        let grown = server.peak_memory_mib() - before;
        assert!(grown < bound, "flexd took {grown} MiB more");
    };
    let data: Vec<u8> = (0..64_u32 << 20).map(|n| (n ^ (n >> 8) ^ (n >> 17)).to_le_bytes()[0]).collect();
    let input = user.home.path().join("input");
    let mut whole = File::create(&input).unwrap();
    for n in 0..mib {
        // No two pieces alike.
        whole.write_all(&n.to_le_bytes()).unwrap();
        let at = (n * 97 % 63) << 20;
        whole.write_all(&data[at + 8..at + (1 << 20)]).unwrap();
    }
    drop(whole);
    let sum = |file: &std::path::Path| user.run("sha256sum", &app.dir, &["--", file.to_str().unwrap()]).ok().out[..64].to_owned();
    let (sent, output) = (sum(&input), user.home.path().join("output"));
    let through = |line: &str| {
        let mut child = user.command("flex", &app.dir, &["run", line]);
        let child = child.stdin(File::open(&input).unwrap()).stdout(File::create(&output).unwrap()).spawn();
        let mut child = child.unwrap();
        wait_for("the command to end", SOON * 20, || {
            let peak = peak_mib(child.id());
            assert!(peak < bound, "flex took {peak} MiB");
            child.try_wait().unwrap().map(|status| assert!(status.success(), "{line}: {status}"))
        });
    };
    through("cat > /tmp/x; cat /tmp/x");
    assert_eq!(sum(&output), sent, "other bytes came back");
    through("cat");
    assert_eq!(sum(&output), sent, "other bytes came back while more were sent");
    grows_little();

    // A command that reads nothing holds its client back, and nobody's memory grows.
    let size = data.len() * 4;
    let mut stuck = user.command("flex", &app.dir, &["run", "sleep 3; wc -c"]);
    let mut stuck = stuck.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = stuck.stdin.take().unwrap();
    std::thread::spawn(move || (0..4).try_for_each(|_| pipe.write_all(&data)));
    let peak = wait_for("the command to have counted", SOON * 2, || {
        let peak = peak_mib(stuck.id());
        stuck.try_wait().unwrap().map(|_| peak).or_else(|| {
            assert!(peak < bound, "flex took {peak} MiB");
            None
        })
    });
    let mut counted = String::new();
    stuck.stdout.take().unwrap().read_to_string(&mut counted).unwrap();
    assert_eq!(counted.trim(), size.to_string(), "peak {peak}");
    grows_little();

    // A client that vanishes: SIGHUP, then it is stopped.
    let mut gone =
        user.command("flex", &app.dir, &["run", "trap 'echo hung up; exit 0' HUP; echo ready; while :; do sleep 0.1; done"]);
    let mut gone = gone.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0; 5];
    gone.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    gone.kill().unwrap();
    gone.wait().unwrap();
    none_is_left(&server);
    // One that is deaf to it is sent SIGTERM then, and in this order.
    let line = "h=0; trap 'h=4' HUP; trap 'exit $((h + 5))' TERM; echo ready; while :; do sleep 0.1; done";
    let mut deaf = user.command("flex", &app.dir, &["run", line]);
    let mut deaf = deaf.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    deaf.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    deaf.kill().unwrap();
    deaf.wait().unwrap();
    none_is_left(&server);

    // How each ended tells which signals reached it.
    for (begins, status) in [("trap 'echo hung up", 0), ("h=0; trap", 9)] {
        wait_for(&format!("{begins} to end with {status}"), SOON, || {
            let runs = app.flex(&["runs", "-n", "50", "--json"]).ok().out;
            let runs: serde_json::Value = serde_json::from_str(&runs).unwrap();
            let run = runs.as_array().unwrap().iter().find(|r| r["command"].as_str().unwrap().starts_with(begins))?.clone();
            if !run["ended_at"].is_null() {
                assert_eq!(run["status"], status, "{run}");
            }
            (!run["ended_at"].is_null()).then_some(())
        });
    }
    assert_eq!(app.flex(&["logs", "-n", "500", "--grep", "Sending SIGHUP"]).ok().out.lines().count(), 2);

    // All of it is history.
    let runs = app.flex(&["runs", "-n", "50"]).ok().out;
    assert!(runs.lines().any(|l| l.contains(" 7 ") && l.contains("echo out $A")), "{runs}");
    let log = app.flex(&["logs", "-n", "500"]).ok().out;
    assert!(log.contains("flex[run.") && log.contains("Process exited with status 7"), "{log}");
    assert!(!log.contains("two words"), "a run's own variables are nobody's business: {log}");
    let events = app.flex(&["events", "-n", "200"]).ok().out;
    assert!(events.contains("exited with status 7 after"), "{events}");
    println!("flexd's peak: {} MiB", server.peak_memory_mib());
    assert!(server.peak_memory_mib() < 300, "{} MiB", server.peak_memory_mib());
}

fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0");
    peak.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn a_terminal_is_the_programs_own() {
    let (server, user) = world();
    let _app = app(&user, "term");

    let mut shell = Terminal::open(&user, 33, 77, &["run", "-a", "term", "bash"]);
    let before = stty(&shell.slave, &["-g"]);
    shell.type_in("stty size; tty\r");
    shell.shows("33 77\r\n/dev/");
    // A program in the foreground hears of a new size while it runs.
    shell.type_in("trap 'echo size: $(stty size)' WINCH; echo re''ady\r");
    shell.shows("ready\r\n");
    // One change at a time: bash may tell of the second of two at once only after the next key.
    stty(&shell.slave, &["rows", "20"]);
    shell.shows("size: 20 77");
    stty(&shell.slave, &["cols", "50"]);
    shell.shows("size: 20 50");
    // Ctrl-C ends the command, Ctrl-Z stops it, Ctrl-P is history, Ctrl-D ends the shell.
    shell.type_in("sleep 1000\r");
    shell.shows("sleep 1000\r\n");
    shell.type_in("\x03");
    // What is typed before it is taken would be thrown away with the line, as it is here.
    shell.shows("^C\r\n");
    shell.type_in("echo status=$?\r");
    shell.shows("status=130");
    shell.type_in("sleep 1000\r");
    shell.shows("sleep 1000\r\n");
    shell.type_in("\x1a");
    shell.shows("Stopped");
    shell.type_in("kill %1; echo once''more\r");
    shell.shows("oncemore");
    shell.type_in("\x10\r");
    shell.shows("oncemore");
    // A full-screen program, resized and left.
    shell.type_in("vi /tmp/x\r");
    shell.shows("/tmp/x");
    stty(&shell.slave, &["rows", "30", "cols", "90"]);
    shell.type_in("ihello from vi");
    shell.shows("hello from vi");
    // An escape that more follows at once is another key.
    shell.type_in("\x1b");
    shell.shows("- /tmp/x");
    shell.type_in(":wq\r");
    shell.type_in("cat /tmp/x; stty size\r");
    shell.shows("hello from vi");
    shell.shows("30 90");
    shell.type_in("exit 5\r");
    assert_eq!(shell.ends(), 5, "{}", shell.seen());
    assert_eq!(stty(&shell.slave, &["-g"]), before, "the terminal is as it was");
    none_is_left(&server);

    // Its terminal is closed under it.
    let mut shell = Terminal::open(&user, 24, 80, &["run", "-a", "term", "bash"]);
    shell.type_in("echo re''ady\r");
    shell.shows("ready");
    drop(shell);
    none_is_left(&server);
}

#[test]
fn commands_and_files_inside_an_instance() {
    let (server, user) = world();
    let app = app(&user, "inside");

    let ran = app.flex(&["exec", "echo $DYNO $PORT; id -u; exit 4"]);
    assert_eq!((ran.status, ran.out.lines().next()), (4, Some("web.1 5000")), "{}", ran.all());
    assert_eq!(app.flex(&["exec", "--", "echo", "a  b"]).ok().out, "a  b\n");
    // No more rights than the app has.
    let caps = app.flex(&["exec", "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status"]).ok().out;
    assert!(caps.contains("CapEff:\t0000000000000000") && caps.contains("NoNewPrivs:\t1"), "{caps}");
    assert_eq!(app.flex(&["exec", "-p", "web.9", "true"]).fails_with("There is no web.9").status, 2);
    let mut shell = Terminal::open(&user, 31, 71, &["exec", "-a", "inside"]);
    shell.type_in("stty size; echo $DYNO\r");
    shell.shows("31 71\r\nweb.1");
    shell.type_in("exit 3\r");
    assert_eq!(shell.ends(), 3);
    // Gone with its client, and the instance runs on.
    let mut left = user.command("flex", &app.dir, &["exec", "exec sleep 98765"]).stdout(Stdio::null()).spawn().unwrap();
    let sleeps = |n: usize| {
        let found = app.flex(&["exec", "--", "ps"]).ok();
        (found.out.lines().filter(|l| l.ends_with("sleep 98765")).count() == n).then_some(())
    };
    wait_for("it to run", SOON, || sleeps(1));
    left.kill().unwrap();
    left.wait().unwrap();
    wait_for("it to be ended", SOON, || sleeps(0));

    // Files, both ways, under another name and into a directory.
    let tree = app.dir.join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/big"), vec![7_u8; 3 << 20]).unwrap();
    std::fs::write(tree.join("small"), "small").unwrap();
    app.flex(&["cp", "tree", "web.1:/tmp/"]).ok();
    app.flex(&["cp", "tree/small", "web.1:/tmp/renamed"]).ok();
    assert_eq!(
        app.flex(&["exec", "cat /tmp/tree/small /tmp/renamed; wc -c < /tmp/tree/sub/big"]).ok().out,
        "smallsmall3145728\n"
    );
    app.flex(&["cp", "web.1:/tmp/tree", "back"]).ok();
    assert_eq!(std::fs::read(app.dir.join("back/sub/big")).unwrap(), vec![7_u8; 3 << 20]);
    app.flex(&["cp", ":/tmp/renamed", "."]).ok();
    assert_eq!(std::fs::read_to_string(app.dir.join("renamed")).unwrap(), "small");
    app.flex(&["cp", "web.1:/no/such", "."]).fails_with("No such file");

    // A port, by many connections at once.
    let mut forward = user.command("flex", &app.dir, &["port-forward", "0:5000"]);
    let mut forward = forward.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(forward.stdout.as_mut().unwrap()), &mut line).unwrap();
    let address = line.split(' ').next().unwrap().to_owned();
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                // Half closed: the answer comes all the same.
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        })
        .collect();
    for answer in asking {
        let answer = answer.join().unwrap();
        assert!(answer.contains("200 OK") && answer.ends_with("page\n"), "{answer}");
    }
    kill(Pid::from_raw(i32::try_from(forward.id()).unwrap()), Signal::SIGINT).unwrap();
    assert!(forward.wait().unwrap().success());
    let _ = server;
}

#[test]
fn detached_runs_go_on_and_are_attached_to() {
    let (mut server, user) = world();
    let app = app(&user, "apart");

    let started = app.flex(&["run:detached", "--json", "for i in $(seq 300); do echo tick $i; sleep 0.1; done; exit 3"]).ok();
    let name = serde_json::from_str::<serde_json::Value>(&started.out).unwrap()["name"].as_str().unwrap().to_owned();
    wait_for("its output in the log", SOON, || {
        app.flex(&["logs", "-p", &name]).ok().out.contains(&format!("app[{name}]: tick 3")).then_some(())
    });
    assert!(app.flex(&["ps"]).ok().out.contains("=== run: one-off processes (1)"));

    // Two look on at once; what was said before comes first; leaving ends nothing.
    let looking: Vec<_> = (0..2).map(|_| Terminal::open(&user, 24, 80, &["attach", "-a", "apart", &name])).collect();
    for terminal in &looking {
        terminal.shows("Looking on at");
        terminal.shows("tick 1\r\n");
        terminal.shows("tick 20\r\n");
    }
    for mut terminal in looking {
        terminal.type_in("\x03");
        assert_eq!(terminal.ends(), 0);
    }

    // The server dies; the run does not, and can be attached to again. No line is lost.
    server.end(Signal::SIGKILL);
    server.up();
    let again = Terminal::open(&user, 24, 80, &["attach", "-a", "apart", &name]);
    again.shows("tick 60\r\n");
    drop(again);
    app.flex(&["ps:stop", &name]).ok();
    wait_for("its end to be known", SOON, || {
        let runs = app.flex(&["runs"]).ok().out;
        runs.lines().any(|l| l.starts_with(&name) && !l.contains("running")).then_some(())
    });
    let log = app.flex(&["logs", "-n", "1000", "-p", &name]).ok().out;
    let ticks: Vec<u32> = log.lines().filter_map(|l| l.split("]: tick ").nth(1)?.trim().parse().ok()).collect();
    let last = *ticks.last().unwrap();
    assert!(last >= 60 && (1..=last).all(|n| ticks.contains(&n)), "{log}");
    none_is_left(&server);

    // With a terminal there is somebody to talk to, again and again.
    let started = app.flex(&["run:detached", "--tty", "--json", "bash"]).ok();
    let name = serde_json::from_str::<serde_json::Value>(&started.out).unwrap()["name"].as_str().unwrap().to_owned();
    for n in 1..=2 {
        let mut terminal = Terminal::open(&user, 25, 85, &["attach", "-a", "apart", &name]);
        terminal.shows("It goes on when you leave: Enter ~.");
        terminal.type_in("N=$((N + 1)); echo n=$N; stty size\r");
        terminal.shows(&format!("n={n}\r\n25 85"));
        terminal.type_in("\r~.");
        assert_eq!(terminal.ends(), 0, "{}", terminal.seen());
    }

    // An attached one is lost with the server, and nothing of it is left.
    let mut lost = user.command("flex", &app.dir, &["run", "exec sleep 1000"]).stderr(Stdio::null()).spawn().unwrap();
    wait_for("it to run", SOON, || (one_offs(&server).len() == 2).then_some(()));
    server.end(Signal::SIGKILL);
    server.up();
    assert_eq!(lost.wait().unwrap().code(), Some(1));
    wait_for("only the detached one to be left", SOON, || (one_offs(&server).len() == 1).then_some(()));
    app.flex(&["ps:stop", &name]).ok();
    none_is_left(&server);
    assert!(app.flex(&["runs"]).ok().out.contains("the server was restarted"));
}

#[test]
fn stock_ssh_does_the_same() {
    let (server, user) = world();
    let app = app(&user, "plain");
    let home = user.home.path().join(".ssh");
    let known = format!("UserKnownHostsFile={}/known_hosts", home.display());
    let (key, port) = (home.join("id_ed25519").display().to_string(), server.ssh.port().to_string());
    let base = [
        "-F",
        "none",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        &known,
        "-i",
        &key,
        "-p",
        &port,
        "flex@localhost",
    ];
    let ssh = |args: &[&str]| user.run("ssh", &app.dir, &[&base, args].concat());

    let ran = ssh(&["run", "-a", "plain", "'echo out; echo err >&2; exit 6'"]);
    assert_eq!((ran.status, ran.out.as_str()), (6, "out\n"), "{}", ran.all());
    assert!(ran.err.contains("err\n"), "{}", ran.err);
    // Words are words: nothing of them is a shell's, here or there.
    assert_eq!(ssh(&["run", "echo", "'$HOME;id'", "-a", "plain"]).ok().out, "$HOME;id\n");
    assert_eq!(ssh(&["exec", "-a", "plain", "echo", "x"]).ok().out, "x\n");
    assert!(ssh(&["ps", "-a", "plain"]).ok().out.starts_with("web.1: up "));
    assert!(
        ssh(&["logs", "-a", "plain"]).ok().out.contains("Released") || ssh(&["logs", "-a", "plain"]).ok().out.contains("web.1")
    );
    ssh(&["run", "id", "-a", "nobodys"]).fails_with("Couldn't find that app.");
    assert_eq!(ssh(&["sh", "-c", "id"]).status, 127);
    let stranger = User::new(&server, "stranger@example.com", false);
    std::fs::copy(home.join("known_hosts"), stranger.home.path().join(".ssh/known_hosts")).unwrap();
    let other = stranger.home.path().join(".ssh/id_ed25519").display().to_string();
    let as_stranger: Vec<&str> = base.iter().map(|a| if *a == key { other.as_str() } else { a }).collect();
    user.run("ssh", &app.dir, &[&as_stranger[..], &["run", "id", "-a", "plain"]].concat()).fails_with("Couldn't find that app.");
    // Both ways, and the end of the input.
    let mut child = user.command("ssh", &app.dir, &[&base[..], &["run", "-a", "plain", "wc", "-c"]].concat());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&vec![1; 5 << 20]).unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim(), (5 << 20).to_string());

    // A terminal, resized.
    let mut args = vec!["--ctty", "--wait", "ssh", "-t"];
    args.extend(base);
    args.extend(["run", "bash", "-a", "plain"]);
    let mut shell = Terminal::of(user.command("setsid", user.home.path(), &args), 32, 72, &[]);
    shell.type_in("stty size; echo $TERM\r");
    shell.shows("32 72\r\nxterm");
    stty(&shell.slave, &["rows", "21", "cols", "51"]);
    shell.type_in("stty size\r");
    shell.shows("21 51");
    shell.type_in("exit 8\r");
    assert_eq!(shell.ends(), 8, "{}", shell.seen());
    none_is_left(&server);

    // A client that is killed takes its run with it.
    let lost = user.command("ssh", &app.dir, &[&base[..], &["run", "-a", "plain", "sleep", "1000"]].concat()).spawn();
    let mut lost = lost.unwrap();
    wait_for("it to run", SOON, || (one_offs(&server).len() == 1).then_some(()));
    lost.kill().unwrap();
    lost.wait().unwrap();
    none_is_left(&server);
}

/// The server dies under a command inside an instance; somebody looks on at much output and does not read it.
#[test]
fn nothing_is_left_behind_and_nobody_is_held_back() {
    let (mut server, user) = world();
    let app = app(&user, "left");
    let processes = |text: &str| app.flex(&["exec", "--", "ps"]).ok().out.lines().filter(|l| l.contains(text)).count();

    // What somebody runs by hand is none of Flex's business.
    let instance = server.containers().into_iter().find(|c| c.contains("-web.1-")).unwrap();
    server.docker(&["exec", "-d", &instance, "sleep", "98762"]);
    let line = "trap '' HUP; sleep 98761; true";
    let mut left = user.command("flex", &app.dir, &["exec", line]).stderr(Stdio::null()).spawn().unwrap();
    wait_for("it to run", SOON, || (processes("sleep 98761") > 0).then_some(()));
    server.end(Signal::SIGKILL);
    server.up();
    assert_ne!(left.wait().unwrap().code(), Some(0));
    wait_for("it to be ended", SOON, || (processes("sleep 98761") == 0).then_some(()));
    assert_eq!(processes("sleep 98762"), 1);
    assert!(server.containers().contains(&instance), "the instance itself goes on");

    // What is not read in time is left out and counted; the command is not held back, and nobody's memory grows.
    let size = 64_usize << 20;
    let script = format!(
        "echo ready; while [ ! -e /tmp/go ]; do sleep 0.1; done; head -c {size} /dev/zero | tr '\\0' x; touch /tmp/done; while :; do echo; sleep 0.1; done"
    );
    let started = app.flex(&["run:detached", "--json", &script]).ok();
    let name = serde_json::from_str::<serde_json::Value>(&started.out).unwrap()["name"].as_str().unwrap().to_owned();
    let mut slow = user.command("flex", &app.dir, &["attach", &name]);
    let mut slow = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = slow.stdout.take().unwrap();
    out.read_exact(&mut [0; 6]).unwrap();
    let (mut err, told) = (slow.stderr.take().unwrap(), Arc::new(Mutex::new(String::new())));
    let into = told.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = err.read(&mut buffer) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    app.flex(&["exec", "-p", &name, "--", "touch", "/tmp/go"]).ok();
    let is_done = || app.flex(&["exec", "-p", &name, "--", "test", "-e", "/tmp/done"]).status == 0;
    wait_for("the command to have printed it all", SOON * 2, || is_done().then_some(()));
    let seen = Arc::new(Mutex::new(0));
    let count = seen.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            *count.lock().unwrap() += buffer[..n].iter().filter(|b| **b == b'x').count();
        }
    });
    // It may be left behind more than once.
    let told_of = || -> usize {
        let told = told.lock().unwrap();
        let notes = told.split(" bytes were left out: this connection is too slow]");
        notes.filter_map(|before| before.rsplit('[').next()?.parse::<usize>().ok()).sum()
    };
    wait_for("it to be told what it missed", SOON, || (told_of() > 0).then_some(()));
    let omitted = wait_for("the rest", SOON, || Some(told_of()).filter(|omitted| *seen.lock().unwrap() + omitted >= size));
    // An empty line now and then was among what was left out.
    assert!(*seen.lock().unwrap() + omitted < size + 10_000, "{} and {omitted}", seen.lock().unwrap());
    slow.kill().unwrap();
    slow.wait().unwrap();
    app.flex(&["ps:stop", &name]).ok();
    none_is_left(&server);
    assert!(server.peak_memory_mib() < 300, "{} MiB", server.peak_memory_mib());
}

/// docs/daily-use.md, word for word: each `sh` block under "One-off commands", in one shell that stops at the first failure.
#[test]
fn the_page_is_true() {
    let page = std::fs::read_to_string(flex_tests::root().join("docs/daily-use.md")).unwrap();
    let section = page.split("\n## ").find(|s| s.starts_with("One-off commands")).expect("its section");
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3);
    let (_server, user) = world();
    let app = app(&user, "page");
    let bin = binary("flex");
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let out = user
        .command("bash", &app.dir, &["-e", "-o", "pipefail", "-x", "-c", &blocks.concat()])
        .env("PATH", path)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    for text in ["hello from run.", "\n3\n", "DEBUG is 1", "=== run: one-off processes", "\nweb.1\n"] {
        assert!(said.contains(text), "{text:?} in {said}");
    }
}
