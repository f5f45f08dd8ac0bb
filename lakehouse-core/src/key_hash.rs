//! From the key columns of rows to the 128-bit hashes that the key index stores.
//!
//! Equal bytes at the source mean equal hashes, for as long as the key's columns stay: integers are widened first, so a
//! column that grows from int to long keeps its hashes. Two different keys share a hash with a probability of 2^-128 per
//! pair (about 10^-21 for a table of 10^9 rows).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, ListArray};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::{DataType, Field, TimeUnit};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use crate::error::Problem;
use crate::key_index::KeyHash;

/// One hash per row over `columns`.
pub fn hash_keys(columns: &[ArrayRef]) -> Result<Vec<KeyHash>, Problem> {
    if let [column] = columns
        && let Some(mut hashes) = hash_single(column)
    {
        // A batch may hold NULLs beside keys (no old image was sent): the keys' hashes must not depend on that.
        (0..hashes.len()).filter(|&row| column.is_null(row)).for_each(|row| hashes[row] = NULL);
        return Ok(hashes);
    }
    let rows = columns.first().map_or(0, |column| column.len());
    let encoders: Option<Vec<Encode<'_>>> = columns.iter().map(encoder).collect();
    let Some(encoders) = encoders else {
        return hash_nested(columns);
    };
    let mut scratch = Vec::with_capacity(64);
    Ok((0..rows)
        .map(|row| {
            scratch.clear();
            for (column, encode) in columns.iter().zip(&encoders) {
                scratch.push(u8::from(column.is_valid(row)));
                if column.is_valid(row) {
                    encode(row, &mut scratch);
                }
            }
            KeyHash(xxh3_128(&scratch))
        })
        .collect())
}

/// One hash per row of a table without a key. Columns count by name and NULLs not at all, so a column that is added later
/// leaves the hashes of older rows as they are.
pub fn hash_rows(names: &[&str], columns: &[ArrayRef]) -> Result<Vec<KeyHash>, Problem> {
    let rows = columns.first().map_or(0, |column| column.len());
    let named = |(name, column)| {
        let encode = encoder(column).map_or_else(|| nested_encoder(column), Ok)?;
        Ok((xxh3_64(str::as_bytes(name)), column, encode))
    };
    let encoders: Vec<(u64, &ArrayRef, Encode<'_>)> =
        names.iter().copied().zip(columns).map(named).collect::<Result<_, Problem>>()?;
    let mut scratch = Vec::with_capacity(64);
    Ok((0..rows)
        .map(|row| {
            scratch.clear();
            for (name, _, encode) in encoders.iter().filter(|(_, column, _)| column.is_valid(row)) {
                scratch.extend_from_slice(&name.to_le_bytes());
                encode(row, &mut scratch);
            }
            KeyHash(xxh3_128(&scratch))
        })
        .collect())
}

/// The hash of a single NULL: of nothing that the function yields in practice.
const NULL: KeyHash = KeyHash(0);

/// A key of one column needs neither lengths nor marks for NULL.
fn hash_single(column: &ArrayRef) -> Option<Vec<KeyHash>> {
    let long = |value: i64| KeyHash(xxh3_128(&value.to_le_bytes()));
    Some(match column.data_type() {
        DataType::Int32 => column.as_primitive::<Int32Type>().values().iter().map(|&v| long(v.into())).collect(),
        DataType::Int64 => column.as_primitive::<Int64Type>().values().iter().map(|&v| long(v)).collect(),
        DataType::Utf8 => {
            let column = column.as_string::<i32>();
            (0..column.len()).map(|row| KeyHash(xxh3_128(column.value(row).as_bytes()))).collect()
        }
        DataType::FixedSizeBinary(_) => {
            let column = column.as_fixed_size_binary();
            (0..column.len()).map(|row| KeyHash(xxh3_128(column.value(row)))).collect()
        }
        _ => return None,
    })
}

type Encode<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encoder(column: &ArrayRef) -> Option<Encode<'_>> {
    macro_rules! fixed {
        ($array:ty, $widen:ty) => {{
            let values = column.as_primitive::<$array>().values();
            Box::new(move |row, out| out.extend_from_slice(&<$widen>::from(values[row]).to_le_bytes()))
        }};
    }
    Some(match column.data_type() {
        DataType::Boolean => {
            let values = column.as_boolean();
            Box::new(move |row, out| out.push(u8::from(values.value(row))))
        }
        DataType::Int32 => fixed!(Int32Type, i64),
        DataType::Int64 => fixed!(Int64Type, i64),
        DataType::Date32 => fixed!(Date32Type, i64),
        DataType::Float32 => fixed!(Float32Type, f32),
        DataType::Float64 => fixed!(Float64Type, f64),
        DataType::Decimal128(_, _) => fixed!(Decimal128Type, i128),
        DataType::Time64(TimeUnit::Microsecond) => fixed!(Time64MicrosecondType, i64),
        DataType::Timestamp(TimeUnit::Microsecond, _) => fixed!(TimestampMicrosecondType, i64),
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            Box::new(move |row, out| sized(values.value(row).as_bytes(), out))
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            Box::new(move |row, out| sized(values.value(row), out))
        }
        DataType::FixedSizeBinary(_) => {
            let values = column.as_fixed_size_binary();
            Box::new(move |row, out| sized(values.value(row), out))
        }
        _ => return None,
    })
}

