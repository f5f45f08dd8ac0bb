//! The lake as the verbs see it: the catalog that the configuration names, tables by name, snapshots by what a person
//! calls them, and the numbers that snapshots carry along. Changes nothing.

mod log;
mod open;
mod point;

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use iceberg::spec::SnapshotRef;
use lakehouse_core::catalog::{Catalog, LoadedTable};
use lakehouse_core::commit::properties::{self, TableState};
use lakehouse_core::commit::{ControlState, GiveWay, Maintainer, is_control, recorded_cuts, references, runs_table};
use lakehouse_core::foreign::is_ours;
use lakehouse_core::lakehouse::{Environment, OWNER_INTERVAL, TABLES_AT_ONCE};
use lakehouse_core::live::LiveFiles;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::schema::{OPERATION, REASON, TableName};
use lakehouse_core::storage::Storage;
use tracing::warn;

use crate::answer;
use crate::config::PipelineConfig;
use crate::failure::Failure;
use crate::nearest::nearest;
pub(crate) use point::{Chosen, Neighbour, Neighbours, Point};

/// The catalog and the files behind it. Clones share both.
#[derive(Clone)]
pub(crate) struct Lake {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) storage: Storage,
    /// Between the pipelines of this process and its maintenance.
    give_way: GiveWay,
}

impl Lake {
    fn of(catalog: Arc<dyn Catalog>, storage: Storage) -> Self {
        Self { catalog, storage, give_way: GiveWay::default() }
    }

    /// Who commits to tables beside their pipelines. To write data files it needs a storage with a spool.
    pub(crate) fn maintainer(&self) -> Maintainer {
        Maintainer {
            catalog: Arc::clone(&self.catalog),
            storage: self.storage.clone(),
            give_way: self.give_way.clone(),
            planted: Planted::none(),
        }
    }

    /// What a pipeline works with.
    pub(crate) fn environment(&self, pipeline: &str, config: &PipelineConfig) -> Environment {
        Environment {
            catalog: Arc::clone(&self.catalog),
            storage: self.storage.clone(),
            local_state: config.local_state.join(pipeline),
            sync_local_state: false,
            tables_at_once: TABLES_AT_ONCE,
            owner_interval: OWNER_INTERVAL,
            rollback_tags: config.rollback_tags.0,
            give_way: self.give_way.clone(),
            planted: Planted::none(),
        }
    }

    /// A table by name.
    ///
    /// # Errors
    /// `TABLE_UNKNOWN`, with the nearest name.
    pub(crate) async fn table(&self, name: &TableName) -> Result<LoadedTable, Failure> {
        if let Some(table) = self.catalog.load(name, None).await? {
            return Ok(table);
        }
        let known: Vec<String> = self.catalog.list(None).await?.iter().map(ToString::to_string).collect();
        let remedy = match nearest(&name.to_string(), known.iter().map(String::as_str)) {
            Some(near) => format!("the nearest one is {near}; `lakehouse tables` lists all"),
            None => "the catalog has no tables yet; start a pipeline".to_owned(),
        };
        Err(Failure::failed("TABLE_UNKNOWN", name.to_string(), "no such table", remedy))
    }

    /// A pipeline's control state and table; `None` before its first start.
    pub(crate) async fn control(&self, pipeline: &str) -> Result<Option<(ControlState, LoadedTable)>, Failure> {
        Ok(ControlState::read(&*self.catalog, pipeline).await?)
    }

    /// All tables but the control tables.
    pub(crate) async fn tables(&self, namespace: Option<&str>) -> Result<Vec<LoadedTable>, Failure> {
        self.loaded(&self.names(namespace).await?).await
    }

    /// The names of all tables but the control tables.
    pub(crate) async fn names(&self, namespace: Option<&str>) -> Result<Vec<TableName>, Failure> {
        let mut names = self.catalog.list(namespace).await?;
        names.retain(|name| !is_control(name));
        Ok(names)
    }

    /// Those of these tables that are there: one may have gone since somebody has listed it.
    pub(crate) async fn loaded(&self, names: &[TableName]) -> Result<Vec<LoadedTable>, Failure> {
        let mut tables = Vec::new();
        for name in names {
            tables.extend(self.catalog.load(name, None).await?);
        }
        Ok(tables)
    }

