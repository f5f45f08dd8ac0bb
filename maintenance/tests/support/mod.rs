//! What the tests of maintenance share: a lake with one table of keys and values, a writer that knows where each row
//! stands, an oracle in memory, and one whole run of maintenance.

#![allow(unreachable_pub, reason = "shared by the tests beside it, and by nothing else")]

#[path = "../../../lakehouse-core/tests/support/between.rs"]
pub mod between;
pub mod foreign;
pub mod objects;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use iceberg::spec::{
    DataFile, NestedField, PrimitiveType, Schema, SnapshotReference, SnapshotRetention, Struct, TableMetadata, Type,
};
use iceberg::{TableCreation, TableUpdate};
use lakehouse_core::catalog::{Catalog, LoadedTable, SqliteCatalog, Swap};
use lakehouse_core::commit::{
    Advance, Committer, Counts, FileChange, GiveWay, LakeTable, Landed, Maintainer, TableCommit,
};
use lakehouse_core::error::Problem;
use lakehouse_core::live::{load_manifest, manifest_list};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::{Storage, canonical};
use lakehouse_core::write::{DataFileWriter, FileSchema, NewFile, data_location};
use maintenance::budget::Budgets;
use maintenance::clean;
use maintenance::expire::Retention;
use maintenance::plan::Targets;
use maintenance::run::{self, Outcome, Settings, TablePlan};
use roaring::RoaringBitmap;
use tempfile::TempDir;

/// Values by key.
pub type Rows = BTreeMap<i64, i64>;
/// Where the row of each key stands: what the key index is in the product.
pub type Places = BTreeMap<i64, (String, u32)>;

/// A runtime like the product's: several threads, since committing blocks in place.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// In memory where there is such a folder: every commit waits for its files to be durable.
pub fn temporary_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("lakehouse-test-").tempdir_in("/dev/shm");
    folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// One table: `id` is its key, `value` is the rest.
#[derive(Clone)]
pub struct Lake {
    pub storage: Storage,
    pub catalog: Arc<dyn Catalog>,
    pub name: TableName,
    pub files: FileSchema,
}

impl Lake {
    /// In a folder, on this machine's disk.
    pub async fn local(folder: &Path) -> Self {
        let storage = Storage::local();
        let catalog = SqliteCatalog::open(&folder.join("catalog.db"), &folder.join("lake"), storage.clone());
        Self::on(Arc::new(catalog.expect("a catalog")), storage).await
    }

    /// The table of a catalog, created if it is not there.
    pub async fn on(catalog: Arc<dyn Catalog>, storage: Storage) -> Self {
        let name = TableName::new("lake", "things");
        let table = match catalog.load(&name, None).await.expect("a catalog that answers") {
            Some(table) => table,
            None => catalog.create(&name, creation(&name)).await.expect("a table"),
        };
        let files = FileSchema::new(Arc::clone(table.metadata.current_schema())).expect("a schema");
        Self { storage, catalog, name, files }
    }

    pub async fn load(&self) -> LoadedTable {
        self.catalog.load(&self.name, None).await.expect("a catalog that answers").expect("the table stays")
    }

