//! Which buildpacks build a source. Pure: what the app asks for, the source's key files and the list of built-ins in,
//! a plan or a helpful refusal out.

use crate::{BuildError, source::SourceTree};
use flex_model::{BuildpackRef, app_json::AppJson, build::BuildpackKind};

/// How a source is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// With the engine's own builder, from the `Dockerfile` at the root.
    Dockerfile,
    /// These, in order; each must accept the source.
    Listed(Vec<Pack>),
    /// The first of these that accepts it.
    Detect(Vec<Pack>),
}

/// One buildpack to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) place: Place,
    /// As people know it; credentials in a URL are left out.
    pub(crate) shown: String,
}

/// Where a buildpack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory of the built-in ones.
    BuiltIn(String),
    /// The source's own `bin/`.
    Inline,
    /// `./dir` in the source.
    Path(String),
    /// Cloned inside the build container.
    Git { url: String, reference: Option<String> },
    /// Downloaded and unpacked inside the build container.
    Archive(String),
}

impl Pack {
    /// The four arguments that the driver takes for it.
    pub(crate) fn arguments(&self) -> [String; 4] {
        let (kind, value, reference) = match &self.place {
            Place::BuiltIn(name) => ("builtin", name.as_str(), ""),
            Place::Inline => ("inline", "", ""),
            Place::Path(path) => ("path", path.as_str(), ""),
            Place::Git { url, reference } => ("git", url.as_str(), reference.as_deref().unwrap_or("")),
            Place::Archive(url) => ("archive", url.as_str(), ""),
        };
        [kind.into(), value.into(), reference.into(), self.shown.clone()]
    }

    fn from_ref(r: &BuildpackRef, builtins: &[String]) -> Result<Self, BuildError> {
        let place = match r.kind() {
            BuildpackKind::BuiltIn("inline") => Place::Inline,
            BuildpackKind::BuiltIn(name) => {
                if !builtins.iter().any(|b| b == name) {
                    let message =
                        format!("there is no built-in buildpack {name:?}: use one of {}, or a URL", builtins.join(", "));
                    return Err(BuildError::user("unknown_buildpack", message));
                }
                Place::BuiltIn(name.to_owned())
            }
            BuildpackKind::Archive(url) => Place::Archive(url.to_owned()),
            BuildpackKind::Git(url, reference) => Place::Git { url: url.to_owned(), reference: reference.map(str::to_owned) },
            BuildpackKind::Path(path) => Place::Path(path.to_owned()),
        };
        Ok(Self { place, shown: without_credentials(r.as_str()) })
    }
}

/// Decides how to build. `asked` are the app's own buildpacks, `url` its `BUILDPACK_URL`, `builtins` the built-in
/// ones in their order of detection.
///
/// # Errors
/// A reference that is not one, an unknown built-in, or a source that nothing here can build.
pub(crate) fn resolve(
    asked: &[BuildpackRef],
    url: Option<&str>,
    source: &SourceTree,
    app_json: &AppJson,
    builtins: &[String],
) -> Result<Plan, BuildError> {
    if !asked.is_empty() {
        return listed(asked, builtins);
    }
    if let Some(url) = url.map(str::trim).filter(|u| !u.is_empty()) {
        // The value is a config var: the message must not repeat it.
        let bad = |_| BuildError::user("bad_buildpack_url", "BUILDPACK_URL is neither a URL nor a built-in buildpack's name");
        return listed(&[url.parse::<BuildpackRef>().map_err(bad)?], builtins);
    }
    if !app_json.buildpacks.is_empty() {
        return listed(&app_json.buildpacks, builtins);
    }
    let from_file = buildpacks_file(source.text(".buildpacks")?.unwrap_or(""))?;
    if !from_file.is_empty() {
        return listed(&from_file, builtins);
    }
    if source.executable("bin/detect") && source.executable("bin/compile") {
        return Ok(Plan::Listed(vec![Pack { place: Place::Inline, shown: "inline".into() }]));
    }
    if source.key_files.contains_key("Dockerfile") {
        return Ok(Plan::Dockerfile);
    }
    if builtins.is_empty() {
        return Err(nothing_detected(builtins, source));
    }
    let all = builtins.iter().map(|b| Pack { place: Place::BuiltIn(b.clone()), shown: b.clone() });
    Ok(Plan::Detect(all.collect()))
}

fn listed(refs: &[BuildpackRef], builtins: &[String]) -> Result<Plan, BuildError> {
    if let [only] = refs
        && matches!(only.kind(), BuildpackKind::BuiltIn("dockerfile" | "docker" | "container"))
    {
        return Ok(Plan::Dockerfile);
    }
    Ok(Plan::Listed(refs.iter().map(|r| Pack::from_ref(r, builtins)).collect::<Result<_, _>>()?))
}

fn buildpacks_file(text: &str) -> Result<Vec<BuildpackRef>, BuildError> {
    let mut out = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |e| BuildError::user("bad_buildpacks_file", format!(".buildpacks line {}: {e}", i + 1));
        out.push(line.parse().map_err(bad)?);
        if out.len() > 20 {
            return Err(BuildError::user("bad_buildpacks_file", ".buildpacks names more than 20 buildpacks"));
        }
    }
    Ok(out)
}

