//! Lists in parts, as Heroku's clients ask for them.
//!
//! `Range: PROPERTY FIRST..LAST; order=desc,max=N`: sorted by the property, only what lies between the bounds (either may be
//! left out; `]FIRST` and `LAST[` leave the bound itself out), at most N of it. An answer that was cut has status 206 and a
//! `Next-Range`, which is the next request's `Range` as it stands. A `Range` that is none of these is not heeded.

use super::answer::{Failure, Listed};
use super::openapi::{Operation, Part};
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request};
use flex_api::{ApiError, ErrorId};
use flex_model::Timestamp;
use std::cmp::Ordering;
use std::convert::Infallible;
use std::fmt;

/// The most that one answer holds, and what it holds unless less is asked for.
const MAX: usize = 1000;

/// What a list is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Number(u64),
    Text(String),
    /// Several may have the same, so that a bound also names the id.
    Time(Timestamp),
}

impl Key {
    /// Text as a key of the same kind.
    fn like(&self, text: &str) -> Option<Self> {
        match self {
            Self::Number(_) => text.parse().ok().map(Self::Number),
            Self::Text(_) => Some(Self::Text(text.to_owned())),
            Self::Time(_) => text.parse().ok().map(Self::Time),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(t) => f.write_str(t),
            Self::Time(t) => write!(f, "{t}"),
        }
    }
}

/// A property that a list can be sorted by.
pub type By<T> = (&'static str, fn(&T) -> Key);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    text: String,
    excluded: bool,
}

impl Bound {
    fn of(text: &str, mark: char) -> Option<Self> {
        let bare = text.trim_matches(mark);
        (!bare.is_empty()).then(|| Self { text: bare.to_owned(), excluded: bare.len() < text.len() })
    }
}

/// What part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    property: Option<String>,
    first: Option<Bound>,
    last: Option<Bound>,
    descending: bool,
    max: Option<usize>,
}

impl Range {
    fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Self::parse(text).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        let (what, options) = text.split_once(';').unwrap_or((text, ""));
        let (property, bounds) = what.trim().split_once(' ')?;
        let (first, last) = bounds.trim().split_once("..")?;
        let option = |key: &str| {
            options.split([',', ';']).filter_map(|o| o.trim().split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v.trim())
        };
        Some(Self {
            property: Some(property.to_owned()),
            first: Bound::of(first, ']'),
            last: Bound::of(last, '['),
            descending: option("order") == Some("desc"),
            max: option("max").and_then(|m| m.parse().ok()),
        })
    }

    /// The part of a list that is asked for. Sorted by the first of `by` unless another property is named; the id is
    /// always among them.
    ///
    /// # Errors
    /// A property or a bound that the list does not know.
    pub fn page<T>(&self, items: Vec<T>, id: fn(&T) -> String, by: &[By<T>]) -> Result<Page<T>, ApiError> {
        let names: Vec<&str> = by.iter().map(|(name, _)| *name).filter(|n| *n != "id").chain(["id"]).collect();
        let refused = |what: String| ApiError::new(ErrorId::RequestedRangeNotSatisfiable, what);
        let name = self.property.as_deref().unwrap_or(names[0]);
        let key_of = by.iter().find(|(n, _)| *n == name).map(|(_, key)| *key);
        if key_of.is_none() && name != "id" {
            let known = names.join(", ");
            return Err(refused(format!("This list has no range by {name}: use one of {known}.")));
        }
        let key = |item: &T| key_of.map_or_else(|| Key::Text(id(item)), |k| k(item));
        let mut keyed: Vec<(Key, String, T)> = items.into_iter().map(|item| (key(&item), id(&item), item)).collect();
        if let Some((like, ..)) = keyed.first() {
            let like = like.clone();
            for (bound, keep, lost) in
                [(&self.first, Ordering::Greater, Ordering::Less), (&self.last, Ordering::Less, Ordering::Greater)]
            {
                let Some(bound) = bound else { continue };
                let tied = bound.text.split_once('~').filter(|_| matches!(like, Key::Time(_)));
                let (text, tie) = tied.map_or((bound.text.as_str(), None), |(t, i)| (t, Some(i)));
                let edge = like.like(text).ok_or_else(|| refused(format!("{text} is no {name}.")))?;
                keyed.retain(|(key, id, _)| {
                    let order = key.cmp(&edge).then_with(|| tie.map_or(Ordering::Equal, |t| id.as_str().cmp(t)));
                    order == keep || (order != lost && !bound.excluded)
                });
            }
        }
        keyed.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        if self.descending {
            keyed.reverse();
        }
        let max = self.max.unwrap_or(MAX).clamp(1, MAX);
        let more = keyed.len() > max;
        keyed.truncate(max);
        let content = keyed.first().zip(keyed.last()).map(|((first, ..), (last, ..))| format!("{name} {first}..{last}"));
        let next = keyed.last().filter(|_| more).map(|(key, id, _)| {
            let at = if matches!(key, Key::Time(_)) { format!("{key}~{id}") } else { key.to_string() };
            let given = |b: &Option<Bound>, before: &str, after: &str| {
                let mark = |on: bool, m: &str| if on { m.to_owned() } else { String::new() };
                b.as_ref()
                    .map_or_else(String::new, |b| format!("{}{}{}", mark(b.excluded, before), b.text, mark(b.excluded, after)))
            };
            if self.descending {
                format!("{name} {}..{at}[; order=desc,max={max}", given(&self.first, "]", ""))
            } else {
                format!("{name} ]{at}..{}; max={max}", given(&self.last, "", "["))
            }
        });
        let head = Head { properties: names.join(", "), content, next };
        Ok(Page { items: keyed.into_iter().map(|(_, _, item)| item).collect(), head })
    }
}

