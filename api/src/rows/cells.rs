//! One value of a column as text: for CSV and tables, and as JSON. No value is lost or rounded: what JSON numbers cannot
//! carry (decimals, infinities) is a JSON string.

use std::fmt::Write;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, types::DecimalType};
use arrow_schema::{DataType, TimeUnit};

/// The text of a value, nested ones as JSON; `None` is NULL.
pub(super) fn text(column: &dyn Array, row: usize) -> Option<String> {
    match scalar(column, row) {
        Scalar::Null => None,
        Scalar::Bare(text) | Scalar::Text(text) => Some(text),
        Scalar::Nested => {
            let mut out = String::new();
            write_json(&mut out, column, row);
            Some(out)
        }
    }
}

/// Appends the value as JSON.
pub(super) fn write_json(out: &mut String, column: &dyn Array, row: usize) {
    match scalar(column, row) {
        Scalar::Null => out.push_str("null"),
        Scalar::Bare(text) => out.push_str(&text),
        Scalar::Text(text) => write_string(out, &text),
        Scalar::Nested => write_nested(out, column, row),
    }
}

/// Appends `name:value` pairs of a row as one JSON object.
pub(super) fn write_object<'a>(out: &mut String, columns: impl Iterator<Item = (&'a str, &'a dyn Array)>, row: usize) {
    out.push('{');
    for (number, (name, column)) in columns.enumerate() {
        if number > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        write_json(out, column, row);
    }
    out.push('}');
}

enum Scalar {
    Null,
    /// A number or a truth value: JSON as it is.
    Bare(String),
    Text(String),
    Nested,
}

fn scalar(column: &dyn Array, row: usize) -> Scalar {
    if column.is_null(row) {
        return Scalar::Null;
    }
    macro_rules! number {
        ($kind:ty) => {
            Scalar::Bare(column.as_primitive::<$kind>().value(row).to_string())
        };
    }
    match column.data_type() {
        DataType::Null => Scalar::Null,
        DataType::Boolean => Scalar::Bare(column.as_boolean().value(row).to_string()),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => {
            let value = column.as_primitive::<Float32Type>().value(row);
            float(format!("{value:?}"), value.is_nan(), value.is_infinite(), value > 0.0)
        }
        DataType::Float64 => {
            let value = column.as_primitive::<Float64Type>().value(row);
            float(format!("{value:?}"), value.is_nan(), value.is_infinite(), value > 0.0)
        }
        DataType::Decimal128(precision, scale) => {
            let value = column.as_primitive::<Decimal128Type>().value(row);
            Scalar::Text(Decimal128Type::format_decimal(value, *precision, *scale))
        }
        DataType::Date32 => Scalar::Text(date(i64::from(column.as_primitive::<Date32Type>().value(row)))),
        DataType::Time64(TimeUnit::Microsecond) => {
            Scalar::Text(clock(column.as_primitive::<Time64MicrosecondType>().value(row)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let value = column.as_primitive::<TimestampMicrosecondType>().value(row);
            Scalar::Text(timestamp(value, zone.is_some()))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            let value = column.as_primitive::<TimestampNanosecondType>().value(row);
            let (micros, nanos) = (value.div_euclid(1_000), value.rem_euclid(1_000));
            let zone = if zone.is_some() { "Z" } else { "" };
            Scalar::Text(format!("{}{nanos:03}{zone}", timestamp(micros, false)))
        }
        DataType::Utf8 => Scalar::Text(column.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Scalar::Text(column.as_string::<i64>().value(row).to_owned()),
        DataType::Binary => Scalar::Text(hexadecimal(column.as_binary::<i32>().value(row))),
        DataType::LargeBinary => Scalar::Text(hexadecimal(column.as_binary::<i64>().value(row))),
        DataType::FixedSizeBinary(16) => Scalar::Text(uuid(column.as_fixed_size_binary().value(row))),
        DataType::FixedSizeBinary(_) => Scalar::Text(hexadecimal(column.as_fixed_size_binary().value(row))),
        DataType::List(_) | DataType::Map(_, _) | DataType::Struct(_) => Scalar::Nested,
        // No Iceberg type reads as anything else.
        other => Scalar::Text(format!("({other})")),
    }
}

fn float(shortest: String, nan: bool, infinite: bool, positive: bool) -> Scalar {
    match (nan, infinite, positive) {
        (true, _, _) => Scalar::Text("NaN".to_owned()),
        (_, true, true) => Scalar::Text("Infinity".to_owned()),
        (_, true, false) => Scalar::Text("-Infinity".to_owned()),
        _ => Scalar::Bare(shortest),
    }
}

fn write_nested(out: &mut String, column: &dyn Array, row: usize) {
    match column.data_type() {
        DataType::Struct(fields) => {
            let values = column.as_struct();
            let children = values.columns().iter().map(|child| child.as_ref());
            write_object(out, fields.iter().map(|field| field.name().as_str()).zip(children), row);
        }
        DataType::Map(_, _) => {
            let entries = column.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            out.push('{');
            for entry in 0..entries.len() {
                if entry > 0 {
                    out.push(',');
                }
                // JSON's keys are strings, whatever the map's are.
                write_string(out, &text(keys, entry).unwrap_or_default());
                out.push(':');
                write_json(out, values, entry);
            }
            out.push('}');
        }
        _ => {
            let elements = column.as_list::<i32>().value(row);
            out.push('[');
            for element in 0..elements.len() {
                if element > 0 {
                    out.push(',');
                }
                write_json(out, &elements, element);
            }
            out.push(']');
        }
    }
}

fn write_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a text is JSON"));
}

/// Sixteen bytes, and nothing else, as 8-4-4-4-12 digits.
pub(super) fn uuid(bytes: &[u8]) -> String {
    let digits = hexadecimal(bytes);
    let mut out = String::with_capacity(36);
    for (number, digit) in digits.chars().enumerate() {
        if matches!(number, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(digit);
    }
    out
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a string takes everything");
    }
    out
}

/// Days since 1970 in the proleptic Gregorian calendar. Dates here go far beyond what calendar libraries hold.
/// Algorithm: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn date(days: i64) -> String {
    const ERA: i64 = 146_097;
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(ERA), shifted.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let sign = match year {
        0..=9_999 => "",
        ..0 => "-",
        _ => "+",
    };
    format!("{sign}{:04}-{month:02}-{day:02}", year.abs())
}

/// Microseconds of a day.
fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    format!("{:02}:{:02}:{:02}.{:06}", seconds / 3_600, seconds / 60 % 60, seconds % 60, micros % 1_000_000)
}

