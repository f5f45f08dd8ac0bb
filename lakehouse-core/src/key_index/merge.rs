//! Owns merging: which runs become one (`due`), how sorted lists become one (`Merger`), and the background thread
//! that does it off the writer's path. Does not know what `apply` adds.
//!
//! Runs of one size class are merged when there are `fan` of them, so an entry is rewritten a few times in its life;
//! everything becomes one run when the younger runs hold more than a share of the oldest, so that dead entries take
//! bounded room, or when old runs keep too many rewrites from being forgotten. A long merge lets shorter ones among
//! younger runs go first, between its own steps: one thread is enough, and the number of runs stays bounded while the
//! oldest one is rewritten.
use super::entry::{Raw, words};
use super::manifest::Record;
use super::moved::{Resolver, Weight};
use super::run::{Cursor, Run, RunName, RunWriter, SEARCHED};
use super::{IndexError, Result, Shape, Shared, State, lock};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Neighbouring runs to merge next.
pub(super) fn due_in(state: &State, shape: &Shape) -> Option<Range<usize>> {
    let Weight { files, bytes } = state.resolver.moved.weight(lowest_id(&*state.runs));
    if files > shape.moved.files || bytes > shape.moved.bytes {
        return Some(0..state.runs.len());
    }
    due(&lens(&state.runs), shape)
}

/// Neighbouring runs to merge next, by their lengths, oldest first.
pub(super) fn due(lens: &[u64], shape: &Shape) -> Option<Range<usize>> {
    let (oldest, young) = lens.split_first()?;
    if young.iter().sum::<u64>() > oldest / shape.young_share {
        return Some(0..lens.len());
    }
    due_tier(young, shape).map(|span| span.start + 1..span.end + 1)
}

/// As `due`, for runs none of which is the oldest. A run counts in the class of the largest run younger than it, so
/// what is left is always fewer than `fan` runs a class.
pub(super) fn due_tier(lens: &[u64], shape: &Shape) -> Option<Range<usize>> {
    let class_of = |len: u64| (len / shape.smallest).max(1).ilog(shape.fan as u64);
    let (mut class, mut end) = (0, lens.len());
    for (start, &len) in lens.iter().enumerate().rev() {
        if class_of(len) > class {
            if end - start > shape.fan {
                return Some(start + 1..end);
            }
            (class, end) = (class_of(len), start + 1);
        }
    }
    (end >= shape.fan).then_some(0..end)
}

/// Merges sorted lists in steps of bounded size: each takes one narrow range of keys from every list, newest first,
/// and sorts it stably (the standard sort finds the sorted stretches), so the first entry of a key is the newest.
pub(super) struct Merger {
    /// Newest first.
    cursors: Vec<Cursor>,
    steps: u64,
    step: u64,
    /// Entries dropped because a newer one has their key.
    pub(super) superseded: u64,
}

impl Merger {
    /// Of `runs` (oldest first) and `newer` (newest first, all newer than the runs).
    pub(super) fn new(runs: &[Arc<Run>], newer: Vec<Vec<Raw>>, memory: usize) -> Self {
        // Half of the memory for reading, half for a step and the sort's scratch. Steps that fit the processor's
        // caches are best, but a stretch below a thousand entries or so makes the sort miss that it is sorted.
        let half = (memory / 2 / size_of::<Raw>()) as u64;
        let read = (half / runs.len().max(1) as u64).clamp(256, 4_096) as u32;
        let step = (65_536.max(1_024 * runs.len() as u64)).min(half / 2).max(4_096);
        let total =
            runs.iter().map(|run| run.name().len).sum::<u64>() + newer.iter().map(|m| m.len() as u64).sum::<u64>();
        let over_runs = runs.iter().rev().map(|run| Cursor::over_run(run.clone(), read));
        let cursors = newer.into_iter().map(Cursor::over_memory).chain(over_runs).collect();
        Self { cursors, steps: total.div_ceil(step), step: 0, superseded: 0 }
    }

    /// Replaces `out` by the next entries, sorted and distinct. False at the end.
    pub(super) fn next(&mut self, out: &mut Vec<Raw>) -> Result<bool> {
        out.clear();
        if self.step == self.steps {
            return Ok(false);
        }
        self.step += 1;
        let end = (u128::from(self.step) << 64) / u128::from(self.steps);
        for cursor in &mut self.cursors {
            cursor.take_through((end - 1) as u64, out)?;
        }
        let before = out.len();
        if self.cursors.len() > 1 {
            out.sort_by_key(words);
            out.dedup_by_key(|e| words(e));
        }
        self.superseded += (before - out.len()) as u64;
        Ok(true)
    }
}

