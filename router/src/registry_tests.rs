use super::*;
use crate::{
    shared::Dirty,
    table::{Lease, NoPlace},
};
use flex_model::{AppState, PathPrefix, Policy, Pool, RouteId, Target, Uuid};
use proptest::prelude::*;
use std::time::Duration;

fn id(n: u128) -> AppId {
    AppId(Uuid::from_u128(n))
}

fn backend(n: u128) -> flex_model::Backend {
    let instance = InstanceId(Uuid::from_u128(n));
    flex_model::Backend { instance, name: format!("web.{n}"), address: ([127, 0, 0, 1], 80).into() }
}

fn app(n: u128, domains: &[&str]) -> AppRoute {
    let domains = domains.iter().map(|d| d.parse().unwrap()).collect();
    AppRoute::new(id(n), "app".parse().unwrap(), domains, AppState::Serving, vec![backend(n)])
}

fn http(n: u128, host: &str, path: &str, targets: Vec<Target>) -> flex_model::Route {
    let matches = Match::Http { host: host.parse().unwrap(), path: path.parse().unwrap() };
    flex_model::Route { id: RouteId(Uuid::from_u128(n)), matches, targets, policy: None }
}

fn to(process: &str, weight: u32) -> Target {
    Target { weight, ..Target::to(process.parse().unwrap()) }
}

fn applied(apps: Vec<AppRoute>) -> (Registry, Routes) {
    let (mut registry, routes) = (Registry::default(), Routes::default());
    registry.apply(&routes, &Arc::new(RouteTable::new(1, apps)));
    (registry, routes)
}

fn find(routes: &Routes, host: &str, path: &str) -> Option<u128> {
    routes.find(host, path).map(|r| r.app().0.as_u128())
}

#[test]
fn exact_before_the_longest_wildcard() {
    let (registry, routes) =
        applied(vec![app(1, &["*.b.c"]), app(2, &["a.b.c"]), app(3, &["*.x.b.c"]), app(4, &["*.c"]), app(5, &["a.b.c"])]);
    let find = |host: &str| find(&routes, host, "/");
    assert_eq!(find("a.b.c"), Some(2));
    assert_eq!(find("z.b.c"), Some(1));
    assert_eq!(find("y.z.b.c"), Some(1));
    assert_eq!(find("y.x.b.c"), Some(3));
    assert_eq!(find("b.c"), Some(4));
    assert_eq!(find("c"), None);
    assert_eq!(find(""), None);
    assert_eq!(find("b.d"), None);
    let problems = registry.problems();
    assert!(problems.len() == 1 && problems[0].app == id(5) && problems[0].message.contains("a.b.c/"), "{problems:?}");
}

#[test]
fn the_longest_path_and_only_whole_segments() {
    let one = AppRoute { routes: vec![http(9, "a.b", "/api", vec![to("api", 1)])], ..app(1, &["a.b"]) };
    let two = AppRoute { routes: vec![http(8, "a.b", "/api/v2", vec![to("web", 1)])], ..app(2, &[]) };
    let (_, routes) = applied(vec![one, two]);
    let at = |path: &str| routes.find("a.b", path).map(|r| (r.app().0.as_u128(), r.id().map(|r| r.0.as_u128())));
    assert_eq!(at("/"), Some((1, None)));
    assert_eq!(at("/api"), Some((1, Some(9))));
    assert_eq!(at("/apis"), Some((1, None)));
    assert_eq!(at("/api/v2/x"), Some((2, Some(8))));
    assert_eq!(at("*"), Some((1, None)));
}

#[test]
fn a_host_without_a_root_leaves_the_rest_to_the_wildcard() {
    let one = AppRoute { routes: vec![http(9, "a.b.c", "/api", vec![to("web", 1)])], ..app(1, &[]) };
    let (_, routes) = applied(vec![one, app(2, &["*.b.c"])]);
    assert_eq!(find(&routes, "a.b.c", "/api/x"), Some(1));
    assert_eq!(find(&routes, "a.b.c", "/"), Some(2));
}

#[test]
fn weights_share_and_empty_targets_get_nothing() {
    let pool = |process: &str, state, backends| Pool { process: process.parse().unwrap(), version: None, state, backends };
    let pools = vec![
        pool("canary", AppState::Serving, vec![backend(7)]),
        pool("empty", AppState::Starting, vec![]),
        pool("off", AppState::Serving, vec![backend(8)]),
    ];
    let targets = vec![to("web", 3), to("canary", 1), to("empty", 6), to("off", 0)];
    let one = AppRoute { pools, routes: vec![http(9, "a.b", "/", targets)], ..app(1, &["a.b"]) };
    let (_, routes) = applied(vec![one]);
    let route = routes.find("a.b", "/x").unwrap();
    let mut count = BTreeMap::new();
    for random in 0..400 {
        *count.entry(route.choose(random).unwrap().backends[0].name.clone()).or_insert(0) += 1;
    }
    assert_eq!(count, BTreeMap::from([("web.1".into(), 300), ("web.7".into(), 100)]));
}

