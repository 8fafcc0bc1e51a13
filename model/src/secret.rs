//! Values that must never reach a log, an error or a terminal by accident.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A text whose `Debug` and `Display` hide it. [`Secret::expose`] is the one way to the text, so that a search for it
/// finds every place that handles one. Serialization exposes it: keep it out of types that are logged as JSON.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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
}
