//! Owns the load of a whole table into an empty index: unsorted chunks from several threads become one run.
//! Does not read tables; the copy and the rebuild do.
use super::entry::{Entry, raw, sort_entries};
use super::merge::{Job, Merger, lens, merge};
use super::moved::Resolver;
use super::run::{MAX_ENTRIES, READ_THROUGH, Run, RunWriter};
use super::{IndexError, KeyIndex, Result, Shared, lock};
use std::sync::{Arc, Mutex};

/// Runs merged at a time: bounds open files and buffers, whatever the size of the chunks.
const FAN_IN: usize = 256;

/// A load in progress ([`KeyIndex::bulk_load`]). Dropped unfinished, it leaves nothing behind.
pub struct BulkLoad {
    shared: Arc<Shared>,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// In the order in which their chunks were added.
    parts: Vec<Part>,
    entries: u64,
    duplicates: u64,
    failed: bool,
}

struct Part {
    id: u64,
    level: u32,
    /// `None` while it is written.
    run: Option<Arc<Run>>,
}

/// What a bulk load found.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Keys that the index holds now.
    pub entries: u64,
    /// Entries dropped because a later one had the same key.
    pub duplicates: u64,
}

impl BulkLoad {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, parts: Mutex::default() }
    }

    /// Sorts the chunk and writes it, outside any lock; chunks of some 500,000 entries (12 MB) are best. Of equal keys
    /// the last added stays (among calls at the same time: of the call that ended last).
    ///
    /// # Errors
    /// After an error the load cannot be finished any more.
    pub fn add(&self, entries: Vec<Entry>) -> Result<()> {
        let result = self.try_add(entries);
        if result.is_err() {
            lock(&self.parts).failed = true;
        }
        result
    }

    fn try_add(&self, mut entries: Vec<Entry>) -> Result<()> {
        let added = entries.len() as u64;
        let duplicates = sort_entries(&mut entries) as u64;
        let id = self.shared.new_run();
        let mut writer = RunWriter::create(&self.shared.dir, id, entries.len() as u64, READ_THROUGH)?;
        writer.push(&raw(entries))?;
        let run = Some(Arc::new(writer.finish()?));
        let mut parts = lock(&self.parts);
        parts.parts.push(Part { id, level: 0, run });
        parts.entries += added;
        parts.duplicates += duplicates;
        if parts.entries > MAX_ENTRIES {
            return Err(IndexError::TooManyEntries);
        }
        let full = parts.take_full();
        drop(parts);
        full.map_or(Ok(()), |(id, runs)| self.merge_part(id, runs))
    }

    fn merge_part(&self, id: u64, runs: Vec<Arc<Run>>) -> Result<()> {
        let run = self.merge(&runs, Resolver::default(), false)?;
        let mut parts = lock(&self.parts);
        let part = parts.parts.iter_mut().find(|part| part.id == id).expect("a part stays while it is written");
        part.run = Some(Arc::new(run));
        Ok(())
    }

    fn merge(&self, runs: &[Arc<Run>], resolver: Resolver, oldest: bool) -> Result<Run> {
        let job = Job { id: self.shared.new_run(), resolver, oldest };
        let merger = Merger::new(runs, vec![], self.shared.settings.memory);
        let merged = merge(&self.shared, &job, merger, lens(runs).iter().sum(), || Ok(true));
        runs.iter().for_each(|run| run.remove(&self.shared.dir));
        let (run, duplicates) = merged?.expect("nothing gives up this merge");
        lock(&self.parts).duplicates += duplicates;
        Ok(run)
    }

    /// Makes the loaded entries, and all files added to the index, its state at `snapshot`. Entries whose file was not
    /// added are dropped.
    ///
    /// # Errors
    /// `NotEmpty` when the index holds entries; `Incomplete` when an `add` failed. The files of the load are removed.
    ///
    /// # Panics
    /// When `index` is not the one that began the load.
    pub fn finish(self, index: &mut KeyIndex, snapshot: i64) -> Result<Loaded> {
        assert!(Arc::ptr_eq(&self.shared, &index.shared), "a bulk load is finished into the index that began it");
        if index.entries() > 0 {
            return Err(IndexError::NotEmpty);
        }
        let runs: Option<Vec<_>> = {
            let parts = &mut *lock(&self.parts);
            let complete = !parts.failed && parts.parts.iter().all(|part| part.run.is_some());
            complete.then(|| parts.parts.drain(..).filter_map(|part| part.run).collect())
        };
        let run = self.merge(&runs.ok_or(IndexError::Incomplete)?, index.files.resolver(), true)?;
        let entries = run.name().len;
        index.apply_loaded(run, snapshot)?;
        Ok(Loaded { entries, duplicates: lock(&self.parts).duplicates })
    }
}

impl Parts {
    /// The first `FAN_IN` neighbours of one level; one part of the next level takes their place.
    fn take_full(&mut self) -> Option<(u64, Vec<Arc<Run>>)> {
        let alike = |a: &Part, b: &Part| a.level == b.level && a.run.is_some() && b.run.is_some();
        let mut start = 0;
        let mut lens = self.parts.chunk_by(alike).map(<[Part]>::len);
        loop {
            let len = lens.next()?;
            if len >= FAN_IN {
                break;
            }
            start += len;
        }
        let first = &self.parts[start];
        let merged = Part { id: first.id, level: first.level + 1, run: None };
        let id = merged.id;
        let parts = self.parts.splice(start..start + FAN_IN, [merged]);
        Some((id, parts.filter_map(|part| part.run).collect()))
    }
}

impl Drop for BulkLoad {
    fn drop(&mut self) {
        let parts = lock(&self.parts);
        parts.parts.iter().filter_map(|part| part.run.as_ref()).for_each(|run| run.remove(&self.shared.dir));
    }
}
