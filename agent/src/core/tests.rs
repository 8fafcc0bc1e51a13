//! The decisions, driven by hand and by chance.

use super::*;
use flex_model::{AppName, Command, HealthProbe, HostId, ImageRef, InstanceSpec, Memory as Ram, Uuid};
use flex_runtime::ObservedPhase;

pub fn host() -> HostId {
    HostId(Uuid::from_u128(1))
}
pub fn assignment(revision: u64, epoch: u64, items: Vec<WorkItem>) -> Assignment {
    Assignment { host: host(), revision, epoch, items }
}
pub fn item(n: u128) -> WorkItem {
    WorkItem {
        instance: InstanceId(Uuid::from_u128(n)),
        app: AppId(Uuid::from_u128(1000 + n)),
        app_name: "demo".parse::<AppName>().unwrap(),
        name: format!("web.{n}"),
        version: 1,
        spec: InstanceSpec {
            proxy_protocol: None,
            image: ImageRef { reference: "sha256:0".into(), manifest: None },
            command: Command::Launch("server".into()),
            env: std::collections::BTreeMap::new(),
            port: Some(5000),
            memory: Ram::from_mib(64),
            cpu_shares: 1024,
            cpu_millis: None,
            pids: 64,
            stop_grace_seconds: 30,
            read_only_root: true,
            check: HealthCheck {
                probe: HealthProbe::Tcp,
                start_seconds: 60,
                interval_seconds: 5,
                timeout_seconds: 5,
                successes: 1,
                failures: 3,
            },
        },
    }
}

