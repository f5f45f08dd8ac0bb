//! The rows of some keys on both sides, spilled to scratch, and what comes of them: equal rows cancel, what is left under
//! one key on both sides is an update, all else came or went.
//!
//! Scratch files have no name, so nobody else opens them and a crash leaves none behind; they hold rows of the table.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, FixedSizeBinaryArray, RecordBatch, UInt32Array};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef as ArrowSchemaRef};
use arrow_select::interleave::interleave_record_batch;
use arrow_select::take::take_record_batch;

use super::{Changes, Counts, Each, PAST, Watch};
use crate::compare::{RowHashes, Side};
use crate::error::Problem;
use crate::key_index::KeyHash;
use crate::storage::file_problem;

/// Bytes of both hashes of a row.
const HASHES: i32 = 32;

/// Both sides of one partition while it is filled.
pub(super) struct Partition {
    past: Spill,
    present: Spill,
}

/// How often a row still has to be told: below 0 of the past, above 0 of the present.
type Balance = HashMap<(KeyHash, u128), i64>;

/// The rows of one key that are left.
#[derive(Clone, Copy, Default)]
struct Standing {
    went: u64,
    came: u64,
}

impl Standing {
    fn updated(self) -> u64 {
        self.went.min(self.came)
    }
}

impl Partition {
    /// For rows of `schema`, or for their hashes alone.
    pub(super) fn new(schema: Option<ArrowSchemaRef>) -> Result<Self, Problem> {
        Ok(Self { past: Spill::new(schema.as_ref())?, present: Spill::new(schema.as_ref())? })
    }

    pub(super) fn add(
        &mut self,
        side: Side,
        batch: &RecordBatch,
        hashes: &RowHashes,
        rows: Vec<u32>,
    ) -> Result<(), Problem> {
        let spill = if side == PAST { &mut self.past } else { &mut self.present };
        spill.write(batch, hashes, rows)
    }

    /// What has happened to its rows; tells them to `each`, if they were kept.
    pub(super) fn settle<E: From<Problem>>(self, watch: Watch<'_, E>, each: Option<Each<'_, E>>) -> Result<Counts, E> {
        let (mut past, mut present) = (self.past.finish()?, self.present.finish()?);
        let mut balance = Balance::new();
        for (spilled, sign) in [(&mut past, -1), (&mut present, 1)] {
            for batch in spilled.read(Some(vec![0]))? {
                watch()?;
                hashes_of(&batch.map_err(unreadable)?).for_each(|row| *balance.entry(row).or_default() += sign);
            }
        }
        balance.retain(|_, rows| *rows != 0);
        let mut standings: HashMap<KeyHash, Standing> = HashMap::new();
        for ((key, _), rows) in &balance {
            let standing = standings.entry(*key).or_default();
            match *rows < 0 {
                true => standing.went += rows.unsigned_abs(),
                false => standing.came += rows.unsigned_abs(),
            }
        }
        let mut counts = Counts::default();
        for standing in standings.values() {
            counts += Counts {
                inserted: standing.came - standing.updated(),
                updated: standing.updated(),
                deleted: standing.went - standing.updated(),
            };
        }
        if let Some(each) = each.filter(|_| !counts.is_equal()) {
            tell(past, present, balance, standings, watch, each)?;
        }
        Ok(counts)
    }
}

