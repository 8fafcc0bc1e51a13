//! Which route a request takes, and whether a TLS connection is passed through: by host first, then by path.
//!
//! Programs differ in how they read a path ([`flex_model::path`]). A request takes the route of the normal reading, unless
//! another reading leads to a route that asks more of whoever comes in (a password, an address, a rate): then that one,
//! since the instance may read it so. Where two routes ask different things, it takes none.
//!
//! Invariant: a name that is passed through takes no connection from a more special one that is served here.

use crate::table::{Host, Route, Routes, SniNames};
use flex_model::path;
use std::sync::{Arc, atomic::Ordering::SeqCst};

/// What a host has for a path: its longest entry that covers it, and a longer one that would if case made no difference.
type Covering<'a> = (Option<&'a Arc<Route>>, Option<&'a Arc<Route>>);

fn at_path<'a>(host: &'a Host, path: &str) -> Covering<'a> {
    let mut loose = None;
    for (begin, route) in host.entries() {
        let covers = begin.is_empty() || path.strip_prefix(begin).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        if covers {
            return (Some(route), loose.filter(|(len, _)| *len > begin.len()).map(|(_, r)| r));
        }
        if loose.is_none() && path::begins_in_any_case(path, begin) {
            loose = Some((begin.len(), route));
        }
    }
    (None, loose.map(|(_, r)| r))
}

/// The suffixes of a name that a wildcard may have, the longest first.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[at + 1..])
}

/// The first of those that ask of a client at least what each of the others does.
fn strictest(candidates: &[Arc<Route>]) -> Option<&Arc<Route>> {
    let guards = |a: &Arc<Route>, b: &Arc<Route>| Arc::ptr_eq(a, b) || a.policy().http.guards_as_much_as(&b.policy().http);
    candidates.iter().find(|a| candidates.iter().all(|b| guards(a, b)))
}

impl Routes {
    /// The route of a request by host (lower case, no port) and path: at the exact name, else at the wildcard with the
    /// longest suffix; there, the longest path. None too where it would take another route by another reading of its path,
    /// and neither asks all that the other does ([`Routes::is_unclear`]).
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Route>> {
        // Most hosts lead to one place, however a path is read.
        let only = self.exact.with(host, |h| match h {
            Host::One(route) => Some(route.clone()),
            Host::Many(_) => None,
        });
        if let Some(Some(route)) = only {
            return Some(route);
        }
        if path::is_plain(path) {
            return match self.at(host, path) {
                (Some(exact), Some(loose)) => strictest(&[exact, loose]).cloned(),
                (exact, _) => exact,
            };
        }
        strictest(&self.candidates(host, path)).cloned()
    }

    /// Whether there are routes for it, and which one it takes depends on who reads its path.
    pub(crate) fn is_unclear(&self, host: &str, path: &str) -> bool {
        let candidates = self.candidates(host, path);
        !candidates.is_empty() && strictest(&candidates).is_none()
    }

    /// The routes of all readings, that of the normal one first.
    fn candidates(&self, host: &str, path: &str) -> Vec<Arc<Route>> {
        let all = self.all_of(host);
        let open = flex_model::HttpPolicy::default();
        if all.iter().all(|r| open.guards_as_much_as(&r.policy().http)) {
            // Nobody is kept out anywhere.
            return self.at(host, &path::normal(path)).0.into_iter().collect();
        }
        if path.len() > path::READ_MOST {
            return all;
        }
        let (mut found, mut loosely): (Vec<Arc<Route>>, Vec<Arc<Route>>) = (Vec::new(), Vec::new());
        for reading in path::readings(path) {
            let (exact, loose) = self.at(host, &reading);
            for (route, to) in [(exact, &mut found), (loose, &mut loosely)] {
                if let Some(route) = route.filter(|r| !to.iter().any(|known| Arc::ptr_eq(known, r))) {
                    to.push(route);
                }
            }
        }
        if !found.is_empty() {
            found.append(&mut loosely);
        }
        found
    }

    fn at(&self, host: &str, path: &str) -> (Option<Arc<Route>>, Option<Arc<Route>>) {
        let owned = |(exact, loose): Covering<'_>| (exact.cloned(), loose.cloned());
        let (exact, mut loose) = self.exact.with(host, |h| owned(at_path(h, path))).unwrap_or_default();
        if exact.is_some() || self.wildcard.count.load(SeqCst) == 0 {
            return (exact, loose);
        }
        for suffix in suffixes(host) {
            let (exact, looser) = self.wildcard.with(suffix, |h| owned(at_path(h, path))).unwrap_or_default();
            loose = loose.or(looser);
            if exact.is_some() {
                return (exact, loose);
            }
        }
        (None, loose)
    }

    /// Every route that some path of a host takes.
    fn all_of(&self, host: &str) -> Vec<Arc<Route>> {
        let routes = |h: &Host| h.entries().map(|(_, route)| route.clone()).collect::<Vec<_>>();
        let mut all = self.exact.with(host, routes).unwrap_or_default();
        if self.wildcard.count.load(SeqCst) > 0 {
            all.extend(suffixes(host).filter_map(|s| self.wildcard.with(s, routes)).flatten());
        }
        all
    }

    /// Whether TLS for this name (lower case) is passed through: nothing more special is served here.
    pub(crate) fn passes(&self, name: &str) -> bool {
        let l4 = self.l4.load();
        let Some((special, _)) = l4.names.best(name) else { return false };
        let served = if self.exact.with(name, |_| ()).is_some() {
            Some(usize::MAX)
        } else {
            suffixes(name).find(|s| self.wildcard.with(s, |_| ()).is_some()).map(str::len)
        };
        served.is_none_or(|served| special >= served)
    }
}

impl SniNames {
    /// The exact name, else the longest wildcard, and how special that is. `name` in lower case.
    pub(crate) fn best(&self, name: &str) -> Option<(usize, &Arc<Route>)> {
        if let Some(route) = self.0.get(name) {
            return Some((usize::MAX, route));
        }
        suffixes(name).find_map(|s| Some((s.len(), self.0.get(format!("*.{s}").as_str())?)))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Route>> {
        self.best(name).map(|(_, route)| route)
    }
}
