//! Which instance gets the next request: pure choosers over what the table and the counters say. Chance and time come in
//! as arguments.
//!
//! Invariants, whatever the way of choosing: an instance that was tried for this request is never chosen again; one that
//! has its most requests never; one that is out only when nothing else is left.

use crate::table::{App, Backend};
use flex_model::{Balancing, InstanceId};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// What came of choosing.
#[derive(Debug)]
pub(crate) enum Choice<'a> {
    One(&'a Arc<Backend>),
    /// There are instances, and each has its most requests.
    Full,
    /// Nothing is left to try.
    None,
}

/// Chooses an instance of `app`: the preferred one if it is fit, else by the route's way of balancing.
pub(crate) fn choose<'a>(
    app: &'a App,
    prefer: Option<InstanceId>,
    tried: &[u64],
    now_ms: u64,
    rng: &mut impl rand::Rng,
) -> Choice<'a> {
    let limit = app.policy.max_per_instance.unwrap_or(u32::MAX);
    let open = |b: &Arc<Backend>| !tried.contains(&b.serial) && b.in_flight() < limit;
    let fit = |b: &Arc<Backend>| open(b) && !b.is_out(now_ms);
    let all = &*app.backends;
    if let Some(wanted) = prefer
        && let Some(backend) = all.iter().find(|b| b.instance == wanted && fit(b))
    {
        return Choice::One(backend);
    }
    let chosen = match all {
        [] => None,
        [only] => open(only).then_some(only),
        _ => match app.policy.balancing {
            Balancing::LeastBusyOfTwo => least_busy_of_two(all, &fit, rng),
            Balancing::Random => Some(&all[rng.random_range(0..all.len())]).filter(|b| fit(b)),
            Balancing::RoundRobin => {
                let turn = app.turn.fetch_add(1, Relaxed) % all.len();
                all[turn..].iter().chain(&all[..turn]).find(|b| fit(b))
            }
        }
        // The quick way met one that is not fit: look at all of them.
        .or_else(|| among(all, &fit, rng))
        .or_else(|| among(all, &open, rng)),
    };
    match chosen {
        Some(backend) => Choice::One(backend),
        None if all.iter().any(|b| !tried.contains(&b.serial)) => Choice::Full,
        None => Choice::None,
    }
}

type Test<'a> = &'a dyn Fn(&Arc<Backend>) -> bool;

/// Of two instances taken at random, the one with fewer requests under way; none if one of them is not fit.
fn least_busy_of_two<'a>(all: &'a [Arc<Backend>], fit: Test<'_>, rng: &mut impl rand::Rng) -> Option<&'a Arc<Backend>> {
    let (a, b) = two(all.len(), rng);
    let (a, b) = (&all[a], &all[b]);
    (fit(a) && fit(b)).then_some(if b.in_flight() < a.in_flight() { b } else { a })
}

fn among<'a>(all: &'a [Arc<Backend>], fit: Test<'_>, rng: &mut impl rand::Rng) -> Option<&'a Arc<Backend>> {
    let left: Vec<&Arc<Backend>> = all.iter().filter(|b| fit(b)).collect();
    match left[..] {
        [] => None,
        [only] => Some(only),
        _ => {
            let (a, b) = two(left.len(), rng);
            Some(if left[b].in_flight() < left[a].in_flight() { left[b] } else { left[a] })
        }
    }
}

