//! Owns the table of file numbers: which data file each number means, and which numbers are live.
//! Does not decide when a file is dead; the caller of `apply` does.
use super::moved::{Moved, Resolver, Rewrite};
use crate::row_map::RowMap;
use std::collections::HashMap;
use std::sync::Arc;

/// Number ↔ path of the live data files. A number is never used twice; a dead file keeps neither path nor entry, only
/// the fact that its number is not live. A replaced file keeps in addition where its rows stand now, as long as an
/// entry may ask. Files added since the last `apply` count as live.
#[derive(Default)]
pub struct FileTable {
    applied: Names,
    pending: Names,
    next: u32,
    live: Arc<LiveFiles>,
    moved: Arc<Moved>,
}

impl FileTable {
    pub fn path_of(&self, number: u32) -> Option<&str> {
        let names = [&self.pending, &self.applied];
        names.into_iter().find_map(|names| names.path.get(&number)).map(|path| &**path)
    }

    /// The newest live file of this path.
    pub fn number_of(&self, path: &str) -> Option<u32> {
        let names = [&self.pending, &self.applied];
        names.into_iter().find_map(|names| names.number.get(path)).copied()
    }

    /// Live files, pending ones included, in no order.
    pub fn live(&self) -> impl Iterator<Item = (u32, &str)> {
        let files = self.applied.path.iter().chain(&self.pending.path);
        files.map(|(&number, path)| (number, &**path))
    }

    pub fn is_live(&self, number: u32) -> bool {
        self.live.has(number)
    }

    pub(super) fn restore(next: u32, files: impl IntoIterator<Item = (u32, Arc<str>)>, moved: Moved) -> Self {
        let mut table = Self { next, moved: moved.into(), ..Self::default() };
        for (number, path) in files {
            table.applied.add(number, path);
            Arc::make_mut(&mut table.live).set(number);
        }
        table
    }

    /// # Panics
    /// When all 2^32 - 1 numbers are used.
    pub(super) fn add(&mut self, path: &str) -> u32 {
        let number = self.unused();
        self.pending.add(number, path.into());
        Arc::make_mut(&mut self.live).set(number);
        number
    }

    fn unused(&mut self) -> u32 {
        let number = self.next;
        assert!(number != u32::MAX, "file numbers of the key index are used up");
        self.next += 1;
        number
    }

    /// Numbers stay used: a caller may still hold one.
    pub(super) fn discard_pending(&mut self) {
        for number in std::mem::take(&mut self.pending).path.into_keys() {
            Arc::make_mut(&mut self.live).unset(number);
        }
    }

    pub(super) fn apply(&mut self, dead: &[u32]) {
        for (number, path) in std::mem::take(&mut self.pending).path {
            self.applied.add(number, path);
        }
        for &number in dead {
            self.applied.remove(number);
            Arc::make_mut(&mut self.live).unset(number);
        }
    }

    /// The rewrite in numbers, which its outputs get now. A known output keeps its number, so that a path still has one;
    /// unless it is replaced as well, since a number that moved stays where it moved from. Pending files are part of
    /// no snapshot, hence of no rewrite.
    ///
    /// # Panics
    /// When all 2^32 - 1 numbers are used.
    pub(super) fn in_numbers(&mut self, map: &RowMap, below: u64) -> Rewrite {
        let numbers = self.applied.path.iter();
        let mut files: Vec<_> =
            numbers.filter_map(|(&number, path)| Some((number, map.files.get(&**path)?.clone()))).collect();
        files.sort_unstable_by_key(|(number, _)| *number);
        let mut outputs: HashMap<&str, u32> = HashMap::new();
        for path in &map.outputs {
            let known = self.applied_number_of(path).filter(|_| !map.files.contains_key(path));
            outputs.entry(path).or_insert_with(|| known.unwrap_or_else(|| self.unused()));
        }
        Rewrite::new(below, map.outputs.iter().map(|path| outputs[&**path]).collect(), files)
    }

    /// `rewrite` is `map` in numbers.
    pub(super) fn follow(&mut self, map: &RowMap, rewrite: Rewrite) {
        let live = Arc::make_mut(&mut self.live);
        for (number, _) in rewrite.files() {
            self.applied.remove(*number);
            live.unset(*number);
        }
        for (&number, path) in rewrite.outputs().iter().zip(&map.outputs) {
            self.applied.add(number, path.as_str().into());
            live.set(number);
        }
        Arc::make_mut(&mut self.moved).push(rewrite).expect("outputs are live, and what they replace was");
    }

    /// Forgets rewrites that no run with an id from `lowest` on needs; all of them if there is no run.
    pub(super) fn forget_moves(&mut self, lowest: Option<u64>) {
        if let Some(moved) = self.moved.without_unneeded(lowest) {
            self.moved = moved.into();
        }
    }

    pub(super) fn moved(&self) -> &Moved {
        &self.moved
    }

    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn pending(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.pending.path.iter().map(|(&number, path)| (number, &**path))
    }

    pub(super) fn applied_number_of(&self, path: &str) -> Option<u32> {
        self.applied.number.get(path).copied()
    }

    /// Not pending.
    pub(super) fn applied(&self) -> impl Iterator<Item = (u32, &str)> {
        self.applied.path.iter().map(|(&number, path)| (number, &**path))
    }

    pub(super) fn resolver(&self) -> Resolver {
        Resolver { live: self.live.clone(), moved: self.moved.clone() }
    }
}

#[derive(Default)]
struct Names {
    path: HashMap<u32, Arc<str>>,
    number: HashMap<Arc<str>, u32>,
}

impl Names {
    fn add(&mut self, number: u32, path: Arc<str>) {
        // A path may come back under a new number (rollback) while its old number is still here.
        let newest = self.number.entry(path.clone()).or_insert(number);
        *newest = number.max(*newest);
        self.path.insert(number, path);
    }

    fn remove(&mut self, number: u32) {
        let Some(path) = self.path.remove(&number) else { return };
        if self.number.get(&path) == Some(&number) {
            self.number.remove(&path);
        }
    }
}

/// One bit per file number ever used: 4 MiB after 32 million files.
#[derive(Clone, Default)]
pub(super) struct LiveFiles(Vec<u64>);

impl LiveFiles {
    pub(super) fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// False for the address of a deleted key as well: its file number is never live.
    pub(super) fn has_address(&self, packed: u64) -> bool {
        self.has((packed >> 32) as u32)
    }

    fn set(&mut self, number: u32) {
        let word = number as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    fn unset(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word &= !(1 << (number % 64));
        }
    }
}
