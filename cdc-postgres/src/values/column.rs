//! One enum over all kinds of column: the decoder of each with the Arrow builder of its values. Which decoder belongs
//! to which type is said in `types`; what a decoder does, in its own file.

use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
    Float32Builder, Float64Builder, GenericByteBuilder, Int32Builder, Int64Builder, PrimitiveBuilder, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::types::{ArrowPrimitiveType, ByteArrayType};
use arrow_array::{Array, ArrayRef};

use super::array::ListColumn;
use super::hstore::HstoreColumn;
use super::text::TextForm;
use super::types::{Codec, MONEY_PRECISION};
use super::vector::{PointColumn, VectorColumn};
use super::{Appended, ValueError, binary, datetime, fixed, money, number, numeric, utf8};

pub(super) enum Column {
    Bool(BooleanBuilder),
    Int2(Int32Builder),
    Int4(Int32Builder),
    Int8(Int64Builder),
    Oid(Int64Builder),
    Float4(Float32Builder),
    Float8(Float64Builder),
    Decimal { values: Decimal128Builder, precision: u8, scale: u8 },
    NumericDouble(Float64Builder),
    Money(Decimal128Builder),
    Date { values: Date32Builder, narrow: bool },
    Timestamp(TimestampMicrosecondBuilder),
    Timestamptz(TimestampMicrosecondBuilder),
    Time(Time64MicrosecondBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Bytea { values: BinaryBuilder, scratch: Vec<u8> },
    Ewkb { values: BinaryBuilder, scratch: Vec<u8> },
    Text { values: StringBuilder, form: TextForm, scratch: String },
    List(Box<ListColumn>),
    Hstore(Box<HstoreColumn>),
    Point(Box<PointColumn>),
    Vector(Box<VectorColumn>),
}

/// A first guess for the bytes of a string; builders grow by themselves.
const STRING_BYTES: usize = 16;

impl Column {
    pub(super) fn new(codec: &Codec, rows: usize) -> Self {
        match *codec {
            Codec::Bool => Self::Bool(BooleanBuilder::with_capacity(rows)),
            Codec::Int2 => Self::Int2(Int32Builder::with_capacity(rows)),
            Codec::Int4 => Self::Int4(Int32Builder::with_capacity(rows)),
            Codec::Int8 => Self::Int8(Int64Builder::with_capacity(rows)),
            Codec::Oid => Self::Oid(Int64Builder::with_capacity(rows)),
            Codec::Float4 => Self::Float4(Float32Builder::with_capacity(rows)),
            Codec::Float8 => Self::Float8(Float64Builder::with_capacity(rows)),
            Codec::Decimal { precision, scale } => {
                Self::Decimal { values: decimals(rows, precision, scale), precision, scale }
            }
            Codec::NumericDouble => Self::NumericDouble(Float64Builder::with_capacity(rows)),
            Codec::Money { fraction_digits } => Self::Money(decimals(rows, MONEY_PRECISION, fraction_digits)),
            Codec::Date { narrow } => Self::Date { values: Date32Builder::with_capacity(rows), narrow },
            Codec::Timestamp => Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows)),
            Codec::Timestamptz => {
                Self::Timestamptz(TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("+00:00"))
            }
            Codec::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            Codec::Uuid => Self::Uuid(FixedSizeBinaryBuilder::with_capacity(rows, 16)),
            Codec::Bytea => Self::Bytea { values: binaries(rows), scratch: Vec::new() },
            Codec::Ewkb => Self::Ewkb { values: binaries(rows), scratch: Vec::new() },
            Codec::Text(form) => Self::Text {
                values: StringBuilder::with_capacity(rows, rows.saturating_mul(STRING_BYTES)),
                form,
                scratch: String::new(),
            },
            Codec::List { ref element, delimiter } => Self::List(Box::new(ListColumn::new(element, delimiter, rows))),
            Codec::Hstore => Self::Hstore(Box::new(HstoreColumn::new(rows))),
            Codec::Point => Self::Point(Box::new(PointColumn::new(rows))),
            Codec::Vector { half } => Self::Vector(Box::new(VectorColumn::new(half, rows))),
        }
    }

    #[inline]
    pub(super) fn append_text(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        let verbatim = || utf8(value).map(str::to_owned);
        match self {
            Self::Bool(values) => number::bool_from_text(value).map(|v| store_bool(values, v)),
            Self::Int2(values) => number::int2_from_text(value).map(|v| store(values, v)),
            Self::Int4(values) => number::int4_from_text(value).map(|v| store(values, v)),
            Self::Int8(values) => number::int8_from_text(value).map(|v| store(values, v)),
            Self::Oid(values) => number::oid_from_text(value).map(|v| store(values, v)),
            Self::Float4(values) => number::float4_from_text(value).map(|v| store(values, v)),
            Self::Float8(values) | Self::NumericDouble(values) => {
                number::float8_from_text(value).map(|v| store(values, v))
            }
            Self::Decimal { values, precision, scale } => {
                store_or(values, numeric::decimal_from_text(value, *precision, *scale)?, verbatim)
            }
            Self::Money(values) => money::money_from_text(value).map(|v| store(values, i128::from(v))),
            Self::Date { values, narrow } => store_or(values, datetime::date_from_text(value, *narrow)?, verbatim),
            Self::Timestamp(values) => store_or(values, datetime::timestamp_from_text(value)?, verbatim),
            Self::Timestamptz(values) => store_or(values, datetime::timestamptz_from_text(value)?, verbatim),
            Self::Time(values) => store_or(values, datetime::time_from_text(value)?, verbatim),
            Self::Uuid(values) => binary::uuid_from_text(value).map(|v| store_uuid(values, v)),
            Self::Bytea { values, scratch } => {
                binary::bytea_from_text(value, scratch)?;
                store_bytes(values, scratch)
            }
            Self::Ewkb { values, scratch } => {
                binary::ewkb_from_text(value, scratch)?;
                store_bytes(values, scratch)
            }
            Self::Text { values, form, scratch } => store_string(values, form.of_text(value, scratch)?),
            Self::List(list) => list.append_text(value),
            Self::Hstore(map) => map.append_text(value),
            Self::Point(point) => point.append_text(value),
            Self::Vector(vector) => vector.append_text(value),
        }
    }

    #[inline]
    pub(super) fn append_binary(&mut self, value: &[u8]) -> Result<Appended, ValueError> {
        match self {
            Self::Bool(values) => number::bool_from_binary(value).map(|v| store_bool(values, v)),
            Self::Int2(values) => number::int2_from_binary(value).map(|v| store(values, v)),
            Self::Int4(values) => number::int4_from_binary(value).map(|v| store(values, v)),
            Self::Int8(values) => number::int8_from_binary(value).map(|v| store(values, v)),
            Self::Oid(values) => number::oid_from_binary(value).map(|v| store(values, v)),
            Self::Float4(values) => number::float4_from_binary(value).map(|v| store(values, v)),
            Self::Float8(values) => number::float8_from_binary(value).map(|v| store(values, v)),
            Self::NumericDouble(values) => numeric::double_from_binary(value).map(|v| store(values, v)),
            Self::Decimal { values, precision, scale } => {
                let decoded = numeric::decimal_from_binary(value, *precision, *scale)?;
                store_or(values, decoded, || numeric::text_from_binary(value))
            }
            Self::Money(values) => money::money_from_binary(value).map(|v| store(values, i128::from(v))),
            Self::Date { values, narrow } => {
                store_or(values, datetime::date_from_binary(value, *narrow)?, || datetime::date_text(value))
            }
            Self::Timestamp(values) => {
                store_or(values, datetime::timestamp_from_binary(value)?, || datetime::timestamp_text(value, ""))
            }
            Self::Timestamptz(values) => {
                store_or(values, datetime::timestamp_from_binary(value)?, || datetime::timestamp_text(value, "+00"))
            }
            Self::Time(values) => store_or(values, datetime::time_from_binary(value)?, || datetime::time_text(value)),
            Self::Uuid(values) => fixed(value, "uuid").map(|v| store_uuid(values, v)),
            Self::Bytea { values, .. } | Self::Ewkb { values, .. } => store_bytes(values, value),
            Self::Text { values, form, scratch } => store_string(values, form.of_binary(value, scratch)?),
            // What a list's `copy_cast` gives is text.
            Self::List(list) => list.append_text(value),
            Self::Hstore(map) => map.append_binary(value),
            Self::Point(point) => point.append_binary(value),
            Self::Vector(vector) => vector.append_binary(value),
        }
    }

    /// Whether `append_text` would store the value (`false`: it overflows). Room is another question.
    pub(super) fn accepts_text(&self, value: &[u8]) -> Result<bool, ValueError> {
        match self {
            Self::Bool(_) => number::bool_from_text(value).map(|_| true),
            Self::Int2(_) => number::int2_from_text(value).map(|_| true),
            Self::Int4(_) => number::int4_from_text(value).map(|_| true),
            Self::Int8(_) => number::int8_from_text(value).map(|_| true),
            Self::Oid(_) => number::oid_from_text(value).map(|_| true),
            Self::Float4(_) => number::float4_from_text(value).map(|_| true),
            Self::Float8(_) | Self::NumericDouble(_) => number::float8_from_text(value).map(|_| true),
            Self::Decimal { precision, scale, .. } => {
                numeric::decimal_from_text(value, *precision, *scale).map(|v| v.is_some())
            }
            Self::Money(_) => money::money_from_text(value).map(|_| true),
            Self::Date { narrow, .. } => datetime::date_from_text(value, *narrow).map(|v| v.is_some()),
            Self::Timestamp(_) => datetime::timestamp_from_text(value).map(|v| v.is_some()),
            Self::Timestamptz(_) => datetime::timestamptz_from_text(value).map(|v| v.is_some()),
            Self::Time(_) => datetime::time_from_text(value).map(|v| v.is_some()),
            Self::Uuid(_) => binary::uuid_from_text(value).map(|_| true),
            Self::Bytea { .. } => binary::bytea_from_text(value, &mut Vec::new()).map(|()| true),
            Self::Ewkb { .. } => binary::ewkb_from_text(value, &mut Vec::new()).map(|()| true),
            Self::Text { form, .. } => form.of_text(value, &mut String::new()).map(|_| true),
            Self::List(list) => list.accepts_text(value),
            Self::Hstore(map) => map.accepts_text(value),
            Self::Point(point) => point.accepts_text(value),
            Self::Vector(vector) => vector.accepts_text(value),
        }
    }

    pub(super) fn append_null(&mut self) {
        match self {
            Self::Bool(values) => values.append_null(),
            Self::Int2(values) | Self::Int4(values) => values.append_null(),
            Self::Int8(values) | Self::Oid(values) => values.append_null(),
            Self::Float4(values) => values.append_null(),
            Self::Float8(values) | Self::NumericDouble(values) => values.append_null(),
            Self::Decimal { values, .. } | Self::Money(values) => values.append_null(),
            Self::Date { values, .. } => values.append_null(),
            Self::Timestamp(values) | Self::Timestamptz(values) => values.append_null(),
            Self::Time(values) => values.append_null(),
            Self::Uuid(values) => values.append_null(),
            Self::Bytea { values, .. } | Self::Ewkb { values, .. } => values.append_null(),
            Self::Text { values, .. } => values.append_null(),
            Self::List(list) => list.append_null(),
            Self::Hstore(map) => map.append_null(),
            Self::Point(point) => point.append_null(),
            Self::Vector(vector) => vector.append_null(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Int2(values) | Self::Int4(values) => values.len(),
            Self::Int8(values) | Self::Oid(values) => values.len(),
            Self::Float4(values) => values.len(),
            Self::Float8(values) | Self::NumericDouble(values) => values.len(),
            Self::Decimal { values, .. } | Self::Money(values) => values.len(),
            Self::Date { values, .. } => values.len(),
            Self::Timestamp(values) | Self::Timestamptz(values) => values.len(),
            Self::Time(values) => values.len(),
            Self::Uuid(values) => values.len(),
            Self::Bytea { values, .. } | Self::Ewkb { values, .. } => values.len(),
            Self::Text { values, .. } => values.len(),
            Self::List(list) => list.len(),
            Self::Hstore(map) => map.len(),
            Self::Point(point) => point.len(),
            Self::Vector(vector) => vector.len(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Bool(values) => values.len().div_ceil(8),
            Self::Int2(_) | Self::Int4(_) | Self::Float4(_) | Self::Date { .. } => 4 * self.len(),
            Self::Int8(_) | Self::Oid(_) | Self::Float8(_) | Self::NumericDouble(_) => 8 * self.len(),
            Self::Timestamp(_) | Self::Timestamptz(_) | Self::Time(_) => 8 * self.len(),
            Self::Decimal { .. } | Self::Money(_) | Self::Uuid(_) => 16 * self.len(),
            Self::Bytea { values, .. } | Self::Ewkb { values, .. } => {
                values.values_slice().len() + size_of_val(values.offsets_slice())
            }
            Self::Text { values, .. } => string_bytes(values),
            Self::List(list) => list.bytes(),
            Self::Hstore(map) => map.bytes(),
            Self::Point(point) => point.bytes(),
            Self::Vector(vector) => vector.bytes(),
        }
    }

    /// Whether a list can take elements that come from so many bytes of text, which bounds their number as well.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        has_room(self.len(), bytes)
            && match self {
                Self::Bytea { values, .. } | Self::Ewkb { values, .. } => has_room(values.values_slice().len(), bytes),
                // A char beyond ASCII takes four bytes, but never inside of an array, which is UTF-8 as a whole.
                Self::Text { values, .. } => has_room(values.values_slice().len(), bytes),
                Self::List(list) => list.has_room(bytes),
                Self::Hstore(map) => map.has_room(bytes),
                Self::Vector(vector) => vector.has_room(bytes),
                _ => true,
            }
    }

    /// Takes the values out. What comes next gets the space that these have needed: growing by doubling would copy and
    /// clear all of it again for every batch.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(values) => Arc::new(values.finish()),
            Self::Int2(values) | Self::Int4(values) => take(values),
            Self::Int8(values) | Self::Oid(values) => take(values),
            Self::Float4(values) => take(values),
            Self::Float8(values) | Self::NumericDouble(values) => take(values),
            Self::Decimal { values, .. } | Self::Money(values) => take(values),
            Self::Date { values, .. } => take(values),
            Self::Timestamp(values) | Self::Timestamptz(values) => take(values),
            Self::Time(values) => take(values),
            Self::Uuid(values) => {
                let array = values.finish();
                *values = FixedSizeBinaryBuilder::with_capacity(array.len(), 16);
                Arc::new(array)
            }
            Self::Bytea { values, .. } | Self::Ewkb { values, .. } => take_bytes(values),
            Self::Text { values, .. } => take_bytes(values),
            Self::List(list) => list.finish(),
            Self::Hstore(map) => map.finish(),
            Self::Point(point) => point.finish(),
            Self::Vector(vector) => vector.finish(),
        }
    }
}

