//! `undo`, `abort`, `replay` and `accept`: how the tables of a rollback come back. Asked for here, in the pipeline's control
//! table; the pipeline catches them up, now or at its next start.

use lakehouse_core::commit::{Exit as Way, LeaveOut};
use lakehouse_core::schema::TableName;
use serde_json::{Value, json};

use super::Context;
use super::confirm::confirm;
use crate::answer;
use crate::cli::{OfOperation, Replay};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate::operations::find;
use crate::operate::release::{Releases, check_open, turn_back};
use crate::operate::{self, heads};

/// Back to the rows before the rollback: of an open operation, or of one whose tables are held.
pub(super) async fn undo(context: &Context, arguments: &OfOperation, verb: &'static str) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let journal = find(&lake, name, &arguments.operation).await?;
    if verb == "abort" {
        check_open(&journal)?;
    }
    if !context.json {
        let tables: Vec<&str> = journal.tables.keys().map(String::as_str).collect();
        answer::line(&format!("the rows before {} come back in {}", journal.id, tables.join(", ")))?;
    }
    confirm(verb, arguments.yes)?;
    let detail = json!({"pipeline": name, "stage": journal.stage, "tables": journal.tables});
    let intent = context.intent(verb, &journal.id, Some(&arguments.reason), detail).await?;
    let ended = async {
        turn_back(&lake, name, &journal, &arguments.reason).await?;
        operate::rollback::finish(&lake, name, &journal.id).await
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
    release(context, &arguments.of, Way::Replay, &arguments.tables, &leave_out).await
}

pub(super) async fn accept(context: &Context, arguments: &OfOperation) -> Result<Exit, Failure> {
    release(context, arguments, Way::Accept, &[], &LeaveOut::default()).await
}

async fn release(
    context: &Context,
    arguments: &OfOperation,
    way: Way,
    only: &[TableName],
    leave_out: &LeaveOut,
) -> Result<Exit, Failure> {
    let (name, _) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let journal = find(&lake, name, &arguments.operation).await?;
    let releases = Releases::of(&journal, way, only, leave_out)?;
    if !context.json {
        let what = match way {
            Way::Accept => "keep the rows of the rollback, take all changes since it, and are marked as diverging, in",
            _ => "take all changes since the rollback's target, but those left out, in",
        };
        answer::line(&format!("mirrors {what} {}", releases.tables.join(", ")))?;
    }
    confirm(way.as_str(), arguments.yes)?;
    let detail = json!({"pipeline": name, "tables": releases.tables, "releases": releases.releases});
    let intent = context.intent(way.as_str(), &journal.id, Some(&arguments.reason), detail).await?;
    intent.outcome(releases.request(&lake, name).await, Value::Null).await?;
    told(context, name, &journal.id, releases.tables, way.as_str())
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
