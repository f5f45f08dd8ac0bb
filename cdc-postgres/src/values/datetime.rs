//! date, time, timestamp, timestamptz: ISO text and binary to days and microseconds since 1970, and binary to the
//! server's ISO text. `Ok(None)` is a value that the Arrow type cannot hold: ±infinity, out of range, 24:00:00.
//!
//! The calendar is the proleptic Gregorian one, as in PostgreSQL; its year `1 BC` is year 0 of the arithmetic. The
//! binary forms count from 2000-01-01, with the ends of the integer range for ±infinity.

use std::fmt::Write;

use super::{ValueError, fixed, malformed};

const DAYS_TO_2000: i64 = 10_957;
const DAY: i64 = 86_400_000_000;
const MICROS_TO_2000: i64 = DAYS_TO_2000 * DAY;
/// 0001-01-01 and 9999-12-31 in days since 1970.
const NARROW_DATES: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;

/// Days since 1970. `narrow` leaves only the years 0001 to 9999.
#[inline]
pub(super) fn date_from_text(value: &[u8], narrow: bool) -> Result<Option<i32>, ValueError> {
    match ascii_date(value) {
        Some(days) => Ok(date32(days, narrow)),
        None => not_a_date(value, "date"),
    }
}

#[inline]
pub(super) fn date_from_binary(value: &[u8], narrow: bool) -> Result<Option<i32>, ValueError> {
    match fixed(value, "date").map(i32::from_be_bytes)? {
        i32::MIN | i32::MAX => Ok(None),
        days => Ok(date32(i64::from(days) + DAYS_TO_2000, narrow)),
    }
}

#[inline]
fn date32(days: i64, narrow: bool) -> Option<i32> {
    if narrow && !NARROW_DATES.contains(&days) {
        return None;
    }
    i32::try_from(days).ok()
}

/// Microseconds since 1970 of a timestamp without a zone.
#[inline]
pub(super) fn timestamp_from_text(value: &[u8]) -> Result<Option<i64>, ValueError> {
    match ascii_timestamp(value) {
        Some((micros, b"")) => Ok(micros),
        _ => not_a_date(value, "timestamp"),
    }
}

/// Microseconds since 1970 UTC of a timestamp with a zone, which is `+00` under the settings of R8.
#[inline]
pub(super) fn timestamptz_from_text(value: &[u8]) -> Result<Option<i64>, ValueError> {
    match ascii_timestamp(value) {
        Some((micros, b"+00")) => Ok(micros),
        Some((micros, zone)) => match zone_offset(zone) {
            Some(offset) => Ok(micros.and_then(|micros| micros.checked_sub(offset))),
            None => malformed("timestamptz"),
        },
        None => not_a_date(value, "timestamptz"),
    }
}

/// Both kinds of timestamp; the one with a zone counts in UTC.
#[inline]
pub(super) fn timestamp_from_binary(value: &[u8]) -> Result<Option<i64>, ValueError> {
    match fixed(value, "timestamp").map(i64::from_be_bytes)? {
        i64::MIN | i64::MAX => Ok(None),
        micros => Ok(micros.checked_add(MICROS_TO_2000)),
    }
}

/// Microseconds since midnight.
#[inline]
pub(super) fn time_from_text(value: &[u8]) -> Result<Option<i64>, ValueError> {
    match ascii_time(value) {
        Some((micros, b"")) => within_day(micros),
        _ => malformed("time"),
    }
}

#[inline]
pub(super) fn time_from_binary(value: &[u8]) -> Result<Option<i64>, ValueError> {
    fixed(value, "time").map(i64::from_be_bytes).and_then(within_day)
}

#[inline]
fn within_day(micros: i64) -> Result<Option<i64>, ValueError> {
    match micros {
        0..DAY => Ok(Some(micros)),
        DAY => Ok(None),
        _ => malformed("time"),
    }
}

/// The server's text for a binary date.
pub(super) fn date_text(value: &[u8]) -> Result<String, ValueError> {
    let days = fixed(value, "date").map(i32::from_be_bytes)?;
    let mut out = String::new();
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        _ => {
            let era = push_date(&mut out, i64::from(days) + DAYS_TO_2000);
            out.push_str(era);
        }
    }
    Ok(out)
}

