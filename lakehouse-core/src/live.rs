//! What is live in one snapshot: its manifests, its data files, and the delete files that apply to each.
//!
//! Read once when a table is opened, then carried along from commit to commit; never the truth, always a view of one
//! snapshot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{
    DataContentType, DataFile, FormatVersion, Manifest, ManifestContentType, ManifestFile, ManifestList, SnapshotRef,
    Struct,
};

use crate::catalog::LoadedTable;
use crate::commit::FileChange;
use crate::equality::{EqualityDelete, EqualityDeletes};
use crate::error::Problem;
use crate::storage::{Storage, iceberg_problem};
use crate::write::NewFile;

/// The code of a table into which another engine has written equality deletes: they are to become position deletes first.
pub const EQUALITY_DELETES: &str = "EQUALITY_DELETES";
/// Manifests read at the same time.
const READS: usize = 8;

/// A data file of a snapshot.
#[derive(Clone, Debug)]
pub struct LiveFile {
    pub spec_id: i32,
    pub partition: Struct,
    /// Of its data: equality deletes up to it pass the file by.
    pub sequence_number: i64,
    pub records: u64,
    pub bytes: u64,
    /// Paths of the delete files that name rows of this file; ours are at most one (protocol F8).
    pub deletes: Vec<String>,
    /// The equality deletes that concern it, where another engine has written some.
    pub equality: Option<Arc<EqualityDeletes>>,
}

impl LiveFile {
    /// A file's own rows never change, so the same delete files leave the same rows.
    pub fn has_deletes_of(&self, other: &Self) -> bool {
        let sorted = |file: &Self| {
            let mut deletes = file.deletes.clone();
            let equality = file.equality.iter().flat_map(|equality| equality.paths(file.sequence_number));
            deletes.extend(equality.map(str::to_owned));
            deletes.sort_unstable();
            deletes
        };
        sorted(self) == sorted(other)
    }
}

/// A delete file of a snapshot, with what its manifest entry must keep.
#[derive(Clone, Debug)]
pub struct LiveDelete {
    pub file: DataFile,
    pub spec_id: i32,
    pub snapshot_id: i64,
    pub sequence_number: i64,
    pub file_sequence_number: i64,
    /// The manifest that lists it.
    pub manifest: String,
}

impl LiveDelete {
    pub fn is_equality(&self) -> bool {
        self.file.content_type() == DataContentType::EqualityDeletes
    }

    /// Rows that it names by where they stand.
    fn positions(&self) -> u64 {
        if self.is_equality() { 0 } else { self.file.record_count() }
    }
}

/// All that is live in one snapshot.
#[derive(Clone, Debug, Default)]
pub struct LiveFiles {
    pub manifests: Vec<ManifestFile>,
    /// By path.
    pub data: HashMap<String, LiveFile>,
    /// By path.
    pub deletes: HashMap<String, LiveDelete>,
    /// Delete files without effect: their data file has gone, by another engine's commit. The next commit of ours drops them.
    dangling: HashSet<String>,
    totals: Totals,
}

/// Sums over the live files of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub data_files: u64,
    pub delete_files: u64,
    /// Rows of the data files, deleted ones included.
    pub records: u64,
    /// Rows of the delete files, those without effect included.
    pub deleted_positions: u64,
    /// Of data files and delete files.
    pub bytes: u64,
}

impl LiveFiles {
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Rows of all data files minus those that are deleted. Exact as long as nobody deletes a row twice, as we never do.
    pub fn rows(&self) -> u64 {
        self.totals.records.saturating_sub(self.deleted_rows())
    }

    /// Deleted rows of the data files: positions in files that are gone do not count.
    pub fn deleted_rows(&self) -> u64 {
        self.totals.deleted_positions - self.deleted_positions(&self.dangling)
    }

