//! The simulated builder, host and router.

use flex_controller::ports::{AttachedRun, ExecJob, JobEnd, JobState, RunFault};
use flex_controller::ports::{BuildFailure, BuildJob, BuildProduct, Machine, RunInput, RunJob, RunOutput, RunSession};
use flex_controller::{Controller, GitUpdate};
use flex_model::app_json::AppJson;
use flex_model::{
    AppId, Assignment, BuildPhase, Command, HostId, ImageRef, InstanceId, InstanceReport, InstanceState, LogLine, LogSource,
    PhaseTime, Report, RouterStatus, Timestamp, WorkItem,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What a build is to come to.
pub enum Outcome {
    Good(BuildProduct),
    Fail(&'static str),
    /// Waits for a permit first.
    Held(Arc<Semaphore>, BuildProduct),
}

#[derive(Default)]
pub struct Builders {
    /// Taken one by one; with none left each build makes another good image.
    pub next: Mutex<VecDeque<Outcome>>,
    pub jobs: Mutex<Vec<BuildJob>>,
    /// What was kept whenever garbage was collected.
    pub kept: Mutex<Vec<BTreeSet<String>>>,
    busy: Mutex<HashSet<AppId>>,
}

impl Builders {
    pub fn then(&self, outcome: Outcome) {
        self.next.lock().unwrap().push_back(outcome);
    }
}

/// A product whose instances do what the image's name says: `up…`, `crash…`, `hang…`.
pub fn product(image: &str, processes: &[(&str, &str)]) -> BuildProduct {
    BuildProduct {
        stack: None,
        image: ImageRef { reference: image.into(), manifest: None },
        size_bytes: 1000,
        process_types: processes.iter().map(|(k, v)| (k.parse().unwrap(), (*v).to_owned())).collect(),
        config_vars: BTreeMap::new(),
        addons: Vec::new(),
        app_json: AppJson::default(),
        buildpacks: vec!["inline".into()],
        has_launcher: true,
        port: None,
        phases: vec![PhaseTime { phase: BuildPhase::Compile, millis: 12 }],
    }
}

#[async_trait::async_trait]
impl flex_controller::ports::Builders for Builders {
    fn stacks(&self) -> Vec<flex_model::StackName> {
        vec!["flex-0".parse().unwrap(), "flex-1".parse().unwrap()]
    }

    async fn build(
        &self,
        job: BuildJob,
        log: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<BuildProduct, BuildFailure> {
        assert!(self.busy.lock().unwrap().insert(job.app), "two builds of one app at once");
        let app = job.app;
        let outcome = self.next.lock().unwrap().pop_front();
        let n = {
            let mut jobs = self.jobs.lock().unwrap();
            jobs.push(job);
            jobs.len()
        };
        let _ = log.send("-----> Building".into()).await;
        let fail = |message: &str| BuildFailure { message: message.into(), phases: Vec::new() };
        let result = match outcome {
            None => Ok(product(&format!("up-{n}"), &[("web", "serve")])),
            Some(Outcome::Good(p)) => Ok(p),
            Some(Outcome::Fail(message)) => Err(fail(message)),
            Some(Outcome::Held(gate, p)) => tokio::select! {
                permit = gate.acquire() => { permit.unwrap().forget(); Ok(p) }
                () = cancel.cancelled() => Err(fail("Build cancelled")),
            },
        };
        let _ = log.send("       Last line".into()).await;
        self.busy.lock().unwrap().remove(&app);
        result
    }
    async fn purge_cache(&self, _: AppId) -> Result<(), String> {
        Ok(())
    }
    async fn keep_images(&self, _: AppId, _: BTreeSet<String>) -> Result<usize, String> {
        Ok(0)
    }
    async fn collect_garbage(&self, _: AppId, keep: BTreeSet<String>) -> Result<usize, String> {
        self.kept.lock().unwrap().push(keep);
        Ok(0)
    }
    async fn remove_app(&self, _: AppId) -> Result<(), String> {
        Ok(())
    }
}

/// Runs what ends at once (with the status of an `exit N` in it, or else of the variable `PHASE_EXIT`), and `cat`. Without a
/// client, `good` ends well, and `greedy` at its memory limit.
#[derive(Default)]
pub struct Runs {
    pub jobs: Mutex<Vec<RunJob>>,
    /// Exit statuses, in the order of ending.
    pub ended: Arc<Mutex<Vec<i64>>>,
    /// Those without a client, which all have ended.
    pub started: Mutex<Vec<(flex_model::InstanceId, JobEnd)>>,
}

#[async_trait::async_trait]
impl flex_controller::ports::Runs for Runs {
    async fn run(&self, job: RunJob) -> Result<RunSession, String> {
        let line = match &job.spec.command {
            Command::Launch(line) | Command::Shell(line) => line.clone(),
            other => panic!("a run without a command line: {other:?}"),
        };
        assert_eq!(job.spec.env["DYNO"].expose(), job.name);
        let (input, mut inputs) = mpsc::channel(8);
        let (out, mut pieces) = mpsc::channel::<String>(8);
        let (done, exit) = oneshot::channel();
        let of_env = job.spec.env.get("PHASE_EXIT").map(|n| n.expose().parse().unwrap());
        let mut status = line.split("exit ").nth(1).map_or(of_env.unwrap_or(0), |n| n.trim().parse().unwrap());
        self.jobs.lock().unwrap().push(job);
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let _ = out.send(format!("ran {line}\n")).await;
            let echoes = line == "cat";
            loop {
                if !echoes {
                    break;
                }
                let piece = match inputs.recv().await {
                    Some(RunInput::Data(data)) => String::from_utf8(data.to_vec()).unwrap(),
                    Some(RunInput::Resize(columns, rows)) => format!("{columns}x{rows}"),
                    Some(RunInput::Signal(n)) => {
                        status = 128 + i64::from(n);
                        break;
                    }
                    Some(RunInput::Eof) => break,
                    // As an engine does when its client goes.
                    None => {
                        status = 129;
                        break;
                    }
                };
                let _ = out.send(piece).await;
            }
            ended.lock().unwrap().push(status);
            let _ = done.send(Ok(status));
        });
        let output = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx));
        let output = futures_util::StreamExt::map(output, |text| Ok(RunOutput::Stdout(text.into())));
        Ok(RunSession { input, output: Box::pin(output), exit, oom: Arc::default() })
    }

    async fn start(&self, job: RunJob) -> Result<(), RunFault> {
        let greedy = format!("{:?}", job.spec.command).contains("greedy");
        let at = Timestamp::from_micros(1);
        let good = format!("{:?}", job.spec.command).contains("good");
        let end = JobEnd {
            status: if greedy {
                137
            } else if good {
                0
            } else {
                3
            },
            oom: greedy,
            at,
        };
        self.started.lock().unwrap().push((job.instance, end));
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }

    async fn jobs(&self) -> Result<Vec<JobState>, RunFault> {
        let started = self.started.lock().unwrap();
        Ok(started.iter().map(|(instance, end)| JobState { instance: *instance, ended: Some(*end) }).collect())
    }

    async fn remove(&self, instance: flex_model::InstanceId) -> Result<(), RunFault> {
        self.started.lock().unwrap().retain(|(i, _)| *i != instance);
        Ok(())
    }

    async fn address(&self, _: flex_model::InstanceId) -> Result<std::net::IpAddr, RunFault> {
        Ok(std::net::Ipv4Addr::LOCALHOST.into())
    }

    async fn exec(&self, _: flex_model::InstanceId, job: ExecJob) -> Result<RunSession, RunFault> {
        let (input, _) = mpsc::channel(1);
        let text = job.argv.join(" ");
        if text == "nowhere" {
            return Err(RunFault::Refused("no such file".into()));
        }
        let output = futures_util::stream::iter([Ok(RunOutput::Stdout(text.into()))]);
        let (done, exit) = oneshot::channel();
        done.send(Ok(0)).unwrap();
        Ok(RunSession { input, output: Box::pin(output), exit, oom: Arc::default() })
    }

    async fn attach(&self, instance: flex_model::InstanceId, _: u32) -> Result<AttachedRun, RunFault> {
        let job = ExecJob { argv: vec!["looking".into()], env: std::collections::BTreeMap::new(), tty: None };
        Ok(AttachedRun { session: self.exec(instance, job).await?, tty: false, stdin: false })
    }
}

