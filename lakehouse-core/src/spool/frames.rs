//! The spool's file: frames, each with its checksum, behind a magic. What a crash has torn is cut off when it is opened.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use crc32fast::Hasher;

/// The file's first bytes; of another version nothing is read.
const MAGIC: &[u8; 16] = b"lakehouse spool1";
/// Kind and length in front of a payload.
const HEAD: usize = 9;
/// The checksum behind it.
const TAIL: usize = 4;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// From here on what is said of some tables counts.
    Begin = 1,
    Changes = 2,
    Boundary = 3,
    /// A table has left, as only the process knows that wrote it.
    Halted = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Begin, Self::Changes, Self::Boundary, Self::Halted].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Writes the magic of a new file; its length.
pub(super) fn begin(mut file: &File) -> io::Result<u64> {
    file.write_all(MAGIC)?;
    Ok(MAGIC.len() as u64)
}

/// Appends a frame; its length.
pub(super) fn append(mut file: &File, kind: Kind, payload: &[u8]) -> io::Result<u64> {
    let mut head = [kind as u8; HEAD];
    head[1..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    file.write_all(&head)?;
    file.write_all(payload)?;
    file.write_all(&checksum(&head, payload).to_le_bytes())?;
    Ok(frame_bytes(payload))
}

/// What a frame with this payload takes.
pub(super) fn frame_bytes(payload: &[u8]) -> u64 {
    (HEAD + payload.len() + TAIL) as u64
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hash = Hasher::new();
    hash.update(head);
    hash.update(payload);
    hash.finalize()
}

/// Reads frames in order.
#[derive(Debug)]
pub(super) struct Frames {
    file: BufReader<File>,
    /// Where the next frame begins, and where the file ends.
    at: u64,
    end: u64,
    payload: Vec<u8>,
}

impl Frames {
    /// From the first frame on; `None` if this is no spool of this version.
    pub(super) fn open(mut file: File) -> io::Result<Option<Self>> {
        let end = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut magic = [0; MAGIC.len()];
        if end < MAGIC.len() as u64 {
            return Ok(None);
        }
        file.read_exact(&mut magic)?;
        let frames = Self { file: BufReader::new(file), at: MAGIC.len() as u64, end, payload: Vec::new() };
        Ok((magic == *MAGIC).then_some(frames))
    }

    /// Where the next frame begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next frame, `None` at the end of the file.
    ///
    /// # Errors
    /// `InvalidData` where a frame is torn or not what was written.
    pub(super) fn next(&mut self) -> io::Result<Option<(Kind, &[u8])>> {
        let torn = || io::Error::new(io::ErrorKind::InvalidData, "a frame is not what was written");
        let left = self.end - self.at;
        if left == 0 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        if left < (HEAD + TAIL) as u64 {
            return Err(torn());
        }
        self.file.read_exact(&mut head)?;
        let length = u64::from_le_bytes(*head.last_chunk().expect("eight bytes behind the kind"));
        // Before anything is allocated: a length that is damaged may be any.
        if length > left - (HEAD + TAIL) as u64 {
            return Err(torn());
        }
        self.payload.resize(usize::try_from(length).map_err(|_| torn())?, 0);
        self.file.read_exact(&mut self.payload)?;
        let mut sum = [0; TAIL];
        self.file.read_exact(&mut sum)?;
        let kind = Kind::of(head[0]).filter(|_| checksum(&head, &self.payload) == u32::from_le_bytes(sum));
        self.at += HEAD as u64 + length + TAIL as u64;
        Ok(Some((kind.ok_or_else(torn)?, &self.payload)))
    }
}
