//! Tables that a rollback holds (protocol E5): their histories go on, their mirrors stand still, and by a person's word
//! they catch up from the history and are in the cut again.
//!
//! Catching up is one commit with a mark of its own, so that it is done exactly once however often it is tried; whatever
//! the history got between two tries is added to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::TableUpdate;
use tracing::{error, info};

use super::{CapturedTable, Lakehouse};
use crate::commit::{
    Advance, CHANGES_MISSED, Counts, Divergence, Exit, FileChange, Mark, OperationMark, Release, TableCommit,
    converged, properties, with_aged_tags, without_rollback,
};
use crate::error::{Problem, Reaction};
use crate::fold::{Range, history_begins};
use crate::mirror::Mirror;
use crate::read::TableReader;
use crate::replay::Replay;

impl Lakehouse {
    /// Its mirror stands still, its history goes on.
    pub(super) fn is_held(&self, source: &str) -> bool {
        self.left.get(source).is_some_and(|left| left.is_held())
    }

    /// Nothing of it goes on.
    pub(super) fn is_out(&self, source: &str) -> bool {
        self.left.get(source).is_some_and(|left| !left.is_held())
    }

    /// Changes have come for a held table. Without a history nobody will know them: only a resync can bring it back.
    pub(super) fn note_missed(&mut self, source: &str) {
        let has_history = self.tables.get(source).is_some_and(|captured| captured.history.is_some());
        if let Some(left) = self.left.get_mut(source).filter(|left| left.is_held() && !has_history) {
            CHANGES_MISSED.clone_into(&mut left.code);
        }
    }

    /// Brings back the tables that a person has released, and writes the cut with them.
    pub(super) async fn release_held(&mut self) -> Result<(), Problem> {
        let released: Vec<(String, Release)> = self
            .left
            .iter()
            .filter(|(source, left)| left.is_held() && self.tables.contains_key(*source))
            .filter_map(|(source, left)| Some((source.clone(), left.release.clone()?)))
            .collect();
        if released.is_empty() {
            return Ok(());
        }
        for (source, release) in released {
            match self.catch_up(&source, &release).await {
                Ok(rows) => {
                    info!(table = source, exit = release.exit.as_str(), rows, "held table is released");
                    self.left.remove(&source);
                }
                // It stays held; a person decides anew.
                Err(problem) if problem.reaction == Reaction::HaltTable => {
                    error!(table = source, code = problem.code, reason = problem.message, "held table stays held");
                    let left = self.left.get_mut(&source).expect("it was found there");
                    left.release = None;
                    left.reason = format!("{} was not possible: {}", release.exit.as_str(), problem.message);
                    if problem.code == CHANGES_MISSED {
                        CHANGES_MISSED.clone_into(&mut left.code);
                    }
                }
                Err(problem) => return Err(problem),
            }
        }
        self.protect();
        self.write_cut(self.resume_boundary()).await.map(drop)
    }

    /// Applies what the history has had since to the mirror, up to the cut. Returns the number of changes.
    async fn catch_up(&mut self, source: &str, release: &Release) -> Result<usize, Problem> {
        let captured = self.tables.get(source).expect("only a captured table is released");
        let schema = Arc::clone(&captured.schema);
        let wanted = schema.mirror_schema()?;
        let loaded = self.environment.catalog.load(&schema.mirror, None).await?;
        let loaded = loaded.ok_or_else(|| Problem::retry("TABLE_MISSING", source, "the table is gone"))?;
        let mark = OperationMark::by(&loaded, &release.operation)?;
        let mut mirror = self.open_mirror(loaded, &schema, &wanted).await?;
        let reached = mirror.table.expected().ok_or_else(|| not_covered(source, "its mirror has no position"))?;
        // A try that landed without being written to the cut: only what came since is missing.
        let after = if mark == Some(Mark::CaughtUp) { reached } else { release.after };
        let to = self.resume_boundary();
        let range = Range { after, up_to: to.position };
        let (rows, up_to, lanes) = match &captured.history {
            Some(history) => {
                let begins = history_begins(&history.table.loaded)?;
                if begins.is_none_or(|begins| begins > after) {
                    return Err(not_covered(source, "its history begins later"));
                }
                let head = history.table.loaded.snapshot_id();
                let reader = TableReader::at(&self.environment.storage, &history.table.loaded, head).await?;
                let rows = tokio::task::block_in_place(|| apply(&mut mirror, &reader, captured, range, release))?;
                (rows, to.position.max(reached), to.lanes.of(source).cloned())
            }
            // Nothing has passed, or the code would say so; but of many lanes nobody has watched them.
            None if schema.many_lanes => {
                let message = "the table has no history, and its log has not been read while it was held";
                return Err(Problem::halt_table(CHANGES_MISSED, source, message, "resync the table"));
            }
            None => (0, to.position.max(reached), None),
        };
        let commit = tokio::task::block_in_place(|| mirror.finish(up_to))?;
        let commit = commit.unwrap_or_else(|| {
            TableCommit::new(FileChange::default(), Advance::Changes { to: up_to }, Counts::default())
        });
        let commit = TableCommit { lanes, beside: marks(&mirror, release, self.environment.rollback_tags)?, ..commit };
        let change = commit.change.clone();
        let landed = self.committer.commit(&mut mirror.table, commit).await?;
        tokio::task::block_in_place(|| mirror.landed(&landed, &change))?;
        self.tables.get_mut(source).expect("it was there").mirror = Some(mirror);
        Ok(rows)
    }
}

fn apply(
    mirror: &mut Mirror,
    history: &TableReader,
    captured: &CapturedTable,
    range: Range,
    release: &Release,
) -> Result<usize, Problem> {
    let mut replay = Replay::of(history, &captured.schema, range, &release.leave_out)?;
    let mut rows = 0;
    while let Some(chunk) = replay.next_window()? {
        rows += chunk.len();
        let mut chunks = [chunk];
        mirror.prepare(&mut chunks)?;
        mirror.write_part(&chunks)?;
    }
    Ok(rows)
}

/// What the table says of itself from now on, and how long its tags stay (protocol E6).
fn marks(mirror: &Mirror, release: &Release, keep: Duration) -> Result<Vec<TableUpdate>, Problem> {
    let loaded = &mirror.table.loaded;
    let mark = OperationMark { id: release.operation.clone(), mark: Mark::CaughtUp };
    let mut set = HashMap::from([(properties::OPERATION.to_owned(), mark.text())]);
    let mut updates = with_aged_tags(loaded, &release.operation, keep);
    if release.exit == Exit::Accept || !release.leave_out.is_empty() {
        let divergence = Divergence::begin(loaded, release.after)?;
        set.insert(properties::DIVERGED.to_owned(), divergence.text());
    } else {
        updates.extend(without_rollback(loaded));
        // A replay from before an older divergence ends that, too; an undo brings back what there was.
        let older = Divergence::of(loaded)?.filter(|_| release.exit == Exit::Replay);
        updates.extend(older.filter(|older| older.is_undone(loaded)).and_then(|_| converged(loaded)));
    }
    updates.push(TableUpdate::SetProperties { updates: set });
    Ok(updates)
}

fn not_covered(source: &str, why: &str) -> Problem {
    let message = format!("what has happened since cannot be replayed: {why}");
    Problem::halt_table("REPLAY_IMPOSSIBLE", source, message, "undo, accept or resync the table")
}
