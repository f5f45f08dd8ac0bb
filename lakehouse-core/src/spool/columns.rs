//! Chunks of changes as bytes: what their columns are, as JSON, then one stream of Arrow's format.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt8Type, UInt64Type};
use arrow_array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, UInt8Array, UInt64Array};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::change::{BeforeImages, ChangeChunk, LaneOrigins, Operation, Origin, Quarantined, UnchangedColumn};
use crate::position::Position;
use crate::schema::TableSchema;

/// Columns before those of the rows: operation, commit, time, transaction, ordinal.
const FIXED: usize = 5;
/// Columns of a chunk's lanes: lane, offset, actor.
const LANES: usize = 3;
/// Columns of rows for the quarantine, behind all others: operation, key, image, old image, column, code, reason.
const QUARANTINED: usize = 7;

/// What the columns are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    /// By its name at the source.
    pub(super) table: String,
    /// Which columns it had: see [`shape_of`].
    pub(super) columns: String,
    has_lanes: bool,
    before: Option<usize>,
    unchanged: Vec<usize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
}

/// Columns with their types, digested: what is read back must fit the schema that it is read for.
pub(super) fn shape_of(schema: &TableSchema) -> String {
    let mut hash = Sha256::new();
    for column in &schema.columns {
        hash.update(format!("{:?} {:?}\n", column.name, column.data_type));
    }
    hash.update(format!("{:?}", schema.before_columns));
    // Rows for a quarantine need one.
    if schema.quarantine.is_some() {
        hash.update("quarantine");
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn to_bytes(chunk: &ChangeChunk) -> Result<Vec<u8>, ArrowError> {
    let shape = Shape {
        table: chunk.schema.source.clone(),
        columns: shape_of(&chunk.schema),
        has_lanes: chunk.lanes.is_some(),
        before: chunk.before.as_ref().map(|before| before.columns.len()),
        unchanged: chunk.unchanged.iter().map(|unchanged| unchanged.column).collect(),
        quarantined: !chunk.quarantined.is_empty(),
    };
    let mut bytes = serde_json::to_vec(&shape).expect("a shape is plain data");
    // JSON of one line ends at its line's end.
    bytes.push(b'\n');
    let batch = columns_of(chunk)?;
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema())?;
    writer.write(&batch)?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

/// What the bytes hold, and where the columns begin in them.
pub(super) fn shape(bytes: &[u8]) -> Result<(Shape, &[u8]), ArrowError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(lost)?;
    let (shape, columns) = bytes.split_at(end);
    Ok((serde_json::from_slice(shape).map_err(|_| lost())?, &columns[1..]))
}

fn lost() -> ArrowError {
    ArrowError::IpcError("a chunk has other columns than were written".to_owned())
}

impl Shape {
    pub(super) fn chunk(self, columns: &[u8], schema: Arc<TableSchema>) -> Result<ChangeChunk, ArrowError> {
        let mut reader = StreamReader::try_new(columns, None)?;
        let batch = reader.next().ok_or_else(lost)??;
        let mut columns = batch.columns().iter();
        let mut next = || columns.next().ok_or_else(lost);
        let operations = next()?.as_primitive_opt::<UInt8Type>().ok_or_else(lost)?;
        let operations = operations.values().iter().map(|&number| operation(number).ok_or_else(lost));
        let commits = next()?.as_primitive_opt::<UInt64Type>().ok_or_else(lost)?;
        let times = next()?.as_primitive_opt::<Int64Type>().ok_or_else(lost)?;
        let transactions = next()?.as_primitive_opt::<Int64Type>().ok_or_else(lost)?;
        let ordinals = next()?.as_primitive_opt::<Int32Type>().ok_or_else(lost)?;
        let origin = |row: usize| Origin {
            commit: Position::new(commits.value(row)),
            committed_at: times.value(row),
            transaction: transactions.value(row),
            ordinal: ordinals.value(row),
        };
        let lanes = match self.has_lanes {
            false => None,
            true => {
                let text = |column: &ArrayRef| column.as_string_opt::<i32>().cloned().ok_or_else(lost);
                let (lanes, offsets, actors) = (text(next()?)?, text(next()?)?, text(next()?)?);
                Some(Box::new(lane_origins(&lanes, &offsets, &actors).ok_or_else(lost)?))
            }
        };
        let rows = (0..schema.columns.len()).map(|_| next().cloned()).collect::<Result<_, _>>()?;
        let before = match self.before {
            None => None,
            Some(count) => {
                let known = next()?.as_boolean_opt().cloned().ok_or_else(lost)?;
                let columns = (0..count).map(|_| next().cloned()).collect::<Result<_, _>>()?;
                Some(BeforeImages { known, columns })
            }
        };
        let unchanged = self.unchanged.into_iter().map(|column| {
            let rows = next()?.as_boolean_opt().cloned().ok_or_else(lost)?;
            Ok(UnchangedColumn { column, rows })
        });
        let unchanged = unchanged.collect::<Result<_, ArrowError>>()?;
        let quarantined = match self.quarantined {
            false => Vec::new(),
            true => {
                let operations = next()?.as_primitive_opt::<UInt8Type>().ok_or_else(lost)?.clone();
                let texts = (0..QUARANTINED - 1).map(|_| next()?.as_string_opt::<i32>().cloned().ok_or_else(lost));
                let texts = texts.collect::<Result<Vec<StringArray>, ArrowError>>()?;
                let row = |row: usize| quarantined_row(&operations, &texts, row).ok_or_else(lost);
                (0..batch.num_rows()).map(row).collect::<Result<_, _>>()?
            }
        };
        Ok(ChangeChunk {
            operations: operations.collect::<Result<_, _>>()?,
            origins: (0..batch.num_rows()).map(origin).collect(),
            lanes,
            rows,
            before,
            unchanged,
            quarantined,
            schema,
        })
    }
}

fn columns_of(chunk: &ChangeChunk) -> Result<RecordBatch, ArrowError> {
    let origins = &chunk.origins;
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(FIXED + LANES + chunk.rows.len());
    columns.push(Arc::new(UInt8Array::from_iter_values(chunk.operations.iter().map(|&operation| operation as u8))));
    columns.push(Arc::new(UInt64Array::from_iter_values(origins.iter().map(|origin| origin.commit.offset()))));
    columns.push(Arc::new(Int64Array::from_iter_values(origins.iter().map(|origin| origin.committed_at))));
    columns.push(Arc::new(Int64Array::from_iter_values(origins.iter().map(|origin| origin.transaction))));
    columns.push(Arc::new(Int32Array::from_iter_values(origins.iter().map(|origin| origin.ordinal))));
    if let Some(lanes) = &chunk.lanes {
        columns.push(Arc::new(StringArray::from_iter_values(lanes.lanes.iter().map(|lane| &**lane))));
        let offsets = lanes.offsets.iter().map(ToString::to_string);
        columns.push(Arc::new(StringArray::from_iter_values(offsets)));
        columns.push(Arc::new(lanes.actors.iter().map(|actor| actor.as_deref()).collect::<StringArray>()));
    }
    columns.extend(chunk.rows.iter().cloned());
    if let Some(before) = &chunk.before {
        columns.push(Arc::new(before.known.clone()));
        columns.extend(before.columns.iter().cloned());
    }
    columns.extend(chunk.unchanged.iter().map(|unchanged| Arc::new(unchanged.rows.clone()) as ArrayRef));
    if !chunk.quarantined.is_empty() {
        let rows = || chunk.quarantined.iter().map(Option::as_deref);
        let text = |of: fn(&Quarantined) -> Option<&str>| {
            Arc::new(rows().map(|row| row.and_then(of)).collect::<StringArray>()) as ArrayRef
        };
        let operation = |row: Option<&Quarantined>| row.and_then(|row| row.operation).map(|operation| operation as u8);
        columns.push(Arc::new(rows().map(operation).collect::<UInt8Array>()));
        columns.push(text(|row| Some(&row.key)));
        columns.push(text(|row| Some(&row.image)));
        columns.push(text(|row| row.old_image.as_deref()));
        columns.push(text(|row| Some(&row.column)));
        columns.push(text(|row| Some(&row.code)));
        columns.push(text(|row| Some(&row.reason)));
    }
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().enumerate().map(|(number, column)| (number.to_string(), column, true)),
    )
}

