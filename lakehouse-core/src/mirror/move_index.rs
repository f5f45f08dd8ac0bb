//! One routine for catching up after a crash, for another engine's commits and, later, for rollback: the key index moves
//! from the snapshot it stands at to another by comparing their live files. Cost follows the difference. Rewrites of our
//! own on the way are followed by their row maps: no key is read again.

use std::collections::HashMap;

use arrow_array::ArrayRef;
use roaring::RoaringBitmap;
use tracing::info;

use super::{Mirror, index_problem};
use crate::catalog::LoadedTable;
use crate::commit::{Followed, is_rewrite, row_maps};
use crate::error::Problem;
use crate::key_hash::{hash_keys, hash_rows};
use crate::key_index::{Entry, KeyHash, RowAddress, sort_entries};
use crate::live::{LiveFile, LiveFiles, find_snapshot};
use crate::read::{FileRows, Projection, Rows, deleted_rows};
use crate::schema::Key;
use crate::storage::Storage;

/// Entries collected before they are given to the index.
const ENTRIES: usize = 500_000;
/// Rewrites that are followed one by one; of more, each costs reading manifests twice, and comparing the ends is cheaper.
const MOST_REWRITES: usize = 16;

impl Mirror {
    /// Moves the key index to the table's head, or builds it anew where it cannot.
    pub(crate) async fn move_index(&mut self) -> Result<(), Problem> {
        let head = self.table.loaded.snapshot_id();
        let stands_at = self.index.snapshot();
        let (Some(target), false) = (head, stands_at == head) else {
            return self.empty_if(head.is_none());
        };
        let known = stands_at.filter(|&id| self.table.loaded.metadata.snapshot_by_id(id).is_some());
        let Some(from) = known else { return self.rebuild_index(target) };
        info!(table = %self.table.name(), from, to = target, "key index follows");
        match self.follow_all(from, target).await {
            Ok(true) => Ok(()),
            Ok(false) => self.rebuild_index(target),
            // Whatever is wrong with it, the table is the truth.
            Err(problem) if problem.code == "INDEX_DAMAGED" => self.rebuild_index(target),
            Err(problem) => Err(problem),
        }
    }

    /// From rewrite to rewrite, and on to `target`. `false`: the index has to be built anew.
    async fn follow_all(&mut self, from: i64, target: i64) -> Result<bool, Problem> {
        let table = self.table.loaded.clone();
        let mut stands_at = from;
        let mut before = LiveFiles::load_as_left(&self.storage, &table, Some(from)).await?;
        for Followed { snapshot_id, map } in rewrites_on_the_way(&self.storage, &table, from, target).await {
            let parent = find_snapshot(&table, snapshot_id)?.parent_snapshot_id().unwrap_or(from);
            if parent != stands_at {
                let after = LiveFiles::load_as_left(&self.storage, &table, Some(parent)).await?;
                if !self.follow(&before, &after, parent)? {
                    return Ok(false);
                }
            }
            let followed = self.index.follow_rewrite(snapshot_id, &map);
            followed.map_err(|error| index_problem(&self.table, &error))?;
            before = LiveFiles::load_as_left(&self.storage, &table, Some(snapshot_id)).await?;
            stands_at = snapshot_id;
        }
        if stands_at == target {
            return Ok(true);
        }
        let after = self.table.live.clone();
        self.follow(&before, &after, target)
    }

    fn empty_if(&mut self, empty: bool) -> Result<(), Problem> {
        if empty && self.index.snapshot().is_some() {
            return self.index.clear().map_err(|error| index_problem(&self.table, &error));
        }
        Ok(())
    }

    /// All keys of all live files.
    pub(crate) fn rebuild_index(&mut self, target: i64) -> Result<(), Problem> {
        info!(table = %self.table.name(), snapshot = target, "key index is rebuilt");
        self.index.clear().map_err(|error| index_problem(&self.table, &error))?;
        let mut paths: Vec<String> = self.table.live.data.keys().cloned().collect();
        paths.sort_unstable();
        if self.key == Key::WholeRow {
            let live = self.table.live.clone();
            for path in paths {
                self.add_occurrences_of(&path, &live)?;
            }
            return self.index.apply(target, &[]).map_err(|error| index_problem(&self.table, &error));
        }
        let load = self.index.bulk_load();
        for path in paths {
            let number = self.index.add_file(&path);
            let deleted = deleted_rows(&self.storage, &path, &self.table.live.data[&path])?;
            self.read_keys(&path, Rows::Except(deleted), |entries| {
                load.add(entries.into_iter().map(|(key, row)| entry(key, number, row)).collect())
                    .map_err(|error| index_problem(&self.table, &error))
            })?;
        }
        let loaded = load.finish(&mut self.index, target).map_err(|error| index_problem(&self.table, &error))?;
        match loaded.duplicates {
            0 => Ok(()),
            some => Err(duplicates(self, some)),
        }
    }

