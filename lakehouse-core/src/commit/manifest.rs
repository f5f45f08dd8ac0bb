//! Manifests of one commit: what is added, what is replaced, and merging, so that manifests stay few.
//!
//! Manifests are merged by size class, each class by a factor of [`FAN`]: an entry is rewritten once per class, and a
//! table of n files has O(log n) manifests. Those of which no file stays are told in the manifest of the new files: readers
//! open every manifest there is, and pay for each. Delete manifests are kept small and are rewritten where one of their
//! delete files is replaced; of ours, each data file has one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{
    DataFile, Manifest, ManifestContentType, ManifestEntry, ManifestFile, ManifestWriter, ManifestWriterBuilder,
    SchemaRef,
};
use uuid::Uuid;

use super::FileChange;
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::live::{LiveDelete, LiveFiles, damaged, holds_data, load_manifest};
use crate::storage::{Storage, iceberg_problem};
use crate::write::NewFile;

/// Manifests of one size class before they are merged.
const FAN: usize = 8;
/// Manifests read at the same time.
const READS: usize = 8;
/// Entries of a delete manifest: a commit rewrites whole manifests, so they stay small.
const DELETE_ENTRIES: usize = 1_000;

/// The manifests of a new snapshot.
pub(super) struct SnapshotManifests {
    pub(super) manifests: Vec<ManifestFile>,
    /// Files written for it, to be made durable.
    pub(super) written: Vec<String>,
    /// The delete files of the snapshot that are listed in a manifest of this commit.
    pub(super) deletes: Vec<LiveDelete>,
}

/// Writes the manifests of one attempt.
pub(super) struct ManifestBuilder<'a> {
    pub(super) storage: &'a Storage,
    pub(super) base: &'a LoadedTable,
    pub(super) live: &'a LiveFiles,
    pub(super) schema: SchemaRef,
    pub(super) snapshot_id: i64,
    pub(super) sequence_number: i64,
}

