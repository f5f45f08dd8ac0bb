//! Changes read back from a history, in the order in which the source made them: what a held mirror catches up with
//! (`replay.rs`), and what has led from one state of a table to another.
//!
//! Files of a history may overlap and, rewritten, be in any order. So the place of every change is looked up first, 24
//! bytes each; then changes come in windows, each read from just the rows that it needs. Blocking.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{ArrayRef, RecordBatch, UInt32Array};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use roaring::RoaringBitmap;
use serde::Serialize;

use crate::change::Operation;
use crate::error::Problem;
use crate::fold::Range;
use crate::read::{FileRows, Projection, Rows, TableReader};
use crate::schema::{OPERATION, ORDINAL, POSITION};

/// Bytes of the changes that are given at a time, by those that were given last; and how many they are at first, and at
/// most.
const WINDOW_BYTES: usize = 16 << 20;
const FIRST_ROWS: usize = 64;
const MOST_ROWS: usize = 16_384;

/// Where one change stands: position and place in its transaction, then file and row.
type Place = (u64, i32, u32, u32);

/// Asked at every batch that is read, with how many changes were found so far; an error ends the work.
pub type Watch<'a, E> = &'a dyn Fn(usize) -> Result<(), E>;

/// How many changes there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    pub expired: u64,
    pub truncated: u64,
    pub quarantined: u64,
}

impl Tally {
    /// Of the changes of `range`, without their rows.
    ///
    /// # Errors
    /// What reading meets, and what `watch` says.
    pub fn of<E: From<Problem>>(history: &TableReader, range: Range, watch: Watch<'_, E>) -> Result<Self, E> {
        let mut tally = Self::default();
        let mut found = 0;
        scan(history, range, &[POSITION, OPERATION], |_, batch, _| {
            for (at, operation) in positions(batch)?.zip(operations(batch)?) {
                if range.holds(at) {
                    tally.count(operation?);
                    found += 1;
                }
            }
            watch(found)
        })?;
        Ok(tally)
    }

    pub fn total(self) -> u64 {
        let Self { inserted, updated, deleted, expired, truncated, quarantined } = self;
        inserted + updated + deleted + expired + truncated + quarantined
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds a batch of a [`ChangeLog`].
    ///
    /// # Errors
    /// `HISTORY_DAMAGED` for an operation that no history has.
    pub fn add(&mut self, changes: &RecordBatch) -> Result<(), Problem> {
        operations(changes)?.try_for_each(|operation| {
            self.count(operation?);
            Ok(())
        })
    }

    fn count(&mut self, operation: Operation) {
        *match operation {
            Operation::Insert => &mut self.inserted,
            Operation::Update => &mut self.updated,
            Operation::Delete => &mut self.deleted,
            Operation::Expire => &mut self.expired,
            Operation::Truncate => &mut self.truncated,
            Operation::Quarantine => &mut self.quarantined,
        } += 1;
    }
}

/// The changes of a range, one behind the other.
pub struct ChangeLog<'a> {
    history: &'a TableReader,
    columns: Projection,
    files: Vec<String>,
    /// Sorted; those before `next` have been given.
    places: Vec<Place>,
    next: usize,
    /// Of the next window.
    rows: usize,
}

impl<'a> ChangeLog<'a> {
    /// Looks up where the changes of `range` stand.
    ///
    /// # Errors
    /// What reading meets, and what `watch` says.
    pub fn of<E: From<Problem>>(history: &'a TableReader, range: Range, watch: Watch<'_, E>) -> Result<Self, E> {
        let mut places: Vec<Place> = Vec::new();
        scan(history, range, &[POSITION, ORDINAL], |file, batch, rows| {
            let moments = positions(batch)?.zip(ordinals(batch)?).zip(rows);
            let inside = moments.filter(|((at, _), _)| range.holds(*at));
            places.extend(inside.map(|((at, ordinal), row)| (at, ordinal, file, row)));
            watch(places.len())
        })?;
        places.sort_unstable();
        let files = history.files().into_iter().map(str::to_owned).collect();
        Ok(Self { history, columns: Projection::all(&history.schema)?, files, places, next: 0, rows: FIRST_ROWS })
    }

