//! Owns what is known of rows that moved: the rewrites that were followed, and the rule where an address stands now.
//! Does not know layers or runs; who asks says which runs there are.
//!
//! Entries are not rewritten when their rows move. An address in a replaced file is led through the maps of one
//! rewrite after the other, until its file is live (the row stands there), dead, or has dropped the row. Merges write
//! the address they arrive at, and a rewrite is forgotten when no run is left that was begun before it.
//!
//! Invariant: an address passes a rewrite at most once, since outputs are live when their rewrite is followed, and
//! what has moved never becomes live again. A stored state that is otherwise is damaged ([`Moved::push`]).
//! Invariant: a rewrite is not forgotten before an earlier one (`below` ascends), so no way ends in its middle.
use super::entry::{GONE, Raw, address_of, packed};
use super::files::LiveFiles;
use crate::row_map::{FileMap, Piece, Place};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One rewrite, as far as it concerns files that had a number.
#[derive(Debug, PartialEq)]
pub(super) struct Rewrite {
    below: u64,
    outputs: Vec<u32>,
    files: Vec<(u32, FileMap)>,
    bytes: usize,
}

impl Rewrite {
    /// `below`: runs of lower ids may hold addresses in the replaced `files`, others do not. `outputs`: their numbers,
    /// as the maps count them.
    pub(super) fn new(below: u64, outputs: Vec<u32>, files: Vec<(u32, FileMap)>) -> Self {
        let bytes = outputs.len() * size_of::<u32>() + files.iter().map(|(_, map)| bytes_of(map)).sum::<usize>();
        Self { below, outputs, files, bytes }
    }

    pub(super) fn below(&self) -> u64 {
        self.below
    }

    pub(super) fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// The replaced files, by number.
    pub(super) fn files(&self) -> &[(u32, FileMap)] {
        &self.files
    }

    /// In memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries as they are after this rewrite alone. One whose row was dropped stays, as it hides older ones.
    pub(super) fn renew(&self, entries: &mut [Raw]) {
        let files: HashMap<u32, usize> = self.files.iter().map(|(number, _)| *number).zip(0..).collect();
        for entry in entries {
            if let Some(&file) = files.get(&address_of(entry[2]).file) {
                entry[2] = self.place(file, entry[2]).unwrap_or(GONE);
            }
        }
    }

    fn place(&self, file: usize, address: u64) -> Option<u64> {
        let Place { output, row } = self.files[file].1.place(address_of(address).row)?;
        Some(packed(*self.outputs.get(output as usize)?, row))
    }
}

fn bytes_of(map: &FileMap) -> usize {
    match map {
        FileMap::InOrder { dropped, pieces } => dropped.serialized_size() + pieces.len() * size_of::<Piece>(),
        FileMap::Listed(places) => places.len() * size_of::<Option<Place>>(),
    }
}

/// Rewrites that entries may still have to pass.
#[derive(Clone, Default, Debug, PartialEq)]
pub(super) struct Moved {
    /// Oldest first.
    rewrites: Vec<Arc<Rewrite>>,
    /// By number of the replaced file: its rewrite, and its place there.
    files: HashMap<u32, (Arc<Rewrite>, usize)>,
}

/// What rewrites take.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Weight {
    /// Replaced ones.
    pub(super) files: usize,
    pub(super) bytes: usize,
}

impl Moved {
    pub(super) fn rewrites(&self) -> &[Arc<Rewrite>] {
        &self.rewrites
    }

    pub(super) fn knows(&self, number: u32) -> bool {
        self.files.contains_key(&number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rewrites.is_empty()
    }

    /// `None`, and nothing is changed, when no rewrite after those here can be this one.
    pub(super) fn push(&mut self, rewrite: Rewrite) -> Option<()> {
        let own: HashSet<u32> = rewrite.files.iter().map(|(number, _)| *number).collect();
        let moved = |number: &u32| self.knows(*number);
        let later = self.rewrites.last().is_none_or(|last| last.below <= rewrite.below);
        let known = own.len() < rewrite.files.len() || own.iter().any(moved);
        let circle = rewrite.outputs.iter().any(|output| own.contains(output) || moved(output));
        let within = rewrite.files.iter().all(|(_, map)| map.places_below(rewrite.outputs.len()));
        if !later || known || circle || !within {
            return None;
        }
        if !own.is_empty() {
            self.insert(Arc::new(rewrite));
        }
        Some(())
    }

    fn insert(&mut self, rewrite: Arc<Rewrite>) {
        let numbers = rewrite.files.iter().zip(0..).map(|((number, _), place)| (*number, (rewrite.clone(), place)));
        self.files.extend(numbers);
        self.rewrites.push(rewrite);
    }

    /// Those that runs with ids from `lowest` on may need: the others are in front.
    fn needed(&self, lowest: Option<u64>) -> &[Arc<Rewrite>] {
        let unneeded = |rewrite: &Arc<Rewrite>| lowest.is_none_or(|lowest| rewrite.below <= lowest);
        &self.rewrites[self.rewrites.partition_point(unneeded)..]
    }

    /// As it is without what no run with an id from `lowest` on needs (`None`: there is no run). `None`: no different.
    pub(super) fn without_unneeded(&self, lowest: Option<u64>) -> Option<Self> {
        let needed = self.needed(lowest);
        (needed.len() < self.rewrites.len()).then(|| {
            let mut moved = Self::default();
            needed.iter().for_each(|rewrite| moved.insert(rewrite.clone()));
            moved
        })
    }

    /// Of what runs with ids from `lowest` on may need.
    pub(super) fn weight(&self, lowest: Option<u64>) -> Weight {
        let rewrites = self.needed(lowest);
        Weight {
            files: rewrites.iter().map(|rewrite| rewrite.files.len()).sum(),
            bytes: rewrites.iter().map(|rewrite| rewrite.bytes).sum(),
        }
    }
}

/// Where addresses stand, as of one moment.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    pub(super) live: Arc<LiveFiles>,
    pub(super) moved: Arc<Moved>,
}

impl Resolver {
    /// The address in a live file; `None`: the key is absent.
    pub(super) fn resolve(&self, address: u64) -> Option<u64> {
        if self.live.has_address(address) { Some(address) } else { self.lead(address) }
    }

    /// Kept out of the loops over live addresses, which are the rule.
    #[cold]
    fn lead(&self, mut address: u64) -> Option<u64> {
        while !self.live.has_address(address) {
            let (rewrite, file) = self.moved.files.get(&address_of(address).file)?;
            address = rewrite.place(*file, address)?;
        }
        Some(address)
    }

    /// Entries with the addresses where they stand now. What does not stand anywhere stays, as it hides older ones.
    pub(super) fn renew(&self, entries: &mut [Raw]) {
        if self.moved.is_empty() {
            return;
        }
        for entry in entries {
            entry[2] = self.resolve(entry[2]).unwrap_or(GONE);
        }
    }

    /// As `renew`, but what does not stand anywhere goes.
    pub(super) fn renew_and_drop_dead(&self, entries: &mut Vec<Raw>) {
        entries.retain_mut(|entry| self.resolve(entry[2]).map(|address| entry[2] = address).is_some());
    }
}
