//! The copy: the first read of a source table, in chunks, each its own commit in a lane of its own (protocol A5).
//!
//! Workers write chunks in parallel without knowing of each other; one place commits them one after the other. The table
//! gets its position with the last chunk, and only then can it enter a cut. A resync is a copy of a table that has one: its
//! chunks are held back, and one commit puts all of them in place of what stood there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, RecordBatch};
use iceberg::spec::{PartitionSpecRef, Schema, Struct};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::change::Quarantined;
use crate::commit::properties::CopyProgress;
use crate::commit::{Advance, Committer, Counts, FileChange, OLDEST_FILE, TableCommit, without_traces};
use crate::error::Problem;
use crate::key_hash::hash_keys;
use crate::key_index::{BulkLoad, Entry, KeyHash, RowAddress};
use crate::lanes::TableLanes;
use crate::mirror::{Mirror, index_problem, take_rows};
use crate::position::Boundary;
use crate::quarantine::{Quarantine, QuarantineTarget, QuarantineWriter};
use crate::read::fit;
use crate::schema::{Key, TableSchema, with_added_columns};
use crate::storage::Storage;
use crate::write::{DataFileWriter, FileSchema, NewFile, Partitioner, data_location};

/// A data file is closed when it has grown to about this size.
const FILE_BYTES: usize = 256 << 20;
/// Data files that one chunk has open at the same time; partitions beyond close the largest.
const OPEN_FILES: usize = 32;

/// Told how the copy gets on.
pub trait CopyObserver: Send + Sync {
    fn begin(&self, table: &str, bytes_estimated: u64);
    fn advance(&self, table: &str, rows: u64, bytes: u64);
    fn done(&self, table: &str);
}

/// One attempt to copy one table into its mirror.
pub struct TableCopy {
    mirror: Mirror,
    quarantine: Option<Quarantine>,
    schema: Arc<TableSchema>,
    committer: Committer,
    progress: CopyProgress,
    /// `None` where the index is built from the table at the end: of a table without a key, and of a copy that was resumed.
    load: Option<BulkLoad>,
    rows: u64,
    held: Held,
    /// Where the lanes of the table's log are followed from, where each chunk says so.
    noted: Option<Arc<TableLanes>>,
    /// Of a resync; `None` where each chunk is committed as it comes.
    aside: Option<Aside>,
}

/// A resync holds its chunks back until all of it is copied.
struct Aside {
    since: Instant,
    /// How long tags of a rollback stay on the table that it takes the place of.
    rollback_tags: Duration,
}

/// Chunks that no snapshot knows yet and whose keys are in the index.
#[derive(Default)]
struct Held {
    files: Vec<NewFile>,
    quarantined: Vec<NewFile>,
    schema: Option<Schema>,
    counts: Counts,
}

/// What a worker needs to write chunks on its own.
#[derive(Clone)]
pub struct ChunkTarget {
    storage: Storage,
    files: FileSchema,
    spec: PartitionSpecRef,
    last_column_id: i32,
    schema: Arc<TableSchema>,
    quarantine: Option<QuarantineTarget>,
    /// Folder and spec for file names.
    locate: Arc<dyn Fn(&Struct) -> String + Send + Sync>,
}

/// Rows of one chunk on their way into files.
pub struct ChunkWriter {
    target: ChunkTarget,
    partitioner: Partitioner,
    open: HashMap<Struct, OpenFile>,
    quarantine: Option<QuarantineWriter>,
    done: WrittenChunk,
}

struct OpenFile {
    writer: DataFileWriter,
    keys: Vec<KeyHash>,
}

/// A chunk whose files are written and that no snapshot knows yet.
#[derive(Default)]
pub struct WrittenChunk {
    /// Each file with the key hashes of its rows, in row order.
    files: Vec<(NewFile, Vec<KeyHash>)>,
    /// With the rows that could not be mapped.
    quarantined: Vec<NewFile>,
    /// The schema with columns that the table has not yet: the same ids in every chunk that adds them.
    schema: Option<Schema>,
    pub rows: u64,
}

