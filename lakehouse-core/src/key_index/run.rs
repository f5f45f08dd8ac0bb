//! Owns one immutable sorted run: how its file is written, checked, searched and read in order.
//! Does not know which runs make up the index, nor which entries are dead.
//!
//! File: entries, then the directory, then a footer. Keys are hashes, hence uniform: the key space is cut into equal
//! slots of about 64 entries each, and the directory says where each slot begins and what its CRC-32 is (8 bytes per
//! slot, also in memory). So any key is found with one short read, each read is verified, and a sorted batch of keys
//! reads neighbouring slots together, which makes a large batch a merge join. The footer's CRC covers the directory
//! and stands in the manifest as well: a run can be neither damaged nor mistaken for another one. Words are in the
//! machine's own byte order; the footer's magic number fails on another machine.
use super::entry::{KeyHash, Raw, words};
use super::{IndexError, Result, damaged, io};
use crc32fast::Hasher;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ENTRY: u64 = size_of::<Raw>() as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"keyrun\0\x01");
const FOOTER: u64 = size_of::<[u64; 4]>() as u64;

/// Entries per slot of a run that is searched.
pub(super) const SEARCHED: u64 = 64;
/// Entries per slot of a run that is only read through: less directory.
pub(super) const READ_THROUGH: u64 = 512;
/// Most entries of one run, because the directory counts in `u32`.
pub(super) const MAX_ENTRIES: u64 = u32::MAX as u64;

/// Entries worth reading over rather than starting another read.
const GAP: u32 = 170;
/// Entries of one read of a search.
const GROUP: u32 = 8_192;

/// What the manifest says of a run.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct RunName {
    pub(super) id: u64,
    /// Entries.
    pub(super) len: u64,
    /// Checksum of directory and footer.
    pub(super) crc: u32,
}

pub(super) struct Run {
    name: RunName,
    file: File,
    /// Per slot: first entry, checksum. One more at the end: number of entries, 0.
    directory: Vec<[u32; 2]>,
}

pub(super) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("run-{id}"))
}

impl Run {
    pub(super) fn open(dir: &Path, name: RunName) -> Result<Self> {
        let cut = || damaged(format!("run {} does not have the stated length", name.id));
        let file = File::open(path(dir, name.id)).map_err(io("open a run"))?;
        let size = file.metadata().map_err(io("open a run"))?.len();
        let entries = name.len.checked_mul(ENTRY).filter(|_| name.len <= MAX_ENTRIES).ok_or_else(cut)?;
        let tail = size.checked_sub(entries).and_then(|tail| tail.checked_sub(FOOTER)).ok_or_else(cut)?;
        let mut footer = [0u64; 4];
        file.read_exact_at(bytemuck::bytes_of_mut(&mut footer), size - FOOTER).map_err(io("read a run"))?;
        let [magic, len, slots, crc] = footer;
        if magic != MAGIC || len != name.len || slots == 0 || slots.checked_mul(8) != Some(tail) {
            return Err(cut());
        }
        let mut directory = vec![[0u32; 2]; slots as usize];
        file.read_exact_at(bytemuck::cast_slice_mut(&mut directory), entries).map_err(io("read a run"))?;
        let actual = tail_crc(&directory, &footer);
        directory.push([name.len as u32, 0]);
        if u64::from(actual) != crc || actual != name.crc || !directory.is_sorted_by_key(|slot| slot[0]) {
            return Err(damaged(format!("directory of run {} has a wrong checksum", name.id)));
        }
        Ok(Self { name, file, directory })
    }

    pub(super) fn name(&self) -> RunName {
        self.name
    }

