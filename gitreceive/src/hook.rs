//! The pre-receive hook: a program that git runs and that asks the daemon, and the words they speak.
//!
//! Invariant: it fails closed. Exit 0 comes only after the daemon's verdict said yes; a daemon that is not there, breaks
//! off or speaks nonsense is a refusal with a clear line.

use crate::git::{ENV_SECRET, ENV_SOCKET};
use serde::{Deserialize, Serialize};
use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
};

/// The largest question that either side takes, in bytes: a thousand refs need a tenth of it.
pub const MAX_QUESTION: usize = 4 << 20;

/// What the hook asks: one frame, a length of four bytes (big endian) and JSON.
#[derive(Serialize, Deserialize)]
pub struct Question {
    pub secret: String,
    /// `GIT_QUARANTINE_PATH`; a push that only deletes has none.
    pub quarantine: Option<String>,
    /// Old id, new id, ref name, as git gave them.
    pub updates: Vec<(String, String, String)>,
    pub options: Vec<String>,
}

/// What the daemon answers: one JSON document per line, the verdict last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Line(String),
    Verdict(bool),
}

/// The whole program: call it when `argv[0]` ends in `pre-receive`. Reads git's environment and stdin, and copies the
/// daemon's lines to stdout as they come; git shows them as `remote: …`.
pub fn run_hook() -> ExitCode {
    let mut stdout = io::stdout().lock();
    match ask(&mut io::stdin().lock(), &mut stdout, |name| env::var(name).ok()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            let _ = write!(stdout, "{}", fault.said()).and_then(|()| stdout.flush());
            ExitCode::FAILURE
        }
    }
}

/// What is said of a push that ends without a verdict: the release may have been made by then, and serves if it was.
pub const WHETHER: [&str; 2] =
    ["Whether this push was released before that says: flex releases", "Pushing it again in a minute is right either way."];

/// Why there is no verdict.
#[derive(Debug, PartialEq)]
enum Fault {
    /// The daemon was never asked.
    Unasked(String),
    /// It may have begun with the push, and gone any way with it.
    Lost(String),
}

impl Fault {
    fn said(&self) -> String {
        match self {
            Self::Unasked(why) => format!(" !     Push refused: {why}.\n !     Nothing was changed. Try again in a minute.\n"),
            Self::Lost(why) => {
                let [whether, again] = WHETHER;
                format!(" !     The connection to the server was lost: {why}.\n !     {whether}\n !     {again}\n")
            }
        }
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Unasked(why)
    }
}

fn ask(updates: &mut dyn BufRead, out: &mut dyn Write, env: impl Fn(&str) -> Option<String>) -> Result<bool, Fault> {
    let (Some(socket), Some(secret)) = (env(ENV_SOCKET), env(ENV_SECRET)) else {
        return Err("this repository takes pushes through Flex only".to_owned().into());
    };
    let question = Question {
        secret,
        quarantine: env("GIT_QUARANTINE_PATH"),
        updates: read_updates(updates)?,
        options: read_options(&env)?,
    };
    let frame = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
    let gone = |e: io::Error| format!("Flex is not answering ({e})");
    let mut stream = UnixStream::connect(socket).map_err(gone)?;
    let length = u32::try_from(frame.len()).map_err(|_| "it moves too many refs".to_owned())?;
    // The daemon reads the question whole before it does anything, so one that was cut off is none.
    stream.write_all(&length.to_be_bytes()).and_then(|()| stream.write_all(&frame)).map_err(gone)?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|e| Fault::Lost(e.to_string()))?;
        match serde_json::from_str(&line) {
            // The pusher may be gone; the build goes on all the same, and so does this program.
            Ok(Answer::Line(text)) => drop(writeln!(out, "{text}").and_then(|()| out.flush())),
            Ok(Answer::Verdict(verdict)) => return Ok(verdict),
            Err(e) => return Err(Fault::Lost(format!("it answered something strange, {e}"))),
        }
    }
    Err(Fault::Lost("it stopped before it came to a verdict".into()))
}

