//! Managed snapshot management: removes old snapshots from the metadata, by the same swap as everybody.
//!
//! As the service does it: any branch or tag beside `main`, or a longer retention in the table's properties, switches it
//! off for the table without a word. It deletes no object.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iceberg::TableUpdate;
use iceberg_catalog_rest::CommitTableRequest;
use serde_json::Value;

use super::lake::{Committer, TableId};
use super::refusal::Refusal;
use super::rest::{apply, read, write};
use super::service::{Service, Shown};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The table's maintenance configuration, its refs or its own retention forbid it.
    Disabled,
    /// No snapshot is old enough.
    Nothing,
    /// So many snapshots are gone; the new current metadata.
    Committed { removed: usize, metadata: String },
    /// Somebody else's swap came first; nothing has changed.
    Conflict,
    /// It could not be done.
    Failed { why: String },
}

/// `later` is how much time seems to have passed.
pub(super) async fn run(service: &Arc<Service>, id: &TableId, later: Duration) -> Expiry {
    let outcome = expire(service, id, later).await;
    let outcome = outcome.unwrap_or_else(|refusal| match refusal.is_conflict() {
        true => Expiry::Conflict,
        false => Expiry::Failed { why: format!("{refusal:?}") },
    });
    if let Ok(table) = service.lake().table_mut(id) {
        table.maintenance.expired(match &outcome {
            Expiry::Failed { why } => Err(why.clone()),
            Expiry::Conflict => Err("conflict with a concurrent commit".to_owned()),
            _ => Ok(()),
        });
    }
    outcome
}

async fn expire(service: &Service, id: &TableId, later: Duration) -> Result<Expiry, Refusal> {
    let (shown, limits) = {
        let lake = service.lake();
        let table = lake.table(id)?;
        let shown = Shown { pointer: table.pointer.clone(), warehouse: table.warehouse.clone() };
        (shown, table.maintenance.expires())
    };
    let Some((keep, hours)) = limits else { return Ok(Expiry::Disabled) };
    let (location, content) = read(service, &shown).await?;
    let metadata: Value = serde_json::from_slice(&content).map_err(|error| Refusal::bad_request(error.to_string()))?;
    if retains(&metadata, hours) {
        return Ok(Expiry::Disabled);
    }
    let now = SystemTime::now() + later;
    let now = now.duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let oldest = now.saturating_sub(u128::from(hours) * 3_600_000);
    let old = old_snapshots(&metadata, keep, oldest);
    if old.is_empty() {
        return Ok(Expiry::Nothing);
    }
    let removed = old.len();
    let updates = vec![TableUpdate::RemoveSnapshots { snapshot_ids: old }];
    let request = CommitTableRequest { identifier: None, requirements: Vec::new(), updates };
    let next = apply(&location, &content, request)?;
    let (metadata, _) = write(service, &shown.warehouse, Some(&location), &next).await?;
    service.lake().swap(id, &shown.pointer.token, &metadata, Committer::Maintenance)?;
    Ok(Expiry::Committed { removed, metadata })
}

/// The table's own words about retention win over the service's.
fn retains(metadata: &Value, hours: u64) -> bool {
    let refs = metadata["refs"].as_object();
    let main_only = refs.is_none_or(|refs| refs.iter().all(|(name, main)| name == "main" && !limited(main)));
    let age = metadata["properties"]["history.expire.max-snapshot-age-ms"].as_str().and_then(|age| age.parse().ok());
    !main_only || age.is_some_and(|age: u64| age > hours.saturating_mul(3_600_000))
}

fn limited(reference: &Value) -> bool {
    ["max-ref-age-ms", "max-snapshot-age-ms", "min-snapshots-to-keep"].iter().any(|limit| !reference[limit].is_null())
}

/// Snapshots made before `oldest`, but neither the current one nor the newest so many.
fn old_snapshots(metadata: &Value, keep: usize, oldest: u128) -> Vec<i64> {
    let made = |snapshot: &Value| snapshot["timestamp-ms"].as_u64().unwrap_or_default();
    let mut snapshots: Vec<&Value> = metadata["snapshots"].as_array().into_iter().flatten().collect();
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse((made(snapshot), snapshot["sequence-number"].as_u64())));
    snapshots
        .into_iter()
        .skip(keep)
        .filter(|snapshot| u128::from(made(snapshot)) < oldest)
        .filter_map(|snapshot| snapshot["snapshot-id"].as_i64())
        .filter(|id| Some(*id) != metadata["current-snapshot-id"].as_i64())
        .collect()
}