fn take<T: ArrowPrimitiveType>(values: &mut PrimitiveBuilder<T>) -> ArrayRef {
    let array = values.finish();
    *values = PrimitiveBuilder::with_capacity(array.len()).with_data_type(array.data_type().clone());
    Arc::new(array)
}

fn take_bytes<T: ByteArrayType>(values: &mut GenericByteBuilder<T>) -> ArrayRef {
    let array = values.finish();
    *values = GenericByteBuilder::with_capacity(array.len(), array.value_data().len());
    Arc::new(array)
}

/// Whether an Arrow offset can count `held + more`.
#[inline]
pub(super) fn has_room(held: usize, more: usize) -> bool {
    held.saturating_add(more) <= i32::MAX as usize
}

pub(super) fn string_bytes(values: &StringBuilder) -> usize {
    values.values_slice().len() + size_of_val(values.offsets_slice())
}

fn decimals(rows: usize, precision: u8, scale: u8) -> Decimal128Builder {
    Decimal128Builder::with_capacity(rows)
        .with_precision_and_scale(precision, scale as i8)
        .expect("the type map has only decimals that Arrow knows")
}

fn binaries(rows: usize) -> BinaryBuilder {
    BinaryBuilder::with_capacity(rows, rows.saturating_mul(STRING_BYTES))
}

