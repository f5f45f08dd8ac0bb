//! One table, one commit: attempt, look, and rebuild or stop (protocol sections B and C).
//!
//! The position moves in the commit that carries the rows. Every attempt begins with a load and is judged by the table's
//! own position against the one this incarnation expects; an answer that did not come is never taken for a failure.
//! No file is ever deleted here (protocol B10).

mod append;
mod by_position;
mod control;
mod deletes;
mod follow;
mod give_way;
mod journal;
mod manifest;
pub mod properties;
mod puffin;
mod replace;
mod restore;
pub(crate) mod row_maps;
mod snapshot;
mod spill;
mod traces;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use iceberg::TableUpdate;
use iceberg::spec::{Operation, Schema, SchemaRef, SnapshotReference};
use roaring::RoaringBitmap;
use sha2::{Digest, Sha256};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::catalog::{Catalog, LoadedTable, Swap};
use crate::error::{Problem, Reaction};
use crate::lanes::TableLanes;
use crate::live::LiveFiles;
use crate::planted::{Bug, Planted};
use crate::position::Position;
use crate::schema::TableName;
use crate::storage::Storage;
use crate::write::NewFile;

pub use by_position::ByPosition;
pub use control::{
    Control, ControlState, Cut, DurablePosition, LeftTable, NAMESPACE as CONTROL_NAMESPACE, QuarantineReplay,
    RESYNC_REQUESTED, RUNS as RUNS_TABLE, is_control, recorded_cuts, recorded_operations, runs_table,
};
pub use follow::Followed;
pub(crate) use follow::is_rewrite;
pub use give_way::GiveWay;
pub use journal::{
    CHANGES_MISSED, Exit, Journal, LeaveOut, Mark, OperationMark, ROLLED_BACK, Release, RequestDigest, RolledTable,
    Stage, target_tag, undo_tag,
};
pub use manifest::mergeable_manifests;
pub use replace::{Maintainer, Replaced, ReplacedFile, Rewrite};
pub use restore::Restored;
pub use traces::Divergence;
pub(crate) use traces::{converged, with_aged_tags, without_rollback, without_traces};

use deletes::{DeletedRows, with_deletes};
use follow::{rewrites_between, translate};
use properties::{CopyProgress, TableState};
use snapshot::{SnapshotHeader, build_snapshot};
use spill::StoredLanes;
use window::{Window, expire_oldest, slow_down};

/// Attempts of one commit before the incarnation gives up and resumes from its cut.
const ATTEMPTS: u32 = 8;
/// First pause after an unknown outcome; it doubles, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A file older than this is never committed (protocol A4: a quarter of the shortest orphan age, 72 hours).
pub(crate) const OLDEST_FILE: Duration = Duration::from_secs(18 * 3_600);
/// Snapshots that a table keeps in its metadata; the oldest beyond leave it, so that metadata stays small.
const SNAPSHOTS: usize = 2_000;
/// The code of a commit that another engine's has come before: nothing is wrong, and nothing heals by waiting.
pub const FOREIGN_COMMIT: &str = "FOREIGN_COMMIT";
/// Snapshots that leave at a time.
const SNAPSHOTS_AT_ONCE: usize = 200;

/// Who commits: one incarnation of one pipeline's worker.
#[derive(Clone)]
pub struct Committer {
    pub catalog: Arc<dyn Catalog>,
    pub storage: Storage,
    /// The source's identity, as text; compared, never read.
    pub source: String,
    pub epoch: u64,
    pub give_way: GiveWay,
    pub planted: Planted,
}

/// The files that one commit adds and removes.
#[derive(Clone, Debug, Default)]
pub struct FileChange {
    pub added: Vec<NewFile>,
    /// New position-delete files, each for one data file.
    pub deletes: Vec<NewFile>,
    /// Delete files that `deletes` supersede. A commit adds those that have no effect any more.
    pub replaced_deletes: HashSet<String>,
    /// Everything that was live before goes first (a truncate, or a copy that begins anew).
    pub remove_all: bool,
    /// Data files that go: their rows stand in `added` instead, or count no more.
    pub removed: BTreeSet<String>,
    /// The data sequence number of `added`, where it is not the commit's own (protocol F3).
    pub sequence_number: Option<i64>,
}

