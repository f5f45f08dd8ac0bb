//! One attribute's value as its declared type holds it. Borrowed: nothing is copied before it reaches its array.

use std::borrow::Cow;

use uuid::Uuid;

use super::time;
use super::types::ColumnType;
use crate::number::Number;
use crate::value::{Item, Value, write_value};

/// What goes into an array.
#[derive(Debug)]
pub(super) enum Cell<'a> {
    Null,
    Text(Cow<'a, str>),
    Int(i32),
    Long(i64),
    Decimal(i128),
    Double(f64),
    Boolean(bool),
    Bytes(&'a [u8]),
    Uuid([u8; 16]),
    List(Vec<Cell<'a>>),
    Map(Vec<(&'a str, Cell<'a>)>),
    Struct(Vec<Cell<'a>>),
}

/// What is left of a value that its cell does not hold.
#[derive(Debug)]
pub(super) enum Left<'a> {
    Nothing,
    /// A NULL, which a missing attribute is not.
    Null,
    /// All of it: the value is not of the declared type.
    Whole(&'a Value),
    /// Members of a struct.
    Members {
        members: Vec<(&'a str, Left<'a>)>,
        mismatch: bool,
    },
}

impl Left<'_> {
    /// Whether something was not of its declared type.
    pub(super) fn is_mismatch(&self) -> bool {
        match self {
            Left::Nothing | Left::Null => false,
            Left::Whole(_) => true,
            Left::Members { mismatch, .. } => *mismatch,
        }
    }

    pub(super) fn to_value(&self) -> Option<Value> {
        match self {
            Left::Nothing => None,
            Left::Null => Some(Value::Null),
            Left::Whole(value) => Some((*value).clone()),
            Left::Members { members, .. } => {
                let members = members.iter().filter_map(|(name, left)| Some(((*name).to_owned(), left.to_value()?)));
                Some(Value::M(Item::new(members.collect()).expect("they come from one map")))
            }
        }
    }
}

/// A value's cell, and what is left of it.
pub(super) fn take<'a>(column_type: &ColumnType, value: &'a Value) -> (Cell<'a>, Left<'a>) {
    match (column_type, value) {
        (_, Value::Null) => (Cell::Null, Left::Null),
        (ColumnType::Struct(fields), Value::M(members)) => take_struct(fields, members),
        _ => whole(column_type, value).map_or((Cell::Null, Left::Whole(value)), |cell| (cell, Left::Nothing)),
    }
}

fn take_struct<'a>(fields: &[(String, ColumnType)], members: &'a Item) -> (Cell<'a>, Left<'a>) {
    let mut left = Vec::new();
    let mut mismatch = false;
    let mut cells = Vec::with_capacity(fields.len());
    for (name, column_type) in fields {
        let Some(value) = members.get(name) else {
            cells.push(Cell::Null);
            continue;
        };
        let (cell, rest) = take(column_type, value);
        cells.push(cell);
        mismatch |= rest.is_mismatch();
        if !matches!(rest, Left::Nothing) {
            let (name, _) = members.iter().find(|(known, _)| known == name).expect("it was found");
            left.push((name, rest));
        }
    }
    // Not a mismatch: nobody said that there are no others.
    let undeclared = members.iter().filter(|(name, _)| fields.iter().all(|(field, _)| field != name));
    left.extend(undeclared.map(|(name, value)| (name, undeclared_value(value))));
    let left = if left.is_empty() { Left::Nothing } else { Left::Members { members: left, mismatch } };
    (Cell::Struct(cells), left)
}

fn undeclared_value(value: &Value) -> Left<'_> {
    if *value == Value::Null { Left::Null } else { Left::Whole(value) }
}

/// A value that its type holds whole; `None` if it does not.
fn whole<'a>(column_type: &ColumnType, value: &'a Value) -> Option<Cell<'a>> {
    match (column_type, value) {
        (ColumnType::String, Value::S(text)) => Some(Cell::Text(Cow::Borrowed(text))),
        (ColumnType::Boolean, Value::Bool(value)) => Some(Cell::Boolean(*value)),
        (ColumnType::Binary, Value::B(bytes)) => Some(Cell::Bytes(bytes)),
        (ColumnType::Date, Value::S(text)) => time::date(text).map(Cell::Int),
        (ColumnType::Timestamp, Value::S(text)) => time::timestamp(text).map(Cell::Long),
        (ColumnType::Timestamptz(None), Value::S(text)) => time::timestamptz(text).map(Cell::Long),
        // Also without hyphens or in braces it would be read, and other texts would be the same key.
        (ColumnType::Uuid, Value::S(text)) if text.len() == 36 => {
            Uuid::try_parse(text).ok().map(|uuid| Cell::Uuid(uuid.into_bytes()))
        }
        (ColumnType::List(element), Value::L(members)) => {
            members.iter().map(|member| whole_or_null(element, member)).collect::<Option<_>>().map(Cell::List)
        }
        (ColumnType::Set(element), Value::Ss(members)) if **element == ColumnType::String => {
            Some(Cell::List(members.iter().map(|member| Cell::Text(Cow::Borrowed(member))).collect()))
        }
        (ColumnType::Set(element), Value::Bs(members)) if **element == ColumnType::Binary => {
            Some(Cell::List(members.iter().map(|member| Cell::Bytes(member)).collect()))
        }
        (ColumnType::Set(element), Value::Ns(members)) => {
            members.iter().map(|member| number(element, member)).collect::<Option<_>>().map(Cell::List)
        }
        (ColumnType::Map(element), Value::M(members)) => {
            let entry = |(name, member): (&'a str, &'a Value)| Some((name, whole_or_null(element, member)?));
            members.iter().map(entry).collect::<Option<_>>().map(Cell::Map)
        }
        (ColumnType::Struct(fields), Value::M(members)) => match take_struct(fields, members) {
            (cell, Left::Nothing) => Some(cell),
            _ => None,
        },
        (ColumnType::Json, value) => {
            let mut text = String::new();
            write_value(&mut text, value);
            Some(Cell::Text(Cow::Owned(text)))
        }
        (column_type, Value::N(value)) => number(column_type, value),
        _ => None,
    }
}

/// A member of a list or map, where NULL cannot be mistaken for missing.
fn whole_or_null<'a>(column_type: &ColumnType, value: &'a Value) -> Option<Cell<'a>> {
    if *value == Value::Null { Some(Cell::Null) } else { whole(column_type, value) }
}

fn number(column_type: &ColumnType, value: &Number) -> Option<Cell<'static>> {
    match column_type {
        ColumnType::Number => Some(Cell::Text(Cow::Owned(value.to_string()))),
        ColumnType::Int => i32::try_from(value.unscaled(0)?).ok().map(Cell::Int),
        ColumnType::Long => i64::try_from(value.unscaled(0)?).ok().map(Cell::Long),
        ColumnType::Decimal { precision, scale } => {
            let unscaled = value.unscaled(*scale)?;
            (unscaled.unsigned_abs() < 10u128.pow(u32::from(*precision))).then_some(Cell::Decimal(unscaled))
        }
        // Magnitudes up to 9.99E125 are far inside.
        ColumnType::Double => value.to_string().parse().ok().map(Cell::Double),
        ColumnType::Timestamptz(Some(unit)) => time::since_1970(value, *unit).map(Cell::Long),
        _ => None,
    }
}
