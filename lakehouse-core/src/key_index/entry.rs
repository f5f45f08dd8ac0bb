//! Owns what one entry is: a key's hash and the address of its row, packed into three words that sort by key.
//! Does not know runs, files or states.

/// 128-bit hash of a row's key columns. Keys must be spread evenly over all 128-bit numbers, as a good hash makes
/// them: the index finds a key by interpolation, so skew costs time and memory (never correctness).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyHash(pub u128);

impl KeyHash {
    pub(super) fn high(self) -> u64 {
        (self.0 >> 64) as u64
    }

    pub(super) fn words(self) -> (u64, u64) {
        (self.high(), self.0 as u64)
    }
}

/// Where a row stands: number of its data file ([`super::FileTable`]) and its position in that file, from 0.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowAddress {
    pub file: u32,
    pub row: u32,
}

/// One change of the index: the key stands at an address from now on, or is gone.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Entry(Raw);

impl Entry {
    /// `address: None` says that the key is gone.
    pub fn new(key: KeyHash, address: Option<RowAddress>) -> Self {
        let (high, low) = key.words();
        Self([high, low, address.map_or(GONE, |a| packed(a.file, a.row))])
    }

    pub fn key(&self) -> KeyHash {
        key_of(&self.0)
    }

    pub fn address(&self) -> Option<RowAddress> {
        (self.0[2] != GONE).then(|| address_of(self.0[2]))
    }
}

/// Sorts by key and keeps the last of several entries with the same key. Returns how many were dropped.
pub fn sort_entries(entries: &mut Vec<Entry>) -> usize {
    let before = entries.len();
    if !entries.is_sorted_by(|a, b| words(&a.0) < words(&b.0)) {
        spread(entries);
        entries.dedup_by(|later, kept| {
            let same = words(&later.0) == words(&kept.0);
            if same {
                *kept = *later;
            }
            same
        });
    }
    before - entries.len()
}

/// A stable sort. Hashes are uniform, so one pass over their top bits leaves stretches of about a dozen entries, which
/// the standard sort does by insertion: a third of its cost on the whole.
fn spread(entries: &mut Vec<Entry>) {
    let bits = (entries.len() / 12).max(1).ilog2().min(16);
    if bits < 2 {
        return entries.sort_by_key(|e| words(&e.0));
    }
    let bucket_of = |e: &Entry| (e.0[0] >> (64 - bits)) as usize;
    let mut ends = vec![0usize; 1 << bits];
    entries.iter().for_each(|e| ends[bucket_of(e)] += 1);
    let mut sum = 0;
    for end in &mut ends {
        // Begin of the bucket now, its end after the next loop.
        sum += std::mem::replace(end, sum);
    }
    let mut sorted = vec![Entry([0; 3]); entries.len()];
    for entry in &*entries {
        let end = &mut ends[bucket_of(entry)];
        sorted[*end] = *entry;
        *end += 1;
    }
    let mut begin = 0;
    for end in ends {
        sorted[begin..end].sort_by_key(Entry::key);
        begin = end;
    }
    *entries = sorted;
}

/// An entry as it stands in memory and in files: key high, key low, packed address. A plain array, so that slices of
/// it are bytes without a copy.
pub(super) type Raw = [u64; 3];

/// Packed address of a deleted key. Its file number is never handed out.
pub(super) const GONE: u64 = u64::MAX;

pub(super) fn words(entry: &Raw) -> (u64, u64) {
    (entry[0], entry[1])
}

pub(super) fn key_of(entry: &Raw) -> KeyHash {
    KeyHash(u128::from(entry[0]) << 64 | u128::from(entry[1]))
}

pub(super) fn packed(file: u32, row: u32) -> u64 {
    u64::from(file) << 32 | u64::from(row)
}

pub(super) fn address_of(packed: u64) -> RowAddress {
    RowAddress { file: (packed >> 32) as u32, row: packed as u32 }
}

/// Same allocation, other name.
pub(super) fn raw(entries: Vec<Entry>) -> Vec<Raw> {
    entries.into_iter().map(|e| e.0).collect()
}

/// One sorted list out of two; of equal keys `newer` decides.
pub(super) fn fold(mut newer: Vec<Raw>, older: &[Raw]) -> Vec<Raw> {
    newer.extend_from_slice(older);
    // Stable: equal keys stay in the order newer, older. The standard sort finds and merges the two sorted stretches.
    newer.sort_by_key(words);
    newer.dedup_by_key(|e| words(e));
    newer
}

/// `fold` in place, cheap when `newer` is much shorter.
pub(super) fn fold_into(older: &mut Vec<Raw>, newer: Vec<Raw>) {
    if newer.len() * 16 >= older.len() {
        *older = fold(newer, older);
        return;
    }
    for entry in newer {
        match older.binary_search_by_key(&words(&entry), words) {
            Ok(place) => older[place] = entry,
            Err(place) => older.insert(place, entry),
        }
    }
}
