//! How many connections each client address has open.
//!
//! Invariant: an address is in memory only while it has a connection, so that there are never more of them than connections,
//! which have their own limit.

use crate::policy::subscriber;
use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

const PARTS: usize = 16;

/// Of IPv6, one /64 counts as an address. As bytes, so that a place in a connection's state is small.
type Subscriber = [u8; 16];

/// Open connections by client address, shared by the workers.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    parts: [Mutex<HashMap<Subscriber, u32>>; PARTS],
    hash: RandomState,
}

/// One connection of an address; dropping it ends it.
#[derive(Debug)]
pub(crate) struct ClientPlace<'a> {
    clients: &'a Clients,
    of: Subscriber,
}

impl Clients {
    fn part(&self, of: &Subscriber) -> MutexGuard<'_, HashMap<Subscriber, u32>> {
        let at = usize::try_from(self.hash.hash_one(of) % PARTS as u64).unwrap_or(0);
        self.parts[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the address has `most` connections already.
    pub(crate) fn take(&self, address: IpAddr, most: usize) -> Option<ClientPlace<'_>> {
        let of = subscriber(address).to_be_bytes();
        let mut part = self.part(&of);
        let open = part.get(&of).copied().unwrap_or(0);
        if open as usize >= most {
            return None;
        }
        part.insert(of, open + 1);
        Some(ClientPlace { clients: self, of })
    }
}

impl Drop for ClientPlace<'_> {
    fn drop(&mut self) {
        let mut part = self.clients.part(&self.of);
        match part.get_mut(&self.of) {
            Some(open) if *open > 1 => *open -= 1,
            _ => _ = part.remove(&self.of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_and_none_is_kept() {
        let clients = Clients::default();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let first = clients.take(ip("192.0.2.1"), 2).unwrap();
        let second = clients.take(ip("::ffff:192.0.2.1"), 2).unwrap();
        assert!(clients.take(ip("192.0.2.1"), 2).is_none());
        let other = clients.take(ip("192.0.2.2"), 2).unwrap();
        // One subscriber has a whole /64 of IPv6.
        let v6 = clients.take(ip("2001:db8::1"), 1).unwrap();
        assert!(clients.take(ip("2001:db8::2"), 1).is_none() && clients.take(ip("2001:db8:0:1::1"), 1).is_some());
        drop(first);
        let again = clients.take(ip("192.0.2.1"), 2).unwrap();
        drop((second, other, v6, again));
        assert!(clients.parts.iter().all(|p| p.lock().unwrap().is_empty()));
        assert!(std::mem::size_of::<Option<ClientPlace<'_>>>() <= 24);
    }
}
