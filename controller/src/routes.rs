//! Routes that somebody made: who may have which host, path, name and port; and their records.
//!
//! Invariants: one record for each match, by a key of its own that the commit demands to be absent; a route by host is in
//! force only while the domain belongs to the app that it belonged to when the route was made, so that a domain that
//! changes hands takes no stranger's routes along.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::random;
use crate::db::{DomainRecord, RouteRecord, Stored, Tx, keys};
use flex_api::{ApiError, ErrorId};
use flex_model::route::{MAX_TARGETS, MAX_WEIGHT};
use flex_model::{App, AppId, DomainName, Match, PathPrefix, Policy, ProcessType, Route, RouteId, Target, User};
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

/// The most routes of one app.
const MAX_ROUTES: usize = 1000;

/// What a route is asked to be chosen by; a port that is left out is allotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Http { host: DomainName, path: PathPrefix },
    Tcp { port: Option<NonZeroU16>, tls: bool },
    Sni { host: DomainName, port: Option<NonZeroU16> },
    Udp(Option<NonZeroU16>),
}

impl Controller {
    pub async fn routes_of(&self, app: AppId) -> Result<Vec<Stored<Arc<RouteRecord>>>, ApiError> {
        let all = self.db.list::<RouteRecord>(keys::ROUTES).await?;
        Ok(all.into_iter().filter(|r| r.value.app == app).collect())
    }

    /// A route of an app, by its id or as it prints (`www.example.com/api`, `tcp:5432`).
    pub async fn find_route(&self, app: &App, name: &str) -> Result<Stored<Arc<RouteRecord>>, ApiError> {
        let wanted = name.strip_suffix('/').unwrap_or(name).to_lowercase();
        let found = self.routes_of(app.id).await?.into_iter().find(|r| {
            let route = &r.value.route;
            let shown = route.matches.to_string();
            route.id.to_string() == wanted || shown.strip_suffix('/').unwrap_or(&shown).to_lowercase() == wanted
        });
        found.ok_or_else(|| not_found("Couldn't find that route. See: flex routes"))
    }

    /// The app that a host name belongs to: its own name under the platform's domain, or a domain that was added.
    async fn owner_of_host(&self, host: &DomainName) -> Result<Option<AppId>, ApiError> {
        if let Some(record) = self.db.get::<DomainRecord>(&keys::domain(host)).await? {
            return Ok(Some(record.value.app));
        }
        let own = format!(".{}", self.deps.settings.domain);
        let Some(name) = host.as_str().strip_suffix(&own).and_then(|n| n.parse::<flex_model::AppName>().ok()) else {
            return Ok(None);
        };
        Ok(self.db.get::<AppId>(&keys::app_name(&name)).await?.map(|id| *id.value))
    }

    /// The host's owner, if `user` may route there.
    async fn may_route(&self, user: Option<&User>, app: &App, host: &DomainName) -> Result<Option<AppId>, ApiError> {
        let Some(owner) = self.owner_of_host(host).await? else { return Ok(None) };
        if owner == app.id {
            return Ok(Some(owner));
        }
        let other = self.find_app(&owner.to_string()).await?;
        let Some(user) = user else { return Err(invalid(format!("{host} belongs to another app."))) };
        match self.role_in(user, &other).await? {
            Some(_) => Ok(Some(owner)),
            None => Err(invalid(format!("{host} belongs to another app."))),
        }
    }

    /// Makes a route. `user` is who asks, where it is a person: it decides about other apps' hosts and about ports.
    pub async fn add_route(
        &self,
        actor: &Actor,
        user: Option<&User>,
        app: &App,
        wanted: Wanted,
        targets: Vec<Target>,
        policy: Policy,
    ) -> Result<Arc<RouteRecord>, ApiError> {
        let (matches, host_owner) = self.claim(user, app, &wanted).await?;
        let targets = if targets.is_empty() { vec![Target::to(ProcessType::web())] } else { targets };
        self.check(app, &matches, &targets, &policy).await?;
        if self.routes_of(app.id).await?.len() >= MAX_ROUTES {
            return Err(invalid(format!("An app may have {MAX_ROUTES} routes.")));
        }
        let id: RouteId = self.id();
        let key = keys::route(id);
        let record = self
            .db
            .retry(|| async {
                // A port of the range is looked for anew when another came first.
                let matches = match (&wanted, matches.clone()) {
                    (Wanted::Tcp { port: None, tls }, _) => Match::Tcp { port: self.free_port("tcp").await?, tls: *tls },
                    (Wanted::Udp(None), _) => Match::Udp { port: self.free_port("udp").await? },
                    (_, given) => given,
                };
                let by_match = keys::route_match(&matches);
                if let Some(other) = self.db.get::<RouteId>(&by_match).await? {
                    let mine = self.routes_of(app.id).await?.iter().any(|r| r.value.route.id == *other.value);
                    let whose = if mine { "this app has it already. Change it: flex routes:set" } else { "another app has it" };
                    return Err(invalid(format!("{matches} is taken: {whose}.")));
                }
                let stored = self.read_app(&app.id.to_string()).await?;
                let policy = (policy != Policy::default()).then(|| Arc::new(policy.clone()));
                let route = Route { id, matches: matches.clone(), targets: targets.clone(), policy };
                let record = RouteRecord {
                    app: app.id,
                    route: Arc::new(route),
                    host_owner,
                    created_at: self.now(),
                    updated_at: self.now(),
                };
                let to = shown(&targets);
                let event = self.event(actor, Some(app.id), "route.create", format!("Routed {matches} to {to}"));
                let tx = Tx::new().absent(&by_match).put(by_match, &id).put(key.clone(), &record);
                let tx = self.restart_new_targets(tx, &stored, &targets).await?;
                Ok((tx.put(keys::event(&event), &event), record))
            })
            .await?;
        self.log_api(app.id, format!("Routed {} to {} by user {}", record.route.matches, shown(&targets), actor.name));
        self.nudge();
        Ok(Arc::new(record))
    }

