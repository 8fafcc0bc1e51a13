//! Signing in, names, ends of apps, file systems: each command as a script runs it and, where that differs, as a person at a
//! terminal sees it.

use super::{SOON, Terminal, app, world};
use flex_tests::{Server, User, binary, get, wait_for};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

/// `flex` on a terminal, as nobody or as the user.
fn terminal(user: &User, signed_in: bool, env: &[(&str, &str)], args: &[&str]) -> Terminal {
    let flex = binary("flex");
    let mut command = user.command("setsid", user.home.path(), &["--ctty", "--wait", flex.to_str().unwrap()]);
    if !signed_in {
        command.env_remove("FLEX_TOKEN");
    }
    command.envs(env.iter().copied());
    // Wide enough that no line is cut.
    Terminal::of(command, 24, 120, args)
}

/// Everything that it showed until it ended well; `last` is in the last of it.
fn all(mut terminal: Terminal, last: &str) -> String {
    wait_for(&format!("{last:?} on the terminal"), SOON, || terminal.seen().contains(last).then_some(()));
    assert_eq!(terminal.ends(), 0, "{}", terminal.seen());
    terminal.seen()
}

#[test]
fn people_sign_in_and_apps_change_names_and_end() {
    let (server, user) = world();
    let app = app(&user, "before");

    // Who one is, by a token.
    assert_eq!(user.flex(&["whoami"]).ok().out, "admin@example.com\n");
    assert_eq!(user.flex(&["auth:whoami"]).ok().out, "admin@example.com\n");
    assert!(user.flex(&["whoami", "--json"]).ok().out.contains("\"email\": \"admin@example.com\""));

    // And by a password, which is asked for on a terminal alone, and not shown.
    let mut adding = user.command("flex", user.home.path(), &["users:add", "you@example.com"]);
    let mut adding = adding.stdin(Stdio::piped()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    adding.stdin.take().unwrap().write_all(b"correct horse\n").unwrap();
    assert!(adding.wait().unwrap().success());
    let nobody = |args: &[&str]| {
        let out = user.command("flex", user.home.path(), args).env_remove("FLEX_TOKEN").output().unwrap();
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let (good, said) = nobody(&["whoami"]);
    assert!(!good && said.contains("flex login"), "{said}");
    let (good, said) = nobody(&["login"]);
    assert!(!good && said.contains("There is no terminal to ask for a password on."), "{said}");
    for (password, good) in [("wrong horse", false), ("correct horse", true)] {
        let mut login = terminal(&user, false, &[], &["login"]);
        login.shows("E-mail: ");
        login.type_in("you@example.com\r");
        login.shows("Password: ");
        login.type_in(&format!("{password}\r"));
        if good {
            login.shows("Logged in as you@example.com at http://127.0.0.1");
        }
        assert_eq!(login.ends() == 0, good, "{}", login.seen());
        assert!(!login.seen().contains("horse"), "{}", login.seen());
    }
    assert_eq!(nobody(&["whoami"]), (true, "you@example.com\n".to_owned()));
    let kept = std::fs::metadata(user.home.path().join(".config/flex/config.toml")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    assert!(nobody(&["logout"]).0);
    assert!(!nobody(&["whoami"]).0);

    // One command by its two names.
    let info = app.flex(&["info"]).ok().out;
    assert!(info.starts_with("=== before\n") && info.contains("Web URL:"), "{info}");
    assert_eq!(app.flex(&["apps:info"]).ok().out, info);
    assert_eq!(user.flex(&["info", "before"]).ok().out, info);
    assert!(app.flex(&["info", "--url"]).ok().out.starts_with("http://before.localhost"));

    // Another name: the URL, the remote and the next push follow.
    let ran = app.flex(&["rename", "after"]).ok();
    assert!(
        ran.err.contains("Renaming before to after... done\n") && ran.err.contains("The git remote flex follows."),
        "{}",
        ran.err
    );
    assert!(ran.out.starts_with("http://after.localhost"), "{}", ran.out);
    app.flex(&["rename", "Not A Name"]).fails_with("name");
    app.flex(&["info", "before"]).fails_with("Couldn't find that app.");
    let serves = |name: &str| get(server.http, &format!("{name}.localhost"), "/").is_some_and(|a| a.status == 200);
    wait_for("the new name to be routed", SOON, || (serves("after") && !serves("before")).then_some(()));
    app.commit(&[("more", "more")]);
    app.push().ok();
    user.flex(&["apps:rename", "third", "-a", "after"]).ok();

    // The end of an app wants its name once more: as an option, or typed.
    user.flex(&["destroy", "third"]).fails_with("--confirm third");
    user.flex(&["destroy", "third", "--confirm", "other"]).fails_with("did not match third");
    let mut unsure = terminal(&user, true, &[], &["destroy", "third"]);
    unsure.shows("To proceed, type third.");
    unsure.type_in("no\r");
    assert_ne!(unsure.ends(), 0);
    user.flex(&["info", "third"]).ok();
    let mut sure = terminal(&user, true, &[], &["destroy", "third"]);
    sure.shows("To proceed, type third.");
    sure.type_in("third\r");
    sure.shows("Destroying third... done");
    assert_eq!(sure.ends(), 0);
    user.flex(&["info", "third"]).fails_with("Couldn't find that app.");
    wait_for("its containers to go", SOON, || server.containers().is_empty().then_some(()));
    user.flex(&["create", "fourth", "--no-remote"]).ok();
    let ran = user.flex(&["destroy", "fourth", "--confirm", "fourth"]).ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", "Destroying fourth... done\n"));
}

/// On a terminal one line that changes; off it, and where a terminal says that it cannot, plain lines.
#[test]
fn progress_is_shown_as_the_reader_can_see_it() {
    let (_server, user) = world();
    let repo = app(&user, "slow");
    // A process type without a port is up when it has run for two seconds: there are steps to be seen.
    repo.commit(&[("Procfile", "web: exec httpd -f -p $PORT -h www\nidle: exec sleep 1000\n")]);
    repo.push().ok();
    let steps = |text: &str| text.matches("Waiting... ").count();

    let ran = repo.flex(&["ps:scale", "idle=1"]).ok();
    assert!(steps(&ran.err) >= 2 && ran.err.ends_with("Waiting... done, 2 of 2 up\n"), "{}", ran.err);
    assert!(ran.err.lines().filter(|l| l.contains("Waiting")).all(|l| l.starts_with("Waiting... ")), "{}", ran.err);
    for (env, count) in [(("NO_COLOR", "1"), 2), (("TERM", "dumb"), 3)] {
        let scale = format!("idle={count}");
        let seen = all(terminal(&user, true, &[env], &["ps:scale", &scale, "-a", "slow"]), "Waiting... done");
        assert!(steps(&seen) >= 2 && seen.is_ascii() && !seen.contains('\x1b'), "{env:?}: {seen:?}");
        assert_eq!(seen.matches("\r\n").count(), seen.matches('\r').count(), "{env:?}: a line was written over: {seen:?}");
    }

    let seen = all(terminal(&user, true, &[], &["ps:scale", "idle=4", "-a", "slow"]), "Waiting... done");
    // A spinner turns in a line that is cleared, and one line stays.
    assert!(seen.contains('\x1b') && !seen.is_ascii() && steps(&seen) > 2, "{seen:?}");
    let stays = |line: &str| line.rsplit(['\r', '\x1b']).next().unwrap().trim_start_matches("[2K").contains("Waiting... ");
    let lines: Vec<&str> = seen.split("\r\n").filter(|l| stays(l)).collect();
    assert_eq!(lines.len(), 1, "{seen:?}");
    assert!(lines[0].ends_with("Waiting... done, 5 of 5 up"), "{seen:?}");
}

#[test]
fn a_file_system_is_read_only_by_command_and_by_app_json() {
    let (server, user) = world();
    let app = app(&user, "sealed");
    let try_to_write = |place: &str| app.flex(&["exec", &format!("echo x > {place}/probe && cat {place}/probe")]);
    let is_writable = |server: &Server| {
        assert_eq!(try_to_write("/tmp").ok().out, "x\n");
        assert_eq!(server.page("sealed", "/").body.trim(), "page");
        let wrote = try_to_write("$HOME");
        assert_eq!(wrote.status == 0, wrote.out == "x\n", "{}", wrote.all());
        assert!(wrote.status == 0 || wrote.err.contains("Read-only file system"), "{}", wrote.all());
        let web = server.containers().into_iter().find(|c| c.contains("-web.1-")).unwrap();
        let read_only = server.docker(&["inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", &web]);
        assert_eq!(read_only, [(wrote.status != 0).to_string()]);
        wrote.status == 0
    };
    assert!(is_writable(&server), "as long as nobody says otherwise");

    // By command, from the next start on.
    assert_eq!(app.flex(&["apps:read-only"]).ok().out, "off\n");
    app.flex(&["apps:read-only", "on"]).ok();
    assert_eq!(app.flex(&["apps:read-only"]).ok().out, "on\n");
    assert!(app.flex(&["info"]).ok().out.contains("File System:  read-only\n"));
    assert!(is_writable(&server), "what runs is as it was started");
    app.flex(&["ps:restart"]).ok();
    assert!(!is_writable(&server));
    app.flex(&["apps:read-only", "off"]).ok();
    app.flex(&["ps:restart"]).ok();
    assert!(is_writable(&server));

    // With the code, and away with it.
    app.commit(&[("app.json", "{\"flex\": {\"read_only_root\": true}}")]);
    app.push().ok();
    assert!(!is_writable(&server));
    let ran = app.flex(&["run", "echo x > $HOME/probe"]);
    assert!(ran.status != 0 && ran.err.contains("Read-only file system"), "{}", ran.all());
    app.flex(&["config:set", "A=1"]).ok();
    assert!(!is_writable(&server), "the next release has the same code");
    app.flex(&["rollback", "v1"]).ok();
    assert!(is_writable(&server));

    // A wrong word is said, and not taken for a wish to be less safe.
    app.commit(&[("app.json", "{\"flex\": {\"readonly_root\": true}}")]);
    let refused = app.push().fails_with("rejected");
    assert!(refused.err.contains("unknown field `readonly_root`") && refused.err.contains("[app_json]"), "{}", refused.err);
}
