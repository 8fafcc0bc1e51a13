//! Names and passwords (RFC 7617), against hashes that are costly to try out.
//!
//! A right password is remembered (as a keyed hash, one for each user), so that only wrong ones cost what the hash costs; and
//! a client address may be wrong only so often, so that wrong ones cannot keep a worker busy.

use super::Buckets;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flex_model::http_policy::{BasicAuth, Hashed, RateLimit};
use ring::{hmac, pbkdf2};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU32,
    sync::{LazyLock, PoisonError, RwLock},
};

/// Wrong passwords of one address.
const WRONG: RateLimit = RateLimit { requests: 1, seconds: 1, burst: Some(10) };
/// Keeps wrong passwords apart from requests in the buckets.
const SCOPE: u128 = 1 << 127;

static KEY: LazyLock<hmac::Key> = LazyLock::new(|| hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()));

pub(super) struct Auth {
    challenge: String,
    users: BTreeMap<String, Password>,
    /// What was right, by user.
    known: RwLock<HashMap<String, [u8; 32]>>,
}

struct Password {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// What credentials are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Known,
    Unknown,
    /// Wrong too often: they are not looked at.
    TooMany,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("users", &self.users.keys()).finish_non_exhaustive()
    }
}

impl Auth {
    /// A user whose password is no hash cannot come in.
    pub(super) fn new(auth: &BasicAuth) -> Self {
        let password = |text: &str| {
            let Hashed { iterations, salt, hash } = Hashed::parse(text)?;
            Some(Password { iterations: NonZeroU32::new(iterations)?, salt: unhex(salt)?, hash: unhex(hash)? })
        };
        Self {
            challenge: format!("Basic realm=\"{}\", charset=\"UTF-8\"", auth.realm.as_deref().unwrap_or("Restricted")),
            users: auth.users.iter().filter_map(|(name, p)| Some((name.clone(), password(p.expose())?))).collect(),
            known: RwLock::default(),
        }
    }

    pub(super) fn challenge(&self) -> &str {
        &self.challenge
    }

    pub(super) fn check(&self, field: Option<&str>, scope: u128, client: IpAddr, buckets: &Buckets, now_ms: u64) -> Answer {
        let Some((name, password)) = field.and_then(credentials) else { return Answer::Unknown };
        let tag = hmac::sign(&KEY, password.as_bytes());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        // Both are keyed hashes: how far they agree tells nothing about the password.
        if known.is_some_and(|known| known == tag.as_ref()) {
            return Answer::Known;
        }
        if !buckets.has(scope ^ SCOPE, client, &WRONG, now_ms) {
            return Answer::TooMany;
        }
        let right = self.users.get(&name).is_some_and(|p| {
            pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, p.iterations, &p.salt, password.as_bytes(), &p.hash).is_ok()
        });
        if right {
            let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if let Ok(tag) = tag.as_ref().try_into() {
                all.insert(name, tag);
            }
            return Answer::Known;
        }
        // An unknown name takes as long as a wrong password.
        if !self.users.contains_key(&name)
            && let Some(any) = self.users.values().next()
        {
            let _ = pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, any.iterations, &any.salt, password.as_bytes(), &any.hash);
        }
        buckets.take(scope ^ SCOPE, client, &WRONG, now_ms);
        Answer::Unknown
    }
}

fn credentials(field: &str) -> Option<(String, String)> {
    let (scheme, value) = field.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(value.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}
