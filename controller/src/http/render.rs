//! Resources as they are sent.

use crate::core::Controller;
use crate::db::DomainRecord;
use flex_api::{
    AccessToken, Account, ApiError, AppRef, Authorization, Buildpack, BuildpackInstallation, Domain, DomainKind, Dyno, DynoState,
    Formation, NameRef, ReleaseRef, SlugRef, TokenUser, UserRef,
};
use flex_model::build::BuildSource;
use flex_model::{
    App, Build, BuildStatus, BuildpackRef, DomainName, Event, InstanceId, InstanceReport, InstanceState, Outcome, Placement,
    PlacementPhase, ProcessScale, ProcessType, Release, ReleaseStatus, Secret, Slug, SshKey, Timestamp, Token, User, UserId,
    Uuid,
};
use flex_scheduler::Pending;
use std::collections::BTreeSet;

/// What stands where a token's text is not shown (any more).
const HIDDEN: &str = "HEROKU_API_KEY_HIDDEN";

pub fn app_ref(app: &App) -> AppRef {
    AppRef { id: app.id, name: app.name.clone() }
}

pub fn user(u: &User) -> Account {
    Account {
        id: u.id,
        email: u.email.clone(),
        name: None,
        allow_tracking: false,
        beta: false,
        created_at: u.created_at.into(),
        default_team: None,
        delinquent_at: None,
        federated: false,
        last_login: None,
        sms_number: None,
        suspended_at: None,
        two_factor_authentication: false,
        updated_at: u.created_at.into(),
        verified: true,
        admin: u.admin,
    }
}

pub fn key(k: &SshKey, owner: &User) -> flex_api::Key {
    flex_api::Key {
        id: k.id,
        email: owner.email.clone(),
        fingerprint: k.fingerprint.clone(),
        public_key: k.public_key.clone(),
        comment: k.comment.clone(),
        created_at: k.created_at.into(),
        updated_at: k.created_at.into(),
    }
}

/// `secret` only when it has just been made.
pub fn token(t: &Token, owner: &User, secret: Option<Secret>, now: Timestamp) -> Authorization {
    Authorization {
        id: t.id,
        description: t.description.clone(),
        scope: t.scope.iter().map(ToString::to_string).collect(),
        access_token: AccessToken {
            id: t.id,
            token: secret.unwrap_or_else(|| Secret::new(HIDDEN)),
            expires_in: t.expires_at.map(|at| at.since(now).as_secs()),
        },
        client: None,
        grant: None,
        refresh_token: None,
        session: None,
        user: TokenUser { id: owner.id, email: owner.email.clone(), full_name: None },
        created_at: t.created_at.into(),
        updated_at: t.created_at.into(),
    }
}

pub fn event(e: &Event) -> flex_api::Event {
    flex_api::Event {
        id: e.id,
        at: e.at.into(),
        actor: e.actor,
        actor_name: e.actor_name.clone(),
        app: e.app,
        from: e.from.clone(),
        outcome: match e.outcome {
            Outcome::Done => "done".into(),
            Outcome::Failed => "failed".into(),
        },
        kind: e.kind.clone(),
        message: e.message.clone(),
    }
}

/// The domain that an app has by its name.
pub fn own_domain(app: &App, hostname: DomainName) -> Domain {
    Domain {
        // The app has one of it, so its id serves.
        id: app.id.0.into(),
        app: app_ref(app),
        hostname,
        kind: DomainKind::Heroku,
        cname: None,
        status: "none".into(),
        sni_endpoint: None,
        acm_status: None,
        acm_status_reason: None,
        created_at: app.created_at.into(),
        updated_at: app.created_at.into(),
    }
}

pub fn domain(d: &DomainRecord, app: &App, target: DomainName) -> Domain {
    Domain {
        id: d.id,
        hostname: d.hostname.clone(),
        kind: DomainKind::Custom,
        cname: Some(target),
        created_at: d.created_at.into(),
        updated_at: d.created_at.into(),
        ..own_domain(app, d.hostname.clone())
    }
}