/// The server's text for a binary timestamp; `zone` is `+00` or nothing.
pub(super) fn timestamp_text(value: &[u8], zone: &str) -> Result<String, ValueError> {
    let micros = fixed(value, "timestamp").map(i64::from_be_bytes)?;
    let mut out = String::new();
    match micros {
        i64::MAX => out.push_str("infinity"),
        i64::MIN => out.push_str("-infinity"),
        _ => {
            let era = push_date(&mut out, micros.div_euclid(DAY) + DAYS_TO_2000);
            out.push(' ');
            push_time(&mut out, micros.rem_euclid(DAY));
            out.push_str(zone);
            out.push_str(era);
        }
    }
    Ok(out)
}

/// The server's text for a binary time.
pub(super) fn write_time_text(value: &[u8], out: &mut String) -> Result<(), ValueError> {
    match fixed(value, "time").map(i64::from_be_bytes)? {
        micros @ 0..=DAY => push_time(out, micros),
        _ => return malformed("time"),
    }
    Ok(())
}

pub(super) fn time_text(value: &[u8]) -> Result<String, ValueError> {
    let mut out = String::new();
    write_time_text(value, &mut out)?;
    Ok(out)
}

#[cold]
fn not_a_date<T>(value: &[u8], expected: &'static str) -> Result<Option<T>, ValueError> {
    match value {
        b"infinity" | b"-infinity" => Ok(None),
        _ => malformed(expected),
    }
}

/// `2024-01-31` or `0044-03-15 BC` in days since 1970.
#[inline]
fn ascii_date(value: &[u8]) -> Option<i64> {
    let (value, before_christ) = split_era(value);
    let (year, rest) = split_year(value)?;
    let &[m1, m2, b'-', d1, d2] = rest else { return None };
    days_since_1970(year, two(m1, m2), two(d1, d2), before_christ)
}

/// `2024-01-31 12:34:56.789` with `BC` at the very end. Gives the microseconds since 1970, if they fit, and what
/// stands behind the time.
#[inline]
fn ascii_timestamp(value: &[u8]) -> Option<(Option<i64>, &[u8])> {
    let (value, before_christ) = split_era(value);
    let (year, rest) = split_year(value)?;
    let (&[m1, m2, b'-', d1, d2, b' '], rest) = rest.split_first_chunk()? else {
        return None;
    };
    let days = days_since_1970(year, two(m1, m2), two(d1, d2), before_christ)?;
    let (micros, rest) = ascii_time(rest).filter(|(micros, _)| *micros < DAY)?;
    Some((days.checked_mul(DAY).and_then(|day| day.checked_add(micros)), rest))
}

/// `12:34:56.789012` in microseconds, and the rest. Up to 24:59:59: the callers know what 24 means to them.
#[inline]
fn ascii_time(value: &[u8]) -> Option<(i64, &[u8])> {
    let (&[h1, h2, b':', m1, m2, b':', s1, s2], mut rest) = value.split_first_chunk()? else {
        return None;
    };
    let (hour, minute, second) = (two(h1, h2), two(m1, m2), two(s1, s2));
    if hour > 24 || minute > 59 || second > 59 {
        return None;
    }
    let mut fraction = 0;
    if let [b'.', digits @ ..] = rest {
        (fraction, rest) = ascii_fraction(digits)?;
    }
    let seconds = hour * 3600 + minute * 60 + second;
    Some((i64::from(seconds) * 1_000_000 + i64::from(fraction), rest))
}

/// One to six digits behind the point in microseconds, and the rest.
#[inline]
fn ascii_fraction(value: &[u8]) -> Option<(u32, &[u8])> {
    // Nearly all are of full length.
    if let Some((&[a, b, c, d, e, f], rest)) = value.split_first_chunk() {
        let (high, middle, low) = (two(a, b), two(c, d), two(e, f));
        if high <= 99 && middle <= 99 && low <= 99 {
            let more = rest.first().is_some_and(u8::is_ascii_digit);
            return (!more).then_some((high * 10_000 + middle * 100 + low, rest));
        }
    }
    let length = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = value.split_at(length);
    if !(1..=6).contains(&length) {
        return None;
    }
    let fraction = digits.iter().fold(0, |sum, byte| sum * 10 + u32::from(byte - b'0'));
    Some((fraction * 10u32.pow(6 - length as u32), rest))
}

