//! Who acts: users, their SSH keys and API tokens, and who else may work on an app.

use crate::{AppId, Email, KeyId, Timestamp, TokenId, UserId};
use serde::{Deserialize, Serialize};

/// A person or a robot. Passwords and tokens are kept only as hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    pub email: Email,
    pub admin: bool,
    /// Argon2id in PHC form; none: signs in by token or key alone.
    pub password_hash: Option<String>,
    pub created_at: Timestamp,
}

/// A registered public key. A key belongs to one user in the whole installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    pub id: KeyId,
    pub user: UserId,
    /// `ssh-ed25519 AAAA… comment`, normalised to one line.
    pub public_key: String,
    /// `SHA256:…` as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    pub comment: String,
    pub created_at: Timestamp,
}

/// An API token. The secret is shown once when it is made; only its SHA-256 is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: TokenId,
    pub user: UserId,
    pub description: String,
    /// Lower-case hex of SHA-256 over the whole token text.
    pub sha256: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// Leave to work on an app that another user owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collaborator {
    pub app: AppId,
    pub user: UserId,
    pub added_by: UserId,
    pub created_at: Timestamp,
}
