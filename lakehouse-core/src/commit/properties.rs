//! The `cdc.*` properties: what a table says of itself, in the same commit as its data (protocol B1).

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spill;
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::lanes::TableLanes;
use crate::position::Position;
use crate::storage::Storage;

pub const POSITION: &str = "cdc.position";
pub const EPOCH: &str = "cdc.epoch";
pub const OWNER: &str = "cdc.owner";
pub const SOURCE: &str = "cdc.source";
pub const BATCH: &str = "cdc.batch";
pub const FORMAT: &str = "cdc.format";
/// How far the lanes of the table's log have been read at its position, or of all logs at the cut; only of logs with many.
pub const LANES: &str = "cdc.lanes";
pub const COPY: &str = "cdc.copy";
pub const CUT: &str = "cdc.cut";
/// Set before a slot is created, so that a slot found later is known to be ours.
pub const INTENT: &str = "cdc.intent";
/// The source's own name of the table: names in the lake are folded.
pub const SOURCE_TABLE: &str = "cdc.source_table";
/// Columns whose names in the lake are not the source's, with the source's, as the table was created. A column that came
/// later says it in its doc, as every column does.
pub const COLUMNS: &str = "cdc.columns";

/// What this binary writes and understands; a higher one is refused (protocol D, NEWER_FORMAT).
pub const FORMAT_VERSION: u32 = 1;

/// In snapshot summaries, for audit only (protocol B1).
pub const KIND: &str = "cdc.kind";
/// The kind of a snapshot that replaces files and keeps rows.
pub const KIND_COMPACTION: &str = "compaction";
/// The kind of a snapshot that tells what maintenance has done, in a table of its own.
pub const KIND_MAINTENANCE: &str = "maintenance";
/// The kind of a snapshot that makes the rows of an older one current.
pub const KIND_ROLLBACK: &str = "rollback";
/// The snapshot whose rows a rollback has made current.
pub const RESTORED: &str = "cdc.restored";
/// A property: the target's position and the table's own, with a comma between, of the last rollback (protocol E2).
pub const ROLLED_BACK: &str = "cdc.rolled_back";
/// A property: since when the rows are not the source's, after an accept or a replay that left changes out (protocol E5).
pub const DIVERGED: &str = "cdc.diverged";
/// A property: what an operation of a person has done to the table (protocol E7 c).
pub const OPERATION: &str = "cdc.operation";
/// A property of the control table: the last rollback (protocol E7 b).
pub const JOURNAL: &str = "cdc.journal";
/// A property of the control table: by source table, what a person wants applied of its quarantine.
pub const REPLAYS: &str = "cdc.replays";
/// A property of the control table: why the pipeline is to stand still.
pub const PAUSED: &str = "cdc.paused";
/// The snapshot that a rewrite was planned on.
pub const PLANNED_ON: &str = "cdc.planned_on";
/// Deleted rows that a rewrite has carried over to its files.
pub const FORWARDED: &str = "cdc.forwarded";
pub const FROM: &str = "cdc.from";
pub const TO: &str = "cdc.to";
pub const INSERTED: &str = "cdc.inserted";
pub const UPDATED: &str = "cdc.updated";
pub const DELETED: &str = "cdc.deleted";
pub const DIGEST: &str = "cdc.digest";
/// Changes of a batch, or rows of a copy's chunk, of which some went to the quarantine: `decoded` are `written` and
/// `quarantined` ones. Only in a quarantine's snapshots.
pub const DECODED: &str = "cdc.decoded";
pub const WRITTEN: &str = "cdc.written";
pub const QUARANTINED: &str = "cdc.quarantined";

/// How far the copy of a table has come (protocol A5): a lane of its own beside the position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Names one attempt to copy: another attempt begins from nothing.
    pub attempt: String,
    /// Chunks that have landed.
    pub chunks: u64,
    pub done: bool,
    /// Where the source goes on behind them, in its own words; only of a copy that can be resumed (D6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

/// The properties of a mirror or a history, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    /// `None` until the copy is done.
    pub position: Option<Position>,
    pub epoch: u64,
    pub source: Option<String>,
    pub batch: Option<String>,
    pub copy: Option<CopyProgress>,
    /// At `position`, or, while there is none, where the log will be followed from once the copy is done; only of a log
    /// with many lanes, and only [`TableState::read`] knows long ones.
    pub lanes: Option<Arc<TableLanes>>,
}

impl TableState {
    /// With lanes that are too long for a property.
    pub async fn read(storage: &Storage, table: &LoadedTable) -> Result<Self, Problem> {
        let mut state = Self::of(table)?;
        if let Some(text) = table.property(LANES).filter(|text| spill::is_reference(text)) {
            let text = spill::fetch(storage, table, text).await?;
            state.lanes = Some(Arc::new(serde_json::from_str(&text).map_err(|_| unreadable(table, LANES))?));
        }
        Ok(state)
    }

    pub fn of(table: &LoadedTable) -> Result<Self, Problem> {
        let format = number(table, FORMAT)?.unwrap_or(0);
        if format > u64::from(FORMAT_VERSION) {
            let message = format!("the table has format {format}, this binary knows up to {FORMAT_VERSION}");
            let remedy = "run the newer release that wrote it";
            return Err(Problem::halt("NEWER_FORMAT", table.name.to_string(), message, remedy));
        }
        let position = table.property(POSITION).map(str::parse).transpose();
        let lanes = table.property(LANES).filter(|text| !spill::is_reference(text));
        let lanes = lanes.map(serde_json::from_str).transpose();
        let copy = table.property(COPY).map(serde_json::from_str).transpose();
        Ok(Self {
            position: position.map_err(|_| unreadable(table, POSITION))?,
            epoch: number(table, EPOCH)?.unwrap_or(0),
            source: table.property(SOURCE).map(str::to_owned),
            batch: table.property(BATCH).map(str::to_owned),
            copy: copy.map_err(|_| unreadable(table, COPY))?,
            lanes: lanes.map_err(|_| unreadable(table, LANES))?.map(Arc::new),
        })
    }
}

pub(super) fn number(table: &LoadedTable, key: &str) -> Result<Option<u64>, Problem> {
    table.property(key).map(str::parse).transpose().map_err(|_| unreadable(table, key))
}

pub(super) fn unreadable(table: &LoadedTable, key: &str) -> Problem {
    let message = format!("property {key} has a value that this binary did not write");
    Problem::halt("PROPERTY_DAMAGED", table.name.to_string(), message, "restore the property, or resync the table")
}

/// Properties as an update of Iceberg's.
pub(super) fn properties<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
