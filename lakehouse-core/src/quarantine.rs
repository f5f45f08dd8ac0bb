//! The quarantine of one source table: rows that could not be mapped, whole, with where they come from and why; append-only.
//!
//! It is committed before the history and the mirror that go without the row (reliability requirements Q2), so whatever
//! stands nowhere else stands here. Of a log its rows are skipped by the table's own lanes, as a history's are. A copy has
//! none: its rows have files of their own, by partition, and those of another attempt go when a new one begins to commit. So
//! the rows of the last copy stand here once, whatever was interrupted. How much it takes is in `quarantine/limit.rs`, which
//! rows nothing has replaced yet in `quarantine/standing.rs`.

mod limit;
mod standing;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow_schema::Field;
use iceberg::spec::{Literal, PartitionSpecRef, PrimitiveLiteral, Struct, TableMetadataRef};
use tracing::warn;

use crate::change::{ChangeChunk, LaneOrigins, Origin, Quarantined};
use crate::commit::properties::CopyProgress;
use crate::commit::{Advance, Committer, Counts, FileChange, LakeTable, TableCommit};
use crate::error::Problem;
use crate::lanes::LaneOffset;
use crate::mirror::take_rows;
use crate::planted::{Bug, Planted};
use crate::position::Position;
use crate::schema::{
    ACTOR, CODE, COLUMN, COMMITTED_AT, COPIED, IMAGE, KEY, LANE, OFFSET, OLD_IMAGE, OPERATION, ORDINAL, POSITION,
    REASON, TRANSACTION,
};
use crate::storage::Storage;
use crate::write::{DataFileWriter, FileSchema, NewFile, Partitioner, data_location};

pub use limit::{QUARANTINE_LIMIT, QuarantineLimit};
pub(crate) use standing::standing;
pub use standing::{KeyColumns, StandingRow};

pub(crate) struct Quarantine {
    pub table: LakeTable,
    limit: QuarantineLimit,
    target: QuarantineTarget,
    added: Vec<NewFile>,
    counts: Counted,
    planted: Planted,
}

#[derive(Default)]
struct Counted {
    /// Changes that the parts of the batch had for this table.
    decoded: u64,
    quarantined: u64,
}

/// What writes files of a quarantine, on any thread.
#[derive(Clone)]
pub(crate) struct QuarantineTarget {
    storage: Storage,
    files: FileSchema,
    spec: PartitionSpecRef,
    metadata: TableMetadataRef,
}

/// Rows on their way into files, one for each partition.
pub(crate) struct QuarantineWriter {
    target: QuarantineTarget,
    partitioner: Partitioner,
    open: HashMap<Struct, DataFileWriter>,
    rows: u64,
}

/// One row with where it comes from; a copy's has neither place nor lane.
struct Row<'a> {
    quarantined: &'a Quarantined,
    /// Microseconds since 1970: the source's, or of a copy when the row was read.
    committed_at: i64,
    origin: Option<&'a Origin>,
    lane: Option<(&'a LaneOrigins, usize)>,
}

impl Quarantine {
    pub(crate) fn open(
        storage: &Storage,
        table: LakeTable,
        limit: QuarantineLimit,
        planted: Planted,
    ) -> Result<Self, Problem> {
        let metadata = &table.loaded.metadata;
        let target = QuarantineTarget {
            storage: storage.clone(),
            files: FileSchema::new(Arc::clone(table.schema()))?,
            spec: Arc::clone(metadata.default_partition_spec()),
            metadata: Arc::clone(metadata),
        };
        Ok(Self { table, limit, target, added: Vec::new(), counts: Counted::default(), planted })
    }

    pub(crate) fn target(&self) -> QuarantineTarget {
        self.target.clone()
    }