    pub(super) fn bytes(&self) -> u64 {
        self.name.len * ENTRY + self.directory.len() as u64 * 8 + FOOTER
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io("sync a run"))
    }

    /// Best effort: what stays is removed when the index is opened next.
    pub(super) fn remove(&self, dir: &Path) {
        if let Err(error) = std::fs::remove_file(path(dir, self.name.id)) {
            tracing::debug!(run = self.name.id, %error, "run not removed");
        }
    }

    /// Calls `hit` with the index and packed address of each of the keys at `wanted` (ascending) that stands here.
    pub(super) fn find(
        &self,
        keys: &[KeyHash],
        wanted: &[u32],
        buffer: &mut Vec<Raw>,
        mut hit: impl FnMut(u32, u64),
    ) -> Result<()> {
        let mut rest = wanted;
        while let [first, ..] = *rest {
            let from = self.slot_of(keys[first as usize].high());
            let (together, to) = self.group(keys, rest, from);
            let entries = self.read(from..to, buffer)?;
            let mut current = (usize::MAX, &entries[..0]);
            for &i in &rest[..together] {
                let key = keys[i as usize];
                let slot = self.slot_of(key.high());
                if slot != current.0 {
                    current = (slot, self.verified(slot, from, entries)?);
                }
                let place = current.1.partition_point(|e| words(e) < key.words());
                if let Some(entry) = current.1.get(place).filter(|e| words(e) == key.words()) {
                    hit(i, entry[2]);
                }
            }
            rest = &rest[together..];
        }
        Ok(())
    }

    /// How many of the first keys are worth one read, and the slot after their last one.
    fn group(&self, keys: &[KeyHash], wanted: &[u32], from: usize) -> (usize, usize) {
        let mut to = from + 1;
        let mut together = 0;
        for &i in wanted {
            let slot = self.slot_of(keys[i as usize].high());
            if slot >= to {
                let near = self.begin(slot) - self.begin(to) <= GAP;
                if !near || self.begin(slot + 1) - self.begin(from) > GROUP {
                    break;
                }
                to = slot + 1;
            }
            together += 1;
        }
        (together, to)
    }

    fn slots(&self) -> usize {
        self.directory.len() - 1
    }

    fn slot_of(&self, high: u64) -> usize {
        slot_of(high, self.slots())
    }

    fn begin(&self, slot: usize) -> u32 {
        self.directory[slot][0]
    }

    fn read<'a>(&self, slots: Range<usize>, buffer: &'a mut Vec<Raw>) -> Result<&'a [Raw]> {
        let (from, to) = (self.begin(slots.start), self.begin(slots.end));
        let len = (to - from) as usize;
        if buffer.len() < len {
            buffer.resize(len, [0; 3]);
        }
        if len > 0 {
            let bytes = bytemuck::cast_slice_mut(&mut buffer[..len]);
            self.file.read_exact_at(bytes, u64::from(from) * ENTRY).map_err(io("read a run"))?;
        }
        Ok(&buffer[..len])
    }

    /// Entries of `slot` out of `entries`, which begin with the slot `first`.
    fn verified<'a>(&self, slot: usize, first: usize, entries: &'a [Raw]) -> Result<&'a [Raw]> {
        let base = self.begin(first);
        let part = &entries[(self.begin(slot) - base) as usize..(self.begin(slot + 1) - base) as usize];
        if crc32fast::hash(bytemuck::cast_slice(part)) != self.directory[slot][1] {
            return Err(damaged(format!("slot {slot} of run {} has a wrong checksum", self.name.id)));
        }
        Ok(part)
    }
}

/// High word of the product: a division of the key space into equal slots without a division.
fn slot_of(high: u64, slots: usize) -> usize {
    ((u128::from(high) * slots as u128) >> 64) as usize
}

fn tail_crc(directory: &[[u32; 2]], footer: &[u64; 4]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(bytemuck::cast_slice(directory));
    hasher.update(bytemuck::cast_slice(&footer[..3]));
    hasher.finalize()
}

/// Writes a run from sorted entries. Dropped before `finish`, it removes its file.
pub(super) struct RunWriter {
    path: PathBuf,
    file: Option<File>,
    id: u64,
    len: u64,
    slots: usize,
    directory: Vec<[u32; 2]>,
    /// Of the slot that is being written.
    hasher: Hasher,
}

