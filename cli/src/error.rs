//! What goes wrong, as the user reads it: one line that says what, lines that say what to do, and the exit status.

use std::fmt;

/// Exit status for wrong use and for what does not exist.
pub const EXIT_USAGE: u8 = 2;

/// An error with its exit status.
#[derive(Debug)]
pub struct CliError {
    pub message: String,
    /// What to do about it, a line each.
    pub hints: Vec<String>,
    /// The API's error id, such as `not_found`.
    pub id: Option<String>,
    pub exit: u8,
}

pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// A failure: exit status 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), id: None, exit: 1 }
    }
    /// Wrong use, or something that does not exist: exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: EXIT_USAGE, ..Self::failed(message) }
    }
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Puts what was being done before an I/O error's text.
pub fn while_doing<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> CliError {
    move |e| CliError::failed(format!("Cannot {what}: {e}"))
}
