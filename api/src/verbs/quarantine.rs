//! `quarantine`: which rows of a table could not be mapped, why, and where they come from; the newest first. The rows
//! themselves are in the table that the answer names, for `rows` and any engine. With `--replay` what can be mapped by now
//! is asked for instead.

use serde_json::Value;

use super::Context;
use super::confirm::confirm;
use crate::answer::{self, or_dash};
use crate::cli;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::operate::quarantine::Replay;
use crate::quarantined::{Listed, Quarantine, Quarantined, Wish, check_mirror};

pub(super) async fn run(context: &Context, arguments: &cli::Quarantine) -> Result<Exit, Failure> {
    match &arguments.reason {
        Some(reason) if arguments.replay => replay(context, arguments, reason).await,
        _ => list(context, arguments).await,
    }
}

async fn replay(context: &Context, arguments: &cli::Quarantine, reason: &str) -> Result<Exit, Failure> {
    let (name, config) = context.config.choose_one(arguments.pipeline.as_deref())?;
    let lake = Lake::open(&context.config).await?;
    let replay = Replay::plan(&lake, name, config, &arguments.table).await?;
    if !context.json {
        answer::line(&format!(
            "{} has {} rows. Those that can be mapped by now and whose keys have not been written since go into {} and\n\
             its history; all of them stay in the quarantine.",
            replay.quarantine,
            or_dash(replay.rows),
            replay.table
        ))?;
    }
    confirm("replay", arguments.yes)?;
    let intent = context.intent("quarantine_replay", name, Some(reason), replay.json()).await?;
    let id = intent.outcome(replay.request(&lake, reason).await, Value::Null).await?;
    match context.json {
        true => answer::json(&replay.answer(id))?,
        false => answer::line(&format!(
            "asked for as {id}: pipeline {name} does it at once if it is running, else when it starts"
        ))?,
    }
    Ok(Exit::Done)
}

async fn list(context: &Context, arguments: &cli::Quarantine) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let mirror = lake.table(&arguments.table).await?;
    check_mirror(&mirror)?;
    let answer = match lake.quarantine(&mirror).await? {
        Some(table) => {
            let quarantine = Quarantine::open(&lake, table).await?;
            let most = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
            let wish = Wish { most, behind: None, show_keys: arguments.show_keys };
            let newest = tokio::task::block_in_place(|| quarantine.newest(&wish, || Ok(())))?;
            quarantine.listed(&mirror.name, newest)
        }
        None => Listed::nothing(&mirror.name),
    };
    match context.json {
        true => answer::json(&answer)?,
        false => print(&answer)?,
    }
    Ok(Exit::Done)
}

fn print(answer: &Listed) -> Result<(), Failure> {
    let Some(quarantine) = &answer.quarantine else {
        return answer::line(&format!("{} has no quarantine", answer.table));
    };
    if !answer.quarantined.is_empty() {
        let row = |row: &Quarantined| {
            [
                row.committed_at.clone(),
                row.operation.clone(),
                row.key.clone(),
                row.column.clone(),
                row.code.clone(),
                or_dash(row.position),
                or_dash(row.lane.as_ref()),
                or_dash(row.offset.as_ref()),
                row.reason.clone(),
            ]
        };
        let rows: Vec<_> = answer.quarantined.iter().map(row).collect();
        let headers = ["WHEN", "OPERATION", "KEY", "COLUMN", "CODE", "POSITION", "LANE", "OFFSET", "REASON"];
        answer::table(headers, &rows)?;
    }
    answer::line(&format!("{} of {} rows in {quarantine}", answer.quarantined.len(), answer.rows))
}
