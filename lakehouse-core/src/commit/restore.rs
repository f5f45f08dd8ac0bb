//! Back to an older state by going forward: a new snapshot on top of the head that lists the files of an older one
//! (protocol E1, E2). The position stays; the epoch rises, so that whoever planned before it is fenced.

use std::sync::Arc;

use iceberg::TableUpdate;
use iceberg::spec::Operation;

use super::journal::{Mark, OperationMark};
use super::new_snapshot_id;
use super::properties::{self, TableState};
use super::replace::Maintainer;
use super::snapshot::{SnapshotHeader, build_restored, main_at};
use super::traces::{without_rollback, without_tags};
use crate::catalog::{LoadedTable, Swap};
use crate::error::Problem;
use crate::live::LiveFiles;
use crate::planted::Bug;

/// How an attempt to restore has ended.
#[derive(Debug)]
pub enum Restored {
    Landed {
        table: LoadedTable,
        snapshot_id: i64,
    },
    /// The table is not any more what the person saw; nothing has changed (protocol E3).
    Moved,
}

impl Maintainer {
    /// Makes the rows of `target` current, on exactly the state that `seen` has. One attempt, never repeated. Of an
    /// operation of several tables it leaves that one's mark, under its epoch (protocol E7 c).
    ///
    /// # Errors
    /// `SNAPSHOT_UNKNOWN` for a target that has expired; `COMMIT_UNSETTLED` where no answer came and the commit is not
    /// there yet: it may still land.
    pub async fn restore(
        &self,
        seen: &LoadedTable,
        target: i64,
        operation: Option<(&OperationMark, u64)>,
    ) -> Result<Restored, Problem> {
        let state = TableState::of(seen)?;
        let restored = LiveFiles::load(&self.storage, seen, Some(target)).await?;
        let moves_ref = self.planted.is(Bug::MoveRef);
        let snapshot_id = if moves_ref { target } else { new_snapshot_id(seen) };
        let epoch = operation.map_or(state.epoch + 1, |(_, epoch)| epoch.max(state.epoch));
        let moved = |position: Option<crate::position::Position>| position.map_or(String::new(), |at| at.to_string());
        let target_position = seen
            .metadata
            .snapshot_by_id(target)
            .and_then(|snapshot| snapshot.summary().additional_properties.get(properties::TO).cloned());
        let rolled_back = format!("{},{}", target_position.unwrap_or_default(), moved(state.position));
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Overwrite,
            schema: Arc::clone(seen.metadata.current_schema()),
            summary: properties::properties([
                (properties::KIND, properties::KIND_ROLLBACK.to_owned()),
                (properties::EPOCH, epoch.to_string()),
                (properties::RESTORED, target.to_string()),
            ]),
        };
        let mut updates = match moves_ref {
            true => vec![main_at(target)],
            false => build_restored(&self.storage, seen, &restored, header).await?,
        };
        let mut raised = properties::properties([(properties::EPOCH, epoch.to_string())]);
        raised.extend(operation.map(|(mark, _)| (properties::OPERATION.to_owned(), mark.text())));
        // What has been taken back has its old rows again, and nobody goes anywhere from here by the operation's tags.
        match operation {
            Some((OperationMark { id, mark: Mark::Released }, _)) => {
                updates.extend(without_rollback(seen));
                updates.extend(without_tags(seen, id));
            }
            _ => drop(raised.insert(properties::ROLLED_BACK.to_owned(), rolled_back)),
        }
        updates.push(TableUpdate::SetProperties { updates: raised });
        match self.catalog.commit(seen, updates).await? {
            Swap::Landed(table) => Ok(Restored::Landed { table, snapshot_id }),
            Swap::Rejected => Ok(Restored::Moved),
            Swap::Unknown(why) => {
                let table = self.load(&seen.name, Some(seen)).await?;
                match table.metadata.snapshot_by_id(snapshot_id).is_some() {
                    true => Ok(Restored::Landed { table, snapshot_id }),
                    false => Err(Problem::retry("COMMIT_UNSETTLED", seen.name.to_string(), why)),
                }
            }
        }
    }
}
