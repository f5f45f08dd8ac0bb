//! How healthy a table is: measured from the head's manifests and the metadata, nothing else. Pure.

use std::time::Duration;

use iceberg::spec::Operation;
use lakehouse_core::catalog::LoadedTable;
use serde::Serialize;

use crate::plan::Group;
use crate::run::{Settings, due};
use crate::view::View;

/// Equality-delete files at which their term of the score is full.
const EQUALITY_DELETES: f64 = 12.0;
/// Share of deleted rows at which their term of the score is full.
const DELETED_SHARE: f64 = 0.1;

/// Measures of one table at its head (`maintenance.md` section 4).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableHealth {
    /// See [`TableHealth::score`].
    pub score: f64,
    pub data_files: u64,
    pub small_files: u64,
    pub delete_files: u64,
    /// None of ours; the table's writer waits until they are position deletes.
    pub equality_delete_files: u64,
    /// The most delete files that one data file has.
    pub most_deletes_per_file: u64,
    /// Delete files that no live data file has.
    pub dangling_deletes: u64,
    pub rows: u64,
    pub deleted_rows: u64,
    pub bytes: u64,
    pub manifests: u64,
    pub manifest_bytes: u64,
    pub snapshots: u64,
    /// Size of the current metadata file, in bytes.
    pub metadata_bytes: u64,
    /// What compaction would read now if nothing bounded it.
    pub debt_bytes: u64,
    /// Since the newest kept snapshot that replaced files; `None` if none is kept.
    pub compaction_age_seconds: Option<u64>,
    /// How far back the table can be read as of any time.
    pub time_travel_seconds: u64,
    /// How far back the configuration wants it.
    pub promised_time_travel_seconds: u64,
    /// The promise holds: the window is whole, or nothing has ever left it.
    pub time_travel_kept: bool,
}

impl TableHealth {
    /// Of a table as it was looked up, at `now` in milliseconds since 1970.
    pub fn of(view: &View, settings: &Settings, now: i64) -> Self {
        let View { table, live, .. } = view;
        let totals = live.totals();
        let small = settings.targets.fragment_bytes();
        let deletes = live.data.values().map(|file| file.deletes.len() as u64);
        let equality = live.equality_deletes().count() as u64;
        let window = TimeTravel::of(table, now);
        let promised = settings.retention.dense;
        let mut health = Self {
            score: 0.0,
            data_files: totals.data_files,
            small_files: live.data.values().filter(|file| file.bytes < small).count() as u64,
            delete_files: totals.delete_files - equality,
            equality_delete_files: equality,
            most_deletes_per_file: deletes.max().unwrap_or(0),
            dangling_deletes: live.dangling_deletes().len() as u64,
            rows: live.rows(),
            deleted_rows: live.deleted_rows(),
            bytes: totals.bytes,
            manifests: live.manifests.len() as u64,
            manifest_bytes: live.manifests.iter().map(|file| u64::try_from(file.manifest_length).unwrap_or(0)).sum(),
            snapshots: table.metadata.snapshots().len() as u64,
            metadata_bytes: table.metadata_bytes,
            debt_bytes: due(view, &settings.targets, now).iter().map(Group::bytes).sum(),
            compaction_age_seconds: last_rewrite(table).map(|at| age(at, now).as_secs()),
            time_travel_seconds: window.length.as_secs(),
            promised_time_travel_seconds: promised.as_secs(),
            time_travel_kept: window.is_whole || window.length >= promised,
        };
        health.score = health.score();
        health
    }

    /// `100 − 40·small − 40·equality − 20·deleted`, each term from 0 to 1.
    fn score(&self) -> f64 {
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        // One small file is what a small table looks like at its best.
        let small = share(self.small_files.saturating_sub(1), self.data_files);
        let equality = (self.equality_delete_files as f64 / EQUALITY_DELETES).min(1.0);
        let deleted = (share(self.deleted_rows, self.rows + self.deleted_rows) / DELETED_SHARE).min(1.0);
        100.0 - 40.0 * small - 40.0 * equality - 20.0 * deleted
    }
}

/// When files were last replaced, by us or by another engine.
fn last_rewrite(table: &LoadedTable) -> Option<i64> {
    let snapshots = table.metadata.snapshots().filter(|snapshot| snapshot.summary().operation == Operation::Replace);
    snapshots.map(|snapshot| snapshot.timestamp_ms()).max()
}

/// The window in which the table's own log names every snapshot: it is cut off behind each one that leaves (M-5).
struct TimeTravel {
    length: Duration,
    /// It reaches back to the table's first snapshot.
    is_whole: bool,
}

impl TimeTravel {
    fn of(table: &LoadedTable, now: i64) -> Self {
        let Some(first) = table.metadata.history().first() else {
            return Self { length: Duration::ZERO, is_whole: true };
        };
        let snapshot = table.metadata.snapshot_by_id(first.snapshot_id);
        let is_whole = snapshot.is_some_and(|snapshot| snapshot.parent_snapshot_id().is_none());
        Self { length: age(first.timestamp_ms(), now), is_whole }
    }
}

fn age(at: i64, now: i64) -> Duration {
    Duration::from_millis(u64::try_from(now - at).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(data_files: u64, small_files: u64, rows: u64, deleted_rows: u64) -> f64 {
        TableHealth { data_files, small_files, rows, deleted_rows, ..TableHealth::default() }.score()
    }

    #[test]
    fn a_fresh_table_is_healthy_and_fragments_and_deletes_cost() {
        assert_eq!(score(0, 0, 0, 0), 100.0);
        assert_eq!(score(1, 1, 10, 0), 100.0);
        assert_eq!(score(10, 0, 90, 10), 80.0);
        assert!(score(100, 100, 100, 0) < 61.0);
        assert!(score(100, 100, 50, 50) >= 40.0);
        let equality = TableHealth { equality_delete_files: 6, ..TableHealth::default() };
        assert_eq!(equality.score(), 80.0);
    }
}
