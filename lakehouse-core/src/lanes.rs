//! How far the lanes of a source's log have been read, for sources whose log has more than one. Pure: no I/O, no clock.
//!
//! A write-ahead log is one lane, and its [`Position`](crate::position::Position) says all. A log in shards has many, that
//! begin, end and split. Its position is the number of a boundary, counted up by whoever reads it, and what had been read
//! at that boundary stands here, in the same commit (protocol B1, D30). Numbers are compared to put boundaries in order;
//! lanes alone decide what has been read (protocol A2, A3).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Digits of the longest offset.
const DIGITS: usize = 40;

/// A place in one lane: a number of up to 40 digits, with the zeros that it is written with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneOffset {
    /// Padded with zeros, so that numbers are in the order of their text.
    digits: [u8; DIGITS],
    written: u8,
}

/// The text is not a number of up to 40 digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an offset: it has 1 to {DIGITS} decimal digits")]
pub struct InvalidOffset(String);

impl FromStr for LaneOffset {
    type Err = InvalidOffset;

    fn from_str(text: &str) -> Result<Self, InvalidOffset> {
        let digits = text.as_bytes();
        if digits.is_empty() || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
            return Err(InvalidOffset(text.to_owned()));
        }
        let mut padded = [b'0'; DIGITS];
        padded[DIGITS - digits.len()..].copy_from_slice(digits);
        Ok(Self { digits: padded, written: u8::try_from(digits.len()).expect("at most 40") })
    }
}

impl fmt::Display for LaneOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits[DIGITS - usize::from(self.written)..]).unwrap_or_default())
    }
}

impl fmt::Debug for LaneOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a lane has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Known, and nothing read yet.
    #[default]
    Nothing,
    /// Up to the change at this offset, that one included.
    Offset(LaneOffset),
    /// Read to its end: nothing will come any more.
    End,
}

impl Reached {
    fn includes(self, offset: LaneOffset) -> bool {
        self >= Reached::Offset(offset)
    }
}

/// One lane of a log. A field that this binary does not know is refused: read past, it could be where the lane stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// The lane that it goes on from. Not read before that one has ended (D13).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(default, skip_serializing_if = "Reached::is_nothing", with = "reached_text")]
    pub at: Reached,
}

impl Reached {
    fn is_nothing(&self) -> bool {
        *self == Reached::Nothing
    }
}

/// The lanes of one source table's log.
///
/// A lane leaves only when it has ended, a cut says so, its children are here, and its parent has left before it. So a lane
/// that is missing here is either old, or a descendant of one that is here; and of an old one nothing is said again, as
/// nobody starts before the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableLanes {
    /// The log's own name: another log under the same table is another source (D2).
    pub log: String,
    pub lanes: BTreeMap<String, Lane>,
    /// Milliseconds since 1970 up to which every open lane has been seen at its tip; what a client waits for (C9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_until: Option<i64>,
}

impl TableLanes {
    /// True if the change at `offset` of `lane` has been read.
    pub fn includes(&self, lane: &str, offset: LaneOffset) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.at.includes(offset))
    }

    /// True if everything that `other` has read is read here too.
    pub fn cover(&self, other: &TableLanes) -> bool {
        self.log == other.log
            && other.lanes.iter().all(|(name, theirs)| match self.lanes.get(name) {
                Some(ours) => ours.at >= theirs.at,
                None => theirs.at == Reached::Nothing || !other.descends_from(theirs, self),
            })
    }

    /// What has been read when both have been: a table that stands ahead of its cut has read one lane further than the
    /// batch that reaches it next, and that batch another.
    #[must_use]
    pub fn join(&self, other: &TableLanes) -> TableLanes {
        let mut joined = self.clone();
        joined.read_until = self.read_until.max(other.read_until);
        for (name, theirs) in &other.lanes {
            match joined.lanes.get_mut(name) {
                Some(ours) => ours.at = ours.at.max(theirs.at),
                None if other.descends_from(theirs, self) => {
                    joined.lanes.insert(name.clone(), theirs.clone());
                }
                // It has left here: all of it is read.
                None => {}
            }
        }
        joined
    }

    /// True if the line of parents of one of our lanes meets a lane of `elder`: then `elder` does not know it yet.
    fn descends_from(&self, lane: &Lane, elder: &TableLanes) -> bool {
        let mut parent = lane.parent.as_ref();
        // A line longer than all lanes is a circle, which no log has.
        for _ in 0..=self.lanes.len() {
            let Some(name) = parent else { return elder.lanes.is_empty() };
            if elder.lanes.contains_key(name) {
                return true;
            }
            parent = match self.lanes.get(name) {
                Some(next) => next.parent.as_ref(),
                None => return elder.lanes.is_empty(),
            };
        }
        false
    }
}

/// The lanes of all tables of a pipeline, by name at the source; empty for a source with a single log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lanes(BTreeMap<String, Arc<TableLanes>>);

impl Lanes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn of(&self, table: &str) -> Option<&Arc<TableLanes>> {
        self.0.get(table)
    }

    pub fn set(&mut self, table: &str, lanes: TableLanes) {
        self.0.insert(table.to_owned(), Arc::new(lanes));
    }

    /// Milliseconds since 1970 up to which all logs have been seen at their tips.
    pub fn read_until(&self) -> Option<i64> {
        let each = self.0.values().map(|lanes| lanes.read_until);
        each.reduce(|some, other| Some(some?.min(other?))).flatten()
    }

    pub fn tables(&self) -> impl Iterator<Item = (&str, &Arc<TableLanes>)> {
        self.0.iter().map(|(table, lanes)| (table.as_str(), lanes))
    }
}

