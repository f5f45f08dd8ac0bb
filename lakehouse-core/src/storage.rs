//! Where data files, manifests and metadata stand: local files, and objects in S3 or a service that speaks its protocol.
//! A location's scheme says which.
//!
//! Owns durability: a commit may name a file only after it survives a loss of power. A local file and its folder entry are
//! synced; a file that belongs into an object store is written in a local folder first, the spool, and sent when a commit
//! is about to name it. Never deletes anything that a reader could see (protocol B10), never lists: that is what a
//! [`Cleaner`] is for, which only maintenance has.

mod cleaner;
mod iceberg_io;
mod objects;
mod recent;
mod stored_file;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::io::FileIO;
use parquet::file::reader::ChunkReader;
use uuid::Uuid;

use crate::aws::AwsConfig;
use crate::error::{Problem, Reaction};
use objects::{Objects, is_object};

pub use cleaner::{Cleaner, FoundFile, canonical};
pub use stored_file::{ObjectFile, ReadFailure, StoredFile};

/// Files sent at the same time.
const UPLOADS: usize = 8;

/// A warehouse's files. Clones share the client and what is not sent yet.
#[derive(Clone, Debug)]
pub struct Storage {
    io: FileIO,
    objects: Option<Objects>,
    spool: Arc<Spool>,
}

/// Files on their way into an object store.
#[derive(Debug, Default)]
struct Spool {
    folder: Option<PathBuf>,
    /// By location, until they are sent.
    files: Mutex<HashMap<String, PathBuf>>,
}

impl Storage {
    /// Local files only.
    pub fn local() -> Self {
        Self { io: FileIO::new_with_fs(), objects: None, spool: Arc::default() }
    }

    /// Objects too, for reading.
    pub async fn s3(config: &AwsConfig) -> Self {
        let objects = Objects::open(config).await;
        Self { io: iceberg_io::file_io(objects.clone()), objects: Some(objects), spool: Arc::default() }
    }

    /// The same for writing, with a folder of its own for files that are not sent yet. What a worker that died has left
    /// there is removed: nothing has named it.
    pub fn with_spool(&self, folder: &Path) -> Result<Self, Problem> {
        if self.objects.is_none() {
            return Ok(self.clone());
        }
        let failed = |error: io::Error| file_problem(&folder.display().to_string(), "made anew", &error);
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::create_dir_all(folder).map_err(failed)?,
        }
        let spool = Spool { folder: Some(folder.to_owned()), files: Mutex::default() };
        Ok(Self { spool: Arc::new(spool), ..self.clone() })
    }

    /// What maintenance removes files with.
    pub fn cleaner(&self) -> Cleaner {
        Cleaner::new(self)
    }

    pub fn io(&self) -> &FileIO {
        &self.io
    }

    /// A new file for sequential writing. Fails if it exists: names are unique, an existing one is somebody's data.
    pub fn create(&self, location: &str) -> Result<File, Problem> {
        if is_object(location) {
            return self.create_spooled(location);
        }
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

    fn create_spooled(&self, location: &str) -> Result<File, Problem> {
        let folder = self.spool.folder.as_ref().ok_or_else(|| no_store(location))?;
        let path = folder.join(Uuid::new_v4().to_string());
        let created = File::options().write(true).create_new(true).open(&path);
        let file = created.map_err(|error| file_problem(&path.display().to_string(), "written", &error))?;
        self.spool.lock().insert(location.to_owned(), path);
        Ok(file)
    }

    /// A file for reading at any offset.
    pub fn open(&self, location: &str) -> Result<StoredFile, Problem> {
        let local = match is_object(location) {
            true => self.spool.path(location),
            false => Some(local_path(location)?),
        };
        match (local, &self.objects) {
            (Some(path), _) => {
                File::open(path).map(StoredFile::Local).map_err(|error| file_problem(location, "read", &error))
            }
            (None, Some(objects)) => Ok(StoredFile::Object(ObjectFile::open(objects, location)?)),
            (None, None) => Err(no_store(location)),
        }
    }

    /// A file from its beginning to its end. Blocks.
    pub fn read(&self, location: &str) -> Result<Box<dyn Read + Send>, Problem> {
        self.open(location)?.get_read(0).map_err(|error| {
            let unknown = || Problem::retry("STORAGE", location, format!("file cannot be read: {error}"));
            inner_problem(location, "read", &error).unwrap_or_else(unknown)
        })
    }

    /// The length of a file in bytes; `None` if it does not exist.
    pub fn length(&self, location: &str) -> Result<Option<u64>, Problem> {
        if is_object(location) {
            let objects = self.objects.as_ref().ok_or_else(|| no_store(location))?;
            return objects.wait(objects.length(location));
        }
        match fs::metadata(local_path(location)?) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_problem(location, "read", &error)),
        }
    }

    /// Returns when all `locations` survive a loss of power.
    pub async fn make_durable(&self, locations: Vec<String>) -> Result<(), Problem> {
        let (objects, local): (Vec<_>, Vec<_>) = locations.into_iter().partition(|location| is_object(location));
        stream::iter(objects).map(|location| self.send(location)).buffer_unordered(UPLOADS).try_collect::<()>().await?;
        if local.is_empty() {
            return Ok(());
        }
        let task = tokio::task::spawn_blocking(move || sync_all(&local));
        task.await.unwrap_or_else(|_| Err(Problem::retry("STORAGE", "", "syncing files was interrupted")))
    }

    /// Sends a file from the spool. One that is not there was written as an object at once, or has been sent before.
    async fn send(&self, location: String) -> Result<(), Problem> {
        let (Some(path), Some(objects)) = (self.spool.path(&location), &self.objects) else { return Ok(()) };
        objects.upload(&location, &path).await?;
        self.spool.lock().remove(&location);
        // It is scratch from now on; what stays goes with the next start.
        let _ = fs::remove_file(path);
        Ok(())
    }
}

