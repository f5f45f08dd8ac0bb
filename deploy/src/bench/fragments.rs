//! A table as a busy writer leaves it: many files of one size, and a delete file for each. Written with the product's own
//! writer and committer, since no other engine writes position deletes the way it does.
//!
//! Not here: what is measured on it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use fastrand::Rng;
use iceberg::TableCreation;
use iceberg::spec::{NestedField, PrimitiveType, Schema, Struct, Type};
use lakehouse_core::catalog::{Catalog, LoadedTable, SqliteCatalog};
use lakehouse_core::commit::properties::SOURCE_TABLE;
use lakehouse_core::commit::{Advance, Committer, Counts, FileChange, GiveWay, LakeTable, TableCommit};
use lakehouse_core::planted::Planted;
use lakehouse_core::position::Position;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;
use lakehouse_core::write::{DataFileWriter, FileSchema, NewFile, data_location};
use roaring::RoaringBitmap;

use crate::Result;
use crate::lake::NAME;

/// Rows that are written at once.
const BATCH: u64 = 65_536;
/// One row in so many is deleted, at random.
const DELETED_IN: u64 = 20;

pub(crate) const TABLE: &str = "fragments";

/// How many files, and how large: rows of a key, an account, an amount, a time and a text of 16 random bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragments {
    pub(crate) files: u64,
    pub(crate) file_bytes: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// Rows that are not deleted.
    pub(crate) rows: u64,
    /// Of the data files.
    pub(crate) bytes: u64,
}

impl Fragments {
    /// Writes the table into the lake of this folder: one commit of rows, one of deletes.
    pub(crate) async fn write(self, folder: &Path) -> Result<Written> {
        let folder = folder.to_owned();
        // Committing blocks in place, which the runtime of this program, with its one thread, does not allow.
        let writing = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let written = runtime.map_err(|error| error.to_string())?.block_on(self.write_here(&folder));
            written.map_err(|error| error.to_string())
        });
        Ok(writing.await??)
    }

    async fn write_here(self, folder: &Path) -> Result<Written> {
        let storage = Storage::local();
        let lake = folder.join("lake");
        let catalog: Arc<dyn Catalog> =
            Arc::new(SqliteCatalog::open(&lake.join("catalog.db"), &lake.join("warehouse"), storage.clone())?);
        let name = TableName::new(NAME, TABLE);
        let created = catalog.create(&name, creation()?).await?;
        let mut rng = Rng::with_seed(11);
        let (mut added, mut gone, mut written) = (Vec::new(), BTreeMap::new(), Written::default());
        let files = FileSchema::new(Arc::clone(created.metadata.current_schema()))?;
        let mut first = 0;
        for _ in 0..self.files {
            let new = self.file(&storage, &created, &files, first, &mut rng)?;
            let rows = new.file.record_count();
            first += rows;
            let deleted = deleted(rows, &mut rng);
            written.rows += rows - deleted.len();
            written.bytes += new.file.file_size_in_bytes();
            gone.insert(new.file.file_path().to_owned(), deleted);
            added.push(new);
        }
        let committer = Committer {
            catalog,
            storage: storage.clone(),
            source: "a bench".to_owned(),
            epoch: 1,
            give_way: GiveWay::default(),
            planted: Planted::none(),
        };
        let mut table = LakeTable::open(&storage, created).await?;
        let rows = FileChange { added, ..FileChange::default() };
        committer.commit(&mut table, commit(rows, BTreeMap::new(), 1)).await?;
        committer.commit(&mut table, commit(FileChange::default(), gone, 2)).await?;
        Ok(written)
    }

    fn file(
        self,
        storage: &Storage,
        table: &LoadedTable,
        files: &FileSchema,
        first: u64,
        rng: &mut Rng,
    ) -> Result<NewFile> {
        let location = data_location(&table.metadata, &Struct::empty(), &files.iceberg);
        let mut writer = DataFileWriter::create(storage, &location, files, Struct::empty(), 0)?;
        // A small file is no larger than it is meant to be: its batches are small too.
        let batch = BATCH.min(self.file_bytes / 64).max(1);
        while (writer.estimated_bytes() as u64) < self.file_bytes {
            writer.write(&rows(files, first + writer.rows(), batch, rng)?)?;
        }
        Ok(writer.finish()?)
    }
}

fn creation() -> Result<TableCreation> {
    let columns = ["id", "account_id", "amount", "booked_at", "note"];
    let field = |(id, name): (i32, &str)| {
        let kind = if name == "note" { PrimitiveType::String } else { PrimitiveType::Long };
        Arc::new(NestedField::required(id, name, Type::Primitive(kind)))
    };
    let schema = Schema::builder().with_fields((1..).zip(columns).map(field)).with_identifier_field_ids([1]).build()?;
    let properties = HashMap::from([(SOURCE_TABLE.to_owned(), format!("public.{TABLE}"))]);
    Ok(TableCreation::builder().name(TABLE.to_owned()).schema(schema).properties(properties).build())
}

fn rows(files: &FileSchema, first: u64, count: u64, rng: &mut Rng) -> Result<RecordBatch> {
    let keys = || (first..first + count).map(|key| key.cast_signed());
    let notes: Vec<String> = keys().map(|_| format!("{:032x}", rng.u128(..))).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(keys())),
        Arc::new(Int64Array::from_iter_values(keys().map(|key| key * 7_919 % 100_003))),
        Arc::new(Int64Array::from_iter_values(keys().map(|key| key * 48_271 % 9_999_991))),
        Arc::new(Int64Array::from_iter_values(keys().map(|key| 1_767_225_600_000_000 + key * 1_370_013))),
        Arc::new(StringArray::from(notes)),
    ];
    Ok(RecordBatch::try_new(Arc::clone(&files.arrow), columns)?)
}

fn deleted(rows: u64, rng: &mut Rng) -> RoaringBitmap {
    let rows = u32::try_from(rows).expect("a file's rows have 32 bits");
    let wanted = (u64::from(rows) / DELETED_IN).max(1);
    let mut deleted = RoaringBitmap::new();
    while deleted.len() < wanted {
        deleted.insert(rng.u32(..rows));
    }
    deleted
}

fn commit(change: FileChange, gone: BTreeMap<String, RoaringBitmap>, to: u64) -> TableCommit {
    let advance = Advance::Changes { to: Position::new(to) };
    TableCommit { gone, ..TableCommit::new(change, advance, Counts::default()) }
}
