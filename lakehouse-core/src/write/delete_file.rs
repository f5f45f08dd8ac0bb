//! One position-delete file: the rows of one data file that are gone.
//!
//! Obeys `files.md`: one delete file per data file, sorted (W1), the path as the manifest has it (W2), partition and spec
//! of its data file (W3), exact bounds on both columns (W4). Sets `referenced_data_file` (protocol F8).

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::sync::{Arc, LazyLock};

use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, Struct};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use roaring::RoaringBitmap;

use super::data_file::{NewFile, parquet_problem, properties};
use crate::error::Problem;
use crate::storage::{Storage, same_file};

/// Field ids that the Iceberg spec reserves for position deletes.
const FILE_PATH_ID: i32 = 2_147_483_546;
const POS_ID: i32 = 2_147_483_545;
/// Rows that are written at once. Each carries the path: those of a whole data file would outgrow the memory, and at last
/// what a column of strings can hold.
const PART: usize = 8_192;

/// The data file that a delete file speaks of.
#[derive(Clone, Debug)]
pub struct DeletedFrom<'a> {
    pub path: &'a str,
    pub partition: &'a Struct,
    pub spec_id: i32,
}

/// Writes the deleted positions of one data file. `positions` is not empty.
pub fn write_delete_file(
    storage: &Storage,
    location: &str,
    data: &DeletedFrom<'_>,
    positions: &RoaringBitmap,
) -> Result<NewFile, Problem> {
    let failed = |error: parquet::errors::ParquetError| parquet_problem(location, &error);
    let rows = usize::try_from(positions.len()).expect("row numbers have 32 bits");
    let sink: BufWriter<File> = BufWriter::new(storage.create(location)?);
    let options = ArrowWriterOptions::new().with_properties(properties()).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(sink, Arc::clone(&SCHEMA), options).map_err(failed)?;
    let mut rest = positions.iter().map(i64::from);
    for part in (0..rows).step_by(PART).map(|first| PART.min(rows - first)) {
        let paths: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(data.path, part)));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(rest.by_ref().take(part)));
        let batch =
            RecordBatch::try_new(Arc::clone(&SCHEMA), vec![paths, numbers]).expect("columns fit the schema below");
        writer.write(&batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;

    let (first, last) = positions.min().zip(positions.max()).expect("a delete file names at least one row");
    let both = |pos: u32| HashMap::from([(FILE_PATH_ID, Datum::string(data.path)), (POS_ID, Datum::long(pos))]);
    let counts = HashMap::from([(FILE_PATH_ID, rows as u64), (POS_ID, rows as u64)]);
    let file = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(data.partition.clone())
        .partition_spec_id(data.spec_id)
        .record_count(positions.len())
        .file_size_in_bytes(writer.bytes_written() as u64)
        .value_counts(counts)
        .null_value_counts(HashMap::from([(FILE_PATH_ID, 0), (POS_ID, 0)]))
        .lower_bounds(both(first))
        .upper_bounds(both(last))
        .referenced_data_file(Some(data.path.to_owned()))
        .build()
        .expect("every required field of a delete file is set above");
    Ok(NewFile { file, spec_id: data.spec_id })
}

/// The positions that a delete file takes from `data_path`. Other engines' files may name other data files too.
pub fn read_delete_file(storage: &Storage, location: &str, data_path: &str) -> Result<RoaringBitmap, Problem> {
    let failed = |error: parquet::errors::ParquetError| parquet_problem(location, &error);
    let file = storage.open(location)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(failed)?.build().map_err(failed)?;
    let mut positions = RoaringBitmap::new();
    for batch in reader {
        let batch = batch.map_err(|error| damaged(location, &error.to_string()))?;
        let paths = column::<StringArray>(&batch, "file_path", location)?;
        let numbers = column::<Int64Array>(&batch, "pos", location)?;
        let mut known: Option<(&str, bool)> = None;
        for row in 0..batch.num_rows() {
            let path = paths.value(row);
            let ours = match known {
                Some((last, ours)) if last == path => ours,
                _ => same_file(path, data_path),
            };
            known = Some((path, ours));
            if ours {
                let number =
                    u32::try_from(numbers.value(row)).map_err(|_| damaged(location, "position out of range"))?;
                positions.insert(number);
            }
        }
    }
    Ok(positions)
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str, location: &str) -> Result<&'a T, Problem> {
    let found = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<T>());
    found.ok_or_else(|| damaged(location, &format!("no usable column {name}")))
}

fn damaged(location: &str, why: &str) -> Problem {
    Problem::halt(
        "DELETE_FILE_DAMAGED",
        location,
        format!("not a position-delete file: {why}"),
        "run fsck on the table",
    )
}

static SCHEMA: LazyLock<ArrowSchemaRef> = LazyLock::new(|| {
    let field = |name: &str, data_type, id: i32| {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, data_type, false).with_metadata(metadata)
    };
    Arc::new(ArrowSchema::new(vec![
        field("file_path", DataType::Utf8, FILE_PATH_ID),
        field("pos", DataType::Int64, POS_ID),
    ]))
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::location_of;

    #[test]
    fn a_delete_file_tells_again_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let location = location_of(&folder.path().join("d.parquet"));
        let positions: RoaringBitmap = [0, 7, 8, 1_000_000].into_iter().collect();
        let data = DeletedFrom { path: "file:///w/data.parquet", partition: &Struct::empty(), spec_id: 0 };
        let written = write_delete_file(&Storage::local(), &location, &data, &positions).unwrap();
        assert_eq!(written.file.record_count(), 4);
        let length = Storage::local().length(&location).unwrap();
        assert_eq!(length, Some(written.file.file_size_in_bytes()));
        let read = |path: &str| read_delete_file(&Storage::local(), &location, path).unwrap();
        assert_eq!(read("file:///w/data.parquet"), positions);
        assert_eq!(read("file:/w/data.parquet"), positions);
        assert!(read("file:///w/other.parquet").is_empty());
    }

    #[test]
    fn paths_of_all_rows_together_may_exceed_two_gigabytes() {
        let folder = tempfile::tempdir().unwrap();
        let location = location_of(&folder.path().join("d.parquet"));
        let path = format!("file:///w/{}.parquet", "d".repeat(4_000));
        let rows = u32::try_from((1 << 31) / path.len() + 1).unwrap();
        let positions: RoaringBitmap = (0..rows).collect();
        let data = DeletedFrom { path: &path, partition: &Struct::empty(), spec_id: 0 };
        let written = write_delete_file(&Storage::local(), &location, &data, &positions).unwrap();
        assert_eq!(written.file.record_count(), u64::from(rows));
        assert_eq!(read_delete_file(&Storage::local(), &location, &path).unwrap(), positions);
    }
}
