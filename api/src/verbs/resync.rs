//! `resync`: tables are copied anew beside what stands there, and take its place in one commit. Shown first, then asked for.

use serde_json::{Value, json};

use super::Context;
use super::confirm::confirm;
use crate::answer::{self, or_dash};
use crate::cli;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate::resync::{Planned, Resync};

pub(super) async fn run(context: &Context, arguments: &cli::Resync) -> Result<Exit, Failure> {
    let (name, config) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let resync = Resync::plan(&lake, name, config, &arguments.tables).await?;
    if !context.json {
        print(&resync.tables)?;
    }
    confirm("resync", arguments.yes)?;
    let intent = context.intent("resync", name, Some(&arguments.reason), json!(resync.answer())).await?;
    intent.outcome(resync.request(&lake, &arguments.reason).await, Value::Null).await?;
    match context.json {
        true => answer::json(&resync.answer())?,
        false => answer::line(&format!(
            "asked for: pipeline {name} copies them at once if it is running, else when it starts; see `lakehouse status`"
        ))?,
    }
    Ok(Exit::Done)
}

fn print(plan: &[Planned]) -> Result<(), Failure> {
    let row = |planned: &Planned| {
        let Planned { table, source, rows, snapshot, code } = planned;
        [table.to_string(), source.clone(), or_dash(*rows), or_dash(*snapshot), or_dash(code.clone())]
    };
    let rows: Vec<_> = plan.iter().map(row).collect();
    answer::table(["TABLE", "SOURCE", "ROWS NOW", "SNAPSHOT NOW", "CODE"], &rows)?;
    answer::line(
        "Each is copied anew from its source. Readers see it as it stands until one commit replaces all of its rows; it is not\n\
         in the cut meanwhile. Older snapshots stay. Its history begins anew there: what happened in between is in none.",
    )
}