    /// Changes where a route leads and how; what is not given stays.
    pub async fn set_route(
        &self,
        actor: &Actor,
        app: &App,
        name: &str,
        targets: Option<Vec<Target>>,
        policy: Option<Policy>,
    ) -> Result<Arc<RouteRecord>, ApiError> {
        let record = self
            .db
            .retry(|| async {
                let found = self.find_route(app, name).await?;
                let old = &found.value.route;
                let targets = targets.clone().unwrap_or_else(|| old.targets.clone());
                let policy = policy.clone().unwrap_or_else(|| old.policy.as_deref().cloned().unwrap_or_default());
                self.check(app, &old.matches, &targets, &policy).await?;
                let route = Route {
                    targets: targets.clone(),
                    policy: (policy != Policy::default()).then(|| Arc::new(policy.clone())),
                    ..(**old).clone()
                };
                if route == **old {
                    return Ok((Tx::new(), found.value));
                }
                let nothing = flex_model::HttpPolicy::default();
                let http = |r: &Route| r.policy.as_ref().map_or(nothing.clone(), |p| p.http.clone());
                let set = crate::routing::differences(&http(old), &http(&route));
                let set = if set.is_empty() { String::new() } else { format!(" ({})", set.join(", ")) };
                let message = format!("Changed the route {} to {}{set}", route.matches, shown(&targets));
                let record = RouteRecord { route: Arc::new(route), updated_at: self.now(), ..(*found.value).clone() };
                let event = self.event(actor, Some(app.id), "route.update", message);
                let stored = self.read_app(&app.id.to_string()).await?;
                let tx = Tx::new().unchanged(&found).put(found.key.clone(), &record).put(keys::event(&event), &event);
                Ok((self.restart_new_targets(tx, &stored, &targets).await?, Arc::new(record)))
            })
            .await?;
        self.nudge();
        Ok(record)
    }

    pub async fn remove_route(&self, actor: &Actor, app: &App, name: &str) -> Result<Arc<RouteRecord>, ApiError> {
        let gone = self
            .db
            .retry(|| async {
                let found = self.find_route(app, name).await?;
                let event =
                    self.event(actor, Some(app.id), "route.delete", format!("Removed the route {}", found.value.route.matches));
                let tx = Tx::new()
                    .unchanged(&found)
                    .delete(found.key.clone())
                    .delete(keys::route_match(&found.value.route.matches))
                    .put(keys::event(&event), &event);
                Ok((tx, found.value))
            })
            .await?;
        self.nudge();
        Ok(gone)
    }

    /// Turns what is asked for into a match, if the caller may have it; and says whose the host is.
    async fn claim(&self, user: Option<&User>, app: &App, wanted: &Wanted) -> Result<(Match, Option<AppId>), ApiError> {
        let first = self.deps.settings.route_ports.start();
        let any = NonZeroU16::new(*first).unwrap_or(NonZeroU16::MIN);
        Ok(match wanted {
            Wanted::Http { host, path } => {
                let owner = self.may_route(user, app, host).await?;
                let owner = owner
                    .ok_or_else(|| invalid(format!("{host} is no domain of an app. Add it first: flex domains:add {host}")))?;
                (Match::Http { host: host.clone(), path: path.clone() }, Some(owner))
            }
            Wanted::Sni { host, port } => {
                port.map_or(Ok(()), |p| self.may_have_port(user, p))?;
                let owner = self.may_route(user, app, host).await?;
                // On the HTTPS port a name that is nobody's would be taken from who adds it as a domain later.
                if port.is_none() && owner.is_none() {
                    return Err(invalid(format!("{host} is no domain of an app. Add it first: flex domains:add {host}")));
                }
                if host.as_str().starts_with("*.") {
                    self.check_cover(user, app, host).await?;
                }
                (Match::Sni { host: host.clone(), port: *port }, owner)
            }
            Wanted::Tcp { port, tls } => {
                port.map_or(Ok(()), |p| self.may_have_port(user, p))?;
                (Match::Tcp { port: port.unwrap_or(any), tls: *tls }, None)
            }
            Wanted::Udp(port) => {
                port.map_or(Ok(()), |p| self.may_have_port(user, p))?;
                (Match::Udp { port: port.unwrap_or(any) }, None)
            }
        })
    }

