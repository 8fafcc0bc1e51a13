//! The records of the store, typed: which key holds what, and commits that are tried again when another came first.
//!
//! Invariants: every key is made here; a read-decide-commit runs again from the read when a precondition failed.
//! Must not: decide anything about apps or users.

pub mod keys;
mod record;
mod tx;

pub use record::{
    CertificateRecord, DomainRecord, DrainRecord, LogRetentionRecord, PostdeployRecord, RouteRecord, RouterToken, RunRecord,
    SourceRecord,
};
pub use tx::Tx;

use flex_api::{ApiError, ErrorId};
use flex_store::{Entry, Revision, StateStore, StoreError, Write};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How often a commit is tried again before the caller is told that it is too busy.
const ATTEMPTS: usize = 50;

/// What is many and seldom asked for is decoded each time rather than kept in memory.
const SELDOM_READ: [&str; 7] = [keys::EVENTS, keys::BUILDS, keys::RUNS, "history/", "slugs/", "sources/", "config/"];

/// A value with the revision that wrote it.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    pub key: String,
    pub value: T,
    pub revision: Revision,
}

/// Decoded values by key, as long as their revision stands: a pass over everything decodes only what changed.
type Decoded = Mutex<HashMap<Arc<str>, (Revision, Arc<dyn std::any::Any + Send + Sync>)>>;

/// The typed store.
#[derive(Clone)]
pub struct Db {
    store: Arc<dyn StateStore>,
    decoded: Arc<Decoded>,
}

impl Db {
    pub fn new(store: Arc<dyn StateStore>) -> Self {
        Self { store, decoded: Arc::default() }
    }

    pub fn store(&self) -> &Arc<dyn StateStore> {
        &self.store
    }

    fn decode<T: DeserializeOwned + Send + Sync + 'static>(&self, entry: &Entry) -> Result<Arc<T>, ApiError> {
        if SELDOM_READ.iter().any(|prefix| entry.key.starts_with(prefix)) {
            return Ok(Arc::new(parse(entry)?));
        }
        let mut cache = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, value)) = cache.get(&entry.key)
            && *revision == entry.revision
            && let Ok(value) = value.clone().downcast::<T>()
        {
            return Ok(value);
        }
        let value: Arc<T> = Arc::new(parse(entry)?);
        cache.insert(entry.key.clone(), (entry.revision, value.clone()));
        Ok(value)
    }

    /// One record.
    pub async fn get<T: DeserializeOwned + Send + Sync + 'static>(&self, key: &str) -> Result<Option<Stored<Arc<T>>>, ApiError> {
        match self.store.get(key).await.map_err(|e| unavailable(&e))?.0 {
            Some(e) => Ok(Some(Stored { key: key.to_owned(), value: self.decode(&e)?, revision: e.revision })),
            None => {
                self.decoded.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
                Ok(None)
            }
        }
    }

    /// All records under a prefix, in key order.
    pub async fn list<T: DeserializeOwned + Send + Sync + 'static>(&self, prefix: &str) -> Result<Vec<Stored<Arc<T>>>, ApiError> {
        Ok(self.list_at(prefix).await?.0)
    }

    /// As [`Db::list`], with the revision of the whole store.
    pub async fn list_at<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        prefix: &str,
    ) -> Result<(Vec<Stored<Arc<T>>>, Revision), ApiError> {
        let (entries, revision) = self.store.list(prefix).await.map_err(|e| unavailable(&e))?;
        let found = entries.iter().map(|e| Ok(Stored { key: e.key.to_string(), value: self.decode(e)?, revision: e.revision }));
        Ok((found.collect::<Result<_, ApiError>>()?, revision))
    }

    /// Commits once.
    pub async fn commit(&self, tx: Tx) -> Result<Revision, CommitError> {
        let (preconditions, writes) = tx.parts()?;
        let gone: Vec<String> = writes
            .iter()
            .filter_map(|w| match w {
                Write::Delete(key) => Some(key.clone()),
                Write::Put(..) => None,
            })
            .collect();
        let result = self.store.commit(preconditions, writes).await;
        if result.is_ok() && !gone.is_empty() {
            let mut cache = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
            for key in gone {
                cache.remove(key.as_str());
            }
        }
        result.map_err(|e| match e {
            StoreError::Conflict { key } => CommitError::Conflict(key),
            e => CommitError::Api(unavailable(&e)),
        })
    }

    /// Reads, decides and commits, again and again until no other change came first. `decide` gives the transaction and
    /// what to return.
    pub async fn retry<T, F, Fut>(&self, mut decide: F) -> Result<T, ApiError>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<(Tx, T), ApiError>> + Send,
    {
        for _ in 0..ATTEMPTS {
            let (tx, answer) = decide().await?;
            if tx.is_empty() {
                return Ok(answer);
            }
            match self.commit(tx).await {
                Ok(_) => return Ok(answer),
                Err(CommitError::Conflict(_)) => tokio::task::yield_now().await,
                Err(CommitError::Api(e)) => return Err(e),
            }
        }
        Err(ApiError::new(ErrorId::Conflict, "Too many changes are being made at once. Try again."))
    }
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, ApiError> {
    serde_json::from_slice(&entry.value).map_err(|e| {
        tracing::error!(key = &*entry.key, error = %e, "a record cannot be read");
        ApiError::new(ErrorId::Internal, format!("The record {} cannot be read: {e}", entry.key))
    })
}

/// Why a commit did not happen.
#[derive(Debug)]
pub enum CommitError {
    /// Another change to this key came first.
    Conflict(String),
    Api(ApiError),
}

impl From<ApiError> for CommitError {
    fn from(e: ApiError) -> Self {
        Self::Api(e)
    }
}

fn unavailable(e: &StoreError) -> ApiError {
    match e {
        StoreError::Conflict { .. } => ApiError::new(ErrorId::Conflict, e.to_string()),
        StoreError::Invalid(_) => ApiError::new(ErrorId::InvalidParams, e.to_string()),
        StoreError::Unavailable(_) | StoreError::Damaged(_) => {
            tracing::error!(error = %e, "the store failed");
            if e.to_string().contains("No space left on device") {
                let text =
                    "The server's disk is full, so it cannot store changes. Nothing was changed; its operator has to make room.";
                return ApiError::new(ErrorId::Unavailable, text);
            }
            ApiError::new(
                ErrorId::Unavailable,
                format!("The server cannot store changes now: {e}. Nothing was changed; ask its operator."),
            )
        }
    }
}
