//! What the kept snapshots of a table list: each manifest list and each manifest is read once and reduced to numbers.
//!
//! Memory follows the number of distinct files and of manifest entries over all kept snapshots (4 bytes an entry, a few
//! hundred a file), not their columns.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, stream};
use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, Manifest, ManifestFile, ManifestStatus, PrimitiveLiteral, SnapshotRef,
    Struct,
};
use xxhash_rust::xxh3::xxh3_128;

use super::bounds::Bounds;
use super::findings::{CheckName, Findings};
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::live::{holds_data, load_manifest, manifest_list};
use crate::storage::Storage;

/// Manifests read at the same time.
const READS: usize = 8;
/// Field ids that the Iceberg spec reserves for position deletes.
pub(super) const FILE_PATH_ID: i32 = 2_147_483_546;
pub(super) const POS_ID: i32 = 2_147_483_545;

/// Everything that the kept snapshots refer to.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Oldest first.
    pub(super) snapshots: Vec<KeptSnapshot>,
    pub(super) manifests: Vec<ManifestFacts>,
    pub(super) files: Vec<FileFacts>,
    known: HashMap<u128, u32>,
    /// Partition spec and tuple, numbered.
    placements: HashMap<(i32, Struct), u32>,
}

#[derive(Debug)]
pub(super) struct KeptSnapshot {
    pub(super) snapshot: SnapshotRef,
    /// Numbers of its manifests, ascending; `None` if not all could be read.
    pub(super) manifests: Option<Vec<u32>>,
}

#[derive(Debug)]
pub(super) struct ManifestFacts {
    pub(super) path: Box<str>,
    pub(super) bytes: i64,
    /// The snapshot whose commit wrote it.
    pub(super) added_by: i64,
    /// Live files, once per entry.
    pub(super) live: Vec<u32>,
    /// Files that its own commit added.
    pub(super) added: Vec<u32>,
    /// Files that its own commit removed.
    pub(super) removed: Vec<u32>,
}

/// One data file or delete file, as its manifest entry tells it.
#[derive(Debug)]
pub(super) struct FileFacts {
    pub(super) path: Box<str>,
    pub(super) content: DataContentType,
    pub(super) format: DataFileFormat,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Number of its partition spec and tuple.
    pub(super) placement: u32,
    /// In some kept snapshot.
    pub(super) live: bool,
    /// The snapshot that added it, where it is live.
    pub(super) added_by: i64,
    /// Data sequence number, where it is live.
    pub(super) sequence_number: i64,
    pub(super) delete: Option<Box<DeleteFacts>>,
}

/// What a manifest entry of a position-delete file says beside.
#[derive(Debug)]
pub(super) struct DeleteFacts {
    pub(super) referenced: Option<String>,
    /// Bounds of the `file_path` column.
    pub(super) paths: Option<(String, String)>,
    /// Bounds of the `pos` column.
    pub(super) positions: Option<(i64, i64)>,
}

impl Inventory {
    /// Reads all manifest lists and manifests; `bounds` gets to see the data manifests of the head. What cannot be read is
    /// a finding.
    pub(super) async fn read(storage: &Storage, table: &LoadedTable, bounds: &mut Bounds) -> (Self, Findings) {
        let mut findings = Findings::new(CheckName::Files);
        let mut inventory = Self {
            snapshots: Vec::new(),
            manifests: Vec::new(),
            files: Vec::new(),
            known: HashMap::new(),
            placements: HashMap::new(),
        };
        let manifests = inventory.read_lists(storage, table, &mut findings).await;
        let head = inventory.head(table).and_then(|head| head.manifests.clone()).unwrap_or_default();
        let head: HashSet<u32> = head.into_iter().collect();
        let reads =
            manifests.iter().enumerate().map(|(number, file)| read_manifest(storage.clone(), number, file.clone()));
        let mut reads = stream::iter(reads).buffered(READS);
        let mut unreadable = HashSet::new();
        while let Some((number, manifest)) = reads.next().await {
            let (file, number) = (&manifests[number], u32::try_from(number).expect("manifests are counted in memory"));
            match manifest {
                Ok(manifest) => {
                    inventory.add_manifest(file, &manifest, &mut findings);
                    if head.contains(&number) && holds_data(file) {
                        bounds.add(storage, manifest).await;
                    }
                }
                Err(problem) => {
                    findings.fail(format!("manifest {} cannot be read: {problem}", file.manifest_path));
                    inventory.manifests.push(ManifestFacts::unread(file));
                    unreadable.insert(number);
                }
            }
        }
        drop(reads);
        for kept in &mut inventory.snapshots {
            kept.manifests.take_if(|numbers| numbers.iter().any(|number| unreadable.contains(number)));
        }
        (inventory, findings)
    }

