//! The smallest HTTP client that a test needs: one request, the whole answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// `GET path` with this host name, from the server at `address`. `None`: no answer.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Option<Answer> {
    get_with(address, host, path, "")
}

/// As [`get`], with more lines of the request's head, each ended by CR LF.
pub fn get_with(address: SocketAddr, host: &str, path: &str, head: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(40))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{head}Connection: close\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // An answer that broke off is none.
    let bodiless = [204, 304].contains(&status);
    let length = head.lines().filter_map(|l| l.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if !bodiless && length.is_some_and(|(_, n)| n.trim().parse() != Ok(bytes.len() - head.len() - 4)) {
        return None;
    }
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