impl TableCopy {
    /// Begins anew: what an earlier attempt left goes with the first chunk.
    pub(crate) fn begin(
        mirror: Mirror,
        quarantine: Option<Quarantine>,
        schema: Arc<TableSchema>,
        committer: Committer,
    ) -> Result<Self, Problem> {
        Self::new(mirror, quarantine, schema, committer, None)
    }

    /// Begins a resync: readers see what stands there until all of it is copied.
    pub(crate) fn begin_aside(
        mirror: Mirror,
        quarantine: Option<Quarantine>,
        schema: Arc<TableSchema>,
        committer: Committer,
        rollback_tags: Duration,
    ) -> Result<Self, Problem> {
        let aside = Aside { since: Instant::now(), rollback_tags };
        Self::new(mirror, quarantine, schema, committer, Some(aside))
    }

    fn new(
        mut mirror: Mirror,
        quarantine: Option<Quarantine>,
        schema: Arc<TableSchema>,
        committer: Committer,
        aside: Option<Aside>,
    ) -> Result<Self, Problem> {
        mirror.forget()?;
        let keyed = matches!(schema.key, Key::Columns(_));
        let load = keyed.then(|| mirror.index().bulk_load());
        let attempt = Uuid::new_v4().to_string();
        let progress = CopyProgress { attempt, chunks: 0, done: false, resume: None };
        let held = Held::default();
        Ok(Self { mirror, quarantine, schema, committer, progress, load, rows: 0, held, noted: None, aside })
    }

    /// Goes on with an attempt that an earlier incarnation has begun: its chunks stay, and the next one follows them.
    pub(crate) fn resume(
        mut mirror: Mirror,
        quarantine: Option<Quarantine>,
        schema: Arc<TableSchema>,
        committer: Committer,
    ) -> Result<Self, Problem> {
        // What the index knew of those chunks ended with that incarnation; it is built from the table when all is there.
        mirror.forget()?;
        let progress = mirror.table.state.copy.clone().expect("only an unfinished copy is resumed");
        let (rows, held, noted) = (mirror.table.live.rows(), Held::default(), mirror.table.state.lanes.clone());
        let (load, aside) = (None, None);
        Ok(Self { mirror, quarantine, schema, committer, progress, load, rows, held, noted, aside })
    }

    /// Every chunk from now on says where the lanes of the table's log are followed from, so that the copy can be resumed:
    /// they were noted before its first row was read, and must stay those (D4).
    pub fn note_lanes(&mut self, lanes: Arc<TableLanes>) {
        self.noted = Some(lanes);
    }

    pub fn target(&self) -> ChunkTarget {
        let table = &self.mirror.table;
        let metadata = Arc::clone(&table.loaded.metadata);
        let files = self.mirror.files().clone();
        let iceberg = Arc::clone(&files.iceberg);
        let locate = move |partition: &Struct| data_location(&metadata, partition, &iceberg);
        ChunkTarget {
            storage: self.committer.storage.clone(),
            files,
            spec: Arc::clone(table.loaded.metadata.default_partition_spec()),
            last_column_id: table.loaded.metadata.last_column_id(),
            schema: Arc::clone(&self.schema),
            quarantine: self.quarantine.as_ref().map(Quarantine::target),
            locate: Arc::new(locate),
        }
    }

    /// Rows taken in so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// True if this copy takes the place of one that the table has.
    pub fn is_resync(&self) -> bool {
        self.aside.is_some()
    }

