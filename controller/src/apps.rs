//! Apps: making, changing and destroying them; formation, domains, collaborators.

use crate::core::{Actor, Controller, invalid, not_found};
use crate::crypt::random;
use crate::db::{DomainRecord, Stored, Tx, keys};
use flex_api::{ApiError, Quantity};
use flex_model::{
    App, AppId, AppName, BuildpackRef, Collaborator, DomainName, Email, Memory, ProcessScale, ProcessType, StackName, User,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Seconds between SIGTERM and SIGKILL, as Heroku's.
const STOP_GRACE_SECONDS: u32 = 30;

/// Process types that may be scaled before the first deploy tells which there are.
const MOST_BEFORE_CODE: usize = 50;

/// A change of one process type's scale, as clients give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleChange {
    pub process: ProcessType,
    pub quantity: Option<Quantity>,
    pub memory: Option<Memory>,
    pub cpu_shares: Option<u32>,
    /// 0 takes the limit away.
    pub cpu_millis: Option<u32>,
}

impl Controller {
    pub async fn create_app(&self, actor: &Actor, name: Option<AppName>, stack: Option<StackName>) -> Result<Arc<App>, ApiError> {
        let now = self.now();
        let given = name.is_some();
        if let Some(stack) = &stack {
            self.refuse_unknown_stack(stack)?;
        }
        let mut app = App {
            id: self.id(),
            name: match name {
                Some(n) => n,
                None => self.made_up_name()?,
            },
            owner: actor.id(),
            stack_by_hand: stack.is_some(),
            stack: stack.unwrap_or_else(|| self.deps.settings.stack.clone()),
            created_at: now,
            updated_at: now,
            maintenance: false,
            formation: BTreeMap::new(),
            deploy_branches: vec!["main".into(), "master".into()],
            buildpacks: Vec::new(),
            checks: BTreeMap::new(),
            config_rev: 0,
            last_version: 0,
            target: None,
            good: None,
            restarts: BTreeMap::new(),
            stopped: BTreeSet::new(),
            locked: None,
            stop_grace_seconds: STOP_GRACE_SECONDS,
            read_only_root: false,
            acm: false,
            canary: None,
            access_lines: None,
        };
        loop {
            let by_name = keys::app_name(&app.name);
            let event = self.event(actor, Some(app.id), "app.create", format!("Created {}", app.name));
            let tx =
                Tx::new().absent(&by_name).put(by_name, &app.id).put(keys::app(app.id), &app).put(keys::event(&event), &event);
            match self.db.commit(tx).await {
                Ok(_) => break,
                Err(crate::db::CommitError::Conflict(_)) if given => {
                    return Err(invalid(format!("Name {} is already taken", app.name)));
                }
                Err(crate::db::CommitError::Conflict(_)) => app.name = self.made_up_name()?,
                Err(crate::db::CommitError::Api(e)) => return Err(e),
            }
        }
        self.log_api(app.id, format!("Initial release by user {}", actor.name));
        self.nudge();
        Ok(Arc::new(app))
    }

    /// The stacks to build on, by name. That of new apps is among them although nobody may have made it yet.
    pub fn stacks(&self) -> BTreeSet<StackName> {
        self.deps.builders.stacks().into_iter().chain([self.deps.settings.stack.clone()]).collect()
    }

    /// # Errors
    /// It is not there; says which are.
    pub fn refuse_unknown_stack(&self, stack: &StackName) -> Result<(), ApiError> {
        let known = self.stacks();
        if known.contains(stack) {
            return Ok(());
        }
        let names: Vec<&str> = known.iter().map(StackName::as_str).collect();
        Err(invalid(format!("There is no stack {stack} here. There are: {}", names.join(", "))))
    }

    fn made_up_name(&self) -> Result<AppName, ApiError> {
        const FIRST: [&str; 16] = [
            "amber", "bold", "calm", "dawn", "early", "fresh", "gentle", "hidden", "ivory", "jolly", "keen", "lucky", "misty",
            "noble", "quiet", "swift",
        ];
        const SECOND: [&str; 16] = [
            "bay", "brook", "cliff", "dune", "field", "forest", "glade", "harbor", "island", "lake", "meadow", "peak", "reef",
            "river", "stone", "valley",
        ];
        let [a, b, c, d] = random::<4>();
        let name =
            format!("{}-{}-{:05}", FIRST[usize::from(a) % 16], SECOND[usize::from(b) % 16], u32::from(c) * 256 + u32::from(d));
        name.parse().map_err(invalid)
    }

