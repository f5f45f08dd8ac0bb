//! Other engines' commits on a mirror (protocol F6): recognised, checked, then followed by the key index.

use iceberg::spec::{Operation, SnapshotRef};
use tracing::info;

use crate::catalog::LoadedTable;
use crate::commit::properties;
use crate::error::Problem;
use crate::live::{LiveFiles, find_snapshot};
use crate::mirror::read_key_hashes;
use crate::read::{Projection, Rows, deleted_rows};
use crate::storage::Storage;

/// Checks every snapshot since our own last one. A replace is valid only if it keeps the rows: same count, same keys.
pub async fn check_foreign(storage: &Storage, table: &LoadedTable) -> Result<(), Problem> {
    check_columns(table)?;
    let foreign = foreign_snapshots(table)?;
    for snapshot in &foreign {
        info!(
            table = %table.name, snapshot_id = snapshot.snapshot_id(), operation = snapshot.summary().operation.as_str(),
            "another engine has committed"
        );
        if snapshot.summary().operation == Operation::Replace
            && let Some(parent) = snapshot.parent_snapshot_id()
            && table.metadata.snapshot_by_id(parent).is_some()
        {
            check_replace(storage, table, parent, snapshot.snapshot_id()).await?;
        }
    }
    Ok(())
}

/// True for a snapshot that this product has written.
pub fn is_ours(snapshot: &SnapshotRef) -> bool {
    snapshot.summary().additional_properties.contains_key(properties::EPOCH)
}

/// The columns of our last snapshot must still be there. One that another engine has dropped would come back under a new
/// field id, and all its values before would read NULL.
fn check_columns(table: &LoadedTable) -> Result<(), Problem> {
    let metadata = &table.metadata;
    let ours = metadata.snapshots().filter(|snapshot| is_ours(snapshot));
    let Some(last) = ours.max_by_key(|snapshot| snapshot.sequence_number()) else {
        return Ok(());
    };
    let schema = last.schema(metadata);
    let schema =
        schema.map_err(|error| Problem::halt("METADATA", table.name.to_string(), error.to_string(), "run fsck"))?;
    let current = metadata.current_schema();
    match schema.as_struct().fields().iter().find(|field| current.field_by_id(field.id).is_none()) {
        None => Ok(()),
        Some(field) => {
            let message = format!("another engine has dropped the column {:?}", field.name);
            let remedy = "resync the table; until then readers are right at our last snapshot";
            Err(Problem::halt_table("SCHEMA_CHANGED", table.name.to_string(), message, remedy))
        }
    }
}

/// From the head back to our last snapshot, oldest first.
fn foreign_snapshots(table: &LoadedTable) -> Result<Vec<SnapshotRef>, Problem> {
    let mut found: Vec<SnapshotRef> = table.ancestry().take_while(|snapshot| !is_ours(snapshot)).cloned().collect();
    found.reverse();
    check_ancestry(table)?;
    Ok(found)
}

/// Our last snapshot must be an ancestor of the head, or expired: another engine's rollback leaves the properties and
/// takes the rows.
fn check_ancestry(table: &LoadedTable) -> Result<(), Problem> {
    let Some(batch) = table.property(properties::BATCH) else {
        return Ok(());
    };
    let names_batch = |snapshot: &&SnapshotRef| {
        snapshot.summary().additional_properties.get(properties::BATCH).is_some_and(|named| named == batch)
    };
    let Some(last) = table.metadata.snapshots().find(names_batch) else {
        return Ok(());
    };
    let mut oldest = i64::MAX;
    for snapshot in table.ancestry() {
        if snapshot.snapshot_id() == last.snapshot_id() {
            return Ok(());
        }
        oldest = snapshot.sequence_number();
    }
    // Snapshots in between have expired: it lies below them.
    if last.sequence_number() < oldest {
        return Ok(());
    }
    let message = format!("another engine has set the table back behind our snapshot {}", last.snapshot_id());
    let remedy = "resync the table; until then readers are right at that snapshot";
    Err(Problem::halt_table("FOREIGN_ROLLBACK", table.name.to_string(), message, remedy))
}

async fn check_replace(storage: &Storage, table: &LoadedTable, before: i64, after: i64) -> Result<(), Problem> {
    let old = LiveFiles::load_as_left(storage, table, Some(before)).await?;
    let new = LiveFiles::load_as_left(storage, table, Some(after)).await?;
    let schema = find_snapshot(table, after)?.schema(&table.metadata);
    let schema =
        schema.map_err(|error| Problem::halt("METADATA", table.name.to_string(), error.to_string(), "run fsck"))?;
    let ids: Vec<i32> = schema.identifier_field_ids().collect();
    let key = match ids.is_empty() {
        true => Projection::all(&schema)?,
        false => Projection::of(&schema, &ids)?,
    };
    let storage = storage.clone();
    let task = tokio::task::spawn_blocking(move || {
        Ok::<_, Problem>((sum_of_changed(&storage, &old, &new, &key)?, sum_of_changed(&storage, &new, &old, &key)?))
    });
    let (gone, come) =
        task.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", "", "reading was interrupted")))?;
    if gone == come {
        return Ok(());
    }
    let message = format!("snapshot {after} of another engine claims to keep all rows, but {gone:?} became {come:?}");
    let remedy = "resync the table; until then readers are right at the snapshot before";
    Err(Problem::halt_table("FOREIGN_REPLACE", table.name.to_string(), message, remedy))
}

/// Number of live rows, and sum of their key hashes, in the files of `of` that `other` has not, or has with other deletes.
fn sum_of_changed(
    storage: &Storage,
    of: &LiveFiles,
    other: &LiveFiles,
    key: &Projection,
) -> Result<(u64, u128), Problem> {
    let (mut rows, mut sum) = (0u64, 0u128);
    for (path, file) in &of.data {
        if other.data.get(path).is_some_and(|same| same.has_deletes_of(file)) {
            continue;
        }
        let deleted = deleted_rows(storage, path, file)?;
        read_key_hashes(storage, path, key, Rows::Except(deleted), |keys, _| {
            rows += keys.len() as u64;
            sum = keys.iter().fold(sum, |sum, key| sum.wrapping_add(key.0));
            Ok(())
        })?;
    }
    Ok((rows, sum))
}
