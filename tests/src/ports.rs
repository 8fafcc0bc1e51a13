//! Ports for servers that are told theirs before they listen on it, or that come back on it. One that the kernel chose
//! (port 0) and that was released again is not the test's any more: anyone may be given it next.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

/// Below those that the kernel gives to whoever asks for any.
const RANGE: Range<u16> = 12_000..32_000;

/// A port that nothing else gets, also while nobody listens on it: locked against other tests until this is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// One that is free on all addresses, for TCP and UDP.
    ///
    /// # Panics
    /// There is none, or the temporary directory cannot be written.
    pub fn reserve() -> Self {
        let folder = std::env::temp_dir().join("flex-test-ports");
        std::fs::create_dir_all(&folder).unwrap();
        let first = std::process::id() as usize * 7;
        let mut ports = RANGE.cycle().skip(first % RANGE.len()).take(RANGE.len());
        let found = ports.find_map(|number| {
            let lock = File::create(folder.join(number.to_string())).ok()?;
            lock.try_lock().ok()?;
            let any = (Ipv4Addr::UNSPECIFIED, number);
            (TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()).then_some(Self { number, _lock: lock })
        });
        found.expect("a free port")
    }

    /// Its number.
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// On this machine alone.
    pub fn local(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