impl ManifestBuilder<'_> {
    pub(super) async fn build(&self, change: &FileChange) -> Result<SnapshotManifests, Problem> {
        let mut out = SnapshotManifests { manifests: Vec::new(), written: Vec::new(), deletes: Vec::new() };
        if change.remove_all {
            self.write_data(change, BTreeMap::new(), &mut out).await?;
            self.remove_all(&mut out).await?;
            self.write_deletes(&change.deletes, &HashSet::new(), BTreeSet::new(), &mut out).await?;
            return Ok(out);
        }
        let carried = self.live.manifests.iter().filter(|m| m.has_added_files() || m.has_existing_files());
        let (data, deletes): (Vec<_>, Vec<_>) = carried.cloned().partition(holds_data);
        let (data, gone) = self.remove_data(data, &change.removed, &mut out).await?;
        self.write_data(change, gone, &mut out).await?;
        self.merge_data(data, &mut out).await?;
        self.carry_deletes(deletes, change, &mut out).await?;
        Ok(out)
    }

    /// New data files, and those of manifests of which nothing is left, by partition spec.
    async fn write_data(
        &self,
        change: &FileChange,
        mut gone: BTreeMap<i32, Vec<Gone>>,
        out: &mut SnapshotManifests,
    ) -> Result<(), Problem> {
        let mut added = by_spec(&change.added, |file| file.spec_id);
        let specs: BTreeSet<i32> = added.keys().chain(gone.keys()).copied().collect();
        for spec_id in specs {
            let mut writer = self.writer(spec_id, ManifestContentType::Data)?;
            for file in added.remove(&spec_id).unwrap_or_default() {
                let added = writer.add_file(file.file.clone(), change.sequence_number.unwrap_or(-1));
                added.map_err(|error| self.problem(&error))?;
            }
            for (path, manifest) in gone.remove(&spec_id).unwrap_or_default() {
                self.carry(&mut writer, &manifest, &path, |_| true)?;
            }
            self.finish(writer, out).await?;
        }
        Ok(())
    }

    /// Marks every live file as deleted; the next commit drops these manifests.
    async fn remove_all(&self, out: &mut SnapshotManifests) -> Result<(), Problem> {
        for file in &self.live.manifests {
            let manifest = load_manifest(self.storage, file).await?;
            if alive(&manifest).next().is_some() {
                let mut writer = self.writer(file.partition_spec_id, file.content)?;
                self.carry(&mut writer, &manifest, &file.manifest_path, |_| true)?;
                self.finish(writer, out).await?;
            }
        }
        Ok(())
    }

    /// Writes the manifests anew that list a removed file, with that marked as deleted; returns the others, and by partition
    /// spec those of which every file is removed.
    async fn remove_data(
        &self,
        carried: Vec<ManifestFile>,
        removed: &BTreeSet<String>,
        out: &mut SnapshotManifests,
    ) -> Result<(Vec<ManifestFile>, BTreeMap<i32, Vec<Gone>>), Problem> {
        let mut gone: BTreeMap<i32, Vec<Gone>> = BTreeMap::new();
        if removed.is_empty() {
            return Ok((carried, gone));
        }
        let mut untouched = Vec::new();
        let mut missing = removed.len();
        let reads = carried.into_iter().map(|file| async move {
            let manifest = load_manifest(self.storage, &file).await?;
            Ok::<_, Problem>((file, manifest))
        });
        let mut reads = stream::iter(reads).buffered(READS);
        while let Some((file, manifest)) = reads.try_next().await? {
            let goes = |entry: &ManifestEntry| removed.contains(entry.file_path());
            let found = alive(&manifest).filter(|entry| goes(entry)).count();
            missing = missing.saturating_sub(found);
            if found == 0 {
                untouched.push(file);
                continue;
            }
            if found == alive(&manifest).count() {
                gone.entry(file.partition_spec_id).or_default().push((file.manifest_path, manifest));
                continue;
            }
            let mut writer = self.writer(file.partition_spec_id, ManifestContentType::Data)?;
            self.carry(&mut writer, &manifest, &file.manifest_path, goes)?;
            self.finish(writer, out).await?;
        }
        if missing > 0 {
            let message = format!("{missing} files that are to be replaced are in no manifest");
            return Err(Problem::retry("TABLE_MOVED", self.base.name.to_string(), message));
        }
        Ok((untouched, gone))
    }

    /// The live entries of a manifest in another one, those that go marked as deleted. Entries that its own commit removed
    /// have been told once.
    fn carry(
        &self,
        writer: &mut ManifestWriter,
        manifest: &Manifest,
        path: &str,
        goes: impl Fn(&ManifestEntry) -> bool,
    ) -> Result<(), Problem> {
        let missing = || damaged(self.base, path);
        for entry in alive(manifest) {
            let file = entry.data_file().clone();
            let sequence_number = entry.sequence_number().ok_or_else(missing)?;
            let carried = match goes(entry) {
                true => writer.add_delete_file(file, sequence_number, entry.file_sequence_number),
                false => {
                    let snapshot_id = entry.snapshot_id().ok_or_else(missing)?;
                    writer.add_existing_file(file, snapshot_id, sequence_number, entry.file_sequence_number)
                }
            };
            carried.map_err(|error| self.problem(&error))?;
        }
        Ok(())
    }

    async fn merge_data(&self, carried: Vec<ManifestFile>, out: &mut SnapshotManifests) -> Result<(), Problem> {
        for ((spec_id, _), manifests) in by_class(carried) {
            if manifests.len() < FAN {
                out.manifests.extend(manifests);
                continue;
            }
            let mut writer = self.writer(spec_id, ManifestContentType::Data)?;
            for file in &manifests {
                let manifest = load_manifest(self.storage, file).await?;
                self.carry(&mut writer, &manifest, &file.manifest_path, |_| false)?;
            }
            self.finish(writer, out).await?;
        }
        Ok(())
    }

    async fn carry_deletes(
        &self,
        carried: Vec<ManifestFile>,
        change: &FileChange,
        out: &mut SnapshotManifests,
    ) -> Result<(), Problem> {
        let touched = change.replaced_deletes.iter().filter_map(|path| self.live.deletes.get(path));
        let mut rewritten: BTreeSet<String> = touched.map(|delete| delete.manifest.clone()).collect();
        if !rewritten.is_empty() || !change.deletes.is_empty() {
            let small = |m: &&ManifestFile| {
                let entries = m.added_files_count.unwrap_or(0) + m.existing_files_count.unwrap_or(0);
                (entries as usize) < DELETE_ENTRIES / FAN
            };
            let small: Vec<&ManifestFile> = carried.iter().filter(small).collect();
            if small.len() >= FAN {
                rewritten.extend(small.into_iter().map(|manifest| manifest.manifest_path.clone()));
            }
        }
        out.manifests.extend(carried.into_iter().filter(|m| !rewritten.contains(&m.manifest_path)));
        self.write_deletes(&change.deletes, &change.replaced_deletes, rewritten, out).await
    }

    /// New delete files, and those of the manifests in `rewritten`, the replaced ones marked as deleted.
    async fn write_deletes(
        &self,
        added: &[NewFile],
        replaced: &HashSet<String>,
        rewritten: BTreeSet<String>,
        out: &mut SnapshotManifests,
    ) -> Result<(), Problem> {
        let mut entries: Vec<Entry<'_>> = added.iter().map(Entry::Added).collect();
        let existing = self.live.deletes.iter().filter(|(_, delete)| rewritten.contains(&delete.manifest));
        entries.extend(existing.map(|(path, delete)| match replaced.contains(path) {
            true => Entry::Replaced(delete),
            false => Entry::Kept(delete),
        }));
        for (spec_id, mut entries) in by_spec(&entries, |entry| entry.spec_id()) {
            entries.sort_by(|a, b| a.file().file_path().cmp(b.file().file_path()));
            for entries in entries.chunks(DELETE_ENTRIES) {
                let mut writer = self.writer(spec_id, ManifestContentType::Deletes)?;
                for entry in entries {
                    entry.write(&mut writer).map_err(|error| self.problem(&error))?;
                }
                let manifest = self.finish(writer, out).await?;
                out.deletes.extend(entries.iter().filter_map(|entry| self.live_delete(entry, &manifest)));
            }
        }
        Ok(())
    }

    fn live_delete(&self, entry: &Entry<'_>, manifest: &str) -> Option<LiveDelete> {
        let manifest = manifest.to_owned();
        match entry {
            Entry::Replaced(_) => None,
            Entry::Kept(delete) => Some(LiveDelete { manifest, ..LiveDelete::clone(delete) }),
            Entry::Added(new) => Some(LiveDelete {
                file: new.file.clone(),
                spec_id: new.spec_id,
                snapshot_id: self.snapshot_id,
                sequence_number: self.sequence_number,
                file_sequence_number: self.sequence_number,
                manifest,
            }),
        }
    }

    fn writer(&self, spec_id: i32, content: ManifestContentType) -> Result<ManifestWriter, Problem> {
        let unknown = || Problem::halt("METADATA", self.base.name.to_string(), "unknown partition spec", "run fsck");
        let spec = self.base.metadata.partition_spec_by_id(spec_id).ok_or_else(unknown)?;
        let path = format!("{}/metadata/{}-m0.avro", self.base.metadata.location(), Uuid::now_v7());
        let output = self.storage.io().new_output(path).map_err(|error| self.problem(&error))?;
        let spec = iceberg::spec::PartitionSpec::clone(spec);
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot_id), self.schema.clone(), spec);
        Ok(match content {
            ManifestContentType::Data => builder.build_v2_data(),
            ManifestContentType::Deletes => builder.build_v2_deletes(),
        })
    }

    async fn finish(&self, writer: ManifestWriter, out: &mut SnapshotManifests) -> Result<String, Problem> {
        let mut manifest = writer.write_manifest_file().await.map_err(|error| self.problem(&error))?;
        // What the manifest list would fill in: known here, and needed in memory after the commit.
        manifest.sequence_number = self.sequence_number;
        if manifest.min_sequence_number < 0 {
            manifest.min_sequence_number = self.sequence_number;
        }
        let path = manifest.manifest_path.clone();
        out.written.push(path.clone());
        out.manifests.push(manifest);
        Ok(path)
    }

    fn problem(&self, error: &iceberg::Error) -> Problem {
        iceberg_problem(&self.base.name.to_string(), "written", error)
    }
}

