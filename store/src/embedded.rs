//! The embedded store: every entry in memory, every commit on disk before it is acknowledged.
//!
//! One committer thread owns the disk. It takes all commits that wait (group commit), judges each against the state that
//! the ones before it leave, has the backend write them as one durable batch, and only then shows them to readers and
//! answers. Reads never touch the disk.
//!
//! Invariants: memory never shows what the disk could lose; a batch that the disk refused changes nothing, and the disk is
//! brought back to what memory says before the next batch; the digest stored with each batch covers every entry, so that
//! damage is found when the store is opened.
//!
//! Must not: interpret values, or keep a reader waiting for a sync.

use crate::backend::{Backend, Batch};
use crate::digest::{Digest, Head};
use crate::{Entry, MAX_KEY, MAX_OPS, MAX_VALUE, Precondition, Revision, StateStore, StoreError, Watch, Write};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use tokio::sync::{oneshot, watch};

/// The most commits that are synced together: enough that the sync is amortized, few enough that none waits for long.
const MAX_GROUP: usize = 256;

type Entries = BTreeMap<Arc<str>, Entry>;
/// Prefix and the sender that wakes whoever watches it.
type Watchers = Arc<Mutex<Vec<(String, watch::Sender<Revision>)>>>;

#[derive(Default)]
struct Visible {
    entries: Entries,
    revision: Revision,
}

struct Request {
    preconditions: Vec<Precondition>,
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<Revision, StoreError>>,
}

/// A store in this process; see the module's page.
pub struct EmbeddedStore {
    visible: Arc<RwLock<Visible>>,
    watchers: Watchers,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// A store over a backend's entries.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the entries do not add up to the digest that was stored with them.
    pub(crate) fn start(mut backend: Box<dyn Backend>) -> Result<Self, StoreError> {
        let loaded = backend.load()?;
        let digest = Digest::of(loaded.entries.iter().map(|e| (&*e.key, e.revision, &*e.value)));
        if loaded.head.digest != digest {
            return Err(StoreError::Damaged(format!(
                "at revision {} it should hold {} but holds {digest}",
                loaded.head.revision, loaded.head.digest
            )));
        }
        let visible = Arc::new(RwLock::new(Visible {
            entries: loaded.entries.into_iter().map(|e| (e.key.clone(), e)).collect(),
            revision: loaded.head.revision,
        }));
        let watchers = Arc::new(Mutex::new(Vec::new()));
        let (requests, inbox) = mpsc::channel();
        let committer =
            Committer { backend, visible: visible.clone(), watchers: watchers.clone(), digest, disk_is_behind: false };
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || committer.run(&inbox))
            .map_err(|e| StoreError::Unavailable(format!("cannot start the committer thread: {e}")))?;
        Ok(Self { visible, watchers, requests: Mutex::new(Some(requests)), committer: Mutex::new(Some(thread)) })
    }

    /// Nothing was ever committed.
    pub(crate) fn is_new(&self) -> bool {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).revision == 0
    }

    /// Every entry at one revision, for exports.
    pub(crate) fn dump(&self) -> (Vec<Entry>, Revision) {
        let v = self.visible.read().unwrap_or_else(PoisonError::into_inner);
        (v.entries.values().cloned().collect(), v.revision)
    }
}

