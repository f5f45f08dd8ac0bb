//! What people have done to a pipeline's tables.

use std::collections::{BTreeMap, BTreeSet};

use lakehouse_core::commit::{ControlState, Journal, LeftTable, Stage, recorded_operations, references, undo_tag};

use crate::failure::Failure;
use crate::lake::Lake;

/// As they stand, oldest first; none before the pipeline's first start. Requests are left out: they are between the
/// journal and who asked.
pub(crate) async fn known(lake: &Lake, pipeline: &str) -> Result<Vec<Journal>, Failure> {
    let Some((state, control)) = lake.control(pipeline).await? else { return Ok(Vec::new()) };
    let mut known = recorded_operations(&control);
    let mut tags = BTreeMap::new();
    for journal in &mut known {
        settle(lake, &state, journal, &mut tags).await;
    }
    Ok(known)
}

/// One of them, likewise.
pub(crate) async fn one(lake: &Lake, pipeline: &str, id: &str) -> Result<Option<Journal>, Failure> {
    let Some((state, control)) = lake.control(pipeline).await? else { return Ok(None) };
    let mut found = recorded_operations(&control).into_iter().find(|journal| journal.id == id);
    if let Some(journal) = &mut found {
        settle(lake, &state, journal, &mut BTreeMap::new()).await;
    }
    Ok(found)
}

/// Makes of what the journal says what is shown. `tags` are those of tables that have been looked at.
async fn settle(
    lake: &Lake,
    state: &ControlState,
    journal: &mut Journal,
    tags: &mut BTreeMap<String, BTreeSet<String>>,
) {
    journal.request = None;
    if journal.stage == Stage::RolledBack && is_closed(lake, state, journal, tags).await {
        journal.stage = Stage::Closed;
    }
}

/// It holds no table any more, and none has the way back to its old head (protocol E6). What cannot be read is not called
/// closed.
async fn is_closed(
    lake: &Lake,
    state: &ControlState,
    journal: &Journal,
    tags: &mut BTreeMap<String, BTreeSet<String>>,
) -> bool {
    // Only the last one can hold a table.
    let is_last = state.journal.as_ref().is_some_and(|last| last.id == journal.id);
    let left = state.cut.as_ref().filter(|_| is_last).map(|cut| &cut.left);
    let undo = undo_tag(&journal.id);
    for (name, table) in &journal.tables {
        if left.and_then(|left| left.get(&table.source)).is_some_and(LeftTable::is_held) {
            return false;
        }
        if !tags.contains_key(name) {
            let Ok(parsed) = name.parse() else { return false };
            let Ok(loaded) = lake.catalog.load(&parsed, None).await else { return false };
            let own = loaded.map(|table| references(&table).into_keys().collect()).unwrap_or_default();
            tags.insert(name.clone(), own);
        }
        if tags[name].contains(&undo) {
            return false;
        }
    }
    true
}

/// # Errors
/// `OPERATION_UNKNOWN`, with those that are known.
pub(crate) async fn find(lake: &Lake, pipeline: &str, id: &str) -> Result<Journal, Failure> {
    if let Some(journal) = one(lake, pipeline, id).await? {
        return Ok(journal);
    }
    let known = known(lake, pipeline).await?;
    let ids: Vec<&str> = known.iter().map(|journal| journal.id.as_str()).collect();
    let remedy = format!("known are: {}", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") });
    Err(Failure::failed("OPERATION_UNKNOWN", id, "the pipeline knows no such operation", remedy))
}
