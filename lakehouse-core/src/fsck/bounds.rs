//! Bounds and counts in the head's manifests against the files: true, or absent (files W4).
//!
//! A file's own column statistics decide where they can; where they are cut or missing, the column is read.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use iceberg::spec::{DataContentType, DataFile, DataFileFormat, Manifest, PrimitiveLiteral};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::statistics::Statistics;

use super::findings::{Check, CheckName, Findings};
use super::{files, in_background};
use crate::storage::Storage;

/// Collects over the manifests of the head.
pub(super) struct Bounds {
    findings: Findings,
    files: usize,
    read: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { findings: Findings::new(CheckName::Bounds), files: 0, read: 0 }
    }
}

impl Bounds {
    /// Checks the live data files of one manifest.
    pub(super) async fn add(&mut self, storage: &Storage, manifest: Manifest) {
        let manifest = Arc::new(manifest);
        for number in 0..manifest.entries().len() {
            let entry = &manifest.entries()[number];
            let checked = entry.is_alive()
                && entry.content_type() == DataContentType::Data
                && entry.file_format() == DataFileFormat::Parquet;
            if !checked {
                continue;
            }
            let (storage, entry) = (storage.clone(), Arc::clone(entry));
            let path = entry.file_path().to_owned();
            self.files += 1;
            match in_background(move || FileBounds::check(&storage, entry.data_file())).await {
                Ok(Ok(checked)) => {
                    self.read += checked.columns_read;
                    checked.faults.into_iter().for_each(|fault| self.findings.fail(format!("{path}: {fault}")));
                }
                Ok(Err(why)) => self.findings.note(format!("{path} cannot be read: {why}")),
                Err(_) => self.findings.note(format!("{path} cannot be decoded")),
            }
        }
    }

    pub(super) fn check(self) -> Check {
        let read = match self.read {
            0 => String::new(),
            columns => format!(", {columns} columns read"),
        };
        self.findings.check(format!("{} files of the head{read}", self.files))
    }
}

#[derive(Default)]
struct FileBounds {
    faults: Vec<String>,
    columns_read: usize,
}

/// A value as it is ordered in the Iceberg format.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// Integers, decimals without their scale, dates, times, booleans.
    Number(i128),
    Float(f64),
    /// Binary, and text by its code points.
    Bytes(Vec<u8>),
}

impl Value {
    /// `None` for kinds without an order that all engines share.
    fn of(literal: &PrimitiveLiteral) -> Option<Self> {
        Some(match literal {
            PrimitiveLiteral::Boolean(value) => Value::Number(i128::from(*value)),
            PrimitiveLiteral::Int(value) => Value::Number(i128::from(*value)),
            PrimitiveLiteral::Long(value) => Value::Number(i128::from(*value)),
            PrimitiveLiteral::Int128(value) => Value::Number(*value),
            PrimitiveLiteral::Float(value) => Value::Float(f64::from(value.0)),
            PrimitiveLiteral::Double(value) => Value::Float(value.0),
            PrimitiveLiteral::String(value) => Value::Bytes(value.as_bytes().to_vec()),
            PrimitiveLiteral::Binary(value) => Value::Bytes(value.clone()),
            _ => return None,
        })
    }

    /// `None` where the two are not of one kind.
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Value::Number(left), Value::Number(right)) => Some(left.cmp(right)),
            (Value::Float(left), Value::Float(right)) => left.partial_cmp(right),
            (Value::Bytes(left), Value::Bytes(right)) => Some(left.cmp(right)),
            _ => None,
        }
    }

    fn at_most(&self, other: &Self) -> bool {
        matches!(self.compare(other), Some(Ordering::Less | Ordering::Equal))
    }

    /// Bytes from a file, as the kind that `like` is.
    fn of_bytes(bytes: &[u8], like: &Self) -> Option<Self> {
        match like {
            Value::Bytes(_) => Some(Value::Bytes(bytes.to_vec())),
            Value::Number(_) if (1..=16).contains(&bytes.len()) => {
                let sign = if bytes[0] >= 0x80 { 0xFF } else { 0 };
                let mut wide = [sign; 16];
                wide[16 - bytes.len()..].copy_from_slice(bytes);
                Some(Value::Number(i128::from_be_bytes(wide)))
            }
            _ => None,
        }
    }
}

/// What statistics say of one column over a whole file.
enum Known {
    /// No value but NULL.
    Nothing,
    /// True bounds; exact or wider.
    Range {
        low: Value,
        low_exact: bool,
        high: Value,
        high_exact: bool,
    },
    Unknown,
}

