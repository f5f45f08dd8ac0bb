//! What an operator changes in a pipeline's control table, while a worker may be writing cuts to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use lakehouse_core::commit::{Control, is_overtaken};
use lakehouse_core::error::{Problem, Reaction};

use crate::audit::Intent;
use crate::failure::{Exit, Failure};
use crate::lake::Lake;

/// Tries against a worker that is quicker.
const TRIES: u32 = 8;

/// One change, and what it needs to know. A boxed future: that of a closure with borrows of its own cannot be told to be
/// `Send`, which a task of the HTTP service needs.
type Change<C, T> = for<'a> fn(&'a mut Control, &'a C) -> BoxFuture<'a, Result<T, Problem>>;

/// Does one change on the control table as it stands; again, as long as a cut comes in between.
pub(super) async fn on_control<C: Sync, T>(
    lake: &Lake,
    pipeline: &str,
    known: C,
    change: Change<C, T>,
) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        let mut control = Control::open(Arc::clone(&lake.catalog), lake.storage.clone(), pipeline).await?;
        tries += 1;
        match change(&mut control, &known).await {
            Err(problem) if is_overtaken(&problem) && tries < TRIES => {}
            other => return other.map_err(moved),
        }
    }
}

/// Snapshots at which the tables stand, for the audit trail; none where that cannot be told, and nothing without a trail.
pub(crate) async fn heads<'a>(
    intent: &Intent,
    lake: &Lake,
    tables: impl Iterator<Item = &'a String>,
) -> BTreeMap<&'a str, Option<String>> {
    let mut heads = BTreeMap::new();
    for name in tables.filter(|_| intent.is_kept()) {
        let table = match name.parse() {
            Ok(name) => lake.catalog.load(&name, None).await.ok().flatten(),
            Err(_) => None,
        };
        let head = table.and_then(|table| table.snapshot_id()).map(|id| id.to_string());
        heads.insert(name.as_str(), head);
    }
    heads
}

/// What has moved since a person looked has exit code 3: nothing was changed.
pub(super) fn moved(problem: Problem) -> Failure {
    match problem.code {
        "CUT_NOT_REACHED" | "TABLE_MOVED" | "TAG_MOVED" | "FENCED" | "ROLLBACK_OPEN" => {
            let remedy = match problem.reaction {
                Reaction::Retry => "try again; nothing was changed".to_owned(),
                Reaction::Halt | Reaction::HaltTable => problem.remedy,
            };
            // With its reaction: over HTTP what time heals is told apart from what somebody has to look at again.
            Failure { problem: Problem { remedy, ..problem }, exit: Exit::Moved }
        }
        _ => Failure::from(problem),
    }
}
