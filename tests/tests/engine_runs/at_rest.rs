//! What is secret is on the disk only as what it was made into: a config var encrypted, a token and a password hashed.

use super::{SOON, Terminal, app, world};
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use flex_tests::{binary, wait_for};
use memchr::memmem;
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

/// Nothing that could be anywhere by chance, of letters and digits alone: no format has to escape it.
fn secret() -> String {
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    format!("Zx{}", hex::encode(bytes))
}

/// What a text looks like to somebody who searches a disk for it.
fn spellings(secret: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut out = vec![
        ("plain".to_owned(), secret.to_vec()),
        ("backwards".to_owned(), secret.iter().rev().copied().collect()),
        ("UTF-16LE".to_owned(), secret.iter().flat_map(|b| [*b, 0]).collect()),
        ("UTF-16BE".to_owned(), secret.iter().flat_map(|b| [0, *b]).collect()),
        ("hex".to_owned(), hex::encode(secret).into_bytes()),
        ("HEX".to_owned(), hex::encode_upper(secret).into_bytes()),
        ("numbers".to_owned(), secret.iter().map(u8::to_string).collect::<Vec<_>>().join(",").into_bytes()),
    ];
    for (name, alphabet) in [("base64", &STANDARD), ("base64url", &URL_SAFE)] {
        let engine = GeneralPurpose::new(alphabet, NO_PAD);
        // In the middle of something, whose other bytes change the digits at both ends.
        for before in 0..3 {
            let text = engine.encode([&vec![0; before][..], secret].concat());
            let (first, last) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
            out.push((format!("{name} at {before}"), text.as_bytes()[first..last].to_vec()));
        }
    }
    out
}

/// Files below a folder that hold one of these, packed or not, with what it is and how it is spelled there.
fn found(dir: &Path, secrets: &[(&str, Vec<u8>)]) -> Vec<String> {
    let spelled = |(what, secret): &(&str, Vec<u8>)| {
        spellings(secret).into_iter().map(|(name, text)| (format!("{what}, {name}"), text)).collect::<Vec<_>>()
    };
    let spellings: Vec<(String, Vec<u8>)> = secrets.iter().flat_map(spelled).collect();
    let finders: Vec<_> = spellings.iter().map(|(name, text)| (name, memmem::Finder::new(text))).collect();
    let mut out = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        // Files come and go under a server that runs.
        let Ok(kind) = path.symlink_metadata() else { continue };
        if kind.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().flatten().map(|e| e.path()));
            continue;
        }
        let Ok(bytes) = (if kind.is_file() { std::fs::read(&path) } else { continue }) else { continue };
        let mut texts = vec![path.display().to_string().into_bytes()];
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            // What it can be unpacked to before it ends or breaks off.
            let _ = flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain);
            texts.push(plain);
        }
        // A log is many small frames, one behind the other, with something between them.
        for at in memmem::find_iter(&bytes, &[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut plain = Vec::new();
            let _ = zstd::Decoder::new(&bytes[at..]).and_then(|d| d.single_frame().read_to_end(&mut plain));
            texts.push(plain);
        }
        texts.push(bytes);
        for (name, finder) in &finders {
            if texts.iter().any(|t| finder.find(t).is_some()) {
                out.push(format!("{}: {name}", path.display()));
            }
        }
    }
    out
}

#[test]
fn the_search_would_find_it() {
    let dir = tempfile::tempdir().unwrap();
    let secret = secret();
    let is_found = |text: &[u8]| {
        std::fs::write(dir.path().join("file"), text).unwrap();
        assert!(found(dir.path(), &[("other", b"something else".to_vec())]).is_empty());
        !found(dir.path(), &[("it", secret.clone().into_bytes())]).is_empty()
    };
    assert!(!is_found(b"nothing"));
    for (name, text) in spellings(secret.as_bytes()) {
        assert!(is_found(&[b"before ", &text[..], b" after"].concat()), "{name}");
    }
    // However it lies in a longer text, and in what is packed.
    for more in 0..4 {
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{}{secret}, and more", "x".repeat(more)));
        assert!(is_found(text.as_bytes()), "{more}");
    }
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    zip.write_all(secret.as_bytes()).unwrap();
    assert!(is_found(&zip.finish().unwrap()));
    let frame = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    assert!(is_found(&[&b"between"[..], &frame("another"), b"them", &frame(&secret)].concat()));
}