impl FileBounds {
    fn check(storage: &Storage, file: &DataFile) -> Result<Self, String> {
        let mut checked = Self::default();
        let metadata = files::footer(storage, file.file_path()).map_err(|problem| problem.to_string())?;
        for (place, column) in metadata.file_metadata().schema_descr().columns().iter().enumerate() {
            let info = column.self_type().get_basic_info();
            if !info.has_id() {
                continue;
            }
            let path = column.path().string();
            if files::is_ours(&metadata) && column.max_rep_level() == 0 {
                checked.check_counts(file, &metadata, place, info.id(), &path);
            }
            let bound = |all: &std::collections::HashMap<i32, iceberg::spec::Datum>| {
                all.get(&info.id()).and_then(|datum| Value::of(datum.literal()))
            };
            let (lower, upper) = (bound(file.lower_bounds()), bound(file.upper_bounds()));
            if lower.is_some() || upper.is_some() {
                checked.check_column(storage, file, &metadata, place, &path, lower, upper)?;
            }
        }
        Ok(checked)
    }

    /// Engines prune on counts of NULL as they do on bounds.
    fn check_counts(&mut self, file: &DataFile, metadata: &ParquetMetaData, place: usize, id: i32, path: &str) {
        let chunks = || metadata.row_groups().iter().map(|group| group.column(place));
        let values: u64 = chunks().map(|chunk| chunk.num_values().max(0).unsigned_abs()).sum();
        let nulls = |chunk: &ColumnChunkMetaData| chunk.statistics().and_then(Statistics::null_count_opt);
        let nulls: Option<u64> = chunks().map(nulls).sum();
        if file.value_counts().get(&id).is_some_and(|&said| said != values) {
            self.faults.push(format!("column {path} has {values} values, not as many as its manifest says"));
        }
        if let (Some(&said), Some(nulls)) = (file.null_value_counts().get(&id), nulls)
            && said != nulls
        {
            self.faults.push(format!("column {path} has {nulls} NULLs, {said} in its manifest"));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one column of one file, told in full")]
    fn check_column(
        &mut self,
        storage: &Storage,
        file: &DataFile,
        metadata: &ParquetMetaData,
        place: usize,
        path: &str,
        lower: Option<Value>,
        upper: Option<Value>,
    ) -> Result<(), String> {
        let Some(like) = lower.as_ref().or(upper.as_ref()) else {
            return Ok(());
        };
        let known = known_range(metadata, place, like);
        let settled = match &known {
            Known::Nothing => Some(true),
            Known::Unknown => None,
            Known::Range { low, low_exact, high, high_exact } => {
                let (below, above) =
                    (lower.as_ref().is_none_or(|l| l.at_most(low)), upper.as_ref().is_none_or(|u| high.at_most(u)));
                match (below, above) {
                    (true, true) => Some(true),
                    (below, above) if (!below && *low_exact) || (!above && *high_exact) => Some(false),
                    _ => None,
                }
            }
        };
        let truth = match settled {
            Some(truth) => truth,
            None => {
                self.columns_read += 1;
                let range = read_range(storage, file.file_path(), place, like)?;
                range.is_none_or(|(low, high)| {
                    lower.is_none_or(|lower| lower.at_most(&low)) && upper.is_none_or(|upper| high.at_most(&upper))
                })
            }
        };
        if !truth {
            self.faults.push(format!("column {path} has values outside of the bounds in its manifest"));
        }
        Ok(())
    }
}

fn known_range(metadata: &ParquetMetaData, place: usize, like: &Value) -> Known {
    let mut known = Known::Nothing;
    for group in metadata.row_groups() {
        let chunk = group.column(place);
        let Some(statistics) = chunk.statistics() else {
            return Known::Unknown;
        };
        if statistics.null_count_opt() == Some(chunk.num_values().max(0).unsigned_abs()) {
            continue;
        }
        let Some((low, high)) = range_of(statistics, like) else {
            return Known::Unknown;
        };
        let (min_exact, max_exact) = (statistics.min_is_exact(), statistics.max_is_exact());
        known = match known {
            Known::Range { low: lowest, low_exact, high: highest, high_exact } => {
                let (low, low_exact) = if low.at_most(&lowest) { (low, min_exact) } else { (lowest, low_exact) };
                let (high, high_exact) = if highest.at_most(&high) { (high, max_exact) } else { (highest, high_exact) };
                Known::Range { low, low_exact, high, high_exact }
            }
            _ => Known::Range { low, low_exact: min_exact, high, high_exact: max_exact },
        };
    }
    known
}

fn range_of(statistics: &Statistics, like: &Value) -> Option<(Value, Value)> {
    macro_rules! number {
        ($found:expr) => {
            (Value::Number(i128::from(*$found.min_opt()?)), Value::Number(i128::from(*$found.max_opt()?)))
        };
    }
    Some(match statistics {
        Statistics::Boolean(found) => number!(found),
        Statistics::Int32(found) => number!(found),
        Statistics::Int64(found) => number!(found),
        Statistics::Float(found) => {
            (Value::Float(f64::from(*found.min_opt()?)), Value::Float(f64::from(*found.max_opt()?)))
        }
        Statistics::Double(found) => (Value::Float(*found.min_opt()?), Value::Float(*found.max_opt()?)),
        Statistics::ByteArray(found) => {
            (Value::of_bytes(found.min_opt()?.data(), like)?, Value::of_bytes(found.max_opt()?.data(), like)?)
        }
        Statistics::FixedLenByteArray(found) => {
            (Value::of_bytes(found.min_opt()?.data(), like)?, Value::of_bytes(found.max_opt()?.data(), like)?)
        }
        Statistics::Int96(_) => return None,
    })
}

/// Lowest and highest value of one leaf column, from its data; `None` for a column of NULLs and NaNs.
fn read_range(storage: &Storage, path: &str, place: usize, like: &Value) -> Result<Option<(Value, Value)>, String> {
    let file = storage.open(path).map_err(|problem| problem.to_string())?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options);
    let builder = builder.map_err(|error| error.to_string())?;
    let mask = ProjectionMask::leaves(builder.parquet_schema(), [place]);
    let reader = builder.with_projection(mask).build().map_err(|error| error.to_string())?;
    let mut range: Option<(Value, Value)> = None;
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        let mut leaf: ArrayRef = Arc::clone(batch.column(0));
        while let Some(group) = leaf.as_struct_opt() {
            leaf = Arc::clone(group.column(0));
        }
        for row in (0..leaf.len()).filter(|&row| leaf.is_valid(row)) {
            let value = value_at(&leaf, row, like).ok_or_else(|| format!("{} has no bounds", leaf.data_type()))?;
            if matches!(value, Value::Float(number) if number.is_nan()) {
                continue;
            }
            range = Some(match range {
                None => (value.clone(), value),
                Some((low, high)) if value.compare(&low) == Some(Ordering::Less) => (value, high),
                Some((low, high)) if high.compare(&value) == Some(Ordering::Less) => (low, value),
                Some(range) => range,
            });
        }
    }
    Ok(range)
}

