//! What is due for each name, and when to look again. Pure: time and chance are arguments.

use super::record::{AutoCertificate, Problem};
use flex_model::{AppId, DomainName, TICKET_PERIOD, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// A certificate that has less than this of its life left is told of, and at the latest so long before its end.
const EXPIRING_SHARE: u32 = 5;
const EXPIRING: Duration = Duration::from_secs(14 * 24 * 3600);

/// A name that is to have a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// None: the platform's.
    pub app: Option<AppId>,
    /// All names of its certificate, the first being what it is known by.
    pub names: Vec<DomainName>,
}

/// What to do for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nobody wants it any more, or another app does.
    Forget,
    /// Ask for a certificate, or go on with the order that is under way.
    Issue,
}

/// What is due now, and when something else will be.
pub fn due(
    now: Timestamp,
    wanted: &BTreeMap<DomainName, Wanted>,
    known: &BTreeMap<DomainName, AutoCertificate>,
) -> (Vec<(DomainName, Step)>, Option<Timestamp>) {
    let (mut steps, mut wake): (Vec<_>, Option<Timestamp>) = (Vec::new(), None);
    for (name, record) in known {
        if wanted.get(name).is_none_or(|w| w.app != record.app) {
            steps.push((name.clone(), Step::Forget));
        }
    }
    for (name, want) in wanted {
        let record = known.get(name).filter(|r| r.app == want.app);
        let at = match record {
            None => now,
            Some(r) if r.order.is_some() => r.try_at,
            Some(r) => r.try_at.max(r.issued.as_ref().map_or(now, |i| i.renew_at)),
        };
        if at <= now && !steps.iter().any(|(n, _)| n == name) {
            steps.push((name.clone(), Step::Issue));
        } else {
            wake = Some(wake.map_or(at, |w| w.min(at)));
        }
    }
    (steps, wake)
}

/// At two thirds of the life, give or take a thirtieth of it (`chance`: 0 to 1), so that what was issued together is not
/// renewed together.
pub fn renew_at(starts: Timestamp, expires: Timestamp, chance: f64) -> Timestamp {
    let life = expires.since(starts);
    starts.plus(life.mul_f64(2.0 / 3.0 + (chance - 0.5) / 15.0))
}

/// How long to wait after so many failures in a row: `first`, doubling, a quarter more or less by `chance`.
pub fn pause(first: Duration, failures: u32, chance: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(LONGEST_PAUSE).mul_f64(0.75 + chance / 2.0)
}

/// Whether a certificate's end is near enough to tell: then its renewal has failed for a while, or nobody renews it.
pub fn expires_soon(starts: Timestamp, expires: Timestamp, now: Timestamp) -> bool {
    expires.since(now) < (expires.since(starts) / EXPIRING_SHARE).min(EXPIRING)
}

/// Heroku's word for how it stands with a name, and why.
pub fn status(record: Option<&AutoCertificate>) -> (&'static str, Option<String>) {
    match record {
        None => ("pending", None),
        Some(r) => match (&r.problem, &r.order, &r.issued) {
            (Some(problem), ..) => (if is_final(problem) { "failed" } else { "failing" }, Some(problem.to_string())),
            (None, _, Some(_)) => ("cert issued", None),
            (None, Some(_), None) => ("in-progress", None),
            (None, None, None) => ("pending", None),
        },
    }
}

/// Trying again will not help; somebody has to change something.
pub fn is_final(problem: &Problem) -> bool {
    problem.code == "acme_wildcard"
}

/// The periods whose ticket keys there should be: the one before, this one, and the next, so that every router has it
/// before its time comes.
pub fn ticket_periods(now: Timestamp) -> std::ops::RangeInclusive<u64> {
    let seconds = u64::try_from(now.micros()).unwrap_or(0) / 1_000_000;
    let period = seconds / TICKET_PERIOD.as_secs();
    period.saturating_sub(1)..=period + 1
}

#[cfg(test)]
mod tests {
    use super::super::record::Issued;
    use super::*;
    use flex_model::Uuid;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn name(n: u8) -> DomainName {
        format!("n{n}.test").parse().unwrap()
    }

    fn want(app: u128) -> impl Fn(DomainName) -> (DomainName, Wanted) {
        move |n| (n.clone(), Wanted { app: Some(AppId(Uuid::from_u128(app))), names: vec![n] })
    }

    fn record(n: u8, app: u128, renew_at: Option<i64>, try_at: i64) -> (DomainName, AutoCertificate) {
        let mut r = AutoCertificate::new(name(n), Some(AppId(Uuid::from_u128(app))), at(0));
        r.try_at = at(try_at);
        r.issued = renew_at.map(|t| Issued { certificate: Uuid::nil().into(), expires_at: at(t * 2), renew_at: at(t) });
        (name(n), r)
    }

    #[test]
    fn each_name_has_its_turn_when_its_time_has_come() {
        let wanted: BTreeMap<_, _> = (1..=6).map(name).map(want(1)).collect();
        let known = BTreeMap::from([
            record(1, 1, None, 0),
            record(2, 1, Some(100), 0),
            record(3, 1, Some(10), 0),
            record(4, 1, None, 70),
            record(5, 2, Some(100), 0),
            record(9, 1, Some(10), 0),
        ]);
        let (steps, wake) = due(at(50), &wanted, &known);
        let expected = [(5, Step::Forget), (9, Step::Forget), (1, Step::Issue), (3, Step::Issue), (6, Step::Issue)];
        assert_eq!(steps, expected.map(|(n, s)| (name(n), s)));
        // Name 5 is another app's now: first forgotten, then asked for.
        assert_eq!(wake, Some(at(50)));
        let (steps, wake) = due(at(60), &(2..=2).map(name).map(want(1)).collect(), &BTreeMap::from([record(2, 1, Some(100), 0)]));
        assert_eq!((steps, wake), (vec![], Some(at(100))));
    }

    #[test]
    fn ends_are_told_in_time() {
        let day = 24 * 3600;
        assert!(!expires_soon(at(0), at(90 * day), at(70 * day)));
        assert!(expires_soon(at(0), at(90 * day), at(77 * day)));
        assert!(!expires_soon(at(0), at(6 * day), at(4 * day)) && expires_soon(at(0), at(6 * day), at(5 * day)));
    }

    proptest! {
        #[test]
        fn renewal_is_about_two_thirds_in(starts in 0i64..1 << 40, life in 60i64..1 << 32, chance in 0.0..1.0f64) {
            let when = renew_at(at(starts), at(starts + life), chance);
            let share = when.since(at(starts)).as_secs_f64() / life as f64;
            prop_assert!((0.63..0.71).contains(&share), "{share}");
        }

        #[test]
        fn pauses_grow_and_end(first in 1u64..3600, failures in 1u32..200, chance in 0.0..1.0f64) {
            let pause = pause(Duration::from_secs(first), failures, chance);
            prop_assert!(pause >= Duration::from_secs(first).mul_f64(0.75) && pause <= LONGEST_PAUSE.mul_f64(1.25));
        }
    }
}
