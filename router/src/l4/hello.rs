//! Reads the beginning of a TLS connection, the ClientHello, for the name that the client asks for. It is read, not
//! answered: what was read goes on to the instance as it came.
//!
//! Bounded: no more than [`MAX`] bytes are kept, whatever a client claims is coming. Must not: allocate by a client's word.

use tokio::net::TcpStream;

/// The most that is looked through. A hello with post-quantum keys is about 2 KiB.
pub(crate) const MAX: usize = 16 << 10;

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hello {
    /// The beginning of a hello.
    Partial,
    /// Not TLS, or not as RFC 8446 has it.
    No,
    /// A whole hello, with the name that it asks for, in lower case.
    Yes(Option<String>),
}

/// Reads until a hello is whole, or is none. Outer None: the client went away.
pub(crate) async fn read(stream: &TcpStream, ahead: &mut Vec<u8>) -> Option<Option<String>> {
    loop {
        let mut part = [0; 4096];
        stream.readable().await.ok()?;
        match stream.try_read(&mut part) {
            Ok(0) => return None,
            Ok(n) => ahead.extend_from_slice(&part[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        }
        match look(ahead) {
            Hello::Partial => {}
            Hello::No => return Some(None),
            Hello::Yes(name) => return Some(name),
        }
    }
}

/// Looks at the first bytes of a connection.
pub(crate) fn look(bytes: &[u8]) -> Hello {
    let (mut rest, mut handshake) = (bytes, Vec::new());
    // The hello may be cut into several records.
    loop {
        let end = if bytes.len() >= MAX { Hello::No } else { Hello::Partial };
        match rest {
            [] => return end,
            [22] | [22, 3] => return end,
            [22, 3, _, more @ ..] => {
                let [high, low, body @ ..] = more else { return end };
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                // RFC 8446 section 5.1: no empty fragments, none above 2^14.
                if length == 0 || length > 1 << 14 {
                    return Hello::No;
                }
                handshake.extend_from_slice(&body[..length.min(body.len())]);
                match parse(&handshake) {
                    Hello::Partial if body.len() < length => return end,
                    Hello::Partial => rest = &body[length..],
                    found => return found,
                }
            }
            _ => return Hello::No,
        }
    }
}

fn parse(handshake: &[u8]) -> Hello {
    let [kind, a, b, c, rest @ ..] = handshake else {
        return if handshake.first().is_none_or(|k| *k == 1) { Hello::Partial } else { Hello::No };
    };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if *kind != 1 || length > MAX {
        return Hello::No;
    }
    match rest.get(..length) {
        None => Hello::Partial,
        Some(body) => fields(body).map_or(Hello::No, Hello::Yes),
    }
}

/// Outer None: malformed.
fn fields(body: &[u8]) -> Option<Option<String>> {
    // legacy_version, random
    let rest = body.get(34..)?;
    let (_session, rest) = vector(rest, 1)?;
    let (_ciphers, rest) = vector(rest, 2)?;
    let (_compression, rest) = vector(rest, 1)?;
    if rest.is_empty() {
        return Some(None);
    }
    let (mut extensions, rest) = vector(rest, 2)?;
    if !rest.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.is_empty() {
        let [high, low, rest @ ..] = extensions else { return None };
        let (value, rest) = vector(rest, 2)?;
        if [*high, *low] == [0, 0] && name.replace(server_name(value)?).is_some() {
            // Two names would let two readers disagree.
            return None;
        }
        extensions = rest;
    }
    Some(name)
}

fn server_name(value: &[u8]) -> Option<String> {
    let (list, rest) = vector(value, 2)?;
    let [0, entry @ ..] = list else { return None };
    let (name, more) = vector(entry, 2)?;
    // RFC 6066 section 3: one name of each type, and there is one type.
    if !rest.is_empty() || !more.is_empty() || name.is_empty() || name.len() > 253 {
        return None;
    }
    let legal = name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b));
    legal.then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

/// A vector with a length of `width` bytes before it, and what follows it.
fn vector(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(width)?;
    let length = head.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// As rustls writes it.
    fn real(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    /// The same hello in records of `size` bytes.
    fn cut(hello: &[u8], size: usize) -> Vec<u8> {
        let records = hello[5..].chunks(size);
        records.flat_map(|part| [&[22, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat()).collect()
    }

    #[test]
    fn finds_the_name_in_a_real_hello_however_it_is_cut() {
        let hello = real("Db.Example.com");
        let found = Hello::Yes(Some("db.example.com".into()));
        assert_eq!(look(&hello), found);
        for n in 0..hello.len() {
            assert_eq!(look(&hello[..n]), Hello::Partial, "{n}");
        }
        assert_eq!(look(&cut(&hello, 7)), found);
        assert_eq!(look(&cut(&hello, 1)), found);
        assert_eq!(look(&real("192.0.2.1")), Hello::Yes(None));
        assert_eq!(look(&[hello.as_slice(), b"more"].concat()), found);
    }

    #[test]
    fn what_is_not_tls_is_told_at_the_first_bytes() {
        for bytes in [b"G".as_slice(), b"\x16\x02", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05\x02"]
        {
            assert_eq!(look(bytes), Hello::No, "{bytes:?}");
        }
        // A claim of 16 MiB is not waited for.
        assert_eq!(look(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"), Hello::No);
    }

    proptest! {
        #[test]
        fn damage_is_refused_or_read_and_never_a_panic(at in 0_usize..400, with in any::<u8>(), name in "[a-z]{1,20}\\.[a-z]{2,9}") {
            let mut hello = real(&name);
            let at = at % hello.len();
            hello[at] = with;
            let _ = look(&hello);
            let _ = look(&hello[..at]);
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), tls in any::<bool>()) {
            let bytes = if tls { cut(&[&[0; 5], bytes.as_slice()].concat(), 50) } else { bytes };
            if let Hello::Yes(Some(name)) = look(&bytes) {
                prop_assert!(name.len() <= 253);
            }
        }
    }
}
