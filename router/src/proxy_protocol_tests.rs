use super::*;
use crate::h1::fuzz::{Noise, rounds};
use proptest::prelude::*;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

/// What `accept` makes of bytes that come `pause` at a time, and what is left for the application.
async fn accepted(bytes: &[u8], pause: usize) -> (Result<Origin, ProxyError>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (mut stream, peer) = listener.accept().await.unwrap();
    let local = stream.local_addr().unwrap();
    let bytes = bytes.to_vec();
    let send = async move {
        for part in bytes.chunks(pause) {
            let _ = client.write_all(part).await;
            tokio::task::yield_now().await;
        }
        let _ = client.shutdown().await;
        client
    };
    let receive = async {
        let origin = accept(&mut stream, peer, local).await;
        let mut rest = Vec::new();
        if origin.is_ok() {
            stream.read_to_end(&mut rest).await.unwrap();
        }
        (origin, rest)
    };
    tokio::join!(send, receive).1
}

fn origin(tlvs: Vec<Tlv>) -> Origin {
    Origin { source: "192.0.2.7:5555".parse().unwrap(), destination: "203.0.113.1:443".parse().unwrap(), tlvs }
}

#[tokio::test]
async fn what_is_written_is_read_and_nothing_beyond() {
    let tlvs = vec![
        Tlv { kind: AUTHORITY, value: b"www.example.com".to_vec() },
        Tlv { kind: UNIQUE_ID, value: vec![7; 16] },
        Tlv::ssl("TLSv1.3"),
    ];
    for pause in [1, 5, 1000] {
        let (got, rest) = accepted(&[origin(tlvs.clone()).header(ProxyVersion::V2), b"hello".to_vec()].concat(), pause).await;
        assert_eq!((got.unwrap(), rest.as_slice()), (origin(tlvs.clone()), b"hello".as_slice()));
        let (got, rest) = accepted(&[origin(tlvs.clone()).header(ProxyVersion::V1), b"hello".to_vec()].concat(), pause).await;
        assert_eq!((got.unwrap(), rest.as_slice()), (origin(vec![]), b"hello".as_slice()));
    }
    let six = Origin { source: "[2001:db8::1]:1".parse().unwrap(), destination: "192.0.2.1:2".parse().unwrap(), tlvs: vec![] };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let (got, _) = accepted(&six.header(version), 1000).await;
        let got = got.unwrap();
        assert_eq!((got.source, got.destination), (six.source, six.destination));
    }
}

#[tokio::test]
async fn the_balancers_own_connections_keep_their_addresses() {
    let local_v2 = [SIGNATURE.as_slice(), &[0x20, 0, 0, 0]].concat();
    for header in [b"PROXY UNKNOWN\r\n".as_slice(), b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", &local_v2] {
        let (got, rest) = accepted(&[header, b"x"].concat(), 1000).await;
        assert!(got.unwrap().source.ip().is_loopback());
        assert_eq!(rest, b"x");
    }
}

#[tokio::test]
async fn what_is_not_a_header_is_refused() {
    for bad in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
        b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
        b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        &[b'P'; 200],
        b"PROXY TCP4 1.2.3.4",
    ] {
        let (got, _) = accepted(bad, 1000).await;
        assert!(got.is_err(), "{}", String::from_utf8_lossy(bad));
    }
    let (got, _) = accepted(&[b"PROXY TCP4 ".as_slice(), &[b'1'; 300]].concat(), 1000).await;
    assert!(matches!(got, Err(ProxyError::Malformed("the line has no end"))));
}

#[test]
fn checksums_are_verified() {
    // A checksum of the header's own making, as haproxy's `send-proxy-v2 proxy-v2-options crc32c` sends it.
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    let mut body = vec![192, 0, 2, 7, 203, 0, 113, 1, 0x15, 0xb3, 1, 0xbb];
    body.extend([CRC32C, 0, 4, 0, 0, 0, 0]);
    let mut whole = SIGNATURE.to_vec();
    whole.extend([0x21, 0x11, 0, u8::try_from(body.len()).unwrap()]);
    whole.extend(&body);
    let sum = crc32c(&whole).to_be_bytes();
    let at = body.len() - 4;
    body[at..].copy_from_slice(&sum);
    assert!(parse_v2(0x21, 0x11, &body).is_ok());
    body[0] ^= 1;
    assert!(matches!(parse_v2(0x21, 0x11, &body), Err(ProxyError::Malformed("the checksum is wrong"))));
}

