//! What differs between two snapshots of a table: rows inserted, updated (as they were and as they are) and deleted, told
//! apart by the key; of a table without a key, rows that came and rows that went, with multiplicity.
//!
//! Files that stand in both snapshots with the same deletes cancel out unread, and of a file whose deletes have changed
//! only the rows in between are read (`scan.rs`). Those rows go through the sums of [`crate::compare`]: rows that merely
//! moved, by a compaction or a rollback, come to nothing there. What is left is spilled to local scratch in partitions by
//! the hash of its key, and each partition is settled on its own (`partition.rs`). Memory is that of one partition; local
//! disk that of [`PARTITIONS`]. Blocking, but for [`Diff::open`]. Not here: which snapshots, and who may see the rows.

mod partition;
mod scan;

use std::collections::HashSet;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef as ArrowSchemaRef;
use iceberg::spec::SchemaRef;
use serde::Serialize;

use crate::catalog::LoadedTable;
use crate::compare::{Comparison, Limits, Side, bucket_of};
use crate::error::Problem;
use crate::read::{Projection, TableReader};
use crate::storage::Storage;
use partition::Partition;
use scan::Scan;

/// What `compare` calls its sides.
const PAST: Side = Side::Source;
const PRESENT: Side = Side::Mirror;
/// Bytes of rows that one partition holds, by their average; about what settling it takes in memory.
const PARTITION_BYTES: u64 = 64 << 20;
/// What a row costs beside its values: two hashes and an entry that counts it.
const ROW_BYTES: u64 = 100;
/// Partitions that are spilled in one pass, each to two files.
const PARTITIONS: usize = 32;

/// How many rows differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

