//! What other engines' maintenance has done to a table: Spark, or S3 Tables' own jobs. Recognised by their snapshots, since
//! nobody tells us. Pure; whether such a snapshot has kept the rows is the core's to check (protocol F6).

use std::collections::HashMap;

use iceberg::spec::{Operation, SnapshotRef};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::foreign::is_ours;
use serde::Serialize;

/// A snapshot by which another engine has replaced files, as its summary tells it; 0 for what it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ForeignRewrite {
    pub snapshot_id: String,
    /// Milliseconds since 1970.
    #[serde(skip)]
    pub at: i64,
    pub input_files: u64,
    pub input_bytes: u64,
    pub output_files: u64,
    pub output_bytes: u64,
    pub rows: u64,
}

/// Those behind a sequence number, oldest first.
pub fn rewrites_since(table: &LoadedTable, sequence_number: i64) -> Vec<ForeignRewrite> {
    let is_rewrite = |snapshot: &&SnapshotRef| {
        let later = snapshot.sequence_number() > sequence_number;
        later && snapshot.summary().operation == Operation::Replace && !is_ours(snapshot)
    };
    let mut found: Vec<&SnapshotRef> = table.metadata.snapshots().filter(is_rewrite).collect();
    found.sort_by_key(|snapshot| snapshot.sequence_number());
    found.into_iter().map(of).collect()
}

fn of(snapshot: &SnapshotRef) -> ForeignRewrite {
    let number = |key: &str| counted(&snapshot.summary().additional_properties, key);
    ForeignRewrite {
        snapshot_id: snapshot.snapshot_id().to_string(),
        at: snapshot.timestamp_ms(),
        input_files: number("deleted-data-files"),
        input_bytes: number("removed-files-size"),
        output_files: number("added-data-files"),
        output_bytes: number("added-files-size"),
        rows: number("added-records"),
    }
}

fn counted(summary: &HashMap<String, String>, key: &str) -> u64 {
    summary.get(key).and_then(|text| text.parse().ok()).unwrap_or(0)
}
