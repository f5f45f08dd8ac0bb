//! Owns the table of file numbers: which data file each number means, and which numbers are live.
//! Does not decide when a file is dead; the caller of `apply` does.
use std::collections::HashMap;
use std::sync::Arc;

/// Number ↔ path of the live data files. A number is never used twice; a dead file keeps neither path nor entry, only
/// the fact that its number is not live. Files added since the last `apply` count as live.
#[derive(Default)]
pub struct FileTable {
    applied: Names,
    pending: Names,
    next: u32,
    live: Arc<LiveFiles>,
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

    pub(super) fn restore(next: u32, files: impl IntoIterator<Item = (u32, Arc<str>)>) -> Self {
        let mut table = Self { next, ..Self::default() };
        for (number, path) in files {
            table.applied.add(number, path);
            Arc::make_mut(&mut table.live).set(number);
        }
        table
    }

    /// # Panics
    /// When all 2^32 - 1 numbers are used.
    pub(super) fn add(&mut self, path: &str) -> u32 {
        let number = self.next;
        assert!(number != u32::MAX, "file numbers of the key index are used up");
        self.next += 1;
        self.pending.add(number, path.into());
        Arc::make_mut(&mut self.live).set(number);
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

    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn pending(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.pending.path.iter().map(|(&number, path)| (number, &**path))
    }

    pub(super) fn live_set(&self) -> Arc<LiveFiles> {
        self.live.clone()
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