impl Spool {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, PathBuf>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, location: &str) -> Option<PathBuf> {
        self.lock().get(location).cloned()
    }
}

fn no_store(location: &str) -> Problem {
    let remedy = "set the catalog's region or s3_endpoint, or use a folder on this machine as the warehouse";
    Problem::halt("STORAGE_KIND", location, "no object store is configured for this location", remedy)
}

fn sync_all(locations: &[String]) -> Result<(), Problem> {
    let mut folders = BTreeSet::new();
    for location in locations {
        let path = local_path(location)?;
        sync(&path).map_err(|error| file_problem(location, "synced", &error))?;
        folders.extend(path.parent().map(Path::to_path_buf));
    }
    for folder in folders {
        sync(&folder).map_err(|error| file_problem(&folder.to_string_lossy(), "synced", &error))?;
    }
    Ok(())
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

/// True if two engines mean the same file, however they write its location.
pub fn same_file(left: &str, right: &str) -> bool {
    let object = |location: &str| location.split_once("://").map(|(_, place)| place.to_owned());
    left == right
        || match (is_object(left), is_object(right)) {
            (true, true) => object(left) == object(right),
            (false, false) => matches!((local_path(left), local_path(right)), (Ok(left), Ok(right)) if left == right),
            _ => false,
        }
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

/// What storage has reported, from inside a library's error.
pub(crate) fn inner_problem(subject: &str, what: &str, error: &(dyn std::error::Error + 'static)) -> Option<Problem> {
    let mut source = Some(error);
    while let Some(current) = source {
        if let Some(problem) = current.downcast_ref::<Problem>() {
            return Some(problem.clone());
        }
        match current.downcast_ref::<io::Error>() {
            Some(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<Problem>()) {
                Some(problem) => return Some(problem.clone()),
                None => return Some(file_problem(subject, what, io)),
            },
            None => source = current.source(),
        }
    }
    None
}

/// The same for an error that passed through the Iceberg library.
pub fn iceberg_problem(subject: &str, what: &str, error: &iceberg::Error) -> Problem {
    if let Some(problem) = inner_problem(subject, what, error) {
        return problem;
    }
    // The library keeps an I/O error's text only.
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
        assert!(same_file("file:///a/b", "file:/a/b") && !same_file("file:///a/b", "file:///a/c"));
        assert!(same_file("s3://bucket/key", "s3a://bucket/key") && !same_file("s3://bucket/key", "/bucket/key"));
        assert_eq!(local_path("s3://bucket/key").unwrap_err().code, "STORAGE_KIND");
        assert_eq!(Storage::local().open("s3://bucket/key").unwrap_err().code, "STORAGE_KIND");
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
