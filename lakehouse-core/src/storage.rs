//! Where data files, manifests and metadata stand: today the local file system behind Iceberg's `FileIO`.
//!
//! Owns durability: a commit may name a file only after the file and its folder entry survive a loss of power. Never
//! deletes anything (protocol B10); never lists.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use iceberg::io::FileIO;

use crate::error::{Problem, Reaction};

/// A warehouse's files.
#[derive(Clone, Debug)]
pub struct Storage {
    io: FileIO,
}

impl Storage {
    pub fn local() -> Self {
        Self { io: FileIO::new_with_fs() }
    }

    pub fn io(&self) -> &FileIO {
        &self.io
    }

    /// A new file for sequential writing. Fails if it exists: names are unique, an existing one is somebody's data.
    pub fn create(&self, location: &str) -> Result<File, Problem> {
        let path = local_path(location)?;
        let attempt = |path: &Path| File::options().write(true).create_new(true).open(path);
        let created = match attempt(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| attempt(&path))
            }
            other => other,
        };
        created.map_err(|error| file_problem(location, "written", &error))
    }

    /// A file for reading at any offset, and its length in bytes.
    pub fn open(&self, location: &str) -> Result<(File, u64), Problem> {
        let open = || {
            let file = File::open(local_path(location)?).map_err(|error| file_problem(location, "read", &error))?;
            let length = file.metadata().map_err(|error| file_problem(location, "read", &error))?.len();
            Ok((file, length))
        };
        open()
    }

    /// The length of a file in bytes; `None` if it does not exist.
    pub fn length(&self, location: &str) -> Result<Option<u64>, Problem> {
        match fs::metadata(local_path(location)?) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_problem(location, "read", &error)),
        }
    }

    /// Returns when all `locations` and the folders that name them survive a loss of power.
    pub async fn make_durable(&self, locations: Vec<String>) -> Result<(), Problem> {
        let task = tokio::task::spawn_blocking(move || {
            let mut folders = BTreeSet::new();
            for location in &locations {
                let path = local_path(location)?;
                sync(&path).map_err(|error| file_problem(location, "synced", &error))?;
                folders.extend(path.parent().map(Path::to_path_buf));
            }
            for folder in folders {
                sync(&folder).map_err(|error| file_problem(&folder.to_string_lossy(), "synced", &error))?;
            }
            Ok(())
        });
        task.await.unwrap_or_else(|_| Err(Problem::retry("STORAGE", "", "syncing files was interrupted")))
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The folder or file behind a location. Other engines write `file:/path` for `file:///path` (files W2).
pub fn local_path(location: &str) -> Result<PathBuf, Problem> {
    let path = match location.strip_prefix("file:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => location,
    };
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    let remedy = "use a folder on this machine as the warehouse";
    Err(Problem::halt("STORAGE_KIND", location, "this storage is not supported", remedy))
}

/// The location of a folder on this machine, as it is written into manifests: byte for byte the same for ever (files W2).
pub fn location_of(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A failed file operation, told by what it means for the operator.
pub fn file_problem(subject: &str, verb: &str, error: &io::Error) -> Problem {
    use io::ErrorKind as Kind;
    let (code, remedy, reaction) = match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            ("DISK_FULL", "free space; the pipeline resumes by itself and nothing is lost", Reaction::Retry)
        }
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::NotADirectory => {
            ("WAREHOUSE_NOT_WRITABLE", "let the service's user read and write this folder", Reaction::Halt)
        }
        Kind::NotFound => ("FILE_MISSING", "run fsck; restore the file from a backup", Reaction::Halt),
        _ => ("STORAGE", "look at the storage; the pipeline resumes by itself", Reaction::Retry),
    };
    Problem {
        code,
        message: format!("file cannot be {verb}: {error}"),
        subject: subject.to_owned(),
        remedy: remedy.to_owned(),
        reaction,
    }
}

/// The same for an error that passed through the Iceberg library.
pub fn iceberg_problem(subject: &str, what: &str, error: &iceberg::Error) -> Problem {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return file_problem(subject, what, io);
        }
        // The library keeps an I/O error as the anyhow source of its own, which shows its text only.
        source = current.source();
    }
    let text = format!("{error:#}");
    let known = [
        ("No space left on device", io::ErrorKind::StorageFull),
        ("Permission denied", io::ErrorKind::PermissionDenied),
        ("Read-only file system", io::ErrorKind::ReadOnlyFilesystem),
        ("Not a directory", io::ErrorKind::NotADirectory),
    ];
    if let Some((_, kind)) = known.into_iter().find(|(said, _)| text.contains(said)) {
        return file_problem(subject, what, &io::Error::from(kind));
    }
    Problem::halt("METADATA", subject, format!("table metadata cannot be {what}: {error}"), "run fsck on the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_writing_a_file_url_mean_the_same_path() {
        for location in ["file:///a/b", "file:/a/b", "/a/b"] {
            assert_eq!(local_path(location).unwrap(), PathBuf::from("/a/b"));
        }
        assert_eq!(local_path("s3://bucket/key").unwrap_err().code, "STORAGE_KIND");
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let location = location_of(&folder.path().join("new/deep/file"));
        drop(Storage::local().create(&location).unwrap());
        assert!(Storage::local().create(&location).is_err());
    }

    #[test]
    fn a_full_disk_is_waited_for_and_a_forbidden_one_is_not() {
        let full = file_problem("f", "written", &io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!((full.code, full.reaction), ("DISK_FULL", Reaction::Retry));
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::NotADirectory] {
            let denied = file_problem("f", "written", &io::Error::from(kind));
            assert_eq!((denied.code, denied.reaction), ("WAREHOUSE_NOT_WRITABLE", Reaction::Halt));
        }
    }
}
