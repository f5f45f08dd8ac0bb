//! Owns what makes a state durable: the manifest (a whole state) and its log (the steps since), both checksummed.
//! Does not read runs, nor decide what a step contains.
//!
//! The state is the manifest plus every complete record of its log, so a step costs one append and one sync, however
//! small or large the index is. When the log has grown, a new manifest with an empty log replaces both: the log is
//! created first, and the rename of the manifest is the switch. A record's checksum continues the one before it, the
//! first continues the manifest's: no record can be taken for one of another log or another place. A torn or damaged
//! record ends the log, so what is read is always a state that stood after some step.
//!
//! All numbers are little-endian. Manifest: magic, format, generation, state, CRC-32 of all that.
use super::entry::{Raw, words};
use super::moved::{Moved, Rewrite};
use super::run::RunName;
use super::{IndexError, Result, damaged, io};
use crate::row_map::FileMap;
use crc32fast::Hasher;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"keyindex";
/// Any other format is rebuilt: the state is disposable (`F35`).
const FORMAT: u32 = 2;
/// Nothing that is written comes near; a damaged length must not become an allocation.
const MOST_BYTES: u64 = 1 << 31;
const FRAME: usize = 8;

/// The state as it is stored.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) snapshot: i64,
    /// Next file number.
    pub(super) next_file: u32,
    /// Next run id: above all ids ever mentioned.
    pub(super) next_run: u64,
    pub(super) files: HashMap<u32, Arc<str>>,
    /// Oldest first.
    pub(super) runs: Vec<RunName>,
    /// Entries newer than all runs. While steps are replayed: in the order they came, later ones deciding.
    pub(super) young: Vec<Raw>,
    /// None of the young entries has an address in a file that moved.
    pub(super) moved: Moved,
}

impl Stored {
    /// New runs get ids from `below` on, else they would count among those that may need the rewrite.
    fn push(&mut self, rewrite: Rewrite) -> Option<()> {
        self.next_run = self.next_run.max(rewrite.below());
        self.moved.push(rewrite)
    }

    /// No number is live and moved, or will be given to another file.
    fn counts_files_once(&self) -> bool {
        let live = self.files.keys().all(|number| *number < self.next_file && !self.moved.knows(*number));
        let mut moved = self.moved.rewrites().iter().flat_map(|rewrite| rewrite.files());
        live && moved.all(|(number, _)| *number < self.next_file)
    }
}

/// A state or a step on its way to the disk.
pub(super) struct Record(Vec<u8>);

pub(super) struct Applied<'a, Files> {
    pub(super) snapshot: i64,
    pub(super) next_file: u32,
    /// New files of a step, all live files of a state.
    pub(super) files: Files,
    pub(super) runs: Vec<RunName>,
    pub(super) young: &'a [Raw],
}

const APPLY: u32 = 1;
const MERGE: u32 = 2;
const FOLLOW: u32 = 3;