fn timestamp(micros: i64, utc: bool) -> String {
    const DAY: i64 = 86_400_000_000;
    let zone = if utc { "Z" } else { "" };
    format!("{}T{}{zone}", date(micros.div_euclid(DAY)), clock(micros.rem_euclid(DAY)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{Int32Builder, ListBuilder, MapBuilder, StringBuilder};
    use arrow_array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray,
        StructArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    };
    use arrow_schema::Field;

    use super::*;

    fn check(column: &dyn Array, expected: &[(Option<&str>, &str)]) {
        assert_eq!(column.len(), expected.len());
        for (row, (as_text, as_json)) in expected.iter().enumerate() {
            let mut json = String::new();
            write_json(&mut json, column, row);
            assert_eq!((text(column, row).as_deref(), json.as_str()), (*as_text, *as_json));
            serde_json::from_str::<serde_json::Value>(&json).expect("valid JSON");
        }
    }

    #[test]
    fn scalars_keep_their_value() {
        check(&BooleanArray::from(vec![Some(true), None]), &[(Some("true"), "true"), (None, "null")]);
        check(&Int64Array::from(vec![i64::MIN]), &[(Some("-9223372036854775808"), "-9223372036854775808")]);
        check(
            &Float64Array::from(vec![1.0, -0.0, 1e300, 0.1, f64::NAN, f64::NEG_INFINITY]),
            &[
                (Some("1.0"), "1.0"),
                (Some("-0.0"), "-0.0"),
                (Some("1e300"), "1e300"),
                (Some("0.1"), "0.1"),
                (Some("NaN"), "\"NaN\""),
                (Some("-Infinity"), "\"-Infinity\""),
            ],
        );
        let decimals =
            Decimal128Array::from(vec![150, -5, 10_i128.pow(38) - 1]).with_precision_and_scale(38, 2).unwrap();
        check(
            &decimals,
            &[
                (Some("1.50"), "\"1.50\""),
                (Some("-0.05"), "\"-0.05\""),
                (Some("999999999999999999999999999999999999.99"), "\"999999999999999999999999999999999999.99\""),
            ],
        );
        check(
            &StringArray::from(vec!["a\"\n", "true", "1"]),
            &[(Some("a\"\n"), "\"a\\\"\\n\""), (Some("true"), "\"true\""), (Some("1"), "\"1\"")],
        );
        check(&BinaryArray::from(vec![&[0u8, 255][..]]), &[(Some("00ff"), "\"00ff\"")]);
        assert_eq!(uuid(&[0x11; 16]), "11111111-1111-1111-1111-111111111111");
    }

    #[test]
    fn times_reach_to_the_ends_of_their_types() {
        check(
            &Date32Array::from(vec![0, -719_528, -735_160, 19_782, i32::MAX]),
            &[
                (Some("1970-01-01"), "\"1970-01-01\""),
                (Some("0000-01-01"), "\"0000-01-01\""),
                (Some("-0043-03-15"), "\"-0043-03-15\""),
                (Some("2024-02-29"), "\"2024-02-29\""),
                (Some("+5881580-07-11"), "\"+5881580-07-11\""),
            ],
        );
        check(&Time64MicrosecondArray::from(vec![3_723_000_004]), &[(Some("01:02:03.000004"), "\"01:02:03.000004\"")]);
        check(
            &TimestampMicrosecondArray::from(vec![-1, i64::MAX]),
            &[
                (Some("1969-12-31T23:59:59.999999"), "\"1969-12-31T23:59:59.999999\""),
                (Some("+294247-01-10T04:00:54.775807"), "\"+294247-01-10T04:00:54.775807\""),
            ],
        );
        let utc = TimestampMicrosecondArray::from(vec![0]).with_timezone("+00:00");
        check(&utc, &[(Some("1970-01-01T00:00:00.000000Z"), "\"1970-01-01T00:00:00.000000Z\"")]);
        assert!(timestamp(i64::MIN, true).starts_with("-290308-12-21T"));
    }

    #[test]
    fn nested_values_are_json() {
        let mut lists = ListBuilder::new(Int32Builder::new());
        lists.append_value([Some(1), None]);
        lists.append_null();
        check(&lists.finish(), &[(Some("[1,null]"), "[1,null]"), (None, "null")]);
        let mut maps = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
        maps.keys().append_value("a\"");
        maps.values().append_value(1);
        maps.append(true).unwrap();
        check(&maps.finish(), &[(Some("{\"a\\\"\":1}"), "{\"a\\\"\":1}")]);
        let x: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
        let point = StructArray::from(vec![(Arc::new(Field::new("x", DataType::Float64, true)), x)]);
        check(&point, &[(Some("{\"x\":0.5}"), "{\"x\":0.5}")]);
    }
}
