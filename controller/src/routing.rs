//! How HTTP requests of an app are treated, and its own error pages: what was set for all of its routes.
//!
//! Invariants: no password is stored, only what [`seal`] makes of it; an event names settings and never their values.

use crate::core::{Actor, Controller, invalid};
use crate::crypt::random;
use crate::db::{Tx, keys};
use flex_api::ApiError;
use flex_model::http_policy::{Hashed, MAX_PAGE, MAX_PAGES, PageKind, Places, Setting};
use flex_model::{App, AppId, AppRouting, HttpPolicy, Policy, Release, Secret};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

/// A wrong password costs a router a third of a millisecond, and a right one is remembered: routers answer in microseconds,
/// so this cannot be what a sign-in costs.
const ROUNDS: NonZeroU32 = NonZeroU32::new(Hashed::ROUNDS).unwrap();

/// Pages to put in place, or with none to take away.
pub type PageChanges = BTreeMap<PageKind, Option<String>>;

impl Controller {
    pub async fn routing_of(&self, app: AppId) -> Result<Arc<AppRouting>, ApiError> {
        Ok(self.db.get::<AppRouting>(&keys::routing(app)).await?.map(|r| r.value).unwrap_or_default())
    }

    /// What the `app.json` of the app's release says.
    pub async fn places_of(&self, app: &App) -> Result<Places, ApiError> {
        let Some(version) = app.target.or(app.good) else { return Ok(Places::new()) };
        let release = self.db.get::<Release>(&keys::release(app.id, version)).await?;
        Ok(release.map(|r| r.value.routes.clone()).unwrap_or_default())
    }

    /// Changes what holds for all routes of an app; null brings a default back.
    pub async fn set_routing(
        &self,
        actor: &Actor,
        app: &App,
        http: Option<Map<String, Value>>,
        pages: &PageChanges,
    ) -> Result<Arc<AppRouting>, ApiError> {
        let key = keys::routing(app.id);
        let changed = self
            .db
            .retry(|| async {
                let found = self.db.get::<AppRouting>(&key).await?;
                let before = found.as_ref().map(|r| r.value.clone()).unwrap_or_default();
                let mut now = (*before).clone();
                if let Some(changes) = &http {
                    now.http = merged(&before.http, changes.clone())?;
                }
                for (kind, text) in pages {
                    match text {
                        Some(text) => now.pages.insert(kind.clone(), text.as_str().into()),
                        None => now.pages.remove(kind),
                    };
                }
                check_pages(&now)?;
                if now == *before {
                    return Ok((Tx::new(), before));
                }
                let said = format!("Changed how requests are treated: {}", changes(&before, &now).join(", "));
                let event = self.event(actor, Some(app.id), "routing.update", said);
                let tx = Tx::new().present(&keys::app(app.id)).put(key.clone(), &now).put(keys::event(&event), &event);
                let tx = match &found {
                    Some(found) => tx.unchanged(found),
                    None => tx.absent(&key),
                };
                Ok((tx, Arc::new(now)))
            })
            .await?;
        self.nudge();
        Ok(changed)
    }
}

fn check_pages(routing: &AppRouting) -> Result<(), ApiError> {
    if let Some((kind, page)) = routing.pages.iter().find(|(_, p)| p.is_empty() || p.len() > MAX_PAGE) {
        return Err(invalid(format!("The page {kind} has {} bytes; a page has 1 to {MAX_PAGE}.", page.len())));
    }
    let sum: usize = routing.pages.values().map(|p| p.len()).sum();
    if sum > MAX_PAGES {
        return Err(invalid(format!("The app's pages would have {sum} bytes together; the most is {MAX_PAGES}.")));
    }
    Ok(())
}

/// The names of what differs.
fn changes(before: &AppRouting, now: &AppRouting) -> Vec<String> {
    let mut out = differences(&before.http, &now.http);
    let pages = before.pages.keys().chain(now.pages.keys()).filter(|k| before.pages.get(*k) != now.pages.get(*k));
    let names: std::collections::BTreeSet<String> = pages.map(|k| format!("page {k}")).collect();
    out.extend(names);
    out
}

/// The names of settings that differ, without their values.
pub fn differences(before: &HttpPolicy, now: &HttpPolicy) -> Vec<String> {
    let fields = |p: &HttpPolicy| serde_json::to_value(p).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
    let (before, now) = (fields(before), fields(now));
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names.into_iter().filter(|n| before.get(*n) != now.get(*n)).cloned().collect()
}

/// RFC 7396: what is named changes, null takes away.
fn patch(target: &mut Map<String, Value>, changes: Map<String, Value>) {
    for (name, value) in changes {
        match value {
            Value::Null => {
                target.remove(&name);
            }
            Value::Object(inner) => {
                let entry = target.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                if let Value::Object(entry) = entry {
                    patch(entry, inner);
                }
            }
            value => {
                target.insert(name, value);
            }
        }
    }
}

fn fields(value: &impl serde::Serialize) -> Result<Map<String, Value>, ApiError> {
    Ok(serde_json::to_value(value).map_err(invalid)?.as_object().cloned().unwrap_or_default())
}

/// A policy after changes, without passwords in the clear.
fn merged(before: &HttpPolicy, changes: Map<String, Value>) -> Result<HttpPolicy, ApiError> {
    let mut whole = fields(before)?;
    patch(&mut whole, changes);
    read(whole, before)
}

