//! `diff`: what differs between two points of a table's past.

use std::io::{self, BufWriter, IsTerminal};

use lakehouse_core::diff::{self, Counts};
use serde_json::{Map, json};

use super::Context;
use super::rows::two_formats;
use crate::answer;
use crate::cli::{Diff, Format};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::rows::ChangesOutput;

pub(super) async fn run(context: &Context, arguments: Diff) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let table = lake.table(&arguments.table).await?;
    let from = lake.find_id(&context.config, &table, &arguments.from).await?;
    let to = lake.find_id(&context.config, &table, &arguments.to).await?;
    if context.json && arguments.format.is_some_and(|format| format != Format::Table) {
        return Err(two_formats());
    }
    let diff = diff::Diff::open(&lake.storage, &table, from, to).await?;
    let mut head = Map::new();
    head.insert("table".to_owned(), json!(table.name.to_string()));
    head.insert("from".to_owned(), json!(from.to_string()));
    head.insert("to".to_owned(), json!(to.to_string()));
    // From here on nothing waits for anything but files and the reader of our output.
    let counts = tokio::task::block_in_place(|| -> Result<Counts, Failure> {
        if arguments.counts {
            let counts = diff.counts(&|| Ok::<(), Failure>(()))?;
            tell(counts, context.json.then_some(head))?;
            return Ok(counts);
        }
        let out = BufWriter::new(io::stdout());
        let format = arguments.format.unwrap_or(Format::Table);
        let mut output = match context.json {
            true => ChangesOutput::json(out, head)?,
            false => ChangesOutput::flat(format, out, diff.schema(), io::stdout().is_terminal())?,
        };
        let counts = diff.changes(&|| Ok(()), &mut |changes| output.write(&changes))?;
        output.end(counts)?;
        Ok(counts)
    })?;
    Ok(if arguments.exit_code && !counts.is_equal() { Exit::Different } else { Exit::Done })
}

/// The counts alone: below the head's keys, or as a line.
fn tell(counts: Counts, head: Option<Map<String, serde_json::Value>>) -> Result<(), Failure> {
    let Counts { inserted, updated, deleted } = counts;
    match head {
        Some(mut document) => {
            let counts = [("inserted", inserted), ("updated", updated), ("deleted", deleted)];
            document.extend(counts.map(|(key, rows)| (key.to_owned(), json!(rows))));
            answer::json(&document)
        }
        None => answer::line(&format!("{inserted} inserted, {updated} updated, {deleted} deleted")),
    }
}
