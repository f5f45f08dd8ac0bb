//! Changes of one table as they come off the wire, column by column, until they become a chunk.
//!
//! Also fills `_cdc_overflow`: the exact text of values that their mapped type cannot hold (requirements section 4). The
//! column joins the schema with the first chunk that needs it.

use std::sync::Arc;

use arrow_array::builder::BooleanBuilder;
use arrow_array::{ArrayRef, BooleanArray};
use lakehouse_core::change::{BeforeImages, ChangeChunk, Operation, Origin, UnchangedColumn};
use lakehouse_core::overflow::{Text, overflow_of};
use lakehouse_core::position::Position;
use lakehouse_core::schema::{Key, TableSchema};

use crate::pgoutput::{self, OldTuple, Tuple};
use crate::values::{Appended, ColumnBuilder, ColumnType, ValueError};

/// Why a row cannot be taken: its table halts, the others go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("column {column:?}: {source}")]
    Value { column: String, source: ValueError },
    #[error("column {0:?} is part of the key and holds a value that its type in the lake cannot hold")]
    KeyOverflow(String),
    #[error("the row does not have the columns that were announced")]
    Columns,
}

/// Collects rows of one schema version.
pub(crate) struct ChunkBuilder {
    pub(crate) schema: Arc<TableSchema>,
    columns: Vec<ColumnBuilder>,
    /// Place of each column of the wire in the schema; `None` is not captured.
    places: Vec<Option<usize>>,
    /// Columns of the schema that do not come over the wire.
    absent: Vec<usize>,
    key: Vec<usize>,
    operations: Vec<Operation>,
    origins: Vec<Origin>,
    before: Before,
    /// Rows whose value was left out, per column.
    unchanged: Vec<(usize, Vec<usize>)>,
    overflow: Overflow,
    bytes: usize,
}

/// Old images, built only when one comes.
struct Before {
    types: Vec<ColumnType>,
    columns: Vec<ColumnBuilder>,
    known: BooleanBuilder,
    /// Rows are told apart by all their values, so also by those that do not fit.
    whole_row: bool,
    overflow: Overflow,
}

impl ChunkBuilder {
    /// `types` are those of the schema's columns without `_cdc_overflow`.
    pub(crate) fn new(schema: Arc<TableSchema>, types: &[ColumnType], places: Vec<Option<usize>>) -> Self {
        let columns: Vec<ColumnBuilder> =
            types.iter().map(|column_type| ColumnBuilder::new(column_type, 1024)).collect();
        let absent = (0..columns.len()).filter(|column| !places.contains(&Some(*column))).collect();
        let key = match &schema.key {
            Key::Columns(key) => key.clone(),
            Key::WholeRow | Key::None => Vec::new(),
        };
        let before = Before {
            types: schema.before_columns.iter().filter_map(|&column| types.get(column).cloned()).collect(),
            columns: Vec::new(),
            known: BooleanBuilder::new(),
            whole_row: schema.key == Key::WholeRow,
            overflow: Overflow::default(),
        };
        Self {
            schema,
            columns,
            places,
            absent,
            key,
            operations: Vec::new(),
            origins: Vec::new(),
            before,
            unchanged: Vec::new(),
            overflow: Overflow::default(),
            bytes: 0,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.operations.len()
    }

    /// Bytes taken off the wire since the last chunk.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn insert(&mut self, origin: Origin, new: &Tuple<'_>) -> Result<(), RowError> {
        self.append(new, None)?;
        self.note(Operation::Insert, origin, new.byte_len());
        self.before.append_none();
        Ok(())
    }

    pub(crate) fn update(
        &mut self,
        origin: Origin,
        old: Option<&OldTuple<'_>>,
        new: &Tuple<'_>,
    ) -> Result<(), RowError> {
        let whole = match old {
            Some(OldTuple::Full(tuple)) => Some(tuple),
            Some(OldTuple::Key(_)) | None => None,
        };
        self.append(new, whole)?;
        match old {
            Some(old) => self.before.append(&self.schema, &self.places, &old.tuple(), self.operations.len())?,
            None => self.before.append_none(),
        }
        self.note(Operation::Update, origin, new.byte_len());
        Ok(())
    }

    pub(crate) fn delete(&mut self, origin: Origin, old: &OldTuple<'_>) -> Result<(), RowError> {
        let tuple = old.tuple();
        self.append(&tuple, None)?;
        self.note(Operation::Delete, origin, tuple.byte_len());
        self.before.append_none();
        Ok(())
    }

    pub(crate) fn truncate(&mut self, origin: Origin) {
        self.columns.iter_mut().for_each(ColumnBuilder::append_null);
        self.note(Operation::Truncate, origin, 0);
        self.before.append_none();
    }

    fn note(&mut self, operation: Operation, origin: Origin, bytes: usize) {
        self.operations.push(operation);
        self.origins.push(origin);
        self.bytes += bytes;
    }

