//! The file of the trail, and how a line is added: under a lock that all processes ask for, behind a last line that is
//! whole, and durable before the writer goes on.
//!
//! The file is opened anew for each line, so one that was moved away is not written to any more. A line that does not go
//! in whole (a full disk) is taken back, under the same lock. One that was torn by the end of a process or machine stays
//! where it is, and nothing is written behind it: what it was is for a person to look at.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::warn;

use super::entry::{Head, LONGEST, Sealed};
use crate::failure::Failure;

/// How long a writer waits for its turn. One entry takes milliseconds: who holds the file longer has been stopped, or the
/// disk has.
const TURN: Duration = Duration::from_secs(5);
/// Between two looks at another process's lock.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes in which the last line is looked for first; a usual one has a tenth of them.
const FIRST_LOOK: u64 = 4 << 10;
/// Names, reasons and conditions on rows are not for everybody; a group may ship them.
const MODE: u32 = 0o640;

/// When a writer that asks now has waited long enough.
pub(super) fn deadline() -> Instant {
    Instant::now() + TURN
}

/// Adds the line that `seal` makes behind the last one.
///
/// # Errors
/// `AUDIT_UNWRITABLE`: there is no such line, or it may not be durable. `AUDIT_DAMAGED`: the last line is not sound.
pub(super) fn append(path: &Path, deadline: Instant, seal: impl FnOnce(&Head) -> Vec<u8>) -> Result<(), Failure> {
    let (mut file, length) = open(path, deadline)?;
    let head = head(path, &file, length)?;
    let line = seal(&head);
    if line.len() as u64 > LONGEST {
        let message =
            format!("the entry would be longer than {LONGEST} bytes: shorten the reason, or name fewer tables");
        return Err(unwritable(path.display(), message));
    }
    if let Err(error) = file.write_all(&line) {
        if let Err(error) = file.set_len(length) {
            warn!(%error, "a part of an entry stays in the audit trail");
        }
        return Err(unwritable(path.display(), error));
    }
    // Where this fails the line stays: somebody may have read it, and it says of nothing that it was done.
    file.sync_data().map_err(|error| unwritable(path.display(), error))?;
    if length == 0 {
        sync_folder(path).map_err(|error| unwritable(path.display(), error))?;
    }
    Ok(())
}

/// Whether a line could be added.
///
/// # Errors
/// As of [`append`].
pub(super) fn check(path: &Path, deadline: Instant) -> Result<(), Failure> {
    let (file, length) = open(path, deadline)?;
    head(path, &file, length).map(|_| ())
}

/// The file with its lock, which ends with it, and its length.
fn open(path: &Path, deadline: Instant) -> Result<(File, u64), Failure> {
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path);
    let locked = opened.and_then(|file| {
        lock(deadline, || file.try_lock())?;
        let length = file.metadata()?.len();
        Ok((file, length))
    });
    locked.map_err(|error| unwritable(path.display(), error))
}

/// Bytes that are no writer's work in progress.
///
/// # Errors
/// Those of the disk, and of a writer that does not come to an end.
pub(super) fn settled(file: &File) -> io::Result<u64> {
    lock(deadline(), || file.try_lock_shared())?;
    let length = file.metadata()?.len();
    file.unlock()?;
    Ok(length)
}

fn lock(deadline: Instant, attempt: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"));
            }
        }
    }
}

/// What the next line follows. That all lines before it hold is not looked at each time; `audit verify` does.
fn head(path: &Path, file: &File, length: u64) -> Result<Head, Failure> {
    if length == 0 {
        return Ok(Head::none());
    }
    let line = last_line(file, length).map_err(|error| unwritable(path.display(), error))?;
    Sealed::read(&line)
        .map(|sealed| sealed.head)
        .map_err(|what| damaged(path, &format!("the last line of the audit trail cannot be followed: {what}")))
}

/// The last line of so many bytes, with its break where it has one; of a longer one than an entry can be, its end.
pub(super) fn last_line(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut room = FIRST_LOOK;
    loop {
        let from = length.saturating_sub(room);
        let mut tail = vec![0; usize::try_from(length - from).expect("not longer than an entry")];
        file.read_exact_at(&mut tail, from)?;
        // The line's own break is not the one before it.
        let before = tail[..tail.len().saturating_sub(1)].iter().rposition(|byte| *byte == b'\n');
        match before {
            Some(at) => return Ok(tail.split_off(at + 1)),
            None if from == 0 || room >= LONGEST => return Ok(tail),
            None => room = (room * 16).min(LONGEST),
        }
    }
}

/// A file whose name is not durable is not, either.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

pub(super) fn damaged(path: &Path, message: &str) -> Failure {
    let remedy = "move the file away and keep it: a new chain begins with the next entry; `lakehouse audit verify` tells \
                  up to where the old one holds";
    Failure::failed("AUDIT_DAMAGED", path.display().to_string(), message, remedy)
}

pub(super) fn unwritable(subject: impl ToString, error: impl ToString) -> Failure {
    let message = format!("the audit trail cannot be written: {}", error.to_string());
    let remedy =
        "nothing that needs an entry is done until it can be: let this user write the file, and give its disk room";
    Failure::failed("AUDIT_UNWRITABLE", subject.to_string(), message, remedy)
}
