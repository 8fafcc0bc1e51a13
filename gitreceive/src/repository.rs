//! Bare repositories on the disk: made whole or not at all, readable by the daemon's user alone, swept of what
//! interrupted pushes left.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Why a repository could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("cannot {doing} the repository {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {doing} the repository {path}")]
    Git { doing: &'static str, path: PathBuf, source: git2::Error },
}

/// Makes an empty bare repository at `path` (mode 0700, `HEAD` on `main`, no hooks), or leaves the one that is there.
pub fn init_repository(path: &Path) -> Result<(), RepositoryError> {
    if path.join("HEAD").is_file() {
        return Ok(());
    }
    let fail = |doing| move |source| RepositoryError::Io { doing, path: path.to_owned(), source };
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(fail("make a folder for"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Unique, so that two callers at a time never share a draft.
    let draft = parent.join(format!(".{name}.new-{:016x}", rand::random::<u64>()));
    let made = (|| {
        fs::create_dir(&draft).map_err(fail("make"))?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o700)).map_err(fail("protect"))?;
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false).initial_head("main");
        git2::Repository::init_opts(&draft, &options).map_err(|source| RepositoryError::Git {
            doing: "make",
            path: path.to_owned(),
            source,
        })?;
        fs::remove_dir_all(draft.join("hooks")).or_else(ignore_missing).map_err(fail("clear the hooks of"))?;
        match fs::rename(&draft, path) {
            // Another caller was first.
            Err(_) if path.join("HEAD").is_file() => Ok(()),
            other => other.map_err(fail("put in place")),
        }
    })();
    let _ = fs::remove_dir_all(&draft);
    made
}

fn ignore_missing(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// Points `HEAD` at the first of these branches that exists, if it is not at one of them: who pushed only `master` can
/// clone it, and a clone follows when another branch is the one that deploys. Where none exists, nothing changes.
pub fn adopt_head(path: &Path, branches: &[String]) -> Result<(), RepositoryError> {
    let fail = |source| RepositoryError::Git { doing: "set HEAD of", path: path.to_owned(), source };
    let repository = git2::Repository::open_bare(path).map_err(fail)?;
    let exists = |name: &String| repository.find_reference(name).is_ok();
    let good: Vec<String> = branches.iter().map(|b| format!("refs/heads/{b}")).filter(exists).collect();
    let head = repository.find_reference("HEAD").map_err(fail)?;
    match good.first() {
        Some(first) if !good.iter().any(|name| head.symbolic_target().is_ok_and(|t| t == Some(name.as_str()))) => {
            repository.set_head(first).map_err(fail)
        }
        _ => Ok(()),
    }
}

/// The object id that a ref has; none: there is no such ref.
pub fn ref_at(path: &Path, name: &str) -> Result<Option<String>, RepositoryError> {
    let fail = |source| RepositoryError::Git { doing: "read a ref of", path: path.to_owned(), source };
    let repository = git2::Repository::open_bare(path).map_err(fail)?;
    match repository.refname_to_id(name) {
        Ok(id) => Ok(Some(id.to_string())),
        Err(e) if e.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(e) => Err(fail(e)),
    }
}

/// What a sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub removed: usize,
    /// Left alone because a git still works on the repository: sweep again later.
    pub busy: usize,
}

/// Removes the quarantines (`objects/tmp_objdir-incoming-*`) in every repository directly under `root` that no living
/// `git receive-pack` has, and the drafts of repositories that were last touched before `before`.
///
/// `receiving` is asked after the quarantines were listed: one that was seen, and whose git is gone by then, is nobody's. Their
/// age tells nothing: the helper of a git that was killed makes the directory anew when it comes to write.
pub fn sweep(root: &Path, before: SystemTime, receiving: impl FnOnce() -> io::Result<HashSet<PathBuf>>) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let old = |entry: &fs::DirEntry| entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t < before);
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(swept),
        other => other?,
    };
    let mut quarantines = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') && name.to_string_lossy().contains(".new-") && old(&entry) {
            fs::remove_dir_all(entry.path()).or_else(ignore_missing)?;
            swept.removed += 1;
            continue;
        }
        let Ok(objects) = fs::read_dir(entry.path().join("objects")) else { continue };
        let names = objects.flatten().filter(|o| o.file_name().to_string_lossy().starts_with("tmp_objdir-incoming-"));
        quarantines.extend(names.map(|o| (entry.path(), o.path())));
    }
    if quarantines.is_empty() {
        return Ok(swept);
    }
    let receiving = receiving()?;
    for (repository, quarantine) in quarantines {
        // A helper that still writes keeps it from going: another time, then.
        if receiving.contains(&repository) || fs::remove_dir_all(quarantine).or_else(ignore_missing).is_err() {
            swept.busy += 1;
        } else {
            swept.removed += 1;
        }
    }
    Ok(swept)
}

