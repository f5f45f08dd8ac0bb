//! The control table of a pipeline: epoch, owner and the cut (protocol sections C and D).
//!
//! It has no rows. Each control commit appends an empty snapshot that carries the cut, so older cuts can be read; the
//! worker that writes cuts expires them itself (protocol C7).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use iceberg::spec::{NestedField, Operation, PrimitiveType, Schema, Type};
use iceberg::{TableCreation, TableUpdate};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::journal::{CHANGES_MISSED, Exit, Journal, ROLLED_BACK, Release, Stage};
use super::properties::{self, number, unreadable};
use super::snapshot::{SnapshotHeader, build_snapshot};
use super::spill::{self, StoredLanes};
use super::window::{Window, expire_oldest};
use super::{ATTEMPTS, FIRST_PAUSE, FileChange, LONGEST_PAUSE, fenced, moved, new_snapshot_id};
use crate::catalog::{Catalog, LoadedTable, Swap};
use crate::error::{Problem, Reaction};
use crate::lanes::Lanes;
use crate::live::LiveFiles;
use crate::position::{Boundary, Position};
use crate::schema::TableName;
use crate::storage::Storage;

/// Namespace of all control tables.
pub const NAMESPACE: &str = "lakehouse_control";
/// Where maintenance keeps what it has done: in the same namespace, and no control table. No pipeline may have this name.
pub const RUNS: &str = "maintenance_runs";
/// Cuts kept in the control table; the bound of the protocol is 4,000 (C7).
const CUTS: usize = 1_000;
/// Cuts that leave at a time.
const CUTS_AT_ONCE: usize = 100;

/// Why a table has left the cut that an operator wants to be copied anew.
pub const RESYNC_REQUESTED: &str = "RESYNC_REQUESTED";

/// The consistent view across tables, and where the pipeline resumes (protocol "Cut").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub source: String,
    pub position: Position,
    /// How far the lanes of the source's log had been read; empty for a log with one lane. Only the latest cut has them,
    /// in a property of their own, and only [`Control`] knows long ones.
    #[serde(default, skip_serializing)]
    pub lanes: Lanes,
    /// Milliseconds since 1970 up to which all logs had been seen at their tips; only of logs with many lanes (C9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_until: Option<i64>,
    pub epoch: u64,
    /// Milliseconds since 1970, by the worker's clock; for people, not for rules.
    pub committed_at: i64,
    /// Snapshot id per Iceberg table, as decimal text.
    pub tables: BTreeMap<String, String>,
    /// Tables that have left the cut (protocol C8), by their name at the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<String, LeftTable>,
}

impl Cut {
    /// The same cut, whatever is known of its lanes: an owner never has two that differ in nothing else.
    fn is(&self, other: &Cut) -> bool {
        let bare = |cut: &Cut| Cut { lanes: Lanes::default(), ..cut.clone() };
        bare(self) == bare(other)
    }

    pub fn boundary(&self) -> Boundary {
        Boundary { position: self.position, lanes: self.lanes.clone() }
    }
}

/// Why and where a table has left the cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftTable {
    pub position: Position,
    pub code: String,
    pub reason: String,
    /// How it comes back, once a person has said so; only of a table that a rollback holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

impl LeftTable {
    pub fn new(position: Position, code: &str, reason: String) -> Self {
        Self { position, code: code.to_owned(), reason, release: None }
    }

    /// Its mirror stands still where a rollback has put it; its history goes on (protocol E5).
    pub fn is_held(&self) -> bool {
        self.code == ROLLED_BACK
    }
}

/// A person wants applied what can be mapped by now of a table's quarantine (reliability requirements Q3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineReplay {
    /// Names the lane that its changes come in. It is done once the cut has that lane, so it may stay here.
    pub id: String,
    /// The cut's then: a copy that begins behind it has made it void.
    pub position: Position,
    pub reason: String,
}

impl QuarantineReplay {
    /// Name of its lane; a source's own lanes are called otherwise.
    pub fn lane(&self) -> String {
        format!("replay/{}", self.id)
    }
}