impl Record {
    pub(super) fn state<'f>(
        state: Applied<'_, impl ExactSizeIterator<Item = (u32, &'f str)>>,
        rewrites: &[&Rewrite],
    ) -> Self {
        let mut record = Self(vec![]);
        record.applied(state);
        record.u32(rewrites.len() as u32);
        rewrites.iter().for_each(|rewrite| record.rewrite(rewrite));
        record
    }

    /// `reset`: the entries in memory so far are part of the step's first run and must be forgotten.
    pub(super) fn step<'f>(
        step: Applied<'_, impl ExactSizeIterator<Item = (u32, &'f str)>>,
        dead: &[u32],
        reset: bool,
    ) -> Self {
        let mut record = Self(vec![]);
        record.u32(APPLY);
        record.u32(reset.into());
        record.u32(dead.len() as u32);
        dead.iter().for_each(|&number| record.u32(number));
        record.applied(step);
        record
    }

    /// The runs `removed` (neighbours, oldest first) became one in their place.
    pub(super) fn merge(removed: &[RunName], added: RunName) -> Self {
        let mut record = Self(vec![]);
        record.u32(MERGE);
        record.u32(removed.len() as u32);
        removed.iter().for_each(|run| record.u64(run.id));
        record.run(added);
        record
    }

    /// `outputs`: paths, as the rewrite counts them.
    pub(super) fn follow(snapshot: i64, next_file: u32, outputs: &[String], rewrite: &Rewrite) -> Self {
        let mut record = Self(vec![]);
        record.u32(FOLLOW);
        record.u64(snapshot as u64);
        record.u32(next_file);
        let outputs = outputs.iter().map(String::as_str);
        record.files(rewrite.outputs().iter().copied().zip(outputs));
        record.rewrite(rewrite);
        record
    }

    fn applied<'f>(&mut self, state: Applied<'_, impl ExactSizeIterator<Item = (u32, &'f str)>>) {
        self.u64(state.snapshot as u64);
        self.u32(state.next_file);
        self.files(state.files);
        self.u32(state.runs.len() as u32);
        state.runs.into_iter().for_each(|run| self.run(run));
        self.u32(state.young.len() as u32);
        state.young.iter().flatten().for_each(|&word| self.u64(word));
    }

    fn files<'f>(&mut self, files: impl ExactSizeIterator<Item = (u32, &'f str)>) {
        self.u32(files.len() as u32);
        for (number, path) in files {
            self.u32(number);
            self.u32(path.len() as u32);
            self.0.extend_from_slice(path.as_bytes());
        }
    }

    fn rewrite(&mut self, rewrite: &Rewrite) {
        self.u64(rewrite.below());
        self.u32(rewrite.outputs().len() as u32);
        rewrite.outputs().iter().for_each(|&number| self.u32(number));
        self.u32(rewrite.files().len() as u32);
        for (number, map) in rewrite.files() {
            self.u32(*number);
            let len = self.0.len();
            self.u32(0);
            map.encode(&mut self.0);
            let written = (self.0.len() - len - 4) as u32;
            self.0[len..len + 4].copy_from_slice(&written.to_le_bytes());
        }
    }

    fn run(&mut self, run: RunName) {
        self.u64(run.id);
        self.u64(run.len);
        self.u32(run.crc);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

pub(super) struct Journal {
    dir: PathBuf,
    sync: bool,
    log: Option<Log>,
    /// A write failed, so memory and disk may differ.
    broken: bool,
}

struct Log {
    file: File,
    generation: u64,
    len: u64,
    /// Checksum of the manifest and all records.
    chain: u32,
    manifest_len: u64,
}

impl Journal {
    /// The stored state, if there is one. Cuts off a torn record.
    pub(super) fn open(dir: &Path, sync: bool) -> Result<(Self, Option<Stored>)> {
        let mut journal = Self::absent(dir, sync);
        let Some(manifest) = read(&dir.join("manifest"))? else {
            return Ok((journal, None));
        };
        let (generation, chain, mut stored) = decode_manifest(&manifest)?;
        let records = read(&log_path(dir, generation))?.ok_or_else(|| damaged("the log is missing".into()))?;
        let (len, chain) = replay(&records, chain, &mut stored)?;
        if !stored.counts_files_once() {
            return Err(damaged("a file number is used twice".into()));
        }
        let file = File::options().write(true).open(log_path(dir, generation)).map_err(io("open the log"))?;
        if len < records.len() {
            tracing::info!(bytes = records.len() - len, "key index log ends in an unfinished record");
            file.set_len(len as u64).map_err(io("cut the log"))?;
        }
        // Newest first and stable: of equal keys the newest stays.
        stored.young.reverse();
        stored.young.sort_by_key(words);
        stored.young.dedup_by_key(|e| words(e));
        journal.log = Some(Log { file, generation, len: len as u64, chain, manifest_len: manifest.len() as u64 });
        Ok((journal, Some(stored)))
    }

    /// Without a manifest.
    pub(super) fn absent(dir: &Path, sync: bool) -> Self {
        Self { dir: dir.into(), sync, log: None, broken: false }
    }

    /// There is a state.
    pub(super) fn stands(&self) -> bool {
        self.log.is_some()
    }

    /// True when the next step should be a `replace`: there is no manifest, or the log has outgrown `bytes` and the
    /// manifest, so that writing manifests costs no more than writing records.
    pub(super) fn wants_manifest(&self, bytes: u64) -> bool {
        self.log.as_ref().is_none_or(|log| log.len > bytes.max(log.manifest_len))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.len + log.manifest_len)
    }

    /// One more step. Durable on return (if syncing).
    pub(super) fn append(&mut self, step: Record) -> Result<()> {
        self.unbroken(|journal| {
            let log = journal.log.as_mut().ok_or(IndexError::Broken)?;
            let Record(payload) = step;
            let len = (payload.len() as u32).to_le_bytes();
            let crc = chained(log.chain, &len, &payload);
            let mut bytes = Vec::with_capacity(FRAME + payload.len());
            bytes.extend_from_slice(&len);
            bytes.extend_from_slice(&crc.to_le_bytes());
            bytes.extend_from_slice(&payload);
            log.file.write_all_at(&bytes, log.len).map_err(io("append to the log"))?;
            if journal.sync {
                log.file.sync_data().map_err(io("sync the log"))?;
            }
            log.len += bytes.len() as u64;
            log.chain = crc;
            Ok(())
        })
    }

    /// A whole state, in place of everything before. Durable on return (if syncing).
    pub(super) fn replace(&mut self, state: Record) -> Result<()> {
        self.unbroken(|journal| {
            let generation = journal.log.as_ref().map_or(1, |log| log.generation + 1);
            let manifest = encode_manifest(generation, &state);
            let file = File::create(log_path(&journal.dir, generation)).map_err(io("create the log"))?;
            let new = journal.dir.join("manifest.new");
            let mut written = File::create(&new).map_err(io("create the manifest"))?;
            written.write_all(&manifest).map_err(io("write the manifest"))?;
            if journal.sync {
                file.sync_all().map_err(io("sync the log"))?;
                written.sync_all().map_err(io("sync the manifest"))?;
            }
            std::fs::rename(&new, journal.dir.join("manifest")).map_err(io("replace the manifest"))?;
            journal.sync_dir()?;
            let chain = crc32fast::hash(&manifest);
            let log = Log { file, generation, len: 0, chain, manifest_len: manifest.len() as u64 };
            if let Some(old) = journal.log.replace(log) {
                let _ = std::fs::remove_file(log_path(&journal.dir, old.generation)); // Else at the next opening.
            }
            Ok(())
        })
    }

    /// Makes names of new files durable (if syncing).
    pub(super) fn sync_dir(&self) -> Result<()> {
        if self.sync {
            File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory"))?;
        }
        Ok(())
    }

    /// Removes manifest and log, in this order: no crash leaves a manifest that names missing files for good.
    pub(super) fn clear(&mut self) -> Result<()> {
        match std::fs::remove_file(self.dir.join("manifest")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("remove the manifest")(error)),
            _ => {}
        }
        std::fs::create_dir_all(&self.dir).map_err(io("create the directory"))?;
        self.sync_dir()?;
        if let Some(log) = self.log.take() {
            let _ = std::fs::remove_file(log_path(&self.dir, log.generation)); // Else at the next opening.
        }
        self.broken = false;
        Ok(())
    }

    fn unbroken(&mut self, write: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.broken {
            return Err(IndexError::Broken);
        }
        self.broken = true;
        write(self)?;
        self.broken = false;
        Ok(())
    }

    /// Removes our files that `stored` does not name.
    pub(super) fn sweep(&self, stored: &Stored) -> Result<()> {
        let log = self.log.as_ref().map(|log| log.generation);
        for file in std::fs::read_dir(&self.dir).map_err(io("list the directory"))? {
            let file = file.map_err(io("list the directory"))?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            let id = |prefix: &str| name.strip_prefix(prefix).and_then(|id| id.parse::<u64>().ok());
            let kept = match (id("run-"), id("log-")) {
                (Some(id), _) => stored.runs.iter().any(|run| run.id == id),
                (_, Some(generation)) => Some(generation) == log,
                _ => name != "manifest.new" && (name != "manifest" || self.stands()),
            };
            if !kept {
                std::fs::remove_file(file.path()).map_err(io("remove an old file"))?;
            }
        }
        Ok(())
    }
}

