//! Certificates that are made and renewed by themselves (ACME, RFC 8555), their expiry, and the keys of session tickets.
//!
//! `decide.rs` says what is due, `issue.rs` does it; the row of the issuer lets one of several control planes work at a
//! time. Invariants: the authority is asked only for names that belong to an app and lead here; nothing is asked again
//! before its pause is over; keys are stored encrypted.
//!
//! Must not: hold up a deploy or a request; everything here may fail for days while the old certificates serve.

mod check;
mod decide;
mod dns;
mod hook;
mod issue;
mod record;

pub use record::ChallengeKind;
pub(crate) use record::{AutoCertificate, TicketRecord};

use crate::certificates::{covers, read};
use crate::core::{Actor, Controller, invalid, lock};
use crate::crypt::Vars;
use crate::db::{CertificateRecord, DomainRecord, Stored, Tx, keys};
use decide::{Step, Wanted};
use flex_api::ApiError;
use flex_model::{App, AppId, Certificate, Challenge, DomainName, Email, Secret, TICKET_PERIOD, TicketKey, Timestamp, Uuid};
use futures_util::StreamExt as _;
use instant_acme::Account;
use issue::Issuer;
use record::{IssuerAlive, IssuerRecord};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long an issuer that says nothing counts as alive, and how often it speaks.
const LEASE: Duration = Duration::from_secs(20);
const SPEAK: Duration = Duration::from_secs(5);
/// The longest between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The shortest: commits come in bursts.
const BREATH: Duration = Duration::from_millis(500);
/// Names that are worked on at once.
const AT_ONCE: usize = 4;

/// How certificates are made; from the server's settings.
#[derive(Debug, Clone)]
pub struct AcmeSettings {
    /// The authority's directory.
    pub directory: String,
    /// Whom it may write to.
    pub email: Option<Email>,
    /// PEM file with the root that the authority's own server is trusted by; none: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// For names that are no wildcards.
    pub challenge: ChallengeKind,
    /// Program and arguments that put DNS records in place; empty: none.
    pub dns_hook: Vec<String>,
    /// How long a record may take to appear.
    pub dns_wait: Duration,
    /// Whom to ask about names; none: the machine's own.
    pub resolver: Option<SocketAddr>,
    /// Whether names are looked at before the authority is asked.
    pub self_check: bool,
    /// Ports at which the authority looks.
    pub http_port: u16,
    pub tls_port: u16,
    /// Whether to have one certificate for the apps' domain and all names directly under it.
    pub wildcard: bool,
    /// Pause after the first failure.
    pub retry: Duration,
    /// Key id and key (base64url) of the account that the authority knows us by otherwise (RFC 8555 section 7.3.4).
    pub external_account: Option<(String, Secret)>,
}

/// Reads base64url (RFC 4648 section 5), as authorities give keys out. `None`: it is not that.
pub fn base64url(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().filter(|k| !k.is_empty())
}

/// What is only in memory.
#[derive(Default)]
pub struct Acme {
    /// Shown while names are looked at, by token.
    pub(crate) probes: Mutex<BTreeMap<String, Challenge>>,
    pub(crate) tickets: Mutex<Vec<TicketKey>>,
    /// Beginnings and ends of certificates, as long as their revisions stand: reading them takes long.
    times: Mutex<HashMap<String, (u64, Timestamp, Timestamp)>>,
    wake: Notify,
}

impl Controller {
    fn acme_settings(&self) -> Result<&AcmeSettings, ApiError> {
        self.deps.settings.acme.as_ref().ok_or_else(|| {
            invalid("This server makes no certificates by itself: its operator turns that on with [acme] in flexd.toml. You can add your own: flex certs:add CERTIFICATE KEY")
        })
    }

    /// Has certificates made for an app's domains, or no longer.
    pub async fn set_acm(&self, actor: &Actor, app: AppId, on: bool) -> Result<Arc<App>, ApiError> {
        if on {
            self.acme_settings()?;
        }
        let changed = self
            .update_app(actor, app, if on { "acm.enable" } else { "acm.disable" }, |a| {
                let news = a.acm != on;
                a.acm = on;
                let text = if on { "Turned automatic certificates on" } else { "Turned automatic certificates off" };
                Ok(news.then(|| text.to_owned()))
            })
            .await?;
        self.acme.wake.notify_one();
        Ok(changed)
    }

