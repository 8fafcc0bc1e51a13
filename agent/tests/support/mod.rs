//! An agent on a runtime, with a control plane that is the test.
#![allow(dead_code, reason = "each test file uses its part")]

use flex_agent::{Agent, AgentKey, AgentSettings, ControlLink};
use flex_logs::{LogQuery, LogSettings, LogStore};
use flex_model::{
    AppId, Assignment, Command, HealthCheck, HealthProbe, HostId, ImageRef, InstanceId, InstanceReport, InstanceSpec,
    InstanceState, Memory, Report, Timestamp, Uuid, WorkItem,
};
use flex_runtime::Runtime;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longer than any step takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn host() -> HostId {
    HostId(Uuid::from_u128(7))
}

pub fn app() -> AppId {
    AppId(Uuid::from_u128(8))
}

pub fn clock() -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_micros(i64::try_from(now.as_micros()).unwrap())
}

pub fn check(probe: HealthProbe) -> HealthCheck {
    HealthCheck { probe, start_seconds: 60, interval_seconds: 1, timeout_seconds: 5, successes: 1, failures: 3 }
}

pub fn item(n: u128, image: &ImageRef, line: &str, port: Option<u16>) -> WorkItem {
    let probe = if port.is_some() { HealthProbe::Tcp } else { HealthProbe::Running { millis: 200 } };
    WorkItem {
        instance: InstanceId(Uuid::from_u128(n)),
        app: app(),
        app_name: "demo".parse().unwrap(),
        name: format!("web.{n}"),
        version: 1,
        spec: InstanceSpec {
            proxy_protocol: None,
            image: image.clone(),
            command: Command::Shell(line.to_owned()),
            env: BTreeMap::new(),
            port,
            memory: Memory::from_mib(64),
            cpu_shares: 1024,
            cpu_millis: None,
            pids: 64,
            stop_grace_seconds: 1,
            read_only_root: false,
            check: check(probe),
        },
    }
}

pub struct Host {
    pub logs: Arc<LogStore>,
    pub reports: mpsc::Receiver<Report>,
    pub last: Option<Report>,
    assignments: watch::Sender<Option<Arc<Assignment>>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Host {
    /// An agent, started on a directory.
    pub fn start(dir: &Path, runtime: Arc<dyn Runtime>) -> Self {
        let logs = Arc::new(LogStore::open(dir.join("logs"), LogSettings::default()).unwrap());
        let (assignments, assignment) = watch::channel(None);
        let (send, reports) = mpsc::channel(256);
        let settings = AgentSettings { host: host(), state_dir: dir.join("agent"), key: AgentKey([7; 32]) };
        let link = ControlLink { assignment, reports: send };
        let agent = Agent::new(settings, runtime, link, logs.clone(), Arc::new(clock));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { agent.run(shutdown).await.expect("the agent works") }
        });
        Self { logs, reports, last: None, assignments, shutdown, task }
    }

    pub fn assign(&self, revision: u64, items: Vec<WorkItem>) {
        self.assign_as(1, revision, items);
    }

    pub fn assign_as(&self, epoch: u64, revision: u64, items: Vec<WorkItem>) {
        self.assignments.send_replace(Some(Arc::new(Assignment { host: host(), revision, epoch, items })));
    }

    /// Shuts the agent down in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").unwrap();
    }

    /// Ends the agent in the middle of whatever it does.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Waits for a report that satisfies a condition.
    pub async fn until(&mut self, what: &str, good: impl Fn(&Report) -> bool) -> Report {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.reports.recv()).await {
                Ok(Some(report)) => {
                    self.last = Some(report.clone());
                    if good(&report) {
                        return report;
                    }
                }
                Ok(None) => panic!("the agent ended before: {what}"),
                Err(_) => panic!("never came true: {what}; last: {:#?}; log: {:#?}", self.last, self.log().await),
            }
        }
    }

    /// Waits until an instance is in a state.
    pub async fn until_state(&mut self, n: u128, state: InstanceState) -> InstanceReport {
        let is = |r: &Report| of(r, n).is_some_and(|i| i.state == state);
        let report = self.until(&format!("{n} is {state:?}"), is).await;
        of(&report, n).unwrap().clone()
    }

    /// Waits until no instance is left.
    pub async fn until_empty(&mut self) {
        self.until("nothing is left", |r| r.instances.is_empty()).await;
    }

    /// The app's log, `process: text`.
    pub async fn log(&self) -> Vec<String> {
        let lines = self.logs.query(app(), LogQuery::newest(10_000)).await.unwrap();
        lines.into_iter().map(|l| format!("{}: {}", l.process, l.text)).collect()
    }

    /// Waits until the app's log has a line.
    pub async fn until_logged(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().await.iter().any(|l| l.contains(text)) {
            assert!(Instant::now() < deadline, "never logged: {text}; the log: {:#?}", self.log().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn of(report: &Report, n: u128) -> Option<&InstanceReport> {
    report.instances.iter().find(|i| i.instance == InstanceId(Uuid::from_u128(n)))
}