    /// A data file with these rows, in the order of their keys, that no snapshot knows yet.
    pub fn data_file(&self, metadata: &TableMetadata, rows: &Rows) -> NewFile {
        let location = data_location(metadata, &Struct::empty(), &self.files.iceberg);
        let mut writer =
            DataFileWriter::create(&self.storage, &location, &self.files, Struct::empty(), 0).expect("a file");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.keys().copied())),
            Arc::new(Int64Array::from_iter_values(rows.values().copied())),
        ];
        writer.write(&RecordBatch::try_new(Arc::clone(&self.files.arrow), columns).expect("rows")).expect("written");
        writer.finish().expect("a whole file")
    }

    /// Who commits as a pipeline does, reaching the catalog `through` this.
    pub fn committer(&self, through: Arc<dyn Catalog>) -> Committer {
        Committer {
            catalog: through,
            storage: self.storage.clone(),
            source: "a test".to_owned(),
            epoch: 1,
            give_way: GiveWay::default(),
            planted: Planted::none(),
        }
    }

    pub fn maintainer(&self) -> Maintainer {
        let (catalog, storage) = (Arc::clone(&self.catalog), self.storage.clone());
        Maintainer { catalog, storage, give_way: GiveWay::default(), planted: Planted::none() }
    }

    /// A tag for ever, made on the table as it stands.
    pub async fn tag(&self, name: &str, snapshot: i64) {
        let reference = SnapshotReference::new(snapshot, SnapshotRetention::Tag { max_ref_age_ms: None });
        self.change_metadata(vec![TableUpdate::SetSnapshotRef { ref_name: name.to_owned(), reference }]).await;
    }

    /// What anybody may do to the metadata of a table, on the table as it stands.
    pub async fn change_metadata(&self, updates: Vec<TableUpdate>) {
        let swap = self.catalog.commit(&self.load().await, updates).await;
        assert!(matches!(swap, Ok(Swap::Landed(_))), "{swap:?}");
    }

    /// The rows of the head, by key.
    pub async fn rows(&self) -> Vec<(i64, i64)> {
        let table = self.load().await;
        let head = table.snapshot_id().expect("a head");
        self.rows_at(&table, head).await.unwrap_or_else(|problem| panic!("{} {problem}", problem.code))
    }

    /// The rows of a snapshot, by key.
    pub async fn rows_at(&self, table: &LoadedTable, snapshot: i64) -> Result<Vec<(i64, i64)>, Problem> {
        let reader = TableReader::at(&self.storage, table, Some(snapshot)).await?;
        let found = tokio::task::block_in_place(|| rows_with_places(&reader))?;
        let mut rows: Vec<(i64, i64)> = found.into_iter().map(|(key, value, ..)| (key, value)).collect();
        rows.sort_unstable();
        Ok(rows)
    }

    /// Everything that a kept snapshot, the metadata or its log names, spelled as [`canonical`] does: written a second time
    /// on purpose, for this is what cleaning must not touch.
    pub async fn referenced(&self) -> BTreeSet<String> {
        let table = self.load().await;
        let metadata = &table.metadata;
        let mut named = vec![table.metadata_location.clone()];
        named.extend(metadata.metadata_log().iter().map(|entry| entry.metadata_file.clone()));
        named.extend(metadata.statistics_iter().map(|statistics| statistics.statistics_path.clone()));
        for snapshot in metadata.snapshots() {
            named.push(snapshot.manifest_list().to_owned());
            for manifest in manifest_list(&self.storage, &table, snapshot).await.expect("a manifest list") {
                let entries = load_manifest(&self.storage, &manifest).await.expect("a manifest");
                let alive = entries.entries().iter().filter(|entry| entry.is_alive());
                named.extend(alive.map(|entry| entry.file_path().to_owned()));
                named.push(manifest.manifest_path);
            }
        }
        named.iter().map(|location| canonical(location)).collect()
    }
}

fn creation(name: &TableName) -> TableCreation {
    let column = |id, name: &str| Arc::new(NestedField::required(id, name, Type::Primitive(PrimitiveType::Long)));
    let schema = Schema::builder().with_fields([column(1, "id"), column(2, "value")]).with_identifier_field_ids([1]);
    let log = HashMap::from([("write.metadata.previous-versions-max".to_owned(), "10".to_owned())]);
    let schema = schema.build().expect("a schema");
    TableCreation::builder().name(name.name.clone()).schema(schema).properties(log).build()
}

/// All rows of a snapshot: key, value, and where they stand.
pub fn rows_with_places(reader: &TableReader) -> Result<Vec<(i64, i64, String, u32)>, Problem> {
    let projection = Projection::all(&reader.schema)?;
    let mut all = Vec::new();
    for path in reader.files() {
        let mut rows = reader.read(path, &projection)?;
        while let Some(batch) = rows.next_batch() {
            let (batch, positions) = batch?;
            let column = |place: usize| batch.column(place).as_primitive::<Int64Type>().values().to_vec();
            let (keys, values) = (column(0), column(1));
            for ((key, value), row) in keys.into_iter().zip(values).zip(positions) {
                all.push((key, value, path.to_owned(), row));
            }
        }
    }
    Ok(all)
}

