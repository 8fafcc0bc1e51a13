//! Every implementation against the one contract, and what is the embedded ones' own: durability, damage, conversion.

use flex_store::{EmbeddedStore, Engine, StateStore, StoreError, Write, contract, export, memory, open, snapshot_now};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn put(key: &str, value: &[u8]) -> Write {
    Write::Put(key.into(), value.to_vec())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn fill(store: &EmbeddedStore, n: u32) -> u64 {
    runtime().block_on(async {
        let mut last = 0;
        for i in 0..n {
            last = store.commit(vec![], vec![put(&format!("k/{i}"), format!("value {i}").as_bytes())]).await.unwrap();
        }
        last
    })
}

fn keys(store: &EmbeddedStore) -> usize {
    runtime().block_on(store.list("")).unwrap().0.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    contract::all(Arc::new(memory().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(Arc::new(open(dir.path(), Engine::Sled).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redb_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(Arc::new(open(dir.path(), Engine::Redb).unwrap())).await;
}

#[test]
fn opened_again_it_is_the_same() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let last = fill(&open(dir.path(), engine).unwrap(), 50);
        let store = open(dir.path(), engine).unwrap();
        assert_eq!(runtime().block_on(store.list("k/")).unwrap().1, last);
        assert_eq!(keys(&store), 50);
        assert_eq!(fill(&store, 1), last + 1, "revisions go on");
        assert!(matches!(open(dir.path(), engine), Err(StoreError::Unavailable(_))), "one process only");
    }
}

/// Damages every file of the store in turn, in several ways; it must be the same as before or refused, never less.
#[test]
fn damage_is_refused_with_the_remedy() {
    for engine in Engine::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine).unwrap();
        fill(&store, 300);
        snapshot_now(&store, dir.path()).unwrap();
        drop(store);
        let mut refused = 0;
        for round in 0..60u64 {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(dir.path(), copy.path());
            damage(&engine.dir(copy.path()), round);
            match open(copy.path(), engine) {
                Ok(store) => assert_eq!(keys(&store), 300, "{} round {round}: opened with a loss", engine.name()),
                Err(StoreError::Damaged(text)) => {
                    refused += 1;
                    let command = format!("flexd restore --data-dir {} --store {}", copy.path().display(), engine.name());
                    assert!(text.contains(&command), "{text}");
                    let file = flex_store::snapshots(copy.path()).pop().unwrap();
                    export::restore(&file, copy.path(), engine).unwrap();
                    assert_eq!(keys(&open(copy.path(), engine).unwrap()), 300);
                }
                Err(e) => panic!("{} round {round}: {e}", engine.name()),
            }
        }
        assert!(refused > 10, "{}: only {refused} of 60 damages were seen", engine.name());
    }
}

fn damage(state: &Path, round: u64) {
    let file = if state.join("db").exists() { state.join("db") } else { state.join("state.redb") };
    let mut bytes = std::fs::read(&file).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) + 1;
    match round {
        0 => std::fs::remove_dir_all(state).unwrap(),
        1 => std::fs::remove_file(&file).unwrap(),
        2..30 => std::fs::write(&file, &bytes[..used * (round as usize - 2) / 28]).unwrap(),
        _ => {
            let at = used * (round as usize - 30) / 30;
            bytes[at] ^= 0x40;
            std::fs::write(&file, bytes).unwrap();
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_tree(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

#[test]
fn a_backup_moves_to_another_machine_and_engine() {
    for (from, to) in [(Engine::Sled, Engine::Redb), (Engine::Redb, Engine::Sled)] {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open(a.path(), from).unwrap();
        let last = fill(&store, 20);
        runtime().block_on(store.commit(vec![], vec![put("bytes", &[0xff, 0, 1])])).unwrap();
        let file = a.path().join("backup.ndjson.zst");
        export::export(&store, &file).unwrap();
        drop(store);
        assert!(export::restore(&file, b.path(), to).unwrap() > last);
        let restored = open(b.path(), to).unwrap();
        assert_eq!(&*runtime().block_on(restored.get("bytes")).unwrap().0.unwrap().value, [0xff, 0, 1]);
        assert_eq!(keys(&restored), 21);

        assert!(matches!(open(a.path(), to), Err(StoreError::Damaged(t)) if t.contains("flexd store convert --data-dir")));
        assert_eq!(export::convert(a.path(), from, to).unwrap(), last + 1);
        assert_eq!(keys(&open(a.path(), to).unwrap()), 21);
    }
}

#[test]
fn half_a_backup_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Engine::Sled).unwrap();
    fill(&store, 100);
    let file = dir.path().join("b.ndjson.zst");
    export::export(&store, &file).unwrap();
    drop(store);
    let bytes = std::fs::read(&file).unwrap();
    for len in (0..bytes.len()).step_by(bytes.len() / 20) {
        std::fs::write(&file, &bytes[..len]).unwrap();
        assert!(export::restore(&file, dir.path(), Engine::Sled).is_err(), "{len} of {} bytes", bytes.len());
    }
    assert_eq!(keys(&open(dir.path(), Engine::Sled).unwrap()), 100);
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    Delete(u8),
    Swap(u8, u8),
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0u8..8, any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
        2 => (0u8..8).prop_map(Op::Delete),
        2 => (0u8..8, any::<u8>()).prop_map(|(k, v)| Op::Swap(k, v)),
        1 => Just(Op::Reopen),
    ];
    proptest::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is done, and however often it is opened again, it agrees with a plain map.
    #[test]
    fn agrees_with_a_map(ops in ops(), redb in any::<bool>()) {
        let engine = if redb { Engine::Redb } else { Engine::Sled };
        let dir = tempfile::tempdir().unwrap();
        let rt = runtime();
        let mut store = open(dir.path(), engine).unwrap();
        let mut model: BTreeMap<String, (u8, u64)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Put(k, v) => {
                    let r = rt.block_on(store.commit(vec![], vec![put(&format!("k{k}"), &[v])])).unwrap();
                    model.insert(format!("k{k}"), (v, r));
                }
                Op::Delete(k) => {
                    rt.block_on(store.commit(vec![], vec![Write::Delete(format!("k{k}"))])).unwrap();
                    model.remove(&format!("k{k}"));
                }
                Op::Swap(k, v) => {
                    let key = format!("k{k}");
                    let at = model.get(&key).map_or(1, |m| m.1);
                    let r = rt.block_on(store.commit(vec![flex_store::Precondition::At(key.clone(), at)], vec![put(&key, &[v])]));
                    prop_assert_eq!(r.is_ok(), model.contains_key(&key));
                    if let Ok(r) = r { model.insert(key, (v, r)); }
                }
                Op::Reopen => {
                    drop(store);
                    store = open(dir.path(), engine).unwrap();
                }
            }
            let have: Vec<_> = rt.block_on(store.list("")).unwrap().0.iter().map(|e| (e.key.to_string(), (e.value[0], e.revision))).collect();
            prop_assert_eq!(have, model.clone().into_iter().collect::<Vec<_>>());
        }
    }
}
