//! The text of a log line: what a program printed, byte for byte.
//!
//! Must not: change a byte. Only what shows a text to people ([`fmt::Display`]) puts U+FFFD for what is not UTF-8.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

/// The bytes of a line, UTF-8 most of the time, without a line end.
///
/// In JSON a string where it is UTF-8, and else `{"base64": "…"}` of all its bytes; either is read back as it was.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogText(Vec<u8>);

impl LogText {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }

    /// The text with U+FFFD for what is not UTF-8.
    pub fn to_str_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Display for LogText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Checking a whole text is faster than walking it.
        f.write_str(self.as_str().map_or_else(|| self.to_str_lossy(), Cow::Borrowed).as_ref())
    }
}

impl fmt::Debug for LogText {
    /// Like a string's; other bytes as `\xff`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for chunk in self.0.utf8_chunks() {
            write!(f, "{}{}", chunk.valid().escape_debug(), chunk.invalid().escape_ascii())?;
        }
        f.write_char('"')
    }
}

impl From<Vec<u8>> for LogText {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for LogText {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<String> for LogText {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for LogText {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl PartialEq<str> for LogText {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for LogText {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl PartialEq<String> for LogText {
    fn eq(&self, other: &String) -> bool {
        self == other.as_str()
    }
}

impl Serialize for LogText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_str() {
            Some(text) => serializer.serialize_str(text),
            None => Form::Bytes { base64: BASE64_STANDARD.encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LogText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(text.into()),
            Form::Bytes { base64 } => BASE64_STANDARD.decode(base64).map(Self).map_err(D::Error::custom),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes { base64: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_from_json_and_text_is_a_string() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&b""[..], b"plain", "h\u{e9}\u{1f600}\0\t".as_bytes(), b"a\xffb", b"\xe2\x82", &all] {
            let text = LogText::from(bytes);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<LogText>(&json).unwrap(), text, "{json}");
            assert_eq!(json.starts_with('"'), str::from_utf8(bytes).is_ok(), "{json}");
        }
        assert_eq!(serde_json::to_string(&LogText::from(&b"a\xff"[..])).unwrap(), r#"{"base64":"Yf8="}"#);
        for wrong in ["7", "{}", r#"{"base64":"*"}"#, "[97]", "null"] {
            assert!(serde_json::from_str::<LogText>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn people_see_replacements_and_debuggers_the_bytes() {
        let text = LogText::from(&b"a\xff\xc3\xa9\"\xe2\x82"[..]);
        assert_eq!(text.to_string(), "a\u{fffd}\u{e9}\"\u{fffd}");
        assert_eq!(format!("{text:?}"), r#""a\xffé\"\xe2\x82""#);
        assert_eq!((text.as_str(), text.len()), (None, 7));
        let [x, y] = ["x", "y"].map(str::to_owned);
        assert!(LogText::from("x").eq("x") && LogText::from("x").eq(&x) && !LogText::from("x").eq(&y));
    }
}