/// One incarnation of a pipeline's worker, at one table.
pub struct Writer {
    pub committer: Committer,
    pub table: LakeTable,
    pub places: Places,
}

impl Writer {
    /// Knows nothing but the table.
    pub async fn open(lake: &Lake, committer: Committer) -> Result<Self, Problem> {
        let table = LakeTable::open(&lake.storage, lake.load().await).await?;
        let reader = TableReader::at(&lake.storage, &table.loaded, table.loaded.snapshot_id()).await?;
        let rows = tokio::task::block_in_place(|| rows_with_places(&reader))?;
        let places = rows.into_iter().map(|(key, _, path, row)| (key, (path, row))).collect();
        Ok(Self { committer, table, places })
    }

    /// Inserts or updates the rows `new` and deletes the keys `gone`, in one commit.
    pub async fn commit(
        &mut self,
        lake: &Lake,
        new: &Rows,
        gone: &BTreeSet<i64>,
        to: Position,
    ) -> Result<Landed, Problem> {
        let mut deleted: BTreeMap<String, RoaringBitmap> = BTreeMap::new();
        for (path, row) in new.keys().chain(gone).filter_map(|key| self.places.get(key)) {
            deleted.entry(path.clone()).or_default().insert(*row);
        }
        let mut change = FileChange::default();
        if !new.is_empty() {
            change.added.push(lake.data_file(&self.table.loaded.metadata, new));
        }
        let added = change.added.first().map(|new| new.file.file_path().to_owned());
        let landed = self.committer.commit(&mut self.table, advance(change, deleted, to)).await?;
        self.places.retain(|key, _| !new.contains_key(key) && !gone.contains(key));
        for rewrite in &landed.followed {
            for (path, row) in self.places.values_mut() {
                let Some(map) = rewrite.map.files.get(path) else { continue };
                if let Some(place) = map.place(*row) {
                    (*path, *row) = (rewrite.map.outputs[place.output as usize].clone(), place.row);
                }
            }
        }
        for (row, key) in (0..).zip(new.keys()) {
            self.places.insert(*key, (added.clone().expect("rows are in a file"), row));
        }
        Ok(landed)
    }
}

/// A commit of changes up to this position: new files, and rows that go from files by path.
fn advance(change: FileChange, gone: BTreeMap<String, RoaringBitmap>, to: Position) -> TableCommit {
    let advance = Advance::Changes { to };
    TableCommit { gone, ..TableCommit::new(change, advance, Counts::default()) }
}

/// The rows behind each commit of a writer that is alone, by sequence number. Whatever stands above one and below the next
/// is maintenance, and keeps them.
#[derive(Clone, Debug, Default)]
pub struct Oracle(BTreeMap<i64, Rows>);

impl Oracle {
    pub fn at(&self, sequence_number: i64) -> Vec<(i64, i64)> {
        let (_, rows) = self.0.range(..=sequence_number).next_back().expect("the writer's first commit");
        rows.iter().map(|(&key, &value)| (key, value)).collect()
    }

    /// Reads every snapshot that is kept; returns how many.
    pub async fn check(&self, lake: &Lake) -> usize {
        let table = lake.load().await;
        let snapshots: Vec<_> = table.metadata.snapshots().cloned().collect();
        for snapshot in &snapshots {
            let (id, number) = (snapshot.snapshot_id(), snapshot.sequence_number());
            let found = lake.rows_at(&table, id).await.unwrap_or_else(|problem| panic!("snapshot {id}: {problem}"));
            assert_eq!(found, self.at(number), "snapshot {id}, {:?}", snapshot.summary());
        }
        snapshots.len()
    }
}

/// A table, its writer, and what the writer has written.
pub struct Story {
    pub lake: Lake,
    pub writer: Writer,
    pub oracle: Oracle,
    pub rows: Rows,
    reached: u64,
}

impl Story {
    pub async fn on(lake: Lake) -> Self {
        let committer = lake.committer(Arc::clone(&lake.catalog));
        let writer = Writer::open(&lake, committer).await.expect("an empty table");
        Self { lake, writer, oracle: Oracle::default(), rows: Rows::new(), reached: 0 }
    }