fn lane_origins(lanes: &StringArray, offsets: &StringArray, actors: &StringArray) -> Option<LaneOrigins> {
    let mut last: Option<Arc<str>> = None;
    let mut lane = |name: &str| match &last {
        Some(known) if **known == *name => Arc::clone(known),
        _ => Arc::clone(last.insert(Arc::from(name))),
    };
    Some(LaneOrigins {
        lanes: (0..lanes.len()).map(|row| lane(lanes.value(row))).collect(),
        offsets: (0..offsets.len()).map(|row| offsets.value(row).parse().ok()).collect::<Option<_>>()?,
        actors: actors.iter().map(|actor| actor.map(Arc::from)).collect(),
    })
}

/// The row of one change, if it has one; the outer `None` where the columns are not what was written.
#[expect(clippy::option_option, reason = "a change without such a row is no damage")]
fn quarantined_row(operations: &UInt8Array, texts: &[StringArray], row: usize) -> Option<Option<Arc<Quarantined>>> {
    let text = |column: usize| {
        let column = texts.get(column)?;
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let Some(key) = text(0) else { return Some(None) };
    let operation = match operations.is_valid(row) {
        true => Some(operation(operations.value(row))?),
        false => None,
    };
    let (image, old_image, column, code, reason) = (text(1)?, text(2), text(3)?, text(4)?, text(5)?);
    Some(Some(Arc::new(Quarantined { operation, key, image, old_image, column, code, reason })))
}

fn operation(number: u8) -> Option<Operation> {
    [
        Operation::Insert,
        Operation::Update,
        Operation::Delete,
        Operation::Expire,
        Operation::Truncate,
        Operation::Quarantine,
    ]
    .into_iter()
    .find(|operation| *operation as u8 == number)
}