fn read_updates(input: &mut dyn BufRead) -> Result<Vec<(String, String, String)>, String> {
    let mut text = Vec::new();
    input.take(MAX_QUESTION as u64 + 1).read_to_end(&mut text).map_err(|e| format!("git's list of refs cannot be read ({e})"))?;
    if text.len() > MAX_QUESTION / 2 {
        return Err("it moves too many refs".into());
    }
    let text = String::from_utf8(text).map_err(|_| "a ref's name is not UTF-8".to_owned())?;
    let line = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    text.lines().map(|l| line(l).ok_or_else(|| "git's list of refs has a strange line".to_owned())).collect()
}

fn read_options(env: &impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let count: usize = env("GIT_PUSH_OPTION_COUNT").and_then(|n| n.parse().ok()).unwrap_or(0);
    if count > 100 {
        return Err("it has more than 100 push options".into());
    }
    (0..count)
        .map(|n| {
            env(&format!("GIT_PUSH_OPTION_{n}"))
                .filter(|o| o.len() <= 4096)
                .ok_or("a push option is too long or not UTF-8".into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixListener, thread};

    const UPDATE: &[u8] = b"0000000000000000000000000000000000000000 1111111111111111111111111111111111111111 refs/heads/main\n";

    /// Runs the hook against a daemon that answers `answers` and closes.
    fn hook(answers: &'static str) -> (Result<bool, Fault>, String, serde_json::Value) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut frame).unwrap();
            stream.write_all(answers.as_bytes()).unwrap();
            serde_json::from_slice(&frame).unwrap()
        });
        let mut out = Vec::new();
        let env = |name: &str| match name {
            ENV_SOCKET => Some(path.to_str().unwrap().to_owned()),
            ENV_SECRET => Some("s3".to_owned()),
            "GIT_PUSH_OPTION_COUNT" => Some("1".to_owned()),
            "GIT_PUSH_OPTION_0" => Some("a=b c".to_owned()),
            _ => None,
        };
        let result = ask(&mut &*UPDATE, &mut out, env);
        (result, String::from_utf8(out).unwrap(), daemon.join().unwrap())
    }

    #[test]
    fn lines_then_verdict() {
        let (result, out, asked) = hook("{\"line\":\"-----> Building\"}\n{\"line\":\"\"}\n{\"verdict\":true}\n");
        assert_eq!((result, out.as_str()), (Ok(true), "-----> Building\n\n"));
        assert_eq!(asked["updates"][0][2], "refs/heads/main");
        assert_eq!(asked["options"][0], "a=b c");
        assert!(asked["quarantine"].is_null());
        assert_eq!(hook("{\"verdict\":false}\n").0, Ok(false));
    }

    #[test]
    fn fails_closed() {
        for broken in ["", "{\"line\":\"x\"}\n", "{\"verdict\":tr", "{\"verdict\":1}\n", "nonsense\n", "{}\n"] {
            let said = hook(broken).0.unwrap_err().said();
            // The daemon had the question: it may have made the release.
            assert!(said.contains("connection to the server was lost") && said.contains("flex releases"), "{broken}: {said}");
            assert!(!said.contains("Nothing was changed"), "{broken}: {said}");
        }
        let mut out = Vec::new();
        let refused = ask(&mut &*UPDATE, &mut out, |_| None).unwrap_err().said();
        assert!(refused.contains("through Flex only") && refused.contains("Nothing was changed"), "{refused}");
        let env = |n: &str| Some(if n == ENV_SOCKET { "/nowhere/socket" } else { "0" }.to_owned());
        let refused = ask(&mut &*UPDATE, &mut out, env).unwrap_err().said();
        assert!(refused.contains("not answering") && refused.contains("Nothing was changed"), "{refused}");
    }
}