    /// The next position of the source.
    pub fn reach(&mut self) -> Position {
        self.reached += 1;
        Position::new(self.reached)
    }

    /// Another incarnation of the writer, that knows nothing but the table.
    pub async fn reopen(&mut self) {
        let committer = self.writer.committer.clone();
        self.writer = Writer::open(&self.lake, committer).await.expect("a sound table");
    }

    /// Commits a change of files that keeps all rows, as another engine may.
    pub async fn change_files(&mut self, change: FileChange) {
        let to = self.reach();
        let committed =
            self.writer.committer.commit(&mut self.writer.table, advance(change, BTreeMap::new(), to)).await;
        committed.unwrap_or_else(|problem| panic!("{} {problem}", problem.code));
        self.reopen().await;
    }

    /// A commit of another engine, by which these rows come or change and these keys go.
    pub async fn foreign(&mut self, files: Vec<DataFile>, put: &[(i64, i64)], gone: &[i64]) {
        foreign::commit(&self.lake, files).await;
        self.rows.extend(put.iter().copied());
        self.rows.retain(|key, _| !gone.contains(key));
        let number = self.lake.load().await.metadata.last_sequence_number();
        self.oracle.0.insert(number, self.rows.clone());
    }

    /// Inserts or updates keys, with a value that no commit has written before; returns the snapshot.
    pub async fn put(&mut self, keys: impl IntoIterator<Item = i64>) -> i64 {
        self.change(keys, []).await
    }

    pub async fn delete(&mut self, keys: impl IntoIterator<Item = i64>) -> i64 {
        self.change([], keys).await
    }

    pub async fn change(&mut self, put: impl IntoIterator<Item = i64>, deleted: impl IntoIterator<Item = i64>) -> i64 {
        let to = self.reach();
        let value = i64::try_from(self.reached).expect("few commits") * 1_000_000;
        let new: Rows = put.into_iter().map(|key| (key, value + key)).collect();
        let gone: BTreeSet<i64> = deleted.into_iter().collect();
        let landed = self.writer.commit(&self.lake, &new, &gone, to).await;
        let landed = landed.unwrap_or_else(|problem| panic!("{} {problem}", problem.code));
        self.rows.retain(|key, _| !gone.contains(key));
        self.rows.extend(new);
        let metadata = &self.writer.table.loaded.metadata;
        let snapshot = metadata.snapshot_by_id(landed.snapshot_id).expect("just made");
        self.oracle.0.insert(snapshot.sequence_number(), self.rows.clone());
        landed.snapshot_id
    }
}

/// Files are merged however few they are, all but the newest snapshots expire, and what is old enough is removed.
pub fn eager(min_snapshots: usize) -> Settings {
    let retention = Retention { dense: Duration::ZERO, min_snapshots, hourly: Duration::ZERO, daily: Duration::ZERO };
    Settings {
        targets: Targets { quiet_after: Duration::ZERO, ..Targets::default() },
        retention,
        ..Settings::default()
    }
}

/// One run: compaction, expiry, cleaning.
pub async fn maintain(lake: &Lake, settings: &Settings) -> Result<(TablePlan, Outcome), Problem> {
    let maintainer = lake.maintainer();
    let (view, plan) = run::plan(&maintainer, &lake.name, &HashSet::new(), &[], settings).await?;
    let mut outcome = Outcome::default();
    run::act(&maintainer, &view, &plan, settings, &mut Budgets::unbounded(), &mut outcome).await?;
    Ok((plan, outcome))
}

/// Whatever lies below a local table becomes older than the age at which orphans go, but for what `is_young`.
pub async fn age_local_files(lake: &Lake, is_young: impl Fn(&str) -> bool) {
    let table = lake.load().await;
    let found = lake.storage.cleaner().list(table.metadata.location()).await.expect("a folder");
    for file in found.into_iter().filter(|file| !is_young(&file.location)) {
        let aged = SystemTime::now() - 2 * clean::AGE;
        let opened = std::fs::File::options().append(true).open(&file.location);
        opened.and_then(|file| file.set_modified(aged)).expect("a test's file can be changed");
    }
}