/// The refusal of a source that no buildpack accepts, with what was looked for.
pub(crate) fn nothing_detected(builtins: &[String], source: &SourceTree) -> BuildError {
    let mut why = format!(
        "no buildpack accepts this source. Looked for: buildpacks set on the app, BUILDPACK_URL, app.json, .buildpacks, \
         bin/detect and bin/compile, a Dockerfile, and the built-in buildpacks ({}). \
         Set one with `flex buildpacks:set NAME-OR-URL`, or add the file that your language's tools expect at the root",
        builtins.join(", ")
    );
    let scripts = ["bin/detect", "bin/compile"];
    if scripts.iter().any(|f| source.key_files.contains_key(f)) && !scripts.iter().all(|f| source.executable(f)) {
        why.push_str(
            ". An inline buildpack needs bin/detect and bin/compile, both executable: \
                      `git update-index --chmod=+x bin/detect bin/compile`",
        );
    }
    BuildError::user("no_buildpack", why)
}

/// `https://user:token@host/x` without what stands before the `@`.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let path = path.split('?').next().unwrap_or(path);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::KeyFile;
    use std::collections::BTreeMap;

    fn tree(files: &[(&'static str, &str, bool)]) -> SourceTree {
        let key = |(name, text, x): &(&'static str, &str, bool)| {
            (*name, KeyFile { contents: text.as_bytes().to_vec(), executable: *x })
        };
        SourceTree {
            tar: tempfile::NamedTempFile::new().unwrap().into_temp_path(),
            key_files: files.iter().map(key).collect::<BTreeMap<_, _>>(),
            epoch: 0,
            notes: Vec::new(),
        }
    }

    fn plan(asked: &[&str], url: Option<&str>, files: &[(&'static str, &str, bool)]) -> Result<Plan, BuildError> {
        let builtins = ["python".to_owned(), "nodejs".to_owned()];
        let asked: Vec<BuildpackRef> = asked.iter().map(|s| s.parse().unwrap()).collect();
        let tree = tree(files);
        let json = flex_model::app_json::parse(tree.text("app.json")?.unwrap_or("{}")).unwrap();
        resolve(&asked, url, &tree, &json, &builtins)
    }

    fn shown(p: Result<Plan, BuildError>) -> Vec<String> {
        match p.unwrap() {
            Plan::Dockerfile => vec!["dockerfile".into()],
            Plan::Listed(packs) => packs.into_iter().map(|p| p.shown).collect(),
            Plan::Detect(packs) => std::iter::once("?".to_owned()).chain(packs.into_iter().map(|p| p.shown)).collect(),
        }
    }

    #[test]
    fn the_most_explicit_wins() {
        let inline = [("bin/detect", "", true), ("bin/compile", "", true)];
        let file = (".buildpacks", "# two\nhttps://h/a.git#v1\r\n\nheroku/python\n", false);
        let json = ("app.json", r#"{"buildpacks":[{"url":"heroku/nodejs"}]}"#, false);
        let docker = ("Dockerfile", "FROM x", false);
        let all = [inline[0], inline[1], file, json, docker];
        assert_eq!(shown(plan(&["heroku/python"], Some("nodejs"), &all)), ["heroku/python"]);
        assert_eq!(shown(plan(&[], Some("nodejs"), &all)), ["nodejs"]);
        assert_eq!(shown(plan(&[], None, &all)), ["heroku/nodejs"]);
        assert_eq!(shown(plan(&[], None, &[inline[0], inline[1], file])), ["https://h/a.git#v1", "heroku/python"]);
        assert_eq!(shown(plan(&[], None, &[inline[0], inline[1], docker])), ["inline"]);
        assert_eq!(shown(plan(&[], None, &[docker])), ["dockerfile"]);
        assert_eq!(shown(plan(&[], None, &[])), ["?", "python", "nodejs"]);
    }

    #[test]
    fn refusals_say_what_to_do_and_no_secret() {
        let text = |p: Result<Plan, BuildError>| p.unwrap_err().to_string();
        assert!(text(plan(&["cobol"], None, &[])).contains("python, nodejs"));
        let e = text(plan(&[], Some("ssh://user:hunter2@h/x"), &[]));
        assert!(e.contains("BUILDPACK_URL") && !e.contains("hunter2"), "{e}");
        assert!(text(plan(&[], None, &[(".buildpacks", "\n--upload-pack=x\n", false)])).contains("line 2"));
        let e = nothing_detected(&["python".into()], &tree(&[("bin/detect", "", false)])).to_string();
        assert!(e.contains("chmod=+x") && e.contains("python"), "{e}");
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(without_credentials("https://u:p@h.example/x.git#v1"), "https://h.example/x.git#v1");
        assert_eq!(without_credentials("https://h/x.tgz?token=abc"), "https://h/x.tgz");
        assert_eq!(without_credentials("heroku/python"), "heroku/python");
    }
}
