//! Which snapshots leave a table's metadata, and which tags come and go. Planning is pure; the commit is on exactly the
//! state that was planned on (protocol F2), so that a tag made in between is never lost.
//!
//! What stays: a dense window, in which a table can be read as of any time; behind it a tag an hour, then a tag a day, read
//! by name or id. What is protected stays whatever its age: the head, snapshots that a cut names, what any tag or branch
//! points at, and the snapshot that holds the table's position (`maintenance.md` MD-5, M-3 to M-6).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, Timelike};
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{properties, references};
use lakehouse_core::tags::{DAILY, HOURLY, PROTECTED, set_tag};
use serde::Serialize;

/// How long what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retention {
    /// Every snapshot.
    pub dense: Duration,
    /// At least so many of the newest.
    pub min_snapshots: usize,
    /// The last snapshot of each hour, by a tag.
    pub hourly: Duration,
    /// The last snapshot of each day, by a tag.
    pub daily: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        Self { dense: hours(24), min_snapshots: 10, hourly: hours(7 * 24), daily: hours(90 * 24) }
    }
}

/// What is to be done to one table's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// New tags, by name.
    pub tagged: BTreeMap<String, i64>,
    /// Tags that have had their time.
    pub untagged: BTreeSet<String>,
    /// Snapshots that leave, oldest first.
    pub expired: Vec<i64>,
}

/// A snapshot, as far as its keeping is concerned. Times are milliseconds since 1970.
#[derive(Clone, Debug)]
struct Kept {
    id: i64,
    parent: Option<i64>,
    at: i64,
    sequence_number: i64,
    /// It moves the table's position.
    positioned: bool,
}

/// Everything that the plan depends on.
#[derive(Clone, Debug)]
pub struct Snapshots {
    head: Option<i64>,
    snapshots: HashMap<i64, Kept>,
    references: BTreeMap<String, SnapshotReference>,
}

impl Snapshots {
    pub fn of(table: &LoadedTable) -> Self {
        let metadata = &table.metadata;
        let kept = metadata.snapshots().map(|snapshot| Kept {
            id: snapshot.snapshot_id(),
            parent: snapshot.parent_snapshot_id(),
            at: snapshot.timestamp_ms(),
            sequence_number: snapshot.sequence_number(),
            positioned: snapshot.summary().additional_properties.contains_key(properties::TO),
        });
        Self {
            head: metadata.current_snapshot_id(),
            snapshots: kept.map(|kept| (kept.id, kept)).collect(),
            references: references(table),
        }
    }

    /// From a snapshot back, as far as its ancestors are kept: newest first.
    fn line(&self, from: Option<i64>) -> impl Iterator<Item = &Kept> {
        let kept = |id: Option<i64>| id.and_then(|id| self.snapshots.get(&id));
        std::iter::successors(kept(from), move |snapshot| kept(snapshot.parent))
    }
}

/// What is to go at `now`, in milliseconds since 1970. `protected` stays, whatever it is.
pub fn plan(all: &Snapshots, protected: &HashSet<i64>, retention: &Retention, now: i64) -> Expiry {
    let tagged = new_tags(all, retention, now);
    let untagged = old_tags(all, retention, now);
    let mut kept: HashSet<i64> = protected.clone();
    kept.extend(all.head);
    kept.extend(tagged.values());
    // The one that holds the table's position, whatever has been committed behind it.
    let positioned = all.snapshots.values().filter(|snapshot| snapshot.positioned);
    kept.extend(positioned.max_by_key(|snapshot| snapshot.sequence_number).map(|snapshot| snapshot.id));
    for (name, reference) in all.references.iter().filter(|(name, _)| !untagged.contains(*name)) {
        kept.insert(reference.snapshot_id);
        if let SnapshotRetention::Branch { min_snapshots_to_keep, max_snapshot_age_ms, .. } = reference.retention {
            let is_main = name == MAIN_BRANCH;
            let age = max_snapshot_age_ms.filter(|_| !is_main).unwrap_or(milliseconds(retention.dense));
            let least = min_snapshots_to_keep.map_or(0, |least| usize::try_from(least).unwrap_or(0));
            let least = if is_main { retention.min_snapshots.max(least) } else { least.max(1) };
            kept.extend(newest(all, Some(reference.snapshot_id), now - age, least));
        }
    }
    let mut gone: Vec<&Kept> = all.snapshots.values().filter(|snapshot| !kept.contains(&snapshot.id)).collect();
    gone.sort_by_key(|snapshot| snapshot.sequence_number);
    Expiry { tagged, untagged, expired: gone.into_iter().map(|snapshot| snapshot.id).collect() }
}

