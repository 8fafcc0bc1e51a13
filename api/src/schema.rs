//! The texts of the API: how ids, names and moments look on the wire, and in the OpenAPI document.
//!
//! The types here that hold nothing stand for one of `flex-model`'s in the document; the model itself knows no schema.

use flex_model::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{OneOfBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

fn text(format: &str, doc: &str) -> RefOr<Schema> {
    let format = (!format.is_empty()).then(|| SchemaFormat::Custom(format.into()));
    ObjectBuilder::new().schema_type(Type::String).format(format).description(Some(doc)).into()
}

macro_rules! texts {
    ($($name:ident, $format:literal, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug)]
        pub struct $name;
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> { text($format, $doc) }
        }
        impl ToSchema for $name {
            fn name() -> Cow<'static, str> { stringify!($name).into() }
        }
    )*};
}

texts! {
    Id, "uuid", "The id of a resource. It never changes.";
    AppNameText, "", "2 to 30 lower-case letters, digits and dashes, a letter first.";
    EmailText, "email", "An e-mail address.";
    HostNameText, "hostname", "A host name in lower case, maybe with `*.` first.";
    ProcessTypeText, "", "A process type: the left side of a Procfile's line.";
    BuildpackText, "", "A built-in buildpack's name, a git or archive URL, or ./path in the repository.";
    SecretText, "password", "A text that is never logged.";
    ConfigKeyText, "", "A config var's name.";
}

/// A moment in RFC 3339, in whole seconds as Heroku sends it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.rfc3339_seconds())
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(d).map(Self)
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        text("date-time", "A moment in RFC 3339, UTC.")
    }
}

impl ToSchema for Time {
    fn name() -> Cow<'static, str> {
        "Time".into()
    }
}

/// How many instances: a number, or a step. Heroku's client sends all of them as texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// `2` or `"2"`.
    To(u32),
    /// `"+1"` or `"-1"`.
    By(i64),
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(n) => write!(f, "{n}"),
            Self::By(n) => write!(f, "{n:+}"),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("quantity {} is not valid: use a number, +1 or -1", s.chars().take(40).collect::<String>());
        if s.starts_with(['+', '-']) {
            s.parse().map(Self::By).map_err(|_| bad())
        } else {
            s.parse().map(Self::To).map_err(|_| bad())
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::To(n) => s.serialize_u32(*n),
            Self::By(_) => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity: a number, +1 or -1")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Quantity, E> {
                u32::try_from(n).map(Quantity::To).map_err(|_| E::custom(format!("quantity {n} is not valid: it is too large")))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Quantity, E> {
                Err(E::custom(format!("quantity {n} is not valid: use a number, +1 or -1")))
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Quantity, E> {
                s.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl PartialSchema for Quantity {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)))
            .item(ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[+-]?[0-9]+$")))
            .description(Some("How many instances, or by how many more or fewer."))
            .into()
    }
}

impl ToSchema for Quantity {
    fn name() -> Cow<'static, str> {
        "Quantity".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_clients_send_them() {
        let read = |text: &str| serde_json::from_str::<Quantity>(text).map_err(|e| e.to_string());
        assert_eq!(read("2"), Ok(Quantity::To(2)));
        assert_eq!(read("\"2\""), Ok(Quantity::To(2)));
        assert_eq!(read("\"+1\""), Ok(Quantity::By(1)));
        assert_eq!(read("\"-1\""), Ok(Quantity::By(-1)));
        for bad in ["-1", "\"x\"", "\"\"", "\"+\"", "2.5", "5000000000", "true", "{}"] {
            assert!(read(bad).unwrap_err().contains("quantity"), "{bad}");
        }
        for q in [Quantity::To(3), Quantity::By(1), Quantity::By(-2)] {
            assert_eq!(read(&serde_json::to_string(&q).unwrap()), Ok(q));
        }
    }

    #[test]
    fn moments_are_whole_seconds() {
        let at = Time("2026-11-21T03:57:25.123456Z".parse().unwrap());
        assert_eq!(serde_json::to_string(&at).unwrap(), "\"2026-11-21T03:57:25Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2026-11-21T03:57:25Z\"").unwrap().to_string(), at.to_string());
    }
}
