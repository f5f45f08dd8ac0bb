//! The reading room: from a snapshot to record batches. File pruning aside, everything that reads rows reads here.
//!
//! Columns are found by field id, never by name; deleted positions become a row selection, so a deleted row is never
//! decoded; rows come in file order, so their positions are known without storing them.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{DataType, Field, SchemaRef as ArrowSchemaRef};
use iceberg::spec::{Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::file::metadata::RowGroupMetaData;
use roaring::RoaringBitmap;

use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::live::{LiveFile, LiveFiles, find_snapshot};
use crate::schema::arrow_schema;
use crate::storage::{ReadFailure, Storage, StoredFile};
use crate::write::{parquet_problem, read_delete_file};

/// Rows of a batch, and about its bytes: of wide rows it has fewer.
const BATCH_ROWS: usize = 8_192;
const BATCH_BYTES: u64 = 16 << 20;

/// A table at one snapshot.
pub struct TableReader {
    pub storage: Storage,
    pub schema: SchemaRef,
    pub live: LiveFiles,
}

/// Which rows of a file to read.
#[derive(Clone, Debug)]
pub enum Rows {
    /// All but these.
    Except(RoaringBitmap),
    /// Just these.
    Only(RoaringBitmap),
}

impl TableReader {
    /// The table as it was at `snapshot`, with the schema it had then; `None` is a table without commits.
    pub async fn at(storage: &Storage, table: &LoadedTable, snapshot: Option<i64>) -> Result<Self, Problem> {
        let schema = match snapshot {
            Some(id) => {
                let schema = find_snapshot(table, id)?.schema(&table.metadata);
                schema
                    .map_err(|error| Problem::halt("METADATA", table.name.to_string(), error.to_string(), "run fsck"))?
            }
            None => SchemaRef::clone(table.metadata.current_schema()),
        };
        Ok(Self { storage: storage.clone(), schema, live: LiveFiles::load_as_left(storage, table, snapshot).await? })
    }

    /// Paths of the live data files, sorted: the order of a scan.
    pub fn files(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = self.live.data.keys().map(String::as_str).collect();
        paths.sort_unstable();
        paths
    }

    /// The positions of a live file that are deleted.
    pub fn deleted(&self, path: &str) -> Result<RoaringBitmap, Problem> {
        deleted_rows(&self.storage, path, &self.live.data[path])
    }

    /// The live rows of one file, the columns of `columns`.
    pub fn read(&self, path: &str, columns: &Projection) -> Result<FileRows, Problem> {
        FileRows::open(&self.storage, path, columns, Rows::Except(self.deleted(path)?))
    }
}

/// The deleted positions of a data file, from all delete files that name it or its values.
pub fn deleted_rows(storage: &Storage, path: &str, file: &LiveFile) -> Result<RoaringBitmap, Problem> {
    let mut deleted = RoaringBitmap::new();
    for delete in &file.deletes {
        deleted |= read_delete_file(storage, delete, path)?;
    }
    if let Some(equality) = &file.equality {
        deleted |= equality.rows_of(storage, &[(path, file.sequence_number)])?.remove(path).unwrap_or_default();
    }
    Ok(deleted)
}

/// The columns to read, as fields with ids, in the order wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    pub arrow: ArrowSchemaRef,
    ids: Vec<i32>,
}

impl Projection {
    pub fn all(schema: &Schema) -> Result<Self, Problem> {
        let arrow = arrow_schema(schema)?;
        Ok(Self { arrow, ids: schema.as_struct().fields().iter().map(|field| field.id).collect() })
    }

    /// Some top-level columns, by field id.
    pub fn of(schema: &Schema, ids: &[i32]) -> Result<Self, Problem> {
        let all = Self::all(schema)?;
        let place = |id: &i32| all.ids.iter().position(|known| known == id);
        let places: Option<Vec<usize>> = ids.iter().map(place).collect();
        let unknown =
            || Problem::halt("COLUMN_UNKNOWN", format!("{ids:?}"), "no such column", "see the table's schema");
        let arrow = all.arrow.project(&places.ok_or_else(unknown)?).expect("places are within the schema");
        Ok(Self { arrow: Arc::new(arrow), ids: ids.to_vec() })
    }
}