/// A position that a landed cut holds. Only this module makes one, so nothing else can be acknowledged (protocol C2).
#[derive(Clone, Debug)]
pub struct DurablePosition(Boundary);

impl DurablePosition {
    pub fn get(&self) -> Position {
        self.0.position
    }

    pub fn lanes(&self) -> &Lanes {
        &self.0.lanes
    }

    /// The planted bug B1 needs what the type exists to prevent.
    pub(crate) fn planted(position: Position) -> Self {
        Self(position.into())
    }
}

/// What the control table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlState {
    pub epoch: u64,
    pub owner: Option<String>,
    pub cut: Option<Cut>,
    /// What a worker was about to create at the source when it was last seen.
    pub intent: Option<String>,
    /// The last rollback.
    pub journal: Option<Journal>,
    /// By name at the source, the last one each.
    pub replays: BTreeMap<String, QuarantineReplay>,
    /// Why the pipeline is to stand still, if it is.
    pub paused: Option<String>,
}

/// One incarnation's hold on a pipeline's control table.
pub struct Control {
    catalog: Arc<dyn Catalog>,
    storage: Storage,
    table: LoadedTable,
    live: LiveFiles,
    state: ControlState,
    owner: String,
    cuts: usize,
}

impl Control {
    /// Reads the control table, and creates it where there is none.
    pub async fn open(catalog: Arc<dyn Catalog>, storage: Storage, pipeline: &str) -> Result<Self, Problem> {
        let name = TableName::new(NAMESPACE, pipeline);
        let table = match catalog.load(&name, None).await? {
            Some(table) => {
                catalog.check_owner(&name).await?;
                table
            }
            None => {
                catalog.check_name(&name)?;
                catalog.create(&name, creation(pipeline)?).await?
            }
        };
        let mut state = ControlState::of(&table)?;
        if let (Some(cut), Some(text)) = (&mut state.cut, table.property(properties::LANES)) {
            let text = spill::fetch(&storage, &table, text).await.map_err(|problem| match problem.reaction {
                Reaction::HaltTable => Problem { reaction: Reaction::Halt, ..problem },
                _ => problem,
            })?;
            cut.lanes = serde_json::from_str(&text).map_err(|_| unreadable(&table, properties::LANES))?;
        }
        let live = LiveFiles::load(&storage, &table, table.snapshot_id()).await?;
        Ok(Self { catalog, storage, table, live, state, owner: Uuid::new_v4().to_string(), cuts: CUTS })
    }

    pub fn state(&self) -> &ControlState {
        &self.state
    }

    pub fn table(&self) -> &LoadedTable {
        &self.table
    }

    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Keeps fewer cuts than the default (tests of C7).
    pub fn keep_cuts(&mut self, cuts: usize) {
        self.cuts = cuts;
    }

    /// Records what is about to be created at the source, before it is.
    pub async fn intend(&mut self, intent: &str) -> Result<(), Problem> {
        self.settle(ControlState { intent: Some(intent.to_owned()), ..self.state.clone() }).await
    }

    /// GO (protocol D, start-up 1): the epoch goes up by one under our name; the cut is carried, or is the first one.
    /// Overtaken by another worker, this incarnation ends.
    pub async fn raise_epoch(&mut self, first: Option<Cut>) -> Result<u64, Problem> {
        let epoch = self.state.epoch + 1;
        let cut = self.state.cut.clone().or(first).map(|cut| Cut { epoch, ..cut });
        self.settle(ControlState { epoch, cut, ..self.state.clone() }).await?;
        info!(epoch, "worker has taken over");
        Ok(epoch)
    }

    /// Protocol C1. On success the position may be acknowledged.
    pub async fn write_cut(&mut self, cut: Cut) -> Result<DurablePosition, Problem> {
        let reached = cut.boundary();
        self.settle(ControlState { cut: Some(cut), intent: None, ..self.state.clone() }).await?;
        Ok(DurablePosition(reached))
    }