    /// Changes an app in one commit with its event. `change` says nothing when there is nothing to change.
    pub async fn update_app(
        &self,
        actor: &Actor,
        id: AppId,
        kind: &str,
        change: impl Fn(&mut App) -> Result<Option<String>, ApiError> + Send + Sync,
    ) -> Result<Arc<App>, ApiError> {
        let app = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let mut app = (*stored.value).clone();
                let Some(message) = change(&mut app)? else { return Ok((Tx::new(), stored.value)) };
                app.updated_at = self.now();
                let event = self.event(actor, Some(id), kind, message);
                let tx = Tx::new().unchanged(&stored).put(stored.key.clone(), &app).put(keys::event(&event), &event);
                Ok((tx, Arc::new(app)))
            })
            .await?;
        self.nudge();
        Ok(app)
    }

    pub async fn rename_app(&self, actor: &Actor, id: AppId, name: &AppName) -> Result<Arc<App>, ApiError> {
        let app = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                if stored.value.name == *name {
                    return Ok((Tx::new(), stored.value));
                }
                let by_name = keys::app_name(name);
                if self.db.get::<AppId>(&by_name).await?.is_some() {
                    return Err(invalid(format!("Name {name} is already taken")));
                }
                let app = App { name: name.clone(), updated_at: self.now(), ..(*stored.value).clone() };
                let event = self.event(actor, Some(id), "app.rename", format!("Renamed {} to {name}", stored.value.name));
                let tx = Tx::new()
                    .unchanged(&stored)
                    .absent(&by_name)
                    .put(by_name.clone(), &id)
                    .delete(keys::app_name(&stored.value.name))
                    .put(stored.key.clone(), &app)
                    .put(keys::event(&event), &event);
                Ok((tx, Arc::new(app)))
            })
            .await?;
        self.nudge();
        Ok(app)
    }

    /// Destroys an app. First the app itself, in one commit; then what only it needed, which nothing reaches any more.
    pub async fn destroy_app(&self, actor: &Actor, id: AppId) -> Result<Arc<App>, ApiError> {
        let app = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let event = self.event(actor, Some(id), "app.destroy", format!("Destroyed {}", stored.value.name));
                let tx = Tx::new()
                    .unchanged(&stored)
                    .delete(stored.key.clone())
                    .delete(keys::app_name(&stored.value.name))
                    .put(keys::event(&event), &event);
                Ok((tx, stored.value))
            })
            .await?;
        self.cancel_builds_of(id).await;
        self.nudge();
        if let Err(e) = self.sweep_app(id).await {
            tracing::warn!(app = %id, error = %e, "remains of a destroyed app are left; they are removed at the next start");
        }
        Ok(app)
    }

    /// Removes what is left of an app that is gone.
    pub async fn sweep_app(&self, id: AppId) -> Result<(), ApiError> {
        let mut gone = vec![keys::postdeploy(id), keys::log_retention(id), keys::routing(id)];
        for prefix in [
            keys::collaborators(id),
            keys::releases(id),
            keys::slugs(id),
            keys::builds(id),
            keys::configs(id),
            keys::certificates(id),
            keys::drains(id),
            keys::runs(id),
            keys::history(id),
        ] {
            let (entries, _) =
                self.deps.store.list(&prefix).await.map_err(|e| ApiError::new(flex_api::ErrorId::Unavailable, e.to_string()))?;
            gone.extend(entries.into_iter().map(|e| e.key.to_string()));
        }
        for d in self.domains_of(id).await? {
            gone.push(keys::domain(&d.hostname));
        }
        for r in self.routes_of(id).await? {
            gone.push(keys::route_match(&r.value.route.matches));
            gone.push(r.key);
        }
        for chunk in gone.chunks(50) {
            let tx = chunk.iter().fold(Tx::new(), |tx, key| tx.delete(key.clone()));
            self.db.commit(tx).await.map_err(crate::core_error)?;
        }
        self.apply_drains().await?;
        let _ = self.deps.logs.drop_app(id).await;
        let _ = tokio::fs::remove_dir_all(self.build_dir(id)).await;
        let _ = tokio::fs::remove_dir_all(self.repository_path(id)).await;
        self.deps.builders.remove_app(id).await.map_err(|e| ApiError::new(flex_api::ErrorId::Unavailable, e))
    }

    /// Changes how many there are to be of process types, and how large. `ahead`: before the first deploy also of types that it
    /// has yet to bring.
    pub async fn scale(&self, actor: &Actor, id: AppId, changes: &[ScaleChange], ahead: bool) -> Result<Arc<App>, ApiError> {
        let known = self.process_types(id).await?;
        self.update_app(actor, id, "formation.update", |app| {
            let before = app.formation.clone();
            for c in changes {
                let may_come = ahead && known.is_empty();
                if !known.contains(&c.process) && !app.formation.contains_key(&c.process) && !may_come {
                    let todo = if known.is_empty() {
                        "There is no code yet. Deploy first: git push flex main".to_owned()
                    } else {
                        let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                        format!("There are: {}", known.join(", "))
                    };
                    return Err(not_found(format!("Couldn't find that process type ({}). {todo}", c.process)));
                }
                if known.is_empty() && (c.process.is_release_phase() || app.formation.len() >= MOST_BEFORE_CODE) {
                    return Err(invalid(format!("{} cannot be scaled before there is code.", c.process)));
                }
                let scale = app.formation.entry(c.process.clone()).or_insert(ProcessScale::default_for(0));
                if let Some(q) = c.quantity {
                    let n = match q {
                        Quantity::To(n) => i64::from(n),
                        Quantity::By(d) => i64::from(scale.quantity).saturating_add(d),
                    };
                    scale.quantity = u32::try_from(n).ok().filter(|n| *n <= flex_model::app::MAX_QUANTITY).ok_or_else(|| {
                        invalid(format!("{} cannot be scaled to {n}: use 0 to {}.", c.process, flex_model::app::MAX_QUANTITY))
                    })?;
                }
                if let Some(m) = c.memory {
                    scale.memory = m;
                }
                if let Some(shares) = c.cpu_shares {
                    scale.cpu_shares = shares;
                }
                if let Some(millis) = c.cpu_millis {
                    scale.cpu_millis = Some(millis).filter(|m| *m > 0);
                }
            }
            let said: Vec<String> = app
                .formation
                .iter()
                .filter(|(p, s)| before.get(*p) != Some(s))
                .map(|(p, s)| format!("{p}@{}:{}", s.quantity, s.memory))
                .collect();
            Ok((!said.is_empty()).then(|| format!("Scaled to {}", said.join(" "))))
        })
        .await
        .inspect(|app| {
            let now: Vec<_> = app.formation.iter().map(|(p, s)| format!("{p}@{}:{}", s.quantity, s.memory)).collect();
            self.log_api(id, format!("Scaled to {} by user {}", now.join(" "), actor.name));
        })
    }

    /// The process types of what an app runs or will run.
    pub async fn process_types(&self, id: AppId) -> Result<Vec<ProcessType>, ApiError> {
        let app = self.find_app(&id.to_string()).await?;
        let Some(version) = app.target.or(app.good) else { return Ok(Vec::new()) };
        let release = self.db.get::<flex_model::Release>(&keys::release(id, version)).await?;
        Ok(release.map(|r| r.value.processes.keys().filter(|p| !p.is_release_phase()).cloned().collect()).unwrap_or_default())
    }

    /// Asks for new instances in place of those of a process type, of one instance, or of all (an empty name).
    pub async fn restart(&self, actor: &Actor, id: AppId, which: &str) -> Result<(), ApiError> {
        let now = self.now();
        self.update_app(actor, id, "ps.restart", |app| {
            app.restarts.insert(which.to_owned(), now);
            // One entry a name is enough; names that were scaled away add up otherwise.
            if app.restarts.len() > 100 {
                app.restarts.retain(|_, t| now.since(*t).as_secs() < 3600);
            }
            Ok(Some(if which.is_empty() { "Restarted all".into() } else { format!("Restarted {which}") }))
        })
        .await?;
        self.log_api(id, format!("Restart {} by user {}", if which.is_empty() { "all" } else { which }, actor.name));
        Ok(())
    }

    pub async fn set_buildpacks(&self, actor: &Actor, id: AppId, list: Vec<BuildpackRef>) -> Result<Arc<App>, ApiError> {
        self.update_app(actor, id, "buildpacks.update", |app| {
            let message =
                if list.is_empty() { "Cleared the buildpacks".to_owned() } else { format!("Set the buildpacks to {list:?}") };
            Ok((app.buildpacks != list).then(|| {
                app.buildpacks.clone_from(&list);
                message
            }))
        })
        .await
    }

    pub async fn domains_of(&self, id: AppId) -> Result<Vec<Arc<DomainRecord>>, ApiError> {
        let all = self.db.list::<DomainRecord>(keys::DOMAINS).await?;
        Ok(all.into_iter().map(|s| s.value).filter(|d| d.app == id).collect())
    }

    /// `NAME.DOMAIN`.
    pub fn default_domain(&self, name: &AppName) -> DomainName {
        let text = format!("{name}.{}", self.deps.settings.domain);
        text.parse().unwrap_or_else(|_| self.deps.settings.domain.clone())
    }

    /// Gives an app a name. `user` is who asks: names that cover one another may be of apps that one person works on.
    pub async fn add_domain(
        &self,
        actor: &Actor,
        user: Option<&User>,
        app: &App,
        hostname: DomainName,
    ) -> Result<Arc<DomainRecord>, ApiError> {
        let record = DomainRecord { id: self.id(), app: app.id, hostname, created_at: self.now() };
        let key = keys::domain(&record.hostname);
        self.db
            .retry(|| async {
                if let Some(other) = self.db.get::<DomainRecord>(&key).await? {
                    let mine = other.value.app == app.id;
                    let what = if mine { "is already added to this app" } else { "is already in use by another app" };
                    return Err(invalid(format!("Domain {} {what}.", record.hostname)));
                }
                let event = self.event(actor, Some(app.id), "domain.create", format!("Added domain {}", record.hostname));
                self.find_app(&app.id.to_string()).await?;
                let tx = self.after_other_names(Tx::new().present(&keys::app(app.id)).absent(&key)).await?;
                self.check_hostname(user, app, &record.hostname).await?;
                Ok((tx.put(key.clone(), &record).put(keys::event(&event), &event), ()))
            })
            .await?;
        self.nudge();
        Ok(Arc::new(record))
    }

    pub async fn remove_domain(&self, actor: &Actor, app: &App, hostname_or_id: &str) -> Result<Arc<DomainRecord>, ApiError> {
        let all = self.domains_of(app.id).await?;
        let found =
            all.into_iter().find(|d| d.hostname.as_str() == hostname_or_id.to_lowercase() || d.id.to_string() == hostname_or_id);
        let domain = found.ok_or_else(|| not_found("Couldn't find that domain name."))?;
        let event = self.event(actor, Some(app.id), "domain.delete", format!("Removed domain {}", domain.hostname));
        let tx = Tx::new().delete(keys::domain(&domain.hostname)).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        self.nudge();
        Ok(domain)
    }

    pub async fn collaborators_of(&self, id: AppId) -> Result<Vec<Arc<Collaborator>>, ApiError> {
        Ok(self.db.list::<Collaborator>(&keys::collaborators(id)).await?.into_iter().map(|s| s.value).collect())
    }

    pub async fn add_collaborator(&self, actor: &Actor, app: &App, who: &User) -> Result<Arc<Collaborator>, ApiError> {
        if who.id == app.owner {
            return Err(invalid(format!("{} owns this app.", who.email)));
        }
        let key = keys::collaborator(app.id, who.id);
        let c = Collaborator { app: app.id, user: who.id, added_by: actor.id(), created_at: self.now() };
        self.db
            .retry(|| async {
                if self.db.get::<Collaborator>(&key).await?.is_some() {
                    return Err(invalid(format!("{} is a collaborator already.", who.email)));
                }
                let event = self.event(actor, Some(app.id), "collaborator.create", format!("Added collaborator {}", who.email));
                self.find_app(&app.id.to_string()).await?;
                let tx = Tx::new().present(&keys::app(app.id)).absent(&key);
                Ok((tx.put(key.clone(), &c).put(keys::event(&event), &event), ()))
            })
            .await?;
        Ok(Arc::new(c))
    }

    pub async fn remove_collaborator(&self, actor: &Actor, app: &App, who: &Email) -> Result<Arc<Collaborator>, ApiError> {
        let missing = || not_found("Couldn't find that collaborator.");
        let user = self.user_by_email(who).await?.ok_or_else(missing)?;
        let found: Stored<Arc<Collaborator>> = self.db.get(&keys::collaborator(app.id, user.id)).await?.ok_or_else(missing)?;
        let event = self.event(actor, Some(app.id), "collaborator.delete", format!("Removed collaborator {who}"));
        let tx = Tx::new().unchanged(&found).delete(found.key.clone()).put(keys::event(&event), &event);
        self.db.commit(tx).await.map_err(crate::core_error)?;
        Ok(found.value)
    }
}