#[inline]
fn store_bool(values: &mut BooleanBuilder, value: bool) -> Appended {
    values.append_value(value);
    Appended::Stored
}

#[inline]
fn store<T: ArrowPrimitiveType>(values: &mut PrimitiveBuilder<T>, value: T::Native) -> Appended {
    values.append_value(value);
    Appended::Stored
}

#[inline]
fn store_or<T: ArrowPrimitiveType>(
    values: &mut PrimitiveBuilder<T>,
    decoded: Option<T::Native>,
    overflow_text: impl FnOnce() -> Result<String, ValueError>,
) -> Result<Appended, ValueError> {
    match decoded {
        Some(value) => Ok(store(values, value)),
        None => {
            let text = overflow_text()?;
            values.append_null();
            Ok(Appended::Overflow(text))
        }
    }
}

#[inline]
fn store_uuid(values: &mut FixedSizeBinaryBuilder, value: [u8; 16]) -> Appended {
    values.append_value(value).expect("the builder is of 16 bytes");
    Appended::Stored
}

#[inline]
fn store_bytes(values: &mut BinaryBuilder, value: &[u8]) -> Result<Appended, ValueError> {
    if !has_room(values.values_slice().len(), value.len()) {
        return Err(ValueError::Full);
    }
    values.append_value(value);
    Ok(Appended::Stored)
}

#[inline]
fn store_string(values: &mut StringBuilder, value: &str) -> Result<Appended, ValueError> {
    if !has_room(values.values_slice().len(), value.len()) {
        return Err(ValueError::Full);
    }
    values.append_value(value);
    Ok(Appended::Stored)
}