    /// An operator wants tables to be copied anew: they leave the cut, and the pipeline's next incarnation copies them. A
    /// worker that is at work is not told; its next cut finds this one in its place, and it resumes from here. `tables` are
    /// names at the source, each with the names of its tables in the lake.
    pub async fn request_resync(
        &mut self,
        tables: &BTreeMap<String, Vec<TableName>>,
        reason: &str,
    ) -> Result<(), Problem> {
        let mut cut = self.cut()?;
        for (source, names) in tables {
            let position = cut.left.get(source).map_or(cut.position, |left| left.position);
            cut.left.insert(source.clone(), LeftTable::new(position, RESYNC_REQUESTED, reason.to_owned()));
            names.iter().for_each(|name| drop(cut.tables.remove(&name.to_string())));
        }
        self.settle(ControlState { cut: Some(cut), ..self.state.clone() }).await
    }

    /// An operator wants applied what can be mapped by now of a table's quarantine. As with [`Control::request_resync`] the
    /// next incarnation does it. Returns the request's name: `id`, or that of one which no cut says is done. Part of that may
    /// have landed, so it goes on under its own name.
    pub async fn request_replay(&mut self, source: &str, id: &str, reason: &str) -> Result<String, Problem> {
        let cut = self.cut()?;
        let done = |request: &QuarantineReplay| {
            cut.lanes.of(source).is_some_and(|lanes| lanes.lanes.contains_key(&request.lane()))
        };
        let mut replays = self.state.replays.clone();
        let pending = replays.get(source).filter(|request| !done(request));
        let id = pending.map_or(id, |request| &request.id).to_owned();
        let request = QuarantineReplay { id: id.clone(), position: cut.position, reason: reason.to_owned() };
        replays.insert(source.to_owned(), request);
        self.settle(ControlState { replays, ..self.state.clone() }).await?;
        Ok(id)
    }

    /// The cut of a pipeline that has begun.
    ///
    /// # Errors
    /// `NO_CUT`.
    pub fn cut(&self) -> Result<Cut, Problem> {
        self.state.cut.clone().ok_or_else(|| {
            let remedy = "start the pipeline: its first start copies every table";
            Problem::halt("NO_CUT", &self.table.name.name, "the pipeline has no cut yet", remedy)
        })
    }

    /// Looks whether the control table is still as this incarnation has left it: a person's word waits for no change of the
    /// source.
    ///
    /// # Errors
    /// `FENCED` or `TABLE_MOVED`: begin again from what stands there.
    pub async fn look(&self) -> Result<(), Problem> {
        let found = ControlState::of(&self.load().await?)?;
        match found.is(&self.state) {
            true => Ok(()),
            false => Err(self.overtaken(&found)),
        }
    }

    /// The pipeline stands still for this reason, or goes on. A worker at work finds out at its next cut.
    pub async fn pause(&mut self, reason: Option<String>) -> Result<(), Problem> {
        self.settle(ControlState { paused: reason, ..self.state.clone() }).await
    }

    /// Opens an operation, or turns it back: the epoch rises, so that no worker's commit lands any more (protocol E7 b, e).
    pub async fn open_journal(&mut self, journal: Journal) -> Result<(), Problem> {
        let epoch = self.state.epoch + 1;
        let journal = Some(Journal { epoch, ..journal });
        let cut = self.state.cut.clone().map(|cut| Cut { epoch, ..cut });
        self.settle(ControlState { epoch, journal, cut, ..self.state.clone() }).await
    }