    /// Paths of the equality-delete files. What they delete is not counted anywhere here: nobody knows before it is read.
    pub fn equality_deletes(&self) -> impl Iterator<Item = &String> {
        self.deletes.iter().filter(|(_, delete)| delete.is_equality()).map(|(path, _)| path)
    }

    pub(crate) fn deleted_positions(&self, deletes: &HashSet<String>) -> u64 {
        deletes.iter().filter_map(|path| self.deletes.get(path)).map(LiveDelete::positions).sum()
    }

    pub(crate) fn totals_after(&self, change: &FileChange) -> Totals {
        let mut totals = if change.remove_all { Totals::default() } else { self.totals };
        for path in &change.replaced_deletes {
            if let Some(delete) = self.deletes.get(path) {
                totals.delete_files -= 1;
                totals.deleted_positions -= delete.positions();
                totals.bytes -= delete.file.file_size_in_bytes();
            }
        }
        for file in change.removed.iter().filter_map(|path| self.data.get(path)) {
            totals.data_files -= 1;
            totals.records -= file.records;
            totals.bytes -= file.bytes;
        }
        for NewFile { file, .. } in &change.added {
            totals.data_files += 1;
            totals.records += file.record_count();
            totals.bytes += file.file_size_in_bytes();
        }
        for NewFile { file, .. } in &change.deletes {
            totals.delete_files += 1;
            totals.deleted_positions += file.record_count();
            totals.bytes += file.file_size_in_bytes();
        }
        totals
    }

    /// Follows a commit of ours that has landed, without reading anything back.
    pub(crate) fn advance(&mut self, change: &FileChange, manifests: Vec<ManifestFile>, deletes: Vec<LiveDelete>) {
        let totals = self.totals_after(change);
        if change.remove_all {
            *self = Self::default();
        }
        self.totals = totals;
        let own = manifests.iter().map(|manifest| manifest.sequence_number).max().unwrap_or(0);
        self.manifests = manifests;
        self.dangling.retain(|path| !change.replaced_deletes.contains(path));
        for path in &change.replaced_deletes {
            self.deletes.remove(path);
        }
        for path in &change.removed {
            self.data.remove(path);
        }
        for new in &change.added {
            let file = LiveFile {
                spec_id: new.spec_id,
                partition: new.file.partition().clone(),
                sequence_number: change.sequence_number.unwrap_or(own),
                records: new.file.record_count(),
                bytes: new.file.file_size_in_bytes(),
                deletes: Vec::new(),
                equality: None,
            };
            self.data.insert(new.file.file_path().to_owned(), file);
        }
        for delete in deletes {
            let path = delete.file.file_path().to_owned();
            if let Some(data) = delete.file.referenced_data_file().and_then(|data| self.data.get_mut(&data)) {
                data.deletes = vec![path.clone()];
            }
            self.deletes.insert(path, delete);
        }
    }

    /// Reads the manifests of a snapshot that is to be built on or counted; a table without snapshots has nothing live.
    ///
    /// # Errors
    /// `EQUALITY_DELETES`, until maintenance has turned them into position deletes.
    pub async fn load(storage: &Storage, table: &LoadedTable, snapshot: Option<i64>) -> Result<Self, Problem> {
        let live = Self::load_as_left(storage, table, snapshot).await?;
        let refused = live.equality_deletes().next().is_some();
        if refused { Err(equality_deletes(table)) } else { Ok(live) }
    }

    /// The same of a snapshot as another engine may have left it, to be read and to be mended.
    pub async fn load_as_left(storage: &Storage, table: &LoadedTable, snapshot: Option<i64>) -> Result<Self, Problem> {
        let Some(id) = snapshot else { return Ok(Self::default()) };
        let snapshot = find_snapshot(table, id)?;
        let mut live = Self { manifests: manifest_list(storage, table, &snapshot).await?, ..Self::default() };
        let reads = live.manifests.clone().into_iter().map(|file| async move {
            let manifest = load_manifest(storage, &file).await?;
            Ok::<_, Problem>((file, manifest))
        });
        let mut reads = stream::iter(reads).buffered(READS);
        let mut unscoped = Vec::new();
        while let Some((file, manifest)) = reads.try_next().await? {
            live.add_manifest(table, &file, &manifest, &mut unscoped)?;
        }
        drop(reads);
        live.attach(&unscoped);
        live.attach_equality(table)?;
        live.dangling = live.find_dangling();
        live.count();
        Ok(live)
    }