/// An open data file; yields batches of the projection's schema.
pub struct FileRows {
    reader: ParquetRecordBatchReader,
    failure: ReadFailure,
    location: String,
    schema: ArrowSchemaRef,
    /// For each column wanted, its place in what the reader yields.
    places: Vec<Option<usize>>,
    positions: Positions,
}

impl FileRows {
    pub fn open(storage: &Storage, path: &str, columns: &Projection, rows: Rows) -> Result<Self, Problem> {
        let failed = |error: parquet::errors::ParquetError| parquet_problem(path, &error);
        let file = storage.open(path)?;
        let failure = file.failure();
        // Another engine's embedded Arrow schema would change types; what stands in Parquet decides.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(failed)?;
        let total = metadata.metadata().file_metadata().num_rows().max(0).unsigned_abs();

        let roots: Vec<Option<usize>> = columns.ids.iter().map(|&id| root_with_id(&metadata, id)).collect();
        let mut read: Vec<usize> = roots.iter().flatten().copied().collect();
        read.sort_unstable();
        let places = roots.iter().map(|root| root.map(|root| read.partition_point(|&other| other < root))).collect();
        let batch_rows = batch_rows(&metadata, &read);
        let mask = ProjectionMask::roots(metadata.parquet_schema(), read);
        let positions = Positions::new(rows, total);
        let mut builder = ParquetRecordBatchReaderBuilder::<StoredFile>::new_with_metadata(file, metadata)
            .with_projection(mask)
            .with_batch_size(batch_rows);
        if let Some(selection) = positions.selection(total) {
            builder = builder.with_row_selection(selection);
        }
        let reader = builder.build().map_err(failed)?;
        let schema = Arc::clone(&columns.arrow);
        Ok(Self { reader, failure, location: path.to_owned(), schema, places, positions })
    }

    /// None of the columns wanted came later than the file.
    pub(crate) fn has_all_columns(&self) -> bool {
        self.places.iter().all(Option::is_some)
    }

    /// The next rows with their positions in the file, ascending.
    pub fn next_batch(&mut self) -> Option<Result<(RecordBatch, Vec<u32>), Problem>> {
        let batch = self.reader.next()?;
        let unreadable = |error: &dyn std::fmt::Display| {
            Problem::halt(
                "PARQUET",
                &self.location,
                format!("rows cannot be decoded: {error}"),
                "run fsck on the table",
            )
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(Err(self.failure.take().unwrap_or_else(|| unreadable(&error)))),
        };
        let rows = batch.num_rows();
        let column = |(field, place): (&Arc<Field>, &Option<usize>)| match place {
            Some(place) => fit(batch.column(*place), field),
            None => Ok(new_null_array(field.data_type(), rows)),
        };
        let columns: Result<Vec<ArrayRef>, Problem> =
            self.schema.fields().iter().zip(&self.places).map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let built = columns.and_then(|columns| {
            RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(|e| unreadable(&e))
        });
        let positions = self.positions.take(rows);
        Some(built.map(|batch| (batch, positions)))
    }
}

impl Iterator for FileRows {
    type Item = Result<RecordBatch, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().map(|result| result.map(|(batch, _)| batch))
    }
}

fn root_with_id(metadata: &ArrowReaderMetadata, id: i32) -> Option<usize> {
    let fields = metadata.parquet_schema().root_schema().get_fields();
    fields.iter().position(|field| field.get_basic_info().has_id() && field.get_basic_info().id() == id)
}

/// How many rows of these top-level columns to decode at a time, by the widest row group. What a text repeats is stored once
/// and decoded as often as it stands there.
fn batch_rows(metadata: &ArrowReaderMetadata, roots: &[usize]) -> usize {
    let schema = metadata.parquet_schema();
    let width = |group: &RowGroupMetaData| {
        let columns = group.columns().iter().enumerate();
        let read = columns.filter(|(leaf, _)| roots.binary_search(&schema.get_column_root_idx(*leaf)).is_ok());
        let bytes = read.map(|(_, column)| {
            let texts = column.unencoded_byte_array_data_bytes().unwrap_or(0);
            column.uncompressed_size().max(texts).max(0).unsigned_abs()
        });
        bytes.sum::<u64>() / group.num_rows().max(1).unsigned_abs()
    };
    let widest = metadata.metadata().row_groups().iter().map(width).max().unwrap_or(0);
    usize::try_from(BATCH_BYTES / widest.max(1)).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS)
}