/// Those of a line that are young, and the one before them, which was current when the window began; at least so many.
fn newest(all: &Snapshots, from: Option<i64>, since: i64, least: usize) -> Vec<i64> {
    let mut kept = Vec::new();
    for snapshot in all.line(from) {
        kept.push(snapshot.id);
        if snapshot.at < since && kept.len() >= least {
            break;
        }
    }
    kept
}

/// The last snapshot of each whole hour and day that is still to be kept and has no tag.
fn new_tags(all: &Snapshots, retention: &Retention, now: i64) -> BTreeMap<String, i64> {
    let mut tags: BTreeMap<String, i64> = BTreeMap::new();
    // Newest first: the first of an hour that is met is its last.
    for snapshot in all.line(all.head) {
        let Some(at) = DateTime::from_timestamp_millis(snapshot.at) else { continue };
        let hour = at.naive_utc().date().and_hms_opt(at.hour(), 0, 0).unwrap_or_default();
        let day = at.naive_utc().date().and_hms_opt(0, 0, 0).unwrap_or_default();
        let periods = [
            (format!("{HOURLY}{}", hour.format("%Y-%m-%dT%H")), end_of(hour, TimeDelta::hours(1)), retention.hourly),
            (format!("{DAILY}{}", day.format("%Y-%m-%d")), end_of(day, TimeDelta::days(1)), retention.daily),
        ];
        for (name, end, keep) in periods {
            let whole = end <= now;
            if whole && end > now - milliseconds(keep) && !all.references.contains_key(&name) {
                tags.entry(name).or_insert(snapshot.id);
            }
        }
    }
    tags
}

/// Tags of ours whose time is over, and others' that say themselves how long they are good for. A protected one is good for
/// ever, whoever has given it an age.
fn old_tags(all: &Snapshots, retention: &Retention, now: i64) -> BTreeSet<String> {
    let is_old = |(name, reference): &(&String, &SnapshotReference)| {
        if name.as_str() == MAIN_BRANCH || name.starts_with(PROTECTED) {
            return false;
        }
        let end = match (name.strip_prefix(HOURLY), name.strip_prefix(DAILY)) {
            (Some(hour), _) => NaiveDateTime::parse_from_str(&format!("{hour}:00"), "%Y-%m-%dT%H:%M")
                .ok()
                .map(|hour| (end_of(hour, TimeDelta::hours(1)), retention.hourly)),
            (_, Some(day)) => NaiveDate::parse_from_str(day, "%Y-%m-%d")
                .ok()
                .and_then(|day| day.and_hms_opt(0, 0, 0))
                .map(|day| (end_of(day, TimeDelta::days(1)), retention.daily)),
            _ => None,
        };
        if let Some((end, keep)) = end {
            return end <= now - milliseconds(keep);
        }
        let age = match reference.retention {
            SnapshotRetention::Branch { max_ref_age_ms, .. } | SnapshotRetention::Tag { max_ref_age_ms } => {
                max_ref_age_ms
            }
        };
        let at = all.snapshots.get(&reference.snapshot_id).map(|snapshot| snapshot.at);
        age.zip(at).is_some_and(|(age, at)| at < now.saturating_sub(age))
    };
    all.references.iter().filter(is_old).map(|(name, _)| name.clone()).collect()
}

fn end_of(begin: NaiveDateTime, length: TimeDelta) -> i64 {
    (begin + length).and_utc().timestamp_millis()
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2).min(i64::MAX / 2)
}

impl Expiry {
    pub fn is_empty(&self) -> bool {
        self.tagged.is_empty() && self.untagged.is_empty() && self.expired.is_empty()
    }

    /// As one commit. Statistics of a snapshot that leaves are nobody's, so they leave too.
    pub fn updates(&self, table: &LoadedTable) -> Vec<TableUpdate> {
        let mut updates: Vec<TableUpdate> =
            self.tagged.iter().map(|(name, snapshot)| set_tag(name, *snapshot)).collect();
        updates.extend(self.untagged.iter().map(|name| TableUpdate::RemoveSnapshotRef { ref_name: name.clone() }));
        if !self.expired.is_empty() {
            let known = |id: &i64| table.metadata.statistics_for_snapshot(*id).is_some();
            let statistics = self.expired.iter().copied().filter(known);
            updates.extend(statistics.map(|snapshot_id| TableUpdate::RemoveStatistics { snapshot_id }));
            updates.push(TableUpdate::RemoveSnapshots { snapshot_ids: self.expired.clone() });
        }
        updates
    }

