//! Dates and times as declared columns take them: microseconds since 1970, exact or not at all.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Timelike};

use super::types::Unit;
use crate::number::Number;

/// `2026-11-21`, as days since 1970.
pub(super) fn date(text: &str) -> Option<i32> {
    let plain = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| plain)?;
    i32::try_from(date.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

/// `2026-11-21T09:00:00.123456`, without an offset.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    // The parser takes shorter forms too.
    let plain = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let whole = text.get(..10).and_then(date).is_some() && [11, 12, 14, 15, 17, 18].into_iter().all(plain);
    let format = if text.as_bytes().get(10) == Some(&b' ') { "%Y-%m-%d %H:%M:%S%.f" } else { "%Y-%m-%dT%H:%M:%S%.f" };
    let time = NaiveDateTime::parse_from_str(text, format).ok().filter(|_| whole)?;
    is_exact(time.nanosecond(), text).then(|| time.and_utc().timestamp_micros())
}

/// RFC 3339.
pub(super) fn timestamptz(text: &str) -> Option<i64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    is_exact(time.nanosecond(), text).then(|| time.timestamp_micros())
}

/// Whole microseconds, no leap second, and no digits that the parser has left out.
fn is_exact(nanoseconds: u32, text: &str) -> bool {
    let fraction = text.split_once('.').map_or("", |(_, rest)| rest);
    let fraction = fraction.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or("");
    fraction.bytes().skip(6).all(|digit| digit == b'0') && nanoseconds < 1_000_000_000
}

/// A number of units since 1970; fractions down to a microsecond.
pub(super) fn since_1970(number: &Number, unit: Unit) -> Option<i64> {
    let places = match unit {
        Unit::Seconds => 6,
        Unit::Milliseconds => 3,
        Unit::Microseconds => 0,
    };
    i64::try_from(number.unscaled(places)?).ok()
}
