//! Files below a table's location that no kept snapshot needs: leftovers of commits that were never made, and what expiry
//! has let go. Only where the storage lists and deletes; in a table bucket the service does this, and nobody else can.
//!
//! A file that was written and not yet committed looks just like a leftover. Age tells them apart: nothing of ours is
//! committed that is older than 18 hours (protocol A4), so nothing younger than 24 is ever removed, whatever the
//! configuration says, and nothing whose age is not known (`maintenance.md` M-20).

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::live::{load_manifest, manifest_list};
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::storage::{Cleaner, FoundFile, Storage, canonical};
use serde::Serialize;

/// No file that is younger is removed.
pub const FLOOR: Duration = Duration::from_secs(24 * 3_600);
/// The age from which files are removed where nothing else is said.
pub const AGE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Why nothing is removed in a table bucket, and when it goes all the same.
pub const BY_SERVICE: &str =
    "the service alone removes files: by default it marks what nothing needs after 3 days and deletes it 10 days later";
/// A property of the table: `false` where nothing of it may be removed.
const GC_ENABLED: &str = "gc.enabled";

/// A file that no kept snapshot needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orphan {
    pub location: String,
    pub bytes: u64,
    pub age_seconds: u64,
}

/// What is below a table's location.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Orphans {
    /// Old enough to go.
    pub removable: Vec<Orphan>,
    /// Too young, or of unknown age.
    pub waiting: usize,
    pub waiting_bytes: u64,
    /// Why nothing may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'static str>,
}

/// Looks for files that nothing needs. `others`: the locations of all other tables.
pub async fn plan(
    storage: &Storage,
    table: &LoadedTable,
    others: &[String],
    age: Duration,
    planted: Planted,
) -> Result<Orphans, Problem> {
    let location = table.metadata.location();
    if table.property(GC_ENABLED) == Some("false") {
        return Ok(Orphans { refused: Some("the table's property gc.enabled is false"), ..Orphans::default() });
    }
    if others.iter().any(|other| overlap(location, other)) {
        return Ok(Orphans { refused: Some("another table stands below the same location"), ..Orphans::default() });
    }
    // What is there first, then what is needed: a commit in between only adds to what is needed.
    let found = storage.cleaner().list(location).await?;
    let needed = needed(storage, table).await?;
    let age = if planted.is(Bug::OrphanAgeZero) { Duration::ZERO } else { age.max(FLOOR) };
    Ok(sort(found, &needed, age, SystemTime::now()))
}

/// Removes what a plan has found. Returns how many files and bytes went.
pub async fn act(cleaner: &Cleaner, orphans: &Orphans) -> Result<(u64, u64), Problem> {
    let (mut files, mut bytes) = (0, 0);
    for orphan in &orphans.removable {
        cleaner.remove(&orphan.location).await?;
        files += 1;
        bytes += orphan.bytes;
    }
    Ok((files, bytes))
}

/// One lies below the other.
fn overlap(one: &str, other: &str) -> bool {
    let below = |inner: &str, outer: &str| {
        let outer = format!("{}/", canonical(outer).trim_end_matches('/'));
        format!("{}/", canonical(inner).trim_end_matches('/')).starts_with(&outer)
    };
    below(one, other) || below(other, one)
}

/// Everything that a kept snapshot, the metadata or its log names, spelled as [`canonical`] does.
async fn needed(storage: &Storage, table: &LoadedTable) -> Result<HashSet<String>, Problem> {
    let metadata = &table.metadata;
    let mut needed = HashSet::from([canonical(&table.metadata_location)]);
    needed.extend(metadata.metadata_log().iter().map(|entry| canonical(&entry.metadata_file)));
    needed.extend(metadata.statistics_iter().map(|statistics| canonical(&statistics.statistics_path)));
    needed.extend(metadata.partition_statistics_iter().map(|statistics| canonical(&statistics.statistics_path)));
    let mut manifests = BTreeMap::new();
    for snapshot in metadata.snapshots() {
        needed.insert(canonical(snapshot.manifest_list()));
        for manifest in manifest_list(storage, table, snapshot).await? {
            manifests.insert(manifest.manifest_path.clone(), manifest);
        }
    }
    for (path, manifest) in manifests {
        needed.insert(canonical(&path));
        let entries = load_manifest(storage, &manifest).await?;
        let alive = entries.entries().iter().filter(|entry| entry.is_alive());
        needed.extend(alive.map(|entry| canonical(entry.file_path())));
    }
    Ok(needed)
}

fn sort(found: Vec<FoundFile>, needed: &HashSet<String>, age: Duration, now: SystemTime) -> Orphans {
    let mut orphans = Orphans::default();
    for file in found.into_iter().filter(|file| !needed.contains(&file.location)) {
        match file.age(now).filter(|found| *found >= age) {
            Some(age) => orphans.removable.push(Orphan {
                location: file.location,
                bytes: file.bytes,
                age_seconds: age.as_secs(),
            }),
            None => {
                orphans.waiting += 1;
                orphans.waiting_bytes += file.bytes;
            }
        }
    }
    orphans.removable.sort_by(|a, b| a.location.cmp(&b.location));
    orphans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_needs_and_is_surely_old_goes() {
        let now = SystemTime::now();
        let file = |name: &str, hours: Option<u64>| FoundFile {
            location: format!("/lake/t/{name}"),
            bytes: 10,
            modified: hours.map(|hours| now - Duration::from_secs(hours * 3_600)),
        };
        let found = vec![
            file("needed", Some(1_000)),
            file("old", Some(200)),
            file("young", Some(10)),
            file("unknown", None),
            FoundFile { modified: Some(now + Duration::from_secs(60)), ..file("of the future", None) },
        ];
        let orphans = sort(found, &HashSet::from(["/lake/t/needed".to_owned()]), AGE, now);
        let names: Vec<&str> = orphans.removable.iter().map(|orphan| orphan.location.as_str()).collect();
        assert_eq!(names, ["/lake/t/old"]);
        assert_eq!((orphans.waiting, orphans.waiting_bytes), (3, 30));
    }

    #[test]
    fn tables_below_each_other_are_noticed() {
        assert!(overlap("file:///lake/a", "/lake/a/b"));
        assert!(overlap("s3a://bucket/a/", "s3://bucket/a"));
        assert!(!overlap("/lake/a", "/lake/ab"));
        assert!(!overlap("s3://bucket/a", "s3://other/a"));
    }
}
