//! One table as maintenance has looked it up: everything that a plan is made of.

use std::collections::BTreeMap;

use iceberg::spec::Struct;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::properties::TableState;
use lakehouse_core::error::Problem;
use lakehouse_core::live::LiveFiles;
use lakehouse_core::schema::TableName;
use lakehouse_core::storage::Storage;

/// A table at its head.
#[derive(Clone, Debug)]
pub struct View {
    pub table: LoadedTable,
    pub live: LiveFiles,
    pub state: TableState,
}

/// A live data file, as far as planning is concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct FileView {
    pub path: String,
    pub spec_id: i32,
    pub partition: Struct,
    pub bytes: u64,
    pub records: u64,
    /// Paths of its delete files, and the rows that these name; an upper bound where one speaks of other files too.
    pub deletes: Vec<String>,
    pub deleted: u64,
    /// When a row of it was deleted last, in milliseconds since 1970; the beginning of time where that has expired.
    pub last_deleted: i64,
}

impl FileView {
    /// What would be left of it, in bytes.
    pub fn live_bytes(&self) -> u64 {
        let live = self.records.saturating_sub(self.deleted);
        u64::try_from(u128::from(self.bytes) * u128::from(live) / u128::from(self.records.max(1))).unwrap_or(u64::MAX)
    }
}

impl View {
    pub async fn of(storage: &Storage, table: LoadedTable) -> Result<Self, Problem> {
        let live = LiveFiles::load_as_left(storage, &table, table.snapshot_id()).await?;
        let state = TableState::read(storage, &table).await?;
        Ok(Self { table, live, state })
    }

    pub fn name(&self) -> &TableName {
        &self.table.name
    }

    /// The live data files by partition (spec id, and its values as text), each in the order of their paths: that in which
    /// they were written.
    pub fn partitions(&self) -> BTreeMap<(i32, String), Vec<FileView>> {
        let mut partitions: BTreeMap<(i32, String), Vec<FileView>> = BTreeMap::new();
        for (path, file) in &self.live.data {
            let deletes = || file.deletes.iter().filter_map(|delete| self.live.deletes.get(delete));
            let deleted: u64 = deletes().map(|delete| delete.file.record_count()).sum();
            let snapshots = deletes().filter_map(|delete| self.table.metadata.snapshot_by_id(delete.snapshot_id));
            let view = FileView {
                path: path.clone(),
                spec_id: file.spec_id,
                partition: file.partition.clone(),
                bytes: file.bytes,
                records: file.records,
                deletes: file.deletes.clone(),
                deleted: deleted.min(file.records),
                last_deleted: snapshots.map(|snapshot| snapshot.timestamp_ms()).max().unwrap_or(0),
            };
            partitions.entry((file.spec_id, format!("{:?}", file.partition))).or_default().push(view);
        }
        partitions.values_mut().for_each(|files| files.sort_by(|a, b| a.path.cmp(&b.path)));
        partitions
    }
}