#[test]
fn an_absent_instance_takes_no_request_and_is_counted_until_its_last() {
    let dirty = Arc::new(Dirty::default());
    let (mut registry, routes) = applied(vec![app(7, &["a.b"])]);
    let target = routes.find("a.b", "/").unwrap().choose(0).unwrap().clone();
    let backend = target.backends[0].clone();
    let running = Lease::take(&target, &backend, &dirty).unwrap();
    registry.apply(&routes, &Arc::new(RouteTable::new(2, [])));
    assert!(routes.find("a.b", "/").is_none());
    assert_eq!(Lease::take(&target, &backend, &dirty).unwrap_err(), NoPlace::Retired);
    assert_eq!(registry.busy(&dirty, 0).0, BTreeMap::from([(backend.instance, 1)]));
    drop(running);
    assert!(registry.busy(&dirty, 0).0.is_empty());
    assert!(registry.instances.is_empty() && registry.busy.is_empty());
}

#[test]
fn failures_back_off_and_a_success_forgives() {
    let (_, routes) = applied(vec![app(7, &["a.b"])]);
    let backend = routes.find("a.b", "/").unwrap().choose(0).unwrap().backends[0].clone();
    let second = Duration::from_secs(1);
    backend.failed(0, second);
    backend.failed(10, second);
    assert!(backend.is_out(999) && !backend.is_out(1000));
    backend.failed(1000, second);
    assert!(backend.is_out(2999) && !backend.is_out(3000));
    backend.succeeded();
    assert!(!backend.is_out(1500));
    backend.failed(4000, second);
    assert!(!backend.is_out(5000));
}

#[test]
fn silence_in_a_row_backs_off_and_an_answer_forgives() {
    let (_, routes) = applied(vec![app(7, &["a.b"])]);
    let backend = routes.find("a.b", "/").unwrap().choose(0).unwrap().backends[0].clone();
    let second = Duration::from_secs(1);
    assert!(!backend.was_silent(0, second) && !backend.was_silent(0, second));
    // An answer between them: it was the request.
    backend.answered();
    assert!(!backend.was_silent(0, second) && !backend.was_silent(0, second) && !backend.is_out(0));
    assert!(backend.was_silent(0, second) && !backend.was_silent(10, second));
    // That connections are made is no news.
    backend.succeeded();
    assert!(backend.is_out(999) && !backend.is_out(1000));
    assert!(backend.was_silent(1000, second));
    assert!(backend.is_out(2999) && !backend.is_out(3000));
    backend.answered();
    assert!(!backend.is_out(1500) && !backend.was_silent(1500, second));
    // The one does not forgive the other.
    backend.failed(4000, second);
    backend.answered();
    assert!(backend.is_out(4500));
}

#[test]
fn places_are_told_to_each_queue_of_the_app() {
    use std::{
        future::Future as _,
        pin::pin,
        task::{Context, Waker},
    };
    let limited = |most| Some(Arc::new(Policy { max_per_instance: most, ..Policy::default() }));
    let with = |route: flex_model::Route, policy| flex_model::Route { policy, ..route };
    let all = || {
        vec![
            with(http(1, "a.b", "/one", vec![to("web", 1)]), limited(Some(1))),
            with(http(2, "a.b", "/five", vec![to("web", 1)]), limited(Some(5))),
            with(http(3, "a.b", "/any", vec![to("web", 1)]), None),
            with(http(4, "a.b", "/api", vec![to("api", 1)]), limited(Some(1))),
        ]
    };
    let table = |n| RouteTable::new(n, [AppRoute { routes: all(), ..app(7, &["a.b"]) }]);
    let (mut registry, routes) = (Registry::default(), Routes::default());
    registry.apply(&routes, &Arc::new(table(1)));
    let (dirty, at) = (Arc::new(Dirty::default()), |path: &str| routes.find("a.b", path).unwrap().choose(0).unwrap().clone());
    let (one, five, any, api) = (at("/one"), at("/five"), at("/any"), at("/api"));
    let lease = Lease::take(&any, &any.backends[0], &dirty).unwrap();
    assert!(!one.has_room() && five.has_room() && any.has_room() && !api.has_room());
    let _waits = crate::shared::Place::take(&one.waiting.queued, 9).unwrap();
    let (mut api_waits, mut one_waits) = (pin!(api.freed.notified()), pin!(one.freed.notified()));
    api_waits.as_mut().enable();
    one_waits.as_mut().enable();
    // A newer table has the same queues.
    registry.apply(&routes, &Arc::new(table(2)));
    assert!(Arc::ptr_eq(&at("/one").freed, &one.freed) && !Arc::ptr_eq(&one.freed, &five.freed));
    drop(lease);
    assert!(one_waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() && one.has_room());
}

