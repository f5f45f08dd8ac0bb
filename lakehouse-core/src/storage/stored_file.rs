//! A stored file for reading at any offset, as Parquet's reader wants it: a local file, or an object read by ranges.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::objects::Objects;
use crate::error::Problem;

/// The grain of what is fetched.
const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks fetched at once by a reader that goes forward.
const AHEAD: u64 = 4;
/// Blocks that an open object keeps; a row group's columns are read in turns.
const KEPT: usize = 24;
/// The first read: Parquet's footer with its indexes, most often.
const TAIL_BYTES: u64 = 64 << 10;

/// An open file.
#[derive(Debug)]
pub enum StoredFile {
    Local(File),
    Object(ObjectFile),
}

/// An object and the blocks of it that are in memory.
#[derive(Clone, Debug)]
pub struct ObjectFile {
    objects: Objects,
    location: Arc<str>,
    length: u64,
    tail: Bytes,
    /// Number and bytes, the most recent last.
    blocks: Arc<Mutex<VecDeque<(u64, Bytes)>>>,
    failure: ReadFailure,
}

/// Why an open file could not be read on. Arrow's errors keep a text only, and whether to try again is not in it.
#[derive(Clone, Debug, Default)]
pub struct ReadFailure(Arc<Mutex<Option<Problem>>>);

impl ReadFailure {
    /// The last failure, once.
    pub fn take(&self) -> Option<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl StoredFile {
    /// Where failures of reading this file will be found.
    pub fn failure(&self) -> ReadFailure {
        match self {
            Self::Local(_) => ReadFailure::default(),
            Self::Object(object) => object.failure.clone(),
        }
    }
}

impl ObjectFile {
    pub(super) fn open(objects: &Objects, location: &str) -> Result<Self, Problem> {
        let (tail, length) = objects.wait(objects.get_tail(location, TAIL_BYTES))?;
        Ok(Self {
            objects: objects.clone(),
            location: location.into(),
            length,
            tail,
            blocks: Arc::default(),
            failure: ReadFailure::default(),
        })
    }

    /// Bytes from `from` on: as many as are at hand without another request, at least one unless at the end.
    fn at(&self, from: u64) -> Result<Bytes, Problem> {
        if from >= self.length {
            return Ok(Bytes::new());
        }
        let tail = self.length - self.tail.len() as u64;
        if from >= tail {
            return Ok(self.tail.slice(offset(from - tail)..));
        }
        let number = from / BLOCK_BYTES;
        let block = match self.kept(number) {
            Some(block) => block,
            None => self.fetch(number)?,
        };
        Ok(block.slice(offset(from - number * BLOCK_BYTES)..))
    }

    fn kept(&self, number: u64) -> Option<Bytes> {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.iter().find(|(kept, _)| *kept == number).map(|(_, block)| block.clone())
    }

    fn fetch(&self, number: u64) -> Result<Bytes, Problem> {
        self.fetch_blocks(number).inspect_err(|problem| {
            *self.failure.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem.clone());
        })
    }

    fn fetch_blocks(&self, number: u64) -> Result<Bytes, Problem> {
        let forward = number > 0 && self.kept(number - 1).is_some();
        let from = number * BLOCK_BYTES;
        let to = (from + BLOCK_BYTES * if forward { AHEAD } else { 1 }).min(self.length);
        let (bytes, _) = self.objects.wait(self.objects.get_range(&self.location, from..to))?;
        if bytes.len() as u64 != to - from {
            return Err(Problem::retry("STORAGE", &*self.location, "the object store answered another range"));
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let size = offset(BLOCK_BYTES);
        for (number, start) in (number..).zip((0..bytes.len()).step_by(size)) {
            if blocks.len() >= KEPT {
                blocks.pop_front();
            }
            blocks.push_back((number, bytes.slice(start..bytes.len().min(start + size))));
        }
        Ok(bytes.slice(..bytes.len().min(size)))
    }
}

fn offset(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an offset within memory")
}

impl Length for StoredFile {
    fn len(&self) -> u64 {
        match self {
            Self::Local(file) => Length::len(file),
            Self::Object(object) => object.length,
        }
    }
}

impl ChunkReader for StoredFile {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(match self {
            Self::Local(file) => Box::new(file.get_read(start)?),
            Self::Object(object) => Box::new(Forward { object: object.clone(), next: start }),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        match self {
            Self::Local(file) => file.get_bytes(start, length),
            Self::Object(object) => {
                let first = object.at(start).map_err(external)?;
                if first.len() >= length {
                    return Ok(first.slice(..length));
                }
                let mut bytes = Vec::with_capacity(length);
                bytes.extend_from_slice(&first);
                while bytes.len() < length {
                    let more = object.at(start + bytes.len() as u64).map_err(external)?;
                    if more.is_empty() {
                        return Err(ParquetError::EOF(format!("{length} bytes at {start} are beyond the end")));
                    }
                    bytes.extend_from_slice(&more[..more.len().min(length - bytes.len())]);
                }
                Ok(bytes.into())
            }
        }
    }
}

/// An object read forward from an offset.
struct Forward {
    object: ObjectFile,
    next: u64,
}

impl Read for Forward {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.object.at(self.next).map_err(io::Error::other)?;
        let read = bytes.len().min(buffer.len());
        buffer[..read].copy_from_slice(&bytes[..read]);
        self.next += read as u64;
        Ok(read)
    }
}

fn external(problem: Problem) -> ParquetError {
    ParquetError::External(Box::new(problem))
}
