//! `snapshots`: the points of a table's past that can be read, oldest first.

use iceberg::spec::SnapshotRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{named_snapshots, properties};
use lakehouse_core::foreign::is_ours;
use lakehouse_core::schema::TableName;
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use crate::answer::{self, or_dash};
use crate::failure::{Exit, Failure};
use crate::lake::{Lake, summary_number, summary_text};

/// Snapshots of a table, oldest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct Snapshots {
    table: String,
    snapshots: Vec<Snapshot>,
}

/// One of them, and what it has changed.
#[derive(Serialize, ToSchema)]
struct Snapshot {
    snapshot_id: String,
    parent_id: Option<String>,
    committed_at: String,
    kind: String,
    from: Option<String>,
    to: Option<String>,
    inserted: Option<u64>,
    updated: Option<u64>,
    deleted: Option<u64>,
    tags: Vec<String>,
}

pub(super) async fn run(context: &Context, name: &TableName) -> Result<Exit, Failure> {
    let table = Lake::open(&context.config).await?.table(name).await?;
    let mut known: Vec<SnapshotRef> = table.metadata.snapshots().cloned().collect();
    known.sort_by_key(age);
    let answer = Snapshots::of(&table, &known);
    match context.json {
        true => answer::json(&answer)?,
        false => print(&answer.snapshots)?,
    }
    Ok(Exit::Done)
}

impl Snapshots {
    /// Some of a table's snapshots, in this order.
    pub(crate) fn of(table: &LoadedTable, known: &[SnapshotRef]) -> Self {
        let mut names = named_snapshots(table);
        let snapshot = |snapshot: &SnapshotRef| {
            let mut tags = names.remove(&snapshot.snapshot_id()).unwrap_or_default();
            tags.retain(|tag| tag != "main");
            tags.sort_unstable();
            let text = |key| summary_text(snapshot, key).map(str::to_owned);
            Snapshot {
                snapshot_id: snapshot.snapshot_id().to_string(),
                parent_id: snapshot.parent_snapshot_id().map(|id| id.to_string()),
                committed_at: answer::time(snapshot.timestamp_ms()),
                kind: kind(snapshot),
                from: text(properties::FROM),
                to: text(properties::TO),
                inserted: summary_number(snapshot, properties::INSERTED),
                updated: summary_number(snapshot, properties::UPDATED),
                deleted: summary_number(snapshot, properties::DELETED),
                tags,
            }
        };
        Self { table: table.name.to_string(), snapshots: known.iter().map(snapshot).collect() }
    }
}

/// Orders the snapshots of a table, oldest first.
pub(crate) fn age(snapshot: &SnapshotRef) -> (i64, i64, i64) {
    (snapshot.sequence_number(), snapshot.timestamp_ms(), snapshot.snapshot_id())
}

fn kind(snapshot: &SnapshotRef) -> String {
    match summary_text(snapshot, properties::KIND) {
        Some(kind) => kind.to_owned(),
        // A control table's cuts say no kind.
        None if is_ours(snapshot) => "change".to_owned(),
        None => "foreign".to_owned(),
    }
}

fn print(snapshots: &[Snapshot]) -> Result<(), Failure> {
    let row = |snapshot: &Snapshot| {
        [
            snapshot.snapshot_id.clone(),
            snapshot.committed_at.clone(),
            snapshot.kind.clone(),
            or_dash(snapshot.to.clone()),
            or_dash(snapshot.inserted),
            or_dash(snapshot.updated),
            or_dash(snapshot.deleted),
            snapshot.tags.join(", "),
        ]
    };
    let rows: Vec<_> = snapshots.iter().map(row).collect();
    answer::table(["SNAPSHOT", "COMMITTED", "KIND", "TO", "INSERTED", "UPDATED", "DELETED", "TAGS"], &rows)
}
