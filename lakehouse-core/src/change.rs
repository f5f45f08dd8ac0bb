//! What a source says happened: rows of one table, column by column, in source order.
//!
//! Does not own merging (`batch.rs`) nor what a table looks like (`schema.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, UInt64Array};
use arrow_select::take::take;

use crate::commit::properties::TableState;
use crate::lanes::LaneOffset;
use crate::position::Position;
use crate::schema::TableSchema;

/// Memory of one entry of [`LaneOrigins`], in bytes.
const LANE_ORIGIN: usize = size_of::<Arc<str>>() + size_of::<LaneOffset>() + size_of::<Option<Arc<str>>>();

/// What one change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    /// The source has let go of a row whose time had come, and the mirror keeps it: only the history says so.
    Expire,
    /// Every row that stood before this place is gone. Its row in the chunk is all NULL.
    Truncate,
    /// The row could not be mapped and stands in the quarantine, whole. The mirror's row of the key goes: what stood before
    /// is not true any more. Of the row in the chunk only the key is there.
    Quarantine,
}

impl Operation {
    /// The word in the history table's `_cdc_operation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Expire => "expire",
            Operation::Truncate => "truncate",
            Operation::Quarantine => "quarantine",
        }
    }

    /// The operation of that word.
    pub fn named(word: &str) -> Option<Self> {
        let all = [Self::Insert, Self::Update, Self::Delete, Self::Expire, Self::Truncate, Self::Quarantine];
        all.into_iter().find(|operation| operation.as_str() == word)
    }
}

/// Where and when one change was committed at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// End of the source transaction: the same for all its changes, and what decides about skipping (protocol A2). Of a
    /// log with many lanes, the number of the boundary that the change is read before.
    pub commit: Position,
    /// Microseconds since 1970, by the source's clock.
    pub committed_at: i64,
    /// The source's own number of the transaction.
    pub transaction: i64,
    /// Place of the change in its transaction, over all tables, from 0.
    pub ordinal: i32,
}

/// Where in the lanes of their log changes come from; one entry per change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneOrigins {
    pub lanes: Vec<Arc<str>>,
    pub offsets: Vec<LaneOffset>,
    /// Who made a change, where the source says that it was not a client.
    pub actors: Vec<Option<Arc<str>>>,
}

/// A row that could not be mapped, with everything that the source has sent of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// What the change did at the source; `None` for a row that a copy has read.
    pub operation: Option<Operation>,
    /// The key as JSON.
    pub key: String,
    /// The row as JSON, and as it was before, where the source has sent that.
    pub image: String,
    pub old_image: Option<String>,
    /// The column that could not take its value, by its name at the source.
    pub column: String,
    /// Stable, in upper case, as the codes of problems.
    pub code: String,
    /// For people; values are no part of it.
    pub reason: String,
}

impl Quarantined {
    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let texts = [&self.key, &self.image, &self.column, &self.code, &self.reason];
        let old = self.old_image.as_ref().map_or(0, String::len);
        size_of::<Self>() + old + texts.iter().map(|text| text.len()).sum::<usize>()
    }
}

/// Changes of one table, decoded with one version of its schema. All columns have one entry per change.
#[derive(Clone, Debug)]
pub struct ChangeChunk {
    pub schema: Arc<TableSchema>,
    pub operations: Vec<Operation>,
    pub origins: Vec<Origin>,
    /// Of a log with many lanes.
    pub lanes: Option<Box<LaneOrigins>>,
    /// One array per column of `schema`. After-images; of a delete, the old image as far as the source sends it.
    pub rows: Vec<ArrayRef>,
    /// Old images of updates, one array per column in `schema.before_columns`; NULL where the source sent none.
    pub before: Option<BeforeImages>,
    /// Cells that the source left out because the value did not change (R56). They are NULL in `rows` until resolved.
    pub unchanged: Vec<UnchangedColumn>,
    /// The row of each change whose operation is [`Operation::Quarantine`]: one entry per change, or none at all.
    pub quarantined: Vec<Option<Arc<Quarantined>>>,
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