/// Where branches are.
pub type Heads = Arc<Mutex<HashMap<(AppId, String), String>>>;

/// A repository that is pushed to: as git does, it moves a ref only from where the push found it.
pub struct Pushed {
    pub app: AppId,
    heads: Heads,
    /// The pusher has gone away.
    pub left: CancellationToken,
    pub over: CancellationToken,
    /// Git takes one permit before it moves the refs.
    pub git: Arc<Semaphore>,
}

impl Pushed {
    pub fn new(heads: Heads, app: AppId) -> Self {
        let (left, over) = (CancellationToken::new(), CancellationToken::new());
        Self { app, heads, left, over, git: Arc::new(Semaphore::new(1)) }
    }

    /// Zeros: no such ref.
    pub fn at(&self, name: &str) -> String {
        self.heads.lock().unwrap().get(&(self.app, name.to_owned())).cloned().unwrap_or_else(|| "0".repeat(40))
    }

    pub async fn move_to(&self, updates: &[GitUpdate]) -> bool {
        self.git.acquire().await.unwrap().forget();
        let good = updates.iter().all(|u| self.at(&u.name) == u.old);
        if good {
            let moved = updates.iter().map(|u| ((self.app, u.name.clone()), u.new.clone()));
            self.heads.lock().unwrap().extend(moved);
        }
        good
    }
}