    /// The head as it was listed; `None` for a table without commits.
    pub(super) fn head(&self, table: &LoadedTable) -> Option<&KeptSnapshot> {
        let id = table.snapshot_id()?;
        self.snapshots.iter().find(|kept| kept.snapshot.snapshot_id() == id)
    }

    pub(super) fn number_of(&self, path: &str) -> Option<u32> {
        self.known.get(&xxh3_128(path.as_bytes())).copied()
    }

    pub(super) fn file(&self, number: u32) -> &FileFacts {
        &self.files[number as usize]
    }

    pub(super) fn manifest(&self, number: u32) -> &ManifestFacts {
        &self.manifests[number as usize]
    }

    /// Files of a snapshot that is whole, once per entry.
    pub(super) fn live_in(&self, kept: &KeptSnapshot) -> Option<impl Iterator<Item = u32>> {
        let manifests = kept.manifests.as_ref()?;
        Some(manifests.iter().flat_map(|&number| self.manifest(number).live.iter().copied()))
    }

    /// Files that a snapshot added, where it is whole.
    pub(super) fn added_in(&self, kept: &KeptSnapshot) -> Option<impl Iterator<Item = u32>> {
        Some(self.own_manifests(kept)?.flat_map(|manifest| manifest.added.iter().copied()))
    }

    /// Files that a snapshot removed, where it is whole.
    pub(super) fn removed_in(&self, kept: &KeptSnapshot) -> Option<impl Iterator<Item = u32>> {
        Some(self.own_manifests(kept)?.flat_map(|manifest| manifest.removed.iter().copied()))
    }

    fn own_manifests(&self, kept: &KeptSnapshot) -> Option<impl Iterator<Item = &ManifestFacts>> {
        let id = kept.snapshot.snapshot_id();
        let manifests = kept.manifests.as_ref()?.iter().map(|&number| self.manifest(number));
        Some(manifests.filter(move |manifest| manifest.added_by == id))
    }

    /// The distinct manifests of all snapshots.
    async fn read_lists(
        &mut self,
        storage: &Storage,
        table: &LoadedTable,
        findings: &mut Findings,
    ) -> Vec<ManifestFile> {
        let mut snapshots: Vec<SnapshotRef> = table.metadata.snapshots().cloned().collect();
        snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
        let mut manifests: Vec<ManifestFile> = Vec::new();
        let mut numbers: HashMap<String, u32> = HashMap::new();
        let reads = snapshots.into_iter().map(|snapshot| read_list(storage.clone(), table.clone(), snapshot));
        let mut reads = stream::iter(reads).buffered(READS);
        while let Some((snapshot, list)) = reads.next().await {
            let list = match list {
                Ok(list) => list,
                Err(problem) => {
                    findings.fail(format!("manifest list {} cannot be read: {problem}", snapshot.manifest_list()));
                    self.snapshots.push(KeptSnapshot { snapshot, manifests: None });
                    continue;
                }
            };
            let number = |file: ManifestFile| {
                *numbers.entry(file.manifest_path.clone()).or_insert_with(|| {
                    manifests.push(file);
                    u32::try_from(manifests.len() - 1).expect("manifests are counted in memory")
                })
            };
            let mut listed: Vec<u32> = list.into_iter().map(number).collect();
            listed.sort_unstable();
            self.snapshots.push(KeptSnapshot { snapshot, manifests: Some(listed) });
        }
        manifests
    }

