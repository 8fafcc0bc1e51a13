//! Whose an app is, and whether it may be deployed.

use crate::core::{Actor, Controller, invalid};
use crate::db::{Tx, keys};
use flex_api::{ApiError, ErrorId};
use flex_model::{App, AppId, AppLock, Collaborator, User};
use std::sync::Arc;

/// The longest reason of a lock that is kept.
const MAX_REASON: usize = 200;

/// Says whose lock is in the way of new code.
///
/// # Errors
/// The app is locked.
pub fn refuse_locked(app: &App) -> Result<(), ApiError> {
    let Some(lock) = &app.locked else { return Ok(()) };
    let why = if lock.reason.is_empty() { String::new() } else { format!(" ({})", lock.reason) };
    Err(ApiError::new(
        ErrorId::Forbidden,
        format!(
            "{} is locked by {}{why}: nothing can be deployed. Unlock it: flex apps:unlock -a {}",
            app.name, lock.by, app.name
        ),
    ))
}

impl Controller {
    /// Refuses deploys from now on.
    pub async fn lock_app(&self, actor: &Actor, id: AppId, reason: &str) -> Result<Arc<App>, ApiError> {
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        self.update_app(actor, id, "app.lock", |app| {
            if app.locked.is_some() {
                return Ok(None);
            }
            app.locked = Some(AppLock { by: actor.name.clone(), at: self.now(), reason: reason.clone() });
            Ok(Some(if reason.is_empty() { "Locked".to_owned() } else { format!("Locked: {reason}") }))
        })
        .await
    }

    /// Allows deploys again.
    pub async fn unlock_app(&self, actor: &Actor, id: AppId) -> Result<Arc<App>, ApiError> {
        self.update_app(actor, id, "app.unlock", |app| Ok(app.locked.take().map(|_| "Unlocked".to_owned()))).await
    }

    /// Gives an app to another user. Who had it stays a collaborator.
    pub async fn transfer_app(&self, actor: &Actor, id: AppId, to: &User) -> Result<Arc<App>, ApiError> {
        let app = self
            .db
            .retry(|| async {
                let stored = self.read_app(&id.to_string()).await?;
                let before = stored.value.owner;
                if before == to.id {
                    return Err(invalid(format!("{} owns this app already.", to.email)));
                }
                let app = App { owner: to.id, updated_at: self.now(), ..(*stored.value).clone() };
                let stays = Collaborator { app: id, user: before, added_by: actor.id(), created_at: self.now() };
                let event = self.event(actor, Some(id), "app.transfer", format!("Gave {} to {}", app.name, to.email));
                let tx = Tx::new()
                    .unchanged(&stored)
                    .put(stored.key.clone(), &app)
                    .put(keys::collaborator(id, before), &stays)
                    .delete(keys::collaborator(id, to.id))
                    .put(keys::event(&event), &event);
                Ok((tx, Arc::new(app)))
            })
            .await?;
        self.log_api(id, format!("Transferred to {} by user {}", to.email, actor.name));
        Ok(app)
    }
}
