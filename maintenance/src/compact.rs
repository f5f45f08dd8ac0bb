//! Rewrites the files of one group into fewer, without the rows that are deleted: in the order in which they stand, or
//! sorted.
//!
//! Rows go through in batches: memory holds one batch and the row group that is being encoded. What was read and what
//! stands in the new files must come to the same number of rows and the same sum of row hashes, else nothing is committed
//! (`maintenance.md` M-15).

mod sorted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::RecordBatch;
use iceberg::spec::SchemaRef;
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::commit::{ReplacedFile, Rewrite};
use lakehouse_core::compare::RowHasher;
use lakehouse_core::error::Problem;
use lakehouse_core::planted::{Bug, Planted};
use lakehouse_core::read::{FileRows, Projection, Rows, deleted_rows};
use lakehouse_core::row_map::{FileMap, Piece, Place, RowMap};
use lakehouse_core::storage::Storage;
use lakehouse_core::write::{DataFileWriter, FileSchema, NewFile, data_location};
use roaring::RoaringBitmap;

use crate::plan::{Group, Order, Targets};
use crate::view::{FileView, View};
use sorted::Sorter;

/// Rewrites a group as it stands in `view`. Blocks; reads and writes files, commits nothing.
///
/// # Errors
/// Those of the storage; `ROWS_DIFFER` where the new files do not hold what was read.
pub fn rewrite(
    storage: &Storage,
    view: &View,
    group: &Group,
    targets: &Targets,
    planted: Planted,
) -> Result<Rewrite, Problem> {
    let begun = Instant::now();
    let table = &view.table;
    let schema = Arc::clone(table.metadata.current_schema());
    let mut replaced = BTreeMap::new();
    for file in &group.files {
        let live = view.live.data.get(&file.path).ok_or_else(|| gone(table, &file.path))?;
        let deleted = deleted_rows(storage, &file.path, live)?;
        replaced.insert(file.path.clone(), ReplacedFile { deletes: file.deletes.clone(), deleted });
    }
    let mut outputs = Outputs::new(storage, table, &schema, group, targets, planted)?;
    let mut read = Checksum::new(&outputs.files)?;
    let files = match targets.order {
        Order::AsWritten => in_order(storage, group, &replaced, &mut outputs, &mut read)?,
        Order::Sorted(_) | Order::ZOrder(_) => {
            let sorter = Sorter::new(targets.order.clone(), &outputs.files.arrow, &table.name.to_string())?;
            in_other_order(storage, group, &replaced, sorter, &mut outputs, &mut read)?
        }
    };
    let mut map = RowMap { outputs: Vec::new(), files };
    let (projection, files) = (outputs.projection.clone(), outputs.files.clone());
    let outputs = outputs.finish()?;
    let mut written = Checksum::new(&files)?;
    for new in &outputs {
        let nothing = Rows::Except(RoaringBitmap::new());
        for batch in FileRows::open(storage, new.file.file_path(), &projection, nothing)? {
            written.add(&batch?)?;
        }
    }
    if (read.rows, read.sum) != (written.rows, written.sum) {
        return Err(differ(table, &read, &written));
    }
    map.outputs = outputs.iter().map(|new| new.file.file_path().to_owned()).collect();
    let head = table.metadata.current_snapshot().ok_or_else(|| gone(table, "its snapshot"))?;
    Ok(Rewrite {
        begun,
        planned_on: head.snapshot_id(),
        sequence_number: head.sequence_number(),
        epoch: view.state.epoch,
        replaced,
        outputs,
        map,
    })
}

/// Files as they come, and their rows as they stand.
fn in_order(
    storage: &Storage,
    group: &Group,
    replaced: &BTreeMap<String, ReplacedFile>,
    outputs: &mut Outputs<'_>,
    read: &mut Checksum,
) -> Result<BTreeMap<String, FileMap>, Problem> {
    let mut maps = BTreeMap::new();
    for file in &group.files {
        let deleted = &replaced[&file.path].deleted;
        let mut rows = FileRows::open(storage, &file.path, &outputs.projection, Rows::Except(deleted.clone()))?;
        let mut pieces = Pieces::default();
        while let Some(batch) = rows.next_batch() {
            let (batch, _) = batch?;
            read.add(&batch)?;
            pieces.add(outputs.write(&batch)?, batch.num_rows());
        }
        let dropped = within(deleted, file.records);
        maps.insert(file.path.clone(), FileMap::InOrder { dropped, pieces: pieces.0 });
    }
    Ok(maps)
}

