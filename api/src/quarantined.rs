//! What stands in a table's quarantine, the newest first: which rows could not be mapped, why, and where they come from. The
//! rows themselves are in the table that the answer names. Changes nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, RecordBatch};
use lakehouse_core::catalog::LoadedTable;
use lakehouse_core::error::Problem;
use lakehouse_core::position::Position;
use lakehouse_core::read::{Projection, TableReader};
use lakehouse_core::schema::{
    CODE, COLUMN, COMMITTED_AT, KEY, LANE, OFFSET, OPERATION, ORDINAL, POSITION, REASON, TableName,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::answer;
use crate::digest::sha256;
use crate::failure::Failure;
use crate::lake::{self, Kind, Lake};
use crate::shapes;

/// What is read of the quarantine. Images, which are large, stay where they are.
const COLUMNS: [&str; 10] = [KEY, OPERATION, COLUMN, CODE, REASON, COMMITTED_AT, POSITION, ORDINAL, LANE, OFFSET];
/// Hexadecimal digits of a key's digest: 128 bits, as `verify` has them.
const DIGITS: usize = 32;

/// Rows of a table's quarantine, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = Quarantine)]
pub(crate) struct Listed {
    pub(crate) table: String,
    /// Null where the table has none.
    pub(crate) quarantine: Option<String>,
    /// All rows that stand there, also those that are not shown.
    pub(crate) rows: u64,
    pub(crate) quarantined: Vec<Quarantined>,
}

impl Listed {
    /// Of a table without one.
    pub(crate) fn nothing(mirror: &TableName) -> Self {
        Self { table: mirror.to_string(), quarantine: None, rows: 0, quarantined: Vec::new() }
    }
}

/// A row that could not be mapped. In the order of its fields the newest is the greatest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[schema(as = QuarantinedRow)]
pub(crate) struct Quarantined {
    #[serde(skip)]
    pub(crate) place: Place,
    /// RFC 3339.
    pub(crate) committed_at: String,
    /// Position, lane and offset are those of the history; a row that a copy has read has none.
    #[schema(value_type = Option<shapes::Position>)]
    pub(crate) position: Option<Position>,
    pub(crate) lane: Option<String>,
    pub(crate) offset: Option<String>,
    pub(crate) operation: String,
    /// As JSON, where keys are asked for; else its digest.
    pub(crate) key: String,
    /// The column that could not take its value, by its name at the source.
    pub(crate) column: String,
    pub(crate) code: String,
    pub(crate) reason: String,
}

/// Where a row stands in the list. It travels in addresses, so it has nothing of the row's values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Microseconds since 1970.
    committed_at: i64,
    position: Option<Position>,
    ordinal: Option<i32>,
    lane: Option<String>,
    offset: Option<String>,
    key_digest: String,
}

/// Which rows are wanted.
pub(crate) struct Wish {
    /// At most so many.
    pub(crate) most: usize,
    /// Only older ones.
    pub(crate) behind: Option<Place>,
    pub(crate) show_keys: bool,
}

/// # Errors
/// `TABLE_UNKNOWN` for what is no mirror.
pub(crate) fn check_mirror(table: &LoadedTable) -> Result<(), Failure> {
    match lake::kind(table) {
        Kind::Mirror => Ok(()),
        Kind::History | Kind::Quarantine | Kind::Maintenance | Kind::Other => {
            let remedy = "name a mirror; `lakehouse tables` lists them";
            Err(Failure::failed("TABLE_UNKNOWN", table.name.to_string(), "the table is no mirror", remedy))
        }
    }
}

/// A quarantine as it stands.
pub(crate) struct Quarantine {
    name: TableName,
    reader: TableReader,
}

impl Quarantine {
    pub(crate) async fn open(lake: &Lake, table: LoadedTable) -> Result<Self, Failure> {
        // What a newer release has written may mean something else.
        lake::table_state(&table)?;
        let reader = TableReader::at(&lake.storage, &table, table.snapshot_id()).await?;
        Ok(Self { name: table.name, reader })
    }

    pub(crate) fn listed(&self, mirror: &TableName, quarantined: Vec<Quarantined>) -> Listed {
        let (table, rows) = (mirror.to_string(), self.reader.live.rows());
        Listed { table, quarantine: Some(self.name.to_string()), rows, quarantined }
    }

    /// No more than the rows that are wanted is in memory, and a batch. Blocks; ends early where `check` says so.
    pub(crate) fn newest(
        &self,
        wish: &Wish,
        check: impl Fn() -> Result<(), Problem>,
    ) -> Result<Vec<Quarantined>, Failure> {
        let schema = &self.reader.schema;
        let known = COLUMNS.iter().filter_map(|name| schema.field_by_name(name));
        let columns = Projection::of(schema, &known.map(|field| field.id).collect::<Vec<_>>())?;
        let mut newest = BinaryHeap::new();
        for path in self.reader.files() {
            for batch in self.reader.read(path, &columns)? {
                check()?;
                let batch = batch?;
                for row in 0..batch.num_rows() {
                    let row = row_of(&batch, row, wish.show_keys).ok_or_else(|| self.unreadable())?;
                    if wish.behind.as_ref().is_some_and(|behind| row.place >= *behind) {
                        continue;
                    }
                    newest.push(Reverse(row));
                    if newest.len() > wish.most {
                        newest.pop();
                    }
                }
            }
        }
        Ok(newest.into_sorted_vec().into_iter().map(|Reverse(row)| row).collect())
    }

    fn unreadable(&self) -> Failure {
        let remedy = "give the table back the columns that it was created with";
        Failure::failed("QUARANTINE_UNREADABLE", self.name.to_string(), "the quarantine has lost columns", remedy)
    }
}

/// `None` where a column that every quarantine has is gone or of another type.
fn row_of(batch: &RecordBatch, row: usize, show_keys: bool) -> Option<Quarantined> {
    let text = |name| {
        let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let key = text(KEY)?;
    let position = number::<Int64Type>(batch.column_by_name(POSITION)?, row);
    let place = Place {
        committed_at: number::<TimestampMicrosecondType>(batch.column_by_name(COMMITTED_AT)?, row)?,
        position: position.map(|position| Position::new(position.cast_unsigned())),
        ordinal: number::<Int32Type>(batch.column_by_name(ORDINAL)?, row),
        lane: text(LANE),
        offset: text(OFFSET),
        key_digest: sha256(key.as_bytes())[..DIGITS].to_owned(),
    };
    Some(Quarantined {
        committed_at: answer::time(place.committed_at.div_euclid(1_000)),
        position: place.position,
        lane: place.lane.clone(),
        offset: place.offset.clone(),
        operation: text(OPERATION)?,
        key: if show_keys { key } else { place.key_digest.clone() },
        column: text(COLUMN)?,
        code: text(CODE)?,
        reason: text(REASON)?,
        place,
    })
}

fn number<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Option<T::Native> {
    let column = column.as_primitive_opt::<T>()?;
    column.is_valid(row).then(|| column.value(row))
}
