//! Cells to Arrow arrays of their column's type.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder, Float64Builder,
    Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, ListArray, MapArray, StructArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, FieldRef, Fields};

use super::cell::Cell;
use super::types::ColumnType;

/// Collects the cells of one column.
pub(super) enum Array {
    Text(StringBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Decimal(Decimal128Builder),
    Double(Float64Builder),
    Boolean(BooleanBuilder),
    Binary(BinaryBuilder),
    Date(Date32Builder),
    Timestamp(TimestampMicrosecondBuilder),
    Uuid(FixedSizeBinaryBuilder),
    List(Box<Lists>),
    Map(Box<Maps>),
    Struct(Box<Structs>),
}

pub(super) struct Lists {
    field: FieldRef,
    elements: Array,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

pub(super) struct Maps {
    field: FieldRef,
    keys: StringBuilder,
    values: Array,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

pub(super) struct Structs {
    fields: Fields,
    members: Vec<Array>,
    nulls: NullBufferBuilder,
}

impl Array {
    pub(super) fn new(column_type: &ColumnType) -> Self {
        match (column_type, column_type.data_type()) {
            (ColumnType::String | ColumnType::Number | ColumnType::Json, _) => Self::text(),
            (ColumnType::Int, _) => Self::Int(Int32Builder::new()),
            (ColumnType::Long, _) => Self::Long(Int64Builder::new()),
            (ColumnType::Decimal { .. }, data_type) => {
                Self::Decimal(Decimal128Builder::new().with_data_type(data_type))
            }
            (ColumnType::Double, _) => Self::Double(Float64Builder::new()),
            (ColumnType::Boolean, _) => Self::Boolean(BooleanBuilder::new()),
            (ColumnType::Binary, _) => Self::Binary(BinaryBuilder::new()),
            (ColumnType::Date, _) => Self::Date(Date32Builder::new()),
            (ColumnType::Timestamp | ColumnType::Timestamptz(_), data_type) => {
                Self::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(data_type))
            }
            (ColumnType::Uuid, _) => Self::Uuid(FixedSizeBinaryBuilder::new(16)),
            (ColumnType::List(element) | ColumnType::Set(element), DataType::List(field)) => {
                let nulls = NullBufferBuilder::new(0);
                Self::List(Box::new(Lists { field, elements: Self::new(element), offsets: vec![0], nulls }))
            }
            (ColumnType::Map(value), DataType::Map(field, _)) => Self::Map(Box::new(Maps {
                field,
                keys: StringBuilder::new(),
                values: Self::new(value),
                offsets: vec![0],
                nulls: NullBufferBuilder::new(0),
            })),
            (ColumnType::Struct(members), DataType::Struct(fields)) => {
                let members = members.iter().map(|(_, member)| Self::new(member)).collect();
                Self::Struct(Box::new(Structs { fields, members, nulls: NullBufferBuilder::new(0) }))
            }
            (column_type, data_type) => unreachable!("{column_type} is no {data_type}"),
        }
    }

    pub(super) fn text() -> Self {
        Self::Text(StringBuilder::new())
    }

    /// Appends a cell of the column's type. The caller bounds what the column holds.
    pub(super) fn append(&mut self, cell: &Cell<'_>) {
        match (self, cell) {
            (array, Cell::Null) => array.append_null(),
            (Self::Text(values), Cell::Text(text)) => values.append_value(text),
            (Self::Int(values), Cell::Int(value)) => values.append_value(*value),
            (Self::Date(values), Cell::Int(value)) => values.append_value(*value),
            (Self::Long(values), Cell::Long(value)) => values.append_value(*value),
            (Self::Timestamp(values), Cell::Long(value)) => values.append_value(*value),
            (Self::Decimal(values), Cell::Decimal(value)) => values.append_value(*value),
            (Self::Double(values), Cell::Double(value)) => values.append_value(*value),
            (Self::Boolean(values), Cell::Boolean(value)) => values.append_value(*value),
            (Self::Binary(values), Cell::Bytes(bytes)) => values.append_value(bytes),
            (Self::Uuid(values), Cell::Uuid(bytes)) => values.append_value(bytes).expect("the builder is of 16 bytes"),
            (Self::List(lists), Cell::List(members)) => {
                members.iter().for_each(|member| lists.elements.append(member));
                end_row(&mut lists.offsets, &mut lists.nulls, members.len(), true);
            }
            (Self::Map(maps), Cell::Map(members)) => {
                for (name, member) in members {
                    maps.keys.append_value(name);
                    maps.values.append(member);
                }
                end_row(&mut maps.offsets, &mut maps.nulls, members.len(), true);
            }
            (Self::Struct(structs), Cell::Struct(members)) => {
                structs.members.iter_mut().zip(members).for_each(|(array, member)| array.append(member));
                structs.nulls.append(true);
            }
            (_, cell) => unreachable!("a column's cells are of its type: {}", kind(cell)),
        }
    }