    fn add_manifest(
        &mut self,
        table: &LoadedTable,
        file: &ManifestFile,
        manifest: &Manifest,
        unscoped: &mut Vec<String>,
    ) -> Result<(), Problem> {
        let missing = || damaged(table, &file.manifest_path);
        for entry in manifest.entries().iter().filter(|entry| entry.is_alive()) {
            let path = entry.file_path().to_owned();
            match entry.content_type() {
                DataContentType::Data => {
                    self.data.insert(
                        path,
                        LiveFile {
                            spec_id: file.partition_spec_id,
                            partition: entry.data_file().partition().clone(),
                            sequence_number: entry.sequence_number().ok_or_else(missing)?,
                            records: entry.record_count(),
                            bytes: entry.file_size_in_bytes(),
                            deletes: Vec::new(),
                            equality: None,
                        },
                    );
                }
                content @ (DataContentType::PositionDeletes | DataContentType::EqualityDeletes) => {
                    if content == DataContentType::PositionDeletes && referenced(entry.data_file()).is_none() {
                        unscoped.push(path.clone());
                    }
                    self.deletes.insert(
                        path,
                        LiveDelete {
                            file: entry.data_file().clone(),
                            spec_id: file.partition_spec_id,
                            snapshot_id: entry.snapshot_id().ok_or_else(missing)?,
                            sequence_number: entry.sequence_number().ok_or_else(missing)?,
                            file_sequence_number: entry.file_sequence_number.ok_or_else(missing)?,
                            manifest: file.manifest_path.clone(),
                        },
                    );
                }
            }
        }
        Ok(())
    }

    /// Tells every data file its delete files; one that names no single data file may concern all of its partition.
    fn attach(&mut self, unscoped: &[String]) {
        for (path, delete) in &self.deletes {
            if let Some(file) = referenced(&delete.file).and_then(|data| self.data.get_mut(&data)) {
                file.deletes.push(path.clone());
            }
        }
        for path in unscoped {
            let delete = &self.deletes[path];
            for file in self.data.values_mut() {
                if file.spec_id == delete.spec_id && &file.partition == delete.file.partition() {
                    file.deletes.push(path.clone());
                }
            }
        }
    }

    /// Tells every data file the equality deletes that concern it: later ones of its partition, and those of no partition.
    fn attach_equality(&mut self, table: &LoadedTable) -> Result<(), Problem> {
        let found = self.deletes.iter().filter(|(_, delete)| delete.is_equality());
        let read = |(path, delete): (&String, &LiveDelete)| {
            let spec = table.metadata.partition_spec_by_id(delete.spec_id);
            let partition = delete.file.partition().clone();
            let place = spec.is_none_or(|spec| !spec.is_unpartitioned()).then_some((delete.spec_id, partition));
            Ok::<_, Problem>((place, EqualityDelete::of(table, path, delete)?))
        };
        let found = found.map(read).collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            return Ok(());
        }
        let mut groups: HashMap<(i32, Struct), Arc<EqualityDeletes>> = HashMap::new();
        for file in self.data.values_mut() {
            let group = groups.entry((file.spec_id, file.partition.clone())).or_insert_with_key(|place| {
                let concerned = found.iter().filter(|(of, _)| of.as_ref().is_none_or(|of| of == place));
                Arc::new(EqualityDeletes::new(concerned.map(|(_, delete)| delete.clone()).collect()))
            });
            file.equality = group.concern(file.sequence_number).then(|| Arc::clone(group));
        }
        Ok(())
    }

    fn count(&mut self) {
        let deletes = || self.deletes.values().map(|delete| &delete.file);
        self.totals = Totals {
            data_files: self.data.len() as u64,
            delete_files: self.deletes.len() as u64,
            records: self.data.values().map(|file| file.records).sum(),
            deleted_positions: self.deletes.values().map(LiveDelete::positions).sum(),
            bytes: self.data.values().map(|file| file.bytes).sum::<u64>()
                + deletes().map(DataFile::file_size_in_bytes).sum::<u64>(),
        };
    }

    /// Delete files that no live data file has (left behind when their data file went).
    pub fn dangling_deletes(&self) -> &HashSet<String> {
        &self.dangling
    }

    fn find_dangling(&self) -> HashSet<String> {
        let used: HashSet<&String> = self.data.values().flat_map(|file| &file.deletes).collect();
        let unused = self.deletes.iter().filter(|(path, delete)| !delete.is_equality() && !used.contains(path));
        unused.map(|(path, _)| path.clone()).collect()
    }
}