pub fn formation(app: &App, process: &ProcessType, scale: ProcessScale, size: String, command: Option<String>) -> Formation {
    Formation {
        id: Uuid::new_v5(&app.id.0, process.as_str().as_bytes()),
        app: app_ref(app),
        kind: process.clone(),
        quantity: scale.quantity,
        dyno_size: NameRef::of(&size),
        size,
        cpu_shares: scale.cpu_shares,
        cpu_millis: scale.cpu_millis,
        stopped: scale.quantity > 0 && app.wanted(process).is_empty(),
        command,
        created_at: app.created_at.into(),
        updated_at: app.updated_at.into(),
    }
}

pub fn buildpacks(list: &[BuildpackRef]) -> Vec<BuildpackInstallation> {
    let one = |(ordinal, b): (u32, &BuildpackRef)| BuildpackInstallation { ordinal, buildpack: Buildpack::of(b.as_str()) };
    (0..).zip(list).map(one).collect()
}

/// Heroku's word for a state.
fn state(report: Option<&InstanceReport>) -> DynoState {
    match report.map(|r| r.state) {
        None | Some(InstanceState::Starting) => DynoState::Starting,
        Some(InstanceState::Up) => DynoState::Up,
        Some(InstanceState::Unhealthy | InstanceState::Crashed) => DynoState::Crashed,
        Some(InstanceState::Stopping | InstanceState::Down) => DynoState::Down,
    }
}

pub fn dyno(app: &App, p: &Placement, report: Option<&InstanceReport>, size: String, command: Option<String>) -> Dyno {
    let leaves = matches!(p.phase, PlacementPhase::Draining { .. }).then(|| "draining".to_owned());
    Dyno {
        id: p.instance,
        name: p.name(),
        kind: p.process.clone(),
        app: app_ref(app),
        command: command.unwrap_or_else(|| "(image)".into()),
        size,
        state: state(report),
        release: ReleaseRef { id: p.release, version: p.version },
        attach_url: None,
        created_at: p.created_at.into(),
        updated_at: report.map_or(p.created_at, |r| r.since).into(),
        restarts: report.map_or(0, |r| r.restarts),
        message: report.and_then(|r| r.message.clone()).or(leaves),
    }
}

/// An instance that is wanted and has no place yet: `starting`, as in Heroku's answers, with the reason for the wait.
pub fn pending_dyno(app: &App, p: &Pending, release: &Release, now: Timestamp) -> Dyno {
    let name = format!("{}.{}", p.process, p.index);
    Dyno {
        // Its own comes with its place; until then this one stays the same.
        id: InstanceId(Uuid::new_v5(&release.id.0, name.as_bytes())),
        name,
        kind: p.process.clone(),
        app: app_ref(app),
        command: release.processes.get(&p.process).and_then(|s| s.command.clone()).unwrap_or_else(|| "(image)".into()),
        size: app.formation.get(&p.process).map(|s| s.memory.to_string()).unwrap_or_default(),
        state: DynoState::Starting,
        release: ReleaseRef { id: release.id, version: release.version },
        attach_url: None,
        created_at: now.into(),
        updated_at: now.into(),
        restarts: 0,
        message: Some(format!("cannot be placed: {}", p.why)),
    }
}

impl Controller {
    pub async fn user_ref(&self, id: UserId) -> UserRef {
        UserRef { id, email: self.email_of(id).await }
    }

