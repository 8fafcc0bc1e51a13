//! Names and passwords (RFC 7617), against hashes that are costly to try out.
//!
//! A right password is remembered (as a keyed hash, one for each user), so that only wrong ones cost what the hash costs; and
//! a client address may be wrong only so often, at one route and at all together, so that wrong ones cannot keep a worker
//! busy. A hash that costs more than a millisecond is not computed by a worker at all, and one at a time.

use super::Buckets;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flex_model::http_policy::{BasicAuth, Hashed, RateLimit};
use ring::{hmac, pbkdf2};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};
use tokio::sync::Semaphore;

/// Wrong passwords of one address.
const WRONG: RateLimit = RateLimit { requests: 1, seconds: 1, burst: Some(10) };
/// The same at all routes together.
const WRONG_ANYWHERE: RateLimit = RateLimit { requests: 3, seconds: 1, burst: Some(30) };
/// Keeps wrong passwords apart from requests in the buckets.
const SCOPE: u128 = 1 << 127;
/// About a millisecond's worth. Control planes of today make hashes of a third of it; others were given to them earlier.
const QUICK: u32 = 6000;

/// Who may compute a costly hash.
static TURN: Semaphore = Semaphore::const_new(1);

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
#[derive(Debug)]
pub(super) enum Answer {
    Known,
    Unknown,
    /// Wrong too often: they are not looked at.
    TooMany,
    /// To be computed elsewhere.
    Costly(Check),
}

/// A password to be compared with a costly hash.
#[derive(Debug)]
pub(crate) struct Check {
    auth: Arc<Auth>,
    name: String,
    password: flex_model::Secret,
}

impl Check {
    /// Not on the event loop, where others wait.
    pub(crate) async fn verify(self) -> bool {
        let Ok(_turn) = TURN.acquire().await else { return false };
        tokio::task::spawn_blocking(move || self.auth.verify(&self.name, self.password.expose())).await.unwrap_or(false)
    }
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

    pub(super) fn check(
        self: &Arc<Self>,
        field: Option<&str>,
        scope: u128,
        client: IpAddr,
        buckets: &Buckets,
        now_ms: u64,
    ) -> Answer {
        let Some((name, password)) = field.and_then(credentials) else { return Answer::Unknown };
        let tag = hmac::sign(&KEY, password.as_bytes());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        // Both are keyed hashes: how far they agree tells nothing about the password.
        if known.is_some_and(|known| known == tag.as_ref()) {
            return Answer::Known;
        }
        let here = scope ^ SCOPE;
        if !buckets.has(here, client, &WRONG, now_ms) || !buckets.has(SCOPE, client, &WRONG_ANYWHERE, now_ms) {
            return Answer::TooMany;
        }
        let wrong = || {
            buckets.take(here, client, &WRONG, now_ms);
            buckets.take(SCOPE, client, &WRONG_ANYWHERE, now_ms);
        };
        if self.hash_for(&name).is_some_and(|p| p.iterations.get() > QUICK) {
            // Counted before it is known: many that come at once are as many.
            wrong();
            return Answer::Costly(Check { auth: self.clone(), name, password: flex_model::Secret::new(password) });
        }
        if self.verify(&name, &password) {
            return Answer::Known;
        }
        wrong();
        Answer::Unknown
    }

    /// What a password is compared with. An unknown name takes as long as a wrong password.
    fn hash_for(&self, name: &str) -> Option<&Password> {
        self.users.get(name).or_else(|| self.users.values().next())
    }

    /// Remembers what is right.
    fn verify(&self, name: &str, password: &str) -> bool {
        let Some(p) = self.hash_for(name) else { return false };
        let same = pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, p.iterations, &p.salt, password.as_bytes(), &p.hash).is_ok();
        if !same || !self.users.contains_key(name) {
            return false;
        }
        if let Ok(tag) = hmac::sign(&KEY, password.as_bytes()).as_ref().try_into() {
            self.known.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), tag);
        }
        true
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
