//! `undo`, `abort`, `replay` and `accept`: how the tables of a rollback come back. Asked for here, in the pipeline's control
//! table; the pipeline catches them up, now or at its next start.

use std::collections::BTreeMap;

use lakehouse_core::commit::{Control, Exit as Way, LeaveOut, Release, Stage};
use lakehouse_core::rollback;
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};

use super::Context;
use super::confirm::confirm;
use super::control::{heads, on_control};
use super::operations::find;
use crate::answer;
use crate::cli::{OfOperation, Replay};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

/// Back to the rows before the rollback: of an open operation, or of one whose tables are held.
pub(super) async fn undo(context: &Context, arguments: &OfOperation, verb: &'static str) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let journal = find(&lake, name, &arguments.operation).await?;
    if verb == "abort" && !journal.stage.is_open() {
        let remedy = "undo it, if its tables are still held";
        return Err(Failure::failed("NOT_OPEN", journal.id, "the operation has come to its end", remedy));
    }
    if !context.json {
        let tables: Vec<&str> = journal.tables.keys().map(String::as_str).collect();
        answer::line(&format!("the rows before {} come back in {}", journal.id, tables.join(", ")))?;
    }
    confirm(verb, arguments.yes)?;
    let back = async |control: &mut Control| rollback::turn_back(control, &journal.id, &arguments.reason).await;
    let detail = json!({"pipeline": name, "stage": journal.stage, "tables": journal.tables});
    let intent = context.intent(verb, &journal.id, Some(&arguments.reason), detail).await?;
    let ended = async {
        on_control(&lake, name, back).await?;
        Ok(rollback::finish(name, &lake.maintainer(), &journal.id).await?)
    }
    .await;
    let snapshots = heads(&intent, &lake, journal.tables.keys()).await;
    let done = intent.outcome(ended, json!({"snapshots": snapshots})).await?;
    told(context, name, &done.id, done.tables.keys().cloned().collect(), verb)
}

pub(super) async fn replay(context: &Context, arguments: &Replay) -> Result<Exit, Failure> {
    let leave_out = LeaveOut {
        transactions: arguments.without.iter().copied().collect(),
        range: arguments.without_range.as_ref().map(|range| (range.after, range.up_to)),
    };
    release(context, &arguments.of, Way::Replay, &arguments.tables, leave_out).await
}

pub(super) async fn accept(context: &Context, arguments: &OfOperation) -> Result<Exit, Failure> {
    release(context, arguments, Way::Accept, &[], LeaveOut::default()).await
}

async fn release(
    context: &Context,
    arguments: &OfOperation,
    way: Way,
    only: &[TableName],
    leave_out: LeaveOut,
) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let journal = find(&lake, name, &arguments.operation).await?;
    if journal.stage != Stage::RolledBack {
        let message = format!("the operation is {}", journal.stage.as_str());
        return Err(Failure::failed("NOT_HELD", journal.id, message, "see `lakehouse operations`"));
    }
    let mut releases = BTreeMap::new();
    let mut tables = Vec::new();
    for (table, rolled) in &journal.tables {
        if !only.is_empty() && !only.iter().any(|wanted| wanted.to_string() == *table) {
            continue;
        }
        let after = match way {
            Way::Replay => rolled.target_position.ok_or_else(|| {
                let remedy = "undo, accept or resync it";
                Failure::failed("REPLAY_IMPOSSIBLE", table, "the position of the target's rows is not known", remedy)
            })?,
            Way::Accept | Way::Undo => rolled.position,
        };
        let release = Release { operation: journal.id.clone(), after, exit: way, leave_out: leave_out.clone() };
        releases.insert(rolled.source.clone(), release);
        tables.push(table.clone());
    }
    if releases.is_empty() {
        let remedy = "see `lakehouse operations`";
        return Err(Failure::failed("TABLE_UNKNOWN", journal.id, "the operation has no such table", remedy));
    }
    if !context.json {
        let what = match way {
            Way::Accept => "keep the rows of the rollback, take all changes since it, and are marked as diverging, in",
            _ => "take all changes since the rollback's target, but those left out, in",
        };
        answer::line(&format!("mirrors {what} {}", tables.join(", ")))?;
    }
    confirm(way.as_str(), arguments.yes)?;
    let detail = json!({"pipeline": name, "tables": tables, "releases": releases});
    let intent = context.intent(way.as_str(), &journal.id, Some(&arguments.reason), detail).await?;
    let ended = on_control(&lake, name, async |control: &mut Control| control.release(releases.clone()).await).await;
    intent.outcome(ended, Value::Null).await?;
    told(context, name, &journal.id, tables, way.as_str())
}

fn told(context: &Context, pipeline: &str, id: &str, tables: Vec<String>, verb: &str) -> Result<Exit, Failure> {
    match context.json {
        true => answer::json(&json!({"pipeline": pipeline, "operation": id, "tables": tables, "requested": verb}))?,
        false => answer::line(&format!(
            "asked for: pipeline {pipeline} does it at once if it is running, else when it starts; see `lakehouse status`"
        ))?,
    }
    Ok(Exit::Done)
}
