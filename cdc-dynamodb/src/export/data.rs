//! A data file of an export: gzip, one JSON document a line, each an item or a change in DynamoDB JSON.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use lakehouse_core::error::Problem;
use lakehouse_core::storage::Storage;
use md5::{Digest, Md5};
use serde::Deserialize;

use super::broken;
use super::manifest::{Checksum, ExportFile, failed, open};
use crate::value::Item;

/// Read at once.
const BUFFER: usize = 1 << 20;
/// Two images of 400 KB in the longest spelling of their bytes, and some.
const LONGEST_LINE: u64 = 16 << 20;

#[derive(Deserialize)]
struct ItemLine {
    #[serde(rename = "Item")]
    item: Item,
}

/// What became of one item within the window of an incremental export. An item stands in it once, with its last state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ExportedChange {
    metadata: Metadata,
    pub(crate) keys: Item,
    #[serde(default)]
    pub(crate) new_image: Option<Item>,
    #[serde(default)]
    pub(crate) old_image: Option<Item>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    write_timestamp_micros: Micros,
}

/// The documentation writes a text, the service a number of its own kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Micros {
    Number(i64),
    Text(String),
    Typed {
        #[serde(rename = "N")]
        number: String,
    },
}

impl ExportedChange {
    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        [Some(&self.keys), self.new_image.as_ref(), self.old_image.as_ref()]
            .into_iter()
            .flatten()
            .map(Item::bytes)
            .sum()
    }

    /// Microseconds since 1970.
    pub(crate) fn written_at(&self) -> Option<i64> {
        match &self.metadata.write_timestamp_micros {
            Micros::Number(number) => Some(*number),
            Micros::Text(text) | Micros::Typed { number: text } => text.parse().ok(),
        }
    }
}

/// Items of a full export's file. Blocks.
pub(crate) fn read_items(
    storage: &Storage,
    file: &ExportFile,
    mut each: impl FnMut(Item) -> Result<(), Problem>,
) -> Result<(), Problem> {
    read_lines(storage, file, |line: ItemLine| each(line.item))
}

/// Changes of an incremental export's file. Blocks.
pub(crate) fn read_changes(
    storage: &Storage,
    file: &ExportFile,
    each: impl FnMut(ExportedChange) -> Result<(), Problem>,
) -> Result<(), Problem> {
    read_lines(storage, file, each)
}

/// Why a file was not read to its end.
enum Stop {
    /// The bytes are not what they should be.
    Content(String),
    Problem(Problem),
}

fn read_lines<T: for<'de> Deserialize<'de>>(
    storage: &Storage,
    file: &ExportFile,
    mut each: impl FnMut(T) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let location = &file.location;
    let hash = Rc::new(RefCell::new(Md5::new()));
    let mut raw = BufReader::with_capacity(BUFFER, Hashed { inner: open(storage, location)?, hash: Rc::clone(&hash) });
    let read = lines(&mut raw, location, &mut each);
    let count = match read {
        Err(Stop::Problem(problem)) => return Err(problem),
        other => other,
    };
    // Also what stands behind the last line belongs to the file.
    io::copy(&mut raw, &mut io::sink()).map_err(|error| failed(location, &error))?;
    let found: Checksum = hash.borrow().clone().finalize().into();
    if found != file.md5 {
        return Err(broken("EXPORT_CHECKSUM", location, "the file is not the one of its checksum in the manifest"));
    }
    match count {
        Ok(count) if count == file.items => Ok(()),
        Ok(count) => {
            let message = format!("the file has {count} items, the manifest says {}", file.items);
            Err(broken("EXPORT_SHORT", location, message))
        }
        Err(Stop::Content(why)) => Err(broken("EXPORT_DAMAGED", location, why)),
        Err(Stop::Problem(problem)) => Err(problem),
    }
}

fn lines<T: for<'de> Deserialize<'de>>(
    raw: &mut impl BufRead,
    location: &str,
    each: &mut impl FnMut(T) -> Result<(), Problem>,
) -> Result<u64, Stop> {
    let mut text = BufReader::with_capacity(BUFFER, MultiGzDecoder::new(raw));
    let (mut count, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = (&mut text).take(LONGEST_LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|error| match error.get_ref().is_some_and(|inner| inner.is::<Problem>()) {
            true => Stop::Problem(failed(location, &error)),
            false => Stop::Content(format!("it cannot be unpacked: {error}")),
        })?;
        if read == 0 {
            return Ok(count);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        // The library's text may show a value.
        let unreadable = |error: serde_json::Error| {
            Stop::Content(format!("item {} is not DynamoDB JSON, at byte {} of its line", count + 1, error.column()))
        };
        each(serde_json::from_slice(&line).map_err(unreadable)?).map_err(Stop::Problem)?;
        count += 1;
    }
}

/// Counts bytes into a checksum as they are read.
struct Hashed<R> {
    inner: R,
    hash: Rc<RefCell<Md5>>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.borrow_mut().update(&buffer[..read]);
        Ok(read)
    }
}
