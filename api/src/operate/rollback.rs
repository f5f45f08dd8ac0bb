//! One table, several, or all of a cut go back by going forward: shown first, done on exactly what was shown, and held
//! afterwards until there is a way out (`release.rs`, `resync.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Control, Journal, RolledTable};
use lakehouse_core::diff::{self, Counts};
use lakehouse_core::error::Problem;
use lakehouse_core::fold::history_begins;
use lakehouse_core::position::Position;
use lakehouse_core::rollback::{self, Asked, Plan};
use lakehouse_core::schema::TableName;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::control::{moved, on_control};
use crate::config::{Config, PipelineConfig};
use crate::failure::Failure;
use crate::lake::{self, Kind, Lake, Point};
use crate::shapes;

/// The pipeline that is named; where none is, the one that all of the tables belong to, or the only one.
///
/// # Errors
/// As [`Config::choose_one`]; `PIPELINE_AMBIGUOUS` for tables of several, which go back one by one; `TABLE_UNKNOWN`.
pub(crate) async fn pipeline<'a>(
    lake: &Lake,
    config: &'a Config,
    wanted: Option<&str>,
    tables: &[TableName],
) -> Result<(&'a str, &'a PipelineConfig), Failure> {
    if wanted.is_some() || tables.is_empty() || config.pipelines.len() == 1 {
        return config.choose_one(wanted);
    }
    let mut owned: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for name in tables {
        let table = lake.table(name).await?;
        let (owner, _, _) = lake.pipeline_of(config, &table).await?.ok_or_else(|| {
            let message = "no pipeline in the configuration has it in its cuts";
            Failure::failed("TABLE_UNKNOWN", name.to_string(), message, "name a mirror; see `lakehouse status`")
        })?;
        owned.entry(owner).or_default().push(name.to_string());
    }
    let mut owners = owned.keys().copied();
    match (owners.next(), owners.next()) {
        (Some(owner), None) => config.choose_one(Some(owner)),
        _ => {
            let of_one = |(owner, tables): (&&str, &Vec<String>)| format!("{} to {owner}", tables.join(", "));
            let message = owned.iter().map(of_one).collect::<Vec<_>>().join("; ");
            let remedy = "roll back the tables of one pipeline at a time: each has cuts of its own";
            let message = format!("the tables belong to several pipelines: {message}");
            Err(Failure::usage("PIPELINE_AMBIGUOUS", "tables", message, remedy))
        }
    }
}

/// The mirrors that are named, each once, or all that the pipeline has.
///
/// # Errors
/// `NO_CUT`; `TABLE_UNKNOWN` for what is no mirror of the pipeline.
pub(crate) async fn mirrors(
    lake: &Lake,
    pipeline: &str,
    config: &PipelineConfig,
    names: &[TableName],
) -> Result<Vec<LoadedTable>, Failure> {
    let cut = super::cut(lake, pipeline).await?;
    let mut captured = lake.captured(&config.namespace, &cut.source).await?;
    captured.retain(|table| lake::kind(table) == Kind::Mirror);
    if names.is_empty() {
        let remedy = "see `lakehouse tables`";
        let none = || Failure::failed("TABLE_UNKNOWN", pipeline, "the pipeline has no mirrors", remedy);
        return if captured.is_empty() { Err(none()) } else { Ok(captured) };
    }
    let mut wanted: Vec<LoadedTable> = Vec::new();
    for name in names {
        if !wanted.iter().any(|table| table.name == *name) {
            wanted.push(lake.named(&captured, name, pipeline).await?.clone());
        }
    }
    Ok(wanted)
}

/// A rollback, and what it would do to the rows.
pub(crate) struct Preview {
    pub(crate) plan: Plan,
    pub(crate) tables: Vec<PreviewedTable>,
}

impl Preview {
    /// Of these tables to one point. Reading differences ends early with `stop`.
    ///
    /// # Errors
    /// Of the point, as [`Lake::find`]; of the state, as [`rollback::plan`]; `INTERRUPTED` by `stop`.
    pub(crate) async fn of(
        lake: &Lake,
        config: &Config,
        pipeline: &str,
        tables: &[LoadedTable],
        point: &Point,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let mut targets = BTreeMap::new();
        for table in tables {
            targets.insert(table.name.clone(), lake.find_id(config, table, point).await?);
        }
        let control = Control::open(Arc::clone(&lake.catalog), lake.storage.clone(), pipeline).await?;
        let plan = rollback::plan(&control, &lake.maintainer(), &targets).await.map_err(moved)?;
        let mut previewed = Vec::new();
        for table in tables {
            let rolled = &plan.tables[&table.name.to_string()];
            previewed.push(PreviewedTable::of(lake, table, rolled, stop).await?);
        }
        Ok(Self { plan, tables: previewed })
    }
}

