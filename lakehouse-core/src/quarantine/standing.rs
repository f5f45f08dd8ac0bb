//! Rows of a quarantine that nothing has replaced yet (reliability requirements Q3): what a replay may apply. The history
//! is the judge: a row stands if the newest change of its key is the one that put it here, or, of a row that a copy has
//! read, if there has been no change since. Places in the log tell which row that is; boundaries do not, as a crash lets
//! them be counted anew. Changes nothing, and knows no mapping.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use roaring::RoaringBitmap;

use crate::catalog::LoadedTable;
use crate::change::Operation;
use crate::error::Problem;
use crate::fold::history_begins;
use crate::key_hash::hash_keys;
use crate::key_index::KeyHash;
use crate::position::Position;
use crate::read::{FileRows, Projection, Rows, TableReader};
use crate::schema::{COMMITTED_AT, IMAGE, KEY, LANE, OFFSET, OPERATION, ORDINAL, POSITION, TableSchema};
use crate::storage::Storage;

/// Images that one replay takes, in bytes; another one goes on.
const BYTES: usize = 32 << 20;

/// From keys as JSON to the key's columns as the history has them: the source wrote the JSON.
pub type KeyColumns<'a> = dyn Fn(&[&str]) -> Result<Vec<ArrayRef>, Problem> + Sync + 'a;

/// A row of the quarantine that nothing has replaced.
pub struct StandingRow {
    /// What the change did; an insert where a copy has read the row.
    pub operation: Operation,
    /// Microseconds since 1970, as the quarantine has it.
    pub committed_at: i64,
    /// The row as JSON.
    pub image: String,
}

/// A row, by file and place there.
type Place = (usize, u32);
/// Lane and offset of a change.
type Origin = (String, String);

/// What the quarantine has, without images.
#[derive(Default)]
struct Found {
    /// Every key, with the row that a copy has read of it.
    keys: HashMap<KeyHash, Option<Place>>,
    changes: HashMap<Origin, Place>,
}

/// What the history says of the quarantine's keys.
#[derive(Default)]
struct Told {
    /// The newest change by position and ordinal, and where it comes from if it went to the quarantine.
    newest: HashMap<KeyHash, ((i64, i32), Option<Origin>)>,
    /// Keys of changes that the lane has brought: an interrupted replay is done again with these and no other.
    brought: HashSet<KeyHash>,
}

/// See [`StandingRow`]; in the order of their times, no more than [`BYTES`] of them.
pub(crate) async fn standing(
    storage: &Storage,
    quarantine: &LoadedTable,
    history: &LoadedTable,
    schema: &TableSchema,
    lane: &str,
    key_columns: &KeyColumns<'_>,
) -> Result<Vec<StandingRow>, Problem> {
    let begins = history_begins(history)?.unwrap_or(Position::START);
    let kept = TableReader::at(storage, quarantine, quarantine.snapshot_id()).await?;
    let history = TableReader::at(storage, history, history.snapshot_id()).await?;
    tokio::task::block_in_place(|| {
        let found = found(&kept, key_columns)?;
        let told = told(&history, schema, begins, lane, &found.keys)?;
        rows(&kept, &places(&found, &told))
    })
}

fn found(quarantine: &TableReader, key_columns: &KeyColumns<'_>) -> Result<Found, Problem> {
    let columns = columns(quarantine, &[KEY, LANE, OFFSET])?;
    let mut found = Found::default();
    for (file, path) in quarantine.files().into_iter().enumerate() {
        let mut reader = quarantine.read(path, &columns)?;
        while let Some(batch) = reader.next_batch() {
            let (batch, positions) = batch?;
            let [keys, lanes, offsets] = [0, 1, 2].map(|column| texts(&batch, column));
            let (keys, lanes, offsets) = (keys?, lanes?, offsets?);
            let keys: Vec<&str> = keys.iter().map(Option::unwrap_or_default).collect();
            let hashes = hash_keys(&key_columns(&keys)?)?;
            for (row, (key, position)) in hashes.into_iter().zip(positions).enumerate() {
                let place = (file, position);
                let copied = found.keys.entry(key).or_default();
                match origin(lanes, offsets, row) {
                    Some(origin) => drop(found.changes.insert(origin, place)),
                    None => *copied = Some(place),
                }
            }
        }
    }
    Ok(found)
}

