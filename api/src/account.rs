//! Users, their SSH keys and their tokens.

use crate::NameRef;
use crate::schema::{EmailText, Id, SecretText, Time};
use flex_model::{Email, KeyId, Secret, TokenId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    #[schema(value_type = Id)]
    pub id: UserId,
    #[schema(value_type = EmailText)]
    pub email: Email,
    pub name: Option<String>,
    pub allow_tracking: bool,
    pub beta: bool,
    pub created_at: Time,
    pub default_team: Option<NameRef>,
    pub delinquent_at: Option<Time>,
    pub federated: bool,
    pub last_login: Option<Time>,
    pub sms_number: Option<String>,
    pub suspended_at: Option<Time>,
    pub two_factor_authentication: bool,
    pub updated_at: Time,
    pub verified: bool,
    /// Flex: may do everything everywhere.
    pub admin: bool,
}

/// A user to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddUser {
    #[schema(value_type = EmailText)]
    pub email: Email,
    /// At least 8 characters; without one the user signs in with tokens and keys alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SecretText>)]
    pub password: Option<Secret>,
    #[serde(default)]
    pub admin: bool,
}

/// A registered SSH public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    #[schema(value_type = Id)]
    pub id: KeyId,
    /// Its owner's.
    #[schema(value_type = EmailText)]
    pub email: Email,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// One line, as in a `.pub` file.
    pub public_key: String,
    pub comment: String,
    pub created_at: Time,
    pub updated_at: Time,
}

/// A public key to register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddKey {
    /// The one line of a `.pub` file.
    pub public_key: String,
}

/// The user of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenUser {
    #[schema(value_type = Id)]
    pub id: UserId,
    #[schema(value_type = EmailText)]
    pub email: Email,
    pub full_name: Option<String>,
}

/// A token as it is sent with requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessToken {
    #[schema(value_type = Id)]
    pub id: TokenId,
    /// Shown once, in the answer that made it.
    #[schema(value_type = SecretText)]
    pub token: Secret,
    /// Seconds from now; null: it does not expire.
    pub expires_in: Option<u64>,
}

/// A token, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Authorization {
    #[schema(value_type = Id)]
    pub id: TokenId,
    pub description: String,
    /// Any of `global`, `identity`, `read`, `write`, `read-protected` and `write-protected`.
    pub scope: Vec<String>,
    pub access_token: AccessToken,
    pub client: Option<NameRef>,
    pub grant: Option<NameRef>,
    pub refresh_token: Option<AccessToken>,
    pub session: Option<NameRef>,
    pub user: TokenUser,
    pub created_at: Time,
    pub updated_at: Time,
}

/// A token to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateAuthorization {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `global` if left out, or the scope of the token that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<String>>,
    /// Seconds until it is no longer accepted; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}
