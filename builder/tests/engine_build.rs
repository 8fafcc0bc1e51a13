//! Builds on a real engine, from a commit to an image that runs.

#[allow(dead_code, reason = "each test file uses a part of it")]
mod engine_support;

use engine_support::{World, repository, script, world};
use flex_builder::{BuildError, Limit, Source};
use flex_model::{BuildPhase, Command};
use flex_runtime::Runtime;
use std::{process, time::Duration};
use tokio_util::sync::CancellationToken;

const DETECT: &str = "#!/bin/bash\necho Inline\n";

/// An inline-buildpack app with this `bin/compile`.
fn inline(w: &World, compile: &str) -> Source {
    let compile = format!("#!/bin/bash\n{compile}\n");
    w.commit(&[("x bin/detect", DETECT), ("x bin/compile", &compile), ("Procfile", "web: ./serve $PORT\n")])
}

#[tokio::test]
async fn an_inline_app_becomes_an_image_that_runs() {
    let w = world(|s| {
        s.env.insert("PIP_INDEX_URL".into(), "https://mirror.example/simple".into());
    })
    .await;
    let compile = r#"#!/bin/bash
echo "-----> Compiling as $(id -u):$(id -g) for $STACK $SOURCE_VERSION"
[[ $REQUEST_ID =~ ^[0-9a-f-]{36}$ ]] && echo "a request"
echo "args $1 $2 $3; secret from file: $(cat "$3/SECRET"); in env: ${SECRET:-none}; mirror $PIP_INDEX_URL"
echo "cached: $(cat "$2/note" 2>/dev/null)"
echo "to stderr" >&2
date +%s > "$2/note"
printf '\xff\xfe\n'
mkdir -p "$1/.profile.d" "$1/sub"
echo 'export GREETING=hello' > "$1/.profile.d/a.sh"
echo '#!/bin/bash
echo "$GREETING from $(id -un) in $PWD with $HOME"' > "$1/serve"
chmod 6755 "$1/serve"
ln -s serve "$1/sub/link"
echo 'worker: sleep 1' >> "$1/Procfile"
"#;
    let release =
        "#!/bin/bash\necho '---\naddons:\n- db\nconfig_vars:\n  A: b\ndefault_process_types:\n  web: nothing\n  console: bash'\n";
    let app_json = r#"{"formation": {"web": {"quantity": 2}}, "env": {"KEY": {"generator": "secret"}}}"#;
    let source = w.commit(&[
        ("x bin/detect", DETECT),
        ("x bin/compile", compile),
        ("x bin/release", release),
        ("Procfile", "# processes\r\nweb: ./serve $PORT\r\n"),
        ("app.json", app_json),
        (".slugignore", "docs\n"),
        ("docs/x", "y"),
    ]);
    let config = [("SECRET", "hunter2-hunter2")];
    let first = w.build_with(source.clone(), &config, CancellationToken::new()).await;
    for says in [
        "-----> Building on the flex-mini stack",
        "-----> Using buildpack: inline",
        "-----> Inline app detected",
        "-----> Compiling as 10001:10001 for flex-mini v-1",
        "args /tmp/build /tmp/cache /tmp/env; secret from file: hunter2-hunter2; in env: none; mirror https://mirror.example/simple",
        "a request",
        "to stderr",
        "\u{fffd}\u{fffd}",
        "-----> Discovering process types",
        " !     The buildpack asks for the add-ons db. Flex has no add-ons yet: nothing was added.",
        "       Procfile declares types -> web, worker",
        "       Default types for buildpack -> console",
        "       Done: ",
    ] {
        assert!(first.says(says), "{says:?} is missing in\n{}", first.log.join("\n"));
    }
    let first = first.ok();
    let types: Vec<_> = first.process_types.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(types, [("console", "bash"), ("web", "./serve $PORT"), ("worker", "sleep 1")]);
    assert_eq!((first.addons.as_slice(), first.config_vars["A"].as_str()), (&["db".to_owned()][..], "b"));
    assert_eq!(first.app_json.formation.values().next().unwrap().0, 2);
    assert!(first.has_launcher && first.size_bytes > 0);
    assert_eq!(first.buildpack_description.as_deref(), Some("Inline"));
    let phases: Vec<BuildPhase> = first.phases.iter().map(|p| p.phase).collect();
    assert_eq!(phases, [BuildPhase::FetchCache, BuildPhase::Detect, BuildPhase::Compile, BuildPhase::Pack]);

    let (said, status) = w.run(&first.image, Command::Launch("./serve".into())).await;
    assert_eq!((said.as_str(), status), ("hello from app in /app with /app\n", 0));
    let look = "stat -c '%a %u %Y' serve bin/compile; readlink sub/link; ls -A; test ! -e docs && test -w . && echo fine";
    let (said, _) = w.run(&first.image, Command::Launch(look.into())).await;
    assert!(said.starts_with("755 10001 1750000000\n755 10001 1750000000\nserve\n"), "{said}");
    assert!(said.ends_with("fine\n"), "{said}");

    // Again: the cache is there, and the image is the same to the bit.
    let again = w.build_with(source, &config, CancellationToken::new()).await;
    assert!(again.log.iter().any(|l| l.strip_prefix("cached: ").is_some_and(|n| !n.is_empty())), "{}", again.log.join("\n"));
    let again = again.ok();
    assert_eq!(again.image, first.image);

    // Debian's skopeo copies the image out of the layout.
    let layout = w.builder.layout(w.app).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(layout.dir().join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"].as_str(), first.image.manifest.as_deref());
    let tag = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
    let from = format!("oci:{}:{tag}", layout.dir().display());
    let to = format!("dir:{}", w.dir.path().join("copy").display());
    let out = process::Command::new("skopeo").args(["--insecure-policy", "copy", &from, &to]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    // The cache can be emptied, and everything goes with the app.
    w.builder.purge_cache(w.app).await.unwrap();
    w.builder.purge_cache(w.app).await.unwrap();
    assert_eq!(w.builder.collect_garbage(w.app, &[first.image.manifest.clone().unwrap()].into()).await.unwrap(), 0);
    assert!(w.runtime.has_image(&first.image.reference).await.unwrap());
    assert_eq!(w.builder.collect_garbage(w.app, &[].into()).await.unwrap(), 2);
    assert!(!w.runtime.has_image(&first.image.reference).await.unwrap());
    w.builder.remove_app(w.app).await.unwrap();
    w.builder.remove_app(w.app).await.unwrap();
    w.no_sandbox_left().await;
}

#[tokio::test]
async fn several_buildpacks_run_in_order_and_hand_their_environment_on() {
    let w = world(|s| {
        let builtin = s.buildpacks_dir.join("builtin");
        let two = builtin.join("two");
        std::fs::write(builtin.join("order"), "two\n").unwrap();
        // Only what the one before it made is accepted.
        script(&two.join("bin/detect"), "[[ -f $1/made-by-one ]] && echo Two");
        let compile = "echo \"two sees $FROM_ONE\"; cat \"${BASH_SOURCE%/*}/../../lib/shared\"; echo 'export FROM_TWO=2' > \"${BASH_SOURCE%/*}/../export\"";
        script(&two.join("bin/compile"), compile);
        std::fs::create_dir(builtin.join("lib")).unwrap();
        std::fs::write(builtin.join("lib/shared"), "shared text\n").unwrap();
    })
    .await;
    // The third comes by git, from a bare repository that is part of the source itself: no network is needed.
    let (repo, _) = repository(
        &w.dir.path().join("third.git"),
        &[
            ("x bin/detect", "#!/bin/sh\necho Third"),
            ("x bin/compile", "#!/bin/sh\necho third sees $FROM_ONE$FROM_TWO"),
            ("x bin/release", "#!/bin/sh\necho 'default_process_types: {web: third}'"),
        ],
    );
    let packed = w.dir.path().join("third.tar");
    let tar = process::Command::new("tar").arg("-cf").arg(&packed).arg("-C").arg(w.dir.path()).arg("third.git").status().unwrap();
    assert!(tar.success());
    drop(repo);
    let archive = source_with(
        &w,
        &packed,
        ".buildpacks",
        "./packs/one\ntwo\nfile:///tmp/build/third.git#main\n",
        &[
            ("packs/one/bin/detect", "#!/bin/sh\necho One"),
            (
                "packs/one/bin/compile",
                "#!/bin/sh\necho one; touch $1/made-by-one; echo 'export FROM_ONE=1' > /tmp/build/packs/one/export",
            ),
            ("packs/one/bin/release", "#!/bin/sh\necho 'default_process_types: {one: never}'"),
        ],
    );
    let ran = w.build(Source::Archive(archive)).await;
    for says in [
        "-----> Using buildpacks:",
        "       1. ./packs/one",
        "two sees 1",
        "shared text",
        "third sees 12",
        "-----> Third app detected",
    ] {
        assert!(ran.says(says), "{says:?} is missing in\n{}\n{:?}", ran.log.join("\n"), ran.result);
    }
    let out = ran.ok();
    assert_eq!(out.buildpacks, ["./packs/one", "two", "file:///tmp/build/third.git#main"]);
    assert_eq!(out.process_types.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["web=third"]);
}

/// Each of these is fetched inside the build container; that they are in the source spares the test a server.
#[tokio::test]
async fn custom_buildpacks_come_by_branch_tag_commit_and_archive() {
    let w = world(|_| {}).await;
    let path = w.dir.path().join("pack.git");
    let pack = |text: &'static str| [("x bin/detect", "#!/bin/sh\necho Custom"), ("x bin/compile", text)];
    let (_, old) = repository(&path, &pack("#!/bin/sh\necho this is the old one"));
    let repo = git2::Repository::open_bare(&path).unwrap();
    repo.reference("refs/tags/v1", git2::Oid::from_str(old.as_str()).unwrap(), false, "").unwrap();
    repo.find_reference("refs/heads/main").unwrap().delete().unwrap();
    repo.set_head("refs/heads/main").unwrap();
    repository(&path, &pack("#!/bin/sh\necho this is the new one; pwd; echo \"$BUILDPACK_URL\" | wc -c"));
    // As the hosts of git repositories make them: everything in one directory, named after the commit.
    let inner = w.dir.path().join("pack-0123abc");
    script(&inner.join("bin/detect"), "echo Archived");
    script(&inner.join("bin/compile"), "echo this is the archived one");
    let tar =
        |args: &[&str]| assert!(process::Command::new("tar").current_dir(w.dir.path()).args(args).status().unwrap().success());
    tar(&["-czf", "pack.tgz", "pack-0123abc"]);
    tar(&["-czf", "empty.tgz", "pack.git/HEAD"]);
    tar(&["-cf", "base.tar", "pack.git", "pack.tgz", "empty.tgz"]);
    let source = Source::Archive(source_with(&w, &w.dir.path().join("base.tar"), "Procfile", "web: true\n", &[]));
    let commit = format!("pack.git#{old}");
    for (place, says) in [
        ("pack.git", "this is the new one"),
        ("pack.git#main", "this is the new one"),
        ("pack.git#v1", "this is the old one"),
        (&commit, "this is the old one"),
        ("pack.tgz", "this is the archived one"),
    ] {
        let url = format!("file:///tmp/build/{place}");
        let ran = w.build_with(source.clone(), &[("BUILDPACK_URL", &url)], CancellationToken::new()).await;
        assert!(
            ran.says(&format!("-----> Fetching buildpack {url}")) && ran.says(says),
            "{}\n{:?}",
            ran.log.join("\n"),
            ran.result
        );
        assert_eq!(ran.ok().buildpacks, [url]);
    }
    for (place, code) in
        [("pack.git#nowhere", "buildpack_fetch"), ("absent.tgz", "buildpack_fetch"), ("empty.tgz", "bad_buildpack")]
    {
        let url = format!("file:///tmp/build/{place}");
        let ran = w.build_with(source.clone(), &[("BUILDPACK_URL", &url)], CancellationToken::new()).await;
        assert_eq!(ran.err().code(), code, "{}\n{}", ran.err(), ran.log.join("\n"));
        assert!(ran.err().to_string().contains(place), "{}", ran.err());
    }
}

/// An archive of another archive's contents with more files, all executable.
fn source_with(w: &World, base: &std::path::Path, name: &str, text: &str, more: &[(&str, &str)]) -> std::path::PathBuf {
    let out = w.dir.path().join("source.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&out).unwrap());
    let mut from = tar::Archive::new(std::fs::File::open(base).unwrap());
    for entry in from.entries().unwrap() {
        let entry = entry.unwrap();
        tar.append(&entry.header().clone(), entry).unwrap();
    }
    for (path, text) in more.iter().chain(&[(name, text)]) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.finish().unwrap();
    out
}

/// Files of a source, the error's code, and what its text says.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

#[tokio::test]
async fn refusals_tell_the_author_what_to_do() {
    let w = world(|_| {}).await;
    let detect = ("x bin/detect", DETECT);
    let compile = |text: &'static str| ("x bin/compile", text);
    let cases: &[Case<'_>] = &[
        (&[detect, compile("#!/bin/bash\necho broken; exit 3")], "compile_failed", "status 3"),
        (&[detect, compile("#!/bin/bash\ntrue"), ("Procfile", "web: a\n<<<<<<< HEAD\n")], "procfile", "line 2"),
        (&[detect, compile("#!/bin/bash\necho 'web $(id)' > $1/Procfile")], "procfile", "line 1"),
        (
            &[detect, compile("#!/bin/bash\ntrue"), ("x bin/release", "#!/bin/sh\necho 'a: &x y'; echo 'addons: *x'")],
            "release_failed",
            "addons",
        ),
        (&[("x bin/detect", "#!/bin/sh\nexit 1"), compile("#!/bin/bash\ntrue")], "not_compatible", "inline"),
        (&[("README", "x")], "no_buildpack", "flex buildpacks:set"),
        (&[(".buildpacks", "file:///nowhere.git\n")], "buildpack_fetch", "file:///nowhere.git"),
        (&[(".buildpacks", "./nowhere\n")], "bad_buildpack", "./nowhere"),
        (&[detect, compile("#!/bin/bash\ntouch $1/.wh.x")], "unpackable", ".wh.x"),
        (&[("app.json", "{")], "app_json", "line"),
    ];
    for (files, code, says) in cases {
        let ran = w.build(w.commit(files)).await;
        assert_eq!(ran.err().code(), *code, "{}\n{}", ran.err(), ran.log.join("\n"));
        assert!(ran.err().to_string().contains(says), "{says}: {}", ran.err());
    }
    w.no_sandbox_left().await;
}

#[tokio::test]
async fn limits_end_a_build_with_a_clear_message() {
    let limited = async |seconds: u64| {
        world(|s| {
            s.timeout = Duration::from_secs(seconds);
            s.output_bytes = 1 << 20;
            s.disk_bytes = 20 << 20;
            s.memory = flex_model::Memory::from_mib(96);
            s.pids = 64;
        })
        .await
    };
    let w = limited(100).await;
    for (compile, limit, says) in [
        ("yes", Limit::Output, "1 MiB"),
        ("head -c 60M /dev/zero > $1/big; sleep 600", Limit::Disk, "20 MiB"),
        ("exec python3 -c 'x = bytearray(1 << 30)'", Limit::Memory, "memory"),
    ] {
        let ran = w.build(inline(&w, compile)).await;
        assert!(matches!(ran.err(), BuildError::Limit { limit: l, .. } if *l == limit), "{compile}: {:?}", ran.err());
        assert!(ran.err().to_string().contains(says), "{}", ran.err());
        w.no_sandbox_left().await;
    }
    // A fork bomb gets as far as the limit on processes; this machine notices nothing. Not bash's own, which would wait and
    // try again.
    let bomb =
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null | while read -r n; do echo \"pids.max=$n\"; done
                exec python3 -c 'import os, itertools\nfor n in itertools.count(1):\n    \
                os.posix_spawnp(\"sleep\", [\"sleep\", \"600\"], os.environ)\n    print(f\"forked={n}\", flush=True)'";
    let ran = w.build(inline(&w, bomb)).await;
    assert!(matches!(ran.err(), BuildError::User { .. }), "{:?}", ran.err());
    let numbers =
        |name: &str| -> Vec<u32> { ran.log.iter().filter_map(|line| line.split_once(name)?.1.trim().parse().ok()).collect() };
    assert_eq!(numbers("pids.max="), [64], "{}", ran.log.join("\n"));
    // Beside them run bash, what runs it, and an init.
    let forked = numbers("forked=").into_iter().max().unwrap_or_default();
    assert!((40..64).contains(&forked), "{forked} forks:\n{}", ran.log.join("\n"));
    w.no_sandbox_left().await;
    let w = limited(4).await;
    let ran = w.build(inline(&w, "sleep 1000")).await;
    assert!(matches!(ran.err(), BuildError::Limit { limit: Limit::Time, .. }), "{:?}", ran.err());
    w.no_sandbox_left().await;
}

#[tokio::test]
async fn a_cache_that_grows_too_large_is_emptied() {
    let w = world(|s| s.cache_bytes = 1 << 20).await;
    let source = inline(&w, "ls $2 | sed 's/^/has /'; head -c $((${#SOURCE_VERSION} * 1000000)) /dev/zero > $2/big");
    let ran = w.build(source.clone()).await;
    assert!(ran.says("The build cache has 2 MiB, more than the 1 MiB allowed: it is emptied"), "{}", ran.log.join("\n"));
    ran.ok();
    let again = w.build(source).await;
    assert!(!again.says("has big"), "{}", again.log.join("\n"));
}

#[tokio::test]
async fn a_build_is_cancelled_at_once() {
    let w = world(|_| {}).await;
    let cancel = CancellationToken::new();
    let started = std::time::Instant::now();
    let ran = w.build_until("started", inline(&w, "echo started; sleep 1000"), cancel).await;
    assert_eq!(*ran.err(), BuildError::Cancelled);
    assert!(ran.says("started") && started.elapsed() < Duration::from_secs(60));
    w.no_sandbox_left().await;
}

#[tokio::test]
async fn a_prepared_container_is_used_and_a_forgotten_one_goes() {
    let w = world(|_| {}).await;
    let stack = "flex-mini".parse().unwrap();
    let ready = w.builder.prepare(w.next_build(), w.app, &stack).await.unwrap();
    let containers = w.containers();
    let [container] = &containers[..] else { panic!("prepared: {containers:?}") };
    // The engine's own files for it are mounted from a folder of that name.
    let ran = w.build_in(ready, inline(&w, "grep -o 'containers/[0-9a-f]*' /proc/self/mountinfo | sort -u")).await;
    assert!(ran.says(&format!("containers/{container}")), "not built in {container}:\n{}", ran.log.join("\n"));
    ran.ok();
    drop(w.builder.prepare(w.next_build(), w.app, &stack).await.unwrap());
    w.no_sandbox_left().await;
    let missing = w.builder.prepare(w.next_build(), w.app, &"none".parse().unwrap()).await.err().unwrap();
    assert!(missing.to_string().contains("flexd stack build none"), "{missing}");
}

#[tokio::test]
async fn hostile_names_and_values_stay_data() {
    let w = world(|_| {}).await;
    let compile = r#"
echo "preload: ${LD_PRELOAD:-none}; path: ${PATH%%:*}; file: $(head -c 20 "$3/LD_PRELOAD")"
[[ ! -e /tmp/pwned && ! -e /pwned ]] && echo untouched
printf 'web: echo "$(touch /pwned)"; %s\n' "$(head -c 3000 /dev/zero | tr '\0' x)" > $1/Procfile
"#;
    let files = [
        ("x bin/detect", "#!/bin/bash\necho '$(touch /tmp/pwned)`touch /tmp/pwned`\"'\n"),
        ("x bin/compile", compile),
        ("$(touch pwned)", "x"),
        ("-rf", "x"),
        ("a\nb", "x"),
    ];
    let compile_text = format!("#!/bin/bash\n{compile}");
    let files = files.map(|(n, t)| (n, if n == "x bin/compile" { compile_text.as_str() } else { t }));
    let config = [("LD_PRELOAD", "/tmp/evil.so\n$(touch /tmp/pwned)"), ("PATH", "/evil"), ("BASH_ENV", "/tmp/build/-rf")];
    let ran = w.build_with(w.commit(&files), &config, CancellationToken::new()).await;
    for says in [
        "preload: none; path: /usr/local/sbin; file: /tmp/evil.so",
        "untouched",
        "-----> $(touch /tmp/pwned)`touch /tmp/pwned`\" app detected",
    ] {
        assert!(ran.says(says), "{says:?} is missing in\n{}\n{:?}", ran.log.join("\n"), ran.result);
    }
    let out = ran.ok();
    assert!(out.process_types.values().next().unwrap().starts_with("echo \"$(touch /pwned)\"; xxx"));
    let (said, _) = w.run(&out.image, Command::Launch("ls -1A | wc -l; test -e './$(touch pwned)' && echo there".into())).await;
    assert!(said.ends_with("there\n"), "{said}");
    let url = [("BUILDPACK_URL", "--upload-pack=touch /tmp/pwned")];
    let ran = w.build_with(w.commit(&[("x", "x")]), &url, CancellationToken::new()).await;
    assert_eq!(ran.err().code(), "bad_buildpack_url");
    assert!(!std::path::Path::new("/tmp/pwned").exists() && !std::path::Path::new("/pwned").exists());
}

#[tokio::test]
async fn a_build_sees_nothing_of_the_platform() {
    let w = world(|_| {}).await;
    let compile = r#"
[[ ! -e /var/run/docker.sock && ! -e /run/docker.sock ]] && echo no socket
grep -E '^CapEff:\s+0+$' /proc/self/status >/dev/null && echo no capabilities
grep -E '^NoNewPrivs:\s+1$' /proc/self/status >/dev/null && echo no new privileges
touch /opt/flex/buildpacks/x 2>/dev/null || echo read-only buildpacks
env | grep -i -E 'flexd|token' || echo clean environment
# What is left running neither keeps the build open nor changes the slug.
(while true; do date +%N > $1/moving; done) & disown
(exec sleep 1000) & disown
"#;
    let ran = w.build(inline(&w, compile)).await;
    for says in ["no socket", "no capabilities", "no new privileges", "read-only buildpacks", "clean environment"] {
        assert!(ran.says(says), "{says:?} is missing in\n{}\n{:?}", ran.log.join("\n"), ran.result);
    }
    ran.ok();
}

#[tokio::test]
async fn a_dockerfile_app_and_an_image_need_no_buildpack() {
    let w = world(|_| {}).await;
    let source = w.commit(&[
        ("Dockerfile", "FROM flex/flex-mini:run\nCOPY hello /hello\nCMD [\"cat\", \"/hello\"]\n"),
        ("hello", "from a Dockerfile\n"),
    ]);
    let ran = w.build(source).await;
    assert!(ran.says("-----> Building with the Dockerfile"));
    let built = ran.ok();
    assert!(built.process_types.is_empty() && !built.has_launcher);
    assert_eq!(w.run(&built.image, Command::Image).await, ("from a Dockerfile\n".into(), 0));
    let image = w.build(Source::Image(built.image.reference.clone())).await.ok();
    assert_eq!(image.image.reference, built.image.reference);
    let bad = w.build(w.commit(&[("Dockerfile", "FROM flex/flex-mini:run\nRUN exit 7\n")])).await;
    assert_eq!(bad.err().code(), "dockerfile_failed", "{}", bad.err());
    let absent = w.build(Source::Image("127.0.0.1:9/none:1".into())).await;
    assert_eq!(absent.err().code(), "no_image", "{}", absent.err());
    w.runtime.remove_image(&built.image.reference).await.unwrap();
}

#[tokio::test]
async fn dockerfiles_are_built_as_people_write_them() {
    let w = world(|s| {
        s.env.insert("MIRROR".into(), "http://mirror.example".into());
    })
    .await;
    let dockerfile = "ARG BASE=flex/flex-mini\n\
        FROM ${BASE}:build AS made\n\
        USER root\n\
        ARG MIRROR\n\
        WORKDIR /made\n\
        COPY . .\n\
        # what is left out is not here\n\
        RUN ls -A > list && \\\n\
            echo $MIRROR >> list && echo ran\n\
        FROM flex/flex-mini:run\n\
        COPY --from=made /made/list /list\n\
        EXPOSE 3000\n\
        ENTRYPOINT [\"cat\"]\n\
        CMD [\"/list\"]\n";
    let files = [
        ("Dockerfile", dockerfile),
        (".dockerignore", "*.log\nsecret\n!keep.log\n"),
        ("a.log", "x"),
        ("keep.log", "x"),
        ("secret/key", "x"),
        // The engine's cache outlives a test: this is new every time.
        ("src", &w.app.to_string()),
    ];
    let ran = w.build(w.commit(&files)).await;
    for says in ["       ran", "2 files left out (.dockerignore)"] {
        assert!(ran.says(says), "{says:?} is missing in\n{}\n{:?}", ran.log.join("\n"), ran.result);
    }
    let built = ran.ok();
    assert_eq!(built.port, Some(3000));
    let (said, status) = w.run(&built.image, Command::Image).await;
    assert_eq!((said.as_str(), status), (".dockerignore\nDockerfile\nkeep.log\nlist\nsrc\nhttp://mirror.example\n", 0));
    let again = w.build(w.commit(&files)).await;
    assert!(again.says("Using cache") && !again.says("       ran"), "{}", again.log.join("\n"));
    again.ok();

    // A Procfile says what to run, whatever the image says.
    let procfile = [files.as_slice(), &[("Procfile", "web: cat /list\nworker: sleep 1\n")]].concat();
    let with_procfile = w.build(w.commit(&procfile)).await.ok();
    assert_eq!(with_procfile.process_types.len(), 2);

    for (dockerfile, code, says) in [
        ("FROM flex/flex-mini:run\nADD http://169.254.169.254/latest /x\n", "dockerfile_refused", "line 2"),
        ("FROM flex/flex-mini:run\nONBUILD ADD $X /x\n", "dockerfile_refused", "RUN curl"),
        ("FROM 127.0.0.1:9/none:1\n", "no_image", "127.0.0.1:9/none:1"),
        ("FROM scratch\nCOPY src /src\n", "no_command", "CMD"),
        ("FROM flex/flex-mini:run\nCOPY ../../etc/passwd /x\n", "dockerfile_failed", "passwd"),
        ("NONSENSE\n", "dockerfile_failed", "NONSENSE"),
    ] {
        let ran = w.build(w.commit(&[("Dockerfile", dockerfile), ("src", "x")])).await;
        assert_eq!(ran.err().code(), code, "{dockerfile}: {}", ran.err());
        assert!(ran.err().to_string().contains(says), "{dockerfile}: {}", ran.err());
    }

    // A link out of the source leads nowhere: neither into the image nor into the log.
    let outside = w.dir.path().join("outside");
    std::fs::write(&outside, "of the machine").unwrap();
    let packed = w.dir.path().join("link.tar");
    let tree = w.dir.path().join("link");
    std::fs::create_dir(&tree).unwrap();
    std::os::unix::fs::symlink(&outside, tree.join("out")).unwrap();
    std::os::unix::fs::symlink("/", tree.join("root")).unwrap();
    let path = format!("root{}", outside.display());
    let copies = format!("FROM flex/flex-mini:run\nCOPY {path} /b\nCMD [\"cat\", \"/b\"]\n");
    for copies in ["FROM flex/flex-mini:run\nCOPY out /a\nCMD [\"cat\", \"/a\"]\n", copies.as_str()] {
        std::fs::write(tree.join("Dockerfile"), copies).unwrap();
        let tar = process::Command::new("tar").arg("-cf").arg(&packed).arg("-C").arg(&tree).arg(".").status().unwrap();
        assert!(tar.success());
        let ran = w.build(Source::Archive(packed.clone())).await;
        assert!(!ran.says("of the machine"), "{}", ran.log.join("\n"));
        if let Ok(out) = ran.result {
            assert!(!w.run(&out.image, Command::Image).await.0.contains("of the machine"));
        }
    }
    w.builder.remove_app(w.app).await.unwrap();
}

#[tokio::test]
async fn a_dockerfile_meets_the_limits_too() {
    let from = "FROM flex/flex-mini:run\n";
    let file = |w: &World, run: &str| w.commit(&[("Dockerfile", &format!("{from}{run}\nCMD [\"true\"]\n"))]);
    let w = world(|s| s.timeout = std::time::Duration::from_secs(10)).await;
    let started = std::time::Instant::now();
    let ran = w.build(file(&w, "RUN sleep 1000")).await;
    assert_eq!(ran.err().code(), "time_limit", "{}\n{}", ran.err(), ran.log.join("\n"));
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
    let w = world(|s| s.output_bytes = 100 << 10).await;
    assert_eq!(w.build(file(&w, "RUN yes flood | head -c 100000000")).await.err().code(), "output_limit");
    let w = world(|s| s.disk_bytes = 30 << 20).await;
    let fill = "RUN head -c 20000000 /dev/zero > /tmp/a\nRUN head -c 20000000 /dev/zero > /tmp/b\nRUN sleep 1000";
    let ran = w.build(file(&w, fill)).await;
    assert_eq!(ran.err().code(), "disk_limit", "{}\n{}", ran.err(), ran.log.join("\n"));
    let stop = CancellationToken::new();
    let ran = w.build_until("begun", file(&w, "RUN echo begun; sleep 1000"), stop).await;
    assert_eq!(ran.err().code(), "cancelled");
    // What a build that failed leaves behind goes, and not what it began with.
    assert_eq!(w.build(file(&w, "RUN exit 1")).await.err().code(), "dockerfile_failed");
    w.builder.remove_app(w.app).await.unwrap();
    assert!(w.runtime.has_image("flex/flex-mini:run").await.unwrap());
    w.builder.remove_app(w.app).await.unwrap();
}
