//! What stands in a table's quarantine and can be mapped by now, as changes of a lane of its own: an operator has asked for
//! it, a column's policy is another one, say (reliability requirements Q3).
//!
//! They go out before anything that the streams say, and the core has picked rows of which it knows nothing newer: so no
//! change that came since is overwritten, and what comes later comes behind. The lane has an end, which stands in the same
//! commits as the rows; what a crash interrupts is done again by that lane's name, and skipped where it has landed. The
//! quarantine keeps its rows.

use std::sync::Arc;

use arrow_array::ArrayRef;
use lakehouse_core::change::Operation;
use lakehouse_core::error::Problem;
use lakehouse_core::lakehouse::Lakehouse;
use lakehouse_core::lanes::TableLanes;
use tracing::info;

use crate::items::ItemSchema;
use crate::value::Item;

pub(crate) struct Replay {
    pub(crate) lane: Arc<str>,
    pub(crate) items: Vec<ReplayedItem>,
}

pub(crate) struct ReplayedItem {
    pub(crate) operation: Operation,
    /// Microseconds since 1970.
    pub(crate) committed_at: i64,
    pub(crate) item: Item,
}

/// The lane of what is asked for of a table that is followed from `lanes`; `None` where nothing is, or it has been done.
pub(crate) fn lane_wanted(lakehouse: &Lakehouse, table: &str, lanes: &TableLanes) -> Option<String> {
    let lane = lakehouse.replay_requested(table)?.lane();
    (!lanes.lanes.contains_key(&lane)).then_some(lane)
}

/// The changes of that lane.
pub(crate) async fn wanted(
    lakehouse: &Lakehouse,
    items: &ItemSchema,
    lanes: &TableLanes,
) -> Result<Option<Replay>, Problem> {
    let table = &items.table().source;
    let Some(lane) = lane_wanted(lakehouse, table, lanes) else { return Ok(None) };
    let key_columns = |keys: &[&str]| key_columns(items, keys);
    let standing = lakehouse.standing_in_quarantine(table, &lane, &key_columns).await?;
    let (count, mut rows) = (standing.len(), items.builder());
    let mappable = standing.into_iter().filter_map(|row| {
        let item = Item::from_canonical(&row.image).ok()?;
        // What still does not fit stays where it is, and is no reason to halt.
        rows.append(&item, None).ok()?;
        Some(ReplayedItem { operation: row.operation, committed_at: row.committed_at, item })
    });
    let items: Vec<ReplayedItem> = mappable.collect();
    info!(table, applied = items.len(), unmappable = count - items.len(), "rows of the quarantine are applied");
    Ok(Some(Replay { lane: lane.into(), items }))
}

/// Keys as the quarantine has them, as columns.
fn key_columns(items: &ItemSchema, keys: &[&str]) -> Result<Vec<ArrayRef>, Problem> {
    let mut rows = items.builder();
    for key in keys {
        let appended = Item::from_canonical(key).map(|key| rows.append_deleted(&key));
        if !matches!(appended, Ok(Ok(()))) {
            let remedy = "resync the table; report this";
            let message = "the quarantine has a key that this table cannot have";
            return Err(Problem::halt_table("ROW_UNREADABLE", &items.table().source, message, remedy));
        }
    }
    let mut columns = rows.finish().columns;
    columns.truncate(items.table().key_columns().len());
    Ok(columns)
}
