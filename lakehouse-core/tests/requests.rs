//! What one commit to a table costs in requests: a number that does not grow with the table.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::support::block_on;
use crate::support::rig::{Kind, Rig};
use crate::support::world::temporary_folder;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use iceberg::TableCreation;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, NestedField, PrimitiveType, Schema, Struct, Type,
};
use lakehouse_core::commit::{Advance, Committer, Counts, FileChange, GiveWay, LakeTable, TableCommit};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use lakehouse_core::write::{DataFileWriter, DeletedFrom, FileSchema, NewFile, write_delete_file};
use roaring::RoaringBitmap;

/// The bounds: requests of one commit to the object store and to the catalog.
const OBJECTS: u64 = 8;
const CATALOG: u64 = 2;
/// Commits that are counted one by one: more than it takes to merge manifests of manifests.
const COMMITS: usize = 75;

/// What every commit of a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Insert,
    /// Also deletes a row of another data file each time.
    UpdateElsewhere,
    /// Also deletes one more row of the same data file, whose delete file is replaced.
    UpdateOneFile,
}

/// Requests of each commit, and how many commits made so many.
#[derive(Default)]
struct Counted {
    objects: BTreeMap<u64, usize>,
    catalog: BTreeMap<u64, usize>,
    example: String,
}

struct Bench<'a> {
    rig: &'a Rig,
    storage: Storage,
    committer: Committer,
    table: LakeTable,
    files: FileSchema,
    reached: u64,
    _spool: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    async fn start(rig: &'a Rig, name: &str, files: usize) -> Self {
        let spool = temporary_folder();
        let storage = rig.storage.with_spool(&spool.path().join("spool")).expect("a spool");
        let field = NestedField::optional(1, "id", Type::Primitive(PrimitiveType::Long));
        let schema = Arc::new(Schema::builder().with_fields([Arc::new(field)]).build().expect("a schema"));
        let name = TableName::new("requests", name);
        let creation = TableCreation::builder().name(name.name.clone()).schema(Schema::clone(&schema)).build();
        let created = rig.catalog.create(&name, creation).await.expect("a table");
        let files_schema = FileSchema::new(Arc::clone(created.metadata.current_schema())).expect("a schema");
        let committer = Committer {
            catalog: Arc::clone(&rig.catalog),
            storage: storage.clone(),
            source: "a test".to_owned(),
            epoch: 1,
            give_way: GiveWay::default(),
            planted: Planted::none(),
        };
        let table = LakeTable::open(&storage, created).await.expect("a table without snapshots");
        let mut bench = Self { rig, storage, committer, table, files: files_schema, reached: 0, _spool: spool };
        // Nobody reads them here: entries in manifests are what a commit could have to carry.
        let added = (0..files).map(|number| bench.made_up(number)).collect();
        bench.commit(FileChange { added, ..FileChange::default() }).await;
        bench
    }

    fn made_up(&self, number: usize) -> NewFile {
        let path = format!("{}/data/made-up-{number:06}.parquet", self.table.loaded.metadata.location());
        let file = DataFileBuilder::default()
            .content(DataContentType::Data)
            .file_path(path)
            .file_format(DataFileFormat::Parquet)
            .partition(Struct::empty())
            .partition_spec_id(0)
            .record_count(1_000)
            .file_size_in_bytes(10_000)
            .build();
        NewFile { file: file.expect("a data file"), spec_id: 0 }
    }

    fn data_file(&self) -> NewFile {
        let location = format!("{}/data/{}.parquet", self.table.loaded.metadata.location(), fastrand::u64(..));
        let mut writer =
            DataFileWriter::create(&self.storage, &location, &self.files, Struct::empty(), 0).expect("a file");
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let rows = RecordBatch::try_new(Arc::clone(&self.files.arrow), vec![column]).expect("three rows");
        writer.write(&rows).expect("written");
        writer.finish().expect("a whole file")
    }

    /// The rows so far deleted from a made-up file and one more, as a delete file that takes the place of the one before.
    fn delete_file(&self, number: usize, rows: u32) -> (NewFile, HashSet<String>) {
        let path = self.made_up(number).file.file_path().to_owned();
        let partition = Struct::empty();
        let data = DeletedFrom { path: &path, partition: &partition, spec_id: 0 };
        let location = format!("{}/data/{}-deletes.parquet", self.table.loaded.metadata.location(), fastrand::u64(..));
        let positions = RoaringBitmap::from_iter(0..rows);
        let new = write_delete_file(&self.storage, &location, &data, &positions).expect("a delete file");
        (new, self.table.live.data[&path].deletes.iter().cloned().collect())
    }

    async fn commit(&mut self, change: FileChange) {
        self.reached += 1;
        let advance = Advance::Changes { to: Position::new(self.reached) };
        let commit = TableCommit::new(change, advance, Counts::default());
        self.committer.commit(&mut self.table, commit).await.expect("a commit");
    }

    async fn count(&mut self, work: Work, files: usize) -> Counted {
        let mut counted = Counted::default();
        let mut most = 0;
        for number in 0..COMMITS {
            let mut change = FileChange { added: vec![self.data_file()], ..FileChange::default() };
            let target = match work {
                Work::Insert => None,
                Work::UpdateElsewhere => Some((number % files, u32::try_from(number / files + 1).expect("few"))),
                Work::UpdateOneFile => Some((0, u32::try_from(number + 1).expect("few"))),
            };
            if let Some((file, rows)) = target {
                let (new, replaced) = self.delete_file(file, rows);
                change.deletes.push(new);
                change.replaced_deletes = replaced;
            }
            let objects = self.rig.objects.as_ref().expect("objects behind a proxy");
            objects.reset_requests();
            self.rig.network().reset_requests();
            self.commit(change).await;
            let objects = self.rig.objects.as_ref().expect("objects behind a proxy").requests();
            let catalog = self.rig.network().requests();
            *counted.objects.entry(objects.total()).or_default() += 1;
            *counted.catalog.entry(catalog.total()).or_default() += 1;
            if objects.total() > most {
                most = objects.total();
                counted.example = format!("{objects}; {catalog}");
            }
        }
        counted
    }
}

