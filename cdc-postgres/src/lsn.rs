//! Text form of a WAL position. Owns parsing and printing of `X/Y`; positions themselves are plain `u64` everywhere.

use std::fmt;

/// A text that is not a WAL position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WAL position has the form X/Y with one to eight hexadecimal digits on each side")]
pub struct ParseLsnError;

/// Reads a position such as `16/B374D848`.
///
/// # Errors
/// Anything the server's own `pg_lsn` input would refuse.
pub fn parse(text: &str) -> Result<u64, ParseLsnError> {
    let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
    Ok((u64::from(half(high)?) << 32) | u64::from(half(low)?))
}

/// Prints a position the way the server does.
#[must_use]
pub fn format(lsn: u64) -> String {
    Lsn(lsn).to_string()
}

/// A position that displays as `X/Y`, for log fields and statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

fn half(digits: &str) -> Result<u32, ParseLsnError> {
    // `from_str_radix` alone would also take a plus sign.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ParseLsnError);
    }
    u32::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_round_trip() {
        for lsn in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, 0x16_B374_D848, u64::MAX] {
            assert_eq!(parse(&format(lsn)), Ok(lsn));
        }
        assert_eq!(format(0x16_B374_D848), "16/B374D848");
        assert_eq!(format(0), "0/0");
        assert_eq!(parse("0/a"), Ok(10));
    }

    #[test]
    fn malformed_positions_are_refused() {
        for text in ["", "/", "0", "0/", "/0", "g/0", "0/123456789", "+1/0", "1/-1", " 0/0", "0/0 ", "0/0/0", "0/é"] {
            assert_eq!(parse(text), Err(ParseLsnError), "{text:?}");
        }
    }
}
