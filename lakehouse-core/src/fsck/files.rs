//! The objects themselves: is each there with its size, and is each Parquet file one that every engine reads right.

use std::sync::Arc;

use iceberg::spec::DataFileFormat;
use parquet::basic::{Compression, ConvertedType, Encoding, LogicalType, Type as PhysicalType};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::statistics::Statistics;
use parquet::schema::types::Type as ParquetType;

use super::findings::{Check, CheckName, Findings};
use super::inventory::{FileFacts, Inventory};
use super::{for_each, in_background};
use crate::error::Problem;
use crate::storage::Storage;
use crate::write::parquet_problem;

/// What our own files say of who made them.
const CREATED_BY: &str = "lakehouse";

/// Every referenced object exists with exactly its size; `findings` holds what could not be read at all.
pub(super) async fn exist(
    storage: &Storage,
    inventory: &Arc<Inventory>,
    mut findings: Findings,
) -> Result<Check, Problem> {
    let (storage, inventory) = (storage.clone(), Arc::clone(inventory));
    in_background(move || {
        let mut bytes = 0;
        let manifests = inventory.manifests.iter();
        let manifests = manifests.map(|manifest| (&*manifest.path, u64::try_from(manifest.bytes).unwrap_or(0)));
        let files = inventory.files.iter().filter(|file| file.live).map(|file| (&*file.path, file.bytes));
        let objects = manifests.chain(files);
        let mut count = inventory.snapshots.len();
        for (path, expected) in objects {
            count += 1;
            bytes += expected;
            match storage.length(path) {
                Ok(Some(length)) if length == expected => {}
                Ok(Some(length)) => findings.fail(format!("{path} has {length} bytes instead of {expected}")),
                Ok(None) => findings.fail(format!("{path} is missing")),
                Err(problem) => findings.fail(format!("{path}: {problem}")),
            }
        }
        findings.check(format!("{count} objects, {bytes} bytes"))
    })
    .await
}

/// Every Parquet file has a readable footer with the rows that its manifest tells; our own obey W5, W10 and W11.
pub(super) async fn parquet(storage: &Storage, inventory: &Arc<Inventory>) -> Check {
    let is_parquet = |file: &FileFacts| file.live && file.format == DataFileFormat::Parquet;
    let mut findings = Findings::new(CheckName::Parquet);
    let count =
        for_each(storage, inventory, is_parquet, &mut findings, |storage, _, file| footer_faults(storage, file));
    let count = count.await;
    findings.check(format!("{count} files"))
}

fn footer_faults(storage: &Storage, file: &FileFacts) -> Vec<String> {
    let metadata = match footer(storage, &file.path) {
        Ok(metadata) => metadata,
        Err(problem) => return vec![format!("{}: {problem}", file.path)],
    };
    let mut faults = Vec::new();
    let rows = metadata.file_metadata().num_rows();
    let grouped: i64 = metadata.row_groups().iter().map(|group| group.num_rows()).sum();
    if u64::try_from(rows) != Ok(file.records) || grouped != rows {
        faults.push(format!("{rows} rows, {grouped} in row groups, {} in the manifest", file.records));
    }
    if is_ours(&metadata) {
        let root = metadata.file_metadata().schema_descr().root_schema();
        root.get_fields().iter().for_each(|field| missing_ids(field, field.name(), &mut faults));
        column_faults(&metadata, &mut faults);
    }
    faults.into_iter().map(|fault| format!("{}: {fault}", file.path)).collect()
}

pub(super) fn footer(storage: &Storage, path: &str) -> Result<ParquetMetaData, Problem> {
    let file = storage.open(path)?;
    ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|error| parquet_problem(path, &error))
}

pub(super) fn is_ours(metadata: &ParquetMetaData) -> bool {
    metadata.file_metadata().created_by() == Some(CREATED_BY)
}

/// Columns, at any depth, without a field id (W5). The repeated groups inside lists and maps have none by design.
fn missing_ids(node: &ParquetType, path: &str, faults: &mut Vec<String>) {
    let info = node.get_basic_info();
    if !info.has_id() {
        faults.push(format!("column {path} has no field id"));
    }
    if node.is_primitive() {
        return;
    }
    let wrapped =
        matches!(info.converted_type(), ConvertedType::LIST | ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE)
            || matches!(info.logical_type_ref(), Some(LogicalType::List | LogicalType::Map));
    for child in node.get_fields() {
        let inner = if wrapped && !child.is_primitive() { child.get_fields() } else { std::slice::from_ref(child) };
        inner.iter().for_each(|field| missing_ids(field, &format!("{path}.{}", field.name()), faults));
    }
}

/// Decimals as fixed-length bytes (W10), compression and encodings that every engine reads (W11).
fn column_faults(metadata: &ParquetMetaData, faults: &mut Vec<String>) {
    for (place, column) in metadata.file_metadata().schema_descr().columns().iter().enumerate() {
        let path = column.path().string();
        let decimal = matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }))
            || column.converted_type() == ConvertedType::DECIMAL;
        if decimal && column.physical_type() != PhysicalType::FIXED_LEN_BYTE_ARRAY {
            faults.push(format!("decimal column {path} is stored as {}", column.physical_type()));
        }
        let chunks = || metadata.row_groups().iter().map(|group| group.column(place));
        let readable = |codec| {
            matches!(
                codec,
                Compression::ZSTD(_) | Compression::SNAPPY | Compression::GZIP(_) | Compression::UNCOMPRESSED
            )
        };
        if let Some(codec) = chunks().map(|chunk| chunk.compression()).find(|codec| !readable(*codec)) {
            faults.push(format!("column {path} is compressed with {codec}"));
        }
        if chunks().any(|chunk| chunk.encodings().any(|encoding| encoding == Encoding::BYTE_STREAM_SPLIT)) {
            faults.push(format!("column {path} is encoded as BYTE_STREAM_SPLIT"));
        }
    }
}

/// Lowest and highest value of a column of 64-bit integers, by the file's statistics; `None` where it has none.
pub(super) fn long_bounds(storage: &Storage, path: &str, field_id: i32) -> Result<Option<(i64, i64)>, Problem> {
    let metadata = footer(storage, path)?;
    let columns = metadata.file_metadata().schema_descr().columns();
    let place = columns.iter().position(|column| {
        let info = column.self_type().get_basic_info();
        info.has_id() && info.id() == field_id
    });
    let Some(place) = place else { return Ok(None) };
    let mut found: Option<(i64, i64)> = None;
    for group in metadata.row_groups().iter().filter(|group| group.num_rows() > 0) {
        let Some(Statistics::Int64(statistics)) = group.column(place).statistics() else {
            return Ok(None);
        };
        let (Some(&low), Some(&high)) = (statistics.min_opt(), statistics.max_opt()) else {
            return Ok(None);
        };
        found = Some(found.map_or((low, high), |(lowest, highest)| (lowest.min(low), highest.max(high))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn a_column_without_an_id_is_found_at_any_depth() {
        let schema = "message t {
            required int64 a = 1;
            optional group l (LIST) = 2 { repeated group list { optional int32 element = 3; } }
            optional group m (MAP) = 4 { repeated group key_value { required binary key = 5; optional binary value; } }
            optional group s = 7 { optional double x = 8; optional double y; } }";
        let schema = parse_message_type(schema).unwrap();
        let mut faults = Vec::new();
        schema.get_fields().iter().for_each(|field| missing_ids(field, field.name(), &mut faults));
        assert_eq!(faults, ["column m.value has no field id", "column s.y has no field id"]);
    }
}