/// One table of a plan, as a person sees it.
pub(crate) struct PreviewedTable {
    pub(crate) table: TableName,
    pub(crate) rolled: RolledTable,
    /// Snapshots between the target and the head, the head included.
    pub(crate) undone: usize,
    /// What the rollback does to the rows.
    pub(crate) changes: Counts,
    /// Ways out that will be open.
    pub(crate) exits: Vec<&'static str>,
}

impl PreviewedTable {
    async fn of(
        lake: &Lake,
        table: &LoadedTable,
        rolled: &RolledTable,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let target = rolled.target.parse().ok();
        let undone = table.ancestry().take_while(|snapshot| Some(snapshot.snapshot_id()) != target).count();
        let history = lake.catalog.load(&table.name.history(), None).await?;
        let begins = history.as_ref().map(history_begins).transpose()?.flatten();
        let covered = |from: Option<Position>| begins.zip(from).is_some_and(|(begins, from)| begins <= from);
        let mut exits = vec!["undo"];
        exits.extend(covered(rolled.target_position).then_some("replay"));
        exits.extend(["accept", "resync"]);
        let changes = match table.snapshot_id().zip(target) {
            Some((head, target)) => {
                diff::counts(&lake.storage, table, head, target, interrupted_by(stop, &table.name)).await?
            }
            None => Counts::default(),
        };
        Ok(Self { table: table.name.clone(), rolled: rolled.clone(), undone, changes, exits })
    }

    pub(crate) fn answer(&self) -> PlannedTable {
        let RolledTable { source, head, target, target_position, position } = self.rolled.clone();
        let Counts { inserted, updated, deleted } = self.changes;
        PlannedTable {
            table: self.table.to_string(),
            source,
            head,
            target,
            target_position,
            position,
            snapshots_undone: self.undone,
            inserted,
            updated,
            deleted,
            exits: self.exits.clone(),
        }
    }
}

/// What a rollback does to one table.
#[derive(Serialize, ToSchema)]
pub(crate) struct PlannedTable {
    table: String,
    /// Name at the source.
    source: String,
    /// The snapshot that is current now.
    head: String,
    /// The snapshot whose rows are made current again.
    target: String,
    /// The position of the target's rows; null where it is not known.
    #[schema(value_type = Option<shapes::Position>)]
    target_position: Option<Position>,
    /// What the table has, and keeps.
    #[schema(value_type = shapes::Position)]
    position: Position,
    snapshots_undone: usize,
    inserted: u64,
    updated: u64,
    deleted: u64,
    /// Ways out that will be open: `undo`, `replay`, `accept`, `resync`.
    exits: Vec<&'static str>,
}

fn interrupted_by(stop: &CancellationToken, table: &TableName) -> impl Fn() -> Result<(), Problem> + Send + use<> {
    let (stop, table) = (stop.clone(), table.to_string());
    move || match stop.is_cancelled() {
        true => Err(Problem::retry("INTERRUPTED", &table, "nobody waits for the plan any more")),
        false => Ok(()),
    }
}

/// Opens the operation, unless a table has moved since it was planned: then nothing is changed.
///
/// # Errors
/// `TABLE_MOVED`; those of [`rollback::begin`].
pub(crate) async fn begin(lake: &Lake, pipeline: &str, plan: &Plan, asked: &Asked) -> Result<Journal, Failure> {
    rollback::check_heads(&lake.maintainer(), plan).await.map_err(moved)?;
    on_control(lake, pipeline, (plan, asked), |control, (plan, asked)| rollback::begin(control, plan, asked).boxed())
        .await
}

/// Brings an open operation to its end, whoever has opened it.
///
/// # Errors
/// Those of the catalog and the storage: it stays open for whoever comes next.
pub(crate) async fn finish(lake: &Lake, pipeline: &str, id: &str) -> Result<Journal, Failure> {
    Ok(rollback::finish(pipeline, &lake.maintainer(), id).await?)
}
