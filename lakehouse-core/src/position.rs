//! How far a source has been read. Pure: no I/O, no clock.
//!
//! Does not own the proof that a position is durable; only a landed cut can give that (`commit.rs`).

use std::fmt;
use std::str::FromStr;

use crate::lanes::Lanes;

/// A place in a source's change log: the offset just behind the last change included. Ordered, opaque. Of a log with many
/// lanes it is the number of a boundary; see [`Boundary`].
///
/// Its text is what write-ahead logs print: two hexadecimal halves with a slash between, `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// Before every change.
    pub const START: Position = Position(0);

    pub const fn new(offset: u64) -> Self {
        Self(offset)
    }

    pub const fn offset(self) -> u64 {
        self.0
    }

    /// The next one, where positions are numbers of boundaries.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// True if a change that ends at `change` is already included.
    pub fn includes(self, change: Position) -> bool {
        change <= self
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A position at which no source transaction is open, and how far the lanes of the log had been read there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    pub position: Position,
    /// Empty for a log with one lane.
    pub lanes: Lanes,
}

impl From<Position> for Boundary {
    fn from(position: Position) -> Self {
        Self { position, lanes: Lanes::default() }
    }
}

/// The text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position of the form X/Y with hexadecimal halves")]
pub struct InvalidPosition(String);

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let parsed = text.trim().split_once('/').and_then(|(high, low)| Some((half(high)? << 32) | half(low)?));
        parsed.map(Position).ok_or_else(|| InvalidPosition(text.to_owned()))
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text() {
        for offset in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, 0x16_B374_D848, u64::MAX] {
            let position = Position::new(offset);
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!("00000016/b374d848".parse(), Ok(Position::new(0x16_B374_D848)));
    }

    #[test]
    fn text_that_is_no_position_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "x/1", "1/123456789", "+1/1", "1/1/1", "-1/2"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn order_follows_the_number_and_not_the_text() {
        let parsed = |text: &str| text.parse::<Position>().unwrap();
        assert!(parsed("1/0") > parsed("0/FFFFFFFF"));
        assert!(parsed("0/A") < parsed("0/10"));
    }
}