/// All rows of the group, sorted.
fn in_other_order(
    storage: &Storage,
    group: &Group,
    replaced: &BTreeMap<String, ReplacedFile>,
    mut sorter: Sorter,
    outputs: &mut Outputs<'_>,
    read: &mut Checksum,
) -> Result<BTreeMap<String, FileMap>, Problem> {
    for (number, file) in (0..).zip(&group.files) {
        let deleted = replaced[&file.path].deleted.clone();
        let mut rows = FileRows::open(storage, &file.path, &outputs.projection, Rows::Except(deleted))?;
        while let Some(batch) = rows.next_batch() {
            let (batch, positions) = batch?;
            read.add(&batch)?;
            sorter.add(&batch, number, positions)?;
        }
    }
    let rows = |file: &FileView| usize::try_from(file.records).expect("a group's rows are listed in memory");
    let mut places: Vec<Vec<Option<Place>>> = group.files.iter().map(|file| vec![None; rows(file)]).collect();
    let mut merge = sorter.finish()?;
    while let Some(batch) = merge.next_batch()? {
        let Place { output, row } = outputs.write(&batch.rows)?;
        let origins = batch.files.values().iter().zip(batch.positions.values());
        for (n, (&file, &position)) in (0..).zip(origins) {
            places[file as usize][position as usize] = Some(Place { output, row: row + n });
        }
    }
    let paths = group.files.iter().map(|file| file.path.clone());
    Ok(paths.zip(places.into_iter().map(FileMap::Listed)).collect())
}

/// The new files of one group, one open at a time.
struct Outputs<'a> {
    storage: &'a Storage,
    table: &'a LoadedTable,
    group: &'a Group,
    file_bytes: usize,
    files: FileSchema,
    projection: Projection,
    open: Option<DataFileWriter>,
    done: Vec<NewFile>,
    planted: Planted,
}

impl<'a> Outputs<'a> {
    fn new(
        storage: &'a Storage,
        table: &'a LoadedTable,
        schema: &SchemaRef,
        group: &'a Group,
        targets: &Targets,
        planted: Planted,
    ) -> Result<Self, Problem> {
        let (files, projection) = (FileSchema::new(Arc::clone(schema))?, Projection::all(schema)?);
        let file_bytes = usize::try_from(targets.file_bytes).unwrap_or(usize::MAX);
        Ok(Self { storage, table, group, file_bytes, files, projection, open: None, done: Vec::new(), planted })
    }

    /// Where the first of these rows stands; the others follow it.
    fn write(&mut self, batch: &RecordBatch) -> Result<Place, Problem> {
        if self.open.as_ref().is_some_and(|open| open.estimated_bytes() >= self.file_bytes) {
            self.close()?;
        }
        if self.open.is_none() {
            let first = &self.group.files[0];
            let location = data_location(&self.table.metadata, &first.partition, &self.files.iceberg);
            let (partition, spec) = (first.partition.clone(), first.spec_id);
            self.open = Some(DataFileWriter::create(self.storage, &location, &self.files, partition, spec)?);
        }
        let writer = self.open.as_mut().expect("opened above");
        let row = u32::try_from(writer.rows()).expect("a file is closed long before it has 2^32 rows");
        match self.planted.is(Bug::RewriteLosesRow) {
            true => writer.write(&batch.slice(0, batch.num_rows().saturating_sub(1)))?,
            false => writer.write(batch)?,
        }
        let output = u32::try_from(self.done.len()).expect("a group has few outputs");
        Ok(Place { output, row })
    }

    fn close(&mut self) -> Result<(), Problem> {
        if let Some(open) = self.open.take() {
            self.done.push(open.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<NewFile>, Problem> {
        self.close()?;
        Ok(self.done)
    }
}

/// Where the survivors of one file have gone.
#[derive(Default)]
struct Pieces(Vec<Piece>, u32);

impl Pieces {
    /// Rows that stand together from `place` on; one piece as long as they follow each other.
    fn add(&mut self, place: Place, rows: usize) {
        let Self(pieces, first) = self;
        let follows = pieces.last().is_some_and(|last| {
            last.place.output == place.output && last.place.row + (*first - last.first) == place.row
        });
        if !follows {
            pieces.push(Piece { first: *first, place });
        }
        *first += u32::try_from(rows).expect("a batch has few rows");
    }
}

/// A number of rows, and the sum of their hashes.
struct Checksum {
    hasher: RowHasher,
    rows: u64,
    sum: u128,
}

impl Checksum {
    fn new(files: &FileSchema) -> Result<Self, Problem> {
        Ok(Self { hasher: RowHasher::new(Arc::clone(&files.arrow), &[])?, rows: 0, sum: 0 })
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<(), Problem> {
        self.rows += batch.num_rows() as u64;
        let hashes = self.hasher.hash(batch)?.rows;
        self.sum = hashes.into_iter().fold(self.sum, u128::wrapping_add);
        Ok(())
    }
}

/// A delete file of another engine may name rows that the file does not have.
fn within(deleted: &RoaringBitmap, records: u64) -> RoaringBitmap {
    let mut deleted = deleted.clone();
    if let Ok(records) = u32::try_from(records) {
        deleted.remove_range(records..);
    }
    deleted
}

fn gone(table: &LoadedTable, what: &str) -> Problem {
    Problem::retry("TABLE_MOVED", table.name.to_string(), format!("{what} is not live any more"))
}

fn differ(table: &LoadedTable, read: &Checksum, written: &Checksum) -> Problem {
    let message = format!(
        "a rewrite has read {} rows with the checksum {:032x} and written {} with {:032x}",
        read.rows, read.sum, written.rows, written.sum
    );
    let remedy = "nothing was committed; check memory and disk of this machine, and report this";
    Problem::halt("ROWS_DIFFER", table.name.to_string(), message, remedy)
}
