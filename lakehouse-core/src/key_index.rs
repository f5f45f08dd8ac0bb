//! Where each key's row stands: 128-bit key hash → (data file, row), in bounded memory, for one table.
//!
//! Owns the local files of one directory, and the rule which entry of a key decides. Does not hash keys, read tables
//! or decide what changed between two snapshots. Local state is disposable (`F35`): whatever is torn, damaged or
//! of an unknown format is reported as such and rebuilt by the caller, and never answers wrongly. Files are read and
//! written synchronously; asynchronous callers use a blocking thread.
//!
//! Layers, newest first; the newest entry of a key decides, and if it points to a dead file the key is absent,
//! whatever older layers say:
//! 1. pending entries (`add_pending`), not yet part of any snapshot: up to a bound in memory, beyond it as runs;
//! 2. the young entries, in memory and in the log: small batches collect here;
//! 3. runs, immutable and sorted, oldest last; merged in the background.
//!
//! When rows move to other files (`follow_rewrite`), entries keep their addresses, which are led to where the rows
//! stand now; merges write the new ones.
//!
//! Invariant: dead entries are dropped only in a merge that includes the oldest run, else an older entry of the
//! same key would come back (test `random_steps_agree_with_a_map`).
//! Invariant: after a crash the state is exactly that of one `apply` or `follow_rewrite` (the last finished, or the one
//! that was being made durable), since manifest and log are the only truth and files go only after nothing durable
//! names them.

mod bulk;
mod entry;
mod files;
mod follow;
mod manifest;
mod merge;
mod moved;
mod run;
#[cfg(test)]
mod tests;

pub use bulk::{BulkLoad, Loaded};
pub use entry::{Entry, KeyHash, RowAddress, sort_entries};
pub use files::FileTable;

use entry::{Raw, address_of, fold, fold_into, key_of, raw, words};
use manifest::{Applied, Journal, Record, Stored};
use merge::{Job, Merger, due_in, due_tier, lens, lowest_id, run_merges};
use moved::{Resolver, Rewrite, Weight};
use run::{MAX_ENTRIES, Run, RunWriter, SEARCHED};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

#[derive(Copy, Clone, Debug)]
pub struct Settings {
    /// Bytes for the buffers of one merge, load or scan. A constant of about 2 MiB and the directories of the runs (8
    /// bytes per 64 entries: 12.5 MB for 100 million) come on top; a short merge may run within a long one.
    pub memory: usize,
    /// Survive a loss of power, not only of the process. Without it, a loss of power may lose the last snapshots or
    /// damage the state, which is noticed.
    pub sync: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory: 16 << 20, sync: true }
    }
}

/// Bounds and proportions. Fixed, except in tests.
#[derive(Copy, Clone, Debug)]
struct Shape {
    /// Entries kept in memory and log before they become a run.
    young: usize,
    /// Bytes of the log before a new manifest is written.
    log: u64,
    /// Runs of one size class before they become one; classes grow by the same factor.
    fan: usize,
    /// Entries up to which all runs are of the lowest class.
    smallest: u64,
    /// Everything becomes one run when the younger runs hold more than this part of the oldest.
    young_share: u64,
    /// `apply` waits for merges when there are more runs. The merge rules keep fewer than `fan` runs a class, ten
    /// classes at most, and as many again above an unfinished merge: it waits only when merging is slower than writing.
    most_runs: usize,
    /// Everything becomes one run when it keeps the rewrites of more files, or maps of more bytes, from being
    /// forgotten. Lookups do not care how many there are; memory and manifests do.
    moved: Weight,
}

