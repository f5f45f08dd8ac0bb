//! Owns the step by which the index follows a rewrite of data files: no key is read and no run written.
//! Does not know how rows are led to their new place (`moved.rs`), nor who rewrites files and why.
use super::manifest::{Applied, Journal, Record};
use super::merge::lowest_id;
use super::moved::Rewrite;
use super::{IndexError, KeyIndex, Result, lock};
use crate::row_map::RowMap;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

/// Maps of this many bytes in memory are far below what one record, or a manifest, may hold.
const MOST_BYTES: usize = 1 << 30;

impl KeyIndex {
    /// The rows of files moved, and nothing else happened: the index stands at `snapshot` from now on. Durable as
    /// `apply`. Outputs of the map are live files then; files that it replaced are none any more, and numbers and
    /// addresses of theirs that the caller holds mean nothing. Files of the map that have no number do not matter.
    /// Pending entries and files stay pending.
    ///
    /// # Errors
    /// As `apply`; and `NotFollowed`, after which the index is as before.
    ///
    /// # Panics
    /// When all 2^32 - 1 file numbers are used.
    pub fn follow_rewrite(&mut self, snapshot: i64, map: &RowMap) -> Result<()> {
        self.wait_for_merges()?;
        let shared = self.shared.clone();
        // No merge begins while the journal is locked: those that do not know of this rewrite have lower ids.
        let mut journal = lock(&shared.journal);
        self.forget_moves();
        let rewrite = self.files.in_numbers(map, shared.next_run.load(Relaxed));
        self.check(map, &rewrite)?;
        self.record_rewrite(&mut journal, snapshot, map, &rewrite)?;
        // It is durable; memory follows.
        rewrite.renew(&mut self.young);
        rewrite.renew(&mut self.pending.memory);
        self.files.follow(map, rewrite);
        self.snapshot = Some(snapshot);
        lock(&shared.state).resolver = self.files.resolver();
        drop(journal);
        self.start_merges();
        Ok(())
    }

    fn check(&self, map: &RowMap, rewrite: &Rewrite) -> Result<()> {
        if !map.files.values().all(|file| file.places_below(map.outputs.len())) {
            return Err(IndexError::NotFollowed("its map names an output that it does not have"));
        }
        let applied = |path: &str| self.files.applied_number_of(path).is_some();
        if self.files.pending().any(|(_, path)| map.files.contains_key(path) && !applied(path)) {
            return Err(IndexError::NotFollowed("it replaced a file that is not part of a snapshot yet"));
        }
        let others: usize = self.files.moved().rewrites().iter().map(|rewrite| rewrite.bytes()).sum();
        if others + rewrite.bytes() > MOST_BYTES {
            return Err(IndexError::NotFollowed("its map is too large"));
        }
        Ok(())
    }

    fn record_rewrite(&self, journal: &mut Journal, snapshot: i64, map: &RowMap, rewrite: &Rewrite) -> Result<()> {
        let next_file = self.files.next();
        if !journal.wants_manifest(self.shared.shape.log) {
            return journal.append(Record::follow(snapshot, next_file, &map.outputs, rewrite));
        }
        let mut young = self.young.clone();
        rewrite.renew(&mut young);
        let replaced: HashSet<u32> = rewrite.files().iter().map(|(number, _)| *number).collect();
        let outputs = rewrite.outputs().iter().copied().zip(map.outputs.iter().map(String::as_str));
        let stayed = self.files.applied().filter(|(number, _)| !replaced.contains(number));
        let files: Vec<_> = stayed.chain(outputs).collect();
        let runs = self.shared.runs().iter().map(|run| run.name()).collect();
        let mut rewrites: Vec<&Rewrite> = self.files.moved().rewrites().iter().map(|rewrite| &**rewrite).collect();
        rewrites.extend((!rewrite.files().is_empty()).then_some(rewrite));
        let state = Applied { snapshot, next_file, files: files.into_iter(), runs, young: &young };
        journal.replace(Record::state(state, &rewrites))
    }

    /// Forgets rewrites that no run needs any more. Only here, not when a merge ends: the merge does not know the
    /// pending runs. What is stored needs no record of it, as the next manifest and the next opening tell the same.
    pub(super) fn forget_moves(&mut self) {
        let runs = self.shared.runs();
        self.files.forget_moves(lowest_id(runs.iter().chain(&self.pending.runs)));
    }
}
