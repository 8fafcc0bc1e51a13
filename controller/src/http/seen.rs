//! What routers see, for people and for Prometheus: metrics of the server, each app's traffic, the routers, and the way
//! that a request would take.

use super::answer::{Answer, Shown, Text};
use super::render::app_ref;
use crate::core::{Controller, lock, not_found};
use crate::http::access::Caller;
use crate::signals::Seen;
use axum::Extension;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use flex_api::seen::{AppMetrics, ProcessMetrics, RouteTrace, RouterInfo, Routers, Second, TraceInstance, TraceTarget, Traffic};
use flex_api::{ApiError, ErrorId};
use flex_model::exposition::{CONTENT_TYPE, Exposition};
use flex_model::route::LOCAL_ROUTER;
use flex_model::signals::Counts;
use flex_model::trace::Found;
use flex_model::{
    App, AppState, Backend, InstanceState, Placement, PlacementPhase, ProcessType, RouterStatus, Target, Timestamp,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What `request_rate` of a router is over.
const RATE_OVER: Duration = Duration::from_secs(10);

/// Adds to the server's metrics.
pub type Exposes = Arc<dyn Fn() -> String + Send + Sync>;

impl Controller {
    /// Puts another part's metrics beside the controller's own.
    pub fn expose_too(&self, more: Exposes) {
        lock(&self.exposed).push(more);
    }

    /// All metrics of this process, as text.
    pub async fn expose(&self) -> String {
        let mut out = Exposition::default();
        self.expose_own(&mut out).await;
        let others = lock(&self.exposed).clone();
        for other in others {
            out.append(&other());
        }
        out.into_text()
    }

    async fn expose_own(&self, out: &mut Exposition) {
        let desired = lock(&self.desired).clone();
        let revision = self.deps.store.get("-").await.map_or(0, |(_, r)| r);
        out.gauge("flex_store_revision", "Revision of the state store; grows with each commit.").sample(&[], revision as f64);
        out.gauge("flex_store_up", "1: the state store answers.").sample(&[], f64::from(u8::from(revision > 0)));
        if let Some(desired) = &desired {
            let (apps, placements) = desired.sizes();
            out.gauge("flex_apps", "Apps.").sample(&[], apps as f64);
            out.gauge("flex_placements", "Instances that are placed on hosts.").sample(&[], placements as f64);
        }
        let mut states: BTreeMap<&str, u64> =
            ["starting", "up", "unhealthy", "crashed", "down", "stopping"].into_iter().map(|s| (s, 0)).collect();
        for view in lock(&self.reports).values() {
            for i in &view.report.instances {
                *states.entry(state_name(i.state)).or_default() += 1;
            }
        }
        let mut family = out.gauge("flex_instances", "Instances as their hosts report them, by state.");
        for (state, n) in states {
            family.sample(&[("state", state)], n as f64);
        }
        out.gauge("flex_instances_pending", "Instances that are wanted and have no place.")
            .sample(&[], lock(&self.pending).len() as f64);
        let now = self.now();
        let mut family = out.gauge("flex_host_report_age_seconds", "How long ago a host reported.");
        for (host, view) in lock(&self.reports).iter() {
            family.sample(&[("host", &host.to_string())], now.since(view.report.at).as_secs_f64());
        }
        let (passes, failed, micros) = (&self.pass_counts.0, &self.pass_counts.1, &self.pass_counts.2);
        out.counter("flex_plan_passes_total", "Passes of the plan loop.").sample(&[], passes.load(Relaxed) as f64);
        out.counter("flex_plan_failures_total", "Passes of the plan loop that could not read or commit.")
            .sample(&[], failed.load(Relaxed) as f64);
        out.counter("flex_plan_seconds_total", "Time spent in passes of the plan loop.")
            .sample(&[], micros.load(Relaxed) as f64 / 1e6);
        out.gauge("flex_builds_running", "Builds under way.").sample(&[], lock(&self.running_builds).len() as f64);
        self.expose_routers(out);
        self.expose_certificates(out);
        let help = "Names whose last try to get a certificate automatically failed.";
        out.gauge("flex_certificates_failing", help).sample(&[], self.names_failing().await as f64);
    }

    fn expose_routers(&self, out: &mut Exposition) {
        let table = self.table.borrow().clone();
        out.gauge("flex_table_revision", "Revision of the newest routing table.").sample(&[], table.revision as f64);
        let routers = self.router_list();
        let mut family = out.gauge("flex_router_connected", "1: the router listens to the routing table.");
        for r in &routers {
            family.sample(&[("router", &r.name)], f64::from(u8::from(r.connected)));
        }
        let mut family = out.gauge("flex_router_current", "1: the router routes by the newest table.");
        for r in &routers {
            family.sample(&[("router", &r.name)], f64::from(u8::from(r.current)));
        }
        let mut family = out.gauge("flex_router_lag_seconds", "How long the router took to put the newest table in force.");
        for (r, lag) in routers.iter().filter_map(|r| Some((r, r.lag_ms?))) {
            family.sample(&[("router", &r.name)], lag as f64 / 1000.0);
        }
    }

    fn expose_certificates(&self, out: &mut Exposition) {
        let table = self.certificates.borrow().clone();
        let help = "When a certificate expires, in seconds since 1970.";
        let mut family = out.gauge("flex_certificate_expiry_timestamp_seconds", help);
        let mut seen = BTreeSet::new();
        for certificate in &table.certificates {
            let Some(facts) = crate::certificates::read(&certificate.chain) else { continue };
            let name = certificate.names.first().map_or("", flex_model::DomainName::as_str);
            if seen.insert((certificate.id.clone(), name.to_owned())) {
                family.sample(&[("certificate", &certificate.id), ("name", name)], facts.expires_at.micros() as f64 / 1e6);
            }
        }
    }

    /// Every router that is known of, by name.
    fn router_list(&self) -> Vec<RouterInfo> {
        let newest = self.table.borrow().revision;
        let connected = lock(&self.connected).clone();
        let statuses: BTreeMap<String, (RouterStatus, Instant)> = lock(&self.routers).clone();
        let names: BTreeSet<&String> = statuses.keys().chain(connected.keys()).collect();
        let (signals, now) = (lock(&self.signals), Instant::now());
        let info = |name: &String| {
            let (status, heard) = statuses.get(name).map(|(s, at)| (s.clone(), Some(*at))).unwrap_or_default();
            let told = signals.router(name);
            let heard = heard.into_iter().chain(told.map(|t| t.at)).max();
            RouterInfo {
                name: name.clone(),
                connected: name == LOCAL_ROUTER || connected.contains_key(name),
                version: told.map(|t| t.version.clone()).filter(|v| !v.is_empty()),
                revision: status.revision,
                current: status.revision >= newest,
                lag_ms: told.and_then(|t| t.lag).map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
                connections: told.map(|t| t.connections),
                in_flight: status.in_flight.values().map(|n| u64::from(*n)).sum(),
                request_rate: rounded(signals.rate(Some(name), RATE_OVER, now)),
                problems: status.problems.iter().map(|p| p.message.clone()).collect(),
                heard_at: heard.map(|at| ago(self.now(), now.duration_since(at)).into()),
            }
        };
        names.into_iter().map(info).collect()
    }
}

fn state_name(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Up => "up",
        InstanceState::Crashed => "crashed",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Stopping => "stopping",
        InstanceState::Down => "down",
    }
}

