//! Types that columns can be declared with, and what each of them takes.
//!
//! | declared | Iceberg | takes |
//! |---|---|---|
//! | `string` | string | S |
//! | `number` | string | N, as its canonical text: the only column for all 38 digits and every exponent |
//! | `int`, `long` | int, long | whole N in range |
//! | `decimal(p,s)` | decimal | N with at most `s` decimal places and `p` digits: exact or not at all |
//! | `double` | double | N, rounded: what asks for it accepts the loss |
//! | `boolean` | boolean | BOOL |
//! | `binary` | binary | B |
//! | `date` | date | S `2026-11-21` |
//! | `timestamp` | timestamp | S `2026-11-21T09:00:00.123456`, without an offset; a space may stand for the `T` |
//! | `timestamptz` | timestamptz | S in RFC 3339, with an offset or `Z`: the instant is kept, the offset is not |
//! | `timestamptz(seconds)`, `(milliseconds)`, `(microseconds)` | timestamptz | N since 1970; the unit is never guessed |
//! | `uuid` | uuid | S in the form with hyphens |
//! | `list<T>` | list | L whose members are all `T` or NULL |
//! | `set<T>` | list, sorted | SS, NS or BS whose members are all `T`: apart from `list`, so that both come back as they were |
//! | `map<string,T>` | map | M whose values are all `T` or NULL |
//! | `struct<a: T, …>` | struct | M; members that are not declared or not of their type stand in `_rest` |
//! | `json` | string | everything, as canonical JSON |
//!
//! Times finer than a microsecond do not fit. Inside lists and maps, a struct takes only what it can hold whole.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_schema::{DataType, Field, TimeUnit};
use lakehouse_core::schema::lake_name;

/// A declared type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    String,
    Number,
    Int,
    Long,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Double,
    Boolean,
    Binary,
    Date,
    Timestamp,
    /// From text, or from numbers of a unit.
    Timestamptz(Option<Unit>),
    Uuid,
    List(Box<ColumnType>),
    Set(Box<ColumnType>),
    Map(Box<ColumnType>),
    /// Member names at the source, in their order in the lake.
    Struct(Vec<(String, ColumnType)>),
    Json,
}

/// What a number since 1970 counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
}

/// Why a text is no type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidType {
    #[error("no column type {0:?}")]
    Unknown(String),
    #[error("a decimal has 1 to 38 digits and no more decimal places than digits")]
    Decimal,
    #[error("a set has members of type string, number, long, int, decimal, double or binary")]
    Set,
    #[error("members {0:?} and {1:?} of a struct meet as one name")]
    Members(String, String),
    #[error("types are nested too deep")]
    Depth,
}

/// Iceberg readers follow no deeper nesting than DynamoDB's own.
const DEEPEST: usize = 32;

impl FromStr for ColumnType {
    type Err = InvalidType;

    fn from_str(text: &str) -> Result<Self, InvalidType> {
        parse(text.trim(), 0)
    }
}

fn parse(text: &str, depth: usize) -> Result<ColumnType, InvalidType> {
    let unknown = || InvalidType::Unknown(text.to_owned());
    if depth > DEEPEST {
        return Err(InvalidType::Depth);
    }
    let inside = |name: &str, close: char| {
        let rest = text.get(name.len()..)?.trim_start();
        let begins = text.get(..name.len())?.eq_ignore_ascii_case(name);
        let open = if close == '>' { '<' } else { '(' };
        rest.strip_prefix(open)?.strip_suffix(close).filter(|_| begins).map(str::trim)
    };
    let nested = |text: &str| parse(text, depth + 1).map(Box::new);
    if let Some(arguments) = inside("decimal", ')') {
        return decimal(arguments);
    }
    if let Some(unit) = inside("timestamptz", ')') {
        return Ok(ColumnType::Timestamptz(Some(match unit.to_ascii_lowercase().as_str() {
            "seconds" => Unit::Seconds,
            "milliseconds" => Unit::Milliseconds,
            "microseconds" => Unit::Microseconds,
            _ => return Err(unknown()),
        })));
    }
    if let Some(element) = inside("list", '>') {
        return Ok(ColumnType::List(nested(element)?));
    }
    if let Some(element) = inside("set", '>') {
        let element = nested(element)?;
        return if may_be_in_a_set(&element) { Ok(ColumnType::Set(element)) } else { Err(InvalidType::Set) };
    }
    if let Some(arguments) = inside("map", '>') {
        let (key, value) = arguments.split_once(',').ok_or_else(unknown)?;
        return match key.trim().eq_ignore_ascii_case("string") {
            true => Ok(ColumnType::Map(nested(value.trim())?)),
            false => Err(unknown()),
        };
    }
    if let Some(members) = inside("struct", '>') {
        return structure(members, depth);
    }
    Ok(match text.to_ascii_lowercase().as_str() {
        "string" => ColumnType::String,
        "number" => ColumnType::Number,
        "int" => ColumnType::Int,
        "long" => ColumnType::Long,
        "double" => ColumnType::Double,
        "boolean" => ColumnType::Boolean,
        "binary" => ColumnType::Binary,
        "date" => ColumnType::Date,
        "timestamp" => ColumnType::Timestamp,
        "timestamptz" => ColumnType::Timestamptz(None),
        "uuid" => ColumnType::Uuid,
        "json" => ColumnType::Json,
        _ => return Err(unknown()),
    })
}