    /// Closes the operation in the direction in which it stands: the cut stays at its position (protocol E7 f). `heads`
    /// are the snapshots at which the operation has left its mirrors, by name.
    pub async fn close_journal(&mut self, heads: &BTreeMap<String, i64>) -> Result<(), Problem> {
        let Some(mut journal) = self.state.journal.clone().filter(|journal| journal.stage.is_open()) else {
            return Ok(());
        };
        let mut cut = self.cut()?;
        for (name, table) in &journal.tables {
            match (journal.stage, cut.left.get_mut(&table.source)) {
                (Stage::Forward, _) => {
                    cut.tables.remove(name);
                    let reason = format!("rolled back by {}: {}", journal.id, journal.reason);
                    cut.left.insert(table.source.clone(), LeftTable::new(table.position, ROLLED_BACK, reason));
                }
                // It was held, and comes back with what its history has had meanwhile.
                (_, Some(left)) => {
                    left.release = Some(Release {
                        operation: journal.id.clone(),
                        after: table.position,
                        exit: Exit::Undo,
                        leave_out: Default::default(),
                    });
                }
                // It has never left the cut.
                (_, None) => drop(cut.tables.insert(name.clone(), heads[name].to_string())),
            }
        }
        journal.stage = match journal.stage {
            Stage::Forward => Stage::RolledBack,
            _ => Stage::Released,
        };
        self.settle(ControlState { cut: Some(cut), journal: Some(journal), ..self.state.clone() }).await
    }

    /// A person has said how held tables come back; the pipeline's next incarnation does it. By names at the source.
    ///
    /// # Errors
    /// `NOT_HELD`, and `CHANGES_MISSED` of a table without a history that changes have passed.
    pub async fn release(&mut self, releases: BTreeMap<String, Release>) -> Result<(), Problem> {
        let mut cut = self.cut()?;
        for (source, release) in releases {
            match cut.left.get_mut(&source) {
                Some(left) if left.is_held() => left.release = Some(release),
                Some(left) if left.code == CHANGES_MISSED => {
                    let message = "changes have passed while a rollback held the table, and it has no history";
                    return Err(Problem::halt(CHANGES_MISSED, source, message, "resync the table"));
                }
                _ => {
                    let message = "no rollback holds the table";
                    return Err(Problem::halt("NOT_HELD", source, message, "look at `lakehouse status`"));
                }
            }
        }
        self.settle(ControlState { cut: Some(cut), ..self.state.clone() }).await
    }