/// `+05`, `-05:30` or `+00:19:32` in microseconds.
#[cold]
fn zone_offset(zone: &[u8]) -> Option<i64> {
    let (sign, zone) = match zone {
        [b'+', zone @ ..] => (1, zone),
        [b'-', zone @ ..] => (-1, zone),
        _ => return None,
    };
    let (hour, minute, second) = match *zone {
        [a, b] => (two(a, b), 0, 0),
        [a, b, b':', c, d] => (two(a, b), two(c, d), 0),
        [a, b, b':', c, d, b':', e, f] => (two(a, b), two(c, d), two(e, f)),
        _ => return None,
    };
    // PostgreSQL allows zones up to ±15:59:59.
    (hour <= 15 && minute <= 59 && second <= 59)
        .then(|| sign * i64::from(hour * 3600 + minute * 60 + second) * 1_000_000)
}

#[inline]
fn split_era(value: &[u8]) -> (&[u8], bool) {
    match value {
        [date @ .., b' ', b'B', b'C'] => (date, true),
        date => (date, false),
    }
}

/// A year of four to seven digits and what stands behind its hyphen.
#[inline]
fn split_year(value: &[u8]) -> Option<(i64, &[u8])> {
    if let Some((&[a, b, c, d, b'-'], rest)) = value.split_first_chunk() {
        let (century, year) = (two(a, b), two(c, d));
        return (century <= 99 && year <= 99).then_some((i64::from(century * 100 + year), rest));
    }
    let length = value.iter().position(|&byte| byte == b'-').filter(|length| (5..=7).contains(length))?;
    let (digits, rest) = value.split_at(length);
    let mut year = 0;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        year = year * 10 + i64::from(digit);
    }
    Some((year, &rest[1..]))
}

/// The number of two digits; above every bound, which are all below 100, if they are none.
#[inline]
fn two(tens: u8, ones: u8) -> u32 {
    let (tens, ones) = (u32::from(tens.wrapping_sub(b'0')), u32::from(ones.wrapping_sub(b'0')));
    if tens > 9 || ones > 9 { 100 } else { tens * 10 + ones }
}

#[inline]
fn days_since_1970(year: i64, month: u32, day: u32, before_christ: bool) -> Option<i64> {
    if year == 0 {
        return None;
    }
    let year = if before_christ { 1 - year } else { year };
    // A year is on the same days as the one 400 years later, so that no year need be negative.
    let year = year.checked_add(SHIFT_YEARS as i64).and_then(|year| u64::try_from(year).ok())?;
    if day == 0 || day > days_in_month(year, month) {
        return None;
    }
    // Years that begin in March put the leap day last.
    let (march_year, march_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = u64::from((153 * march_month + 2) / 5 + day - 1);
    let days = march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400 + day_of_year;
    Some(days as i64 - SHIFT_DAYS - MARCH_0000_TO_1970)
}

/// Days from 0000-03-01, where the years that begin in March begin, to 1970-01-01.
const MARCH_0000_TO_1970: i64 = 719_468;
/// More than seven digits of a year, in whole cycles of 400 years with 146,097 days.
const SHIFT_YEARS: u64 = 400 * 50_000;
const SHIFT_DAYS: i64 = 146_097 * 50_000;

/// 0 where there is no such month. `year` may be shifted by cycles of 400.
#[inline]
fn days_in_month(year: u64, month: u32) -> u32 {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 0,
    }
}

/// Appends the date and gives the era that belongs at the end of the whole text.
fn push_date(out: &mut String, days: i64) -> &'static str {
    let days = days + MARCH_0000_TO_1970;
    let cycle = days.div_euclid(146_097);
    let day_of_cycle = days.rem_euclid(146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    write!(out, "{year:04}-{month:02}-{day:02}").expect("a string takes all text");
    era
}

