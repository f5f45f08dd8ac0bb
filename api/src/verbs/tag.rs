//! `tag` and `protect`: a snapshot gets a name by which it is read and that keeps it, or loses one.

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::schema::TableName;
use lakehouse_core::tags::{TagName, tagged};
use serde_json::{Value, json};

use super::Context;
use super::confirm::confirm;
use crate::answer;
use crate::cli::{At, Protect, Tag};
use crate::failure::{Exit, Failure};
use crate::lake::{Lake, Point};
use crate::operate::tags;

/// What is asked for, by either verb.
struct Wish<'a> {
    table: &'a TableName,
    name: TagName,
    at: &'a At,
    moves: bool,
    removes: bool,
    reason: Option<&'a str>,
    yes: bool,
}

pub(super) async fn tag(context: &Context, arguments: &Tag) -> Result<Exit, Failure> {
    let Tag { table, name, at, moves, remove, reason, yes } = arguments;
    let name = TagName::new(name).map_err(misnamed)?;
    if name.is_protected() {
        let remedy = "use `lakehouse protect`, or take another name";
        return Err(Failure::usage("TAG_NAME", name.as_str(), "the name is one of protected tags", remedy));
    }
    let reason = reason.as_deref();
    run(context, Wish { table, name, at, moves: *moves, removes: *remove, reason, yes: *yes }).await
}

pub(super) async fn protect(context: &Context, arguments: &Protect) -> Result<Exit, Failure> {
    let Protect { table, name, at, remove, reason, yes } = arguments;
    let name = TagName::protected(name).map_err(misnamed)?;
    run(context, Wish { table, name, at, moves: false, removes: *remove, reason: Some(reason), yes: *yes }).await
}

fn misnamed(problem: Problem) -> Failure {
    Failure { problem, exit: Exit::Usage }
}

async fn run(context: &Context, wish: Wish<'_>) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let table = tags::table(&lake, wish.table).await?;
    match wish.removes {
        true => remove(context, &lake, &table, &wish).await,
        false => set(context, &lake, &table, &wish).await,
    }
}

async fn set(context: &Context, lake: &Lake, table: &LoadedTable, wish: &Wish<'_>) -> Result<Exit, Failure> {
    let Wish { name, moves, reason, yes, .. } = wish;
    let snapshot_id = lake.find_id(&context.config, table, &Point::from(wish.at)).await?;
    let previous = tagged(table, name)?.filter(|id| *id != snapshot_id);
    let seen = previous.filter(|_| *moves);
    if let Some(id) = seen {
        if !context.json {
            answer::line(&format!("{name} leaves snapshot {id}, which may expire then"))?;
        }
        confirm("tag", *yes)?;
    }
    let detail = json!({"tag": name.as_str(), "snapshot_id": snapshot_id.to_string(), "previous": previous.map(|id| id.to_string())});
    let intent = context.intent(tags::action(name, false), &table.name.to_string(), *reason, detail.clone()).await?;
    intent.outcome(tags::set(lake, &table.name, name, snapshot_id, seen).await, Value::Null).await?;
    match context.json {
        true => told(table, detail, false)?,
        false => answer::line(&format!("snapshot {snapshot_id} of {} is kept as {name}", table.name))?,
    }
    Ok(Exit::Done)
}

async fn remove(context: &Context, lake: &Lake, table: &LoadedTable, wish: &Wish<'_>) -> Result<Exit, Failure> {
    let Wish { name, reason, yes, .. } = wish;
    let snapshot_id = tags::named(table, name)?;
    if !context.json {
        answer::line(&format!("snapshot {snapshot_id} loses the name {name}, and may expire then"))?;
    }
    confirm(if name.is_protected() { "protect" } else { "tag" }, *yes)?;
    let detail = json!({"tag": name.as_str(), "snapshot_id": snapshot_id.to_string()});
    let intent = context.intent(tags::action(name, true), &table.name.to_string(), *reason, detail.clone()).await?;
    intent.outcome(tags::remove(lake, &table.name, name, snapshot_id).await, Value::Null).await?;
    match context.json {
        true => told(table, detail, true)?,
        false => answer::line(&format!("the tag {name} of {} is gone", table.name))?,
    }
    Ok(Exit::Done)
}

fn told(table: &LoadedTable, mut detail: Value, removed: bool) -> Result<(), Failure> {
    detail["table"] = json!(table.name.to_string());
    detail["removed"] = json!(removed);
    answer::json(&detail)
}