impl Counts {
    pub fn is_equal(self) -> bool {
        self == Self::default()
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

/// Rows that differ in one way, in batches of [`Diff::schema`]; never empty.
#[derive(Clone, Debug)]
pub enum Changes {
    Inserted(RecordBatch),
    /// Row for row the same keys.
    Updated {
        before: RecordBatch,
        after: RecordBatch,
    },
    Deleted(RecordBatch),
}

impl Changes {
    /// Rows of the table that differ; an update is one.
    pub fn num_rows(&self) -> usize {
        match self {
            Self::Inserted(rows) | Self::Deleted(rows) | Self::Updated { after: rows, .. } => rows.num_rows(),
        }
    }
}

/// Takes changes as they are found.
pub type Each<'a, E> = &'a mut dyn FnMut(Changes) -> Result<(), E>;
/// Asked at every batch that is read; an error ends the work.
pub type Watch<'a, E> = &'a dyn Fn() -> Result<(), E>;

/// Two snapshots of one table, ready to be compared.
pub struct Diff {
    past: TableReader,
    present: TableReader,
    columns: Projection,
    /// Names of the key's columns; none: whole rows count.
    key: Vec<String>,
    partition_bytes: u64,
}

impl Diff {
    /// The way from snapshot `from` to snapshot `to`, which may be the older one.
    ///
    /// # Errors
    /// `SNAPSHOT_UNKNOWN`, and what reading manifests meets.
    pub async fn open(storage: &Storage, table: &LoadedTable, from: i64, to: i64) -> Result<Self, Problem> {
        let past = TableReader::at(storage, table, Some(from)).await?;
        let present = TableReader::at(storage, table, Some(to)).await?;
        // Schemas grow, so the newer one has every column; by the field ids its columns are NULL where they were not yet.
        let newer: &SchemaRef =
            [&past.schema, &present.schema].into_iter().max_by_key(|schema| schema.schema_id()).expect("two");
        let columns = Projection::all(newer)?;
        let key = newer.identifier_field_ids().filter_map(|id| newer.name_by_field_id(id)).map(str::to_owned).collect();
        Ok(Self { columns, key, past, present, partition_bytes: PARTITION_BYTES })
    }

    /// Holds fewer bytes of rows at a time, and goes over the files more often.
    #[must_use]
    pub fn in_partitions_of(self, bytes: u64) -> Self {
        Self { partition_bytes: bytes, ..self }
    }

    /// Of the rows: the columns of the newer of the two snapshots.
    pub fn schema(&self) -> &ArrowSchemaRef {
        &self.columns.arrow
    }

    /// Every row that differs, in no order but that an update is in one place.
    ///
    /// # Errors
    /// What reading meets, `DISK_FULL` and its like of the scratch, and what `watch` or `each` says.
    pub fn changes<E: From<Problem>>(&self, watch: Watch<'_, E>, each: Each<'_, E>) -> Result<Counts, E> {
        self.settle(watch, Some(each))
    }

    /// How many rows differ: their hashes are spilled, not the rows.
    ///
    /// # Errors
    /// As [`Diff::changes`].
    pub fn counts<E: From<Problem>>(&self, watch: Watch<'_, E>) -> Result<Counts, E> {
        self.settle(watch, None)
    }

    fn settle<E: From<Problem>>(&self, watch: Watch<'_, E>, mut each: Option<Each<'_, E>>) -> Result<Counts, E> {
        let key: Vec<&str> = self.key.iter().map(String::as_str).collect();
        let mut sums = Comparison::new(self.columns.arrow.clone(), &key)?;
        let scan = Scan::between(&self.past, &self.present)?;
        let (mut rows, mut bytes) = (0_u64, 0_u64);
        for side in [PAST, PRESENT] {
            scan.read::<E>(side, &self.columns, |batch| {
                watch()?;
                rows += batch.num_rows() as u64;
                bytes += batch.get_array_memory_size() as u64;
                Ok(sums.add(side, &batch)?)
            })?;
        }
        let with_rows = each.is_some();
        let row_bytes = ROW_BYTES + bytes.checked_div(rows).filter(|_| with_rows).unwrap_or(0);
        let limits = Limits { rows_at_once: (self.partition_bytes / row_bytes).max(1), passes: usize::MAX };
        let mut counts = Counts::default();
        for pass in sums.passes(limits).chunks(PARTITIONS) {
            for partition in self.spill(&scan, &sums, pass, with_rows, watch)? {
                let each: Option<Each<'_, E>> = match &mut each {
                    Some(each) => Some(&mut **each),
                    None => None,
                };
                counts += partition.settle(watch, each)?;
            }
        }
        Ok(counts)
    }

    /// One partition for each group of buckets.
    fn spill<E: From<Problem>>(
        &self,
        scan: &Scan<'_>,
        sums: &Comparison,
        groups: &[HashSet<u16>],
        with_rows: bool,
        watch: Watch<'_, E>,
    ) -> Result<Vec<Partition>, E> {
        let mut partitions: Vec<Partition> = Vec::new();
        let mut partition_of = vec![None; usize::from(u16::MAX) + 1];
        for (number, buckets) in groups.iter().enumerate() {
            buckets.iter().for_each(|&bucket| partition_of[usize::from(bucket)] = Some(number));
            partitions.push(Partition::new(with_rows.then(|| self.columns.arrow.clone()))?);
        }
        for side in [PAST, PRESENT] {
            scan.read::<E>(side, &self.columns, |batch| {
                watch()?;
                let hashes = sums.hasher().hash(&batch)?;
                let mut picked: Vec<Vec<u32>> = vec![Vec::new(); partitions.len()];
                for (row, key) in (0..).zip(&hashes.keys) {
                    if let Some(partition) = partition_of[usize::from(bucket_of(*key))] {
                        picked[partition].push(row);
                    }
                }
                let filled = partitions.iter_mut().zip(picked).filter(|(_, rows)| !rows.is_empty());
                Ok(filled.into_iter().try_for_each(|(partition, rows)| partition.add(side, &batch, &hashes, rows))?)
            })?;
        }
        Ok(partitions)
    }
}

/// How many rows differ between two snapshots, for who only wants to know that. `watch` is asked now and then, and may end
/// it with an error of its own.
///
/// # Errors
/// As [`Diff::open`] and [`Diff::changes`].
pub async fn counts(
    storage: &Storage,
    table: &LoadedTable,
    from: i64,
    to: i64,
    watch: impl Fn() -> Result<(), Problem> + Send + 'static,
) -> Result<Counts, Problem> {
    let diff = Diff::open(storage, table, from, to).await?;
    let counted = tokio::task::spawn_blocking(move || diff.counts(&watch));
    counted.await.unwrap_or_else(|error| Err(Problem::retry("PANIC", table.name.to_string(), error.to_string())))
}
