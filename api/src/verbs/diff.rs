//! `diff`: what differs between two points of a table's past, or what has led from one to the other.

use std::io::{self, BufWriter, IsTerminal, Stdout};

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::change_log::Tally;
use lakehouse_core::diff::{self, Counts};
use lakehouse_core::read::Projection;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Context;
use super::rows::two_formats;
use crate::answer;
use crate::cli::{Diff, Format, Mode};
use crate::failure::{Exit, Failure};
use crate::lake::Lake;
use crate::rows::{ChangesOutput, LogOutput, head, write_log};

pub(super) async fn run(context: &Context, arguments: Diff) -> Result<Exit, Failure> {
    let lake = Lake::open(&context.config).await?;
    let table = lake.table(&arguments.table).await?;
    let from = lake.find_id(&context.config, &table, &arguments.from).await?;
    let to = lake.find_id(&context.config, &table, &arguments.to).await?;
    if context.json && arguments.format.is_some_and(|format| format != Format::Table) {
        return Err(two_formats());
    }
    let way = Way { context, lake: &lake, table: &table, from, to, arguments: &arguments };
    let is_empty = match arguments.mode {
        Mode::Net => way.net().await?.is_equal(),
        Mode::Log => way.log().await?.is_empty(),
    };
    Ok(if arguments.exit_code && !is_empty { Exit::Different } else { Exit::Done })
}

/// From one snapshot to another.
struct Way<'a> {
    context: &'a Context,
    lake: &'a Lake,
    table: &'a LoadedTable,
    from: i64,
    to: i64,
    arguments: &'a Diff,
}

impl Way<'_> {
    async fn net(&self) -> Result<Counts, Failure> {
        let diff = diff::Diff::open(&self.lake.storage, self.table, self.from, self.to).await?;
        // From here on nothing waits for anything but files and the reader of our output.
        tokio::task::block_in_place(|| {
            if self.arguments.counts {
                let counts = diff.counts(&|| Ok::<(), Failure>(()))?;
                let Counts { inserted, updated, deleted } = counts;
                self.tell(&counts, &format!("{inserted} inserted, {updated} updated, {deleted} deleted"))?;
                return Ok(counts);
            }
            let mut output = match self.context.json {
                true => ChangesOutput::json(out(), self.head())?,
                false => ChangesOutput::flat(self.format(), out(), diff.schema(), io::stdout().is_terminal())?,
            };
            let counts = diff.changes(&|| Ok(()), &mut |changes| output.write(&changes))?;
            output.end(counts)?;
            Ok(counts)
        })
    }

    async fn log(&self) -> Result<Tally, Failure> {
        let passage = self.lake.passage(&self.context.config, self.table, self.from, self.to).await?;
        let history = passage.open(self.lake).await?;
        tokio::task::block_in_place(|| {
            // A person stops the whole process.
            let watch = |_: usize| Ok::<(), Failure>(());
            if self.arguments.counts {
                let tally = Tally::of(&history, passage.range, &watch)?;
                let Tally { inserted, updated, deleted, expired, truncated, quarantined } = tally;
                let more = format!("{expired} expired, {truncated} truncated, {quarantined} quarantined");
                self.tell(&tally, &format!("{inserted} inserted, {updated} updated, {deleted} deleted, {more}"))?;
                return Ok(tally);
            }
            let mut output = match self.context.json {
                true => LogOutput::json(out(), self.head())?,
                false => {
                    let schema = Projection::all(&history.schema)?.arrow;
                    LogOutput::flat(self.format(), out(), &schema, io::stdout().is_terminal())?
                }
            };
            let tally = write_log(&history, passage.range, &watch, &mut output)?;
            output.end(tally)?;
            Ok(tally)
        })
    }

    fn format(&self) -> Format {
        self.arguments.format.unwrap_or(Format::Table)
    }

    fn head(&self) -> Map<String, Value> {
        head(&self.table.name, self.from, self.to, self.arguments.mode)
    }

    /// The counts alone: below the head's keys, or as a line.
    fn tell(&self, counts: &impl Serialize, line: &str) -> Result<(), Failure> {
        if !self.context.json {
            return answer::line(line);
        }
        let mut document = self.head();
        document.extend(answer::keys(counts));
        answer::json(&document)
    }
}

fn out() -> BufWriter<Stdout> {
    BufWriter::new(io::stdout())
}