    fn add_manifest(&mut self, file: &ManifestFile, manifest: &Manifest, findings: &mut Findings) {
        let mut facts = ManifestFacts::unread(file);
        for entry in manifest.entries() {
            let added_by = entry.snapshot_id().unwrap_or(file.added_snapshot_id);
            let sequence_number = entry.sequence_number().unwrap_or(file.sequence_number);
            let (number, same) = self.add_file(entry.data_file(), file.partition_spec_id);
            if !same {
                let (path, manifest) = (entry.file_path(), &file.manifest_path);
                findings.fail(format!("manifest {manifest} tells {path} otherwise than another one"));
            }
            if entry.is_alive() {
                let facts = &mut self.files[number as usize];
                (facts.live, facts.added_by, facts.sequence_number) = (true, added_by, sequence_number);
            }
            let own = added_by == file.added_snapshot_id;
            match entry.status() {
                ManifestStatus::Added => {
                    facts.live.push(number);
                    if own {
                        facts.added.push(number);
                    }
                }
                ManifestStatus::Existing => facts.live.push(number),
                ManifestStatus::Deleted => facts.removed.push(number),
            }
        }
        self.manifests.push(facts);
    }

    /// The number of a file; false if it was told otherwise before.
    fn add_file(&mut self, file: &DataFile, spec_id: i32) -> (u32, bool) {
        let key = (spec_id, file.partition().clone());
        let next = u32::try_from(self.placements.len()).expect("partitions are counted in memory");
        let placement = *self.placements.entry(key).or_insert(next);
        let hash = xxh3_128(file.file_path().as_bytes());
        if let Some(&number) = self.known.get(&hash) {
            let known = &self.files[number as usize];
            let same = known.records == file.record_count()
                && known.bytes == file.file_size_in_bytes()
                && known.content == file.content_type()
                && known.placement == placement;
            return (number, same);
        }
        let number = u32::try_from(self.files.len()).expect("files are counted in memory");
        self.files.push(FileFacts {
            path: file.file_path().into(),
            content: file.content_type(),
            format: file.file_format(),
            records: file.record_count(),
            bytes: file.file_size_in_bytes(),
            placement,
            live: false,
            added_by: 0,
            sequence_number: 0,
            delete: (file.content_type() == DataContentType::PositionDeletes).then(|| Box::new(DeleteFacts::of(file))),
        });
        self.known.insert(hash, number);
        (number, true)
    }
}

impl ManifestFacts {
    fn unread(file: &ManifestFile) -> Self {
        Self {
            path: file.manifest_path.as_str().into(),
            bytes: file.manifest_length,
            added_by: file.added_snapshot_id,
            live: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
        }
    }
}

impl DeleteFacts {
    fn of(file: &DataFile) -> Self {
        let bounds = |id: i32| {
            let (lower, upper) = (file.lower_bounds().get(&id)?, file.upper_bounds().get(&id)?);
            Some((lower.literal().clone(), upper.literal().clone()))
        };
        let paths = match bounds(FILE_PATH_ID) {
            Some((PrimitiveLiteral::String(lower), PrimitiveLiteral::String(upper))) => Some((lower, upper)),
            _ => None,
        };
        let positions = match bounds(POS_ID) {
            Some((PrimitiveLiteral::Long(lower), PrimitiveLiteral::Long(upper))) => Some((lower, upper)),
            _ => None,
        };
        Self { referenced: file.referenced_data_file(), paths, positions }
    }
}

async fn read_list(
    storage: Storage,
    table: LoadedTable,
    snapshot: SnapshotRef,
) -> (SnapshotRef, Result<Vec<ManifestFile>, Problem>) {
    let wanted = Arc::clone(&snapshot);
    let list = apart(async move { manifest_list(&storage, &table, &wanted).await }).await;
    (snapshot, list)
}

async fn read_manifest(storage: Storage, number: usize, file: ManifestFile) -> (usize, Result<Manifest, Problem>) {
    (number, apart(async move { load_manifest(&storage, &file).await }).await)
}

/// In a task of its own: a library that panics on damaged bytes has said that they are damaged.
async fn apart<T: Send + 'static>(
    read: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let damaged = |_| Err(Problem::halt("METADATA", "", "the bytes cannot be decoded", "restore it from a backup"));
    tokio::spawn(read).await.unwrap_or_else(damaged)
}