/// The one data file that a delete file speaks of, if it says so.
pub fn referenced(delete: &DataFile) -> Option<String> {
    const FILE_PATH_ID: i32 = 2_147_483_546;
    delete.referenced_data_file().or_else(|| {
        let lower = delete.lower_bounds().get(&FILE_PATH_ID)?;
        let upper = delete.upper_bounds().get(&FILE_PATH_ID)?;
        match (lower == upper, lower.literal()) {
            (true, iceberg::spec::PrimitiveLiteral::String(path)) => Some(path.clone()),
            _ => None,
        }
    })
}

pub fn find_snapshot(table: &LoadedTable, id: i64) -> Result<SnapshotRef, Problem> {
    table.metadata.snapshot_by_id(id).map(Arc::clone).ok_or_else(|| {
        let remedy = format!("list what is there with `lakehouse snapshots {}`", table.name);
        Problem::halt("SNAPSHOT_UNKNOWN", table.name.to_string(), format!("snapshot {id} is not in the table"), remedy)
    })
}

/// The manifests that a snapshot lists.
pub async fn manifest_list(
    storage: &Storage,
    table: &LoadedTable,
    snapshot: &SnapshotRef,
) -> Result<Vec<ManifestFile>, Problem> {
    let location = snapshot.manifest_list();
    let failed = |error: iceberg::Error| iceberg_problem(location, "read", &error);
    let bytes = storage.io().new_input(location).map_err(failed)?.read().await.map_err(failed)?;
    let version = table.metadata.format_version();
    if version == FormatVersion::V1 {
        return Err(Problem::halt(
            "FORMAT_VERSION",
            table.name.to_string(),
            "format version 1",
            "rewrite it as version 2",
        ));
    }
    Ok(ManifestList::parse_with_version(&bytes, version).map_err(failed)?.consume_entries().into_iter().collect())
}

pub async fn load_manifest(storage: &Storage, file: &ManifestFile) -> Result<Manifest, Problem> {
    let loaded = file.load_manifest(storage.io()).await;
    loaded.map_err(|error| iceberg_problem(&file.manifest_path, "read", &error))
}

fn equality_deletes(table: &LoadedTable) -> Problem {
    let remedy = "nothing where maintenance has `compact` of the table: it turns them into position deletes";
    let message = "another engine has written equality delete files";
    Problem { remedy: remedy.to_owned(), ..Problem::retry(EQUALITY_DELETES, table.name.to_string(), message) }
}

pub(crate) fn damaged(table: &LoadedTable, path: &str) -> Problem {
    let message = format!("manifest {path} lacks sequence numbers");
    Problem::halt("MANIFEST_DAMAGED", table.name.to_string(), message, "run fsck on the table")
}

/// True for manifests of data files.
pub fn holds_data(manifest: &ManifestFile) -> bool {
    manifest.content == ManifestContentType::Data
}