    /// Tries what failed again, now.
    pub async fn refresh_acm(&self, app: &App) -> Result<(), ApiError> {
        self.acme_settings()?;
        if !app.acm {
            return Err(invalid(format!(
                "Automatic certificates are off for {}. Turn them on: flex certs:auto:enable",
                app.name
            )));
        }
        for known in self.db.list::<AutoCertificate>(keys::AUTO_CERTIFICATES).await? {
            if known.value.app != Some(app.id) || known.value.problem.is_none() {
                continue;
            }
            let key = known.key.clone();
            self.db
                .retry(|| async {
                    let Some(now) = self.db.get::<AutoCertificate>(&key).await? else { return Ok((Tx::new(), ())) };
                    let again = AutoCertificate { failures: 0, try_at: self.now(), ..(*now.value).clone() };
                    Ok((Tx::new().unchanged(&now).put(key.clone(), &again), ()))
                })
                .await?;
        }
        self.acme.wake.notify_one();
        Ok(())
    }

    /// How it stands with each name of an app: Heroku's word, and why.
    pub async fn acm_statuses(&self, app: &App) -> Result<BTreeMap<DomainName, (&'static str, Option<String>)>, ApiError> {
        if !app.acm {
            return Ok(BTreeMap::new());
        }
        let known = self.db.list::<AutoCertificate>(keys::AUTO_CERTIFICATES).await?;
        let known: BTreeMap<_, _> = known.iter().map(|k| (&k.value.name, &k.value)).collect();
        let own = self.certificates_of(app.id).await?;
        let own: Vec<_> = own.iter().filter(|c| c.auto.is_none()).collect();
        let mut out = BTreeMap::new();
        for name in self.hosts_of(app).await? {
            let record = known.get(&name).filter(|r| r.app == Some(app.id));
            let platform = self.platform_names().is_some_and(|all| all.iter().any(|n| covers(n, &name)));
            let added = own.iter().find(|c| read(&c.chain).is_some_and(|f| f.names.iter().any(|n| covers(n, &name))));
            let status = match (record, added) {
                (None, Some(c)) => ("cert issued", Some(format!("The certificate {}, which was added, is for it.", c.name))),
                (None, None) if platform => match known.get(&self.platform_names().unwrap_or_default()[0]) {
                    Some(p) => decide::status(Some(p)),
                    None => ("pending", None),
                },
                _ => decide::status(record.map(|r| &***r)),
            };
            out.insert(name, status);
        }
        Ok(out)
    }

    /// The platform's own certificate is for these.
    fn platform_names(&self) -> Option<Vec<DomainName>> {
        let settings = self.deps.settings.acme.as_ref().filter(|s| s.wildcard)?;
        let domain = &self.deps.settings.domain;
        let wildcard = format!("*.{domain}").parse().ok()?;
        (!settings.dns_hook.is_empty()).then(|| vec![wildcard, domain.clone()])
    }

    /// Whether every router that can be reached shows the certificates of this revision.
    pub(crate) fn routers_show(&self, revision: u64) -> bool {
        let connected = lock(&self.connected).clone();
        let routers = lock(&self.routers);
        let mut here = routers.iter().filter(|(name, _)| crate::core::is_here(&connected, name));
        here.all(|(_, (status, _))| status.certificates >= revision)
    }

    /// The challenges that routers are to answer now.
    pub(crate) async fn challenges(&self) -> Result<Vec<Challenge>, ApiError> {
        let mut all: Vec<Challenge> = lock(&self.acme.probes).values().cloned().collect();
        for known in self.db.list::<AutoCertificate>(keys::AUTO_CERTIFICATES).await? {
            let Some(order) = &known.value.order else { continue };
            for ch in order.challenges.iter().filter(|c| c.kind != ChallengeKind::Dns01) {
                let alpn = match &ch.alpn_chain {
                    None => None,
                    Some(chain) => {
                        let mut keys = self.crypt.unseal(&known.key, &order.keys)?;
                        let key = keys.remove(&format!("alpn:{}", ch.name)).unwrap_or_default();
                        Some(Certificate { id: ch.token.clone(), names: vec![ch.name.clone()], chain: chain.clone(), key })
                    }
                };
                all.push(Challenge { name: ch.name.clone(), token: ch.token.clone(), proof: ch.proof.clone(), alpn });
            }
        }
        Ok(all)
    }

