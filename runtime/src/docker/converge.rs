//! Makes the engine's instances be the desired ones.
//!
//! One task an instance at a time, each a loop: look, decide the one next step, do it, look again. So a newer wish, an
//! answer that got lost or an engine that was away in between all lead to the same place. Starts are bounded; stops are
//! not, so that a slow stop delays nobody.

use super::{
    Inner,
    engine::{self, QUICK, SLOW},
    observe::Listed,
    spec,
};
use crate::{Desired, RuntimeError};
use bollard::{
    models::ContainerSummaryStateEnum as State,
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder},
};
use flex_model::InstanceId;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

/// Failed steps in a row after which a task gives up until the next converge.
const PATIENCE: u32 = 5;

/// Pause before a step that was just taken, with success, and is still the next one.
const SAME_AGAIN: Duration = Duration::from_millis(50);

/// The next thing to do for one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Nothing,
    Create,
    Start { id: String },
    Retire { id: String, grace: u32, running: bool },
}

/// What to do next, given the wanted attempt (none: not wanted), the highest attempt known to fail, and what exists.
fn step(want: Option<u32>, failed: Option<u32>, have: &[Listed]) -> Step {
    if let Some(old) = have.iter().find(|c| want.is_none_or(|w| c.tag.attempt < w)) {
        let running = matches!(old.state, State::RUNNING | State::PAUSED | State::RESTARTING | State::STOPPING);
        return Step::Retire { id: old.id.clone(), grace: old.tag.grace, running };
    }
    let Some(want) = want else { return Step::Nothing };
    match have.iter().max_by_key(|c| c.tag.attempt) {
        None if failed.is_some_and(|f| f >= want) => Step::Nothing,
        None => Step::Create,
        // Made, and the process or the engine ended before it was started.
        Some(c) if c.state == State::CREATED => Step::Start { id: c.id.clone() },
        Some(_) => Step::Nothing,
    }
}

impl Inner {
    pub(super) async fn converge(self: &Arc<Self>, desired: Vec<Desired>) -> Result<(), RuntimeError> {
        let count = desired.len();
        let desired: HashMap<_, _> = desired.into_iter().map(|d| (d.instance, Arc::new(d))).collect();
        if desired.len() != count {
            return Err(RuntimeError::Refused("converging: an instance is in the list twice".into()));
        }
        {
            let mut state = self.state();
            state.failed.retain(|i, (attempt, _)| desired.get(i).is_some_and(|d| d.attempt <= *attempt));
            state.desired = Some(desired);
        }
        self.wake();
        self.reconcile().await
    }

