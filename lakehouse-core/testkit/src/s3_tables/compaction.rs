//! Managed compaction: a writer that nobody started, which wins or loses the same swap as everybody.
//!
//! The work is PyIceberg's (`deploy/readers/rest.py`), through the simulator's own REST endpoint: it reads all live rows,
//! writes them into new files, and commits a `replace` snapshot without the old files and deletes.

use std::sync::Arc;

use super::lake::TableId;
use super::rest::ONLY_ON_TOKEN;
use super::service::Service;
use crate::rest_engine::RestEngine;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// The table's configuration forbids it.
    Disabled,
    /// The table has no metadata or no data files.
    Nothing,
    /// The files were exchanged; the new current metadata.
    Committed { metadata: String },
    /// Somebody else's swap came first; nothing has changed.
    Conflict,
    /// It could not be done.
    Failed { why: String },
}

pub(super) async fn run(service: &Arc<Service>, engine: &RestEngine, id: &TableId) -> Compaction {
    let (token, compacts, fresh) = {
        let lake = service.lake();
        let table = lake.table(id).unwrap_or_else(|refusal| panic!("{id:?}: {refusal:?}"));
        (table.pointer.token.clone(), table.maintenance.compacts(), table.pointer.metadata.is_none())
    };
    if !compacts {
        return Compaction::Disabled;
    }
    if fresh {
        return Compaction::Nothing;
    }
    let outcome = compact(engine, id, &token).await;
    let status = match &outcome {
        Compaction::Failed { why } => Err(why.clone()),
        Compaction::Conflict => Err("conflict with a concurrent commit".to_owned()),
        _ => Ok(()),
    };
    if let Ok(table) = service.lake().table_mut(id) {
        table.maintenance.compacted(status);
    }
    outcome
}

async fn compact(engine: &RestEngine, id: &TableId, token: &str) -> Compaction {
    let engine = engine.clone().on_warehouse(&id.bucket).header(ONLY_ON_TOKEN, token);
    match engine.compact(&format!("{}.{}", id.namespace, id.name)).await {
        Ok(answer) if answer["files"] == 0 => Compaction::Nothing,
        Ok(answer) => {
            Compaction::Committed { metadata: answer["metadata_location"].as_str().unwrap_or_default().to_owned() }
        }
        Err(why) if why.contains("CommitFailedException") => Compaction::Conflict,
        Err(why) => Compaction::Failed { why },
    }
}