fn ago(now: Timestamp, d: Duration) -> Timestamp {
    Timestamp::from_micros(now.micros() - i64::try_from(d.as_micros()).unwrap_or(0))
}

/// Enough for eyes, and short in JSON.
fn rounded(n: f64) -> f64 {
    (n * 1000.0).round() / 1000.0
}

pub async fn metrics(State(c): State<Controller>) -> Answer<Text> {
    Ok(Text(([(header::CONTENT_TYPE, CONTENT_TYPE)], c.expose().await).into_response()))
}

#[derive(Deserialize)]
pub struct Window {
    seconds: Option<u32>,
}

fn traffic(counts: &Counts, seconds: f64) -> Traffic {
    let share = |a: u64, b: u64| (b > 0).then(|| rounded(a as f64 / b as f64));
    Traffic {
        arrival_rate: rounded(counts.arrivals as f64 / seconds),
        in_flight: counts.in_flight,
        queue: counts.queue,
        service_ms: share(counts.service_us, counts.served * 1000),
        p50_ms: counts.percentile_ms(0.5).map(rounded),
        p95_ms: counts.percentile_ms(0.95).map(rounded),
        p99_ms: counts.percentile_ms(0.99).map(rounded),
        error_share: share(counts.errors, counts.ended),
    }
}

