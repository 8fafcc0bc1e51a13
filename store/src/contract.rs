//! The tests that every [`StateStore`] must pass, as functions over a store, so that each implementation (and a remote one
//! later) runs the same suite.

use crate::{MAX_OPS, MAX_VALUE, Precondition, StateStore, StoreError, Write};
use std::sync::Arc;
use std::time::Duration;

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.into(), value.as_bytes().to_vec())
}

/// Runs the whole suite on one empty store.
///
/// # Panics
/// When the store breaks the contract.
pub async fn all(store: Arc<dyn StateStore>) {
    reads_see_commits(&*store).await;
    a_commit_is_all_or_nothing(&*store).await;
    limits_are_kept(&*store).await;
    watches_wake(&*store).await;
    contended_counters_add_up(store).await;
}

async fn reads_see_commits(store: &dyn StateStore) {
    let (none, r0) = store.get("a/1").await.unwrap();
    assert_eq!(none, None);
    let r1 = store.commit(vec![], vec![put("a/1", "x"), put("a/2", "y"), put("b/1", "z")]).await.unwrap();
    assert!(r1 > r0);
    let (found, r) = store.get("a/1").await.unwrap();
    let found = found.unwrap();
    assert_eq!((&*found.value, found.revision, r), (&b"x"[..], r1, r1));
    let (list, _) = store.list("a/").await.unwrap();
    assert_eq!(list.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["a/1", "a/2"]);
    let r2 = store.commit(vec![], vec![Write::Delete("a/2".into()), Write::Delete("never/was".into())]).await.unwrap();
    assert!(r2 > r1);
    assert_eq!(store.list("a/").await.unwrap().0.len(), 1);
    assert_eq!(store.list("").await.unwrap().0.len(), 2);
}

async fn a_commit_is_all_or_nothing(store: &dyn StateStore) {
    let r = store.commit(vec![], vec![put("c/1", "1")]).await.unwrap();
    let stale = store.commit(vec![Precondition::At("c/1".into(), r - 1)], vec![put("c/1", "2"), put("c/2", "2")]).await;
    assert!(matches!(stale, Err(StoreError::Conflict { key }) if key == "c/1"));
    let absent = store.commit(vec![Precondition::Absent("c/1".into())], vec![put("c/2", "2")]).await;
    assert!(matches!(absent, Err(StoreError::Conflict { .. })));
    let present = store.commit(vec![Precondition::Present("c/2".into())], vec![put("c/1", "2")]).await;
    assert!(matches!(present, Err(StoreError::Conflict { .. })));
    assert_eq!(store.get("c/2").await.unwrap().0, None);
    assert_eq!(&*store.get("c/1").await.unwrap().0.unwrap().value, b"1");
    store
        .commit(
            vec![Precondition::At("c/1".into(), r), Precondition::Absent("c/2".into())],
            vec![put("c/1", "2"), put("c/2", "2")],
        )
        .await
        .unwrap();
    assert_eq!(&*store.get("c/2").await.unwrap().0.unwrap().value, b"2");
}

async fn limits_are_kept(store: &dyn StateStore) {
    let invalid = |r: Result<u64, StoreError>| assert!(matches!(r, Err(StoreError::Invalid(_))), "{r:?}");
    invalid(store.commit(vec![], vec![Write::Put("d".into(), vec![0; MAX_VALUE + 1])]).await);
    invalid(store.commit(vec![], (0..=MAX_OPS).map(|i| put(&format!("d/{i}"), "")).collect()).await);
    invalid(store.commit(vec![], vec![put("d", "1"), Write::Delete("d".into())]).await);
    invalid(store.commit(vec![], vec![put("", "1")]).await);
    invalid(store.commit(vec![], vec![put("a\0b", "1")]).await);
    store.commit(vec![], vec![Write::Put("d/max".into(), vec![7; MAX_VALUE])]).await.unwrap();
    assert_eq!(store.get("d/max").await.unwrap().0.unwrap().value.len(), MAX_VALUE);
    store.commit(vec![], (0..MAX_OPS).map(|i| put(&format!("d/{i}"), "")).collect()).await.unwrap();
}

async fn watches_wake(store: &dyn StateStore) {
    let soon = |w: tokio::sync::watch::Receiver<u64>| async move {
        let mut w = w;
        tokio::time::timeout(Duration::from_secs(10), w.changed()).await.expect("the watch slept through a change").unwrap();
        w
    };
    let (_, from) = store.list("e/").await.unwrap();
    let watch = store.watch("e/", from).await.unwrap();
    store.commit(vec![], vec![put("other", "1")]).await.unwrap();
    assert!(!watch.changes.has_changed().unwrap(), "woken for another prefix");
    store.commit(vec![], vec![put("e/1", "1")]).await.unwrap();
    let watch = soon(watch.changes).await;
    store.commit(vec![], vec![Write::Delete("e/1".into())]).await.unwrap();
    soon(watch).await;
    // What happened before the watch was made counts as well.
    soon(store.watch("e/", from).await.unwrap().changes).await;
}

async fn contended_counters_add_up(store: Arc<dyn StateStore>) {
    store.commit(vec![], vec![put("n", "0")]).await.unwrap();
    let add = |store: Arc<dyn StateStore>| async move {
        for _ in 0..25 {
            loop {
                let entry = store.get("n").await.unwrap().0.unwrap();
                let n: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                match store.commit(vec![Precondition::At("n".into(), entry.revision)], vec![put("n", &(n + 1).to_string())]).await
                {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(add(store.clone()))).collect();
    for t in tasks {
        t.await.unwrap();
    }
    assert_eq!(&*store.get("n").await.unwrap().0.unwrap().value, b"200");
}
