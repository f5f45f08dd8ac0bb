//! One Iceberg snapshot from a change of files: manifests, manifest list, summary with totals.

use std::collections::HashMap;

use iceberg::TableUpdate;
use iceberg::spec::{
    MAIN_BRANCH, ManifestFile, ManifestListWriter, Operation, SchemaRef, Snapshot, SnapshotReference,
    SnapshotRetention, Summary,
};
use uuid::Uuid;

use super::FileChange;
use super::manifest::{ManifestBuilder, SnapshotManifests};
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::live::{LiveDelete, LiveFiles, Totals};
use crate::storage::{Storage, iceberg_problem};
use crate::write::NewFile;

/// A snapshot that is written and durable but that no catalog knows yet.
pub(super) struct BuiltSnapshot {
    pub(super) updates: Vec<TableUpdate>,
    /// For [`LiveFiles::advance`], once it has landed.
    pub(super) manifests: Vec<ManifestFile>,
    pub(super) deletes: Vec<LiveDelete>,
}

/// Everything about a snapshot but its files.
pub(super) struct SnapshotHeader {
    pub(super) id: i64,
    pub(super) operation: Operation,
    pub(super) schema: SchemaRef,
    pub(super) summary: HashMap<String, String>,
}

/// Writes the manifests and the manifest list of one attempt on top of `base`, and makes them durable.
pub(super) async fn build_snapshot(
    storage: &Storage,
    base: &LoadedTable,
    live: &LiveFiles,
    header: SnapshotHeader,
    change: &FileChange,
) -> Result<BuiltSnapshot, Problem> {
    let sequence_number = base.metadata.next_sequence_number();
    let builder =
        ManifestBuilder { storage, base, live, schema: header.schema.clone(), snapshot_id: header.id, sequence_number };
    let mut built = builder.build(change).await?;

    let mut summary = header.summary.clone();
    add_counts(&mut summary, base, change, live);
    let updates = publish(storage, base, &SnapshotHeader { summary, ..header }, &mut built).await?;
    Ok(BuiltSnapshot { updates, manifests: built.manifests, deletes: built.deletes })
}

/// A snapshot on top of `base` that lists the manifests of another one, whose live files are `restored`.
pub(super) async fn build_restored(
    storage: &Storage,
    base: &LoadedTable,
    restored: &LiveFiles,
    header: SnapshotHeader,
) -> Result<Vec<TableUpdate>, Problem> {
    let alive = restored.manifests.iter().filter(|file| file.has_added_files() || file.has_existing_files());
    let manifests = alive.cloned().collect();
    let mut built = SnapshotManifests { manifests, written: Vec::new(), deletes: Vec::new() };
    let mut summary = header.summary.clone();
    add_totals(&mut summary, &restored.totals());
    publish(storage, base, &SnapshotHeader { summary, ..header }, &mut built).await
}

/// Writes the manifest list, makes everything durable, and says what the catalog is to do.
async fn publish(
    storage: &Storage,
    base: &LoadedTable,
    header: &SnapshotHeader,
    built: &mut SnapshotManifests,
) -> Result<Vec<TableUpdate>, Problem> {
    let sequence_number = base.metadata.next_sequence_number();
    let list = format!("{}/metadata/snap-{}-0-{}.avro", base.metadata.location(), header.id, Uuid::now_v7());
    write_list(storage, base, &list, header, sequence_number, built).await?;
    built.written.push(list.clone());
    storage.make_durable(std::mem::take(&mut built.written)).await?;

    let summary = Summary { operation: header.operation.clone(), additional_properties: header.summary.clone() };
    let snapshot = Snapshot::builder()
        .with_snapshot_id(header.id)
        .with_parent_snapshot_id(base.snapshot_id())
        .with_sequence_number(sequence_number)
        .with_timestamp_ms(next_timestamp(base))
        .with_manifest_list(list)
        .with_summary(summary)
        .with_schema_id(header.schema.schema_id())
        .build();
    Ok(vec![TableUpdate::AddSnapshot { snapshot }, main_at(header.id)])
}

/// The main branch at this snapshot.
pub(super) fn main_at(snapshot_id: i64) -> TableUpdate {
    let reference = SnapshotReference::new(snapshot_id, SnapshotRetention::branch(None, None, None));
    TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference }
}

async fn write_list(
    storage: &Storage,
    base: &LoadedTable,
    location: &str,
    header: &SnapshotHeader,
    sequence_number: i64,
    built: &SnapshotManifests,
) -> Result<(), Problem> {
    let failed = |error: iceberg::Error| iceberg_problem(location, "written", &error);
    let sink = storage.io().new_output(location).map_err(failed)?.writer().await.map_err(failed)?;
    let mut writer = ManifestListWriter::v2(sink, header.id, base.snapshot_id(), sequence_number);
    writer.add_manifests(built.manifests.iter().cloned()).map_err(failed)?;
    writer.close().await.map_err(failed)
}

/// Later than every commit of the table, by whatever clock: engines order history by it, rules never do.
fn next_timestamp(base: &LoadedTable) -> i64 {
    chrono::Utc::now().timestamp_millis().max(base.metadata.last_updated_ms() + 1)
}

/// Per-commit counts and running totals, by the names that other engines read.
fn add_counts(summary: &mut HashMap<String, String>, base: &LoadedTable, change: &FileChange, live: &LiveFiles) {
    let after = live.totals_after(change);
    let records = |files: &[NewFile]| files.iter().map(|new| new.file.record_count()).sum();
    let mut set = |key: &str, value: u64| {
        if value > 0 {
            summary.insert(key.to_owned(), value.to_string());
        }
    };
    set("added-data-files", change.added.len() as u64);
    set("added-records", records(&change.added));
    set("added-delete-files", change.deletes.len() as u64);
    set("added-position-delete-files", change.deletes.len() as u64);
    set("added-position-deletes", records(&change.deletes));
    set("removed-delete-files", change.replaced_deletes.len() as u64);
    let equality = change.replaced_deletes.iter().filter_map(|path| live.deletes.get(path));
    let equality: Vec<u64> =
        equality.filter(|delete| delete.is_equality()).map(|delete| delete.file.record_count()).collect();
    set("removed-position-delete-files", (change.replaced_deletes.len() - equality.len()) as u64);
    set("removed-equality-delete-files", equality.len() as u64);
    set("removed-equality-deletes", equality.iter().sum());
    set("removed-position-deletes", live.deleted_positions(&change.replaced_deletes));
    let added_bytes: u64 = change.added.iter().chain(&change.deletes).map(|new| new.file.file_size_in_bytes()).sum();
    set("added-files-size", added_bytes);
    let removed = || change.removed.iter().filter_map(|path| live.data.get(path));
    set("deleted-data-files", change.removed.len() as u64);
    set("deleted-records", removed().map(|file| file.records).sum());
    if change.remove_all {
        let before = &base.metadata.current_snapshot().map(|_| live.totals()).unwrap_or_default();
        set("deleted-data-files", before.data_files);
        set("deleted-records", before.records);
    }
    add_totals(summary, &after);
}

fn add_totals(summary: &mut HashMap<String, String>, totals: &Totals) {
    for (key, value) in [
        ("total-data-files", totals.data_files),
        ("total-records", totals.records),
        ("total-delete-files", totals.delete_files),
        ("total-position-deletes", totals.deleted_positions),
        ("total-equality-deletes", 0),
        ("total-files-size", totals.bytes),
    ] {
        summary.insert(key.to_owned(), value.to_string());
    }
}
