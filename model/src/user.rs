//! Who acts: users, their SSH keys and API tokens, and who else may work on an app.

use crate::{AppId, Email, Invalid, KeyId, Timestamp, TokenId, UserId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

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

/// What a token may do, as Heroku divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All that its user may.
    Global,
    /// Say whose it is.
    Identity,
    /// Read apps without their config vars.
    Read,
    /// Read and change apps without their config vars.
    Write,
    /// Read apps with their config vars.
    ReadProtected,
    /// Read and change apps with their config vars.
    WriteProtected,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 6] = [Self::Global, Self::Identity, Self::Read, Self::Write, Self::ReadProtected, Self::WriteProtected];

    /// As it is sent.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Identity => "identity",
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadProtected => "read-protected",
            Self::WriteProtected => "write-protected",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scope {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == s)
            .ok_or_else(|| Invalid::new("scope", s, "use global, identity, read, write, read-protected or write-protected"))
    }
}

/// Tokens from before there were scopes may do everything.
fn everything() -> Vec<Scope> {
    vec![Scope::Global]
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
    /// Any of these is enough.
    #[serde(default = "everything")]
    pub scope: Vec<Scope>,
}

/// Leave to work on an app that another user owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collaborator {
    pub app: AppId,
    pub user: UserId,
    pub added_by: UserId,
    pub created_at: Timestamp,
}