/// Positions of the selected rows, handed out in order.
enum Positions {
    From(u64),
    Except { deleted: RoaringBitmap, next: u32 },
    Only(std::vec::IntoIter<u32>, RoaringBitmap),
}

impl Positions {
    fn new(rows: Rows, total: u64) -> Self {
        match rows {
            Rows::Except(deleted) if deleted.is_empty() => Self::From(0),
            Rows::Except(deleted) => Self::Except { deleted, next: 0 },
            Rows::Only(mut rows) => {
                if let Ok(total) = u32::try_from(total) {
                    rows.remove_range(total..);
                }
                Self::Only(rows.iter().collect::<Vec<_>>().into_iter(), rows)
            }
        }
    }

    fn selection(&self, total: u64) -> Option<RowSelection> {
        let total = usize::try_from(total).expect("a file's rows are counted in memory");
        let ranges = |bitmap: &RoaringBitmap| {
            let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
            for position in bitmap.iter().map(|position| position as usize).filter(|&position| position < total) {
                match ranges.last_mut() {
                    Some(range) if range.end == position => range.end += 1,
                    _ => ranges.push(position..position + 1),
                }
            }
            ranges
        };
        match self {
            Self::From(_) => None,
            Self::Only(_, only) => Some(RowSelection::from_consecutive_ranges(ranges(only).into_iter(), total)),
            Self::Except { deleted, .. } => {
                let mut selectors = Vec::new();
                let mut next = 0;
                for gone in ranges(deleted) {
                    if gone.start > next {
                        selectors.push(RowSelector::select(gone.start - next));
                    }
                    selectors.push(RowSelector::skip(gone.len()));
                    next = gone.end;
                }
                if next < total {
                    selectors.push(RowSelector::select(total - next));
                }
                Some(RowSelection::from(selectors))
            }
        }
    }

    fn take(&mut self, rows: usize) -> Vec<u32> {
        match self {
            Self::From(next) => {
                let first = *next;
                *next += rows as u64;
                (first..*next).map(|position| u32::try_from(position).unwrap_or(u32::MAX)).collect()
            }
            Self::Except { deleted, next } => {
                let mut taken = Vec::with_capacity(rows);
                while taken.len() < rows {
                    if !deleted.contains(*next) {
                        taken.push(*next);
                    }
                    *next += 1;
                }
                taken
            }
            Self::Only(positions, _) => positions.by_ref().take(rows).collect(),
        }
    }
}

/// An array as another field of the same meaning wants it: widened, or with other names and ids inside.
pub fn fit(array: &ArrayRef, field: &Field) -> Result<ArrayRef, Problem> {
    if array.data_type() == field.data_type() {
        return Ok(Arc::clone(array));
    }
    if let Some(renamed) = rename(array, field.data_type()) {
        return Ok(renamed);
    }
    arrow_cast::cast(array, field.data_type()).map_err(|error| {
        let message = format!("column cannot be read as {}: {error}", field.data_type());
        Problem::halt("COLUMN_TYPE", field.name(), message, "run fsck on the table")
    })
}

/// The same buffers under a type that differs in names and metadata only.
fn rename(array: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    let children: Vec<&DataType> = match (array.data_type(), to) {
        (DataType::List(_), DataType::List(element)) => vec![element.data_type()],
        (DataType::Map(_, _), DataType::Map(entries, _)) => vec![entries.data_type()],
        (DataType::Struct(from), DataType::Struct(fields)) if from.len() == fields.len() => {
            fields.iter().map(|field| field.data_type()).collect()
        }
        (DataType::Timestamp(unit, Some(_)), DataType::Timestamp(other, Some(_))) if unit == other => vec![],
        _ => return None,
    };
    let data = array.to_data();
    let renamed: Option<Vec<_>> = data
        .child_data()
        .iter()
        .zip(&children)
        .map(|(child, to)| {
            let child = arrow_array::make_array(child.clone());
            if child.data_type() == *to {
                Some(child.to_data())
            } else {
                rename(&child, to).map(|child| child.to_data())
            }
        })
        .collect();
    let built = data.into_builder().data_type(to.clone()).child_data(renamed?).build();
    built.ok().map(arrow_array::make_array)
}
