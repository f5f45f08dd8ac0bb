//! The copy: the first read of a source table, in chunks, each its own commit in a lane of its own (protocol A5).
//!
//! Workers write chunks in parallel without knowing of each other; one place commits them one after the other. The table
//! gets its position with the last chunk, and only then can it enter a cut.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use iceberg::spec::{PartitionSpecRef, Schema, Struct};
use uuid::Uuid;

use crate::commit::properties::CopyProgress;
use crate::commit::{Advance, Committer, Counts, FileChange, TableCommit};
use crate::error::Problem;
use crate::key_hash::hash_keys;
use crate::key_index::{BulkLoad, Entry, KeyHash, RowAddress};
use crate::mirror::{Mirror, data_location, index_problem, take_rows};
use crate::position::Boundary;
use crate::read::fit;
use crate::schema::{Key, TableSchema, with_added_columns};
use crate::storage::Storage;
use crate::write::{DataFileWriter, FileSchema, NewFile, Partitioner};

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
    schema: Arc<TableSchema>,
    committer: Committer,
    progress: CopyProgress,
    load: Option<BulkLoad>,
    rows: u64,
}

/// What a worker needs to write chunks on its own.
#[derive(Clone)]
pub struct ChunkTarget {
    storage: Storage,
    files: FileSchema,
    spec: PartitionSpecRef,
    last_column_id: i32,
    schema: Arc<TableSchema>,
    /// Folder and spec for file names.
    locate: Arc<dyn Fn(&Struct) -> String + Send + Sync>,
}

/// Rows of one chunk on their way into files.
pub struct ChunkWriter {
    target: ChunkTarget,
    partitioner: Partitioner,
    open: HashMap<Struct, OpenFile>,
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
    /// The schema with columns that the table has not yet: the same ids in every chunk that adds them.
    schema: Option<Schema>,
    pub rows: u64,
}

impl TableCopy {
    /// Begins anew: what an earlier attempt left goes with the first chunk.
    pub fn begin(mut mirror: Mirror, schema: Arc<TableSchema>, committer: Committer) -> Result<Self, Problem> {
        let cleared = mirror.index_mut().clear();
        cleared.map_err(|error| index_problem(&mirror.table, &error))?;
        let keyed = matches!(schema.key, Key::Columns(_));
        let load = keyed.then(|| mirror.index().bulk_load());
        let progress = CopyProgress { attempt: Uuid::new_v4().to_string(), chunks: 0, done: false };
        Ok(Self { mirror, schema, committer, progress, load, rows: 0 })
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
            locate: Arc::new(locate),
        }
    }

    /// Rows committed so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub async fn commit_chunk(&mut self, chunk: WrittenChunk) -> Result<(), Problem> {
        let progress = CopyProgress { chunks: self.progress.chunks + 1, ..self.progress.clone() };
        self.rows += chunk.rows;
        self.commit(chunk, progress, None).await
    }

    /// The last commit of the copy: the table stands at the copy's consistent point. Returns the mirror, ready to stream.
    pub async fn finish(mut self, consistent_point: Boundary) -> Result<Mirror, Problem> {
        let progress = CopyProgress { chunks: self.progress.chunks + 1, done: true, ..self.progress.clone() };
        self.commit(WrittenChunk::default(), progress, Some(consistent_point)).await?;
        self.mirror.follow_schema()?;
        let snapshot = self.mirror.table.loaded.snapshot_id().expect("the commit above has made a snapshot");
        if let Some(load) = self.load.take() {
            let mut mirror = self.mirror;
            // Merging the runs is pure computation on local files: not on the reactor.
            let task = tokio::task::spawn_blocking(move || {
                let loaded = load.finish(mirror.index_mut(), snapshot);
                let loaded = loaded.map_err(|error| index_problem(&mirror.table, &error))?;
                match loaded.duplicates {
                    0 => Ok(mirror),
                    some => Err(duplicate_keys(&mirror, some)),
                }
            });
            return task.await.unwrap_or_else(|_| Err(Problem::retry("INTERRUPTED", "", "the copy was interrupted")));
        }
        self.mirror.move_index().await?;
        Ok(self.mirror)
    }

    async fn commit(
        &mut self,
        chunk: WrittenChunk,
        progress: CopyProgress,
        reached: Option<Boundary>,
    ) -> Result<(), Problem> {
        let first = self.progress.chunks == 0;
        let digest = chunk.files.iter().flat_map(|(_, keys)| keys).fold(0u128, |sum, key| sum.wrapping_add(key.0));
        let counts = Counts { inserted: chunk.rows, digest, ..Counts::default() };
        self.add_to_index(&chunk).await?;
        let known = |schema: &Schema| schema.as_struct() == self.mirror.table.schema().as_struct();
        let schema = chunk.schema.filter(|schema| !known(schema));
        let added: Vec<NewFile> = chunk.files.into_iter().map(|(file, _)| file).collect();
        let something = self.mirror.table.live.totals().data_files > 0;
        let change = FileChange { added, remove_all: first && something, ..FileChange::default() };
        let position = reached.as_ref().map(|reached| reached.position);
        let advance = Advance::Copy { progress: progress.clone(), position };
        let lanes = reached.and_then(|reached| reached.lanes.of(&self.schema.source).cloned());
        let commit = TableCommit { change, advance, counts, schema, lanes };
        self.committer.commit(&mut self.mirror.table, commit).await?;
        self.progress = progress;
        Ok(())
    }

    /// Built beside the copy: sorted runs, merged once at the end.
    async fn add_to_index(&mut self, chunk: &WrittenChunk) -> Result<(), Problem> {
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
        Ok(ChunkWriter { target: self.clone(), partitioner, open: HashMap::new(), done: WrittenChunk::default() })
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

    pub fn finish(mut self) -> Result<WrittenChunk, Problem> {
        self.close_all()?;
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
