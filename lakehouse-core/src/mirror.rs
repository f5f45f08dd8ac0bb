//! The mirror of one source table: the current state, one row a key, kept by position deletes from the key index.
//!
//! `write_part` turns changes into data files and notes which rows they replace; `finish` says what to commit; `landed`
//! makes the key index follow. In between nothing is known to anybody else.

mod move_index;
mod occurrence;
mod unchanged;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow_schema::Field;
use arrow_select::take::take;
use iceberg::spec::{Schema, Struct};
use roaring::RoaringBitmap;
use tracing::warn;

use crate::batch::{KeyedChanges, Merged, numbered};
use crate::change::ChangeChunk;
use crate::commit::{Advance, Counts, FileChange, Followed, LakeTable, Landed, TableCommit};
use crate::error::Problem;
use crate::key_index::{Entry, IndexError, KeyIndex, Opened, RowAddress, Settings};
use crate::planted::{Bug, Planted};
use crate::position::Position;
use crate::read::fit;
use crate::schema::{Key, TableSchema, with_added_columns};
use crate::storage::Storage;
pub(crate) use move_index::read_key_hashes;

use crate::write::{DataFileWriter, FileSchema, NewFile, Partitioner, data_location};

pub(crate) struct Mirror {
    pub(crate) table: LakeTable,
    storage: Storage,
    /// What rows are written with: the table's schema, plus columns that the open batch adds.
    files: FileSchema,
    partitioner: Partitioner,
    index: KeyIndex,
    key: Key,
    open: OpenBatch,
    planted: Planted,
}

/// What the parts of a batch have written so far.
#[derive(Default)]
struct OpenBatch {
    added: Vec<NewFile>,
    /// Rows that this batch replaces or deletes, by file number.
    gone: BTreeMap<u32, RoaringBitmap>,
    /// After a truncate: files with lower numbers do not count any more.
    valid_from: Option<u32>,
    counts: Counts,
    schema: Option<Schema>,
}

impl Mirror {
    /// Opens the mirror with its key index, which is moved to the table's head or rebuilt.
    pub(crate) fn open(
        storage: &Storage,
        table: LakeTable,
        schema: &TableSchema,
        index_folder: &Path,
        sync: bool,
        planted: Planted,
    ) -> Result<Self, Problem> {
        let settings = Settings { sync, ..Settings::default() };
        let index = match KeyIndex::open(index_folder, settings).map_err(|error| index_problem(&table, &error))? {
            Opened::Ready(index) | Opened::Absent(index) | Opened::Damaged { index, .. } => index,
        };
        let files = FileSchema::new(Arc::clone(table.schema()))?;
        let spec = Arc::clone(table.loaded.metadata.default_partition_spec());
        let partitioner = Partitioner::new(spec, &files.iceberg)?;
        let open = OpenBatch::default();
        let key = schema.key.clone();
        let storage = storage.clone();
        Ok(Self { table, storage, files, partitioner, index, key, open, planted })
    }

    pub(crate) fn index(&self) -> &KeyIndex {
        &self.index
    }

    pub(crate) fn index_mut(&mut self) -> &mut KeyIndex {
        &mut self.index
    }

    /// Damage that shows only where the index is read would show for ever: emptied, it is built anew from the table by the
    /// incarnation that comes next.
    pub(crate) fn distrust_index(&mut self) {
        if let Err(error) = self.index.clear() {
            warn!(table = %self.table.name(), %error, "the damaged key index cannot be emptied");
        }
    }

    /// Before a copy: nothing that is known of the rows holds any more.
    pub(crate) fn forget(&mut self) -> Result<(), Problem> {
        self.open = OpenBatch::default();
        self.index.clear().map_err(|error| index_problem(&self.table, &error))
    }

    pub(crate) fn files(&self) -> &FileSchema {
        &self.files
    }

    /// First step of a part: adds columns that are new, and fills in values that the source left out.
    pub(crate) fn prepare(&mut self, chunks: &mut [ChangeChunk]) -> Result<(), Problem> {
        for chunk in chunks.iter() {
            self.evolve(&chunk.schema)?;
        }
        self.resolve_unchanged(chunks)
    }

    /// Writes prepared changes that belong to one batch; called once per part.
    pub(crate) fn write_part(&mut self, chunks: &[ChangeChunk]) -> Result<(), Problem> {
        let keyed = KeyedChanges::of(chunks, self.planted)?;
        if keyed.truncated {
            self.forget_all();
        }
        let merged = match self.key {
            Key::WholeRow => self.merge_occurrences(&keyed)?,
            Key::Columns(_) | Key::None => keyed.merge(),
        };
        self.replace_rows(&merged)?;
        let addresses = self.write_rows(chunks, &merged)?;
        let entry = |(key, last): (_, &Option<u32>)| Entry::new(key, last.map(|change| addresses[&change]));
        let entries = merged.keys.iter().copied().zip(&merged.last).map(entry).collect();
        self.index.add_pending(entries).map_err(|error| index_problem(&self.table, &error))
    }

