//! Random histories against a small engine: what must never happen does not, and quiet brings everything up.

use super::{tests::*, *};
use flex_runtime::ObservedPhase;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Assign(Vec<u128>),
    /// The engine does what it was told.
    Obey,
    /// An instance ends by itself.
    End(u128, bool),
    /// A container is removed behind everyone's back.
    Vanish(u128),
    Fail(u128),
    Look,
    Probe(u128, bool),
    Listens(u128),
    Wait(u32),
    RestartAgent,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1u128..4;
    prop_oneof![
        2 => prop::collection::btree_set(1u128..4, 0..4).prop_map(|s| Op::Assign(s.into_iter().collect())),
        6 => Just(Op::Obey),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, oom)| Op::End(n, oom)),
        1 => n.clone().prop_map(Op::Vanish),
        1 => n.clone().prop_map(Op::Fail),
        6 => Just(Op::Look),
        6 => (n.clone(), any::<bool>()).prop_map(|(n, ok)| Op::Probe(n, ok)),
        2 => n.prop_map(Op::Listens),
        5 => (0u32..100_000).prop_map(Op::Wait),
        1 => Just(Op::RestartAgent),
    ]
}

struct World {
    core: Core,
    engine: BTreeMap<InstanceId, (u32, ObservedPhase)>,
    assignment: Option<Arc<Assignment>>,
    revision: u64,
    now: f64,
    started: BTreeMap<InstanceId, u32>,
}

impl World {
    fn step(&mut self, event: Event) {
        let again = event.clone();
        self.core.step(event, at(self.now), 0.5);
        if matches!(again, Event::Observed(_) | Event::Tick) {
            let twice = self.core.step(again, at(self.now), 0.5);
            assert_eq!(twice, [], "the same again is nothing new");
        }
        if let (Some(desired), Some(assignment)) = (self.core.desired(), &self.assignment) {
            for d in &desired {
                assert!(assignment.items.iter().any(|i| i.instance == d.instance), "not assigned: {d:?}");
                let started = self.started.entry(d.instance).or_insert(d.attempt);
                assert!(*started <= d.attempt, "attempts only grow");
                *started = d.attempt;
            }
            for r in self.core.instances().unwrap() {
                let told = desired.iter().any(|d| d.instance == r.instance);
                let held_back = matches!(r.state, InstanceState::Crashed | InstanceState::Stopping);
                assert!(told || held_back, "{:?} is neither wanted nor stopped", r.state);
                assert!(
                    r.address.is_none()
                        || matches!(r.state, InstanceState::Starting | InstanceState::Up | InstanceState::Unhealthy)
                );
            }
        }
    }

    fn look(&mut self) {
        let all = self.engine.iter().map(|(id, (attempt, phase))| seen(id.0.as_u128(), *attempt, phase.clone())).collect();
        self.step(Event::Observed(all));
    }

    fn obey(&mut self) {
        let Some(desired) = self.core.desired() else { return };
        self.engine.retain(|_, (_, phase)| *phase != ObservedPhase::Stopping);
        for (id, (attempt, phase)) in &mut self.engine {
            match desired.iter().find(|d| d.instance == *id) {
                None => *phase = ObservedPhase::Stopping,
                Some(d) if d.attempt > *attempt => (*attempt, *phase) = (d.attempt, ObservedPhase::Creating),
                Some(_) if *phase == ObservedPhase::Creating => *phase = ObservedPhase::Running,
                Some(_) => {}
            }
        }
        for d in desired {
            self.engine.entry(d.instance).or_insert((d.attempt, ObservedPhase::Creating));
        }
    }

    fn set(&mut self, n: u128, phase: ObservedPhase) {
        if let Some(c) = self.engine.get_mut(&id(n))
            && matches!(c.1, ObservedPhase::Creating | ObservedPhase::Running)
        {
            c.1 = phase;
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Assign(ids) => {
                self.revision += 1;
                // One that comes back after it was let go is a new one.
                self.started.retain(|i, _| ids.contains(&i.0.as_u128()));
                let items = ids.into_iter().map(item).collect();
                let assignment = Arc::new(assignment(self.revision, 1, items));
                self.assignment = Some(assignment.clone());
                self.step(Event::Assigned(assignment));
            }
            Op::Obey => self.obey(),
            Op::End(n, oom) => self.set(n, exit(1, oom)),
            Op::Vanish(n) => drop(self.engine.remove(&id(n))),
            Op::Fail(n) => self.set(n, ObservedPhase::Failed("no".into())),
            Op::Look => self.look(),
            Op::Probe(n, ok) => {
                let attempt = self.engine.get(&id(n)).map_or(0, |c| c.0);
                let result = if ok { Ok(()) } else { Err("no".into()) };
                self.step(Event::Probed { instance: id(n), attempt, result });
            }
            Op::Listens(n) => {
                let attempt = self.engine.get(&id(n)).map_or(0, |c| c.0);
                self.step(Event::Listens { instance: id(n), attempt, sockets: vec![] });
            }
            Op::Wait(millis) => {
                self.now += f64::from(millis) / 1000.0;
                self.step(Event::Tick);
            }
            Op::RestartAgent => {
                self.core = Core::new(self.core.memory());
                if let Some(assignment) = self.assignment.clone() {
                    self.step(Event::Assigned(assignment));
                }
            }
        }
    }

    /// Everything works from now on.
    fn quiet(&mut self) {
        for _ in 0..400 {
            self.now += 1.0;
            self.step(Event::Tick);
            self.obey();
            self.look();
            for (n, (attempt, phase)) in self.engine.clone() {
                if phase == ObservedPhase::Running {
                    self.step(Event::Probed { instance: n, attempt, result: Ok(()) });
                }
            }
        }
        let Some(assignment) = &self.assignment else { return };
        let reports = self.core.instances().unwrap();
        assert_eq!(reports.len(), assignment.items.len());
        for r in reports {
            assert_eq!(r.state, InstanceState::Up, "{r:?}");
        }
        assert_eq!(self.engine.len(), assignment.items.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn histories(ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World {
            core: Core::new(Memory::new()),
            engine: BTreeMap::new(),
            assignment: None,
            revision: 0,
            now: 0.0,
            started: BTreeMap::new(),
        };
        for op in ops {
            world.run(op);
        }
        world.quiet();
    }
}
