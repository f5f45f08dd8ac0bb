//! How many snapshots a table keeps in its metadata, so that every commit and every reader has little of it to carry: by
//! number, and by the bytes that they take. Engines have failed on 5 MB of metadata, S3 Tables refuses 50.

use std::collections::HashSet;
use std::time::Duration;

use iceberg::TableUpdate;
use iceberg::spec::Snapshot;
use tracing::warn;

use super::named_snapshots;
use crate::catalog::LoadedTable;

/// The part of the metadata that snapshots may fill, in bytes.
const WINDOW_BYTES: usize = 7 << 18;
/// From here on the log says so.
const WARN_BYTES: u64 = 2 << 20;
/// From here on half of the snapshots go at once, whatever has filled the metadata.
const ACT_BYTES: u64 = 4 << 20;
/// From here on the writer slows down: expiry does not keep up, or may not take what is there.
const SLOW_BYTES: u64 = 8 << 20;
const SLOW_PAUSE: Duration = Duration::from_secs(5);
/// Around a pair of texts; a cut's own quotes are escaped, which this makes up for.
const QUOTES: usize = 32;
/// Ids, times and names of keys in a snapshot and in its entry in the log.
const FIXED_BYTES: usize = 300;

/// The oldest snapshots leave when there are `at_once` more than `snapshots`.
pub(super) struct Window {
    pub(super) snapshots: usize,
    pub(super) at_once: usize,
}

/// The snapshots that leave with this commit. Never the current one, a named one or a `protected` one (protocol C6).
pub(super) fn expire_oldest(table: &LoadedTable, protected: &HashSet<i64>, window: Window) -> Option<TableUpdate> {
    let metadata = &table.metadata;
    let most = window.snapshots.min(WINDOW_BYTES / bytes_of(metadata.current_snapshot()?)).max(1);
    let count = metadata.snapshots().len();
    let surplus = match table.metadata_bytes > ACT_BYTES {
        true => count / 2,
        false if count >= most + window.at_once.min(most / 4 + 1) => count - most,
        false => return None,
    };
    let named = named_snapshots(table);
    let mut snapshots: Vec<_> = metadata.snapshots().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    let keep = |id: i64| protected.contains(&id) || named.contains_key(&id) || table.snapshot_id() == Some(id);
    let ids = snapshots.iter().map(|snapshot| snapshot.snapshot_id()).filter(|&id| !keep(id));
    let snapshot_ids: Vec<i64> = ids.take(surplus).collect();
    (!snapshot_ids.is_empty()).then_some(TableUpdate::RemoveSnapshots { snapshot_ids })
}

/// What a snapshot takes of the metadata, about.
fn bytes_of(snapshot: &Snapshot) -> usize {
    let pairs = snapshot.summary().additional_properties.iter();
    let summary: usize = pairs.map(|(key, value)| key.len() + value.len() + QUOTES).sum();
    summary + snapshot.manifest_list().len() + FIXED_BYTES
}

/// Says that metadata grows, and holds the writer back before a service refuses the table.
pub(super) async fn slow_down(table: &LoadedTable) {
    let bytes = table.metadata_bytes;
    if bytes > WARN_BYTES {
        let remedy = "expire snapshots, or protect fewer of them";
        warn!(table = %table.name, bytes, snapshots = table.metadata.snapshots().len(), remedy, "metadata is large");
    }
    if bytes > SLOW_BYTES {
        tokio::time::sleep(SLOW_PAUSE).await;
    }
}
