//! Names and labels: how things of this installation are told from everything else on the engine, and found again.
//!
//! Pure. Every name begins with `flex-CLUSTER-` and everything carries the label `flex.cluster=CLUSTER`; a thing
//! without the label is never touched, whatever its name.

use crate::{Desired, JobSpec, RuntimeError};
use flex_model::{AppId, InstanceId};
use std::collections::HashMap;

pub(crate) const CLUSTER: &str = "flex.cluster";
pub(crate) const KIND: &str = "flex.kind";
const INSTANCE: &str = "flex.instance";
const APP: &str = "flex.app";
const APP_NAME: &str = "flex.app-name";
const NAME: &str = "flex.name";
const VERSION: &str = "flex.version";
const ATTEMPT: &str = "flex.attempt";
const GRACE: &str = "flex.stop-grace";
/// The id under which a sandbox or job is reaped or kept.
pub(crate) const REAP: &str = "flex.reap-id";

/// What a container of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Instance,
    /// One-off, and gone with its client.
    Job,
    /// One-off, and nobody need look.
    Run,
    Sandbox,
}

impl Kind {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Job => "job",
            Self::Run => "run",
            Self::Sandbox => "sandbox",
        }
    }
}

/// What an instance's labels say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) instance: InstanceId,
    pub(crate) app: AppId,
    pub(crate) app_name: String,
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) attempt: u32,
    pub(crate) grace: u32,
}

impl Tag {
    pub(crate) fn of(d: &Desired) -> Self {
        Self {
            instance: d.instance,
            app: d.app,
            app_name: d.app_name.clone(),
            name: d.name.clone(),
            version: d.version,
            attempt: d.attempt,
            grace: d.spec.stop_grace_seconds,
        }
    }

    pub(crate) fn of_job(j: &JobSpec) -> Self {
        Self {
            instance: j.instance,
            app: j.app,
            app_name: j.app_name.clone(),
            name: j.name.clone(),
            version: j.version,
            attempt: 0,
            grace: j.spec.stop_grace_seconds,
        }
    }

    pub(crate) fn labels(&self, cluster: &str, kind: Kind) -> HashMap<String, String> {
        let mut labels = base(cluster, kind);
        labels.insert(INSTANCE.into(), self.instance.to_string());
        labels.insert(APP.into(), self.app.to_string());
        labels.insert(APP_NAME.into(), self.app_name.clone());
        labels.insert(NAME.into(), self.name.clone());
        labels.insert(VERSION.into(), self.version.to_string());
        labels.insert(ATTEMPT.into(), self.attempt.to_string());
        labels.insert(GRACE.into(), self.grace.to_string());
        labels
    }

    /// None when a label is missing or no value of its type: such a container was not made by this version of Flex.
    pub(crate) fn read(labels: &HashMap<String, String>) -> Option<Self> {
        let text = |key: &str| labels.get(key).cloned();
        Some(Self {
            instance: text(INSTANCE)?.parse().ok()?,
            app: text(APP)?.parse().ok()?,
            app_name: text(APP_NAME)?,
            name: text(NAME)?,
            version: text(VERSION)?.parse().ok()?,
            attempt: text(ATTEMPT)?.parse().ok()?,
            grace: text(GRACE)?.parse().ok()?,
        })
    }

    /// The container's name, for people; nothing is ever found by it.
    pub(crate) fn container_name(&self, cluster: &str) -> String {
        let short = &self.instance.0.simple().to_string()[..12];
        format!("flex-{cluster}-{}-{}-{short}-{}", plain(&self.app_name), plain(&self.name), self.attempt)
    }
}

/// The labels of everything that belongs to the installation.
pub(crate) fn owned(cluster: &str) -> HashMap<String, String> {
    HashMap::from([(CLUSTER.to_owned(), cluster.to_owned())])
}

/// The labels of every container of one kind.
pub(crate) fn base(cluster: &str, kind: Kind) -> HashMap<String, String> {
    let mut labels = owned(cluster);
    labels.insert(KIND.into(), kind.label().into());
    labels
}

/// The engine's label filter for one kind.
pub(crate) fn filter(cluster: &str, kind: Kind) -> HashMap<String, Vec<String>> {
    filter_with(cluster, vec![format!("{KIND}={}", kind.label())])
}

/// The engine's label filter for one instance.
pub(crate) fn filter_instance(cluster: &str, instance: InstanceId) -> HashMap<String, Vec<String>> {
    filter_with(cluster, vec![format!("{KIND}={}", Kind::Instance.label()), format!("{INSTANCE}={instance}")])
}

/// The engine's label filter for whatever has this id.
pub(crate) fn filter_id(cluster: &str, instance: InstanceId) -> HashMap<String, Vec<String>> {
    filter_with(cluster, vec![format!("{INSTANCE}={instance}")])
}

fn filter_with(cluster: &str, mut more: Vec<String>) -> HashMap<String, Vec<String>> {
    more.push(format!("{CLUSTER}={cluster}"));
    HashMap::from([("label".to_owned(), more)])
}

/// Checks a word that becomes part of a name in the engine.
pub(crate) fn name_part<'a>(what: &str, text: &'a str) -> Result<&'a str, RuntimeError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= 128 && text.chars().all(good) {
        Ok(text)
    } else {
        let shown: String = text.chars().take(40).collect();
        Err(RuntimeError::Refused(format!("{what} {shown:?} may hold only letters, digits, '-', '_' and '.', up to 128 of them")))
    }
}

/// For names that people read: what the engine does not take becomes a dash.
fn plain(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flex_model::Uuid;

    fn tag() -> Tag {
        Tag {
            instance: InstanceId(Uuid::from_u128(7)),
            app: AppId(Uuid::from_u128(9)),
            app_name: "shop".into(),
            name: "web.1".into(),
            version: 12,
            attempt: 3,
            grace: 30,
        }
    }

    #[test]
    fn labels_read_back() {
        let labels = tag().labels("c1", Kind::Instance);
        assert_eq!(Tag::read(&labels), Some(tag()));
        assert_eq!(labels[CLUSTER], "c1");
        for key in [INSTANCE, APP, APP_NAME, NAME, VERSION, ATTEMPT, GRACE] {
            let mut less = labels.clone();
            less.remove(key);
            assert_eq!(Tag::read(&less), None, "{key}");
        }
    }

    #[test]
    fn names_are_ones_that_the_engine_takes() {
        assert_eq!(tag().container_name("c1"), "flex-c1-shop-web.1-000000000000-3");
        let odd = Tag { app_name: "a/b c".into(), ..tag() };
        assert_eq!(odd.container_name("c1"), "flex-c1-a-b-c-web.1-000000000000-3");
        assert!(name_part("volume", "a/../b").is_err() && name_part("volume", "").is_err());
        assert!(name_part("volume", "a-b_c.1").is_ok());
    }
}