fn costs_the_same(kind: Kind, test: &str) {
    block_on(async {
        let Some(rig) = Rig::start(kind, test).await else { return };
        for work in [Work::Insert, Work::UpdateElsewhere, Work::UpdateOneFile] {
            let mut most = Vec::new();
            for files in [10, 10_000] {
                let name = format!("{work:?}_{files}").to_lowercase();
                let mut bench = Bench::start(&rig, &name, files).await;
                let counted = bench.count(work, files).await;
                println!(
                    "{kind:?} {work:?}, {files} data files: requests → commits: objects {:?}, catalog {:?}; at most {}",
                    counted.objects, counted.catalog, counted.example
                );
                let largest = |counts: &BTreeMap<u64, usize>| *counts.keys().last().expect("a commit");
                most.push((largest(&counted.objects), largest(&counted.catalog)));
            }
            assert_eq!(most[0], most[1], "{kind:?} {work:?}: it grows with the table");
            assert!(most[0].0 <= OBJECTS && most[0].1 <= CATALOG, "{kind:?} {work:?}: {most:?}");
        }
    });
}

#[test]
fn a_commit_to_s3_tables_costs_the_same_at_any_number_of_files() {
    costs_the_same(Kind::Simulator, "a_commit_to_s3_tables_costs_the_same_at_any_number_of_files");
}

#[test]
fn a_commit_to_a_rest_catalog_costs_the_same_at_any_number_of_files() {
    costs_the_same(Kind::Rest, "a_commit_to_a_rest_catalog_costs_the_same_at_any_number_of_files");
}