/// What a merge writes. The id tells which rewrites the resolver knew (`follow.rs`), so both are of one moment.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) resolver: Resolver,
    /// The oldest run is among those merged, so dead entries go. In other merges they hide older entries of their key.
    pub(super) oldest: bool,
}

impl Job {
    pub(super) fn begin(shared: &Shared, oldest: bool) -> Self {
        let _no_rewrite_is_followed = lock(&shared.journal);
        Self { id: shared.new_run(), resolver: lock(&shared.state).resolver.clone(), oldest }
    }
}

/// Merges into a new run, not synced. `between` runs after each step; false: give up.
pub(super) fn merge(
    shared: &Shared,
    job: &Job,
    mut merger: Merger,
    most: u64,
    mut between: impl FnMut() -> Result<bool>,
) -> Result<Option<(Run, u64)>> {
    let mut writer = RunWriter::create(&shared.dir, job.id, most, SEARCHED)?;
    let mut entries = vec![];
    while merger.next(&mut entries)? {
        if job.oldest {
            job.resolver.renew_and_drop_dead(&mut entries);
        } else {
            job.resolver.renew(&mut entries);
        }
        writer.push(&entries)?;
        if !between()? {
            return Ok(None);
        }
    }
    Ok(Some((writer.finish()?, merger.superseded)))
}

/// The background thread: merges until nothing is due, the index is dropped, or something fails.
pub(super) fn run_merges(shared: &Shared) {
    let mut guard = Finished { shared, failure: Some(IndexError::Broken) };
    let failure = loop {
        let (span, oldest) = {
            let mut state = lock(&shared.state);
            let due = due_in(&state, &shared.shape).filter(|_| !shared.stop.load(Relaxed));
            let Some(span) = due else {
                // Under the same lock: an `apply` after this starts a thread of its own.
                state.merging = false;
                break None;
            };
            (state.runs[span.clone()].to_vec(), span.start == 0)
        };
        if let Err(error) = merge_span(shared, &span, &Job::begin(shared, oldest)) {
            break Some(error);
        }
    };
    guard.failure = failure;
}

/// Tells those who wait, also after a panic.
struct Finished<'a> {
    shared: &'a Shared,
    failure: Option<IndexError>,
}

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        if let Some(error) = self.failure.take() {
            tracing::warn!(%error, "merge of the key index failed");
            let mut state = lock(&self.shared.state);
            state.merging = false;
            state.failure = Some(error);
        }
        self.shared.changed.notify_all();
    }
}

pub(super) fn merge_span(shared: &Shared, span: &[Arc<Run>], job: &Job) -> Result<()> {
    let most = lens(span).iter().sum();
    let merger = Merger::new(span, vec![], shared.settings.memory);
    let youngest = span.last().map(|run| run.name().id);
    let between = || {
        merge_above(shared, youngest)?;
        Ok(!shared.stop.load(Relaxed))
    };
    let Some((run, _)) = merge(shared, job, merger, most, between)? else {
        return Ok(());
    };
    if shared.settings.sync {
        run.sync()?;
    }
    swap(shared, span, run)
}

/// One merge among the runs above the run `youngest`, if one is due.
fn merge_above(shared: &Shared, youngest: Option<u64>) -> Result<()> {
    let span = {
        let state = lock(&shared.state);
        let position = state.runs.iter().position(|run| Some(run.name().id) == youngest);
        let above = &state.runs[position.map_or(state.runs.len(), |position| position + 1)..];
        due_tier(&lens(above), &shared.shape).map(|span| above[span].to_vec())
    };
    span.map_or(Ok(()), |span| merge_span(shared, &span, &Job::begin(shared, false)))
}

/// The switch: a record first, then memory, then the old files go.
fn swap(shared: &Shared, span: &[Arc<Run>], run: Run) -> Result<()> {
    let removed: Vec<RunName> = span.iter().map(|run| run.name()).collect();
    let mut journal = lock(&shared.journal);
    journal.sync_dir()?;
    journal.append(Record::merge(&removed, run.name()))?;
    let mut state = lock(&shared.state);
    let first = state.runs.iter().position(|run| run.name() == removed[0]).expect("merged runs stay until the switch");
    let mut runs = state.runs.to_vec();
    runs.splice(first..first + removed.len(), [Arc::new(run)]);
    state.runs = runs.into();
    drop(state);
    drop(journal);
    shared.changed.notify_all();
    span.iter().for_each(|run| run.remove(&shared.dir));
    Ok(())
}

pub(super) fn lowest_id<'a>(runs: impl IntoIterator<Item = &'a Arc<Run>>) -> Option<u64> {
    runs.into_iter().map(|run| run.name().id).min()
}

pub(super) fn lens(runs: &[Arc<Run>]) -> Vec<u64> {
    runs.iter().map(|run| run.name().len).collect()
}
