//! Root file systems from Debian packages: mmdebstrap as an argument vector, finished by a constant script.

use super::{StackError, recipe::RecipeDir, sources};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::mpsc,
};

/// Run by mmdebstrap at the end.
pub(super) const CUSTOMIZE: &str = include_str!("customize.sh");

/// Local additions to the machine's trust store: a proxy's certificate, a company's own authority.
const LOCAL_CERTIFICATES: &str = "/usr/local/share/ca-certificates";

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

/// Certificates that this machine trusts besides its distribution's.
pub(super) fn local_certificates() -> Vec<PathBuf> {
    let Ok(dir) = fs::read_dir(LOCAL_CERTIFICATES) else { return Vec::new() };
    let mut out: Vec<PathBuf> =
        dir.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "crt") && p.is_file()).collect();
    out.sort();
    out
}

/// Makes both trees in the empty directory `work`. `env` is `[build.env]`: hooks download through the same mirrors as builds.
pub(super) async fn trees(
    recipe: &RecipeDir,
    env: &BTreeMap<String, String>,
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
        for cert in local_certificates() {
            fs::copy(&cert, certs.join(cert.file_name().unwrap_or_default()))?;
        }
        let script = work.join("customize");
        fs::write(&script, CUSTOMIZE)?;
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok((script, certs))
    };
    let (script, certs) = prepare().map_err(|e| failed("preparing the directory", &e))?;
    let absolute = |p: Option<PathBuf>| p.and_then(|p| fs::canonicalize(p).ok()).unwrap_or_default();
    let mut command = Command::new("mmdebstrap");
    command
        .args(arguments(recipe, &script))
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
        .envs(env)
        .envs(PASSED.iter().filter_map(|k| Some((k, std::env::var_os(k)?))))
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
        let tail: Vec<String> = last.into();
        return Err(failed("mmdebstrap failed; its last lines", &format!("\n{}", tail.join("\n"))));
    }
    Ok(Trees { out: work.join("out") })
}

fn arguments(recipe: &RecipeDir, script: &Path) -> Vec<std::ffi::OsString> {
    let r = &recipe.recipe;
    let mut mirrors = sources::of_machine(Path::new("/etc/apt"));
    if let Some(mirror) = &r.mirror {
        mirrors = Some(sources::Mirrors { main: mirror.clone(), security: None });
    }
    let mut args: Vec<std::ffi::OsString> =
        ["--variant=minbase", "--format=null", "--keyring=/usr/share/keyrings"].map(Into::into).into();
    args.push(format!("--components={}", r.components.join(",")).into());
    args.push(format!("--include={}", r.run.packages.join(",")).into());
    args.extend(DPKG_OPTIONS.iter().map(|o| format!("--dpkgopt={o}").into()));
    // Languages are left out, so their indices need no download; nor is a proxy of apt's own settings passed over.
    args.push("--aptopt=Acquire::Languages \"none\"".into());
    args.push("--aptopt=Acquire::Retries \"3\"".into());
    args.extend(apt_proxies().into_iter().map(|line| format!("--aptopt={line}").into()));
    // Without manual pages their directories are missing too, and packages that register alternatives there (every Java)
    // fail to install.
    args.push(
        concat!(
            "--essential-hook=mkdir -p \"$1\"/usr/share/man/man1 \"$1\"/usr/share/man/man5 ",
            "\"$1\"/usr/share/man/man7 \"$1\"/usr/share/man/man8"
        )
        .into(),
    );
    let mut hook = std::ffi::OsString::from("--customize-hook=");
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
fn apt_proxies() -> Vec<String> {
    let Ok(out) = std::process::Command::new("apt-config").args(["dump", "--format", "%F %v%n"]).output() else {
        return Vec::new();
    };
    let keys = ["Acquire::http::Proxy ", "Acquire::https::Proxy ", "Acquire::https::CAInfo "];
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter(|l| keys.iter().any(|k| l.starts_with(k)))
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, v)| !v.is_empty() && !v.contains('"'))
        .map(|(k, v)| format!("{k} \"{v}\""))
        .collect()
}
