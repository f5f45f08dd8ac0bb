//! `rollback`: one table, several, or all of a cut go back by going forward. Shown first, done on exactly what was shown,
//! and held afterwards until `undo`, `replay`, `accept` or `resync`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{Control, Journal, RolledTable, Stage};
use lakehouse_core::diff;
use lakehouse_core::fold::history_begins;
use lakehouse_core::position::Position;
use lakehouse_core::rollback::{self, Plan};
use lakehouse_core::schema::TableName;
use serde_json::json;

use super::Context;
use super::confirm::{asker, confirm};
use super::control::{heads, moved, on_control};
use crate::answer::{self, or_dash};
use crate::cli::Rollback;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure};
use crate::lake::{self, Kind, Lake, Point};

pub(super) async fn run(context: &Context, arguments: &Rollback) -> Result<Exit, Failure> {
    let (name, config) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let maintainer = lake.maintainer();
    let control = Control::open(Arc::clone(&lake.catalog), lake.storage.clone(), name).await?;
    let tables = tables(&lake, name, config, &control, arguments).await?;
    let targets = targets(context, &lake, &tables, arguments).await?;
    let plan = rollback::plan(&control, &maintainer, &targets).await.map_err(moved)?;
    let mut shown = Vec::new();
    for table in &tables {
        shown.push(Shown::of(&lake, table, &plan.tables[&table.name.to_string()]).await?);
    }
    if arguments.dry_run || !context.json {
        print(context, &plan, &shown, None)?;
    }
    if arguments.dry_run {
        return Ok(Exit::Done);
    }
    let reason = arguments.reason.as_deref().ok_or_else(|| {
        Failure::usage(
            "USAGE",
            "--reason",
            "a rollback needs a reason",
            "say why with --reason TEXT, or look with --dry-run",
        )
    })?;
    confirm("rollback", arguments.yes)?;
    let intent =
        context.intent("rollback", name, Some(reason), json!({"cut": plan.cut, "tables": plan.tables})).await?;
    let begin = async |control: &mut Control| rollback::begin(control, plan.clone(), &asker(), reason).await;
    let mut operation = None;
    let ended = async {
        let id = on_control(&lake, name, begin).await?;
        let journal = rollback::finish(name, &maintainer, operation.insert(id)).await?;
        if journal.stage == Stage::RolledBack {
            return Ok(journal);
        }
        let why = journal.turned.unwrap_or_default();
        let message = format!("a table is not what the plan was made on: {why}; every table has the rows that it had");
        Err(Failure::moved("TABLE_MOVED", journal.id, message, "pause the pipeline, look again, and roll back"))
    }
    .await;
    let snapshots = heads(&intent, &lake, plan.tables.keys()).await;
    let journal = intent.outcome(ended, json!({"operation": operation, "snapshots": snapshots})).await?;
    match context.json {
        true => print(context, &plan, &shown, Some(&journal))?,
        false => answer::line(&format!(
            "rolled back by operation {0}. Its tables are held: `lakehouse undo {0}`, `replay {0}`, `accept {0}`, or `resync`",
            journal.id
        ))?,
    }
    Ok(Exit::Done)
}

/// The mirrors that are named, or all that the pipeline has.
async fn tables(
    lake: &Lake,
    pipeline: &str,
    config: &PipelineConfig,
    control: &Control,
    arguments: &Rollback,
) -> Result<Vec<LoadedTable>, Failure> {
    let cut = control.cut()?;
    let mut captured = lake.captured(&config.namespace, &cut.source).await?;
    captured.retain(|table| lake::kind(table) == Kind::Mirror);
    if arguments.tables.is_empty() {
        if arguments.at.cut.is_none() && arguments.at.as_of.is_none() {
            let remedy = "name the tables, or roll all of them back to a --cut or --as-of a time";
            return Err(Failure::usage("USAGE", "rollback", "a snapshot or tag is one table's", remedy));
        }
        return Ok(captured);
    }
    let mut wanted = Vec::new();
    for name in &arguments.tables {
        wanted.push(lake.named(&captured, name, pipeline).await?.clone());
    }
    Ok(wanted)
}

