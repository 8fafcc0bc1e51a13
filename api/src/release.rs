//! Releases and config vars.

use crate::schema::{ConfigKeyText, Id, SecretText, Time};
use crate::{AppRef, SlugRef, UserRef};
use flex_model::{ConfigKey, ReleaseId, Secret};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// How a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// Being rolled out, or in its release phase.
    Pending,
    Succeeded,
    Failed,
}

impl ReleaseStatus {
    /// As it is sent.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// One version of an app: code, config and process types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    #[schema(value_type = Id)]
    pub id: ReleaseId,
    /// From 1, without gaps.
    pub version: u64,
    pub app: AppRef,
    pub description: String,
    pub status: ReleaseStatus,
    /// What should be running now.
    pub current: bool,
    pub eligible_for_rollback: bool,
    pub slug: Option<SlugRef>,
    pub user: UserRef,
    pub addon_plan_names: Vec<String>,
    pub output_stream_url: Option<String>,
    pub created_at: Time,
    pub updated_at: Time,
    /// Flex.
    pub commit: Option<String>,
    /// Flex: the process types and their commands.
    pub processes: BTreeMap<String, Option<String>>,
    /// Flex: what runs before anything of it is started.
    pub release_command: Option<String>,
    /// Flex: why it failed, with the last lines of its log.
    pub failure: Option<String>,
    /// Flex: the release that took its place before it was up; such a one counts as failed.
    #[serde(default)]
    pub superseded_by: Option<u64>,
}

/// Which release to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// Its id or its number (`3`, `v3`).
    pub release: String,
}

/// Config vars.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = BTreeMap<ConfigKeyText, SecretText>)]
pub struct ConfigVars(pub BTreeMap<String, Secret>);

/// Config vars to set; null removes one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ConfigChanges(pub BTreeMap<ConfigKey, Option<Secret>>);

/// An error names the config var, and shows nothing of what it was to be.
impl<'de> Deserialize<'de> for ConfigChanges {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Changes;
        impl<'de> serde::de::Visitor<'de> for Changes {
            type Value = ConfigChanges;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("config vars by name")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut all: A) -> Result<ConfigChanges, A::Error> {
                let mut changes = ConfigChanges::default();
                while let Some(key) = all.next_key::<ConfigKey>()? {
                    let value = all.next_value().map_err(|e| {
                        let said = format!("config var {key}: {e}");
                        <A::Error as serde::de::Error>::custom(said)
                    })?;
                    changes.0.insert(key, value);
                }
                Ok(changes)
            }
        }
        d.deserialize_map(Changes)
    }
}

impl PartialSchema for ConfigChanges {
    fn schema() -> RefOr<Schema> {
        let value = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .additional_properties(Some(value))
            .description(Some("Config vars to set; null removes one."))
            .into()
    }
}

impl ToSchema for ConfigChanges {
    fn name() -> Cow<'static, str> {
        "ConfigChanges".into()
    }
}