pub async fn app_metrics(
    State(c): State<Controller>,
    Extension(app): Extension<Arc<App>>,
    Query(window): Query<Window>,
) -> Answer<Shown<AppMetrics>> {
    let seconds = window.seconds.unwrap_or(10);
    let kept = crate::signals::KEPT;
    if seconds == 0 || u64::from(seconds) > kept.as_secs() {
        let text = format!("seconds: use 1 to {}; what is older is not kept.", kept.as_secs());
        return Err(ApiError::new(ErrorId::BadRequest, text).into());
    }
    let table = c.table.borrow().clone();
    let route = table.app(app.id);
    let mut pools: BTreeMap<(ProcessType, Option<u64>), u64> = BTreeMap::new();
    if let Some(route) = route {
        if app.formation.contains_key(&ProcessType::web()) {
            pools.insert((ProcessType::web(), None), route.backends.len() as u64);
        }
        pools.extend(route.pools.iter().map(|p| ((p.process.clone(), p.version), p.backends.len() as u64)));
    }
    let seen = lock(&c.signals).of(app.id, Duration::from_secs(seconds.into()), Instant::now());
    let mut names: BTreeSet<_> = pools.keys().cloned().collect();
    names.extend(seen.keys().cloned());
    let (now, nothing) = (c.now(), Seen { counts: Counts::default(), seconds: Vec::new() });
    let one = |of: (ProcessType, Option<u64>)| {
        let seen = seen.get(&of).unwrap_or(&nothing);
        let second = |(back, counts): &(Duration, Counts)| Second { at: ago(now, *back).into(), traffic: traffic(counts, 1.0) };
        ProcessMetrics {
            instances: pools.get(&of).copied().unwrap_or(0),
            traffic: traffic(&seen.counts, f64::from(seconds)),
            history: seen.seconds.iter().rev().map(second).collect(),
            process: of.0,
            release: of.1,
        }
    };
    Ok(Shown(AppMetrics { app: app_ref(&app), seconds, processes: names.into_iter().map(one).collect() }))
}

pub async fn routers(State(c): State<Controller>) -> Answer<Shown<Routers>> {
    let table = c.table.borrow().clone();
    let mut hosts = BTreeSet::new();
    for app in &table.apps {
        hosts.extend(app.domains.iter().map(flex_model::DomainName::as_str));
    }
    let (revision, apps, hosts) = (table.revision, table.apps.len() as u64, hosts.len() as u64);
    Ok(Shown(Routers { revision, apps, hosts, routers: c.router_list() }))
}

#[derive(Deserialize)]
pub struct Asked {
    host: String,
    #[serde(default)]
    path: String,
}

pub async fn trace(
    State(c): State<Controller>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<Asked>,
) -> Answer<Shown<RouteTrace>> {
    let host = asked.host.trim_end_matches('.').to_ascii_lowercase();
    let path = if asked.path.starts_with('/') { asked.path } else { format!("/{}", asked.path) };
    let path = path.split(['?', '#']).next().unwrap_or("/").to_owned();
    let nothing =
        || not_found(format!("No app of yours answers at {host}{path}. Visitors get 404, no such app, or another's app."));
    let table = c.table.borrow().clone();
    let found = table.find(&host, &path).ok_or_else(nothing)?;
    let app = c.find_app(&found.app.app.to_string()).await?;
    // Whose the name is otherwise is none of a stranger's business.
    if c.role_in(&caller.user, &app).await?.is_none() {
        return Err(nothing().into());
    }
    let targets = found.app.targets_of(found.route);
    let sum: u32 = targets.iter().map(|t| t.weight).sum();
    let world = c.read_world().await?.world;
    let view = World { c: &c, world: &world, routers: c.router_statuses() };
    let mut notes = Vec::new();
    if !found.others.is_empty() {
        notes.push(format!("{} other apps claim it too; the one with the lowest id has it", found.others.len()));
    }
    for r in c.router_list().into_iter().filter(|r| !r.current) {
        notes.push(format!("the router {} routes by an older table", r.name));
    }
    let targets: Vec<TraceTarget> =
        targets.iter().map(|t| view.target(&found, t, f64::from(t.weight) / f64::from(sum.max(1)))).collect();
    if targets.len() > 1 && targets.iter().any(|t| t.state != "serving") {
        notes.push("a target without instances gets requests only when none has any".into());
    }
    let policy = found.route.map_or(found.app.policy.as_ref(), |r| r.policy.as_ref());
    Ok(Shown(RouteTrace {
        host: host.clone(),
        path: path.clone(),
        revision: table.revision,
        app: app_ref(&app),
        route: found.route.map(|r| r.id),
        matched: format!("{}{}", found.host, found.path),
        policy: policy.map(|p| flex_model::Policy { http: p.http.hidden(), ..(**p).clone() }).unwrap_or_default(),
        targets,
        notes,
    }))
}

