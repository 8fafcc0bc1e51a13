//! How a routing table goes to a router elsewhere: once as a whole, then what changed. A change says which table it is a
//! change of; a router that has another asks for the whole again.

use crate::{AppId, AppRoute, RouteTable, Secret, TABLE_FORMAT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One line to a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TableUpdate {
    /// The whole table, in this form (see [`TABLE_FORMAT`]).
    Whole { format: u32, table: Arc<RouteTable> },
    Change {
        format: u32,
        /// The revision that it changes.
        from: u64,
        revision: u64,
        /// Apps that are new or differ.
        changed: Vec<Arc<AppRoute>>,
        gone: Vec<AppId>,
        #[serde(default)]
        cookie_key: Option<Secret>,
    },
    /// Nothing changed for a while: the connection stands.
    Alive,
}

/// Why an update was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    #[error("the control plane is newer: it sends tables of form {0}, and this flexd reads up to {TABLE_FORMAT}")]
    Newer(u32),
    #[error("a change of revision {0} came, and the table here is another")]
    Gap(u64),
}

impl TableUpdate {
    pub fn whole(table: Arc<RouteTable>) -> Self {
        Self::Whole { format: TABLE_FORMAT, table }
    }

    /// What changed between two tables.
    pub fn between(before: &RouteTable, after: &RouteTable) -> Self {
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for (old, new) in before.differences(after) {
            match new {
                Some(app) => changed.push(app),
                None => gone.extend(old.map(|a| a.app)),
            }
        }
        let (from, revision, cookie_key) = (before.revision, after.revision, after.cookie_key.clone());
        Self::Change { format: TABLE_FORMAT, from, revision, changed, gone, cookie_key }
    }

    /// The table after this update; none: it is the same.
    ///
    /// # Errors
    /// A newer form, or a change of another table.
    pub fn apply(self, before: &RouteTable) -> Result<Option<RouteTable>, UpdateError> {
        match self {
            Self::Alive => Ok(None),
            Self::Whole { format, .. } | Self::Change { format, .. } if format > TABLE_FORMAT => Err(UpdateError::Newer(format)),
            Self::Whole { table, .. } => Ok(Some(before.shared_with(&table))),
            Self::Change { from, .. } if from != before.revision => Err(UpdateError::Gap(from)),
            Self::Change { revision, changed, gone, cookie_key, .. } => {
                let gone: BTreeSet<AppId> = gone.into_iter().collect();
                Ok(Some(RouteTable { cookie_key, ..before.with(revision, changed, &gone) }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppState, Uuid};

    fn app(n: u128, domain: &str) -> AppRoute {
        let domains = vec![domain.parse().unwrap()];
        AppRoute::new(AppId(Uuid::from_u128(n)), "app".parse().unwrap(), domains, AppState::Serving, vec![])
    }

    #[test]
    fn a_change_leads_from_one_table_to_the_other_and_from_no_third() {
        let one = RouteTable::new(1, [app(1, "a.b"), app(2, "b.b"), app(3, "c.b")]);
        let mut two = RouteTable::new(7, [app(1, "a.b"), app(2, "x.b"), app(4, "d.b")]);
        two.cookie_key = Some(Secret::new("k"));
        let change = TableUpdate::between(&one, &two);
        let TableUpdate::Change { changed, gone, .. } = &change else { panic!("{change:?}") };
        assert_eq!((changed.len(), gone.len()), (2, 1));
        let text = serde_json::to_string(&change).unwrap();
        let read: TableUpdate = serde_json::from_str(&text).unwrap();
        assert_eq!(read.clone().apply(&one).unwrap(), Some(two.clone()));
        assert_eq!(read.apply(&two), Err(UpdateError::Gap(1)));
        assert_eq!(TableUpdate::Alive.apply(&one).unwrap(), None);
        let newer = TableUpdate::Whole { format: TABLE_FORMAT + 1, table: Arc::new(two) };
        assert_eq!(newer.apply(&one), Err(UpdateError::Newer(TABLE_FORMAT + 1)));
    }
}