    /// Runs jobs that write a chunk each, `workers` of them at the same time, and takes in each chunk as it comes.
    pub async fn commit_chunks<J>(&mut self, workers: usize, jobs: impl IntoIterator<Item = J>) -> Result<(), Problem>
    where
        J: Future<Output = Result<WrittenChunk, Problem>> + Send + 'static,
    {
        let mut jobs = jobs.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < workers.max(1)
                && let Some(job) = jobs.next()
            {
                running.spawn(job);
            }
            let Some(written) = running.join_next().await else { return Ok(()) };
            let interrupted = |_| Err(Problem::retry("INTERRUPTED", &self.schema.source, "the copy was interrupted"));
            let chunk = written.unwrap_or_else(interrupted)?;
            self.commit_chunk(chunk).await?;
        }
    }

    pub async fn commit_chunk(&mut self, chunk: WrittenChunk) -> Result<(), Problem> {
        self.commit_resumable(chunk, None).await
    }

    /// The same; `resume` says where the source goes on once this chunk has landed. A resync is never resumed: until it is
    /// done, no snapshot knows its chunks.
    pub async fn commit_resumable(&mut self, chunk: WrittenChunk, resume: Option<String>) -> Result<(), Problem> {
        self.hold(chunk)?;
        match self.is_resync() {
            true => Ok(()),
            false => self.commit(None, resume).await,
        }
    }

    /// The last commit of the copy: the table stands at the copy's consistent point. Returns the mirror, ready to
    /// stream, and the quarantine, which gets its position behind it.
    pub(crate) async fn finish(mut self, consistent_point: Boundary) -> Result<(Mirror, Option<Quarantine>), Problem> {
        if self.aside.as_ref().is_some_and(|aside| aside.since.elapsed() >= OLDEST_FILE) {
            let message = "the copy has taken more than 18 hours, its first files may have been removed as orphans";
            return Err(Problem::retry("RESYNC_TOO_LONG", &self.schema.source, message));
        }
        self.commit(Some(consistent_point), None).await?;
        self.mirror.follow_schema()?;
        let snapshot = self.mirror.table.loaded.snapshot_id().expect("the commit above has made a snapshot");
        let (mut mirror, quarantine, load) = (self.mirror, self.quarantine, self.load.take());
        // Merging runs, or reading the keys of what stands there, is work for a thread of its own.
        let task = tokio::task::spawn_blocking(move || {
            let Some(load) = load else {
                mirror.rebuild_index(snapshot)?;
                return Ok(mirror);
            };
            let loaded = load.finish(mirror.index_mut(), snapshot);
            let loaded = loaded.map_err(|error| index_problem(&mirror.table, &error))?;
            match loaded.duplicates {
                0 => Ok(mirror),
                some => Err(duplicate_keys(&mirror, some)),
            }
        });
        let mirror = task.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", "", "the copy was interrupted")));
        Ok((mirror?, quarantine))
    }

    fn hold(&mut self, chunk: WrittenChunk) -> Result<(), Problem> {
        self.add_to_index(&chunk)?;
        self.rows += chunk.rows;
        let Held { files, quarantined, schema, counts } = &mut self.held;
        quarantined.extend(chunk.quarantined);
        let sum = |sum: u128, key: &KeyHash| sum.wrapping_add(key.0);
        counts.inserted += chunk.rows;
        counts.digest = chunk.files.iter().flat_map(|(_, keys)| keys).fold(counts.digest, sum);
        files.extend(chunk.files.into_iter().map(|(file, _)| file));
        match (&schema, chunk.schema) {
            (Some(known), Some(new)) if known.as_struct() != new.as_struct() => {
                let message = "the table's columns have changed while it was copied";
                Err(Problem::retry("SCHEMA_CHANGED", &self.schema.source, message))
            }
            (None, new) => {
                *schema = new;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What is held goes into the table; with `reached` the copy is done.
    async fn commit(&mut self, reached: Option<Boundary>, resume: Option<String>) -> Result<(), Problem> {
        let first = self.progress.chunks == 0;
        let (attempt, chunks) = (self.progress.attempt.clone(), self.progress.chunks + 1);
        let progress = CopyProgress { attempt, chunks, done: reached.is_some(), resume };
        let Held { files: added, quarantined, schema, counts } = std::mem::take(&mut self.held);
        if let Some(quarantine) = &mut self.quarantine {
            let decoded = counts.inserted + quarantined.iter().map(|new| new.file.record_count()).sum::<u64>();
            quarantine.commit_copy(&self.committer, &progress, quarantined, decoded).await?;
        }
        let known = |schema: &Schema| schema.as_struct() == self.mirror.table.schema().as_struct();
        let schema = schema.filter(|schema| !known(schema));
        let something = self.mirror.table.live.totals().data_files > 0;
        let change = FileChange { added, remove_all: first && something, ..FileChange::default() };
        let position = reached.as_ref().map(|reached| reached.position);
        let advance = Advance::Copy { progress: progress.clone(), position };
        let lanes = match &reached {
            Some(reached) => reached.lanes.of(&self.schema.source).cloned(),
            None => self.noted.clone(),
        };
        let beside = match (&reached, &self.aside) {
            (Some(_), Some(aside)) => without_traces(&self.mirror.table.loaded, aside.rollback_tags)?,
            _ => Vec::new(),
        };
        let commit = TableCommit { schema, lanes, beside, ..TableCommit::new(change, advance, counts) };
        self.committer.commit(&mut self.mirror.table, commit).await?;
        self.progress = progress;
        Ok(())
    }

    /// Built beside the copy: sorted runs, merged once at the end.
    fn add_to_index(&mut self, chunk: &WrittenChunk) -> Result<(), Problem> {
        let Some(load) = &self.load else { return Ok(()) };
        let mut entries = Vec::new();
        for (new, keys) in &chunk.files {
            let file = self.mirror.index_mut().add_file(new.file.file_path());
            entries.extend((0..).zip(keys).map(|(row, key)| Entry::new(*key, Some(RowAddress { file, row }))));
        }
        tokio::task::block_in_place(|| load.add(entries)).map_err(|error| index_problem(&self.mirror.table, &error))
    }
}

impl ChunkTarget {
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    pub fn writer(&self) -> Result<ChunkWriter, Problem> {
        let partitioner = Partitioner::new(Arc::clone(&self.spec), &self.files.iceberg)?;
        let (target, done) = (self.clone(), WrittenChunk::default());
        Ok(ChunkWriter { target, partitioner, open: HashMap::new(), quarantine: None, done })
    }
}

impl ChunkWriter {
    /// Writes rows whose columns are those of `schema`, in its order. Blocks on disk and compression.
    pub fn write(&mut self, schema: &TableSchema, columns: &[ArrayRef]) -> Result<(), Problem> {
        self.evolve(schema)?;
        let files = &self.target.files;
        let names = schema.columns.iter().map(|column| column.name.as_str());
        let by_name: HashMap<&str, &ArrayRef> = names.zip(columns).collect();
        let fitted = files.arrow.fields().iter().map(|field| match by_name.get(field.name().as_str()) {
            Some(column) => fit(column, field),
            None => Ok(arrow_array::new_null_array(field.data_type(), columns.first().map_or(0, |c| c.len()))),
        });
        let batch = RecordBatch::try_new(Arc::clone(&files.arrow), fitted.collect::<Result<_, _>>()?);
        let batch = batch.map_err(|error| {
            let message = format!("copied rows do not fit the mirror: {error}");
            Problem::halt_table("ROW_INVALID", &self.target.schema.source, message, "report this")
        })?;
        let key: Vec<ArrayRef> = self.target.schema.key_columns().iter().map(|&c| columns[c].clone()).collect();
        let keys = match self.target.schema.key {
            Key::Columns(_) => hash_keys(&key)?,
            Key::WholeRow | Key::None => Vec::new(),
        };
        self.done.rows += batch.num_rows() as u64;
        for part in self.partitioner.split(&batch)? {
            let file = self.open_file(&part.partition)?;
            match &part.rows {
                None => {
                    file.writer.write(&batch)?;
                    file.keys.extend_from_slice(&keys);
                }
                Some(rows) => {
                    file.writer.write(&take_rows(&batch, rows)?)?;
                    if !keys.is_empty() {
                        file.keys.extend(rows.values().iter().map(|&row| keys[row as usize]));
                    }
                }
            }
            if file.writer.estimated_bytes() > FILE_BYTES {
                self.close(&part.partition)?;
            }
        }
        Ok(())
    }

    /// Writes rows that could not be mapped, read at `read_at` in microseconds since 1970, for the table's quarantine.
    ///
    /// # Errors
    /// Those of the disk, and where the table's schema says of no quarantine.
    pub fn quarantine(&mut self, read_at: i64, rows: &[Quarantined]) -> Result<(), Problem> {
        let Some(target) = &self.target.quarantine else {
            let (table, message) = (&self.target.schema.source, "rows came for a quarantine that the table has not");
            return Err(Problem::halt_table("ROW_INVALID", table, message, "report this"));
        };
        let writer = match &mut self.quarantine {
            Some(writer) => writer,
            None => self.quarantine.insert(target.writer()?),
        };
        writer.write_copied(read_at, rows)
    }

    pub fn finish(mut self) -> Result<WrittenChunk, Problem> {
        self.close_all()?;
        if let Some(writer) = self.quarantine.take() {
            self.done.quarantined = writer.finish()?;
        }
        Ok(self.done)
    }

    /// Files hold rows of one schema: a column that is new closes those that are open.
    fn evolve(&mut self, schema: &TableSchema) -> Result<(), Problem> {
        let iceberg = &self.target.files.iceberg;
        if schema.columns.iter().all(|column| iceberg.field_by_name(&column.name).is_some()) {
            return Ok(());
        }
        let last = iceberg.highest_field_id().max(self.target.last_column_id);
        if let Some(wider) = with_added_columns(iceberg, &schema.mirror_schema()?, last)? {
            self.close_all()?;
            self.target.files = FileSchema::new(Arc::new(wider.clone()))?;
            self.done.schema = Some(wider);
        }
        Ok(())
    }

    fn close_all(&mut self) -> Result<(), Problem> {
        let partitions: Vec<Struct> = self.open.keys().cloned().collect();
        partitions.iter().try_for_each(|partition| self.close(partition))
    }

    fn open_file(&mut self, partition: &Struct) -> Result<&mut OpenFile, Problem> {
        if !self.open.contains_key(partition) {
            if self.open.len() >= OPEN_FILES {
                let largest = self.open.iter().max_by_key(|(_, file)| file.writer.rows());
                let largest = largest.map(|(partition, _)| partition.clone());
                largest.map_or(Ok(()), |partition| self.close(&partition))?;
            }
            let location = (self.target.locate)(partition);
            let ChunkTarget { storage, files, .. } = &self.target;
            let spec = self.partitioner.spec_id();
            let writer = DataFileWriter::create(storage, &location, files, partition.clone(), spec)?;
            self.open.insert(partition.clone(), OpenFile { writer, keys: Vec::new() });
        }
        Ok(self.open.get_mut(partition).expect("inserted above"))
    }

    fn close(&mut self, partition: &Struct) -> Result<(), Problem> {
        if let Some(file) = self.open.remove(partition) {
            self.done.files.push((file.writer.finish()?, file.keys));
        }
        Ok(())
    }
}

fn duplicate_keys(mirror: &Mirror, count: u64) -> Problem {
    let message = format!("{count} keys stood more than once in the copy");
    let remedy = "the key that was configured is not unique at the source: correct it and resync the table";
    Problem::halt_table("DUPLICATE_KEYS", mirror.table.name().to_string(), message, remedy)
}

/// Where the key index of a mirror stands under the pipeline's local state.
pub fn index_folder(local_state: &std::path::Path, mirror: &crate::schema::TableName) -> PathBuf {
    local_state.join("key-index").join(mirror.to_string())
}
