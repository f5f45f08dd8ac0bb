//! Metadata stays small however long a pipeline runs, and what is protected stays in it.
//!
//! Real: every commit goes through the product's commit path and its window, manifests included. Simulated: the catalog
//! keeps metadata in memory, and a commit comes as fast as it can, not every 5 s, which nothing here depends on but the
//! number of commits. The text of the metadata is measured where it is largest, before each expiry; in between its length
//! is what was measured last, without what has left and with what was added.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::support::block_on;
use crate::support::world::temporary_folder;
use async_trait::async_trait;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, NestedField, PrimitiveType, Schema, SnapshotReference,
    SnapshotRetention, Struct, TableMetadata, TableMetadataBuilder, Type,
};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, Swap};
use lakehouse_core::commit::{
    Advance, Committer, Control, Counts, Cut, FileChange, GiveWay, LakeTable, TableCommit, recorded_cuts,
};
use lakehouse_core::error::Problem;
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::{Storage, local_path, location_of};
use lakehouse_core::write::NewFile;
use testkit::tier;

/// The bound.
const LARGEST: u64 = 4 << 20;
/// Commits in all, shared out among tables that are different.
const COMMITS: usize = 100_000;
/// Of the normal tier.
const SOME_COMMITS: usize = 10_000;
/// Of so many commits to a mirror one carries files: writing manifests is most of what a commit costs here, and metadata
/// does not know what is in them. In the long run every commit does.
const WITH_FILES: usize = 10;
/// Commits of an hour at 5 s.
const HOUR: usize = 720;
/// Hourly tags that are kept.
const HOURLY: usize = 24;
/// What a snapshot takes beside its own text: its entry in the log.
const BESIDE_SNAPSHOT: u64 = 60;

/// Tables in memory; their manifests lie in a folder.
struct InMemory {
    folder: String,
    tables: Mutex<HashMap<TableName, Held>>,
}

struct Held {
    table: LoadedTable,
    /// The largest text that was measured.
    largest: u64,
    /// What each snapshot takes of it, about.
    texts: HashMap<i64, u64>,
}

fn text_bytes(metadata: &TableMetadata) -> u64 {
    serde_json::to_vec(metadata).expect("metadata is plain data").len() as u64
}

fn remove(location: &str) {
    let _ = std::fs::remove_file(local_path(location).expect("a local file"));
}

impl InMemory {
    fn tables(&self) -> MutexGuard<'_, HashMap<TableName, Held>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn largest(&self, name: &TableName) -> u64 {
        let mut tables = self.tables();
        let held = tables.get_mut(name).expect("the table");
        held.measure();
        held.largest
    }
}

impl Held {
    fn measure(&mut self) {
        self.table.metadata_bytes = text_bytes(&self.table.metadata);
        self.largest = self.largest.max(self.table.metadata_bytes);
    }

