//! Column statistics of a data file for its manifest entry: bounds are true or absent (files W4).

use std::collections::HashMap;

use iceberg::spec::{Datum, PrimitiveType, Schema};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

/// Characters of a string bound: enough to prune by, short enough to keep manifests small.
const STRING_BOUND: usize = 16;
/// Leaf columns with bounds; of wider tables the rest is only counted.
const BOUNDED_COLUMNS: usize = 100;

/// By field id.
#[derive(Default)]
pub(super) struct Statistics {
    pub(super) column_sizes: HashMap<i32, u64>,
    pub(super) value_counts: HashMap<i32, u64>,
    pub(super) null_value_counts: HashMap<i32, u64>,
    pub(super) lower_bounds: HashMap<i32, Datum>,
    pub(super) upper_bounds: HashMap<i32, Datum>,
    pub(super) split_offsets: Vec<i64>,
}

impl Statistics {
    pub(super) fn of(metadata: &ParquetMetaData, schema: &Schema) -> Self {
        let mut all = Self::default();
        let columns = metadata.file_metadata().schema_descr().columns();
        for (index, column) in columns.iter().enumerate() {
            let info = column.self_type().get_basic_info();
            if !info.has_id() {
                continue;
            }
            let chunks = metadata.row_groups().iter().map(|group| group.column(index));
            let bounded = index < BOUNDED_COLUMNS && column.max_rep_level() == 0;
            let field = schema.field_by_id(info.id()).and_then(|field| field.field_type.as_primitive_type());
            all.add_column(info.id(), chunks, field.filter(|_| bounded));
        }
        all.split_offsets = metadata.row_groups().iter().filter_map(|group| group.file_offset()).collect();
        all
    }

    fn add_column<'a>(
        &mut self,
        id: i32,
        chunks: impl Iterator<Item = &'a ColumnChunkMetaData>,
        bounded: Option<&PrimitiveType>,
    ) {
        let (mut size, mut values, mut nulls) = (0, 0, Some(0));
        let mut bounds = Bounds::None;
        for chunk in chunks {
            let chunk_nulls = chunk.statistics().and_then(|statistics| statistics.null_count_opt());
            size += chunk.compressed_size().max(0).unsigned_abs();
            let chunk_values = chunk.num_values().max(0).unsigned_abs();
            values += chunk_values;
            nulls = nulls.zip(chunk_nulls).map(|(sum, more)| sum + more);
            if let Some(primitive) = bounded
                && chunk_nulls != Some(chunk_values)
            {
                bounds.widen(chunk, primitive);
            }
        }
        self.column_sizes.insert(id, size);
        self.value_counts.insert(id, values);
        self.null_value_counts.extend(nulls.map(|nulls| (id, nulls)));
        if let Bounds::Known(lower, upper) = bounds {
            self.lower_bounds.insert(id, shorten_lower(lower));
            self.upper_bounds.extend(shorten_upper(upper).map(|upper| (id, upper)));
        }
    }
}

enum Bounds {
    None,
    Known(Datum, Datum),
    /// One row group has none, so the file has none.
    Unknown,
}

impl Bounds {
    /// Parquet's own bounds may be cut, but then they are still rounded outwards: their union is a true bound.
    fn widen(&mut self, chunk: &ColumnChunkMetaData, primitive: &PrimitiveType) {
        // Engines order uuids differently (signed and unsigned): no bound is true for all.
        let ordered = !matches!(primitive, PrimitiveType::Uuid | PrimitiveType::Fixed(_));
        let datum = |bytes: Option<&[u8]>| Datum::try_from_bytes(bytes?, primitive.clone()).ok();
        let statistics = chunk.statistics().filter(|_| ordered);
        let found = statistics.and_then(|found| datum(found.min_bytes_opt()).zip(datum(found.max_bytes_opt())));
        *self = match (std::mem::replace(self, Bounds::Unknown), found) {
            (Bounds::None, Some((lower, upper))) => Bounds::Known(lower, upper),
            (Bounds::Known(lower, upper), Some((low, high))) => {
                Bounds::Known(if low < lower { low } else { lower }, if high > upper { high } else { upper })
            }
            _ => Bounds::Unknown,
        };
    }
}

fn shorten_lower(bound: Datum) -> Datum {
    use iceberg::spec::PrimitiveLiteral as Literal;
    match bound.literal() {
        Literal::String(text) => Datum::string(text.chars().take(STRING_BOUND).collect::<String>()),
        Literal::Binary(bytes) => Datum::binary(bytes.iter().copied().take(STRING_BOUND)),
        _ => bound,
    }
}

/// The shortest text above all that begin like this one; `None` if there is no such text.
fn shorten_upper(bound: Datum) -> Option<Datum> {
    use iceberg::spec::PrimitiveLiteral as Literal;
    match bound.literal() {
        Literal::String(text) if text.chars().count() > STRING_BOUND => {
            let mut kept: Vec<char> = text.chars().take(STRING_BOUND).collect();
            while let Some(last) = kept.pop() {
                // Behind the last scalar value before the surrogates comes the first one after them.
                let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(u32::from(last) + 1) };
                if let Some(next) = next {
                    kept.push(next);
                    return Some(Datum::string(kept.into_iter().collect::<String>()));
                }
            }
            None
        }
        Literal::Binary(bytes) if bytes.len() > STRING_BOUND => {
            let mut kept = bytes[..STRING_BOUND].to_vec();
            while let Some(last) = kept.pop() {
                if last < u8::MAX {
                    kept.push(last + 1);
                    return Some(Datum::binary(kept));
                }
            }
            None
        }
        _ => Some(bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_upper_bound_is_above_the_value() {
        for text in
            ["short", "exactly sixteen.", "a text that is longer than sixteen", "\u{10FFFF}".repeat(20).as_str()]
        {
            match shorten_upper(Datum::string(text)) {
                Some(upper) => assert!(upper >= Datum::string(text), "{text}"),
                None => assert!(text.starts_with('\u{10FFFF}')),
            }
            assert!(shorten_lower(Datum::string(text)) <= Datum::string(text));
        }
        assert!(shorten_upper(Datum::binary(vec![255; 20])).is_none());
        assert!(shorten_upper(Datum::string("\u{D7FF}".repeat(17))).is_some());
    }
}
