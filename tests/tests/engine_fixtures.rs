//! One app for each built-in buildpack, and the other ways to build, each pushed with stock git and fetched. What an app
//! is expected to say stands in its `fixture.toml`.

use flex_tests::{Server, root, wait_for};
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
    // Other pages: what stands in the answer, its head included.
    for (path, expected) in fixture.get("pages").and_then(|p| p.as_table()).into_iter().flatten() {
        let page = server.page("app", path);
        let answer = format!("{}\n{}", page.head, page.body).to_lowercase();
        assert!(answer.contains(&expected.as_str().unwrap().to_lowercase()), "{path}: {page:?}");
    }
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