/// A nested column, by Arrow's own row encoding.
fn nested_encoder(column: &ArrayRef) -> Result<Encode<'_>, Problem> {
    let rows = nested_rows(std::slice::from_ref(column))?;
    Ok(Box::new(move |row, out| sized(rows.row(row).as_ref(), out)))
}

/// Keys with nested columns.
fn hash_nested(columns: &[ArrayRef]) -> Result<Vec<KeyHash>, Problem> {
    Ok(nested_rows(columns)?.iter().map(|row| KeyHash(xxh3_128(row.as_ref()))).collect())
}

fn nested_rows(columns: &[ArrayRef]) -> Result<Rows, Problem> {
    let failed = |error: arrow_schema::ArrowError| {
        let remedy = "give the table a primary key, or set its key in the configuration";
        Problem::halt("KEY_TYPE", "", format!("rows of this table cannot be told apart: {error}"), remedy)
    };
    let columns: Vec<ArrayRef> = columns.iter().map(without_maps).collect();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns)).map_err(failed)
}

/// Arrow's row encoding knows no maps: they count as lists of their entries, in the order that the source gives them.
fn without_maps(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Map(field, _) => {
            let map = column.as_map();
            let entries = Arc::new(map.entries().clone());
            Arc::new(ListArray::new(Arc::clone(field), map.offsets().clone(), entries, map.nulls().cloned()))
        }
        DataType::List(field) => {
            let list = column.as_list::<i32>();
            let values = without_maps(list.values());
            let field = Field::clone(field).with_data_type(values.data_type().clone());
            Arc::new(ListArray::new(Arc::new(field), list.offsets().clone(), values, list.nulls().cloned()))
        }
        _ => Arc::clone(column),
    }
}

/// The `occurrence`-th row with the same content: rows of a table without a key are told apart by counting (R55).
pub fn hash_occurrence(row: KeyHash, occurrence: u64) -> KeyHash {
    let mut state = Xxh3::new();
    state.update(&row.0.to_le_bytes());
    state.update(&occurrence.to_le_bytes());
    KeyHash(state.digest128())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int32Array, Int64Array, StringArray};

    use super::*;

    fn hash(columns: Vec<ArrayRef>) -> Vec<KeyHash> {
        hash_keys(&columns).unwrap()
    }

    #[test]
    fn a_key_that_grows_from_int_to_long_keeps_its_hash() {
        let (int, long) = (Int32Array::from(vec![-1, 7]), Int64Array::from(vec![-1, 7]));
        assert_eq!(hash(vec![Arc::new(int)]), hash(vec![Arc::new(long)]));
    }

    #[test]
    fn a_null_beside_a_key_does_not_change_its_hash() {
        let alone = hash(vec![Arc::new(Int64Array::from(vec![7]))]);
        let beside = hash(vec![Arc::new(Int64Array::from(vec![None, Some(7)]))]);
        assert_eq!(alone[0], beside[1]);
        assert_ne!(beside[0], beside[1]);
    }

    #[test]
    fn a_column_that_is_added_leaves_the_hash_of_a_row() {
        let one: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let none: ArrayRef = Arc::new(Int64Array::from(vec![None::<i64>, None]));
        let before = hash_rows(&["a"], std::slice::from_ref(&one)).unwrap();
        assert_eq!(before, hash_rows(&["a", "b"], &[one.clone(), none.clone()]).unwrap());
        assert_ne!(before, hash_rows(&["b", "a"], &[one, none]).unwrap());
    }

    #[test]
    fn parts_of_a_composite_key_do_not_run_together() {
        let text = |a: &str, b: &str| -> Vec<ArrayRef> {
            vec![Arc::new(StringArray::from(vec![a])), Arc::new(StringArray::from(vec![b]))]
        };
        assert_ne!(hash(text("ab", "c")), hash(text("a", "bc")));
        let null: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec![None::<&str>])), Arc::new(StringArray::from(vec![""]))];
        assert_ne!(hash(null), hash(text("", "")));
    }
}