fn value_at(array: &ArrayRef, row: usize, like: &Value) -> Option<Value> {
    macro_rules! number {
        ($type:ty) => {
            Value::Number(i128::from(array.as_primitive::<$type>().value(row)))
        };
    }
    Some(match array.data_type() {
        DataType::Boolean => Value::Number(i128::from(array.as_boolean().value(row))),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::Date32 => number!(Date32Type),
        DataType::Time64(TimeUnit::Microsecond) => number!(Time64MicrosecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => number!(TimestampMicrosecondType),
        DataType::Decimal128(_, _) => number!(Decimal128Type),
        DataType::Float32 => Value::Float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Bytes(array.as_string::<i32>().value(row).as_bytes().to_vec()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Value::of_bytes(array.as_fixed_size_binary().value(row), like)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow_array::{Float64Array, Int64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::{EnabledStatistics, WriterProperties};

    use super::*;
    use crate::storage::location_of;

    #[test]
    fn a_range_read_from_data_is_that_of_its_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        let long = format!("{}z", "m".repeat(100));
        let batch = RecordBatch::try_from_iter([
            ("n", Arc::new(Int64Array::from(vec![Some(3), None, Some(-7)])) as ArrayRef),
            ("d", Arc::new(Float64Array::from(vec![f64::NAN, 1.0, -1.0]))),
            ("s", Arc::new(StringArray::from(vec!["b", long.as_str(), "a"]))),
        ]);
        let batch = batch.unwrap();
        let off = WriterProperties::builder().set_statistics_enabled(EnabledStatistics::None).build();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(off)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let location = location_of(&path);
        let range = |place, like: &Value| read_range(&Storage::local(), &location, place, like).unwrap();
        let number = Value::Number(0);
        assert_eq!(range(0, &number), Some((Value::Number(-7), Value::Number(3))));
        assert_eq!(range(1, &Value::Float(0.0)), Some((Value::Float(-1.0), Value::Float(1.0))));
        let text = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        assert_eq!(range(2, &text("")), Some((text("a"), text(&long))));
        let metadata = files::footer(&Storage::local(), &location).unwrap();
        assert!(matches!(known_range(&metadata, 0, &number), Known::Unknown));
    }

    #[test]
    fn decimals_are_ordered_by_their_sign() {
        let like = Value::Number(0);
        let of = |bytes: &[u8]| Value::of_bytes(bytes, &like).unwrap();
        assert_eq!(of(&[0xFF, 0xFE]), Value::Number(-2));
        assert_eq!(of(&[0x00, 0xFE]), Value::Number(254));
        assert!(Value::of_bytes(&[], &like).is_none() && Value::of_bytes(&[0; 17], &like).is_none());
    }
}
