//! Source in, one checked tar out: whatever way a source came (a git commit, an uploaded archive), it becomes a spooled tar
//! of regular files, directories and links that cannot leave the tree, with the few files that decide how to build.
//!
//! Invariants: nothing of a source is ever unpacked on this machine; every limit is checked before a container exists;
//! `.git` and what `.slugignore` names are left out. Must not: fetch anything (submodules are named in the log only).

pub mod archive;
pub(crate) mod docker_ignore;
pub mod git;
pub mod ignore;
mod spool;
#[cfg(test)]
mod tests;

use crate::{BuildError, BuildSettings};
use flex_model::CommitId;
use std::{collections::BTreeMap, path::PathBuf};

pub(crate) use spool::{Place, SourcePath, Spool};

/// Where the source of a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A commit of a bare repository on this machine.
    Commit {
        repository: PathBuf,
        /// Object directory of a push that is not accepted yet.
        quarantine: Option<PathBuf>,
        commit: CommitId,
    },
    /// An uploaded tar, maybe gzipped. Hostile until read.
    Archive(PathBuf),
    /// No source: an image that the engine has or can pull.
    Image(String),
}

/// Files of a source whose contents decide how it is built.
pub(crate) const KEY_FILES: [&str; 8] =
    ["app.json", ".buildpacks", ".dockerignore", "Dockerfile", "Procfile", "bin/detect", "bin/compile", "bin/release"];
/// Most bytes kept of a key file: each has a smaller limit of its own, or only its presence counts.
const KEY_FILE_BYTES: u64 = 512 << 10;

/// A key file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// The beginning; all of it up to 512 KiB.
    pub(crate) contents: Vec<u8>,
    pub(crate) executable: bool,
}

/// A source, checked and ready to be put into a container.
#[derive(Debug)]
pub(crate) struct SourceTree {
    /// A tar of the tree. Removed when dropped.
    pub(crate) tar: tempfile::TempPath,
    pub(crate) key_files: BTreeMap<&'static str, KeyFile>,
    /// Seconds since 1970: the commit's time, or the newest file's of an archive. Dates everything in the slug.
    pub(crate) epoch: u64,
    /// Lines for the log: submodules not fetched, files left out.
    pub(crate) notes: Vec<String>,
}

impl SourceTree {
    /// The text of a key file, if it is there.
    ///
    /// # Errors
    /// It is not UTF-8: the author must change it.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, BuildError> {
        let Some(file) = self.key_files.get(name) else { return Ok(None) };
        let refuse = |_| BuildError::user("invalid_file", format!("{name} is not valid UTF-8 text: save it as UTF-8"));
        std::str::from_utf8(&file.contents).map(Some).map_err(refuse)
    }
    /// Whether a key file is there and may be executed.
    pub(crate) fn executable(&self, name: &str) -> bool {
        self.key_files.get(name).is_some_and(|f| f.executable)
    }
}

/// Reads the source into a tree. Blocking.
///
/// # Errors
/// [`BuildError::User`] for a source that is refused, [`BuildError::Limit`] for one too large, else the platform's.
pub(crate) fn read(source: &Source, settings: &BuildSettings, place: Place) -> Result<SourceTree, BuildError> {
    match source {
        Source::Commit { repository, quarantine, commit } => {
            git::read_commit(repository, quarantine.as_deref(), commit, settings, place)
        }
        Source::Archive(path) => archive::read_archive(path, settings, place),
        Source::Image(_) => Err(BuildError::Platform("an image has no source to read".into())),
    }
}
