//! Which key holds what.
//!
//! | key | value |
//! |---|---|
//! | `users/ID`, `emails/EMAIL` | user, and its id by e-mail |
//! | `ssh-keys/ID`, `fingerprints/SHA256…` | key, and its id by fingerprint |
//! | `tokens/SHA256` | token |
//! | `apps/ID`, `app-names/NAME` | app, and its id by name |
//! | `collaborators/APP/USER` | collaborator |
//! | `releases/APP/VERSION`, `slugs/APP/ID`, `builds/APP/ID` | as named; versions padded, so that they sort |
//! | `postdeploys/APP` | a `postdeploy` that is to be run, or runs |
//! | `config/APP/REV` | encrypted config vars |
//! | `history/APP/TIME-INSTANCE-ATTEMPT` | how one start of an instance ended; times padded, so that they sort |
//! | `domains/HOSTNAME` | domain |
//! | `hostnames-turn` | a count that grows with each domain that is added |
//! | `certificates/APP/ID` | certificate, its key encrypted |
//! | `log-drains/APP/ID` | drain, its URL encrypted |
//! | `log-retentions/APP` | how much of its log is kept |
//! | `acme/names/HOSTNAME` | certificate that is made automatically, with the order under way |
//! | `acme/accounts/SHA256` | account at a certificate authority, its key encrypted |
//! | `acme/issuer`, `acme/issuer-alive` | who makes certificates, and until when that holds |
//! | `tls-tickets` | keys of session tickets, encrypted |
//! | `routes/ID`, `route-matches/MATCH` | route, and its id by what it is chosen by |
//! | `routing/APP` | what was set for all HTTP routes of an app, and its pages |
//! | `router-tokens/SHA256` | token of a router elsewhere |
//! | `placements/ID`, `hosts/ID` | as named |
//! | `runs/APP/ID` | one-off command, running or over |
//! | `sources/ID` | uploaded source |
//! | `master-key` | fingerprint of the key that config vars are encrypted with |
//! | `events/TIME-ID` | event; times padded, so that they sort |

use flex_model::{
    AppId, AppName, BuildId, CertificateId, DomainName, DrainId, Email, Event, HostId, InstanceId, KeyId, Match, RouteId, SlugId,
    SourceId, UserId,
};

pub const MASTER_KEY: &str = "master-key";
pub const APPS: &str = "apps/";
pub const USERS: &str = "users/";
pub const SSH_KEYS: &str = "ssh-keys/";
pub const TOKENS: &str = "tokens/";
pub const RELEASES: &str = "releases/";
pub const DOMAINS: &str = "domains/";
/// Counts names that were added, so that two that cover one another are not added at one time.
pub const HOSTNAMES_TURN: &str = "hostnames-turn";
pub const CERTIFICATES: &str = "certificates/";
pub const DRAINS: &str = "log-drains/";
pub const LOG_RETENTIONS: &str = "log-retentions/";
pub const AUTO_CERTIFICATES: &str = "acme/names/";
pub const ISSUER: &str = "acme/issuer";
pub const ISSUER_ALIVE: &str = "acme/issuer-alive";
pub const TICKETS: &str = "tls-tickets";
pub const ROUTES: &str = "routes/";
pub const ROUTING: &str = "routing/";
pub const PLACEMENTS: &str = "placements/";
pub const HOSTS: &str = "hosts/";
pub const EVENTS: &str = "events/";
pub const BUILDS: &str = "builds/";
pub const POSTDEPLOYS: &str = "postdeploys/";
pub const RUNS: &str = "runs/";

