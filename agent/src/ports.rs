//! What a container listens on, read from `/proc/PID/net/tcp` and `tcp6`.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The state that the kernel prints for a listening socket.
const LISTEN: &str = "0A";

/// The sockets that the network namespace of a process listens on, the engine's own name server left out.
pub fn listeners(pid: u32) -> io::Result<Vec<SocketAddr>> {
    let mut found = parse(&fs::read_to_string(format!("/proc/{pid}/net/tcp"))?);
    // Absent where the kernel has no IPv6.
    if let Ok(table) = fs::read_to_string(format!("/proc/{pid}/net/tcp6")) {
        found.extend(parse(&table));
    }
    // Docker's name server for user-defined networks.
    found.retain(|s| s.ip() != IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)));
    found.sort();
    Ok(found)
}

fn parse(table: &str) -> Vec<SocketAddr> {
    let listening = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        if state == LISTEN { address(local) } else { None }
    };
    table.lines().skip(1).filter_map(listening).collect()
}

/// `0100007F:0BB8`: words of the address in the machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !ip.is_ascii() || ip.len() % 8 != 0 {
        return None;
    }
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(&ip[at..at + 8], 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_what_this_process_listens_on() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners(std::process::id()).unwrap();
        assert!(found.contains(&four.local_addr().unwrap()), "{found:?}");
        let gone = four.local_addr().unwrap();
        drop(four);
        assert!(!listeners(std::process::id()).unwrap().contains(&gone));
    }

    #[test]
    fn reads_both_families() {
        let table = "  sl  local_address rem_address   st\n\
             0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
             1: 0100007F:0BB9 0100007F:0050 01 00000000:00000000\n\
             2: 00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A 0\n junk\n 3: zz:1 0:0 0A\n";
        assert_eq!(parse(table), ["127.0.0.1:3000".parse().unwrap(), "[::]:5000".parse().unwrap()]);
    }
}