impl<S: Sync> FromRequestParts<S> for Range {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

impl Part for Range {
    fn describe(operation: &mut Operation) {
        operation.ranges = true;
    }
}

/// What the headers of a list say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Names that a `Range` may begin with.
    pub properties: String,
    /// First and last key.
    pub content: Option<String>,
    /// The `Range` that goes on; none: this was all.
    pub next: Option<String>,
}

/// A part of a list, yet to be shown.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub head: Head,
}

impl<T> Page<T> {
    /// Each of it as it is sent.
    pub fn show<U>(self, show: impl FnMut(T) -> U) -> Result<Listed<U>, Failure> {
        Ok(Listed { items: self.items.into_iter().map(show).collect(), head: self.head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: &u64) -> Key {
        Key::Number(*n)
    }

    fn page(range: &str, items: &[u64]) -> (Vec<u64>, Option<String>) {
        let range = Range::parse(range).unwrap_or_default();
        let page = range.page(items.to_vec(), |n| format!("id-{n:04}"), &[("version", number)]).unwrap();
        (page.items, page.head.next)
    }

    #[test]
    fn ranges_as_clients_send_them() {
        let all = [3, 1, 2, 10];
        for whole in ["", "nonsense", "bytes=0-1", "version ..", "version ..;", "id ..; max=200;", "version ..; max=x"] {
            assert_eq!(page(whole, &all), (vec![1, 2, 3, 10], None), "{whole}");
        }
        assert_eq!(page("version ..; order=desc,max=1", &all), (vec![10], Some("version ..10[; order=desc,max=1".into())));
        assert_eq!(page("version 2..3", &all), (vec![2, 3], None));
        assert_eq!(page("version ]2..10[", &all), (vec![3], None));
        assert_eq!(page("version ..; max=0", &all), (vec![1], Some("version ]1..; max=1".into())));
        assert_eq!(page("version 99..", &all), (vec![], None));
    }

    #[test]
    fn what_a_list_does_not_know_is_refused() {
        let ask = |range: &str| {
            Range::parse(range).unwrap().page(vec![1], |n| n.to_string(), &[("version", number)]).map(|_| ()).unwrap_err()
        };
        let error = ask("colour ..");
        assert_eq!(error.id, ErrorId::RequestedRangeNotSatisfiable);
        assert!(error.message.contains("version, id"), "{}", error.message);
        assert_eq!(ask("version x..").id, ErrorId::RequestedRangeNotSatisfiable);
    }

    #[test]
    fn following_gives_each_item_once_in_order_whatever_the_keys() {
        let moment = |n: &u64| Key::Time(Timestamp::from_micros(i64::try_from(n / 3).unwrap()));
        let text = |n: &u64| Key::Text(format!("n-{n:05}"));
        let items: Vec<u64> = (0..50).rev().collect();
        let by: [By<u64>; 3] = [("version", number), ("at", moment), ("name", text)];
        for property in ["version", "at", "name", "id"] {
            for order in ["asc", "desc"] {
                for max in [1, 7, 49, 50, 51] {
                    let mut range = format!("{property} ..; order={order},max={max}");
                    let mut seen = Vec::new();
                    loop {
                        let page = Range::parse(&range).unwrap().page(items.clone(), |n| format!("{n:04}"), &by).unwrap();
                        assert!(page.items.len() <= max);
                        seen.extend(page.items);
                        match page.head.next {
                            Some(next) => range = next,
                            None => break,
                        }
                    }
                    let mut expected: Vec<u64> = (0..50).collect();
                    if order == "desc" {
                        expected.reverse();
                    }
                    assert_eq!(seen, expected, "{property} {order} {max}");
                }
            }
        }
    }
}