impl RunWriter {
    /// `most`: no more entries than this will come.
    pub(super) fn create(dir: &Path, id: u64, most: u64, per_slot: u64) -> Result<Self> {
        if most > MAX_ENTRIES {
            return Err(IndexError::TooManyEntries);
        }
        let path = path(dir, id);
        let mut options = File::options();
        let file =
            options.create(true).truncate(true).read(true).write(true).open(&path).map_err(io("create a run"))?;
        let slots = (most / per_slot).max(1) as usize;
        let directory = Vec::with_capacity(slots + 1);
        Ok(Self { path, file: Some(file), id, len: 0, slots, directory, hasher: Hasher::new() })
    }

    /// Best in large pieces: each is one write.
    pub(super) fn push(&mut self, entries: &[Raw]) -> Result<()> {
        let mut rest = entries;
        while let [first, ..] = rest {
            let slot = slot_of(first[0], self.slots);
            self.begin(slot);
            let count = rest.iter().take_while(|e| slot_of(e[0], self.slots) == slot).count();
            self.hasher.update(bytemuck::cast_slice(&rest[..count]));
            self.len += count as u64;
            rest = &rest[count..];
        }
        let file = self.file.as_mut().expect("a finished run takes no more entries");
        file.write_all(bytemuck::cast_slice(entries)).map_err(io("write a run"))
    }

    /// Opens all slots through this one.
    fn begin(&mut self, slot: usize) {
        while self.directory.len() <= slot {
            self.end_slot();
            self.directory.push([self.len as u32, 0]);
        }
    }

    fn end_slot(&mut self) {
        let hasher = std::mem::take(&mut self.hasher);
        if let Some(last) = self.directory.last_mut() {
            last[1] = hasher.finalize();
        }
    }

    /// Not yet synced.
    pub(super) fn finish(mut self) -> Result<Run> {
        self.begin(self.slots - 1);
        self.end_slot();
        let mut footer = [MAGIC, self.len, self.slots as u64, 0];
        let crc = tail_crc(&self.directory, &footer);
        footer[3] = u64::from(crc);
        let file = self.file.as_mut().expect("a run is finished once");
        file.write_all(bytemuck::cast_slice(&self.directory)).map_err(io("write a run"))?;
        file.write_all(bytemuck::bytes_of(&footer)).map_err(io("write a run"))?;
        let mut directory = std::mem::take(&mut self.directory);
        directory.push([self.len as u32, 0]);
        let file = self.file.take().expect("a run is finished once");
        Ok(Run { name: RunName { id: self.id, len: self.len, crc }, file, directory })
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.path); // Best effort, as in `Run::remove`.
        }
    }
}

/// Reads sorted entries in order, from a run (verified) or from memory.
pub(super) struct Cursor {
    run: Option<Arc<Run>>,
    next_slot: usize,
    /// Entries of one read.
    read: u32,
    buffer: Vec<Raw>,
    place: usize,
    end: usize,
}

impl Cursor {
    pub(super) fn over_run(run: Arc<Run>, read: u32) -> Self {
        Self { run: Some(run), next_slot: 0, read, buffer: vec![], place: 0, end: 0 }
    }

    pub(super) fn over_memory(entries: Vec<Raw>) -> Self {
        Self { run: None, next_slot: 0, read: 0, place: 0, end: entries.len(), buffer: entries }
    }

    /// Moves all entries up to those whose high word is `last` to the end of `out`.
    pub(super) fn take_through(&mut self, last: u64, out: &mut Vec<Raw>) -> Result<()> {
        while self.fill()? {
            let rest = &self.buffer[self.place..self.end];
            let count = rest.partition_point(|e| e[0] <= last);
            out.extend_from_slice(&rest[..count]);
            self.place += count;
            if self.place < self.end {
                break;
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<bool> {
        while self.place == self.end {
            let Some(run) = self.run.as_ref().filter(|run| self.next_slot < run.slots()) else {
                return Ok(false);
            };
            let from = self.next_slot;
            let ahead = &run.directory[from + 2..];
            let limit = run.begin(from).saturating_add(self.read);
            let to = from + 1 + ahead.partition_point(|slot| slot[0] <= limit);
            let entries = run.read(from..to, &mut self.buffer)?;
            for slot in from..to {
                run.verified(slot, from, entries)?;
            }
            (self.place, self.end, self.next_slot) = (0, entries.len(), to);
        }
        Ok(true)
    }
}