    /// A pipeline's tables, one for each source table: its mirror, or its history where it has no mirror.
    pub(crate) async fn captured(&self, namespace: &str, source: &str) -> Result<Vec<LoadedTable>, Failure> {
        let mut tables = self.tables(Some(namespace)).await?;
        tables.retain(|table| table.property(properties::SOURCE) == Some(source) && kind(table).is_captured());
        let mirrors: Vec<TableName> = tables.iter().map(|table| table.name.history()).collect();
        tables.retain(|table| kind(table) == Kind::Mirror || !mirrors.contains(&table.name));
        Ok(tables)
    }

    /// One of a pipeline's captured tables, by name.
    ///
    /// # Errors
    /// `TABLE_UNKNOWN`, where the lake has no such table, or the pipeline has not.
    pub(crate) async fn named<'a>(
        &self,
        captured: &'a [LoadedTable],
        name: &TableName,
        pipeline: &str,
    ) -> Result<&'a LoadedTable, Failure> {
        self.table(name).await?;
        captured.iter().find(|table| table.name == *name).ok_or_else(|| {
            let remedy = format!("name a mirror of pipeline {pipeline}; `lakehouse status` lists them");
            Failure::failed("TABLE_UNKNOWN", name.to_string(), "no mirror of this pipeline", remedy)
        })
    }

    /// A mirror's quarantine; `None` if it has none.
    pub(crate) async fn quarantine(&self, mirror: &LoadedTable) -> Result<Option<LoadedTable>, Failure> {
        if kind(mirror) != Kind::Mirror {
            return Ok(None);
        }
        self.quarantine_of(&mirror.name).await
    }

    async fn quarantine_of(&self, mirror: &TableName) -> Result<Option<LoadedTable>, Failure> {
        let quarantine = self.catalog.load(&mirror.quarantine(), None).await?;
        Ok(quarantine.filter(|quarantine| kind(quarantine) == Kind::Quarantine))
    }

    /// Rows in a table's quarantine; `None` if it has none.
    pub(crate) async fn quarantined(&self, table: &LoadedTable) -> Result<Option<u64>, Failure> {
        match self.quarantine(table).await? {
            Some(quarantine) => Ok(self.rows(&quarantine).await),
            None => Ok(None),
        }
    }

    /// A pipeline's mirrors that have a quarantine, each with the rows there, as far as they can be counted.
    pub(crate) async fn quarantines(&self, namespace: &str, source: &str) -> Result<Vec<(TableName, u64)>, Failure> {
        let names: BTreeSet<TableName> = self.names(Some(namespace)).await?.into_iter().collect();
        let mut found = Vec::new();
        for mirror in names.iter().filter(|name| names.contains(&name.quarantine())) {
            let quarantine = self.quarantine_of(mirror).await?;
            if let Some(quarantine) = quarantine.filter(|table| table.property(properties::SOURCE) == Some(source)) {
                found.extend(self.rows(&quarantine).await.map(|rows| (mirror.clone(), rows)));
            }
        }
        Ok(found)
    }

    /// Live rows of the current snapshot; `None` if that cannot be told. Our totals say it. Another engine's count what it
    /// has left behind, deletes of files that are gone among it: then the manifests are asked.
    pub(crate) async fn rows(&self, table: &LoadedTable) -> Option<u64> {
        match table.metadata.current_snapshot() {
            Some(head) if kind(table) != Kind::Other && !is_ours(head) => {
                let live = LiveFiles::load(&self.storage, table, Some(head.snapshot_id())).await;
                live.inspect_err(|problem| warn!(table = %table.name, code = problem.code, "rows cannot be counted"))
                    .ok()
                    .map(|live| live.rows())
            }
            _ => rows_by_totals(table),
        }
    }
}

/// What a table of the lake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Mirror,
    History,
    /// Rows that could not be mapped.
    Quarantine,
    /// What maintenance has done.
    Maintenance,
    /// Another product's.
    Other,
}