    /// `false`: it cannot, and has to be built anew.
    fn follow(&mut self, before: &LiveFiles, live: &LiveFiles, target: i64) -> Result<bool, Problem> {
        let failed = |mirror: &Mirror, error| index_problem(&mirror.table, &error);
        let after = &live.data;
        let mut gone: Vec<Entry> = Vec::new();
        let mut come: Vec<Entry> = Vec::new();
        for (path, file) in after {
            let Some(old) = before.data.get(path) else { continue };
            let Some(number) = self.index.number_of(path) else { return Ok(false) };
            if old.has_deletes_of(file) {
                continue;
            }
            let (was, is) = (deleted_rows(&self.storage, path, old)?, deleted_rows(&self.storage, path, file)?);
            gone.extend(self.entries_of(path, number, &is - &was)?);
            come.extend(self.entries_of(path, number, &was - &is)?);
        }
        // Counting further occurrences needs those that stand, and no others, in the index.
        let lost = before.data.keys().any(|path| !after.contains_key(path));
        if self.key == Key::WholeRow && (lost || !(gone.is_empty() && come.is_empty())) {
            return Ok(false);
        }
        // A key whose row went may stand elsewhere by now: only what still points at the deleted row goes.
        sort_entries(&mut gone);
        let keys: Vec<KeyHash> = gone.iter().map(Entry::key).collect();
        let mut found = Vec::new();
        self.index.lookup(&keys, &mut found).map_err(|error| failed(self, error))?;
        let still = gone.iter().zip(found).filter(|(entry, found)| *found == entry.address());
        let removed = still.map(|(entry, _)| Entry::new(entry.key(), None)).collect();
        self.index.add_pending(removed).map_err(|error| failed(self, error))?;

        let mut new: Vec<&String> = after.keys().filter(|path| !before.data.contains_key(*path)).collect();
        new.sort_unstable();
        for path in new {
            if self.key == Key::WholeRow {
                self.add_occurrences_of(path, live)?;
                continue;
            }
            let number = self.index.add_file(path);
            let deleted = deleted_rows(&self.storage, path, &after[path])?;
            let mut all = Vec::new();
            self.read_keys(path, Rows::Except(deleted), |entries| {
                all.extend(entries.into_iter().map(|(key, row)| entry(key, number, row)));
                Ok(())
            })?;
            come.extend(all);
        }
        match self.already_there(&mut come, after)? {
            0 => {}
            some => return Err(duplicates(self, some)),
        }
        self.index.add_pending(come).map_err(|error| failed(self, error))?;
        let files: Vec<(u32, String)> = self.index.files().live().map(|(n, path)| (n, path.to_owned())).collect();
        let dead: Vec<u32> = files.into_iter().filter(|(_, path)| !after.contains_key(path)).map(|(n, _)| n).collect();
        self.index.apply(target, &dead).map_err(|error| failed(self, error))?;
        Ok(true)
    }

    /// Sorts rows that come by key. Returns how many keys stand more than once now: among these rows, or also in a live
    /// file that has stayed (protocol F6). The index could follow only one of such rows.
    fn already_there(&self, come: &mut Vec<Entry>, after: &HashMap<String, LiveFile>) -> Result<u64, Problem> {
        let dropped = sort_entries(come);
        let keys: Vec<KeyHash> = come.iter().map(Entry::key).collect();
        let mut found = Vec::new();
        self.index.lookup(&keys, &mut found).map_err(|error| index_problem(&self.table, &error))?;
        let stays =
            |address: &RowAddress| self.index.path_of(address.file).is_some_and(|path| after.contains_key(path));
        let twice = come.iter().zip(&found).filter(|(entry, found)| **found != entry.address());
        Ok((dropped + twice.filter(|(_, found)| found.as_ref().is_some_and(stays)).count()) as u64)
    }

