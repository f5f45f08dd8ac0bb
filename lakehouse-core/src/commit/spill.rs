//! Lanes that are too long for a property stand in a statistics file of their commit's own snapshot: referenced by the
//! metadata, so that no cleaner takes it, and named in the property with its hash (D36).

use iceberg::TableUpdate;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::puffin;
use crate::catalog::LoadedTable;
use crate::error::Problem;
use crate::storage::{Storage, iceberg_problem};

/// Bytes of a property, at most.
const LONGEST: usize = 64 << 10;
/// Type of the blob.
const BLOB: &str = "lakehouse-lanes-v1";
/// What its file is called.
const NAME: &str = "lanes";

/// What the property says instead.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    spilled: String,
    sha256: String,
}

/// What a commit says of its lanes.
pub(super) struct StoredLanes {
    pub(super) property: String,
    pub(super) updates: Vec<TableUpdate>,
}

/// True if the property says only where its text stands.
pub(super) fn is_reference(property: &str) -> bool {
    property.starts_with("{\"spilled\":")
}

/// Lanes as text, for a snapshot that is about to be committed on `base`; a file that is written is durable.
pub(super) async fn store(
    storage: &Storage,
    base: &LoadedTable,
    snapshot_id: i64,
    text: String,
) -> Result<StoredLanes, Problem> {
    // Statistics of ours belong to the newest snapshot alone; those of snapshots that have gone are nobody's.
    let stale = base.metadata.statistics_iter().filter(|statistics| {
        let gone = base.metadata.snapshot_by_id(statistics.snapshot_id).is_none();
        gone || puffin::is_named(statistics, NAME)
    });
    let stale = stale.map(|statistics| TableUpdate::RemoveStatistics { snapshot_id: statistics.snapshot_id });
    let mut updates: Vec<TableUpdate> = stale.collect();
    if text.len() <= LONGEST {
        return Ok(StoredLanes { property: text, updates });
    }
    let stored = puffin::store(storage, base, snapshot_id, (BLOB, NAME), text.into_bytes()).await?;
    let path = stored.statistics.statistics_path.clone();
    updates.push(TableUpdate::SetStatistics { statistics: stored.statistics });
    let reference = Reference { spilled: path, sha256: hex_digest(&stored.bytes) };
    Ok(StoredLanes { property: serde_json::to_string(&reference).expect("a reference is plain data"), updates })
}

/// The text that `property` stands for.
///
/// # Errors
/// `GAP` where the file is gone: how far the log was read is lost. `CHECKPOINT` where it is not what was written.
pub(super) async fn fetch(storage: &Storage, table: &LoadedTable, property: &str) -> Result<String, Problem> {
    if !is_reference(property) {
        return Ok(property.to_owned());
    }
    let damaged = |why: String| {
        let remedy = "copy the table anew: `lakehouse resync`";
        Problem::halt_table("CHECKPOINT", table.name.to_string(), why, remedy)
    };
    let Reference { spilled: path, sha256 } =
        serde_json::from_str(property).map_err(|error| damaged(format!("the reference to the lanes: {error}")))?;
    let failed = |error: iceberg::Error| iceberg_problem(&path, "read", &error);
    let input = storage.io().new_input(&path).map_err(failed)?;
    if !input.exists().await.map_err(failed)? {
        let message = format!("{path}, which says how far the stream has been read, is gone");
        let remedy = "restore the file, or copy the table anew: `lakehouse resync`";
        return Err(Problem::halt_table("GAP", table.name.to_string(), message, remedy));
    }
    let bytes = input.read().await.map_err(failed)?;
    if hex_digest(&bytes) != sha256 {
        return Err(damaged(format!("{path} is not the file that was written")));
    }
    let blob = puffin::fetch(storage, &path, BLOB).await.map_err(|why| damaged(format!("{path}: {why}")))?;
    String::from_utf8(blob).map_err(|_| damaged(format!("{path} holds no text")))
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