    /// What should have a certificate, by the name that it is known by.
    async fn wanted(&self) -> Result<BTreeMap<DomainName, Wanted>, ApiError> {
        let mut wanted = BTreeMap::new();
        let platform = self.platform_names();
        if let Some(names) = &platform {
            wanted.insert(names[0].clone(), Wanted { app: None, names: names.clone() });
        }
        let domains = self.db.list::<DomainRecord>(keys::DOMAINS).await?;
        let now = self.now();
        // What somebody added, and is good.
        let mut added: BTreeMap<AppId, Vec<DomainName>> = BTreeMap::new();
        for c in
            self.db.list::<CertificateRecord>(keys::CERTIFICATES).await?.iter().map(|c| &c.value).filter(|c| c.auto.is_none())
        {
            if let Some(facts) = read(&c.chain).filter(|f| f.expires_at > now) {
                added.entry(c.app).or_default().extend(facts.names);
            }
        }
        let mut by_app: BTreeMap<AppId, Vec<DomainName>> = BTreeMap::new();
        for domain in domains {
            by_app.entry(domain.value.app).or_default().push(domain.value.hostname.clone());
        }
        for app in self.db.list::<App>(keys::APPS).await?.into_iter().map(|a| a.value).filter(|a| a.acm) {
            let mut names = by_app.remove(&app.id).unwrap_or_default();
            let own = self.default_domain(&app.name);
            let platforms = platform.as_ref().is_some_and(|all| all.iter().any(|n| covers(n, &own)));
            // RFC 6761: no authority knows localhost.
            if !platforms && self.deps.settings.domain.as_str() != "localhost" {
                names.push(own);
            }
            let covered = added.remove(&app.id).unwrap_or_default();
            names.retain(|n| !covered.iter().any(|c| covers(c, n)));
            wanted.extend(names.into_iter().map(|n| (n.clone(), Wanted { app: Some(app.id), names: vec![n] })));
        }
        Ok(wanted)
    }