impl Kind {
    /// It says how a source table stands; a quarantine goes with one that does.
    pub(crate) fn is_captured(self) -> bool {
        matches!(self, Self::Mirror | Self::History)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::History => "history",
            Self::Quarantine => "quarantine",
            Self::Maintenance => "maintenance",
            Self::Other => "other",
        }
    }
}

pub(crate) fn kind(table: &LoadedTable) -> Kind {
    if table.name == runs_table() {
        return Kind::Maintenance;
    }
    let has = |column: &str| table.metadata.current_schema().field_by_name(column).is_some();
    match (table.property(properties::SOURCE_TABLE).is_some(), has(OPERATION)) {
        (true, true) if has(REASON) => Kind::Quarantine,
        (true, true) => Kind::History,
        (true, false) => Kind::Mirror,
        (false, _) => Kind::Other,
    }
}

/// How a captured table stands by its own properties.
pub(crate) fn table_state(table: &LoadedTable) -> Result<TableState, Failure> {
    Ok(TableState::of(table)?)
}

/// Live rows of the current snapshot, by its totals; `None` if another engine has left them out.
fn rows_by_totals(table: &LoadedTable) -> Option<u64> {
    let Some(snapshot) = table.metadata.current_snapshot() else {
        return Some(0);
    };
    let equality = summary_number(snapshot, "total-equality-deletes").unwrap_or(0);
    let records = summary_number(snapshot, "total-records")?;
    let deleted = summary_number(snapshot, "total-position-deletes").unwrap_or(0);
    (equality == 0).then(|| records.saturating_sub(deleted))
}

pub(crate) fn summary_text<'a>(snapshot: &'a SnapshotRef, key: &str) -> Option<&'a str> {
    snapshot.summary().additional_properties.get(key).map(String::as_str)
}

pub(crate) fn summary_number(snapshot: &SnapshotRef, key: &str) -> Option<u64> {
    summary_text(snapshot, key)?.parse().ok()
}

/// Snapshots that an answer lists as the nearest ones.
const NEAREST: usize = 3;

/// The newest snapshot.
pub(crate) fn newest(table: &LoadedTable) -> Chosen {
    Chosen { snapshot: table.metadata.current_snapshot().cloned(), cut: None }
}

/// # Errors
/// `SNAPSHOT_EXPIRED` where another snapshot says that this one was; else `SNAPSHOT_UNKNOWN`, with the nearest ids.
pub(crate) fn by_id(table: &LoadedTable, id: i64) -> Result<Chosen, Failure> {
    if let Some(snapshot) = table.metadata.snapshot_by_id(id) {
        return Ok(Chosen { snapshot: Some(snapshot.clone()), cut: None });
    }
    if let Some(child) = table.metadata.snapshots().find(|snapshot| snapshot.parent_snapshot_id() == Some(id)) {
        return Err(expired(table, format!("snapshot {id} has expired"), &[child.snapshot_id().to_string()]));
    }
    let mut known: Vec<String> =
        table.metadata.snapshots().map(|snapshot| snapshot.snapshot_id().to_string()).collect();
    let wanted = id.to_string();
    let likeness = |known: &String| strsim::normalized_damerau_levenshtein(&wanted, known);
    known.sort_by(|left, right| likeness(right).total_cmp(&likeness(left)));
    known.truncate(NEAREST);
    Err(unknown_snapshot(table, format!("the table has no snapshot {id}"), &known))
}

/// The snapshot that was current at `time`, by the table's own log.
///
/// # Errors
/// `SNAPSHOT_EXPIRED` for a time before the first snapshot from which on all are kept: never a guess. `SNAPSHOT_UNKNOWN`
/// for one before the table's first.
pub(crate) fn as_of(table: &LoadedTable, time: DateTime<Utc>) -> Result<Chosen, Failure> {
    let log = table.metadata.history();
    let at = log.iter().rev().find(|entry| entry.timestamp_ms() <= time.timestamp_millis());
    let snapshot = at.and_then(|entry| table.metadata.snapshot_by_id(entry.snapshot_id));
    if let Some(snapshot) = snapshot {
        return Ok(Chosen { snapshot: Some(snapshot.clone()), cut: None });
    }
    let first = log
        .iter()
        .take(NEAREST)
        .map(|entry| format!("{} of {}", entry.snapshot_id, answer::time(entry.timestamp_ms())));
    let first: Vec<String> = first.collect();
    let message = format!("no snapshot is kept from {} or before", answer::time(time.timestamp_millis()));
    let began = |oldest: &SnapshotRef| oldest.parent_snapshot_id().is_none();
    let whole = log.first().is_none_or(|entry| table.metadata.snapshot_by_id(entry.snapshot_id).is_some_and(began));
    match at.is_none() && whole {
        true => Err(unknown_snapshot(table, message, &first)),
        false => Err(expired(table, message, &first)),
    }
}

