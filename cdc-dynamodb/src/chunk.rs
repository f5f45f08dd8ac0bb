//! Records of one table's stream, collected into a chunk.

use std::sync::Arc;

use lakehouse_core::change::{ChangeChunk, LaneOrigins, Operation, Origin, Quarantined};
use lakehouse_core::error::Problem;
use lakehouse_core::lanes::LaneOffset;
use lakehouse_core::schema::TableSchema;

use crate::items::{ItemBuilder, ItemError, ItemSchema, Rows};
use crate::mismatches::Mismatches;
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
    items: ItemSchema,
    operations: Vec<Operation>,
    origins: Vec<Origin>,
    lanes: LaneOrigins,
    rows: ItemBuilder,
    /// One entry per change, or none at all.
    quarantined: Vec<Option<Arc<Quarantined>>>,
    quarantined_bytes: usize,
    mismatches: Mismatches,
}

impl ChunkBuilder {
    pub(crate) fn new(items: &ItemSchema, mismatches: Mismatches) -> Self {
        Self {
            schema: Arc::clone(items.table()),
            items: items.clone(),
            operations: Vec::new(),
            origins: Vec::new(),
            lanes: LaneOrigins::default(),
            rows: items.builder(),
            quarantined: Vec::new(),
            quarantined_bytes: 0,
            mismatches,
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
        self.rows.bytes() + self.quarantined_bytes
    }

    pub(crate) fn append(&mut self, change: Change) -> Result<(), Problem> {
        let Change { operation, origin, shard, offset, actor, row, old } = change;
        let appended = match operation {
            Operation::Delete | Operation::Expire => self.rows.append_deleted(&row),
            _ => self.rows.append(&row, old.as_ref()),
        };
        let operation = match appended {
            Ok(()) => {
                self.note_quarantined(None);
                operation
            }
            Err(why) => {
                self.quarantine(&why, operation, &row, old.as_ref()).map_err(|why| why.problem(&self.schema.source))?;
                Operation::Quarantine
            }
        };
        self.operations.push(operation);
        self.origins.push(origin);
        self.lanes.lanes.push(shard);
        self.lanes.offsets.push(offset);
        self.lanes.actors.push(actor);
        Ok(())
    }

    /// An item that its columns' policies send to the quarantine; any other trouble is handed back.
    fn quarantine(
        &mut self,
        why: &ItemError,
        operation: Operation,
        row: &Item,
        old: Option<&Item>,
    ) -> Result<(), ItemError> {
        let quarantined = self.items.quarantined(why, Some(operation), row, old).ok_or_else(|| why.clone())?;
        self.rows.append_quarantined(&self.items.key_of(row), old)?;
        self.note_quarantined(Some(Arc::new(quarantined)));
        Ok(())
    }

    /// Of the change that comes next.
    fn note_quarantined(&mut self, row: Option<Arc<Quarantined>>) {
        if let Some(row) = &row {
            self.quarantined_bytes += row.bytes();
            self.quarantined.resize(self.operations.len(), None);
        }
        if row.is_some() || !self.quarantined.is_empty() {
            self.quarantined.push(row);
        }
    }

    /// Takes everything collected so far out; `None` if there is nothing.
    pub(crate) fn finish(&mut self) -> Option<ChangeChunk> {
        if self.operations.is_empty() {
            return None;
        }
        self.mismatches.add(&self.schema.source, self.rows.take_mismatches());
        let Rows { columns, before } = self.rows.finish();
        self.quarantined_bytes = 0;
        Some(ChangeChunk {
            schema: Arc::clone(&self.schema),
            operations: std::mem::take(&mut self.operations),
            origins: std::mem::take(&mut self.origins),
            lanes: Some(Box::new(std::mem::take(&mut self.lanes))),
            rows: columns,
            before,
            unchanged: Vec::new(),
            quarantined: std::mem::take(&mut self.quarantined),
        })
    }
}