/// Headers that were right, changed here and there. What is still taken for one says the same when it is written anew.
#[test]
fn what_is_accepted_is_written_anew_as_it_was_read() {
    let words: [&[u8]; 10] =
        [b" ", b"  ", b"\r\n", b"TCP4", b"TCP6", b"UNKNOWN", b"::ffff:1.2.3.4", b"0", b"65536", &[CRC32C, 0, 4, 0, 0, 0, 0]];
    let (mut accepted, mut seen) = ([0_u64; 2], 0_u64);
    rounds(|seed| {
        let mut noise = Noise(seed);
        let address = |noise: &mut Noise, six: bool| {
            let ip: IpAddr = if six { [noise.below(256) as u8; 16].into() } else { [noise.below(256) as u8; 4].into() };
            SocketAddr::new(ip, noise.below(65_536) as u16)
        };
        let six = noise.below(2) == 0;
        let (source, destination) = (address(&mut noise, six), address(&mut noise, six));
        let tlvs = (0..noise.below(3)).map(|_| Tlv { kind: 0xe0, value: vec![7; noise.below(300)] }).collect();
        let origin = Origin { source, destination, tlvs };
        let version = if noise.below(2) == 0 { ProxyVersion::V1 } else { ProxyVersion::V2 };
        let mut header = origin.header(version);
        noise.mutate(&mut header, &words);
        seen += 1;
        let parsed = match version {
            // As far as `accept` takes it.
            ProxyVersion::V1 => match header.windows(2).position(|w| w == b"\r\n") {
                Some(end) if header.starts_with(b"PROXY ") => {
                    header.truncate(end + 2);
                    parse_v1(&header)
                }
                _ => return,
            },
            ProxyVersion::V2 => match header.strip_prefix(SIGNATURE.as_slice()) {
                Some([command, family, _, _, body @ ..]) => parse_v2(*command, *family, body),
                _ => return,
            },
        };
        let Ok(Header { addresses: Some((source, destination)), tlvs }) = parsed else { return };
        accepted[usize::from(version == ProxyVersion::V2)] += 1;
        let again = Origin { source, destination, tlvs }.header(ProxyVersion::V2);
        let reread = parse_v2(again[12], again[13], &again[16..]).unwrap();
        assert_eq!(reread.addresses, Some((source, destination)), "seed {seed}");
        if version == ProxyVersion::V1 {
            // One line of six words, as the specification has it.
            let text = std::str::from_utf8(&header).unwrap();
            let words: Vec<&str> = text.strip_suffix("\r\n").unwrap().split(' ').collect();
            assert!(words.len() == 6 && !text[..text.len() - 2].contains(['\r', '\n']), "seed {seed}: {text:?}");
            let said = (words[2].parse::<IpAddr>().unwrap(), words[4].parse::<u16>().unwrap());
            assert_eq!(source, canonical(said.into()), "seed {seed}: {text:?}");
        }
    });
    assert!(accepted.iter().all(|n| *n > seen / 8), "{accepted:?} of {seen}");
}

proptest! {
    /// No bytes make the parsers panic, and what they take is well-formed.
    #[test]
    fn any_bytes_are_read_or_refused(command in any::<u8>(), family in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(header) = parse_v2(command, family, &body) {
            prop_assert!(command & 0xf0 == 0x20);
            prop_assert!(header.tlvs.iter().map(|t| t.value.len() + 3).sum::<usize>() <= body.len());
        }
        let _ = parse_v1(&body);
    }

    #[test]
    fn headers_come_back(a in any::<[u8; 4]>(), b in any::<[u8; 16]>(), from in any::<u16>(), to in any::<u16>(), six in any::<bool>(),
            tlvs in proptest::collection::vec((5_u8..250, proptest::collection::vec(any::<u8>(), 0..40)), 0..5)) {
        let ip: IpAddr = if six { b.into() } else { a.into() };
        let tlvs: Vec<Tlv> = tlvs.into_iter().map(|(kind, value)| Tlv { kind, value }).collect();
        let origin = Origin { source: canonical(SocketAddr::new(ip, from)), destination: canonical(SocketAddr::new(ip, to)), tlvs };
        let header = origin.header(ProxyVersion::V2);
        let parsed = parse_v2(header[12], header[13], &header[16..]).unwrap();
        prop_assert_eq!(parsed.addresses, Some((origin.source, origin.destination)));
        prop_assert_eq!(parsed.tlvs, origin.tlvs.clone());
        let line = origin.header(ProxyVersion::V1);
        prop_assert!(line.len() <= V1_MAX);
        prop_assert_eq!(parse_v1(&line).unwrap().addresses, Some((origin.source, origin.destination)));
    }
}
