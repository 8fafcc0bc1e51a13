//! Values that must never reach a log, an error or a terminal by accident.

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A text whose `Debug` and `Display` hide it. [`Secret::expose`] is the one way to the text, so that a search for it
/// finds every place that handles one. Serialization exposes it: keep it out of types that are logged as JSON. What is no
/// text where one is read is refused without being quoted, as serde would. It asks the format what there is, so it is for
/// formats that say (JSON, TOML).
#[derive(Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text itself. Hand it on, never print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Text)
    }
}

struct Text;

/// For each type: refused, and not quoted.
macro_rules! refused {
    ($($visit:ident: $type:ty),*) => {$(
        fn $visit<E: Error>(self, _: $type) -> Result<Secret, E> { Err(no_text()) }
    )*};
}

fn no_text<E: Error>() -> E {
    E::custom("expected a text in quotes (what is there instead is not shown)")
}

impl<'de> Visitor<'de> for Text {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }
    fn visit_string<E: Error>(self, text: String) -> Result<Secret, E> {
        Ok(Secret(text))
    }
    refused!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64, visit_bytes: &[u8]);
    fn visit_none<E: Error>(self) -> Result<Secret, E> {
        Err(no_text())
    }
    fn visit_unit<E: Error>(self) -> Result<Secret, E> {
        Err(no_text())
    }
    // Read to their end, or it would be said of the input that it is broken.
    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Secret, A::Error> {
        while all.next_element::<IgnoredAny>()?.is_some() {}
        Err(no_text())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Secret, A::Error> {
        while all.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Err(no_text())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn does_not_print() {
        let s = super::Secret::new("hunter2");
        assert_eq!(format!("{s} {s:?} {:?}", Some(&s)), "[secret] [secret] Some([secret])");
        assert_eq!(s.expose(), "hunter2");
    }

    #[test]
    fn what_is_no_text_is_not_quoted() {
        use super::Secret;
        let read = |json: &str| serde_json::from_str::<Secret>(json);
        assert_eq!(read("\"a\\nb\"").unwrap().expose(), "a\nb");
        assert!(serde_json::from_str::<Option<Secret>>("null").unwrap().is_none());
        for json in ["4711", "-4711", "4711.5", "true", "null", "[4711]", "{\"4711\":4711}"] {
            let told = read(json).unwrap_err().to_string();
            assert!(told.starts_with("expected a text in quotes") && !told.contains("4711"), "{told}");
        }
    }
}