    /// Runs until told to stop.
    pub(crate) async fn certificate_loop(self, stop: CancellationToken) {
        let holder = Uuid::from_bytes(crate::crypt::random::<16>());
        let account = tokio::sync::Mutex::new(None);
        let Ok(mut changes) = self.deps.store.watch("", 0).await else { return };
        while !stop.is_cancelled() {
            let now = self.now();
            let at = tokio::select! {
                at = self.certificate_pass(holder, &account) => at,
                () = stop.cancelled() => break,
            };
            let pause = match at {
                Ok(at) => at.map_or(LOOK_AGAIN, |at| at.since(now)),
                Err(e) => {
                    tracing::warn!(error = %e, "certificates could not be looked after; it is tried again");
                    SPEAK
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(BREATH) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.acme.wake.notified() => {}
                _ = changes.changes.changed() => {}
                () = tokio::time::sleep(pause.min(LOOK_AGAIN)) => {}
            }
        }
        // Who comes next need not wait.
        let _ = self.give_up(holder).await;
    }

    /// One look at everything. Says when to look again.
    async fn certificate_pass(
        &self,
        holder: Uuid,
        account: &tokio::sync::Mutex<Option<Account>>,
    ) -> Result<Option<Timestamp>, ApiError> {
        self.keep_ticket_keys().await?;
        self.tell_of_expiry().await?;
        let Some(settings) = &self.deps.settings.acme else { return Ok(None) };
        let wanted = self.wanted().await?;
        let (steps, wake) = decide::due(self.now(), &wanted, &self.known().await?);
        if steps.is_empty() {
            return Ok(wake);
        }
        let fence = match self.take_over(holder).await? {
            Ok(fence) => fence,
            Err(until) => return Ok(Some(until)),
        };
        // What the issuer before did meanwhile counts.
        let known = self.known().await?;
        let (steps, _) = decide::due(self.now(), &wanted, &known);
        let issuer = Issuer { c: self, settings, fence, account };
        let work = futures_util::stream::iter(steps).for_each_concurrent(AT_ONCE, |(name, step)| {
            let (issuer, known, wanted) = (&issuer, &known, &wanted);
            async move {
                let done = match (step, wanted.get(&name)) {
                    (Step::Issue, Some(want)) => {
                        let record = known.get(&name).cloned();
                        let record = record.unwrap_or_else(|| AutoCertificate::new(name.clone(), want.app, self.now()));
                        issuer.issue(want, record).await
                    }
                    _ => match known.get(&name) {
                        Some(record) => issuer.forget(record).await,
                        None => Ok(()),
                    },
                };
                if let Err(e) = done {
                    tracing::warn!(%name, error = %e, "a certificate could not be stored; it is tried again");
                }
            }
        });
        tokio::select! {
            () = work => {}
            e = self.stay(holder) => return Err(e),
        }
        Ok(Some(self.now()))
    }

    async fn known(&self) -> Result<BTreeMap<DomainName, AutoCertificate>, ApiError> {
        let all = self.db.list::<AutoCertificate>(keys::AUTO_CERTIFICATES).await?;
        Ok(all.into_iter().map(|k| (k.value.name.clone(), (*k.value).clone())).collect())
    }

    /// Becomes the issuer, or stays it. The error is when to ask again.
    async fn take_over(&self, holder: Uuid) -> Result<Result<Stored<Arc<IssuerRecord>>, Timestamp>, ApiError> {
        for _ in 0..2 {
            let now = self.now();
            let issuer = self.db.get::<IssuerRecord>(keys::ISSUER).await?;
            let alive = self.db.get::<IssuerAlive>(keys::ISSUER_ALIVE).await?;
            let until = alive.as_ref().map_or(Timestamp::default(), |a| a.value.until);
            let mine = issuer.as_ref().is_some_and(|i| i.value.holder == holder);
            if !mine && until > now {
                return Ok(Err(until));
            }
            let mut tx = Tx::new().put(keys::ISSUER_ALIVE, &IssuerAlive { until: now.plus(LEASE) });
            tx = match &issuer {
                Some(issuer) => tx.unchanged(issuer),
                None => tx.absent(keys::ISSUER),
            };
            if !mine {
                tx = tx.put(keys::ISSUER, &IssuerRecord { holder });
                if let Some(alive) = &alive {
                    tx = tx.unchanged(alive);
                }
            }
            match self.db.commit(tx).await {
                Ok(_) => {
                    let now = self.db.get::<IssuerRecord>(keys::ISSUER).await?;
                    if let Some(fence) = now.filter(|i| i.value.holder == holder) {
                        return Ok(Ok(fence));
                    }
                }
                Err(crate::db::CommitError::Conflict(_)) => {}
                Err(e) => return Err(crate::core_error(e)),
            }
        }
        Ok(Err(self.now().plus(SPEAK)))
    }

    /// Says that it is alive, until it is no longer the issuer.
    async fn stay(&self, holder: Uuid) -> ApiError {
        loop {
            tokio::time::sleep(SPEAK).await;
            match self.take_over(holder).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return ApiError::new(flex_api::ErrorId::Conflict, "another issuer took over"),
                Err(e) => return e,
            }
        }
    }

    async fn give_up(&self, holder: Uuid) -> Result<(), ApiError> {
        let Some(issuer) = self.db.get::<IssuerRecord>(keys::ISSUER).await?.filter(|i| i.value.holder == holder) else {
            return Ok(());
        };
        self.db.commit(Tx::new().unchanged(&issuer).delete(keys::ISSUER_ALIVE)).await.map_err(crate::core_error)?;
        Ok(())
    }

