//! Who may take a place before showing a key: pure decisions over counts, with time and chance as arguments.
//!
//! Three limits, each for a different flood. All places: random early drop, so that a flood from many addresses slows
//! logins down instead of shutting them out. Places of one address: a flood from one address cannot take them all. A
//! bucket per address: a client that comes again and again is slowed down; a login that succeeds gives its token back.

use flex_model::UserId;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many connections may be waiting for a key.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Unauthenticated connections at a time, all together.
    pub unauthenticated: usize,
    /// From this many on, newcomers are dropped with a chance that grows from 30 % to 100 %.
    pub drop_from: usize,
    /// Unauthenticated connections of one address (an IPv6 network of 64 bits counts as one).
    pub per_address: usize,
    /// Logins that one address may start at once …
    pub burst: u32,
    /// … and how long it waits for each further one.
    pub refill: Duration,
    /// A connection that has shown no key by then is closed.
    pub login_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            unauthenticated: 100,
            drop_from: 50,
            // A CI machine or an office behind one address rarely starts more pushes in the same second.
            per_address: 20,
            burst: 60,
            refill: Duration::from_secs(1),
            login_grace: Duration::from_secs(30),
        }
    }
}

/// Why a newcomer was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    Full,
    AddressFull,
    AddressTooFast,
}

#[derive(Debug)]
struct Address {
    waiting: usize,
    tokens: f64,
    at: Instant,
}

/// The counts. One per listener.
#[derive(Debug)]
pub struct Doorkeeper {
    limits: ConnectionLimits,
    waiting: usize,
    addresses: HashMap<IpAddr, Address>,
}

/// IPv6 networks are handed out by /64: one user has that many addresses.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Doorkeeper {
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, waiting: 0, addresses: HashMap::new() }
    }

    /// Takes a place for `address`; `chance` is uniform in [0, 1).
    pub fn admit(&mut self, address: IpAddr, now: Instant, chance: f64) -> Result<(), Drop> {
        let limits = &self.limits;
        if self.waiting >= limits.unauthenticated {
            return Err(Drop::Full);
        }
        if self.addresses.len() > 4096 {
            let full = f64::from(limits.burst);
            let per = limits.refill.as_secs_f64().max(1e-9);
            self.addresses.retain(|_, a| a.waiting > 0 || a.tokens + now.duration_since(a.at).as_secs_f64() / per < full);
        }
        let full = f64::from(limits.burst);
        let entry = self.addresses.entry(group(address)).or_insert(Address { waiting: 0, tokens: full, at: now });
        let gained = now.saturating_duration_since(entry.at).as_secs_f64() / limits.refill.as_secs_f64().max(1e-9);
        entry.tokens = (entry.tokens + gained).min(full);
        entry.at = now;
        if entry.waiting >= limits.per_address {
            return Err(Drop::AddressFull);
        }
        if entry.tokens < 1.0 {
            return Err(Drop::AddressTooFast);
        }
        if self.waiting >= limits.drop_from {
            let span = (limits.unauthenticated - limits.drop_from).max(1) as f64;
            let share = (self.waiting - limits.drop_from) as f64 / span;
            if chance < 0.3 + 0.7 * share {
                return Err(Drop::Full);
            }
        }
        entry.tokens -= 1.0;
        entry.waiting += 1;
        self.waiting += 1;
        Ok(())
    }

    /// Gives the place back: the connection ended, or (`authenticated`) showed a key that counts.
    pub fn release(&mut self, address: IpAddr, authenticated: bool) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(entry) = self.addresses.get_mut(&group(address)) {
            entry.waiting = entry.waiting.saturating_sub(1);
            if authenticated {
                entry.tokens = (entry.tokens + 1.0).min(f64::from(self.limits.burst));
            }
        }
    }
}

/// How many pushes each user has under way.
#[derive(Debug)]
pub struct Turns {
    most: usize,
    taken: Mutex<HashMap<UserId, usize>>,
}

/// One user's push; gives its turn back when dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    user: UserId,
}

impl Turns {
    pub fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    /// Takes a turn; the error is how many the user may have.
    pub fn take(self: &Arc<Self>, user: UserId) -> Result<Turn, usize> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(user).or_default();
        if *count >= self.most {
            return Err(self.most);
        }
        *count += 1;
        Ok(Turn { turns: self.clone(), user })
    }
}

impl std::ops::Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_user_has_so_many_pushes_at_a_time() {
        let (turns, a, b) =
            (Arc::new(Turns::new(2)), UserId(flex_model::Uuid::from_u128(1)), UserId(flex_model::Uuid::from_u128(2)));
        let first = turns.take(a).unwrap();
        let _second = turns.take(a).unwrap();
        assert_eq!(turns.take(a).unwrap_err(), 2);
        let other = turns.take(b).unwrap();
        drop((first, other));
        assert!(turns.take(a).is_ok());
        assert_eq!(turns.taken.lock().unwrap().len(), 1, "nobody is remembered for nothing");
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let mut door = Doorkeeper::new(ConnectionLimits::default());
        let now = Instant::now();
        let taken = (0..5000).filter(|_| door.admit(ip(1), now, 0.5).is_ok()).count();
        assert_eq!(taken, 20);
        assert_eq!(door.admit(ip(1), now, 0.99), Err(Drop::AddressFull));
        assert_eq!(door.admit(ip(2), now, 0.0), Ok(()), "others come in as ever");
    }

    #[test]
    fn many_addresses_are_dropped_early_and_at_random() {
        let mut door = Doorkeeper::new(ConnectionLimits::default());
        let now = Instant::now();
        for n in 0..50 {
            door.admit(ip(n), now, 0.0).unwrap();
        }
        assert_eq!(door.admit(ip(50), now, 0.29), Err(Drop::Full));
        assert_eq!(door.admit(ip(50), now, 0.31), Ok(()));
        let mut n = 51;
        while door.waiting < 100 {
            door.admit(ip(n), now, 0.999_999).unwrap();
            n += 1;
        }
        assert_eq!(door.admit(ip(n), now, 0.999_999), Err(Drop::Full));
        door.release(ip(0), false);
        assert_eq!(door.admit(ip(n), now, 0.999_999), Ok(()));
    }

    #[test]
    fn the_bucket_slows_strangers_but_not_users() {
        let mut door = Doorkeeper::new(ConnectionLimits { burst: 3, ..ConnectionLimits::default() });
        let now = Instant::now();
        for _ in 0..10 {
            door.admit(ip(1), now, 0.0).unwrap();
            door.release(ip(1), true);
        }
        for _ in 0..3 {
            door.admit(ip(1), now, 0.0).unwrap();
            door.release(ip(1), false);
        }
        assert_eq!(door.admit(ip(1), now, 0.0), Err(Drop::AddressTooFast));
        assert_eq!(door.admit(ip(1), now + Duration::from_secs(1), 0.0), Ok(()));
    }

    #[test]
    fn a_network_counts_as_one_address() {
        let mut door = Doorkeeper::new(ConnectionLimits { per_address: 1, ..ConnectionLimits::default() });
        let now = Instant::now();
        door.admit("2001:db8::1".parse().unwrap(), now, 0.0).unwrap();
        assert_eq!(door.admit("2001:db8::2".parse().unwrap(), now, 0.0), Err(Drop::AddressFull));
        door.admit("2001:db8:0:1::2".parse().unwrap(), now, 0.0).unwrap();
        door.admit("::ffff:10.0.0.1".parse().unwrap(), now, 0.0).unwrap();
        assert_eq!(door.admit("10.0.0.1".parse().unwrap(), now, 0.0), Err(Drop::AddressFull));
    }
}
