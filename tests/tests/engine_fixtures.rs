//! One app for each built-in buildpack, and the other ways to build, each pushed with stock git and fetched. What an app
//! is expected to say stands in its `fixture.toml`.

use flex_tests::{Server, root};
use std::path::Path;

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

fn walk(name: &str) {
    let source = root().join("tests/fixtures/apps").join(name);
    let fixture: toml::Table = std::fs::read_to_string(source.join("fixture.toml")).unwrap().parse().unwrap();
    let text = |key: &str| fixture.get(key).and_then(|v| v.as_str());
    let server = Server::start();
    let user = server.admin();
    let repo = user.repo("app", &[(".keep", "")]);
    copy(&source, &repo.dir);
    std::fs::remove_file(repo.dir.join(".keep")).unwrap();
    repo.commit(&[]);
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
}

macro_rules! fixtures {
    ($($test:ident $folder:literal;)*) => {
        $(#[test] fn $test() { walk($folder); })*

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