    /// True where the table says that all of this has been done.
    pub fn is_done(&self, table: &LoadedTable) -> bool {
        let references = references(table);
        let gone = self.expired.iter().all(|id| table.metadata.snapshot_by_id(*id).is_none());
        let tags = self.tagged.iter().all(|(name, id)| references.get(name).is_some_and(|tag| tag.snapshot_id == *id));
        gone && tags && self.untagged.iter().all(|name| !references.contains_key(name))
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    const MINUTE: i64 = 60_000;
    /// 2023-11-14T22:00:00Z.
    const NOW: i64 = 1_699_999_200_000;

    fn retention(dense_hours: u64, min_snapshots: usize, hourly_hours: u64, daily_days: u64) -> Retention {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        Retention {
            dense: hours(dense_hours),
            min_snapshots,
            hourly: hours(hourly_hours),
            daily: hours(daily_days * 24),
        }
    }

    /// A line of snapshots of these ages in minutes, numbered from 1, the oldest first.
    fn line(ages: &[i64]) -> Snapshots {
        let snapshots = (1..).zip(ages).map(|(id, age)| {
            let parent = Some(id - 1).filter(|id| *id > 0);
            (id, Kept { id, parent, at: NOW - age * MINUTE, sequence_number: id, positioned: false })
        });
        let snapshots: HashMap<i64, Kept> = snapshots.collect();
        let head = snapshots.keys().max().copied();
        let reference = |head| SnapshotReference::new(head, SnapshotRetention::branch(None, None, None));
        let references = head.map(|head| (MAIN_BRANCH.to_owned(), reference(head))).into_iter().collect();
        Snapshots { head, snapshots, references }
    }

    fn tag(all: &mut Snapshots, name: &str, snapshot: i64, max_ref_age_ms: Option<i64>) {
        let reference = SnapshotReference::new(snapshot, SnapshotRetention::Tag { max_ref_age_ms });
        all.references.insert(name.to_owned(), reference);
    }

    #[track_caller]
    fn check(all: &Snapshots, retention: &Retention, expired: &[i64]) {
        assert_eq!(plan(all, &HashSet::new(), retention, NOW).expired, expired);
    }

    /// As `RemoveSnapshots` of Iceberg's Java library decides with `expireOlderThan` and `retainLast`, but for the one
    /// snapshot that was current when the window began.
    #[test]
    fn a_line_keeps_its_window_and_a_least_number() {
        let all = line(&[180, 121, 119, 60, 1]);
        check(&all, &retention(2, 1, 0, 0), &[1]);
        check(&all, &retention(2, 5, 0, 0), &[]);
        check(&all, &retention(0, 3, 0, 0), &[1, 2]);
        check(&all, &retention(0, 1, 0, 0), &[1, 2, 3, 4]);
        check(&line(&[]), &retention(0, 1, 0, 0), &[]);
    }

    #[test]
    fn a_branch_keeps_as_long_as_it_says_itself() {
        let mut all = line(&[180, 170, 160, 150, 1]);
        let branch = |least, age| SnapshotReference::new(4, SnapshotRetention::branch(least, age, None));
        all.references.insert("b".to_owned(), branch(Some(2), Some(1)));
        check(&all, &retention(0, 1, 0, 0), &[1, 2]);
        all.references.insert("b".to_owned(), branch(None, Some(165 * MINUTE)));
        check(&all, &retention(0, 1, 0, 0), &[1]);
        // Which snapshots of `main` stay is the configuration's to say, but for a least number.
        let reference = SnapshotReference::new(5, SnapshotRetention::branch(Some(3), Some(i64::MAX), None));
        all.references = BTreeMap::from([(MAIN_BRANCH.to_owned(), reference)]);
        check(&all, &retention(0, 1, 0, 0), &[1, 2]);
    }

    #[test]
    fn each_whole_hour_and_day_keeps_its_last_snapshot_by_a_tag_as_long_as_it_is_wanted() {
        // 18:30, 19:10, 19:50, 20:20 and 21:59 of one day, and 23:00 of the one before.
        let mut all = line(&[23 * 60, 210, 170, 130, 100, 1]);
        let planned = plan(&all, &HashSet::new(), &retention(0, 1, 3, 2), NOW);
        let hour = |hour: u8, id: i64| (format!("hourly/2023-11-14T{hour}"), id);
        let mut tagged = BTreeMap::from([hour(19, 4), hour(20, 5), hour(21, 6)]);
        tagged.insert("daily/2023-11-13".to_owned(), 1);
        assert_eq!((planned.tagged, planned.expired), (tagged, vec![2, 3]));

        tag(&mut all, "hourly/2023-11-14T18", 2, None);
        tag(&mut all, "hourly/2023-11-14T19", 4, None);
        tag(&mut all, "hourly/of mine", 3, None);
        let planned = plan(&all, &HashSet::new(), &retention(0, 1, 3, 2), NOW);
        assert_eq!(planned.untagged, BTreeSet::from(["hourly/2023-11-14T18".to_owned()]));
        assert_eq!(planned.expired, [2]);
        assert!(!planned.tagged.contains_key("hourly/2023-11-14T19"));
    }

    #[test]
    fn a_tag_of_somebody_stays_for_ever_or_as_long_as_it_says() {
        let mut all = line(&[180, 120, 60, 1]);
        tag(&mut all, "audit", 1, None);
        tag(&mut all, "short", 2, Some(119 * MINUTE));
        tag(&mut all, "long", 3, Some(61 * MINUTE));
        let planned = plan(&all, &HashSet::new(), &retention(0, 1, 0, 0), NOW);
        assert_eq!((planned.untagged, planned.expired), (BTreeSet::from(["short".to_owned()]), vec![2]));
    }

    #[test]
    fn the_snapshot_that_holds_the_position_stays_behind_any_number_of_others() {
        let mut all = line(&[180, 120, 60, 1]);
        for id in [1, 2] {
            all.snapshots.get_mut(&id).expect("a snapshot").positioned = true;
        }
        check(&all, &retention(0, 1, 0, 0), &[1, 3]);
    }

    /// Whatever the history: nothing that is named or protected goes, and a second plan has nothing to add.
    #[test]
    fn what_is_protected_stays_in_any_history() {
        for seed in 0..2_000 {
            let mut rng = Rng::with_seed(seed);
            let mut age = 4 * 24 * 60;
            let count = rng.usize(1..60);
            let ages: Vec<i64> = (0..count)
                .map(|_| {
                    age -= rng.i64(0..200);
                    age.max(0)
                })
                .collect();
            let mut all = line(&ages);
            let any = |rng: &mut Rng| 1 + i64::try_from(rng.usize(..count)).expect("a small number");
            for number in 0..rng.usize(..4) {
                let (snapshot, age) = (any(&mut rng), rng.bool().then(|| rng.i64(1..5_000) * MINUTE));
                tag(&mut all, &format!("tag-{number}"), snapshot, age);
            }
            let least = rng.bool().then(|| rng.i32(1..5));
            let branch = SnapshotReference::new(any(&mut rng), SnapshotRetention::branch(least, None, None));
            all.references.insert("branch".to_owned(), branch);
            // A snapshot that has lost its parents stands alone.
            let lost = any(&mut rng);
            if Some(lost) != all.head && all.references.values().all(|reference| reference.snapshot_id != lost) {
                all.snapshots.remove(&lost);
            }
            let protected = HashSet::from([any(&mut rng)]);
            let retention = retention(rng.u64(0..48), rng.usize(1..8), rng.u64(0..96), rng.u64(0..5));
            let planned = plan(&all, &protected, &retention, NOW);

            let gone: HashSet<i64> = planned.expired.iter().copied().collect();
            let mut kept = protected.clone();
            kept.extend(all.head);
            kept.extend(planned.tagged.values());
            let named = all.references.iter().filter(|(name, _)| !planned.untagged.contains(*name));
            kept.extend(named.map(|(_, reference)| reference.snapshot_id));
            let since = NOW - milliseconds(retention.dense);
            kept.extend(all.line(all.head).filter(|snapshot| snapshot.at >= since).map(|snapshot| snapshot.id));
            kept.extend(all.line(all.head).take(retention.min_snapshots).map(|snapshot| snapshot.id));
            assert!(kept.is_disjoint(&gone), "seed {seed}: {planned:?}");

            all.snapshots.retain(|id, _| !gone.contains(id));
            all.references.retain(|name, _| !planned.untagged.contains(name));
            for (name, snapshot) in &planned.tagged {
                tag(&mut all, name, *snapshot, None);
            }
            let again = plan(&all, &protected, &retention, NOW);
            assert!(again.is_empty(), "seed {seed}: {planned:?}, then {again:?}");
        }
    }
}
