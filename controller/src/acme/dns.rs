//! A small DNS client (RFC 1035): addresses and texts of a name, from one given server. It is for looking at a name as the
//! certificate authority will, where the machine's own resolver may say something else.
//!
//! Must not: be used for anything that trusts the answer.

use flex_model::DomainName;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;

/// Each time it is asked.
const WAIT: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// As large as an answer over UDP may be.
const MAX_ANSWER: usize = 4096;

const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;
/// RFC 1035 section 4.1.1: the name does not exist.
const NO_SUCH_NAME: u8 = 3;

/// The server that this machine asks first.
pub fn system_server() -> Option<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    text.lines().find_map(|l| l.strip_prefix("nameserver ")?.trim().parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53))
}

/// The addresses of a name, IPv4 first.
pub async fn addresses(server: SocketAddr, name: &DomainName) -> Result<Vec<IpAddr>, String> {
    let mut all = Vec::new();
    for kind in [A, AAAA] {
        for data in ask(server, name.as_str(), kind).await? {
            if let Ok(v4) = <[u8; 4]>::try_from(&data[..]) {
                all.push(Ipv4Addr::from(v4).into());
            } else if let Ok(v6) = <[u8; 16]>::try_from(&data[..]) {
                all.push(Ipv6Addr::from(v6).into());
            }
        }
    }
    Ok(all)
}

/// The texts at a name; each is one record.
pub async fn texts(server: SocketAddr, name: &str) -> Result<Vec<String>, String> {
    let join = |data: Vec<u8>| {
        let (mut rest, mut text) = (&data[..], Vec::new());
        while let Some((length, more)) = rest.split_first() {
            let (part, after) = more.split_at_checked(usize::from(*length))?;
            text.extend_from_slice(part);
            rest = after;
        }
        String::from_utf8(text).ok()
    };
    Ok(ask(server, name, TXT).await?.into_iter().filter_map(join).collect())
}

async fn ask(server: SocketAddr, name: &str, kind: u16) -> Result<Vec<Vec<u8>>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("the name server {server} cannot be asked: {e}");
    let local: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(local).await.map_err(|e| failed(&e))?;
    socket.connect(server).await.map_err(|e| failed(&e))?;
    let id = u16::from_be_bytes(crate::crypt::random::<2>());
    let query = query(id, name, kind).ok_or_else(|| format!("{name} is no name that can be asked for"))?;
    let mut buf = vec![0; MAX_ANSWER];
    let mut last = format!("the name server {server} does not answer");
    for _ in 0..TRIES {
        if let Err(e) = socket.send(&query).await {
            last = failed(&e);
            continue;
        }
        let answer = async {
            loop {
                match socket.recv(&mut buf).await {
                    // A late answer to an earlier question is not this one's.
                    Ok(n) if buf[..n].starts_with(&id.to_be_bytes()) => return Ok(n),
                    Ok(_) => {}
                    Err(e) => return Err(failed(&e)),
                }
            }
        };
        match tokio::time::timeout(WAIT, answer).await {
            Ok(Ok(n)) => return answers(&buf[..n], kind).ok_or_else(|| format!("the name server {server} refused to answer")),
            Ok(Err(e)) => {
                last = e;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_) => {}
        }
    }
    Err(last)
}

fn query(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    // Recursion desired; one question.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..64).contains(n))?;
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&1u16.to_be_bytes());
    Some(out)
}

/// The data of the answers of this kind. `None`: it is no answer, or says that the server failed.
fn answers(message: &[u8], kind: u16) -> Option<Vec<Vec<u8>>> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    match message.get(3)? & 0x0f {
        0 => {}
        NO_SUCH_NAME => return Some(Vec::new()),
        _ => return None,
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = after_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        at = after_name(message, at)?;
        let (this, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if this == kind {
            found.push(data.to_vec());
        }
        at += 10 + length;
    }
    Some(found)
}

/// Where the name that begins at `at` ends. A pointer (RFC 1035 section 4.1.4) is its end.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            n if n & 0xc0 == 0xc0 => return Some(at + 2),
            n if n & 0xc0 == 0 => at += 1 + usize::from(n),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_behind_aliases() {
        let mut message = query(7, "www.test", A).unwrap();
        message[3] = 0x80;
        message[7] = 2;
        // An alias, then its address; both names are pointers.
        message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'x', 0xc0, 16]);
        message.extend([0xc0, 38, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
        assert_eq!(answers(&message, A).unwrap(), [vec![192, 0, 2, 7]]);
        assert_eq!(answers(&message, AAAA).unwrap(), Vec::<Vec<u8>>::new());
        message[3] = 0x83;
        assert_eq!(answers(&message, A).unwrap(), Vec::<Vec<u8>>::new());
        message[3] = 0x82;
        assert_eq!(answers(&message, A), None);
        assert!(query(7, &"x".repeat(64), A).is_none() && query(7, "a..b", A).is_none());
    }

    proptest! {
        #[test]
        fn no_message_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            answers(&bytes, TXT);
        }
    }
}
