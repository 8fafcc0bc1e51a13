//! The installation itself: how it is, what it has, what happened in it, and what its errors mean.

use super::answer::{Answer, Failure, Listed, Markdown, Shown};
use super::list::{Key, Range};
use super::render;
use crate::core::{Controller, lock, not_found};
use crate::db::keys;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::IntoResponse;
use flex_api::{ApiError, Check, ErrorId, Health, NameRef, Nothing, Provider, Region, Server, SshServer, Stack};
use flex_model::{Event, Host, HostState};

pub async fn nothing_here() -> Answer<Shown<Nothing>> {
    Err(not_found("The requested API endpoint was not found.").into())
}

pub async fn health(State(c): State<Controller>) -> Answer<Shown<Health>> {
    // Answers only when the store does.
    match c.find_app("00000000-0000-0000-0000-000000000000").await {
        Err(e) if e.id != ErrorId::NotFound => Err(e.into()),
        _ => Ok(Shown(Health { status: "ok".into() })),
    }
}

pub async fn error_page(Path(id): Path<String>) -> Answer<Markdown> {
    let found = ErrorId::ALL.into_iter().find(|e| e.name() == id);
    let page = found.ok_or_else(|| not_found("There is no error of that name."))?.page();
    Ok(Markdown(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], page).into_response()))
}

pub async fn info(State(c): State<Controller>) -> Answer<Shown<Server>> {
    let s = &c.deps.settings;
    let checks = c.deps.machine.checks().await;
    let check = |(what, problem): (String, Option<(String, String)>)| {
        let (problem, remedy) = problem.unzip();
        Check { what, ok: problem.is_none(), problem, remedy }
    };
    Ok(Shown(Server {
        version: s.version.clone(),
        domain: s.domain.to_string(),
        ssh: SshServer { host: s.ssh_host.clone(), port: s.ssh_port, host_key: s.ssh_host_key.clone() },
        checks: checks.into_iter().map(check).collect(),
    }))
}

/// A part of the history, oldest first unless asked for otherwise.
pub fn history(range: &Range, events: Vec<Event>) -> Answer<Listed<flex_api::Event>> {
    range.page(events, |e| e.id.to_string(), &[("at", |e| Key::Time(e.at))])?.show(|e| render::event(&e))
}

pub async fn events(State(c): State<Controller>, range: Range) -> Answer<Listed<flex_api::Event>> {
    let all = c.db.list::<Event>(keys::EVENTS).await?;
    history(&range, all.into_iter().map(|e| (*e.value).clone()).collect())
}

pub async fn hosts(State(c): State<Controller>, range: Range) -> Answer<Listed<flex_api::Host>> {
    let hosts = c.db.list::<Host>(keys::HOSTS).await?;
    let reports = lock(&c.reports).clone();
    range.page(hosts, |h| h.value.id.to_string(), &[("name", |h| Key::Text(h.value.name.clone()))])?.show(|h| {
        let (h, report) = (&h.value, reports.get(&h.value.id));
        let state = match h.state {
            HostState::Ready => "ready",
            HostState::Cordoned => "cordoned",
            HostState::Dead => "dead",
        };
        flex_api::Host {
            id: h.id,
            name: h.name.clone(),
            state: state.into(),
            memory: h.memory.bytes(),
            cpu_millis: h.cpu_millis,
            labels: h.labels.clone(),
            instances: report.map_or(0, |r| r.report.instances.len() as u64),
            reported_at: report.map(|r| r.report.at.into()),
            created_at: h.created_at.into(),
        }
    })
}

pub async fn stacks(State(c): State<Controller>, range: Range) -> Answer<Listed<Stack>> {
    let all = c.stacks().into_iter().map(|stack| {
        let NameRef { id, name } = NameRef::of(stack.as_str());
        Stack { id, name, state: "public".into(), default: stack == c.deps.settings.stack }
    });
    range.page(all.collect(), |s| s.id.clone(), &[])?.show(|s| s)
}

pub async fn regions(range: Range) -> Answer<Listed<Region>> {
    let here = Region {
        id: "local".into(),
        name: "local".into(),
        description: "This installation".into(),
        country: String::new(),
        locale: String::new(),
        private_capable: false,
        provider: Provider { name: "flex".into(), region: "local".into() },
    };
    range.page(vec![here], |r| r.id.clone(), &[])?.show(|r| r)
}

/// A failure of something that the server itself needs.
pub fn unavailable(e: impl std::fmt::Display) -> Failure {
    Failure(ApiError::new(ErrorId::Unavailable, e.to_string()))
}