    /// Adds the columns that the source has and the table has not.
    fn evolve(&mut self, schema: &TableSchema) -> Result<(), Problem> {
        if self.planted.is(Bug::StaleSchema) {
            return Ok(());
        }
        let known = |name: &str| self.files.iceberg.field_by_name(name).is_some();
        if schema.columns.iter().all(|column| known(&column.name)) {
            return Ok(());
        }
        let last = self.files.iceberg.highest_field_id().max(self.table.loaded.metadata.last_column_id());
        if let Some(wider) = with_added_columns(&self.files.iceberg, &schema.mirror_schema()?, last)? {
            self.files = FileSchema::new(Arc::new(wider.clone()))?;
            self.open.schema = Some(wider);
        }
        Ok(())
    }

    /// Rows are written with the table's schema as it stands.
    pub(crate) fn follow_schema(&mut self) -> Result<(), Problem> {
        self.files = FileSchema::new(Arc::clone(self.table.schema()))?;
        Ok(())
    }

    /// A truncate: nothing that was written before counts, neither committed nor in this batch.
    fn forget_all(&mut self) {
        self.open.added.clear();
        self.open.gone.clear();
        self.open.counts = Counts { deleted: self.table.live.rows(), ..Counts::default() };
        let next = self.index.files().live().map(|(number, _)| number + 1).max().unwrap_or(0);
        self.open.valid_from = Some(next.max(self.open.valid_from.unwrap_or(0)));
    }

    /// Finds the rows that stand in earlier files and notes them as gone.
    fn replace_rows(&mut self, merged: &Merged) -> Result<(), Problem> {
        let mut found = Vec::new();
        self.index.lookup(&merged.keys, &mut found).map_err(|error| index_problem(&self.table, &error))?;
        for ((address, last), key) in found.into_iter().zip(&merged.last).zip(&merged.keys) {
            let address = address.filter(|address| address.file >= self.open.valid_from.unwrap_or(0));
            let counts = &mut self.open.counts;
            match (address, last) {
                (Some(_), Some(_)) => counts.updated += 1,
                (None, Some(_)) => counts.inserted += 1,
                (Some(_), None) => counts.deleted += 1,
                (None, None) => {}
            }
            if last.is_some() {
                counts.digest = counts.digest.wrapping_add(key.0);
            }
            if let Some(RowAddress { file, row }) = address
                && !(self.planted.is(Bug::KeepOldRow) && last.is_some())
            {
                self.open.gone.entry(file).or_default().insert(row);
            }
        }
        Ok(())
    }

    /// Writes the last row of each key, in the order of the changes. Returns where each change's row stands.
    fn write_rows(&mut self, chunks: &[ChangeChunk], merged: &Merged) -> Result<HashMap<u32, RowAddress>, Problem> {
        let mut kept: Vec<u32> = merged.last.iter().flatten().copied().collect();
        kept.sort_unstable();
        let mut addresses = HashMap::with_capacity(kept.len());
        let mut writers: HashMap<Struct, (u32, DataFileWriter)> = HashMap::new();
        let mut rest = kept.as_slice();
        for (chunk, numbers) in numbered(chunks) {
            let (ours, behind) = rest.split_at(rest.partition_point(|&number| number < numbers.end));
            rest = behind;
            if ours.is_empty() {
                continue;
            }
            let batch = rows_of(chunk, ours, numbers.start, &self.files)?;
            for part in self.partitioner.split(&batch)? {
                if !writers.contains_key(&part.partition) {
                    let writer = self.new_file(part.partition.clone())?;
                    writers.insert(part.partition.clone(), writer);
                }
                let (file, writer) = writers.get_mut(&part.partition).expect("inserted above");
                let first = writer.rows();
                let row = |n: usize| u32::try_from(first + n as u64).expect("a part is bounded by its memory");
                match &part.rows {
                    None => {
                        writer.write(&batch)?;
                        addresses.extend(ours.iter().enumerate().map(|(n, &change)| (change, address(*file, row(n)))));
                    }
                    Some(rows) => {
                        writer.write(&take_rows(&batch, rows)?)?;
                        let changes = rows.values().iter().map(|&place| ours[place as usize]);
                        addresses.extend(changes.enumerate().map(|(n, change)| (change, address(*file, row(n)))));
                    }
                }
            }
        }
        for (_, (_, writer)) in writers {
            self.open.added.push(writer.finish()?);
        }
        Ok(addresses)
    }

