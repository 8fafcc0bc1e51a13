//! A commit as a source: its tree is walked in the object store; no working copy is ever made.

use super::{Place, SourcePath, SourceTree, Spool, ignore::Ignore, spool::refused};
use crate::{BuildError, BuildSettings};
use flex_model::CommitId;
use git2::{ObjectType, Odb, Oid, Repository, RepositoryOpenFlags, Tree};
use std::{ffi::OsStr, path::Path};

/// Reads a commit's tree. `quarantine` is an object directory to look in besides the repository's own. Blocking.
///
/// # Errors
/// The commit or an object is missing, or an entry is refused, or a limit is reached.
pub(crate) fn read_commit(
    repository: &Path,
    quarantine: Option<&Path>,
    commit: &CommitId,
    settings: &BuildSettings,
    place: Place,
) -> Result<SourceTree, BuildError> {
    let failed = |e: git2::Error| BuildError::platform("reading the repository", e.message());
    let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
    let repo = Repository::open_ext(repository, flags, std::iter::empty::<&OsStr>()).map_err(failed)?;
    let odb = repo.odb().map_err(failed)?;
    if let Some(dir) = quarantine {
        let dir = dir.to_str().ok_or_else(|| BuildError::Platform("the quarantine's path is not UTF-8".into()))?;
        odb.add_disk_alternate(dir).map_err(failed)?;
    }
    let missing = |e: git2::Error| BuildError::user("broken_source", format!("commit {commit} cannot be read: {}", e.message()));
    let id = Oid::from_str(commit.as_str()).map_err(missing)?;
    // Pushed as a branch, as `git push flex v1.0:main` does it.
    if let Ok(tag) = repo.find_tag(id) {
        let name = String::from_utf8_lossy(tag.name_bytes()).into_owned();
        let message =
            format!("{name} is an annotated tag, and a branch needs the commit that it is of: push '{name}^{{}}:main' instead");
        return Err(BuildError::user("broken_source", message));
    }
    let found = repo.find_commit(id).map_err(missing)?;
    let tree = found.tree().map_err(missing)?;
    let ignore = match tree.get_name(".slugignore").filter(|e| e.kind() == Some(ObjectType::Blob)) {
        Some(entry) => Ignore::parse(repo.find_blob(entry.id()).map_err(missing)?.content()),
        None => Ignore::default(),
    };
    let mut walk = Walk { repo: &repo, odb: &odb, spool: Spool::new(settings, place, ignore)? };
    walk.tree(&tree, &mut Vec::new())?;
    walk.spool.finish(u64::try_from(found.time().seconds()).unwrap_or(0))
}

struct Walk<'a> {
    repo: &'a Repository,
    odb: &'a Odb<'a>,
    spool: Spool<'a>,
}

impl Walk<'_> {
    fn tree(&mut self, tree: &Tree<'_>, prefix: &mut Vec<u8>) -> Result<(), BuildError> {
        for entry in tree {
            let name = entry.name_bytes();
            let length = prefix.len();
            if name.contains(&b'/') || matches!(name, b"" | b"." | b"..") {
                return Err(refused(name, "is not a file name"));
            }
            prefix.extend_from_slice(name);
            // SourcePath bounds the depth, and with it this recursion.
            let path = SourcePath::new(prefix).map_err(|rule| refused(prefix, rule))?;
            self.entry(entry.filemode(), entry.id(), &path, prefix)?;
            prefix.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, mode: i32, id: Oid, path: &SourcePath, prefix: &mut Vec<u8>) -> Result<(), BuildError> {
        let unreadable = |e: git2::Error| {
            let shown = SourcePath::shown(path.bytes());
            BuildError::user("broken_source", format!("{shown} cannot be read from the repository: {}", e.message()))
        };
        match mode & 0o170_000 {
            0o040_000 => {
                let sub = self.repo.find_tree(id).map_err(unreadable)?;
                if !path.bytes().eq_ignore_ascii_case(b".git") {
                    self.spool.directory(path)?;
                }
                prefix.push(b'/');
                self.tree(&sub, prefix)
            }
            0o100_000 => {
                let (size, _) = self.odb.read_header(id).map_err(unreadable)?;
                if size as u64 > MAX_OBJECT {
                    let shown = SourcePath::shown(path.bytes());
                    let mib = MAX_OBJECT >> 20;
                    let message = format!("{shown} is larger than {mib} MiB: keep it out of the repository");
                    return Err(BuildError::limit(crate::Limit::Source, message));
                }
                let blob = self.repo.find_blob(id).map_err(unreadable)?;
                self.spool.file(path, mode & 0o111 != 0, size as u64, &mut blob.content())
            }
            0o120_000 => {
                let blob = self.repo.find_blob(id).map_err(unreadable)?;
                self.spool.symlink(path, blob.content())
            }
            0o160_000 => {
                let shown = SourcePath::shown(path.bytes());
                self.spool
                    .notes
                    .push(format!(" !     Submodule {shown} ({}) is not fetched: vendor it to have it built", short(id)));
                Ok(())
            }
            _ => Err(refused(path.bytes(), "has an unknown file mode")),
        }
    }
}

/// git2 holds an object whole in memory: this bounds what one file of a push can cost.
const MAX_OBJECT: u64 = 200 << 20;

fn short(id: Oid) -> String {
    id.to_string().chars().take(7).collect()
}
