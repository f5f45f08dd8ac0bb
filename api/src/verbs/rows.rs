//! `rows`: a table as it is or was, on standard output.

use std::io::{self, BufWriter, IsTerminal, Write};

use lakehouse_core::position::Position;
use lakehouse_core::read::TableReader;

use super::Context;
use crate::cli::{Format, Rows};
use crate::failure::{Exit, Failure};
use crate::lake::{Lake, Point};
use crate::rows::{self, Output, Reading, Where};

pub(super) async fn run(context: &Context, arguments: Rows) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let table = lake.table(&arguments.table).await?;
    let chosen = lake.find(&context.config, &table, &Point::from(&arguments.at)).await?;
    let snapshot = chosen.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id());
    let reader = TableReader::at(&lake.storage, &table, snapshot).await?;
    let filter = arguments.filter.map(Where::Sql);
    let reading = Reading::new(&table.name, &reader, &arguments.select, filter.as_ref(), &[])?;
    let out = BufWriter::new(io::stdout());
    let schema = &reading.schema;
    let mut output = match (context.json, arguments.format) {
        (true, Some(format)) if format != Format::Table => return Err(two_formats()),
        (true, _) => Output::json(out, schema, chosen.head(&table))?,
        (false, format) => Output::of(format.unwrap_or(Format::Table), out, schema, io::stdout().is_terminal())?,
    };
    if let Some((position, exact)) = chosen.cut {
        label(arguments.at.cut, position, exact);
    }
    // From here on nothing waits for anything but files and the reader of our output.
    tokio::task::block_in_place(|| {
        rows::write(&reader, &reading, arguments.limit, &mut output, &|| Ok(()))?;
        output.end()
    })?;
    Ok(Exit::Done)
}

pub(super) fn two_formats() -> Failure {
    Failure::usage("USAGE", "--json --format", "--json answers with one JSON document", "leave out one of the two")
}

/// Says on standard error which cut is shown if it is not the one that was asked for.
fn label(wanted: Option<Position>, position: Position, exact: bool) {
    if let (Some(wanted), false) = (wanted, exact) {
        // An answer is not spoilt by a label that cannot be written.
        let _ = writeln!(io::stderr(), "cut {position}, the newest at or before {wanted}");
    }
}