    /// Writes what changes of one batch have for the quarantine; called once per part, with all changes of it.
    pub(crate) fn write_part(&mut self, chunks: &[ChangeChunk]) -> Result<(), Problem> {
        self.counts.decoded += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if self.planted.is(Bug::DropQuarantined) || chunks.iter().all(|chunk| chunk.quarantined.is_empty()) {
            return Ok(());
        }
        let mut writer = self.target.writer()?;
        for chunk in chunks {
            let rows = chunk.quarantined.iter().enumerate().filter_map(|(change, quarantined)| {
                let origin = &chunk.origins[change];
                Some(Row {
                    quarantined: quarantined.as_deref()?,
                    committed_at: origin.committed_at,
                    origin: Some(origin),
                    lane: chunk.lanes.as_deref().map(|lanes| (lanes, change)),
                })
            });
            writer.write(&rows.collect::<Vec<_>>())?;
        }
        self.counts.quarantined += writer.rows;
        self.added.extend(writer.finish()?);
        Ok(())
    }

    /// Closes the batch. `None` if it holds nothing for this table.
    ///
    /// # Errors
    /// `QUARANTINE_LIMIT`: nothing of the batch is committed for this table.
    pub(crate) fn finish(&mut self, to: Position) -> Result<Option<TableCommit>, Problem> {
        let (added, counted) = (std::mem::take(&mut self.added), std::mem::take(&mut self.counts));
        if added.is_empty() {
            return Ok(None);
        }
        let Counted { decoded, quarantined } = counted;
        self.limit.check(self.table.name(), self.table.live.rows(), quarantined, decoded)?;
        warn!(table = %self.table.name(), rows = quarantined, "rows cannot be mapped and stand in the quarantine");
        let counts = Counts { inserted: quarantined, decoded: Some(decoded), ..Counts::default() };
        Ok(Some(TableCommit::new(FileChange { added, ..FileChange::default() }, Advance::Changes { to }, counts)))
    }

    /// True if a chunk of this copy has come here that its mirror has not: what is read again may be another chunk.
    pub(crate) fn is_ahead_of(&self, mirror: &CopyProgress) -> bool {
        let ours = self.table.state.copy.as_ref();
        ours.is_some_and(|ours| ours.attempt == mirror.attempt && ours.chunks > mirror.chunks)
    }

    /// Before a chunk of a copy enters the mirror: `added` are its rows for here, `decoded` all that it was made of. What an
    /// earlier copy has left here goes.
    ///
    /// # Errors
    /// `QUARANTINE_LIMIT`, and those of the commit.
    pub(crate) async fn commit_copy(
        &mut self,
        committer: &Committer,
        progress: &CopyProgress,
        added: Vec<NewFile>,
        decoded: u64,
    ) -> Result<(), Problem> {
        let added = if self.planted.is(Bug::DropQuarantined) { Vec::new() } else { added };
        let of_this = self.table.state.copy.as_ref().is_some_and(|copy| copy.attempt == progress.attempt);
        let removed = if of_this { BTreeSet::new() } else { self.copied_files() };
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let rows = added.iter().map(|new| new.file.record_count()).sum();
        let gone: u64 = removed.iter().map(|path| self.table.live.data[path].records).sum();
        self.limit.check(self.table.name(), self.table.live.rows().saturating_sub(gone), rows, decoded)?;
        if rows > 0 {
            warn!(table = %self.table.name(), rows, "copied rows cannot be mapped and stand in the quarantine");
        }
        // The position stays, or comes with the mirror's.
        let progress = CopyProgress { done: false, resume: None, ..progress.clone() };
        let advance = Advance::Copy { progress, position: self.table.expected() };
        let counts = Counts { inserted: rows, decoded: Some(decoded), ..Counts::default() };
        let commit = TableCommit::new(FileChange { added, removed, ..FileChange::default() }, advance, counts);
        committer.commit(&mut self.table, commit).await.map(drop)
    }

    /// Files with rows that a copy has read: the first field of their partition says it.
    fn copied_files(&self) -> BTreeSet<String> {
        let copied = Literal::Primitive(PrimitiveLiteral::String(COPIED.to_owned()));
        let files = self.table.live.data.iter();
        files
            .filter(|(_, file)| file.partition.iter().next() == Some(Some(&copied)))
            .map(|(path, _)| path.clone())
            .collect()
    }
}

impl QuarantineTarget {
    pub(crate) fn writer(&self) -> Result<QuarantineWriter, Problem> {
        let partitioner = Partitioner::new(Arc::clone(&self.spec), &self.files.iceberg)?;
        Ok(QuarantineWriter { target: self.clone(), partitioner, open: HashMap::new(), rows: 0 })
    }
}

