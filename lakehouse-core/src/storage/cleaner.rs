//! Listing and removing files, for maintenance alone: nothing else has a [`Cleaner`]. A table bucket allows neither, so no
//! code path that works on one asks for it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::objects::{Objects, is_object};
use super::{Storage, file_problem, local_path};
use crate::error::Problem;

/// Files below a table's location.
#[derive(Clone, Debug)]
pub struct Cleaner {
    objects: Option<Objects>,
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// As [`canonical`] writes it.
    pub location: String,
    pub bytes: u64,
    /// `None` where the storage does not say.
    pub modified: Option<SystemTime>,
}

impl FoundFile {
    /// How long it has been as it is. `None` where that is not known, or lies in the future.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        now.duration_since(self.modified?).ok()
    }
}

/// One spelling per file: other engines write `file:/path` and `s3a://` for the same place.
pub fn canonical(location: &str) -> String {
    if is_object(location) {
        let rest = location.split_once("://").map_or(location, |(_, rest)| rest);
        return format!("s3://{rest}");
    }
    local_path(location).map_or_else(|_| location.to_owned(), |path| path.display().to_string())
}

impl Cleaner {
    pub(super) fn new(storage: &Storage) -> Self {
        Self { objects: storage.objects.clone() }
    }

    /// All files below a location, in no order.
    pub async fn list(&self, location: &str) -> Result<Vec<FoundFile>, Problem> {
        if is_object(location) {
            let objects = self.objects.as_ref().ok_or_else(|| super::no_store(location))?;
            return objects.list(&canonical(location)).await;
        }
        let root = local_path(location)?;
        let walk = move || {
            let mut found = Vec::new();
            walk(&root, &mut found)?;
            Ok(found)
        };
        let interrupted = |_| Err(Problem::retry("INTERRUPTED", location, "listing was interrupted"));
        tokio::task::spawn_blocking(walk).await.unwrap_or_else(interrupted)
    }

    /// Removes one file for good. One that is gone already is no error.
    pub async fn remove(&self, location: &str) -> Result<(), Problem> {
        if is_object(location) {
            let objects = self.objects.as_ref().ok_or_else(|| super::no_store(location))?;
            return objects.remove(location).await;
        }
        match std::fs::remove_file(local_path(location)?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(file_problem(location, "removed", &error))
            }
            _ => Ok(()),
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<FoundFile>) -> Result<(), Problem> {
    let failed = |error: std::io::Error| file_problem(&folder.display().to_string(), "listed", &error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            // One that goes while we look is not there.
            let Ok(metadata) = entry.metadata() else { continue };
            let location = entry.path().display().to_string();
            found.push(FoundFile { location, bytes: metadata.len(), modified: metadata.modified().ok() });
        }
    }
    Ok(())
}
