//! The apps of a routing table: in the order of their ids, in pieces that tables share. A table that differs in one app
//! from the one before costs one piece and the list of pieces, whatever the number of apps; what differs between two tables
//! is found by looking at the pieces that they do not share.
//!
//! Invariants: ids grow from first to last, each is there once; no piece is empty, none is larger than [`MOST`].

use crate::{AppId, AppRoute};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Of one piece. A change copies one piece and the list of pieces: for 100,000 apps both are about as long.
const MOST: usize = 256;
/// Of a new piece, so that the next app that comes does not split it.
const FILL: usize = 192;

type Piece = Arc<[Arc<AppRoute>]>;

/// Apps in the order of their ids. A clone shares everything.
#[derive(Clone, Default)]
pub struct Apps {
    pieces: Arc<[Piece]>,
    len: usize,
}

/// An app before and after.
pub type Difference = (Option<Arc<AppRoute>>, Option<Arc<AppRoute>>);

impl Apps {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> Iter<'_> {
        Iter(self.pieces.iter().flat_map(inside as Inside))
    }

    /// The app of that id.
    pub fn get(&self, id: AppId) -> Option<&Arc<AppRoute>> {
        let piece = self.pieces[..self.pieces.partition_point(|p| p[0].app <= id)].last()?;
        piece.binary_search_by_key(&id, |a| a.app).ok().map(|at| &piece[at])
    }

    /// These apps with `changed` in the place of those with their ids, and without those that are gone.
    #[must_use]
    pub fn with(&self, changed: impl IntoIterator<Item = Arc<AppRoute>>, gone: &BTreeSet<AppId>) -> Self {
        let mut edits: BTreeMap<AppId, Option<Arc<AppRoute>>> = gone.iter().map(|id| (*id, None)).collect();
        edits.extend(changed.into_iter().map(|a| (a.app, Some(a))));
        if edits.is_empty() {
            return self.clone();
        }
        let mut edits = edits.into_iter().peekable();
        let mut pieces = Vec::with_capacity(self.pieces.len() + 1);
        for (at, piece) in self.pieces.iter().enumerate() {
            let next = self.pieces.get(at + 1).map(|p| p[0].app);
            let mut mine = Vec::new();
            while let Some(edit) = edits.next_if(|(id, _)| next.is_none_or(|next| *id < next)) {
                mine.push(edit);
            }
            if mine.is_empty() {
                pieces.push(piece.clone());
            } else {
                cut(merge(piece, mine), &mut pieces);
            }
        }
        // There was no piece at all.
        cut(edits.filter_map(|(_, app)| app).collect(), &mut pieces);
        let len = pieces.iter().map(|p| p.len()).sum();
        if pieces.len() > 2 * (len / FILL + 1) {
            // Many apps went: the pieces are small.
            return pieces.iter().flat_map(|p| p.iter().cloned()).collect();
        }
        Self { pieces: pieces.into(), len }
    }

    /// Apps that came, went or differ in the later list, in the order of their ids.
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        self.walk(after, |a, b| a == b)
    }

    /// The same, and those that lie elsewhere although they are what they were.
    pub fn replaced(&self, after: &Self) -> Vec<Difference> {
        self.walk(after, |_, _| false)
    }

    /// `same`: of two allocations.
    fn walk(&self, after: &Self, same: impl Fn(&Arc<AppRoute>, &Arc<AppRoute>) -> bool) -> Vec<Difference> {
        let (mut old, mut new) = (Cursor::new(self), Cursor::new(after));
        let mut out = Vec::new();
        loop {
            if let (Some(a), Some(b)) = (old.whole(), new.whole())
                && Arc::ptr_eq(a, b)
            {
                old.skip();
                new.skip();
                continue;
            }
            let order = match (old.peek(), new.peek()) {
                (None, None) => return out,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                // Most are the same allocation: to know that, nothing of them is read.
                (Some(a), Some(b)) if Arc::ptr_eq(a, b) => Ordering::Equal,
                (Some(a), Some(b)) => a.app.cmp(&b.app),
            };
            let a = if order.is_le() { old.next() } else { None };
            let b = if order.is_ge() { new.next() } else { None };
            if let (Some(a), Some(b)) = (a, b)
                && (Arc::ptr_eq(a, b) || same(a, b))
            {
                continue;
            }
            out.push((a.cloned(), b.cloned()));
        }
    }
}

/// A piece with its edits, both in order.
fn merge(piece: &Piece, edits: Vec<(AppId, Option<Arc<AppRoute>>)>) -> Vec<Arc<AppRoute>> {
    let mut out = Vec::with_capacity(piece.len() + edits.len());
    let mut rest = &**piece;
    for (id, app) in edits {
        let before = rest.partition_point(|a| a.app < id);
        out.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        if rest.first().is_some_and(|a| a.app == id) {
            rest = &rest[1..];
        }
        out.extend(app);
    }
    out.extend_from_slice(rest);
    out
}

/// As one piece if it fits, else as several of much the same size.
fn cut(apps: Vec<Arc<AppRoute>>, pieces: &mut Vec<Piece>) {
    if apps.is_empty() {
        return;
    }
    if apps.len() <= MOST {
        return pieces.push(apps.into());
    }
    pieces.extend(apps.chunks(FILL).map(Piece::from));
}

