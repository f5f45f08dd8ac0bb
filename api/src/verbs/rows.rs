//! `rows`: a table as it is or was, streamed from the reading room file by file; no more than a batch is in memory.

mod cells;
mod filter;
mod output;

use std::io::{self, BufWriter, IsTerminal, Write};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef as ArrowSchemaRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use serde_json::json;

use super::Context;
use crate::answer;
use crate::cli::{Format, Rows};
use crate::failure::{Exit, Failure};
use crate::lake::{self, Chosen, Lake};
use crate::nearest::nearest;
use filter::{Condition, Filter};
use output::Output;

pub(super) async fn run(context: &Context, arguments: Rows) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let table = lake.table(&arguments.table).await?;
    let chosen = choose(context, &lake, &table, &arguments).await?;
    let snapshot = chosen.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id());
    let reader = TableReader::at(&lake.storage, &table, snapshot).await?;
    let reading = Reading::new(&reader, &arguments)?;
    let out = BufWriter::new(io::stdout());
    let schema = &reading.schema;
    let output = match (context.json, arguments.format) {
        (true, Some(Format::Csv | Format::Ndjson | Format::Arrow)) => {
            let remedy = "leave out one of the two";
            return Err(Failure::usage("USAGE", "--json --format", "--json answers with one JSON document", remedy));
        }
        (true, _) => Output::json(out, schema, head(&table, &chosen))?,
        (false, None | Some(Format::Table)) => Output::table(out, schema, io::stdout().is_terminal()),
        (false, Some(Format::Csv)) => Output::csv(out, schema)?,
        (false, Some(Format::Ndjson)) => Output::ndjson(out),
        (false, Some(Format::Arrow)) => Output::arrow(out, schema)?,
    };
    if let Some((position, exact)) = chosen.cut {
        label(arguments.at.cut, position, exact);
    }
    // From here on nothing waits for anything but files and the reader of our output.
    tokio::task::block_in_place(|| stream(&reader, &reading, arguments.limit, output))?;
    Ok(Exit::Done)
}

async fn choose(context: &Context, lake: &Lake, table: &LoadedTable, arguments: &Rows) -> Result<Chosen, Failure> {
    let at = &arguments.at;
    if let Some(id) = at.snapshot {
        return lake::by_id(table, id);
    }
    if let Some(time) = at.as_of {
        return lake::as_of(table, time);
    }
    if let Some(tag) = &at.tag {
        return lake::by_tag(table, tag);
    }
    match at.cut {
        Some(position) => lake::by_cut(table, &control_of(context, lake, table).await?, position),
        None => Ok(lake::newest(table)),
    }
}

/// The control table of the pipeline whose cuts hold the table.
async fn control_of(context: &Context, lake: &Lake, table: &LoadedTable) -> Result<LoadedTable, Failure> {
    let source = lake::table_state(table)?.source;
    for (name, pipeline) in &context.config.pipelines {
        if pipeline.namespace == table.name.namespace
            && let Some((control, found)) = lake.control(name).await?
            && control.cut.is_some_and(|cut| Some(cut.source) == source)
        {
            return Ok(found);
        }
    }
    let remedy = "name a snapshot, a time or a tag instead, or configure the table's pipeline";
    Err(Failure::failed("CUT_UNKNOWN", table.name.to_string(), "no pipeline in the configuration has its cuts", remedy))
}

/// Says on standard error which cut is shown if it is not the one that was asked for.
fn label(wanted: Option<Position>, position: Position, exact: bool) {
    if let (Some(wanted), false) = (wanted, exact) {
        // An answer is not spoilt by a label that cannot be written.
        let _ = writeln!(io::stderr(), "cut {position}, the newest at or before {wanted}");
    }
}

fn head(table: &LoadedTable, chosen: &Chosen) -> serde_json::Map<String, serde_json::Value> {
    let mut head = serde_json::Map::new();
    head.insert("table".to_owned(), json!(table.name.to_string()));
    let snapshot = chosen.snapshot.as_ref();
    head.insert("snapshot_id".to_owned(), json!(snapshot.map(|snapshot| snapshot.snapshot_id().to_string())));
    head.insert("committed_at".to_owned(), json!(snapshot.map(|snapshot| answer::time(snapshot.timestamp_ms()))));
    if let Some((position, exact)) = chosen.cut {
        head.insert("cut".to_owned(), json!({"position": position, "exact": exact}));
    }
    head
}

/// What is read of each file, and what is shown of it.
struct Reading {
    /// The columns that are shown, in their order, then those that only the filter needs.
    columns: Projection,
    filter: Option<Filter>,
    /// Of the columns that are shown.
    schema: ArrowSchemaRef,
}

impl Reading {
    fn new(reader: &TableReader, arguments: &Rows) -> Result<Self, Failure> {
        let fields = reader.schema.as_struct().fields();
        let id = |name: &str| {
            let field = fields.iter().find(|field| field.name == name.trim());
            field.map(|field| field.id).ok_or_else(|| {
                let names = fields.iter().map(|field| field.name.as_str());
                let remedy = format!("the nearest one is {}", nearest(name, names).unwrap_or("none"));
                Failure::failed("COLUMN_UNKNOWN", format!("{}.{name}", arguments.table), "no such column", remedy)
            })
        };
        let all = Projection::all(&reader.schema)?;
        let mut ids: Vec<i32> = match arguments.select.is_empty() {
            true => fields.iter().map(|field| field.id).collect(),
            false => arguments.select.iter().map(|name| id(name)).collect::<Result<_, _>>()?,
        };
        let schema = Projection::of(&reader.schema, &ids)?.arrow;
        let filter = arguments.filter.as_deref().map(|text| Condition::new(text, &all.arrow)).transpose()?;
        for name in filter.iter().flat_map(Condition::columns) {
            let needed = id(name)?;
            if !ids.contains(&needed) {
                ids.push(needed);
            }
        }
        let columns = Projection::of(&reader.schema, &ids)?;
        let filter = filter.map(|condition| condition.bind(&columns.arrow)).transpose()?;
        Ok(Self { columns, filter, schema })
    }

    /// What is shown of a batch.
    fn shown(&self, batch: RecordBatch) -> Result<RecordBatch, Failure> {
        let batch = match &self.filter {
            Some(filter) => filter.apply(&batch)?,
            None => batch,
        };
        let shown: Vec<usize> = (0..self.schema.fields().len()).collect();
        Ok(batch.project(&shown).expect("what is shown is read first"))
    }
}

fn stream<W: Write>(
    reader: &TableReader,
    reading: &Reading,
    limit: Option<u64>,
    mut output: Output<W>,
) -> Result<(), Failure> {
    let mut left = limit.unwrap_or(u64::MAX);
    for path in reader.files() {
        if left == 0 {
            break;
        }
        for batch in reader.read(path, &reading.columns)? {
            let batch = reading.shown(batch?)?;
            let rows = usize::try_from(left).unwrap_or(usize::MAX).min(batch.num_rows());
            output.write(&batch.slice(0, rows))?;
            left -= rows as u64;
            if left == 0 {
                break;
            }
        }
    }
    output.end()
}