impl QuarantineWriter {
    /// Rows that a copy has read at `read_at`, in microseconds since 1970. Blocks on disk and compression.
    pub(crate) fn write_copied(&mut self, read_at: i64, rows: &[Quarantined]) -> Result<(), Problem> {
        let row = |quarantined| Row { quarantined, committed_at: read_at, origin: None, lane: None };
        self.write(&rows.iter().map(row).collect::<Vec<_>>())
    }

    fn write(&mut self, rows: &[Row<'_>]) -> Result<(), Problem> {
        if rows.is_empty() {
            return Ok(());
        }
        let QuarantineTarget { storage, files, metadata, .. } = &self.target;
        let columns = files.arrow.fields().iter().map(|field| column_of(rows, field)).collect();
        let batch = RecordBatch::try_new(Arc::clone(&files.arrow), columns).map_err(|error| {
            let message = format!("rows do not fit the quarantine: {error}");
            let remedy = "give the quarantine back the columns that it was created with; report this";
            Problem::halt_table("ROW_INVALID", "quarantine", message, remedy)
        })?;
        for part in self.partitioner.split(&batch)? {
            if !self.open.contains_key(&part.partition) {
                let location = data_location(metadata, &part.partition, &files.iceberg);
                let (partition, spec) = (part.partition.clone(), self.partitioner.spec_id());
                let writer = DataFileWriter::create(storage, &location, files, partition, spec)?;
                self.open.insert(part.partition.clone(), writer);
            }
            let writer = self.open.get_mut(&part.partition).expect("inserted above");
            match &part.rows {
                None => writer.write(&batch)?,
                Some(rows) => writer.write(&take_rows(&batch, rows)?)?,
            }
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Vec<NewFile>, Problem> {
        self.open.into_values().map(DataFileWriter::finish).collect()
    }
}

/// One column of the rows; one that another release has added is NULL.
fn column_of(rows: &[Row<'_>], field: &Field) -> ArrayRef {
    let text =
        |of: &dyn Fn(&Row<'_>) -> Option<String>| Arc::new(rows.iter().map(of).collect::<StringArray>()) as ArrayRef;
    let of_row = |of: fn(&Quarantined) -> &str| {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| of(row.quarantined)))) as ArrayRef
    };
    let offset = |(lanes, change): (&LaneOrigins, usize)| -> LaneOffset { lanes.offsets[change] };
    match field.name().as_str() {
        OPERATION => {
            let operation = |row: &Row<'_>| row.quarantined.operation.map_or(COPIED, |operation| operation.as_str());
            Arc::new(StringArray::from_iter_values(rows.iter().map(operation)))
        }
        POSITION => {
            let position = |row: &Row<'_>| row.origin.map(|origin| origin.commit.offset().cast_signed());
            Arc::new(rows.iter().map(position).collect::<Int64Array>())
        }
        ORDINAL => Arc::new(rows.iter().map(|row| row.origin.map(|origin| origin.ordinal)).collect::<Int32Array>()),
        TRANSACTION => {
            Arc::new(rows.iter().map(|row| row.origin.map(|origin| origin.transaction)).collect::<Int64Array>())
        }
        COMMITTED_AT => {
            let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.committed_at));
            Arc::new(times.with_timezone("+00:00"))
        }
        LANE => text(&|row| row.lane.map(|(lanes, change)| lanes.lanes[change].to_string())),
        OFFSET => text(&|row| row.lane.map(|lane| offset(lane).to_string())),
        ACTOR => text(&|row| row.lane.and_then(|(lanes, change)| lanes.actors[change].as_deref().map(str::to_owned))),
        KEY => of_row(|row| &row.key),
        IMAGE => of_row(|row| &row.image),
        OLD_IMAGE => text(&|row| row.quarantined.old_image.clone()),
        COLUMN => of_row(|row| &row.column),
        CODE => of_row(|row| &row.code),
        REASON => of_row(|row| &row.reason),
        _ => new_null_array(field.data_type(), rows.len()),
    }
}
