//! A trail read from its end, some entries at a time, for who looks at it. Each line is checked by itself and against the one
//! behind it, so what is shown is what was written; that the whole chain holds is for `verify.rs` to say.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::entry::Sealed;
use super::{trail, verify};
use crate::failure::Failure;

/// Bytes of lines after which a page ends before it is full: a usual one has a tenth of them.
const MOST_BYTES: u64 = 4 << 20;

/// An entry of the audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditEntry)]
pub(crate) struct Recorded {
    /// Its number in the trail.
    pub(super) sequence: u64,
    /// RFC 3339.
    at: String,
    /// `intent`, `outcome`, `read` or `refused`.
    kind: String,
    /// `http` or `command_line`.
    via: String,
    /// The verb, or what was read.
    action: String,
    /// Empty where nobody is known.
    principal: String,
    /// A table, a pipeline, or the id of an operation.
    subject: String,
    /// Ties an outcome to what it is of.
    request_id: String,
    reason: Option<String>,
    #[schema(value_type = Object)]
    detail: Map<String, Value>,
    /// Of the line in the file.
    hash: String,
}

/// Where a page begins: behind the line that ends there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Of the line's end, from the file's begin.
    offset: u64,
    /// Of the line: in a file that was begun anew another one may end there.
    hash: String,
}

/// Some entries, the newest first.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Recorded>,
    /// Where older ones begin, if there are any.
    pub(crate) next: Option<Mark>,
}

/// At most so many entries from the mark on, without one from the newest; `None` where the file has no such mark any more. A
/// file that is not there has no entries yet.
///
/// # Errors
/// `AUDIT_UNREADABLE`; `AUDIT_DAMAGED` where a line of the page is not what was written.
pub(super) fn read(path: &Path, from: Option<Mark>, most: usize) -> Result<Option<Page>, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(from.is_none().then(Page::default)),
        Err(error) => return Err(verify::unreadable(path, &error)),
    };
    let unreadable = |error| verify::unreadable(path, &error);
    let settled = trail::settled(&file).map_err(unreadable)?;
    let is_marked = from.is_some();
    let begin = from.as_ref().map_or(settled, |mark| mark.offset);
    if begin > settled {
        return Ok(None);
    }
    let (mut end, mut expected) = (begin, from.map(|mark| mark.hash));
    let mut page = Page::default();
    while end > 0 && page.entries.len() < most && begin - end < MOST_BYTES {
        let line = trail::last_line(&file, end).map_err(unreadable)?;
        match recorded(&line, expected.as_deref()) {
            Ok((entry, previous)) => {
                page.entries.push(entry);
                expected = Some(previous);
            }
            // What the mark was of is not there.
            Err(_) if is_marked && page.entries.is_empty() => return Ok(None),
            Err(flaw) => {
                return Err(trail::damaged(path, &format!("a line that ends at byte {end} does not hold: {flaw}")));
            }
        }
        end = end.saturating_sub(line.len() as u64);
    }
    page.next = expected.filter(|_| end > 0).map(|hash| Mark { offset: end, hash });
    Ok(Some(page))
}

/// The entry of a line, and the hash of the line before it.
fn recorded(line: &[u8], expected: Option<&str>) -> Result<(Recorded, String), &'static str> {
    let Sealed { previous, head } = Sealed::read(line)?;
    if expected.is_some_and(|hash| hash != head.hash) {
        return Err("the line behind it does not follow it");
    }
    let entry = serde_json::from_slice(line).map_err(|_| "it is no entry")?;
    Ok((entry, previous))
}
