//! How one resource names another: by its id and the name that people know.

use crate::schema::{AppNameText, Id};
use flex_model::{AppId, AppName, ReleaseId, SlugId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An app, named in another resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppRef {
    #[schema(value_type = Id)]
    pub id: AppId,
    #[schema(value_type = AppNameText)]
    pub name: AppName,
}

/// A user, named in another resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserRef {
    #[schema(value_type = Id)]
    pub id: UserId,
    /// `flex` where the platform itself acted.
    pub email: String,
}

/// A release, named in another resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseRef {
    #[schema(value_type = Id)]
    pub id: ReleaseId,
    pub version: u64,
}

/// A slug, named in another resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlugRef {
    #[schema(value_type = Id)]
    pub id: SlugId,
}

/// A stack, a region, a team or a space, named in another resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameRef {
    pub id: String,
    pub name: String,
}

impl NameRef {
    /// What has its name for an id.
    pub fn of(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { id: name.clone(), name }
    }
}
