//! What maintenance has done to a table between our look at it and our commit (protocol F5): rewrites that keep every row,
//! and changes of nothing but metadata. They are followed instead of beginning anew from the cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use iceberg::spec::{Operation, SnapshotRef};
use roaring::RoaringBitmap;

use super::properties::{KIND, KIND_COMPACTION};
use super::row_maps;
use crate::catalog::LoadedTable;
use crate::foreign::is_ours;
use crate::row_map::RowMap;
use crate::storage::Storage;

/// A rewrite of ours that a commit has found before it.
#[derive(Clone, Debug)]
pub struct Followed {
    pub snapshot_id: i64,
    pub map: Arc<RowMap>,
}

/// Our own rewrites between two states of a table, oldest first, with their maps. `None` if anything else has happened in
/// between, or a map is missing: then nothing may be translated (protocol B9).
pub(super) async fn rewrites_between(
    storage: &Storage,
    known: &LoadedTable,
    head: &LoadedTable,
) -> Option<Vec<Followed>> {
    let shape = |table: &LoadedTable| (table.metadata.current_schema_id(), table.metadata.default_partition_spec_id());
    if shape(known) != shape(head) {
        return None;
    }
    let mut followed = Vec::new();
    let mut next = head.snapshot_id();
    while next != known.snapshot_id() {
        let snapshot = head.metadata.snapshot_by_id(next?)?;
        if !is_rewrite(snapshot) {
            return None;
        }
        let map = row_maps::fetch(storage, head, snapshot.snapshot_id()).await?;
        followed.push(Followed { snapshot_id: snapshot.snapshot_id(), map });
        next = snapshot.parent_snapshot_id();
    }
    followed.reverse();
    Some(followed)
}

/// True for a snapshot of our own that replaces files and keeps rows.
pub(crate) fn is_rewrite(snapshot: &SnapshotRef) -> bool {
    let summary = snapshot.summary();
    let kind = summary.additional_properties.get(KIND).map(String::as_str);
    is_ours(snapshot) && summary.operation == Operation::Replace && kind == Some(KIND_COMPACTION)
}

/// Rows by path, as they stand behind one more rewrite.
pub(super) fn translate(rows: &mut BTreeMap<String, RoaringBitmap>, map: &RowMap) {
    let moved: Vec<String> = rows.keys().filter(|path| map.files.contains_key(*path)).cloned().collect();
    for path in moved {
        let old = rows.remove(&path).unwrap_or_default();
        for (output, new) in map.forward(&path, &old) {
            *rows.entry(output.to_owned()).or_default() |= new;
        }
    }
}
