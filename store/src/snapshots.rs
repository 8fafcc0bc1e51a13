//! Snapshots: exports of the state below `DATA/snapshots`, and which of them are kept.
//!
//! Must not: delete the newest one, whatever the clock says; look at a file's time for anything but thinning out.

use crate::{EmbeddedStore, StoreError, export};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// So many of the newest are kept, however close together or old they are.
const NEWEST: usize = 12;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// The snapshots of a data directory, oldest first.
pub fn snapshots(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(data_dir.join("snapshots")) else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        files.flatten().map(|f| f.path()).filter(|p| p.to_string_lossy().ends_with(export::EXTENSION)).collect();
    files.sort();
    files
}

/// Writes a snapshot, unless the newest one is of the same revision, and thins out the older ones: the last twelve stay,
/// then the last of each hour for a day, then the last of each day for a week.
///
/// # Errors
/// [`StoreError::Unavailable`] when it cannot be written.
pub fn snapshot_now(store: &EmbeddedStore, data_dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let (_, revision) = store.dump();
    // Zero-padded, so that the order of names is the order of revisions.
    let file = data_dir.join("snapshots").join(format!("state-{revision:020}{}", export::EXTENSION));
    if revision == 0 || file.exists() {
        return Ok(None);
    }
    export::export(store, &file)?;
    let since_1970 = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let now = since_1970(SystemTime::now());
    let all = snapshots(data_dir);
    // One whose time cannot be read counts as taken now: it stays.
    let taken = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).map_or(now, since_1970);
    let kept = kept(&all.iter().map(taken).collect::<Vec<_>>(), now);
    for (old, _) in all.iter().zip(kept).filter(|(_, kept)| !kept) {
        let _ = std::fs::remove_file(old);
    }
    Ok(Some(file))
}

/// Which snapshots are kept, of those taken at these seconds since 1970, the oldest revision first.
fn kept(taken: &[u64], now: u64) -> Vec<bool> {
    let mut covered = HashSet::new();
    let judge = |(place, at): (usize, &u64)| {
        let age = now.saturating_sub(*at);
        // From the newest on, so that the first one seen of an hour or a day is its last.
        let last_of_hour = covered.insert((HOUR, at / HOUR)) && age < DAY;
        let last_of_day = covered.insert((DAY, at / DAY)) && age < WEEK;
        place < NEWEST || last_of_hour || last_of_day
    };
    let mut kept: Vec<bool> = taken.iter().rev().enumerate().map(judge).collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is left when each snapshot was followed by a thinning out, and the time of the last one.
    fn lived(gaps: &[u64]) -> (Vec<u64>, Vec<u64>, u64) {
        let (mut all, mut left, mut now) = (Vec::new(), Vec::new(), 1_700_000_000);
        for gap in gaps {
            now += gap;
            all.push(now);
            left.push(now);
            let kept = kept(&left, now);
            left = left.into_iter().zip(kept).filter_map(|(t, k)| k.then_some(t)).collect();
        }
        (all, left, now)
    }

    #[test]
    fn a_busy_server_can_go_back_an_hour_a_day_and_a_week() {
        let (_, left, now) = lived(&vec![300; 12 * 24 * 10]);
        let back = |age: u64| left.iter().any(|t| (age.saturating_sub(HOUR)..=age).contains(&(now - t)));
        for age in [HOUR, 2 * HOUR, 12 * HOUR, 23 * HOUR] {
            assert!(back(age), "{age} s: {left:?}");
        }
        assert!(left.iter().any(|t| now - t > 6 * DAY), "{left:?}");
        assert!((30..=45).contains(&left.len()), "{}", left.len());
    }

    #[test]
    fn the_last_twelve_stay_however_old() {
        let taken: Vec<u64> = (0..20).collect();
        assert_eq!(kept(&taken, 100 * WEEK).iter().filter(|k| **k).count(), 12);
        // A clock that went back makes nothing old.
        assert_eq!(kept(&[2 * WEEK], 0), [true]);
    }

    proptest! {
        #[test]
        fn every_hour_of_a_day_and_every_day_of_a_week_keeps_its_last(gaps in proptest::collection::vec(1u64..20_000, 1..400)) {
            let (all, left, now) = lived(&gaps);
            prop_assert_eq!(left.last(), all.last());
            prop_assert!(left.len() <= NEWEST + 25 + 8, "{} are kept", left.len());
            prop_assert!(all.iter().rev().take(NEWEST).all(|t| left.contains(t)));
            for (span, reach) in [(HOUR, DAY), (DAY, WEEK)] {
                for at in all.iter().filter(|t| now - **t < reach) {
                    let last = all.iter().rev().find(|t| *t / span == at / span).unwrap();
                    prop_assert!(left.contains(last), "the last of the {} s of {} is gone: {:?}", span, at, left);
                }
            }
            // Thinning out again changes nothing.
            prop_assert!(kept(&left, now).iter().all(|k| *k));
        }
    }
}