    /// The next changes, all columns of the history; `None` when all have been given.
    ///
    /// # Errors
    /// What reading meets.
    pub fn next_changes(&mut self) -> Result<Option<RecordBatch>, Problem> {
        let changes = self.take_until(self.places.len().min(self.next + self.rows))?;
        if let Some(changes) = &changes {
            let bytes_of_one = changes.get_array_memory_size() / changes.num_rows();
            self.rows = (WINDOW_BYTES / bytes_of_one.max(1)).clamp(1, MOST_ROWS);
        }
        Ok(changes)
    }

    /// The next changes, at least so many unless they are the last, and never a part of a position's: of one there may be
    /// any number.
    pub(crate) fn next_positions(&mut self, least: usize) -> Result<Option<RecordBatch>, Problem> {
        let rest = &self.places[self.next..];
        let Some(last) = rest.get(least - 1).or(rest.last()).map(|place| place.0) else { return Ok(None) };
        self.take_until(self.next + rest.partition_point(|place| place.0 <= last))
    }

    fn take_until(&mut self, end: usize) -> Result<Option<RecordBatch>, Problem> {
        let window = &self.places[self.next..end];
        if window.is_empty() {
            return Ok(None);
        }
        let mut rows: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
        for (_, _, file, row) in window {
            rows.entry(*file).or_default().insert(*row);
        }
        self.next = end;
        let mut batches = Vec::new();
        for (file, rows) in rows {
            let path = &self.files[file as usize];
            for batch in FileRows::open(&self.history.storage, path, &self.columns, Rows::Only(rows))? {
                batches.push(batch?);
            }
        }
        let batch = concat_batches(&self.columns.arrow, &batches).map_err(|error| damaged(&error))?;
        drop(batches);
        in_order(&batch).map(Some)
    }
}

/// Reads these columns of every file that may have changes of the range; with each batch come the file's number and the
/// places of its rows.
fn scan<E: From<Problem>>(
    history: &TableReader,
    range: Range,
    names: &[&str],
    mut each: impl FnMut(u32, &RecordBatch, Vec<u32>) -> Result<(), E>,
) -> Result<(), E> {
    let id =
        |name: &&str| history.schema.field_id_by_name(name).ok_or_else(|| damaged(&format!("it has no column {name}")));
    let ids: Vec<i32> = names.iter().map(id).collect::<Result<_, Problem>>()?;
    let columns = Projection::of(&history.schema, &ids)?;
    for (number, path) in (0u32..).zip(history.files()) {
        if !range.overlaps(history, path)? {
            continue;
        }
        let mut rows = history.read(path, &columns)?;
        while let Some(batch) = rows.next_batch() {
            let (batch, rows) = batch?;
            each(number, &batch, rows)?;
        }
    }
    Ok(())
}

/// By position and place in the transaction.
fn in_order(batch: &RecordBatch) -> Result<RecordBatch, Problem> {
    let rows = u32::try_from(batch.num_rows()).map_err(|_| damaged(&"one position has too many changes"))?;
    let moments: Vec<(u64, i32)> = positions(batch)?.zip(ordinals(batch)?).collect();
    let mut order: Vec<u32> = (0..rows).collect();
    order.sort_by_key(|row| moments[*row as usize]);
    take_record_batch(batch, &UInt32Array::from(order)).map_err(|error| damaged(&error))
}

fn positions(batch: &RecordBatch) -> Result<impl Iterator<Item = u64>, Problem> {
    let values = column(batch, POSITION)?.as_primitive::<Int64Type>().values().iter();
    Ok(values.map(|at| at.cast_unsigned()))
}

fn ordinals(batch: &RecordBatch) -> Result<impl Iterator<Item = i32>, Problem> {
    Ok(column(batch, ORDINAL)?.as_primitive::<Int32Type>().values().iter().copied())
}

/// What each change of a batch has done.
pub(crate) fn operations(batch: &RecordBatch) -> Result<impl Iterator<Item = Result<Operation, Problem>>, Problem> {
    let words = column(batch, OPERATION)?.as_string::<i32>().iter();
    Ok(words.map(|word| word.and_then(Operation::named).ok_or_else(|| damaged(&format!("an operation is {word:?}")))))
}

pub(crate) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, Problem> {
    batch.column_by_name(name).ok_or_else(|| damaged(&format!("it has no column {name}")))
}

pub(crate) fn damaged(error: &dyn std::fmt::Display) -> Problem {
    let message = format!("changes cannot be read back: {error}");
    Problem::halt_table("HISTORY_DAMAGED", "", message, "run fsck on the history, and resync the table")
}
