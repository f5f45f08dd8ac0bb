//! DynamoDB numbers: up to 38 significant digits and an exponent, as text. They never pass through a float.
//!
//! One number has many spellings (`1`, `1.0`, `1E0`, `0.1e1`). A key must be the same key in all of them, and servers
//! print them differently (D50), so everything is brought into one canonical form first.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Significant digits that DynamoDB keeps.
const DIGITS: usize = 38;
/// Exponents of the first significant digit that DynamoDB accepts.
const SMALLEST: i32 = -130;
const LARGEST: i32 = 125;

/// A number in canonical form: no leading zero, no trailing zero, no minus on zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Number {
    negative: bool,
    /// Significant digits, the first and the last not `0`; empty for zero.
    digits: String,
    /// Power of ten of the last digit.
    exponent: i32,
}

/// Why a text is no number of DynamoDB's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNumber {
    #[error("not a decimal number")]
    Malformed,
    #[error("more than 38 significant digits")]
    TooManyDigits,
    #[error("magnitude outside 1E-130 to 9.99E125")]
    OutOfRange,
}

impl FromStr for Number {
    type Err = InvalidNumber;

    fn from_str(text: &str) -> Result<Self, InvalidNumber> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| InvalidNumber::Malformed)?),
            None => (rest, 0i32),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !plain(whole) || !plain(fraction) {
            return Err(InvalidNumber::Malformed);
        }
        let shift = i32::try_from(fraction.len()).map_err(|_| InvalidNumber::OutOfRange)?;
        let exponent = exponent.checked_sub(shift).ok_or(InvalidNumber::OutOfRange)?;
        Self::canonical(negative, &format!("{whole}{fraction}"), exponent)
    }
}

impl Number {
    fn canonical(negative: bool, digits: &str, exponent: i32) -> Result<Self, InvalidNumber> {
        let significant = digits.trim_start_matches('0');
        let kept = significant.trim_end_matches('0');
        if kept.is_empty() {
            return Ok(Self { negative: false, digits: String::new(), exponent: 0 });
        }
        if kept.len() > DIGITS {
            return Err(InvalidNumber::TooManyDigits);
        }
        let dropped = i32::try_from(significant.len() - kept.len()).map_err(|_| InvalidNumber::OutOfRange)?;
        let exponent = exponent.checked_add(dropped).ok_or(InvalidNumber::OutOfRange)?;
        let first = exponent.checked_add(i32::try_from(kept.len()).unwrap_or(i32::MAX) - 1);
        match first {
            Some(first) if (SMALLEST..=LARGEST).contains(&first) => {
                Ok(Self { negative, digits: kept.to_owned(), exponent })
            }
            _ => Err(InvalidNumber::OutOfRange),
        }
    }

    /// The power of ten of the first digit; zero stands below all others.
    fn magnitude(&self) -> i32 {
        match self.digits.len() {
            0 => i32::MIN,
            digits => self.exponent + i32::try_from(digits).unwrap_or(i32::MAX) - 1,
        }
    }

    /// The number times `10^scale` as an integer; `None` if it has more decimal places, or more than 38 digits then.
    pub fn unscaled(&self, scale: u8) -> Option<i128> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = usize::try_from(self.exponent.checked_add(i32::from(scale))?).ok()?;
        if self.digits.len() + zeros > DIGITS {
            return None;
        }
        let value: i128 = format!("{}{}", self.digits, "0".repeat(zeros)).parse().ok()?;
        Some(if self.negative { -value } else { value })
    }
}

/// As numbers go.
impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let size = || self.magnitude().cmp(&other.magnitude()).then_with(|| self.digits.cmp(&other.digits));
        match (self.negative, other.negative) {
            (false, false) => size(),
            (true, true) => size().reverse(),
            (negative, _) => {
                if negative {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Plain digits where the exponent is small, scientific notation else; equal numbers have equal text.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.digits.is_empty() {
            return f.write_str("0");
        }
        let sign = if self.negative { "-" } else { "" };
        match self.exponent {
            0 => write!(f, "{sign}{}", self.digits),
            exponent @ 1..=20 => write!(f, "{sign}{}{}", self.digits, "0".repeat(exponent.unsigned_abs() as usize)),
            exponent @ -38..=-1 => {
                let places = exponent.unsigned_abs() as usize;
                let padded = format!("{:0>width$}", self.digits, width = places + 1);
                let (whole, fraction) = padded.split_at(padded.len() - places);
                write!(f, "{sign}{whole}.{fraction}")
            }
            exponent => write!(f, "{sign}{}E{exponent}", self.digits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_has_one_text() {
        for (spellings, text) in [
            (&["1", "1.0", "1E0", "0.1e1", "+01.000", "10e-1"][..], "1"),
            (&["0", "-0", "0.000", "0E99"][..], "0"),
            (&["-12.50", "-1.25E1", "-1250e-2"][..], "-12.5"),
            (&["100", "1e2"][..], "100"),
            (&["1E-130"][..], "1E-130"),
            (&["9.9999999999999999999999999999999999999E+125"][..], "99999999999999999999999999999999999999E88"),
        ] {
            for spelling in spellings {
                assert_eq!(spelling.parse::<Number>().map(|n| n.to_string()).as_deref(), Ok(text), "{spelling}");
            }
        }
    }

    #[test]
    fn numbers_stand_in_order() {
        let ascending =
            ["-9e125", "-10", "-9.5", "-9", "-1e-130", "0", "1e-130", "0.5", "1", "1.05", "1.5", "10", "9e125"];
        let numbers = ascending.map(|text| text.parse::<Number>().unwrap());
        for (place, one) in numbers.iter().enumerate() {
            for (other_place, other) in numbers.iter().enumerate() {
                assert_eq!(one.cmp(other), place.cmp(&other_place), "{one} {other}");
            }
        }
    }

    #[test]
    fn what_dynamodb_refuses_is_refused() {
        let error = |text: &str| text.parse::<Number>().unwrap_err();
        assert_eq!(error(&"9".repeat(39)), InvalidNumber::TooManyDigits);
        assert_eq!(error("1E126"), InvalidNumber::OutOfRange);
        assert_eq!(error("1E-131"), InvalidNumber::OutOfRange);
        for malformed in ["", "-", ".", "1.2.3", "0x1", "1e", "e1", "NaN", "1e99999999999", "١"] {
            assert_eq!(error(malformed), InvalidNumber::Malformed, "{malformed}");
        }
    }

    #[test]
    fn decimals_are_exact_or_not_at_all() {
        let unscaled = |text: &str, scale| text.parse::<Number>().unwrap().unscaled(scale);
        assert_eq!(unscaled("-12.5", 2), Some(-1250));
        assert_eq!(unscaled("12.345", 2), None);
        assert_eq!(unscaled(&"9".repeat(38), 0), Some(99_999_999_999_999_999_999_999_999_999_999_999_999));
        assert_eq!(unscaled(&"9".repeat(38), 1), None);
        assert_eq!(unscaled("1E37", 0), Some(10i128.pow(37)));
        assert_eq!(unscaled("0", 9), Some(0));
    }
}
