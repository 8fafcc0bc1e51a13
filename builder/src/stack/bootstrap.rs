//! Root file systems from Debian packages: mmdebstrap as an argument vector, finished by a constant script.

use super::{
    StackError,
    lock::Lock,
    recipe::RecipeDir,
    sources::{self, Mirrors},
};
use crate::BuildSettings;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::mpsc,
};

/// apt's preferences for a locked making.
const PREFERENCES: &str = "preferences";

/// Run by mmdebstrap at the end.
pub(super) const CUSTOMIZE: &str = include_str!("customize.sh");

/// What of this process's environment the tools see: proxies and CA bundles, and nothing else of the platform.
const PASSED: [&str; 16] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "NODE_EXTRA_CA_CERTS",
];

/// Documentation stays out, copyright files stay in.
const DPKG_OPTIONS: [&str; 8] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
    // The script takes it out again.
    "force-unsafe-io",
];

/// The trees of both images, as tars, and their package lists.
pub(super) struct Trees {
    out: PathBuf,
}

impl Trees {
    pub(super) fn tar(&self, image: &str) -> PathBuf {
        self.out.join(format!("{image}.tar"))
    }
    pub(super) fn packages(&self, image: &str) -> PathBuf {
        self.out.join(format!("{image}.packages"))
    }
}

