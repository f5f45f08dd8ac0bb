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

use super::properties::{self, number, unreadable};
use super::snapshot::{SnapshotHeader, build_snapshot};
use super::window::{Window, expire_oldest};
use super::{ATTEMPTS, FIRST_PAUSE, FileChange, LONGEST_PAUSE, fenced, moved, new_snapshot_id};
use crate::catalog::{Catalog, LoadedTable, Swap};
use crate::error::Problem;
use crate::lanes::Lanes;
use crate::live::LiveFiles;
use crate::position::{Boundary, Position};
use crate::schema::TableName;
use crate::storage::Storage;

/// Namespace of all control tables.
pub const NAMESPACE: &str = "lakehouse_control";
/// Cuts kept in the control table; the bound of the protocol is 4,000 (C7).
const CUTS: usize = 1_000;
/// Cuts that leave at a time.
const CUTS_AT_ONCE: usize = 100;

/// The consistent view across tables, and where the pipeline resumes (protocol "Cut").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub source: String,
    pub position: Position,
    /// How far the lanes of the source's log had been read; empty for a log with one lane.
    #[serde(default, skip_serializing_if = "Lanes::is_empty")]
    pub lanes: Lanes,
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
        let state = ControlState::of(&table)?;
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
        let (epoch, cut) = (self.state.epoch, self.state.cut.clone());
        self.settle(epoch, cut, Some(intent.to_owned())).await
    }

    /// GO (protocol D, start-up 1): the epoch goes up by one under our name; the cut is carried, or is the first one.
    /// Overtaken by another worker, this incarnation ends.
    pub async fn raise_epoch(&mut self, first: Option<Cut>) -> Result<u64, Problem> {
        let epoch = self.state.epoch + 1;
        let cut = self.state.cut.clone().or(first).map(|cut| Cut { epoch, ..cut });
        self.settle(epoch, cut, self.state.intent.clone()).await?;
        info!(epoch, "worker has taken over");
        Ok(epoch)
    }

    /// Protocol C1. On success the position may be acknowledged.
    pub async fn write_cut(&mut self, cut: Cut) -> Result<DurablePosition, Problem> {
        let reached = cut.boundary();
        self.settle(self.state.epoch, Some(cut), None).await?;
        Ok(DurablePosition(reached))
    }

    /// Moves the control table from the state that we know to the next, by token. An answer that did not come is
    /// settled by our owner with the epoch and by the exact cut (protocol B2), never by number alone.
    async fn settle(&mut self, epoch: u64, cut: Option<Cut>, intent: Option<String>) -> Result<(), Problem> {
        let next = ControlState { epoch, owner: Some(self.owner.clone()), cut, intent };
        let snapshot_id = new_snapshot_id(&self.table);
        let mut pause = FIRST_PAUSE;
        for _ in 0..ATTEMPTS {
            let head = self.load().await?;
            let found = ControlState::of(&head)?;
            if found == next {
                return self.follow(head, next).await;
            }
            if found != self.state {
                return Err(self.overtaken(&found));
            }
            // Same state on a newer head: only a foreign engine's property or snapshot. Plan on what stands there.
            if head.metadata_location != self.table.metadata_location {
                self.live = LiveFiles::load(&self.storage, &head, head.snapshot_id()).await?;
                self.table = head;
            }
            match self.attempt(&next, snapshot_id).await? {
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

    async fn attempt(&self, next: &ControlState, snapshot_id: i64) -> Result<Swap, Problem> {
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
        let header = SnapshotHeader {
            id: snapshot_id,
            operation: Operation::Append,
            schema: self.table.metadata.current_schema().clone(),
            summary,
        };
        let built = build_snapshot(&self.storage, &self.table, &self.live, header, &FileChange::default()).await?;
        let mut updates = built.updates;
        match &next.intent {
            Some(intent) => {
                set.insert(properties::INTENT.to_owned(), intent.clone());
            }
            None if self.table.property(properties::INTENT).is_some() => {
                updates.push(TableUpdate::RemoveProperties { removals: vec![properties::INTENT.to_owned()] });
            }
            None => {}
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
    pub fn of(table: &LoadedTable) -> Result<Self, Problem> {
        let format = number(table, properties::FORMAT)?.unwrap_or(0);
        if format > u64::from(properties::FORMAT_VERSION) {
            let message = format!("the control table has format {format}");
            return Err(Problem::halt("NEWER_FORMAT", table.name.to_string(), message, "run the newer release"));
        }
        let cut = table.property(properties::CUT).map(serde_json::from_str).transpose();
        Ok(Self {
            epoch: number(table, properties::EPOCH)?.unwrap_or(0),
            owner: table.property(properties::OWNER).map(str::to_owned),
            cut: cut.map_err(|_| unreadable(table, properties::CUT))?,
            intent: table.property(properties::INTENT).map(str::to_owned),
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
