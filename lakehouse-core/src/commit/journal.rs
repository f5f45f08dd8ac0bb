//! The journal of a rollback (protocol E7), and how its tables come back into the cut (E5).
//!
//! It lives in the control table, so that one commit opens it, stops the worker and raises the epoch. What has been done to
//! a table stands in that table, in the commit that did it; the journal never repeats it. Plain data: who acts on it is
//! `rollback.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::position::Position;
use crate::tags::{TARGET, UNDO};

use super::properties::{OPERATION, unreadable};

/// Why a mirror has left the cut that a rollback holds: it takes no changes, its history goes on.
pub const ROLLED_BACK: &str = "ROLLED_BACK";
/// The same, of a table without a history that has missed changes since: only a resync brings it back.
pub const CHANGES_MISSED: &str = "CHANGES_MISSED";

/// Name of the tag on the head that a rollback has left (protocol E4).
pub fn undo_tag(operation: &str) -> String {
    format!("{UNDO}{operation}")
}

/// Name of the tag on the snapshot that a rollback has gone to (protocol E6).
pub fn target_tag(operation: &str) -> String {
    format!("{TARGET}{operation}")
}

/// One rollback of one or more tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub id: String,
    pub stage: Stage,
    /// Why it goes back, where it was not asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turned: Option<String>,
    /// The epoch of the direction in which it goes: all its commits carry it.
    pub epoch: u64,
    pub by: String,
    pub reason: String,
    /// Milliseconds since 1970, by the clock of who began it.
    pub begun_at: i64,
    /// The request that has begun it, of a program that may ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestDigest>,
    /// By the mirror's name.
    pub tables: BTreeMap<String, RolledTable>,
}

/// A request as the journal knows it again when its answer was lost, also after a restart of who answers. Hexadecimal
/// SHA-256: the journal is in every copy of the control table's metadata, which is no place for what callers send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestDigest {
    /// Of the caller's name and the key that the caller has chosen.
    pub key: String,
    /// Of what was asked for under this key.
    pub content: String,
}

/// How far an operation has come. Back never turns forward again (protocol E7 d).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Forward,
    Back,
    /// Every table stands at its target, and is held.
    RolledBack,
    /// Every table has the rows that it had before.
    Released,
    /// No table is held, and the time of its tags is over. In no journal: it is told by the tables (protocol E6).
    Closed,
}

impl Stage {
    /// A worker may not start (protocol D, ROLLBACK_OPEN).
    pub fn is_open(self) -> bool {
        matches!(self, Stage::Forward | Stage::Back)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Forward => "forward",
            Stage::Back => "back",
            Stage::RolledBack => "rolled_back",
            Stage::Released => "released",
            Stage::Closed => "closed",
        }
    }
}

/// One table of an operation. Snapshot ids are decimal texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledTable {
    /// The table's name at the source.
    pub source: String,
    /// The head that the person saw.
    pub head: String,
    pub target: String,
    /// The position of the target's rows; unknown where the snapshot that brought them has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_position: Option<Position>,
    /// The position that the table had, and keeps (protocol E2).
    pub position: Position,
}

/// What an operation has done to one table: the property `cdc.operation`, in the commit that makes it true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationMark {
    pub id: String,
    pub mark: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    RolledBack,
    Released,
    /// It has what its history brought since, and takes changes again.
    CaughtUp,
}

impl OperationMark {
    pub fn of(table: &LoadedTable) -> Result<Option<Self>, Problem> {
        let mark = table.property(OPERATION).map(serde_json::from_str).transpose();
        mark.map_err(|_| unreadable(table, OPERATION))
    }

    /// The mark that this operation has left on a table.
    pub fn by(table: &LoadedTable, operation: &str) -> Result<Option<Mark>, Problem> {
        Ok(Self::of(table)?.filter(|mark| mark.id == operation).map(|mark| mark.mark))
    }

    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("a mark is plain data")
    }
}

/// How a held mirror comes back: asked for by a person, done by the pipeline's next incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub operation: String,
    /// The mirror's rows are taken to be those of this position; what its history has since is applied.
    pub after: Position,
    pub exit: Exit,
    #[serde(default, skip_serializing_if = "LeaveOut::is_empty")]
    pub leave_out: LeaveOut,
}

/// The ways out of a hold (protocol E5); a resync is the fourth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The rows before the rollback, and all changes since.
    Undo,
    /// The rollback's rows, and all changes since its target, but those left out.
    Replay,
    /// The rollback's rows, and all changes since the rollback.
    Accept,
}

impl Exit {
    pub fn as_str(self) -> &'static str {
        match self {
            Exit::Undo => "undo",
            Exit::Replay => "replay",
            Exit::Accept => "accept",
        }
    }
}

/// Changes that a replay does not bring back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveOut {
    /// By the source's own numbers of transactions.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub transactions: BTreeSet<i64>,
    /// Those that end behind the first position, up to the second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(Position, Position)>,
}

impl LeaveOut {
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty() && self.range.is_none()
    }

    /// True for a change that stays away.
    pub fn holds(&self, transaction: Option<i64>, position: Position) -> bool {
        transaction.is_some_and(|transaction| self.transactions.contains(&transaction))
            || self.range.is_some_and(|(after, up_to)| position > after && position <= up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(request: Option<RequestDigest>) -> Journal {
        Journal {
            id: "o".to_owned(),
            stage: Stage::Forward,
            turned: None,
            epoch: 3,
            by: "somebody".to_owned(),
            reason: "test".to_owned(),
            begun_at: 1,
            request,
            tables: BTreeMap::new(),
        }
    }

    #[test]
    fn a_journal_of_a_release_that_knew_no_requests_is_still_read() {
        let old = r#"{"id":"o","stage":"forward","epoch":3,"by":"somebody","reason":"test","begun_at":1,"tables":{}}"#;
        assert_eq!(serde_json::from_str::<Journal>(old).unwrap(), journal(None));
        assert_eq!(serde_json::to_string(&journal(None)).unwrap(), old, "and nothing new is written without one");
    }

    #[test]
    fn a_request_survives_the_journal() {
        let request = RequestDigest { key: "k".to_owned(), content: "c".to_owned() };
        let text = serde_json::to_string(&journal(Some(request.clone()))).unwrap();
        assert_eq!(serde_json::from_str::<Journal>(&text).unwrap().request, Some(request));
    }
}