/// # Errors
/// `TAG_UNKNOWN`, with the nearest name.
pub(crate) fn by_tag(table: &LoadedTable, tag: &str) -> Result<Chosen, Failure> {
    match references(table).get(tag) {
        Some(found) => by_id(table, found.snapshot_id),
        None => Err(unknown_tag(table, tag)),
    }
}

pub(crate) fn unknown_tag(table: &LoadedTable, tag: &str) -> Failure {
    let remedy = match nearest(tag, references(table).keys().map(String::as_str)) {
        Some(near) => format!("the nearest one is {near}; `lakehouse snapshots {}` lists all", table.name),
        None => format!("list its snapshots with `lakehouse snapshots {}`", table.name),
    };
    Failure::failed("TAG_UNKNOWN", table.name.to_string(), format!("the table has no tag {tag:?}"), remedy)
}

/// The snapshot that the newest cut at or before `position` names, by the control table of the table's pipeline.
///
/// # Errors
/// `CUT_UNKNOWN`, with the nearest cuts; `SNAPSHOT_EXPIRED` if the cut or its snapshot is not kept any more.
pub(crate) fn by_cut(table: &LoadedTable, control: &LoadedTable, position: Position) -> Result<Chosen, Failure> {
    let cuts = recorded_cuts(control);
    let name = table.name.to_string();
    let Some(cut) = cuts.iter().rev().find(|cut| cut.position <= position) else {
        let first: Vec<String> = cuts.iter().take(NEAREST).map(|cut| cut.position.to_string()).collect();
        let message = format!("no cut is kept from {position} or before");
        let oldest = control.metadata.snapshots().min_by_key(|snapshot| snapshot.sequence_number());
        let whole = oldest.is_none_or(|oldest| oldest.parent_snapshot_id().is_none());
        let code = if whole { "CUT_UNKNOWN" } else { "SNAPSHOT_EXPIRED" };
        return Err(Failure::failed(code, name, message, nearest_ones(&first)));
    };
    let Some(id) = cut.tables.get(&name).and_then(|id| id.parse().ok()) else {
        let with: Vec<String> = cuts
            .iter()
            .filter(|cut| cut.tables.contains_key(&name))
            .take(NEAREST)
            .map(|cut| cut.position.to_string())
            .collect();
        let message = format!("the cut at {} does not hold this table", cut.position);
        return Err(Failure::failed("CUT_UNKNOWN", name, message, nearest_ones(&with)));
    };
    let Some(snapshot) = table.metadata.snapshot_by_id(id) else {
        let message = format!("the snapshot of the cut at {} has expired", cut.position);
        return Err(expired(table, message, &[]));
    };
    Ok(Chosen { snapshot: Some(snapshot.clone()), cut: Some((cut.position, cut.position == position)) })
}

fn unknown_snapshot(table: &LoadedTable, message: String, near: &[String]) -> Failure {
    Failure::failed("SNAPSHOT_UNKNOWN", table.name.to_string(), message, what_is_kept(table, near))
}

/// It was there once.
fn expired(table: &LoadedTable, message: String, near: &[String]) -> Failure {
    Failure::failed("SNAPSHOT_EXPIRED", table.name.to_string(), message, what_is_kept(table, near))
}

fn what_is_kept(table: &LoadedTable, near: &[String]) -> String {
    let list = format!("list all with `lakehouse snapshots {}`", table.name);
    if near.is_empty() { list } else { format!("{}; {list}", nearest_ones(near)) }
}

fn nearest_ones(near: &[String]) -> String {
    match near {
        [] => "there is none yet".to_owned(),
        near => format!("the nearest ones are {}", near.join(", ")),
    }
}