    /// Moves the control table from the state that we know to the next, by token. An answer that did not come is
    /// settled by our owner with the epoch and by the exact cut (protocol B2), never by number alone.
    async fn settle(&mut self, next: ControlState) -> Result<(), Problem> {
        let next = ControlState { owner: Some(self.owner.clone()), ..next };
        let snapshot_id = new_snapshot_id(&self.table);
        let lanes = self.store_lanes(&next, snapshot_id).await?;
        let mut pause = FIRST_PAUSE;
        for _ in 0..ATTEMPTS {
            let head = self.load().await?;
            let found = ControlState::of(&head)?;
            if found.is(&next) {
                return self.follow(head, next).await;
            }
            if !found.is(&self.state) {
                return Err(self.overtaken(&found));
            }
            // Same state on a newer head: only a foreign engine's property or snapshot. Plan on what stands there.
            if head.metadata_location != self.table.metadata_location {
                self.live = LiveFiles::load(&self.storage, &head, head.snapshot_id()).await?;
                self.table = head;
            }
            match self.attempt(&next, snapshot_id, lanes.as_ref()).await? {
                Swap::Landed(table) => {
                    return self.follow(table, next).await;
                }
                Swap::Rejected => {}
                Swap::Unknown(why) => {
                    warn!(table = %self.table.name, why, "control commit has no answer, looking again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        Err(moved(&self.table.name, "no attempt got an answer that settles it"))
    }

    async fn load(&self) -> Result<LoadedTable, Problem> {
        let head = self.catalog.load(&self.table.name, Some(&self.table)).await?;
        head.ok_or_else(|| {
            let remedy = "restore it: without a cut only an operator can say where to resume";
            Problem::halt("CONTROL_MISSING", self.table.name.to_string(), "the control table is gone", remedy)
        })
    }

    fn overtaken(&self, found: &ControlState) -> Problem {
        match found.epoch > self.state.epoch || found.owner.as_deref() != Some(&self.owner) {
            true => fenced(&self.table.name, &format!("epoch {} is not ours", found.epoch)),
            false => moved(&self.table.name, "the cut is not the last one we know"),
        }
    }

    async fn store_lanes(&self, next: &ControlState, snapshot_id: i64) -> Result<Option<StoredLanes>, Problem> {
        let Some(cut) = next.cut.as_ref().filter(|cut| !cut.lanes.is_empty()) else { return Ok(None) };
        let text = serde_json::to_string(&cut.lanes).expect("lanes are plain data");
        spill::store(&self.storage, &self.table, snapshot_id, text).await.map(Some)
    }

    async fn attempt(
        &self,
        next: &ControlState,
        snapshot_id: i64,
        lanes: Option<&StoredLanes>,
    ) -> Result<Swap, Problem> {
        let cut = next.cut.as_ref().map(|cut| serde_json::to_string(cut).expect("a cut is plain data"));
        let mut set = properties::properties([
            (properties::EPOCH, next.epoch.to_string()),
            (properties::OWNER, self.owner.clone()),
            (properties::FORMAT, properties::FORMAT_VERSION.to_string()),
        ]);
        let mut summary = HashMap::from([(properties::EPOCH.to_owned(), next.epoch.to_string())]);
        if let (Some(cut), Some(text)) = (&next.cut, cut) {
            set.insert(properties::SOURCE.to_owned(), cut.source.clone());
            set.insert(properties::CUT.to_owned(), text.clone());
            summary.insert(properties::CUT.to_owned(), text);
            summary.insert(properties::TO.to_owned(), cut.position.to_string());
        }
        // Only where it moves: `operations` reads them back.
        if let Some(journal) = next.journal.as_ref().filter(|journal| self.state.journal.as_ref() != Some(journal)) {
            let text = serde_json::to_string(journal).expect("a journal is plain data");
            summary.insert(properties::JOURNAL.to_owned(), text);
        }
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Append,
            schema: self.table.metadata.current_schema().clone(),
            summary,
        };
        let built = build_snapshot(&self.storage, &self.table, &self.live, header, &FileChange::default()).await?;
        let mut updates = built.updates;
        match lanes {
            Some(lanes) => {
                set.insert(properties::LANES.to_owned(), lanes.property.clone());
                updates.extend(lanes.updates.iter().cloned());
            }
            None if self.table.property(properties::LANES).is_some() => {
                updates.push(TableUpdate::RemoveProperties { removals: vec![properties::LANES.to_owned()] });
            }
            None => {}
        }
        let journal = next.journal.as_ref().map(|journal| serde_json::to_string(journal).expect("it is plain data"));
        let replays = Some(&next.replays).filter(|replays| !replays.is_empty());
        let replays = replays.map(|replays| serde_json::to_string(replays).expect("they are plain data"));
        let mut removals = Vec::new();
        for (key, value) in [
            (properties::INTENT, &next.intent),
            (properties::JOURNAL, &journal),
            (properties::REPLAYS, &replays),
            (properties::PAUSED, &next.paused),
        ] {
            match value {
                Some(value) => drop(set.insert(key.to_owned(), value.clone())),
                None if self.table.property(key).is_some() => removals.push(key.to_owned()),
                None => {}
            }
        }
        if !removals.is_empty() {
            updates.push(TableUpdate::RemoveProperties { removals });
        }
        updates.push(TableUpdate::SetProperties { updates: set });
        updates.extend(self.expire());
        self.catalog.commit(&self.table, updates).await
    }

    async fn follow(&mut self, table: LoadedTable, state: ControlState) -> Result<(), Problem> {
        self.table = table;
        self.state = state;
        Ok(())
    }

    /// The oldest cuts beyond the window.
    fn expire(&self) -> Option<TableUpdate> {
        expire_oldest(&self.table, &HashSet::new(), Window { snapshots: self.cuts, at_once: CUTS_AT_ONCE })
    }
}

impl ControlState {
    fn is(&self, other: &ControlState) -> bool {
        let cuts = match (&self.cut, &other.cut) {
            (Some(ours), Some(theirs)) => ours.is(theirs),
            (None, None) => true,
            _ => false,
        };
        let bare = |state: &ControlState| ControlState { cut: None, ..state.clone() };
        cuts && bare(self) == bare(other)
    }

    pub fn of(table: &LoadedTable) -> Result<Self, Problem> {
        let format = number(table, properties::FORMAT)?.unwrap_or(0);
        if format > u64::from(properties::FORMAT_VERSION) {
            let message = format!("the control table has format {format}");
            return Err(Problem::halt("NEWER_FORMAT", table.name.to_string(), message, "run the newer release"));
        }
        let cut = table.property(properties::CUT).map(serde_json::from_str).transpose();
        let journal = table.property(properties::JOURNAL).map(serde_json::from_str).transpose();
        let replays = table.property(properties::REPLAYS).map(serde_json::from_str).transpose();
        Ok(Self {
            epoch: number(table, properties::EPOCH)?.unwrap_or(0),
            owner: table.property(properties::OWNER).map(str::to_owned),
            cut: cut.map_err(|_| unreadable(table, properties::CUT))?,
            intent: table.property(properties::INTENT).map(str::to_owned),
            journal: journal.map_err(|_| unreadable(table, properties::JOURNAL))?,
            replays: replays.map_err(|_| unreadable(table, properties::REPLAYS))?.unwrap_or_default(),
            paused: table.property(properties::PAUSED).map(str::to_owned),
        })
    }

    /// The pipeline's control state, without creating or changing anything.
    pub async fn read(catalog: &dyn Catalog, pipeline: &str) -> Result<Option<(Self, LoadedTable)>, Problem> {
        match catalog.load(&TableName::new(NAMESPACE, pipeline), None).await? {
            None => Ok(None),
            Some(table) => Ok(Some((Self::of(&table)?, table))),
        }
    }
}

/// True for a control table. Beside them stands only [`runs_table`].
pub fn is_control(name: &TableName) -> bool {
    name.namespace == NAMESPACE && name.name != RUNS
}

/// The history of maintenance, which no pipeline owns.
pub fn runs_table() -> TableName {
    TableName::new(NAMESPACE, RUNS)
}

/// All cuts that the control table still holds, oldest first.
pub fn recorded_cuts(table: &LoadedTable) -> Vec<Cut> {
    let mut snapshots: Vec<_> = table.metadata.snapshots().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    let cut = |snapshot: &&iceberg::spec::SnapshotRef| {
        serde_json::from_str(snapshot.summary().additional_properties.get(properties::CUT)?).ok()
    };
    // Of several at one position the newest: an epoch repeats the cut, and the end of a copy completes it.
    let mut cuts: Vec<Cut> = snapshots.iter().rev().filter_map(cut).collect();
    cuts.dedup_by_key(|cut| cut.position);
    cuts.reverse();
    cuts
}

/// All operations that the control table still knows of, oldest first, each as it stood last.
pub fn recorded_operations(table: &LoadedTable) -> Vec<Journal> {
    let mut snapshots: Vec<_> = table.metadata.snapshots().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    let texts = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.summary().additional_properties.get(properties::JOURNAL).map(String::as_str));
    let mut operations: Vec<Journal> = Vec::new();
    for journal in texts.chain(table.property(properties::JOURNAL)).filter_map(|text| serde_json::from_str(text).ok()) {
        let journal: Journal = journal;
        operations.retain(|known| known.id != journal.id);
        operations.push(journal);
    }
    operations
}

fn creation(pipeline: &str) -> Result<TableCreation, Problem> {
    let field = NestedField::optional(1, "pipeline", Type::Primitive(PrimitiveType::String));
    let schema = Schema::builder().with_fields([Arc::new(field)]).build();
    let schema = schema.map_err(|error| Problem::halt("SCHEMA", pipeline, error.to_string(), "report this"))?;
    Ok(TableCreation::builder()
        .name(pipeline.to_owned())
        .schema(schema)
        .properties(HashMap::from([("write.metadata.previous-versions-max".to_owned(), "10".to_owned())]))
        .build())
}
