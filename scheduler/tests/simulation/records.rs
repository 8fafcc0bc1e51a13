//! Apps and releases as the simulation makes them.

use flex_model::{
    App, AppId, HealthCheck, ImageRef, ProcessScale, ProcessSpec, ProcessType, Release, ReleaseId, ReleaseStatus, Timestamp,
    UserId, Uuid,
};
use std::collections::{BTreeMap, BTreeSet};

pub fn id(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n))
}

pub fn worker() -> ProcessType {
    "worker".parse().expect("a process type")
}

pub fn new_app(n: u64) -> App {
    App {
        id: AppId(id(100 + n)),
        name: format!("app-{n}").parse().expect("an app name"),
        owner: UserId(id(1)),
        stack: "flex-13".parse().expect("a stack"),
        stack_by_hand: false,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        maintenance: false,
        formation: BTreeMap::from([(ProcessType::web(), ProcessScale::default_for(1))]),
        deploy_branches: Vec::new(),
        buildpacks: Vec::new(),
        checks: BTreeMap::new(),
        config_rev: 0,
        last_version: 0,
        target: None,
        good: None,
        restarts: BTreeMap::new(),
        stopped: BTreeSet::new(),
        locked: None,
        stop_grace_seconds: 30,
        read_only_root: false,
        acm: false,
        canary: None,
        access_lines: None,
    }
}

pub fn new_release(app: AppId, version: u64, released: bool, with_worker: bool, now: Timestamp) -> Release {
    let spec = |p: ProcessType| {
        let check = HealthCheck::default_for(&p);
        (p, ProcessSpec { command: None, check })
    };
    Release {
        id: ReleaseId(id(1000 * version)),
        app,
        version,
        status: ReleaseStatus::Pending,
        description: String::new(),
        build: None,
        slug: None,
        image: Some(ImageRef { reference: "sha256:0".into(), manifest: None }),
        has_launcher: false,
        port: None,
        commit: None,
        config_rev: 0,
        processes: [ProcessType::web()].into_iter().chain(with_worker.then(worker)).map(spec).collect(),
        routes: BTreeMap::new(),
        release_command: None,
        read_only_root: false,
        keeps_from: None,
        released,
        user: UserId(id(1)),
        created_at: now,
        updated_at: now,
        failure: None,
        superseded_by: None,
    }
}
