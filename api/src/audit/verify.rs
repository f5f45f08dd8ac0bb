//! Whether a trail is still what was written: every line, and each one's place behind the one before.
//!
//! A chain shows everything but one thing: whole lines that are missing at its end. Whoever has noted a head, or has a
//! copy, can ask for that, too.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::entry::{Head, LONGEST, Sealed};
use super::trail;
use crate::failure::Failure;

/// What somebody knows of a trail from earlier.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// The hash of a line that was its last one; there may be more behind it.
    pub(crate) head: Option<String>,
    /// Entries that it had.
    pub(crate) at_least: Option<u64>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// `sound` or `unsound`.
    pub(crate) verdict: &'static str,
    /// Up to the first flaw, as are all that follow.
    pub(crate) entries: u64,
    /// Of the last one; 0 without any.
    pub(crate) sequence: u64,
    /// Of the last one; 64 zeros without any.
    pub(crate) hash: String,
    /// When the last one was written.
    pub(crate) at: Option<String>,
    /// Of the first flaw, counted from 1; none where it is of no line.
    pub(crate) line: Option<u64>,
    /// What the first flaw is; none in a sound trail.
    pub(crate) flaw: Option<String>,
}

/// Reads a trail from its begin to where it stands now; entries may be added meanwhile.
///
/// # Errors
/// `AUDIT_UNREADABLE`.
pub(crate) fn verify(path: &Path, expected: &Expected) -> Result<Report, Failure> {
    let read = || {
        let file = File::open(path)?;
        let length = trail::settled(&file)?;
        walk(BufReader::new(file.take(length)), expected)
    };
    read().map_err(|error| unreadable(path, &error))
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("the audit trail cannot be read: {error}");
    let remedy = "name the file, as this user can read it; the first entry creates it";
    Failure::failed("AUDIT_UNREADABLE", path.display().to_string(), message, remedy)
}

pub(super) fn walk(mut lines: impl BufRead, expected: &Expected) -> io::Result<Report> {
    let (mut head, mut entries) = (Head::none(), 0);
    let is_expected = |head: &Head| expected.head.as_ref().is_none_or(|hash| *hash == head.hash);
    let mut was_head = is_expected(&head);
    let mut line = Vec::new();
    loop {
        line.clear();
        lines.by_ref().take(LONGEST + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        match follow(&head, &line) {
            Ok(next) => head = next,
            Err(flaw) => return Ok(Report::new(head, entries, Some((Some(entries + 1), flaw)))),
        }
        entries += 1;
        was_head |= is_expected(&head);
    }
    let missing = expected.at_least.filter(|least| entries < *least);
    let flaw = match missing {
        Some(least) => Some(format!("it has {entries} entries, and {least} were expected: its end is missing")),
        None if !was_head => {
            Some("it does not hold the expected head: its end is missing, or it is another trail".to_owned())
        }
        None => None,
    };
    Ok(Report::new(head, entries, flaw.map(|flaw| (None, flaw))))
}

/// The line as the next one behind `head`.
fn follow(head: &Head, line: &[u8]) -> Result<Head, String> {
    if line.len() as u64 > LONGEST {
        return Err("it is longer than an entry can be".to_owned());
    }
    let Sealed { previous, head: next } = Sealed::read(line)?;
    if previous != head.hash {
        return Err(match head.sequence {
            0 => "it is not the first one of a chain: lines before it are missing".to_owned(),
            _ => "it does not follow the line before it: lines were removed, added or moved".to_owned(),
        });
    }
    if Some(next.sequence) != head.sequence.checked_add(1) {
        return Err(format!("it is number {} and follows number {}", next.sequence, head.sequence));
    }
    Ok(next)
}

impl Report {
    fn new(head: Head, entries: u64, flaw: Option<(Option<u64>, String)>) -> Self {
        let verdict = if flaw.is_none() { "sound" } else { "unsound" };
        let (line, flaw) = flaw.map_or((None, None), |(line, flaw)| (line, Some(flaw)));
        Self { verdict, entries, sequence: head.sequence, hash: head.hash, at: head.at, line, flaw }
    }
}
