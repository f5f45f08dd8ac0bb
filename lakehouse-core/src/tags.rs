//! Names that people give to snapshots: what has one is read by it, and does not expire.
//!
//! A tag is one change of metadata on exactly the state that was looked at (protocol F2), as the tags of rollbacks and of
//! checkpoints are, whose names nobody else may take. It moves no position and adds no snapshot: a writer that finds it goes on.

use std::fmt;

use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use tracing::info;

use crate::catalog::LoadedTable;
use crate::commit::{Maintainer, references};
use crate::error::Problem;
use crate::position::Position;
use crate::schema::TableName;

/// Before the name of the tag on the head that a rollback has left (protocol E4).
pub(crate) const UNDO: &str = "undo/";
/// Before the name of the tag on the snapshot that a rollback has gone to (protocol E6).
pub(crate) const TARGET: &str = "target/";
/// Before the names of checkpoints, the last snapshot of each hour and day.
pub const HOURLY: &str = "hourly/";
pub const DAILY: &str = "daily/";
/// Before the names of tags that stay for ever, whatever age somebody has given them.
pub const PROTECTED: &str = "protected/";

/// Tags that people may have on one table: each keeps a snapshot in the metadata, and that must stay small.
const MOST: usize = 1_000;
/// The longest name, in characters.
const LONGEST: usize = 128;
/// Rounds against others that move the table, before somebody has to ask again.
const ROUNDS: u32 = 8;

/// A tag as an update of Iceberg's, without an age.
pub fn set_tag(name: &str, snapshot_id: i64) -> TableUpdate {
    let reference = SnapshotReference::new(snapshot_id, SnapshotRetention::Tag { max_ref_age_ms: None });
    TableUpdate::SetSnapshotRef { ref_name: name.to_owned(), reference }
}

/// The name of a tag that a person may set and take away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagName(String);

