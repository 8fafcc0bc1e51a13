//! One certificate from the authority: the order, its proofs, and what comes of it. What is needed to go on is stored
//! before each step that cannot be taken back, so that a restart goes on with the same order.
//!
//! Must not: commit anything without the fence, which fails once another issuer has taken over.

use super::record::{AccountRecord, AutoCertificate, ChallengeKind, ChallengeRecord, Issued, IssuerRecord, OrderRecord, Problem};
use super::{AcmeSettings, check, decide, dns, hook};
use crate::core::{Actor, Controller};
use crate::crypt::Vars;
use crate::db::{CertificateRecord, Stored, Tx, keys};
use decide::Wanted;
use flex_api::ApiError;
use flex_model::{App, AppId, Certificate, CertificateId, Challenge, DomainName, Secret, Uuid};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long the authority may take to look at a proof, or to sign.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long certificates may take to get to every router that is connected.
const SPREAD: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
/// Between two looks for a DNS record.
const DNS_AGAIN: Duration = Duration::from_secs(1);
/// RFC 8555 section 6.7.
const NO_ACCOUNT: &str = "(accountDoesNotExist)";
const KEY: &str = "key";
const CREDENTIALS: &str = "credentials";

/// What stops an attempt: something to tell, or the loss of the right to go on.
pub enum Stop {
    Problem(Problem),
    /// Another issuer took over, or the store failed: nothing is to be noted.
    Lost(ApiError),
}

impl From<ApiError> for Stop {
    fn from(e: ApiError) -> Self {
        Self::Lost(e)
    }
}

impl From<Problem> for Stop {
    fn from(p: Problem) -> Self {
        Self::Problem(p)
    }
}

/// The one issuer, while it is.
pub struct Issuer<'a> {
    pub c: &'a Controller,
    pub settings: &'a AcmeSettings,
    pub fence: Stored<Arc<IssuerRecord>>,
    pub account: &'a Mutex<Option<Account>>,
}