/// Password, address or rate: what a route asks of a client cannot be got round by writing its path in another way.
#[test]
fn a_path_is_chosen_by_as_whoever_reads_it() {
    let guarded = |n, path: &str, rules: serde_json::Value| {
        let serde_json::Value::Object(rules) = rules else { panic!("no object") };
        let http_policy = flex_model::HttpPolicy::read(rules).unwrap();
        let policy = Some(Arc::new(Policy { http: http_policy, ..Policy::default() }));
        flex_model::Route { policy, ..http(n, "a.b", path, vec![to("web", 1)]) }
    };
    let allow = || serde_json::json!({ "allow": ["10.0.0.0/8"] });
    let both = serde_json::json!({ "allow": ["10.0.0.0/8"], "rate_limit": { "requests": 1 } });
    let routes = vec![
        guarded(1, "/admin", allow()),
        guarded(2, "/admin/deep", both),
        guarded(3, "/slow", serde_json::json!({ "rate_limit": { "requests": 9 } })),
        http(4, "a.b", "/api", vec![to("web", 1)]),
        guarded(5, "/caf%c3%a9", allow()),
    ];
    let (_, found) = applied(vec![AppRoute { routes, ..app(1, &["a.b", "*.b"]) }, app(2, &["c.d"])]);
    let at = |path: &str| found.find("a.b", path).map(|r| r.id().map_or(0, |r| r.0.as_u128()));
    for (path, id) in [
        ("/", 0),
        ("/admin", 1),
        ("/admins", 0),
        ("/%61dmin", 1),
        ("/%61%64%6D%69%6e/x", 1),
        ("//admin", 1),
        ("/./admin", 1),
        ("/x/../admin", 1),
        ("/x/%2e%2e/admin", 1),
        ("/admin;x", 1),
        ("/admin;x=1/y", 1),
        ("/x/..;/admin", 1),
        ("/x%2F..%2Fadmin", 1),
        ("/admin%2Fx", 1),
        ("/x\\..\\admin", 1),
        ("/Admin/x", 1),
        ("/ADMIN", 1),
        // Programs that do not resolve it take it for what it begins with.
        ("/admin/../x", 1),
        ("/admin/..%2fx", 1),
        ("/%61dmin/..;/x", 1),
        ("/admin/../admin/deep", 2),
        ("/admin/deep/../..", 2),
        ("//slow", 3),
        // Where nobody is kept out, the normal reading decides.
        ("/x/../api/y", 4),
        ("//api", 4),
        ("/api/../y", 0),
        ("/api%2Fy", 0),
        ("/Api", 0),
        ("/caf%C3%A9", 5),
        ("/caf\u{e9}", 5),
        ("/caf%C3%A9s", 0),
        ("/100%", 0),
    ] {
        assert_eq!(at(path), Some(id), "{path}");
        assert!(!found.is_unclear("a.b", path), "{path}");
    }
    // One asks for an address, the other counts: neither will do for both.
    for path in ["/slow/../admin", "/admin/../slow", &*format!("/admin/{}/../../x", "x".repeat(9_000))] {
        assert!(at(path).is_none() && found.is_unclear("a.b", path), "{path:.40}");
    }
    // Hosts that lead to one place are not looked into.
    assert_eq!(found.find("c.d", "//x/../%61").map(|r| r.app()), Some(id(2)));
    assert!(found.find("nobody.test", "//x").is_none() && !found.is_unclear("nobody.test", "//x"));
}

