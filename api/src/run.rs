//! The messages of an attached run, over a WebSocket.
//!
//! To the server: binary messages are stdin, text messages are [`RunControl`]. From it: a binary message begins with the
//! stream's number ([`STDOUT`] or [`STDERR`]) and goes on with output; the last message is a [`RunEnd`] as text.

use serde::{Deserialize, Serialize};

/// First byte of a message with standard output (or both streams of a terminal).
pub const STDOUT: u8 = 1;
/// First byte of a message with standard error.
pub const STDERR: u8 = 2;

/// What a client says besides stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunControl {
    /// End of standard input.
    Eof(bool),
    /// The terminal's size: columns, rows.
    Resize(u16, u16),
    /// A signal's number.
    Signal(i32),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// Exit status, 128+n for a signal.
    Exit(i64),
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_as_documented() {
        let text = |c: &RunControl| serde_json::to_string(c).unwrap();
        assert_eq!(text(&RunControl::Eof(true)), r#"{"eof":true}"#);
        assert_eq!(text(&RunControl::Resize(80, 24)), r#"{"resize":[80,24]}"#);
        assert_eq!(serde_json::to_string(&RunEnd::Exit(3)).unwrap(), r#"{"exit":3}"#);
    }
}