fn log_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("log-{generation}"))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let bytes = std::fs::metadata(path)
        .and_then(|meta| if meta.len() > MOST_BYTES { Ok(None) } else { std::fs::read(path).map(Some) });
    match bytes {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        Ok(None) => Err(damaged("manifest or log is longer than any that was written".into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read manifest and log")(error)),
    }
}

fn chained(before: u32, len: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(len);
    hasher.update(payload);
    hasher.finalize()
}

fn encode_manifest(generation: u64, state: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(state.0.len() + 24);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&state.0);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Generation, checksum of all bytes, state.
fn decode_manifest(bytes: &[u8]) -> Result<(u64, u32, Stored)> {
    let torn = || damaged("the manifest has a wrong checksum".into());
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(torn)?;
    if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
        return Err(torn());
    }
    let mut reader = Reader(content);
    if reader.take(MAGIC.len()) != Some(MAGIC) || reader.u32() != Some(FORMAT) {
        return Err(damaged("the manifest has an unknown format".into()));
    }
    let mut stored = Stored::default();
    let generation = reader.u64().ok_or_else(torn)?;
    reader.state(&mut stored).filter(|()| reader.0.is_empty()).ok_or_else(torn)?;
    Ok((generation, crc32fast::hash(bytes), stored))
}

/// Applies all complete records; their length and the checksum so far.
fn replay(bytes: &[u8], mut chain: u32, stored: &mut Stored) -> Result<(usize, u32)> {
    let mut reader = Reader(bytes);
    loop {
        let done = bytes.len() - reader.0.len();
        let record = reader.u32().and_then(|len| Some((len, reader.u32()?, reader.take(len as usize)?)));
        let Some((len, crc, payload)) = record else {
            return Ok((done, chain));
        };
        if crc != chained(chain, &len.to_le_bytes(), payload) {
            return Ok((done, chain));
        }
        chain = crc;
        Reader(payload).step(stored).ok_or_else(|| damaged("a record does not fit the state".into()))?;
    }
}

