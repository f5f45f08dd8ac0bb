//! How healthy a table is: measured from the head's manifests and the metadata, nothing else.

use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::live::LiveFiles;
use lakehouse_core::storage::Storage;

/// Data files below this are small: an eighth of the size that compaction aims at, 256 MiB.
const SMALL_FILE: u64 = (256 << 20) / 8;
/// Share of deleted rows at which their term of the score is full.
const DELETED_SHARE: f64 = 0.1;

/// Measures of one table at its head.
#[derive(Clone, Debug, PartialEq)]
pub struct TableHealth {
    pub data_files: u64,
    pub small_files: u64,
    pub delete_files: u64,
    /// The most delete files that one data file has.
    pub most_deletes_per_file: u64,
    /// Delete files that no live data file has.
    pub dangling_deletes: u64,
    pub rows: u64,
    pub deleted_rows: u64,
    pub bytes: u64,
    pub manifests: u64,
    pub snapshots: u64,
    /// Size of the current metadata file, in bytes.
    pub metadata_bytes: u64,
}

impl TableHealth {
    /// `100 − 40·small − 20·deleted`, each term from 0 to 1. Equality deletes, the third term, do not occur here.
    pub fn score(&self) -> f64 {
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        // One small file is what a small table looks like at its best.
        let small = share(self.small_files.saturating_sub(1), self.data_files);
        let deleted = (share(self.deleted_rows, self.rows + self.deleted_rows) / DELETED_SHARE).min(1.0);
        100.0 - 40.0 * small - 20.0 * deleted
    }
}

/// Looks at the table's head.
pub async fn observe(storage: &Storage, table: &LoadedTable) -> Result<TableHealth, Problem> {
    let live = LiveFiles::load(storage, table, table.snapshot_id()).await?;
    let totals = live.totals();
    let deletes = live.data.values().map(|file| file.deletes.len() as u64);
    Ok(TableHealth {
        data_files: totals.data_files,
        small_files: live.data.values().filter(|file| file.bytes < SMALL_FILE).count() as u64,
        delete_files: totals.delete_files,
        most_deletes_per_file: deletes.max().unwrap_or(0),
        dangling_deletes: live.dangling_deletes().len() as u64,
        rows: live.rows(),
        deleted_rows: live.deleted_rows(),
        bytes: totals.bytes,
        manifests: live.manifests.len() as u64,
        snapshots: table.metadata.snapshots().len() as u64,
        metadata_bytes: table.metadata_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(data_files: u64, small_files: u64, rows: u64, deleted_rows: u64) -> TableHealth {
        TableHealth {
            data_files,
            small_files,
            delete_files: 0,
            most_deletes_per_file: 0,
            dangling_deletes: 0,
            rows,
            deleted_rows,
            bytes: 0,
            manifests: 0,
            snapshots: 0,
            metadata_bytes: 0,
        }
    }

    #[test]
    fn a_fresh_table_is_healthy_and_fragments_and_deletes_cost() {
        assert_eq!(table(0, 0, 0, 0).score(), 100.0);
        assert_eq!(table(1, 1, 10, 0).score(), 100.0);
        assert_eq!(table(10, 0, 90, 10).score(), 80.0);
        assert!(table(100, 100, 100, 0).score() < 61.0);
        assert!(table(100, 100, 50, 50).score() >= 40.0);
    }
}
