//! One Parquet data file: rows in, an Iceberg `DataFile` with true statistics out.
//!
//! Obeys `files.md`: field ids in every column (W5), exact counts and sizes (W6), decimals as fixed-length bytes (W10),
//! zstd (W11); row groups and a page index small enough to prune by.

use std::fs::File;
use std::io::BufWriter;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef as ArrowSchemaRef;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, SchemaRef, Struct};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, LogicalType, Type as PhysicalType, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterPropertiesPtr};
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor, Type as ParquetType, TypePtr};

use super::statistics::Statistics;
use crate::error::Problem;
use crate::schema::arrow_schema;
use crate::storage::{Storage, inner_problem};

/// Rows of a row group: a reader skips or reads this many at a time, and the writer holds them encoded.
const ROW_GROUP_ROWS: usize = 131_072;
/// Rows of a page: the grain of the page index.
const PAGE_ROWS: usize = 20_000;
/// A column whose distinct values take more than this is written plain from there on: a dictionary of nearly every value
/// costs its hashing and helps no reader.
const DICTIONARY_BYTES: usize = 64 << 10;
/// Longest value kept whole in Parquet's own statistics; longer ones are cut and rounded up there (files W4).
const STATISTICS_BYTES: usize = 64;

/// How rows of one schema version stand in a file. Made once per version, shared by all its files.
#[derive(Clone, Debug)]
pub struct FileSchema {
    pub iceberg: SchemaRef,
    pub arrow: ArrowSchemaRef,
    parquet: SchemaDescriptor,
    properties: WriterPropertiesPtr,
}

impl FileSchema {
    pub fn new(iceberg: SchemaRef) -> Result<Self, Problem> {
        let arrow = arrow_schema(&iceberg)?;
        let converted = ArrowSchemaConverter::new().schema_root("table").convert(&arrow);
        let converted = converted.map_err(|error| parquet_problem("schema", &error))?;
        let root = with_fixed_length_decimals(converted.root_schema());
        let root = root.map_err(|error| parquet_problem("schema", &error))?;
        let parquet = SchemaDescriptor::new(root);
        let properties = Arc::new(with_dictionaries_for_bytes(properties(), &parquet));
        Ok(Self { iceberg, arrow, parquet, properties })
    }
}

/// An open data file. Rows keep the order in which they are written: row `n` has position `n`.
pub struct DataFileWriter {
    writer: ArrowWriter<BufWriter<File>>,
    schema: FileSchema,
    location: String,
    partition: Struct,
    spec_id: i32,
    rows: u64,
}

/// A file that a commit is to add, with the partition spec it was written by (`DataFile` hides it).
#[derive(Clone, Debug)]
pub struct NewFile {
    pub file: DataFile,
    pub spec_id: i32,
}

impl DataFileWriter {
    pub fn create(
        storage: &Storage,
        location: &str,
        schema: &FileSchema,
        partition: Struct,
        spec_id: i32,
    ) -> Result<Self, Problem> {
        let sink = BufWriter::with_capacity(1 << 20, storage.create(location)?);
        let options = ArrowWriterOptions::new()
            .with_properties(WriterProperties::clone(&schema.properties))
            .with_skip_arrow_metadata(true)
            .with_parquet_schema(schema.parquet.clone());
        let writer = ArrowWriter::try_new_with_options(sink, Arc::clone(&schema.arrow), options);
        let writer = writer.map_err(|error| parquet_problem(location, &error))?;
        Ok(Self { writer, schema: schema.clone(), location: location.to_owned(), partition, spec_id, rows: 0 })
    }

    /// Rows written so far: the position of the next row.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes written and still held, as an estimate of the file's size.
    pub fn estimated_bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Appends rows whose columns are those of the file's Arrow schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Problem> {
        self.writer.write(batch).map_err(|error| parquet_problem(&self.location, &error))?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    pub fn finish(mut self) -> Result<NewFile, Problem> {
        let metadata = self.writer.finish().map_err(|error| parquet_problem(&self.location, &error))?;
        let size = self.writer.bytes_written() as u64;
        let statistics = Statistics::of(&metadata, &self.schema.iceberg);
        let file = DataFileBuilder::default()
            .content(DataContentType::Data)
            .file_path(self.location.clone())
            .file_format(DataFileFormat::Parquet)
            .partition(self.partition)
            .partition_spec_id(self.spec_id)
            .record_count(self.rows)
            .file_size_in_bytes(size)
            .column_sizes(statistics.column_sizes)
            .value_counts(statistics.value_counts)
            .null_value_counts(statistics.null_value_counts)
            .lower_bounds(statistics.lower_bounds)
            .upper_bounds(statistics.upper_bounds)
            .split_offsets(Some(statistics.split_offsets))
            .build()
            .expect("every required field of a data file is set above");
        Ok(NewFile { file, spec_id: self.spec_id })
    }
}

/// What all data files and delete files are written with.
pub(super) fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("zstd has a level 1")))
        .set_created_by("lakehouse".into())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_statistics_truncate_length(Some(STATISTICS_BYTES))
        .set_column_index_truncate_length(Some(STATISTICS_BYTES))
        .build()
}

/// Dictionaries for strings and bytes only: numbers, times and identifiers in a change stream hardly repeat, and where
/// they do, zstd finds it for less than it costs to look each of them up.
fn with_dictionaries_for_bytes(properties: WriterProperties, schema: &SchemaDescriptor) -> WriterProperties {
    let numbers = schema.columns().iter().filter(|column| column.physical_type() != PhysicalType::BYTE_ARRAY);
    let plain = |builder: WriterPropertiesBuilder, column: &ColumnDescPtr| {
        builder.set_column_dictionary_enabled(column.path().clone(), false)
    };
    numbers.fold(properties.into_builder(), plain).build()
}

/// Decimals as fixed-length bytes at any precision: a column that is widened later stays readable (files W10).
fn with_fixed_length_decimals(root: &ParquetType) -> parquet::errors::Result<TypePtr> {
    let info = root.get_basic_info();
    if let ParquetType::PrimitiveType { scale, precision, .. } = root {
        let Some(logical @ LogicalType::Decimal { .. }) = info.logical_type_ref().cloned() else {
            return Ok(Arc::new(root.clone()));
        };
        let digits = u8::try_from(*precision).unwrap_or(38);
        let length = iceberg::spec::Type::decimal_required_bytes(digits.into()).unwrap_or(16);
        let built = ParquetType::primitive_type_builder(info.name(), PhysicalType::FIXED_LEN_BYTE_ARRAY)
            .with_repetition(info.repetition())
            .with_id(info.has_id().then(|| info.id()))
            .with_logical_type(Some(logical))
            .with_precision(*precision)
            .with_scale(*scale)
            .with_length(length.cast_signed())
            .build()?;
        return Ok(Arc::new(built));
    }
    let fields = root.get_fields().iter().map(|field| with_fixed_length_decimals(field));
    let mut group = ParquetType::group_type_builder(info.name())
        .with_fields(fields.collect::<parquet::errors::Result<_>>()?)
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned())
        .with_id(info.has_id().then(|| info.id()));
    if info.has_repetition() {
        group = group.with_repetition(info.repetition());
    }
    Ok(Arc::new(group.build()?))
}

/// A failed Parquet operation; an I/O error inside it decides.
pub(crate) fn parquet_problem(location: &str, error: &parquet::errors::ParquetError) -> Problem {
    inner_problem(location, "written or read", error).unwrap_or_else(|| {
        Problem::halt("PARQUET", location, format!("file cannot be encoded or decoded: {error}"), "run fsck")
    })
}
