//! A folder of this process alone, for files that are not sent yet and statements on their way to Spark.
//!
//! The spool in it is emptied when it is opened, so two processes must never share one. Whoever holds a folder's lock has
//! it; a lock goes with its process, and the next one takes the folder over and empties it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use lakehouse_core::storage::file_problem;

use crate::failure::Failure;

/// No pipeline has a dot in its name.
const FOLDER: &str = ".maintenance";
/// Processes that maintain tables from one machine at the same time.
const MOST: u32 = 100;

pub(crate) struct Scratch {
    path: PathBuf,
    /// Held as long as the process lives.
    _lock: File,
}

impl Scratch {
    /// The first folder below `local_state` that nobody has.
    ///
    /// # Errors
    /// Those of the disk; `LOCAL_STATE_IN_USE` when all are taken.
    pub(crate) fn open(local_state: &Path) -> Result<Self, Failure> {
        let folder = local_state.join(FOLDER);
        let failed = |error: std::io::Error| Failure::from(file_problem(&folder.display().to_string(), "made", &error));
        fs::create_dir_all(&folder).map_err(failed)?;
        for number in 1..=MOST {
            let lock = File::create(folder.join(format!("{number}.lock"))).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => {
                    let path = folder.join(number.to_string());
                    fs::create_dir_all(&path).map_err(failed)?;
                    return Ok(Self { path, _lock: lock });
                }
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        let message = format!("{MOST} processes maintain tables from this folder");
        Err(Failure::failed(
            "LOCAL_STATE_IN_USE",
            folder.display().to_string(),
            message,
            "end those that are not needed",
        ))
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    pub(crate) fn statements(&self) -> PathBuf {
        self.path.join("statements.sql")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_never_share_a_folder_and_one_that_is_left_is_taken_over() {
        let state = tempfile::tempdir().unwrap();
        let open = || Scratch::open(state.path()).unwrap();
        let (one, two) = (open(), open());
        assert_ne!(one.spool(), two.spool());
        let left = one.spool();
        drop(one);
        assert_eq!(open().spool(), left);
    }
}
