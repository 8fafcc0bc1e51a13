//! A counting app's log while flexd and dockerd are killed: what is stored, what a tail shows and what a drain gets. And that of an
//! app that prints bytes of every kind.

use crate::private::Engine;
use crate::world::{WEB, files, is_sound, push_page, world};
use flex_tests::{Setup, wait_for};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const COUNTER: &str = "counter: n=0; while :; do echo \"count $n\"; n=$((n+1)); usleep 5000; done\n";

/// The counts in a text, in their order.
fn counts(text: &str) -> Vec<u64> {
    let after = |line: &str| line.split_once("count ")?.1.trim().parse().ok();
    text.lines().filter_map(after).collect()
}

/// Neither a hole nor a double, whatever it begins with.
#[track_caller]
fn gapless(what: &str, seen: &[u64]) {
    for pair in seen.windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "{what}: {} after {}", pair[1], pair[0]);
    }
}

/// Takes syslog messages; they come once or more often.
fn receiver() -> (u16, Arc<Mutex<BTreeSet<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let into = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, into) = (stream.unwrap(), into.clone());
            std::thread::spawn(move || {
                let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
                while let Ok(n @ 1..) = stream.read(&mut chunk) {
                    bytes.extend_from_slice(&chunk[..n]);
                    while let Some(space) = bytes.iter().position(|b| *b == b' ') {
                        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
                        if bytes.len() < space + 1 + length {
                            break;
                        }
                        into.lock().unwrap().insert(bytes.drain(..space + 1 + length).collect());
                    }
                }
            });
        }
    });
    (port, seen)
}

#[test]
fn no_line_is_lost_or_doubled_by_kills() {
    let mut engine = Engine::start();
    let toml = "[logs]\ndrain_allow = [\"127.0.0.1\"]\n".to_owned();
    let (mut server, user) = world(Setup { docker: Some(engine.socket()), toml, ..Setup::default() });
    let procfile = format!("{WEB}{COUNTER}");
    let app = user.repo("counts", &[&files("one")[..], &[("Procfile", &procfile)]].concat());
    app.push().ok();
    let (port, messages) = receiver();
    let drained =
        || -> BTreeSet<u64> { messages.lock().unwrap().iter().flat_map(|m| counts(&String::from_utf8_lossy(m))).collect() };
    app.flex(&["drains:add", &format!("syslog://127.0.0.1:{port}")]).ok();
    app.flex(&["ps:scale", "counter=1"]).ok();
    let shown = server.dir.path().join("tail");
    let mut tail = user
        .command(
            flex_tests::binary("flex").to_str().unwrap(),
            &app.dir,
            &["logs", "-t", "-n", "10000", "-p", "counter", "-s", "app"],
        )
        .stdin(Stdio::null())
        .stdout(File::create(&shown).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let tailed = || counts(&std::fs::read_to_string(&shown).unwrap());
    let reaches = |what: &str, n: u64| {
        wait_for(what, Duration::from_secs(60), || tailed().last().is_some_and(|last| *last >= n).then_some(()));
    };
    reaches("a tail to begin", 50);
    // At no particular moment: of places written down, of lines on their way.
    for pause in [10, 430, 770] {
        let now = *tailed().last().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        server.end(Signal::SIGKILL);
        server.up();
        reaches("the tail to go on after flexd was killed", now + 300);
    }
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let now = *tailed().last().unwrap();
        engine.signal_dockerd(signal);
        engine.start_dockerd();
        reaches("the tail to go on after dockerd ended", now + 300);
    }
    is_sound(&server, &app, &["one"]);
    app.flex(&["ps:scale", "counter=0"]).ok();
    let last = wait_for("the counter to be silent", Duration::from_secs(30), || {
        let before = tailed().last().copied();
        std::thread::sleep(Duration::from_secs(2));
        before.filter(|n| tailed().last() == Some(n))
    });
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert_eq!(tailed()[0], 0);
    gapless("the tail", &tailed());
    let stored = app.flex(&["logs", "-n", "10000", "-p", "counter", "-s", "app"]).ok();
    gapless("the store", &counts(&stored.out));
    assert_eq!(counts(&stored.out).last(), Some(&last));
    wait_for("the drain to have all", Duration::from_secs(30), || (drained().last() == Some(&last)).then_some(()));
    assert_eq!(drained().len() as u64, last + 1, "the drain has holes");
    push_page(&server, &app, "two");
    is_sound(&server, &app, &["two"]);
}