fn read(whole: Map<String, Value>, before: &HttpPolicy) -> Result<HttpPolicy, ApiError> {
    let mut policy = HttpPolicy::read(whole).map_err(|e| invalid(format!("policy: {e}")))?;
    check_hashes(&policy, before)?;
    seal(&mut policy);
    Ok(policy)
}

/// A hash may be given instead of a password, but routers pay for each wrong one. What is stored already stays.
fn check_hashes(policy: &HttpPolicy, before: &HttpPolicy) -> Result<(), ApiError> {
    let users = policy.basic_auth.on().map(|a| &a.users);
    for (name, given) in users.into_iter().flatten().filter(|(_, p)| Hashed::is_meant(p.expose())) {
        if before.basic_auth.on().is_some_and(|b| b.users.get(name) == Some(given)) {
            continue;
        }
        if Hashed::parse(given.expose()).is_none_or(|h| h.iterations > ROUNDS.get()) {
            return Err(invalid(format!(
                "policy: basic_auth.users: the hash of {name} is not pbkdf2-sha256$N$SALT$HASH with 16 and 32 bytes in hexadecimal \
                 and N of 1 to {ROUNDS}: give such a one, or the password."
            )));
        }
    }
    Ok(())
}

/// The same for a route's whole policy.
pub fn merged_policy(before: Option<&Policy>, changes: Map<String, Value>) -> Result<Policy, ApiError> {
    let mut whole = fields(&before.cloned().unwrap_or_default())?;
    patch(&mut whole, changes);
    let http = match whole.remove("http") {
        None => HttpPolicy::default(),
        Some(Value::Object(http)) => read(http, &before.map(|b| b.http.clone()).unwrap_or_default())?,
        Some(_) => return Err(invalid("policy: http is an object.")),
    };
    let rest: Policy = serde_json::from_value(whole.into()).map_err(|e| invalid(format!("policy: {e}")))?;
    Ok(Policy { http, ..rest })
}

/// Turns passwords in the clear into what routers compare with.
fn seal(policy: &mut HttpPolicy) {
    let Setting::On(auth) = &mut policy.basic_auth else { return };
    for password in auth.users.values_mut().filter(|p| Hashed::parse(p.expose()).is_none()) {
        let (salt, mut hash) = (random::<16>(), [0; 32]);
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password.expose().as_bytes(), &mut hash);
        let (salt, hash) = (hex::encode(salt), hex::encode(hash));
        *password = Secret::new(Hashed { iterations: ROUNDS.get(), salt: &salt, hash: &hash }.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_merged_and_passwords_sealed() {
        let map = |v: Value| match v {
            Value::Object(fields) => fields,
            _ => panic!("no object"),
        };
        let set = json!({ "sticky": true, "http": { "timeout_seconds": 5, "basic_auth": { "users": { "ann": "geheim" } } } });
        let one = merged_policy(None, map(set)).unwrap();
        let stored = serde_json::to_value(&one).unwrap();
        let hash = stored["http"]["basic_auth"]["users"]["ann"].as_str().unwrap().to_owned();
        assert!(Hashed::parse(&hash).is_some() && !stored.to_string().contains("geheim"), "{stored}");
        // Another user comes; the first one's hash stays as it is.
        let more = json!({ "http": { "timeout_seconds": null, "basic_auth": { "users": { "bob": "auch" } } } });
        let two = merged_policy(Some(&one), map(more)).unwrap();
        let stored = serde_json::to_value(&two).unwrap();
        assert_eq!(stored["http"]["basic_auth"]["users"]["ann"], hash);
        assert!(stored["http"]["basic_auth"]["users"]["bob"].is_string() && stored["http"].get("timeout_seconds").is_none());
        assert_eq!(differences(&one.http, &two.http), ["basic_auth", "timeout_seconds"]);
        let off = merged_policy(Some(&two), map(json!({ "http": { "basic_auth": false } }))).unwrap();
        assert_eq!(off.http.basic_auth, Setting::Off);
        assert_eq!(merged_policy(Some(&two), map(json!({ "http": null, "sticky": null }))).unwrap(), Policy::default());
        // A hash instead of a password, if it costs no more than ours do; what is stored already stays.
        let hash_of = |rounds: u32| Hashed { iterations: rounds, salt: &"0".repeat(32), hash: &"0".repeat(64) }.to_string();
        let user = |password: &str| map(json!({ "http": { "basic_auth": { "users": { "cara": password } } } }));
        assert!(merged_policy(None, user(&hash_of(2000))).is_ok());
        for given in [hash_of(2001), "pbkdf2-sha256$1$salt$hash".to_owned()] {
            assert!(merged_policy(None, user(&given)).unwrap_err().message.contains("cara"));
        }
        let costly = json!({ "basic_auth": { "users": { "cara": hash_of(100_000) } } });
        let costly = Policy { http: serde_json::from_value(costly).unwrap(), ..Policy::default() };
        let changed = merged_policy(Some(&costly), map(json!({ "http": { "timeout_seconds": 7 } }))).unwrap();
        assert_eq!(changed.http.basic_auth, costly.http.basic_auth);
        for (bad, why) in [
            (json!({ "http": { "timeout": 1 } }), "unknown field `timeout`"),
            (json!({ "http": { "timeout_seconds": "x" } }), "timeout_seconds"),
            (json!({ "http": 1 }), "object"),
        ] {
            assert!(merged_policy(None, map(bad)).unwrap_err().message.contains(why));
        }
    }
}