impl FromIterator<(String, Arc<TableLanes>)> for Lanes {
    fn from_iter<I: IntoIterator<Item = (String, Arc<TableLanes>)>>(tables: I) -> Self {
        Self(tables.into_iter().collect())
    }
}

mod reached_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use super::Reached;

    const END: &str = "end";

    pub(super) fn serialize<S: Serializer>(reached: &Reached, serializer: S) -> Result<S::Ok, S::Error> {
        match reached {
            Reached::Nothing => serializer.serialize_str(""),
            Reached::Offset(offset) => serializer.collect_str(offset),
            Reached::End => serializer.serialize_str(END),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reached, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(Reached::Nothing),
            END => Ok(Reached::End),
            text => text.parse().map(Reached::Offset).map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(number: u64) -> LaneOffset {
        number.to_string().parse().unwrap()
    }

    /// `name<parent@where`, where `where` is a number, `-` or `end`.
    fn lanes(texts: &[&str]) -> TableLanes {
        let lane = |text: &&str| {
            let (line, at) = text.split_once('@').unwrap();
            let (name, parent) = line.split_once('<').map_or((line, None), |(name, parent)| (name, Some(parent)));
            let at = match at {
                "-" => Reached::Nothing,
                "end" => Reached::End,
                number => Reached::Offset(number.parse().unwrap()),
            };
            (name.to_owned(), Lane { parent: parent.map(str::to_owned), at })
        };
        TableLanes { log: "log".to_owned(), lanes: texts.iter().map(lane).collect(), read_until: None }
    }

    #[test]
    fn offsets_are_ordered_as_numbers_and_not_as_text() {
        assert!(offset(9) < offset(10));
        let long: LaneOffset = "9".repeat(40).parse().unwrap();
        assert!(offset(u64::MAX) < long);
        assert_eq!(long.to_string(), "9".repeat(40));
        let zeros: LaneOffset = "0007".parse().unwrap();
        assert_eq!(zeros.to_string(), "0007", "services look for the text that they gave out");
        assert!(zeros < offset(8) && offset(6) < zeros);
        for wrong in ["", "-1", "1.0", "٣", &"1".repeat(41)] {
            assert!(wrong.parse::<LaneOffset>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_is_read_when_its_own_lane_is_behind_it() {
        let read = lanes(&["a@5", "b@-", "c@end"]);
        assert!(read.includes("a", offset(5)) && !read.includes("a", offset(6)));
        assert!(!read.includes("b", offset(1)));
        assert!(read.includes("c", offset(u64::MAX)));
        assert!(!read.includes("unknown", offset(1)));
    }

    #[test]
    fn lanes_cover_each_other_lane_by_lane() {
        let left = lanes(&["a@5", "b@9"]);
        let right = lanes(&["a@6", "b@8"]);
        assert!(!left.cover(&right) && !right.cover(&left));
        assert!(left.cover(&lanes(&["a@5", "b@-"])));
        let mut other = left.clone();
        other.log = "another".to_owned();
        assert!(!left.cover(&other));
    }

    #[test]
    fn a_child_that_is_not_known_here_is_not_covered() {
        let before = lanes(&["p@7"]);
        let after = lanes(&["p@end", "c<p@3"]);
        assert!(after.cover(&before) && !before.cover(&after));
        // Nor a grandchild, over a child that has nothing read.
        assert!(!before.cover(&lanes(&["p@7", "c<p@-", "g<c@1"])));
        // Of a lane that nobody has read anything of there is nothing to cover.
        assert!(before.cover(&lanes(&["p@7", "c<p@-"])));
    }

    #[test]
    fn lanes_that_have_left_are_covered_by_what_came_after_them() {
        let old = lanes(&["p@3", "q@5"]);
        let now = lanes(&["g<c@1", "q@end", "r<q@-"]);
        assert!(now.cover(&old));
        assert!(!old.cover(&now), "r is a child of q");
        assert!(
            !TableLanes { log: "log".to_owned(), ..TableLanes::default() }.cover(&old),
            "nothing covers only nothing"
        );
    }

    #[test]
    fn joined_lanes_have_read_what_either_has() {
        let ours = lanes(&["q@end", "r<q@4", "a@5"]);
        let theirs = lanes(&["p@end", "q<p@9", "a@7", "b<a@2"]);
        let joined = ours.join(&theirs);
        assert_eq!(joined, lanes(&["q@end", "r<q@4", "a@7", "b<a@2"]), "p has left, b is not known here yet");
        assert!(joined.cover(&ours) && joined.cover(&theirs));
    }

    #[test]
    fn lanes_survive_their_text() {
        let all = lanes(&["a@5", "b<a@-", "c<a@end"]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text, r#"{"log":"log","lanes":{"a":{"at":"5"},"b":{"parent":"a"},"c":{"parent":"a","at":"end"}}}"#);
        assert_eq!(serde_json::from_str::<TableLanes>(&text).unwrap(), all);
    }
}