/// Each byte between its number and a colon, and then all but the line end in one line.
const PRINTER: &str = r#"i=0
all=
while [ $i -lt 256 ]; do
    byte=$(printf '\\%03o' $i)
    printf "$i:$byte:\n"
    [ $i = 10 ] || all="$all$byte"
    i=$((i+1))
done
printf "$all\n"
exec sleep 100000
"#;

fn printed() -> Vec<Vec<u8>> {
    let each = (0..=255u8).flat_map(|b| [format!("{b}:").as_bytes(), &[b], b":\n"].concat());
    let all = (0..=255u8).filter(|b| *b != b'\n').chain([b'\n']);
    let bytes: Vec<u8> = each.chain(all).collect();
    bytes.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
}

/// What lines hold after `]: `.
fn texts(lines: &[u8]) -> Vec<Vec<u8>> {
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines).split(|b| *b == b'\n');
    lines.map(|l| l[l.windows(3).position(|w| w == b"]: ").map_or(0, |at| at + 3)..].to_vec()).collect()
}

#[test]
fn every_byte_that_an_app_prints_comes_back() {
    let toml = "[logs]\ndrain_allow = [\"127.0.0.1\"]\n".to_owned();
    let (mut server, user) = world(Setup { toml, ..Setup::default() });
    let procfile = "printer: sh printer.sh\n";
    let files =
        [("bin/detect", crate::world::DETECT), ("bin/compile", "#!/bin/sh\n"), ("Procfile", procfile), ("printer.sh", PRINTER)];
    let app = user.repo("bytes", &files);
    app.push().ok();
    let (port, messages) = receiver();
    app.flex(&["drains:add", &format!("syslog://127.0.0.1:{port}")]).ok();
    app.flex(&["ps:scale", "printer=1"]).ok();
    let args = ["logs", "-n", "1000", "-p", "printer", "-s", "app"];
    let shown = |program: &str, args: &[&str]| user.command(program, &app.dir, args).output().unwrap().stdout;
    let wanted = printed();
    let read = || texts(&shown("flex", &args));
    wait_for("all lines to be stored", Duration::from_secs(30), || (read().len() >= wanted.len()).then_some(()));
    assert_eq!(read(), wanted);
    // From the disk.
    server.end(Signal::SIGKILL);
    server.up();
    assert_eq!(read(), wanted);
    assert_eq!(texts(&shown("flex", &[&args[..], &["-E", r"(?-u)^255:\xff:$"]].concat())), [b"255:\xff:"]);
    let json = String::from_utf8(shown("flex", &[&args[..], &["--json"]].concat())).unwrap();
    let objects: Vec<serde_json::Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (object, text) in objects.iter().zip(&wanted) {
        assert_eq!(object["text"], *String::from_utf8_lossy(text));
        assert_eq!(object.get("text_base64").is_none(), std::str::from_utf8(text).is_ok(), "{object}");
    }
    assert_eq!(objects[256]["text_base64"], "MjU1Ov86");
    let home = user.home.path().join(".ssh");
    let (key, port) = (home.join("id_ed25519").display().to_string(), server.ssh.port().to_string());
    let hosts = format!("UserKnownHostsFile={}", home.join("known_hosts").display());
    let ssh = ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", &hosts, "-i", &key, "-p", &port, "flex@localhost"];
    let read = texts(&shown("ssh", &[&ssh[..], &["logs", "-a", "bytes", "-n", "1000", "-p", "printer"]].concat()));
    assert!(wanted.iter().all(|text| read.contains(text)), "ssh shows {read:?}");
    wait_for("the drain to have all", Duration::from_secs(30), || {
        let messages = messages.lock().unwrap();
        wanted.iter().all(|text| messages.iter().any(|m| m.ends_with(&[b" - - ", &text[..]].concat()))).then_some(())
    });
}