/// A manifest of which no file stays, by its path.
type Gone = (String, Manifest);

fn alive(manifest: &Manifest) -> impl Iterator<Item = &ManifestEntry> {
    manifest.entries().iter().map(AsRef::as_ref).filter(|entry| entry.is_alive())
}

enum Entry<'a> {
    Added(&'a NewFile),
    Kept(&'a LiveDelete),
    Replaced(&'a LiveDelete),
}

impl Entry<'_> {
    fn spec_id(&self) -> i32 {
        match self {
            Entry::Added(new) => new.spec_id,
            Entry::Kept(delete) | Entry::Replaced(delete) => delete.spec_id,
        }
    }

    fn file(&self) -> &DataFile {
        match self {
            Entry::Added(new) => &new.file,
            Entry::Kept(delete) | Entry::Replaced(delete) => &delete.file,
        }
    }

    fn write(&self, writer: &mut ManifestWriter) -> iceberg::Result<()> {
        let file = self.file().clone();
        match self {
            Entry::Added(_) => writer.add_file(file, -1),
            Entry::Kept(old) => {
                writer.add_existing_file(file, old.snapshot_id, old.sequence_number, Some(old.file_sequence_number))
            }
            Entry::Replaced(old) => writer.add_delete_file(file, old.sequence_number, Some(old.file_sequence_number)),
        }
    }
}

/// Manifests of data files by partition spec and size class.
fn by_class(manifests: impl IntoIterator<Item = ManifestFile>) -> BTreeMap<(i32, u32), Vec<ManifestFile>> {
    let mut classes: BTreeMap<(i32, u32), Vec<ManifestFile>> = BTreeMap::new();
    for manifest in manifests {
        let entries = manifest.added_files_count.unwrap_or(1) + manifest.existing_files_count.unwrap_or(0);
        let class = entries.max(1).ilog(u32::try_from(FAN).expect("a small constant"));
        classes.entry((manifest.partition_spec_id, class)).or_default().push(manifest);
    }
    classes
}

/// By how many manifests of data files the next commit, whatever it is, leaves fewer. None behind a commit of ours: it is
/// other engines that leave many.
pub fn mergeable_manifests(live: &LiveFiles) -> usize {
    let data = live.manifests.iter().filter(|manifest| holds_data(manifest)).cloned();
    by_class(data).values().filter(|class| class.len() >= FAN).map(|class| class.len() - 1).sum()
}

fn by_spec<T>(items: &[T], spec_id: impl Fn(&T) -> i32) -> BTreeMap<i32, Vec<&T>> {
    let mut groups: BTreeMap<i32, Vec<&T>> = BTreeMap::new();
    for item in items {
        groups.entry(spec_id(item)).or_default().push(item);
    }
    groups
}