/// What a commit does to the table's lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advance {
    /// Changes in `(expected, to]` (protocol B3).
    Changes { to: Position },
    /// A chunk of the copy; with the last one the table gets its position (protocol A5).
    Copy { progress: CopyProgress, position: Option<Position> },
}

/// Rows that a commit inserts, updates and deletes; and a sum over the hashes of the keys written (for `fsck`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    pub digest: u128,
    /// Changes that were decoded for the batch, or rows for the chunk of a copy: those in the quarantine and all others; only
    /// of a quarantine, whose inserted rows are the former.
    pub decoded: Option<u64>,
}

/// One commit, planned on what [`LakeTable`] knows. Its snapshot id stays the same over all attempts (protocol B2).
#[derive(Clone, Debug)]
pub struct TableCommit {
    pub change: FileChange,
    /// Rows that go from data files, by path: of the table as it was looked at, or of `change`. Their delete files are made
    /// for the base of each attempt (protocol B9).
    pub gone: BTreeMap<String, RoaringBitmap>,
    pub advance: Advance,
    pub counts: Counts,
    /// The schema to make current first, if it is not yet.
    pub schema: Option<Schema>,
    /// How far the lanes of the table's log have been read at the position that it advances to, if its log has many; with a
    /// chunk of a copy, where they will be followed from.
    pub lanes: Option<Arc<TableLanes>>,
    /// What else of the metadata changes with it, in the same swap.
    pub beside: Vec<TableUpdate>,
}

impl TableCommit {
    /// With no rows that go from files that were there, the schema as it stands, and nothing of lanes.
    pub fn new(change: FileChange, advance: Advance, counts: Counts) -> Self {
        Self { change, gone: BTreeMap::new(), advance, counts, schema: None, lanes: None, beside: Vec::new() }
    }
}

/// A table as this incarnation knows it: from its one read after GO, or from its own landed commits.
#[derive(Debug)]
pub struct LakeTable {
    pub loaded: LoadedTable,
    pub state: TableState,
    pub live: LiveFiles,
    /// Snapshots that must stay in the metadata (protocol C6).
    pub protected: HashSet<i64>,
    deleted: DeletedRows,
}

/// A commit that is there.
#[derive(Clone, Debug)]
pub struct Landed {
    pub snapshot_id: i64,
    /// Rewrites of ours that it came behind, oldest first.
    pub followed: Vec<Followed>,
}

impl LakeTable {
    pub async fn open(storage: &Storage, loaded: LoadedTable) -> Result<Self, Problem> {
        let state = TableState::read(storage, &loaded).await?;
        let live = LiveFiles::load(storage, &loaded, loaded.snapshot_id()).await?;
        Ok(Self { loaded, state, live, protected: HashSet::new(), deleted: DeletedRows::default() })
    }

    pub fn name(&self) -> &TableName {
        &self.loaded.name
    }

    /// e(T): the position that this incarnation knows the table to have (protocol B3).
    pub fn expected(&self) -> Option<Position> {
        self.state.position
    }

    pub fn schema(&self) -> &SchemaRef {
        self.loaded.metadata.current_schema()
    }
}

/// What a load says about a commit that is to be attempted.
enum Judgement {
    /// The table stands where we expect it.
    Attempt,
    /// Our commit is there.
    Landed,
    /// Another incarnation or another source writes here.
    Fenced(String),
    /// The table is somewhere else: forget everything and resume from the cut.
    Moved(String),
    /// It stands at our position, and something else has been committed: by maintenance, or by another engine.
    Overtaken,
}