fn push_time(out: &mut String, micros: i64) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write!(out, "{hour:02}:{minute:02}:{second:02}").expect("a string takes all text");
    if fraction > 0 {
        let digits = format!(".{fraction:06}");
        out.push_str(digits.trim_end_matches('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Result<Option<i32>, ValueError> {
        date_from_text(text.as_bytes(), false)
    }

    fn send_date(days_since_1970: i32) -> [u8; 4] {
        (days_since_1970 - DAYS_TO_2000 as i32).to_be_bytes()
    }

    #[test]
    fn dates_fit_from_the_first_to_the_last_of_postgres() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("2000-02-29", 11_016),
            ("1900-03-01", -25_508),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("0044-03-15 BC", -735_160),
            ("4714-11-24 BC", -2_440_588),
            ("9999-12-31", 2_932_896),
            ("10000-01-01", 2_932_897),
            ("5874897-12-31", 2_145_042_905),
        ] {
            assert_eq!(date(text), Ok(Some(days)), "{text}");
            assert_eq!(date_from_binary(&send_date(days), false), Ok(Some(days)), "{text}");
            assert_eq!(date_text(&send_date(days)).as_deref(), Ok(text));
        }
    }

    #[test]
    fn infinite_dates_overflow_with_their_text() {
        for (text, days) in [("infinity", i32::MAX), ("-infinity", i32::MIN)] {
            assert_eq!(date(text), Ok(None));
            assert_eq!(date_from_binary(&days.to_be_bytes(), false), Ok(None));
            assert_eq!(date_text(&days.to_be_bytes()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn narrow_dates_end_with_the_year_9999() {
        for (text, days) in [("0001-12-31 BC", -719_163), ("10000-01-01", 2_932_897)] {
            assert_eq!(date_from_text(text.as_bytes(), true), Ok(None));
            assert_eq!(date_from_binary(&send_date(days), true), Ok(None));
        }
        assert_eq!(date_from_text(b"9999-12-31", true), Ok(Some(2_932_896)));
        assert_eq!(date_from_text(b"0001-01-01", true), Ok(Some(-719_162)));
    }

    #[test]
    fn impossible_dates_are_refused() {
        for text in [
            "",
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "2024-00-10",
            "2024-01-00",
            "2024-1-1",
            "0000-01-01",
            "2024-01-31 AD",
            "24-01-31",
            "2024/01/31",
            "2024-01-31x",
            "-2024-01-31",
            "12345678-01-01",
            " BC",
            "Infinity",
        ] {
            assert!(date(text).is_err(), "{text}");
        }
        assert!(date_from_binary(&[0; 3], false).is_err());
    }

    #[test]
    fn timestamps_are_microseconds_since_1970() {
        for (text, micros) in [
            ("1970-01-01 00:00:00", 0),
            ("1969-12-31 23:59:59.999999", -1),
            ("2024-01-31 12:34:56.789012", 1_706_704_496_789_012),
            ("2024-01-31 12:34:56.7", 1_706_704_496_700_000),
            ("0044-03-15 00:00:00 BC", -735_160 * DAY),
            ("4714-11-24 00:00:00 BC", -2_440_588 * DAY),
            ("294247-01-10 04:00:54.775807", i64::MAX),
        ] {
            assert_eq!(timestamp_from_text(text.as_bytes()), Ok(Some(micros)), "{text}");
            let sent = (micros - MICROS_TO_2000).to_be_bytes();
            assert_eq!(timestamp_from_binary(&sent), Ok(Some(micros)), "{text}");
            assert_eq!(timestamp_text(&sent, "").as_deref(), Ok(text));

            let zoned = match text.strip_suffix(" BC") {
                Some(text) => format!("{text}+00 BC"),
                None => format!("{text}+00"),
            };
            assert_eq!(timestamptz_from_text(zoned.as_bytes()), Ok(Some(micros)), "{zoned}");
            assert_eq!(timestamp_text(&sent, "+00"), Ok(zoned));
        }
    }

    #[test]
    fn other_zones_are_counted_in() {
        let micros = |text: &str| timestamptz_from_text(text.as_bytes());
        assert_eq!(micros("1970-01-01 05:30:00+05:30"), Ok(Some(0)));
        assert_eq!(micros("1969-12-31 16:00:00-08"), Ok(Some(0)));
        assert_eq!(micros("1970-01-01 00:19:32+00:19:32"), Ok(Some(0)));
        assert!(micros("1970-01-01 00:00:00").is_err());
        assert!(micros("1970-01-01 00:00:00+").is_err());
        assert!(micros("1970-01-01 00:00:00+16").is_err());
        assert!(timestamp_from_text(b"1970-01-01 00:00:00+00").is_err());
    }

    #[test]
    fn timestamps_beyond_64_bits_overflow_with_their_text() {
        for (text, sent) in [
            ("infinity", i64::MAX),
            ("-infinity", i64::MIN),
            ("294247-01-10 04:00:54.775808", i64::MAX - MICROS_TO_2000 + 1),
            ("294276-12-31 23:59:59.999999", 9_223_371_331_199_999_999),
        ] {
            assert_eq!(timestamp_from_text(text.as_bytes()), Ok(None), "{text}");
            assert_eq!(timestamp_from_binary(&sent.to_be_bytes()), Ok(None), "{text}");
            assert_eq!(timestamp_text(&sent.to_be_bytes(), "").as_deref(), Ok(text));
        }
        assert_eq!(timestamptz_from_text(b"294276-12-31 23:59:59.999999+00"), Ok(None));
    }

    #[test]
    fn malformed_timestamps_are_refused() {
        for text in [
            "",
            "2024-01-31",
            "2024-01-31T12:34:56",
            "2024-01-31 12:34",
            "2024-01-31 12:34:60",
            "2024-01-31 24:00:00",
            "2024-01-31 12:60:00",
            "2024-01-31 12:34:56.",
            "2024-01-31 12:34:56.1234567",
            "2024-01-31 12:34:56 ",
        ] {
            assert!(timestamp_from_text(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_of_the_day_overflows_a_time() {
        for (text, micros) in [("00:00:00", 0i64), ("23:59:59.999999", DAY - 1), ("12:00:00.5", DAY / 2 + 500_000)] {
            assert_eq!(time_from_text(text.as_bytes()), Ok(Some(micros)));
            assert_eq!(time_from_binary(&micros.to_be_bytes()), Ok(Some(micros)));
            assert_eq!(time_text(&micros.to_be_bytes()).as_deref(), Ok(text));
        }
        assert_eq!(time_from_text(b"24:00:00"), Ok(None));
        assert_eq!(time_from_binary(&DAY.to_be_bytes()), Ok(None));
        assert_eq!(time_text(&DAY.to_be_bytes()).as_deref(), Ok("24:00:00"));
        for text in ["24:00:01", "24:00:00.000001", "1:00:00", "12:00", "12:00:00+00", ""] {
            assert!(time_from_text(text.as_bytes()).is_err(), "{text}");
        }
        assert!(time_from_binary(&(DAY + 1).to_be_bytes()).is_err());
        assert!(time_from_binary(&(-1i64).to_be_bytes()).is_err());
    }

    #[test]
    fn random_instants_read_the_same_from_text_and_binary() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..50_000 {
            let sent = rng.i64(-211_813_488_000_000_000..9_223_371_331_200_000_000).to_be_bytes();
            let text = timestamp_text(&sent, "").unwrap();
            assert_eq!(timestamp_from_text(text.as_bytes()), timestamp_from_binary(&sent), "{text}");

            let sent = rng.i32(-2_451_545..2_145_031_949).to_be_bytes();
            let text = date_text(&sent).unwrap();
            assert_eq!(date(&text), date_from_binary(&sent, false), "{text}");

            let sent = rng.i64(0..=DAY).to_be_bytes();
            let text = time_text(&sent).unwrap();
            assert_eq!(time_from_text(text.as_bytes()), time_from_binary(&sent), "{text}");
        }
    }
}
