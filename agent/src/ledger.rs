//! What the agent keeps on disk: the last assignment, behind its fence, and what it remembers of its instances.
//!
//! Files are written whole beside the old ones, synced, and renamed over them, readable by their owner only. The assignment
//! has config vars in it: it is encrypted. A file that cannot be read is said loudly and set aside, never taken for an empty
//! one in silence.

use crate::core::Memory;
use crate::seal::AgentKey;
use flex_model::{Assignment, HostId};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why the agent cannot keep its state.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct LedgerError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why an assignment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is for host {0}")]
    OtherHost(HostId),
    #[error("its revision {given} is lower than {seen}, which was seen already")]
    Stale { given: u64, seen: u64 },
    #[error("it says something else than was seen at the same revision {0}")]
    Changed(u64),
}

/// What an offered assignment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// To be applied.
    New,
    /// Applied already.
    Known,
}

/// Decides about an assignment: only this host's, never an older one, never two different ones of one revision and controller.
///
/// A controller that was started later may say something else at the same revision: an upgraded one renders the same state anew.
pub fn fence(host: HostId, known: Option<&Assignment>, offered: &Assignment) -> Result<Offer, Refusal> {
    if offered.host != host {
        return Err(Refusal::OtherHost(offered.host));
    }
    let Some(known) = known else { return Ok(Offer::New) };
    if offered.revision < known.revision {
        return Err(Refusal::Stale { given: offered.revision, seen: known.revision });
    }
    if offered.revision > known.revision || offered.epoch > known.epoch {
        return Ok(Offer::New);
    }
    if offered.items != known.items {
        return Err(Refusal::Changed(offered.revision));
    }
    // Reports must echo who asks now, also where a clock was set back between two controllers.
    Ok(if offered.epoch == known.epoch { Offer::Known } else { Offer::New })
}

/// The directory, and the assignment that counts.
#[derive(Debug)]
pub struct Ledger {
    host: HostId,
    dir: PathBuf,
    key: AgentKey,
    current: Option<Arc<Assignment>>,
}

impl Ledger {
    /// Opens the directory, made if need be.
    pub fn open(dir: &Path, host: HostId, key: AgentKey) -> Result<Self, LedgerError> {
        fs::create_dir_all(dir).map_err(|source| LedgerError { doing: "make", path: dir.into(), source })?;
        let mut ledger = Self { host, dir: dir.to_owned(), key, current: None };
        let mut stored: Option<Assignment> = ledger.read(ASSIGNMENT)?;
        if stored.is_none()
            && let Some(plain) = ledger.read::<Assignment>(PLAIN_ASSIGNMENT)?
        {
            ledger.write(ASSIGNMENT, &plain)?;
            stored = Some(plain);
        }
        ledger.forget(PLAIN_ASSIGNMENT)?;
        ledger.current = stored
            .filter(|a| match fence(host, None, a) {
                Ok(_) => true,
                Err(why) => {
                    tracing::error!(%why, "the assignment on disk is not used");
                    false
                }
            })
            .map(Arc::new);
        Ok(ledger)
    }

    /// The assignment that counts.
    pub fn current(&self) -> Option<&Arc<Assignment>> {
        self.current.as_ref()
    }

    /// Puts an assignment through the fence and, when it is new, onto the disk. Returns it if it is to be applied.
    pub fn offer(&mut self, offered: &Arc<Assignment>) -> Result<Option<Arc<Assignment>>, LedgerError> {
        match fence(self.host, self.current.as_deref(), offered) {
            Ok(Offer::Known) => Ok(None),
            Ok(Offer::New) => {
                self.write(ASSIGNMENT, &**offered)?;
                self.current = Some(offered.clone());
                Ok(Some(offered.clone()))
            }
            Err(why) => {
                tracing::error!(%why, revision = offered.revision, epoch = offered.epoch, "refused an assignment");
                Ok(None)
            }
        }
    }

    /// What an earlier run remembered.
    pub fn memory(&self) -> Result<Memory, LedgerError> {
        Ok(self.read(MEMORY)?.unwrap_or_default())
    }

