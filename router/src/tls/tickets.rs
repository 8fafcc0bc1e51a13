//! Session tickets under keys that come with the certificates: a session begun with one worker or router is resumed by
//! any other, and after a restart. The control plane makes the keys and forgets them; until it has sent some, and where
//! it never does, a key of this process serves.
//!
//! Must not: make a key where there are shared ones, or take a ticket whose key is no longer in the table.

use arc_swap::ArcSwap;
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use flex_model::{TICKET_PERIOD, TicketKey};
use rustls::server::ProducesTickets;
use std::time::{SystemTime, UNIX_EPOCH};

/// A ticket is the period of its key, a nonce, and the sealed state.
const PERIOD: usize = 8;
const NONCE: usize = 24;

pub(super) struct Tickets {
    keys: ArcSwap<Keys>,
}

/// By period, in order; at least one.
struct Keys(Vec<(u64, XChaCha20Poly1305)>);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new() -> Self {
        // Period 0 is never one of the control plane's.
        let own = (0, XChaCha20Poly1305::new(&rand::random::<[u8; 32]>().into()));
        Self { keys: ArcSwap::from_pointee(Keys(vec![own])) }
    }

    /// Puts the shared keys in force. None that can be used: what is there stays.
    pub(super) fn replace(&self, shared: &[TicketKey]) {
        let read = |k: &TicketKey| {
            let bytes = hex::decode(k.key.expose()).ok()?;
            Some((k.period, XChaCha20Poly1305::new_from_slice(&bytes).ok()?))
        };
        let mut keys: Vec<_> = shared.iter().filter_map(read).collect();
        keys.sort_by_key(|(period, _)| *period);
        if !keys.is_empty() {
            self.keys.store(Keys(keys).into());
        }
    }
}

impl Keys {
    /// The key for what is made in this period: the newest whose time has come. Without a control plane for long, the last
    /// one goes on.
    fn to_seal(&self, now: u64) -> &(u64, XChaCha20Poly1305) {
        self.0.iter().rev().find(|(period, _)| *period <= now).unwrap_or(&self.0[0])
    }

    fn seal(&self, now: u64, nonce: [u8; NONCE], plain: &[u8]) -> Option<Vec<u8>> {
        let (period, key) = self.to_seal(now);
        let period = period.to_be_bytes();
        let sealed = key.encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: &period }).ok()?;
        Some([&period[..], &nonce, &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (period, rest) = ticket.split_first_chunk::<PERIOD>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let number = u64::from_be_bytes(*period);
        let (_, key) = self.0.iter().find(|(p, _)| *p == number)?;
        key.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: period }).ok()
    }
}

fn period_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / TICKET_PERIOD.as_secs())
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(TICKET_PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().seal(period_now(), rand::random(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().open(cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::Secret;

    fn key(period: u64) -> TicketKey {
        TicketKey { period, key: Secret::new(format!("{period:064x}")) }
    }

    #[test]
    fn tickets_outlive_one_change_of_keys_and_not_two() {
        let (one, other) = (Tickets::new(), Tickets::new());
        let own = one.encrypt(b"state").unwrap();
        assert_eq!(one.decrypt(&own).unwrap(), b"state");
        assert_eq!(other.decrypt(&own), None);
        let now = period_now();
        let around = |n: u64| [key(n - 1), key(n), key(n + 1)];
        one.replace(&around(now));
        other.replace(&around(now));
        let shared = one.encrypt(b"state").unwrap();
        assert_eq!(shared[..8], now.to_be_bytes());
        assert_eq!(other.decrypt(&shared).unwrap(), b"state");
        other.replace(&around(now + 1));
        assert_eq!(other.decrypt(&shared).unwrap(), b"state");
        other.replace(&around(now + 2));
        assert_eq!(other.decrypt(&shared), None);
        // Keys all in the past (the control plane is away), or none: the last go on.
        one.replace(&[key(1), key(2)]);
        one.replace(&[]);
        one.replace(&[TicketKey { period: 9, key: Secret::new("x") }]);
        assert_eq!(one.encrypt(b"x").unwrap()[..8], 2u64.to_be_bytes());
    }

    #[test]
    fn what_was_changed_is_no_ticket() {
        let tickets = Tickets::new();
        let ticket = tickets.encrypt(b"state").unwrap();
        for at in 0..ticket.len() {
            let mut other = ticket.clone();
            other[at] ^= 1;
            assert_eq!(tickets.decrypt(&other), None, "{at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "{at}");
        }
    }
}
