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
