//! The manifests of an export, as they are documented:
//!
//! ```text
//! PREFIX/AWSDynamoDB/ID/manifest-summary.json    what was exported: table, moment or window, number of items
//! PREFIX/AWSDynamoDB/ID/manifest-files.json      a line for each data file: key, MD5, number of items
//! PREFIX/AWSDynamoDB/ID/manifest-*.checksum      of the two above
//! PREFIX/AWSDynamoDB/ID/data/NAME.json.gz        of a full export; of an incremental one PREFIX/AWSDynamoDB/data/NAME.json.gz
//! ```
//!
//! Each data file's `etag` is left alone: with a key of one's own it is no checksum of the content.

use std::io::Read;

use aws_smithy_types::base64;
use lakehouse_core::error::Problem;
use lakehouse_core::storage::Storage;
use md5::{Digest, Md5};
use serde::Deserialize;
use tracing::warn;

use super::broken;

/// The folder that every export's keys go through.
const FOLDER: &str = "AWSDynamoDB/";
const SUMMARY: &str = "manifest-summary.json";
/// Largest manifest that is read: some millions of files.
const LARGEST: u64 = 1 << 30;

pub(crate) type Checksum = [u8; 16];

/// An export whose manifests are whole and agree.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) table_arn: String,
    pub(crate) items: u64,
    pub(crate) files: Vec<ExportFile>,
}

/// One data file, also where it holds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportFile {
    pub(crate) location: String,
    pub(crate) items: u64,
    pub(crate) md5: Checksum,
}

/// Which kind of export is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Full,
    Incremental,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    table_arn: String,
    manifest_files_s3_key: String,
    item_count: u64,
    output_format: String,
    /// Full exports had none of it before there were others.
    export_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileLine {
    item_count: u64,
    md5_checksum: String,
    #[serde(rename = "dataFileS3Key")]
    key: String,
}

impl Export {
    /// Reads and checks the manifests of the export whose summary is at `summary`. Blocks.
    pub(crate) fn open(storage: &Storage, summary: &str, kind: Kind) -> Result<Self, Problem> {
        let unreadable = |what: &str| broken("EXPORT_MANIFEST", summary, format!("the summary of the export {what}"));
        let root = summary.rfind(FOLDER).map(|place| &summary[..place]);
        let root = root.ok_or_else(|| unreadable(&format!("is not below {FOLDER}")))?;
        let text = checked(storage, summary)?;
        let told: Summary = serde_json::from_slice(&text).map_err(|error| unreadable(&format!("says {error}")))?;
        let found = match told.export_type.as_deref() {
            None | Some("FULL_EXPORT") => Kind::Full,
            Some("INCREMENTAL_EXPORT") => Kind::Incremental,
            Some(other) => return Err(unreadable(&format!("is of the kind {other:?}"))),
        };
        if found != kind {
            return Err(unreadable(&format!("is of another kind: {found:?}")));
        }
        if told.output_format != "DYNAMODB_JSON" {
            return Err(unreadable(&format!("is in the format {:?}, not DYNAMODB_JSON", told.output_format)));
        }
        let list = located(root, &told.manifest_files_s3_key);
        let files = files(storage, root, &list)?;
        let sum: u64 = files.iter().map(|file| file.items).sum();
        if sum != told.item_count {
            let message = format!("the export has {} items, its files have {sum} together", told.item_count);
            return Err(broken("EXPORT_MANIFEST", summary, message));
        }
        Ok(Self { table_arn: told.table_arn, items: told.item_count, files })
    }
}

/// Keys are written with their prefix or without.
fn located(root: &str, key: &str) -> String {
    let below = key.rfind(FOLDER).map_or(key, |place| &key[place..]);
    format!("{root}{below}")
}

/// Where the summary is, by the manifest that the service names.
pub(crate) fn summary_key(manifest: &str) -> String {
    match manifest.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{SUMMARY}"),
        None => manifest.to_owned(),
    }
}

fn files(storage: &Storage, root: &str, list: &str) -> Result<Vec<ExportFile>, Problem> {
    let text = checked(storage, list)?;
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let file = |(number, line): (usize, &[u8])| {
        let unreadable = |why: String| broken("EXPORT_MANIFEST", list, format!("line {}: {why}", number + 1));
        let told: FileLine = serde_json::from_slice(line).map_err(|error| unreadable(error.to_string()))?;
        let md5 = checksum(&told.md5_checksum).ok_or_else(|| unreadable("md5Checksum is none".to_owned()))?;
        Ok(ExportFile { location: located(root, &told.key), items: told.item_count, md5 })
    };
    lines.map(file).collect()
}

/// A manifest, compared with the checksum beside it.
fn checked(storage: &Storage, location: &str) -> Result<Vec<u8>, Problem> {
    let text = whole(storage, location)?;
    let beside = format!("{}.checksum", location.strip_suffix(".json").unwrap_or(location));
    let wanted = whole(storage, &beside)?;
    match std::str::from_utf8(&wanted).ok().and_then(|wanted| checksum(wanted.trim())) {
        Some(wanted) if wanted == Checksum::from(Md5::digest(&text)) => {}
        Some(_) => return Err(broken("EXPORT_CHECKSUM", location, "the manifest is not the one of its checksum")),
        // In which form they are is not published; what they stand for is checked file by file.
        None => warn!(location = beside, "checksum of an export's manifest has an unknown form"),
    }
    Ok(text)
}

fn whole(storage: &Storage, location: &str) -> Result<Vec<u8>, Problem> {
    let mut text = Vec::new();
    let read = open(storage, location)?.take(LARGEST).read_to_end(&mut text);
    read.map_err(|error| failed(location, &error))?;
    Ok(text)
}

/// A file of the export from its beginning.
pub(super) fn open(storage: &Storage, location: &str) -> Result<Box<dyn Read + Send>, Problem> {
    storage.read(location).map_err(|problem| match problem.code {
        "FILE_MISSING" => broken("EXPORT_MISSING", location, "a file of the export is not there"),
        _ => problem,
    })
}

/// What a failed read comes to.
pub(super) fn failed(location: &str, error: &std::io::Error) -> Problem {
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<Problem>());
    told.cloned().unwrap_or_else(|| Problem::retry("STORAGE", location, format!("file cannot be read: {error}")))
}

/// An MD5 in base64 or in hexadecimal digits.
pub(super) fn checksum(text: &str) -> Option<Checksum> {
    let hexadecimal = || -> Option<Vec<u8>> {
        let digits = text.as_bytes();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
    };
    let bytes = if text.len() == 32 { hexadecimal()? } else { base64::decode(text).ok()? };
    bytes.try_into().ok()
}