    /// Ports outside the range belong to the machine: only an administrator gives them away.
    fn may_have_port(&self, user: Option<&User>, port: NonZeroU16) -> Result<(), ApiError> {
        let range = &self.deps.settings.route_ports;
        if range.contains(&port.get()) || user.is_some_and(|u| u.admin) {
            return Ok(());
        }
        let text = format!(
            "Port {port} is not among those for routes ({} to {}); an administrator may use it.",
            range.start(),
            range.end()
        );
        Err(ApiError::new(ErrorId::Forbidden, text))
    }

    async fn free_port(&self, kind: &str) -> Result<NonZeroU16, ApiError> {
        let taken: BTreeSet<u16> =
            self.db.list::<RouteRecord>(keys::ROUTES).await?.iter().filter_map(|r| port_of(&r.value.route.matches)).collect();
        let range = self.deps.settings.route_ports.clone();
        let count = usize::from(*range.end() - *range.start()) + 1;
        // From a place by chance: two at once seldom want the same, and a port that was given up is not handed on at once.
        let at = usize::from(u16::from_be_bytes(random::<2>())) % count;
        let ports = range.clone().skip(at).chain(range.take(at));
        ports.into_iter().find(|p| !taken.contains(p)).and_then(NonZeroU16::new).ok_or_else(|| {
            invalid(format!("No {kind} port is left in the range for routes. The operator can widen it: router.route_ports."))
        })
    }

    async fn check(&self, app: &App, matches: &Match, targets: &[Target], policy: &Policy) -> Result<(), ApiError> {
        policy.check().map_err(invalid)?;
        let http = matches!(matches, Match::Http { .. });
        if !http && (policy.sticky || policy.protocol != flex_model::InstanceProtocol::Http1) {
            return Err(invalid("sticky and protocol are for HTTP routes."));
        }
        if !http && policy.http != flex_model::HttpPolicy::default() {
            return Err(invalid(format!("{} is for HTTP routes.", policy.http.names().join(", "))));
        }
        if matches!(matches, Match::Udp { .. }) && policy.proxy_protocol.is_some() {
            return Err(invalid("The PROXY protocol is not for UDP routes."));
        }
        if targets.is_empty() || targets.len() > MAX_TARGETS {
            return Err(invalid(format!("A route has 1 to {MAX_TARGETS} targets.")));
        }
        if targets.iter().all(|t| t.weight == 0) || targets.iter().any(|t| t.weight > MAX_WEIGHT) {
            return Err(invalid(format!("Weights are 0 to {MAX_WEIGHT}, and not all of them 0.")));
        }
        let distinct: BTreeSet<_> = targets.iter().map(|t| (&t.process, t.version)).collect();
        if distinct.len() < targets.len() {
            return Err(invalid("A target is named twice."));
        }
        let known = self.process_types(app.id).await?;
        for t in targets {
            if let Some(version) = t.version {
                self.find_release(app.id, &version.to_string()).await?;
            }
            if t.process.is_release_phase() || !known.is_empty() && !known.contains(&t.process) {
                let names: Vec<&str> = known.iter().map(ProcessType::as_str).collect();
                return Err(invalid(format!("The app has no process type {}; it has {}.", t.process, names.join(", "))));
            }
        }
        Ok(())
    }

    /// A process type that gets its first route needs `PORT`, which its running instances do not have.
    async fn restart_new_targets(&self, tx: Tx, app: &Stored<Arc<App>>, targets: &[Target]) -> Result<Tx, ApiError> {
        let routed = self.routed_processes(app.value.id).await?;
        let new: Vec<&ProcessType> = targets.iter().map(|t| &t.process).filter(|p| !p.is_web() && !routed.contains(*p)).collect();
        if new.is_empty() {
            return Ok(tx.present(&app.key));
        }
        let mut changed = (*app.value).clone();
        for process in new {
            changed.restarts.insert(process.to_string(), self.now());
        }
        Ok(tx.unchanged(app).put(app.key.clone(), &changed))
    }

    async fn routed_processes(&self, app: AppId) -> Result<BTreeSet<ProcessType>, ApiError> {
        let routes = self.routes_of(app).await?;
        Ok(routes.iter().flat_map(|r| r.value.route.targets.iter().map(|t| t.process.clone())).collect())
    }
}

fn port_of(matches: &Match) -> Option<u16> {
    match matches {
        Match::Http { .. } => None,
        Match::Tcp { port, .. } | Match::Udp { port } => Some(port.get()),
        Match::Sni { port, .. } => port.map(NonZeroU16::get),
    }
}

/// `web`, or `web 90 %, canary 10 %`.
pub fn shown(targets: &[Target]) -> String {
    if let [only] = targets {
        return only.to_string();
    }
    let sum: u64 = targets.iter().map(|t| u64::from(t.weight)).sum::<u64>().max(1);
    let parts: Vec<String> = targets.iter().map(|t| format!("{t} {} %", u64::from(t.weight) * 100 / sum)).collect();
    parts.join(", ")
}
