//! Rows of a table at one snapshot, for the verb and for HTTP: which columns are read, which rows are shown, and in what
//! format. Streamed from the reading room file by file; no more than a batch is in memory.

mod cells;
mod changes;
mod filter;
mod output;

use std::io::Write;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef as ArrowSchemaRef;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;

use crate::failure::Failure;
use crate::nearest::nearest;
pub(crate) use changes::ChangesOutput;
use filter::{Condition, Filter};
pub(crate) use filter::{FilterTree, Where};
pub(crate) use output::Output;

/// What is read of each file, and what is shown of it.
pub(crate) struct Reading {
    /// The columns that are shown, in their order, then those that only the filter needs.
    columns: Projection,
    filter: Option<Filter>,
    /// Of the columns that are shown.
    pub(crate) schema: ArrowSchemaRef,
}

impl Reading {
    /// The columns `select` of `table`, or all; the rows for which `filter` is true, or all.
    ///
    /// # Errors
    /// `COLUMN_UNKNOWN`, `FILTER_INVALID`.
    pub(crate) fn new(
        table: &TableName,
        reader: &TableReader,
        select: &[String],
        filter: Option<&Where>,
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
    let mut written = 0;
    for path in reader.files() {
        if written == limit {
            break;
        }
        for batch in reader.read(path, &reading.columns)? {
            watch()?;
            let batch = reading.shown(batch?)?;
            let rows = usize::try_from(limit - written).unwrap_or(usize::MAX).min(batch.num_rows());
            output.write(&batch.slice(0, rows))?;
            written += rows as u64;
            if written == limit {
                break;
            }
        }
    }
    Ok(written)
}
