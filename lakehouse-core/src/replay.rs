//! Changes of a history as they came from the source, without those that are left out: what a held mirror catches up with.
//! They come in windows of whole positions. Blocking.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, BooleanArray, RecordBatch, new_null_array};
use arrow_schema::Field;
use arrow_select::filter::filter_record_batch;

use crate::change::{BeforeImages, ChangeChunk, Operation, Origin};
use crate::change_log::{ChangeLog, column, damaged, operations};
use crate::commit::LeaveOut;
use crate::error::Problem;
use crate::fold::Range;
use crate::position::Position;
use crate::read::{TableReader, fit};
use crate::schema::{BEFORE, COMMITTED_AT, ORDINAL, OVERFLOW, POSITION, TRANSACTION, TableSchema};

/// Changes that a window has at least, unless it is the last: of one position there may be any number.
const WINDOW: usize = 100_000;

/// The changes of a range.
pub(crate) struct Replay<'a> {
    log: ChangeLog<'a>,
    schema: Arc<TableSchema>,
    leave_out: &'a LeaveOut,
}

impl<'a> Replay<'a> {
    /// Looks up where the changes of `range` stand; `schema` is how they are to be given.
    pub(crate) fn of(
        history: &'a TableReader,
        schema: &Arc<TableSchema>,
        range: Range,
        leave_out: &'a LeaveOut,
    ) -> Result<Self, Problem> {
        let log = ChangeLog::of(history, range, &|_| Ok::<_, Problem>(()))?;
        let wide = history.schema.field_by_name(OVERFLOW).is_some();
        let schema = if wide { schema.with_overflow() } else { Arc::clone(schema) };
        Ok(Self { log, schema, leave_out })
    }

    /// The changes of the next window; `None` when all have been given.
    pub(crate) fn next_window(&mut self) -> Result<Option<ChangeChunk>, Problem> {
        let Some(batch) = self.log.next_positions(WINDOW)? else { return Ok(None) };
        self.chunk_of(&staying(&batch, self.leave_out)?).map(Some)
    }

    fn chunk_of(&self, batch: &RecordBatch) -> Result<ChangeChunk, Problem> {
        let operations: Vec<Operation> = operations(batch)?.collect::<Result<_, _>>()?;
        let positions = column(batch, POSITION)?.as_primitive::<Int64Type>().values();
        let ordinals = column(batch, ORDINAL)?.as_primitive::<Int32Type>().values();
        let times = column(batch, COMMITTED_AT)?.as_primitive::<TimestampMicrosecondType>().values();
        let transactions = batch.column_by_name(TRANSACTION).map(|column| column.as_primitive::<Int64Type>().values());
        let origin = |row: usize| Origin {
            commit: Position::new(positions[row].cast_unsigned()),
            committed_at: times[row],
            transaction: transactions.map_or(0, |transactions| transactions[row]),
            ordinal: ordinals[row],
        };
        let rows = self.schema.columns.iter().map(|wanted| {
            let field = Field::new(&wanted.name, wanted.data_type.clone(), true);
            match batch.column_by_name(&wanted.name) {
                Some(found) => fit(found, &field),
                None => Ok(new_null_array(&wanted.data_type, batch.num_rows())),
            }
        });
        Ok(ChangeChunk {
            origins: (0..batch.num_rows()).map(origin).collect(),
            operations,
            lanes: None,
            rows: rows.collect::<Result<_, Problem>>()?,
            before: self.before_of(batch)?,
            unchanged: Vec::new(),
            quarantined: Vec::new(),
            schema: Arc::clone(&self.schema),
        })
    }

    fn before_of(&self, batch: &RecordBatch) -> Result<Option<BeforeImages>, Problem> {
        let Some(before) = batch.column_by_name(BEFORE).map(|column| column.as_struct()) else { return Ok(None) };
        let known: BooleanArray = (0..before.len()).map(|row| Some(before.is_valid(row))).collect();
        let columns = self.schema.before_columns.iter().map(|&wanted| {
            let wanted = &self.schema.columns[wanted];
            let field = Field::new(&wanted.name, wanted.data_type.clone(), true);
            match before.column_by_name(&wanted.name) {
                Some(found) => fit(found, &field),
                None => Ok(new_null_array(&wanted.data_type, before.len())),
            }
        });
        Ok(Some(BeforeImages { known, columns: columns.collect::<Result<_, Problem>>()? }))
    }
}

/// Without what is left out.
fn staying(batch: &RecordBatch, leave_out: &LeaveOut) -> Result<RecordBatch, Problem> {
    let positions = column(batch, POSITION)?.as_primitive::<Int64Type>().values();
    let transactions = batch.column_by_name(TRANSACTION).map(|column| column.as_primitive::<Int64Type>().values());
    let stays = |row: usize| {
        let transaction = transactions.map(|transactions| transactions[row]);
        Some(!leave_out.holds(transaction, Position::new(positions[row].cast_unsigned())))
    };
    let stays: BooleanArray = (0..batch.num_rows()).map(stays).collect();
    filter_record_batch(batch, &stays).map_err(|error| damaged(&error))
}
