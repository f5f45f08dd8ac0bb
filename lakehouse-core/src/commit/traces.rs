//! What a rollback leaves on a table beside its rows, and how it goes again: tags, and the mark of a divergence.

use std::collections::BTreeMap;
use std::time::Duration;

use iceberg::TableUpdate;
use iceberg::spec::{SnapshotRef, SnapshotReference, SnapshotRetention};
use serde::{Deserialize, Serialize};

use super::journal::{OperationMark, target_tag, undo_tag};
use super::properties::{DIVERGED, RESTORED, ROLLED_BACK, unreadable};
use super::references;
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::position::Position;

/// A table's rows are not its source's, because a person has wanted it so: by an accept, or by a replay that has left changes
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Of the first change that may be missing, the position before it.
    pub since: Position,
    /// Snapshots below this number have the source's rows all the same.
    sequence_number: i64,
}

impl Divergence {
    pub fn of(table: &LoadedTable) -> Result<Option<Self>, Problem> {
        let divergence = table.property(DIVERGED).map(serde_json::from_str).transpose();
        divergence.map_err(|_| unreadable(table, DIVERGED))
    }

    /// The table's next snapshot diverges behind `after`; one that does already has done so since its own beginning.
    pub(crate) fn begin(table: &LoadedTable, after: Position) -> Result<Self, Problem> {
        let begun = Self { since: after, sequence_number: table.metadata.next_sequence_number() };
        Ok(Self::of(table)?.map_or(begun, |known| Self { since: known.since.min(after), ..known }))
    }

    /// True where the head's rows have been restored from before the divergence.
    pub(crate) fn is_undone(self, table: &LoadedTable) -> bool {
        let restored = |one: &SnapshotRef| one.summary().additional_properties.get(RESTORED)?.parse().ok();
        let from = table.ancestry().find_map(restored).and_then(|id: i64| table.metadata.snapshot_by_id(id));
        from.is_some_and(|from| from.sequence_number() < self.sequence_number)
    }

    pub(crate) fn text(self) -> String {
        serde_json::to_string(&self).expect("a divergence is plain data")
    }
}

/// Tags of an operation that has been taken back: there is nothing left to go back from.
pub(crate) fn without_tags(table: &LoadedTable, operation: &str) -> Vec<TableUpdate> {
    tags_of(table, operation).into_keys().map(|ref_name| TableUpdate::RemoveSnapshotRef { ref_name }).collect()
}

/// Tags of an operation that holds the table no more stay for so long (protocol E6). It is an age of Iceberg's own, so
/// whoever expires the table's snapshots closes the operation, another engine too; while a table is held they have none. A
/// tag that has an age keeps it: it may be gone before this is committed.
pub(crate) fn with_aged_tags(table: &LoadedTable, operation: &str, keep: Duration) -> Vec<TableUpdate> {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let now = chrono::Utc::now().timestamp_millis();
    let aged = |(ref_name, reference): (String, SnapshotReference)| {
        // The age of a tag counts from its snapshot's time.
        let at = table.metadata.snapshot_by_id(reference.snapshot_id)?.timestamp_ms();
        let max_ref_age_ms = Some(now.saturating_sub(at).saturating_add(keep).max(1));
        let reference = SnapshotReference { retention: SnapshotRetention::Tag { max_ref_age_ms }, ..reference };
        Some(TableUpdate::SetSnapshotRef { ref_name, reference })
    };
    let is_held = |retention: &SnapshotRetention| matches!(retention, SnapshotRetention::Tag { max_ref_age_ms: None });
    let held = tags_of(table, operation).into_iter().filter(|(_, reference)| is_held(&reference.retention));
    held.filter_map(aged).collect()
}

fn tags_of(table: &LoadedTable, operation: &str) -> BTreeMap<String, SnapshotReference> {
    let mut there = references(table);
    let tags = [undo_tag(operation), target_tag(operation)];
    tags.into_iter().filter_map(|tag| there.remove_entry(&tag)).collect()
}

/// The table is not where a rollback has put it any more.
pub(crate) fn without_rollback(table: &LoadedTable) -> Option<TableUpdate> {
    without(table, ROLLED_BACK)
}

/// The rows are the source's again.
pub(crate) fn converged(table: &LoadedTable) -> Option<TableUpdate> {
    without(table, DIVERGED)
}

/// The rows are copied anew: of what has been done to those before nothing is left but tags, for so long.
pub(crate) fn without_traces(table: &LoadedTable, keep: Duration) -> Result<Vec<TableUpdate>, Problem> {
    let mark = OperationMark::of(table)?;
    let mut updates = mark.map(|mark| with_aged_tags(table, &mark.id, keep)).unwrap_or_default();
    updates.extend(without_rollback(table));
    updates.extend(converged(table));
    Ok(updates)
}

fn without(table: &LoadedTable, key: &str) -> Option<TableUpdate> {
    table.property(key).map(|_| TableUpdate::RemoveProperties { removals: vec![key.to_owned()] })
}