fn decimal(arguments: &str) -> Result<ColumnType, InvalidType> {
    let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
    let parse = |text: &str| text.trim().parse::<u8>().map_err(|_| InvalidType::Decimal);
    let (precision, scale) = (parse(precision)?, parse(scale)?);
    match (1..=38).contains(&precision) && scale <= precision {
        true => Ok(ColumnType::Decimal { precision, scale }),
        false => Err(InvalidType::Decimal),
    }
}

fn may_be_in_a_set(element: &ColumnType) -> bool {
    use ColumnType::{Binary, Decimal, Double, Int, Long, Number, String};
    matches!(element, String | Number | Int | Long | Decimal { .. } | Double | Binary)
}

fn structure(members: &str, depth: usize) -> Result<ColumnType, InvalidType> {
    let mut fields: Vec<(String, ColumnType)> = Vec::new();
    for member in split_members(members) {
        let (name, member_type) = member.split_once(':').ok_or_else(|| InvalidType::Unknown(member.to_owned()))?;
        let name = name.trim();
        let lake = lake_name(name);
        if lake.is_empty() {
            return Err(InvalidType::Unknown(member.to_owned()));
        }
        if let Some((other, _)) = fields.iter().find(|(other, _)| lake_name(other) == lake) {
            return Err(InvalidType::Members(other.clone(), name.to_owned()));
        }
        fields.push((name.to_owned(), parse(member_type.trim(), depth + 1)?));
    }
    Ok(ColumnType::Struct(fields))
}

/// At commas that stand in no brackets.
fn split_members(members: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let (mut depth, mut start) = (0i32, 0);
    for (place, letter) in members.char_indices() {
        match letter {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            ',' if depth == 0 => {
                all.push(members[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    all.push(members[start..].trim());
    all
}

/// As it is declared.
impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::String => f.write_str("string"),
            ColumnType::Number => f.write_str("number"),
            ColumnType::Int => f.write_str("int"),
            ColumnType::Long => f.write_str("long"),
            ColumnType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            ColumnType::Double => f.write_str("double"),
            ColumnType::Boolean => f.write_str("boolean"),
            ColumnType::Binary => f.write_str("binary"),
            ColumnType::Date => f.write_str("date"),
            ColumnType::Timestamp => f.write_str("timestamp"),
            ColumnType::Timestamptz(None) => f.write_str("timestamptz"),
            ColumnType::Timestamptz(Some(unit)) => {
                let unit = match unit {
                    Unit::Seconds => "seconds",
                    Unit::Milliseconds => "milliseconds",
                    Unit::Microseconds => "microseconds",
                };
                write!(f, "timestamptz({unit})")
            }
            ColumnType::Uuid => f.write_str("uuid"),
            ColumnType::List(element) => write!(f, "list<{element}>"),
            ColumnType::Set(element) => write!(f, "set<{element}>"),
            ColumnType::Map(value) => write!(f, "map<string,{value}>"),
            ColumnType::Struct(members) => {
                f.write_str("struct<")?;
                for (number, (name, member)) in members.iter().enumerate() {
                    write!(f, "{}{name}: {member}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str(">")
            }
            ColumnType::Json => f.write_str("json"),
        }
    }
}

impl ColumnType {
    /// The column's type in the core's terms.
    pub fn data_type(&self) -> DataType {
        match self {
            ColumnType::String | ColumnType::Number | ColumnType::Json => DataType::Utf8,
            ColumnType::Int => DataType::Int32,
            ColumnType::Long => DataType::Int64,
            ColumnType::Decimal { precision, scale } => DataType::Decimal128(*precision, scale.cast_signed()),
            ColumnType::Double => DataType::Float64,
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Binary => DataType::Binary,
            ColumnType::Date => DataType::Date32,
            ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::Timestamptz(_) => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            ColumnType::Uuid => DataType::FixedSizeBinary(16),
            ColumnType::List(element) => DataType::List(Arc::new(Field::new("element", element.data_type(), true))),
            ColumnType::Set(element) => DataType::List(Arc::new(Field::new("element", element.data_type(), true))),
            ColumnType::Map(value) => {
                let key = Field::new("key", DataType::Utf8, false);
                let entry = vec![key, Field::new("value", value.data_type(), true)];
                DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entry.into()), false)), false)
            }
            ColumnType::Struct(members) => {
                let field =
                    |(name, member): &(String, ColumnType)| Field::new(lake_name(name), member.data_type(), true);
                DataType::Struct(members.iter().map(field).collect())
            }
        }
    }
}