fn told(
    history: &TableReader,
    schema: &TableSchema,
    begins: Position,
    lane: &str,
    keys: &HashMap<KeyHash, Option<Place>>,
) -> Result<Told, Problem> {
    let key: Vec<&str> = schema.key_columns().into_iter().map(|column| schema.columns[column].name.as_str()).collect();
    let columns = columns(history, &[&[OPERATION, POSITION, ORDINAL, LANE, OFFSET], &key[..]].concat())?;
    let mut told = Told::default();
    for path in history.files() {
        for batch in history.read(path, &columns)? {
            let batch = batch?;
            let (operations, lanes, offsets) = (texts(&batch, 0)?, texts(&batch, 3)?, texts(&batch, 4)?);
            let hashes = hash_keys(&batch.columns()[5..])?;
            for (row, key) in hashes.into_iter().enumerate().filter(|(_, key)| keys.contains_key(key)) {
                let position = batch.column(1).as_primitive::<Int64Type>().value(row);
                if begins.includes(Position::new(position.cast_unsigned())) {
                    // A copy has come since.
                    continue;
                }
                if lanes.is_valid(row) && lanes.value(row) == lane {
                    told.brought.insert(key);
                    continue;
                }
                let moment = (position, batch.column(2).as_primitive::<Int32Type>().value(row));
                let quarantined = operations.value(row) == Operation::Quarantine.as_str();
                let newest = told.newest.entry(key).or_insert_with(|| ((i64::MIN, 0), None));
                if moment > newest.0 {
                    *newest = (moment, origin(lanes, offsets, row).filter(|_| quarantined));
                }
            }
        }
    }
    Ok(told)
}

/// Where the rows stand that count, by file.
fn places(found: &Found, told: &Told) -> BTreeMap<usize, RoaringBitmap> {
    let mut places: BTreeMap<usize, RoaringBitmap> = BTreeMap::new();
    for (key, copied) in &found.keys {
        if !told.brought.is_empty() && !told.brought.contains(key) {
            continue;
        }
        let place = match told.newest.get(key) {
            Some((_, origin)) => origin.as_ref().and_then(|origin| found.changes.get(origin).copied()),
            None => *copied,
        };
        if let Some((file, row)) = place {
            places.entry(file).or_default().insert(row);
        }
    }
    places
}

fn rows(quarantine: &TableReader, places: &BTreeMap<usize, RoaringBitmap>) -> Result<Vec<StandingRow>, Problem> {
    let columns = columns(quarantine, &[OPERATION, COMMITTED_AT, IMAGE])?;
    let paths = quarantine.files();
    let (mut rows, mut bytes) = (Vec::new(), 0);
    'files: for (&file, wanted) in places {
        let opened = FileRows::open(&quarantine.storage, paths[file], &columns, Rows::Only(wanted.clone()))?;
        for batch in opened {
            let batch = batch?;
            let (operations, images) = (texts(&batch, 0)?, texts(&batch, 2)?);
            let times = batch.column(1).as_primitive_opt::<TimestampMicrosecondType>();
            let times = times.ok_or_else(|| unreadable(COMMITTED_AT))?;
            for row in 0..batch.num_rows() {
                if bytes >= BYTES {
                    break 'files;
                }
                let image = images.value(row).to_owned();
                bytes += image.len();
                let operation = Operation::named(operations.value(row)).unwrap_or(Operation::Insert);
                rows.push(StandingRow { operation, committed_at: times.value(row), image });
            }
        }
    }
    rows.sort_by_key(|row| row.committed_at);
    Ok(rows)
}

fn columns(table: &TableReader, names: &[&str]) -> Result<Projection, Problem> {
    let id = |name: &&str| {
        let field = table.schema.as_struct().fields().iter().find(|field| field.name == *name);
        field.map(|field| field.id).ok_or_else(|| unreadable(name))
    };
    Projection::of(&table.schema, &names.iter().map(id).collect::<Result<Vec<_>, _>>()?)
}

fn texts(batch: &RecordBatch, column: usize) -> Result<&StringArray, Problem> {
    batch.column(column).as_string_opt::<i32>().ok_or_else(|| unreadable(batch.schema_ref().field(column).name()))
}

/// `None` of a row that a copy has read.
fn origin(lanes: &StringArray, offsets: &StringArray, row: usize) -> Option<Origin> {
    let both = lanes.is_valid(row) && offsets.is_valid(row);
    both.then(|| (lanes.value(row).to_owned(), offsets.value(row).to_owned()))
}

fn unreadable(column: &str) -> Problem {
    let remedy = "give the quarantine and the history back the columns that they were created with";
    Problem::halt_table("QUARANTINE_UNREADABLE", column, "a column is gone, or of another type", remedy)
}
