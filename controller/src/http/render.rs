//! Resources as Heroku's clients read them.

use crate::core::Controller;
use crate::db::DomainRecord;
use flex_api::ApiError;
use flex_model::build::BuildSource;
use flex_model::{
    App, Build, BuildStatus, BuildpackRef, Event, InstanceReport, InstanceState, Placement, ProcessScale, ProcessType, Release,
    ReleaseStatus, SshKey, Timestamp, Token, User,
};
use serde_json::{Value, json};

fn at(t: Timestamp) -> String {
    t.rfc3339_seconds()
}

pub fn user(u: &User) -> Value {
    json!({ "id": u.id, "email": u.email, "name": null, "admin": u.admin, "verified": true, "two_factor_authentication": false, "created_at": at(u.created_at), "updated_at": at(u.created_at) })
}

pub fn key(k: &SshKey, owner: &User) -> Value {
    json!({ "id": k.id, "email": owner.email, "fingerprint": k.fingerprint, "public_key": k.public_key, "comment": k.comment, "created_at": at(k.created_at), "updated_at": at(k.created_at) })
}

/// `secret` only when it has just been made.
pub fn token(t: &Token, owner: &User, secret: Option<&str>) -> Value {
    json!({
        "id": t.id, "description": t.description, "scope": ["global"], "created_at": at(t.created_at), "updated_at": at(t.created_at),
        "access_token": { "id": t.id, "token": secret.unwrap_or("HEROKU_API_KEY_HIDDEN"), "expires_in": null },
        "user": { "id": owner.id, "email": owner.email, "full_name": null }
    })
}

pub fn event(e: &Event) -> Value {
    json!({ "id": e.id, "at": at(e.at), "actor": e.actor, "actor_name": e.actor_name, "app": e.app, "kind": e.kind, "message": e.message })
}

pub fn domain(d: &DomainRecord, app: &App, target: &str) -> Value {
    json!({ "id": d.id, "app": { "id": app.id, "name": app.name }, "hostname": d.hostname, "kind": "custom", "cname": target, "status": "none", "sni_endpoint": null, "acm_status": null, "created_at": at(d.created_at), "updated_at": at(d.created_at) })
}

pub fn formation(app: &App, process: &ProcessType, scale: ProcessScale, command: Option<&str>) -> Value {
    json!({ "app": { "id": app.id, "name": app.name }, "type": process, "quantity": scale.quantity, "size": scale.memory.to_string(), "command": command, "created_at": at(app.created_at), "updated_at": at(app.updated_at) })
}

pub fn buildpack(i: usize, b: &BuildpackRef) -> Value {
    json!({ "ordinal": i, "buildpack": { "name": b.as_str(), "url": b.as_str() } })
}

/// Heroku's word for a state.
fn state(report: Option<&InstanceReport>) -> &'static str {
    match report.map(|r| r.state) {
        None | Some(InstanceState::Starting) => "starting",
        Some(InstanceState::Up) => "up",
        Some(InstanceState::Unhealthy | InstanceState::Crashed) => "crashed",
        Some(InstanceState::Stopping | InstanceState::Down) => "down",
    }
}

pub fn dyno(app: &App, p: &Placement, report: Option<&InstanceReport>, command: Option<&str>) -> Value {
    let since = report.map_or(p.created_at, |r| r.since);
    json!({
        "id": p.instance, "name": p.name(), "type": p.process, "size": p.memory.to_string(), "command": command.unwrap_or("(image)"), "state": state(report),
        "app": { "id": app.id, "name": app.name }, "release": { "id": p.release, "version": p.version }, "attach_url": null,
        "created_at": at(p.created_at), "updated_at": at(since),
        "restarts": report.map_or(0, |r| r.restarts), "message": report.and_then(|r| r.message.clone())
    })
}

impl Controller {
    pub async fn render_app(&self, a: &App) -> Result<Value, ApiError> {
        let s = &self.deps.settings;
        let owner = self.email_of(a.owner).await;
        let release = match a.good {
            Some(v) => self.find_release(a.id, &v.to_string()).await.ok(),
            None => None,
        };
        let slug = match release.and_then(|r| r.slug) {
            Some(id) => self.db.get::<flex_model::Slug>(&crate::db::keys::slug(a.id, id)).await?,
            None => None,
        };
        let port = if s.ssh_port == 22 { String::new() } else { format!(":{}", s.ssh_port) };
        Ok(json!({
            "id": a.id, "name": a.name, "owner": { "id": a.owner, "email": owner }, "stack": { "name": a.stack, "id": a.stack }, "build_stack": { "name": a.stack, "id": a.stack },
            "region": { "name": "local", "id": "local" }, "web_url": self.web_url(a), "git_url": format!("ssh://git@{}{port}/{}.git", s.ssh_host, a.name),
            "maintenance": a.maintenance, "created_at": at(a.created_at), "updated_at": at(a.updated_at), "released_at": a.good.map(|_| at(a.updated_at)),
            "slug_size": slug.map(|s| s.value.size_bytes), "repo_size": null, "archived_at": null, "buildpack_provided_description": null,
            "acm": false, "space": null, "team": null, "organization": null, "internal_routing": false, "process_tier": "production", "generation": { "name": "cedar" },
            "deploy_branches": a.deploy_branches
        }))
    }

    /// `targets`: the versions that can be gone back to.
    pub async fn render_release(&self, app: &App, r: &Release, targets: &std::collections::BTreeSet<u64>) -> Value {
        let status = match r.status {
            ReleaseStatus::Pending => "pending",
            ReleaseStatus::Succeeded => "succeeded",
            ReleaseStatus::Failed => "failed",
        };
        let current = app.target.or(app.good) == Some(r.version);
        json!({
            "id": r.id, "version": r.version, "description": r.description, "status": status, "user": { "id": r.user, "email": self.email_of(r.user).await },
            "app": { "id": app.id, "name": app.name }, "slug": r.slug.map(|id| json!({ "id": id })), "addon_plan_names": [], "current": current,
            "eligible_for_rollback": r.status == ReleaseStatus::Succeeded && targets.contains(&r.version), "output_stream_url": null,
            "commit": r.commit, "failure": r.failure, "created_at": at(r.created_at), "updated_at": at(r.updated_at)
        })
    }

    pub async fn render_build(&self, app: &App, b: &Build) -> Value {
        let status = match b.status {
            BuildStatus::Queued | BuildStatus::Running => "pending",
            BuildStatus::Succeeded => "succeeded",
            BuildStatus::Failed => "failed",
        };
        let kind = match &b.source {
            BuildSource::Push(_) => "push",
            BuildSource::Archive(_) => "archive",
            BuildSource::Image(_) => "image",
        };
        let release = match b.release {
            Some(v) => self.find_release(app.id, &v.to_string()).await.ok().map(|r| json!({ "id": r.id, "version": v })),
            None => None,
        };
        let packs: Vec<Value> = b.buildpacks.iter().map(|n| json!({ "name": n, "url": n })).collect();
        json!({
            "id": b.id, "app": { "id": app.id, "name": app.name }, "status": status, "stack": b.stack, "user": { "id": b.user, "email": self.email_of(b.user).await },
            "source_blob": { "url": kind, "version": b.source_version, "checksum": null }, "slug": b.slug.map(|id| json!({ "id": id })), "release": release,
            "buildpacks": packs, "phases": b.phases, "error": b.error,
            "output_stream_url": format!("{}/build-output/{}/{}/{}", self.deps.settings.api_url, app.id, b.id, self.output_secret(app.id, b.id)),
            "created_at": at(b.created_at), "updated_at": at(b.updated_at)
        })
    }
}