    /// Appends one row to all columns. After an error the builder is not used again.
    fn append(&mut self, tuple: &Tuple<'_>, old: Option<&Tuple<'_>>) -> Result<(), RowError> {
        if tuple.len() != self.places.len() {
            return Err(RowError::Columns);
        }
        let row = self.operations.len();
        let Self { columns, places, absent, key, schema, unchanged, overflow, .. } = self;
        let name = |column: usize| schema.columns[column].source_name.clone();
        for (number, (field, place)) in tuple.fields().zip(places.iter()).enumerate() {
            let Some(column) = *place else { continue };
            let field = match field {
                pgoutput::Field::Unchanged => old.and_then(|old| old.fields().nth(number)).unwrap_or(field),
                sent => sent,
            };
            let builder = &mut columns[column];
            let value = match field {
                pgoutput::Field::Text(value) => builder.append_text(value),
                pgoutput::Field::Binary(value) => builder.append_binary(value),
                pgoutput::Field::Null => {
                    builder.append_null();
                    continue;
                }
                pgoutput::Field::Unchanged => {
                    builder.append_null();
                    leave_out(unchanged, column, row);
                    continue;
                }
            };
            match value {
                Ok(Appended::Stored) => {}
                Ok(Appended::Overflow(_)) if key.contains(&column) => return Err(RowError::KeyOverflow(name(column))),
                Ok(Appended::Overflow(text)) => overflow.add(row, schema.columns[column].name.clone(), text),
                Err(source) => {
                    return Err(RowError::Value { column: name(column), source });
                }
            }
        }
        absent.iter().for_each(|&column| columns[column].append_null());
        Ok(())
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.operations.is_empty()
    }

    /// Takes everything collected so far out as a chunk.
    pub(crate) fn finish(&mut self) -> ChangeChunk {
        let rows = self.rows();
        let mut columns: Vec<ArrayRef> = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        let wanted = self.schema.has_overflow() || !self.before.overflow.0.is_empty();
        if let Some(overflow) = self.overflow.finish(rows, wanted) {
            self.schema = self.schema.with_overflow();
            columns.push(overflow);
        }
        let unchanged = std::mem::take(&mut self.unchanged).into_iter().map(|(column, left_out)| {
            let mut marks = vec![false; rows];
            left_out.into_iter().for_each(|row| marks[row] = true);
            UnchangedColumn { column, rows: BooleanArray::from(marks) }
        });
        self.bytes = 0;
        ChangeChunk {
            lanes: None,
            quarantined: Vec::new(),
            schema: Arc::clone(&self.schema),
            operations: std::mem::take(&mut self.operations),
            origins: std::mem::take(&mut self.origins),
            rows: columns,
            before: self.before.finish(rows, self.schema.has_overflow()),
            unchanged: unchanged.collect(),
        }
    }
}

/// Notes a value that the source did not send.
fn leave_out(unchanged: &mut Vec<(usize, Vec<usize>)>, column: usize, row: usize) {
    match unchanged.iter_mut().find(|(known, _)| *known == column) {
        Some((_, rows)) => rows.push(row),
        None => unchanged.push((column, vec![row])),
    }
}

impl Before {
    fn append_none(&mut self) {
        if !self.columns.is_empty() {
            self.columns.iter_mut().for_each(ColumnBuilder::append_null);
        }
        self.known.append_value(false);
    }

    fn append(
        &mut self,
        schema: &TableSchema,
        places: &[Option<usize>],
        tuple: &Tuple<'_>,
        row: usize,
    ) -> Result<(), RowError> {
        if self.types.is_empty() {
            self.known.append_value(false);
            return Ok(());
        }
        if self.columns.is_empty() {
            self.columns = self.types.iter().map(|column_type| ColumnBuilder::new(column_type, row + 1)).collect();
            for builder in &mut self.columns {
                (0..row).for_each(|_| builder.append_null());
            }
        }
        for (field, place) in tuple.fields().zip(places) {
            let Some(before) = place.and_then(|place| schema.before_columns.iter().position(|&c| c == place)) else {
                continue;
            };
            let builder = &mut self.columns[before];
            let value = match field {
                pgoutput::Field::Text(value) => builder.append_text(value),
                pgoutput::Field::Binary(value) => builder.append_binary(value),
                pgoutput::Field::Null | pgoutput::Field::Unchanged => {
                    builder.append_null();
                    continue;
                }
            };
            let column = &schema.columns[schema.before_columns[before]];
            let value = value.map_err(|source| RowError::Value { column: column.source_name.clone(), source })?;
            // Elsewhere an old value that does not fit was reported when it was new.
            if let (Appended::Overflow(text), true) = (value, self.whole_row) {
                self.overflow.add(row, column.name.clone(), text);
            }
        }
        self.known.append_value(true);
        Ok(())
    }

    fn finish(&mut self, rows: usize, overflow: bool) -> Option<BeforeImages> {
        let known = self.known.finish();
        if self.columns.is_empty() {
            return None;
        }
        let columns = std::mem::take(&mut self.columns).into_iter().map(|mut builder| builder.finish());
        let mut columns: Vec<ArrayRef> = columns.collect();
        if overflow && self.whole_row {
            columns.extend(self.overflow.finish(rows, true));
        }
        Some(BeforeImages { known, columns })
    }
}

/// Values that did not fit, of the rows collected so far.
#[derive(Default)]
pub(crate) struct Overflow(Vec<Text>);

impl Overflow {
    pub(crate) fn add(&mut self, row: usize, column: String, text: String) {
        self.0.push(Text { row, column, text });
    }

    /// One map per row; `None` if no row needs one and the table has no such column yet.
    pub(crate) fn finish(&mut self, rows: usize, wanted: bool) -> Option<ArrayRef> {
        let texts = std::mem::take(&mut self.0);
        (wanted || !texts.is_empty()).then(|| overflow_of(rows, texts))
    }
}

/// A change's own place among the boundaries: inside its commit record, so behind every earlier boundary and not behind
/// the one at its end. `record` is where the commit record begins.
pub(crate) fn commit_position(record: u64) -> Position {
    Position::new(record.saturating_add(1))
}
