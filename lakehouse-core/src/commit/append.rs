//! Files added to a table that no pipeline owns: what maintenance keeps of its own runs.
//!
//! The table has no position and no epoch, so there is nothing to judge and nothing to follow: an append fits on every head.
//! What has become of a lost answer is told by the snapshot's id, as everywhere (protocol B2).

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::TableUpdate;
use iceberg::spec::Operation;
use tracing::{debug, warn};

use super::properties;
use super::replace::Maintainer;
use super::snapshot::{SnapshotHeader, build_snapshot};
use super::{ATTEMPTS, FIRST_PAUSE, FileChange, LONGEST_PAUSE, new_snapshot_id};
use crate::catalog::{LoadedTable, Swap};
use crate::error::Problem;
use crate::live::LiveFiles;
use crate::write::NewFile;

impl Maintainer {
    /// Adds files to a table. It must be one of no pipeline: those are written by their workers alone.
    ///
    /// # Errors
    /// Those of the catalog and the storage; `COMMIT_UNSETTLED`, where no attempt got an answer.
    pub async fn append(&self, table: &LoadedTable, added: Vec<NewFile>) -> Result<LoadedTable, Problem> {
        let name = &table.name;
        assert!(
            table.property(properties::SOURCE).is_none(),
            "{name} is a pipeline's, and only its worker appends to it"
        );
        self.storage.make_durable(added.iter().map(|new| new.file.file_path().to_owned()).collect()).await?;
        let change = FileChange { added, ..FileChange::default() };
        let snapshot_id = new_snapshot_id(table);
        let mut known = table.clone();
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let head = self.load(name, Some(&known)).await?;
            if head.metadata.snapshot_by_id(snapshot_id).is_some() {
                return Ok(head);
            }
            let updates = self.appending(&head, &change, snapshot_id).await?;
            match self.catalog.commit(&head, updates).await? {
                Swap::Landed(table) => return Ok(table),
                Swap::Rejected => debug!(table = %name, attempt, "append rejected, looking again"),
                Swap::Unknown(why) => {
                    warn!(table = %name, attempt, why, "append has no answer, looking again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            known = head;
        }
        let message = "no attempt to append files got an answer that settles it";
        Err(Problem::retry("COMMIT_UNSETTLED", name.to_string(), message))
    }

    async fn appending(
        &self,
        head: &LoadedTable,
        change: &FileChange,
        snapshot_id: i64,
    ) -> Result<Vec<TableUpdate>, Problem> {
        let live = LiveFiles::load(&self.storage, head, head.snapshot_id()).await?;
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Append,
            schema: Arc::clone(head.metadata.current_schema()),
            summary: summary(),
        };
        Ok(build_snapshot(&self.storage, head, &live, header, change).await?.updates)
    }
}

/// The epoch says that the snapshot is ours, and that no worker has made it: theirs begin at 1.
fn summary() -> HashMap<String, String> {
    properties::properties([
        (properties::KIND, properties::KIND_MAINTENANCE.to_owned()),
        (properties::EPOCH, 0.to_string()),
    ])
}