    /// Memory held by the chunk, in bytes. Memory that columns share counts once: what is read back from a file is one
    /// piece, and every column would count all of it.
    pub fn bytes(&self) -> usize {
        let before = self.before.iter().flat_map(|before| &before.columns);
        // Allocations by where they begin.
        let mut pieces = HashMap::new();
        let mut arrays: Vec<_> = self.rows.iter().chain(before).map(|column| column.to_data()).collect();
        while let Some(data) = arrays.pop() {
            let validity = data.nulls().map(|nulls| nulls.buffer());
            let buffers = data.buffers().iter().chain(validity);
            pieces.extend(buffers.map(|buffer| (buffer.data_ptr(), buffer.capacity())));
            arrays.extend(data.child_data().iter().cloned());
        }
        let lanes = if self.lanes.is_some() { LANE_ORIGIN } else { 0 };
        let quarantined = self.quarantined.iter().flatten().map(|row| row.bytes()).sum::<usize>();
        quarantined
            + pieces.values().sum::<usize>()
            + self.len() * (size_of::<Operation>() + size_of::<Origin>() + lanes)
    }

    /// The changes that a table in `state` has not; `None` if it has all of them (protocol A2). Changes of a log with one
    /// lane are in the order of their commits; of several lanes each is judged by its own.
    pub fn after(self, state: &TableState) -> Option<ChangeChunk> {
        if let (Some(origins), Some(reached)) = (&self.lanes, &state.lanes) {
            let new = |&change: &usize| !reached.includes(&origins.lanes[change], origins.offsets[change]);
            let new: Vec<usize> = (0..self.len()).filter(new).collect();
            return match new.len() {
                0 => None,
                all if all == self.len() => Some(self),
                _ => Some(self.pick(&new)),
            };
        }
        let reached = state.position.unwrap_or(Position::START);
        let skip = self.origins.partition_point(|origin| reached.includes(origin.commit));
        match skip {
            0 => Some(self),
            skip if skip == self.len() => None,
            skip => Some(self.slice(skip, self.len() - skip)),
        }
    }

    /// The named changes, in the order in which they are named.
    fn pick(&self, changes: &[usize]) -> ChangeChunk {
        let places = UInt64Array::from_iter_values(changes.iter().map(|&change| change as u64));
        let column = |column: &ArrayRef| take(column, &places, None).expect("the places are within the chunk");
        let boolean = |array: &BooleanArray| column(&(Arc::new(array.clone()) as ArrayRef)).as_boolean().clone();
        ChangeChunk {
            schema: Arc::clone(&self.schema),
            quarantined: match self.quarantined.is_empty() {
                true => Vec::new(),
                false => changes.iter().map(|&change| self.quarantined[change].clone()).collect(),
            },
            operations: changes.iter().map(|&change| self.operations[change]).collect(),
            origins: changes.iter().map(|&change| self.origins[change]).collect(),
            lanes: self.lanes.as_ref().map(|origins| {
                Box::new(LaneOrigins {
                    lanes: changes.iter().map(|&change| Arc::clone(&origins.lanes[change])).collect(),
                    offsets: changes.iter().map(|&change| origins.offsets[change]).collect(),
                    actors: changes.iter().map(|&change| origins.actors[change].clone()).collect(),
                })
            }),
            rows: self.rows.iter().map(column).collect(),
            before: self.before.as_ref().map(|before| BeforeImages {
                known: boolean(&before.known),
                columns: before.columns.iter().map(column).collect(),
            }),
            unchanged: self
                .unchanged
                .iter()
                .map(|cells| UnchangedColumn { column: cells.column, rows: boolean(&cells.rows) })
                .collect(),
        }
    }

    /// Consecutive changes, without copying the columns.
    pub fn slice(&self, offset: usize, length: usize) -> ChangeChunk {
        let boolean = |array: &BooleanArray| array.slice(offset, length);
        ChangeChunk {
            schema: Arc::clone(&self.schema),
            quarantined: match self.quarantined.is_empty() {
                true => Vec::new(),
                false => self.quarantined[offset..offset + length].to_vec(),
            },
            operations: self.operations[offset..offset + length].to_vec(),
            origins: self.origins[offset..offset + length].to_vec(),
            lanes: self.lanes.as_ref().map(|origins| {
                Box::new(LaneOrigins {
                    lanes: origins.lanes[offset..offset + length].to_vec(),
                    offsets: origins.offsets[offset..offset + length].to_vec(),
                    actors: origins.actors[offset..offset + length].to_vec(),
                })
            }),
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