    pub(super) fn append_null(&mut self) {
        match self {
            Self::Text(values) => values.append_null(),
            Self::Int(values) => values.append_null(),
            Self::Long(values) => values.append_null(),
            Self::Decimal(values) => values.append_null(),
            Self::Double(values) => values.append_null(),
            Self::Boolean(values) => values.append_null(),
            Self::Binary(values) => values.append_null(),
            Self::Date(values) => values.append_null(),
            Self::Timestamp(values) => values.append_null(),
            Self::Uuid(values) => values.append_null(),
            Self::List(lists) => end_row(&mut lists.offsets, &mut lists.nulls, 0, false),
            Self::Map(maps) => end_row(&mut maps.offsets, &mut maps.nulls, 0, false),
            Self::Struct(structs) => {
                structs.members.iter_mut().for_each(Self::append_null);
                structs.nulls.append(false);
            }
        }
    }

    /// All values held; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(values) => Arc::new(values.finish()),
            Self::Int(values) => Arc::new(values.finish()),
            Self::Long(values) => Arc::new(values.finish()),
            Self::Decimal(values) => Arc::new(values.finish()),
            Self::Double(values) => Arc::new(values.finish()),
            Self::Boolean(values) => Arc::new(values.finish()),
            Self::Binary(values) => Arc::new(values.finish()),
            Self::Date(values) => Arc::new(values.finish()),
            Self::Timestamp(values) => Arc::new(values.finish()),
            Self::Uuid(values) => Arc::new(values.finish()),
            Self::List(lists) => {
                let offsets = offsets(&mut lists.offsets);
                Arc::new(ListArray::new(lists.field.clone(), offsets, lists.elements.finish(), lists.nulls.finish()))
            }
            Self::Map(maps) => {
                let offsets = offsets(&mut maps.offsets);
                let DataType::Struct(fields) = maps.field.data_type() else {
                    unreachable!("entries of a map are a struct");
                };
                let columns: Vec<ArrayRef> = vec![Arc::new(maps.keys.finish()), maps.values.finish()];
                let entries = StructArray::new(fields.clone(), columns, None);
                Arc::new(MapArray::new(maps.field.clone(), offsets, entries, maps.nulls.finish(), false))
            }
            Self::Struct(structs) => {
                let columns = structs.members.iter_mut().map(Self::finish).collect();
                Arc::new(StructArray::new(structs.fields.clone(), columns, structs.nulls.finish()))
            }
        }
    }
}

fn end_row(offsets: &mut Vec<i32>, nulls: &mut NullBufferBuilder, members: usize, valid: bool) {
    let last = offsets.last().expect("the first offset is always there");
    offsets.push(last + i32::try_from(members).expect("an item is small"));
    nulls.append(valid);
}

fn offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])))
}

/// Without the value.
fn kind(cell: &Cell<'_>) -> &'static str {
    match cell {
        Cell::Null => "null",
        Cell::Text(_) => "text",
        Cell::Int(_) => "int",
        Cell::Long(_) => "long",
        Cell::Decimal(_) => "decimal",
        Cell::Double(_) => "double",
        Cell::Boolean(_) => "boolean",
        Cell::Bytes(_) => "bytes",
        Cell::Uuid(_) => "uuid",
        Cell::List(_) => "list",
        Cell::Map(_) => "map",
        Cell::Struct(_) => "struct",
    }
}