/// Two different numbers below `n`, which is at least 2.
fn two(n: usize, rng: &mut impl rand::Rng) -> (usize, usize) {
    let a = rng.random_range(0..n);
    let b = rng.random_range(0..n - 1);
    (a, if b >= a { b + 1 } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::Registry,
        shared::Dirty,
        table::{Lease, Routes},
    };
    use flex_model::{AppId, AppRoute, AppState, Policy, RouteTable, Uuid};
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use std::{collections::BTreeMap, time::Duration};

    fn app(n: u16, policy: Policy) -> Arc<App> {
        let one = |i: u16| flex_model::Backend {
            instance: InstanceId(Uuid::from_u128(i.into())),
            name: format!("web.{i}"),
            address: ([127, 0, 0, 1], i + 1).into(),
        };
        let domains = vec!["a.b".parse().unwrap()];
        let backends = (0..n).map(one).collect();
        let mut app = AppRoute::new(AppId(Uuid::nil()), "app".parse().unwrap(), domains, AppState::Serving, backends);
        app.policy = Some(Arc::new(policy));
        let routes = Routes::default();
        Registry::default().apply(&routes, &Arc::new(RouteTable::new(1, [app])));
        routes.find("a.b", "/").unwrap().choose(0).unwrap().clone()
    }

    #[allow(clippy::needless_pass_by_value, reason = "reads better where it is called")]
    fn name(choice: Choice<'_>) -> Option<&str> {
        match choice {
            Choice::One(b) => Some(&b.name),
            Choice::Full | Choice::None => None,
        }
    }

    #[test]
    fn the_less_busy_of_two() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let (app, dirty) = (app(2, Policy::default()), Arc::new(Dirty::default()));
        let _busy = Lease::take(&app, &app.backends[0], &dirty).unwrap();
        for _ in 0..50 {
            assert_eq!(name(choose(&app, None, &[], 0, rng)), Some("web.1"));
        }
    }

    #[test]
    fn load_spreads() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(2);
        let (app, dirty) = (app(10, Policy::default()), Arc::new(Dirty::default()));
        let mut leases = Vec::new();
        for _ in 0..1000 {
            let Choice::One(backend) = choose(&app, None, &[], 0, rng) else { panic!("none") };
            leases.push(Lease::take(&app, backend, &dirty).unwrap());
        }
        let counts: Vec<u32> = app.backends.iter().map(|b| b.in_flight()).collect();
        assert!(counts.iter().all(|n| (95..=105).contains(n)), "{counts:?}");
    }

    #[test]
    fn turns_are_taken_in_order() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(2);
        let app = app(3, Policy { balancing: Balancing::RoundRobin, ..Policy::default() });
        let mut counts = BTreeMap::new();
        for _ in 0..30 {
            *counts.entry(name(choose(&app, None, &[], 0, rng)).unwrap().to_owned()).or_insert(0) += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|n| *n == 10), "{counts:?}");
        // Who is out is passed over, and has its turn again afterwards.
        app.backends[1].failed(0, Duration::from_secs(1));
        assert!((0..9).all(|_| name(choose(&app, None, &[], 10, rng)) != Some("web.1")));
        assert!((0..3).any(|_| name(choose(&app, None, &[], 2000, rng)) == Some("web.1")));
    }

    #[test]
    fn chance_reaches_all() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(4);
        let app = app(3, Policy { balancing: Balancing::Random, ..Policy::default() });
        let mut counts = BTreeMap::new();
        for _ in 0..3000 {
            *counts.entry(name(choose(&app, None, &[], 0, rng)).unwrap().to_owned()).or_insert(0) += 1;
        }
        assert!(counts.values().all(|n| (900..1100).contains(n)), "{counts:?}");
    }

    #[test]
    fn the_preferred_one_if_it_is_fit() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(5);
        let app = app(3, Policy::default());
        let wanted = Some(app.backends[2].instance);
        assert!((0..50).all(|_| name(choose(&app, wanted, &[], 0, rng)) == Some("web.2")));
        app.backends[2].failed(0, Duration::from_secs(1));
        assert!((0..50).all(|_| name(choose(&app, wanted, &[], 10, rng)) != Some("web.2")));
    }

    proptest! {
        /// The invariants of the file's head, for every way of choosing and every state of the instances.
        #[test]
        fn never_a_tried_or_a_full_one_and_an_ejected_one_last(
            states in proptest::collection::vec((any::<bool>(), any::<bool>(), 0_u32..4), 0..6),
            way in 0..3_u8, prefer in proptest::option::of(0_u128..6), seed in any::<u64>(),
        ) {
            let balancing = [Balancing::LeastBusyOfTwo, Balancing::RoundRobin, Balancing::Random][usize::from(way)];
            let n = u16::try_from(states.len()).unwrap();
            let app = app(n, Policy { balancing, max_per_instance: Some(2), ..Policy::default() });
            let dirty = Arc::new(Dirty::default());
            let (mut tried, mut leases) = (vec![], vec![]);
            for (backend, (was_tried, out, busy)) in app.backends.iter().zip(&states) {
                if *was_tried { tried.push(backend.serial); }
                if *out { backend.failed(0, Duration::from_secs(1)); }
                leases.extend((0..*busy).filter_map(|_| Lease::take(&app, backend, &dirty).ok()));
            }
            let rng = &mut rand::rngs::StdRng::seed_from_u64(seed);
            let chosen = choose(&app, prefer.map(|p| InstanceId(Uuid::from_u128(p))), &tried, 10, rng);
            let open = |b: &&Arc<Backend>| !tried.contains(&b.serial) && b.in_flight() < 2;
            match chosen {
                Choice::One(b) => {
                    prop_assert!(open(&b));
                    let better = app.backends.len() > 1 && app.backends.iter().filter(open).any(|b| !b.is_out(10));
                    prop_assert!(!b.is_out(10) || !better);
                }
                Choice::Full => prop_assert!(!app.backends.iter().any(|b| open(&b)) && tried.len() < states.len()),
                Choice::None => prop_assert_eq!(tried.len(), states.len()),
            }
        }
    }
}