const SHAPE: Shape = Shape {
    young: 8_192,
    log: 4 << 20,
    fan: 4,
    smallest: 16_384,
    young_share: 4,
    most_runs: 64,
    moved: Weight { files: 1_024, bytes: 16 << 20 },
};

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// After an error in `apply`, reopen; after one elsewhere, discard the pending entries and try again.
    #[error("key index could not {action}")]
    Io { action: &'static str, source: std::io::Error },
    /// `clear` and rebuild.
    #[error("key index is damaged: {0}")]
    Damaged(String),
    #[error("key index is in use by another process or owner")]
    InUse,
    /// Reopen: the state is then that of one `apply`.
    #[error("key index must be opened again after a failed write")]
    Broken,
    #[error("key index cannot hold more than 4294967295 entries")]
    TooManyEntries,
    #[error("key index holds entries already, so nothing can be loaded into it")]
    NotEmpty,
    #[error("a chunk of the bulk load was not written")]
    Incomplete,
    /// Read the keys of the files that came, or rebuild.
    #[error("key index cannot follow a rewrite: {0}")]
    NotFollowed(&'static str),
}

type Result<T> = std::result::Result<T, IndexError>;

/// What was found in the directory.
pub enum Opened {
    Ready(KeyIndex),
    /// Nothing; the index is empty.
    Absent(KeyIndex),
    /// Something unusable, which has been removed; the index is empty.
    Damaged {
        reason: String,
        index: KeyIndex,
    },
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Stats {
    pub runs: usize,
    /// Entries in all layers, superseded and dead ones included: at least as many as keys.
    pub entries: u64,
    /// Of these not yet part of a snapshot.
    pub pending: u64,
    /// Replaced files whose entries may not all have the address yet where their rows stand.
    pub moved: usize,
    /// On disk.
    pub bytes: u64,
}

/// The key index of one table. One owner changes it; lookups and scans may come from several threads.
pub struct KeyIndex {
    shared: Arc<Shared>,
    snapshot: Option<i64>,
    files: FileTable,
    young: Vec<Raw>,
    pending: Pending,
    merges: Option<JoinHandle<()>>,
}

/// Newer than everything else. The first run also holds the young entries as they were, so that no tiny run is
/// needed below it.
#[derive(Default)]
struct Pending {
    /// Oldest first.
    runs: Vec<Arc<Run>>,
    memory: Vec<Raw>,
}

/// What merges and loads use beside the owner.
struct Shared {
    dir: PathBuf,
    settings: Settings,
    shape: Shape,
    next_run: AtomicU64,
    /// Asks merges to give up.
    stop: AtomicBool,
    /// Locked before `state`, if both are.
    journal: Mutex<Journal>,
    /// Never locked across reading or writing a file.
    state: Mutex<State>,
    /// A merge ended.
    changed: Condvar,
    /// Held while open.
    _lock: File,
}

struct State {
    /// Oldest first.
    runs: Arc<[Arc<Run>]>,
    /// For merges.
    resolver: Resolver,
    /// The background thread runs.
    merging: bool,
    /// Of the background thread; told by the next `apply` or `follow_rewrite`.
    failure: Option<IndexError>,
}

impl KeyIndex {
    /// Opens the index in `dir`, which is created if need be.
    ///
    /// # Errors
    /// `InUse`, or `Io` when the directory cannot be read or written. Damage is not an error here.
    pub fn open(dir: &Path, settings: Settings) -> Result<Opened> {
        Self::open_shaped(dir, settings, SHAPE)
    }

    fn open_shaped(dir: &Path, settings: Settings, shape: Shape) -> Result<Opened> {
        std::fs::create_dir_all(dir).map_err(io("create the directory"))?;
        let lock = File::create(dir.join("lock")).map_err(io("create the lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => IndexError::InUse,
            std::fs::TryLockError::Error(error) => io("take the lock")(error),
        })?;
        let found = Journal::open(dir, settings.sync).and_then(|(journal, stored)| {
            let stored = stored.unwrap_or_default();
            let runs =
                stored.runs.iter().map(|&name| Ok(Arc::new(Run::open(dir, name)?))).collect::<Result<Vec<_>>>()?;
            Ok((journal, stored, runs))
        });
        let (journal, stored, runs, reason) = match found {
            Ok((journal, stored, runs)) => (journal, stored, runs, None),
            Err(IndexError::Damaged(reason)) => {
                tracing::warn!(dir = %dir.display(), reason, "key index is damaged, removing it");
                let mut journal = Journal::absent(dir, settings.sync);
                journal.clear()?;
                (journal, Stored::default(), vec![], Some(reason))
            }
            Err(error) => return Err(error),
        };
        journal.sweep(&stored)?;
        let snapshot = journal.stands().then_some(stored.snapshot);
        let mut files = FileTable::restore(stored.next_file, stored.files, stored.moved);
        files.forget_moves(lowest_id(&runs));
        let state = State { runs: runs.into(), resolver: files.resolver(), merging: false, failure: None };
        let shared = Shared {
            dir: dir.into(),
            settings,
            shape,
            next_run: stored.next_run.into(),
            stop: false.into(),
            journal: journal.into(),
            state: state.into(),
            changed: Condvar::new(),
            _lock: lock,
        };
        let (young, pending) = (stored.young, Pending::default());
        let index = Self { shared: Arc::new(shared), snapshot, files, young, pending, merges: None };
        Ok(match (reason, snapshot) {
            (Some(reason), _) => Opened::Damaged { reason, index },
            (None, None) => Opened::Absent(index),
            (None, Some(_)) => Opened::Ready(index),
        })
    }

    /// The Iceberg snapshot id at which the index stands; `None`: it is empty.
    pub fn snapshot(&self) -> Option<i64> {
        self.snapshot
    }

    pub fn files(&self) -> &FileTable {
        &self.files
    }

    /// Gives the file a number, always a new one. Kept with the next `apply`, forgotten by `discard_pending`.
    ///
    /// # Panics
    /// When all 2^32 - 1 numbers are used.
    pub fn add_file(&mut self, path: &str) -> u32 {
        self.files.add(path)
    }

    pub fn number_of(&self, path: &str) -> Option<u32> {
        self.files.number_of(path)
    }

    pub fn path_of(&self, number: u32) -> Option<&str> {
        self.files.path_of(number)
    }

    /// Replaces `found` by the addresses of `keys`, in their order. Pending entries count.
    ///
    /// # Errors
    /// `Damaged` when what was read is not what was written.
    ///
    /// # Panics
    /// When the keys are not ascending and distinct, or more than 2^32.
    pub fn lookup(&self, keys: &[KeyHash], found: &mut Vec<Option<RowAddress>>) -> Result<()> {
        assert!(keys.is_sorted_by(|a, b| a < b), "keys must be ascending and distinct");
        let mut search = Search::new(keys);
        search.memory(&self.pending.memory);
        search.runs(&self.pending.runs)?;
        search.memory(&self.young);
        search.runs(&self.shared.runs())?;
        let resolver = self.files.resolver();
        found.clear();
        found.extend(search.answers.iter().map(|&address| resolver.resolve(address).map(address_of)));
        Ok(())
    }

    /// Entries of the batch that `apply` will make part of the state; a batch larger than memory comes in several
    /// calls, later ones newer. They count in lookups at once.
    ///
    /// # Errors
    /// After an error the pending entries are incomplete and must be discarded.
    ///
    /// # Panics
    /// When the keys are not ascending and distinct (see [`sort_entries`]).
    pub fn add_pending(&mut self, entries: Vec<Entry>) -> Result<()> {
        let entries = raw(entries);
        assert!(entries.is_sorted_by(|a, b| words(a) < words(b)), "entries must be ascending and distinct by key");
        if self.entries() + entries.len() as u64 > MAX_ENTRIES {
            return Err(IndexError::TooManyEntries);
        }
        if self.pending.memory.is_empty() {
            self.pending.memory = entries;
        } else {
            fold_into(&mut self.pending.memory, entries);
        }
        if self.pending.memory.len() > self.shared.shape.young { self.spill() } else { Ok(()) }
    }

    /// Forgets pending entries and files.
    pub fn discard_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        pending.runs.iter().for_each(|run| run.remove(&self.shared.dir));
        self.files.discard_pending();
    }

    /// Makes all pending entries and files part of the state, which from now on stands at `snapshot` and no longer
    /// knows the files `dead` (numbers). Durable on return, as far as the settings ask for it. Waits for merges while
    /// there are more than 64 runs.
    ///
    /// # Errors
    /// A failed merge is reported here too; the next `apply` starts it again. After `Io` or `Broken` the index may or
    /// may not have moved to `snapshot`: reopen it.
    pub fn apply(&mut self, snapshot: i64, dead: &[u32]) -> Result<()> {
        self.wait_for_merges()?;
        if self.pending.runs.is_empty() && self.young.len() + self.pending.memory.len() > self.shared.shape.young {
            self.spill()?;
        }
        let shared = self.shared.clone();
        let mut journal = lock(&shared.journal);
        self.forget_moves();
        self.record(&mut journal, snapshot, dead)?;
        // It is durable; memory follows. The journal stays locked, so that no merge is recorded in between.
        let pending = std::mem::take(&mut self.pending);
        if !pending.runs.is_empty() {
            self.young.clear();
        }
        fold_into(&mut self.young, pending.memory);
        self.files.apply(dead);
        self.snapshot = Some(snapshot);
        let mut state = lock(&shared.state);
        state.runs = state.runs.iter().cloned().chain(pending.runs).collect();
        state.resolver = self.files.resolver();
        drop(state);
        drop(journal);
        self.start_merges();
        Ok(())
    }

    /// Removes everything: the index is empty, stands at no snapshot, and can be used again after any error. File
    /// numbers are still not used twice.
    pub fn clear(&mut self) -> Result<()> {
        self.stop_merges();
        lock(&self.shared.journal).clear()?;
        self.discard_pending();
        self.files.clear();
        self.young.clear();
        self.snapshot = None;
        let mut state = lock(&self.shared.state);
        let runs = std::mem::replace(&mut state.runs, [].into());
        (state.resolver, state.failure) = (self.files.resolver(), None);
        drop(state);
        runs.iter().for_each(|run| run.remove(&self.shared.dir));
        Ok(())
    }

    /// Begins the load of a whole table into this index, which must hold no entries when the load is finished.
    pub fn bulk_load(&self) -> BulkLoad {
        BulkLoad::new(self.shared.clone())
    }

    /// All live keys, ascending, with their addresses; pending entries count. In bounded memory. Ends after an error.
    pub fn scan(&self) -> impl Iterator<Item = Result<(KeyHash, RowAddress)>> + '_ {
        let runs = [&*self.shared.runs(), &self.pending.runs].concat();
        // The young entries are older than pending runs; the first of these holds them too.
        let young = if self.pending.runs.is_empty() { self.young.clone() } else { vec![] };
        let newer = vec![self.pending.memory.clone(), young];
        let mut merger = Merger::new(&runs, newer, self.shared.settings.memory);
        let resolver = self.files.resolver();
        let mut entries: Vec<Raw> = vec![];
        let (mut place, mut more) = (0, true);
        std::iter::from_fn(move || {
            loop {
                while let Some(entry) = entries.get(place) {
                    place += 1;
                    if let Some(address) = resolver.resolve(entry[2]) {
                        return Some(Ok((key_of(entry), address_of(address))));
                    }
                }
                if !more {
                    return None;
                }
                place = 0;
                match merger.next(&mut entries) {
                    Ok(next) => more = next,
                    Err(error) => {
                        more = false;
                        entries.clear();
                        return Some(Err(error));
                    }
                }
            }
        })
    }

    pub fn stats(&self) -> Stats {
        let (journal, runs) = (lock(&self.shared.journal).bytes(), self.shared.runs());
        Stats {
            runs: runs.len() + self.pending.runs.len(),
            entries: self.entries(),
            pending: lens(&self.pending.runs).iter().sum::<u64>() + self.pending.memory.len() as u64,
            moved: self.files.moved().weight(lowest_id(runs.iter().chain(&self.pending.runs))).files,
            bytes: runs.iter().chain(&self.pending.runs).map(|run| run.bytes()).sum::<u64>() + journal,
        }
    }

    fn entries(&self) -> u64 {
        let runs = lens(&self.shared.runs()).into_iter().chain(lens(&self.pending.runs)).sum::<u64>();
        runs + (self.young.len() + self.pending.memory.len()) as u64
    }

    /// Writes the pending entries in memory as a run.
    fn spill(&mut self) -> Result<()> {
        let mut entries = std::mem::take(&mut self.pending.memory);
        if self.pending.runs.is_empty() {
            entries = fold(entries, &self.young);
        }
        let shared = &self.shared;
        let mut writer = RunWriter::create(&shared.dir, shared.new_run(), entries.len() as u64, SEARCHED)?;
        writer.push(&entries)?;
        self.pending.runs.push(Arc::new(writer.finish()?));
        while let Some(span) = due_tier(&lens(&self.pending.runs), &shared.shape) {
            let runs = &self.pending.runs[span.clone()];
            let merger = Merger::new(runs, vec![], shared.settings.memory);
            let job = Job { id: shared.new_run(), resolver: self.files.resolver(), oldest: false };
            let merged = merge::merge(shared, &job, merger, lens(runs).iter().sum(), || Ok(true))?;
            let (run, _) = merged.expect("nothing gives up this merge");
            for old in self.pending.runs.splice(span, [Arc::new(run)]) {
                old.remove(&shared.dir);
            }
        }
        Ok(())
    }

    /// The durable half of `apply`.
    fn record(&self, journal: &mut Journal, snapshot: i64, dead: &[u32]) -> Result<()> {
        let Pending { runs: new, memory } = &self.pending;
        let reset = !new.is_empty();
        if self.shared.settings.sync && reset {
            new.iter().try_for_each(|run| run.sync())?;
            journal.sync_dir()?;
        }
        let next_file = self.files.next();
        if !journal.wants_manifest(self.shared.shape.log) {
            let (files, runs) = (self.files.pending(), new.iter().map(|run| run.name()).collect());
            let step = Applied { snapshot, next_file, files, runs, young: memory };
            return journal.append(Record::step(step, dead, reset));
        }
        let young = if reset { memory.clone() } else { fold(memory.clone(), &self.young) };
        let dead: HashSet<u32> = dead.iter().copied().collect();
        let files: Vec<_> = self.files.live().filter(|(number, _)| !dead.contains(number)).collect();
        let runs = self.shared.runs().iter().chain(new).map(|run| run.name()).collect();
        let rewrites: Vec<&Rewrite> = self.files.moved().rewrites().iter().map(|rewrite| &**rewrite).collect();
        let state = Applied { snapshot, next_file, files: files.into_iter(), runs, young: &young };
        journal.replace(Record::state(state, &rewrites))
    }

    fn apply_loaded(&mut self, run: Run, snapshot: i64) -> Result<()> {
        self.pending.runs.push(Arc::new(run));
        self.apply(snapshot, &[])
    }

    fn wait_for_merges(&mut self) -> Result<()> {
        loop {
            self.start_merges();
            let mut state = lock(&self.shared.state);
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            if !state.merging || state.runs.len() <= self.shared.shape.most_runs {
                return Ok(());
            }
            drop(self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Starts the background thread if a merge is due. It ends when none is, so an index at rest has no thread.
    fn start_merges(&mut self) {
        let mut state = lock(&self.shared.state);
        if state.merging || state.failure.is_some() || due_in(&state, &self.shared.shape).is_none() {
            return;
        }
        state.merging = true;
        drop(state);
        if let Some(ended) = self.merges.take() {
            let _ = ended.join(); // It reported its failure, or panic, in the state.
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("key-index-merge".into()).spawn(move || run_merges(&shared));
        match thread {
            Ok(thread) => self.merges = Some(thread),
            Err(error) => {
                let mut state = lock(&self.shared.state);
                (state.merging, state.failure) = (false, Some(io("start a merge")(error)));
            }
        }
    }

    fn stop_merges(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.merges.take() {
            let _ = thread.join(); // It reported its failure, or panic, in the state.
        }
        self.shared.stop.store(false, Relaxed);
    }
}

impl Drop for KeyIndex {
    fn drop(&mut self) {
        self.stop_merges();
        self.discard_pending();
    }
}

impl Shared {
    fn runs(&self) -> Arc<[Arc<Run>]> {
        lock(&self.state).runs.clone()
    }

    fn new_run(&self) -> u64 {
        self.next_run.fetch_add(1, Relaxed)
    }
}

/// A lookup on its way down the layers.
struct Search<'a> {
    keys: &'a [KeyHash],
    /// Packed address, or `OPEN`, per key.
    answers: Vec<u64>,
    /// Indices of the keys not yet found.
    open: Vec<u32>,
    buffer: Vec<Raw>,
}

/// No entry found. Never live, as the address of a deleted key, and different from it.
const OPEN: u64 = u64::MAX - 1;

impl<'a> Search<'a> {
    fn new(keys: &'a [KeyHash]) -> Self {
        let count = u32::try_from(keys.len()).expect("fewer than 2^32 keys in a lookup");
        Self { keys, answers: vec![OPEN; keys.len()], open: (0..count).collect(), buffer: vec![] }
    }

    fn memory(&mut self, entries: &[Raw]) {
        let mut rest = entries;
        for &i in &self.open {
            let key = self.keys[i as usize].words();
            rest = skip_below(rest, key);
            match rest.first() {
                Some(entry) if words(entry) == key => self.answers[i as usize] = entry[2],
                Some(_) => {}
                None => break,
            }
        }
        self.close();
    }

    fn runs(&mut self, runs: &[Arc<Run>]) -> Result<()> {
        for run in runs.iter().rev() {
            let answers = &mut self.answers;
            run.find(self.keys, &self.open, &mut self.buffer, |i, address| answers[i as usize] = address)?;
            self.close();
        }
        Ok(())
    }

    fn close(&mut self) {
        self.open.retain(|&i| self.answers[i as usize] == OPEN);
    }
}

/// Gallops: as cheap for a few keys in many entries as for the opposite.
fn skip_below(entries: &[Raw], key: (u64, u64)) -> &[Raw] {
    let mut reach = 1;
    while entries.get(reach).is_some_and(|e| words(e) < key) {
        reach *= 2;
    }
    let near = &entries[..entries.len().min(reach + 1)];
    &entries[near.partition_point(|e| words(e) < key)..]
}

/// No data behind these locks is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(reason: String) -> IndexError {
    IndexError::Damaged(reason)
}

/// A file that ends early or is gone is damage, not trouble of the machine.
fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> IndexError {
    move |source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(format!("could not {action}: file ends early")),
        std::io::ErrorKind::NotFound => damaged(format!("could not {action}: file is gone")),
        _ => IndexError::Io { action, source },
    }
}