    /// Makes the keys of session tickets that are missing and forgets those that are over.
    async fn keep_ticket_keys(&self) -> Result<(), ApiError> {
        let periods = decide::ticket_periods(self.now());
        if lock(&self.acme.tickets).iter().map(|k| k.period).eq(periods.clone()) {
            return Ok(());
        }
        let all = self
            .db
            .retry(|| async {
                let stored = self.db.get::<TicketRecord>(keys::TICKETS).await?;
                let before = match &stored {
                    Some(s) => self.crypt.unseal(keys::TICKETS, &s.value.keys)?,
                    None => Vars::new(),
                };
                let fresh = || Secret::new(hex::encode(crate::crypt::random::<32>()));
                let all: Vars = periods
                    .clone()
                    .map(|p| p.to_string())
                    .map(|p| (p.clone(), before.get(&p).cloned().unwrap_or_else(fresh)))
                    .collect();
                if all == before {
                    return Ok((Tx::new(), all));
                }
                let row = TicketRecord { keys: self.crypt.seal(keys::TICKETS, &all)? };
                let tx = match &stored {
                    Some(s) => Tx::new().unchanged(s),
                    None => Tx::new().absent(keys::TICKETS),
                };
                Ok((tx.put(keys::TICKETS, &row), all))
            })
            .await?;
        let keys = all.into_iter().filter_map(|(period, key)| Some(TicketKey { period: period.parse().ok()?, key })).collect();
        *lock(&self.acme.tickets) = keys;
        self.nudge();
        debug_assert!(TICKET_PERIOD > LOOK_AGAIN);
        Ok(())
    }

    /// Makes an event of each certificate whose end is near, once.
    async fn tell_of_expiry(&self) -> Result<(), ApiError> {
        let (now, mut seen) = (self.now(), HashMap::new());
        for stored in self.db.list::<CertificateRecord>(keys::CERTIFICATES).await? {
            let record = &stored.value;
            let known = lock(&self.acme.times).get(&stored.key).filter(|t| t.0 == stored.revision).copied();
            let times = known.or_else(|| read(&record.chain).map(|f| (stored.revision, f.starts_at, f.expires_at)));
            let Some((revision, starts, expires)) = times else { continue };
            seen.insert(stored.key.clone(), (revision, starts, expires));
            if record.warned || !decide::expires_soon(starts, expires, now) {
                continue;
            }
            let Some(facts) = read(&record.chain) else { continue };
            let names = facts.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let advice = if record.auto.is_some() {
                "Its renewal has failed so far: flex certs:auto says why."
            } else {
                "Put a new one in its place: flex certs:update."
            };
            let text =
                format!("Certificate {} for {names} expires at {}. {advice}", record.name, facts.expires_at.rfc3339_seconds());
            tracing::warn!("{text}");
            let app = Some(record.app).filter(|a| *a != AppId(Uuid::nil()));
            let event = self.event(&Actor::platform(), app, "certificate.expiring", text);
            let told = CertificateRecord { warned: true, ..(**record).clone() };
            let tx = Tx::new().unchanged(&stored).put(stored.key.clone(), &told).put(keys::event(&event), &event);
            match self.db.commit(tx).await {
                Ok(_) | Err(crate::db::CommitError::Conflict(_)) => {}
                Err(e) => return Err(crate::core_error(e)),
            }
        }
        *lock(&self.acme.times) = seen;
        Ok(())
    }

    /// Names whose last try to get a certificate failed.
    pub(crate) async fn names_failing(&self) -> usize {
        let known = self.db.list::<AutoCertificate>(keys::AUTO_CERTIFICATES).await.unwrap_or_default();
        known.iter().filter(|k| k.value.problem.is_some()).count()
    }
}

impl Issuer<'_> {
    /// Drops a name with its certificate.
    async fn forget(&self, record: &AutoCertificate) -> Result<(), ApiError> {
        let mut tx = Tx::new().delete(keys::auto_certificate(&record.name));
        if let Some(issued) = &record.issued {
            let app = record.app.unwrap_or_else(|| AppId(Uuid::nil()));
            tx = tx.delete(keys::certificate(app, issued.certificate));
        }
        self.commit(tx).await?;
        self.c.nudge();
        Ok(())
    }
}