#[test]
fn ports_and_names_below_http() {
    let route = |n: u128, matches| flex_model::Route {
        id: RouteId(Uuid::from_u128(n)),
        matches,
        targets: vec![to("web", 1)],
        policy: None,
    };
    let tcp = |port: u16| Match::Tcp { port: port.try_into().unwrap(), tls: false };
    let sni =
        |host: &str, port: Option<u16>| Match::Sni { host: host.parse().unwrap(), port: port.map(|p| p.try_into().unwrap()) };
    let one = AppRoute {
        routes: vec![route(1, tcp(5432)), route(2, sni("*.db.test", Some(7000))), route(3, sni("a.test", None))],
        ..app(1, &[])
    };
    let two = AppRoute { routes: vec![route(4, tcp(5432)), route(5, tcp(7000))], ..app(2, &[]) };
    let (mut registry, routes) = applied(vec![one.clone(), two]);
    let l4 = routes.l4.load_full();
    assert_eq!(l4.ports[&5432].plain.as_ref().unwrap().app(), id(1));
    assert_eq!(l4.ports[&7000].plain.as_ref().unwrap().app(), id(2));
    assert_eq!(l4.ports[&7000].names.find("x.db.test").unwrap().app(), id(1));
    assert!(l4.ports[&7000].names.find("db.test").is_none() && l4.names.find("a.test").is_some());
    assert_eq!(registry.problems().iter().map(|p| p.app).collect::<Vec<_>>(), [id(2)]);
    registry.apply(&routes, &Arc::new(RouteTable::new(2, [one])));
    assert!(registry.problems().is_empty());
    assert!(routes.l4.load().ports[&7000].plain.is_none());
}

/// What a host and a path should lead to, by looking at every claim.
fn by_hand(apps: &[AppRoute], host: &str, path: &str) -> Option<AppId> {
    let suffixes = std::iter::successors(host.split_once('.').map(|x| x.1), |s| s.split_once('.').map(|x| x.1));
    let names = std::iter::once(host.to_owned()).chain(suffixes.map(|s| format!("*.{s}")));
    names.into_iter().find_map(|name| {
        let claims = apps.iter().flat_map(|a| {
            let domains = a.domains.iter().filter(|d| d.as_str() == name).map(|_| PathPrefix::default());
            let routes = a.routes.iter().filter_map(|r| match &r.matches {
                Match::Http { host, path } if host.as_str() == name => Some(path.clone()),
                _ => None,
            });
            domains.chain(routes).map(|p| (p, a.app))
        });
        let fitting = claims.filter(|(p, _)| p.covers(path));
        // The longest path; of those the lowest id.
        fitting.max_by(|(p, a), (q, b)| (p.as_str().len(), b).cmp(&(q.as_str().len(), a))).map(|(_, app)| app)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever tables came before, what is in force is what the last one says: nothing of an earlier one is left, and
    /// nothing that did not change was lost.
    #[test]
    fn changes_one_after_another_come_to_the_same_as_the_last_table(
        tables in proptest::collection::vec(
            proptest::collection::vec((0_u128..5, proptest::collection::vec((0_usize..6, 0_usize..4), 0..4)), 0..6), 1..5)
    ) {
        const HOSTS: [&str; 6] = ["a.b.c", "*.b.c", "x.b.c", "*.c", "b.c", "q.z"];
        const PATHS: [&str; 4] = ["/", "/p", "/p/q", "/r"];
        let (mut registry, routes) = (Registry::default(), Routes::default());
        let (mut last, mut late) = (Vec::new(), Vec::new());
        for (n, claims) in tables.iter().enumerate() {
            // Some are asked where they lead to before the next table, some after.
            late.extend(HOSTS.iter().filter_map(|h| routes.find(h, "/")));
            late.iter().step_by(2).for_each(|route: &Arc<Route>| _ = route.targets().count());
            let mut apps: BTreeMap<u128, AppRoute> = BTreeMap::new();
            for (app_id, mine) in claims {
                let entry = apps.entry(*app_id).or_insert_with(|| app(*app_id, &[]));
                for (host, path) in mine {
                    if *path == 0 && host % 2 == 0 {
                        entry.domains.push(HOSTS[*host].parse().unwrap());
                    } else {
                        entry.routes.push(http(*app_id, HOSTS[*host], PATHS[*path], vec![to("web", 1)]));
                    }
                }
            }
            last = apps.into_values().collect();
            registry.apply(&routes, &Arc::new(RouteTable::new(n as u64 + 1, last.clone())));
        }
        // What people are told of a request's way is the way that it takes.
        let told = RouteTable::new(1, last.clone());
        for host in ["a.b.c", "x.b.c", "y.b.c", "b.c", "c", "q.z", "u.v.c"] {
            for path in ["/", "/p", "/pp", "/p/q/1", "/r/"] {
                prop_assert_eq!(routes.find(host, path).map(|r| r.app()), by_hand(&last, host, path), "{} {}", host, path);
                let (takes, is_told) = (routes.find(host, path), told.find(host, path));
                prop_assert_eq!(takes.map(|r| (r.app(), r.id())), is_told.map(|f| (f.app.app, f.route.map(|r| r.id))), "{} {}", host, path);
            }
        }
        let live: BTreeSet<InstanceId> = registry.instances.backends().iter().filter(|b| !b.is_retired()).map(|b| b.instance).collect();
        prop_assert!(live.iter().all(|i| last.iter().any(|a| a.backends[0].instance == *i)));
        // It is what it would be without all that came before: the same hosts with the same paths, which lead to the same.
        let (scratch, anew) = applied(last.clone());
        let told = |r: &Registry| r.problems().into_iter().map(|p| (p.app, p.route)).collect::<BTreeSet<_>>();
        prop_assert_eq!((routes.hosts(), told(&registry)), (anew.hosts(), told(&scratch)));
        for host in HOSTS {
            prop_assert_eq!(routes.host(host).map(|h| shown(&h)), anew.host(host).map(|h| shown(&h)), "{}", host);
        }
        // Who found a route before the table changed and asks late where it leads gets no instance that left.
        for target in late.iter().flat_map(|r| r.targets()) {
            for backend in &target.backends {
                let stays = last.iter().any(|a| a.app == target.id && a.backends[0].instance == backend.instance);
                prop_assert!(stays || backend.is_retired(), "{}", backend.name);
            }
        }
        registry.apply(&routes, &Arc::new(RouteTable::new(99, [])));
        registry.busy(&Dirty::default(), 0);
        prop_assert!(registry.instances.is_empty() && registry.contested.is_empty() && registry.problems.is_empty());
        prop_assert_eq!(routes.hosts(), 0);
    }
}

type Shown = Vec<(String, AppId, Option<RouteId>, Vec<Vec<String>>)>;

/// Everything that a host leads to.
fn shown(host: &Host) -> Shown {
    let names = |app: &crate::table::App| app.backends.iter().map(|b| format!("{} {}", b.name, b.is_retired())).collect();
    let of = |(path, route): (&str, &Arc<Route>)| {
        (path.to_owned(), route.app(), route.id(), route.targets().map(|a| names(a)).collect())
    };
    host.entries().map(of).collect()
}

/// What lies elsewhere is taken over, so that a table is in memory once, and what is under way on its instances stays known.
#[test]
fn the_same_table_from_elsewhere_replaces_the_one_before() {
    let (mut registry, routes) = applied(vec![app(7, &["a.b"])]);
    let dirty = Arc::new(Dirty::default());
    let before = routes.find("a.b", "/").unwrap();
    let target = before.choose(0).unwrap().clone();
    let _lease = Lease::take(&target, &target.backends[0], &dirty).unwrap();
    let again = Arc::new(RouteTable::new(2, [app(7, &["a.b"])]));
    registry.apply(&routes, &again);
    let after = routes.find("a.b", "/").unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&after.choose(0).unwrap().backends[0], &target.backends[0]));
    assert_eq!(Arc::strong_count(again.apps.iter().next().unwrap()), 2, "the table's and the route's");
    assert_eq!(registry.busy(&dirty, 0).0.len(), 1);
}