/// The repositories that some `git receive-pack` on this machine works on, by the arguments that
/// [`crate::git::Git::spawn`] gives it. An interrupted daemon's last ones may still be there when the next one starts.
pub fn receiving() -> io::Result<HashSet<PathBuf>> {
    let mut found = HashSet::new();
    for process in fs::read_dir("/proc")? {
        // Processes come and go while this looks.
        let Ok(line) = fs::read(process?.path().join("cmdline")) else { continue };
        let arguments: Vec<&[u8]> = line.split(|b| *b == 0).filter(|a| !a.is_empty()).collect();
        if let [.., b"receive-pack", b"--", repository] = arguments[..] {
            found.insert(PathBuf::from(OsStr::from_bytes(repository)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.git");
        init_repository(&path).unwrap();
        fs::write(path.join("description"), "kept").unwrap();
        init_repository(&path).unwrap();
        assert_eq!(fs::read_to_string(path.join("description")).unwrap(), "kept");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_to_string(path.join("HEAD")).unwrap().trim(), "ref: refs/heads/main");
        assert!(!path.join("hooks").exists());
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "no drafts stay");
    }

    #[test]
    fn head_follows_the_branches_that_deploy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.git");
        init_repository(&path).unwrap();
        let repository = git2::Repository::open_bare(&path).unwrap();
        let tree = repository.find_tree(repository.treebuilder(None).unwrap().write().unwrap()).unwrap();
        let who = git2::Signature::now("x", "x@example.com").unwrap();
        let commit = repository.commit(None, &who, &who, "x", &tree, &[]).unwrap();
        let head_with = |branches: &[&str]| {
            adopt_head(&path, &branches.iter().map(|b| (*b).to_owned()).collect::<Vec<_>>()).unwrap();
            fs::read_to_string(path.join("HEAD")).unwrap().trim().to_owned()
        };
        let push = |branch: &str| repository.reference(&format!("refs/heads/{branch}"), commit, true, "").unwrap().name().is_ok();
        assert_eq!(head_with(&["main", "master"]), "ref: refs/heads/main");
        assert!(push("topic") && push("master"));
        assert_eq!(head_with(&["main", "master"]), "ref: refs/heads/master");
        assert!(push("main"));
        assert_eq!(head_with(&["main", "master"]), "ref: refs/heads/master", "one that is good stays");
        // Renamed: as soon as the new one is there.
        assert_eq!(head_with(&["production"]), "ref: refs/heads/master");
        assert_eq!(ref_at(&path, "refs/heads/production").unwrap(), None);
        assert!(push("production"));
        assert_eq!(head_with(&["production"]), "ref: refs/heads/production");
        assert_eq!(ref_at(&path, "refs/heads/production").unwrap(), Some(commit.to_string()));
        assert!(ref_at(&dir.path().join("none.git"), "refs/heads/main").is_err());
    }

    #[test]
    fn many_makers_one_repository() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.git");
        std::thread::scope(|s| {
            let all: Vec<_> = (0..8).map(|_| s.spawn(|| init_repository(&path).unwrap())).collect();
            all.into_iter().for_each(|t| t.join().unwrap());
        });
        assert!(git2::Repository::open_bare(&path).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweeps_what_is_old_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.git");
        init_repository(&path).unwrap();
        let stale = path.join("objects/tmp_objdir-incoming-abc123");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("tmp_pack_1"), "x").unwrap();
        let now = SystemTime::now();
        let swept = |removed, busy| Swept { removed, busy };
        let nobody = || Ok(HashSet::new());
        assert_eq!(sweep(dir.path(), now, || Ok(HashSet::from([path.clone()]))).unwrap(), swept(0, 1));
        assert!(stale.exists());
        assert_eq!(sweep(dir.path(), now, nobody).unwrap(), swept(1, 0));
        assert!(!stale.exists() && path.join("objects/pack").exists());
        // Nobody need be asked for where there is nothing.
        assert_eq!(sweep(dir.path(), now, || panic!("asked")).unwrap(), swept(0, 0));
        assert_eq!(sweep(&dir.path().join("none"), now, nobody).unwrap(), swept(0, 0));
        let draft = dir.path().join(".y.git.new-1");
        fs::create_dir(&draft).unwrap();
        assert_eq!(sweep(dir.path(), now - Duration::from_secs(60), nobody).unwrap(), swept(0, 0));
        assert_eq!(sweep(dir.path(), now + Duration::from_secs(60), nobody).unwrap(), swept(1, 0));
        assert!(!draft.exists() && path.exists());
    }
}
