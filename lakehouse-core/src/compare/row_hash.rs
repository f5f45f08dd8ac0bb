//! Rows as 128-bit hashes of what they say: the same for a value wherever it was read, however Arrow lays it out.
//!
//! Floats count by their bits, except that every NaN is one NaN (a text protocol does not keep their payloads). NULL is
//! not empty. The entries of a map have no order.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, SchemaRef as ArrowSchemaRef, TimeUnit};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::Problem;
use crate::key_hash::hash_keys;
use crate::key_index::KeyHash;
use crate::read::fit;

/// Hashes rows of one shape.
#[derive(Debug)]
pub struct RowHasher {
    schema: ArrowSchemaRef,
    /// Places of the key's columns; none: the whole row.
    key: Vec<usize>,
}

/// One entry per row.
#[derive(Debug)]
pub struct RowHashes {
    /// Of the key; the same hash that the key index keeps, where the table has a key.
    pub keys: Vec<KeyHash>,
    /// Of all columns.
    pub rows: Vec<u128>,
}

impl RowHasher {
    pub fn new(schema: ArrowSchemaRef, key: &[&str]) -> Result<Self, Problem> {
        let place = |name: &&str| schema.index_of(name).map_err(|_| unknown(name));
        let mut key: Vec<usize> = key.iter().map(place).collect::<Result<_, _>>()?;
        // The hash of a key is over its columns in the order of the table.
        key.sort_unstable();
        Ok(Self { schema, key })
    }

    /// Rows of any batch that has the columns, under their names, in types that fit.
    pub fn hash(&self, batch: &RecordBatch) -> Result<RowHashes, Problem> {
        let columns = (0..self.schema.fields().len()).map(|place| self.column(batch, place));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        let rows = hash_rows(&columns, batch.num_rows())?;
        let keys = match self.key.is_empty() {
            true => rows.iter().map(|&row| KeyHash(row)).collect(),
            false => hash_key_columns(self.key.iter().map(|&place| columns[place].clone()))?,
        };
        Ok(RowHashes { keys, rows })
    }

    /// The keys alone, of a batch that has at least their columns.
    pub fn keys(&self, batch: &RecordBatch) -> Result<Vec<KeyHash>, Problem> {
        if self.key.is_empty() {
            return Ok(self.hash(batch)?.keys);
        }
        let columns = self.key.iter().map(|&place| self.column(batch, place));
        hash_key_columns(columns.collect::<Result<Vec<_>, _>>()?.into_iter())
    }

    /// The key's columns with their names; without a key, all columns.
    pub(super) fn key_columns(&self, batch: &RecordBatch) -> Result<Vec<(String, ArrayRef)>, Problem> {
        let places = match self.key.is_empty() {
            true => (0..self.schema.fields().len()).collect(),
            false => self.key.clone(),
        };
        let named = |place: usize| Ok((self.schema.field(place).name().clone(), self.column(batch, place)?));
        places.into_iter().map(named).collect()
    }

    fn column(&self, batch: &RecordBatch, place: usize) -> Result<ArrayRef, Problem> {
        let field = self.schema.field(place);
        let column = batch.column_by_name(field.name()).ok_or_else(|| unknown(field.name()))?;
        fit(column, field)
    }
}

fn unknown(name: &str) -> Problem {
    Problem::halt("COLUMN_UNKNOWN", name, "no such column", "see the table's schema")
}

fn hash_key_columns(columns: impl Iterator<Item = ArrayRef>) -> Result<Vec<KeyHash>, Problem> {
    let one_nan = |column: ArrayRef| -> ArrayRef {
        match column.data_type() {
            DataType::Float32 => {
                let one = |value: f32| if value.is_nan() { f32::NAN } else { value };
                Arc::new(column.as_primitive::<Float32Type>().unary::<_, Float32Type>(one))
            }
            DataType::Float64 => {
                let one = |value: f64| if value.is_nan() { f64::NAN } else { value };
                Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(one))
            }
            _ => column,
        }
    };
    hash_keys(&columns.map(one_nan).collect::<Vec<_>>())
}

