//! Lines as drains send them: their texts byte for byte, whether or not they are UTF-8. Pure.
//!
//! Syslog: RFC 5424 messages, each after its length (RFC 6587, 3.4.1). HTTPS: Heroku's logplex frames, which are the same but
//! for the structured data, that they leave out, and the platform's name.

use super::url::Kind;
use flex_model::{LogLine, LogSource, Timestamp};
use std::io::Write as _;

/// Facility and severity: local7.info for the app, local3.info for the router, syslog.notice for the platform's other lines.
fn priority(line: &LogLine) -> u8 {
    match line.source {
        LogSource::App => 190,
        LogSource::Flex if line.process == "router" => 158,
        LogSource::Flex => 45,
    }
}

/// RFC 5424 names are printable ASCII without spaces, and at most `max` long.
fn name(text: &str, max: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(max).collect();
    if clean.is_empty() { "-".into() } else { clean }
}

/// Appends a line's frame.
pub fn put(kind: Kind, token: &str, line: &LogLine, out: &mut Vec<u8>) {
    let (host, platform, end) = match kind {
        Kind::Syslog | Kind::SyslogTls => (token, "flex", " -"),
        Kind::Https => ("host", "heroku", ""),
    };
    let source = match line.source {
        LogSource::App => "app",
        LogSource::Flex => platform,
    };
    let line_end = if kind == Kind::Https { "\n" } else { "" };
    let (at, process) = (line.at.log_stamp(), name(&line.process, 128));
    let head = format!("<{}>1 {at} {} {source} {process} -{end} ", priority(line), name(host, 255));
    let length = head.len() + line.text.len() + line_end.len();
    // Writing to memory does not fail.
    let _ = write!(out, "{length} {head}");
    out.extend_from_slice(line.text.as_bytes());
    out.extend_from_slice(line_end.as_bytes());
}

/// What a drain is told of lines that it never gets.
pub fn overflow(dropped: u64, since: Timestamp, now: Timestamp) -> LogLine {
    let text = format!("Error L10 (output buffer overflow): {dropped} messages dropped since {since}.");
    LogLine { at: now, source: LogSource::Flex, process: "logs".into(), text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: Kind, source: LogSource, process: &str, text: &str) -> String {
        let at = "2026-11-21T04:00:00.123456Z".parse().unwrap();
        let mut out = Vec::new();
        put(kind, "d.1234", &LogLine { at, source, process: process.into(), text: text.into() }, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn frames_are_as_the_standards_have_them() {
        let ts = "2026-11-21T04:00:00.123456+00:00";
        let message = format!("<190>1 {ts} d.1234 app web.1 - - h\u{e9}llo");
        assert_eq!(framed(Kind::Syslog, LogSource::App, "web.1", "h\u{e9}llo"), format!("{} {message}", message.len()));
        let message = format!("<158>1 {ts} host heroku router - at=info\n");
        assert_eq!(framed(Kind::Https, LogSource::Flex, "router", "at=info"), format!("{} {message}", message.len()));
        assert!(framed(Kind::SyslogTls, LogSource::Flex, "", "x").contains("<45>1 "));
        assert!(framed(Kind::SyslogTls, LogSource::App, "we b\u{e9}", "x").contains(" we_b_ - - x"));
    }

    #[test]
    fn bytes_are_sent_and_counted_as_they_are() {
        let text: Vec<u8> = (0..=255).filter(|b| *b != b'\n').collect();
        for (kind, end) in [(Kind::Syslog, &b""[..]), (Kind::SyslogTls, b""), (Kind::Https, b"\n")] {
            let (at, process) = (Timestamp::default(), "web.1".into());
            let mut out = Vec::new();
            put(kind, "d.1234", &LogLine { at, source: LogSource::App, process, text: text.clone().into() }, &mut out);
            let space = out.iter().position(|b| *b == b' ').unwrap();
            let length: usize = std::str::from_utf8(&out[..space]).unwrap().parse().unwrap();
            assert_eq!(out.len(), space + 1 + length);
            assert!(out.ends_with(&[&text, end].concat()));
        }
    }
}