    fn new_file(&mut self, partition: Struct) -> Result<(u32, DataFileWriter), Problem> {
        let location = data_location(&self.table.loaded.metadata, &partition, &self.files.iceberg);
        let writer =
            DataFileWriter::create(&self.storage, &location, &self.files, partition, self.partitioner.spec_id())?;
        Ok((self.index.add_file(&location), writer))
    }

    /// Closes the batch. `None` if it changes nothing here.
    pub(crate) fn finish(&mut self, to: Position) -> Result<Option<TableCommit>, Problem> {
        let open = std::mem::take(&mut self.open);
        let remove_all = open.valid_from.is_some();
        if open.added.is_empty() && open.gone.is_empty() && !remove_all && open.schema.is_none() {
            self.index.discard_pending();
            return Ok(None);
        }
        let mut gone = BTreeMap::new();
        for (number, rows) in open.gone {
            let path = self.index.path_of(number).ok_or_else(|| {
                let message = format!("the key index names file {number}, which it does not know");
                Problem::retry("INDEX_STALE", self.table.name().to_string(), message)
            })?;
            gone.insert(path.to_owned(), rows);
        }
        let change = FileChange { added: open.added, remove_all, ..FileChange::default() };
        let (counts, schema) = (open.counts, open.schema);
        let advance = Advance::Changes { to };
        Ok(Some(TableCommit { gone, schema, ..TableCommit::new(change, advance, counts) }))
    }

    /// The commit has landed: the key index follows, first what our own rewrites had moved when it did, then its rows.
    pub(crate) fn landed(&mut self, landed: &Landed, change: &FileChange) -> Result<(), Problem> {
        let failed = |table: &LakeTable, error| index_problem(table, &error);
        for Followed { snapshot_id, map } in &landed.followed {
            self.index.follow_rewrite(*snapshot_id, map).map_err(|error| failed(&self.table, error))?;
        }
        let live = &self.table.live.data;
        let dead: Vec<u32> = match change.remove_all {
            false => Vec::new(),
            true => {
                let gone = self.index.files().live().filter(|(_, path)| !live.contains_key(*path));
                gone.map(|(number, _)| number).collect()
            }
        };
        self.index.apply(landed.snapshot_id, &dead).map_err(|error| failed(&self.table, error))
    }
}

fn address(file: u32, row: u32) -> RowAddress {
    RowAddress { file, row }
}

/// The after-images of some changes of a chunk as rows of the file's schema.
fn rows_of(chunk: &ChangeChunk, changes: &[u32], start: u32, files: &FileSchema) -> Result<RecordBatch, Problem> {
    let all = columns_of(chunk, files)?;
    let schema = Arc::clone(&files.arrow);
    let invalid = |error: arrow_schema::ArrowError| {
        let remedy = "resync the table; report this";
        Problem::halt_table("ROW_INVALID", &chunk.schema.source, format!("rows do not fit the mirror: {error}"), remedy)
    };
    let columns = match changes.len() == chunk.len() {
        true => all,
        false => {
            let rows = UInt32Array::from_iter_values(changes.iter().map(|change| change - start));
            let taken = all.iter().map(|column| take(column, &rows, None));
            taken.collect::<Result<_, _>>().map_err(invalid)?
        }
    };
    RecordBatch::try_new(schema, columns).map_err(invalid)
}

/// A chunk's columns in the order of the file's schema, found by name; a column that it lacks is NULL.
fn columns_of(chunk: &ChangeChunk, files: &FileSchema) -> Result<Vec<ArrayRef>, Problem> {
    let column = |field: &Arc<Field>| {
        let place = chunk.schema.columns.iter().position(|column| column.name == *field.name());
        match place {
            Some(place) => fit(&chunk.rows[place], field),
            None => Ok(new_null_array(field.data_type(), chunk.len())),
        }
    };
    files.arrow.fields().iter().map(column).collect()
}

pub(crate) fn take_rows(batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch, Problem> {
    let taken: Result<Vec<ArrayRef>, _> = batch.columns().iter().map(|column| take(column, rows, None)).collect();
    let taken = taken.and_then(|columns| RecordBatch::try_new(batch.schema(), columns));
    taken.map_err(|error| Problem::halt("PARTITION", "", error.to_string(), "report this"))
}

pub(crate) fn index_problem(table: &LakeTable, error: &IndexError) -> Problem {
    let subject = table.name().to_string();
    match error {
        IndexError::Io { source, .. } => crate::storage::file_problem(&subject, "kept in the key index", source),
        IndexError::InUse => {
            let remedy = "stop the other process, or give this one another `local_state`";
            Problem::halt("LOCAL_STATE_IN_USE", subject, "another process holds the key index", remedy)
        }
        other => Problem::retry("INDEX_DAMAGED", subject, other.to_string()),
    }
}
