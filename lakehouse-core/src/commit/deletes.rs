//! The delete files of one commit: one per data file, the new positions merged with those of the file that it replaces
//! (protocol F8). Made for the base of each attempt, never for the plan's (protocol B9).

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;

use super::{FileChange, LakeTable};
use crate::error::Problem;
use crate::live::{LiveFiles, referenced};
use crate::planted::{Bug, Planted};
use crate::read::deleted_rows;
use crate::storage::Storage;
use crate::write::{DeletedFrom, delete_location, write_delete_file};

/// Deleted positions kept in memory over all data files of a table, so that a delete file that is replaced need not be
/// read back; beyond, all are forgotten and read again.
const CACHED_POSITIONS: u64 = 4_000_000;

/// The deleted rows of data files, by path, as the last commit or attempt has left them.
#[derive(Debug, Default)]
pub(super) struct DeletedRows(HashMap<String, RoaringBitmap>);

impl DeletedRows {
    fn make_room(&mut self) {
        if self.0.values().map(RoaringBitmap::len).sum::<u64>() > CACHED_POSITIONS {
            self.0.clear();
        }
    }

    /// Another snapshot is looked at: what is known of a file holds while nothing but its own delete files name its rows.
    pub(super) fn keep_live(&mut self, live: &LiveFiles) {
        self.0.retain(|path, _| live.data.contains_key(path));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// `change` with the delete files that take the rows `gone` from data files, by path.
///
/// # Errors
/// `INDEX_STALE` where a file is neither live nor new: whoever noted its rows has to look again.
pub(super) fn with_deletes(
    storage: &Storage,
    table: &mut LakeTable,
    mut change: FileChange,
    gone: &BTreeMap<String, RoaringBitmap>,
    planted: Planted,
) -> Result<FileChange, Problem> {
    table.deleted.make_room();
    for (path, rows) in gone {
        let live = table.live.data.get(path).filter(|_| !change.remove_all);
        let new = change.added.iter().find(|new| new.file.file_path() == path);
        let (partition, spec_id) = match (live, new) {
            (Some(live), _) => (live.partition.clone(), live.spec_id),
            (None, Some(new)) => (new.file.partition().clone(), new.spec_id),
            (None, None) => {
                let message = format!("the key index names a file that is not live: {path}");
                return Err(Problem::retry("INDEX_STALE", table.name().to_string(), message));
            }
        };
        let mut all = match (table.deleted.0.remove(path), live) {
            (Some(known), _) => known,
            (None, Some(_)) if planted.is(Bug::MergeOnPlansBase) => RoaringBitmap::new(),
            (None, Some(file)) => deleted_rows(storage, path, file)?,
            (None, None) => RoaringBitmap::new(),
        };
        all |= rows;
        let metadata = &table.loaded.metadata;
        let location = delete_location(metadata, &partition, metadata.current_schema());
        let data = DeletedFrom { path, partition: &partition, spec_id };
        change.deletes.push(write_delete_file(storage, &location, &data, &all)?);
        table.deleted.0.insert(path.clone(), all);
        change.replaced_deletes.extend(own_deletes(&table.live, path).map(str::to_owned));
    }
    Ok(change)
}

/// The delete files that speak of this data file alone. Another engine's may speak of others too: it stays, and both apply.
pub(super) fn own_deletes<'a>(live: &'a LiveFiles, path: &'a str) -> impl Iterator<Item = &'a str> {
    let all = live.data.get(path).into_iter().flat_map(|file| &file.deletes);
    let own = move |delete: &&String| {
        live.deletes.get(*delete).and_then(|delete| referenced(&delete.file)).is_some_and(|named| named == path)
    };
    all.filter(own).map(String::as_str)
}
