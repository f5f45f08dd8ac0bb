//! Maintenance commits: files replaced by others with the same rows, and changes of nothing but metadata (protocol F).
//!
//! A rewrite is planned on one snapshot and takes its time. What the writer deletes meanwhile is forwarded: each attempt
//! loads the table, looks which rows of the replaced files have gone since the plan, and deletes them from the new files in
//! the same commit, with the token of that load (protocol F2, F4). A commit here carries the `cdc.*` properties unchanged
//! and moves no position (protocol F1). No file is ever deleted here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use iceberg::TableUpdate;
use iceberg::spec::Operation;
use roaring::RoaringBitmap;
use tracing::{debug, info, warn};

use super::deletes::own_deletes;
use super::give_way::GiveWay;
use super::properties::{self, TableState};
use super::snapshot::{SnapshotHeader, build_snapshot};
use super::{ATTEMPTS, FIRST_PAUSE, FileChange, LONGEST_PAUSE, OLDEST_FILE, new_snapshot_id, row_maps};
use crate::catalog::{Catalog, LoadedTable, Swap};
use crate::error::Problem;
use crate::foreign::check_foreign;
use crate::live::{EQUALITY_DELETES, LiveFiles};
use crate::planted::{Bug, Planted};
use crate::read::deleted_rows;
use crate::row_map::RowMap;
use crate::schema::TableName;
use crate::storage::Storage;
use crate::write::{DeletedFrom, NewFile, delete_location, write_delete_file};

/// Rounds that a rewrite loses before it asks the writer to let it go first.
const ROUNDS_BEFORE_ASKING: u32 = 3;

/// Who maintains tables: no pipeline of its own, and no position.
#[derive(Clone)]
pub struct Maintainer {
    pub catalog: Arc<dyn Catalog>,
    pub storage: Storage,
    pub give_way: GiveWay,
    pub planted: Planted,
}

/// A rewrite that is done and that no snapshot knows yet.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// When its first file was begun.
    pub begun: Instant,
    /// The snapshot it was planned on, its sequence number, and the table's epoch there.
    pub planned_on: i64,
    pub sequence_number: i64,
    pub epoch: u64,
    /// The files that go, by path, as they were when it was planned.
    pub replaced: BTreeMap<String, ReplacedFile>,
    /// The files that come; none where all rows of the replaced files were deleted.
    pub outputs: Vec<NewFile>,
    pub map: RowMap,
}

/// A data file that goes with a rewrite.
#[derive(Clone, Debug, Default)]
pub struct ReplacedFile {
    /// Paths of its delete files.
    pub deletes: Vec<String>,
    /// The rows that they take: not in the outputs.
    pub deleted: RoaringBitmap,
}

/// How an attempt to put a rewrite in place has ended.
#[derive(Debug)]
pub enum Replaced {
    Landed {
        table: LoadedTable,
        snapshot_id: i64,
        attempts: u32,
        /// Rows deleted since the plan, which are deleted from the new files.
        forwarded: u64,
    },
    /// The rewrite does not fit the table any more; nothing has changed, and the group is to be planned again.
    Overtaken(&'static str),
}

impl Maintainer {
    pub async fn load(&self, name: &TableName, known: Option<&LoadedTable>) -> Result<LoadedTable, Problem> {
        let found = self.catalog.load(name, known).await?;
        found.ok_or_else(|| {
            let remedy = "look at `lakehouse tables`";
            Problem::halt("TABLE_MISSING", name.to_string(), "the table is gone from the catalog", remedy)
        })
    }

