//! Records of one table's stream, collected into a chunk.

use std::sync::Arc;

use lakehouse_core::change::{ChangeChunk, LaneOrigins, Operation, Origin};
use lakehouse_core::error::Problem;
use lakehouse_core::lanes::LaneOffset;
use lakehouse_core::schema::TableSchema;

use crate::items::{ItemBuilder, ItemSchema, Rows};
use crate::value::Item;

/// One change as a record tells it.
pub(crate) struct Change {
    pub(crate) operation: Operation,
    pub(crate) origin: Origin,
    pub(crate) shard: Arc<str>,
    pub(crate) offset: LaneOffset,
    /// Who made it, if not a client.
    pub(crate) actor: Option<Arc<str>>,
    /// The row that stands afterwards; of a delete the one that is gone, or at least its key.
    pub(crate) row: Item,
    /// The row that stood before an update.
    pub(crate) old: Option<Item>,
}

pub(crate) struct ChunkBuilder {
    schema: Arc<TableSchema>,
    operations: Vec<Operation>,
    origins: Vec<Origin>,
    lanes: LaneOrigins,
    rows: ItemBuilder,
}

impl ChunkBuilder {
    pub(crate) fn new(items: &ItemSchema) -> Self {
        Self {
            schema: Arc::clone(items.table()),
            operations: Vec::new(),
            origins: Vec::new(),
            lanes: LaneOrigins::default(),
            rows: items.builder(),
        }
    }

    pub(crate) fn table(&self) -> &str {
        &self.schema.source
    }

    pub(crate) fn len(&self) -> usize {
        self.operations.len()
    }

    /// Memory held by the rows, about.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    pub(crate) fn append(&mut self, change: Change) -> Result<(), Problem> {
        let Change { operation, origin, shard, offset, actor, row, old } = change;
        let appended = match operation {
            Operation::Delete => self.rows.append_deleted(&row),
            _ => self.rows.append(&row, old.as_ref()),
        };
        appended.map_err(|error| error.problem(&self.schema.source))?;
        self.operations.push(operation);
        self.origins.push(origin);
        self.lanes.lanes.push(shard);
        self.lanes.offsets.push(offset);
        self.lanes.actors.push(actor);
        Ok(())
    }

    /// Takes everything collected so far out; `None` if there is nothing.
    pub(crate) fn finish(&mut self) -> Option<ChangeChunk> {
        if self.operations.is_empty() {
            return None;
        }
        let Rows { columns, before } = self.rows.finish();
        Some(ChangeChunk {
            schema: Arc::clone(&self.schema),
            operations: std::mem::take(&mut self.operations),
            origins: std::mem::take(&mut self.origins),
            lanes: Some(Box::new(std::mem::take(&mut self.lanes))),
            rows: columns,
            before,
            unchanged: Vec::new(),
        })
    }
}