    /// Keeps it for the next run.
    pub fn remember(&self, memory: &Memory) -> Result<(), LedgerError> {
        self.write(MEMORY, memory)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LedgerError> {
        let path = self.dir.join(name);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|source| LedgerError { doing: "read", path: path.clone(), source })?,
        };
        let text = match name {
            ASSIGNMENT => self.key.open(name, &bytes).ok_or_else(|| "it does not decrypt with this key".to_owned()),
            _ => Ok(bytes),
        };
        match text.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string())) {
            Ok(value) => Ok(Some(value)),
            Err(why) => {
                let aside = path.with_extension("damaged");
                tracing::error!(path = %path.display(), aside = %aside.display(), why, "a state file is damaged: set aside");
                fs::rename(&path, &aside).map_err(|source| LedgerError { doing: "set aside", path, source })?;
                Ok(None)
            }
        }
    }

    fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), LedgerError> {
        let path = self.dir.join(name);
        let text = serde_json::to_vec(value).map_err(io::Error::from);
        let text = match name {
            ASSIGNMENT => text.and_then(|t| self.key.seal(name, &t)),
            _ => text,
        };
        text.and_then(|t| write_atomically(&self.dir, name, &t)).map_err(|source| LedgerError { doing: "write", path, source })
    }

    fn forget(&self, name: &str) -> Result<(), LedgerError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LedgerError { doing: "remove", path, source }),
            _ => Ok(()),
        }
    }
}

const ASSIGNMENT: &str = "assignment.sealed";
/// What earlier versions wrote, in plain text: read once, and removed.
const PLAIN_ASSIGNMENT: &str = "assignment.json";
const MEMORY: &str = "instances.json";

fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{assignment, host, item};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_fence() {
        let known = assignment(5, 1, vec![item(1)]);
        assert_eq!(fence(host(), None, &known), Ok(Offer::New));
        assert_eq!(fence(host(), Some(&known), &known), Ok(Offer::Known));
        assert_eq!(fence(host(), Some(&known), &assignment(6, 1, vec![])), Ok(Offer::New));
        assert_eq!(fence(host(), Some(&known), &assignment(5, 2, vec![item(1)])), Ok(Offer::New));
        assert_eq!(fence(host(), Some(&known), &assignment(4, 2, vec![])), Err(Refusal::Stale { given: 4, seen: 5 }));
        assert_eq!(fence(host(), Some(&known), &assignment(5, 1, vec![])), Err(Refusal::Changed(5)));
        assert_eq!(fence(host(), Some(&known), &assignment(5, 0, vec![])), Err(Refusal::Changed(5)), "an earlier controller");
        assert_eq!(fence(host(), Some(&known), &assignment(5, 2, vec![])), Ok(Offer::New), "a later controller");
        let other = HostId(flex_model::Uuid::from_u128(99));
        assert_eq!(fence(other, None, &known), Err(Refusal::OtherHost(host())));
    }

    const KEY: AgentKey = AgentKey([7; 32]);

    fn open(dir: &Path) -> Ledger {
        Ledger::open(dir, host(), KEY).unwrap()
    }

    #[test]
    fn an_assignment_outlives_the_process_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Arc::new(assignment(5, 1, vec![item(1)]));
        let mut ledger = open(dir.path());
        assert!(ledger.current().is_none());
        assert_eq!(ledger.offer(&first).unwrap(), Some(first.clone()));
        assert_eq!(ledger.offer(&first).unwrap(), None);
        let mut ledger = open(dir.path());
        assert_eq!(ledger.current(), Some(&first));
        assert_eq!(ledger.offer(&Arc::new(assignment(4, 9, vec![]))).unwrap(), None, "older");
        assert_eq!(ledger.current(), Some(&first));
        let mode = fs::metadata(dir.path().join(ASSIGNMENT)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ASSIGNMENT), "{\"host\":").unwrap();
        assert!(open(dir.path()).current().is_none());
        assert!(dir.path().join("assignment.damaged").exists());
        // So is one that was written with another key.
        fs::remove_file(dir.path().join("assignment.damaged")).unwrap();
        open(dir.path()).offer(&Arc::new(assignment(5, 1, vec![item(1)]))).unwrap();
        assert!(Ledger::open(dir.path(), host(), AgentKey([8; 32])).unwrap().current().is_none());
        assert!(dir.path().join("assignment.damaged").exists());
    }

    #[test]
    fn what_an_earlier_version_wrote_in_plain_text_is_taken_over_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join(PLAIN_ASSIGNMENT);
        let first = assignment(5, 1, vec![item(1)]);
        fs::write(&plain, serde_json::to_vec(&first).unwrap()).unwrap();
        let ledger = open(dir.path());
        assert_eq!(ledger.current().map(|a| &**a), Some(&first));
        assert!(!plain.exists());
        let on_disk = fs::read(dir.path().join(ASSIGNMENT)).unwrap();
        let image = first.items[0].spec.image.reference.as_bytes();
        assert!(!on_disk.windows(image.len()).any(|w| w == image));
        // Beside an encrypted one it is what an interrupted change left, and older.
        fs::write(&plain, serde_json::to_vec(&assignment(9, 1, vec![])).unwrap()).unwrap();
        assert_eq!(open(dir.path()).current().map(|a| a.revision), Some(5));
        assert!(!plain.exists());
    }
}
