//! Equality deletes of another engine, put into position deletes: one delete file a data file, as ours are (protocol F8).
//!
//! Rows stay where they stand, so nothing is to be followed. The swap is on exactly the state that was read: the table's
//! writer waits meanwhile, and what another engine adds is met by the next run.

use std::sync::Arc;

use iceberg::spec::Operation;
use tracing::{info, warn};

use super::deletes::{DeletedRows, with_deletes};
use super::properties::{self, TableState};
use super::replace::{Maintainer, Replaced};
use super::snapshot::{SnapshotHeader, build_snapshot};
use super::{FileChange, LakeTable, new_snapshot_id, row_maps};
use crate::catalog::{LoadedTable, Swap};
use crate::equality::rows_taken;
use crate::error::Problem;
use crate::live::LiveFiles;
use crate::row_map::RowMap;

/// A commit that takes a table's equality deletes, and what it has written.
#[derive(Debug)]
pub struct ByPosition {
    pub replaced: Replaced,
    /// Delete files that came of it, by path, and their bytes.
    pub written: Vec<String>,
    pub bytes: u64,
    /// Rows that are deleted by position now and were not before.
    pub rows: u64,
}

impl Maintainer {
    /// Turns all equality deletes of a table into position deletes.
    ///
    /// # Errors
    /// Those of the catalog and the storage.
    pub async fn delete_by_position(&self, table: &LoadedTable, live: &LiveFiles) -> Result<ByPosition, Problem> {
        let name = &table.name;
        let gone = {
            let (storage, live) = (self.storage.clone(), live.clone());
            let reading = tokio::task::spawn_blocking(move || rows_taken(&storage, &live));
            let interrupted = |_| Err(Problem::retry("INTERRUPTED", name.to_string(), "reading was interrupted"));
            reading.await.unwrap_or_else(interrupted)?
        };
        let mut replaced_deletes = live.dangling_deletes().clone();
        replaced_deletes.extend(live.equality_deletes().cloned());
        let before = live.deleted_rows();
        // What they take is known now, and is not to be looked for again.
        let mut live = live.clone();
        live.data.values_mut().for_each(|file| file.equality = None);
        let state = TableState::of(table)?;
        let epoch = state.epoch;
        let (loaded, protected, deleted) = (table.clone(), std::collections::HashSet::new(), DeletedRows::default());
        let mut mended = LakeTable { loaded, state, live, protected, deleted };
        let change = FileChange { replaced_deletes, ..FileChange::default() };
        let write = || with_deletes(&self.storage, &mut mended, change, &gone, self.planted);
        let change = tokio::task::block_in_place(write)?;
        let written: Vec<String> = change.deletes.iter().map(|new| new.file.file_path().to_owned()).collect();
        self.storage.make_durable(written.clone()).await?;

        let snapshot_id = new_snapshot_id(table);
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Replace,
            schema: Arc::clone(table.metadata.current_schema()),
            summary: properties::properties([
                (properties::KIND, properties::KIND_COMPACTION.to_owned()),
                (properties::EPOCH, epoch.to_string()),
            ]),
        };
        let mut updates = build_snapshot(&self.storage, table, &mended.live, header, &change).await?.updates;
        updates.push(row_maps::store(&self.storage, table, snapshot_id, &RowMap::default()).await?);
        let replaced = self.swap(table, updates, snapshot_id).await?;
        let rows = mended.live.totals_after(&change).deleted_positions.saturating_sub(before);
        let bytes = change.deletes.iter().map(|new| new.file.file_size_in_bytes()).sum();
        if matches!(replaced, Replaced::Landed { .. }) {
            info!(table = %name, snapshot_id, files = written.len(), rows, "equality deletes are position deletes now");
        }
        Ok(ByPosition { replaced, written, bytes, rows })
    }

    /// Once, on exactly this state of the table.
    async fn swap(
        &self,
        table: &LoadedTable,
        updates: Vec<iceberg::TableUpdate>,
        snapshot_id: i64,
    ) -> Result<Replaced, Problem> {
        let landed = |table| Replaced::Landed { table, snapshot_id, attempts: 1, forwarded: 0 };
        match self.catalog.commit(table, updates).await? {
            Swap::Landed(table) => return Ok(landed(table)),
            Swap::Rejected => {}
            Swap::Unknown(why) => warn!(table = %table.name, why, "a commit has no answer, looking again"),
        }
        let head = self.load(&table.name, Some(table)).await?;
        Ok(match head.metadata.snapshot_by_id(snapshot_id) {
            Some(_) => landed(head),
            None => Replaced::Overtaken("the table has moved since its equality deletes were read"),
        })
    }
}
