//! A stack of a few megabytes: this machine's bash and tar, busybox for the rest. Made once for all tests.

use flex_tests::binary;
use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const NAME: &str = "tiny";

/// What the build's driver needs beyond busybox's own versions.
const PROGRAMS: [&str; 5] = ["bash", "tar", "du", "find", "base64"];

fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The folder of the stack, which is then in the engine with this socket (none: the machine's).
pub fn stacks(socket: Option<&Path>) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-stack");
    fs::create_dir_all(&home).unwrap();
    let lock = File::create(home.join("lock")).unwrap();
    // The other holder is another test, which makes it.
    lock.lock().unwrap();
    // Another text of this file makes another image.
    let mut hash = std::hash::DefaultHasher::new();
    include_str!("tiny.rs").hash(&mut hash);
    let archive = home.join(format!("image-{:x}.tar", hash.finish()));
    if !archive.exists() {
        write_image(&home, &archive);
    }
    let recipe = home.join("recipes/stacks").join(NAME);
    fs::create_dir_all(&recipe).unwrap();
    let text = format!("name = \"{NAME}\"\nbase_image = \"docker-archive:{}\"\n", archive.display());
    fs::write(recipe.join("stack.toml"), text).unwrap();
    let data = home.join("data");
    let mut build = Command::new(binary("flexd"));
    build.arg("--data-dir").arg(&data).args(["stack", "build", NAME]);
    build.env("FLEXD_BUILDPACKS", home.join("recipes"));
    if let Some(socket) = socket {
        build.env("FLEXD_DOCKER", socket);
    }
    run(&mut build);
    data.join("stacks")
}

/// An image as `docker save` writes it.
fn write_image(home: &Path, archive: &Path) {
    let (tree, parts) = (home.join("rootfs"), home.join("parts"));
    for old in [&tree, &parts] {
        let _ = fs::remove_dir_all(old);
    }
    for dir in ["bin", "usr", "lib", "lib64", "etc", "tmp", "root", "var"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::set_permissions(tree.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir_all(&parts).unwrap();
    std::os::unix::fs::symlink("/bin", tree.join("usr/bin")).unwrap();
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\n").unwrap();
    let busybox = PathBuf::from(run(Command::new("sh").args(["-c", "command -v busybox"])).trim());
    fs::copy(&busybox, tree.join("bin/busybox")).expect("a static busybox: the package busybox-static");
    for applet in run(Command::new(&busybox).arg("--list")).lines().filter(|a| !PROGRAMS.contains(a) && *a != "busybox") {
        std::os::unix::fs::symlink("/bin/busybox", tree.join("bin").join(applet)).unwrap();
    }
    for program in PROGRAMS {
        let path = ["/bin", "/usr/bin"].map(|d| Path::new(d).join(program)).into_iter().find(|p| p.exists()).unwrap();
        fs::copy(&path, tree.join("bin").join(program)).unwrap();
        for word in run(Command::new("ldd").arg(&path)).split_whitespace().filter(|w| w.starts_with('/')) {
            let to = tree.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(word, to).unwrap();
        }
    }
    let layer = parts.join("layer.tar");
    run(Command::new("tar").args(["--owner=0", "--group=0", "-cf"]).arg(&layer).arg("-C").arg(&tree).arg("."));
    let sum = run(Command::new("sha256sum").arg(&layer));
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": arch, "os": "linux", "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sum.split_whitespace().next().unwrap())] },
    });
    fs::write(parts.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["tiny:1"], "Layers": ["layer.tar"] }]);
    fs::write(parts.join("manifest.json"), manifest.to_string()).unwrap();
    let draft = home.join("image.part");
    run(Command::new("tar").arg("-cf").arg(&draft).arg("-C").arg(&parts).args(["manifest.json", "config.json", "layer.tar"]));
    fs::rename(draft, archive).unwrap();
}