impl Drop for EmbeddedStore {
    /// Waits for the committer, so that the files are closed when the store is gone.
    fn drop(&mut self) {
        drop(self.requests.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.committer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl StateStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let v = self.visible.read().unwrap_or_else(PoisonError::into_inner);
        Ok((v.entries.get(key).cloned(), v.revision))
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        let v = self.visible.read().unwrap_or_else(PoisonError::into_inner);
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let found = v.entries.range::<str, _>(from).take_while(|(k, _)| k.starts_with(prefix));
        Ok((found.map(|(_, e)| e.clone()).collect(), v.revision))
    }

    async fn commit(&self, preconditions: Vec<Precondition>, writes: Vec<Write>) -> Result<Revision, StoreError> {
        validate(&preconditions, &writes)?;
        let (reply, answer) = oneshot::channel();
        let closed = || StoreError::Unavailable("the store is closed".into());
        let sender = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)?;
        sender.send(Request { preconditions, writes, reply }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        // The lock on the watchers is held by the committer while it publishes, so nothing falls between these two lines.
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = self.visible.read().unwrap_or_else(PoisonError::into_inner).revision;
        let (sender, mut changes) = watch::channel(revision);
        if revision > from {
            changes.mark_changed();
        }
        watchers.push((prefix.to_owned(), sender));
        Ok(Watch { changes })
    }
}

fn validate(preconditions: &[Precondition], writes: &[Write]) -> Result<(), StoreError> {
    let invalid = |text: String| Err(StoreError::Invalid(text));
    if preconditions.len() + writes.len() > MAX_OPS {
        return invalid(format!("{} operations are more than {MAX_OPS}", preconditions.len() + writes.len()));
    }
    let mut seen = std::collections::HashSet::new();
    for write in writes {
        let (Write::Put(key, _) | Write::Delete(key)) = write;
        if key.is_empty() || key.len() > MAX_KEY || key.contains('\0') {
            return invalid(format!("key {:?} is empty, longer than {MAX_KEY} bytes, or holds a NUL", crate::cut(key)));
        }
        if !seen.insert(key) {
            return invalid(format!("key {key} is written twice"));
        }
        if let Write::Put(_, value) = write
            && value.len() > MAX_VALUE
        {
            return invalid(format!("the value of {key} has {} bytes, more than {MAX_VALUE}", value.len()));
        }
    }
    Ok(())
}

struct Committer {
    backend: Box<dyn Backend>,
    visible: Arc<RwLock<Visible>>,
    watchers: Watchers,
    digest: Digest,
    disk_is_behind: bool,
}

/// An error's text without the words that [`StoreError::Unavailable`] adds, where it is about to get them again.
fn cause(e: StoreError) -> String {
    match e {
        StoreError::Unavailable(cause) => cause,
        e => e.to_string(),
    }
}

/// What a group of commits amounts to, before it is on disk.
#[derive(Default)]
struct Pending {
    /// The last write of each key: the new entry, or none for a deletion.
    changed: HashMap<String, Option<Entry>>,
    digest: Digest,
    revision: Revision,
}

impl Committer {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            while group.len() < MAX_GROUP
                && let Ok(next) = inbox.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, group: Vec<Request>) {
        let mut pending = Pending { digest: self.digest, ..Pending::default() };
        let mut answers = Vec::with_capacity(group.len());
        {
            let visible = self.visible.read().unwrap_or_else(PoisonError::into_inner);
            pending.revision = visible.revision;
            for request in group {
                let result = pending.judge(&visible.entries, &request.preconditions);
                if result.is_ok() {
                    pending.apply(&visible.entries, request.writes);
                }
                answers.push((request.reply, result.map(|()| pending.revision)));
            }
        }
        let written =
            if pending.changed.is_empty() && pending.revision == self.revision() { Ok(()) } else { self.write(&pending) };
        if written.is_ok() {
            self.publish(&pending);
        }
        for (reply, answer) in answers {
            // A conflict was judged against commits of this very group: it stands only if they do.
            let answer = match &written {
                Ok(()) => answer,
                Err(e) => Err(StoreError::Unavailable(e.clone())),
            };
            let _ = reply.send(answer);
        }
    }

    fn revision(&self) -> Revision {
        self.visible.read().unwrap_or_else(PoisonError::into_inner).revision
    }

    fn write(&mut self, pending: &Pending) -> Result<(), String> {
        if self.disk_is_behind {
            let visible = self.visible.read().unwrap_or_else(PoisonError::into_inner);
            let head = Head { revision: visible.revision, digest: self.digest };
            self.backend.reset(&visible.entries, head).map_err(cause)?;
            self.disk_is_behind = false;
        }
        let batch = Batch {
            puts: pending.changed.values().flatten().collect(),
            deletes: pending.changed.iter().filter(|(_, e)| e.is_none()).map(|(k, _)| k.as_str()).collect(),
            head: Head { revision: pending.revision, digest: pending.digest },
        };
        self.backend.write(&batch).map_err(|e| {
            tracing::error!(error = %e, "a commit could not be written");
            self.disk_is_behind = true;
            cause(e)
        })
    }

    fn publish(&mut self, pending: &Pending) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
            for (key, entry) in &pending.changed {
                match entry {
                    Some(e) => visible.entries.insert(e.key.clone(), e.clone()),
                    None => visible.entries.remove(key.as_str()),
                };
            }
            visible.revision = pending.revision;
            self.digest = pending.digest;
        }
        watchers.retain(|(prefix, sender)| {
            if pending.changed.keys().any(|k| k.starts_with(prefix.as_str())) {
                sender.send_replace(pending.revision);
            }
            !sender.is_closed()
        });
    }
}

impl Pending {
    fn current<'a>(&'a self, entries: &'a Entries, key: &str) -> Option<&'a Entry> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => entries.get(key),
        }
    }

    fn judge(&self, entries: &Entries, preconditions: &[Precondition]) -> Result<(), StoreError> {
        for p in preconditions {
            let (key, holds) = match p {
                Precondition::Absent(k) => (k, self.current(entries, k).is_none()),
                Precondition::Present(k) => (k, self.current(entries, k).is_some()),
                Precondition::At(k, r) => (k, self.current(entries, k).is_some_and(|e| e.revision == *r)),
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        Ok(())
    }

    fn apply(&mut self, entries: &Entries, writes: Vec<Write>) {
        self.revision += 1;
        for write in writes {
            let (key, value) = match write {
                Write::Put(k, v) => (k, Some(v)),
                Write::Delete(k) => (k, None),
            };
            if let Some(old) = self.current(entries, &key) {
                let term = Digest::of([(&*old.key, old.revision, &*old.value)]);
                self.digest = self.digest.minus(term);
            }
            let entry = value.map(|v| Entry { key: key.as_str().into(), value: v.into(), revision: self.revision });
            if let Some(e) = &entry {
                self.digest = self.digest.plus(Digest::of([(&*e.key, e.revision, &*e.value)]));
            }
            self.changed.insert(key, entry);
        }
    }
}
