//! How the tables of a rollback come back: the operation goes back, or its held tables are released. The pipeline catches
//! them up, now or at its next start.

use std::collections::BTreeMap;

use futures::FutureExt;
use lakehouse_core::commit::{Exit, Journal, LeaveOut, Release, Stage};
use lakehouse_core::rollback;
use lakehouse_core::schema::TableName;

use super::control::on_control;
use crate::failure::Failure;
use crate::lake::Lake;

/// Only what has not come to its end can be given up.
///
/// # Errors
/// `NOT_OPEN`.
pub(crate) fn check_open(journal: &Journal) -> Result<(), Failure> {
    if journal.stage.is_open() {
        return Ok(());
    }
    let remedy = "undo it, if its tables are still held";
    Err(Failure::failed("NOT_OPEN", &journal.id, "the operation has come to its end", remedy))
}

/// Behind its end an operation has no way out any more.
fn check_not_closed(journal: &Journal) -> Result<(), Failure> {
    if journal.stage != Stage::Closed {
        return Ok(());
    }
    let message = "its tables are held no more, and the time of its tags is over";
    let remedy = "roll back to another snapshot; `lakehouse snapshots` lists those that are kept";
    Err(Failure::failed("OPERATION_CLOSED", &journal.id, message, remedy))
}

/// Turns an open operation back, or begins to undo one whose tables are held. [`super::rollback::finish`] ends it.
///
/// # Errors
/// `OPERATION_CLOSED`; `OPERATION_UNKNOWN` for one that is not the last; `NOT_HELD` once its tables go on.
pub(crate) async fn turn_back(lake: &Lake, pipeline: &str, journal: &Journal, reason: &str) -> Result<(), Failure> {
    check_not_closed(journal)?;
    let known = (journal.id.as_str(), reason);
    on_control(lake, pipeline, known, |control, (id, reason)| rollback::turn_back(control, id, reason).boxed()).await
}

/// Which tables of an operation are going to be released, and how.
pub(crate) struct Releases {
    /// By names at the source.
    pub(crate) releases: BTreeMap<String, Release>,
    /// Their mirrors.
    pub(crate) tables: Vec<String>,
}

impl Releases {
    /// Of all tables of the operation, or of those that are named.
    ///
    /// # Errors
    /// `OPERATION_CLOSED`, `NOT_HELD` by the operation's stage; `REPLAY_IMPOSSIBLE`; `TABLE_UNKNOWN` where none of the names
    /// is among them.
    pub(crate) fn of(journal: &Journal, exit: Exit, only: &[TableName], leave_out: &LeaveOut) -> Result<Self, Failure> {
        check_not_closed(journal)?;
        if journal.stage != Stage::RolledBack {
            let message = format!("the operation is {}", journal.stage.as_str());
            return Err(Failure::failed("NOT_HELD", &journal.id, message, "see `lakehouse operations`"));
        }
        let mut releases = BTreeMap::new();
        let mut tables = Vec::new();
        for (table, rolled) in &journal.tables {
            if !only.is_empty() && !only.iter().any(|wanted| wanted.to_string() == *table) {
                continue;
            }
            let after = match exit {
                Exit::Replay => rolled.target_position.ok_or_else(|| {
                    let remedy = "undo, accept or resync it";
                    let message = "the position of the target's rows is not known";
                    Failure::failed("REPLAY_IMPOSSIBLE", table, message, remedy)
                })?,
                Exit::Accept | Exit::Undo => rolled.position,
            };
            let release = Release { operation: journal.id.clone(), after, exit, leave_out: leave_out.clone() };
            releases.insert(rolled.source.clone(), release);
            tables.push(table.clone());
        }
        if releases.is_empty() {
            let remedy = "see `lakehouse operations`";
            return Err(Failure::failed("TABLE_UNKNOWN", &journal.id, "the operation has no such table", remedy));
        }
        Ok(Self { releases, tables })
    }

    /// # Errors
    /// `NOT_HELD`, and `CHANGES_MISSED` of a table without a history that changes have passed.
    pub(crate) async fn request(&self, lake: &Lake, pipeline: &str) -> Result<(), Failure> {
        on_control(lake, pipeline, &self.releases, |control, releases| {
            control.release(BTreeMap::clone(releases)).boxed()
        })
        .await
    }
}