impl Committer {
    /// Commits to one table and follows it. On success the table stands at the new snapshot. An error with
    /// [`Reaction::Retry`] means: resume from the cut, having forgotten everything; nothing is known to have failed.
    pub async fn commit(&self, table: &mut LakeTable, mut commit: TableCommit) -> Result<Landed, Problem> {
        slow_down(&table.loaded).await;
        self.give_way.wait(table.name()).await;
        let batch = self.batch_id(table, &commit);
        let snapshot_id = new_snapshot_id(&table.loaded);
        let mut change = self.on_base(table, &commit).await?;
        let mut lanes = self.store_lanes(table, &commit, snapshot_id).await?;
        let mut followed = Vec::new();
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let head = self.load(table).await?;
            match self.judge(table, &head, &commit.advance, snapshot_id)? {
                Judgement::Attempt => {}
                Judgement::Landed => {
                    self.adopt(table, head).await?;
                    return Ok(Landed { snapshot_id, followed });
                }
                Judgement::Fenced(why) => return Err(fenced(table.name(), &why)),
                Judgement::Moved(why) => return Err(moved(table.name(), &why)),
                // Which files go was said of a head that is not there any more.
                Judgement::Overtaken if !commit.change.removed.is_empty() => {
                    return Err(moved(table.name(), "maintenance has rewritten it meanwhile"));
                }
                Judgement::Overtaken => {
                    followed.extend(self.follow(table, &head, &mut commit).await?);
                    change = self.on_base(table, &commit).await?;
                    lanes = self.store_lanes(table, &commit, snapshot_id).await?;
                }
            }
            let base = if self.rebases() { &head } else { &table.loaded };
            let built = self.build(base, table, &commit, &change, &batch, snapshot_id, lanes.as_ref()).await?;
            match self.catalog.commit(base, built.updates).await? {
                Swap::Landed(loaded) => {
                    table.live.advance(&change, built.manifests, built.deletes);
                    if change.remove_all {
                        table.deleted.clear();
                    }
                    let state = TableState::of(&loaded)?;
                    let lanes = state.lanes.or(commit.lanes).or(table.state.lanes.take());
                    table.state = TableState { lanes, ..state };
                    table.loaded = loaded;
                    debug!(table = %table.name(), snapshot_id, attempt, "committed");
                    return Ok(Landed { snapshot_id, followed });
                }
                Swap::Rejected => debug!(table = %table.name(), attempt, "commit rejected, looking again"),
                Swap::Unknown(why) => {
                    warn!(table = %table.name(), attempt, why, "commit has no answer, looking again");
                    self.after_unknown(&change).await;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        Err(moved(table.name(), "no attempt got an answer that settles it"))
    }

    /// The files of a commit on the table as it stands here, durable.
    async fn on_base(&self, table: &mut LakeTable, commit: &TableCommit) -> Result<FileChange, Problem> {
        let mut change = commit.change.clone();
        if !change.remove_all {
            change.replaced_deletes.extend(table.live.dangling_deletes().iter().cloned());
        }
        if !commit.gone.is_empty() {
            let write = || with_deletes(&self.storage, table, change, &commit.gone, self.planted);
            change = tokio::task::block_in_place(write)?;
        }
        let files = change.added.iter().chain(&change.deletes);
        self.storage.make_durable(files.map(|new| new.file.file_path().to_owned()).collect()).await?;
        Ok(change)
    }

    /// Our own maintenance has come first: its head is the base, and the rows that are to go are looked for where they
    /// stand now (protocol F5).
    async fn follow(
        &self,
        table: &mut LakeTable,
        head: &LoadedTable,
        commit: &mut TableCommit,
    ) -> Result<Vec<Followed>, Problem> {
        let Some(mut followed) = rewrites_between(&self.storage, &table.loaded, head).await else {
            return Err(Problem::retry(FOREIGN_COMMIT, table.name().to_string(), "another engine has committed"));
        };
        let all = followed.clone();
        if self.planted.is(Bug::LastMapOnly) {
            followed = followed.split_off(followed.len().saturating_sub(1));
        }
        followed.iter().for_each(|rewrite| translate(&mut commit.gone, &rewrite.map));
        debug!(table = %table.name(), rewrites = all.len(), head = head.snapshot_id(), "maintenance is followed");
        if !all.is_empty() {
            table.live = LiveFiles::load(&self.storage, head, head.snapshot_id()).await?;
            table.deleted.keep_live(&table.live);
        }
        table.loaded = head.clone();
        Ok(all)
    }

    async fn load(&self, table: &LakeTable) -> Result<LoadedTable, Problem> {
        let head = self.catalog.load(table.name(), Some(&table.loaded)).await?;
        head.ok_or_else(|| {
            let remedy = "restore the table, or resync it";
            Problem::halt("TABLE_MISSING", table.name().to_string(), "the table is gone from the catalog", remedy)
        })
    }

    /// Protocol B3, on the load that the attempt will be made with.
    fn judge(
        &self,
        table: &LakeTable,
        head: &LoadedTable,
        advance: &Advance,
        snapshot_id: i64,
    ) -> Result<Judgement, Problem> {
        if self.planted.is(Bug::BlindRebase) {
            return Ok(Judgement::Attempt);
        }
        let state = TableState::of(head)?;
        if state.epoch > self.epoch {
            return Ok(Judgement::Fenced(format!("epoch {} is above ours, {}", state.epoch, self.epoch)));
        }
        if state.source.as_ref().is_some_and(|source| *source != self.source) {
            return Ok(Judgement::Fenced("another source writes here".into()));
        }
        if self.planted.is(Bug::TrustLease) {
            return Ok(Judgement::Attempt);
        }
        let reached = match advance {
            Advance::Changes { to } => state.position == Some(*to),
            Advance::Copy { progress, position } => {
                state.copy.as_ref() == Some(progress) && state.position == *position
            }
        };
        // Ours, and nothing on top of it. Another incarnation's commit of the same batch holds other files, and a foreign
        // one must be looked at first (protocol F6): both mean to begin again from what stands there.
        if reached && head.snapshot_id() == Some(snapshot_id) {
            return Ok(Judgement::Landed);
        }
        if head.metadata_location == table.loaded.metadata_location {
            return Ok(Judgement::Attempt);
        }
        Ok(match state.position == table.state.position && state.copy == table.state.copy {
            true => Judgement::Overtaken,
            false => Judgement::Moved("another incarnation has committed".into()),
        })
    }

    /// The planted bugs that put a change on whatever head there is.
    fn rebases(&self) -> bool {
        self.planted.is(Bug::BlindRebase) || self.planted.is(Bug::TrustLease)
    }

    /// Our commit had landed although no answer came: read the table as it stands.
    async fn adopt(&self, table: &mut LakeTable, head: LoadedTable) -> Result<(), Problem> {
        let protected = std::mem::take(&mut table.protected);
        *table = LakeTable { protected, ..LakeTable::open(&self.storage, head).await? };
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what an attempt is made of, each a thing of its own")]
    async fn build(
        &self,
        base: &LoadedTable,
        table: &LakeTable,
        commit: &TableCommit,
        change: &FileChange,
        batch: &str,
        snapshot_id: i64,
        lanes: Option<&StoredLanes>,
    ) -> Result<BuiltCommit, Problem> {
        let mut updates = Vec::new();
        let mut schema = SchemaRef::clone(base.metadata.current_schema());
        if let Some(wanted) = &commit.schema {
            let id = base.metadata.schemas_iter().map(|schema| schema.schema_id()).max().unwrap_or(0) + 1;
            let numbered = wanted.clone().into_builder().with_schema_id(id).build();
            schema = Arc::new(numbered.map_err(|error| {
                Problem::halt("SCHEMA", base.name.to_string(), format!("schema is not valid: {error}"), "report this")
            })?);
            updates.push(TableUpdate::AddSchema { schema: Schema::clone(&schema) });
            updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
        }
        let live = match self.rebases() && base.snapshot_id() != table.loaded.snapshot_id() {
            true => &LiveFiles::load(&self.storage, base, base.snapshot_id()).await?,
            false => &table.live,
        };
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: operation(change),
            schema,
            summary: self.summary(table, commit, batch),
        };
        let built = build_snapshot(&self.storage, base, live, header, change).await?;
        updates.extend(built.updates);
        let mut properties = self.properties(commit, batch);
        if let Some(lanes) = lanes {
            properties.insert(properties::LANES.to_owned(), lanes.property.clone());
            updates.extend(lanes.updates.iter().cloned());
        }
        if self.planted.is(Bug::PositionInSummaryOnly) {
            let kept = properties.into_iter().filter(|(key, _)| key != properties::POSITION).collect();
            updates.push(TableUpdate::SetProperties { updates: kept });
        } else {
            updates.push(TableUpdate::SetProperties { updates: properties });
        }
        updates.extend(commit.beside.iter().cloned());
        let window = Window { snapshots: SNAPSHOTS, at_once: SNAPSHOTS_AT_ONCE };
        updates.extend(expire_oldest(&table.loaded, &table.protected, window));
        Ok(BuiltCommit { updates, manifests: built.manifests, deletes: built.deletes })
    }

    fn properties(&self, commit: &TableCommit, batch: &str) -> HashMap<String, String> {
        let mut all = properties::properties([
            (properties::EPOCH, self.epoch.to_string()),
            (properties::SOURCE, self.source.clone()),
            (properties::BATCH, batch.to_owned()),
            (properties::FORMAT, properties::FORMAT_VERSION.to_string()),
        ]);
        let position = match &commit.advance {
            Advance::Changes { to } => Some(*to),
            Advance::Copy { progress, position } => {
                let text = serde_json::to_string(progress).expect("a progress is plain data");
                all.insert(properties::COPY.to_owned(), text);
                *position
            }
        };
        all.extend(position.map(|position| (properties::POSITION.to_owned(), position.to_string())));
        all
    }

    /// How far the lanes have been read stands beside the position (D30).
    async fn store_lanes(
        &self,
        table: &LakeTable,
        commit: &TableCommit,
        snapshot_id: i64,
    ) -> Result<Option<StoredLanes>, Problem> {
        let Some(lanes) = &commit.lanes else { return Ok(None) };
        let text = serde_json::to_string(lanes).expect("lanes are plain data");
        spill::store(&self.storage, &table.loaded, snapshot_id, text).await.map(Some)
    }

    fn summary(&self, table: &LakeTable, commit: &TableCommit, batch: &str) -> HashMap<String, String> {
        let kind = match &commit.advance {
            // What a released table has missed, where that was nothing (protocol E5).
            Advance::Changes { to } if table.expected() == Some(*to) => properties::KIND_ROLLBACK,
            Advance::Changes { .. } => "change",
            Advance::Copy { .. } => "copy",
        };
        let mut summary = properties::properties([
            (properties::KIND, kind.to_owned()),
            (properties::EPOCH, self.epoch.to_string()),
            (properties::BATCH, batch.to_owned()),
            (properties::INSERTED, commit.counts.inserted.to_string()),
            (properties::UPDATED, commit.counts.updated.to_string()),
            (properties::DELETED, commit.counts.deleted.to_string()),
            (properties::DIGEST, format!("{:032x}", commit.counts.digest)),
        ]);
        if let Some(decoded) = commit.counts.decoded {
            let quarantined = commit.counts.inserted;
            summary.extend(properties::properties([
                (properties::DECODED, decoded.to_string()),
                (properties::WRITTEN, decoded.saturating_sub(quarantined).to_string()),
                (properties::QUARANTINED, quarantined.to_string()),
            ]));
        }
        let to = match &commit.advance {
            Advance::Changes { to } => Some(*to),
            Advance::Copy { position, .. } => *position,
        };
        let from = table.expected();
        summary.extend(from.map(|from| (properties::FROM.to_owned(), from.to_string())));
        summary.extend(to.map(|to| (properties::TO.to_owned(), to.to_string())));
        summary
    }

    /// `cdc.batch`: the same batch has the same name whoever forms it (protocol B2).
    fn batch_id(&self, table: &LakeTable, commit: &TableCommit) -> String {
        let mut range = match &commit.advance {
            Advance::Changes { to } => format!("{}..{to}", table.expected().unwrap_or(Position::START)),
            Advance::Copy { progress, .. } => format!("copy {} {}", progress.attempt, progress.chunks),
        };
        // Two incarnations may give one number to boundaries that differ in their lanes.
        if let (Some(from), Some(to)) = (&table.state.lanes, &commit.lanes) {
            range = serde_json::to_string(&(range, from, to)).expect("lanes are plain data");
        }
        let mut hash = Sha256::new();
        for part in [self.source.as_str(), &table.name().to_string(), &range] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Nothing: whatever was sent may still land (protocol B7). The planted bug cleans up, as others have.
    async fn after_unknown(&self, change: &FileChange) {
        if self.planted.is(Bug::DeleteOnUnknown) {
            for new in change.added.iter().chain(&change.deletes) {
                let _ = self.storage.io().delete(new.file.file_path()).await;
            }
        }
    }
}

struct BuiltCommit {
    updates: Vec<TableUpdate>,
    manifests: Vec<iceberg::spec::ManifestFile>,
    deletes: Vec<crate::live::LiveDelete>,
}

fn operation(change: &FileChange) -> Operation {
    let deletes = !change.deletes.is_empty() || !change.replaced_deletes.is_empty();
    let removes = change.remove_all || !change.removed.is_empty() || deletes;
    match (removes, change.added.is_empty()) {
        (false, _) => Operation::Append,
        (true, true) => Operation::Delete,
        (true, false) => Operation::Overwrite,
    }
}

/// A snapshot id that the table does not know.
fn new_snapshot_id(table: &LoadedTable) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = ((high ^ low) >> 1).cast_signed();
        if id != 0 && table.metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

/// Branches and tags, by name. The library lists them only in the metadata's text.
pub fn references(table: &LoadedTable) -> BTreeMap<String, SnapshotReference> {
    let text = serde_json::to_value(&*table.metadata).unwrap_or_default();
    let reference = |(name, value): (&String, &serde_json::Value)| {
        Some((name.clone(), serde_json::from_value(value.clone()).ok()?))
    };
    text["refs"].as_object().into_iter().flatten().filter_map(reference).collect()
}

/// Snapshots that a tag or a branch points at.
pub fn named_snapshots(table: &LoadedTable) -> HashMap<i64, Vec<String>> {
    let mut names: HashMap<i64, Vec<String>> = HashMap::new();
    for (name, reference) in references(table) {
        names.entry(reference.snapshot_id).or_default().push(name);
    }
    names
}

/// Somebody else has committed since a look: whoever planned on it looks again.
pub fn is_overtaken(problem: &Problem) -> bool {
    matches!(problem.code, "FENCED" | "TABLE_MOVED")
}

fn fenced(table: &TableName, why: &str) -> Problem {
    Problem {
        code: "FENCED",
        message: format!("another worker has taken over: {why}"),
        subject: table.to_string(),
        remedy: "nothing, if another worker is meant to run; else stop it: two workers on one pipeline take turns"
            .into(),
        reaction: Reaction::Retry,
    }
}

fn moved(table: &TableName, why: &str) -> Problem {
    Problem::retry("TABLE_MOVED", table.to_string(), why.to_owned())
}
