//! A stack's recipe: `stack.toml`, `rootfs/` and `hooks/` of a directory. Pure but for reading those files.

use super::StackError;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

/// Date of the files of images, where a recipe states none: Debian 13's release. It must not change, or every layer would.
pub const DEFAULT_EPOCH: u64 = 1_754_697_600;

/// `stack.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: flex_model::StackName,
    #[serde(default)]
    pub description: String,
    /// Debian release to take packages from.
    #[serde(default = "trixie")]
    pub suite: String,
    #[serde(default = "main_only")]
    pub components: Vec<String>,
    /// Package mirror; none: the machine's own.
    pub mirror: Option<String>,
    /// Date of everything in the images, seconds since 1970.
    #[serde(default = "default_epoch")]
    pub source_date_epoch: u64,
    /// Use this image and no packages: `docker-daemon:NAME:TAG`, `docker://NAME:TAG`, `oci:DIR:TAG` (what `skopeo` reads).
    pub base_image: Option<String>,
    /// The image to build on, where it is another than `base_image`; it must contain that one's layers.
    pub build_image: Option<String>,
    #[serde(default)]
    pub run: Packages,
    /// On top of the run image's.
    #[serde(default)]
    pub build: Packages,
}

/// A list of Debian packages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    #[serde(default)]
    pub packages: Vec<String>,
}

fn trixie() -> String {
    "trixie".into()
}
fn main_only() -> Vec<String> {
    vec!["main".into()]
}
fn default_epoch() -> u64 {
    DEFAULT_EPOCH
}

/// A recipe with its files.
#[derive(Debug, Clone)]
pub struct RecipeDir {
    pub dir: PathBuf,
    pub recipe: Recipe,
    /// SHA-256 of everything that decides what comes out.
    pub hash: String,
}

impl RecipeDir {
    /// Reads and checks a recipe. `certificates` are installed into the images, so they count for the hash.
    ///
    /// # Errors
    /// A missing or wrong `stack.toml`, naming the field; or files that cannot be read.
    pub fn load(dir: &Path, certificates: &[PathBuf], salt: &str) -> Result<Self, StackError> {
        let path = dir.join("stack.toml");
        let wrong = |problem: String| StackError::Recipe { path: path.clone(), problem };
        let text = fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
        let recipe = parse(&text).map_err(wrong)?;
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(salt.as_bytes());
        part(text.as_bytes());
        let files = [dir.join("rootfs"), dir.join("hooks")].into_iter().chain(certificates.iter().cloned());
        for file in files {
            add_tree(&file, &mut part).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
        }
        Ok(Self { dir: dir.to_owned(), recipe, hash: hex::encode(hash.finalize()) })
    }

    /// `rootfs/`, if it is there.
    pub fn rootfs(&self) -> Option<PathBuf> {
        Some(self.dir.join("rootfs")).filter(|p| p.is_dir())
    }
    /// `hooks/NAME.sh`, if it is there.
    pub fn hook(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join("hooks").join(format!("{name}.sh"))).filter(|p| p.is_file())
    }
}

/// Reads `stack.toml`.
///
/// # Errors
/// What is wrong, with its place.
pub fn parse(text: &str) -> Result<Recipe, String> {
    let recipe: Recipe = toml::from_str(text).map_err(|e| e.to_string())?;
    let word = |s: &str| {
        !s.is_empty()
            && s.len() <= 100
            && s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:".contains(&b))
    };
    let named = [("suite", std::slice::from_ref(&recipe.suite)), ("components", &recipe.components)];
    for (what, list) in
        named.into_iter().chain([("run.packages", &*recipe.run.packages), ("build.packages", &*recipe.build.packages)])
    {
        if let Some(bad) = list.iter().find(|s| !word(s)) {
            return Err(format!("{what}: {bad:?} is not a name (letters, digits and + - . only)"));
        }
    }
    if let Some(mirror) = &recipe.mirror
        && !(mirror.starts_with("http://") || mirror.starts_with("https://")) | mirror.contains(char::is_whitespace)
    {
        return Err("mirror: use an http or https URL".into());
    }
    for image in [&recipe.base_image, &recipe.build_image].into_iter().flatten() {
        let known = ["docker-daemon:", "docker://", "oci:", "oci-archive:", "docker-archive:"];
        if !known.iter().any(|t| image.starts_with(t)) || image.contains(char::is_whitespace) {
            return Err(format!("base_image: {image:?} must start with one of {}", known.join(" ")));
        }
    }
    if recipe.base_image.is_some() && !(recipe.run.packages.is_empty() && recipe.build.packages.is_empty()) {
        return Err("a stack is made either from base_image or from packages, not from both".into());
    }
    if recipe.base_image.is_none() && recipe.run.packages.is_empty() {
        return Err("run.packages: name at least one package, such as bash".into());
    }
    Ok(recipe)
}

fn add_tree(path: &Path, part: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    part(path.file_name().unwrap_or_default().as_bytes());
    if meta.is_dir() {
        let mut names = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        part(&(names.len() as u64).to_le_bytes());
        return names.iter().try_for_each(|p| add_tree(p, part));
    }
    if meta.is_symlink() {
        part(fs::read_link(path)?.as_os_str().as_bytes());
    } else {
        part(&[u8::from(meta.permissions().mode() & 0o111 != 0)]);
        part(&fs::read(path)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_checked() {
        let ok =
            parse("name = \"flex-13\"\n[run]\npackages = [\"bash\", \"libstdc++6\"]\n[build]\npackages = [\"gcc\"]\n").unwrap();
        assert_eq!((ok.suite.as_str(), ok.source_date_epoch), ("trixie", DEFAULT_EPOCH));
        for (bad, says) in [
            ("name = \"X y\"\n[run]\npackages=[\"a\"]", "stack"),
            ("name = \"st\"\n[run]\npackages=[\"bash; id\"]", "run.packages"),
            ("name = \"st\"\n[run]\npackages=[\"-oDPkg::x\"]", "run.packages"),
            ("name = \"st\"\nsuite=\"$(id)\"\n[run]\npackages=[\"a\"]", "suite"),
            ("name = \"st\"", "run.packages"),
            ("name = \"st\"\nmirror=\"ftp://x\"\n[run]\npackages=[\"a\"]", "mirror"),
            ("name = \"st\"\nbase_image=\"docker://x\"\n[run]\npackages=[\"a\"]", "either"),
            ("name = \"st\"\nbase_image=\"--help\"", "base_image"),
            ("name = \"st\"\nnmae=1", "nmae"),
        ] {
            let e = parse(bad).unwrap_err();
            assert!(e.contains(says), "{bad}: {e}");
        }
    }

    #[test]
    fn the_documents_example_is_a_recipe() {
        let page = include_str!("../../../docs/buildpacks.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let recipe = parse(example).unwrap();
        assert!(recipe.base_image.is_some_and(|i| i.starts_with("docker-daemon:")) && recipe.build_image.is_some());
    }

    #[test]
    fn the_hash_sees_every_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("rootfs/opt")).unwrap();
        fs::write(dir.path().join("stack.toml"), "name = \"st\"\n[run]\npackages = [\"bash\"]\n").unwrap();
        let hash = || RecipeDir::load(dir.path(), &[], "1").unwrap().hash;
        let first = hash();
        assert_eq!(first, hash());
        fs::write(dir.path().join("rootfs/opt/x"), "a").unwrap();
        let second = hash();
        assert_ne!(first, second);
        fs::set_permissions(dir.path().join("rootfs/opt/x"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(second, hash());
    }
}