impl Issuer<'_> {
    pub async fn commit(&self, tx: Tx) -> Result<(), ApiError> {
        self.c.db.commit(tx.unchanged(&self.fence)).await.map_err(crate::core_error)?;
        Ok(())
    }

    async fn save(&self, record: &mut AutoCertificate) -> Result<(), ApiError> {
        record.updated_at = self.c.now();
        let mut tx = Tx::new().put(keys::auto_certificate(&record.name), record);
        if let Some(app) = record.app {
            tx = tx.present(&keys::app(app));
        }
        self.commit(tx).await
    }

    /// Asks for a certificate, or goes on with the order under way. What failed is noted with the time of the next try.
    pub async fn issue(&self, wanted: &Wanted, mut record: AutoCertificate) -> Result<(), ApiError> {
        match self.attempt(wanted, &mut record).await {
            Ok(()) => Ok(()),
            Err(Stop::Lost(e)) => Err(e),
            Err(Stop::Problem(problem)) => {
                if problem.message.contains(NO_ACCOUNT) {
                    // The authority forgot us; the next try makes us known again.
                    *self.account.lock().await = None;
                    self.commit(Tx::new().delete(keys::acme_account(&self.settings.directory))).await?;
                }
                self.failed(record, problem).await
            }
        }
    }

    async fn failed(&self, mut record: AutoCertificate, problem: Problem) -> Result<(), ApiError> {
        record.failures = record.failures.saturating_add(1);
        let pause = decide::pause(self.settings.retry, record.failures, chance());
        record.try_at = self.c.now().plus(pause);
        record.updated_at = self.c.now();
        let news = record.problem.as_ref() != Some(&problem);
        tracing::warn!(name = %record.name, failures = record.failures, next = %record.try_at, "no certificate: {problem}");
        let text = format!("No certificate for {}: {problem}", record.name);
        record.problem = Some(problem);
        let mut tx = Tx::new().put(keys::auto_certificate(&record.name), &record);
        if let Some(app) = record.app {
            tx = tx.present(&keys::app(app));
        }
        if news {
            let event = self.c.event_ended(&Actor::platform(), record.app, "certificate.fail", text, false);
            tx = tx.put(keys::event(&event), &event);
        }
        self.commit(tx).await
    }

    /// How the names are proven.
    fn kind(&self, wanted: &Wanted) -> Result<ChallengeKind, Problem> {
        if !wanted.names.iter().any(|n| n.as_str().starts_with("*.")) {
            return Ok(self.settings.challenge);
        }
        if self.settings.dns_hook.is_empty() {
            return Err(Problem::new(
                "acme_wildcard",
                format!(
                    "{} is a wildcard, which can be proven by a DNS record only, and this server has no way to make one.",
                    wanted.names[0]
                ),
                "Ask the operator to set acme.dns_hook, or add a certificate of your own: flex certs:add.",
            ));
        }
        Ok(ChallengeKind::Dns01)
    }

    async fn attempt(&self, wanted: &Wanted, record: &mut AutoCertificate) -> Result<(), Stop> {
        let kind = self.kind(wanted)?;
        let account = &self.open_account().await?;
        let mut order = match self.resume(account, record).await? {
            Some(order) => order,
            None => {
                if kind != ChallengeKind::Dns01 && self.settings.self_check {
                    let app = match wanted.app {
                        Some(app) => self.c.db.get::<App>(&keys::app(app)).await?,
                        None => None,
                    };
                    let domain = &self.c.deps.settings.domain;
                    let target = app.map_or_else(|| domain.clone(), |a| self.c.default_domain(&a.value.name));
                    for name in &wanted.names {
                        self.look(name, kind, &target).await?;
                    }
                }
                self.begin(account, wanted, record, kind).await?
            }
        };
        let known = record.order.clone().ok_or_else(|| unexpected("the order was not stored"))?;
        let result = self.fulfil(&mut order, &known, wanted).await;
        for ch in known.challenges.iter().filter(|ch| ch.kind == ChallengeKind::Dns01) {
            if let Err(e) = hook::run(&self.settings.dns_hook, "cleanup", &record_name(&ch.name), &ch.proof).await {
                tracing::warn!(name = %ch.name, "a DNS record of a challenge stays: {e}");
            }
        }
        match result {
            Ok((chain, key)) => Ok(self.keep(record, chain, key).await?),
            Err(Stop::Problem(problem)) => {
                // A refused order is over; one that could not be asked about goes on.
                if problem.code == "acme_refused" {
                    record.order = None;
                }
                Err(problem.into())
            }
            Err(lost) => Err(lost),
        }
    }

    /// The order of an earlier attempt, if it can still lead to something.
    async fn resume(&self, account: &Account, record: &mut AutoCertificate) -> Result<Option<Order>, Stop> {
        let Some(known) = &record.order else { return Ok(None) };
        match call(account.order(known.url.clone())).await {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    tracing::info!(name = %record.name, "going on with an order");
                    return Ok(Some(order));
                }
            }
            Err(Fault::Said(_)) => {}
            Err(fault) => return Err(self.told(fault).into()),
        }
        record.order = None;
        self.save(record).await?;
        Ok(None)
    }

    /// Whether the name leads here.
    async fn look(&self, name: &DomainName, kind: ChallengeKind, target: &DomainName) -> Result<(), Stop> {
        let token = format!("flex-check-{}", hex::encode(crate::crypt::random::<16>()));
        let proof = hex::encode(crate::crypt::random::<16>());
        let alpn = match kind {
            ChallengeKind::TlsAlpn01 => {
                let (chain, key) = alpn_certificate(name, &crate::crypt::random::<32>())?;
                Some(Certificate { id: token.clone(), names: vec![name.clone()], chain, key })
            }
            _ => None,
        };
        let probe = Challenge { name: name.clone(), token: token.clone(), proof, alpn };
        crate::core::lock(&self.c.acme.probes).insert(token.clone(), probe.clone());
        self.c.nudge();
        let result = check::reaches(self.settings, kind, &probe, target).await;
        crate::core::lock(&self.c.acme.probes).remove(&token);
        self.c.nudge();
        Ok(result?)
    }

    async fn begin(
        &self,
        account: &Account,
        wanted: &Wanted,
        record: &mut AutoCertificate,
        kind: ChallengeKind,
    ) -> Result<Order, Stop> {
        let names: Vec<Identifier> = wanted.names.iter().map(|n| Identifier::Dns(n.to_string())).collect();
        let mut order = call(account.new_order(&NewOrder::new(&names))).await.map_err(|f| self.told(f))?;
        let key = rcgen::KeyPair::generate().map_err(unexpected)?;
        let mut secrets = Vars::from([(KEY.to_owned(), Secret::new(key.serialize_pem()))]);
        let mut challenges = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|e| self.told(Fault::from(e)))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let name = authorization.identifier().to_string();
            let name: DomainName = name.parse().map_err(unexpected)?;
            let Some(challenge) = authorization.challenge(kind.into()) else {
                let message = format!("The certificate authority does not offer the challenge {} for {name}.", shown(kind));
                return Err(Problem::new("acme_refused", message, "Ask the operator to set another acme.challenge.").into());
            };
            let proof = challenge.key_authorization();
            let alpn_chain = match kind {
                ChallengeKind::TlsAlpn01 => {
                    let (chain, key) = alpn_certificate(&name, proof.digest().as_ref())?;
                    secrets.insert(format!("alpn:{name}"), key);
                    Some(chain)
                }
                _ => None,
            };
            let proof = if kind == ChallengeKind::Dns01 { proof.dns_value() } else { proof.as_str().to_owned() };
            challenges.push(ChallengeRecord { name, kind, token: challenge.token.clone(), proof, alpn_chain });
        }
        let keys = self.c.crypt.seal(&keys::auto_certificate(&record.name), &secrets)?;
        record.order = Some(OrderRecord { url: order.url().to_owned(), challenges, keys });
        self.save(record).await?;
        Ok(order)
    }

    /// From the order to the certificate and its key.
    async fn fulfil(&self, order: &mut Order, known: &OrderRecord, wanted: &Wanted) -> Result<(String, Secret), Stop> {
        let mut secrets = self.c.crypt.unseal(&keys::auto_certificate(&wanted.names[0]), &known.keys)?;
        let key = secrets.remove(KEY).ok_or_else(|| unexpected("the order's key is missing"))?;
        if order.state().status == OrderStatus::Pending {
            self.show(known).await?;
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization.map_err(|e| self.told(Fault::from(e)))?;
                let ours = |c: &&instant_acme::Challenge| {
                    let shown = known.challenges.iter().any(|k| k.token == c.token && c.r#type == ChallengeType::from(k.kind));
                    shown && c.status == ChallengeStatus::Pending
                };
                // One that was said to be ready before a restart is looked at already.
                let Some(kind) = authorization.challenges.iter().find(ours).map(|c| c.r#type.clone()) else { continue };
                if let Some(mut challenge) = authorization.challenge(kind) {
                    call(challenge.set_ready()).await.map_err(|f| self.told(f))?;
                }
            }
            match order.poll_ready(&RetryPolicy::new().timeout(PATIENCE)).await {
                Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
                Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(self.refused(order, wanted).await.into()),
                Err(e) => return Err(self.told(Fault::from(e)).into()),
            }
        }
        if order.state().status == OrderStatus::Ready {
            let pair = rcgen::KeyPair::from_pem(key.expose()).map_err(unexpected)?;
            let names: Vec<String> = wanted.names.iter().map(ToString::to_string).collect();
            let mut params = rcgen::CertificateParams::new(names).map_err(unexpected)?;
            params.distinguished_name = rcgen::DistinguishedName::new();
            let request = params.serialize_request(&pair).map_err(unexpected)?;
            call(order.finalize_csr(request.der())).await.map_err(|f| self.told(f))?;
        }
        let policy = RetryPolicy::new().timeout(PATIENCE);
        let chain = order.poll_certificate(&policy).await.map_err(|e| self.told(Fault::from(e)))?;
        Ok((chain, key))
    }

    /// Puts the proofs where the authority will look, and waits until they are there.
    async fn show(&self, known: &OrderRecord) -> Result<(), Stop> {
        self.c.nudge();
        let here: Vec<&str> = known.challenges.iter().filter(|c| c.kind != ChallengeKind::Dns01).map(|c| &*c.token).collect();
        let until = tokio::time::Instant::now() + SPREAD;
        loop {
            let table = self.c.certificates.borrow().clone();
            let told = here.iter().all(|t| table.challenges.iter().any(|c| c.token == *t));
            if told && self.c.routers_show(table.revision) {
                break;
            }
            if tokio::time::Instant::now() > until {
                // An older router does not say what it shows; the authority will see for itself.
                tracing::warn!("a router has not said that it has the newest certificates; going on");
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        for ch in known.challenges.iter().filter(|c| c.kind == ChallengeKind::Dns01) {
            let name = record_name(&ch.name);
            hook::run(&self.settings.dns_hook, "present", &name, &ch.proof).await.map_err(|e| {
                Problem::new("acme_dns_hook", e, "Ask the operator to look at the program that acme.dns_hook names.")
            })?;
        }
        for ch in known.challenges.iter().filter(|c| c.kind == ChallengeKind::Dns01) {
            self.appears(&record_name(&ch.name), &ch.proof).await?;
        }
        Ok(())
    }

    /// Waits for a DNS record.
    async fn appears(&self, name: &str, value: &str) -> Result<(), Problem> {
        let Some(server) = self.settings.resolver.or_else(dns::system_server) else { return Ok(()) };
        let until = tokio::time::Instant::now() + self.settings.dns_wait;
        loop {
            let said = match dns::texts(server, name).await {
                Ok(texts) if texts.iter().any(|t| t == value) => return Ok(()),
                Ok(texts) => format!("{} other records are there", texts.len()),
                Err(e) => e,
            };
            if tokio::time::Instant::now() > until {
                let message = format!(
                    "The record {name} did not appear in DNS within {} s of being made ({said}).",
                    self.settings.dns_wait.as_secs()
                );
                let remedy = "Ask the operator whether acme.dns_hook makes it in the right zone, and whether acme.dns_wait_seconds is enough.";
                return Err(Problem::new("acme_dns_hook", message, remedy));
            }
            tokio::time::sleep(DNS_AGAIN).await;
        }
    }

    /// Keeps what was issued, in one commit with the end of the order.
    async fn keep(&self, record: &mut AutoCertificate, chain: String, key: Secret) -> Result<(), Stop> {
        let now = self.c.now();
        let bad = |e: String| {
            Problem::new(
                "acme_refused",
                format!("The certificate authority sent a certificate that cannot be used: {e}"),
                "It is asked again by itself.",
            )
        };
        let facts = match crate::certificates::check(&chain, &key, now) {
            Ok(facts) => facts,
            Err(e) => {
                record.order = None;
                return Err(bad(e).into());
            }
        };
        let before = record.issued.as_ref().map(|i| i.certificate);
        let id: CertificateId = before.unwrap_or_else(|| self.c.id());
        let app = record.app.unwrap_or_else(|| AppId(Uuid::nil()));
        let at = keys::certificate(app, id);
        let sealed = self.c.crypt.seal(&at, &Vars::from([(KEY.to_owned(), key)]))?;
        let made = CertificateRecord {
            id,
            app,
            name: format!("auto-{}", record.name.as_str().replace("*.", "wildcard-")),
            chain,
            key: sealed,
            created_at: self.c.db.get::<CertificateRecord>(&at).await?.map_or(now, |old| old.value.created_at),
            updated_at: now,
            auto: Some(record.name.clone()),
            warned: false,
        };
        record.issued = Some(Issued {
            certificate: id,
            expires_at: facts.expires_at,
            renew_at: decide::renew_at(facts.starts_at, facts.expires_at, chance()),
        });
        (record.order, record.problem, record.failures, record.try_at, record.updated_at) = (None, None, 0, now, now);
        let (kind, verb) = if before.is_some() { ("certificate.renew", "Renewed") } else { ("certificate.issue", "Issued") };
        let text = format!("{verb} the certificate for {}; it expires at {}", record.name, facts.expires_at.rfc3339_seconds());
        tracing::info!("{text}");
        let event = self.c.event(&Actor::platform(), record.app, kind, text);
        let mut tx = Tx::new().put(at, &made).put(keys::auto_certificate(&record.name), record).put(keys::event(&event), &event);
        if let Some(app) = record.app {
            tx = tx.present(&keys::app(app));
        }
        self.commit(tx).await?;
        self.c.nudge();
        Ok(())
    }

    /// The account, from memory, from the store, or a new one.
    async fn open_account(&self) -> Result<Account, Stop> {
        let mut open = self.account.lock().await;
        if let Some(account) = &*open {
            return Ok(account.clone());
        }
        let account = self.find_account().await?;
        *open = Some(account.clone());
        Ok(account)
    }

    async fn find_account(&self) -> Result<Account, Stop> {
        let directory = &self.settings.directory;
        let builder = match &self.settings.ca_file {
            Some(file) => Account::builder_with_root(file),
            None => Account::builder(),
        };
        let builder = builder.map_err(|e| self.told(Fault::from(e)))?;
        let at = keys::acme_account(directory);
        if let Some(known) = self.c.db.get::<AccountRecord>(&at).await? {
            let mut vars = self.c.crypt.unseal(&at, &known.value.credentials)?;
            let text = vars.remove(CREDENTIALS).unwrap_or_default();
            let credentials: AccountCredentials = serde_json::from_str(text.expose()).map_err(unexpected)?;
            return call(builder.from_credentials(credentials)).await.map_err(|f| self.told(f).into());
        }
        let contact: Vec<String> = self.settings.email.iter().map(|e| format!("mailto:{e}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = self.settings.external_account.as_ref();
        let external = external
            .map(|(id, key)| Some(ExternalAccountKey::new(id.clone(), &super::base64url(key.expose())?)))
            .map(|key| key.ok_or_else(|| unexpected("the external account's key is not base64url")))
            .transpose()?;
        let (account, credentials) =
            call(builder.create(&new, directory.clone(), external.as_ref())).await.map_err(|f| self.told(f))?;
        let text = serde_json::to_string(&credentials).map_err(unexpected)?;
        let sealed = self.c.crypt.seal(&at, &Vars::from([(CREDENTIALS.to_owned(), Secret::new(text))]))?;
        let row = AccountRecord { directory: directory.clone(), credentials: sealed, created_at: self.c.now() };
        self.commit(Tx::new().absent(&at).put(at, &row)).await?;
        Ok(account)
    }

    /// Why the authority did not believe: what it says of each name.
    async fn refused(&self, order: &mut Order, wanted: &Wanted) -> Problem {
        let mut said = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            let details = authorization.challenges.iter().filter_map(|c| c.error.as_ref());
            said.extend(details.map(|e| e.detail.clone().unwrap_or_else(|| e.to_string())));
        }
        if said.is_empty() {
            said.push("it gave no reason".into());
        }
        Problem::new(
            "acme_refused",
            format!("The certificate authority refused {}: {}.", wanted.names[0], said.join("; ").trim_end_matches('.')),
            "See that the name's DNS leads here for everybody (IPv6 and CAA records too), then: flex certs:auto:refresh.",
        )
    }

    /// What a fault means to people.
    fn told(&self, fault: Fault) -> Problem {
        let authority = &self.settings.directory;
        match fault {
            Fault::Said(p) => {
                let kind = p.r#type.as_deref().and_then(|t| t.rsplit(':').next()).unwrap_or_default().to_owned();
                let detail = p.detail.clone().unwrap_or_else(|| p.to_string());
                let detail = detail.trim_end_matches('.');
                if kind == "rateLimited" {
                    let message = format!("The certificate authority's limit is reached: {detail}.");
                    return Problem::new("acme_rate_limit", message, "It is asked again by itself, later.");
                }
                let message = format!("The certificate authority refused: {detail} ({kind}).");
                Problem::new("acme_refused", message, "Change what it says, then: flex certs:auto:refresh.")
            }
            Fault::Away(e) => Problem::new(
                "acme_unavailable",
                format!("The certificate authority {authority} cannot be used: {e}."),
                "It is tried again by itself. If it lasts, ask the operator to look at acme.directory and acme.ca_file, and at the way there.",
            ),
        }
    }
}

/// Why a call to the authority came to nothing.
enum Fault {
    Said(instant_acme::Problem),
    Away(String),
}

impl From<instant_acme::Error> for Fault {
    fn from(e: instant_acme::Error) -> Self {
        match e {
            instant_acme::Error::Api(problem) => Self::Said(problem),
            e => {
                let (mut text, mut cause) = (e.to_string(), std::error::Error::source(&e));
                while let Some(c) = cause {
                    let more = c.to_string();
                    if !text.contains(&more) {
                        text = format!("{text}: {more}");
                    }
                    cause = c.source();
                }
                Self::Away(text)
            }
        }
    }
}

/// A call to the authority, which has no limit of its own.
async fn call<T>(what: impl Future<Output = Result<T, instant_acme::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(result) => result.map_err(Fault::from),
        Err(_) => Err(Fault::Away(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

impl From<ChallengeKind> for ChallengeType {
    fn from(kind: ChallengeKind) -> Self {
        match kind {
            ChallengeKind::Http01 => Self::Http01,
            ChallengeKind::TlsAlpn01 => Self::TlsAlpn01,
            ChallengeKind::Dns01 => Self::Dns01,
        }
    }
}

fn shown(kind: ChallengeKind) -> &'static str {
    match kind {
        ChallengeKind::Http01 => "http-01",
        ChallengeKind::TlsAlpn01 => "tls-alpn-01",
        ChallengeKind::Dns01 => "dns-01",
    }
}

/// RFC 8555 section 8.4: where the record for a name, or for a wildcard under it, is looked for.
fn record_name(name: &DomainName) -> String {
    format!("_acme-challenge.{}", name.as_str().trim_start_matches("*."))
}

/// RFC 8737 section 3: the certificate that shows the proof.
fn alpn_certificate(name: &DomainName, digest: &[u8]) -> Result<(String, Secret), Problem> {
    let mut params = rcgen::CertificateParams::new(vec![name.to_string()]).map_err(unexpected)?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let key = rcgen::KeyPair::generate().map_err(unexpected)?;
    let made = params.self_signed(&key).map_err(unexpected)?;
    Ok((made.pem(), Secret::new(key.serialize_pem())))
}

fn unexpected(e: impl std::fmt::Display) -> Problem {
    Problem::new("acme_unavailable", format!("Making the certificate failed here: {e}."), "It is tried again by itself.")
}

/// Between 0 and 1.
fn chance() -> f64 {
    f64::from(u32::from_be_bytes(crate::crypt::random::<4>())) / f64::from(u32::MAX)
}
