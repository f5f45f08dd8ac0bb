//! Rows of a table at one snapshot, for the verb and for HTTP: which columns are read, which rows are shown, and in what
//! format. Streamed from the reading room file by file; no more than a batch is in memory, and of rows in an order the first.

mod cells;
mod changes;
mod document;
mod filter;
mod log;
mod order;
mod output;

use std::io::Write;
use std::ops::ControlFlow;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef as ArrowSchemaRef;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;

use crate::failure::Failure;
use crate::nearest::nearest;
pub(crate) use changes::ChangesOutput;
pub(crate) use document::head;
use filter::{Condition, Filter};
pub(crate) use filter::{FilterTree, Where};
pub(crate) use log::{LogOutput, write as write_log};
use order::Order;
pub(crate) use order::{By, ORDERED_ROWS};
pub(crate) use output::Output;

/// What is read of each file, and what is shown of it.
pub(crate) struct Reading {
    /// The columns that are shown, in their order, then those that only the filter and the order need.
    columns: Projection,
    filter: Option<Filter>,
    /// Of the rows; without one they come as they stand in the files.
    order: Option<Order>,
    /// Of the columns that are shown.
    pub(crate) schema: ArrowSchemaRef,
}

impl Reading {
    /// The columns `select` of `table`, or all; the rows for which `filter` is true, or all; in the order `by`, or in none.
    ///
    /// # Errors
    /// `COLUMN_UNKNOWN`, `FILTER_INVALID`, `ORDER_INVALID`.
    pub(crate) fn new(
        table: &TableName,
        reader: &TableReader,
        select: &[String],
        filter: Option<&Where>,
        by: &[By],
    ) -> Result<Self, Failure> {
        let fields = reader.schema.as_struct().fields();
        let id = |name: &str| {
            let field = fields.iter().find(|field| field.name == name.trim());
            field.map(|field| field.id).ok_or_else(|| {
                let names = fields.iter().map(|field| field.name.as_str());
                let remedy = format!("the nearest one is {}", nearest(name, names).unwrap_or("none"));
                Failure::failed("COLUMN_UNKNOWN", format!("{table}.{name}"), "no such column", remedy)
            })
        };
        let all = Projection::all(&reader.schema)?;
        let mut ids: Vec<i32> = match select.is_empty() {
            true => fields.iter().map(|field| field.id).collect(),
            false => select.iter().map(|name| id(name)).collect::<Result<_, _>>()?,
        };
        let schema = Projection::of(&reader.schema, &ids)?.arrow;
        let filter = filter.map(|filter| Condition::new(filter, &all.arrow)).transpose()?;
        let ordering = by.iter().map(|by| by.column.as_str());
        for name in filter.iter().flat_map(Condition::columns).chain(ordering) {
            let needed = id(name)?;
            if !ids.contains(&needed) {
                ids.push(needed);
            }
        }
        let columns = Projection::of(&reader.schema, &ids)?;
        let filter = filter.map(|condition| condition.bind(&columns.arrow)).transpose()?;
        let order = if by.is_empty() { None } else { Some(Order::new(by, &columns.arrow)?) };
        Ok(Self { columns, filter, order, schema })
    }

    /// Gives `take` the rows that pass the filter, file by file, until it wants no more.
    fn scan(
        &self,
        reader: &TableReader,
        watch: &dyn Fn() -> Result<(), Failure>,
        take: &mut dyn FnMut(RecordBatch) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        for path in reader.files() {
            for batch in reader.read(path, &self.columns)? {
                watch()?;
                let batch = match &self.filter {
                    Some(filter) => filter.apply(&batch?)?,
                    None => batch?,
                };
                if take(batch)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What is shown of a batch.
    fn shown(&self, batch: &RecordBatch) -> RecordBatch {
        let shown: Vec<usize> = (0..self.schema.fields().len()).collect();
        batch.project(&shown).expect("what is shown is read first")
    }
}

/// Writes what is shown, at most `limit` rows of it, and says how many rows that were. `watch` is asked at every batch that
/// is read; its error ends the work.
pub(crate) fn write<W: Write>(
    reader: &TableReader,
    reading: &Reading,
    limit: Option<u64>,
    output: &mut Output<W>,
    watch: &dyn Fn() -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let limit = limit.unwrap_or(u64::MAX);
    if limit == 0 {
        return Ok(0);
    }
    let mut written = 0;
    let Some(order) = &reading.order else {
        reading.scan(reader, watch, &mut |batch| {
            let rows = usize::try_from(limit - written).unwrap_or(usize::MAX).min(batch.num_rows());
            output.write(&reading.shown(&batch).slice(0, rows))?;
            written += rows as u64;
            Ok(if written == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        return Ok(written);
    };
    let mut first = order.first(limit)?;
    reading.scan(reader, watch, &mut |batch| first.add(&batch).map(ControlFlow::Continue))?;
    if let Some(rows) = first.rows() {
        output.write(&reading.shown(&rows))?;
        written += rows.num_rows() as u64;
    }
    Ok(written)
}