/// Reads both sides again. Of the past only the rows that have been updated are kept, until the present brings the others.
fn tell<E: From<Problem>>(
    mut past: Spilled,
    mut present: Spilled,
    mut balance: Balance,
    mut standings: HashMap<KeyHash, Standing>,
    watch: Watch<'_, E>,
    each: Each<'_, E>,
) -> Result<(), E> {
    let mut kept: Vec<RecordBatch> = Vec::new();
    let mut waiting: HashMap<KeyHash, Vec<(usize, usize)>> = HashMap::new();
    for batch in past.read(None)? {
        watch()?;
        let batch = batch.map_err(unreadable)?;
        let (mut deleted, mut updated) = (Vec::new(), Vec::new());
        for (row, hashes) in (0..).zip(hashes_of(&batch)) {
            let Some(left) = balance.get_mut(&hashes).filter(|left| **left < 0) else { continue };
            *left += 1;
            let standing = standings.get_mut(&hashes.0).expect("a row that is left has a key that is left");
            if standing.updated() > 0 {
                *standing = Standing { went: standing.went - 1, came: standing.came - 1 };
                waiting.entry(hashes.0).or_default().push((kept.len(), updated.len()));
                updated.push(row);
            } else {
                deleted.push(row);
            }
        }
        if !updated.is_empty() {
            kept.push(rows(&batch, updated)?);
        }
        if !deleted.is_empty() {
            each(Changes::Deleted(rows(&batch, deleted)?))?;
        }
    }
    let kept: Vec<&RecordBatch> = kept.iter().collect();
    for batch in present.read(None)? {
        watch()?;
        let batch = batch.map_err(unreadable)?;
        let (mut inserted, mut updated, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for (row, hashes) in (0..).zip(hashes_of(&batch)) {
            let Some(left) = balance.get_mut(&hashes).filter(|left| **left > 0) else { continue };
            *left -= 1;
            match waiting.get_mut(&hashes.0).and_then(Vec::pop) {
                Some(place) => {
                    before.push(place);
                    updated.push(row);
                }
                None => inserted.push(row),
            }
        }
        if !updated.is_empty() {
            let before = interleave_record_batch(&kept, &before).map_err(unreadable)?;
            each(Changes::Updated { before, after: rows(&batch, updated)? })?;
        }
        if !inserted.is_empty() {
            each(Changes::Inserted(rows(&batch, inserted)?))?;
        }
    }
    Ok(())
}

/// Some rows of a spilled batch, without their hashes.
fn rows(batch: &RecordBatch, rows: Vec<u32>) -> Result<RecordBatch, Problem> {
    let columns: Vec<usize> = (1..batch.num_columns()).collect();
    let taken = batch.project(&columns).and_then(|batch| take_record_batch(&batch, &UInt32Array::from(rows)));
    taken.map_err(unreadable)
}

fn hashes_of(batch: &RecordBatch) -> impl Iterator<Item = (KeyHash, u128)> {
    let half = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().expect("half of the hashes"));
    let hashes = batch.column(0).as_fixed_size_binary();
    (0..hashes.len()).map(move |row| {
        let (key, row) = hashes.value(row).split_at(16);
        (KeyHash(half(key)), half(row))
    })
}

/// Rows of one side on their way to scratch: an Arrow stream whose first column holds the hashes.
struct Spill {
    schema: ArrowSchemaRef,
    writer: StreamWriter<BufWriter<File>>,
}

impl Spill {
    fn new(schema: Option<&ArrowSchemaRef>) -> Result<Self, Problem> {
        let mut fields = vec![Arc::new(Field::new("hashes", DataType::FixedSizeBinary(HASHES), false))];
        fields.extend(schema.iter().flat_map(|schema| schema.fields().iter().cloned()));
        let file = tempfile::tempfile().map_err(|error| failed("made", &error))?;
        let schema = Arc::new(Schema::new(fields));
        let writer = StreamWriter::try_new(BufWriter::new(file), &schema).map_err(unwritable)?;
        Ok(Self { schema, writer })
    }

    fn write(&mut self, batch: &RecordBatch, hashes: &RowHashes, rows: Vec<u32>) -> Result<(), Problem> {
        let mut bytes = Vec::with_capacity(rows.len() * 32);
        for &row in &rows {
            bytes.extend_from_slice(&hashes.keys[row as usize].0.to_le_bytes());
            bytes.extend_from_slice(&hashes.rows[row as usize].to_le_bytes());
        }
        let hashes = FixedSizeBinaryArray::try_new(HASHES, Buffer::from_vec(bytes), None).map_err(unwritable)?;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(hashes)];
        if self.schema.fields().len() > 1 {
            let rows = take_record_batch(batch, &UInt32Array::from(rows)).map_err(unwritable)?;
            columns.extend(rows.columns().iter().cloned());
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(unwritable)?;
        self.writer.write(&batch).map_err(unwritable)
    }

    fn finish(mut self) -> Result<Spilled, Problem> {
        self.writer.finish().map_err(unwritable)?;
        let buffer = self.writer.into_inner().map_err(unwritable)?;
        Ok(Spilled(buffer.into_inner().map_err(|error| failed("written", error.error()))?))
    }
}

/// A side that can be read, as often as is wanted.
struct Spilled(File);

impl Spilled {
    /// Some of the columns, or all.
    fn read(&mut self, columns: Option<Vec<usize>>) -> Result<StreamReader<BufReader<&File>>, Problem> {
        self.0.seek(SeekFrom::Start(0)).map_err(|error| failed("read", &error))?;
        StreamReader::try_new(BufReader::new(&self.0), columns).map_err(unreadable)
    }
}

fn failed(verb: &str, error: &std::io::Error) -> Problem {
    file_problem("scratch of a diff, in the folder for temporary files", verb, error)
}

fn unwritable(error: ArrowError) -> Problem {
    failed("written", &into_io(error))
}

fn unreadable(error: ArrowError) -> Problem {
    failed("read", &into_io(error))
}

fn into_io(error: ArrowError) -> std::io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => std::io::Error::other(other),
    }
}
