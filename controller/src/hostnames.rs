//! Whose host names are. A wildcard gets the requests of every name below it that nobody has, and its owner could take the
//! others' too by passing TLS through: so names that cover one another belong to people who work together.
//!
//! Invariant: of two names that are added at one time, where one covers the other, the second to be committed saw the first.

use crate::core::{Controller, invalid};
use crate::db::{DomainRecord, Tx, keys};
use flex_api::ApiError;
use flex_model::{App, DomainName, User};
use std::sync::Arc;

impl Controller {
    /// Refuses a name that the platform needs, or that covers (or is covered by) a name of an app that is none of `user`'s.
    pub(crate) async fn check_hostname(&self, user: Option<&User>, app: &App, name: &DomainName) -> Result<(), ApiError> {
        let own = &self.deps.settings.domain;
        if name == own || name.as_str().ends_with(&format!(".{own}")) {
            return Err(invalid(format!("{name} belongs to the platform: names under {own} are the apps' own.")));
        }
        self.check_cover(user, app, name).await
    }

    /// The same for a name under the platform's domain too, such as an app's own.
    pub(crate) async fn check_cover(&self, user: Option<&User>, app: &App, name: &DomainName) -> Result<(), ApiError> {
        let own = &self.deps.settings.domain;
        let is_wildcard = name.as_str().starts_with("*.");
        if is_wildcard && name.covers(own) {
            return Err(invalid(format!("{name} covers {own}, the platform's domain.")));
        }
        if is_wildcard && name.labels() < 2 {
            return Err(invalid(format!("{name} is too wide: a wildcard has a domain behind it, such as *.example.com.")));
        }
        let others: Vec<Arc<DomainRecord>> = if is_wildcard {
            let all = self.db.list::<DomainRecord>(keys::DOMAINS).await?;
            all.into_iter().map(|s| s.value).filter(|d| name.covers(&d.hostname) || d.hostname.covers(name)).collect()
        } else {
            let mut above = Vec::new();
            for wildcard in name.wildcards() {
                above.extend(self.db.get::<DomainRecord>(&keys::domain(&wildcard)).await?.map(|s| s.value));
            }
            above
        };
        for other in others.iter().filter(|d| d.app != app.id) {
            let Some(theirs) = self.app_if_any(other).await? else { continue };
            let together = theirs.owner == app.owner
                || match user {
                    Some(user) => self.role_in(user, &theirs).await?.is_some(),
                    None => false,
                };
            if !together {
                let (wide, narrow) = if name.covers(&other.hostname) { (name, &other.hostname) } else { (&other.hostname, name) };
                return Err(invalid(format!(
                    "{wide} covers {narrow}, and the two would belong to apps of different owners. Ask the owner of the other \
                     app to work on it together, or use names that do not cover one another."
                )));
            }
        }
        Ok(())
    }

    async fn app_if_any(&self, domain: &DomainRecord) -> Result<Option<Arc<App>>, ApiError> {
        Ok(self.db.get::<App>(&keys::app(domain.app)).await?.map(|s| s.value))
    }

    /// Adds to a commit that adds a name what makes another such commit, at the same time, look again.
    pub(crate) async fn after_other_names(&self, tx: Tx) -> Result<Tx, ApiError> {
        let turn = self.db.get::<u64>(keys::HOSTNAMES_TURN).await?;
        let next = turn.as_ref().map_or(0, |t| *t.value) + 1;
        let tx = match &turn {
            Some(turn) => tx.unchanged(turn),
            None => tx.absent(keys::HOSTNAMES_TURN),
        };
        Ok(tx.put(keys::HOSTNAMES_TURN, &next))
    }
}
