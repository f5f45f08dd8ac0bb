//! `quarantine`: which rows of a table could not be mapped, why, and where they come from; the newest first. The rows
//! themselves are in the table that the answer names, for `rows` and any engine. With `--replay` what can be mapped by now
//! is asked for instead.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, RecordBatch};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::{CODE, COLUMN, COMMITTED_AT, KEY, LANE, OFFSET, OPERATION, ORDINAL, POSITION, REASON};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::Context;
use super::confirm::confirm;
use crate::answer::{self, or_dash};
use crate::cli::Quarantine;
use crate::digest::sha256;
use crate::failure::{Exit, Failure};
use crate::lake::{self, Kind, Lake};
use crate::operate::quarantine::Replay;

/// What is read of the quarantine. Images, which are large, stay where they are.
const COLUMNS: [&str; 10] = [KEY, OPERATION, COLUMN, CODE, REASON, COMMITTED_AT, POSITION, ORDINAL, LANE, OFFSET];
/// Hexadecimal digits of a key's digest: 128 bits, as `verify` has them.
const DIGITS: usize = 32;

#[derive(Serialize)]
struct Answer {
    table: String,
    /// `None` where the table has none.
    quarantine: Option<String>,
    /// All rows that stand there, also those that are not shown.
    rows: u64,
    quarantined: Vec<Quarantined>,
}

/// One row; in the order of its fields the newest is the greatest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Quarantined {
    /// Microseconds since 1970.
    #[serde(serialize_with = "as_time")]
    committed_at: i64,
    /// Place, lane and offset are those of the history; a row that a copy has read has none.
    position: Option<Position>,
    #[serde(skip)]
    ordinal: Option<i32>,
    lane: Option<String>,
    offset: Option<String>,
    operation: String,
    /// As JSON, or its digest.
    key: String,
    column: String,
    code: String,
    reason: String,
}

pub(super) async fn run(context: &Context, arguments: &Quarantine) -> Result<Exit, Failure> {
    match &arguments.reason {
        Some(reason) if arguments.replay => replay(context, arguments, reason).await,
        _ => list(context, arguments).await,
    }
}

async fn replay(context: &Context, arguments: &Quarantine, reason: &str) -> Result<Exit, Failure> {
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
    let mut asked = replay.json();
    (asked["requested"], asked["id"]) = (Value::Bool(true), Value::String(id.clone()));
    match context.json {
        true => answer::json(&asked)?,
        false => answer::line(&format!(
            "asked for as {id}: pipeline {name} does it at once if it is running, else when it starts"
        ))?,
    }
    Ok(Exit::Done)
}

async fn list(context: &Context, arguments: &Quarantine) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let mirror = lake.table(&arguments.table).await?;
    if lake::kind(&mirror) != Kind::Mirror {
        let remedy = "name a mirror; `lakehouse tables` lists them";
        return Err(Failure::failed("TABLE_UNKNOWN", mirror.name.to_string(), "the table is no mirror", remedy));
    }
    let answer = match lake.quarantine(&mirror).await? {
        Some(quarantine) => listed(&lake, &mirror, &quarantine, arguments).await?,
        None => Answer { table: mirror.name.to_string(), quarantine: None, rows: 0, quarantined: Vec::new() },
    };
    match context.json {
        true => answer::json(&answer)?,
        false => print(&answer)?,
    }
    Ok(Exit::Done)
}

async fn listed(
    lake: &Lake,
    mirror: &LoadedTable,
    quarantine: &LoadedTable,
    arguments: &Quarantine,
) -> Result<Answer, Failure> {
    // What a newer release has written may mean something else.
    lake::table_state(quarantine)?;
    let reader = TableReader::at(&lake.storage, quarantine, quarantine.snapshot_id()).await?;
    let newest = tokio::task::block_in_place(|| newest(&reader, quarantine, arguments))?;
    Ok(Answer {
        table: mirror.name.to_string(),
        quarantine: Some(quarantine.name.to_string()),
        rows: reader.live.rows(),
        quarantined: newest,
    })
}

/// No more than the rows that are shown is in memory, and a batch.
fn newest(reader: &TableReader, table: &LoadedTable, arguments: &Quarantine) -> Result<Vec<Quarantined>, Failure> {
    let known = COLUMNS.iter().filter_map(|name| reader.schema.field_by_name(name));
    let columns = Projection::of(&reader.schema, &known.map(|field| field.id).collect::<Vec<_>>())?;
    let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let mut newest = BinaryHeap::new();
    for path in reader.files() {
        for batch in reader.read(path, &columns)? {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                let row = row_of(&batch, row, arguments.show_keys).ok_or_else(|| unreadable(table))?;
                newest.push(Reverse(row));
                if newest.len() > limit {
                    newest.pop();
                }
            }
        }
    }
    Ok(newest.into_sorted_vec().into_iter().map(|Reverse(row)| row).collect())
}

/// `None` where a column that every quarantine has is gone or of another type.
fn row_of(batch: &RecordBatch, row: usize, show_keys: bool) -> Option<Quarantined> {
    let text = |name| {
        let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let key = text(KEY)?;
    Some(Quarantined {
        committed_at: number::<TimestampMicrosecondType>(batch.column_by_name(COMMITTED_AT)?, row)?,
        position: number::<Int64Type>(batch.column_by_name(POSITION)?, row)
            .map(|position| Position::new(position.cast_unsigned())),
        ordinal: number::<Int32Type>(batch.column_by_name(ORDINAL)?, row),
        lane: text(LANE),
        offset: text(OFFSET),
        operation: text(OPERATION)?,
        key: if show_keys { key } else { sha256(key.as_bytes())[..DIGITS].to_owned() },
        column: text(COLUMN)?,
        code: text(CODE)?,
        reason: text(REASON)?,
    })
}

fn number<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Option<T::Native> {
    let column = column.as_primitive_opt::<T>()?;
    column.is_valid(row).then(|| column.value(row))
}

fn unreadable(table: &LoadedTable) -> Failure {
    let remedy = "give the table back the columns that it was created with";
    Failure::failed("QUARANTINE_UNREADABLE", table.name.to_string(), "the quarantine has lost columns", remedy)
}

fn as_time<S: Serializer>(microseconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time(*microseconds))
}

fn time(microseconds: i64) -> String {
    answer::time(microseconds.div_euclid(1_000))
}

fn print(answer: &Answer) -> Result<(), Failure> {
    let Some(quarantine) = &answer.quarantine else {
        return answer::line(&format!("{} has no quarantine", answer.table));
    };
    if !answer.quarantined.is_empty() {
        let row = |row: &Quarantined| {
            [
                time(row.committed_at),
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
