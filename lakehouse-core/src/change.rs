//! What a source says happened: rows of one table, column by column, in source order.
//!
//! Does not own merging (`batch.rs`) nor what a table looks like (`schema.rs`).

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray};

use crate::position::Position;
use crate::schema::TableSchema;

/// What one change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    /// Every row that stood before this place is gone. Its row in the chunk is all NULL.
    Truncate,
}

impl Operation {
    /// The word in the history table's `_cdc_operation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Truncate => "truncate",
        }
    }
}

/// Where and when one change was committed at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// End of the source transaction: the same for all its changes, and what decides about skipping (protocol A2).
    pub commit: Position,
    /// Microseconds since 1970, by the source's clock.
    pub committed_at: i64,
    /// The source's own number of the transaction.
    pub transaction: i64,
    /// Place of the change in its transaction, over all tables, from 0.
    pub ordinal: i32,
}

/// Changes of one table, decoded with one version of its schema. All columns have one entry per change.
#[derive(Clone, Debug)]
pub struct ChangeChunk {
    pub schema: Arc<TableSchema>,
    pub operations: Vec<Operation>,
    pub origins: Vec<Origin>,
    /// One array per column of `schema`. After-images; of a delete, the old image as far as the source sends it.
    pub rows: Vec<ArrayRef>,
    /// Old images of updates, one array per column in `schema.before_columns`; NULL where the source sent none.
    pub before: Option<BeforeImages>,
    /// Cells that the source left out because the value did not change (R56). They are NULL in `rows` until resolved.
    pub unchanged: Vec<UnchangedColumn>,
}

/// Old images of updated rows.
#[derive(Clone, Debug)]
pub struct BeforeImages {
    /// True where the source sent an old image.
    pub known: BooleanArray,
    /// In the order of `TableSchema::before_columns`.
    pub columns: Vec<ArrayRef>,
}

/// The cells of one column that were not sent.
#[derive(Clone, Debug)]
pub struct UnchangedColumn {
    pub column: usize,
    /// True where the value was not sent.
    pub rows: BooleanArray,
}

impl ChangeChunk {
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Memory held by the chunk, in bytes.
    pub fn bytes(&self) -> usize {
        let columns: usize = self.rows.iter().map(|column| column.get_buffer_memory_size()).sum();
        let before = self.before.iter().flat_map(|before| &before.columns);
        let before: usize = before.map(|column| column.get_buffer_memory_size()).sum();
        columns + before + self.len() * (size_of::<Operation>() + size_of::<Origin>())
    }

    /// The changes behind `reached`; `None` if there are none (protocol A2). Changes are in the order of their commits.
    pub fn after(self, reached: Position) -> Option<ChangeChunk> {
        let skip = self.origins.partition_point(|origin| reached.includes(origin.commit));
        match skip {
            0 => Some(self),
            skip if skip == self.len() => None,
            skip => Some(self.slice(skip, self.len() - skip)),
        }
    }

    /// Consecutive changes, without copying the columns.
    pub fn slice(&self, offset: usize, length: usize) -> ChangeChunk {
        let boolean = |array: &BooleanArray| array.slice(offset, length);
        ChangeChunk {
            schema: Arc::clone(&self.schema),
            operations: self.operations[offset..offset + length].to_vec(),
            origins: self.origins[offset..offset + length].to_vec(),
            rows: self.rows.iter().map(|column| column.slice(offset, length)).collect(),
            before: self.before.as_ref().map(|before| BeforeImages {
                known: boolean(&before.known),
                columns: before.columns.iter().map(|column| column.slice(offset, length)).collect(),
            }),
            unchanged: self
                .unchanged
                .iter()
                .map(|cells| UnchangedColumn { column: cells.column, rows: boolean(&cells.rows) })
                .collect(),
        }
    }
}