impl TagName {
    /// # Errors
    /// `TAG_NAME` for one that is the product's own, that is taken for another point of the past, or that other engines and
    /// addresses cannot write.
    pub fn new(text: &str) -> Result<Self, Problem> {
        let wrong = |message: &str| {
            let remedy = "take letters, digits, `.`, `_` and `-`, such as before-import-17";
            Err(Problem::halt("TAG_NAME", text, message, remedy))
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let parts = || text.split('/');
        if text.len() > LONGEST {
            return wrong("the name has more than 128 characters");
        }
        if parts().any(|part| part.is_empty() || !part.bytes().all(is_plain)) {
            return wrong("the name has other characters, or nothing before or behind a slash");
        }
        if text.parse::<i64>().is_ok() || text.parse::<Position>().is_ok() {
            return wrong("the name would be taken for a snapshot's id or for a position");
        }
        if text == MAIN_BRANCH || is_own(text) {
            return wrong("names of this kind are the product's own");
        }
        Ok(Self(text.to_owned()))
    }

    /// The same for a tag that is to stay.
    ///
    /// # Errors
    /// `TAG_NAME`.
    pub fn protected(text: &str) -> Result<Self, Problem> {
        Self::new(&format!("{PROTECTED}{}", text.strip_prefix(PROTECTED).unwrap_or(text)))
    }

    pub fn is_protected(&self) -> bool {
        self.0.starts_with(PROTECTED)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Made and taken away by rollbacks and by maintenance.
fn is_own(name: &str) -> bool {
    [UNDO, TARGET, HOURLY, DAILY].iter().any(|prefix| name.starts_with(prefix))
}

/// The snapshot that has this name; `None` if none has.
///
/// # Errors
/// `TAG_NAME` where it is the name of another engine's branch.
pub fn tagged(table: &LoadedTable, name: &TagName) -> Result<Option<i64>, Problem> {
    match references(table).get(name.as_str()) {
        None => Ok(None),
        Some(found) if matches!(found.retention, SnapshotRetention::Tag { .. }) => Ok(Some(found.snapshot_id)),
        Some(_) => {
            let message = format!("{name} is the name of a branch");
            Err(Problem::halt("TAG_NAME", table.name.to_string(), message, "take another name"))
        }
    }
}

/// Gives a snapshot a name, which `seen` had when somebody looked. What is there already stays as it is. A protected name
/// never moves: it is taken away, and given anew.
///
/// # Errors
/// `TAG_MOVED` where another snapshot has the name than was seen; `SNAPSHOT_UNKNOWN`; `TAG_LIMIT`; `TAG_NAME`; `TABLE_MOVED`.
pub async fn set(
    maintainer: &Maintainer,
    table: &TableName,
    name: &TagName,
    snapshot_id: i64,
    seen: Option<i64>,
) -> Result<(), Problem> {
    let seen = seen.filter(|_| !name.is_protected());
    for _ in 0..ROUNDS {
        let loaded = maintainer.load(table, None).await?;
        let found = tagged(&loaded, name)?;
        if found == Some(snapshot_id) {
            return Ok(());
        }
        check_seen(&loaded, name, found, seen)?;
        check_room(&loaded, snapshot_id)?;
        let done = |table: &LoadedTable| tagged(table, name).is_ok_and(|found| found == Some(snapshot_id));
        if maintainer.change_metadata(&loaded, vec![set_tag(name.as_str(), snapshot_id)], done).await? {
            info!(table = %table, tag = %name, snapshot_id, "snapshot is tagged");
            return Ok(());
        }
    }
    Err(never_rests(table))
}

/// Takes a name away from the snapshot that had it when somebody looked; from then on that one may expire.
///
/// # Errors
/// `TAG_MOVED` where another snapshot has the name, or none; `TAG_NAME`; `TABLE_MOVED`.
pub async fn remove(maintainer: &Maintainer, table: &TableName, name: &TagName, seen: i64) -> Result<(), Problem> {
    for _ in 0..ROUNDS {
        let loaded = maintainer.load(table, None).await?;
        check_seen(&loaded, name, tagged(&loaded, name)?, Some(seen))?;
        let update = TableUpdate::RemoveSnapshotRef { ref_name: name.as_str().to_owned() };
        let done = |table: &LoadedTable| tagged(table, name).is_ok_and(|found| found.is_none());
        if maintainer.change_metadata(&loaded, vec![update], done).await? {
            info!(table = %table, tag = %name, snapshot_id = seen, "tag is taken away");
            return Ok(());
        }
    }
    Err(never_rests(table))
}

fn check_seen(table: &LoadedTable, name: &TagName, found: Option<i64>, seen: Option<i64>) -> Result<(), Problem> {
    if found == seen {
        return Ok(());
    }
    let message = match found {
        Some(id) => format!("the tag {name} is at snapshot {id}"),
        None => format!("the table has no tag {name}"),
    };
    let remedy = "look at it again with `lakehouse snapshots`, and say what you have seen; nothing was changed";
    Err(Problem::halt("TAG_MOVED", table.name.to_string(), message, remedy))
}

fn check_room(table: &LoadedTable, snapshot_id: i64) -> Result<(), Problem> {
    if table.metadata.snapshot_by_id(snapshot_id).is_none() {
        let message = format!("the table has no snapshot {snapshot_id}");
        let remedy = "name one that `lakehouse snapshots` lists";
        return Err(Problem::halt("SNAPSHOT_UNKNOWN", table.name.to_string(), message, remedy));
    }
    let of_people = references(table).into_keys().filter(|name| name != MAIN_BRANCH && !is_own(name)).count();
    match of_people < MOST {
        true => Ok(()),
        false => {
            let message = format!("the table has {of_people} tags, and each keeps a snapshot");
            let remedy = "take some away that nobody needs: `lakehouse tag TABLE --name NAME --remove`";
            Err(Problem::halt("TAG_LIMIT", table.name.to_string(), message, remedy))
        }
    }
}

fn never_rests(table: &TableName) -> Problem {
    Problem::retry("TABLE_MOVED", table.to_string(), "others commit to the table all the time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_other_point_and_none_of_our_own() {
        for good in ["v1", "before-import-17", "release/2026.11", "protected/audit_2026", "maine", "undone", "x/12"] {
            assert_eq!(TagName::new(good).map(|name| name.to_string()).ok().as_deref(), Some(good));
        }
        let long = "x".repeat(LONGEST + 1);
        for wrong in [
            "",
            "main",
            "undo/x",
            "target/x",
            "hourly/x",
            "daily/2026-11-21",
            "17",
            "-17",
            "0/16B3748",
            "a/b",
            "x/",
            "/x",
            "x//y",
            "a b",
            "ä",
            "x:y",
            "x\n",
            &long,
        ] {
            assert_eq!(TagName::new(wrong).map_err(|problem| problem.code), Err("TAG_NAME"), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_protected_says_so_once() {
        let name = TagName::protected("audit").unwrap();
        assert_eq!((name.as_str(), name.is_protected()), ("protected/audit", true));
        assert_eq!(TagName::protected("protected/audit").unwrap(), name);
        assert!(TagName::protected("").is_err() && !TagName::new("protect").unwrap().is_protected());
        // Behind the prefix nothing is mistaken for something else.
        assert!(TagName::protected("17").is_ok() && TagName::protected("hourly/x").is_ok());
    }
}