#[test]
fn nothing_secret_is_on_the_disk_in_clear() {
    let (mut server, user) = world();
    let repo = app(&user, "rest");

    // A config var, in a release, in a build, in instances and in runs: each has it.
    let var = secret();
    repo.flex(&["config:set", &format!("AT_REST={var}")]).ok();
    let compile = "#!/bin/sh\nset -e\nmkdir -p \"$1/www\"\necho page > \"$1/www/index.html\"\necho \"it is given $(wc -c < \"$3/AT_REST\")\"\n";
    repo.commit(&[("bin/compile", compile)]);
    let given = format!("it is given {}", var.len());
    assert!(repo.push().ok().err.contains(&given));
    for command in ["run", "exec"] {
        assert_eq!(repo.flex(&[command, "echo ${#AT_REST}"]).ok().out.trim(), var.len().to_string());
    }
    repo.flex(&["run:detached", "echo the detached one has ${#AT_REST}"]).ok();
    let has = format!("the detached one has {}", var.len());
    wait_for("the detached run", SOON, || repo.flex(&["logs", "-n", "500"]).ok().out.contains(&has).then_some(()));

    // Tokens, used and refused; a password, right and wrong.
    let token = server.token("second@example.com", false);
    let made = user.flex(&["authorizations:create", "--json", "-d", "CI"]).ok().out;
    let made = serde_json::from_str::<serde_json::Value>(&made).unwrap()["access_token"]["token"].as_str().unwrap().to_owned();
    let unknown = format!("flx_{}", hex::encode(secret()));
    for (token, good) in [(&token, true), (&made, true), (&unknown, false)] {
        let out = user.command("flex", user.home.path(), &["whoami"]).env("FLEX_TOKEN", token).output().unwrap();
        assert_eq!(out.status.success(), good);
    }
    let (password, wrong) = (secret(), secret());
    let mut adding = user.command("flex", user.home.path(), &["users:add", "third@example.com"]);
    let mut adding = adding.stdin(Stdio::piped()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    adding.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    assert!(adding.wait().unwrap().success());
    for (typed, good) in [(&wrong, false), (&password, true)] {
        let flex = binary("flex");
        let mut command = user.command("setsid", user.home.path(), &["--ctty", "--wait", flex.to_str().unwrap()]);
        command.env_remove("FLEX_TOKEN");
        let mut login = Terminal::of(command, 24, 80, &["login"]);
        login.shows("E-mail: ");
        login.type_in("third@example.com\r");
        login.shows("Password: ");
        login.type_in(&format!("{typed}\r"));
        assert_eq!(login.ends() == 0, good, "{}", login.seen());
    }

    // While it runs, and when all is written.
    let secrets = [
        ("the config var", &var),
        ("a token made on the server", &token),
        ("a token made by a user", &made),
        ("an unknown token", &unknown),
        ("a password", &password),
        ("a wrong password", &wrong),
    ];
    nowhere(server.data_dir(), &secrets);
    server.end(Signal::SIGTERM);
    nowhere(server.data_dir(), &secrets);
}

#[track_caller]
fn nowhere(dir: &Path, secrets: &[(&str, &String)]) {
    let mut all: Vec<(&str, Vec<u8>)> = Vec::new();
    for (what, secret) in secrets {
        all.push((what, secret.as_bytes().to_vec()));
        // Without what all tokens begin with, and as the bytes that the rest of it stands for.
        if let Some(rest) = secret.strip_prefix("flx_") {
            all.extend([(*what, rest.as_bytes().to_vec()), (*what, hex::decode(rest).unwrap())]);
        }
    }
    assert_eq!(found(dir, &all), [""; 0]);
    // What is no secret is found: the search reaches the store.
    for known in ["AT_REST", "second@example.com"] {
        let found = found(dir, &[(known, known.as_bytes().to_vec())]);
        assert!(found.iter().any(|f| f.contains("/state/")), "{known}: {found:?}");
    }
}
