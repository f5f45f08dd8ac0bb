//! The row map of a rewrite stands in a Puffin file that the statistics of its snapshot name: whoever planned on the table
//! as it was before finds there where each row has gone, in this process or in another one.

use std::sync::Arc;

use iceberg::TableUpdate;
use tracing::warn;

use super::puffin;
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::row_map::RowMap;
use crate::storage::Storage;

/// Type of the blob.
const BLOB: &str = "lakehouse-row-map-v1";
/// What its file is called.
const NAME: &str = "rows";

/// For a snapshot that is about to be committed on `base`; the file is durable.
pub(super) async fn store(
    storage: &Storage,
    base: &LoadedTable,
    snapshot_id: i64,
    map: &RowMap,
) -> Result<TableUpdate, Problem> {
    let stored = puffin::store(storage, base, snapshot_id, (BLOB, NAME), map.encode()).await?;
    Ok(TableUpdate::SetStatistics { statistics: stored.statistics })
}

/// The map of a snapshot. `None` where it has none, or where it cannot be read: then keys are looked up again, which costs
/// time and nothing else.
pub(crate) async fn fetch(storage: &Storage, table: &LoadedTable, snapshot_id: i64) -> Option<Arc<RowMap>> {
    let statistics = table.metadata.statistics_for_snapshot(snapshot_id)?;
    if !puffin::is_named(statistics, NAME) {
        return None;
    }
    let path = &statistics.statistics_path;
    let map = match puffin::fetch(storage, path, BLOB).await {
        Ok(bytes) => RowMap::decode(&bytes).ok_or_else(|| "it is not what was written".to_owned()),
        Err(why) => Err(why),
    };
    map.inspect_err(|why| warn!(table = %table.name, snapshot_id, path, why, "the row map of a rewrite is not used"))
        .ok()
        .map(Arc::new)
}