impl FromIterator<Arc<AppRoute>> for Apps {
    /// In whatever order; of two with one id the first stays.
    fn from_iter<I: IntoIterator<Item = Arc<AppRoute>>>(apps: I) -> Self {
        let mut apps: Vec<_> = apps.into_iter().collect();
        apps.sort_by_key(|a| a.app);
        apps.dedup_by_key(|a| a.app);
        let (len, mut pieces) = (apps.len(), Vec::new());
        cut(apps, &mut pieces);
        Self { pieces: pieces.into(), len }
    }
}

/// A place in a list.
struct Cursor<'a> {
    pieces: &'a [Piece],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(apps: &'a Apps) -> Self {
        Self { pieces: &apps.pieces, at: 0 }
    }

    /// The piece that it stands before.
    fn whole(&self) -> Option<&'a Piece> {
        self.pieces.first().filter(|_| self.at == 0)
    }

    fn skip(&mut self) {
        (self.pieces, self.at) = (&self.pieces[1..], 0);
    }

    fn peek(&self) -> Option<&'a Arc<AppRoute>> {
        self.pieces.first().map(|p| &p[self.at])
    }

    fn next(&mut self) -> Option<&'a Arc<AppRoute>> {
        let piece = self.pieces.first()?;
        let app = &piece[self.at];
        self.at += 1;
        if self.at == piece.len() {
            self.skip();
        }
        Some(app)
    }
}

fn inside(piece: &Piece) -> std::slice::Iter<'_, Arc<AppRoute>> {
    piece.iter()
}

type Inside = for<'a> fn(&'a Piece) -> std::slice::Iter<'a, Arc<AppRoute>>;

/// Goes over all apps.
#[derive(Debug)]
pub struct Iter<'a>(std::iter::FlatMap<std::slice::Iter<'a, Piece>, std::slice::Iter<'a, Arc<AppRoute>>, Inside>);

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<AppRoute>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<'a> IntoIterator for &'a Apps {
    type Item = &'a Arc<AppRoute>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl PartialEq for Apps {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl Eq for Apps {}

impl std::fmt::Debug for Apps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Serialize for Apps {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self)
    }
}

impl<'de> Deserialize<'de> for Apps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<Arc<AppRoute>>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppState, Uuid};

    fn id(n: u64) -> AppId {
        AppId(Uuid::from_u128(n.into()))
    }

    fn app(n: u64, state: AppState) -> Arc<AppRoute> {
        Arc::new(AppRoute::new(id(n), "app".parse().unwrap(), vec![], state, vec![]))
    }

    /// Numbers that look like chance and are the same each time.
    fn numbers() -> impl FnMut(u64) -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    /// Whatever was changed one after another, the list is what it would be made from nothing, and what differs between two
    /// lists is what differs between them app by app.
    #[test]
    fn changed_step_by_step_it_is_as_made_from_nothing() {
        let mut number = numbers();
        for size in [0, 1, 3, MOST as u64, 5_000] {
            let mut model: BTreeMap<AppId, Arc<AppRoute>> =
                (0..size).map(|n| (id(n * 3), app(n * 3, AppState::Serving))).collect();
            let mut apps: Apps = model.values().cloned().collect();
            for step in 0..60 {
                let before = (apps.clone(), model.clone());
                // A few, or so many that pieces split and vanish.
                let many = if step % 10 == 0 { size / 2 + 700 } else { 3 };
                let changed: Vec<_> = (0..number(many + 1)).map(|_| app(number(3 * size + 9), AppState::Crashed)).collect();
                let gone: BTreeSet<AppId> = (0..number(many + 1)).map(|_| id(number(3 * size + 9))).collect();
                model.retain(|id, _| !gone.contains(id));
                model.extend(changed.iter().map(|a| (a.app, a.clone())));
                apps = apps.with(changed, &gone);
                assert_eq!(apps.len(), model.len());
                assert!(apps.iter().zip(model.values()).all(|(a, b)| a == b) && apps.iter().count() == model.len());
                assert!(apps.pieces.iter().all(|p| !p.is_empty() && p.len() <= MOST));
                assert_eq!(apps, model.values().cloned().collect::<Apps>());
                let ids: BTreeSet<_> = before.1.keys().chain(model.keys()).collect();
                let by_hand = ids.into_iter().map(|id| (before.1.get(id), model.get(id))).filter(|(a, b)| a != b);
                let by_hand: Vec<_> = by_hand.map(|(a, b)| (a.cloned(), b.cloned())).collect();
                assert_eq!(before.0.differences(&apps), by_hand);
                let asked = id(number(3 * size + 9));
                assert_eq!(apps.get(asked), model.get(&asked));
            }
        }
    }

    #[test]
    fn a_change_shares_every_other_piece() {
        let apps: Apps = (0..100_000).map(|n| app(n, AppState::Serving)).collect();
        let next = apps.with([app(50_000, AppState::Crashed)], &BTreeSet::new());
        let other = apps.pieces.iter().zip(next.pieces.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!((apps.pieces.len(), other), (next.pieces.len(), 1));
        assert_eq!(apps.differences(&next).len(), 1);
    }

    #[test]
    fn many_that_go_leave_no_crumbs() {
        let apps: Apps = (0..50_000).map(|n| app(n, AppState::Serving)).collect();
        let gone = (0..50_000).filter(|n| n % 100 != 0).map(id).collect();
        let left = apps.with([], &gone);
        assert_eq!(left.len(), 500);
        assert!(left.pieces.len() <= 6, "{}", left.pieces.len());
    }
}