    /// Sets tasks to work where what exists is not what was last wanted. Nothing before the first converge.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), RuntimeError> {
        if self.state().desired.is_none() {
            return Ok(());
        }
        let mut have: HashMap<InstanceId, Vec<Listed>> = HashMap::new();
        for c in self.list(None).await? {
            have.entry(c.tag.instance).or_default().push(c);
        }
        let mut work = Vec::new();
        {
            let mut state = self.state();
            let state = &mut *state;
            let Some(desired) = &state.desired else { return Ok(()) };
            let instances: HashSet<InstanceId> = desired.keys().chain(have.keys()).copied().collect();
            for instance in instances {
                let found = have.remove(&instance).unwrap_or_default();
                let want = desired.get(&instance).map(|d| d.attempt);
                let failed = state.failed.get(&instance).map(|f| f.0);
                if step(want, failed, &found) != Step::Nothing && state.busy.insert(instance) {
                    work.push((instance, found));
                }
            }
        }
        if !work.is_empty() {
            self.wake();
        }
        for (instance, found) in work {
            let inner = self.clone();
            self.spawn(async move { inner.settle(instance, Some(found)).await });
        }
        Ok(())
    }

    /// Takes steps for one instance until there is none left. `have`: what exists, when the caller has just looked.
    async fn settle(&self, instance: InstanceId, mut have: Option<Vec<Listed>>) {
        let mut failures = 0;
        let mut last = None;
        loop {
            let found = match have.take() {
                Some(found) => Ok(found),
                None => self.list(Some(instance)).await,
            };
            let done = match found {
                Ok(found) => {
                    let (want, next) = {
                        let mut state = self.state();
                        let want = state.desired.as_ref().and_then(|d| d.get(&instance)).cloned();
                        let failed = state.failed.get(&instance).map(|f| f.0);
                        let next = step(want.as_ref().map(|w| w.attempt), failed, &found);
                        if next == Step::Nothing {
                            // Under the same lock: a converge after this sees it idle, one before it was just obeyed.
                            state.busy.remove(&instance);
                        }
                        (want, next)
                    };
                    match next {
                        Step::Nothing => {
                            self.wake();
                            return;
                        }
                        next => {
                            // The engine's list may be a moment behind what it has just done.
                            if last.as_ref() == Some(&next) {
                                tokio::time::sleep(SAME_AGAIN).await;
                            }
                            last = Some(next.clone());
                            self.take(next, want.as_deref()).await
                        }
                    }
                }
                Err(e) => Err(e),
            };
            self.wake();
            match done {
                Ok(()) => failures = 0,
                Err(e) => {
                    failures += 1;
                    tracing::warn!(%instance, error = %e, failures, "a step for an instance failed");
                    if failures >= PATIENCE {
                        self.state().busy.remove(&instance);
                        self.wake();
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(200 * u64::from(failures))).await;
                }
            }
        }
    }

    async fn take(&self, next: Step, want: Option<&Desired>) -> Result<(), RuntimeError> {
        match next {
            Step::Nothing => Ok(()),
            Step::Retire { id, grace, running } => {
                if running {
                    self.stop_container(&id, grace).await;
                }
                self.remove_container_checked(&id).await
            }
            Step::Create | Step::Start { .. } => {
                let Ok(_permit) = self.starts.acquire().await else { return Ok(()) };
                let Some(want) = want.filter(|w| self.still_wanted(w)) else { return Ok(()) };
                let made = match next {
                    Step::Start { id } => self.start(&id).await.map_err(|e| (Some(id), e)),
                    _ => self.create_and_start(want).await,
                };
                match made {
                    Ok(()) => Ok(()),
                    Err((_, e @ RuntimeError::Unavailable(_))) => Err(e),
                    Err((_, RuntimeError::NotFound(why))) if why.contains("network") => {
                        self.forget_network(&self.names.network).await;
                        Err(RuntimeError::NotFound(why))
                    }
                    Err((id, RuntimeError::NotFound(why) | RuntimeError::Refused(why) | RuntimeError::Exceeded(why))) => {
                        tracing::warn!(instance = %want.instance, app = %want.app_name, name = %want.name, why, "an instance cannot be made");
                        self.state().failed.insert(want.instance, (want.attempt, why));
                        if let Some(id) = id {
                            self.remove_container(&id).await;
                        }
                        Ok(())
                    }
                }
            }
        }
    }

    /// A wish may have been taken back, or raised, while this one waited for its turn.
    fn still_wanted(&self, want: &Desired) -> bool {
        let state = self.state();
        state.desired.as_ref().and_then(|d| d.get(&want.instance)).is_some_and(|d| d.attempt == want.attempt)
    }

    async fn create_and_start(&self, want: &Desired) -> Result<(), (Option<String>, RuntimeError)> {
        self.ensure_network(&self.names.network).await.map_err(|e| (None, e))?;
        let name = super::labels::Tag::of(want).container_name(&self.names.cluster);
        let body = spec::instance(want, &self.names);
        let made = self.create_of(&name, body, want.app, &want.app_name, &want.spec.image).await;
        let id = made.map_err(|e| (None, e))?;
        let Some(id) = id else { return self.name_taken(&name, want.instance).await.map_err(|e| (None, e)) };
        self.start(&id).await.map_err(|e| (Some(id), e))
    }

    /// The name is taken: by this instance's own container, made by a call whose answer was lost, or by a stranger's.
    async fn name_taken(&self, name: &str, instance: InstanceId) -> Result<(), RuntimeError> {
        if !self.list(Some(instance)).await?.is_empty() {
            return Ok(());
        }
        let doing = format!("looking for container {name}");
        match self.engine.call(&doing, QUICK, async |d| d.inspect_container(name, None).await).await {
            Ok(_) => Err(RuntimeError::Refused(format!("container name {name} is taken by one that is not this instance's"))),
            Err(RuntimeError::NotFound(_)) => Err(RuntimeError::Unavailable(format!("container {name} is just being removed"))),
            Err(e) => Err(e),
        }
    }

    /// Makes a container. None: one of that name exists; the caller looks again.
    pub(super) async fn create(
        &self,
        name: &str,
        body: bollard::models::ContainerCreateBody,
    ) -> Result<Option<String>, RuntimeError> {
        let doing = format!("making container {name}");
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made = self
            .engine
            .call(&doing, SLOW, async |d| match d.create_container(Some(options), body).await {
                Ok(made) => Ok(Some(made.id)),
                Err(e) if engine::is_conflict(&e) => Ok(None),
                Err(e) => Err(e),
            })
            .await?;
        Ok(made)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.engine.call("starting a container", SLOW, async |d| d.start_container(id, None).await).await
    }

    /// SIGTERM, the grace, SIGKILL. Returns when it has stopped, or when the engine does not manage to.
    pub(super) async fn stop_container(&self, id: &str, grace: u32) {
        self.state().stopping.insert(id.to_owned());
        self.wake();
        let options = StopContainerOptionsBuilder::default().t(i32::try_from(grace).unwrap_or(i32::MAX)).build();
        let limit = Duration::from_secs(u64::from(grace)) + SLOW;
        let stopped = self.engine.call("stopping a container", limit, async |d| d.stop_container(id, Some(options)).await).await;
        match stopped {
            Ok(()) | Err(RuntimeError::NotFound(_)) => {}
            Err(e) => tracing::warn!(container = id, error = %e, "a container did not stop"),
        }
    }

    /// Kills and removes; absent is fine, and so is a removal under way.
    pub(super) async fn remove_container_checked(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let removed = self
            .engine
            .call("removing a container", SLOW, async |d| match d.remove_container(id, Some(options)).await {
                Err(e) if engine::is_conflict(&e) => Ok(false),
                other => other.map(|()| true),
            })
            .await;
        match removed {
            Ok(true) | Err(RuntimeError::NotFound(_)) => {
                let mut state = self.state();
                state.stopping.remove(id);
                state.details.remove(id);
                Ok(())
            }
            Ok(false) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// The same for callers that can only go on; what stays is removed when the engine is back.
    pub(super) async fn remove_container(&self, id: &str) {
        if let Err(e) = self.remove_container_checked(id).await {
            tracing::warn!(container = id, error = %e, "a container was not removed");
            self.state().not_removed.insert(id.to_owned());
        }
    }

    /// Removes what could not be removed before.
    pub(super) async fn remove_what_stayed(&self) -> Result<(), RuntimeError> {
        let stayed: Vec<String> = self.state().not_removed.iter().cloned().collect();
        for id in stayed {
            match self.remove_container_checked(&id).await {
                Err(e @ RuntimeError::Unavailable(_)) => return Err(e),
                Err(e) => tracing::warn!(container = id, error = %e, "a container was not removed"),
                Ok(()) => {}
            }
            self.state().not_removed.remove(&id);
        }
        Ok(())
    }

    /// Containers, networks and volumes of this installation, whatever their kind.
    pub(super) async fn purge(&self) -> Result<(), RuntimeError> {
        use bollard::query_parameters::{
            ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptions, ListVolumesOptionsBuilder,
            RemoveVolumeOptions,
        };
        self.state().desired = Some(HashMap::new());
        let owner = format!("{}={}", super::labels::CLUSTER, self.names.cluster);
        let filter = HashMap::from([("label".to_owned(), vec![owner])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let list = self.engine.call("listing containers", QUICK, async |d| d.list_containers(Some(options)).await).await?;
        for id in list.into_iter().filter_map(|c| c.id) {
            self.remove_container_checked(&id).await?;
        }
        let options = ListNetworksOptionsBuilder::default().filters(&filter).build();
        let networks = self.engine.call("listing networks", QUICK, async |d| d.list_networks(Some(options)).await).await?;
        for id in networks.into_iter().filter_map(|n| n.id) {
            // A cancelled Dockerfile build takes a moment to let go of it.
            let mut tries = 0;
            while let Err(e) = self.engine.call("removing a network", SLOW, async |d| d.remove_network(&id).await).await {
                tries += 1;
                match e {
                    RuntimeError::NotFound(_) => break,
                    RuntimeError::Refused(_) if tries < 50 => tokio::time::sleep(Duration::from_millis(200)).await,
                    e => return Err(e),
                }
            }
        }
        self.networks.lock().await.clear();
        let options: ListVolumesOptions = ListVolumesOptionsBuilder::default().filters(&filter).build();
        let volumes = self.engine.call("listing volumes", QUICK, async |d| d.list_volumes(Some(options)).await).await?;
        for volume in volumes.volumes.unwrap_or_default() {
            let name = volume.name;
            let none = None::<RemoveVolumeOptions>;
            self.engine.call("removing a volume", SLOW, async |d| d.remove_volume(&name, none).await).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::labels::Tag;
    use flex_model::{AppId, Uuid};
    use proptest::prelude::*;

    fn have(attempt: u32, state: State) -> Listed {
        let tag = Tag {
            instance: InstanceId(Uuid::nil()),
            app: AppId(Uuid::nil()),
            app_name: "a".into(),
            name: "web.1".into(),
            version: 1,
            attempt,
            grace: 30,
        };
        Listed { id: format!("c{attempt}"), tag, state, ip: None }
    }

    #[test]
    fn each_situation_has_its_step() {
        use State::{CREATED, EXITED, RUNNING};
        let retire = |n: u32, running| Step::Retire { id: format!("c{n}"), grace: 30, running };
        let cases = [
            (None, None, vec![], Step::Nothing),
            (None, None, vec![have(0, RUNNING)], retire(0, true)),
            (None, None, vec![have(0, EXITED)], retire(0, false)),
            (Some(0), None, vec![], Step::Create),
            (Some(0), Some(0), vec![], Step::Nothing),
            (Some(1), Some(0), vec![], Step::Create),
            (Some(0), None, vec![have(0, CREATED)], Step::Start { id: "c0".into() }),
            (Some(0), None, vec![have(0, RUNNING)], Step::Nothing),
            (Some(0), None, vec![have(0, EXITED)], Step::Nothing),
            (Some(1), None, vec![have(0, EXITED)], retire(0, false)),
            (Some(1), None, vec![have(0, RUNNING), have(1, RUNNING)], retire(0, true)),
            (Some(0), None, vec![have(3, RUNNING)], Step::Nothing),
        ];
        for (want, failed, found, expected) in cases {
            assert_eq!(step(want, failed, &found), expected, "{want:?} {failed:?} {found:?}");
        }
    }

    fn state() -> impl Strategy<Value = State> {
        use State::{CREATED, DEAD, EXITED, PAUSED, REMOVING, RUNNING};
        proptest::sample::select(vec![CREATED, RUNNING, EXITED, PAUSED, REMOVING, DEAD])
    }

    proptest! {
        /// Steps that are carried out lead to rest, never touch what is wanted, and at rest nothing unwanted is left.
        #[test]
        fn steps_lead_to_rest(want in proptest::option::of(0u32..4), states in proptest::collection::btree_map(0u32..4, state(), 0..4)) {
            let mut found: Vec<_> = states.into_iter().map(|(attempt, s)| have(attempt, s)).collect();
            for _ in 0..10 {
                match step(want, None, &found) {
                    Step::Nothing => {
                        prop_assert!(found.iter().all(|c| want.is_some_and(|w| c.tag.attempt >= w)));
                        prop_assert!(want.is_none() || !found.is_empty());
                        return Ok(());
                    }
                    Step::Create => found.push(have(want.unwrap_or_default(), State::CREATED)),
                    Step::Start { id } => found.iter_mut().filter(|c| c.id == id).for_each(|c| c.state = State::RUNNING),
                    Step::Retire { id, .. } => {
                        prop_assert!(found.iter().all(|c| c.id != id || want.is_none_or(|w| c.tag.attempt < w)));
                        found.retain(|c| c.id != id);
                    }
                }
            }
            prop_assert!(false, "never came to rest");
        }
    }
}
