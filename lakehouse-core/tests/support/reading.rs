//! What stands in a table at a snapshot, read through the product's own reading room.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::{BEFORE, COMMITTED_AT, OPERATION, ORDINAL, POSITION, TRANSACTION};
use lakehouse_core::storage::Storage;

use super::script::{Cell, Row, Told, int, trimmed};

/// What was read of a file under some deletes, kept: files never change.
pub type Kept<T> = HashMap<(String, Vec<String>), Vec<T>>;

/// The rows of a mirror, sorted, and the most delete files that any of its data files has.
pub async fn rows(
    storage: &Storage,
    table: &LoadedTable,
    snapshot: i64,
    kept: &mut Kept<Row>,
) -> Result<(Vec<Row>, usize), Problem> {
    let reader = TableReader::at(storage, table, Some(snapshot)).await?;
    let mut rows = read(&reader, kept, |batch, row| trimmed(cells(batch.columns(), row)))?;
    rows.sort_unstable();
    let deletes = reader.live.data.values().map(|file| file.deletes.len()).max().unwrap_or(0);
    Ok((rows, deletes))
}

/// The changes that a history tells, in the order of its files, which is the order in which they were written.
pub async fn told(
    storage: &Storage,
    table: &LoadedTable,
    snapshot: i64,
    kept: &mut Kept<Told>,
) -> Result<Vec<Told>, Problem> {
    let reader = TableReader::at(storage, table, Some(snapshot)).await?;
    read(&reader, kept, tell)
}

fn tell(batch: &RecordBatch, row: usize) -> Told {
    let column = |name: &str| batch.column_by_name(name).expect("a history has its own columns");
    let named = [OPERATION, POSITION, ORDINAL, COMMITTED_AT, TRANSACTION, BEFORE];
    let schema = batch.schema();
    let own = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| !named.contains(&field.name().as_str()));
    let own: Vec<ArrayRef> = own.map(|(_, column)| column.clone()).collect();
    let number = |name: &str| match cell(column(name), row) {
        Some(Cell::Int(value)) => value,
        other => panic!("{name} is {other:?}"),
    };
    let Some(Cell::Text(operation)) = cell(column(OPERATION), row) else { panic!("an operation is a word") };
    let before = batch.column_by_name(BEFORE).filter(|before| before.is_valid(row));
    Told {
        position: number(POSITION).cast_unsigned(),
        ordinal: number(ORDINAL),
        operation,
        committed_at: number(COMMITTED_AT),
        transaction: number(TRANSACTION),
        row: trimmed(cells(&own, row)),
        before: before.map(|before| trimmed(cells(before.as_struct().columns(), row))),
    }
}

fn read<T: Clone>(
    reader: &TableReader,
    kept: &mut Kept<T>,
    each: impl Fn(&RecordBatch, usize) -> T,
) -> Result<Vec<T>, Problem> {
    let columns = Projection::all(&reader.schema)?;
    let mut all = Vec::new();
    for path in reader.files() {
        let key = (path.to_owned(), reader.live.data[path].deletes.clone());
        if !kept.contains_key(&key) {
            let mut rows = Vec::new();
            for batch in reader.read(path, &columns)? {
                let batch = batch?;
                rows.extend((0..batch.num_rows()).map(|row| each(&batch, row)));
            }
            kept.insert(key.clone(), rows);
        }
        all.extend(kept[&key].iter().cloned());
    }
    Ok(all)
}

/// The cells of one row of a mirror.
pub fn cells(columns: &[ArrayRef], row: usize) -> Row {
    columns.iter().map(|column| cell(column, row)).collect()
}

fn cell(column: &ArrayRef, row: usize) -> Option<Cell> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Int32 => int(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => int(column.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            int(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => Some(Cell::Text(column.as_string::<i32>().value(row).to_owned())),
        other => panic!("no scripted column has type {other}"),
    }
}
