//! A commit while it is being put together.

use super::Stored;
use flex_api::{ApiError, ErrorId};
use flex_store::{Precondition, Write};
use serde::Serialize;

/// Preconditions and writes; see [`flex_store::StateStore::commit`].
#[derive(Debug, Default)]
pub struct Tx {
    preconditions: Vec<Precondition>,
    writes: Vec<Write>,
    error: Option<String>,
}

impl Tx {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.error.is_none()
    }
    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.preconditions.len() + self.writes.len()
    }
    /// The record must still be what was read.
    #[must_use]
    pub fn unchanged<T>(mut self, read: &Stored<T>) -> Self {
        self.preconditions.push(Precondition::At(read.key.clone(), read.revision));
        self
    }
    #[must_use]
    pub fn absent(mut self, key: &str) -> Self {
        self.preconditions.push(Precondition::Absent(key.to_owned()));
        self
    }
    /// The record must exist, whatever it says.
    #[must_use]
    pub fn present(mut self, key: &str) -> Self {
        self.preconditions.push(Precondition::Present(key.to_owned()));
        self
    }
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.writes.push(Write::Put(key.into(), bytes)),
            Err(e) => self.error = Some(e.to_string()),
        }
        self
    }
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete(key.into()));
        self
    }
    pub(super) fn parts(self) -> Result<(Vec<Precondition>, Vec<Write>), ApiError> {
        match self.error {
            Some(e) => Err(ApiError::new(ErrorId::Internal, format!("A record cannot be written: {e}"))),
            None => Ok((self.preconditions, self.writes)),
        }
    }
}
