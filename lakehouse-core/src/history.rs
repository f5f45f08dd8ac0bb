//! The history of one source table: every change after the copy, append-only, partitioned by the day of the commit.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};
use iceberg::spec::{Schema, Struct};

use crate::change::{ChangeChunk, LaneOrigins};
use crate::commit::{Advance, Counts, FileChange, LakeTable, TableCommit};
use crate::error::Problem;
use crate::mirror::take_rows;
use crate::position::Position;
use crate::read::fit;
use crate::schema::{
    ACTOR, BEFORE, COMMITTED_AT, LANE, OFFSET, OPERATION, ORDINAL, POSITION, TRANSACTION, TableSchema,
    with_added_columns,
};
use crate::storage::Storage;
use crate::write::{DataFileWriter, FileSchema, NewFile, Partitioner, data_location};

pub(crate) struct History {
    pub table: LakeTable,
    storage: Storage,
    files: FileSchema,
    partitioner: Partitioner,
    added: Vec<NewFile>,
    rows: u64,
    schema: Option<Schema>,
}

impl History {
    pub(crate) fn open(storage: &Storage, table: LakeTable) -> Result<Self, Problem> {
        let files = FileSchema::new(Arc::clone(table.schema()))?;
        let spec = Arc::clone(table.loaded.metadata.default_partition_spec());
        let partitioner = Partitioner::new(spec, &files.iceberg)?;
        Ok(Self { table, storage: storage.clone(), files, partitioner, added: Vec::new(), rows: 0, schema: None })
    }

    /// Writes changes that belong to one batch; called once per part, after left-out values are filled in.
    pub(crate) fn write_part(&mut self, chunks: &[ChangeChunk]) -> Result<(), Problem> {
        for chunk in chunks {
            self.evolve(&chunk.schema)?;
        }
        let mut writers: HashMap<Struct, DataFileWriter> = HashMap::new();
        for chunk in chunks {
            let batch = self.rows_of(chunk)?;
            self.rows += batch.num_rows() as u64;
            for part in self.partitioner.split(&batch)? {
                if !writers.contains_key(&part.partition) {
                    let location = data_location(&self.table.loaded.metadata, &part.partition, &self.files.iceberg);
                    let (partition, spec) = (part.partition.clone(), self.partitioner.spec_id());
                    let writer = DataFileWriter::create(&self.storage, &location, &self.files, partition, spec)?;
                    writers.insert(part.partition.clone(), writer);
                }
                let writer = writers.get_mut(&part.partition).expect("inserted above");
                match &part.rows {
                    None => writer.write(&batch)?,
                    Some(rows) => writer.write(&take_rows(&batch, rows)?)?,
                }
            }
        }
        for (_, writer) in writers {
            self.added.push(writer.finish()?);
        }
        Ok(())
    }

    /// Closes the batch. `None` if it holds nothing for this table.
    pub(crate) fn finish(&mut self, to: Position) -> Option<TableCommit> {
        let added = std::mem::take(&mut self.added);
        let counts = Counts { inserted: std::mem::take(&mut self.rows), ..Counts::default() };
        let schema = self.schema.take();
        if added.is_empty() && schema.is_none() {
            return None;
        }
        let change = FileChange { added, ..FileChange::default() };
        let advance = Advance::Changes { to };
        Some(TableCommit { schema, ..TableCommit::new(change, advance, counts) })
    }

    fn evolve(&mut self, schema: &TableSchema) -> Result<(), Problem> {
        if schema.columns.iter().all(|column| self.files.iceberg.field_by_name(&column.name).is_some()) {
            return Ok(());
        }
        let last = self.files.iceberg.highest_field_id().max(self.table.loaded.metadata.last_column_id());
        if let Some(wider) = with_added_columns(&self.files.iceberg, &schema.history_schema()?, last)? {
            self.files = FileSchema::new(Arc::new(wider.clone()))?;
            self.schema = Some(wider);
        }
        Ok(())
    }

    fn rows_of(&self, chunk: &ChangeChunk) -> Result<RecordBatch, Problem> {
        let fields = self.files.arrow.fields();
        let columns: Result<Vec<ArrayRef>, Problem> = fields.iter().map(|field| column_of(chunk, field)).collect();
        RecordBatch::try_new(Arc::clone(&self.files.arrow), columns?).map_err(|error| {
            let message = format!("changes do not fit the history: {error}");
            Problem::halt_table("ROW_INVALID", &chunk.schema.source, message, "resync the table; report this")
        })
    }
}

fn column_of(chunk: &ChangeChunk, field: &Field) -> Result<ArrayRef, Problem> {
    let origins = || chunk.origins.iter();
    Ok(match field.name().as_str() {
        OPERATION => Arc::new(StringArray::from_iter_values(chunk.operations.iter().map(|op| op.as_str()))),
        POSITION => {
            Arc::new(Int64Array::from_iter_values(origins().map(|origin| origin.commit.offset().cast_signed())))
        }
        ORDINAL => Arc::new(Int32Array::from_iter_values(origins().map(|origin| origin.ordinal))),
        COMMITTED_AT => {
            let times = TimestampMicrosecondArray::from_iter_values(origins().map(|origin| origin.committed_at));
            Arc::new(times.with_timezone("+00:00"))
        }
        TRANSACTION => Arc::new(Int64Array::from_iter_values(origins().map(|origin| origin.transaction))),
        LANE => Arc::new(StringArray::from_iter_values(lane_origins(chunk)?.lanes.iter().map(|lane| &**lane))),
        OFFSET => Arc::new(StringArray::from_iter_values(lane_origins(chunk)?.offsets.iter().map(ToString::to_string))),
        ACTOR => Arc::new(StringArray::from_iter(lane_origins(chunk)?.actors.iter().map(Option::as_deref))),
        BEFORE => before_of(chunk, field)?,
        name => match chunk.schema.columns.iter().position(|column| column.name == name) {
            Some(place) => fit(&chunk.rows[place], field)?,
            None => new_null_array(field.data_type(), chunk.len()),
        },
    })
}

fn lane_origins(chunk: &ChangeChunk) -> Result<&LaneOrigins, Problem> {
    chunk.lanes.as_deref().ok_or_else(|| {
        let message = "changes came without their lanes";
        Problem::halt_table("ROW_INVALID", &chunk.schema.source, message, "resync the table; report this")
    })
}

fn before_of(chunk: &ChangeChunk, field: &Field) -> Result<ArrayRef, Problem> {
    let (Some(before), DataType::Struct(fields)) = (&chunk.before, field.data_type()) else {
        return Ok(new_null_array(field.data_type(), chunk.len()));
    };
    let column = |field: &Arc<Field>| {
        let sent = chunk.schema.before_columns.iter();
        let place = sent.map(|&column| &chunk.schema.columns[column].name).position(|name| name == field.name());
        match place {
            Some(place) => fit(&before.columns[place], field),
            None => Ok(new_null_array(field.data_type(), chunk.len())),
        }
    };
    let columns: Vec<ArrayRef> = fields.iter().map(column).collect::<Result<_, Problem>>()?;
    let known: NullBuffer = before.known.values().clone().into();
    let known = NullBuffer::union(Some(&known), before.known.nulls());
    Ok(Arc::new(StructArray::new(fields.clone(), columns, known)))
}
