//! Token buckets of client addresses, in bounded memory.
//!
//! A bucket is one number: the time at which it will be full again (the generic cell rate algorithm, which is a token bucket
//! that needs no refilling). One that is full says nothing, so it may be forgotten. Each part of the memory has two
//! generations; when the younger is full, the older one goes: what a client has used may then be forgotten early, in its
//! favour, but memory never grows with the number of addresses.

use super::Extra;
use flex_model::http_policy::RateLimit;
use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

const PARTS: usize = 16;
/// Buckets in one generation of one part: at 48 bytes each, 6 MiB at most in all.
const PER_GENERATION: usize = 4096;

type Key = (u128, u128);

/// What clients of all routes have used, shared by the workers.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    parts: [Mutex<Part>; PARTS],
    hash: RandomState,
}

#[derive(Debug, Default)]
struct Part {
    /// When buckets will be full again, in microseconds.
    young: HashMap<Key, u64>,
    old: HashMap<Key, u64>,
}

/// How a bucket answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) granted: bool,
    pub(super) remaining: u32,
    /// Until the bucket is full.
    pub(super) reset_ms: u64,
    /// Until there is a token; 0 if there is one.
    pub(super) retry_ms: u64,
}

impl Buckets {
    /// Takes a token of `client`'s.
    pub(super) fn take(&self, scope: u128, client: IpAddr, rate: &RateLimit, now_ms: u64) -> Taken {
        self.with(scope, client, |full_at| take(full_at, rate, now_ms))
    }

    /// Looks whether there would be one.
    pub(super) fn has(&self, scope: u128, client: IpAddr, rate: &RateLimit, now_ms: u64) -> bool {
        self.with(scope, client, |full_at| (take(full_at, rate, now_ms).0, None)).granted
    }

    fn with(&self, scope: u128, client: IpAddr, f: impl FnOnce(u64) -> (Taken, Option<u64>)) -> Taken {
        let key = (scope, subscriber(client));
        let at = usize::try_from(self.hash.hash_one(key) % PARTS as u64).unwrap_or(0);
        let mut part = self.parts[at].lock().unwrap_or_else(PoisonError::into_inner);
        let before = part.young.get(&key).or_else(|| part.old.get(&key)).copied().unwrap_or(0);
        let (taken, after) = f(before);
        if let Some(after) = after {
            if part.young.len() >= PER_GENERATION && !part.young.contains_key(&key) {
                part.old = std::mem::take(&mut part.young);
            }
            part.young.insert(key, after);
        }
        taken
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|p| p.lock().unwrap()).map(|p| p.young.len() + p.old.len()).sum()
    }
}

/// Whom an address belongs to: an IPv6 subscriber has at least a /64, and could use an address for each request.
pub(crate) fn subscriber(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) >> 64 << 64,
    }
}

/// A token from a bucket that is full at `full_at` (microseconds); and when it will be after that.
fn take(full_at: u64, rate: &RateLimit, now_ms: u64) -> (Taken, Option<u64>) {
    let now = now_ms.saturating_mul(1000);
    let per_token = (u64::from(rate.seconds) * 1_000_000 / u64::from(rate.requests.max(1))).max(1);
    let size = u64::from(rate.burst.unwrap_or(rate.requests).max(1));
    // A limit that was lowered does not keep a client out for longer than an empty bucket does.
    let missing = full_at.saturating_sub(now).min(size * per_token);
    let after = missing + per_token;
    let granted = after <= size * per_token;
    let left = if granted { after } else { missing };
    let ms = |us: u64| us.div_ceil(1000);
    let remaining = (size * per_token - left) / per_token;
    let taken = Taken {
        granted,
        remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
        reset_ms: ms(left),
        retry_ms: if granted { 0 } else { ms(after - size * per_token) },
    };
    (taken, granted.then_some(now + after))
}

impl Taken {
    /// Tells the client, in the fields that most clients of APIs know, whole seconds.
    pub(super) fn describe(&self, rate: &RateLimit, extra: &mut Extra) {
        extra.add("RateLimit-Limit", &rate.burst.unwrap_or(rate.requests).to_string());
        extra.add("RateLimit-Remaining", &self.remaining.to_string());
        extra.add("RateLimit-Reset", &self.reset_ms.div_ceil(1000).to_string());
        if !self.granted {
            extra.add("Retry-After", &self.retry_ms.div_ceil(1000).max(1).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(requests: u32, seconds: u32, burst: Option<u32>) -> RateLimit {
        RateLimit { requests, seconds, burst }
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let (buckets, ip) = (Buckets::default(), "192.0.2.7".parse().unwrap());
        let limit = rate(2, 1, Some(3));
        let take = |at| buckets.take(1, ip, &limit, at);
        assert_eq!(take(10_000), Taken { granted: true, remaining: 2, reset_ms: 500, retry_ms: 0 });
        assert!(take(10_000).granted && take(10_000).granted);
        assert_eq!(take(10_100), Taken { granted: false, remaining: 0, reset_ms: 1400, retry_ms: 400 });
        assert!(!take(10_499).granted && take(10_500).granted && !take(10_500).granted);
        assert_eq!(take(20_000).remaining, 2);
        // Others have buckets of their own, and so have other routes; an IPv6 network has one.
        assert!(buckets.take(2, ip, &limit, 10_500).granted);
        let one = rate(1, 10, None);
        assert!(buckets.take(1, "2001:db8::1".parse().unwrap(), &one, 0).granted);
        assert!(!buckets.take(1, "2001:db8::2".parse().unwrap(), &one, 0).granted);
        assert!(buckets.take(1, "2001:db8:0:1::2".parse().unwrap(), &one, 0).granted);
    }

    #[test]
    fn memory_is_bounded_and_a_busy_client_is_not_forgotten() {
        let (buckets, limit) = (Buckets::default(), rate(1, 3600, None));
        let busy: IpAddr = "192.0.2.7".parse().unwrap();
        let most = 2 * PARTS * PER_GENERATION;
        let mut passed = 0;
        for n in 0..3 * u32::try_from(most).unwrap() {
            buckets.take(1, std::net::Ipv4Addr::from(n).into(), &limit, 0);
            if n % 10_000 == 0 {
                passed += u32::from(buckets.take(9, busy, &limit, 0).granted);
            }
        }
        assert!(buckets.len() <= most, "{}", buckets.len());
        assert!(passed < 10, "{passed}");
    }

    proptest! {
        /// Whatever the times: never more than the burst and what came in since.
        #[test]
        fn never_more_than_allowed(requests in 1_u32..50, seconds in 1_u32..20, burst in 1_u32..50, gaps in prop::collection::vec(0_u64..2_000, 1..200)) {
            let (buckets, ip) = (Buckets::default(), "::1".parse().unwrap());
            let limit = rate(requests, seconds, Some(burst));
            let (mut now, mut granted, begun) = (1_000_000, 0_u64, 1_000_000);
            for gap in gaps {
                now += gap;
                let taken = buckets.take(1, ip, &limit, now);
                granted += u64::from(taken.granted);
                prop_assert!(taken.remaining < burst);
                prop_assert_eq!(taken.granted, taken.retry_ms == 0);
                let may = u64::from(burst) + ((now - begun) * u64::from(requests)).div_ceil(u64::from(seconds) * 1000) + 1;
                prop_assert!(granted <= may, "{granted} > {may}");
                if !taken.granted {
                    prop_assert!(buckets.has(1, ip, &limit, now + taken.retry_ms));
                }
            }
        }
    }
}
