//! One app for each built-in buildpack, and the other ways to build, each pushed with stock git and fetched. What an app
//! is expected to say stands in its `fixture.toml`.

use flex_tests::{Answer, Server, Setup, get_with, root, wait_for};
use std::{path::Path, time::Duration};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (item.path(), to.join(item.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else if item.file_name() != "fixture.toml" {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Pushes the app of this folder, with these config vars, and fetches its pages.
fn walk(name: &str, config: &[&str]) {
    let source = root().join("tests/fixtures/apps").join(name);
    let fixture: toml::Table = std::fs::read_to_string(source.join("fixture.toml")).unwrap().parse().unwrap();
    let text = |key: &str| fixture.get(key).and_then(|v| v.as_str());
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("app", &[(".keep", "")]);
    copy(&source, &repo.dir);
    std::fs::remove_file(repo.dir.join(".keep")).unwrap();
    repo.commit(&[]);
    if !config.is_empty() {
        repo.flex(&[&["config:set"], config].concat()).ok();
    }
    let pushed = repo.push();
    if let Some(refused) = text("refused") {
        pushed.fails_with(refused);
        return;
    }
    let pushed = pushed.ok();
    if let Some(detected) = text("detected").filter(|d| *d != "Dockerfile") {
        assert!(pushed.err.contains(&format!("{detected} app detected")), "{}", pushed.err);
    }
    let page = server.page("app", "/");
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.body.contains(text("expect").unwrap()), "{page:?}");
    let table = |key: &str| fixture.get(key).and_then(|p| p.as_table()).into_iter().flatten();
    // Other pages: what stands in the answer, its head included.
    for (path, expected) in table("pages") {
        let page = server.page("app", path);
        let answer = format!("{}\n{}", page.head, page.body).to_lowercase();
        for text in expected.as_array().map_or_else(|| vec![expected], |several| several.iter().collect()) {
            assert!(answer.contains(&text.as_str().unwrap().to_lowercase()), "{path}: {text} is not in {page:?}");
        }
    }
    // The status for a client that has the front page's ETag.
    for (path, status) in table("unchanged") {
        let known = format!("If-None-Match: {}\r\n", header(&page, "etag").unwrap());
        let page = get_with(server.http, "app.localhost", path, &known).unwrap();
        assert_eq!(i64::from(page.status), status.as_integer().unwrap(), "{path}: {page:?}");
    }
    // What the second build of the same source says of its cache, and the first does not.
    if let Some(cached) = text("again") {
        assert!(!pushed.err.contains(cached), "{}", pushed.err);
        repo.commit(&[]);
        let again = repo.push().ok();
        assert!(again.err.contains(cached), "{}", again.err);
        assert!(server.page("app", "/").body.contains(text("expect").unwrap()));
    }
}

/// The value of a header, by its name in small letters.
fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer
        .head
        .lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

macro_rules! fixtures {
    ($($test:ident $folder:literal $($config:literal)*;)*) => {
        $(#[test] fn $test() { walk($folder, &[$($config),*]); })*

        /// A fixture that no test walks proves nothing.
        #[test]
        fn every_fixture_is_walked() {
            let walked = [$($folder),*];
            for item in std::fs::read_dir(root().join("tests/fixtures/apps")).unwrap().flatten() {
                assert!(walked.contains(&item.file_name().to_str().unwrap()), "{:?}", item.file_name());
            }
        }
    };
}

fixtures! {
    python "python";
    python_uv "python-uv";
    python_django "python-django";
    python_variants "variants" "VARIANTS=python";
    node_variants "variants" "VARIANTS=node";
    other_variants "variants" "VARIANTS=other";
    node "node";
    go "go";
    rust "rust";
    ruby "ruby";
    php "php";
    java "java";
    static_site "static";
    procfile_only "procfile-only";
    inline "inline";
    several_buildpacks "multi";
    dockerfile "dockerfile";
    refused "refused";
    strict_versions "strict";
    broken_procfile "broken-procfile";
}

/// What app.json asks for, and a release phase that fails.
#[test]
fn a_manifest_is_followed() {
    let server = Server::start();
    let user = server.admin();
    let server_py = std::fs::read_to_string(root().join("tests/fixtures/apps/procfile-only/server.py")).unwrap();
    let manifest = r#"{
      // as people write them
      "env": {
        "SECRET": { "generator": "secret" },
        "FIXED": "from app.json",
        "NEEDED": { "description": "an account somewhere", "required": true },
      },
      "formation": { "web": { "quantity": 2 } },
      "healthchecks": { "web": [{ "type": "startup", "path": "/" }] },
      "scripts": { "postdeploy": "echo seeded with $FIXED" },
    }"#;
    let procfile = "# how it runs\r\n\r\nweb: 'python3 server.py'\r\nrelease: echo migrated with ${#SECRET} characters\r\n";
    let repo = user.repo("shop", &[("server.py", &server_py), ("app.json", manifest), ("Procfile", procfile)]);
    repo.push().fails_with("NEEDED");
    repo.flex(&["config:set", "NEEDED=x"]).ok();
    let pushed = repo.push().ok();
    assert!(pushed.err.contains("migrated with 64 characters"), "{}", pushed.err);
    assert_eq!(server.page("shop", "/").status, 200);
    let secret = repo.flex(&["config:get", "SECRET"]).ok().out;
    assert_eq!(secret.trim().len(), 64);
    assert_eq!(repo.flex(&["ps"]).ok().out.matches("web.").count(), 2);
    let deadline = Duration::from_secs(20);
    wait_for("postdeploy", deadline, || repo.flex(&["logs"]).ok().out.contains("seeded with from app.json").then_some(()));

    // The release phase fails: the old release serves on, and nothing that app.json made is made anew.
    repo.commit(&[("Procfile", &procfile.replace("echo migrated", "exit 3; echo"))]);
    let refused = repo.push().fails_with("pre-receive hook declined");
    assert!(refused.err.contains("its release phase exited with status 3"), "{}", refused.err);
    assert_eq!(server.page("shop", "/").status, 200);
    assert!(repo.flex(&["releases"]).ok().out.contains("(failed)"));
    assert_eq!(repo.flex(&["config:get", "SECRET"]).ok().out, secret);
    // A missing built-in, and one by a name of Heroku's, from the command line.
    repo.commit(&[("Procfile", "web: python3 server.py\n")]);
    repo.flex(&["buildpacks:set", "cobol"]).ok();
    repo.push().fails_with("there is no built-in buildpack");
    repo.flex(&["buildpacks:add", "heroku/procfile", "--index", "1"]).ok();
    repo.flex(&["buildpacks:remove", "cobol"]).ok();
    // `BUILDPACK_URL` counts when there is none of the app's own.
    for (name, text) in [("bin/detect", "echo Fetched"), ("bin/compile", "echo compiled by what was fetched")] {
        repo.commit(&[(name, &format!("#!/bin/sh\n{text}\n"))]);
    }
    let tar = ["-czf", "pack.tgz", "--remove-files", "--transform=s,^,pack/,", "bin"];
    repo.user.run("tar", &repo.dir, &tar).ok();
    repo.commit(&[]);
    repo.flex(&["config:set", "BUILDPACK_URL=file:///tmp/build/pack.tgz"]).ok();
    assert!(repo.push().ok().err.contains("-----> Using buildpack: heroku/procfile"));
    repo.flex(&["buildpacks:clear"]).ok();
    assert!(!repo.flex(&["buildpacks"]).ok().all().contains("procfile"));
    repo.commit(&[]);
    let pushed = repo.push().ok();
    assert!(pushed.err.contains("-----> Fetching buildpack file:///tmp/build/pack.tgz"), "{}", pushed.err);
    assert!(pushed.err.contains("compiled by what was fetched"), "{}", pushed.err);
    assert_eq!(server.page("shop", "/").status, 200);
}

/// The usual stack, and a twin of it under another name.
fn two_stacks() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("flex-stacks-").tempdir().unwrap();
    let usual = flex_tests::stacks().join("flex-13");
    std::os::unix::fs::symlink(&usual, dir.path().join("flex-13")).unwrap();
    let twin = dir.path().join("flex-twin");
    std::fs::create_dir(&twin).unwrap();
    std::os::unix::fs::symlink(usual.join("blobs"), twin.join("blobs")).unwrap();
    let record = std::fs::read_to_string(usual.join("stack.json")).unwrap();
    std::fs::write(twin.join("stack.json"), record.replace("\"name\": \"flex-13\"", "\"name\": \"flex-twin\"")).unwrap();
    dir
}

/// app.json chooses the stack until someone does by hand.
#[test]
fn the_stack_is_chosen() {
    let stacks = two_stacks();
    let server = Server::start_with(Setup { stack: Some((stacks.path().to_owned(), "flex-13".into())), ..Setup::default() });
    let listed = |args: &[&str]| {
        let out = server.flexd().args([&["stack", "list"], args].concat()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let lines = listed(&[]);
    for text in ["flex-13  built ", "flex-twin  built ", "  flex/flex-13:run ", "  flex/flex-13:build "] {
        assert!(lines.contains(text), "{text}: {lines}");
    }
    let all: Vec<serde_json::Value> = serde_json::from_str(&listed(&["--json"])).unwrap();
    assert_eq!(all.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["flex-13", "flex-twin"]);
    assert!(all[0]["packages"]["run"]["bash"].is_string(), "{}", all[0]);
    let user = server.admin();
    let server_py = std::fs::read_to_string(root().join("tests/fixtures/apps/procfile-only/server.py")).unwrap();
    let manifest = |stack: &str| format!("{{ \"stack\": \"{stack}\" }}");
    let files = [("server.py", server_py.as_str()), ("Procfile", "web: python3 server.py"), ("app.json", &manifest("flex-14"))];
    let repo = user.repo("shop", &files);
    repo.push().fails_with("app.json asks for the stack flex-14, which is not on this server. Here are: flex-13, flex-twin");

    repo.commit(&[("app.json", &manifest("flex-twin"))]);
    let pushed = repo.push().ok();
    assert!(pushed.err.contains("-----> Building on the flex-twin stack"), "{}", pushed.err);
    assert_eq!(server.page("shop", "/").status, 200);
    let info = repo.flex(&["info"]).ok().out;
    assert!(info.lines().any(|l| l.starts_with("Stack:") && l.ends_with("flex-twin")), "{info}");
    assert!(repo.flex(&["builds:info", "--json"]).ok().out.contains("\"stack\": \"flex-twin\""));

    repo.flex(&["stack:set", "flex-14"]).fails_with("There is no stack flex-14 here. There are: flex-13, flex-twin");
    repo.flex(&["stack:set", "flex-13"]).ok();
    assert_eq!(repo.flex(&["stack"]).ok().out, "* flex-13\n  flex-twin\n");
    repo.commit(&[]);
    let pushed = repo.push().ok();
    assert!(pushed.err.contains("-----> Building on the flex-13 stack"), "{}", pushed.err);
    assert!(pushed.err.contains("app.json asks for the stack flex-twin, but this app was set to flex-13"), "{}", pushed.err);

    // Chosen where the app is made, and not chosen any more.
    user.flex(&["create", "other", "--stack", "flex-nine", "--no-remote"]).fails_with("There is no stack flex-nine here");
    user.flex(&["create", "other", "--stack", "flex-twin", "--no-remote"]).ok();
    assert_eq!(user.flex(&["stack", "-a", "other"]).ok().out, "  flex-13\n* flex-twin\n");
    user.flex(&["stack:set", "default", "-a", "other"]).ok();
    assert_eq!(user.flex(&["stack", "-a", "other"]).ok().out, "* flex-13\n  flex-twin\n");
}

/// What the operator says of certificates and mirrors reaches builds: the bundle that this machine is told to trust, where
/// every tool looks for it, and `[build.env]`.
#[test]
fn builds_have_the_machines_certificates_and_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("own.pem");
    std::fs::write(&bundle, "# the operator's own bundle\n").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Server::start_with(Setup {
        toml: "[build.env]\nFLEX_TEST_MIRROR = \"http://mirror.example/simple\"\n".into(),
        env: vec![("SSL_CERT_FILE", bundle.display().to_string())],
        ..Setup::default()
    });
    let user = server.admin();
    let names = "SSL_CERT_FILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO CARGO_HTTP_CAINFO \
                 NPM_CONFIG_CAFILE BUNDLE_SSL_CA_CERT COMPOSER_CAFILE NIX_SSL_CERT_FILE";
    let compile = format!(
        "#!/bin/bash\nfor name in {names}; do echo \"$name: $(head -n 1 \"${{!name}}\")\"; done\n\
         echo \"mirror: $FLEX_TEST_MIRROR\"\n{{ echo more >>\"$SSL_CERT_FILE\"; }} 2>/dev/null || echo 'it stays as it is'\nexit 1\n"
    );
    let repo = user.repo("shop", &[("bin/detect", "#!/bin/bash\necho Looking\n"), ("bin/compile", &compile)]);
    let pushed = repo.push().fails_with("bin/compile failed with status 1").err;
    for name in names.split_whitespace() {
        assert!(pushed.contains(&format!("{name}: # the operator's own bundle")), "{name}: {pushed}");
    }
    assert!(pushed.contains("mirror: http://mirror.example/simple") && pushed.contains("it stays as it is"), "{pushed}");
}