    pub async fn render_app(&self, a: &App) -> Result<flex_api::App, ApiError> {
        let s = &self.deps.settings;
        let release = match a.good {
            Some(v) => self.find_release(a.id, &v.to_string()).await.ok(),
            None => None,
        };
        let slug = match release.as_ref().and_then(|r| r.slug) {
            Some(id) => self.db.get::<Slug>(&crate::db::keys::slug(a.id, id)).await?,
            None => None,
        };
        let port = if s.ssh_port == 22 { String::new() } else { format!(":{}", s.ssh_port) };
        Ok(flex_api::App {
            id: a.id,
            name: a.name.clone(),
            owner: self.user_ref(a.owner).await,
            acm: a.acm,
            archived_at: None,
            build_stack: NameRef::of(a.stack.as_str()),
            buildpack_provided_description: slug.as_ref().and_then(|s| s.value.buildpack_description.clone()),
            created_at: a.created_at.into(),
            generation: NameRef::of("cedar"),
            git_url: format!("ssh://git@{}{port}/{}.git", s.ssh_host, a.name),
            internal_routing: false,
            maintenance: a.maintenance,
            locked: a.locked.is_some(),
            locked_by: a.locked.as_ref().map(|l| l.by.clone()),
            lock_reason: a.locked.as_ref().map(|l| l.reason.clone()).filter(|r| !r.is_empty()),
            organization: None,
            process_tier: "production".into(),
            region: NameRef::of("local"),
            released_at: release.map(|r| r.created_at.into()),
            repo_size: None,
            slug_size: slug.as_ref().map(|s| s.value.size_bytes),
            space: None,
            stack: NameRef::of(slug.as_ref().map_or(&a.stack, |s| &s.value.stack).as_str()),
            stack_by_hand: a.stack_by_hand,
            team: None,
            updated_at: a.updated_at.into(),
            web_url: self.web_url(a),
            deploy_branches: a.deploy_branches.clone(),
            read_only_root: a.read_only_root,
            stop_grace_seconds: a.stop_grace_seconds,
            access_lines_json: a.access_lines.and_then(|l| l.json),
            access_lines_per_mille: a.access_lines.and_then(|l| l.per_mille),
        })
    }

    /// `targets`: the versions that can be gone back to.
    pub async fn render_release(&self, app: &App, r: &Release, targets: &BTreeSet<u64>) -> flex_api::Release {
        flex_api::Release {
            id: r.id,
            version: r.version,
            app: app_ref(app),
            description: r.description.clone(),
            status: match r.status {
                ReleaseStatus::Pending => flex_api::ReleaseStatus::Pending,
                ReleaseStatus::Succeeded => flex_api::ReleaseStatus::Succeeded,
                ReleaseStatus::Failed => flex_api::ReleaseStatus::Failed,
            },
            current: app.target.or(app.good) == Some(r.version),
            eligible_for_rollback: r.status == ReleaseStatus::Succeeded && targets.contains(&r.version),
            slug: r.slug.map(|id| SlugRef { id }),
            user: self.user_ref(r.user).await,
            addon_plan_names: Vec::new(),
            output_stream_url: r.release_command.is_some().then(|| self.release_output_url(app, r)),
            created_at: r.created_at.into(),
            updated_at: r.updated_at.into(),
            commit: r.commit.clone(),
            processes: r.processes.iter().map(|(p, s)| (p.to_string(), s.command.clone())).collect(),
            release_command: r.release_command.clone(),
            failure: r.failure.clone(),
            superseded_by: r.superseded_by,
        }
    }

    pub async fn render_build(&self, app: &App, b: &Build) -> flex_api::Build {
        let kind = match &b.source {
            BuildSource::Push(_) => "push",
            BuildSource::Archive(_) => "archive",
            BuildSource::Image(_) => "image",
        };
        let release = match b.release {
            Some(v) => self.find_release(app.id, &v.to_string()).await.ok().map(|r| ReleaseRef { id: r.id, version: r.version }),
            None => None,
        };
        let phase =
            |p: &flex_model::PhaseTime| flex_api::PhaseTime { phase: p.phase.to_string().replace(' ', "_"), millis: p.millis };
        let secret = self.output_secret(app.id, b.id);
        flex_api::Build {
            id: b.id,
            app: app_ref(app),
            status: match b.status {
                BuildStatus::Queued | BuildStatus::Running => flex_api::BuildStatus::Pending,
                BuildStatus::Succeeded => flex_api::BuildStatus::Succeeded,
                BuildStatus::Failed => flex_api::BuildStatus::Failed,
            },
            stack: b.stack.to_string(),
            user: self.user_ref(b.user).await,
            source_blob: flex_api::BuildSource {
                url: kind.into(),
                version: b.source_version.clone(),
                version_description: None,
                checksum: None,
            },
            slug: b.slug.map(|id| SlugRef { id }),
            release,
            buildpacks: b.buildpacks.iter().map(Buildpack::of).collect(),
            output_stream_url: format!("{}/build-output/{}/{}/{secret}", self.deps.settings.api_url, app.id, b.id),
            created_at: b.created_at.into(),
            updated_at: b.updated_at.into(),
            phases: b.phases.iter().map(phase).collect(),
            error: b.error.clone(),
        }
    }
}