struct World<'a> {
    c: &'a Controller,
    world: &'a flex_scheduler::World,
    routers: Vec<RouterStatus>,
}

impl World<'_> {
    fn target(&self, found: &Found<'_>, target: &Target, share: f64) -> TraceTarget {
        let app = found.app;
        let special = app.pools.iter().find(|p| p.process == target.process && p.version == target.version);
        let (state, backends) = match special {
            Some(pool) => (pool.state, pool.backends.as_slice()),
            None if target.process.is_web() && target.version.is_none() => (app.state, app.backends.as_slice()),
            None => (AppState::NoWeb, [].as_slice()),
        };
        let placed = self.world.placements.values().filter(|p| p.app == app.app && p.process == target.process);
        let mut instances: Vec<TraceInstance> = placed.map(|p| self.instance(p, target, backends)).collect();
        instances.sort_by(|a, b| (!a.routed, &a.name, a.release, a.id).cmp(&(!b.routed, &b.name, b.release, b.id)));
        for pending in self.c.pending_of(app.app).into_iter().filter(|p| p.process == target.process) {
            instances.push(TraceInstance {
                id: flex_model::InstanceId(flex_model::Uuid::nil()),
                name: format!("{}.{}", pending.process, pending.index),
                release: target.version.unwrap_or(0),
                address: None,
                routed: false,
                in_flight: 0,
                why: format!("wanted, but it cannot be placed: {}", pending.why),
            });
        }
        let state = serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        TraceTarget { process: target.process.clone(), release: target.version, share: rounded(share), state, instances }
    }

    fn instance(&self, p: &Placement, target: &Target, backends: &[Backend]) -> TraceInstance {
        let routed = backends.iter().find(|b| b.instance == p.instance);
        let under_way = self.routers.iter().filter_map(|r| r.in_flight.get(&p.instance)).map(|n| u64::from(*n)).sum();
        TraceInstance {
            id: p.instance,
            name: p.name(),
            release: p.version,
            address: routed.map(|b| b.address),
            routed: routed.is_some(),
            in_flight: under_way,
            why: self.why(p, target, routed.is_some()),
        }
    }

    fn why(&self, p: &Placement, target: &Target, routed: bool) -> String {
        let out: Vec<&str> = self.routers.iter().filter(|r| r.out.contains(&p.instance)).map(|r| r.router.as_str()).collect();
        if routed && !out.is_empty() {
            return format!("out for a moment, because connecting to it failed (router {})", out.join(", "));
        }
        if routed {
            return "placed and reported healthy".into();
        }
        if let Some(wanted) = target.version.filter(|v| *v != p.version) {
            return format!("it is of v{}, and only v{wanted} is meant", p.version);
        }
        if let PlacementPhase::Draining { .. } = p.phase {
            return "it drains: it finishes what it has and gets nothing new".into();
        }
        let report = self.world.reports.get(&p.host).and_then(|v| v.report.instances.iter().find(|i| i.instance == p.instance));
        let Some(report) = report else { return "its host has not reported it yet".into() };
        let more = report.message.as_ref().map_or_else(String::new, |m| format!(": {m}"));
        match report.state {
            InstanceState::Starting => format!("it is starting: its health check has not passed yet{more}"),
            InstanceState::Crashed => format!("it crashed, and is started again{more}"),
            InstanceState::Down => format!("it cannot run{more}"),
            InstanceState::Unhealthy => format!("it fails its health check{more}"),
            InstanceState::Stopping => "it is being stopped".into(),
            InstanceState::Up if report.address.is_none() => "it is up, but has no address".into(),
            InstanceState::Up => "it is up, and will be in the next table".into(),
        }
    }
}
