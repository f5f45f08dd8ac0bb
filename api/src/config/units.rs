//! Values with units: `"512MiB"`, `"60s"`. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A length of time as it is written: `500ms`, `60s`, `5m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A number of bytes as it is written: `512MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// The text is not a number with a known unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub(crate) struct InvalidUnit {
    text: String,
    wanted: &'static str,
}

/// Units of time in milliseconds, the largest first.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Units of size in bytes, the largest first.
const SIZES: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Span {
    type Err = InvalidUnit;

    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let wanted = "a whole number with ms, s, m, h or d, such as 60s";
        measure(text, &TIMES, wanted).map(|milliseconds| Self(Duration::from_millis(milliseconds)))
    }
}

impl FromStr for Bytes {
    type Err = InvalidUnit;

    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        measure(text, &SIZES, "a whole number with B, KiB, MiB, GiB or TiB, such as 512MiB").map(Self)
    }
}

fn measure(text: &str, units: &[(&str, u64)], wanted: &'static str) -> Result<u64, InvalidUnit> {
    let invalid = || InvalidUnit { text: text.to_owned(), wanted };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, factor)| *factor);
    factor.and_then(|factor| number.checked_mul(factor)).ok_or_else(invalid)
}

/// The largest unit that leaves a whole number.
fn write(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor) && (value > 0 || *factor == 1);
    match units.iter().find(fits) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => unreachable!("the smallest unit is 1"),
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &TIMES)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &SIZES)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_its_text() {
        for text in ["0ms", "500ms", "60s", "5m", "24h", "7d"] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
        for text in ["0B", "1B", "10KiB", "512MiB", "3GiB", "1TiB"] {
            assert_eq!(text.parse::<Bytes>().expect(text).to_string(), text);
        }
        assert_eq!("90s".parse::<Span>().expect("90s").to_string(), "90s");
        assert_eq!("120s".parse::<Span>().expect("120s").to_string(), "2m");
    }

    #[test]
    fn numbers_without_a_known_unit_are_refused() {
        for text in ["", "60", "s", "1.5s", "-1s", "5 minutes", "1sec", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["", "512", "1MB", "1mib", "0x10B", "20000000000TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