#[async_trait::async_trait]
impl flex_controller::Refs for Pushed {
    async fn current(&self, name: &str) -> Result<Option<String>, String> {
        Ok(Some(self.at(name)).filter(|id| id.bytes().any(|b| b != b'0')))
    }
    async fn left(&self) {
        self.left.cancelled().await;
    }
    async fn over(&self) {
        self.over.cancelled().await;
    }
}

pub struct Checks;

#[async_trait::async_trait]
impl Machine for Checks {
    async fn checks(&self) -> Vec<(String, Option<(String, String)>)> {
        vec![("it is a test".into(), None)]
    }
}

/// Does what it is assigned and reports it, at once.
pub async fn simulate_host(controller: Controller, host: HostId) {
    let mut orders = controller.assignment(host);
    let reports = controller.reports();
    let mut last: Option<Arc<Assignment>> = None;
    let mut running: HashMap<InstanceId, (WorkItem, u16)> = HashMap::new();
    let mut port = 20_000u16;
    loop {
        let order = orders.borrow_and_update().clone();
        if let Some(order) = order {
            if let Some(last) = &last {
                assert!(order.revision >= last.revision, "an assignment's revision went back");
                assert!(order.revision > last.revision || order.items == last.items, "one revision, two assignments");
            }
            running.retain(|id, _| order.items.iter().any(|i| i.instance == *id));
            for item in &order.items {
                let (old, _) = running.entry(item.instance).or_insert_with(|| {
                    port += 1;
                    begin(&controller, item);
                    (item.clone(), port)
                });
                assert_eq!(old.spec.image, item.spec.image, "an instance's image changed");
                assert_eq!(old.version, item.version, "an instance's release changed");
            }
            let instances = running.values().map(|(item, port)| state(item, *port)).collect();
            let report = Report { host, epoch: order.epoch, revision: order.revision, at: now(), instances, ended: Vec::new() };
            last = Some(order);
            if reports.send(report).await.is_err() {
                return;
            }
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

fn now() -> Timestamp {
    flex_controller::ports::Clock::now(&flex_controller::ports::SystemClock)
}

fn begin(controller: &Controller, item: &WorkItem) {
    assert_eq!(item.spec.env["DYNO"].expose(), item.name);
    // Others get one when a route leads to them.
    assert!(item.spec.port.is_some() || !item.name.starts_with("web."));
    let text = format!("{} says hello", item.spec.image.reference);
    let line = LogLine { at: now(), source: LogSource::App, process: item.name.clone(), text: text.into() };
    controller.deps.logs.append(item.app, line);
}

fn state(item: &WorkItem, port: u16) -> InstanceReport {
    let image = &item.spec.image.reference;
    let (state, restarts) = match image {
        i if i.starts_with("up") => (InstanceState::Up, 0),
        i if i.starts_with("crash") => (InstanceState::Crashed, 5),
        i if i.starts_with("hang") => (InstanceState::Starting, 0),
        i => panic!("an unknown image: {i}"),
    };
    let up = state == InstanceState::Up;
    InstanceReport {
        instance: item.instance,
        state,
        since: now(),
        address: (up && item.spec.port.is_some()).then(|| ([127, 0, 0, 1], port).into()),
        restarts,
        was_up: up,
        exit: None,
        message: (!up).then(|| "exited with status 1".to_owned()),
    }
}

/// Takes each table, and has nothing under way.
pub async fn simulate_router(controller: Controller) {
    let mut tables = controller.routes();
    let statuses = controller.router_status();
    let mut last = 0;
    loop {
        let revision = tables.borrow_and_update().revision;
        assert!(revision >= last, "a table's revision went back");
        last = revision;
        let status = RouterStatus { router: "router".into(), revision, in_flight: BTreeMap::new(), ..RouterStatus::default() };
        if statuses.send(status).await.is_err() || tables.changed().await.is_err() {
            return;
        }
    }
}
