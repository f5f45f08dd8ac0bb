//! Changes read back from a history, in the order in which the source made them: what a held mirror catches up with.
//!
//! Files of a history may overlap and, rewritten, be in any order. So the place of every change is looked up first, 16
//! bytes each; then changes come in windows of whole positions, each read from just the rows that it needs. Blocking.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow_schema::Field;
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use roaring::RoaringBitmap;

use crate::change::{BeforeImages, ChangeChunk, Operation, Origin};
use crate::commit::LeaveOut;
use crate::error::Problem;
use crate::fold::Range;
use crate::position::Position;
use crate::read::{FileRows, Projection, Rows, TableReader, fit};
use crate::schema::{BEFORE, COMMITTED_AT, OPERATION, ORDINAL, OVERFLOW, POSITION, TRANSACTION, TableSchema};

/// Changes that a window has at least, unless it is the last: of one position there may be any number.
const WINDOW: usize = 100_000;

/// Where one change stands: its position, then file and row.
type Place = (u64, u32, u32);

/// The changes of a range.
pub(crate) struct Replay<'a> {
    history: &'a TableReader,
    schema: Arc<TableSchema>,
    leave_out: &'a LeaveOut,
    files: Vec<String>,
    /// Sorted; those before `next` have been given.
    places: Vec<Place>,
    next: usize,
}

impl<'a> Replay<'a> {
    /// Looks up where the changes of `range` stand; `schema` is how they are to be given.
    pub(crate) fn of(
        history: &'a TableReader,
        schema: &Arc<TableSchema>,
        range: Range,
        leave_out: &'a LeaveOut,
    ) -> Result<Self, Problem> {
        let files: Vec<String> = history.files().into_iter().map(str::to_owned).collect();
        let position = history.schema.field_id_by_name(POSITION).ok_or_else(|| damaged(&"it has no positions"))?;
        let column = Projection::of(&history.schema, &[position])?;
        let mut places: Vec<Place> = Vec::new();
        for (number, path) in (0u32..).zip(&files) {
            if !range.overlaps(history, path)? {
                continue;
            }
            let mut rows = history.read(path, &column)?;
            while let Some(batch) = rows.next_batch() {
                let (batch, numbers) = batch?;
                let found = batch.column(0).as_primitive::<Int64Type>().values().iter().map(|at| at.cast_unsigned());
                let inside = found.zip(numbers).filter(|(at, _)| range.holds(*at));
                places.extend(inside.map(|(at, row)| (at, number, row)));
            }
        }
        places.sort_unstable();
        let wide = history.schema.field_by_name(OVERFLOW).is_some();
        let schema = if wide { schema.with_overflow() } else { Arc::clone(schema) };
        Ok(Self { history, schema, leave_out, files, places, next: 0 })
    }

    /// The changes of the next window; `None` when all have been given.
    pub(crate) fn next_window(&mut self) -> Result<Option<ChangeChunk>, Problem> {
        let rest = &self.places[self.next..];
        let Some(last) = rest.get(WINDOW - 1).or(rest.last()).map(|place| place.0) else { return Ok(None) };
        let window = &rest[..rest.partition_point(|place| place.0 <= last)];
        let mut rows: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
        for (_, file, row) in window {
            rows.entry(*file).or_default().insert(*row);
        }
        self.next += window.len();
        let columns = Projection::all(&self.history.schema)?;
        let mut batches = Vec::new();
        for (file, rows) in rows {
            let path = &self.files[file as usize];
            for batch in FileRows::open(&self.history.storage, path, &columns, Rows::Only(rows))? {
                batches.push(batch?);
            }
        }
        let batch = concat_batches(&columns.arrow, &batches).map_err(|error| damaged(&error))?;
        drop(batches);
        self.chunk_of(&in_order(&batch, self.leave_out)?).map(Some)
    }

    fn chunk_of(&self, batch: &RecordBatch) -> Result<ChangeChunk, Problem> {
        let operation = |word: Option<&str>| {
            word.and_then(Operation::named).ok_or_else(|| damaged(&format!("an operation is {word:?}")))
        };
        let operations: Vec<Operation> =
            column(batch, OPERATION)?.as_string::<i32>().iter().map(operation).collect::<Result<_, _>>()?;
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

/// By position and place in the transaction, without what is left out.
fn in_order(batch: &RecordBatch, leave_out: &LeaveOut) -> Result<RecordBatch, Problem> {
    let positions = column(batch, POSITION)?.as_primitive::<Int64Type>().values();
    let ordinals = column(batch, ORDINAL)?.as_primitive::<Int32Type>().values();
    let transactions = batch.column_by_name(TRANSACTION).map(|column| column.as_primitive::<Int64Type>().values());
    let place = |row: u32| (positions[row as usize].cast_unsigned(), ordinals[row as usize]);
    let rows = u32::try_from(batch.num_rows()).map_err(|_| damaged(&"one position has too many changes"))?;
    let stays = |row: &u32| {
        let transaction = transactions.map(|transactions| transactions[*row as usize]);
        !leave_out.holds(transaction, Position::new(place(*row).0))
    };
    let mut order: Vec<u32> = (0..rows).filter(stays).collect();
    order.sort_by_key(|row| place(*row));
    take_record_batch(batch, &UInt32Array::from(order)).map_err(|error| damaged(&error))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, Problem> {
    batch.column_by_name(name).ok_or_else(|| damaged(&format!("it has no column {name}")))
}

fn damaged(error: &dyn std::fmt::Display) -> Problem {
    let message = format!("changes cannot be read back: {error}");
    Problem::halt_table("HISTORY_DAMAGED", "", message, "run fsck on the history, and resync the table")
}