/// `*.crt` in a folder and those below it, in order: as update-ca-certificates finds them.
pub(super) fn certificates_in(top: &Path) -> Vec<PathBuf> {
    let (mut out, mut todo) = (Vec::new(), vec![(top.to_owned(), 0)]);
    while let Some((dir, depth)) = todo.pop() {
        for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
            // Links to folders are followed, round and round if they lead there.
            if path.is_dir() && depth < 8 {
                todo.push((path, depth + 1));
            } else if path.is_file() && path.extension().is_some_and(|e| e == "crt") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

/// The name of a certificate in one flat folder.
fn flat_name(top: &Path, certificate: &Path) -> String {
    certificate.strip_prefix(top).unwrap_or(certificate).to_string_lossy().replace('/', "--")
}

/// What of an environment the tools see.
fn passed(environment: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    PASSED.iter().filter_map(|name| Some((*name, environment(name)?))).collect()
}

/// Makes both trees in the empty directory `work`. Hooks download through the same mirrors as builds (`[build.env]`).
pub(super) async fn trees(
    recipe: &RecipeDir,
    lock: Option<&Lock>,
    settings: &BuildSettings,
    work: &Path,
    log: &mpsc::Sender<String>,
) -> Result<Trees, StackError> {
    let name = recipe.recipe.name.as_str();
    let failed =
        |doing: &str, e: &dyn std::fmt::Display| StackError::Build { name: name.into(), problem: format!("{doing}: {e}") };
    let prepare = || -> std::io::Result<(PathBuf, PathBuf)> {
        fs::create_dir(work.join("out"))?;
        let certs = work.join("certs");
        fs::create_dir(&certs)?;
        for cert in certificates_in(&settings.certificates) {
            fs::copy(&cert, certs.join(flat_name(&settings.certificates, &cert)))?;
        }
        if let Some(lock) = lock {
            fs::write(work.join(PREFERENCES), lock.preferences())?;
        }
        let script = work.join("customize");
        fs::write(&script, CUSTOMIZE)?;
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok((script, certs))
    };
    let (script, certs) = prepare().map_err(|e| failed("preparing the directory", &e))?;
    let absolute = |p: Option<PathBuf>| p.and_then(|p| fs::canonicalize(p).ok()).unwrap_or_default();
    let mut command = confined("mmdebstrap").await;
    command
        .args(arguments(recipe, &script, mirrors_of(recipe), &machine_proxies(), lock.map(|_| work.join(PREFERENCES)).as_deref()))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("TMPDIR", work)
        .env("SOURCE_DATE_EPOCH", recipe.recipe.source_date_epoch.to_string())
        .env("FLEX_ROOTFS", absolute(recipe.rootfs()))
        .env("FLEX_RUN_HOOK", absolute(recipe.hook("run")))
        .env("FLEX_BUILD_HOOK", absolute(recipe.hook("build")))
        .env("FLEX_CERTS", certs)
        .env("FLEX_OUT", work.join("out"))
        .env("FLEX_BUILD_PACKAGES", recipe.recipe.build.packages.join(" "))
        .envs(&settings.env)
        .envs(passed(|name| std::env::var_os(name)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::NotFound { ": install the Debian package mmdebstrap" } else { "" };
        failed("starting mmdebstrap", &format!("{e}{hint}"))
    })?;
    let mut last = std::collections::VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = BufReader::new(stderr);
        let mut raw = Vec::new();
        // Bytes, not text: packages print what they like, and a reader that stops early kills the writer.
        while stderr.read_until(b'\n', &mut raw).await.map_err(|e| failed("reading mmdebstrap's messages", &e))? > 0 {
            let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
            raw.clear();
            if let Some(step) = line.strip_prefix("I: ") {
                let _ = log.send(format!("       {step}")).await;
            }
            last.push_back(line);
            if last.len() > 20 {
                last.pop_front();
            }
        }
    }
    let status = child.wait().await.map_err(|e| failed("waiting for mmdebstrap", &e))?;
    if !status.success() {
        let tail = Vec::from(last).join("\n");
        if tail.contains("failed to execute mmdebstrap") {
            return Err(failed("starting mmdebstrap", &"it is not there: install the Debian package mmdebstrap"));
        }
        return Err(failed("mmdebstrap failed; its last lines", &format!("\n{tail}")));
    }
    Ok(Trees { out: work.join("out") })
}

/// A program in a mount namespace of its own, where one may be made: what it mounts below its directory goes with it, also when
/// it is killed, and nobody who removes that directory walks into the machine's `/dev`, `/proc` and `/sys`.
async fn confined(program: &str) -> Command {
    let mut unshare = Command::new("unshare");
    let tried = unshare.args(["--mount", "--", "true"]).stdin(Stdio::null()).output().await;
    if !tried.is_ok_and(|o| o.status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", program]);
    command
}

/// The recipe's mirror, else the machine's own.
fn mirrors_of(recipe: &RecipeDir) -> Option<Mirrors> {
    match &recipe.recipe.mirror {
        Some(mirror) => Some(Mirrors { main: mirror.clone(), security: None }),
        None => sources::of_machine(Path::new("/etc/apt")),
    }
}

/// mmdebstrap's. `preferences`: apt's, in a file.
fn arguments(
    recipe: &RecipeDir,
    script: &Path,
    mirrors: Option<Mirrors>,
    proxies: &[String],
    preferences: Option<&Path>,
) -> Vec<OsString> {
    let r = &recipe.recipe;
    let mut args: Vec<OsString> = ["--variant=minbase", "--format=null", "--keyring=/usr/share/keyrings"].map(Into::into).into();
    args.push(format!("--components={}", r.components.join(",")).into());
    args.push(format!("--include={}", r.run.packages.join(",")).into());
    args.extend(DPKG_OPTIONS.iter().map(|o| format!("--dpkgopt={o}").into()));
    // Languages are left out, so their indices need no download; nor is a proxy of apt's own settings passed over.
    args.push("--aptopt=Acquire::Languages \"none\"".into());
    args.push("--aptopt=Acquire::Retries \"3\"".into());
    args.extend(proxies.iter().map(|line| format!("--aptopt={line}").into()));
    if let Some(file) = preferences {
        // Outside the tree, so that it is in no image.
        args.push(format!("--aptopt=Dir::Etc::Preferences \"{}\"", file.display()).into());
        if r.mirror.is_some() {
            // A mirror of an earlier day is what brings old versions back, and its lists have run out.
            args.push("--aptopt=Acquire::Check-Valid-Until \"false\"".into());
        }
    }
    // Without manual pages their directories are missing too, and packages that register alternatives there (every Java)
    // fail to install.
    args.push(
        concat!(
            "--essential-hook=mkdir -p \"$1\"/usr/share/man/man1 \"$1\"/usr/share/man/man5 ",
            "\"$1\"/usr/share/man/man7 \"$1\"/usr/share/man/man8"
        )
        .into(),
    );
    let mut hook = OsString::from("--customize-hook=");
    hook.push(script);
    args.push(hook);
    args.push(r.suite.as_str().into());
    // The tree is written by the script; mmdebstrap's own output is not wanted.
    args.push("/dev/null".into());
    let lines = mirrors.map(|m| m.lines(&r.suite, &r.components)).unwrap_or_default();
    args.extend(lines.into_iter().map(Into::into));
    args
}

/// `Acquire::…::Proxy` lines of the machine's apt.
fn machine_proxies() -> Vec<String> {
    match std::process::Command::new("apt-config").args(["dump", "--format", "%F %v%n"]).output() {
        Ok(out) => proxies_in(&String::from_utf8_lossy(&out.stdout)),
        Err(_) => Vec::new(),
    }
}

/// From what `apt-config dump` prints: a name and a value a line.
fn proxies_in(dump: &str) -> Vec<String> {
    let keys = ["Acquire::http::Proxy ", "Acquire::https::Proxy ", "Acquire::https::CAInfo "];
    dump.lines()
        .filter(|l| keys.iter().any(|k| l.starts_with(k)))
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, v)| !v.is_empty() && !v.contains('"'))
        .map(|(k, v)| format!("{k} \"{v}\""))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(more: &str) -> (tempfile::TempDir, RecipeDir) {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("name = \"st\"\n{more}\n[run]\npackages = [\"bash\", \"curl\"]\n");
        fs::write(dir.path().join("stack.toml"), text).unwrap();
        let recipe = RecipeDir::load(dir.path(), &[], "1").unwrap();
        (dir, recipe)
    }

    fn texts(args: Vec<OsString>) -> Vec<String> {
        args.into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn the_tools_see_proxies_and_bundles_and_nothing_else() {
        let environment = |name: &str| {
            let set =
                ["https_proxy", "NO_PROXY", "SSL_CERT_FILE", "PIP_INDEX_URL", "FLEX_TOKEN", "FLEXD_MASTER_KEY", "HOME", "PATH"];
            set.contains(&name).then(|| OsString::from(format!("the {name}")))
        };
        let names: Vec<&str> = passed(environment).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["https_proxy", "NO_PROXY", "SSL_CERT_FILE", "PIP_INDEX_URL"]);
    }

    #[test]
    fn apts_own_proxies_are_kept() {
        let dump = "Acquire \nAcquire::http::Proxy http://proxy.lan:3142\nAcquire::https::Proxy \nAcquire::https::CAInfo /etc/ca.pem\n\
                    Acquire::http::Proxy::mirror.lan DIRECT\nAcquire::https::Proxy x\"; Dir \"/\n";
        let lines = proxies_in(dump);
        assert_eq!(lines, ["Acquire::http::Proxy \"http://proxy.lan:3142\"", "Acquire::https::CAInfo \"/etc/ca.pem\""]);
        let (_dir, recipe) = recipe("");
        let mirrors = Mirrors { main: "http://mirror.lan/debian".into(), security: None };
        let args = texts(arguments(&recipe, Path::new("/made/customize"), Some(mirrors), &lines, None));
        for wanted in [
            "--aptopt=Acquire::http::Proxy \"http://proxy.lan:3142\"",
            "--aptopt=Acquire::https::CAInfo \"/etc/ca.pem\"",
            "--include=bash,curl",
            "--customize-hook=/made/customize",
            "deb http://mirror.lan/debian trixie main",
        ] {
            assert!(args.iter().any(|a| a == wanted), "{wanted}: {args:?}");
        }
        assert!(!args.iter().any(|a| a.contains("Preferences") || a.contains("Valid-Until")), "{args:?}");
    }

    #[test]
    fn a_lock_is_told_to_apt() {
        for (more, old) in [("", false), ("mirror = \"http://snapshot.lan/1\"", true)] {
            let (_dir, recipe) = recipe(more);
            let args = texts(arguments(&recipe, Path::new("/c"), mirrors_of(&recipe), &[], Some(Path::new("/made/preferences"))));
            assert!(args.iter().any(|a| a == "--aptopt=Dir::Etc::Preferences \"/made/preferences\""), "{args:?}");
            assert_eq!(args.iter().any(|a| a.contains("Check-Valid-Until")), old, "{args:?}");
        }
    }

    #[test]
    fn certificates_are_found_in_folders_too() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        fs::create_dir_all(top.join("company/2026")).unwrap();
        for name in ["proxy.crt", "company/root.crt", "company/2026/root.crt", "company/README", "key.pem"] {
            fs::write(top.join(name), name).unwrap();
        }
        // A link that leads back up ends somewhere.
        let deep = dir.path().join("round");
        fs::create_dir(&deep).unwrap();
        std::os::unix::fs::symlink(&deep, deep.join("round")).unwrap();
        let found = certificates_in(top);
        let names: Vec<String> = found.iter().map(|c| flat_name(top, c)).collect();
        assert_eq!(names, ["company--2026--root.crt", "company--root.crt", "proxy.crt"]);
        assert_eq!(certificates_in(&top.join("absent")), [""; 0].map(PathBuf::from));
    }
}