pub fn id(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

pub fn at(seconds: f64) -> Now {
    let mono = Duration::from_secs_f64(seconds);
    Now { mono, wall: Timestamp::from_micros(1_000_000_000).plus(mono) }
}

pub fn seen(n: u128, attempt: u32, phase: ObservedPhase) -> Observed {
    let i = item(n);
    let running = phase == ObservedPhase::Running;
    Observed {
        instance: i.instance,
        app: i.app,
        app_name: i.app_name.to_string(),
        name: i.name,
        version: 1,
        attempt,
        phase,
        ip: running.then(|| "10.0.0.7".parse().unwrap()),
        pid: running.then_some(77),
        started_at: None,
        log_file: None,
    }
}

pub fn exit(status: i64, oom: bool) -> ObservedPhase {
    ObservedPhase::Exited(ExitInfo { status, oom, at: Timestamp::default() })
}

/// The core with one instance, and what it did.
struct Bench {
    core: Core,
    actions: Vec<Action>,
}

impl Bench {
    fn new(memory: Memory) -> Self {
        Self { core: Core::new(memory), actions: Vec::new() }
    }
    /// With instance 1 assigned, and an engine that has nothing.
    fn assigned() -> Self {
        let mut b = Self::new(Memory::new());
        b.step(0.0, Event::Observed(vec![]));
        b.step(0.0, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
        b
    }
    /// With instance 1 up since second 1.
    fn up() -> Self {
        let mut b = Self::assigned();
        b.engine(1.0, 0, ObservedPhase::Running);
        b.probe(1.0, 0, Ok(()));
        b
    }
    fn step(&mut self, seconds: f64, event: Event) {
        self.actions = self.core.step(event, at(seconds), 0.5);
    }
    fn engine(&mut self, seconds: f64, attempt: u32, phase: ObservedPhase) {
        self.step(seconds, Event::Observed(vec![seen(1, attempt, phase)]));
    }
    fn probe(&mut self, seconds: f64, attempt: u32, result: Result<(), String>) {
        self.step(seconds, Event::Probed { instance: id(1), attempt, result });
    }
    fn log(&self) -> Vec<&str> {
        self.actions.iter().filter_map(|a| if let Action::Log { text, .. } = a { Some(text.as_str()) } else { None }).collect()
    }
    fn state(&self) -> InstanceState {
        self.report().state
    }
    fn report(&self) -> InstanceReport {
        self.core.instances().unwrap().into_iter().find(|r| r.instance == id(1)).unwrap()
    }
    fn wanted(&self) -> Option<u32> {
        self.core.desired().unwrap().iter().find(|d| d.instance == id(1)).map(|d| d.attempt)
    }
}

#[test]
fn nothing_is_asked_of_the_engine_before_both_sides_were_heard() {
    let mut b = Bench::new(Memory::new());
    assert!(b.core.desired().is_none() && b.core.report(at(0.0)).is_none());
    b.step(0.0, Event::Observed(vec![seen(1, 0, ObservedPhase::Running)]));
    assert!(b.core.desired().is_none() && b.core.report(at(0.0)).is_none(), "silence of the control plane stops nothing");
    let mut b = Bench::new(Memory::new());
    b.step(0.0, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
    assert!(b.core.desired().is_none() && b.core.report(at(0.0)).is_none(), "what runs already is not known yet");
}

#[test]
fn from_placed_to_up() {
    let mut b = Bench::assigned();
    assert_eq!(b.log(), ["Starting process with command `server`"]);
    assert_eq!((b.state(), b.wanted()), (InstanceState::Starting, Some(0)));
    b.engine(0.5, 0, ObservedPhase::Creating);
    assert!(b.actions.is_empty());
    b.engine(1.0, 0, ObservedPhase::Running);
    let address = Some("10.0.0.7:5000".parse().unwrap());
    assert_eq!(
        b.actions,
        [Action::Probe { instance: id(1), attempt: 0, check: item(1).spec.check, address, proxy_protocol: None }]
    );
    b.probe(1.1, 0, Err("refused".into()));
    b.step(1.2, Event::Tick);
    assert!(matches!(b.actions[..], [Action::Probe { .. }]), "asked again soon");
    b.probe(1.2, 0, Ok(()));
    assert_eq!(b.log(), ["State changed from starting to up"]);
    let r = b.report();
    assert_eq!((r.state, r.was_up, r.address, r.restarts, r.since), (InstanceState::Up, true, address, 0, at(1.2).wall));
}

#[test]
fn a_crash_is_retried_at_once_and_then_ever_later() {
    let mut b = Bench::up();
    b.engine(2.0, 0, exit(1, false));
    assert_eq!(
        b.log(),
        [
            "Process exited with status 1",
            "State changed from up to crashed",
            "State changed from crashed to starting",
            "Starting process with command `server`"
        ]
    );
    assert_eq!((b.wanted(), b.report().restarts, b.report().was_up), (Some(1), 1, true));
    b.engine(2.1, 0, exit(1, false));
    assert!(b.actions.is_empty(), "what is left of the old attempt says nothing new");
    let mut now = 2.2;
    for (attempt, wait) in [(1, 1.0), (2, 2.0), (3, 4.0)] {
        b.engine(now, attempt, exit(1, false));
        let r = b.report();
        assert_eq!(
            (r.state, r.exit.unwrap().status, r.message.unwrap().as_str()),
            (InstanceState::Crashed, 1, "exited with status 1")
        );
        assert_eq!(b.core.next_due(), Some(at(now + wait).mono));
        b.step(now + wait - 0.01, Event::Tick);
        assert_eq!(b.wanted(), Some(attempt), "not yet");
        b.step(now + wait, Event::Tick);
        assert_eq!(b.wanted(), Some(attempt + 1));
        now += wait + 0.1;
    }
}

#[test]
fn five_healthy_minutes_make_up_for_crashes() {
    let mut b = Bench::assigned();
    for attempt in 0..5 {
        b.engine(f64::from(attempt) * 100.0, attempt, exit(1, false));
        b.step(f64::from(attempt) * 100.0 + 99.0, Event::Tick);
    }
    b.engine(1000.0, 5, ObservedPhase::Running);
    b.probe(1000.0, 5, Ok(()));
    b.engine(1301.0, 5, exit(1, false));
    assert_eq!(b.wanted(), Some(6), "as after a first crash");
}

#[test]
fn memory_runs_out() {
    let mut b = Bench::up();
    b.engine(2.0, 0, exit(137, true));
    assert!(b.log()[0].starts_with("Error R15 (Memory quota vastly exceeded)"), "{:?}", b.log());
    assert!(b.log()[0].ends_with("limit of 64M. More: flex ps:resize web=128M"), "{:?}", b.log());
    let told = b.core.report(at(3.0)).unwrap().ended;
    assert_eq!((told.len(), told[0].stopped, told[0].exit.as_ref().map(|e| (e.status, e.oom))), (1, false, Some((137, true))));
    assert!(b.report().exit.unwrap().oom);
}

#[test]
fn too_slow_a_start_is_stopped_with_a_hint_and_retried_when_it_is_gone() {
    let mut b = Bench::assigned();
    b.engine(1.0, 0, ObservedPhase::Running);
    b.probe(1.0, 0, Err("refused".into()));
    b.step(60.9, Event::Tick);
    b.probe(60.9, 0, Err("refused".into()));
    assert_eq!(b.state(), InstanceState::Starting);
    b.step(61.0, Event::Tick);
    assert_eq!(b.actions, [Action::FindListeners { instance: id(1), attempt: 0, pid: Some(77) }]);
    b.step(61.0, Event::Listens { instance: id(1), attempt: 0, sockets: vec!["127.0.0.1:3000".parse().unwrap()] });
    let text = "Error R10 (Boot timeout) -> Web process failed to bind to $PORT within 60 seconds of launch: \
                bound port 3000 on 127.0.0.1 instead of 0.0.0.0:5000. Listen on 0.0.0.0 and the port in $PORT; \
                a slow start: flex checks:set web --grace 120";
    assert_eq!(b.log(), [text, "Stopping all processes with SIGTERM", "State changed from starting to crashed"]);
    let r = b.report();
    assert_eq!((r.state, r.was_up, r.message.as_deref()), (InstanceState::Crashed, false, Some(text)));
    assert_eq!(b.wanted(), None, "the engine stops it");
    b.engine(62.0, 0, ObservedPhase::Stopping);
    assert_eq!(b.wanted(), None, "never two attempts at once");
    b.step(63.0, Event::Observed(vec![]));
    assert_eq!((b.wanted(), b.state()), (Some(1), InstanceState::Starting));
}

#[test]
fn a_slow_start_is_stopped_even_if_nobody_says_what_it_listens_on() {
    let mut b = Bench::assigned();
    b.engine(1.0, 0, ObservedPhase::Running);
    b.probe(1.0, 0, Err("cannot connect".into()));
    b.step(61.0, Event::Tick);
    b.step(64.0, Event::Tick);
    assert_eq!(b.state(), InstanceState::Crashed);
    assert!(b.log()[0].contains("within 60 seconds of launch: cannot connect. Listen on"), "{:?}", b.log());
}

#[test]
fn a_start_that_made_it_while_the_sockets_were_looked_at_stays() {
    let mut b = Bench::assigned();
    b.engine(1.0, 0, ObservedPhase::Running);
    b.step(61.0, Event::Tick);
    b.probe(61.1, 0, Ok(()));
    b.step(61.2, Event::Listens { instance: id(1), attempt: 0, sockets: vec![] });
    assert_eq!((b.state(), b.wanted()), (InstanceState::Up, Some(0)));
}

#[test]
fn failing_checks_make_it_unhealthy_and_good_ones_up_again() {
    let mut b = Bench::up();
    for n in 0..3 {
        assert_eq!(b.state(), InstanceState::Up);
        b.probe(6.0 + f64::from(n), 0, Err("GET / answered 500".into()));
    }
    assert_eq!(b.state(), InstanceState::Unhealthy);
    assert_eq!(b.report().message.unwrap(), "fails its health check: GET / answered 500");
    assert_eq!(b.wanted(), Some(0), "it is not restarted");
    b.probe(10.0, 0, Ok(()));
    assert_eq!((b.state(), b.report().message), (InstanceState::Up, None));
}

#[test]
fn what_cannot_be_made_is_down_and_tried_again() {
    let mut b = Bench::assigned();
    b.engine(1.0, 0, ObservedPhase::Failed("no such image".into()));
    assert_eq!((b.state(), b.report().message.as_deref(), b.wanted()), (InstanceState::Down, Some("no such image"), Some(0)));
    b.step(2.0, Event::Tick);
    assert_eq!((b.state(), b.wanted()), (InstanceState::Starting, Some(1)));
}

#[test]
fn a_container_that_vanishes_is_made_anew() {
    let mut b = Bench::up();
    b.step(2.0, Event::Observed(vec![]));
    assert_eq!((b.state(), b.wanted()), (InstanceState::Starting, Some(1)));
}

#[test]
fn what_nobody_wants_stops_and_is_reported_until_it_is_gone() {
    let mut b = Bench::up();
    b.step(2.0, Event::Assigned(Arc::new(assignment(2, 1, vec![]))));
    assert_eq!(b.log(), ["Stopping all processes with SIGTERM"]);
    assert_eq!((b.state(), b.wanted(), b.report().address), (InstanceState::Stopping, None, None));
    b.engine(3.0, 0, ObservedPhase::Stopping);
    assert!(b.actions.is_empty());
    b.step(33.0, Event::Tick);
    assert!(b.log()[0].starts_with("Error R12 (Exit timeout)"));
    b.step(34.0, Event::Tick);
    assert!(b.actions.is_empty(), "said once");
    b.engine(35.0, 0, exit(137, false));
    assert_eq!(b.log(), ["Process exited with status 137"]);
    b.step(35.0, Event::Observed(vec![]));
    assert_eq!(b.core.instances().unwrap(), []);
    b.engine(36.0, 0, ObservedPhase::Running);
    assert_eq!((b.state(), b.wanted()), (InstanceState::Stopping, None), "strays go too");
}

#[test]
fn a_restarted_agent_adopts_what_runs() {
    let mut before = Bench::up();
    before.engine(2.0, 0, exit(1, false));
    before.engine(3.0, 1, ObservedPhase::Running);
    before.probe(3.0, 1, Ok(()));
    let mut b = Bench::new(before.core.memory());
    b.step(0.0, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
    b.engine(0.1, 1, ObservedPhase::Running);
    assert!(b.log().is_empty(), "nothing happened to the app: {:?}", b.log());
    assert!(matches!(b.actions[..], [Action::Probe { .. }]), "but it is looked at at once");
    let r = b.report();
    assert_eq!((r.state, r.restarts, r.was_up, b.wanted()), (InstanceState::Up, 1, true, Some(1)));
    assert_eq!(r.since, at(3.0).wall);
}

#[test]
fn an_agent_without_memory_adopts_too() {
    let mut b = Bench::new(Memory::new());
    b.step(0.0, Event::Observed(vec![seen(1, 7, ObservedPhase::Running)]));
    b.step(0.1, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
    assert_eq!((b.wanted(), b.state()), (Some(7), InstanceState::Starting));
    b.probe(0.2, 7, Ok(()));
    assert_eq!(b.state(), InstanceState::Up);
}

#[test]
fn an_end_seen_before_a_restart_of_the_agent_is_not_counted_twice() {
    let mut before = Bench::assigned();
    before.engine(1.0, 0, exit(1, false));
    before.engine(1.1, 1, exit(1, false));
    assert_eq!(before.state(), InstanceState::Crashed);
    let mut b = Bench::new(before.core.memory());
    b.step(0.0, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
    b.engine(0.0, 1, exit(1, false));
    assert!(b.actions.is_empty());
    b.step(1.0, Event::Tick);
    assert_eq!(b.wanted(), Some(2));
}

#[test]
fn a_spec_that_changes_waits_for_the_next_attempt() {
    let mut b = Bench::up();
    let mut changed = item(1);
    changed.spec.pids = 99;
    b.step(2.0, Event::Assigned(Arc::new(assignment(2, 1, vec![changed]))));
    let pids = |b: &Bench| b.core.desired().unwrap()[0].spec.pids;
    assert_eq!((pids(&b), b.wanted(), b.state()), (64, Some(0), InstanceState::Up));
    b.engine(3.0, 0, exit(1, false));
    assert_eq!((pids(&b), b.wanted()), (99, Some(1)));
}

#[test]
fn after_a_power_cut_what_ended_starts_again_at_once() {
    let before = Bench::up();
    let mut b = Bench::new(before.core.memory());
    b.step(0.0, Event::Assigned(Arc::new(assignment(1, 1, vec![item(1)]))));
    b.engine(0.0, 0, exit(137, false));
    assert_eq!((b.wanted(), b.report().was_up), (Some(1), true));
}