    fn apply(&mut self, updates: Vec<TableUpdate>) {
        let removed: Vec<i64> = updates
            .iter()
            .filter_map(|update| match update {
                TableUpdate::RemoveSnapshots { snapshot_ids } => Some(snapshot_ids.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        if !removed.is_empty() {
            // The largest text is the last one before an expiry.
            self.measure();
        }
        let metadata = Arc::clone(&self.table.metadata);
        for snapshot in removed.iter().filter_map(|id| metadata.snapshot_by_id(*id)) {
            self.table.metadata_bytes -= self.texts.remove(&snapshot.snapshot_id()).unwrap_or(0);
            // Nobody reads what has expired: the folder is memory.
            remove(snapshot.manifest_list());
        }
        let mut added = 0;
        let location = self.table.metadata_location.clone();
        let mut builder = TableMetadata::clone(&self.table.metadata).into_builder(Some(location));
        for update in updates {
            if let TableUpdate::AddSnapshot { snapshot } = &update {
                let id = snapshot.snapshot_id();
                let text = serde_json::to_vec(&update).expect("plain data").len() as u64 + BESIDE_SNAPSHOT;
                self.texts.insert(id, text);
                added += text;
            }
            builder = update.apply(builder).expect("an update that fits");
        }
        self.table.metadata = Arc::new(builder.build().expect("metadata").metadata);
        let version: usize = self.table.token.parse().expect("a number");
        self.table.token = (version + 1).to_string();
        self.table.metadata_location =
            format!("{}/metadata/{:05}-{}.metadata.json", self.table.metadata.location(), version + 1, "0".repeat(36));
        self.table.metadata_bytes += added;
    }
}

#[async_trait]
impl Catalog for InMemory {
    async fn list(&self, _: Option<&str>) -> Result<Vec<TableName>, Problem> {
        Ok(self.tables().keys().cloned().collect())
    }

    async fn load(&self, name: &TableName, _: Option<&LoadedTable>) -> Result<Option<LoadedTable>, Problem> {
        Ok(self.tables().get(name).map(|held| held.table.clone()))
    }

    async fn create(&self, name: &TableName, creation: TableCreation) -> Result<LoadedTable, Problem> {
        let location = format!("{}/{}", self.folder, name.name);
        let creation = TableCreation { location: Some(location.clone()), ..creation };
        let built = TableMetadataBuilder::from_table_creation(creation).and_then(TableMetadataBuilder::build);
        let table = LoadedTable {
            name: name.clone(),
            metadata: Arc::new(built.expect("metadata").metadata),
            metadata_location: format!("{location}/metadata/00000-{}.metadata.json", "0".repeat(36)),
            metadata_bytes: 0,
            token: "0".to_owned(),
        };
        let mut held = Held { table, largest: 0, texts: HashMap::new() };
        held.measure();
        let table = held.table.clone();
        self.tables().insert(name.clone(), held);
        Ok(table)
    }

    async fn commit(&self, base: &LoadedTable, updates: Vec<TableUpdate>) -> Result<Swap, Problem> {
        let mut tables = self.tables();
        let held = tables.get_mut(&base.name).expect("the table");
        if held.table.token != base.token {
            return Ok(Swap::Rejected);
        }
        held.apply(updates);
        Ok(Swap::Landed(held.table.clone()))
    }
}

fn open(folder: &Path) -> Arc<InMemory> {
    Arc::new(InMemory { folder: location_of(folder), tables: Mutex::default() })
}

fn creation(name: &str) -> TableCreation {
    let field = |id: i32| {
        let field = NestedField::optional(id, format!("column_{id}"), Type::Primitive(PrimitiveType::String));
        Arc::new(field.with_doc("character varying a column of the source"))
    };
    let schema = Schema::builder().with_fields((1..=30).map(field)).build().expect("a schema");
    TableCreation::builder()
        .name(name.to_owned())
        .schema(schema)
        .properties(HashMap::from([("write.metadata.previous-versions-max".to_owned(), "10".to_owned())]))
        .build()
}

fn file(location: &str, content: DataContentType, number: usize, of: Option<String>) -> NewFile {
    let suffix = if of.is_some() { "-deletes" } else { "" };
    let file = DataFileBuilder::default()
        .content(content)
        .file_path(format!("{location}/data/{number:036}{suffix}.parquet"))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(0)
        .record_count(10)
        .file_size_in_bytes(10_000)
        .referenced_data_file(of)
        .build();
    NewFile { file: file.expect("a file"), spec_id: 0 }
}

/// What one run came to.
struct Run {
    what: String,
    commits: usize,
    largest: u64,
    snapshots: usize,
    tags: usize,
}

/// A mirror: a commit with files adds a data file and deletes rows of another; tags come and go by the hour, as another process
/// sets them; the latest cut's snapshot and, for that of an open operation are protected.
async fn mirror(catalog: Arc<InMemory>, commits: usize, with_files: usize) -> Run {
    let (storage, name) = (Storage::local(), TableName::new("lake", "mirror"));
    let created = catalog.create(&name, creation("mirror")).await.expect("a table");
    let committer = Committer {
        catalog: Arc::clone(&catalog) as Arc<dyn Catalog>,
        storage: storage.clone(),
        source: "postgres system 7123456789012345678 timeline 1 slot lakehouse_payments".to_owned(),
        epoch: 7,
        give_way: GiveWay::default(),
        planted: Planted::none(),
    };
    let mut table = LakeTable::open(&storage, created).await.expect("an empty table");
    let mut tagged: VecDeque<(String, i64)> = VecDeque::new();
    let (mut cut, mut operation) = (None, None);
    let mut last: Option<String> = None;
    for number in 0..commits {
        // Objects that were sent before, as far as the commit is concerned.
        let location = "s3://table-bucket-of-a-service/mirror-of-a-table-with-a-name";
        // A truncate now and then, so that the test's own memory has a bound.
        let mut change = FileChange { remove_all: number % 500 == 499, ..FileChange::default() };
        last = last.filter(|_| !change.remove_all);
        if number % with_files == 0 {
            change.added.push(file(location, DataContentType::Data, number, None));
            if let Some(data) = last.take() {
                change.deletes.push(file(location, DataContentType::PositionDeletes, number, Some(data)));
            }
            last = Some(change.added[0].file.file_path().to_owned());
        }
        table.protected = [cut, operation].into_iter().flatten().collect();
        let before: HashSet<String> = table.live.manifests.iter().map(|file| file.manifest_path.clone()).collect();
        let counts = Counts { inserted: 10, updated: 3, deleted: 1, digest: u128::MAX / 3, decoded: Some(1_000) };
        let to = Position::new(0xF_0000_0000 + number as u64);
        let commit = TableCommit::new(change, Advance::Changes { to }, counts);
        let id = committer.commit(&mut table, commit).await.expect("a commit").snapshot_id;
        let carried: HashSet<&String> = table.live.manifests.iter().map(|file| &file.manifest_path).collect();
        before.iter().filter(|path| !carried.contains(path)).for_each(|path| remove(path));
        let metadata = &table.loaded.metadata;
        let stays = |id: i64| metadata.snapshot_by_id(id).is_some();
        assert!(table.protected.iter().all(|&id| stays(id)), "a protected snapshot is gone at commit {number}");
        assert!(tagged.iter().all(|(_, id)| stays(*id)), "a tagged snapshot is gone at commit {number}");
        if number % 12 == 0 {
            cut = Some(id);
        }
        if number % (10 * HOUR) == 100 {
            operation = Some(id);
        }
        if number % HOUR == 0 {
            let tag = format!("hourly/{number:08}");
            let reference = SnapshotReference::new(id, SnapshotRetention::Tag { max_ref_age_ms: None });
            let mut updates = vec![TableUpdate::SetSnapshotRef { ref_name: tag.clone(), reference }];
            tagged.push_back((tag, id));
            if tagged.len() > HOURLY {
                let (ref_name, _) = tagged.pop_front().expect("more than none");
                updates.push(TableUpdate::RemoveSnapshotRef { ref_name });
            }
            let swap = catalog.commit(&table.loaded, updates).await.expect("an outcome");
            let Swap::Landed(loaded) = swap else { panic!("{swap:?}") };
            // Another engine's commit: the worker reads the table again.
            table = LakeTable::open(&storage, loaded).await.expect("a table");
        }
    }
    let snapshots = table.loaded.metadata.snapshots().len();
    Run { what: "mirror".to_owned(), commits, largest: catalog.largest(&name), snapshots, tags: tagged.len() }
}

/// A control table whose cuts name so many tables, growing from one; every start of a worker adds one more snapshot.
async fn control(catalog: Arc<InMemory>, commits: usize, tables: usize) -> Run {
    let (storage, pipeline) = (Storage::local(), format!("pipeline_{tables}"));
    let shared = Arc::clone(&catalog) as Arc<dyn Catalog>;
    let mut control = Control::open(shared, storage, &pipeline).await.expect("a control table");
    let cut = |number: usize| {
        // The first tenth with few tables, the last tenth too: cuts of all sizes stand beside each other.
        let few = number < commits / 10 || number > commits - commits / 10;
        let named = (0..if few { 1 } else { tables }).map(|table| {
            (format!("payments_of_the_shop.a_table_with_a_name_{table:05}"), fastrand::i64(1 << 60..).to_string())
        });
        Cut {
            lanes: Default::default(),
            read_until: None,
            source: "postgres system 7123456789012345678 timeline 1 slot lakehouse_payments".to_owned(),
            position: Position::new(0xF_0000_0000 + number as u64),
            epoch: 1,
            committed_at: 1_790_000_000_000,
            tables: named.collect(),
            left: BTreeMap::new(),
        }
    };
    control.raise_epoch(Some(cut(0))).await.expect("an epoch");
    for number in 1..commits {
        control.write_cut(cut(number)).await.expect("a cut");
        let table = control.table();
        assert!(table.metadata_bytes <= LARGEST + (1 << 16), "{} bytes at cut {number}", table.metadata_bytes);
    }
    let table = control.table();
    let kept = recorded_cuts(table);
    assert_eq!(kept.last().map(|cut| cut.position), control.state().cut.as_ref().map(|cut| cut.position));
    let snapshots = table.metadata.snapshots().len();
    Run { what: format!("cuts of {tables} tables"), commits, largest: catalog.largest(&table.name), snapshots, tags: 0 }
}

#[test]
fn metadata_stays_below_its_bound_and_what_is_protected_stays_in_it() {
    let (commits, with_files) = if tier::long() { (COMMITS, 1) } else { (SOME_COMMITS, WITH_FILES) };
    block_on(async {
        let folder = temporary_folder();
        let catalog = open(folder.path());
        let start = Instant::now();
        let share = |percent: usize| commits * percent / 100;
        let runs = [
            tokio::spawn(mirror(Arc::clone(&catalog), share(60), with_files)),
            tokio::spawn(control(Arc::clone(&catalog), share(30), 5)),
            tokio::spawn(control(Arc::clone(&catalog), share(8), 50)),
            tokio::spawn(control(Arc::clone(&catalog), share(2), 1_000)),
        ];
        for run in runs {
            let run = run.await.expect("no panic");
            let Run { what, commits, largest, snapshots, tags } = run;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{what}: {commits} commits, at most {largest} bytes; {snapshots} snapshots and {tags} tags at the end; {seconds:.1} s"
            );
            assert!(largest <= LARGEST, "{what}: {largest} bytes");
            assert!(snapshots >= 5, "{what}: nothing is left to go back to");
        }
    });
}