    fn entries_of(&self, path: &str, number: u32, rows: RoaringBitmap) -> Result<Vec<Entry>, Problem> {
        let mut all = Vec::new();
        if !rows.is_empty() {
            self.read_keys(path, Rows::Only(rows), |entries| {
                all.extend(entries.into_iter().map(|(key, row)| entry(key, number, row)));
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// Keys and positions of some rows of a file, in pieces.
    fn read_keys(
        &self,
        path: &str,
        rows: Rows,
        mut take: impl FnMut(Vec<(KeyHash, u32)>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut piece = Vec::new();
        let mut reader = FileRows::open(&self.storage, path, &self.key_projection()?, rows)?;
        while let Some(batch) = reader.next_batch() {
            let (batch, positions) = batch?;
            let keys = match self.key {
                Key::WholeRow => {
                    let schema = batch.schema();
                    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                    hash_rows(&names, batch.columns())?
                }
                Key::Columns(_) | Key::None => hash_keys(batch.columns())?,
            };
            piece.extend(keys.into_iter().zip(positions));
            if piece.len() >= ENTRIES {
                take(std::mem::take(&mut piece))?;
            }
        }
        take(piece)
    }

    /// The columns that the key's hash is made of.
    fn key_projection(&self) -> Result<Projection, Problem> {
        match &self.key {
            Key::WholeRow => Projection::all(&self.files.iceberg),
            Key::Columns(_) | Key::None => {
                let mut ids: Vec<i32> = self.files.iceberg.identifier_field_ids().collect();
                // The hash is over the key's columns in the order in which they stand in the table.
                let fields = self.files.iceberg.as_struct().fields();
                ids.sort_by_key(|id| fields.iter().position(|field| field.id == *id));
                Projection::of(&self.files.iceberg, &ids)
            }
        }
    }
}

/// Rewrites of our own between two snapshots, oldest first, with their maps. None where the way is not known, or where one
/// has no map: then the ends are compared.
async fn rewrites_on_the_way(storage: &Storage, table: &LoadedTable, from: i64, to: i64) -> Vec<Followed> {
    let mut rewrites = Vec::new();
    let mut next = Some(to);
    while next != Some(from) {
        let Some(snapshot) = next.and_then(|id| table.metadata.snapshot_by_id(id)) else { return Vec::new() };
        if is_rewrite(snapshot) {
            let snapshot_id = snapshot.snapshot_id();
            match row_maps::fetch(storage, table, snapshot_id).await {
                Some(map) if rewrites.len() < MOST_REWRITES => rewrites.push(Followed { snapshot_id, map }),
                _ => return Vec::new(),
            }
        }
        next = snapshot.parent_snapshot_id();
    }
    rewrites.reverse();
    rewrites
}

/// Hashes and positions of some rows of a file, batch by batch.
pub(crate) fn read_key_hashes(
    storage: &Storage,
    path: &str,
    key: &Projection,
    rows: Rows,
    mut take: impl FnMut(Vec<KeyHash>, Vec<u32>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut reader = FileRows::open(storage, path, key, rows)?;
    while let Some(batch) = reader.next_batch() {
        let (batch, positions) = batch?;
        let columns: Vec<ArrayRef> = batch.columns().to_vec();
        take(hash_keys(&columns)?, positions)?;
    }
    Ok(())
}

fn entry(key: KeyHash, file: u32, row: u32) -> Entry {
    Entry::new(key, Some(RowAddress { file, row }))
}

fn duplicates(mirror: &Mirror, count: u64) -> Problem {
    let message = format!("{count} keys stand more than once in the mirror");
    let remedy = "keep the other engine from adding rows, and resync the table";
    Problem::halt_table("DUPLICATE_KEYS", mirror.table.name().to_string(), message, remedy)
}

impl Mirror {
    /// The live rows of a file of a table without a key, as further occurrences.
    fn add_occurrences_of(&mut self, path: &str, live: &LiveFiles) -> Result<(), Problem> {
        let number = self.index.add_file(path);
        let deleted = deleted_rows(&self.storage, path, &live.data[path])?;
        let mut all = Vec::new();
        self.read_keys(path, Rows::Except(deleted), |rows| {
            all.extend(rows);
            Ok(())
        })?;
        for rows in all.chunks(ENTRIES) {
            let mut entries = self.occurrence_entries(rows, number)?;
            sort_entries(&mut entries);
            self.index.add_pending(entries).map_err(|error| index_problem(&self.table, &error))?;
        }
        Ok(())
    }
}