pub fn app(id: AppId) -> String {
    format!("{APPS}{id}")
}
pub fn app_name(name: &AppName) -> String {
    format!("app-names/{name}")
}
pub fn user(id: UserId) -> String {
    format!("{USERS}{id}")
}
pub fn email(email: &Email) -> String {
    format!("emails/{email}")
}
pub fn ssh_key(id: KeyId) -> String {
    format!("{SSH_KEYS}{id}")
}
/// Fingerprints hold `/`, which is only a character here.
pub fn fingerprint(fingerprint: &str) -> String {
    format!("fingerprints/{fingerprint}")
}
pub fn token(sha256: &str) -> String {
    format!("{TOKENS}{sha256}")
}
pub fn collaborators(app: AppId) -> String {
    format!("collaborators/{app}/")
}
pub fn collaborator(app: AppId, user: UserId) -> String {
    format!("collaborators/{app}/{user}")
}
pub fn releases(app: AppId) -> String {
    format!("{RELEASES}{app}/")
}
pub fn release(app: AppId, version: u64) -> String {
    format!("{RELEASES}{app}/{version:010}")
}
pub fn slugs(app: AppId) -> String {
    format!("slugs/{app}/")
}
pub fn slug(app: AppId, id: SlugId) -> String {
    format!("slugs/{app}/{id}")
}
pub fn builds(app: AppId) -> String {
    format!("{BUILDS}{app}/")
}
pub fn build(app: AppId, id: BuildId) -> String {
    format!("{BUILDS}{app}/{id}")
}
pub fn postdeploy(app: AppId) -> String {
    format!("{POSTDEPLOYS}{app}")
}
pub fn configs(app: AppId) -> String {
    format!("config/{app}/")
}
pub fn config(app: AppId, rev: u64) -> String {
    format!("config/{app}/{rev:010}")
}
pub fn history(app: AppId) -> String {
    format!("history/{app}/")
}
pub fn ended(e: &flex_model::Ended) -> String {
    format!("history/{}/{:020}-{}-{}", e.app, e.at.micros().max(0), e.instance, e.attempt)
}
pub fn domain(name: &DomainName) -> String {
    format!("{DOMAINS}{name}")
}
pub fn certificates(app: AppId) -> String {
    format!("{CERTIFICATES}{app}/")
}
pub fn certificate(app: AppId, id: CertificateId) -> String {
    format!("{CERTIFICATES}{app}/{id}")
}
pub fn drains(app: AppId) -> String {
    format!("{DRAINS}{app}/")
}
pub fn drain(app: AppId, id: DrainId) -> String {
    format!("{DRAINS}{app}/{id}")
}
pub fn log_retention(app: AppId) -> String {
    format!("{LOG_RETENTIONS}{app}")
}
pub fn auto_certificate(name: &DomainName) -> String {
    format!("{AUTO_CERTIFICATES}{name}")
}
/// By the authority's directory: another one knows nothing of the account.
pub fn acme_account(directory: &str) -> String {
    use sha2::{Digest as _, Sha256};
    format!("acme/accounts/{}", hex::encode(Sha256::digest(directory)))
}
pub fn route(id: RouteId) -> String {
    format!("{ROUTES}{id}")
}
pub fn routing(app: AppId) -> String {
    format!("{ROUTING}{app}")
}
pub fn router_token(sha256: &str) -> String {
    format!("router-tokens/{sha256}")
}
/// Two routes of different kinds never meet; a TCP port may be shared by one route without a name and many with one.
pub fn route_match(matches: &Match) -> String {
    format!("route-matches/{}:{matches}", matches.kind())
}
pub fn placement(id: InstanceId) -> String {
    format!("{PLACEMENTS}{id}")
}
pub fn host(id: HostId) -> String {
    format!("{HOSTS}{id}")
}
pub fn runs(app: AppId) -> String {
    format!("{RUNS}{app}/")
}
pub fn run(app: AppId, id: InstanceId) -> String {
    format!("{RUNS}{app}/{id}")
}
pub fn source(id: SourceId) -> String {
    format!("sources/{id}")
}
pub fn event(e: &Event) -> String {
    format!("{EVENTS}{:020}-{}", e.at.micros().max(0), e.id)
}
