//! `rollback`: one table, several, or all of a cut go back by going forward. Shown first, done on exactly what was shown,
//! and held afterwards until `undo`, `replay`, `accept` or `resync`.

use lakehouse_core::commit::{Journal, Stage};
use lakehouse_core::rollback::Asked;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Context;
use super::confirm::{asker, confirm};
use crate::answer::{self, or_dash};
use crate::cli::Rollback;
use crate::failure::{Exit, Failure};
use crate::lake::{Lake, Point};
use crate::operate::heads;
use crate::operate::rollback::{Preview, PreviewedTable, begin, finish, mirrors, pipeline};

pub(super) async fn run(context: &Context, arguments: &Rollback) -> Result<Exit, Failure> {
    let point = point(arguments)?;
    let lake = Lake::open(&context.config).await?;
    let (name, config) = pipeline(&lake, &context.config, arguments.pipeline.as_deref(), &arguments.tables).await?;
    let tables = mirrors(&lake, name, config, &arguments.tables).await?;
    // A person stops the whole process.
    let never = CancellationToken::new();
    let preview = Preview::of(&lake, &context.config, name, &tables, &point, &never).await?;
    if arguments.dry_run || !context.json {
        print(context, &preview, None)?;
    }
    if arguments.dry_run {
        return Ok(Exit::Done);
    }
    let reason = arguments.reason.clone().ok_or_else(|| {
        Failure::usage(
            "USAGE",
            "--reason",
            "a rollback needs a reason",
            "say why with --reason TEXT, or look with --dry-run",
        )
    })?;
    confirm("rollback", arguments.yes)?;
    let plan = &preview.plan;
    let detail = json!({"pipeline": name, "cut": plan.cut, "tables": plan.tables});
    let intent = context.intent("rollback", name, Some(&reason), detail).await?;
    let asked = Asked { id: Uuid::now_v7().to_string(), by: asker(), reason, request: None };
    let ended = async {
        let begun = begin(&lake, name, plan, &asked).await?;
        let journal = finish(&lake, name, &begun.id).await?;
        if journal.stage == Stage::RolledBack {
            return Ok(journal);
        }
        let why = journal.turned.unwrap_or_default();
        let message = format!("a table is not what the plan was made on: {why}; every table has the rows that it had");
        Err(Failure::moved("TABLE_MOVED", journal.id, message, "pause the pipeline, look again, and roll back"))
    }
    .await;
    let snapshots = heads(&intent, &lake, plan.tables.keys()).await;
    let journal = intent.outcome(ended, json!({"operation": asked.id, "snapshots": snapshots})).await?;
    match context.json {
        true => print(context, &preview, Some(&journal))?,
        false => answer::line(&format!(
            "rolled back by operation {0}. Its tables are held: `lakehouse undo {0}`, `replay {0}`, `accept {0}`, or `resync`",
            journal.id
        ))?,
    }
    Ok(Exit::Done)
}

/// Where to.
fn point(arguments: &Rollback) -> Result<Point, Failure> {
    let refused = |message: &str, remedy: &str| Err(Failure::usage("USAGE", "rollback", message, remedy));
    match (Point::from(&arguments.at), arguments.tables.is_empty()) {
        (Point::Newest | Point::Snapshot(_) | Point::Tag(_), true) => {
            let remedy = "name the tables, or roll all of them back to a --cut or --as-of a time";
            refused("a snapshot or tag is one table's", remedy)
        }
        (Point::Newest, false) => refused("where to is not said", "give --snapshot, --as-of, --tag or --cut"),
        (point, _) => Ok(point),
    }
}

fn print(context: &Context, preview: &Preview, done: Option<&Journal>) -> Result<(), Failure> {
    let Preview { plan, tables } = preview;
    if context.json {
        let tables: Vec<_> = tables.iter().map(PreviewedTable::answer).collect();
        let operation = done.map(|journal| &journal.id);
        let stage = done.map(|journal| journal.stage);
        return answer::json(&json!({"operation": operation, "stage": stage, "cut": plan.cut, "tables": tables}));
    }
    let row = |one: &PreviewedTable| {
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
    let rows: Vec<_> = tables.iter().map(row).collect();
    let headers = ["TABLE", "HEAD", "TARGET", "ITS POSITION", "UNDONE", "INSERTED", "UPDATED", "DELETED", "WAYS OUT"];
    answer::table(headers, &rows)?;
    answer::line(&format!(
        "Each gets a new snapshot with the rows of its target; nothing is deleted, and positions stay at the cut {}. The\n\
         tables are held afterwards: they take no changes until you choose a way out; their histories and all other tables\n\
         go on.",
        plan.cut
    ))
}