/// What changes costs what changed, not what there is.
#[test]
fn nothing_is_told_of_instances_that_nobody_asked_for() {
    let apps = (1..=2_000).map(|n| app(n, &[&format!("h{n}.test")]));
    let (mut registry, routes) = applied(apps.collect());
    assert_eq!((routes.hosts(), registry.instances.backends().len()), (2_000, 0));
    let dirty = Arc::new(Dirty::default());
    let target = routes.find("h9.test", "/").unwrap().choose(0).unwrap().clone();
    let backend = target.backends[0].clone();
    for _ in 0..3 {
        let lease = Lease::take(&target, &backend, &dirty).unwrap();
        assert_eq!(registry.busy(&dirty, 0).0, BTreeMap::from([(backend.instance, 1)]));
        assert_eq!(registry.busy.len(), 1);
        drop(lease);
        assert!(registry.busy(&dirty, 0).0.is_empty() && registry.busy.is_empty());
    }
    // Out, it is told of for as long as it is, though nothing is under way.
    backend.failed(0, Duration::from_secs(1));
    dirty.note(&backend);
    assert_eq!(registry.busy(&dirty, 999).1, BTreeSet::from([backend.instance]));
    assert!(registry.busy(&dirty, 1000).1.is_empty() && registry.busy.is_empty());
}