    /// Puts a rewrite in place.
    ///
    /// # Errors
    /// Those of the catalog and the storage; what another engine has done to the table (protocol F6); and
    /// `COMMIT_UNSETTLED`, where no attempt got an answer: it may have landed, and the next look at the table tells.
    pub async fn replace(&self, table: &LoadedTable, rewrite: &Rewrite) -> Result<Replaced, Problem> {
        let name = &table.name;
        if rewrite.begun.elapsed() >= OLDEST_FILE {
            return Ok(Replaced::Overtaken("its files are older than 18 hours"));
        }
        let outputs = rewrite.outputs.iter().map(|new| new.file.file_path().to_owned());
        self.storage.make_durable(outputs.collect()).await?;
        let snapshot_id = new_snapshot_id(table);
        let mut known = table.clone();
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let _first = (attempt > ROUNDS_BEFORE_ASKING).then(|| self.give_way.ask(name));
            let head = self.load(name, Some(&known)).await?;
            if head.metadata.snapshot_by_id(snapshot_id).is_some() {
                return Ok(Replaced::Landed { table: head, snapshot_id, attempts: attempt - 1, forwarded: 0 });
            }
            if TableState::of(&head)?.epoch != rewrite.epoch && !self.planted.is(Bug::IgnoreRollback) {
                return Ok(Replaced::Overtaken("another worker has taken over since the plan"));
            }
            check_foreign(&self.storage, &head).await?;
            let live = match LiveFiles::load(&self.storage, &head, head.snapshot_id()).await {
                Err(problem) if problem.code == EQUALITY_DELETES => {
                    return Ok(Replaced::Overtaken("another engine has written equality deletes since the plan"));
                }
                loaded => loaded?,
            };
            // The planted bug forwards on the look of the plan, and swaps with the token of a later one.
            let early = match self.planted.is(Bug::ForwardEarly) {
                true => Some(LiveFiles::load(&self.storage, table, table.snapshot_id()).await?),
                false => None,
            };
            let forwarding = match self.forward(&head, early.as_ref().unwrap_or(&live), rewrite)? {
                Ok(forwarding) => forwarding,
                Err(why) => return Ok(Replaced::Overtaken(why)),
            };
            let new = forwarding.change.deletes.iter().map(|new| new.file.file_path().to_owned());
            self.storage.make_durable(new.collect()).await?;
            let updates = self.updates(&head, &live, rewrite, &forwarding, snapshot_id).await?;
            match self.catalog.commit(&head, updates).await? {
                Swap::Landed(table) => {
                    let Forwarding { change, rows: forwarded } = forwarding;
                    let (removed, added) = (change.removed.len(), change.added.len());
                    info!(table = %name, snapshot_id, attempt, removed, added, forwarded, "files are replaced");
                    return Ok(Replaced::Landed { table, snapshot_id, attempts: attempt, forwarded });
                }
                Swap::Rejected => debug!(table = %name, attempt, "rewrite rejected, forwarding again"),
                Swap::Unknown(why) => {
                    warn!(table = %name, attempt, why, "rewrite has no answer, looking again");
                    self.after_unknown(rewrite).await;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            known = head;
        }
        let message = "no attempt to replace files got an answer that settles it";
        Err(Problem::retry("COMMIT_UNSETTLED", name.to_string(), message))
    }

    /// What the replaced files have lost since the plan, as deletes of the new ones; or why the rewrite does not fit.
    fn forward(
        &self,
        head: &LoadedTable,
        live: &LiveFiles,
        rewrite: &Rewrite,
    ) -> Result<Result<Forwarding, &'static str>, Problem> {
        let mut change = FileChange {
            added: rewrite.outputs.clone(),
            removed: rewrite.replaced.keys().cloned().collect(),
            sequence_number: Some(rewrite.sequence_number),
            replaced_deletes: live.dangling_deletes().clone(),
            ..FileChange::default()
        };
        let mut gone: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
        for (path, planned) in &rewrite.replaced {
            let Some(file) = live.data.get(path) else {
                return Ok(Err("a file that it replaces is not live any more"));
            };
            change.replaced_deletes.extend(own_deletes(live, path).map(str::to_owned));
            if planned.deletes == file.deletes || self.planted.is(Bug::CompactionIgnoresDeletes) {
                continue;
            }
            let now = tokio::task::block_in_place(|| deleted_rows(&self.storage, path, file))?;
            if !planned.deleted.is_subset(&now) && !self.planted.is(Bug::IgnoreRollback) {
                return Ok(Err("rows that were deleted when it was planned have come back"));
            }
            for (output, rows) in rewrite.map.forward(path, &(now - &planned.deleted)) {
                *gone.entry(output).or_default() |= rows;
            }
        }
        let rows = gone.values().map(RoaringBitmap::len).sum();
        for (path, positions) in gone {
            let new = rewrite.outputs.iter().find(|new| new.file.file_path() == path);
            let new = new.expect("a row map names the outputs of its rewrite");
            let metadata = &head.metadata;
            let location = delete_location(metadata, new.file.partition(), metadata.current_schema());
            let data = DeletedFrom { path, partition: new.file.partition(), spec_id: new.spec_id };
            let write = || write_delete_file(&self.storage, &location, &data, &positions);
            change.deletes.push(tokio::task::block_in_place(write)?);
        }
        Ok(Ok(Forwarding { change, rows }))
    }

    async fn updates(
        &self,
        head: &LoadedTable,
        live: &LiveFiles,
        rewrite: &Rewrite,
        forwarding: &Forwarding,
        snapshot_id: i64,
    ) -> Result<Vec<TableUpdate>, Problem> {
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Replace,
            schema: Arc::clone(head.metadata.current_schema()),
            summary: summary(rewrite, forwarding),
        };
        let built = build_snapshot(&self.storage, head, live, header, &forwarding.change).await?;
        let mut updates = built.updates;
        updates.push(row_maps::store(&self.storage, head, snapshot_id, &rewrite.map).await?);
        Ok(updates)
    }

    /// Nothing (protocol B7); the planted bug cleans up, as others have.
    async fn after_unknown(&self, rewrite: &Rewrite) {
        if self.planted.is(Bug::DeleteOnUnknown) {
            for new in &rewrite.outputs {
                let _ = self.storage.io().delete(new.file.file_path()).await;
            }
        }
    }

    /// Changes nothing but metadata, on exactly the state that was planned on (protocol F2): `false` if the table has moved
    /// since, and nothing has changed. Whether it landed without an answer is told by `done`, asked of the table as it then
    /// stands.
    pub async fn change_metadata(
        &self,
        planned_on: &LoadedTable,
        updates: Vec<TableUpdate>,
        done: impl Fn(&LoadedTable) -> bool,
    ) -> Result<bool, Problem> {
        match self.catalog.commit(planned_on, updates).await? {
            Swap::Landed(_) => return Ok(true),
            Swap::Rejected => {}
            Swap::Unknown(why) => {
                warn!(table = %planned_on.name, why, "change of metadata has no answer, looking again")
            }
        }
        Ok(done(&self.load(&planned_on.name, Some(planned_on)).await?))
    }
}

/// A rewrite on one state of the table.
struct Forwarding {
    change: FileChange,
    rows: u64,
}

fn summary(rewrite: &Rewrite, forwarding: &Forwarding) -> HashMap<String, String> {
    properties::properties([
        (properties::KIND, properties::KIND_COMPACTION.to_owned()),
        (properties::EPOCH, rewrite.epoch.to_string()),
        (properties::PLANNED_ON, rewrite.planned_on.to_string()),
        (properties::FORWARDED, forwarding.rows.to_string()),
    ])
}