async fn targets(
    context: &Context,
    lake: &Lake,
    tables: &[LoadedTable],
    arguments: &Rollback,
) -> Result<BTreeMap<TableName, i64>, Failure> {
    let point = Point::from(&arguments.at);
    if point == Point::Newest && !tables.is_empty() {
        let remedy = "give --snapshot, --as-of, --tag or --cut";
        return Err(Failure::usage("USAGE", "rollback", "where to is not said", remedy));
    }
    let mut targets = BTreeMap::new();
    for table in tables {
        targets.insert(table.name.clone(), lake.find_id(&context.config, table, &point).await?);
    }
    Ok(targets)
}

/// One table of a plan, as a person sees it.
struct Shown {
    table: TableName,
    rolled: RolledTable,
    /// Snapshots between the target and the head, the head included.
    undone: usize,
    /// What the rollback does to the rows.
    changes: diff::Counts,
    /// Ways out that will be open.
    exits: Vec<&'static str>,
}

impl Shown {
    async fn of(lake: &Lake, table: &LoadedTable, rolled: &RolledTable) -> Result<Self, Failure> {
        let target = rolled.target.parse().ok();
        let head = table.metadata.current_snapshot();
        let line = std::iter::successors(head, |snapshot| {
            snapshot.parent_snapshot_id().and_then(|id| table.metadata.snapshot_by_id(id))
        });
        let undone = line.take_while(|snapshot| Some(snapshot.snapshot_id()) != target).count();
        let history = lake.catalog.load(&table.name.history(), None).await?;
        let begins = history.as_ref().map(history_begins).transpose()?.flatten();
        let covered = |from: Option<Position>| begins.zip(from).is_some_and(|(begins, from)| begins <= from);
        let mut exits = vec!["undo"];
        exits.extend(covered(rolled.target_position).then_some("replay"));
        exits.extend(["accept", "resync"]);
        let changes = match table.snapshot_id().zip(target) {
            Some((head, target)) => diff::counts(&lake.storage, table, head, target).await?,
            None => diff::Counts::default(),
        };
        Ok(Self { table: table.name.clone(), rolled: rolled.clone(), undone, changes, exits })
    }

    fn json(&self) -> serde_json::Value {
        let RolledTable { source, head, target, target_position, position } = &self.rolled;
        json!({"table": self.table.to_string(), "source": source, "head": head, "target": target,
               "target_position": target_position, "position": position, "snapshots_undone": self.undone,
               "inserted": self.changes.inserted, "updated": self.changes.updated, "deleted": self.changes.deleted,
               "exits": self.exits})
    }
}

fn print(context: &Context, plan: &Plan, shown: &[Shown], done: Option<&Journal>) -> Result<(), Failure> {
    if context.json {
        let tables: Vec<_> = shown.iter().map(Shown::json).collect();
        let operation = done.map(|journal| &journal.id);
        let stage = done.map(|journal| journal.stage);
        return answer::json(&json!({"operation": operation, "stage": stage, "cut": plan.cut, "tables": tables}));
    }
    let row = |one: &Shown| {
        [
            one.table.to_string(),
            one.rolled.head.clone(),
            one.rolled.target.clone(),
            or_dash(one.rolled.target_position),
            one.undone.to_string(),
            one.changes.inserted.to_string(),
            one.changes.updated.to_string(),
            one.changes.deleted.to_string(),
            one.exits.join(", "),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    let headers = ["TABLE", "HEAD", "TARGET", "ITS POSITION", "UNDONE", "INSERTED", "UPDATED", "DELETED", "WAYS OUT"];
    answer::table(headers, &rows)?;
    answer::line(&format!(
        "Each gets a new snapshot with the rows of its target; nothing is deleted, and positions stay at the cut {}. The\n\
         tables are held afterwards: they take no changes until you choose a way out; their histories and all other tables\n\
         go on.",
        plan.cut
    ))
}