/// `None`: not what was written.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn step(&mut self, stored: &mut Stored) -> Option<()> {
        match self.u32()? {
            APPLY => self.apply(stored)?,
            MERGE => self.merge(stored)?,
            FOLLOW => self.follow(stored)?,
            _ => return None,
        }
        self.0.is_empty().then_some(())
    }

    fn state(&mut self, stored: &mut Stored) -> Option<()> {
        self.applied(stored)?;
        for _ in 0..self.count(16)? {
            let rewrite = self.rewrite()?;
            stored.push(rewrite)?;
        }
        Some(())
    }

    fn follow(&mut self, stored: &mut Stored) -> Option<()> {
        stored.snapshot = self.u64()? as i64;
        stored.next_file = self.u32()?;
        self.files(stored)?;
        let rewrite = self.rewrite()?;
        for (number, _) in rewrite.files() {
            stored.files.remove(number)?;
        }
        if !rewrite.outputs().iter().all(|number| stored.files.contains_key(number)) {
            return None;
        }
        rewrite.renew(&mut stored.young);
        stored.push(rewrite)
    }

    fn rewrite(&mut self) -> Option<Rewrite> {
        let below = self.u64()?;
        let outputs = (0..self.count(4)?).map(|_| self.u32()).collect::<Option<_>>()?;
        let mut files = vec![];
        for _ in 0..self.count(8)? {
            let (number, len) = (self.u32()?, self.u32()?);
            files.push((number, FileMap::decode(self.take(len as usize)?)?));
        }
        Some(Rewrite::new(below, outputs, files))
    }

    fn apply(&mut self, stored: &mut Stored) -> Option<()> {
        if self.u32()? == 1 {
            stored.young.clear();
        }
        let dead: Vec<u32> = (0..self.count(4)?).map(|_| self.u32()).collect::<Option<_>>()?;
        self.applied(stored)?;
        // After the new files: a file may come and go in one step.
        dead.iter().for_each(|number| {
            stored.files.remove(number);
        });
        Some(())
    }

    fn applied(&mut self, stored: &mut Stored) -> Option<()> {
        stored.snapshot = self.u64()? as i64;
        stored.next_file = self.u32()?;
        self.files(stored)?;
        for _ in 0..self.count(20)? {
            let run = self.run()?;
            stored.next_run = stored.next_run.max(run.id.checked_add(1)?);
            stored.runs.push(run);
        }
        for _ in 0..self.count(24)? {
            stored.young.push([self.u64()?, self.u64()?, self.u64()?]);
        }
        Some(())
    }

    fn files(&mut self, stored: &mut Stored) -> Option<()> {
        for _ in 0..self.count(8)? {
            let number = self.u32()?;
            let len = self.u32()?;
            let path = std::str::from_utf8(self.take(len as usize)?).ok()?;
            stored.files.insert(number, path.into());
        }
        Some(())
    }

    fn merge(&mut self, stored: &mut Stored) -> Option<()> {
        let removed: Vec<u64> = (0..self.count(8)?).map(|_| self.u64()).collect::<Option<_>>()?;
        let added = self.run()?;
        let first = stored.runs.iter().position(|run| Some(&run.id) == removed.first())?;
        let span = first..first.checked_add(removed.len())?;
        if !stored.runs.get(span.clone())?.iter().map(|run| run.id).eq(removed) {
            return None;
        }
        stored.runs.splice(span, [added]);
        stored.next_run = stored.next_run.max(added.id.checked_add(1)?);
        Some(())
    }

    fn run(&mut self) -> Option<RunName> {
        Some(RunName { id: self.u64()?, len: self.u64()?, crc: self.u32()? })
    }

    /// A number of items of at least `size` bytes each, all of which are there.
    fn count(&mut self, size: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count.checked_mul(size)? <= self.0.len()).then_some(count)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}