fn hash_rows(columns: &[ArrayRef], rows: usize) -> Result<Vec<u128>, Problem> {
    let encoders = columns.iter().map(|column| encoder(column.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut scratch = Vec::with_capacity(256);
    let hash = |row| {
        scratch.clear();
        encoders.iter().for_each(|encode| encode(row, &mut scratch));
        xxh3_128(&scratch)
    };
    Ok((0..rows).map(hash).collect())
}

/// Appends one value of a column, so that no two different sequences of values give the same bytes.
type Encode<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

fn encoder(array: &dyn Array) -> Result<Encode<'_>, Problem> {
    let value = value_encoder(array)?;
    Ok(match array.nulls() {
        None => Box::new(move |row, out| {
            out.push(1);
            value(row, out);
        }),
        Some(nulls) => Box::new(move |row, out| {
            out.push(u8::from(nulls.is_valid(row)));
            if nulls.is_valid(row) {
                value(row, out);
            }
        }),
    })
}

fn value_encoder(array: &dyn Array) -> Result<Encode<'_>, Problem> {
    macro_rules! fixed {
        ($array:ty) => {{
            let values = array.as_primitive::<$array>().values();
            Box::new(move |row: usize, out: &mut Vec<u8>| out.extend_from_slice(&values[row].to_le_bytes()))
        }};
    }
    macro_rules! float {
        ($array:ty, $float:ty) => {{
            let values = array.as_primitive::<$array>().values();
            Box::new(move |row: usize, out: &mut Vec<u8>| {
                let value = if values[row].is_nan() { <$float>::NAN } else { values[row] };
                out.extend_from_slice(&value.to_bits().to_le_bytes());
            })
        }};
    }
    Ok(match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            Box::new(move |row, out| out.push(u8::from(values.value(row))))
        }
        DataType::Int32 => fixed!(Int32Type),
        DataType::Int64 => fixed!(Int64Type),
        DataType::Float32 => float!(Float32Type, f32),
        DataType::Float64 => float!(Float64Type, f64),
        DataType::Decimal128(_, _) => fixed!(Decimal128Type),
        DataType::Date32 => fixed!(Date32Type),
        DataType::Time64(TimeUnit::Microsecond) => fixed!(Time64MicrosecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => fixed!(TimestampMicrosecondType),
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            Box::new(move |row, out| sized(values.value(row).as_bytes(), out))
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            Box::new(move |row, out| sized(values.value(row), out))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            Box::new(move |row, out| sized(values.value(row), out))
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let element = encoder(list.values().as_ref())?;
            let offsets = list.value_offsets();
            Box::new(move |row, out| {
                let elements = range(offsets, row);
                length(elements.len(), out);
                elements.for_each(|place| element(place, out));
            })
        }
        DataType::Struct(_) => {
            let fields = array.as_struct().columns().iter().map(|column| encoder(column.as_ref()));
            let fields = fields.collect::<Result<Vec<_>, _>>()?;
            Box::new(move |row, out| fields.iter().for_each(|field| field(row, out)))
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            let (key, value) = (encoder(map.keys().as_ref())?, encoder(map.values().as_ref())?);
            let offsets = map.value_offsets();
            Box::new(move |row, out| {
                let entry = |place: usize| {
                    let mut bytes = Vec::new();
                    key(place, &mut bytes);
                    value(place, &mut bytes);
                    bytes
                };
                let mut entries: Vec<Vec<u8>> = range(offsets, row).map(entry).collect();
                entries.sort_unstable();
                length(entries.len(), out);
                entries.iter().for_each(|entry| out.extend_from_slice(entry));
            })
        }
        other => {
            let message = format!("rows with {other} cannot be compared");
            return Err(Problem::halt("TYPE_UNMAPPED", "", message, "exclude the table and report this"));
        }
    })
}

fn range(offsets: &[i32], row: usize) -> std::ops::Range<usize> {
    let place = |offset: i32| usize::try_from(offset).expect("offsets of Arrow arrays are not negative");
    place(offsets[row])..place(offsets[row + 1])
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(length as u64).to_le_bytes());
}
